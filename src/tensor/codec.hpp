#pragma once
// The block formats of weight.hpp, given their meaning: decode a row, encode a matrix. Scalar and readable; kernels
// have their own decoders and are checked against these.

#include <array>
#include <cstdint>
#include <string>

#include "tensor/weight.hpp"

namespace glint {

// bitsandbytes' NF4 codebook (Dettmers et al., QLoRA, arXiv 2305.14314, appendix E): quantiles of a normal
// distribution, normalised to [-1, 1], with an exact zero.
inline constexpr std::array<float, 16> kNf4Codebook{-1.0F,
                                                    -0.6961928009986877F,
                                                    -0.5250730514526367F,
                                                    -0.39491748809814453F,
                                                    -0.28444138169288635F,
                                                    -0.18477343022823334F,
                                                    -0.09105003625154495F,
                                                    0.0F,
                                                    0.07958029955625534F,
                                                    0.16093020141124725F,
                                                    0.24611230194568634F,
                                                    0.33791524171829224F,
                                                    0.44070982933044434F,
                                                    0.5626170039176941F,
                                                    0.7229568362236023F,
                                                    1.0F};

// OCP MX FP4 E2M1: sign, two exponent bits, one mantissa bit.
inline constexpr std::array<float, 16> kF4Codebook{0.0F,  0.5F,  1.0F,  1.5F,  2.0F,  3.0F,  4.0F,  6.0F,
                                                   -0.0F, -0.5F, -1.0F, -1.5F, -2.0F, -3.0F, -4.0F, -6.0F};

// Row `row` of w as floats, exactly: scale · code (+ min), each product and sum rounded once to float.
void decode_row(const Weight& w, std::int64_t row, float* out);

// How to quantise a matrix.
struct QuantSpec {
  WeightFormat format = WeightFormat::kI4;
  std::int64_t group = 128;     // columns a scale covers; 0: the whole row
  std::int64_t group_rows = 1;  // 128 for FP8's 128×128 blocks
  bool symmetric = true;        // kI4 and kI8; the others always are
  DType scale_dtype = DType::kBF16;

  // "int4-g128", "int4-g32-asym", "int8-channel", "fp8-128x128", "nf4-g64", "bf16"
  std::string name() const;
  // Bits a weight takes, scales and mins counted, for a matrix of `cols` columns.
  double bits(std::int64_t cols) const;
};

// How `w` is stored.
QuantSpec quant_spec(const Weight& w);

// A quantised matrix with its memory.
struct QuantizedWeight {
  Buffer codes;
  Buffer scales;
  Buffer mins;
  Weight w;
};

// Empty codes and scales of that shape. Throws Error when the spec does not fit (odd columns in a 4-bit format …).
QuantizedWeight allocate_quantized(const QuantSpec& spec, std::int64_t rows, std::int64_t cols);

// The scale (and min) of one group of values by the plain rule of each format:
//   kI4, kI8   symmetric: scale = max|v| / 7.5 or 127.5 (compressed-tensors' rule), codes clipped to [-8, 7] or
//              [-128, 127]; asymmetric: the range [min(v, 0), max(v, 0)] over 15 or 255 steps, min a whole number of
//              them
//   kF8E4M3    max|v| / 448
//   kNF4       max|v|
// Scales are rounded to scale_dtype before they are used. A group of zeros has scale 1.
struct GroupScale {
  float scale = 1;
  float min = 0;
};
GroupScale plain_scale(const QuantSpec& spec, const float* values, std::int64_t n);
// The group's scale times `shrink`, rounded to scale_dtype: clipping outliers can lower the error of all others.
GroupScale shrunk_scale(const QuantSpec& spec, const GroupScale& plain, float shrink);

// The code nearest to v, and what a code stands for. kI8 codes are -128 … 127, kF8E4M3 codes 0 … 255, others 0 … 15.
int encode_value(const QuantSpec& spec, const GroupScale& s, float v);
float decode_value(const QuantSpec& spec, const GroupScale& s, int code);

// Element access of a matrix being made.
void set_code(const QuantizedWeight& q, std::int64_t row, std::int64_t col, int code);
void set_scale(const QuantizedWeight& q, std::int64_t row, std::int64_t group_index, const GroupScale& s);

// Plain round-to-nearest of values [rows, cols], row-major: the baseline that every better method is compared with.
// Values must be finite (CHECK).
QuantizedWeight quantize_rtn(const QuantSpec& spec, const float* values, std::int64_t rows, std::int64_t cols);

}  // namespace glint
