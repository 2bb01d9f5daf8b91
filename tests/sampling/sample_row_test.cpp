#include "sampling/sample_row.hpp"

#include <gtest/gtest.h>

#include "backends/reference/reference.hpp"
#include "sampling/sample_cases.hpp"

namespace glint {
namespace {

TEST(SampleRow, TheReferenceDrawsTheSamplersTokens) {
  const auto ops = make_reference_ops();
  for (const std::size_t vocab : {std::size_t{1}, std::size_t{9}, std::size_t{1000}, std::size_t{4133}}) {
    sampling_cases::expect_tokens_of_the_sampler(vocab, [&](std::vector<float>& x, const std::vector<SampleRow>& rows) {
      std::vector<std::int32_t> tokens(rows.size());
      EXPECT_TRUE(ops->sample({.logits = {x.data(),
                                          DType::kF32,
                                          {static_cast<std::int64_t>(rows.size()), static_cast<std::int64_t>(vocab)}},
                               .rows = rows.data(),
                               .tokens = tokens.data()}));
      return tokens;
    });
  }
}

TEST(SampleRow, WhatOnlyTheHostCanDoIsLeftToIt) {
  const auto mode = [](const SamplerParams& p, bool constrained = false) {
    return sample_row(p, constrained, 1000, 3).mode;
  };
  EXPECT_EQ(mode({}), SampleMode::kDraw);
  EXPECT_EQ(mode({.temperature = 0}), SampleMode::kGreedy);
  EXPECT_EQ(mode({}, true), SampleMode::kNone);
  EXPECT_EQ(mode({.repetition_penalty = 1.1F}), SampleMode::kNone);
  EXPECT_EQ(mode({.presence_penalty = 1}), SampleMode::kNone);
  EXPECT_EQ(mode({.logit_bias = {{1, 1.0F}}}), SampleMode::kNone);
  EXPECT_EQ(mode({.logprobs = 0}), SampleMode::kNone);
  EXPECT_EQ(sample_row({.top_k = 1000}, false, 1000, 3).top_k, 0);
}

}  // namespace
}  // namespace glint
