#include "base/check.hpp"

#include <gtest/gtest.h>

#include <string>

#include "base/error.hpp"

namespace glint {
namespace {

TEST(Check, PassesInSilenceAndBuildsNoMessage) {
  int built = 0;
  const auto message = [&] {
    ++built;
    return std::string("never");
  };
  CHECK(1 + 1 == 2, message());
  CHECK(true);
  EXPECT_EQ(built, 0);
}

TEST(Check, EvaluatesItsConditionOnce) {
  int evaluated = 0;
  CHECK(++evaluated == 1);
  EXPECT_EQ(evaluated, 1);
}

TEST(Check, IsOneStatement) {
  int taken = 0;
  if (taken == 0) CHECK(true);
  else taken = 1;
  EXPECT_EQ(taken, 0);
}

TEST(CheckDeathTest, TellsConditionPlaceAndValues) {
  const int rows = 7;
  EXPECT_DEATH(CHECK(rows < 4, "rows " + std::to_string(rows)),
               "bug: CHECK\\(rows < 4\\) failed at .*check_test.cpp:[0-9]+: rows 7");
  EXPECT_DEATH(CHECK(rows < 4), "CHECK\\(rows < 4\\) failed at .*check_test.cpp:[0-9]+\n");
}

TEST(Error, SaysWhatFoundExpectedHint) {
  EXPECT_STREQ(Error(ErrorParts{.what = "a.json", .found = "3", .expected = "4", .hint = "add one"}).what(),
               "a.json: found 3, expected 4 (add one)");
  EXPECT_STREQ(Error(ErrorParts{.what = "a.json", .expected = "4"}).what(), "a.json: expected 4");
  EXPECT_STREQ(Error(ErrorParts{.what = "a.json", .found = "3"}).what(), "a.json: found 3");
  EXPECT_STREQ(Error("plain words").what(), "plain words");
}

TEST(Error, KeepsItsParts) {
  try {
    throw Error(ErrorParts{.what = "a", .found = "b", .expected = "c", .hint = "d"});
  } catch (const std::exception& caught) {
    const auto* error = dynamic_cast<const Error*>(&caught);
    ASSERT_NE(error, nullptr);
    EXPECT_EQ(error->parts().found, "b");
    EXPECT_EQ(error->parts().hint, "d");
  }
}

}  // namespace
}  // namespace glint
