#pragma once
// The scorers of attend_decode.cu: products of rows and queries, and their softmax. Two warpgroups take pages in turn;
// products go side by side, softmax follows the pages' order.

#include "backends/cuda/attend_tiles.cuh"

namespace glint::cuda {

constexpr float kScoreLog2 = 0.0625F * 1.4426950408889634F;  // 1/16, and to base 2
constexpr float kNothing = -0x1p20F;                         // the maximum of no scores

#if __CUDA_ARCH__ >= 900
__device__ __forceinline__ void sync_scorers() {
  asm volatile("bar.sync %0, %1;" ::"n"(kScorerBarrier), "n"(kScorerThreads) : "memory");
}
// Of one warpgroup, number `group`.
__device__ __forceinline__ void sync_group(int group) {
  asm volatile("bar.sync %0, 128;" ::"r"(kGroupBarrier + group) : "memory");
}
// Whether any of a warpgroup says so.
__device__ __forceinline__ bool any_of_group(int group, bool mine) {
  int any;
  asm volatile(
      "{\n.reg .pred p, q;\nsetp.ne.b32 p, %1, 0;\nbarrier.cta.red.or.pred q, %2, 128, p;\nselp.b32 %0, 1, 0, q;\n}"
      : "=r"(any)
      : "r"(static_cast<int>(mine)), "r"(kGroupBarrier + group)
      : "memory");
  return any != 0;
}
// Two 8×8 tiles turned; lane i < 16 gives the address of row i % 8 of tile i / 8.
__device__ __forceinline__ void stmatrix2_trans(std::uint32_t address, std::uint32_t r0, std::uint32_t r1) {
  asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};" ::"r"(address), "r"(r0), "r"(r1)
               : "memory");
}

// The tile's queries into shared memory, as the products want them: of short codecs the values of a block of 16 in the
// order 0, 1, 4, 5 … 2, 3, 6, 7 … (attend_codes.cuh), for FP16 times a power of two, whose inverse is returned. All
// scorers, when the last tile is scored.
template <KvCodec kCodec, int kN8>
__device__ __forceinline__ float load_queries(const std::uint16_t* query, int pairs, Memory<kCodec, kN8>& m,
                                              int thread) {
  constexpr int kPairs = 8 * kN8, kBlocks16 = kRowWidth / 16, kAll = kPairs * kBlocks16;
  const auto* from = reinterpret_cast<const uint4*>(query);
  // Loops stay loops: this code runs once a tile, and instructions that are not in the cache take longer than the work.
  float factor = 1, inverse = 1;
  if constexpr (kIsHalf<kCodec>) {
    // BF16 numbers from 2^-27 of the largest on are exact.
    std::uint32_t largest = 0;  // two BF16 numbers' bits without the signs, in order as integers are
#pragma unroll 4
    for (int at = thread; at < 2 * pairs * kBlocks16; at += kScorerThreads) {
      const uint4 v = from[at];
      largest = __vmaxu2(__vmaxu2(largest, v.x & 0x7fff7fffU), v.y & 0x7fff7fffU);
      largest = __vmaxu2(__vmaxu2(largest, v.z & 0x7fff7fffU), v.w & 0x7fff7fffU);
    }
    largest = __reduce_max_sync(0xffffffffU, max(largest & 0xffffU, largest >> 16));
    if (thread % 32 == 0) m.largest_query[thread / 32] = largest;
    sync_scorers();
    largest = 0;
#pragma unroll
    for (const std::uint32_t x : m.largest_query) largest = max(largest, x);
    const HalfUnit unit = half_unit(largest >> 7);
    factor = unit.by;
    inverse = unit.back;
  } else {
    sync_scorers();
  }
  const std::uint32_t to = shared_address(&m.query[0][0]);
#pragma unroll 1
  for (int at = thread; at < kAll; at += kScorerThreads) {
    const int pair = at / kBlocks16, block = at % kBlocks16;
    uint4 a{}, b{};
    if (pair < pairs) a = from[2 * at], b = from[2 * at + 1];
    if constexpr (is_short(kCodec)) {
      const uint4 even{a.x, a.z, b.x, b.z}, odd{a.y, a.w, b.y, b.w};
      a = even, b = odd;
    }
    if constexpr (kIsHalf<kCodec>) {
      const auto half = [&](std::uint32_t x) { return pack_half(bf16_low(x) * factor, bf16_high(x) * factor); };
      a = {half(a.x), half(a.y), half(a.z), half(a.w)};
      b = {half(b.x), half(b.y), half(b.z), half(b.w)};
    }
    const std::uint32_t row = to + block / 4 * (kPairs * 128) + pair * 128;
    sts128(row + ((2 * block ^ pair) & 7) * 16, a);
    sts128(row + (((2 * block + 1) ^ pair) & 7) * 16, b);
  }
  fence_async_proxy();
  sync_scorers();
  return inverse;
}

// Scores of a page: s[4 j + c] of this warp's token g (c < 2) or g + 8, pair 8 j + 2 t + c % 2. Of short codecs times
// `inverse`; of eight-bit ones the rows' scales as well.
template <KvCodec kCodec, int kN8>
__device__ __forceinline__ void score_page(float (&s)[4 * kN8], Memory<kCodec, kN8>& m, int stage, float inverse,
                                           float (&scale)[2], int warp, int lane) {
  constexpr int kPairs = 8 * kN8;
  const std::uint32_t rows = uniform(shared_address(m.stages[stage]));
  // Of block number `k` of 16 values.
  const std::uint64_t query = k_major(uniform(shared_address(&m.query[0][0])));
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
    // Batches of four products, whose operands the next batch's are made beside.
    constexpr int kBatch = kIsFour<kCodec> ? 2 : 4;  // units of a batch
#pragma unroll
    for (int b = 0; b < 8; ++b) {
      std::uint32_t v[4][4];
#pragma unroll
      for (int i = 0; i < kBatch / 2; ++i) {
        const int unit = b * kBatch + 2 * i;
        ldmatrix4(r, rows + (of_row ^ (unit % 8 * 16)) + unit / 8 * kBlockBytes);
#pragma unroll
        for (int k = 0; k < 4; ++k) side[k % 2].add(unit + k / 2, r[k]);
        if constexpr (kIsFour<kCodec>) {
          const unsigned char* of_groups = m.stages[stage];
          const std::uint32_t bytes[2] = {
              *reinterpret_cast<const std::uint16_t*>(of_groups + in_stage(16 * warp + g, kLatentWidth / 2) + unit),
              *reinterpret_cast<const std::uint16_t*>(of_groups + in_stage(16 * warp + g + 8, kLatentWidth / 2) +
                                                      unit)};
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
      for (int k = 0; k < 4; ++k) wgmma_narrow<kIsHalf<kCodec>>(s, v[k], of_query(4 * b + k), b + k > 0);
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
#pragma unroll
    for (float& x : s) x *= inverse;
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
                                       float (&tops)[8 * kN8], float (&factors)[8 * kN8], int group, int warp,
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
    sync_group(group);
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

// Warpgroup `group` of the scorers: the pages number group, group + 2 … of the block.
template <KvCodec kCodec, int kN8>
__device__ __forceinline__ void score_steps(const FewArgs& a, const Share& w, Memory<kCodec, kN8>& m, int thread) {
  using M = Memory<kCodec, kN8>;
  constexpr int kPairs = M::kPairs;
  const int group = thread / 128, warp = thread / 32 % 4, lane = thread % 32, g = lane / 4, t = lane % 4;
  int stage = group;
  std::uint32_t stage_phase = 0, taken_phase = 1, turn_phase = group == 0 ? 1 : 0;
  int tile = 0;
  for (int at = w.begin + group, start = w.begin; start < w.end; ++tile) {
    const Unit u = unit_of(a.cache, a.heads, kPairs, m.work, start);
    const Pieces pieces = pieces_of(u, w.total, w.n, a.heads, kPairs);
    const float inverse =
        load_queries<kCodec, kN8>(a.query + pieces.global_pair * kRowWidth, pieces.pairs, m, thread) * kScoreLog2;
    // Tokens that every row sees.
    const int all_from = a.cache.window > 0 ? max(0, u.context - a.cache.window) : 0, all_to = u.context - u.rows + 1;
    Softmax<kCodec, kN8> softmax;
    softmax.start();
    int version = start;  // of tops: beyond the page that it was made for
    Totals<kPairs>& totals = m.totals[tile % kTotals];

    const int stop = min(w.end, end_of(u));
    for (; at < stop; at += 2) {
      float s[4 * kN8];
      barrier_wait(shared_address(&m.full[stage]), stage_phase);
      float scale[2] = {1, 1};
      score_page<kCodec, kN8>(s, m, stage, inverse, scale, warp, lane);
      const int page_token = u.token(at), token = page_token + 16 * warp + g;
      if (page_token < all_from || page_token + kTokens > all_to) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {  // of a row that nobody owns it may be anything
          if (token + 8 * h < u.low || token + 8 * h >= u.context) scale[h] = 1;
        }
#pragma unroll
        for (int i = 0; i < 2 * kN8; ++i) {
          const int of_pair = (u.tile * kPairs + i / 2 * 8 + 2 * t + i % 2) / a.heads;
          const int to = of_pair < u.rows ? u.context - u.rows + of_pair + 1 : 0;
          const int from = a.cache.window > 0 ? to - a.cache.window : 0;
#pragma unroll
          for (int h = 0; h < 2; ++h) {
            float& x = s[i / 2 * 4 + 2 * h + i % 2];
            x = token + 8 * h >= from && token + 8 * h < to ? x : -INFINITY;
          }
        }
      }
      barrier_wait(shared_address(&m.taken[group]), taken_phase);
      barrier_wait(shared_address(&m.turn[group]), turn_phase);
      if (m.version > version) version = m.version, softmax.rebase(m.tops, lane);  // of this tile
      std::uint32_t p[kN8][2];
      float added[2 * kN8], largest;
      softmax.weigh(s, scale, p, added, largest);
      const bool grows = any_of_group(group, largest > kLargestWeight);
      if (grows) {
        softmax.grow(s, scale, m.maxima, m.tops, m.factors[group], group, warp, lane);
        version = at + 1;
        if (warp == 0 && lane == 0) m.version = version;
      }
      __syncwarp();
      if (lane == 0) barrier_arrive(shared_address(&m.turn[group ^ 1]));
      if (grows) softmax.weigh(s, scale, p, added, largest);
      const std::uint32_t to = shared_address(m.weights[group]) + lane % 8 * 128 +
                               static_cast<std::uint32_t>(((2 * warp + lane / 8 % 2) ^ lane) & 7) * 16;
#pragma unroll
      for (int j = 0; j < kN8; ++j) stmatrix2_trans(to + j * 1024, p[j][0], p[j][1]);
#pragma unroll
      for (int i = 0; i < 2 * kN8; ++i) softmax.sum[i] += added[i];
      if (warp == 0 && lane == 0) m.grown[group] = grows ? 1 : 0;
      if (at + 2 >= stop) {  // this warpgroup's last page of the tile
#pragma unroll
        for (int i = 0; i < 2 * kN8; ++i) {
          float sum = softmax.sum[i];
#pragma unroll
          for (int d = 4; d < 32; d *= 2) sum += __shfl_xor_sync(0xffffffffU, sum, d);
          const int pair = i / 2 * 8 + 2 * t + i % 2;
          if (g != 0) continue;
          totals.sums[group][warp][pair] = sum;
          if (warp == 0) totals.tops[group][pair] = softmax.top[i];
          if (stop - start > 1) continue;  // the other one has pages as well
          totals.sums[group ^ 1][warp][pair] = 0;
          if (warp == 0) totals.tops[group ^ 1][pair] = softmax.top[i];
        }
      }
      fence_async_proxy();
      __syncwarp();
      if (lane == 0) barrier_arrive(shared_address(&m.weighed[group]));
      taken_phase ^= 1U, turn_phase ^= 1U;
      stage += 2;
      if (stage >= M::kStages) stage -= M::kStages, stage_phase ^= 1U;
    }
    start = stop;
  }
}
#endif

}  // namespace glint::cuda
