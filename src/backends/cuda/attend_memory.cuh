#pragma once
// What the roles of attend_few.cu share: shared memory, and a block's part of the work.

#include "backends/cuda/attend_codes.cuh"
#include "backends/cuda/attend_merge.cuh"
#include "backends/cuda/wgmma.cuh"

namespace glint::cuda {

constexpr int kGroupWarps = 8;   // of scorers, and of summers
constexpr int kReaderWarps = 3;  // that read scales of rows
constexpr int kSummers = 1;      // their barrier
constexpr int kPlanes = 2;       // steps between scorers and summers
constexpr int kScoreStride = kTokens + 4, kWeightStride = kTokens * 2 + 16;

// Softmax of a step, as the sums take it.
template <int kPairs>
struct Weighed {
  unsigned char weights[kPairs * kWeightStride];  // [pairs][32 tokens], 16 bits each
  float factors[kPairs];                          // of the sums so far
};
// What a tile's softmax ends with.
template <int kPairs>
struct Totals {
  float maxima[kPairs], sums[kPairs];
};

template <KvCodec kCodec, int kN8>
struct Memory {
  static constexpr int kPairs = 8 * kN8;
  // Eights of rows begin in different banks: rows of 336 bytes do so by themselves.
  static constexpr int kRow = kIsFour<kCodec> ? 336 : kCacheRowBytes<kCodec> + 16;
  static constexpr int kStage = kTokens * kRow;
  static constexpr int kStages = kIsFour<kCodec> ? 10 : kCodec == KvCodec::kBF16 ? 5 : 7;

  unsigned char stages[kStages][kStage];
  Weighed<kPairs> weighed[2];
  RowScales scales[is_short(kCodec) ? kStages : 1];
  union {
    float scores[kPlanes][4][kPairs][kScoreStride];  // sums of quarters
    MergeMemory merge;                               // when all is scored
  };
  float exchange[is_rotated(kCodec) ? kPairs * kLatentWidth : 4];  // for H
  Totals<kPairs> totals[2];
  int2 sees[kPairs];  // tokens from … to
  WorkTable work;
  // Rows are there, their scales are; the summers are done with a stage. A step is scored; its scores are read.
  std::uint64_t full[kStages], scaled[kStages], empty[kStages], scored[kPlanes], taken[kPlanes];
};

// What all roles know of the work.
struct Share {
  int total, n, c, begin, end;
};

}  // namespace glint::cuda
