#include "text/decoder.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "text/tokenizer.hpp"
#include "text/utf8.hpp"

namespace glint {
namespace {

const Tokenizer& tiny() {
  static const Tokenizer t = Tokenizer::from_file("models/tiny/tokenizer.json");
  return t;
}

TEST(Utf8, ReplacesAsPythonDoes) {
  // Each right side is bytes.decode("utf-8", "replace") of Python 3.11.
  EXPECT_EQ(replace_invalid_utf8("a\xFF"
                                 "b"),
            "a\uFFFDb");
  EXPECT_EQ(replace_invalid_utf8("\xE4\xBD"), "\uFFFD");
  EXPECT_EQ(replace_invalid_utf8("\xE4\xBD"
                                 "a"),
            "\uFFFDa");
  EXPECT_EQ(replace_invalid_utf8("\xF0\x9F\x98"), "\uFFFD");
  EXPECT_EQ(replace_invalid_utf8("\xF0\x9F\xF0\x9F\x98\x80"), "\uFFFD\U0001F600");
  EXPECT_EQ(replace_invalid_utf8("\xED\xA0\x80"), "\uFFFD\uFFFD\uFFFD");  // a surrogate
  EXPECT_EQ(replace_invalid_utf8("\xC0\x80"), "\uFFFD\uFFFD");            // overlong
  EXPECT_EQ(replace_invalid_utf8("\xE0\x80\x80"), "\uFFFD\uFFFD\uFFFD");
  EXPECT_EQ(replace_invalid_utf8("\xF4\x90\x80\x80"), "\uFFFD\uFFFD\uFFFD\uFFFD");
  EXPECT_EQ(replace_invalid_utf8("\xF5\x80"), "\uFFFD\uFFFD");
  EXPECT_EQ(replace_invalid_utf8("\xC3\xC3\xA9"), "\uFFFD\u00E9");
  EXPECT_EQ(replace_invalid_utf8(""), "");
}

TEST(Utf8, StreamInAnyPiecesEqualsTheWhole) {
  std::mt19937 random(11);
  const std::string parts[] = {"a",        "\u00E9", "\u4F60", "\U0001F600", "\xE4\xBD",
                               "\xF0\x9F", "\xFF",   "\x80",   "\xED\xA0"};
  for (int round = 0; round < 2000; ++round) {
    std::string bytes;
    for (std::uint32_t n = random() % 12; n > 0; --n) bytes += parts[random() % 9];
    Utf8Stream stream;
    std::string out;
    for (std::size_t i = 0; i < bytes.size();) {
      const std::size_t n = std::min<std::size_t>(1 + random() % 4, bytes.size() - i);
      const std::string text = stream.push(std::string_view(bytes).substr(i, n));
      for (std::string_view rest = text; !rest.empty();) {  // whole characters only
        const Utf8Step step = decode_utf8(rest);
        ASSERT_EQ(step.status, Utf8Status::kValid);
        rest.remove_prefix(step.length);
      }
      out += text;
      i += n;
    }
    out += stream.flush();
    ASSERT_EQ(out, replace_invalid_utf8(bytes));
    ASSERT_EQ(stream.flush(), "");
  }
}

TEST(IncrementalDecoder, HoldsBackHalfACharacter) {
  // The tiny vocabulary spells this face in several tokens.
  const std::vector<std::int32_t> ids = tiny().encode("\U0001F600!");
  ASSERT_GE(ids.size(), 3u);
  IncrementalDecoder decoder(tiny());
  for (std::size_t i = 0; i + 2 < ids.size(); ++i) EXPECT_EQ(decoder.push(ids[i]), "");
  EXPECT_EQ(decoder.push(ids[ids.size() - 2]), "\U0001F600");
  EXPECT_EQ(decoder.push(ids.back()), "!");
  EXPECT_EQ(decoder.flush(), "");
  EXPECT_EQ(decoder.push(ids[0]), "");
  EXPECT_EQ(decoder.flush(), "\uFFFD");
  EXPECT_EQ(decoder.push(ids[0]), "");
  EXPECT_EQ(decoder.push(ids.back()), "\uFFFD!");
}

TEST(IncrementalDecoder, SpecialTokensAndUnknownIds) {
  const std::vector<std::int32_t> ids = tiny().encode("<|user|>a<think>b</think><|endoftext|>");
  std::string all, visible;
  IncrementalDecoder with(tiny()), without(tiny(), {.skip_special = true});
  for (const std::int32_t id : ids) {
    all += with.push(id);
    visible += without.push(id);
  }
  EXPECT_EQ(all, "<|user|>a<think>b</think><|endoftext|>");
  EXPECT_EQ(visible, "a<think>b</think>");
  for (const std::int32_t id : {-1, 8164, 8191, INT32_MAX}) EXPECT_EQ(with.push(id), "");
}

}  // namespace
}  // namespace glint
