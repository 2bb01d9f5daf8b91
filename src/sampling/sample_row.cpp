#include "sampling/sample_row.hpp"

#include <cmath>

namespace glint {

SampleRow sample_row(const SamplerParams& params, bool constrained, std::int64_t vocab, std::int64_t position) {
  SampleRow row;
  if (constrained || params.logprobs >= 0 || params.needs_counts() || !params.logit_bias.empty()) return row;
  if (params.greedy()) {
    row.mode = SampleMode::kGreedy;
    return row;
  }
  row.mode = SampleMode::kDraw;
  row.u = uniform(params.seed, position, Draw::kToken);
  row.inv_temperature = 1.0F / params.temperature;
  row.top_p = params.top_p;
  if (params.top_k < vocab) row.top_k = params.top_k;
  if (params.min_p > 0) row.min_p_nats = min_p_nats(params);
  return row;
}

Sample sampled(std::int32_t token) {
  Sample sample;
  if (token == kLogitsNotFinite) {
    sample.status = SampleStatus::kNotFinite;
  } else if (token == kNoCandidate) {
    sample.status = SampleStatus::kNoCandidate;
  } else {
    sample.token = token;
  }
  return sample;
}

}  // namespace glint
