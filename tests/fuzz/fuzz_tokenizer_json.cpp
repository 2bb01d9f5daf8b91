// Bytes -> tokenizer.json; if it loads, the same bytes -> tokens -> bytes. To load takes a token for each byte, which
// no mutation finds by chance, so an input may leave that to us: the first line, if it starts with '#', is text to
// encode, and "@BYTES@" in what follows stands for those 256 entries of the vocabulary.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "base/check.hpp"
#include "base/error.hpp"
#include "text/byte_level.hpp"
#include "text/decoder.hpp"
#include "text/tokenizer.hpp"

namespace {

constexpr std::string_view kMark = "@BYTES@";

const std::string& byte_entries() {
  static const std::string entries = [] {
    std::string s;
    for (int b = 0; b < 256; ++b) {
      const char c = static_cast<char>(b);
      const std::string spelled = glint::alphabet_from_bytes({&c, 1});
      s += b == 0 ? "\"" : ", \"";
      if (spelled == "\"" || spelled == "\\") s += '\\';
      s += spelled + "\": " + std::to_string(b);
    }
    return s;
  }();
  return entries;
}

void round_trip(const glint::Tokenizer& tokenizer, std::string_view text, bool literal, bool exact) {
  const auto ids = tokenizer.encode(text, {.literal = literal});
  const std::string back = tokenizer.decode(ids);
  if (exact) CHECK(back == text);
  glint::IncrementalDecoder decoder(tokenizer);
  std::string streamed;
  for (const std::int32_t id : ids) {
    streamed += decoder.push(id);
    CHECK(literal <= !tokenizer.is_added(id));
  }
  CHECK(streamed + decoder.flush() == glint::replace_invalid_utf8(back));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  std::string_view input(reinterpret_cast<const char*>(data), size), text = input;
  if (input.starts_with('#')) {
    text = input.substr(1, input.find('\n') - 1);
    input.remove_prefix(std::min(size, text.size() + 2));
  }
  std::string json(input);
  if (const std::size_t at = json.find(kMark); at != std::string::npos) json.replace(at, kMark.size(), byte_entries());
  try {
    const auto tokenizer = glint::Tokenizer::from_json(json);
    const bool exact = json.find("strip") == std::string::npos;  // lstrip and rstrip take white space along
    round_trip(tokenizer, text, false, exact);
    round_trip(tokenizer, text, true, true);
  } catch (const glint::Error&) {}
  return 0;
}
