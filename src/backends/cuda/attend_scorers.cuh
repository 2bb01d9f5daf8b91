#pragma once
// The scorers of attend_decode.cu: products of rows and queries, and their softmax. Two warpgroups take pages in turn;
// products go side by side, softmax follows the pages' order.

#include "backends/cuda/attend_tiles.cuh"

namespace glint::cuda {

#if __CUDA_ARCH__ >= 900
__device__ __forceinline__ void sync_scorers() {
  asm volatile("bar.sync %0, %1;" ::"n"(kScorerBarrier), "n"(kScorerThreads) : "memory");
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
      score_page<kCodec, kN8>(s, m.stages[stage], m.query[0], scale, warp, lane);
      if constexpr (is_short(kCodec)) {
#pragma unroll
        for (float& x : s) x *= inverse;
      }
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
      const bool grows = any_of_group(kGroupBarrier + group, largest > kLargestWeight);
      if (grows) {
        softmax.grow(s, scale, m.maxima, m.tops, m.factors[group], kGroupBarrier + group, warp, lane);
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
