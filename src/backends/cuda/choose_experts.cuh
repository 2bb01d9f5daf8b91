#pragma once
// The choice of a row's experts from its scores, by one warp.

#include "backends/cuda/common.cuh"

namespace glint::cuda {

struct Choice {
  const float* bias;
  int n_experts, top_k;
  bool normalize;
  float scale;
  std::int32_t* ids;
  float* weights;
};

// Floats in their order as unsigned numbers.
__device__ __forceinline__ unsigned ordered(float v) {
  const unsigned bits = __float_as_uint(v);
  return (bits >> 31) != 0 ? ~bits : bits | 0x80000000U;
}

// Lane l has the scores of experts l + 32 i. Ties go to the lower id.
template <int kPerLane>
__device__ __forceinline__ void choose_experts(const Choice& c, std::int64_t row, const float (&score)[kPerLane]) {
  constexpr unsigned kAll = 0xffffffffU;
  const int lane = threadIdx.x % 32;
  unsigned choice[kPerLane];  // 0: none, or taken
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int e = lane + 32 * i;
    choice[i] = 0;
    if (e < c.n_experts) {
      const float v = score[i] + c.bias[e];
      choice[i] = ordered(v > -3e38F ? v : -3e38F);  // NaN too: every row gets experts that exist
    }
  }
  float total = 0, mine = 0;
  int my_id = 0;
  for (int k = 0; k < c.top_k; ++k) {
    unsigned best = 0;
    float best_score = 0;
    int best_id = 0;
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      if (choice[i] > best) best = choice[i], best_score = score[i], best_id = lane + 32 * i;
    }
    const unsigned top = __reduce_max_sync(kAll, best);
    const int id = static_cast<int>(__reduce_min_sync(kAll, best == top ? static_cast<unsigned>(best_id) : kAll));
    const float top_score = __shfl_sync(kAll, best_score, id % 32);
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      if (lane + 32 * i == id) choice[i] = 0;
    }
    total += top_score;
    if (lane == k) mine = top_score, my_id = id;
  }
  if (lane < c.top_k) {
    c.ids[row * c.top_k + lane] = my_id;
    c.weights[row * c.top_k + lane] = (c.normalize ? mine / (total + 1e-20F) : mine) * c.scale;
  }
}

}  // namespace glint::cuda
