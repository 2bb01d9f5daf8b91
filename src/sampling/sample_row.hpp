#pragma once
// What of a request's sampling a backend can do in place of the Sampler (Ops::sample).

#include <cstddef>
#include <cstdint>
#include <vector>

#include "ops/sample.hpp"
#include "sampling/sampler.hpp"

namespace glint {

// How to draw the token that Sampler::sample would; biases and penalties are appended to `edits`, which holds at most
// max_edits. Mode kNone where only the Sampler can: log-probabilities, a mask, two biases of one token, no room left.
// logit_bias is sorted by id. input.logits is not looked at.
SampleRow sample_row(const SampleInput& input, bool constrained, std::int64_t vocab, std::size_t max_edits,
                     std::vector<SampleEdit>& edits);

// What Ops::sample said of a row, as the Sampler says it.
Sample sampled(std::int32_t token);

}  // namespace glint
