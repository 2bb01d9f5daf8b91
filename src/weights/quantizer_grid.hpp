#pragma once
// The codes of a format as functions that the compiler turns into vector code: level(x) is the value, in units of the
// scale, that x = (v - min) / scale rounds to, and code(x) its code. The same values as encode_value and decode_value
// of tensor/codec.hpp, which give them their meaning (quantizer_test compares them).

#include <algorithm>
#include <array>

#include "tensor/codec.hpp"

namespace glint::quantizer {

// Round to nearest even for |x| < 2^22, in two additions instead of a library call.
inline float round_even(float x) {
  constexpr float kMagic = 12582912.0F;  // 1.5 · 2^23
  return (x + kMagic) - kMagic;
}

struct IntegerGrid {
  float low;
  float high;
  int offset;  // code = level + offset
  float level(float x) const { return round_even(std::min(std::max(x, low), high)); }
  int code(float x) const { return static_cast<int>(level(x)) + offset; }
};

template <const std::array<float, 16>& kBook>
struct BookGrid {
  // kBook sorted; NF4's is.
  static int index(float x) {
    int i = 0;
    for (std::size_t b = 0; b < 15; ++b) i += x > 0.5F * (kBook[b] + kBook[b + 1]) ? 1 : 0;
    return i;
  }
  float level(float x) const { return kBook[static_cast<std::size_t>(index(x))]; }
  int code(float x) const { return index(x); }
};

struct E4M3Grid {
  float level(float x) const { return f8e4m3_to_float(float_to_f8e4m3(x)); }
  int code(float x) const { return float_to_f8e4m3(x); }
};

// Calls f with the grid of the spec's format.
template <typename F>
decltype(auto) with_grid(const QuantSpec& spec, const F& f) {
  switch (spec.format) {
    case WeightFormat::kI8:
      return f(IntegerGrid{-128, 127, 0});
    case WeightFormat::kI4:
      return spec.symmetric ? f(IntegerGrid{-8, 7, 8}) : f(IntegerGrid{0, 15, 0});
    case WeightFormat::kF8E4M3:
      return f(E4M3Grid{});
    case WeightFormat::kNF4:
      return f(BookGrid<kNf4Codebook>{});
    default:
      CHECK(false, "no quantiser for " + spec.name());
  }
}

}  // namespace glint::quantizer
