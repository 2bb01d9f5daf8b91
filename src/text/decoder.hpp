#pragma once
// Token ids, one at a time, into text that is always whole characters.

#include <cstdint>
#include <string>
#include <string_view>

#include "text/tokenizer.hpp"

namespace glint {

// Replaces what is not well-formed UTF-8 by U+FFFD, one for each maximal subpart: Python's errors="replace", for bytes
// that come in pieces of any size.
class Utf8Stream {
 public:
  // The characters that are complete now. At most three bytes of an incomplete one are held back.
  std::string push(std::string_view bytes);
  // The end of the input: an incomplete character becomes U+FFFD. The stream is then as new.
  std::string flush();

 private:
  std::string held_;
};

// One stream of output tokens. Not for several threads at once; the tokenizer must outlive it.
class IncrementalDecoder {
 public:
  explicit IncrementalDecoder(const Tokenizer& tokenizer, DecodeOptions options = {})
      : tokenizer_(&tokenizer), options_(options) {}

  // The text that this token completes, often empty. An id without a token adds nothing: never throws for one.
  std::string push(std::int32_t id);
  // The end of the tokens: an incomplete character becomes U+FFFD. The decoder is then as new.
  std::string flush() { return stream_.flush(); }

 private:
  const Tokenizer* tokenizer_;
  DecodeOptions options_;
  Utf8Stream stream_;
};

// A whole byte string at once.
std::string replace_invalid_utf8(std::string_view bytes);

}  // namespace glint
