#pragma once
// A small vocabulary for tests: every byte, some longer pieces as a tokenizer has them, and the tags of the chat
// format.

#include <memory>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.hpp"
#include "grammar/constraint_spec.hpp"
#include "grammar/token_constraint.hpp"

namespace glint::grammar::testing {

inline constexpr std::int32_t kEnd = 256;
inline constexpr std::int32_t kFirstTag = 257;
inline constexpr std::string_view kTags[] = {"<think>",   "</think>",   "<tool_call>", "</tool_call>",
                                             "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"};

inline std::shared_ptr<const Vocabulary> small_vocabulary() {
  static const std::shared_ptr<const Vocabulary> made = [] {
    std::vector<Vocabulary::Token> tokens;
    for (std::int32_t b = 0; b < 256; ++b) tokens.push_back({b, std::string(1, static_cast<char>(b))});
    std::int32_t id = kFirstTag;
    for (const std::string_view tag : kTags) tokens.push_back({id++, std::string(tag), true});
    for (const char* piece :
         {"{\"",  "\": ",  "\":",  "\", \"", "\"}",  "\",",      "],",       "}}", "[[",   "[]",   "{}",  "tr",
          "true", "false", "null", "12",     "00",   "the",      " the",     " a", "ab",   "abc",  "\"a", "a\"",
          "\\u",  "\\n",   "\\\"", "é",      "日本", "\n  ",     "\n",       "  ", ", ",   " \"",  "-1",  ".5",
          "e",    "</",    "arg",  "_value", ">",    "\xF0\x9F", "\x98\x80", "xx", "yyyy", "2024", "-0"}) {
      tokens.push_back({id++, piece});
    }
    return std::make_shared<Vocabulary>(std::move(tokens), std::vector<std::int32_t>{kEnd}, 400);
  }();
  return made;
}

inline std::shared_ptr<TokenGrammar> compile(const std::string& spec) {
  const auto vocabulary = small_vocabulary();
  return std::make_shared<TokenGrammar>(compile_constraint(spec, *vocabulary), vocabulary);
}
inline std::shared_ptr<TokenGrammar> compile_schema(const std::string& schema) {
  return compile("{\"json_schema\": " + schema + "}");
}

// What a request with this constraint is refused with; "" if it is not.
inline std::string refusal(const std::string& spec) {
  try {
    compile(spec);
  } catch (const Error& e) { return e.what(); }
  return "";
}

// Reads a text byte by byte, tags as the tokens that they are. Whether the answer could end there.
inline bool accepts(const std::shared_ptr<TokenGrammar>& grammar, std::string_view text) {
  const auto constraint = make_constraint(grammar);
  while (!text.empty()) {
    std::int32_t token = static_cast<unsigned char>(text[0]);
    std::size_t n = 1;
    for (std::size_t i = 0; i < std::size(kTags); ++i) {
      if (!text.starts_with(kTags[i])) continue;
      token = kFirstTag + static_cast<std::int32_t>(i);
      n = kTags[i].size();
    }
    if (!constraint->accept(token)) return false;
    text.remove_prefix(n);
  }
  return constraint->can_end();
}

// One answer drawn evenly from what the masks allow; an end token is taken with probability end_share where it may
// come.
// "" when it was not complete after max_tokens.
inline std::string random_answer(const std::shared_ptr<TokenGrammar>& grammar, std::mt19937& rng,
                                 int max_tokens = 600) {
  const Vocabulary& v = grammar->vocabulary();
  const auto constraint = make_constraint(grammar);
  std::vector<std::uint64_t> bits(v.n_words());
  std::string text;
  for (int n = 0; n < max_tokens; ++n) {
    constraint->mask(bits);
    std::vector<std::int32_t> allowed;
    std::vector<std::int32_t> closing;
    for (std::int32_t id = 0; id < 400; ++id) {
      if ((bits[static_cast<std::size_t>(id) / 64] >> (id % 64) & 1) == 0) continue;
      allowed.push_back(id);
      if (id == kEnd || id == '"' || id == '}' || id == ']' || (id > kEnd && id < kFirstTag + 8)) closing.push_back(id);
    }
    if (allowed.empty()) throw Error("the mask is empty after: " + text);
    // Even draws would hardly ever close a string or a list.
    const std::vector<std::int32_t>& from = !closing.empty() && rng() % 3 == 0 ? closing : allowed;
    const std::int32_t token = from[rng() % from.size()];
    if (!constraint->accept(token)) throw Error("refused what the mask allowed after: " + text);
    if (token == kEnd) return text;
    text += token >= kFirstTag && token < kFirstTag + 8 ? kTags[token - kFirstTag] : v.text(token);
  }
  return "";
}

}  // namespace glint::grammar::testing
