#pragma once
// The launcher of sample.cu.

#include "backends/cuda/kernels.hpp"
#include "ops/sample.hpp"

namespace glint::cuda {

// Whether this device samples from such a vocabulary.
bool samples(const Launch& l, std::int64_t vocab);
// tokens[r] of logits [n_rows, vocab], as ops/sample.hpp has it.
void sample(const Launch& l, const float* logits, std::int64_t n_rows, std::int64_t vocab, const SampleRow* rows,
            const SampleEdit* edits, std::int32_t* tokens);

}  // namespace glint::cuda
