#pragma once
// The two passes over a whole row of logits. AVX2 where the machine has it, else the compiler's baseline; both do the
// same operations in the same order without fused multiply-add, so the results are the same bits.

#include <cstddef>
#include <span>

namespace glint::sampling {

inline constexpr std::size_t kBlock = 64;  // tokens; also the bits of a word of a grammar mask
constexpr std::size_t n_blocks(std::size_t n) { return (n + kBlock - 1) / kBlock; }

// The largest value of each block into block_max [n_blocks]. False when there is a NaN.
bool scan(std::span<const float> x, std::span<float> block_max);

// weights[i] = exp((x[i] - shift) · scale) as ops/sample.hpp has it, block_sum[b] = their exact sum. Needs
// x[i] ≤ shift; 0 where x[i] is -infinity.
void exp_row(std::span<const float> x, float shift, float scale, std::span<float> weights, std::span<double> block_sum);

}  // namespace glint::sampling
