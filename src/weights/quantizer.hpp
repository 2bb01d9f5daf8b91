#pragma once
// A matrix of floats → a block format. The plain rule is quantize_rtn of tensor/codec.hpp; here each group's scale is
// searched, so that the group's (weighted) squared error is smallest. The error-compensating solver is
// quantizer_gptq.hpp.

#include <cstdint>
#include <string_view>
#include <vector>

#include "base/thread_pool.hpp"
#include "tensor/codec.hpp"

namespace glint {

// Scales tried for a group: the plain rule's scale times factors from `lowest` to `highest`, and for symmetric integer
// codes the same with a negative sign. Those codes reach -8 but only 7, so that a negative scale gives the longer side
// to positive values: worth half a step where the largest value of a group is positive.
struct ScaleSearch {
  int steps = 16;  // factors tried; 1: the plain rule alone
  float lowest = 0.70F;
  float highest = 1.08F;
  bool negative = true;
};

// The factors of a search for that spec, the plain rule's 1 first. FP8 has no use for a search: its steps are relative.
std::vector<float> shrink_factors(const QuantSpec& spec, const ScaleSearch& search);

struct QuantizeOptions {
  ScaleSearch search;
  const float* column_weights = nullptr;  // [cols]: how much an error in a column counts; null: all the same
};

// Rounds values [rows, cols] to nearest with searched scales. Values must be finite (CHECK).
QuantizedWeight quantize_searched(const QuantSpec& spec, const float* values, std::int64_t rows, std::int64_t cols,
                                  const QuantizeOptions& options, ThreadPool& pool);

// "int4-g64", "int4-g32-asym", "int8" (a scale a row), "int8-g128", "nf4" (blocks of 64), "fp8" (a scale a row),
// "fp8-128x128". Throws Error naming `source` for anything else.
QuantSpec parse_quant_spec(std::string_view text, std::string_view source);

// The spec for a matrix of that shape: a group that does not divide the columns is halved until it does (down to 16);
// then the whole row. Scale blocks of several rows stay.
QuantSpec fit_spec(QuantSpec spec, std::int64_t cols);

}  // namespace glint
