#pragma once
// One step of UTF-8 decoding, shared by the pre-tokenizer and the streaming decoder.
// Well-formed is what Table 3-7 of the Unicode standard lists: no overlong forms, no surrogates, nothing above
// U+10FFFF.

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace glint {

enum class Utf8Status : std::uint8_t {
  kValid,      // a whole character of `length` bytes
  kTruncated,  // the text ends inside a character that may still become valid; `length` bytes of it are there
  kInvalid,    // `length` bytes (1..3) that no continuation can make valid: the maximal subpart to replace by U+FFFD
};

struct Utf8Step {
  std::uint32_t code_point = 0;  // only when valid
  std::uint8_t length = 1;
  Utf8Status status = Utf8Status::kInvalid;
};

// Decodes the character that starts at text[0]; text must not be empty.
inline Utf8Step decode_utf8(std::string_view text) {
  const auto byte = [text](std::size_t i) { return static_cast<std::uint8_t>(text[i]); };
  const std::uint8_t lead = byte(0);
  if (lead < 0x80) return {lead, 1, Utf8Status::kValid};
  if (lead < 0xC2 || lead > 0xF4) return {0, 1, Utf8Status::kInvalid};
  const std::uint8_t length = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  // The second byte's range is what excludes overlong forms, surrogates and code points above U+10FFFF.
  std::uint8_t low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
  std::uint8_t high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
  std::uint32_t code_point = lead & (0xFFu >> (length + 1));
  for (std::uint8_t i = 1; i < length; ++i) {
    if (i >= text.size()) return {0, i, Utf8Status::kTruncated};
    if (byte(i) < low || byte(i) > high) return {0, i, Utf8Status::kInvalid};
    code_point = code_point << 6 | (byte(i) & 0x3Fu);
    low = 0x80;
    high = 0xBF;
  }
  return {code_point, length, Utf8Status::kValid};
}

}  // namespace glint
