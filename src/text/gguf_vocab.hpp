#pragma once
// The vocabulary as GGUF's tokenizer.ggml.* keys spell it, to and from the tokenizer's plain data.

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "text/tokenizer_json.hpp"

namespace glint {

// tokenizer.ggml.token_type
enum class GgufTokenType : std::int32_t { kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4, kUnused = 5 };

// Views of the file's arrays. Normal tokens are spelled in the byte-level alphabet, added ones as they are.
struct GgufVocabView {
  std::vector<std::string_view> tokens;
  std::vector<std::int64_t> types;
  std::vector<std::string_view> merges;  // "left right"
  bool ignore_merges = true;             // GGUF has no key for it; GLM's tokenizer.json says true (model facts §5.2)
};

// Control and unknown tokens become special added tokens, user-defined ones added tokens, unused ones (padding rows)
// nothing. Throws Error naming `source` for what parse_tokenizer_json refuses too: texts that occur twice, a byte
// without a token, merges of unknown tokens, and for arrays whose lengths differ.
TokenizerSpec spec_from_gguf(const GgufVocabView& vocab, std::string_view source);

struct GgufVocab {
  std::vector<std::string> tokens;
  std::vector<std::int32_t> types;
  std::vector<std::string> merges;
};
// `size` rows: ids without a token become "[PAD<id>]", unused.
GgufVocab gguf_from_spec(const TokenizerSpec& spec, std::int64_t size);

}  // namespace glint
