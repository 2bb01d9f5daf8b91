#pragma once
// A grammar as a pushdown automaton over bytes: rules, each an automaton whose edges are bytes, special tokens, or
// calls of other rules. A frame (a rule in progress) may count: characters of a string, items of an array.

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "grammar/char_dfa.hpp"

namespace glint::grammar {

using StateId = std::int32_t;
using RuleId = std::int32_t;

// What an edge asks of its frame's count and does to it.
enum class Count : std::uint8_t {
  kFree,   // nothing
  kAdd,    // one more; not beyond the rule's max
  kEnough  // only with at least the rule's min
};

struct State {
  struct Bytes {
    std::uint8_t first, last;
    Count count;
    StateId to;
  };
  struct Call {
    RuleId rule;
    Count count;
    StateId to;  // where this rule goes on after the called one has ended
  };
  struct Empty {
    Count count;
    StateId to;
  };
  struct Symbol {
    std::int32_t token;  // a token that is no text: a tag of the chat format
    StateId to;
  };
  std::vector<Bytes> bytes;
  std::vector<Call> calls;
  std::vector<Empty> empties;
  std::vector<Symbol> symbols;
  RuleId rule = 0;
  bool end = false;  // the rule may end here
  // Frames that must at least still be opened, one in the other, to get to the rule's end.
  int depth = 0;

  bool reads() const { return !bytes.empty() || !symbols.empty(); }
};

struct Rule {
  StateId entry = -1;
  std::int64_t min = 0;
  std::int64_t max = -1;  // < 0: no limit
  bool counts() const { return min > 0 || max >= 0; }
};

// Frames open at a time; what can only end deeper is not begun. JSON nests half as deep: a level is two frames.
inline constexpr int kMaxFrames = 200;

struct Grammar {
  std::vector<State> states;
  std::vector<Rule> rules;
  RuleId root = 0;
};

// How a character is written.
enum class Escapes : std::uint8_t {
  kNone,    // as its UTF-8
  kNeeded,  // JSON: escapes where they must be
  kAll      // JSON: and \uXXXX where any character may stand
};

class GrammarBuilder {
 public:
  RuleId add_rule();
  void set_limits(RuleId rule, std::int64_t min, std::int64_t max);
  StateId add_state(RuleId rule);
  // The entry of a rule, made with it.
  StateId entry(RuleId rule) const { return grammar_.rules[static_cast<std::size_t>(rule)].entry; }
  void set_end(StateId s) { at(s).end = true; }
  void add_bytes(StateId from, std::uint8_t first, std::uint8_t last, StateId to, Count count = Count::kFree);
  void add_call(StateId from, RuleId rule, StateId to, Count count = Count::kFree);
  void add_empty(StateId from, StateId to, Count count = Count::kFree);
  void add_symbol(StateId from, std::int32_t token, StateId to);

  // The text from `from` on; the state after it.
  StateId add_text(StateId from, std::string_view text);
  // The same as a way to a state that is there; text is not empty.
  void add_text_to(StateId from, std::string_view text, StateId to, Count count = Count::kFree);
  // One character of the set.
  void add_chars(StateId from, const CharSet& set, StateId to, Escapes escapes);
  // A text of the language, from `from` to `to`. Does nothing for the empty language.
  void add_dfa(StateId from, const CharDfa& dfa, StateId to, Escapes escapes);
  // One of the texts (not empty themselves), sharing their beginnings.
  void add_texts(StateId from, const std::vector<std::string>& texts, StateId to);

  RuleId rule_of(StateId s) const { return grammar_.states[static_cast<std::size_t>(s)].rule; }

  // Drops what can never end. Throws Error when nothing is left of the root.
  Grammar finish(RuleId root) &&;

 private:
  State& at(StateId s) { return grammar_.states[static_cast<std::size_t>(s)]; }
  void add_utf8(StateId from, CharRange range, StateId to);
  void add_utf8_from(StateId from, const std::uint8_t* low, const std::uint8_t* high, int n, StateId to);
  StateId continuation(StateId to, int n);
  void add_unicode_escapes(StateId backslash, StateId to);
  void add_hex(StateId from, StateId to, int n);

  Grammar grammar_;
  std::vector<std::pair<std::pair<StateId, int>, StateId>> continuations_;  // of the last `to`s
};

}  // namespace glint::grammar
