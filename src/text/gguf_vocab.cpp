#include "text/gguf_vocab.hpp"

#include <unordered_map>

#include "base/check.hpp"
#include "base/error.hpp"
#include "text/byte_level.hpp"

namespace glint {
namespace {

constexpr std::size_t kMaxTokens = std::size_t{1} << Bpe::kIdBits;
constexpr std::size_t kMaxMerges = std::size_t{1} << (Bpe::kRankBits - 1);

class Builder {
 public:
  Builder(const GgufVocabView& vocab, std::string_view source) : vocab_(vocab), source_(source) {}

  TokenizerSpec build() {
    if (vocab_.tokens.size() > kMaxTokens)
      refuse("tokens", std::to_string(vocab_.tokens.size()) + " tokens", "at most " + std::to_string(kMaxTokens));
    if (vocab_.types.size() != vocab_.tokens.size()) {
      refuse("token_type", std::to_string(vocab_.types.size()) + " types",
             std::to_string(vocab_.tokens.size()) + ", one a token");
    }
    if (vocab_.merges.size() > kMaxMerges)
      refuse("merges", std::to_string(vocab_.merges.size()) + " merges", "at most " + std::to_string(kMaxMerges));
    spec_.ignore_merges = vocab_.ignore_merges;
    for (std::size_t i = 0; i < vocab_.tokens.size(); ++i) add_token(i);
    const Vocab base(spec_.tokens);
    find_bytes(base);
    spec_.merges.reserve(vocab_.merges.size());
    for (std::size_t i = 0; i < vocab_.merges.size(); ++i) add_merge(i, base);
    for (const AddedToken& t : spec_.added)
      spec_.tokens.push_back({.bytes = t.content, .id = t.id, .searchable = false});
    return std::move(spec_);
  }

 private:
  [[noreturn]] void refuse(const std::string& key, std::string found, std::string expected) const {
    throw Error({.what = source_ + ": metadata tokenizer.ggml." + key,
                 .found = std::move(found),
                 .expected = std::move(expected)});
  }
  static std::string quoted(std::string_view text) {
    constexpr std::size_t kMax = 80;
    return '"' + std::string(text.substr(0, kMax)) + (text.size() > kMax ? "…\"" : "\"");
  }

  void add_token(std::size_t i) {
    const std::string_view text = vocab_.tokens[i];
    const auto id = static_cast<std::int32_t>(i);
    const auto type = static_cast<GgufTokenType>(vocab_.types[i]);
    if (vocab_.types[i] < 1 || vocab_.types[i] > static_cast<std::int64_t>(GgufTokenType::kUnused))
      refuse("token_type", std::to_string(vocab_.types[i]) + " for token " + quoted(text), "1 to 5");
    if (type == GgufTokenType::kUnused) return;
    if (text.empty()) refuse("tokens", "an empty text for id " + std::to_string(id), "a text");
    if (const auto [it, added] = id_of_.emplace(text, id); !added)
      refuse("tokens", quoted(text) + " for ids " + std::to_string(it->second) + " and " + std::to_string(id),
             "one id");
    if (type != GgufTokenType::kNormal) {
      spec_.added.push_back({.id = id, .content = std::string(text), .special = type != GgufTokenType::kUserDefined});
      return;
    }
    std::optional<std::string> bytes = bytes_from_alphabet(text);
    if (!bytes) refuse("tokens", quoted(text), "normal tokens spelled in the byte-level alphabet");
    spec_.tokens.push_back({.bytes = std::move(*bytes), .id = id});
  }

  void find_bytes(const Vocab& base) {
    for (std::size_t b = 0; b < 256; ++b) {
      const char byte = static_cast<char>(b);
      spec_.byte_ids[b] = base.find({&byte, 1});
      if (spec_.byte_ids[b] < 0)
        refuse("tokens", "no token for byte " + std::to_string(b), "a token for each of the 256 bytes");
    }
  }

  void add_merge(std::size_t i, const Vocab& base) {
    const std::string_view text = vocab_.merges[i];
    const std::size_t space = text.find(' ');  // the alphabet has no space of its own
    const auto bytes = [](std::string_view side) { return bytes_from_alphabet(side); };
    const auto left = bytes(text.substr(0, space));
    const auto right = space == text.npos ? std::nullopt : bytes(text.substr(space + 1));
    if (left && right) {
      const Merge merge{base.find(*left), base.find(*right), base.find(*left + *right)};
      if (merge.left >= 0 && merge.right >= 0 && merge.result >= 0) return spec_.merges.push_back(merge);
    }
    refuse("merges", quoted(text) + ", number " + std::to_string(i),
           "two tokens with a space between, whose concatenation is a token too");
  }

  const GgufVocabView& vocab_;
  std::string source_;
  TokenizerSpec spec_;
  std::unordered_map<std::string_view, std::int32_t> id_of_;
};

}  // namespace

TokenizerSpec spec_from_gguf(const GgufVocabView& vocab, std::string_view source) {
  return Builder(vocab, source).build();
}

GgufVocab gguf_from_spec(const TokenizerSpec& spec, std::int64_t size) {
  GgufVocab out;
  const auto n = static_cast<std::size_t>(size);
  out.tokens.resize(n);
  out.types.assign(n, static_cast<std::int32_t>(GgufTokenType::kUnused));
  for (const VocabEntry& t : spec.tokens) {
    CHECK(t.id >= 0 && t.id < size, std::to_string(t.id));
    const auto i = static_cast<std::size_t>(t.id);
    out.tokens[i] = t.searchable ? alphabet_from_bytes(t.bytes) : t.bytes;
    out.types[i] = static_cast<std::int32_t>(GgufTokenType::kNormal);
  }
  for (const AddedToken& t : spec.added) {
    out.types[static_cast<std::size_t>(t.id)] =
        static_cast<std::int32_t>(t.special ? GgufTokenType::kControl : GgufTokenType::kUserDefined);
  }
  for (std::size_t i = 0; i < n; ++i) {
    if (out.tokens[i].empty()) out.tokens[i] = "[PAD" + std::to_string(i) + "]";
  }
  out.merges.reserve(spec.merges.size());
  for (const Merge& m : spec.merges) {
    out.merges.push_back(out.tokens[static_cast<std::size_t>(m.left)] + " " +
                         out.tokens[static_cast<std::size_t>(m.right)]);
  }
  return out;
}

}  // namespace glint
