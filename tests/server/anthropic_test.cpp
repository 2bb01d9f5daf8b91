#include <gtest/gtest.h>

#include "server/fake_engine.hpp"

namespace glint::testing {
namespace {

constexpr const char* kPath = "/v1/messages";
const std::string kHello = R"("max_tokens":50,"messages":[{"role":"user","content":"Hello"}])";
const std::string kTool =
    R"("tools":[{"name":"get_weather","description":"d","input_schema":{"type":"object","properties":)"
    R"({"city":{"type":"string"},"days":{"type":"integer"}}},"cache_control":{"type":"ephemeral"}}])";

std::string body(const std::string& more = "") { return "{" + kHello + (more.empty() ? "" : "," + more) + "}"; }

TEST(Anthropic, WholeMessage) {
  ServiceFixture f;
  f.engine.scripts = {{.pieces = {"Hi", " there"}}};
  const Reply r = f.post(kPath, body());
  EXPECT_EQ(r.status, 200);
  EXPECT_EQ(f.engine.prompt(), "[gMASK]<sop><|user|>Hello<|assistant|></think>");
  EXPECT_EQ(f.engine.requests[0].max_tokens, 50);
  EXPECT_EQ(text_at(r.json, "type"), "message");
  EXPECT_EQ(text_at(r.json, "role"), "assistant");
  EXPECT_EQ(text_at(r.json, "content/0/type"), "text");
  EXPECT_EQ(text_at(r.json, "content/0/text"), "Hi there");
  EXPECT_EQ(text_at(r.json, "stop_reason"), "end_turn");
  EXPECT_EQ(text_at(r.json, "stop_sequence"), "(null)");
  EXPECT_EQ(text_at(r.json, "usage/cache_read_input_tokens"), "3");
  EXPECT_EQ(text_at(r.json, "usage/input_tokens"), std::to_string(f.engine.requests[0].ids.size() - 3));
  EXPECT_EQ(text_at(r.json, "usage/output_tokens"), "3");
}

TEST(Anthropic, ThinkingAndToolsWhole) {
  ServiceFixture f;
  f.engine.scripts = {{.pieces = {"hm</think>I look.<tool_call>get_weather<arg_key>city</arg_key><arg_value>Rome",
                                  "</arg_value><arg_key>days</arg_key><arg_value>2</arg_value></tool_call>"}}};
  const Reply r = f.post(kPath, body(kTool + R"(,"thinking":{"type":"enabled","budget_tokens":1024})"));
  EXPECT_EQ(text_at(r.json, "content/0/type"), "thinking");
  EXPECT_EQ(text_at(r.json, "content/0/thinking"), "hm");
  EXPECT_EQ(text_at(r.json, "content/1/text"), "I look.");
  EXPECT_EQ(text_at(r.json, "content/2/type"), "tool_use");
  EXPECT_EQ(text_at(r.json, "content/2/name"), "get_weather");
  EXPECT_EQ(text_at(r.json, "content/2/input/city"), "Rome");
  EXPECT_EQ(text_at(r.json, "content/2/input/days"), "2");
  EXPECT_EQ(text_at(r.json, "stop_reason"), "tool_use");
  EXPECT_NE(f.engine.prompt().find(R"({"type": "function", "function": {"name": "get_weather", "description": "d", )"
                                   R"("parameters": {"type": "object")"),
            std::string::npos)
      << f.engine.prompt();
}

TEST(Anthropic, StreamOfBlocks) {
  ServiceFixture f;
  f.engine.scripts = {{.pieces = {"h", "m</think>I look.<tool_call>get_weather<arg_key>city</arg_key><arg_value>Ro",
                                  "me</arg_value></tool_call>"}}};
  const Reply r = f.post(kPath, body(kTool + R"(,"thinking":{"type":"adaptive"},"stream":true)"));
  EXPECT_TRUE(r.finished);
  EXPECT_FALSE(r.done_marker);
  std::vector<std::string> names;  // repeated ones once
  for (const std::string& name : r.events) {
    if (names.empty() || names.back() != name) names.push_back(name);
  }
  const std::vector<std::string> block = {"content_block_start", "content_block_delta", "content_block_stop"};
  std::vector<std::string> want = {"message_start"};
  for (int i = 0; i < 3; ++i) want.insert(want.end(), block.begin(), block.end());
  want.insert(want.end(), {"message_delta", "message_stop"});
  EXPECT_EQ(names, want);
  std::string joined[3];
  for (std::size_t i = 0; i < r.chunks.size(); ++i) {
    const JsonValue& chunk = r.chunks[i];
    EXPECT_EQ(text_at(chunk, "type"), r.events[i]);
    if (text_at(chunk, "type") != "content_block_delta") continue;
    const std::size_t index = std::stoul(text_at(chunk, "index"));
    for (const char* field : {"thinking", "text", "partial_json"}) {
      if (const JsonValue* v = json_at(chunk, std::string("delta/") + field)) joined[index] += v->text;
    }
  }
  EXPECT_EQ(joined[0], "hm");
  EXPECT_EQ(joined[1], "I look.");
  EXPECT_EQ(joined[2], R"({"city": "Rome"})");
  EXPECT_EQ(text_at(r.chunks[0], "message/usage/output_tokens"), "0");
  const JsonValue& delta = r.chunks[r.chunks.size() - 2];
  EXPECT_EQ(text_at(delta, "delta/stop_reason"), "tool_use");
  EXPECT_EQ(text_at(delta, "usage/output_tokens"), "4");
}

TEST(Anthropic, TurnsBecomeMessages) {
  ServiceFixture f;
  f.post(kPath,
         R"({"max_tokens":9,"thinking":{"type":"enabled"},"system":[{"type":"text","text":"Be brief."}],"messages":[
      {"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]},
      {"role":"assistant","content":[{"type":"thinking","thinking":"need","signature":"x"},{"type":"text","text":"I look."},
        {"type":"tool_use","id":"1","name":"f","input":{"x":[1,"y"]}},{"type":"tool_use","id":"2","name":"g","input":{}}]},
      {"role":"user","content":[{"type":"tool_result","tool_use_id":"2","content":[{"type":"text","text":"of g"}]},
        {"type":"tool_result","tool_use_id":"1","content":"of f"}]}]})");
  EXPECT_EQ(f.engine.prompt(),
            "[gMASK]<sop><|system|>Be brief.<|user|>ab<|assistant|><think>need</think>I look.<tool_call>f<arg_key>x"
            "</arg_key><arg_value>[1, \"y\"]</arg_value></tool_call><tool_call>g</tool_call><|observation|>"
            "<tool_response>of f</tool_response><tool_response>of g</tool_response><|assistant|><think>");
}

TEST(Anthropic, StopsAndLimits) {
  ServiceFixture f;
  f.engine.scripts = {{.pieces = {"a"}, .finish = Finish::kStop, .stop_string = "END"},
                      {.pieces = {"a"}, .finish = Finish::kLength}};
  const Reply stopped = f.post(kPath, body(R"("stop_sequences":["END"])"));
  EXPECT_EQ(f.engine.requests[0].stop, std::vector<std::string>{"END"});
  EXPECT_EQ(text_at(stopped.json, "stop_reason"), "stop_sequence");
  EXPECT_EQ(text_at(stopped.json, "stop_sequence"), "END");
  EXPECT_EQ(text_at(f.post(kPath, body()).json, "stop_reason"), "max_tokens");
}

TEST(Anthropic, CountTokens) {
  ServiceFixture f;
  const Reply r = f.post("/v1/messages/count_tokens", R"({"messages":[{"role":"user","content":"Hello"}]})");
  EXPECT_EQ(text_at(r.json, "input_tokens"),
            std::to_string(std::string("[gMASK]<sop><|user|>Hello<|assistant|></think>").size()));
  EXPECT_TRUE(f.engine.requests.empty());
}

TEST(Anthropic, ErrorsInItsOwnForm) {
  ServiceFixture f;
  f.engine.scripts = {{.pieces = {"x"}, .finish = Finish::kError, .error = "out of luck"}};
  const Reply refused = f.post(kPath, R"({"messages":[{"role":"user","content":"Hello"}]})");
  EXPECT_EQ(refused.status, 400);
  EXPECT_EQ(text_at(refused.json, "type"), "error");
  EXPECT_EQ(text_at(refused.json, "error/type"), "invalid_request_error");
  EXPECT_NE(text_at(refused.json, "error/message").find("max_tokens"), std::string::npos);
  EXPECT_TRUE(text_at(refused.json, "request_id").starts_with("req_"));
  EXPECT_EQ(text_at(f.post(kPath, body()).json, "error/type"), "api_error");
  const Reply stream = f.post(kPath, body(R"("stream":true)"));
  EXPECT_EQ(stream.events.back(), "error");
  EXPECT_EQ(text_at(stream.chunks.back(), "error/type"), "api_error");
  for (const char* wrong :
       {R"("tool_choice":{"type":"any"})", R"("tool_choice":{"type":"tool","name":"f"})", R"("thinking":{"type":"so"})",
        R"("tools":[{"type":"web_search_20250305","name":"web_search"}])", R"("tools":[{"name":"f"}])",
        R"("stop_sequences":[""])", R"("system":5)", R"("temperature":9)",
        R"("messages":[{"role":"user","content":[{"type":"image","source":{}}]}])",
        R"("messages":[{"role":"user","content":[{"type":"tool_result","content":"x"}]}])",
        R"("messages":[{"role":"assistant","content":[{"type":"tool_use","id":"1","name":"f","input":"x"}]}])"}) {
    EXPECT_EQ(f.post(kPath, body(wrong)).status, 400) << wrong;
  }
  EXPECT_TRUE(f.engine.running.empty());
}

}  // namespace
}  // namespace glint::testing
