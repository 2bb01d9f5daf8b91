#include "grammar/number_range.hpp"

#include <algorithm>
#include <charconv>
#include <map>
#include <tuple>

#include "grammar/regex.hpp"

namespace glint::grammar {
namespace {

constexpr std::size_t kMaxWhole = 18;     // digits; fits 64 bits
constexpr std::size_t kMaxFraction = 16;  // digits

int compare_magnitude(const Decimal& a, const Decimal& b) {
  if (a.whole.size() != b.whole.size()) return a.whole.size() < b.whole.size() ? -1 : 1;
  if (const int c = a.whole.compare(b.whole); c != 0) return c;
  return a.fraction.compare(b.fraction);
}

// Numbers without sign between two bounds, digit by digit. A state knows whether the digits so far are those of a bound
// ("tight"): only then the bound limits the next digit.
class Magnitudes {
 public:
  Magnitudes(CharNfa& nfa, const Bound& least, const std::optional<Bound>& most, bool integer, int end)
      : nfa_(nfa), least_(least), most_(most), integer_(integer), end_(end) {
    fraction_digits_ = std::max(kMaxFraction, least.value.fraction.size() + 1);
    if (most) fraction_digits_ = std::max(fraction_digits_, most->value.fraction.size() + 1);
  }

  void add(int start) {
    const std::size_t longest = most_ ? most_->value.whole.size() : std::max(kMaxWhole, least_.value.whole.size() + 1);
    for (std::size_t length = least_.value.whole.size(); length <= longest; ++length) {
      const bool tight_most = most_ && most_->value.whole.size() == length;
      const int s = whole(length, 0, least_.value.whole.size() == length, tight_most);
      nfa_.add_epsilon(start, s);
    }
  }

 private:
  using Key = std::tuple<bool, std::size_t, std::size_t, bool, bool>;

  static char digit(const std::string& digits, std::size_t i) { return i < digits.size() ? digits[i] : '0'; }

  // Whether the number may end after `n` digits of its fraction.
  bool may_end(std::size_t n, bool tight_least, bool tight_most) const {
    if (tight_least && (n < least_.value.fraction.size() || least_.exclusive)) return false;
    return !(tight_most && n >= most_->value.fraction.size() && most_->exclusive);
  }

  int whole(std::size_t length, std::size_t at, bool tl, bool tm) {
    const auto [it, is_new] = states_.emplace(Key(false, length, at, tl, tm), -1);
    if (!is_new) return it->second;
    const int s = it->second = nfa_.add_state();
    if (at == length) {
      if (may_end(0, tl, tm)) nfa_.add_epsilon(s, end_);
      if (!integer_) {
        const int dot = nfa_.add_state();
        nfa_.add_edge(s, {{'.', '.'}}, dot);
        digits(dot, at, 0, tl, tm);
      }
      return s;
    }
    char from = at == 0 && length > 1 ? '1' : '0';
    char to = '9';
    if (tl) from = std::max(from, least_.value.whole[at]);
    if (tm) to = std::min(to, most_->value.whole[at]);
    for (char d = from; d <= to; ++d) {
      const int next = whole(length, at + 1, tl && d == least_.value.whole[at], tm && d == most_->value.whole[at]);
      nfa_.add_edge(s, one(d), next);
    }
    return s;
  }

  static CharSet one(char d) {
    const auto c = static_cast<char32_t>(d);
    return {{c, c}};
  }

  void digits(int s, std::size_t length, std::size_t n, bool tl, bool tm) {
    if (n == fraction_digits_) return;
    const char least = tl ? digit(least_.value.fraction, n) : '0';
    const char most = tm ? digit(most_->value.fraction, n) : '9';
    for (char d = least; d <= most; ++d)
      nfa_.add_edge(s, one(d), fraction(length, n + 1, tl && d == least, tm && d == most));
  }

  int fraction(std::size_t length, std::size_t n, bool tl, bool tm) {
    const std::size_t of = tl || tm ? length : 0;  // once free, all lengths are alike
    const auto [it, is_new] = states_.emplace(Key(true, of, n, tl, tm), -1);
    if (!is_new) return it->second;
    const int s = it->second = nfa_.add_state();
    if (may_end(n, tl, tm)) nfa_.add_epsilon(s, end_);
    digits(s, length, n, tl, tm);
    return s;
  }

  CharNfa& nfa_;
  const Bound least_;
  const std::optional<Bound> most_;
  const bool integer_;
  const int end_;
  std::size_t fraction_digits_ = 0;
  std::map<Key, int> states_;
};

Bound negated(Bound b) {
  if (!b.value.is_zero()) b.value.negative = !b.value.negative;
  return b;
}

}  // namespace

std::optional<Decimal> to_decimal(std::string_view token) {
  Decimal d;
  if (token.starts_with('-')) {
    d.negative = true;
    token.remove_prefix(1);
  }
  long exponent = 0;
  if (const std::size_t e = token.find_first_of("eE"); e != std::string_view::npos) {
    std::string_view digits = token.substr(e + 1);
    if (digits.starts_with('+')) digits.remove_prefix(1);
    const auto r = std::from_chars(digits.data(), digits.data() + digits.size(), exponent);
    if (r.ec != std::errc() || exponent > 400 || exponent < -400) return std::nullopt;
    token = token.substr(0, e);
  }
  const std::size_t dot = std::min(token.find('.'), token.size());
  d.whole = token.substr(0, dot);
  d.fraction = dot < token.size() ? token.substr(dot + 1) : "";
  for (; exponent > 0; --exponent) {
    d.whole += d.fraction.empty() ? '0' : d.fraction[0];
    if (!d.fraction.empty()) d.fraction.erase(0, 1);
  }
  for (; exponent < 0; ++exponent) {
    d.fraction.insert(d.fraction.begin(), d.whole.empty() ? '0' : d.whole.back());
    if (!d.whole.empty()) d.whole.pop_back();
  }
  d.whole.erase(0, std::min(d.whole.find_first_not_of('0'), d.whole.size()));
  if (d.whole.empty()) d.whole = "0";
  d.fraction.erase(d.fraction.find_last_not_of('0') + 1);
  if (d.whole.size() + d.fraction.size() > 400) return std::nullopt;
  if (d.is_zero()) d.negative = false;
  return d;
}

int compare(const Decimal& a, const Decimal& b) {
  if (a.negative != b.negative) return a.negative ? -1 : 1;
  const int c = compare_magnitude(a, b);
  return a.negative ? -c : c;
}

CharDfa number_texts(const std::optional<Bound>& least, const std::optional<Bound>& most, bool integer) {
  if (!least && !most) {
    return compile_regex(integer ? "^(0|-?[1-9][0-9]{0,17})$"
                                 : R"(^-?(0|[1-9][0-9]{0,17})(\.[0-9]{1,16})?([eE][+-]?[0-9]{1,2})?$)");
  }
  CharNfa nfa;
  const int start = nfa.add_state();
  const int end = nfa.add_state();
  const Bound zero{.value = {}, .exclusive = false};
  // From zero on.
  if (!most || !most->value.negative) {
    Magnitudes(nfa, least && !least->value.negative ? *least : zero, most, integer, end).add(start);
  }
  // Below zero: the magnitudes between the bounds' own, the other way round.
  if (!least || least->value.negative) {
    const int minus = nfa.add_state();
    nfa.add_edge(start, {{'-', '-'}}, minus);
    const Bound low = most && most->value.negative ? negated(*most) : Bound{.value = {}, .exclusive = true};
    std::optional<Bound> high;
    if (least) high = negated(*least);
    Magnitudes(nfa, low, high, integer, end).add(minus);
  }
  return nfa.determinise(start, end);
}

}  // namespace glint::grammar
