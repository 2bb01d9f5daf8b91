#include "text/tokenizer.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdint>
#include <map>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/error.hpp"
#include "base/json.hpp"
#include "text/byte_level.hpp"
#include "text/pretokenizer.hpp"
#include "text/unicode_tables.hpp"
#include "text/utf8.hpp"

namespace glint {
namespace {

using Ids = std::vector<std::int32_t>;

const Tokenizer& tiny() {
  static const Tokenizer t = Tokenizer::from_file("models/tiny/tokenizer.json");
  return t;
}

const Tokenizer& glm4() {  // a vocabulary of real size, with ignore_merges
  static const Tokenizer t = Tokenizer::from_file("tests/data/glm-4-151k.tokenizer.json");
  return t;
}

std::vector<std::string> pieces(std::string_view text) {
  std::vector<std::string> out;
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = pretoken_end(text, begin);
    out.emplace_back(text.substr(begin, end - begin));
    begin = end;
  }
  return out;
}

void append_utf8(std::string& out, std::uint32_t c) {
  if (c < 0x80) {
    out += static_cast<char>(c);
  } else if (c < 0x800) {
    out += {static_cast<char>(0xC0 | c >> 6), static_cast<char>(0x80 | (c & 63))};
  } else if (c < 0x10000) {
    out += {static_cast<char>(0xE0 | c >> 12), static_cast<char>(0x80 | (c >> 6 & 63)),
            static_cast<char>(0x80 | (c & 63))};
  } else {
    out += {static_cast<char>(0xF0 | c >> 18), static_cast<char>(0x80 | (c >> 12 & 63)),
            static_cast<char>(0x80 | (c >> 6 & 63)), static_cast<char>(0x80 | (c & 63))};
  }
}

// A tokenizer.json of the 256 bytes and a few more tokens, with fields to replace.
struct Fields {
  std::string extra_vocab = R"(, "ab": 256, "bc": 257, "abc": 258, "Ġab": 259)";
  std::string merges = R"(["b c", ["a", "b"]])";
  std::string added = "[]";
  std::string ignore_merges = "false";
  std::string pattern = std::string(kPretokenizerPattern);
  std::string more_model;
  std::string more;
};

std::string small_json(const Fields& f) {
  json::object vocab;
  for (int b = 0; b < 256; ++b) {
    const char c = static_cast<char>(b);
    vocab[alphabet_from_bytes({&c, 1})] = b;
  }
  std::string v = json::serialize(vocab);
  v.insert(v.size() - 1, f.extra_vocab);
  return R"({"added_tokens": )" + f.added + R"(, "normalizer": null, "pre_tokenizer": {"type": "Sequence",
    "pretokenizers": [{"type": "Split", "pattern": {"Regex": )" +
         json::serialize(json::value(f.pattern)) + R"(}, "behavior": "Isolated", "invert": false},
    {"type": "ByteLevel", "add_prefix_space": false, "use_regex": false}]}, "decoder": {"type": "ByteLevel"},
    "model": {"type": "BPE", "ignore_merges": )" +
         f.ignore_merges + R"(, "vocab": )" + v + R"(, "merges": )" + f.merges + f.more_model + "}" + f.more + "}";
}

std::string refusal(const Fields& f) {
  try {
    Tokenizer::from_json(small_json(f), "test.json");
  } catch (const Error& e) { return e.what(); }
  return "accepted";
}

TEST(Tokenizer, MatchesTheRecordedCases) {
  const json::value cases = json::parse_file("tests/data/tokenizer_cases.json");
  ASSERT_EQ(cases.as_array().size(), 300u);
  for (const json::value& c : cases.as_array()) {
    const Tokenizer& t = c.at("tokenizer").as_string() == "tiny" ? tiny() : glm4();
    const std::string text(c.at("text").as_string());
    EXPECT_EQ(t.encode(text), json::value_to<Ids>(c.at("ids"))) << text;
    EXPECT_EQ(t.decode(t.encode(text)), text);
  }
}

TEST(Tokenizer, KnowsItsTokens) {
  EXPECT_EQ(tiny().vocab_size(), 8164);
  EXPECT_EQ(glm4().vocab_size(), 151365);
  const std::int32_t user = glm4().token_id("<|user|>").value();
  EXPECT_EQ(user, 151336);
  EXPECT_TRUE(glm4().is_special(user));
  const std::int32_t think = glm4().token_id("<think>").value();
  EXPECT_FALSE(glm4().is_special(think));
  EXPECT_TRUE(glm4().is_added(think));
  EXPECT_FALSE(glm4().is_added(glm4().token_id(" the").value()));
  EXPECT_EQ(glm4().token_bytes(think), "<think>");
  EXPECT_EQ(glm4().token_id("no such token"), std::nullopt);
  for (const std::int32_t id : {-1, 151365, INT32_MAX, INT32_MIN}) {
    EXPECT_EQ(glm4().token_bytes(id), "");
    EXPECT_FALSE(glm4().is_added(id));
    EXPECT_THROW(glm4().decode(Ids{id}), Error);
  }
  EXPECT_EQ(glm4().decode(glm4().encode("a<|user|>b<think>"), {.skip_special = true}), "ab<think>");
}

TEST(Tokenizer, IgnoreMergesTakesAWholePretoken) {
  // No merge makes " ab": only a look-up of the whole pre-token finds it.
  const auto with = Tokenizer::from_json(small_json({.ignore_merges = "true"}));
  const auto without = Tokenizer::from_json(small_json({.ignore_merges = "false"}));
  EXPECT_EQ(with.encode(" ab"), (Ids{259}));
  EXPECT_EQ(without.encode(" ab"), (Ids{' ', 256}));
  EXPECT_EQ(with.encode(" abx"), without.encode(" abx"));
  // "abc" exists, but (b, c) has the lower rank and (a, bc) is no merge.
  EXPECT_EQ(with.encode("abc"), (Ids{258}));
  EXPECT_EQ(without.encode("abc"), (Ids{'a', 257}));
}

TEST(Tokenizer, TheRealKindOfIgnoreMergesCase) {
  // glm4's vocabulary has tokens that its merge list cannot reach; each must come back as itself.
  int whole = 0;
  for (std::int32_t id = 0; id < glm4().vocab_size(); ++id) {
    const std::string_view bytes = glm4().token_bytes(id);
    if (bytes.empty() || glm4().is_added(id) || pretoken_end(bytes, 0) != bytes.size()) continue;
    ++whole;
    ASSERT_EQ(glm4().encode(bytes), Ids{id}) << id;
  }
  EXPECT_GT(whole, 140000);
}

TEST(Tokenizer, MergesByRankLeftmostFirst) {
  const Fields f{.extra_vocab = R"(, "aa": 256, "aaa": 257, "aaaa": 258, "ba": 259)",
                 .merges = R"(["a a", "aa aa", "aa a", "b a"])"};
  const auto t = Tokenizer::from_json(small_json(f));
  EXPECT_EQ(t.encode("aa"), (Ids{256}));
  EXPECT_EQ(t.encode("aaa"), (Ids{257}));
  EXPECT_EQ(t.encode("aaaaa"), (Ids{258, 'a'}));
  EXPECT_EQ(t.encode("aaaaaaa"), (Ids{258, 257}));
  EXPECT_EQ(t.encode("baa"), (Ids{'b', 256}));
  EXPECT_EQ(t.encode("baaa"), (Ids{'b', 257}));
}

// The definition, without a clever data structure: what Bpe must equal.
Ids merge_plainly(const std::vector<Merge>& merges, std::string_view bytes) {
  constexpr std::size_t kIds = 1024;  // a table: the sanitizers take a minute over a map
  std::vector<std::uint16_t> ranks(kIds * kIds, 0xffff);
  for (std::size_t r = 0; r < merges.size(); ++r)
    ranks[static_cast<std::size_t>(merges[r].left) * kIds + static_cast<std::size_t>(merges[r].right)] =
        static_cast<std::uint16_t>(r);
  Ids ids;
  for (const char c : bytes) ids.push_back(static_cast<std::uint8_t>(c));
  for (;;) {
    const std::int32_t* id = ids.data();
    std::size_t best = merges.size(), at = 0;
    for (std::size_t i = 0, n = ids.size(); i + 1 < n; ++i) {
      const std::size_t rank =
          ranks.data()[static_cast<std::size_t>(id[i]) * kIds + static_cast<std::size_t>(id[i + 1])];
      if (rank < best) best = rank, at = i;
    }
    if (best == merges.size()) return ids;
    ids[at] = merges[best].result;
    ids.erase(ids.begin() + static_cast<std::ptrdiff_t>(at) + 1);
  }
}

void expect_the_definition(const std::vector<Merge>& merges, std::string_view text) {
  std::array<std::int32_t, 256> byte_ids{};
  for (int b = 0; b < 256; ++b) byte_ids[static_cast<std::size_t>(b)] = b;
  BpeScratch scratch;
  Ids ids;
  Bpe(byte_ids, merges).encode(text, scratch, ids);
  ASSERT_EQ(ids, merge_plainly(merges, text)) << text;
}

TEST(Bpe, EqualsTheDefinitionOnRandomMerges) {
  std::mt19937 random(7);
  for (int round = 0; round < 40; ++round) {
    std::vector<Merge> merges;
    std::vector<std::int32_t> symbols{'a', 'b', 'c'};
    for (int m = 0; m < 24; ++m) {
      const std::int32_t left = symbols[random() % symbols.size()], right = symbols[random() % symbols.size()];
      bool known = false;
      for (const Merge& x : merges) known |= x.left == left && x.right == right;
      if (known) continue;
      merges.push_back({left, right, 256 + m});
      symbols.push_back(256 + m);
    }
    std::shuffle(merges.begin(), merges.end(), random);  // a merge may come before those that make its sides
    for (const std::size_t n : {1, 2, 15, 16, 17, 31, 33, 255, 257, 511, 513, 1500}) {
      std::string text;
      while (text.size() < n) text.append(1 + random() % 4, static_cast<char>('a' + random() % 3));
      text.resize(n);
      expect_the_definition(merges, text);
    }
  }
}

TEST(Bpe, ChunksOfALongPretokenJoinWhateverTheMerges) {
  // x^k y is one token up to k = 150 and takes its x from the left before (x, x) merges: a chunk that ends before the y
  // is cut at a boundary that is none. Where it ends depends on the length, so lengths go through a chunk's size.
  std::vector<Merge> merges;
  for (std::int32_t k = 0; k < 150; ++k) merges.push_back({'x', k == 0 ? 'y' : 299 + k, 300 + k});
  merges.push_back({'x', 'x', 600});
  merges.push_back({600, 600, 601});
  for (std::size_t n = 480; n < 1100; n += 13) {
    expect_the_definition(merges, std::string(n, 'x') + 'y');
    expect_the_definition(merges, std::string(n, 'x') + "yxy" + std::string(n / 3, 'x') + "yy" + std::string(90, 'x'));
  }
  // Tokens longer than a chunk: 2^k times x.
  merges.clear();
  for (std::int32_t k = 0; k < 10; ++k) merges.push_back({k == 0 ? 'x' : 299 + k, k == 0 ? 'x' : 299 + k, 300 + k});
  for (const std::size_t n : {600, 1023, 1024, 3000}) expect_the_definition(merges, std::string(n, 'x') + 'y');
}

TEST(Tokenizer, AddedTokensLeftmostLongestAndLiteral) {
  const std::string text = "x<|user|>y</think></think /nothinker";
  const Ids ids = tiny().encode(text);
  EXPECT_EQ(std::count(ids.begin(), ids.end(), 8135), 1);
  EXPECT_EQ(std::count(ids.begin(), ids.end(), 8150), 1);
  EXPECT_EQ(std::count(ids.begin(), ids.end(), 8159), 1);  // matched inside a word, as Hugging Face does
  const Ids literal = tiny().encode(text, {.literal = true});
  for (const std::int32_t id : literal) EXPECT_FALSE(tiny().is_added(id));
  EXPECT_EQ(tiny().decode(literal), text);

  const auto t = Tokenizer::from_json(small_json({.added = R"([
    {"id": 300, "content": "<a>"}, {"id": 301, "content": "<a>b", "special": true}, {"id": 302, "content": "a>bb"},
    {"id": 303, "content": "[s]", "lstrip": true, "rstrip": true}, {"id": 304, "content": "zz", "normalized": true},
    {"id": 305, "content": "z<a>"}])"}));
  EXPECT_EQ(t.encode("<a>bb"), (Ids{301, 'b'}));
  EXPECT_EQ(t.encode("<a>"), (Ids{300}));
  EXPECT_EQ(t.encode("< a>bb"), (Ids{'<', ' ', 302}));
  EXPECT_EQ(t.encode("x \u3000\n[s]\t y"), (Ids{'x', 303, 'y'}));
  EXPECT_EQ(t.encode(" [s]  [s] "), (Ids{303, 303}));
  EXPECT_EQ(t.encode("zz<a>"), (Ids{'z', 305}));  // the others come before those that are `normalized`
  EXPECT_EQ(t.encode("zzz"), (Ids{304, 'z'}));
  EXPECT_EQ(t.vocab_size(), 306);
  EXPECT_THROW(t.decode(Ids{299}), Error);  // a hole
}

TEST(Pretokenizer, CutsLikeTheRegex) {
  using P = std::vector<std::string>;
  EXPECT_EQ(pieces("I'm we'LL you'rE it'\u017F o'clock 'dx"),
            (P{"I", "'m", " we", "'LL", " you", "'rE", " it", "'\u017F", " o", "'clock", " '", "dx"}));
  EXPECT_EQ(pieces("1234567 \u0663\u0664\u0665\u0666 \u00BD"),
            (P{"123", "456", "7", " ", "\u0663\u0664\u0665", "\u0666", " ", "\u00BD"}));
  EXPECT_EQ(pieces("a  b   \n\n  c\t\td "), (P{"a", " ", " b", "   \n\n", " ", " c", "\t", "\td", " "}));
  EXPECT_EQ(pieces("x!!\r\n\n y"), (P{"x", "!!\r\n\n", " y"}));
  EXPECT_EQ(pieces("\n\tif(a){"), (P{"\n", "\tif", "(a", "){"}));
  EXPECT_EQ(pieces("\u3000\u4F60\u597D\u2028\u00A0!"), (P{"\u3000\u4F60\u597D", "\u2028", "\u00A0", "!"}));
  EXPECT_EQ(pieces("   "), (P{"   "}));
  EXPECT_EQ(pieces(" 1"), (P{" ", "1"}));
  EXPECT_EQ(pieces("e\u0301a"), (P{"e", "\u0301a"}));  // a mark is no letter here
  EXPECT_EQ(pieces("'"), (P{"'"}));
  EXPECT_EQ(pieces("'r"), (P{"'r"}));
  EXPECT_EQ(pieces("\xFF\x80 \xE4\xBD"), (P{"\xFF\x80", " \xE4\xBD"}));  // bytes outside UTF-8 are symbols
}

// The version that Hugging Face tokenizers has: tools/gen_unicode.py says why it is pinned.
TEST(Unicode, ClassesOfUnicode16) {
  EXPECT_STREQ(kUnicodeVersion, "16.0.0");
  int count[4] = {};
  for (std::uint32_t c = 0; c < 0x110000; ++c) ++count[static_cast<int>(char_class(c))];
  EXPECT_EQ(count[static_cast<int>(CharClass::kSpace)], 25);
  EXPECT_EQ(count[static_cast<int>(CharClass::kLetter)], 141028);
  EXPECT_EQ(count[static_cast<int>(CharClass::kNumber)], 1911);
  EXPECT_EQ(char_class(0x180E), CharClass::kOther);
  EXPECT_EQ(char_class(0x200B), CharClass::kOther);
  EXPECT_EQ(char_class(0x2164), CharClass::kNumber);  // Nl
  EXPECT_EQ(char_class(0x20000), CharClass::kLetter);
  EXPECT_EQ(char_class(0x1F600), CharClass::kOther);
}

TEST(Tokenizer, RoundTripOfAnyBytesAndAnyUnicode) {
  std::mt19937 random(1);
  for (int round = 0; round < 3000; ++round) {
    std::string bytes, text;
    for (std::uint32_t n = random() % 60; n > 0; --n) {
      bytes += static_cast<char>(random() % 3 == 0 ? random() % 128 : random());
      const std::uint32_t limits[] = {0x80, 0x250, 0x3000, 0xD800, 0x110000};
      const std::uint32_t c = random() % limits[random() % 5];
      append_utf8(text, c >= 0xD800 && c < 0xE000 ? ' ' : c);
      if (random() % 20 == 0) text += bytes += tiny().token_bytes(static_cast<std::int32_t>(8128 + random() % 36));
    }
    for (const std::string& s : {bytes, text}) {
      for (const Tokenizer* t : {&tiny(), &glm4()}) {
        ASSERT_EQ(t->decode(t->encode(s)), s);
        ASSERT_EQ(t->decode(t->encode(s, {.literal = true})), s);
      }
    }
  }
}

TEST(Tokenizer, EncodingDoesNotDependOnTheCacheOrTheThread) {
  std::string text;
  std::mt19937 random(3);
  for (int i = 0; i < 20000; ++i) text += " w" + std::string(1 + random() % 5, static_cast<char>('p' + random() % 4));
  const Ids all = tiny().encode(text);
  Ids joined;  // word by word: no cache can help
  for (const std::string& piece : pieces(text)) {
    const Ids ids = tiny().encode(piece);
    joined.insert(joined.end(), ids.begin(), ids.end());
  }
  EXPECT_EQ(all, joined);
  std::vector<Ids> results(4);
  {
    std::vector<std::jthread> threads;
    for (Ids& r : results) threads.emplace_back([&r, &text] { r = tiny().encode(text); });
  }
  for (const Ids& r : results) EXPECT_EQ(r, all);
}

TEST(Tokenizer, LongRunsAreNotQuadratic) {
  // A quadratic merge of a million bytes takes many minutes; this takes a fraction of a second even under sanitizers.
  std::string noise;
  std::mt19937 random(5);
  while (noise.size() < 1000000) noise += static_cast<char>('a' + random() % 26);
  for (const std::string& s :
       {std::string(1000000, 'a'), std::string(1000000, ' '), std::string(1000000, '='), noise}) {
    const auto begin = std::chrono::steady_clock::now();
    EXPECT_EQ(glm4().decode(glm4().encode(s)), s);
    EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(20));
  }
}

TEST(TokenizerJson, AcceptsBothFormsOfMergesAndMissingFields) {
  EXPECT_EQ(refusal({}), "accepted");
  EXPECT_EQ(refusal({.more = R"(, "post_processor": {"type": "ByteLevel"})"}), "accepted");
  EXPECT_EQ(refusal({.more_model = R"(, "dropout": null, "unk_token": null)"}), "accepted");
}

TEST(TokenizerJson, RefusesWithFoundAndExpected) {
  const auto expect = [](const Fields& f, const std::string& part) {
    const std::string message = refusal(f);
    EXPECT_NE(message.find(part), std::string::npos) << message;
    EXPECT_NE(message.find("test.json"), std::string::npos) << message;
  };
  expect({.pattern = R"(\p{L}+|.)"}, R"(pattern.Regex: found "\\p{L}+|.", expected GLM's pattern (?i:'s)");
  expect({.more_model = R"(, "dropout": 0.1)"}, "model.dropout: found 0.1, expected null or 0");
  expect({.more_model = R"(, "end_of_word_suffix": "</w>")"}, R"(end_of_word_suffix: found "</w>", expected null)");
  expect({.more = R"(, "post_processor": {"type": "TemplateProcessing"})"}, "expected \"ByteLevel\"");
  expect({.ignore_merges = "1"}, "ignore_merges: found 1, expected true or false");
  expect({.merges = R"(["a bb"])"}, R"(merges[0]: found "a bb", expected two tokens)");
  expect({.merges = R"([["a"]])"}, R"(expected "a b" or ["a", "b"])");
  expect({.merges = R"(["a b c"])"}, R"(expected "a b" or ["a", "b"])");
  expect({.merges = R"([[1, 2]])"}, "merges[0][0]: found 1, expected a string");
  expect({.merges = "{}"}, "model.merges: found {}, expected an array");
  expect({.extra_vocab = R"(, "ab": -1)"}, "expected a token id of 0 to 1048575");
  expect({.extra_vocab = R"(, "ab": 2.5)"}, "expected a token id");
  expect({.extra_vocab = R"(, "ab": 99999999999)"}, "expected a token id");
  expect({.extra_vocab = R"(, "ab": 97)"}, R"(expected an id of its own, not that of "a")");
  expect({.extra_vocab = R"(, "": 300)"}, "expected tokens spelled in the byte-level alphabet");
  expect({.extra_vocab = R"(, "a b": 300)"}, "expected tokens spelled in the byte-level alphabet");
  expect({.added = R"([{"id": 97, "content": "<x>"}])"}, "expected an id of its own");
  expect({.added = R"([{"id": 999, "content": "ab"}])"}, "expected its id in added_tokens, 999");
  expect({.added = R"([{"id": 999, "content": ""}])"}, "expected a text that is not empty");
  expect({.added = R"([{"id": 999, "content": "x", "single_word": true}])"}, "single_word: found true, expected false");
  expect({.added = R"([{"id": 998, "content": "<x>"}, {"id": 999, "content": "<x>"}])"}, "the same text or id twice");
  expect({.added = R"([{"id": 300, "content": "!"}])"}, "expected its id in added_tokens, 300");
  expect({.added = R"([{"id": 33, "content": "!"}])"}, "found no token for byte 33");
  for (const char* text : {"", "{", "[]", "null", "{}", R"({"pre_tokenizer": 1})", "\xFF", "{\"a\": \"\\ud800\"}"}) {
    EXPECT_THROW(Tokenizer::from_json(text), Error) << text;
  }
  EXPECT_THROW(Tokenizer::from_file("tests/data/no_such.json"), Error);
}

}  // namespace
}  // namespace glint
