// Calls in the model's own format as a grammar, and what stands before them.

#include <gtest/gtest.h>

#include "grammar/grammar_fixture.hpp"

namespace glint::grammar {
namespace {

using testing::accepts;
using testing::compile;
using testing::random_answer;
using testing::refusal;

const std::string kTools = R"("tools": [
  {"type": "function", "function": {"name": "get", "parameters": {"type": "object", "properties": {
    "city": {"type": "string"}, "days": {"type": "integer"}, "unit": {"enum": ["c", "f"]},
    "note": {"type": ["string", "null"]}, "list": {"type": "array", "items": {"type": "integer"}}}, "required": ["city"]}}},
  {"name": "get_all", "input_schema": {"type": "object", "properties": {}}},
  {"name": "now"}, {"name": "mixed", "parameters": {"properties": {
    "v": {"anyOf": [{"type": "string"}, {"type": "integer", "minimum": 5}]}, "any": {}}}},
  {"name": "free", "parameters": {"type": "object", "additionalProperties": {"type": "boolean"}}}])";

std::string call(const std::string& name, std::initializer_list<std::pair<const char*, const char*>> arguments = {}) {
  std::string out = "<tool_call>" + name;
  for (const auto& [key, value] : arguments) {
    out += std::string("<arg_key>") + key + "</arg_key><arg_value>" + value + "</arg_value>";
  }
  return out + "</tool_call>";
}

TEST(ToolGrammar, Required) {
  const auto g = compile("{" + kTools + R"(, "tool_choice": "required"})");
  for (const std::string& good :
       {call("get_all"), call("now"), call("get", {{"city", "K\xC3\xB6ln \"x\"\n"}}), call("get", {{"city", ""}}),
        call("get", {{"city", "x"}, {"days", "-3"}, {"unit", "c"}, {"note", "null"}, {"list", "[1, 2]"}}),
        call("get", {{"city", "x"}, {"note", "any text"}}), call("now") + call("get_all"), call("mixed"),
        call("mixed", {{"v", "5"}}), call("mixed", {{"v", "text"}, {"any", "{\"a\": 1"}}), call("free"),
        call("free", {{"on", "true"}, {"b", "false"}})}) {
    EXPECT_TRUE(accepts(g, good)) << good;
  }
  for (const std::string& bad :
       {std::string(), std::string("Hello"), call("get"), call("other"), call("get", {{"days", "1"}}),
        call("get", {{"city", "x"}, {"days", "one"}}), call("get", {{"city", "x"}, {"unit", "k"}}),
        call("get", {{"city", "x"}, {"more", "1"}}), call("get", {{"city", "x"}, {"city", "y"}}),
        call("get", {{"city", "x"}, {"list", "[1"}}), call("now", {{"a", "1"}}), call("now") + " ",
        call("mixed", {{"v", "4"}}), call("free", {{"on", "1"}}), "<think></think>" + call("now"),
        std::string("<tool_call>get<arg_key>city</arg_key><arg_value>x</tool_call>")}) {
    EXPECT_FALSE(accepts(g, bad)) << bad;
  }
}

TEST(ToolGrammar, ABareTextHoldsNoClosingTag) {
  const auto g = compile("{" + kTools + R"(, "tool_choice": "required", "function": "get"})");
  const auto c = make_constraint(g);
  ASSERT_TRUE(c->accept(testing::kFirstTag + 2));
  for (const char b : std::string("get")) ASSERT_TRUE(c->accept(b));
  ASSERT_TRUE(c->accept(testing::kFirstTag + 4));
  for (const char b : std::string("city")) ASSERT_TRUE(c->accept(b));
  ASSERT_TRUE(c->accept(testing::kFirstTag + 5));
  ASSERT_TRUE(c->accept(testing::kFirstTag + 6));
  for (const char b : std::string("a</arg_valu")) ASSERT_TRUE(c->accept(b));
  ASSERT_TRUE(c->accept('e'));
  EXPECT_FALSE(c->accept('>'));
  EXPECT_TRUE(c->accept('x'));
}

TEST(ToolGrammar, NamedAndSingle) {
  const auto named = compile("{" + kTools + R"(, "tool_choice": "required", "function": "now"})");
  EXPECT_TRUE(accepts(named, call("now")));
  EXPECT_FALSE(accepts(named, call("get_all")));
  const auto single = compile("{" + kTools + R"(, "tool_choice": "required", "parallel_tool_calls": false})");
  EXPECT_TRUE(accepts(single, call("now")));
  EXPECT_FALSE(accepts(single, call("now") + call("now")));
}

TEST(ToolGrammar, ReasoningIsFreeUntilItEnds) {
  const auto g = compile("{" + kTools + R"(, "tool_choice": "required", "thinking": true})");
  EXPECT_TRUE(accepts(g, "Which one? <arg, {\"</thin</think>" + call("now")));
  EXPECT_TRUE(accepts(g, "</think>" + call("now")));
  EXPECT_FALSE(accepts(g, "Hm" + call("now")));
  EXPECT_FALSE(accepts(g, "Hm"));
  EXPECT_FALSE(accepts(g, "Hm</think>Hello"));
  const auto json = compile(R"({"json_schema": {"type": "boolean"}, "thinking": true})");
  EXPECT_TRUE(accepts(json, "so it is</think>true"));
  EXPECT_FALSE(accepts(json, "true"));
}

TEST(ToolGrammar, AutoKeepsStrictToolsOnly) {
  const auto g = compile(
      R"({"tools": [{"name": "s", "strict": true, "parameters": {"properties": {"a": {"type": "integer"}}, "required": ["a"]}},
                                       {"name": "l", "parameters": {"not": {}}}]})");
  EXPECT_TRUE(accepts(g, "Just an answer."));
  EXPECT_TRUE(accepts(g, ""));
  EXPECT_TRUE(accepts(g, "First " + call("s", {{"a", "1"}}) + call("l", {{"x", "anything"}})));
  EXPECT_FALSE(accepts(g, call("s")));
  EXPECT_FALSE(accepts(g, call("s", {{"a", "x"}})));
  const auto either = compile(R"({"json_schema": {"type": "boolean"}, "tools": [{"name": "l"}]})");
  EXPECT_TRUE(accepts(either, "true"));
  EXPECT_TRUE(accepts(either, call("l")));
  EXPECT_FALSE(accepts(either, "text"));
}

TEST(ToolGrammar, Refusals) {
  const auto with = [](const std::string& parameters) {
    return refusal(
        R"({"tool_choice": "required", "tools": [{"name": "a"}, {"type": "function", "function": {"name": "f", "parameters": )" +
        parameters + "}}]}");
  };
  EXPECT_NE(with(R"({"properties": {"x": {"uniqueItems": true}}})")
                .find("tools[1].function.parameters.properties.x.uniqueItems"),
            std::string::npos);
  EXPECT_NE(with(R"({"type": "string"})").find("tools[1].function.parameters"), std::string::npos);
  EXPECT_NE(with(R"({"properties": {"<x": {}}})").find("<x"), std::string::npos);
  EXPECT_NE(refusal(R"({"tool_choice": "required"})").find("tool_choice"), std::string::npos);
  EXPECT_NE(refusal("{" + kTools + R"(, "tool_choice": "required", "function": "none"})").find("\"none\""),
            std::string::npos);
}

// Every walk that ends is accepted again, byte by byte.
TEST(ToolGrammar, RandomWalks) {
  const auto g = compile("{" + kTools + R"(, "tool_choice": "required", "thinking": true})");
  std::mt19937 rng(11);
  int whole = 0;
  for (int i = 0; i < 200; ++i) {
    const std::string text = random_answer(g, rng);
    if (text.empty()) continue;
    ++whole;
    EXPECT_TRUE(accepts(g, text)) << text;
    EXPECT_NE(text.find("</think><tool_call>"), std::string::npos);
  }
  EXPECT_GT(whole, 100);
}

}  // namespace
}  // namespace glint::grammar
