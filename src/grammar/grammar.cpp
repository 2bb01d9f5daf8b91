#include "grammar/grammar.hpp"

#include <algorithm>
#include <limits>
#include <map>
#include <string>

#include "base/check.hpp"
#include "base/error.hpp"

namespace glint::grammar {
namespace {

constexpr std::size_t kMaxStates = 1 << 19;
constexpr std::size_t kMaxRules = 1 << 15;
constexpr int kNever = std::numeric_limits<int>::max() / 2;

[[noreturn]] void too_large(const char* what, std::size_t most) {
  throw Error(
      {.what = "the schema", .found = "more than " + std::to_string(most) + " " + what, .expected = "a smaller one"});
}

int encode_utf8(char32_t c, std::uint8_t* out) {
  if (c < 0x80) return out[0] = static_cast<std::uint8_t>(c), 1;
  const int n = c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
  for (int i = n - 1; i > 0; --i, c >>= 6) out[i] = static_cast<std::uint8_t>(0x80 | (c & 0x3F));
  out[0] = static_cast<std::uint8_t>((0xF00 >> n & 0xFF) | c);
  return n;
}

// JSON's short escapes.
constexpr std::pair<char, char> kShort[] = {{'"', '"'},  {'\\', '\\'}, {'\b', 'b'}, {'\f', 'f'},
                                            {'\n', 'n'}, {'\r', 'r'},  {'\t', 't'}};

bool holds(const CharSet& set, char32_t c) {
  return std::any_of(set.begin(), set.end(), [c](CharRange r) { return r.first <= c && c <= r.last; });
}

}  // namespace

RuleId GrammarBuilder::add_rule() {
  if (grammar_.rules.size() >= kMaxRules) too_large("rules", kMaxRules);
  const auto id = static_cast<RuleId>(grammar_.rules.size());
  grammar_.rules.emplace_back();
  grammar_.rules.back().entry = add_state(id);
  return id;
}

void GrammarBuilder::set_limits(RuleId rule, std::int64_t min, std::int64_t max) {
  grammar_.rules[static_cast<std::size_t>(rule)].min = min;
  grammar_.rules[static_cast<std::size_t>(rule)].max = max;
}

StateId GrammarBuilder::add_state(RuleId rule) {
  if (grammar_.states.size() >= kMaxStates) too_large("states", kMaxStates);
  grammar_.states.emplace_back();
  grammar_.states.back().rule = rule;
  return static_cast<StateId>(grammar_.states.size()) - 1;
}

void GrammarBuilder::add_bytes(StateId from, std::uint8_t first, std::uint8_t last, StateId to, Count count) {
  at(from).bytes.push_back({first, last, count, to});
}
void GrammarBuilder::add_call(StateId from, RuleId rule, StateId to, Count count) {
  at(from).calls.push_back({rule, count, to});
}
void GrammarBuilder::add_empty(StateId from, StateId to, Count count) { at(from).empties.push_back({count, to}); }
void GrammarBuilder::add_symbol(StateId from, std::int32_t token, StateId to) {
  at(from).symbols.push_back({token, to});
}

StateId GrammarBuilder::add_text(StateId from, std::string_view text) {
  if (text.empty()) return from;
  const StateId to = add_state(rule_of(from));
  add_text_to(from, text, to);
  return to;
}

void GrammarBuilder::add_text_to(StateId from, std::string_view text, StateId to, Count count) {
  CHECK(!text.empty());
  for (std::size_t i = 0; i < text.size(); ++i) {
    const StateId next = i + 1 == text.size() ? to : add_state(rule_of(from));
    const auto byte = static_cast<std::uint8_t>(text[i]);
    add_bytes(from, byte, byte, next, i == 0 ? count : Count::kFree);
    from = next;
  }
}

void GrammarBuilder::add_texts(StateId from, const std::vector<std::string>& texts, StateId to) {
  std::map<std::pair<StateId, char>, StateId> children;
  for (const std::string& text : texts) {
    CHECK(!text.empty());
    StateId at_state = from;
    for (const char c : text) {
      const auto [it, is_new] = children.emplace(std::pair(at_state, c), -1);
      if (is_new) {
        it->second = add_state(rule_of(from));
        add_bytes(at_state, static_cast<std::uint8_t>(c), static_cast<std::uint8_t>(c), it->second);
      }
      at_state = it->second;
    }
    add_empty(at_state, to);
  }
}

// ---- characters ------------------------------------------------------------------------------------------------

// A state from which n bytes 80-BF lead to `to`.
StateId GrammarBuilder::continuation(StateId to, int n) {
  if (n == 0) return to;
  for (const auto& [key, state] : continuations_) {
    if (key == std::pair(to, n)) return state;
  }
  const StateId next = continuation(to, n - 1);
  const StateId s = add_state(rule_of(to));
  add_bytes(s, 0x80, 0xBF, next);
  continuations_.emplace_back(std::pair(to, n), s);
  return s;
}

// The byte strings from low to high, both n long.
void GrammarBuilder::add_utf8_from(StateId from, const std::uint8_t* low, const std::uint8_t* high, int n, StateId to) {
  if (n == 1) return add_bytes(from, low[0], high[0], to);
  static constexpr std::uint8_t kLow[3] = {0x80, 0x80, 0x80};
  static constexpr std::uint8_t kHigh[3] = {0xBF, 0xBF, 0xBF};
  const auto branch = [&](std::uint8_t byte, const std::uint8_t* l, const std::uint8_t* h) {
    const StateId mid = add_state(rule_of(from));
    add_bytes(from, byte, byte, mid);
    add_utf8_from(mid, l, h, n - 1, to);
  };
  const bool low_whole = std::equal(low + 1, low + n, kLow);
  const bool high_whole = std::equal(high + 1, high + n, kHigh);
  if (low[0] == high[0] && !(low_whole && high_whole)) return branch(low[0], low + 1, high + 1);
  std::uint8_t first = low[0];
  std::uint8_t last = high[0];
  if (!low_whole) {
    branch(first, low + 1, kHigh);
    ++first;
  }
  if (!high_whole) {
    branch(last, kLow, high + 1);
    --last;
  }
  if (first <= last) add_bytes(from, first, last, continuation(to, n - 1));
}

void GrammarBuilder::add_utf8(StateId from, CharRange range, StateId to) {
  static constexpr CharRange kLengths[] = {{0, 0x7F}, {0x80, 0x7FF}, {0x800, 0xFFFF}, {0x10000, kLastChar}};
  for (const CharRange length : kLengths) {
    const char32_t first = std::max(range.first, length.first);
    const char32_t last = std::min(range.last, length.last);
    if (first > last) continue;
    std::uint8_t low[4];
    std::uint8_t high[4];
    const int n = encode_utf8(first, low);
    encode_utf8(last, high);
    add_utf8_from(from, low, high, n, to);
  }
}

void GrammarBuilder::add_hex(StateId from, StateId to, int n) {
  while (n-- > 0) {
    const StateId next = n == 0 ? to : add_state(rule_of(from));
    add_bytes(from, '0', '9', next);
    add_bytes(from, 'a', 'f', next);
    add_bytes(from, 'A', 'F', next);
    from = next;
  }
}

// After a backslash: u and four digits, or two such for what lies beyond U+FFFF. Never half of a pair.
void GrammarBuilder::add_unicode_escapes(StateId backslash, StateId to) {
  const RuleId rule = rule_of(backslash);
  const StateId u = add_text(backslash, "u");
  const StateId three = add_state(rule);
  add_hex(three, to, 3);
  add_bytes(u, '0', '9', three);
  for (const auto& [first, last] :
       {std::pair('a', 'c'), std::pair('A', 'C'), std::pair('e', 'f'), std::pair('E', 'F')}) {
    add_bytes(u, static_cast<std::uint8_t>(first), static_cast<std::uint8_t>(last), three);
  }
  const StateId d = add_state(rule);
  add_bytes(u, 'd', 'd', d);
  add_bytes(u, 'D', 'D', d);
  const StateId two = add_state(rule);
  add_hex(two, to, 2);
  add_bytes(d, '0', '7', two);
  const StateId high = add_state(rule);
  add_bytes(d, '8', '9', high);
  add_bytes(d, 'a', 'b', high);
  add_bytes(d, 'A', 'B', high);
  const StateId low = add_state(rule);
  add_hex(high, low, 2);
  const StateId second = add_text(low, "\\u");
  const StateId dc = add_state(rule);
  add_bytes(second, 'd', 'd', dc);
  add_bytes(second, 'D', 'D', dc);
  const StateId last = add_state(rule);
  add_bytes(dc, 'c', 'f', last);
  add_bytes(dc, 'C', 'F', last);
  add_hex(last, to, 2);
}

void GrammarBuilder::add_chars(StateId from, const CharSet& set, StateId to, Escapes escapes) {
  if (escapes == Escapes::kNone) {
    for (const CharRange r : set) add_utf8(from, r, to);
    return;
  }
  static const CharSet kPlain = complement({{0, 0x1F}, {'"', '"'}, {'\\', '\\'}});
  for (const CharRange r : intersection(set, kPlain)) add_utf8(from, r, to);
  StateId backslash = -1;
  const auto escaped = [&] {
    if (backslash < 0) backslash = add_text(from, "\\");
    return backslash;
  };
  const bool all = escapes == Escapes::kAll && set == all_chars();
  for (const auto& [c, letter] : kShort) {
    if (!holds(set, static_cast<unsigned char>(c))) continue;
    add_bytes(escaped(), static_cast<std::uint8_t>(letter), static_cast<std::uint8_t>(letter), to);
  }
  if (all) return add_unicode_escapes(escaped(), to);
  for (char32_t c = 0; c < 0x20; ++c) {
    const bool is_short = std::any_of(std::begin(kShort), std::end(kShort),
                                      [c](const auto& s) { return static_cast<char32_t>(s.first) == c; });
    if (is_short || !holds(set, c)) continue;
    const char text[] = {'u', '0', '0', static_cast<char>('0' + c / 16), "0123456789abcdef"[c % 16]};
    add_text_to(escaped(), std::string_view(text, sizeof text), to);
  }
}

void GrammarBuilder::add_dfa(StateId from, const CharDfa& dfa, StateId to, Escapes escapes) {
  if (dfa.empty()) return;
  std::vector<StateId> ids;
  for (std::size_t i = 0; i < dfa.states.size(); ++i) ids.push_back(add_state(rule_of(from)));
  add_empty(from, ids[0]);
  for (std::size_t i = 0; i < dfa.states.size(); ++i) {
    const CharDfa::State& s = dfa.states[i];
    if (s.accepts) add_empty(ids[i], to);
    // Edges to one state together are one set, which may be all characters.
    std::map<int, CharSet> sets;
    for (const CharDfa::Edge& e : s.edges) sets[e.target].push_back(e.on);
    for (auto& [target, set] : sets) {
      continuations_.clear();
      add_chars(ids[i], normalised(std::move(set)), ids[static_cast<std::size_t>(target)], escapes);
    }
  }
  continuations_.clear();
}

// ---- the end ---------------------------------------------------------------------------------------------------

// Depths by repeated passes until nothing changes: a state that keeps kNever cannot end.
Grammar GrammarBuilder::finish(RuleId root) && {
  std::vector<State>& states = grammar_.states;
  for (State& s : states) s.depth = s.end ? 0 : kNever;
  const auto of = [&states](StateId s) { return states[static_cast<std::size_t>(s)].depth; };
  const auto of_call = [&](const State::Call& c) {
    return std::max(1 + of(grammar_.rules[static_cast<std::size_t>(c.rule)].entry), of(c.to));
  };
  for (bool changed = true; changed;) {
    changed = false;
    for (auto s = states.rbegin(); s != states.rend(); ++s) {
      int depth = s->depth;
      for (const auto& e : s->bytes) depth = std::min(depth, of(e.to));
      for (const auto& e : s->empties) depth = std::min(depth, of(e.to));
      for (const auto& e : s->symbols) depth = std::min(depth, of(e.to));
      for (const auto& e : s->calls) depth = std::min(depth, of_call(e));
      if (depth >= kNever) continue;
      changed = changed || depth < s->depth;
      s->depth = depth;
    }
  }
  for (State& s : states) {
    std::erase_if(s.bytes, [&](const auto& e) { return of(e.to) >= kNever; });
    std::erase_if(s.empties, [&](const auto& e) { return of(e.to) >= kNever; });
    std::erase_if(s.symbols, [&](const auto& e) { return of(e.to) >= kNever; });
    std::erase_if(s.calls, [&](const auto& e) { return of_call(e) >= kNever; });
  }
  grammar_.root = root;
  if (of(entry(root)) + 1 > kMaxFrames) {
    throw Error({.what = "the schema", .found = "no value that satisfies it", .expected = "one that some value does"});
  }
  return std::move(grammar_);
}

}  // namespace glint::grammar
