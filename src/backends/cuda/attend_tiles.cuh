#pragma once
// What the roles of attend_decode.cu share: shared memory, and a block's part of the work.

#include "backends/cuda/attend_merge.cuh"
#include "backends/cuda/attend_page.cuh"

namespace glint::cuda {

constexpr int kScorerThreads = 256, kSummerThreads = 256;
constexpr int kSummerBarrier = 1, kScorerBarrier = 2, kGroupBarrier = 3;  // named ones; of two warpgroups the last
constexpr int kPlanes = 2;  // steps between scorers and summers: one a warpgroup of scorers
constexpr int kTotals = 4;  // tiles whose softmax may be under way
static_assert(kTokens == kPageRows);

// What a tile's softmax ends with, by the scorers' warpgroup: what its weights are relative to, its warps' sums.
template <int kPairs>
struct Totals {
  float tops[2][kPairs], sums[2][4][kPairs];

  __device__ float top(int pair) const { return fmaxf(tops[0][pair], tops[1][pair]); }
  __device__ float sum(int pair) const {
    float all = 0;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      all += ((sums[i][0][pair] + sums[i][1][pair]) + (sums[i][2][pair] + sums[i][3][pair])) *
             exp2f(tops[i][pair] - top(pair));
    }
    return all;
  }
};

template <KvCodec kCodec, int kN8>
struct Memory {
  static constexpr int kPairs = 8 * kN8;
  static constexpr int kBlocks = (kCacheRowBytes<kCodec> + 127) / 128;
  static constexpr int kStage = kBlocks * kBlockBytes;
  static constexpr int kStages = kIsFour<kCodec> ? 6 : kCodec == KvCodec::kBF16 ? 2 : 4;
  static_assert(kStages % 2 == 0);

  unsigned char stages[kStages][kStage];
  unsigned char query[9][kPairs * 128];          // blocks of 64 values, swizzled
  unsigned char weights[kPlanes][kPairs * 128];  // [pairs][64 tokens], 16 bits each, swizzled
  union {
    float exchange[8 * kLatentWidth];  // answers of eight pairs
    MergeMemory merge;                 // when all is summed
  };
  float factors[kPlanes][kPairs];  // of the sums so far, where `grown`
  int grown[kPlanes];
  float tops[kPairs], maxima[4][kPairs];  // what weights are relative to now; a page's maxima by warp
  int version;                            // of tops: the number of the block's page it was made for, and one
  std::uint32_t largest_query[kScorerThreads / 32];
  Totals<kPairs> totals[kTotals];
  float inverse[kPairs];  // of a tile's sums
  WorkTable work;
  // Rows have arrived; of them those that nobody owns are clear; the summers are done with a stage. A step is weighed;
  // its weights are used. A warpgroup of scorers may do the next page's softmax.
  std::uint64_t full[kStages], clear[kStages], empty[kStages], weighed[kPlanes], taken[kPlanes], turn[2];
};

// What all roles know of the work.
struct Share {
  int total, n, c, begin, end;
};

}  // namespace glint::cuda
