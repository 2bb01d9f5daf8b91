#include <gtest/gtest.h>

#include "server/fake_engine.hpp"

namespace glint::testing {
namespace {

constexpr const char* kPath = "/v1/chat/completions";
const std::string kHello = R"("messages":[{"role":"user","content":"Hello"}])";
const std::string kWeather =
    R"("tools":[{"type":"function","function":{"name":"get_weather","parameters":{"type":"object","properties":)"
    R"({"city":{"type":"string"},"days":{"type":"integer"}}}}}])";

std::string body(const std::string& more = "") { return "{" + kHello + (more.empty() ? "" : "," + more) + "}"; }

// A stream's deltas of one field, joined.
std::string joined(const Reply& reply, const std::string& field, const std::string& index = "0") {
  std::string out;
  for (const JsonValue& chunk : reply.chunks) {
    const JsonValue* choice = json_at(chunk, "choices/0");
    if (choice == nullptr || text_at(*choice, "index") != index) continue;
    const JsonValue* v = json_at(*choice, "delta/" + field);
    if (v != nullptr) out += v->text;
  }
  return out;
}

TEST(OpenAiChat, WholeAnswerTakesReasoningAndContentApart) {
  ServiceFixture f;
  f.engine.scripts = {{.pieces = {"let me", " see</th", "ink>Hi", " there"}}};
  const Reply r = f.post(kPath, body());
  EXPECT_EQ(r.status, 200);
  EXPECT_EQ(f.engine.prompt(), "[gMASK]<sop><|user|>Hello<|assistant|><think>");
  EXPECT_EQ(text_at(r.json, "object"), "chat.completion");
  EXPECT_EQ(text_at(r.json, "model"), "test-model");
  EXPECT_EQ(text_at(r.json, "choices/0/message/reasoning_content"), "let me see");
  EXPECT_EQ(text_at(r.json, "choices/0/message/content"), "Hi there");
  EXPECT_EQ(text_at(r.json, "choices/0/finish_reason"), "stop");
  EXPECT_EQ(text_at(r.json, "usage/completion_tokens"), "5");
  EXPECT_EQ(text_at(r.json, "usage/prompt_tokens_details/cached_tokens"), "3");
  EXPECT_EQ(text_at(r.json, "usage/total_tokens"), std::to_string(5 + f.engine.requests[0].ids.size()));
  EXPECT_TRUE(f.engine.running.empty());
}

TEST(OpenAiChat, StreamedAnswerEqualsTheWholeOne) {
  ServiceFixture f;
  f.engine.scripts = {{.pieces = {"let me", " see</th", "ink>Hi", " there"}}};
  const Reply r = f.post(kPath, body(R"("stream":true,"stream_options":{"include_usage":true})"));
  EXPECT_EQ(r.status, 200);
  EXPECT_TRUE(r.content_type.starts_with("text/event-stream"));
  EXPECT_TRUE(r.finished);
  EXPECT_TRUE(r.done_marker);
  EXPECT_EQ(joined(r, "role"), "assistant");
  EXPECT_EQ(joined(r, "reasoning_content"), "let me see");
  EXPECT_EQ(joined(r, "content"), "Hi there");
  const JsonValue& usage = r.chunks.back();
  EXPECT_TRUE(json_at(usage, "choices")->items.empty());
  EXPECT_EQ(text_at(usage, "usage/completion_tokens"), "5");
  EXPECT_EQ(text_at(r.chunks[r.chunks.size() - 2], "choices/0/finish_reason"), "stop");
  for (std::size_t i = 0; i + 1 < r.chunks.size(); ++i) EXPECT_EQ(text_at(r.chunks[i], "usage"), "(null)");
}

// A tag that has no text counts with the piece behind it.
TEST(OpenAiChat, PiecesCanSayTheUsageSoFar) {
  ServiceFixture f;
  f.engine.scripts = {{.pieces = {"let me", " see", "</think>", "Hi"}}};
  const Reply r =
      f.post(kPath, body(R"("stream":true,"stream_options":{"include_usage":true,"continuous_usage_stats":true})"));
  std::vector<std::string> told;
  for (const JsonValue& chunk : r.chunks) {
    if (!text_at(chunk, "choices/0/delta/reasoning_content").starts_with('(') ||
        !text_at(chunk, "choices/0/delta/content").starts_with('('))
      told.push_back(text_at(chunk, "usage/completion_tokens"));
  }
  EXPECT_EQ(told.back(), "4");
  EXPECT_EQ(std::count(told.begin(), told.end(), "3"), 0);
  EXPECT_EQ(std::count(told.begin(), told.end(), "2"), 1);
  EXPECT_EQ(text_at(r.chunks.back(), "usage/completion_tokens"), "5");  // and the end token
}

TEST(OpenAiChat, ToolCallsAreTypedWholeAndStreamed) {
  const Script script{.pieces = {"</think>", "<tool_call>get_", "weather<arg_key>city</arg_key><arg_value>Kö",
                                 "ln</arg_value><arg_key>days</arg_key><arg_value>", "2</arg_value></tool_call>"}};
  ServiceFixture f;
  f.engine.scripts = {script};
  const Reply whole = f.post(kPath, body(kWeather));
  EXPECT_EQ(text_at(whole.json, "choices/0/message/content"), "(null)");
  EXPECT_EQ(text_at(whole.json, "choices/0/finish_reason"), "tool_calls");
  EXPECT_EQ(text_at(whole.json, "choices/0/message/tool_calls/0/function/name"), "get_weather");
  EXPECT_EQ(text_at(whole.json, "choices/0/message/tool_calls/0/function/arguments"), R"({"city": "Köln", "days": 2})");
  EXPECT_TRUE(text_at(whole.json, "choices/0/message/tool_calls/0/id").starts_with("call_"));
  EXPECT_NE(f.engine.prompt().find("# Tools"), std::string::npos);

  const Reply stream = f.post(kPath, body(kWeather + R"(,"stream":true)"));
  EXPECT_EQ(joined(stream, "tool_calls/0/function/name"), "get_weather");
  EXPECT_EQ(joined(stream, "tool_calls/0/function/arguments"), R"({"city": "Köln", "days": 2})");
  EXPECT_EQ(text_at(stream.chunks.back(), "choices/0/finish_reason"), "tool_calls");
}

TEST(OpenAiChat, OneCallOnlyWithoutParallelCalls) {
  ServiceFixture f;
  f.engine.scripts = {{.pieces = {"</think><tool_call>get_weather</tool_call>", "<tool_call>get_weather</tool_call>"},
                       .endless = true}};
  const Reply r = f.post(kPath, body(kWeather + R"(,"parallel_tool_calls":false)"));
  EXPECT_EQ(json_at(r.json, "choices/0/message/tool_calls")->items.size(), 1U);
  EXPECT_EQ(text_at(r.json, "choices/0/finish_reason"), "tool_calls");
  EXPECT_EQ(f.engine.abandoned.size(), 1U);
  EXPECT_TRUE(f.engine.running.empty());
}

TEST(OpenAiChat, ToolChoiceNoneHidesTheTools) {
  ServiceFixture f;
  f.engine.scripts = {{.pieces = {"</think><tool_call>get_weather</tool_call>"}}};
  const Reply r = f.post(kPath, body(kWeather + R"(,"tool_choice":"none")"));
  EXPECT_EQ(f.engine.prompt().find("get_weather"), std::string::npos);
  EXPECT_EQ(text_at(r.json, "choices/0/message/content"), "<tool_call>get_weather</tool_call>");
  EXPECT_EQ(text_at(r.json, "choices/0/finish_reason"), "stop");
}

TEST(OpenAiChat, ThinkingIsSwitchedInEveryDialect) {
  for (const char* off : {R"("chat_template_kwargs":{"enable_thinking":false})", R"("thinking":{"type":"disabled"})",
                          R"("reasoning_effort":"none")", R"("enable_thinking":false)",
                          R"("reasoning_effort":"high","chat_template_kwargs":{"enable_thinking":false})"}) {
    ServiceFixture f;
    f.engine.scripts = {{.pieces = {"Hi"}}};
    const Reply r = f.post(kPath, body(off));
    EXPECT_EQ(f.engine.prompt(), "[gMASK]<sop><|user|>Hello<|assistant|></think>") << off;
    EXPECT_EQ(text_at(r.json, "choices/0/message/content"), "Hi") << off;
    EXPECT_EQ(text_at(r.json, "choices/0/message/reasoning_content"), "(absent)") << off;
  }
}

TEST(OpenAiChat, ResultsOfParallelCallsFollowTheOrderOfTheCalls) {
  ServiceFixture f;
  f.post(kPath, R"({"messages":[{"role":"user","content":"w?"},{"role":"assistant","content":null,"tool_calls":[
      {"id":"1","type":"function","function":{"name":"a","arguments":"{}"}},
      {"id":"2","type":"function","function":{"name":"b","arguments":"{\"x\":12345678901234567890}"}}]},
      {"role":"tool","tool_call_id":"2","content":[{"type":"text","text":"of b"}]},
      {"role":"tool","tool_call_id":"1","content":"of a"}]})");
  EXPECT_EQ(f.engine.prompt(),
            "[gMASK]<sop><|user|>w?<|assistant|></think><tool_call>a</tool_call><tool_call>b<arg_key>x</arg_key>"
            "<arg_value>12345678901234567890</arg_value></tool_call><|observation|><tool_response>of a</tool_response>"
            "<tool_response>of b</tool_response><|assistant|><think>");
}

TEST(OpenAiChat, SeveralChoicesHaveSeedsOfTheirOwn) {
  ServiceFixture f;
  f.engine.scripts = {{.pieces = {"</think>one"}}, {.pieces = {"</think>two"}, .finish = Finish::kLength}};
  const Reply r = f.post(kPath, body(R"("n":2,"seed":7)"));
  EXPECT_EQ(text_at(r.json, "choices/0/message/content"), "one");
  EXPECT_EQ(text_at(r.json, "choices/1/message/content"), "two");
  EXPECT_EQ(text_at(r.json, "choices/1/finish_reason"), "length");
  EXPECT_EQ(*f.engine.requests[0].sampling.seed, 7U);
  EXPECT_EQ(*f.engine.requests[1].sampling.seed, 8U);
  EXPECT_EQ(text_at(r.json, "usage/completion_tokens"), "3");  // one with its end token, two without
  EXPECT_EQ(text_at(r.json, "usage/prompt_tokens"), std::to_string(f.engine.requests[0].ids.size()));
}

TEST(OpenAiChat, LogprobsOfEveryTokenButTheEnd) {
  ServiceFixture f;
  f.engine.scripts = {{.pieces = {"</think>", "x", "\n"}}};
  for (const char* stream : {"", R"(,"stream":true)"}) {
    const Reply r = f.post(kPath, body(std::string(R"("logprobs":true,"top_logprobs":2)") + stream));
    std::vector<JsonValue> entries;
    if (*stream == '\0') {
      entries = json_at(r.json, "choices/0/logprobs/content")->items;
    } else {
      for (const JsonValue& chunk : r.chunks) {
        const JsonValue* list = json_at(chunk, "choices/0/logprobs/content");
        if (list != nullptr) entries.insert(entries.end(), list->items.begin(), list->items.end());
      }
    }
    ASSERT_EQ(entries.size(), 3U) << stream;
    EXPECT_EQ(text_at(entries[1], "token"), "x");
    EXPECT_EQ(text_at(entries[1], "logprob"), "-0.5");
    EXPECT_EQ(text_at(entries[1], "bytes/0"), "120");
    EXPECT_EQ(text_at(entries[1], "top_logprobs/1/token"), "b");
  }
}

TEST(OpenAiChat, FieldsReachTheEngine) {
  ServiceFixture f;
  f.post(kPath, body(R"("temperature":0,"top_p":0.5,"top_k":-1,"min_p":0.1,"presence_penalty":1,"frequency_penalty":-1,
      "repetition_penalty":1.1,"logit_bias":{"65":-100},"max_tokens":5,"max_completion_tokens":9,"stop":["a","b"])"));
  const Request& r = f.engine.requests.at(0);
  EXPECT_EQ(r.sampling.temperature, 0);
  EXPECT_EQ(r.sampling.top_p, 0.5F);
  EXPECT_EQ(r.sampling.top_k, 0);
  EXPECT_EQ(r.sampling.min_p, 0.1F);
  EXPECT_EQ(r.sampling.presence_penalty, 1);
  EXPECT_EQ(r.sampling.frequency_penalty, -1);
  EXPECT_EQ(r.sampling.repetition_penalty, 1.1F);
  EXPECT_EQ(r.sampling.logit_bias, (std::vector<std::pair<std::int32_t, float>>{{65, -100.0F}}));
  EXPECT_EQ(r.max_tokens, 9);
  EXPECT_EQ(r.stop, (std::vector<std::string>{"a", "b"}));
  f.post(kPath, body(R"("temperature":null,"unknown_field":{"x":1})"));
  EXPECT_EQ(f.engine.requests.at(1).sampling.temperature, 1.0F);
  EXPECT_EQ(f.engine.requests.at(1).sampling.top_p, 0.95F);
}

TEST(OpenAiChat, AGenerationThatFailsIsAnError) {
  ServiceFixture f;
  f.engine.scripts = {{.pieces = {"</think>so"}, .finish = Finish::kError, .error = "out of luck"}};
  const Reply whole = f.post(kPath, body());
  EXPECT_EQ(whole.status, 500);
  EXPECT_NE(text_at(whole.json, "error/message").find("out of luck"), std::string::npos);
  const Reply stream = f.post(kPath, body(R"("stream":true)"));
  EXPECT_TRUE(stream.finished);
  EXPECT_FALSE(stream.done_marker);
  EXPECT_EQ(text_at(stream.chunks.back(), "error/type"), "server_error");
}

}  // namespace
}  // namespace glint::testing
