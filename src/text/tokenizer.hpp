#pragma once
// GLM's tokenizer: byte-level BPE read from tokenizer.json, equal to Hugging Face tokenizers on any UTF-8 text
// (model.md §5). No token is ever added to what the text says: [gMASK]<sop> comes from the chat template.
//
// Any bytes may be encoded. A byte that is not part of well-formed UTF-8 counts as a symbol of its own (neither letter
// nor number nor space) and always has a token, so that decode(encode(b)) == b for every byte string b. (The one
// exception is an added token with lstrip or rstrip, which takes white space along by design; GLM has none.)

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "text/added_tokens.hpp"
#include "text/bpe.hpp"
#include "text/vocab.hpp"

namespace glint {

struct TokenizerSpec;

struct EncodeOptions {
  bool literal = false;  // added tokens in the text are plain text: for text of users who are not trusted
};

struct DecodeOptions {
  bool skip_special = false;  // leave special tokens out; added tokens that are not special stay
};

// Read-only once loaded: any number of threads may encode and decode with one object.
class Tokenizer {
 public:
  // Both throw Error for a file that is broken or is not a tokenizer of this kind (tokenizer_json.hpp lists what).
  static Tokenizer from_file(const std::string& tokenizer_json_path);
  static Tokenizer from_json(std::string_view json, std::string_view source = "tokenizer.json");
  // From data that a reader has checked (tokenizer_json.hpp, gguf_vocab.hpp).
  static Tokenizer from_spec(const TokenizerSpec& spec);

  // Throws Error for a text of 2 GiB or more.
  std::vector<std::int32_t> encode(std::string_view text, EncodeOptions options = {}) const;

  // The bytes of the tokens, which need not be well-formed UTF-8 (IncrementalDecoder gives text). Throws Error for an
  // id without a token.
  std::string decode(std::span<const std::int32_t> ids, DecodeOptions options = {}) const;

  // The bytes of one token; empty for an id without a token (a padding row of the embedding, a negative number).
  std::string_view token_bytes(std::int32_t id) const { return vocab_.bytes(id); }
  // Highest id + 1, base and added: the number of real tokens. The model's embedding may have padding rows above.
  std::int32_t vocab_size() const { return vocab_.size(); }
  // The token whose bytes are `content`; added tokens first.
  std::optional<std::int32_t> token_id(std::string_view content) const;
  bool is_special(std::int32_t id) const { return kind(id) == Kind::kSpecial; }
  bool is_added(std::int32_t id) const { return kind(id) == Kind::kSpecial || kind(id) == Kind::kAdded; }

 private:
  enum class Kind : std::uint8_t { kNone, kMerged, kWhole, kAdded, kSpecial };
  struct Run;  // one call of encode

  explicit Tokenizer(const TokenizerSpec& spec);
  Kind kind(std::int32_t id) const {
    return id < 0 || id >= vocab_size() ? Kind::kNone : kinds_[static_cast<std::size_t>(id)];
  }
  bool merges_to_itself(const VocabEntry& token, BpeScratch& scratch) const;

  Vocab vocab_;
  Bpe bpe_;
  AddedTokenMatcher first_, second_;  // added tokens that are not and that are `normalized`
  std::unordered_map<std::string, std::int32_t> added_ids_;
  // kWhole: a pre-token with these bytes is this token, without merging. With ignore_merges every base token is;
  // without it, those that merging their bytes gives back.
  std::vector<Kind> kinds_;
};

}  // namespace glint
