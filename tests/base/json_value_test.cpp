#include "base/json_value.hpp"

#include <gtest/gtest.h>

#include "base/error.hpp"

namespace glint {
namespace {

std::string echo(std::string_view json, NumberStyle style = NumberStyle::kVerbatim) {
  return dump_json(parse_json_value(json, "test"), style);
}

std::string problem(std::string_view json) {
  EXPECT_FALSE(try_parse_json_value(json)) << json;
  try {
    parse_json_value(json, "test");
  } catch (const Error& e) { return e.parts().found; }
  ADD_FAILURE() << "no error for " << json;
  return "";
}

TEST(JsonValue, KeepsDigitsAndKeyOrder) {
  EXPECT_EQ(echo(R"( {"b":[1.50,-0,1E+2],"a":12345678901234567890123} )"),
            R"({"b": [1.50, -0, 1E+2], "a": 12345678901234567890123})");
  EXPECT_EQ(echo(R"({"b":1.50,"a":-0,"c":1E+2,"d":-1e999})", NumberStyle::kPython),
            R"({"b": 1.5, "a": 0, "c": 100.0, "d": -Infinity})");
}

TEST(JsonValue, TheLastOfEqualKeysWinsInTheFirstPlace) {
  EXPECT_EQ(echo(R"({"a":1,"b":2,"a":3})"), R"({"a": 3, "b": 2})");
  JsonValue v = JsonValue::make_object();
  v.set("x", "s").set("y", JsonValue::from_bool(true)).set("x", JsonValue());
  EXPECT_EQ(dump_json(v, NumberStyle::kPython), R"({"x": null, "y": true})");
  ASSERT_NE(v.find("y"), nullptr);
  EXPECT_TRUE(v.find("y")->boolean);
  EXPECT_EQ(v.find("z"), nullptr);
  EXPECT_EQ(JsonValue("text").find("y"), nullptr);
}

TEST(JsonValue, Strings) {
  EXPECT_EQ(parse_json_value(R"("\"\\\/\b\f\n\r\t\u00e9\ud83d\ude00ü")", "test").text, "\"\\/\b\f\n\r\té😀ü");
  EXPECT_EQ(echo(R"("\u0000\u001f\u007f\/")"), "\"\\u0000\\u001f\x7f/\"");
}

TEST(JsonValue, RefusesWhatIsNotJson) {
  EXPECT_EQ(problem("{\n  \"a\": 01}"), "a number with a leading zero at line 2, column 9");
  EXPECT_EQ(problem(""), "the text ends where a value is expected at line 1, column 1");
  for (const char* bad : {"nul",
                          "NaN",
                          "-",
                          "1.",
                          ".5",
                          "1e",
                          "+1",
                          "[1,]",
                          "[1 2]",
                          "{\"a\"}",
                          "{a:1}",
                          "{\"a\":1,}",
                          "\"a",
                          "\"\\x\"",
                          "\"\\u12g4\"",
                          "\"\\ud800\"",
                          "\"\\ud800\\u0041\"",
                          "\"\\udc00\"",
                          "\"\n\"",
                          "\"\xff\"",
                          "\"\xc0\x80\"",
                          "\"\xed\xa0\x80\"",
                          "\"\xe2\x82\"",
                          "\"\xf4\x90\x80\x80\"",
                          "1 1"}) {
    EXPECT_FALSE(problem(bad).empty());
  }
}

TEST(JsonValue, NestsToALimit) {
  const auto nested = [](std::size_t n) { return std::string(n, '[') + std::string(n, ']'); };
  EXPECT_TRUE(try_parse_json_value(nested(129)));
  EXPECT_NE(problem(nested(130)).find("128"), std::string::npos);
  EXPECT_NE(problem(std::string(1000000, '[')).find("128"), std::string::npos);
}

TEST(JsonValue, ManyKeysAreReadInLinearTime) {
  std::string json = "{";
  for (int i = 0; i < 200000; ++i) json += "\"key" + std::to_string(i) + "\":0,";
  json.back() = '}';
  EXPECT_EQ(parse_json_value(json, "test").items.size(), 200000u);
}

TEST(JsonValue, PythonFloats) {
  EXPECT_EQ(python_float_repr(1e16), "1e+16");
  EXPECT_EQ(python_float_repr(123456789012345.0), "123456789012345.0");
  EXPECT_EQ(python_float_repr(0.0001), "0.0001");
  EXPECT_EQ(python_float_repr(0.00001), "1e-05");
  EXPECT_EQ(python_float_repr(-0.0), "-0.0");
  EXPECT_EQ(python_float_repr(5e-324), "5e-324");
}

}  // namespace
}  // namespace glint
