// What the three APIs make of response formats and tool choices: the constraint that reaches the engine.

#include <gtest/gtest.h>

#include "server/fake_engine.hpp"

namespace glint::testing {
namespace {

JsonValue constraint_of(ServiceFixture& f, const char* path, const std::string& body) {
  const std::size_t before = f.engine.requests.size();
  const Reply r = f.post(path, body);
  EXPECT_EQ(r.status, 200) << r.body;
  EXPECT_EQ(f.engine.requests.size(), before + 1);
  const std::string& text = f.engine.requests.back().constraint;
  return text.empty() ? JsonValue() : parse_json_value(text, "constraint");
}

constexpr const char* kChat = R"({"messages":[{"role":"user","content":"x"}])";
constexpr const char* kTools =
    R"(,"tools":[{"type":"function","function":{"name":"f"}},{"type":"function","function":{"name":"g"}}])";

TEST(ConstraintFields, Chat) {
  ServiceFixture f;
  const auto of = [&](const std::string& more) { return constraint_of(f, "/v1/chat/completions", kChat + more + "}"); };
  EXPECT_TRUE(of("").is(JsonValue::Kind::kNull));
  EXPECT_TRUE(of(R"(,"response_format":{"type":"text"})").is(JsonValue::Kind::kNull));
  EXPECT_TRUE(of(std::string(kTools) + R"(,"tool_choice":"auto")").is(JsonValue::Kind::kNull));
  const JsonValue schema =
      of(R"(,"response_format":{"type":"json_schema","json_schema":{"name":"a","schema":{"type":"null"}}})");
  EXPECT_EQ(text_at(schema, "json_schema/type"), "null");
  EXPECT_EQ(text_at(schema, "where"), "response_format.json_schema.schema");
  EXPECT_TRUE(schema.find("thinking")->boolean);
  const JsonValue object = of(R"(,"response_format":{"type":"json_object"},"enable_thinking":false)");
  EXPECT_TRUE(object.find("json_object")->boolean);
  EXPECT_FALSE(object.find("thinking")->boolean);
  const JsonValue needed = of(std::string(kTools) + R"(,"tool_choice":"required","parallel_tool_calls":false)");
  EXPECT_EQ(text_at(needed, "tool_choice"), "required");
  EXPECT_EQ(text_at(needed, "tools/1/function/name"), "g");
  EXPECT_FALSE(needed.find("parallel_tool_calls")->boolean);
  const JsonValue named = of(std::string(kTools) + R"(,"tool_choice":{"type":"function","function":{"name":"g"}})");
  EXPECT_EQ(text_at(named, "function"), "g");
  const JsonValue either = of(std::string(kTools) + R"(,"response_format":{"type":"json_object"})");
  EXPECT_EQ(text_at(either, "tools/0/function/name"), "f");
  EXPECT_EQ(either.find("tool_choice"), nullptr);
}

TEST(ConstraintFields, ResponsesAndMessages) {
  ServiceFixture f;
  const JsonValue schema = constraint_of(
      f, "/v1/responses", R"({"input":"x","text":{"format":{"type":"json_schema","name":"a","schema":{"enum":[1]}}}})");
  EXPECT_EQ(text_at(schema, "json_schema/enum/0"), "1");
  const JsonValue named = constraint_of(
      f, "/v1/responses",
      R"({"input":"x","tools":[{"type":"function","name":"f"}],"tool_choice":{"type":"function","name":"f"}})");
  EXPECT_EQ(text_at(named, "function"), "f");
  const std::string head =
      R"({"max_tokens":9,"messages":[{"role":"user","content":"x"}],"tools":[{"name":"f","input_schema":{}}],)";
  const JsonValue any =
      constraint_of(f, "/v1/messages", head + R"("tool_choice":{"type":"any","disable_parallel_tool_use":true}})");
  EXPECT_EQ(text_at(any, "tool_choice"), "required");
  EXPECT_FALSE(any.find("parallel_tool_calls")->boolean);
  EXPECT_FALSE(any.find("thinking")->boolean);
  const JsonValue tool = constraint_of(f, "/v1/messages", head + R"("tool_choice":{"type":"tool","name":"f"}})");
  EXPECT_EQ(text_at(tool, "function"), "f");
  EXPECT_EQ(f.post("/v1/messages", head + R"("tool_choice":{"type":"tool","name":"g"}})").status, 400);
}

}  // namespace
}  // namespace glint::testing
