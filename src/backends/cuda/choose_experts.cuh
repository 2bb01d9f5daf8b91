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

// Lane l has the scores of experts l + 32 i. Ties go to the lower id.
template <int kPerLane>
__device__ __forceinline__ void choose_experts(const Choice& c, std::int64_t row, const float (&score)[kPerLane]) {
  const int lane = threadIdx.x % 32;
  float choice[kPerLane];
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int e = lane + 32 * i;
    choice[i] = e < c.n_experts ? score[i] + c.bias[e] : -INFINITY;
    if (!(choice[i] > -3e38F) && e < c.n_experts) choice[i] = -3e38F;  // NaN too: every row gets experts that exist
  }
  float total = 0, mine = 0;
  int my_id = 0;
  for (int k = 0; k < c.top_k; ++k) {
    float best = -INFINITY, best_score = 0;
    int id = 1 << 30;
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      if (choice[i] > best) best = choice[i], best_score = score[i], id = lane + 32 * i;
    }
#pragma unroll
    for (int d = 16; d > 0; d >>= 1) {
      const float other = __shfl_xor_sync(0xffffffffU, best, d),
                  other_score = __shfl_xor_sync(0xffffffffU, best_score, d);
      const int other_id = __shfl_xor_sync(0xffffffffU, id, d);
      if (other > best || (other == best && other_id < id)) best = other, best_score = other_score, id = other_id;
    }
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      if (lane + 32 * i == id) choice[i] = -INFINITY;
    }
    total += best_score;
    if (lane == k) mine = best_score, my_id = id;
  }
  if (lane < c.top_k) {
    c.ids[row * c.top_k + lane] = my_id;
    c.weights[row * c.top_k + lane] = (c.normalize ? mine / (total + 1e-20F) : mine) * c.scale;
  }
}

}  // namespace glint::cuda
