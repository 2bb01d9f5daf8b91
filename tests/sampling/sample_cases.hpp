#pragma once
// Rows of logits and ways of sampling for Ops::sample, and the tokens that the Sampler draws from them.

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "sampling/reference.hpp"
#include "sampling/sample_row.hpp"

namespace glint::sampling_cases {

// Rows of one vocabulary: flat and peaked ones, many ties, few finite logits, one, none, and broken ones.
inline std::vector<std::vector<float>> logits(std::size_t vocab) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  std::vector<std::vector<float>> rows;
  for (const float sd : {0.0F, 0.3F, 1.0F, 3.0F, 12.0F})
    rows.push_back(sampling_reference::random_logits(vocab, sd, static_cast<std::uint32_t>(vocab) + rows.size()));
  std::vector<float> x = rows[2];
  for (float& v : x) v = std::round(v * 2) / 2;  // ties everywhere, zeros of both signs among them
  rows.push_back(x);
  for (std::size_t i = 0; i < vocab; ++i) x[i] = i % 100 == 7 ? rows[3][i] : -kInf;
  x[vocab / 2] = 1;
  rows.push_back(x);
  std::fill(x.begin(), x.end(), -kInf);
  rows.push_back(x);
  x[vocab - 1] = -3e38F;
  rows.push_back(x);
  x[0] = 3e38F;
  rows.push_back(x);
  for (const float bad : {kInf, std::numeric_limits<float>::quiet_NaN()}) {
    rows.push_back(rows[2]);
    rows.back()[vocab * 2 / 3] = bad;
  }
  return rows;
}

inline std::vector<SamplerParams> params() {
  std::vector<SamplerParams> all{{.temperature = 0}, {}};
  for (const float t : {1.0F, 0.3F, 2.5F}) {
    for (const int k : {0, 1, 3, 40, 1000}) {
      for (const float p : {1.0F, 0.95F, 0.3F, 0.999F}) {
        for (const float min_p : {0.0F, 0.05F})
          all.push_back({.temperature = t, .top_p = p, .top_k = k, .min_p = min_p, .seed = all.size() * 977});
      }
    }
  }
  all.push_back({.temperature = 0.8F, .top_p = 0.95F, .repetition_penalty = 1.3F, .seed = 1});
  all.push_back({.temperature = 0, .presence_penalty = 1.5F, .frequency_penalty = 0.3F});
  all.push_back(
      {.top_k = 20, .repetition_penalty = 0.7F, .frequency_penalty = -0.4F, .seed = 2, .logit_bias = {{0, 4.0F}}});
  all.push_back({.temperature = 1.1e-4F});
  all.push_back({.temperature = 100, .top_p = 0.5F});
  return all;
}

// Every row of logits with every way of sampling, several positions each. `run` gives the tokens of rows of logits
// [R, vocab] and of a batch.
template <typename Run>
void expect_tokens_of_the_sampler(std::size_t vocab, Run run) {
  Sampler sampler(static_cast<std::int64_t>(vocab));
  std::vector<std::int32_t> prompt;  // every third token was seen, every ninth was generated
  for (std::size_t i = 0; i < vocab; i += 3) prompt.push_back(static_cast<std::int32_t>(i));
  TokenCounts counts(prompt);
  for (std::size_t i = 0; i < vocab; i += 9) {
    for (std::size_t n = 0; n <= i % 4; ++n) counts.add_generated(static_cast<std::int32_t>(i));
  }
  std::vector<std::uint64_t> mask(static_cast<std::size_t>(mask_words(static_cast<std::int64_t>(vocab))));
  for (std::size_t i = 0; i < vocab; ++i) mask[i / 64] |= std::uint64_t{i % 5 != 3} << (i % 64);
  const auto all = logits(vocab);
  std::vector<float> x;
  for (const std::vector<float>& row : all) x.insert(x.end(), row.begin(), row.end());
  std::int64_t position = 5;
  for (const SamplerParams& p : params()) {
    ++position;
    SampleInput input{.params = &p, .counts = &counts, .position = position};
    if (position % 3 == 0) input.allowed_tokens = mask;
    SampleBatch batch{.rows = {}, .edits = {{.id = 0, .amount = 1e9F}}, .masks = mask};  // nobody's
    std::fill(batch.masks.begin(), batch.masks.end(), 0);
    add_sample_row(input, static_cast<std::int64_t>(vocab), std::size_t{1} << 20, batch);
    batch.rows.resize(all.size(), batch.rows[0]);
    batch.rows[1] = {};  // not looked at
    const std::vector<std::int32_t> tokens = run(x, batch);
    for (std::size_t r = 0; r < all.size(); ++r) {
      if (r == 1) continue;
      input.logits = all[r];
      const Sample want = sampler.sample(input);
      const Sample got = sampled(tokens[r]);
      EXPECT_EQ(got.status, want.status) << "row " << r << " of " << vocab;
      ASSERT_EQ(got.token, want.token) << "row " << r << " of " << vocab << ": t " << p.temperature << ", top-p "
                                       << p.top_p << ", top-k " << p.top_k << ", min-p " << p.min_p;
    }
  }
}

}  // namespace glint::sampling_cases
