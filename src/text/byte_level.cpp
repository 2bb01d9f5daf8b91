#include "text/byte_level.hpp"

#include <array>
#include <cstdint>

#include "text/utf8.hpp"

namespace glint {
namespace {

// Bytes that are printable in Latin-1 stand for themselves; the other 68 are, in order, U+0100 to U+0143.
constexpr bool stands_for_itself(std::uint32_t byte) {
  return (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || (byte >= 0xAE && byte <= 0xFF);
}

constexpr std::uint32_t kAlphabetEnd = 0x144;

struct Alphabet {
  std::array<std::uint16_t, 256> code_point{};
  std::array<std::int16_t, kAlphabetEnd> byte{};  // -1: not in the alphabet
};

constexpr Alphabet kAlphabet = [] {
  Alphabet a;
  for (auto& b : a.byte) b = -1;
  std::uint32_t next = 0x100;
  for (std::uint32_t b = 0; b < 256; ++b) {
    const std::uint32_t c = stands_for_itself(b) ? b : next++;
    a.code_point[b] = static_cast<std::uint16_t>(c);
    a.byte[c] = static_cast<std::int16_t>(b);
  }
  return a;
}();

}  // namespace

std::optional<std::string> bytes_from_alphabet(std::string_view spelled) {
  std::string out;
  out.reserve(spelled.size());
  while (!spelled.empty()) {
    const Utf8Step step = decode_utf8(spelled);
    if (step.status != Utf8Status::kValid || step.code_point >= kAlphabetEnd) return std::nullopt;
    const int byte = kAlphabet.byte[step.code_point];
    if (byte < 0) return std::nullopt;
    out += static_cast<char>(byte);
    spelled.remove_prefix(step.length);
  }
  return out;
}

std::string alphabet_from_bytes(std::string_view bytes) {
  std::string out;
  for (const char c : bytes) {
    const std::uint32_t code_point = kAlphabet.code_point[static_cast<std::uint8_t>(c)];
    if (code_point < 0x80) {
      out += static_cast<char>(code_point);
    } else {  // the alphabet ends below U+0800: two bytes are enough
      out += static_cast<char>(0xC0 | code_point >> 6);
      out += static_cast<char>(0x80 | (code_point & 0x3F));
    }
  }
  return out;
}

}  // namespace glint
