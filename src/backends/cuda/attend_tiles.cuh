#pragma once
// What the roles of attend_decode.cu share: shared memory, and a block's part of the work.

#include "backends/cuda/attend_codes.cuh"
#include "backends/cuda/attend_merge.cuh"
#include "backends/cuda/wgmma_narrow.cuh"

namespace glint::cuda {

constexpr int kScorerThreads = 128, kSummerThreads = 256;
constexpr int kReaderWarps = 3;                        // that read scales, and clear rows that nobody owns
constexpr int kSummerBarrier = 1, kScorerBarrier = 2;  // named ones
constexpr int kPlanes = 2;                             // steps between scorers and summers
static_assert(kTokens == kPageRows);

// What a tile's softmax ends with.
template <int kPairs>
struct Totals {
  float maxima[kPairs], sums[4][kPairs];  // sums by a scorer's warp
};

template <KvCodec kCodec, int kN8>
struct Memory {
  static constexpr int kPairs = 8 * kN8;
  static constexpr int kBlocks = (kCacheRowBytes<kCodec> + 127) / 128;
  static constexpr int kStage = kBlocks * kBlockBytes;
  static constexpr int kStages = kIsFour<kCodec> ? 6 : kCodec == KvCodec::kBF16 ? 2 : 4;

  unsigned char stages[kStages][kStage];
  unsigned char query[9][kPairs * 128];         // blocks of 64 values, swizzled
  unsigned char weights[kPlanes][kPairs * 128];  // [pairs][64 tokens], 16 bits each, swizzled
  union {
    float exchange[is_rotated(kCodec) ? 8 * kLatentWidth : 4];  // for H, eight pairs at a time
    MergeMemory merge;                                          // when all is summed
  };
  RowScales scales[is_short(kCodec) ? kStages : 1];
  float factors[kPlanes][kPairs];    // of the sums so far, where `grown`
  int grown[kPlanes];
  float maxima[2][4][kPairs];        // of a step, by a scorer's warp
  Totals<kPairs> totals[kPlanes];
  WorkTable work;
  // Rows have arrived; their scales are read, and what nobody owns is clear; the summers are done with a stage. A
  // step is weighed; its weights are used.
  std::uint64_t full[kStages], ready[kStages], empty[kStages], weighed[kPlanes], taken[kPlanes];
};

// What all roles know of the work.
struct Share {
  int total, n, c, begin, end;
};

}  // namespace glint::cuda
