#pragma once
// The launcher of sample.cu.

#include "backends/cuda/kernels.hpp"
#include "ops/sample.hpp"

namespace glint::cuda {

// SampleParams, for a kernel.
struct SampleJob {
  const float* logits = nullptr;  // [n_rows, vocab]
  std::int64_t n_rows = 0;
  std::int64_t vocab = 0;
  const SampleRow* rows = nullptr;
  const SampleEdit* edits = nullptr;
  const std::uint64_t* masks = nullptr;  // [n, mask_words]
  std::int64_t mask_words = 0;
  std::int32_t* tokens = nullptr;
};

// Whether this device samples from such a vocabulary.
bool samples(const Launch& l, std::int64_t vocab);
void sample(const Launch& l, const SampleJob& job);

}  // namespace glint::cuda
