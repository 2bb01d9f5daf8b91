#include "text/tokenizer.hpp"

#include <algorithm>
#include <bit>

#include "base/error.hpp"
#include "base/file.hpp"
#include "text/pretokenizer.hpp"
#include "text/tokenizer_json.hpp"

namespace glint {

Tokenizer Tokenizer::from_file(const std::string& path) { return from_json(read_file(path), path); }

Tokenizer Tokenizer::from_json(std::string_view json, std::string_view source) {
  return Tokenizer(parse_tokenizer_json(json, source));
}

Tokenizer Tokenizer::from_spec(const TokenizerSpec& spec) { return Tokenizer(spec); }

Tokenizer::Tokenizer(const TokenizerSpec& spec) : vocab_(spec.tokens), bpe_(spec.byte_ids, spec.merges) {
  kinds_.assign(static_cast<std::size_t>(vocab_.size()), Kind::kNone);
  BpeScratch scratch;
  for (const VocabEntry& t : spec.tokens) {
    const bool whole = spec.ignore_merges || merges_to_itself(t, scratch);
    kinds_[static_cast<std::size_t>(t.id)] = whole ? Kind::kWhole : Kind::kMerged;
  }
  std::vector<AddedToken> first, second;
  for (const AddedToken& t : spec.added) {
    kinds_[static_cast<std::size_t>(t.id)] = t.special ? Kind::kSpecial : Kind::kAdded;
    added_ids_.emplace(t.content, t.id);
    (t.normalized ? second : first).push_back(t);
  }
  first_ = AddedTokenMatcher(std::move(first));
  second_ = AddedTokenMatcher(std::move(second));
}

bool Tokenizer::merges_to_itself(const VocabEntry& token, BpeScratch& scratch) const {
  std::vector<std::int32_t> ids;
  bpe_.encode(token.bytes, scratch, ids);
  return ids.size() == 1 && ids[0] == token.id;
}

// One call of encode: the output, and a cache of the pre-tokens that had to be merged. The cache is direct-mapped and
// stores no ids: an entry points at the text and at the output where the same pre-token went before.
struct Tokenizer::Run {
  struct Seen {
    std::string_view bytes;
    std::size_t begin = 0;  // out[begin, begin + count)
    std::size_t count = 0;
  };

  const Tokenizer& tokenizer;
  std::vector<std::int32_t> out;
  std::vector<Seen> cache;
  BpeScratch scratch;

  Run(const Tokenizer& t, std::size_t text_bytes) : tokenizer(t) {
    out.reserve(text_bytes / 3 + 8);
    // About one entry for 64 bytes of text; at most 160 KiB, to stay in the second-level cache.
    cache.resize(std::clamp<std::size_t>(std::bit_ceil(text_bytes / 64), 16, 4096));
  }

  // Splits at the added tokens of `matcher` and gives what lies between to `rest`.
  template <typename Rest>
  void split(const AddedTokenMatcher& matcher, std::string_view text, const Rest& rest) {
    std::size_t done = 0;
    while (!matcher.empty() && done < text.size()) {
      const AddedTokenMatcher::Match match = matcher.find(text, done);
      if (match.id < 0) break;
      rest(text.substr(done, match.begin - done));
      out.push_back(match.id);
      done = match.end;
    }
    rest(text.substr(done));
  }

  void plain(std::string_view text) {
    for (std::size_t begin = 0; begin < text.size();) {
      const std::size_t end = pretoken_end(text, begin);
      pretoken(text.substr(begin, end - begin));
      begin = end;
    }
  }

  void pretoken(std::string_view bytes) {
    const std::uint64_t hash = hash_bytes(bytes);
    const std::int32_t id = tokenizer.vocab_.find(bytes, hash);
    if (id >= 0 && tokenizer.kinds_[static_cast<std::size_t>(id)] == Kind::kWhole) {
      out.push_back(id);
      return;
    }
    Seen& seen = cache[(hash >> 32) & (cache.size() - 1)];
    const std::size_t begin = out.size();
    if (seen.bytes == bytes) {
      out.resize(begin + seen.count);
      std::copy_n(out.begin() + static_cast<std::ptrdiff_t>(seen.begin), seen.count,
                  out.begin() + static_cast<std::ptrdiff_t>(begin));
    } else {
      tokenizer.bpe_.encode(bytes, scratch, out);
    }
    seen = {bytes, begin, out.size() - begin};
  }
};

std::vector<std::int32_t> Tokenizer::encode(std::string_view text, EncodeOptions options) const {
  if (text.size() > INT32_MAX) {
    throw Error(
        {.what = "text to tokenize", .found = std::to_string(text.size()) + " bytes", .expected = "less than 2 GiB"});
  }
  Run run(*this, text.size());
  if (options.literal) {
    run.plain(text);
  } else {
    run.split(first_, text, [&](std::string_view between) {
      run.split(second_, between, [&](std::string_view rest) { run.plain(rest); });
    });
  }
  return std::move(run.out);
}

std::string Tokenizer::decode(std::span<const std::int32_t> ids, DecodeOptions options) const {
  std::string out;
  for (const std::int32_t id : ids) {
    if (kind(id) == Kind::kNone) {
      throw Error({.what = "token ids to decode",
                   .found = std::to_string(id),
                   .expected = "ids of 0 to " + std::to_string(vocab_size() - 1)});
    }
    if (options.skip_special && is_special(id)) continue;
    out += token_bytes(id);
  }
  return out;
}

std::optional<std::int32_t> Tokenizer::token_id(std::string_view content) const {
  if (const auto it = added_ids_.find(std::string(content)); it != added_ids_.end()) return it->second;
  const std::int32_t id = vocab_.find(content);
  return id < 0 ? std::nullopt : std::optional(id);
}

}  // namespace glint
