#pragma once
// Pieces of a tile's context become its answer, within the kernel that made them. The blocks of a tile write their
// pieces, count themselves present, and once all are, each adds up its share of the answer, in the pieces' order: no
// launch for it, and the sums do not depend on who was last. All blocks of the kernel must be on the device at once.

#include "backends/cuda/attend_work.cuh"

namespace glint::cuda {

constexpr int kMergeThreads = 256, kMaxBlocks = kMaxPresent;
constexpr int kMergeFactors = kFewTile + 2 * kMaxBlocks, kMergePairs = kFewTile;

// Of attend_decode's kernels.
struct FewArgs {
  const std::uint16_t* query;
  CacheView cache;
  int heads, n_blocks;
  float* partial;  // [2 · n_blocks · pairs of a tile, 512]
  float2* partial_ml;
  unsigned* present;  // [n_blocks], zero between calls
  std::uint16_t* latent;
};
// With one block a multiprocessor at most: they wait for each other.
inline FewArgs few_args(const Launch& l, const Attend& j, int pairs_a_tile) {
  return {
      .query = static_cast<const std::uint16_t*>(j.query),
      .cache = j.cache,
      .heads = j.heads,
      .n_blocks = static_cast<int>(std::min<std::int64_t>({l.n_sms, kMaxBlocks, j.partial_rows / (2 * pairs_a_tile)})),
      .partial = j.partial,
      .partial_ml = j.partial_ml,
      .present = j.present,
      .latent = static_cast<std::uint16_t*>(j.latent)};
}

// Buffers that are filled and emptied in turn.
template <int kCount>
struct Ring {
  int at = 0;
  std::uint32_t phase = 0;
  __device__ __forceinline__ void next() {
    if (++at == kCount) at = 0, phase ^= 1U;
  }
};

// What merge_share keeps in shared memory.
struct MergeMemory {
  float4 sums[kMergeThreads];
  float factors[kMergeFactors];  // [pairs of the share][pieces]
  float inverse[kMergePairs];
};

// The pieces of a tile with `pairs` pairs: number i lies in the workspace's rows slot(i) · kPairs …
struct Pieces {
  int first, n;    // blocks first … first + n - 1
  int first_slot;  // of the first block: its second piece, unless its range begins with the tile
  int pairs;
  std::int64_t global_pair;

  __device__ int slot(int i) const { return i == 0 ? first_slot : 2 * (first + i); }
};

__device__ __forceinline__ Pieces pieces_of(const Unit& u, int total, int n, int heads, int pairs_a_tile) {
  Pieces p{};
  p.first = range_of(total, n, u.first);
  p.n = range_of(total, n, u.first + u.steps - 1) - p.first + 1;
  p.first_slot = 2 * p.first + (u.first <= range_begin(total, n, p.first) ? 0 : 1);
  p.pairs = min(pairs_a_tile, u.rows * heads - u.tile * pairs_a_tile);
  p.global_pair = static_cast<std::int64_t>(u.row0) * heads + u.tile * pairs_a_tile;
  return p;
}

#if __CUDA_ARCH__ >= 900
// Eight warps that have a barrier of their own.
template <int kBarrier = 1>
__device__ __forceinline__ void sync_workers() {
  asm volatile("bar.sync %0, 256;" ::"n"(kBarrier) : "memory");
}

// Each worker (number `thread` of 256), its part of a piece written.
template <int kBarrier = 1>
__device__ __forceinline__ void announce_piece(unsigned* present, const Pieces& p, int thread) {
  __threadfence();
  sync_workers<kBarrier>();
  if (thread == 0) atomicAdd(present + p.first, 1U);
}

// The workers of block `c`. present[first] counts up to n, then again up to 2 n, and is zero again.
template <int kPairs, int kBarrier = 1>
__device__ __forceinline__ void merge_share(const Pieces& p, int c, const float* partial, const float2* partial_ml,
                                            unsigned* present, std::uint16_t* latent, MergeMemory& m, int thread) {
  constexpr int kQuads = kLatentWidth / 4;
  const int lane = thread % 32, warp = thread / 32;
  const auto n = static_cast<unsigned>(p.n);
  if (thread == 0) {
    unsigned seen;
    do {
      asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(present + p.first) : "memory");
    } while (seen < n);
  }
  sync_workers<kBarrier>();
  // Quads of columns, counted over the pairs: this block's are [low, high).
  const int rank = c - p.first, all = p.pairs * kQuads;
  const int low = all * rank / p.n, high = all * (rank + 1) / p.n;
  const int pair0 = low / kQuads, pairs = high > low ? (high - 1) / kQuads - pair0 + 1 : 0;
  for (int k = warp; k < pairs; k += kMergeThreads / 32) {
    float2 ml[kMaxBlocks / 32];
    float top = -INFINITY, sum = 0;
#pragma unroll
    for (int i = 0; i < kMaxBlocks / 32; ++i) {
      ml[i] = {-INFINITY, 0};
      if (32 * i + lane < p.n) ml[i] = __ldcg(partial_ml + p.slot(32 * i + lane) * kPairs + pair0 + k);
      top = fmaxf(top, ml[i].x);
    }
#pragma unroll
    for (int d = 16; d > 0; d >>= 1) top = fmaxf(top, __shfl_xor_sync(0xffffffffU, top, d));
#pragma unroll
    for (int i = 0; i < kMaxBlocks / 32; ++i) {
      if (32 * i + lane >= p.n) continue;
      const float factor = exp2f(ml[i].x - top);
      m.factors[k * p.n + 32 * i + lane] = factor;
      sum += factor * ml[i].y;
    }
    sum = warp_sum(sum);
    if (lane == 0) m.inverse[k] = 1.0F / sum;
  }
  sync_workers<kBarrier>();
  // Few quads: groups of threads share the pieces of one, so that all reads are under way at once.
  int groups = 1;
  while (2 * groups * (high - low) <= kMergeThreads && 2 * groups <= p.n) groups *= 2;
  const int at_once = kMergeThreads / groups, group = thread / at_once;
  for (int base = low; base < high; base += at_once) {
    const int quad = base + thread % at_once;
    const int k = quad / kQuads - pair0;
    float4 sum{};
    if (quad < high) {
      const float* from = partial + static_cast<std::int64_t>(quad) * 4;
#pragma unroll 8
      for (int i = group; i < p.n; i += groups) {
        const float w = m.factors[k * p.n + i];
        const float4 v = __ldcg(
            reinterpret_cast<const float4*>(from + static_cast<std::int64_t>(p.slot(i)) * kPairs * kLatentWidth));
        sum.x += w * v.x, sum.y += w * v.y, sum.z += w * v.z, sum.w += w * v.w;
      }
    }
    if (groups > 1) {
      m.sums[thread] = sum;
      sync_workers<kBarrier>();
      for (int i = 1; group == 0 && i < groups; ++i) {
        const float4 v = m.sums[i * at_once + thread];
        sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
      }
      sync_workers<kBarrier>();
    }
    if (quad >= high || group != 0) continue;
    const float inverse = m.inverse[k];
    reinterpret_cast<uint2*>(latent + p.global_pair * kLatentWidth)[quad] = {
        pack_bf16(sum.x * inverse, sum.y * inverse), pack_bf16(sum.z * inverse, sum.w * inverse)};
  }
  sync_workers<kBarrier>();
  if (thread == 0 && atomicAdd(present + p.first, 1U) == 2 * n - 1) present[p.first] = 0;
}

// The last thing that the workers of block `c` do: the tiles that others have pieces of are the first and the last of
// its range. All is announced before any is waited for.
template <int kPairs, int kBarrier>
__device__ __forceinline__ void merge_tiles(const FewArgs& a, int total, int n, int c, const WorkTable& work,
                                            MergeMemory& m, int thread) {
  const int begin = range_begin(total, n, c), end = range_begin(total, n, c + 1);
  const auto merge = [&](const Unit& u) {
    merge_share<kPairs, kBarrier>(pieces_of(u, total, n, a.heads, kPairs), c, a.partial, a.partial_ml, a.present,
                                  a.latent, m, thread);
  };
  const Unit head = unit_of(a.cache, a.heads, kPairs, work, begin);
  const Unit tail = unit_of(a.cache, a.heads, kPairs, work, end - 1);
  if (head.first < begin || head.first + head.steps > end) merge(head);
  if (tail.first != head.first && tail.first + tail.steps > end) merge(tail);
}
#endif

}  // namespace glint::cuda
