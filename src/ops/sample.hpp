#pragma once
// What a backend needs to know to draw tokens, and the arithmetic of it.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "ops/params.hpp"

#ifdef __CUDACC__
#define GLINT_DEVICE_TOO __host__ __device__
#else
#define GLINT_DEVICE_TOO
#endif

namespace glint {

// How the token of a row of logits is drawn; sampling/sampler.hpp describes the chain.
enum class SampleMode : std::int32_t { kNone, kGreedy, kDraw };  // none: the row is not looked at

// A change of a token's logit, made before all else and not written to the logits.
struct SampleEdit {
  std::int32_t id = 0;
  float amount = 0;
};

struct SampleRow {
  double u = 0;  // of the draw, in [0, 1)
  // How far below the best logit the last kept one may lie: temperature · ln(min_p).
  double min_p_nats = -std::numeric_limits<double>::infinity();
  float inv_temperature = 1;
  float top_p = 1;         // 1: off
  std::int32_t top_k = 0;  // 0: off; less than the vocabulary
  SampleMode mode = SampleMode::kNone;
  // Of SampleParams::edits, from the first: n_biases, whose amounts are added, then n_seen tokens that get the
  // repetition penalty and less by their amounts. Within both no id comes twice.
  float repetition_penalty = 1;
  std::int32_t first_edit = 0;
  std::int32_t n_biases = 0;
  std::int32_t n_seen = 0;
  std::int32_t mask = -1;  // of SampleParams::masks, before the edits; negative: every token is allowed
};

// tokens[r] = the token of row r, or a negative SampleFailure.
struct SampleParams {
  OpTag tag;
  ConstView logits;                 // [R, vocab] F32
  const SampleRow* rows = nullptr;  // [R]
  const SampleEdit* edits = nullptr;
  const std::uint64_t* masks = nullptr;  // [n, mask_words(vocab)]: bit id % 64 of word id / 64
  std::int32_t* tokens = nullptr;        // [R]
};
constexpr std::int64_t mask_words(std::int64_t vocab) { return (vocab + 63) / 64; }

enum SampleFailure : std::int32_t {
  kLogitsNotFinite = -1,  // NaN or +infinity
  kNoCandidate = -2,      // every logit is -infinity
};

// The weight of a token, exp((logit - max) / t), in the one arithmetic that all samplers share: the host's, the
// reference's and a device's draw the same token from the same logits.
// Weights are rounded to multiples of 2^-34, so that a double holds sums of up to 2^19 of them exactly: totals, cuts
// and draws do not depend on the order of a sum. What is lost is what has less than 3e-11 of the best token's
// probability.
inline constexpr double kWeightUnits = 0x1p34;  // in a weight of 1, the best token's
inline constexpr std::int64_t kMaxSampledVocab = std::int64_t{1} << 19;

// exp(y) for y ≤ 0, as one value or a vector of 8: y = n ln 2 + f, |f| ≤ ln 2 / 2, Taylor to degree 7 (relative error
// 5e-9), the exponent added as an integer. Needs products and sums rounded apart (no fused multiply-add).
// In place, because a vector as a result would depend on the ABI of the target.
template <class Float, class Int>
[[gnu::always_inline]] GLINT_DEVICE_TOO inline void exp_nonpositive(Float& y) {
  constexpr float kMagic = 12582912.0F;  // 1.5 · 2^23: adding it rounds to an integer and leaves it in the low bits
  constexpr float kLowest = -32.0F;      // exp(-32) is no unit any more
  constexpr float kSmall = 0x1p-11F;     // from here on a float is a multiple of 2^-34 as it is
  const Float zero{};
  const Float z = y < kLowest ? zero + kLowest : y;
  const Float shifted = z * 1.44269504F + kMagic;
  const Float n = shifted - kMagic;
  const Float f = (z - n * 0.693359375F) - n * -2.12194440e-4F;
  Float p = f * (1.0F / 5040) + (1.0F / 720);
  p = p * f + (1.0F / 120);
  p = p * f + (1.0F / 24);
  p = p * f + (1.0F / 6);
  p = p * f + 0.5F;
  p = p * f + 1.0F;
  p = p * f + 1.0F;
  Int bits;
  Int exponent;
  std::memcpy(&bits, &p, sizeof p);
  std::memcpy(&exponent, &shifted, sizeof shifted);
  bits += exponent << 23;
  std::memcpy(&p, &bits, sizeof p);
  const Float rounded = (p + kSmall) - kSmall;
  y = p < kSmall ? rounded : p;
}

GLINT_DEVICE_TOO inline float exp_weight(float x, float shift, float scale) {
  float y = (x - shift) * scale;
  exp_nonpositive<float, std::int32_t>(y);
  return y;
}

// The logit of a token that is not allowed: one that is not finite is a fault all the same.
GLINT_DEVICE_TOO inline float refused(float logit) { return logit < INFINITY ? -INFINITY : NAN; }
GLINT_DEVICE_TOO inline float penalised(float logit, float repetition_penalty, float less) {
  return (logit > 0 ? logit / repetition_penalty : logit * repetition_penalty) - less;
}

}  // namespace glint

#undef GLINT_DEVICE_TOO
