// /v1/completions, /tokenize, /detokenize.

#include <gtest/gtest.h>

#include "server/fake_engine.hpp"

namespace glint::testing {
namespace {

constexpr const char* kPath = "/v1/completions";

TEST(OpenAiCompletions, TextsAndIds) {
  ServiceFixture f;
  f.engine.scripts = {{.pieces = {"one"}}, {.pieces = {"two", "!"}}};
  const Reply texts = f.post(kPath, R"({"prompt":["a","[gMASK]<sop>b"],"max_tokens":4})");
  EXPECT_EQ(text_at(texts.json, "object"), "text_completion");
  EXPECT_EQ(text_at(texts.json, "choices/0/text"), "one");
  EXPECT_EQ(text_at(texts.json, "choices/1/text"), "two!");
  EXPECT_EQ(f.engine.decode(f.engine.requests[0].ids, false), "[gMASK]<sop>a");
  EXPECT_EQ(f.engine.decode(f.engine.requests[1].ids, false), "[gMASK]<sop>b");
  EXPECT_EQ(f.engine.requests[0].max_tokens, 4);
  EXPECT_EQ(text_at(texts.json, "usage/prompt_tokens"), "26");
  f.post(kPath, R"({"prompt":[104,105]})");
  EXPECT_EQ(f.engine.prompt(), "hi");
  EXPECT_EQ(f.engine.requests.back().max_tokens, 16);
  f.post(kPath, R"({"prompt":"a","add_special_tokens":false})");
  EXPECT_EQ(f.engine.prompt(), "a");
}

TEST(OpenAiCompletions, TagsInTheAnswerAreText) {
  ServiceFixture f;
  f.engine.scripts = {{.pieces = {"x</think><tool_call>", "y"}}};
  EXPECT_EQ(text_at(f.post(kPath, R"({"prompt":"a"})").json, "choices/0/text"), "x</think><tool_call>y");
}

TEST(OpenAiCompletions, StreamAndEcho) {
  ServiceFixture f;
  f.engine.scripts = {{.pieces = {"on", "e"}, .finish = Finish::kLength}};
  const Reply r = f.post(kPath, R"({"prompt":"ab","stream":true,"echo":true,"add_special_tokens":false,)"
                                R"("stream_options":{"include_usage":true}})");
  std::string text;
  for (const JsonValue& chunk : r.chunks) {
    if (!json_at(chunk, "choices")->items.empty()) text += text_at(chunk, "choices/0/text");
  }
  EXPECT_EQ(text, "abone");
  EXPECT_TRUE(r.done_marker);
  EXPECT_EQ(text_at(r.chunks.back(), "usage/completion_tokens"), "2");
  EXPECT_EQ(text_at(r.chunks[r.chunks.size() - 2], "choices/0/finish_reason"), "length");
  EXPECT_EQ(text_at(f.post(kPath, R"({"prompt":"ab","echo":true,"add_special_tokens":false})").json, "choices/0/text"),
            "abone");
}

TEST(OpenAiCompletions, Logprobs) {
  ServiceFixture f;
  f.engine.scripts = {{.pieces = {"x", "y"}}};
  const Reply r = f.post(kPath, R"({"prompt":"a","logprobs":2})");
  EXPECT_EQ(text_at(r.json, "choices/0/logprobs/tokens/1"), "y");
  EXPECT_EQ(text_at(r.json, "choices/0/logprobs/token_logprobs/1"), "-0.5");
  EXPECT_EQ(text_at(r.json, "choices/0/logprobs/top_logprobs/0/b"), "-1.5");
  EXPECT_EQ(text_at(r.json, "choices/0/logprobs/text_offset/1"), "1");
}

TEST(Tokens, ThereAndBack) {
  ServiceFixture f;
  EXPECT_EQ(text_at(f.post("/tokenize", R"({"content":"hi"})").json, "count"), "2");
  EXPECT_EQ(text_at(f.post("/tokenize", R"({"prompt":"hi"})").json, "count"), "14");
  EXPECT_EQ(text_at(f.post("/tokenize", R"({"prompt":"hi","add_special_tokens":false})").json, "tokens/0"), "104");
  const Reply chat = f.post("/tokenize", R"({"messages":[{"role":"user","content":"hi"}],"return_token_strs":true})");
  EXPECT_EQ(text_at(chat.json, "token_strs/0"), "[");
  EXPECT_EQ(text_at(f.post("/detokenize", R"({"tokens":[104,105]})").json, "prompt"), "hi");
  EXPECT_EQ(f.post("/detokenize", R"({"tokens":[104,1000]})").status, 400);
  EXPECT_EQ(f.post("/tokenize", R"({"content":"a","prompt":"b"})").status, 400);
}

}  // namespace
}  // namespace glint::testing
