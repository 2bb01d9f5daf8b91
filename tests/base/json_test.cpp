#include "base/json.hpp"

#include <gtest/gtest.h>

#include <string>

#include "base/error.hpp"

namespace glint {
namespace {

std::string message_of(std::string_view text) {
  try {
    json::parse_text(text, "config.json");
  } catch (const Error& e) { return e.what(); }
  return "no error";
}

TEST(Json, ParsesWithSpaceAround) {
  const json::value v = json::parse_text(" {\"a\": [1, 2.5, \"x\", null, true]} \n", "here");
  EXPECT_EQ(v.at("a").at(0).as_int64(), 1);
  EXPECT_EQ(v.at("a").at(1).as_double(), 2.5);
}

TEST(Json, ErrorsNameSourceLineAndColumn) {
  const std::string bad = message_of("{\n  \"a\": 1,\n  \"b\": x}");
  EXPECT_EQ(bad.find("config.json: found "), 0U) << bad;
  EXPECT_NE(bad.find("line 3, column 8"), std::string::npos) << bad;
  EXPECT_NE(message_of("").find("incomplete"), std::string::npos) << message_of("");
  EXPECT_NE(message_of("{\"a\": 1").find("incomplete"), std::string::npos) << message_of("{\"a\": 1");
  EXPECT_NE(message_of("{} {}").find("extra data"), std::string::npos) << message_of("{} {}");
  EXPECT_NE(message_of("{} x"), "no error");
  EXPECT_NE(message_of("[1,]"), "no error");
  EXPECT_NE(message_of("\"\xff\""), "no error") << "invalid UTF-8";
  EXPECT_NE(message_of("// comment\n{}"), "no error");
}

TEST(Json, DepthIsLimited) {
  const auto nested = [](int depth) {
    return std::string(static_cast<std::size_t>(depth), '[') + std::string(static_cast<std::size_t>(depth), ']');
  };
  EXPECT_EQ(message_of(nested(100)), "no error");
  EXPECT_NE(message_of(nested(200)), "no error");
  EXPECT_NE(message_of(nested(1000000)), "no error") << "must not overflow the stack";
}

TEST(Json, FileErrorsNameTheFile) {
  EXPECT_THROW(json::parse_file("no/such/file.json"), Error);
  const json::value v = json::parse_file("models/tiny/config.json");
  EXPECT_EQ(v.at("kv_lora_rank").as_int64(), 512);
}

// Expected texts are what Python 3.11's json.dumps(..., ensure_ascii=False) prints.
TEST(Json, DumpsAsPython) {
  const auto again = [](std::string_view text) { return json::dump_python(json::parse_text(text, "here")); };
  EXPECT_EQ(again("{\"b\":1,\"a\":[],\"c\":{}}"), "{\"b\": 1, \"a\": [], \"c\": {}}");
  EXPECT_EQ(again("[null,true,false,-3]"), "[null, true, false, -3]");
  EXPECT_EQ(again("[1.0,0.1,1e5,1e16,1e-5,-0.0,123456789.125,1e22,5e-324]"),
            "[1.0, 0.1, 100000.0, 1e+16, 1e-05, -0.0, 123456789.125, 1e+22, 5e-324]");
  EXPECT_EQ(again("18446744073709551615"), "18446744073709551615");
  EXPECT_EQ(again("\"\\u00e9 \\ud83d\\ude42 \\n\\t\\b\\f\\r\\u0001 \\\" \\\\ /\""),
            "\"\xc3\xa9 \xf0\x9f\x99\x82 \\n\\t\\b\\f\\r\\u0001 \\\" \\\\ /\"");
}

}  // namespace
}  // namespace glint
