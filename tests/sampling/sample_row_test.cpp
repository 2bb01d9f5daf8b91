#include "sampling/sample_row.hpp"

#include <gtest/gtest.h>

#include "backends/reference/reference.hpp"
#include "sampling/sample_cases.hpp"

namespace glint {
namespace {

TEST(SampleRow, TheReferenceDrawsTheSamplersTokens) {
  const auto ops = make_reference_ops();
  for (const std::size_t vocab : {std::size_t{1}, std::size_t{9}, std::size_t{1000}, std::size_t{4133}}) {
    sampling_cases::expect_tokens_of_the_sampler(vocab, [&](std::vector<float>& x, const SampleBatch& batch) {
      std::vector<std::int32_t> tokens(batch.rows.size());
      EXPECT_TRUE(
          ops->sample({.logits = {x.data(),
                                  DType::kF32,
                                  {static_cast<std::int64_t>(batch.rows.size()), static_cast<std::int64_t>(vocab)}},
                       .rows = batch.rows.data(),
                       .edits = batch.edits.data(),
                       .masks = batch.masks.data(),
                       .tokens = tokens.data()}));
      return tokens;
    });
  }
}

TEST(SampleRow, WhatOnlyTheHostCanDoIsLeftToIt) {
  TokenCounts counts(std::vector<std::int32_t>{1, 2, 3});
  SampleBatch batch;
  const auto row = [&](const SamplerParams& p) {
    add_sample_row({.params = &p, .counts = &counts, .position = 3}, 1000, 4, batch);
    return batch.rows.back();
  };
  EXPECT_EQ(row({}).mode, SampleMode::kDraw);
  EXPECT_EQ(row({.temperature = 0}).mode, SampleMode::kGreedy);
  EXPECT_EQ(row({.logprobs = 0}).mode, SampleMode::kNone);
  EXPECT_EQ(row({.logit_bias = {{1, 1.0F}, {1, 2.0F}}}).mode, SampleMode::kNone);
  EXPECT_EQ(row({.top_k = 1000}).top_k, 0);
  EXPECT_TRUE(batch.edits.empty());
  EXPECT_EQ(row({.repetition_penalty = 1.1F}).mode, SampleMode::kDraw);
  EXPECT_EQ(batch.edits.size(), 3U);
  EXPECT_EQ(row({.logit_bias = {{1, 1.0F}}}).first_edit, 3);
  EXPECT_EQ(row({.logit_bias = {{1, 1.0F}}}).mode, SampleMode::kNone);  // no room
}

}  // namespace
}  // namespace glint
