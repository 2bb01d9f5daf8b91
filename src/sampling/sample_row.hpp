#pragma once
// What of a request's sampling a backend can do in place of the Sampler (Ops::sample).

#include <cstdint>

#include "ops/sample.hpp"
#include "sampling/sampler.hpp"

namespace glint {

// How to draw the token that Sampler::sample would. Mode kNone where only the Sampler can: log-probabilities, a mask
// (`constrained`), biases and penalties. position: tokens that precede the drawn one.
SampleRow sample_row(const SamplerParams& params, bool constrained, std::int64_t vocab, std::int64_t position);

// What Ops::sample said of a row, as the Sampler says it.
Sample sampled(std::int32_t token);

}  // namespace glint
