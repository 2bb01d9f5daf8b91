#include "text/tokenizer_json.hpp"

#include <optional>
#include <string>
#include <unordered_map>
#include <utility>

#include "base/error.hpp"
#include "base/json.hpp"
#include "text/byte_level.hpp"
#include "text/pretokenizer.hpp"

namespace glint {
namespace {

constexpr std::int64_t kMaxId = (std::int64_t{1} << Bpe::kIdBits) - 1;      // GLM-4.7-Flash has 154,856 tokens
constexpr std::size_t kMaxMerges = std::size_t{1} << (Bpe::kRankBits - 1);  // and 321,649 merges

// A value for a message, cut to a readable length.
std::string shown(const json::value& v) {
  std::string s = json::dump_python(v);
  if (s.size() > 200) s = s.substr(0, 200) + "…";
  return s;
}

// A JSON value with the path that messages name it by.
class Field {
 public:
  Field(const json::value* value, std::string path) : value_(value), path_(std::move(path)) {}

  const std::string& path() const { return path_; }
  const json::value& value() const { return *value_; }
  bool is_null() const { return value_ == nullptr || value_->is_null(); }  // also when it is missing

  [[noreturn]] void refuse(std::string expected, std::string hint = {}) const {
    throw Error({.what = path_,
                 .found = value_ == nullptr ? "nothing" : shown(*value_),
                 .expected = std::move(expected),
                 .hint = std::move(hint)});
  }

  Field operator[](std::string_view key) const { return {object().if_contains(key), path_ + "." + std::string(key)}; }
  Field operator[](std::size_t i) const { return {&array()[i], path_ + "[" + std::to_string(i) + "]"}; }

  const json::object& object() const {
    if (value_ == nullptr || !value_->is_object()) refuse("an object");
    return value_->get_object();
  }
  const json::array& array() const {
    if (value_ == nullptr || !value_->is_array()) refuse("an array");
    return value_->get_array();
  }
  std::string_view string() const {
    if (value_ == nullptr || !value_->is_string()) refuse("a string");
    return {value_->get_string().data(), value_->get_string().size()};
  }
  bool boolean(bool when_missing) const {
    if (is_null()) return when_missing;
    if (!value_->is_bool()) refuse("true or false");
    return value_->get_bool();
  }
  std::int32_t id() const {
    if (value_ == nullptr || !value_->is_int64() || value_->get_int64() < 0 || value_->get_int64() > kMaxId) {
      refuse("a token id of 0 to " + std::to_string(kMaxId));
    }
    return static_cast<std::int32_t>(value_->get_int64());
  }

  void must_be(std::string_view expected) const {
    if (string() != expected) refuse('"' + std::string(expected) + '"');
  }
  void must_be(bool expected, bool when_missing) const {
    if (boolean(when_missing) != expected) refuse(expected ? "true" : "false");
  }

 private:
  const json::value* value_;  // null: missing
  std::string path_;
};

void check_pretokenizer(const Field& pre) {
  pre["type"].must_be("Sequence");
  const Field list = pre["pretokenizers"];
  if (list.array().size() != 2) list.refuse("two pre-tokenizers: Split, ByteLevel");
  const Field split = list[0], bytes = list[1];
  split["type"].must_be("Split");
  const Field regex = split["pattern"]["Regex"];
  if (regex.string() != kPretokenizerPattern) {
    regex.refuse("GLM's pattern " + std::string(kPretokenizerPattern), "is this another model's tokenizer?");
  }
  split["behavior"].must_be("Isolated");
  split["invert"].must_be(false, false);
  bytes["type"].must_be("ByteLevel");
  bytes["add_prefix_space"].must_be(false, true);
  bytes["use_regex"].must_be(false, true);
}

void check_pipeline(const Field& root) {
  if (!root["normalizer"].is_null()) root["normalizer"].refuse("null");
  check_pretokenizer(root["pre_tokenizer"]);
  // ByteLevel as a post-processor only moves offsets; any other one may add tokens.
  if (!root["post_processor"].is_null()) root["post_processor"]["type"].must_be("ByteLevel");
  root["decoder"]["type"].must_be("ByteLevel");
  const Field model = root["model"];
  model["type"].must_be("BPE");
  if (const Field dropout = model["dropout"]; !dropout.is_null()) {
    const json::value& v = dropout.value();
    if (!v.is_number() || v.to_number<double>() != 0.0) dropout.refuse("null or 0");
  }
  for (const char* affix : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    if (!model[affix].is_null() && !model[affix].string().empty()) model[affix].refuse("null");
  }
  // unk_token, fuse_unk and byte_fallback say what to do with a byte that has no token: there is none (byte_ids).
}

// Content and flags of added_tokens, by id.
std::vector<AddedToken> read_added_tokens(const Field& list) {
  std::vector<AddedToken> added;
  if (list.is_null()) return added;
  added.reserve(list.array().size());
  for (std::size_t i = 0; i < list.array().size(); ++i) {
    const Field t = list[i];
    if (t["content"].string().empty()) t["content"].refuse("a text that is not empty");
    t["single_word"].must_be(false, false);
    added.push_back({.id = t["id"].id(),
                     .content = std::string(t["content"].string()),
                     .special = t["special"].boolean(false),
                     .lstrip = t["lstrip"].boolean(false),
                     .rstrip = t["rstrip"].boolean(false),
                     .normalized = t["normalized"].boolean(false)});
  }
  return added;
}

// The base vocabulary; a token that is also an added one is left to the added tokens.
std::vector<VocabEntry> read_vocab(const Field& root, const std::vector<AddedToken>& added) {
  const Field vocab = root["model"]["vocab"];
  std::unordered_map<std::string_view, std::int32_t> id_of_added;
  std::unordered_map<std::int32_t, std::string_view> content_of;
  for (const AddedToken& t : added) {
    if (!id_of_added.emplace(t.content, t.id).second || !content_of.emplace(t.id, t.content).second) {
      throw Error({.what = root["added_tokens"].path() + ": \"" + t.content + "\", id " + std::to_string(t.id),
                   .found = "the same text or id twice",
                   .expected = "one id a token"});
    }
  }
  std::vector<VocabEntry> entries;
  entries.reserve(vocab.object().size() + added.size());
  for (const auto& [key, v] : vocab.object()) {
    const std::string_view spelled(key.data(), key.size());
    const Field field(&v, vocab.path() + "[\"" + std::string(spelled) + "\"]");
    const std::int32_t id = field.id();
    if (const auto a = id_of_added.find(spelled); a != id_of_added.end()) {
      if (a->second != id) field.refuse("its id in added_tokens, " + std::to_string(a->second));
      continue;
    }
    std::optional<std::string> bytes = bytes_from_alphabet(spelled);
    if (!bytes || bytes->empty()) {
      throw Error({.what = vocab.path(),
                   .found = "the token \"" + std::string(spelled) + "\"",
                   .expected = "tokens spelled in the byte-level alphabet"});
    }
    if (!content_of.emplace(id, spelled).second) {
      field.refuse("an id of its own, not that of \"" + std::string(content_of[id]) + "\"");
    }
    entries.push_back({.bytes = std::move(*bytes), .id = id});
  }
  return entries;
}

std::array<std::int32_t, 256> find_byte_ids(const Vocab& base, const std::string& where) {
  std::array<std::int32_t, 256> ids{};
  for (std::size_t b = 0; b < 256; ++b) {
    const char byte = static_cast<char>(b);
    ids[b] = base.find({&byte, 1});
    if (ids[b] < 0) {
      throw Error({.what = where,
                   .found = "no token for byte " + std::to_string(b) + " (\"" + alphabet_from_bytes({&byte, 1}) + "\")",
                   .expected = "a token for each of the 256 bytes"});
    }
  }
  return ids;
}

// The two sides of a merge: ["a", "b"], or "a b" in older files.
std::pair<std::string_view, std::string_view> merge_sides(const Field& merge) {
  if (merge.value().is_array() && merge.array().size() == 2) return {merge[0].string(), merge[1].string()};
  if (merge.value().is_string()) {
    const std::string_view s = merge.string();
    const std::size_t space = s.find(' ');  // the alphabet has no space of its own
    if (space != std::string_view::npos && s.find(' ', space + 1) == std::string_view::npos) {
      return {s.substr(0, space), s.substr(space + 1)};
    }
  }
  merge.refuse(R"("a b" or ["a", "b"])");
}

std::vector<Merge> read_merges(const Field& list, const Vocab& base) {
  const json::array& array = list.array();
  if (array.size() > kMaxMerges) {
    throw Error({.what = list.path(),
                 .found = std::to_string(array.size()) + " merges",
                 .expected = "at most " + std::to_string(kMaxMerges)});
  }
  std::vector<Merge> merges;
  merges.reserve(array.size());
  for (std::size_t i = 0; i < array.size(); ++i) {
    const Field field = list[i];
    const auto [left, right] = merge_sides(field);
    const auto a = bytes_from_alphabet(left), b = bytes_from_alphabet(right);
    const Merge merge{a ? base.find(*a) : -1, b ? base.find(*b) : -1, a && b ? base.find(*a + *b) : -1};
    if (merge.left < 0 || merge.right < 0 || merge.result < 0) {
      field.refuse("two tokens of model.vocab whose concatenation is one too");
    }
    merges.push_back(merge);
  }
  return merges;
}

}  // namespace

TokenizerSpec parse_tokenizer_json(std::string_view json_text, std::string_view source) {
  const json::value document = json::parse_text(json_text, source);
  const Field root(&document, std::string(source) + ": tokenizer");
  check_pipeline(root);
  const Field model = root["model"];
  TokenizerSpec spec;
  spec.ignore_merges = model["ignore_merges"].boolean(false);
  spec.added = read_added_tokens(root["added_tokens"]);
  spec.tokens = read_vocab(root, spec.added);
  const Vocab base(spec.tokens);
  spec.byte_ids = find_byte_ids(base, model["vocab"].path());
  spec.merges = read_merges(model["merges"], base);
  for (const AddedToken& t : spec.added) {
    spec.tokens.push_back({.bytes = t.content, .id = t.id, .searchable = false});
  }
  return spec;
}

}  // namespace glint
