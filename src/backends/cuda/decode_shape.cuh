#pragma once
// What the kernel of a decode step knows of the model when it is compiled. Half of a stage's instructions work out
// where things lie; with the real model's sizes and formats they are constants. Everything else takes the same code
// with sizes that it reads (AnyStep).

#include "backends/cuda/decode_step.hpp"

namespace glint::cuda {

// How attention gets its latent queries: whole, from a stage that multiplies by W_UK; as the parts that the blocks of
// W_qb leave (decode_join.cuh); or those summed, and under H where the cache's codec has it, in a stage of their own.
enum class StepQueries : std::uint8_t { kWhole, kParts, kSummed };

struct AnyStep {
  static constexpr bool kKnown = false, kFar = false;
  static constexpr StepQueries kQueries = StepQueries::kWhole;
};

// A format as the kernel reads it; scales are BF16.
struct StepCodes {
  WeightFormat format;
  int group_shift;  // kWholeRow: a scale a row, or none
};

// GLM-4.7-Flash, with the formats of attention, of the dense layer and the shared experts, and of the experts, a cache
// codec, and whether contexts are long (DecodeStep::far): a kernel that holds all kinds of attention is longer than the
// instruction cache, and how long a layer takes then depends on where its parts happen to lie.
template <StepCodes kAttention, StepCodes kShared, StepCodes kExperts, KvCodec kCache, bool kFarContext>
struct FlashStep {
  static constexpr bool kKnown = true, kFar = kFarContext;
  // Where contexts are long every block wants all heads, and would add up the parts of all. An INT4 row takes longer to
  // encode than the stage of W_UK; and without H, beside BF16 weights, that stage is faster (262 tok/s at 32,000
  // tokens, 255 from parts; H200, 2026-11-30).
  static constexpr bool kPlain = kAttention.format == WeightFormat::kBF16 && kCache == KvCodec::kBF16;
  static constexpr StepQueries kQueries = kCache == KvCodec::kInt4 || (kFarContext && kPlain) ? StepQueries::kWhole
                                          : kFarContext                                       ? StepQueries::kSummed
                                                                                              : StepQueries::kParts;
  static constexpr KvCodec kCodec = kCache;
  static constexpr int kHeads = 20, kHidden = 2048, kQLora = 768, kDense = 10240, kInner = 1536, kTopK = 4;

  __host__ __device__ static constexpr StepMat mat(StepRole r, bool routed) {
    const int shared = routed ? kInner : kDense;
    switch (r) {
      case StepRole::kQa:
        return of(kAttention, kQLora, kHidden);
      case StepRole::kKva:
        return of(kAttention, 576, kHidden);
      case StepRole::kQb:
        return of(kAttention, kHeads * 256, kQLora);
      case StepRole::kKvb:
        return of({WeightFormat::kBF16, kWholeRow}, kHeads * 448, 512);
      case StepRole::kO:
        return of(kAttention, kHidden, kHeads * 256);
      case StepRole::kSharedGate:
        return of(kShared, shared, kHidden);
      case StepRole::kSharedDown:
        return of(kShared, kHidden, shared);
      case StepRole::kGate:
        return of(kExperts, kInner, kHidden);
      default:
        return of(kExperts, kHidden, kInner);
    }
  }

 private:
  __host__ __device__ static constexpr StepMat of(const StepCodes& c, int rows, int cols) {
    const int groups = c.group_shift == kWholeRow ? 1 : cols >> c.group_shift;
    StepMat m;
    m.rows = rows;
    m.cols = cols;
    const int bits = c.format == WeightFormat::kBF16 ? 16 : c.format == WeightFormat::kI4 ? 4 : 8;
    m.row_bytes = cols * bits / 8;
    m.step_cols = 512 / bits;
    m.format = c.format;
    if (bits == 16) return m;
    m.scale_dtype = DType::kBF16;
    m.scale_row_bytes = groups * 2;
    m.group_shift = static_cast<std::uint8_t>(c.group_shift);
    return m;
  }
};

inline constexpr StepCodes kStepBf16{WeightFormat::kBF16, kWholeRow}, kStepInt8{WeightFormat::kI8, kWholeRow},
    kStepInt4{WeightFormat::kI4, 6};
template <KvCodec kCache, bool kFar>
using FlashBf16 = FlashStep<kStepBf16, kStepBf16, kStepBf16, kCache, kFar>;
template <KvCodec kCache, bool kFar>
using FlashInt8 = FlashStep<kStepInt8, kStepInt8, kStepInt8, kCache, kFar>;
template <KvCodec kCache, bool kFar>
using FlashInt4 = FlashStep<kStepInt4, kStepInt4, kStepInt4, kCache, kFar>;
template <KvCodec kCache, bool kFar>
using FlashQ4 = FlashStep<kStepInt8, kStepInt8, kStepInt4, kCache, kFar>;  // the preset q4

}  // namespace glint::cuda
