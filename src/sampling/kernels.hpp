#pragma once
// The two passes over a whole row of logits. AVX2 where the machine has it, else the compiler's baseline; both do the
// same operations in the same order without fused multiply-add, so the results are the same bits.

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

namespace glint::sampling {

inline constexpr std::size_t kBlock = 64;  // tokens; also the bits of a word of a grammar mask
constexpr std::size_t n_blocks(std::size_t n) { return (n + kBlock - 1) / kBlock; }

// The largest value of each block into block_max [n_blocks]. False when there is a NaN.
bool scan(std::span<const float> x, std::span<float> block_max);

// weights[i] = exp((x[i] - shift) · scale), block_sum[b] = their sum. Needs x[i] ≤ shift; 0 where x[i] is -infinity.
void exp_row(std::span<const float> x, float shift, float scale, std::span<float> weights, std::span<double> block_sum);

// exp(y) for y ≤ 0 within 2 ulp (0 below -87), the arithmetic of exp_row for one value or a vector of 8.
// y = n ln 2 + f, |f| ≤ ln 2 / 2: Taylor to degree 7 (relative error 5e-9), the exponent added as an integer.
// In place, because a vector as a result would depend on the ABI of the target.
template <class Float, class Int>
[[gnu::always_inline]] inline void exp_nonpositive(Float& y) {
  constexpr float kMagic = 12582912.0F;  // 1.5 · 2^23: adding it rounds to an integer and leaves it in the low bits
  const Float zero{};
  const Float z = y < -87.0F ? zero - 87.0F : y;
  const Float shifted = z * 1.44269504F + kMagic;
  const Float n = shifted - kMagic;
  const Float f = (z - n * 0.693359375F) - n * -2.12194440e-4F;
  Float p = f * (1.0F / 5040) + (1.0F / 720);
  p = p * f + (1.0F / 120);
  p = p * f + (1.0F / 24);
  p = p * f + (1.0F / 6);
  p = p * f + 0.5F;
  p = p * f + 1.0F;
  p = p * f + 1.0F;
  Int bits;
  Int exponent;
  std::memcpy(&bits, &p, sizeof p);
  std::memcpy(&exponent, &shifted, sizeof shifted);
  bits += exponent << 23;
  std::memcpy(&p, &bits, sizeof p);
  y = y < -87.0F ? zero : p;
}

inline float exp_weight(float x, float shift, float scale) {
  float y = (x - shift) * scale;
  exp_nonpositive<float, std::int32_t>(y);
  return y;
}

}  // namespace glint::sampling
