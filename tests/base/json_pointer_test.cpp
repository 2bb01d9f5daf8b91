#include "base/json_pointer.hpp"

#include <gtest/gtest.h>

namespace glint {
namespace {

TEST(JsonPointer, FindsMembersAndItems) {
  const JsonValue root = parse_json_value(R"({"a/b":{"~c":[1,{"d e":2}]},"~1":3,"":4})", "test");
  const auto text = [&](const char* ref) {
    const JsonValue* v = follow_reference(ref, root);
    return v == nullptr ? std::string("nothing") : v->text;
  };
  EXPECT_EQ(follow_reference("#", root), &root);
  EXPECT_EQ(text("#/a~1b/~0c/0"), "1");
  EXPECT_EQ(text("#/a~1b/~0c/1/d%20e"), "2");
  EXPECT_EQ(text("#/~01"), "3");
  EXPECT_EQ(text("#/%7E01"), "3");  // percent signs first, then tildes (RFC 6901, section 6)
  EXPECT_EQ(text("#/"), "4");
}

TEST(JsonPointer, IsNothingForWhatIsNotThere) {
  const JsonValue root = parse_json_value(R"({"a":[1]})", "test");
  for (const char* ref : {"", "a", "#a", "#/b", "#/a/1", "#/a/x", "#/a/0/c", "http://x#/a"}) {
    EXPECT_EQ(follow_reference(ref, root), nullptr) << ref;
  }
}

}  // namespace
}  // namespace glint
