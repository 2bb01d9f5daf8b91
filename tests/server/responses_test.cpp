#include <gtest/gtest.h>

#include "server/fake_engine.hpp"

namespace glint::testing {
namespace {

constexpr const char* kPath = "/v1/responses";
const std::string kTool =
    R"("tools":[{"type":"function","name":"get_weather","parameters":{"type":"object","properties":)"
    R"({"city":{"type":"string"}}},"strict":true}])";

const Script kCall{.pieces = {"h", "m</think>I look.<tool_call>get_weather<arg_key>city</arg_key><arg_value>Ro",
                              "me</arg_value></tool_call>"}};

TEST(Responses, WholeResponse) {
  ServiceFixture f;
  f.engine.scripts = {kCall};
  const Reply r = f.post(kPath, R"({"input":"Hello","instructions":"Be brief.","max_output_tokens":50,)" + kTool + "}");
  EXPECT_EQ(r.status, 200);
  EXPECT_TRUE(f.engine.prompt().ends_with("<|system|>Be brief.<|user|>Hello<|assistant|><think>"));
  EXPECT_EQ(f.engine.requests[0].max_tokens, 50);
  EXPECT_EQ(text_at(r.json, "object"), "response");
  EXPECT_EQ(text_at(r.json, "status"), "completed");
  EXPECT_EQ(text_at(r.json, "output/0/type"), "reasoning");
  EXPECT_EQ(text_at(r.json, "output/0/content/0/text"), "hm");
  EXPECT_EQ(text_at(r.json, "output/1/content/0/text"), "I look.");
  EXPECT_EQ(text_at(r.json, "output/2/type"), "function_call");
  EXPECT_EQ(text_at(r.json, "output/2/name"), "get_weather");
  EXPECT_EQ(text_at(r.json, "output/2/arguments"), R"({"city": "Rome"})");
  EXPECT_EQ(text_at(r.json, "tools/0/name"), "get_weather");
  EXPECT_EQ(text_at(r.json, "usage/input_tokens_details/cached_tokens"), "3");
  EXPECT_EQ(text_at(r.json, "usage/output_tokens"), "4");
}

TEST(Responses, StreamEndsWithWhatItSent) {
  ServiceFixture f;
  f.engine.scripts = {kCall};
  const Reply r = f.post(kPath, R"({"input":"Hello","stream":true,)" + kTool + "}");
  ASSERT_GT(r.chunks.size(), 10U);
  std::string deltas[3];
  for (std::size_t i = 0; i < r.chunks.size(); ++i) {
    EXPECT_EQ(text_at(r.chunks[i], "type"), r.events[i]);
    EXPECT_EQ(text_at(r.chunks[i], "sequence_number"), std::to_string(i));
    if (!r.events[i].ends_with(".delta")) continue;
    deltas[std::stoul(text_at(r.chunks[i], "output_index"))] += text_at(r.chunks[i], "delta");
  }
  EXPECT_EQ(r.events[0], "response.created");
  EXPECT_EQ(r.events[1], "response.in_progress");
  EXPECT_EQ(r.events.back(), "response.completed");
  const JsonValue& last = *json_at(r.chunks.back(), "response");
  EXPECT_EQ(deltas[0], text_at(last, "output/0/content/0/text"));
  EXPECT_EQ(deltas[1], text_at(last, "output/1/content/0/text"));
  EXPECT_EQ(deltas[2], text_at(last, "output/2/arguments"));
  EXPECT_EQ(deltas[2], R"({"city": "Rome"})");
  EXPECT_EQ(text_at(last, "id"), text_at(r.chunks[0], "response/id"));
}

TEST(Responses, ItemsBecomeMessages) {
  ServiceFixture f;
  f.post(kPath,
         R"({"reasoning":{"effort":"none"},"input":[{"role":"user","content":[{"type":"input_text","text":"w?"}]},
      {"type":"reasoning","id":"rs_1","summary":[],"content":[{"type":"reasoning_text","text":"need"}]},
      {"type":"message","role":"assistant","content":[{"type":"output_text","text":"I look."}]},
      {"type":"function_call","call_id":"1","name":"f","arguments":"{\"x\":1}"},
      {"type":"function_call","call_id":"2","name":"g","arguments":"{}"},
      {"type":"function_call_output","call_id":"2","output":"of g"},
      {"type":"function_call_output","call_id":"1","output":"of f"}]})");
  EXPECT_EQ(f.engine.prompt(),
            "[gMASK]<sop><|user|>w?<|assistant|><think>need</think>I look.<tool_call>f<arg_key>x</arg_key><arg_value>1"
            "</arg_value></tool_call><tool_call>g</tool_call><|observation|><tool_response>of f</tool_response>"
            "<tool_response>of g</tool_response><|assistant|></think>");
}

TEST(Responses, CutOffAndFailed) {
  ServiceFixture f;
  f.engine.scripts = {{.pieces = {"</think>so"}, .finish = Finish::kLength},
                      {.pieces = {"</think>so"}, .finish = Finish::kError, .error = "out of luck"}};
  const Reply cut = f.post(kPath, R"({"input":"x"})");
  EXPECT_EQ(text_at(cut.json, "status"), "incomplete");
  EXPECT_EQ(text_at(cut.json, "incomplete_details/reason"), "max_output_tokens");
  const Reply failed = f.post(kPath, R"({"input":"x","stream":true})");
  EXPECT_EQ(failed.events.back(), "response.failed");
  EXPECT_EQ(text_at(failed.chunks.back(), "response/status"), "failed");
}

TEST(Responses, WhatIsNotOfferedIsRefused) {
  ServiceFixture f;
  for (const char* wrong :
       {R"({})", R"({"input":5})", R"({"input":[]})", R"({"input":"x","previous_response_id":"resp_1"})",
        R"({"input":"x","background":true})", R"({"input":"x","truncation":"auto"})",
        R"({"input":"x","text":{"format":{"type":"json_schema"}}})", R"({"input":"x","tools":[{"type":"web_search"}]})",
        R"({"input":"x","tool_choice":"required"})", R"({"input":[{"type":"item_reference","id":"a"}]})",
        R"({"input":[{"type":"function_call","call_id":"1","name":"f","arguments":"["}]})",
        R"({"input":[{"role":"user","content":[{"type":"input_image"}]}]})", R"({"input":"x","top_logprobs":3})",
        R"({"input":"x","reasoning":{"effort":"huge"}})", R"({"input":"x","max_output_tokens":0})"}) {
    EXPECT_EQ(f.post(kPath, wrong).status, 400) << wrong;
  }
  EXPECT_TRUE(f.engine.requests.empty());
}

TEST(Page, IsWholeAndKeepsToItself) {
  ServiceFixture f({.api_keys = {"secret"}});
  for (const auto& [path, type] :
       {std::pair{"/", "text/html"}, {"/app.js", "text/javascript"}, {"/style.css", "text/css"}}) {
    const Reply r = f.call("GET", path, "");
    EXPECT_EQ(r.status, 200) << path;
    EXPECT_TRUE(r.content_type.starts_with(type)) << path;
    EXPECT_GT(r.body.size(), 500U) << path;
    EXPECT_EQ(r.body.find("https://"), std::string::npos) << path;
    EXPECT_EQ(r.body.find("http://"), std::string::npos) << path;
    EXPECT_NE(r.header("Content-Security-Policy").find("default-src 'self'"), std::string::npos);
  }
}

}  // namespace
}  // namespace glint::testing
