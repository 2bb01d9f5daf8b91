#pragma once
// Regular languages over Unicode characters: what a string or a number may be, before it becomes bytes.

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace glint::grammar {

struct CharRange {
  char32_t first = 0;
  char32_t last = 0;  // inclusive
  bool operator==(const CharRange&) const = default;
};
using CharSet = std::vector<CharRange>;  // sorted, no two that overlap or touch; scalar values only

inline constexpr char32_t kLastChar = 0x10FFFF;

CharSet normalised(CharSet ranges);      // any ranges; surrogates are dropped
CharSet complement(const CharSet& set);  // all other characters
CharSet all_chars();
CharSet intersection(const CharSet& a, const CharSet& b);

// Every state lies on a way from the start to an accepting one. No state at all: the empty language.
struct CharDfa {
  struct Edge {
    CharRange on;
    int target = 0;
  };
  struct State {
    std::vector<Edge> edges;  // sorted, disjoint
    bool accepts = false;
  };
  std::vector<State> states;  // the first is the start

  bool empty() const { return states.empty(); }
  bool matches(std::string_view utf8) const;
};

// More states than this are refused with an Error: a pattern must not eat the server.
inline constexpr std::size_t kMaxDfaStates = 20000;

class CharNfa {
 public:
  int add_state();
  void add_edge(int from, const CharSet& on, int to);
  void add_epsilon(int from, int to) { states_[static_cast<std::size_t>(from)].epsilons.push_back(to); }
  CharDfa determinise(int start, int accept) const;

 private:
  struct State {
    std::vector<std::pair<CharRange, int>> edges;
    std::vector<int> epsilons;
  };
  void close(std::vector<int>& set) const;
  std::vector<State> states_;
};

// Drops what leads nowhere and renumbers.
CharDfa trimmed(CharDfa dfa);
CharDfa intersection(const CharDfa& a, const CharDfa& b);
// Those texts of `dfa` with min to max characters; max < 0: no limit.
CharDfa with_length(const CharDfa& dfa, std::int64_t min, std::int64_t max);
// Every text.
CharDfa any_text();
// Every text in which none of `words` (ASCII) occurs.
CharDfa text_without(std::span<const std::string_view> words);
// Every text but `words` (UTF-8).
CharDfa text_except(std::span<const std::string> words);
// Every text that is empty or begins with one of `first`.
CharDfa text_starting(const CharSet& first);

// The characters of a text that is valid UTF-8.
std::vector<char32_t> characters(std::string_view utf8);

}  // namespace glint::grammar
