#pragma once
// The scorers of attend_few.cu: scores, and weights by softmax.

#include "backends/cuda/attend_memory.cuh"

namespace glint::cuda {

constexpr float kScoreLog2 = 0.0625F * 1.4426950408889634F;  // 1/16, and to base 2
constexpr int kNothing = -(1 << 20);                         // the maximum of no scores

#if __CUDA_ARCH__ >= 900
// The queries of a warp's quarter, nine blocks of 16 values: of BF16 rows in their order, else eight of the latent and
// one rotary, as the codes' products want them; for FP16 times a power of two, of which `inverse` are those of pairs 8
// j + 2 t and the next.
template <KvCodec kCodec, int kN8>
struct Queries {
  std::uint32_t q[9][kN8][2];
  float inverse[kN8][2];

  __device__ __forceinline__ void load(const std::uint16_t* query, int pairs, int quarter, int lane) {
    const int g = lane / 4, t = lane % 4;
#pragma unroll
    for (int j = 0; j < kN8; ++j) {
      const std::uint16_t* from = query + static_cast<std::int64_t>(8 * j + g) * kRowWidth;
#pragma unroll
      for (int k = 0; k < 9; ++k) {
        uint2 v{};
        if constexpr (!is_short(kCodec)) {
          const auto* at = reinterpret_cast<const std::uint32_t*>(from + 16 * (quarter * 9 + k) + 2 * t);
          if (8 * j + g < pairs) v = {at[0], at[4]};
        } else {
          const int block = k < 8 ? quarter * 8 + k : kLatentWidth / 16 + quarter;
          if (8 * j + g < pairs) v = *reinterpret_cast<const uint2*>(from + 16 * block + 4 * t);
        }
        q[k][j][0] = v.x, q[k][j][1] = v.y;
      }
      if constexpr (kIsHalf<kCodec>) scale(j, lane);
    }
  }
  __device__ __forceinline__ void scale(int j, int lane) {
    float largest = 0;
#pragma unroll
    for (int k = 0; k < 9; ++k) {
#pragma unroll
      for (int h = 0; h < 2; ++h)
        largest = fmaxf(largest, fmaxf(fabsf(bf16_low(q[k][j][h])), fabsf(bf16_high(q[k][j][h]))));
    }
    largest = fmaxf(largest, __shfl_xor_sync(0xffffffffU, largest, 1));
    largest = fmaxf(largest, __shfl_xor_sync(0xffffffffU, largest, 2));
    // The largest comes to be 2^10 …; BF16 numbers from 2^-27 of it on are exact.
    const int exponent = min(250, max(20, static_cast<int>(__float_as_uint(largest) >> 23)));
    const float factor = __uint_as_float(static_cast<unsigned>(264 - exponent) << 23);
    const float back = __uint_as_float(static_cast<unsigned>(exponent - 10) << 23);
#pragma unroll
    for (int k = 0; k < 9; ++k) {
#pragma unroll
      for (int h = 0; h < 2; ++h) q[k][j][h] = pack_half(bf16_low(q[k][j][h]) * factor, bf16_high(q[k][j][h]) * factor);
    }
#pragma unroll
    for (int e = 0; e < 2; ++e) inverse[j][e] = __shfl_sync(0xffffffffU, back, (lane % 4 * 2 + e) * 4);
  }
};

// Sums over a quarter of the values, of 16 tokens and all pairs, into the quarter's plane of scores.
template <KvCodec kCodec, int kN8>
__device__ __forceinline__ void score(const unsigned char* stage, const Queries<kCodec, kN8>& query,
                                      const RowScales& scales, float (&plane)[8 * kN8][kScoreStride], int tokens16,
                                      int quarter, int lane) {
  using M = Memory<kCodec, kN8>;
  const int g = lane / 4, t = lane % 4;
  const std::uint32_t row = shared_address(stage) + (tokens16 + lane % 16) * M::kRow;
  if constexpr (!is_short(kCodec)) {
    float s[2][kN8][4] = {};  // two chains of sums: half the waiting
#pragma unroll
    for (int k = 0; k < 9; ++k) {
      std::uint32_t v[4];
      ldmatrix4(v, row + (quarter * 9 + k) * 32 + lane / 16 * 16);
#pragma unroll
      for (int j = 0; j < kN8; ++j) product(s[k % 2][j], v, query.q[k][j][0], query.q[k][j][1]);
    }
#pragma unroll
    for (int j = 0; j < kN8; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) plane[8 * j + 2 * t + e % 2][tokens16 + g + e / 2 * 8] = s[0][j][e] + s[1][j][e];
    }
    return;
  }
  float latent[kN8][4] = {}, rotary[kN8][4] = {};
  const auto add = [&](int k, const std::uint32_t(&v)[4]) {
#pragma unroll
    for (int j = 0; j < kN8; ++j) code_product<kCodec>(latent[j], v, query.q[k][j][0], query.q[k][j][1]);
  };
  if constexpr (kIsFour<kCodec>) {
    const unsigned char* scale_bytes = stage + (tokens16 + g) * M::kRow + kLatentWidth / 2 + quarter * 4;
    const std::uint32_t bytes[2] = {*reinterpret_cast<const std::uint32_t*>(scale_bytes),
                                    *reinterpret_cast<const std::uint32_t*>(scale_bytes + 8 * M::kRow)};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      std::uint32_t r[4];
      ldmatrix4(r, row + quarter * 64 + i * 32 + lane / 16 * 16);
#pragma unroll
      for (int u = 0; u < 2; ++u) {
        const int group = 2 * i + u;
        const GroupScale s[2] = {group_scale(__byte_perm(bytes[0], 0, 0x4040 + 0x0101 * group)),
                                 group_scale(__byte_perm(bytes[1], 0, 0x4040 + 0x0101 * group))};
#pragma unroll
        for (int high = 0; high < 2; ++high) {
          const CodePairs a = nibble_neighbours(r[2 * u] >> (4 * high) & 0x0f0f0f0fU, s[0]);
          const CodePairs b = nibble_neighbours(r[2 * u + 1] >> (4 * high) & 0x0f0f0f0fU, s[1]);
          add(2 * group + high, {a.first, b.first, a.second, b.second});
        }
      }
    }
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      std::uint32_t r[4];
      ldmatrix4(r, row + quarter * 128 + i * 32 + lane / 16 * 16);
#pragma unroll
      for (int u = 0; u < 2; ++u) {
        const CodePairs a = neighbours<kCodec>(r[2 * u]), b = neighbours<kCodec>(r[2 * u + 1]);
        add(2 * i + u, {a.first, b.first, a.second, b.second});
      }
    }
  }
  {
    std::uint32_t r[4];
    ldmatrix4(r, row + kRotaryOffset<kCodec> + quarter * 16);
    CodePairs a, b;
    if constexpr (kIsFour<kCodec>) {
      a = {int8_pair(__byte_perm(r[0], 0, 0x4140)), int8_pair(__byte_perm(r[0], 0, 0x4342))};
      b = {int8_pair(__byte_perm(r[1], 0, 0x4140)), int8_pair(__byte_perm(r[1], 0, 0x4342))};
    } else {
      a = neighbours<KvCodec::kInt8>(r[0]), b = neighbours<KvCodec::kInt8>(r[1]);
    }
    const std::uint32_t v[4] = {a.first, b.first, a.second, b.second};
#pragma unroll
    for (int j = 0; j < kN8; ++j) code_product<kCodec>(rotary[j], v, query.q[8][j][0], query.q[8][j][1]);
  }
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int token = tokens16 + g + 8 * h;
    const float of_rotary = scales.rotary[quarter][token], of_latent = kIsHalf<kCodec> ? scales.latent[token] : 1.0F;
#pragma unroll
    for (int j = 0; j < kN8; ++j) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        float s = fmaf(rotary[j][2 * h + e], of_rotary, latent[j][2 * h + e] * of_latent);
        if constexpr (kIsHalf<kCodec>) s *= query.inverse[j][e];
        plane[8 * j + 2 * t + e][token] = s;
      }
    }
  }
}

// A warp's pairs (warp, warp + 8 …) in a tile, a lane a token.
template <KvCodec kCodec, int kN8>
struct Softmax {
  int sees_begin[kN8], sees_end[kN8], top[kN8];
  float sum[kN8];

  __device__ __forceinline__ void start(const FewArgs& a, const Unit& u, const Pieces& p, int warp) {
#pragma unroll
    for (int j = 0; j < kN8; ++j) {
      const int pair = warp + 8 * j, row = (u.tile * 8 * kN8 + pair) / a.heads;
      sees_end[j] = pair < p.pairs ? u.context - u.rows + row + 1 : 0;
      sees_begin[j] = a.cache.window > 0 ? max(0, sees_end[j] - a.cache.window) : 0;
      top[j] = kNothing;
      sum[j] = 0;
    }
  }
  __device__ __forceinline__ void weigh(const float (&scores)[4][8 * kN8][kScoreStride], const RowScales& scales,
                                        int first_token, Slot<8 * kN8>& slot, int warp, int lane) {
    const int token = first_token + lane;
    const float log_scale = kIsHalf<kCodec> ? scales.log_latent[lane] : 0.0F;
    float v[kN8];
    int m[kN8];
#pragma unroll
    for (int j = 0; j < kN8; ++j) {
      const int pair = warp + 8 * j;
      v[j] = ((scores[0][pair][lane] + scores[1][pair][lane]) + (scores[2][pair][lane] + scores[3][pair][lane])) *
             kScoreLog2;
      const bool seen = token >= sees_begin[j] && token < sees_end[j];
      m[j] = seen ? __float2int_ru(v[j] + log_scale) : kNothing;
      if (!seen) v[j] = -INFINITY;
    }
#pragma unroll
    for (int j = 0; j < kN8; ++j) m[j] = max(top[j], __reduce_max_sync(0xffffffffU, m[j]));
#pragma unroll
    for (int j = 0; j < kN8; ++j) {
      // Where nothing is seen so far, m is far below: every weight is 2^-inf = 0 and the factor 2^0.
      const float factor = power_of_two(static_cast<float>(top[j] - m[j])), to = v[j] - static_cast<float>(m[j]);
      top[j] = m[j];
      std::uint16_t bits;
      if constexpr (!kIsHalf<kCodec>) {
        const __nv_bfloat16 p = __float2bfloat16_rn(power_of_two(to));
        sum[j] = sum[j] * factor + __bfloat162float(p);
        bits = __bfloat16_as_ushort(p);
      } else {
        sum[j] = sum[j] * factor + power_of_two(to);
        const float scaled = v[j] == -INFINITY ? 0.0F : power_of_two(to + log_scale);  // an unowned row's may be NaN
        bits = __half_as_ushort(__float2half_rn(scaled));
      }
      *reinterpret_cast<std::uint16_t*>(slot.weights + (warp + 8 * j) * kWeightStride + lane * 2) = bits;
      if (lane == 0) slot.factors[warp + 8 * j] = factor;
    }
  }
  __device__ __forceinline__ void finish(Slot<8 * kN8>& slot, int warp, int lane) const {
#pragma unroll
    for (int j = 0; j < kN8; ++j) {
      const float all = warp_sum(sum[j]);
      if (lane == 0) slot.maxima[warp + 8 * j] = static_cast<float>(top[j]), slot.sums[warp + 8 * j] = all;
    }
  }
};

template <KvCodec kCodec, int kN8>
__device__ __forceinline__ void score_steps(const FewArgs& a, const Share& w, Memory<kCodec, kN8>& m, int warp,
                                            int lane) {
  using M = Memory<kCodec, kN8>;
  constexpr int kScales = is_short(kCodec) ? 4 : 1;
  Ring<M::kStages> arriving, scored;
  Ring<kSlots> slot;
  slot.phase = 1;
  const int tokens16 = warp % 2 * 16, quarter = warp / 2;
  for (int at = w.begin; at < w.end;) {
    const Unit u = unit_of(a.cache, a.heads, M::kPairs, m.work, at);
    const Pieces pieces = pieces_of(u, w.total, w.n, a.heads, M::kPairs);
    const int n_steps = min(w.end, u.first + u.steps) - at, first_token = u.token(at);
    Queries<kCodec, kN8> query;
    query.load(a.query + pieces.global_pair * kRowWidth, pieces.pairs, quarter, lane);
    Softmax<kCodec, kN8> softmax;
    softmax.start(a, u, pieces, warp);
    for (int i = is_short(kCodec) ? -2 : -1; i < n_steps; ++i) {
      const int reading = i + 2, scoring = i + 1;
      if constexpr (is_short(kCodec)) {
        if (reading < n_steps) {
          barrier_wait(shared_address(&m.full[arriving.at]), arriving.phase);
          read_scales<kCodec, M::kRow>(m.stages[arriving.at], warp, lane, m.scales[reading % kScales]);
          arriving.next();
        }
      }
      if (scoring >= 0 && scoring < n_steps) {
        if constexpr (!is_short(kCodec)) barrier_wait(shared_address(&m.full[scored.at]), scored.phase);
        score<kCodec, kN8>(m.stages[scored.at], query, m.scales[scoring % kScales], m.scores[scoring % 2][quarter],
                           tokens16, quarter, lane);
        scored.next();
      }
      if (i >= 0) {
        barrier_wait(shared_address(&m.used[slot.at]), slot.phase);
        softmax.weigh(m.scores[i % 2], m.scales[i % kScales], first_token + i * kTokens, m.slots[slot.at], warp, lane);
        if (i == n_steps - 1) softmax.finish(m.slots[slot.at], warp, lane);
        __syncwarp();
        if (lane == 0) barrier_arrive(shared_address(&m.weighed[slot.at]));
        slot.next();
      }
      sync_workers<kScorers>();
    }
    at += n_steps;
  }
}

#endif

}  // namespace glint::cuda
