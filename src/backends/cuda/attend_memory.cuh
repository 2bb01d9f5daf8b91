#pragma once
// What the roles of attend_few.cu share: shared memory, and a block's part of the work.

#include "backends/cuda/attend_codes.cuh"
#include "backends/cuda/attend_merge.cuh"
#include "backends/cuda/wgmma.cuh"

namespace glint::cuda {

constexpr int kGroupWarps = 8;             // of scorers, and of summers
constexpr int kScorers = 1, kSummers = 2;  // their barriers
constexpr int kSlots = 4;                  // steps between softmax and sums
constexpr int kScoreStride = kTokens + 4, kWeightStride = kTokens * 2 + 16;

// What is between scorers and summers for a step.
template <int kPairs>
struct Slot {
  unsigned char weights[kPairs * kWeightStride];  // [pairs][32 tokens], 16 bits each
  float factors[kPairs];                          // of the sums so far
  float maxima[kPairs], sums[kPairs];             // after a tile's last step
};

template <KvCodec kCodec, int kN8>
struct Memory {
  static constexpr int kPairs = 8 * kN8;
  // Eights of rows begin in different banks: rows of 336 bytes do so by themselves.
  static constexpr int kRow = kIsFour<kCodec> ? 336 : kCacheRowBytes<kCodec> + 16;
  static constexpr int kStage = kTokens * kRow;
  static constexpr int kStages = kIsFour<kCodec> ? 10 : kCodec == KvCodec::kBF16 ? 5 : 7;

  unsigned char stages[kStages][kStage];
  Slot<kPairs> slots[kSlots];
  RowScales scales[is_short(kCodec) ? 4 : 1];
  union {
    float scores[2][4][kPairs][kScoreStride];  // sums of quarters
    MergeMemory merge;                         // when all is scored
  };
  float exchange[is_rotated(kCodec) ? kPairs * kLatentWidth : 4];  // for H
  WorkTable work;
  std::uint64_t full[kStages], empty[kStages], weighed[kSlots], used[kSlots];
};

// What all roles know of the work.
struct Share {
  int total, n, c, begin, end;
};

}  // namespace glint::cuda
