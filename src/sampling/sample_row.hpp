#pragma once
// What of a request's sampling a backend can do in place of the Sampler (Ops::sample).

#include <cstddef>
#include <cstdint>
#include <vector>

#include "ops/sample.hpp"
#include "sampling/sampler.hpp"

namespace glint {

// What Ops::sample wants to know of a step.
struct SampleBatch {
  std::vector<SampleRow> rows;
  std::vector<SampleEdit> edits;
  std::vector<std::uint64_t> masks;
  void clear();
};

// Adds how to draw the token that Sampler::sample would; input.logits is not looked at, logit_bias is sorted by id.
// Mode kNone where only the Sampler can: log-probabilities, two biases of one token, more than max_edits in the batch.
void add_sample_row(const SampleInput& input, std::int64_t vocab, std::size_t max_edits, SampleBatch& batch);

// What Ops::sample said of a row, as the Sampler says it.
Sample sampled(std::int32_t token);

}  // namespace glint
