#pragma once
// Sums as wgmma leaves them, brought into the order of memory.

#include "backends/cuda/common.cuh"

namespace glint::cuda {

// Lane t of a quad has word i of four units: afterwards it has the four words of unit t.
__device__ __forceinline__ uint4 quad_transpose(std::uint32_t (&w)[4], int t) {
#pragma unroll
  for (int i = 0; i < 4; i += 2) {
    const std::uint32_t other = __shfl_xor_sync(0xffffffffU, (t & 1) != 0 ? w[i] : w[i + 1], 1);
    if ((t & 1) != 0) {
      w[i] = other;
    } else {
      w[i + 1] = other;
    }
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const std::uint32_t other = __shfl_xor_sync(0xffffffffU, (t & 2) != 0 ? w[i] : w[i + 2], 2);
    if ((t & 2) != 0) {
      w[i] = other;
    } else {
      w[i + 2] = other;
    }
  }
  return {w[0], w[1], w[2], w[3]};
}

}  // namespace glint::cuda
