#pragma once
// Numbers within bounds, as texts.

#include <optional>
#include <string>
#include <string_view>

#include "grammar/char_dfa.hpp"

namespace glint::grammar {

// A decimal number, exactly.
struct Decimal {
  bool negative = false;    // never of zero
  std::string whole = "0";  // no leading zeros
  std::string fraction;     // no trailing zeros

  bool is_zero() const { return whole == "0" && fraction.empty(); }
  bool operator==(const Decimal&) const = default;
};
// From a JSON number's text; nullopt when its digits would not fit (an exponent far out).
std::optional<Decimal> to_decimal(std::string_view token);
int compare(const Decimal& a, const Decimal& b);

struct Bound {
  Decimal value;
  bool exclusive = false;
};

// JSON numbers (or integers) from `least` to `most`. Without bounds exponents are allowed; digits are bounded always,
// so that a number ends. May be empty.
CharDfa number_texts(const std::optional<Bound>& least, const std::optional<Bound>& most, bool integer);

}  // namespace glint::grammar
