#include "grammar/char_dfa.hpp"

#include <algorithm>
#include <map>
#include <string>
#include <unordered_map>

#include "base/error.hpp"

namespace glint::grammar {
namespace {

constexpr char32_t kBeforeSurrogates = 0xD7FF, kAfterSurrogates = 0xE000;

[[noreturn]] void too_large() {
  throw Error({.what = "the automaton",
               .found = "more than " + std::to_string(kMaxDfaStates) + " states",
               .expected = "a smaller pattern or length"});
}

struct PairHash {
  std::size_t operator()(const std::pair<int, std::int64_t>& p) const {
    return std::hash<std::int64_t>()(p.second * 1000003 + p.first);
  }
};

}  // namespace

CharSet normalised(CharSet ranges) {
  std::sort(ranges.begin(), ranges.end(), [](CharRange a, CharRange b) { return a.first < b.first; });
  CharSet joined;
  for (const CharRange r : ranges) {
    if (r.first > r.last) continue;
    if (!joined.empty() && r.first <= joined.back().last + 1) {
      joined.back().last = std::max(joined.back().last, r.last);
    } else {
      joined.push_back(r);
    }
  }
  CharSet out;
  for (const CharRange r : joined) {
    if (r.first <= kBeforeSurrogates) out.push_back({r.first, std::min(r.last, kBeforeSurrogates)});
    if (r.last >= kAfterSurrogates) out.push_back({std::max(r.first, kAfterSurrogates), std::min(r.last, kLastChar)});
  }
  return out;
}

CharSet complement(const CharSet& set) {
  CharSet out;
  char32_t next = 0;
  for (const CharRange r : set) {
    if (r.first > next) out.push_back({next, r.first - 1});
    next = r.last + 1;
  }
  if (next <= kLastChar) out.push_back({next, kLastChar});
  return normalised(std::move(out));
}

CharSet all_chars() { return complement({}); }

CharSet intersection(const CharSet& a, const CharSet& b) {
  CharSet out;
  for (const CharRange x : a) {
    for (const CharRange y : b) {
      const CharRange both{std::max(x.first, y.first), std::min(x.last, y.last)};
      if (both.first <= both.last) out.push_back(both);
    }
  }
  return normalised(std::move(out));
}

std::vector<char32_t> characters(std::string_view utf8) {
  std::vector<char32_t> out;
  for (std::size_t i = 0; i < utf8.size();) {
    const auto lead = static_cast<unsigned char>(utf8[i]);
    const std::size_t n = lead < 0x80 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
    char32_t c = n == 1 ? lead : lead & (0xFFu >> (n + 1));
    for (std::size_t k = 1; k < n && i + k < utf8.size(); ++k) {
      c = c << 6 | (static_cast<unsigned char>(utf8[i + k]) & 0x3Fu);
    }
    out.push_back(c);
    i += n;
  }
  return out;
}

bool CharDfa::matches(std::string_view utf8) const {
  if (states.empty()) return false;
  std::size_t at = 0;
  for (const char32_t c : characters(utf8)) {
    int next = -1;
    for (const Edge& e : states[at].edges) {
      if (c >= e.on.first && c <= e.on.last) next = e.target;
    }
    if (next < 0) return false;
    at = static_cast<std::size_t>(next);
  }
  return states[at].accepts;
}

int CharNfa::add_state() {
  if (states_.size() >= 4 * kMaxDfaStates) too_large();
  states_.emplace_back();
  return static_cast<int>(states_.size()) - 1;
}

void CharNfa::add_edge(int from, const CharSet& on, int to) {
  for (const CharRange r : on) states_[static_cast<std::size_t>(from)].edges.emplace_back(r, to);
}

void CharNfa::close(std::vector<int>& set) const {
  std::vector<int> todo = set;
  std::vector<int> seen = set;
  std::sort(seen.begin(), seen.end());
  while (!todo.empty()) {
    const int s = todo.back();
    todo.pop_back();
    for (const int t : states_[static_cast<std::size_t>(s)].epsilons) {
      const auto at = std::lower_bound(seen.begin(), seen.end(), t);
      if (at != seen.end() && *at == t) continue;
      seen.insert(at, t);
      todo.push_back(t);
    }
  }
  set = std::move(seen);
}

CharDfa CharNfa::determinise(int start, int accept) const {
  CharDfa dfa;
  std::map<std::vector<int>, int> ids;
  std::vector<std::vector<int>> sets;
  std::size_t work = 0;
  const auto intern = [&](std::vector<int> set) {
    close(set);
    const auto [it, is_new] = ids.emplace(set, static_cast<int>(sets.size()));
    if (is_new) {
      work += set.size();
      if (sets.size() >= kMaxDfaStates || work > 100 * kMaxDfaStates) too_large();
      dfa.states.push_back({.accepts = std::binary_search(set.begin(), set.end(), accept)});
      sets.push_back(std::move(set));
    }
    return it->second;
  };
  intern({start});
  for (std::size_t i = 0; i < sets.size(); ++i) {
    // The ranges' ends cut the characters into pieces on which the set of targets does not change.
    std::vector<std::pair<CharRange, int>> edges;
    std::vector<char32_t> cuts;
    for (const int s : sets[i]) {
      for (const auto& e : states_[static_cast<std::size_t>(s)].edges) {
        edges.push_back(e);
        cuts.push_back(e.first.first);
        cuts.push_back(e.first.last + 1);
      }
    }
    std::sort(cuts.begin(), cuts.end());
    cuts.erase(std::unique(cuts.begin(), cuts.end()), cuts.end());
    for (std::size_t c = 0; c + 1 < cuts.size(); ++c) {
      std::vector<int> targets;
      for (const auto& [on, to] : edges) {
        if (on.first <= cuts[c] && cuts[c] <= on.last) targets.push_back(to);
      }
      if (targets.empty()) continue;
      std::sort(targets.begin(), targets.end());
      targets.erase(std::unique(targets.begin(), targets.end()), targets.end());
      const CharRange on{cuts[c], cuts[c + 1] - 1};
      const int to = intern(std::move(targets));
      std::vector<CharDfa::Edge>& out = dfa.states[i].edges;
      if (!out.empty() && out.back().target == to && out.back().on.last + 1 == on.first) {
        out.back().on.last = on.last;
      } else {
        out.push_back({on, to});
      }
    }
  }
  return trimmed(std::move(dfa));
}

CharDfa trimmed(CharDfa dfa) {
  const std::size_t n = dfa.states.size();
  std::vector<std::vector<int>> back(n);
  std::vector<int> todo;
  std::vector<bool> alive(n, false);
  for (std::size_t i = 0; i < n; ++i) {
    for (const CharDfa::Edge& e : dfa.states[i].edges) {
      back[static_cast<std::size_t>(e.target)].push_back(static_cast<int>(i));
    }
    if (dfa.states[i].accepts) {
      alive[i] = true;
      todo.push_back(static_cast<int>(i));
    }
  }
  while (!todo.empty()) {
    const int s = todo.back();
    todo.pop_back();
    for (const int p : back[static_cast<std::size_t>(s)]) {
      if (alive[static_cast<std::size_t>(p)]) continue;
      alive[static_cast<std::size_t>(p)] = true;
      todo.push_back(p);
    }
  }
  if (n == 0 || !alive[0]) return {};
  CharDfa out;
  std::vector<int> ids(n, -1);
  std::vector<int> order{0};
  ids[0] = 0;
  for (std::size_t i = 0; i < order.size(); ++i) {
    const CharDfa::State& from = dfa.states[static_cast<std::size_t>(order[i])];
    CharDfa::State state{.accepts = from.accepts};
    for (const CharDfa::Edge& e : from.edges) {
      const auto t = static_cast<std::size_t>(e.target);
      if (!alive[t]) continue;
      if (ids[t] < 0) {
        ids[t] = static_cast<int>(order.size());
        order.push_back(e.target);
      }
      state.edges.push_back({e.on, ids[t]});
    }
    out.states.push_back(std::move(state));
  }
  return out;
}

CharDfa intersection(const CharDfa& a, const CharDfa& b) {
  if (a.empty() || b.empty()) return {};
  CharDfa dfa;
  std::map<std::pair<int, int>, int> ids;
  std::vector<std::pair<int, int>> pairs;
  const auto intern = [&](int x, int y) {
    const auto [it, is_new] = ids.emplace(std::pair(x, y), static_cast<int>(pairs.size()));
    if (is_new) {
      if (pairs.size() >= kMaxDfaStates) too_large();
      pairs.emplace_back(x, y);
      dfa.states.push_back(
          {.accepts = a.states[static_cast<std::size_t>(x)].accepts && b.states[static_cast<std::size_t>(y)].accepts});
    }
    return it->second;
  };
  intern(0, 0);
  for (std::size_t i = 0; i < pairs.size(); ++i) {
    const auto [x, y] = pairs[i];
    for (const CharDfa::Edge& e : a.states[static_cast<std::size_t>(x)].edges) {
      for (const CharDfa::Edge& f : b.states[static_cast<std::size_t>(y)].edges) {
        const CharRange on{std::max(e.on.first, f.on.first), std::min(e.on.last, f.on.last)};
        if (on.first > on.last) continue;
        const int target = intern(e.target, f.target);
        dfa.states[i].edges.push_back({on, target});
      }
    }
  }
  return trimmed(std::move(dfa));
}

CharDfa with_length(const CharDfa& dfa, std::int64_t min, std::int64_t max) {
  if (dfa.empty()) return {};
  CharDfa out;
  std::unordered_map<std::pair<int, std::int64_t>, int, PairHash> ids;
  std::vector<std::pair<int, std::int64_t>> pairs;
  const auto intern = [&](int s, std::int64_t n) {
    if (max < 0) n = std::min(n, min);  // beyond the least length nothing more is counted
    const auto [it, is_new] = ids.emplace(std::pair(s, n), static_cast<int>(pairs.size()));
    if (is_new) {
      if (pairs.size() >= kMaxDfaStates) too_large();
      pairs.emplace_back(s, n);
      out.states.push_back({.accepts = dfa.states[static_cast<std::size_t>(s)].accepts && n >= min});
    }
    return it->second;
  };
  intern(0, 0);
  for (std::size_t i = 0; i < pairs.size(); ++i) {
    const auto [s, n] = pairs[i];
    if (max >= 0 && n >= max) continue;
    for (const CharDfa::Edge& e : dfa.states[static_cast<std::size_t>(s)].edges) {
      const int target = intern(e.target, n + 1);
      out.states[i].edges.push_back({e.on, target});
    }
  }
  return trimmed(std::move(out));
}

CharDfa any_text() {
  CharDfa dfa;
  dfa.states.push_back({.accepts = true});
  for (const CharRange r : all_chars()) dfa.states[0].edges.push_back({r, 0});
  return dfa;
}

CharDfa text_starting(const CharSet& first) {
  CharDfa dfa = any_text();
  CharDfa::State start{.accepts = true};
  for (const CharRange r : first) start.edges.push_back({r, 1});
  for (CharDfa::Edge& e : dfa.states[0].edges) e.target = 1;
  dfa.states.insert(dfa.states.begin(), std::move(start));
  return dfa;
}

// A state is the longest suffix of what was read that a word begins with.
CharDfa text_without(std::span<const std::string_view> words) {
  std::vector<std::string> prefixes{""};
  for (const std::string_view w : words) {
    for (std::size_t n = 1; n < w.size(); ++n) {
      const std::string p(w.substr(0, n));
      if (std::find(prefixes.begin(), prefixes.end(), p) == prefixes.end()) prefixes.push_back(p);
    }
  }
  const auto next = [&](std::string text) {  // -1: a word is complete
    for (const std::string_view w : words) {
      if (text.ends_with(w)) return -1;
    }
    for (;; text.erase(0, 1)) {
      const auto it = std::find(prefixes.begin(), prefixes.end(), text);
      if (it != prefixes.end()) return static_cast<int>(it - prefixes.begin());
    }
  };
  CharSet letters;
  for (const std::string_view w : words) {
    for (const char c : w) letters.push_back({static_cast<unsigned char>(c), static_cast<unsigned char>(c)});
  }
  letters = normalised(std::move(letters));
  CharDfa dfa;
  for (const std::string& p : prefixes) {
    CharDfa::State state{.accepts = true};
    for (const CharRange r : complement(letters)) state.edges.push_back({r, 0});
    for (const CharRange r : letters) {
      for (char32_t c = r.first; c <= r.last; ++c) {
        const int target = next(p + static_cast<char>(c));
        if (target >= 0) state.edges.push_back({{c, c}, target});
      }
    }
    dfa.states.push_back(std::move(state));
  }
  return trimmed(std::move(dfa));
}

CharDfa text_except(std::span<const std::string> words) {
  CharDfa dfa;
  dfa.states.push_back({.accepts = true});
  std::vector<std::map<char32_t, int>> children(1);
  for (const std::string& word : words) {
    std::size_t at = 0;
    for (const char32_t c : characters(word)) {
      const auto [it, is_new] = children[at].emplace(c, static_cast<int>(dfa.states.size()));
      const int target = it->second;
      if (is_new) {
        if (dfa.states.size() >= kMaxDfaStates) too_large();
        dfa.states.push_back({.accepts = true});
        children.emplace_back();
      }
      at = static_cast<std::size_t>(target);
    }
    dfa.states[at].accepts = false;
  }
  const int other = static_cast<int>(dfa.states.size());
  dfa.states.push_back({.accepts = true});
  children.emplace_back();
  for (std::size_t i = 0; i < children.size(); ++i) {
    CharSet taken;
    for (const auto& [c, target] : children[i]) {
      taken.push_back({c, c});
      dfa.states[i].edges.push_back({{c, c}, target});
    }
    for (const CharRange r : complement(normalised(std::move(taken)))) dfa.states[i].edges.push_back({r, other});
  }
  return dfa;
}

}  // namespace glint::grammar
