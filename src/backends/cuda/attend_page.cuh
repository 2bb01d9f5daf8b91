#pragma once
// A page of 64 tokens in decoding's attention: scores, softmax and sums by warpgroups. Tokens, or latent columns, stand
// where a product has its 64 rows, (row, head) pairs where it has its columns by eights. Of two kernels:
// attend_decode.cu and the decode step (decode_attend_pages.cuh).

#include "backends/cuda/attend_codes.cuh"
#include "backends/cuda/wgmma_narrow.cuh"

namespace glint::cuda {

constexpr float kScoreLog2 = 0.0625F * 1.4426950408889634F;  // 1/16, and to base 2
constexpr float kNothing = -0x1p20F;                         // the maximum of no scores

#if __CUDA_ARCH__ >= 900
// The same in all lanes, and known to be: descriptors that are made of it stay in uniform registers.
__device__ __forceinline__ std::uint32_t uniform(std::uint32_t v) { return __shfl_sync(0xffffffffU, v, 0); }

// Of one warpgroup, whose barrier has this number.
__device__ __forceinline__ void sync_group(int barrier) { asm volatile("bar.sync %0, 128;" ::"r"(barrier) : "memory"); }
// Whether any of a warpgroup says so.
__device__ __forceinline__ bool any_of_group(int barrier, bool mine) {
  int any;
  asm volatile(
      "{\n.reg .pred p, q;\nsetp.ne.b32 p, %1, 0;\nbarrier.cta.red.or.pred q, %2, 128, p;\nselp.b32 %0, 1, 0, q;\n}"
      : "=r"(any)
      : "r"(static_cast<int>(mine)), "r"(barrier)
      : "memory");
  return any != 0;
}
// Two 8×8 tiles turned; lane i < 16 gives the address of row i % 8 of tile i / 8.
__device__ __forceinline__ void stmatrix2_trans(std::uint32_t address, std::uint32_t r0, std::uint32_t r1) {
  asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};" ::"r"(address), "r"(r0), "r"(r1)
               : "memory");
}

// Scores of the page at `stage`: s[4 j + c] of this warp's token g (c < 2) or g + 8, pair 8 j + 2 t + c % 2; of
// eight-bit codes times the rows' scales, which are left in `scale`. Queries lie in blocks of 64 values, K-major; of
// short codecs the values of a block of 16 in the order 0, 1, 4, 5 … 2, 3, 6, 7 … (attend_codes.cuh).
template <KvCodec kCodec, int kN8, int kProducts = 4>
__device__ __forceinline__ void score_page(float (&s)[4 * kN8], const unsigned char* stage,
                                           const unsigned char* queries, float (&scale)[2], int warp, int lane) {
  constexpr int kPairs = 8 * kN8;
  const std::uint32_t rows = uniform(shared_address(stage));
  // Of block number `k` of 16 values.
  const std::uint64_t query = k_major(uniform(shared_address(queries)));
  const auto of_query = [&](int k) { return further(query, k / 4 * (kPairs * 128) + k % 4 * 32); };
  if constexpr (!is_short(kCodec)) {
    const std::uint64_t of_rows = k_major(rows);
    wgmma_begin();
#pragma unroll
    for (int k = 0; k < kRowWidth / 16; ++k)
      wgmma_narrow<false>(s, further(of_rows, k / 4 * kBlockBytes + k % 4 * 32), of_query(k), k > 0);
    wgmma_commit();
    wgmma_wait<0>();
    hold(s);
  } else {
    const int g = lane / 4, row = 16 * warp + lane % 16;
    const std::uint32_t of_row = in_stage(row, 16 * (lane / 16));  // units further: turned by their number
    std::uint32_t r[4];
    SideWord<kCodec> side[2];
    // Batches of products, whose operands the next batch's are made beside.
    constexpr int kBatch = kIsFour<kCodec> ? kProducts / 2 : kProducts;  // units of a batch
#pragma unroll
    for (int b = 0; b < kLatentWidth / 16 / kProducts; ++b) {
      std::uint32_t v[kProducts][4];
#pragma unroll
      for (int i = 0; i < kBatch / 2; ++i) {
        const int unit = b * kBatch + 2 * i;
        ldmatrix4(r, rows + (of_row ^ (unit % 8 * 16)) + unit / 8 * kBlockBytes);
#pragma unroll
        for (int k = 0; k < 4; ++k) side[k % 2].add(unit + k / 2, r[k]);
        if constexpr (kIsFour<kCodec>) {
          const std::uint32_t bytes[2] = {
              *reinterpret_cast<const std::uint16_t*>(stage + in_stage(16 * warp + g, kLatentWidth / 2) + unit),
              *reinterpret_cast<const std::uint16_t*>(stage + in_stage(16 * warp + g + 8, kLatentWidth / 2) + unit)};
#pragma unroll
          for (int u = 0; u < 2; ++u) {
            const GroupScale scale[2] = {group_scale(__byte_perm(bytes[0], 0, 0x4040 + 0x0101 * u)),
                                         group_scale(__byte_perm(bytes[1], 0, 0x4040 + 0x0101 * u))};
#pragma unroll
            for (int h = 0; h < 2; ++h) {
              make_operand(v[2 * u + h], nibble_neighbours(r[2 * u] >> (4 * h) & 0x0f0f0f0fU, scale[0]),
                           nibble_neighbours(r[2 * u + 1] >> (4 * h) & 0x0f0f0f0fU, scale[1]));
            }
          }
        } else {
#pragma unroll
          for (int u = 0; u < 2; ++u)
            make_operand(v[2 * i + u], neighbours<kCodec>(r[2 * u]), neighbours<kCodec>(r[2 * u + 1]));
        }
      }
      wgmma_begin();
#pragma unroll
      for (int k = 0; k < kProducts; ++k)
        wgmma_narrow<kIsHalf<kCodec>>(s, v[k], of_query(kProducts * b + k), b + k > 0);
      wgmma_commit();
      wgmma_wait<1>();
    }
    const RowScales of[2] = {side[0].scales(lane % 4), side[1].scales(lane % 4)};
    scale[0] = of[0].latent, scale[1] = of[1].latent;
    wgmma_wait<0>();
    hold(s);
    if constexpr (!kIsFour<kCodec>) {
#pragma unroll
      for (int i = 0; i < 4 * kN8; ++i) s[i] *= scale[i / 2 % 2];
    }
    // Of the rotary part two blocks at a time, whose rows have scales of their own.
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      std::uint32_t v[2][4];
      float rotary[2][4 * kN8];
      if constexpr (kIsFour<kCodec>) {
        ldmatrix4(r, rows + in_stage(row, kRotaryOffset<kCodec> + 16 * (2 * i + lane / 16)));
      } else {
        ldmatrix4(r, rows + (of_row ^ (32 * i)) + kRotaryOffset<kCodec> / 128 * kBlockBytes);
      }
#pragma unroll
      for (int u = 0; u < 2; ++u)
        make_operand(v[u], rotary_neighbours<kCodec>(r[2 * u]), rotary_neighbours<kCodec>(r[2 * u + 1]));
      wgmma_begin();
#pragma unroll
      for (int u = 0; u < 2; ++u)
        wgmma_narrow<kIsHalf<kCodec>>(rotary[u], v[u], of_query(kLatentWidth / 16 + 2 * i + u), false);
      wgmma_commit();
      wgmma_wait<0>();
#pragma unroll
      for (int u = 0; u < 2; ++u) {
        hold(rotary[u]);
#pragma unroll
        for (int k = 0; k < 4 * kN8; ++k) s[k] = fmaf(rotary[u][k], of[k / 2 % 2].rotary[2 * i + u], s[k]);
      }
    }
  }
}

// A tile's softmax: of this thread's pairs 8 j + 2 t + e, number 2 j + e, the whole number that weights are relative
// to, and the sum of its weights. That number grows only when a weight would exceed kLargestWeight: then it becomes
// the largest score's next.
constexpr float kLargestWeight = 64;

template <KvCodec kCodec, int kN8>
struct Softmax {
  static constexpr int kMine = 2 * kN8;
  // What a score is still to be multiplied by.
  static constexpr float kFactor = is_short(kCodec) ? 1.0F : kScoreLog2;
  float top[kMine], sum[kMine];

  __device__ __forceinline__ void start() {
#pragma unroll
    for (int i = 0; i < kMine; ++i) top[i] = kNothing, sum[i] = 0;
  }
  // p: weights as products take them, in pairs of 2 t and 2 t + 1: of token g, of token g + 8. `scale`: of these rows.
  __device__ __forceinline__ void weigh(const float (&s)[4 * kN8], const float (&scale)[2], std::uint32_t (&p)[kN8][2],
                                        float (&added)[kMine], float& largest) const {
    largest = 0;
#pragma unroll
    for (int j = 0; j < kN8; ++j) {
      added[2 * j] = added[2 * j + 1] = 0;
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float w[2];
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const float x = power_of_two(fmaf(s[4 * j + 2 * h + e], kFactor, -top[2 * j + e]));
          w[e] = kIsHalf<kCodec> ? x * scale[h] : x;
          largest = fmaxf(largest, w[e]);
          if constexpr (kIsHalf<kCodec>) added[2 * j + e] += x;
        }
        p[j][h] = kIsHalf<kCodec> ? pack_half(w[0], w[1]) : pack_bf16(w[0], w[1]);
        if constexpr (!kIsHalf<kCodec>) added[2 * j] += bf16_low(p[j][h]), added[2 * j + 1] += bf16_high(p[j][h]);
      }
    }
  }
  // From now on relative to other numbers.
  __device__ __forceinline__ void rebase(const float (&tops)[8 * kN8], int lane) {
#pragma unroll
    for (int i = 0; i < kMine; ++i) {
      const float last = top[i];
      top[i] = tops[i / 2 * 8 + 2 * (lane % 4) + i % 2];
      sum[i] *= power_of_two(last - top[i]);
    }
  }
  // New numbers for all pairs to `tops`, the sums' factors to `factors`. A warpgroup.
  __device__ __forceinline__ void grow(const float (&s)[4 * kN8], const float (&scale)[2], float (&maxima)[4][8 * kN8],
                                       float (&tops)[8 * kN8], float (&factors)[8 * kN8], int barrier, int warp,
                                       int lane) {
    const int g = lane / 4, t = lane % 4;
    float log_scale[2] = {};
    if constexpr (kIsHalf<kCodec>) log_scale[0] = __log2f(scale[0]), log_scale[1] = __log2f(scale[1]);
#pragma unroll
    for (int i = 0; i < kMine; ++i) {
      const int at = i / 2 * 4 + i % 2;
      float x = fmaxf(fmaf(s[at], kFactor, log_scale[0]), fmaf(s[at + 2], kFactor, log_scale[1]));
#pragma unroll
      for (int d = 4; d < 32; d *= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffU, x, d));
      if (g == 0) maxima[warp][i / 2 * 8 + 2 * t + i % 2] = x;
    }
    sync_group(barrier);
#pragma unroll
    for (int i = 0; i < kMine; ++i) {
      const int pair = i / 2 * 8 + 2 * t + i % 2;
      const float x = fmaxf(fmaxf(maxima[0][pair], maxima[1][pair]), fmaxf(maxima[2][pair], maxima[3][pair]));
      const float last = top[i];
      top[i] = fmaxf(last, ceilf(x));
      // Where nothing is seen so far, it is far below: every weight is 2^-inf = 0 and the factor 2^0.
      const float factor = power_of_two(last - top[i]);
      sum[i] *= factor;
      if (warp == 0 && g == 0) factors[pair] = factor, tops[pair] = top[i];
    }
  }
};

// out += rowsᵀ · weights; a warp has so many times 16 columns of short codecs. Row 16 w + r of product i is column
// column_of(i) + r for BF16; of short codecs rows g and g + 8 are columns 2 g and 2 g + 1 (attend_codes.cuh).
template <KvCodec kCodec, int kTiles = 4>
__device__ __forceinline__ int column_of(int i, int warp) {
  return is_short(kCodec) ? warp * (16 * kTiles) + 16 * i : warp / 4 * 256 + 64 * i + warp % 4 * 16;
}

template <KvCodec kCodec, int kN8, int kTiles>
__device__ __forceinline__ void sum_page(float (&out)[kTiles][4 * kN8], const unsigned char* stage,
                                         std::uint32_t weights, int warp, int lane) {
  // Where registers allow it a batch of products goes on while the next one's operands are made.
  constexpr bool kAhead = kTiles > 4;
  constexpr int kUnderWay = kAhead && kCodec == KvCodec::kInt8 ? 1 : 0;
  const std::uint32_t rows = uniform(shared_address(stage));
  const std::uint64_t of_weights = k_major(uniform(weights));
  // A lane's row; units further: turned by their number.
  const std::uint32_t of_lane = in_stage(lane, (kIsFour<kCodec> ? 8 : 16) * kTiles * warp);
  if constexpr (!is_short(kCodec)) {
    static_assert(kTiles == 4);
    const std::uint64_t of_rows = mn_major(rows + uniform(warp / 4) * (4 * kBlockBytes), kBlockBytes);
    wgmma_begin();
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int k = 0; k < kPageRows / 16; ++k)
        wgmma_narrow<true>(out[i], further(of_rows, i * kBlockBytes + k * 2048), further(of_weights, 32 * k), true);
    }
    wgmma_commit();
  } else if constexpr (kIsFour<kCodec>) {
    const int t = lane % 4;
    constexpr int kUnits = kTiles / 2;
    using Bytes = std::conditional_t<kUnits == 2, std::uint16_t, std::uint32_t>;
    const auto of = [&](int row) {  // bytes of this warp's groups
      return std::uint32_t{*reinterpret_cast<const Bytes*>(stage + in_stage(row, kLatentWidth / 2) + kUnits * warp)};
    };
    std::uint32_t scales[8][kUnits / 2];  // of tokens 8 i + 2 t and the next: of two groups
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const std::uint32_t a = of(8 * i + 2 * t), b = of(8 * i + 2 * t + 1);
      scales[i][0] = __byte_perm(a, b, 0x5410);
      if constexpr (kUnits == 4) scales[i][1] = __byte_perm(a, b, 0x7632);
    }
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
      std::uint32_t r[2][4];
#pragma unroll
      for (int tokens32 = 0; tokens32 < 2; ++tokens32)
        ldmatrix4_trans(r[tokens32], rows + (of_lane ^ (16 * u)) + 32 * 128 * tokens32);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        std::uint32_t v[4][4];
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          const GroupScale s0 = group_scale(scales[2 * k][u / 2] >> (8 * (u % 2)) & 0x00ff00ffU),
                           s1 = group_scale(scales[2 * k + 1][u / 2] >> (8 * (u % 2)) & 0x00ff00ffU);
          const std::uint32_t a = r[k / 2][k % 2 * 2] >> (4 * h), b = r[k / 2][k % 2 * 2 + 1] >> (4 * h);
          v[k][0] = nibble_halves(a, s0), v[k][1] = nibble_halves(a >> 8, s0);
          v[k][2] = nibble_halves(b, s1), v[k][3] = nibble_halves(b >> 8, s1);
        }
        wgmma_begin();
#pragma unroll
        for (int k = 0; k < 4; ++k) wgmma_narrow<false>(out[2 * u + h], v[k], further(of_weights, 32 * k), true);
        wgmma_commit();
        wgmma_wait<kUnderWay>();
      }
    }
  } else {
    std::uint32_t r[2][2][4];  // of a tile and the next
    const auto load = [&](int i) {
#pragma unroll
      for (int tokens32 = 0; tokens32 < 2; ++tokens32)
        ldmatrix4_trans(r[i % 2][tokens32], rows + (of_lane ^ (16 * i)) + 32 * 128 * tokens32);
    };
    if constexpr (kAhead) load(0);
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
      std::uint32_t v[4][4];
      if (!kAhead) load(i);
      if (kAhead && i + 1 < kTiles) load(i + 1);
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const std::uint32_t* of = r[i % 2][k / 2] + k % 2 * 2;
        const CodePairs a = alternates<kCodec>(of[0]), b = alternates<kCodec>(of[1]);
        v[k][0] = a.first, v[k][1] = a.second, v[k][2] = b.first, v[k][3] = b.second;
      }
      wgmma_begin();
#pragma unroll
      for (int k = 0; k < 4; ++k) wgmma_narrow<true>(out[i], v[k], further(of_weights, 32 * k), true);
      wgmma_commit();
      wgmma_wait<kUnderWay>();
    }
  }
  wgmma_wait<0>();
#pragma unroll
  for (int i = 0; i < kTiles; ++i) hold(out[i]);
}
#endif

}  // namespace glint::cuda
