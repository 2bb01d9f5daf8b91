#pragma once
// What a request may ask of the sampler. The engine converts the public SamplingParams into this.

#include <cstdint>
#include <utility>
#include <vector>

namespace glint {

inline constexpr int kMaxTopLogprobs = 20;
// Temperatures below it draw the most likely token: dividing by them would overflow, and the draw is decided anyway.
inline constexpr float kGreedyTemperature = 1e-4F;

struct SamplerParams {
  float temperature = 1.0F;         // [0, 100]; 0: greedy
  float top_p = 1.0F;               // (0, 1]; 1: off
  int top_k = 0;                    // 0: off
  float min_p = 0.0F;               // [0, 1); 0: off
  float repetition_penalty = 1.0F;  // (0, 10]; 1: off
  float presence_penalty = 0.0F;    // [-2, 2]
  float frequency_penalty = 0.0F;   // [-2, 2]
  std::uint64_t seed = 0;
  std::vector<std::pair<std::int32_t, float>> logit_bias;  // token id, [-100, 100]; any order
  int logprobs = -1;  // -1: none; 0: of the chosen token; n ≤ kMaxTopLogprobs: and of the n most likely

  bool greedy() const { return temperature < kGreedyTemperature; }
  // True when a penalty is on, so that the request needs TokenCounts.
  bool needs_counts() const {
    return repetition_penalty != 1.0F || presence_penalty != 0.0F || frequency_penalty != 0.0F;
  }
};

// How far below the best logit a token of probability min_p times the best's lies; needs min_p > 0. Not above 0.
double min_p_nats(const SamplerParams& params);

// Throws Error (field, value found, range expected) for a value out of range or a bias of an id outside [0, vocab).
void validate(const SamplerParams& params, std::int64_t vocab);

}  // namespace glint
