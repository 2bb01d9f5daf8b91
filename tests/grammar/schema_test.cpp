// JSON schemas as grammars: lists of texts that must and must not be accepted, and what is refused.

#include <gtest/gtest.h>

#include "grammar/grammar_fixture.hpp"

namespace glint::grammar {
namespace {

using testing::accepts;
using testing::compile_schema;
using testing::refusal;

struct Case {
  const char* schema;
  std::vector<std::string> good;
  std::vector<std::string> bad;
};

TEST(Schema, AcceptsAndRejects) {
  const Case cases[] = {
      {R"({"type": "boolean"})", {"true", "false", " true", "\ntrue"}, {"True", "null", "tru", "true "}},
      {R"({"type": "null"})", {"null"}, {"nul", "0"}},
      {R"({"type": "integer"})", {"0", "-7", "123456789012345678"}, {"01", "1.5", "--1", "-", "1234567890123456789"}},
      {R"({"type": "number"})", {"0", "-0.5", "1e5", "12.25E-3"}, {"1.", ".5", "1e", "1e999", "+1"}},
      {R"({"type": "integer", "minimum": 5, "maximum": 120})",
       {"5", "9", "10", "99", "120"},
       {"4", "0", "121", "130", "-6"}},
      {R"({"type": "integer", "minimum": -12, "exclusiveMaximum": 3})",
       {"-12", "-3", "0", "2"},
       {"-13", "3", "-0", "-20"}},
      {R"({"type": "integer", "exclusiveMinimum": 0})", {"1", "10", "999"}, {"0", "-1"}},
      {R"({"type": "integer", "maximum": -5})", {"-5", "-6", "-50", "-100"}, {"-4", "0", "5"}},
      {R"({"type": "number", "minimum": 0, "maximum": 1})",
       {"0", "0.0", "0.999", "1", "1.0"},
       {"1.01", "-0.1", "2", "1e0"}},
      {R"({"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1})",
       {"0.5", "0.01"},
       {"0", "0.0", "1", "1.0"}},
      {R"({"type": "number", "minimum": -1.25, "maximum": 10.5})",
       {"-1.25", "-1.2", "0.3", "10.5", "9.99"},
       {"-1.26", "10.51", "11"}},
      {R"({"type": "string"})",
       {R"("")", R"("a\n\"é日")", "\"\\u00e9\"", "\"\\ud83d\\ude00\"", "\"\xF0\x9F\x98\x80\""},
       {"\"", "\"\n\"", "\"\\x\"", "\"\\ud83d\"", "\"\xFF\"", "\"\xC0\x80\"", "\"\xED\xA0\x80\"", "abc"}},
      {R"({"type": "string", "minLength": 2, "maxLength": 3})",
       {R"("ab")", R"("日本語")", R"("\n\n")"},
       {R"("a")", R"("abcd")", R"("")"}},
      {R"({"type": "string", "maxLength": 0})", {R"("")"}, {R"("a")"}},
      {R"({"type": "string", "pattern": "^[a-c]+\\d{2}$"})",
       {R"("a12")", R"("abc99")"},
       {R"("a1")", R"("d12")", R"("a123")"}},
      {R"({"type": "string", "pattern": "b"})", {R"("abc")", R"("b")"}, {R"("ac")", R"("")"}},
      {R"({"type": "string", "pattern": "^(foo|ba[rz])?$"})",
       {R"("")", R"("foo")", R"("baz")"},
       {R"("ba")", R"("foobar")"}},
      {R"({"type": "string", "pattern": "^a|b$"})", {R"("ax")", R"("xb")"}, {R"("xa")", R"("bx")"}},
      {R"({"type": "string", "pattern": "^[^\"\\\\]$"})", {R"("x")"}, {R"("\"")", R"("\\")"}},
      {R"({"type": "string", "pattern": "^x*$", "minLength": 2, "maxLength": 4})",
       {R"("xx")", R"("xxxx")"},
       {R"("x")", R"("xxxxx")", R"("xy")"}},
      {R"({"type": "string", "format": "date"})",
       {R"("2024-02-28")", R"("1999-12-31")"},
       {R"("2024-02-30")", R"("2024-13-01")", R"("24-01-01")"}},
      {R"({"type": "string", "format": "date-time"})",
       {R"("2024-05-06T07:08:09Z")", R"("2024-05-06T07:08:09.5+02:00")"},
       {R"("2024-05-06")", R"("2024-05-06T25:08:09Z")"}},
      {R"({"type": "string", "format": "uuid"})", {R"("123e4567-e89b-12d3-a456-426614174000")"}, {R"("123e4567")"}},
      {R"({"type": "string", "format": "email"})", {R"("a.b@example.org")"}, {R"("a@b")", R"("@example.org")"}},
      {R"({"enum": ["red", "green", 3, null, {"a": [1]}]})",
       {R"("red")", R"("green")", "3", "null", R"({"a": [1]})"},
       {R"("blue")", R"("re")", "4"}},
      {R"({"const": "é"})", {R"("é")"}, {R"("e")"}},
      {R"({"type": "integer", "enum": ["a", 1, 2.5]})", {"1"}, {R"("a")", "2.5"}},
      {R"({"type": ["string", "null"], "maxLength": 1})", {"null", R"("a")"}, {R"("ab")", "1"}},
      {R"({"type": "array", "items": {"type": "integer"}})",
       {"[]", "[1]", "[1, 2,3]", "[\n  1,\n  2\n]"},
       {"[", "[1,]", R"(["a"])", "[1 2]", "[  1]"}},
      {R"({"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 3})",
       {"[true,false]", "[true,true,true]"},
       {"[]", "[true]", "[true,true,true,true]"}},
      {R"({"type": "array", "maxItems": 0})", {"[]"}, {"[1]"}},
      {R"({"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string"}]})",
       {"[]", "[1]", R"([1, "a"])"},
       {R"(["a"])", R"([1, "a", 2])"}},
      {R"({"type": "array", "prefixItems": [{"type": "integer"}], "items": {"type": "null"}, "minItems": 2, "maxItems": 3})",
       {"[1, null]", "[1,null,null]"},
       {"[1]", "[1,2]", "[1,null,null,null]"}},
      {R"({"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "string"}, "c": {}}, "required": ["b"]})",
       {R"({"b": "x"})", R"({"a":1,"b":"x"})", R"({"a": 1, "b": "x", "c": [1, {"z": null}]})", R"({"b": "", "c": 0})",
        "{\n  \"b\": \"\"\n}"},
       {"{}", R"({"a": 1})", R"({"b": "x", "a": 1})", R"({"b": "x", "d": 1})", R"({"b": "x",})", R"({"b": 1})"}},
      {R"({"type": "object", "properties": {}})", {"{}", "{ }"}, {R"({"a": 1})"}},
      {R"({"type": "object"})", {"{}", R"({"a": {"b": [1, 2]}, "": null})"}, {"[]", "{a: 1}", R"({"a"})"}},
      {R"({"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": {"type": "boolean"}})",
       {"{}", R"({"a": 1, "b": true})", R"({"b": true, "ab": false})", R"({"": true})"},
       {R"({"b": 1})", R"({"a": true})", "{\"\\u0061\": true}"}},
      {R"({"type": "object", "required": ["x"], "additionalProperties": {"type": "integer"}})",
       {R"({"x": 1})", R"({"x": 1, "y": 2})"},
       {"{}", R"({"y": 2})"}},
      {R"({"anyOf": [{"type": "integer"}, {"type": "array", "items": {"type": "integer"}}]})",
       {"1", "[1]"},
       {R"("a")", R"(["a"])"}},
      {R"({"oneOf": [{"type": "integer"}, {"type": "string"}]})", {"1", R"("a")"}, {"null"}},
      {R"({"oneOf": [{"properties": {"k": {"const": "a"}, "v": {"type": "integer"}}, "required": ["k", "v"]},
                     {"properties": {"k": {"const": "b"}, "w": {"type": "string"}}, "required": ["k", "w"]}]})",
       {R"({"k": "a", "v": 1})", R"({"k": "b", "w": ""})"},
       {R"({"k": "a", "w": ""})", R"({"k": "c"})"}},
      {R"({"allOf": [{"properties": {"a": {"type": "integer", "minimum": 3}}, "required": ["a"]}, {"properties": {"a": {"maximum": 5}, "b": {"type": "null"}}}]})",
       {R"({"a": 3})", R"({"a": 5, "b": null})"},
       {"{}", R"({"a": 6})", R"({"a": 2})"}},
      {R"({"type": "object", "properties": {"a": {"type": "integer"}}, "anyOf": [{"required": ["a"]}, {"properties": {"b": {"type": "null"}}, "required": ["b"]}]})",
       {R"({"a": 1})", R"({"b": null})", R"({"a": 1, "b": null})"},
       {"{}"}},
      {R"({"$defs": {"n": {"type": "object", "properties": {"v": {"type": "integer"}, "next": {"anyOf": [{"$ref": "#/$defs/n"}, {"type": "null"}]}}, "required": ["v", "next"]}}, "$ref": "#/$defs/n"})",
       {R"({"v": 1, "next": null})", R"({"v": 1, "next": {"v": 2, "next": null}})"},
       {R"({"v": 1})", R"({"v": 1, "next": 2})"}},
      {R"({"type": "object", "properties": {"c": {"type": "array", "items": {"$ref": "#"}}}, "required": ["c"]})",
       {R"({"c": []})", R"({"c": [{"c": []}, {"c": [{"c": []}]}]})"},
       {R"({"c": [1]})"}},
      {R"({"type": "string", "nullable": true})", {"null", R"("a")"}, {"1"}},
      {"true", {"1", R"({"a": [null, true, "x"]})"}, {"", "x"}},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.schema);
    const auto grammar = compile_schema(c.schema);
    for (const std::string& text : c.good) EXPECT_TRUE(accepts(grammar, text)) << text;
    for (const std::string& text : c.bad) EXPECT_FALSE(accepts(grammar, text)) << text;
  }
}

TEST(Schema, NamesThePlaceOfWhatItRefuses) {
  const std::pair<const char*, const char*> cases[] = {
      {R"({"type": "object", "properties": {"a": {"type": "strin"}}})",
       "json_schema.properties.a.type: found \"strin\""},
      {R"({"properties": {"a": {"items": {"pattern": "(?=x)a"}
  }
}
})",
       "json_schema.properties.a.items.pattern: found look-around"},
      {R"({"pattern": "(a"})", "json_schema.pattern"},
      {R"({"pattern": "\\bx"})", "json_schema.pattern"},
      {R"({"pattern": "(a)\\1"})", "json_schema.pattern: found back references"},
      {R"({"format": "hostname"})", "json_schema.format: found \"hostname\""},
      {R"({"not": {"type": "null"}})", "json_schema.not"},
      {R"({"if": {}, "then": {}})", "json_schema.if"},
      {R"({"type": "array", "uniqueItems": true})", "json_schema.uniqueItems"},
      {R"({"type": "integer", "multipleOf": 3})", "json_schema.multipleOf"},
      {R"({"patternProperties": {"^a": {}}})", "json_schema.patternProperties"},
      {R"({"propertyNames": {"pattern": "^a"}})", "json_schema.propertyNames"},
      {R"({"surprise": 1})", "json_schema.surprise"},
      {R"({"$ref": "#/$defs/none"})", "json_schema.$ref"},
      {R"({"$ref": "#"})", "in a circle"},
      {R"({"$ref": "http://example.org/x"})", "json_schema.$ref"},
      {R"({"oneOf": [{"type": "integer"}, {"type": "number"}]})", "json_schema.oneOf: found branches 0 and 1"},
      {R"({"type": "string", "minLength": 3, "maxLength": 2})", "no value"},
      {R"({"type": "integer", "minimum": 3, "maximum": 2})", "no value"},
      {R"({"enum": []})", "json_schema.enum"},
      {R"({"type": "object", "properties": {"n": {"$ref": "#"}}, "required": ["n"]})", "no value"},
      {R"({"type": "object", "additionalProperties": false, "required": ["a"]})", "no value"},
      {R"({"type": "object", "minProperties": 1})", "json_schema.minProperties"},
      {R"({"anyOf": [{"allOf": [{"type": "integer", "minimum": "x"}]}]})", "json_schema.anyOf[0].allOf[0].minimum"},
      {"[1]", "json_schema"},
      {"false", "no value"},
  };
  for (const auto& [schema, message] : cases) {
    const std::string got = refusal(std::string("{\"json_schema\": ") + schema + "}");
    EXPECT_NE(got.find(message), std::string::npos) << schema << " gave: " << got;
  }
  EXPECT_NE(refusal("{}").find("nothing that constrains"), std::string::npos);
  EXPECT_NE(refusal(R"({"json_shema": {}})").find("json_shema"), std::string::npos);
  EXPECT_NE(refusal(R"({"where": "text.format.schema", "json_schema": {"not": {}}})").find("text.format.schema.not"),
            std::string::npos);
}

// A mask is right if and only if each token is accepted where it is set and refused where it is not.
TEST(Schema, MasksAgreeWithSteps) {
  for (
      const char* schema :
      {R"({"type": "object", "properties": {"a": {"type": "string", "maxLength": 4}, "b": {"type": "array", "items": {"type": "number"}}}})",
       R"({"type": "array", "items": {"type": "string", "pattern": "^(a|the)+$"}})", "true",
       R"({"type": "string", "minLength": 3, "maxLength": 6})", R"({"type": "string", "minLength": 5})",
       R"({"type": "array", "minItems": 2, "maxItems": 4, "items": {"enum": ["a", 1]}})",
       R"({"type": "array", "items": {"type": "string", "minLength": 1, "maxLength": 2}, "maxItems": 3})",
       R"({"anyOf": [{"type": "integer", "maximum": 1200}, {"type": "string"}, {"enum": ["abc", "ab", 12]}]})"}) {
    const auto grammar = compile_schema(schema);
    std::mt19937 rng(5);
    std::vector<std::uint64_t> bits(grammar->vocabulary().n_words());
    for (int round = 0; round < 5; ++round) {
      std::vector<std::int32_t> taken;
      auto constraint = make_constraint(grammar);
      for (int step = 0; step < 25; ++step) {
        constraint->mask(bits);
        std::vector<std::int32_t> allowed;
        for (std::int32_t id = 0; id < 320; ++id) {
          const bool set = (bits[static_cast<std::size_t>(id) / 64] >> (id % 64) & 1) != 0;
          auto copy = make_constraint(grammar);
          for (const std::int32_t t : taken) ASSERT_TRUE(copy->accept(t));
          ASSERT_EQ(copy->accept(id), set) << schema << " token " << id;
          if (set && id != testing::kEnd) allowed.push_back(id);
        }
        if (allowed.empty()) break;
        taken.push_back(allowed[rng() % allowed.size()]);
        ASSERT_TRUE(constraint->accept(taken.back()));
      }
    }
  }
}

// One walk through the vocabulary serves every count of a string's characters.
TEST(Schema, CountsShareTheirWalk) {
  const auto grammar = compile_schema(R"({"type": "string", "minLength": 4, "maxLength": 40})");
  const auto constraint = make_constraint(grammar);
  std::vector<std::uint64_t> bits(grammar->vocabulary().n_words());
  ASSERT_TRUE(constraint->accept('"'));
  constraint->mask(bits);
  const std::size_t before = grammar->visited();
  EXPECT_GT(before, 100U);
  for (int n = 0; n < 40; ++n) {
    EXPECT_EQ((bits['"' / 64] >> ('"' % 64) & 1) != 0, n >= 4) << n;
    ASSERT_TRUE(constraint->accept('x'));
    constraint->mask(bits);
  }
  EXPECT_EQ(grammar->visited(), before);
  EXPECT_FALSE(constraint->accept('x'));
  EXPECT_TRUE(constraint->accept('"'));
}

TEST(Schema, DeepNestingEnds) {
  const auto grammar = compile_schema("true");
  auto constraint = make_constraint(grammar);
  std::vector<std::uint64_t> bits(grammar->vocabulary().n_words());
  int depth = 0;
  for (; depth < 1000; ++depth) {
    constraint->mask(bits);
    const bool set = (bits['[' / 64] >> ('[' % 64) & 1) != 0;
    ASSERT_EQ(constraint->accept('['), set);
    if (!set) break;
  }
  EXPECT_GT(depth, 80);
  EXPECT_LT(depth, 128);  // what JSON readers take
  for (int i = 0; i < depth; ++i) ASSERT_TRUE(constraint->accept(']'));
  EXPECT_TRUE(constraint->can_end());
}

}  // namespace
}  // namespace glint::grammar
