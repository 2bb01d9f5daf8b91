#pragma once
// Reads tokenizer.json (Hugging Face's format) into plain data, and refuses whatever this tokenizer does not do.

#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

#include "text/added_tokens.hpp"
#include "text/bpe.hpp"
#include "text/vocab.hpp"

namespace glint {

struct TokenizerSpec {
  std::vector<VocabEntry> tokens;  // base and added, ids unique; added ones are not searchable
  std::array<std::int32_t, 256> byte_ids{};
  std::vector<Merge> merges;  // in order of rank
  std::vector<AddedToken> added;
  bool ignore_merges = false;
};

// Throws Error naming `source`. Beyond broken JSON and fields of the wrong type it refuses: a model other than
// byte-level BPE, a pre-tokenizer other than GLM's, a normalizer, a post-processor that adds tokens, added tokens with
// single_word (needs \w), a byte without a token, ids that clash or are out of range, merges of unknown tokens.
TokenizerSpec parse_tokenizer_json(std::string_view json, std::string_view source);

}  // namespace glint
