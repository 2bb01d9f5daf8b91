#pragma once
// Softmax of attend_few.cu: weights of a step from its scores, and the running maxima and sums.

#include "backends/cuda/attend_memory.cuh"

namespace glint::cuda {

constexpr float kScoreLog2 = 0.0625F * 1.4426950408889634F;  // 1/16, and to base 2
constexpr int kNothing = -(1 << 20);                         // the maximum of no scores

#if __CUDA_ARCH__ >= 900
// A warp's pairs (warp, warp + 8 …) in a tile, a lane a token.
template <KvCodec kCodec, int kN8>
struct Softmax {
  static constexpr int kPairs = 8 * kN8;
  int top[kN8];
  float sum[kN8];

  __device__ __forceinline__ void start(const FewArgs& a, const Unit& u, int2 (&sees)[kPairs], int warp, int lane) {
    if (lane < kN8) {
      const int pair = warp + 8 * lane, in_tile = u.tile * kPairs + pair, row = in_tile / a.heads;
      const int end = row < u.rows ? u.context - u.rows + row + 1 : 0;
      sees[pair] = {a.cache.window > 0 ? max(0, end - a.cache.window) : 0, end};
    }
    __syncwarp();
#pragma unroll
    for (int j = 0; j < kN8; ++j) top[j] = kNothing, sum[j] = 0;
  }
  __device__ __forceinline__ void weigh(const float (&scores)[4][kPairs][kScoreStride], const RowScales& scales,
                                        const int2 (&sees)[kPairs], int token, Weighed<kPairs>& to, int warp,
                                        int lane) {
    const float log_scale = kIsHalf<kCodec> ? scales.log_latent[lane] : 0.0F;
    float v[kN8];
    int m[kN8];
#pragma unroll
    for (int j = 0; j < kN8; ++j) {
      const int pair = warp + 8 * j;
      v[j] = ((scores[0][pair][lane] + scores[1][pair][lane]) + (scores[2][pair][lane] + scores[3][pair][lane])) *
             kScoreLog2;
      const int2 seen = sees[pair];
      const bool sees_it = token >= seen.x && token < seen.y;
      m[j] = sees_it ? __float2int_ru(v[j] + log_scale) : kNothing;
      v[j] = sees_it ? v[j] : -INFINITY;
    }
#pragma unroll
    for (int j = 0; j < kN8; ++j) m[j] = max(top[j], __reduce_max_sync(0xffffffffU, m[j]));
#pragma unroll
    for (int j = 0; j < kN8; ++j) {
      // Where nothing is seen so far, m is far below: every weight is 2^-inf = 0 and the factor 2^0.
      const float factor = power_of_two(static_cast<float>(top[j] - m[j])), x = v[j] - static_cast<float>(m[j]);
      top[j] = m[j];
      std::uint16_t bits;
      if constexpr (kIsHalf<kCodec>) {
        sum[j] = sum[j] * factor + power_of_two(x);
        const float scaled = v[j] == -INFINITY ? 0.0F : power_of_two(x + log_scale);  // an unowned row's may be NaN
        bits = __half_as_ushort(__float2half_rn(scaled));
      } else {
        const __nv_bfloat16 p = __float2bfloat16_rn(power_of_two(x));
        sum[j] = sum[j] * factor + __bfloat162float(p);
        bits = __bfloat16_as_ushort(p);
      }
      *reinterpret_cast<std::uint16_t*>(to.weights + (warp + 8 * j) * kWeightStride + lane * 2) = bits;
      if (lane == 0) to.factors[warp + 8 * j] = factor;
    }
  }
  __device__ __forceinline__ void finish(Totals<kPairs>& to, int warp, int lane) const {
#pragma unroll
    for (int j = 0; j < kN8; ++j) {
      const float all = warp_sum(sum[j]);
      if (lane == 0) to.maxima[warp + 8 * j] = static_cast<float>(top[j]), to.sums[warp + 8 * j] = all;
    }
  }
};
#endif

}  // namespace glint::cuda
