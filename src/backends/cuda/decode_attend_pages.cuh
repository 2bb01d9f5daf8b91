#pragma once
// Attention within the decode step (decode_pieces.cuh), of all heads together over rows of the short codecs, a page of
// 64 tokens at a time (attend_page.cuh). The working warps are two warpgroups that take a piece's pages in turn and
// have nothing to do with each other until they are done: each scores its pages, weighs them, and adds them up in
// registers, 512 columns of 24 heads; while one waits the other one works. Then their two answers become one.
//
// Pages are brought by the loader, by tensor copies, into all of shared memory behind queries and weights: the ring is
// lent for it. Weights of the next stages come when attention is over; there is time, since its pieces are merged in a
// stage of their own.

#include <cuda.h>

#include "backends/cuda/attend_bytes.cuh"
#include "backends/cuda/decode_pieces.cuh"

namespace glint::cuda {

// From the first multiple of 1,024 at or behind x.
struct PagesLayout {
  static constexpr int kN8 = kStepHeadsMost / 8, kPairs = 8 * kN8;
  static constexpr int kQueryBlock = kPairs * 128;                            // 64 values of all heads
  static constexpr int kByteQueries = 5 * kByteBlock<kPairs>;                 // INT8
  static constexpr int kWeights = kByteQueries, kWeightBytes = kPairs * 128;  // of a warpgroup
  static_assert(kRowWidth / 64 * kQueryBlock <= kByteQueries);
  static constexpr int kNumbers = kWeights + 2 * kWeightBytes;  // PageNumbers
  static constexpr int kExchange = kNumbers + 4096;
  static constexpr int kExchangeBytes = kLatentWidth * kPairs * 4;
  static constexpr int kStages = kExchange, kStageMost = 5 * kPageRows * 128;
  // What lies before the ring, and all.
  static constexpr int kBytes = kExchange + kExchangeBytes + 1024, kAll = kStages + kPageStages * kStageMost + 1024;
  static_assert(kStages % 1024 == 0 && kWeights % 1024 == 0 && kWeightBytes % 1024 == 0);
};
struct PageNumbers {
  float by[PagesLayout::kPairs];         // what a head's scores are to be multiplied by
  float of_latent[PagesLayout::kPairs];  // of bytes: before that, of the latent part's
  float maxima[2][4][PagesLayout::kPairs], tops[2][PagesLayout::kPairs], factors[2][PagesLayout::kPairs];
  float sums[2][4][PagesLayout::kPairs];
};
static_assert(sizeof(PageNumbers) <= 4096);

}  // namespace glint::cuda

#if __CUDA_ARCH__ >= 900
namespace glint::cuda {

constexpr int kPageBarrier = 5;  // and the next, of the warpgroups
template <KvCodec kCodec>
inline constexpr bool kByBytes = kCodec == KvCodec::kInt8;  // scores are products of bytes (attend_bytes.cuh)

template <KvCodec kCodec>
inline constexpr int kStageBlocks = (kCacheRowBytes<kCodec> + 127) / 128;

__device__ __forceinline__ std::uint32_t pages_base() { return (step.s.x + 1023U) & ~1023U; }
// The first stages lie last, in the ring, whose memory is free early.
__device__ __forceinline__ std::uint32_t page_stage(int stage) {
  return pages_base() +
         static_cast<std::uint32_t>(PagesLayout::kStages + (kPageStages - 1 - stage) * PagesLayout::kStageMost);
}
// The parity of a stage's use number `use` in a layer; in each it has as many.
__device__ __forceinline__ std::uint32_t page_parity(int layer, int pages, int stage, int use) {
  return static_cast<std::uint32_t>(layer * ((pages - stage + kPageStages - 1) / kPageStages) + use) & 1U;
}

// ---- the loader -----------------------------------------------------------------------------------------------------

__device__ __forceinline__ void copy_page_block(std::uint32_t to, const CUtensorMap* pages, int byte, int page,
                                                int layer, std::uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4, %5}], "
      "[%6];" ::"r"(to),
      "l"(pages), "r"(byte), "r"(0), "r"(page), "r"(layer), "r"(barrier)
      : "memory");
}

// Brings a layer's pages, and waits until they are used. `ring`: a copy; all in it is used before the first page comes.
template <KvCodec kCodec>
__device__ __forceinline__ void load_pages(int layer, StepRing ring, const CUtensorMap* tensor) {
  const StepContext& c = step.s.context;
  const int pages = c.runs, lane = threadIdx.x % 32;
  if (pages == 0) return;
  for (int i = 0; i < step.s.slots; ++i) {
    barrier_wait(ring.empty(), ring.phase ^ 1);
    ring.advance();
  }
  const std::int32_t* table =
      step.s.p.cache.page_table + static_cast<std::int64_t>(c.seq) * step.s.p.cache.max_pages + c.token / kPageRows;
  const std::uint32_t full = shared_address(step.s.page_full), empty = shared_address(step.s.page_empty);
  bool ready = false;
  std::int32_t places = 0;  // of 32 pages
#pragma unroll 1
  for (int i = 0; i < pages; ++i) {
    if (i % 32 == 0) places = i + lane < pages ? __ldg(table + i + lane) : 0;
    const int stage = i % kPageStages, use = i / kPageStages;
    const std::uint32_t to = page_stage(stage);
    // x is not free before all are past its last use, and the newest row may still be written.
    if (!ready && (to < step.s.ring || use > 0 || c.token + (i + 1) * kPageRows >= c.end)) {
      barrier_wait(shared_address(&step.s.pages_ready), static_cast<std::uint32_t>(layer) & 1U);
      asm volatile("fence.proxy.async;" ::: "memory");
      ready = true;
    }
    if (use > 0) barrier_wait(empty + 8 * stage, page_parity(layer, pages, stage, use - 1));
    const int page = __shfl_sync(0xffffffffU, places, i % 32);
    if (lane == 0) {
      barrier_expect(full + 8 * stage, kStageBlocks<kCodec> * kBlockBytes);
#pragma unroll
      for (int b = 0; b < kStageBlocks<kCodec>; ++b)
        copy_page_block(to + b * kBlockBytes, tensor, 128 * b, page, layer, full + 8 * stage);
    }
    __syncwarp();
  }
  for (int stage = 0; stage < min(pages, kPageStages); ++stage)
    barrier_wait(empty + 8 * stage, page_parity(layer, pages, stage, (pages - 1 - stage) / kPageStages));
}

// ---- the working warps ----------------------------------------------------------------------------------------------

// The queries as score_page() wants them, and what a head's scores are to be multiplied by. Of heads that are not there
// one of both is zero: any bytes are finite, but other numbers may be none.
template <KvCodec kCodec, StepQueries kQueries>
__device__ __forceinline__ void stage_page_queries(std::uint32_t to, PageNumbers& n) {
  const int lane = threadIdx.x % 32;
  const auto put = [&](int h, const float(&v)[16], float2 rotary) {
    if constexpr (kByBytes<kCodec>) {
      float most = 0;
#pragma unroll
      for (const float x : v) most = fmaxf(most, fabsf(x));
      const auto inverse = [](float top) { return top > 0 ? __fdividef(kMostInteger, top) : 0.0F; };
      most = largest_of_warp(most);
      const float most_rotary =
          fmaxf(largest_of_warp(fmaxf(fabsf(rotary.x), fabsf(rotary.y))), fmaxf(most * 0x1p-20F, 0x1p-100F));
      const float by = inverse(most), by_rotary = inverse(most_rotary);
      const auto unit_at = [&](int unit, int low) {
        return to + static_cast<std::uint32_t>(unit / 8 * kByteBlock<PagesLayout::kPairs> +
                                               (low * PagesLayout::kPairs + h) * 128 + ((unit ^ h) & 7) * 16);
      };
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const HighLow w = high_low(integer_bits(v[4 * i], by), integer_bits(v[4 * i + 1], by),
                                   integer_bits(v[4 * i + 2], by), integer_bits(v[4 * i + 3], by));
        const std::uint32_t at = unit_at(8 * i + lane / 4, 0) + static_cast<std::uint32_t>(lane % 4 * 4);
        sts32(at, w.high);
        sts32(at + PagesLayout::kPairs * 128, w.low);
      }
      const HighLow r = high_low(integer_bits(rotary.x, by_rotary), integer_bits(rotary.y, by_rotary), 0, 0);
      const int group = lane / 8, unit = kLatentWidth / 16 + 2 * group;
      sts16(unit_at(unit + group % 2, 0) + static_cast<std::uint32_t>(lane % 8 * 2), r.high);
      sts16(unit_at(unit + group % 2, 1) + static_cast<std::uint32_t>(lane % 8 * 2), r.low);
      if (lane % 8 < 2) sts128(unit_at(unit + 1 - group % 2, lane % 8), {});
      if (lane == 0) {
        n.by[h] = most_rotary * (kStepScale / kMostInteger);
        n.of_latent[h] = __fdividef(most, most_rotary);
      }
      return;
    }
    HalfUnit unit{1, 1};
    if constexpr (kIsHalf<kCodec>) {
      float most = fmaxf(fabsf(rotary.x), fabsf(rotary.y));
#pragma unroll
      for (const float x : v) most = fmaxf(most, fabsf(x));
      unit = half_unit(__reduce_max_sync(0xffffffffU, __float_as_uint(most)) >> 23);
    }
    const auto pack = [&](float lo, float hi) {
      return kIsHalf<kCodec> ? pack_half(lo * unit.by, hi * unit.by) : pack_bf16(lo, hi);
    };
    const auto unit_at = [&](int block, int half) {  // block: of 16 values
      return to + static_cast<std::uint32_t>(block / 4 * PagesLayout::kQueryBlock + h * 128 +
                                             ((2 * (block % 4) + half) ^ (h & 7)) * 16);
    };
#pragma unroll
    for (int i = 0; i < 8; ++i)
      sts32(unit_at(8 * (i / 2) + lane / 4, i % 2) + static_cast<std::uint32_t>(lane % 4 * 4),
            pack(v[2 * i], v[2 * i + 1]));
    sts32(unit_at(kLatentWidth / 16 + lane / 8, lane % 2) + static_cast<std::uint32_t>(lane % 8 / 2 * 4),
          pack(rotary.x, rotary.y));
    if (lane == 0) n.by[h] = unit.back * kStepScale;
  };
  for_queries<kCodec, PagesLayout::kN8, kQueries>(put);
  const int tid = static_cast<int>(threadIdx.x), heads = step.s.context.heads;
  if (tid < PagesLayout::kPairs && tid >= heads) n.by[tid] = n.of_latent[tid] = 0;
  if constexpr (!kByBytes<kCodec>) {
#pragma unroll 1
    for (int i = tid; i < kRowWidth / 64 * PagesLayout::kPairs * 8; i += kStepThreads) {
      if (i / 8 % PagesLayout::kPairs >= heads) sts128(to + static_cast<std::uint32_t>(i * 16), {});
    }
  }
}

// Rows that nobody owns may be no numbers in FP8, and NaN times a weight of zero is NaN: they are cleared. A warpgroup.
__device__ __forceinline__ void clear_page(const StepContext& c, std::uint32_t rows, int token, int barrier) {
  constexpr int kUnits = 8 * kStageBlocks<KvCodec::kFp8>;
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x % 128); i < kPageRows * kUnits; i += 128) {
    const int row = i / kUnits;
    if (!sees(c, token + row)) sts128(rows + in_stage(row, 16 * (i - row * kUnits)), {});
  }
  fence_async_proxy();
  sync_group(barrier);
}

// A piece's sums, of which each warpgroup stores half the columns: it takes the other one's sums of them, and gives its
// own of the rest. The other four tiles are chosen, not branched to: this code runs once.
template <int kN8>
__device__ __forceinline__ void store_page_sums(const StepContext& c, const float (&out)[8][4 * kN8],
                                                std::uint32_t exchange, const PageNumbers& n, int group) {
  const int thread = threadIdx.x % 128, warp = thread / 32, lane = thread % 32, g = lane / 4, t = lane % 4;
  const std::uint32_t places = exchange + static_cast<std::uint32_t>(thread * 16), half = 4 * kN8 * 128 * 16;
  const bool first = group == 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int j = 0; j < kN8; ++j) {
      const auto given = [&](int k) { return __float_as_uint(first ? out[4 + i][4 * j + k] : out[i][4 * j + k]); };
      sts128(places + (first ? half : 0) + static_cast<std::uint32_t>((i * kN8 + j) * 128 * 16),
             {given(0), given(1), given(2), given(3)});
    }
  }
  step_sync();
  const std::uint32_t from = places + (first ? 0 : half);
  float* const to = step.s.p.partial + piece_row(c.piece, 2 * t) * kLatentWidth + warp * 128 + (first ? 0 : 64) + 2 * g;
#pragma unroll
  for (int j = 0; j < kN8; ++j) {
    float mine[2], other[2];
    const float2 a = *reinterpret_cast<const float2*>(&n.tops[group][8 * j + 2 * t]),
                 b = *reinterpret_cast<const float2*>(&n.tops[group ^ 1][8 * j + 2 * t]);
    const float top[2] = {fmaxf(a.x, b.x), fmaxf(a.y, b.y)};
    mine[0] = power_of_two(a.x - top[0]), mine[1] = power_of_two(a.y - top[1]);
    other[0] = power_of_two(b.x - top[0]), other[1] = power_of_two(b.y - top[1]);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint4 v = lds128(from + static_cast<std::uint32_t>((i * kN8 + j) * 128 * 16));
      const float theirs[4] = {__uint_as_float(v.x), __uint_as_float(v.y), __uint_as_float(v.z), __uint_as_float(v.w)};
      const auto sum = [&](int k) {
        const float own = first ? out[i][4 * j + k] : out[4 + i][4 * j + k];
        return fmaf(own, mine[k % 2], theirs[k] * other[k % 2]);
      };
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        if (8 * j + 2 * t + e < c.heads)
          *reinterpret_cast<float2*>(to + (8 * j + e) * kLatentWidth + 16 * i) = {sum(e), sum(2 + e)};
      }
    }
  }
}

// This block's piece.
template <KvCodec kCodec, StepQueries kQueries>
__device__ __forceinline__ void attend_pages(int layer) {
  using Layout = PagesLayout;
  constexpr int kN8 = Layout::kN8, kMine = 2 * kN8;
  const StepContext& c = step.s.context;
  if (c.runs == 0) return grid_wait();
  fence_async_proxy();  // what this thread wrote to x
  grid_wait();          // for the queries, and for this token's row of the cache
  if (threadIdx.x == 0) barrier_arrive(shared_address(&step.s.pages_ready));
  const std::uint32_t base = pages_base();
  const auto pointer = [&](int at) {
    return static_cast<unsigned char*>(__cvta_shared_to_generic(base + static_cast<std::uint32_t>(at)));
  };
  PageNumbers& n = *reinterpret_cast<PageNumbers*>(pointer(Layout::kNumbers));
  stage_page_queries<kCodec, kQueries>(base, n);
  fence_async_proxy();
  step_sync();
  const int group = static_cast<int>(threadIdx.x / 128), warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32,
            g = lane / 4, t = lane % 4, barrier = kPageBarrier + group;
  const std::uint32_t weights = base + static_cast<std::uint32_t>(Layout::kWeights + group * Layout::kWeightBytes);
  float out[8][4 * kN8] = {};
  Softmax<kCodec, kN8> softmax;
  softmax.start();
#pragma unroll 1
  for (int i = group; i < c.runs; i += 2) {
    const int stage = i % kPageStages, first = c.token + i * kPageRows;
    const std::uint32_t rows = page_stage(stage);
    const auto* const at = static_cast<const unsigned char*>(__cvta_shared_to_generic(rows));
    barrier_wait(shared_address(&step.s.page_full[stage]), page_parity(layer, c.runs, stage, i / kPageStages));
    const bool whole = first >= c.begin && first + kPageRows <= c.end;
    if (kCodec == KvCodec::kFp8 && !whole) clear_page(c, rows, first, barrier);
    float s[4 * kN8], scale[2] = {1, 1};
    if constexpr (kByBytes<kCodec>) {
      score_bytes(s, at, pointer(0), n.of_latent, scale, warp, lane);
    } else {
      score_page<kCodec, kN8, kIsFour<kCodec> ? 4 : 2>(s, at, pointer(0), scale, warp, lane);
    }
#pragma unroll
    for (int j = 0; j < kN8; ++j) {
      const float2 by = *reinterpret_cast<const float2*>(&n.by[8 * j + 2 * t]);
      s[4 * j] *= by.x, s[4 * j + 1] *= by.y, s[4 * j + 2] *= by.x, s[4 * j + 3] *= by.y;
    }
    if (!whole) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        if (sees(c, first + 16 * warp + g + 8 * h)) continue;
        scale[h] = 1;  // of a row that nobody owns it may be anything
#pragma unroll
        for (int k = 0; k < kMine; ++k) s[k / 2 * 4 + 2 * h + k % 2] = -INFINITY;
      }
    }
    std::uint32_t p[kN8][2];
    float added[kMine], largest;
    bool grows = false;
#pragma unroll 1
    while (true) {  // once, or twice
      softmax.weigh(s, scale, p, added, largest);
      // All are past their products of the last page then.
      if (grows || !any_of_group(barrier, largest > kLargestWeight)) break;
      softmax.grow(s, scale, n.maxima[group], n.tops[group], n.factors[group], barrier, warp, lane);
      grows = true;
    }
    const std::uint32_t to =
        weights + lane % 8 * 128 + static_cast<std::uint32_t>(((2 * warp + lane / 8 % 2) ^ lane) & 7) * 16;
#pragma unroll
    for (int j = 0; j < kN8; ++j) stmatrix2_trans(to + j * 1024, p[j][0], p[j][1]);
#pragma unroll
    for (int k = 0; k < kMine; ++k) softmax.sum[k] += added[k];
    fence_async_proxy();
    sync_group(barrier);
    if (grows && i >= 2) {
#pragma unroll
      for (int j = 0; j < kN8; ++j) {
        const float2 factor = *reinterpret_cast<const float2*>(&n.factors[group][8 * j + 2 * t]);
#pragma unroll
        for (int k = 0; k < 8; ++k) {
          out[k][4 * j] *= factor.x, out[k][4 * j + 1] *= factor.y;
          out[k][4 * j + 2] *= factor.x, out[k][4 * j + 3] *= factor.y;
        }
      }
    }
    sum_page<kCodec, kN8, 8>(out, at, weights, warp, lane);
    __syncwarp();
    if (lane == 0) barrier_arrive(shared_address(&step.s.page_empty[stage]));
  }

#pragma unroll
  for (int i = 0; i < kMine; ++i) {
    float sum = softmax.sum[i];
#pragma unroll
    for (int d = 4; d < 32; d *= 2) sum += __shfl_xor_sync(0xffffffffU, sum, d);
    const int pair = i / 2 * 8 + 2 * t + i % 2;
    if (g != 0) continue;
    n.sums[group][warp][pair] = sum;
    if (warp == 0) n.tops[group][pair] = softmax.top[i];
  }
  step_sync();  // all pages are used: the exchange lies over those that were in x
  if (static_cast<int>(threadIdx.x) < c.heads) {
    const int pair = static_cast<int>(threadIdx.x);
    float sum = 0, top = fmaxf(n.tops[0][pair], n.tops[1][pair]);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      sum += ((n.sums[i][0][pair] + n.sums[i][1][pair]) + (n.sums[i][2][pair] + n.sums[i][3][pair])) *
             power_of_two(n.tops[i][pair] - top);
    }
    step.s.p.partial_ml[piece_row(c.piece, pair)] = {top, sum};
  }
  store_page_sums<kN8>(c, out, base + static_cast<std::uint32_t>(Layout::kExchange), n, group);
}

}  // namespace glint::cuda
#endif
