#include "sampling/sampler.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <string>

#include "ops/sample.hpp"
#include "sampling/kernels.hpp"
#include "sampling/reference.hpp"

namespace glint {
namespace {

using sampling_reference::random_logits;

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// The fast chain against the plain one: the same tokens, and probabilities within 1e-5 relative and half a unit of a
// weight. At the edge of top-p
// and min-p, where the plain sum is within 1e-6 of the limit, rounding may decide; the inputs here avoid it by their
// seeds.
void expect_same(const SampleInput& in, const std::string& what) {
  Sampler sampler(static_cast<std::int64_t>(in.logits.size()));
  SampleStatus status{};
  const auto got = sampler.distribution(in, &status);
  ASSERT_EQ(status, SampleStatus::kOk) << what;
  const std::vector<double> want = sampling_reference::distribution(in);
  std::vector<double> dense(want.size(), 0.0);
  std::int32_t last = -1;
  for (const TokenProbability& t : got) {
    ASSERT_GT(t.id, last) << what;
    last = t.id;
    dense[static_cast<std::size_t>(t.id)] = static_cast<double>(t.probability);
  }
  for (std::size_t i = 0; i < want.size(); ++i) {
    ASSERT_NEAR(dense[i], want[i], 1e-5 * want[i] + 0.5 / kWeightUnits)
        << what << ", token " << i << ", " << got.size() << " kept";
  }
}

TEST(Sampler, FiltersAgreeWithAFullSort) {
  std::uint32_t seed = 1;
  for (const std::size_t vocab :
       {std::size_t{1}, std::size_t{7}, std::size_t{64}, std::size_t{1000}, std::size_t{4133}}) {
    for (const float sd : {0.0F, 0.3F, 1.0F, 4.0F, 12.0F}) {
      const std::vector<float> x = random_logits(vocab, sd, seed++);
      for (const int k : {0, 1, 2, 40, 900}) {
        for (const float top_p : {1.0F, 0.999F, 0.95F, 0.5F, 0.01F}) {
          for (const float min_p : {0.0F, 0.05F, 0.9F}) {
            for (const float t : {1.0F, 0.25F, 3.0F}) {
              if (sd == 0 && top_p < 1) continue;  // equal weights sum to exactly the limit: see EqualLogits
              const SamplerParams p{.temperature = t, .top_p = top_p, .top_k = k, .min_p = min_p};
              expect_same({.logits = x, .params = &p}, "vocab " + std::to_string(vocab) + " sd " + std::to_string(sd) +
                                                           " k " + std::to_string(k) + " p " + std::to_string(top_p) +
                                                           " min " + std::to_string(min_p) + " t " + std::to_string(t));
              if (HasFatalFailure()) return;
            }
          }
        }
      }
    }
  }
}

TEST(Sampler, FiltersAgreeOnTheModelsVocabulary) {
  for (const float sd : {1.0F, 3.0F}) {
    const std::vector<float> x = random_logits(154880, sd, 99);
    for (const SamplerParams& p :
         {SamplerParams{.top_p = 0.95F}, SamplerParams{.temperature = 0.7F, .top_p = 0.8F, .top_k = 20},
          SamplerParams{.top_k = 50000}, SamplerParams{.top_p = 0.99F, .min_p = 0.01F}}) {
      expect_same({.logits = x, .params = &p}, "sd " + std::to_string(sd));
    }
  }
}

TEST(Sampler, EqualLogitsRankById) {
  const std::vector<float> x(1000, 2.5F);
  Sampler sampler(1000);
  SampleStatus status{};
  SamplerParams p{.top_k = 3};
  auto kept = sampler.distribution({.logits = x, .params = &p}, &status);
  ASSERT_EQ(kept.size(), 3U);
  for (int i = 0; i < 3; ++i) EXPECT_EQ(kept[static_cast<std::size_t>(i)].id, i);
  p = {.top_p = 0.2495F};  // 250 of 1000
  kept = sampler.distribution({.logits = x, .params = &p}, &status);
  ASSERT_EQ(kept.size(), 250U);
  EXPECT_EQ(kept.back().id, 249);
  p = {.temperature = 0};
  EXPECT_EQ(sampler.sample({.logits = x, .params = &p}).token, 0);
}

TEST(Sampler, GreedyTakesTheLowerOfTiesAndTinyTemperatureIsGreedy) {
  std::vector<float> x = random_logits(4000, 1, 3);
  x[3999] = x[700] = x[701] = 50;
  Sampler sampler(4000);
  for (const float t : {0.0F, 1e-30F, 1e-5F}) {
    const SamplerParams p{.temperature = t};
    EXPECT_EQ(sampler.sample({.logits = x, .params = &p}).token, 700);
  }
}

TEST(Sampler, ExtremeLogitsStayFinite) {
  const std::vector<float> x{-3e38F, 3e38F, -kInf, 0, -1e-45F, 3e38F};
  Sampler sampler(6);
  for (const float t : {1.1e-4F, 1.0F, 100.0F}) {
    for (const float top_p : {1.0F, 0.9F}) {
      const SamplerParams p{.temperature = t, .top_p = top_p, .logprobs = 20};
      for (int position = 0; position < 20; ++position) {
        const Sample s = sampler.sample({.logits = x, .params = &p, .position = position});
        ASSERT_EQ(s.status, SampleStatus::kOk);
        EXPECT_TRUE(s.token == 1 || s.token == 5) << s.token;
        EXPECT_NEAR(s.logprob, -std::log(2.0F), 1e-6F);
        EXPECT_EQ(s.n_top, 5);
      }
    }
  }
}

TEST(Sampler, BadLogitsAreAStatusNeverAToken) {
  Sampler sampler(200);
  SamplerParams p{.logprobs = 2};
  for (const std::size_t where : {std::size_t{0}, std::size_t{63}, std::size_t{70}, std::size_t{199}}) {
    for (const float bad : {kNan, kInf}) {
      std::vector<float> x = random_logits(200, 1, 5);
      x[where] = bad;
      for (const float t : {0.0F, 1.0F}) {
        p.temperature = t;
        const Sample s = sampler.sample({.logits = x, .params = &p});
        EXPECT_EQ(s.status, SampleStatus::kNotFinite) << where;
        EXPECT_EQ(s.token, -1);
        bool accepted = true;
        EXPECT_EQ(sampler.verify({.logits = x, .params = &p}, 3, &accepted).token, -1);
        EXPECT_FALSE(accepted);
      }
    }
  }
  const std::vector<float> none(200, -kInf);
  EXPECT_EQ(sampler.sample({.logits = none, .params = &p}).status, SampleStatus::kNoCandidate);
  std::vector<float> one = none;
  one[131] = -7;
  for (const SamplerParams& q :
       {SamplerParams{}, SamplerParams{.top_p = 0.3F}, SamplerParams{.top_k = 5}, SamplerParams{.min_p = 0.5F}}) {
    EXPECT_EQ(sampler.sample({.logits = one, .params = &q}).token, 131);
  }
  EXPECT_STRNE(sample_status_text(SampleStatus::kNotFinite), sample_status_text(SampleStatus::kNoCandidate));
}

TEST(Sampler, MaskAllowsOnlyItsTokens) {
  const std::vector<float> x = random_logits(300, 2, 8);
  Sampler sampler(300);
  std::vector<std::uint64_t> mask(5, 0);
  SamplerParams p;
  EXPECT_EQ(sampler.sample({.logits = x, .params = &p, .allowed_tokens = mask}).status, SampleStatus::kNoCandidate);
  for (const std::size_t id : {std::size_t{2}, std::size_t{64}, std::size_t{299}})
    mask[id / 64] |= std::uint64_t{1} << (id % 64);
  expect_same({.logits = x, .params = &p, .allowed_tokens = mask}, "mask");
  p.temperature = 0;
  const std::int32_t best = sampler.sample({.logits = x, .params = &p, .allowed_tokens = mask}).token;
  EXPECT_TRUE(best == 2 || best == 64 || best == 299);
}

TEST(Sampler, BiasAndPenaltiesFollowTheDocumentedFormulas) {
  const std::vector<float> x{2.0F, -2.0F, 1.0F, 0.5F, -1.0F};
  TokenCounts counts(std::vector<std::int32_t>{0, 1, 1});
  for (const std::int32_t id : {2, 2, 4}) counts.add_generated(id);
  const SamplerParams p{.repetition_penalty = 2,
                        .presence_penalty = 0.25F,
                        .frequency_penalty = 0.5F,
                        .logit_bias = {{3, 1.5F}, {2, 1.0F}}};
  Sampler sampler(5);
  SampleStatus status{};
  const auto got = sampler.distribution({.logits = x, .params = &p, .counts = &counts}, &status);
  // 0: 2/2; 1: -2·2 (prompt only: neither presence nor frequency); 2: (1+1)/2 - 2·0.5 - 0.25; 3: bias; 4: -1·2 - 0.75.
  const std::vector<double> logits{1, -4, -0.25, 2, -2.75};
  double total = 0;
  for (const double v : logits) total += std::exp(v);
  ASSERT_EQ(got.size(), 5U);
  for (std::size_t i = 0; i < 5; ++i) EXPECT_NEAR(got[i].probability, std::exp(logits[i]) / total, 1e-6) << i;
  expect_same({.logits = x, .params = &p, .counts = &counts}, "penalties");
}

TEST(Sampler, LogprobsAreOfTheRawDistribution) {
  const std::vector<float> x = random_logits(5000, 3, 21);
  double total = 0;
  for (const float v : x) total += std::exp(static_cast<double>(v));
  std::vector<std::int32_t> order(5000);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int a, int b) { return x[static_cast<std::size_t>(a)] > x[static_cast<std::size_t>(b)]; });
  const SamplerParams p{.temperature = 0.3F, .top_k = 4, .logit_bias = {{17, 90.0F}}, .logprobs = 20};
  Sampler sampler(5000);
  const Sample s = sampler.sample({.logits = x, .params = &p});
  EXPECT_EQ(s.token, 17);
  EXPECT_NEAR(s.logprob, static_cast<double>(x[17]) - std::log(total), 1e-5);
  ASSERT_EQ(s.n_top, 20);
  for (std::size_t i = 0; i < 20; ++i) {
    EXPECT_EQ(s.top[i].id, order[i]);
    EXPECT_NEAR(s.top[i].logprob, static_cast<double>(x[static_cast<std::size_t>(order[i])]) - std::log(total), 1e-5);
  }
}

TEST(Sampler, AskingForLogprobsChangesNoDraw) {
  const std::vector<float> x = random_logits(9000, 2, 31);
  Sampler sampler(9000);
  for (const float t : {1.0F, 0.6F}) {
    for (const SamplerParams& base :
         {SamplerParams{}, SamplerParams{.top_p = 0.9F}, SamplerParams{.top_p = 0.9F, .top_k = 50},
          SamplerParams{.min_p = 0.02F}, SamplerParams{.logit_bias = {{4, 3.0F}}}}) {
      SamplerParams p = base;
      p.temperature = t;
      for (int i = 0; i < 40; ++i) {
        p.logprobs = -1;
        const std::int32_t token = sampler.sample({.logits = x, .params = &p, .position = i}).token;
        p.logprobs = 5;
        ASSERT_EQ(sampler.sample({.logits = x, .params = &p, .position = i}).token, token);
      }
    }
  }
}

TEST(Sampler, DrawsFollowTheDistribution) {
  const std::vector<float> x = random_logits(150, 1.5F, 4);
  Sampler sampler(150);
  for (const SamplerParams& base : {SamplerParams{}, SamplerParams{.temperature = 0.8F, .top_p = 0.9F},
                                    SamplerParams{.temperature = 1.5F, .top_k = 30}, SamplerParams{.min_p = 0.1F}}) {
    SamplerParams p = base;
    p.seed = 7;
    std::vector<int> counts(150, 0);
    for (int i = 0; i < 60000; ++i) {
      ++counts[static_cast<std::size_t>(sampler.sample({.logits = x, .params = &p, .position = i}).token)];
    }
    const auto chi =
        sampling_reference::chi_square(sampling_reference::distribution({.logits = x, .params = &p}), counts);
    EXPECT_TRUE(chi.ok()) << chi.statistic << " with " << chi.degrees;
  }
}

TEST(Sampler, ADrawDependsOnSeedAndPositionAlone) {
  const std::vector<float> x = random_logits(3000, 1, 11);
  const std::vector<float> other = random_logits(3000, 1, 12);
  const SamplerParams p{.top_p = 0.97F, .seed = 123};
  const SamplerParams noise{.top_k = 7, .repetition_penalty = 1.3F, .seed = 5, .logprobs = 5};
  TokenCounts counts(std::vector<std::int32_t>{1, 2, 3});
  Sampler a(3000);
  std::vector<std::int32_t> forward;
  for (int i = 0; i < 50; ++i) forward.push_back(a.sample({.logits = x, .params = &p, .position = i}).token);
  Sampler b(3000);
  for (int i = 49; i >= 0; --i) {
    b.sample({.logits = other, .params = &noise, .counts = &counts, .position = i});
    EXPECT_EQ(b.sample({.logits = x, .params = &p, .position = i}).token, forward[static_cast<std::size_t>(i)]);
  }
  SamplerParams q = p;
  q.seed = 124;
  int same = 0;
  for (int i = 0; i < 50; ++i)
    same += a.sample({.logits = x, .params = &q, .position = i}).token == forward[static_cast<std::size_t>(i)];
  EXPECT_LT(same, 10);
}

TEST(Kernels, ExpIsAccurateAndTheSameForAnyLength) {
  std::vector<float> x;
  for (int i = 0; i <= 8800; ++i) x.push_back(-static_cast<float>(i) * 0.01F);
  x.push_back(-kInf);
  std::vector<float> w(x.size());
  std::vector<double> sums(sampling::n_blocks(x.size()));
  sampling::exp_row(x, 0, 1, w, sums);
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double want = std::exp(static_cast<double>(x[i]));
    ASSERT_NEAR(w[i], want, 2.5e-7 * want + 0.5 / kWeightUnits) << x[i];
    ASSERT_EQ(w[i], exp_weight(x[i], 0, 1)) << x[i];
  }
}

TEST(Kernels, WeightsAreMultiplesOfTheirUnit) {  // so that sums are exact
  for (const std::size_t n : {std::size_t{64}, std::size_t{1000}}) {
    const std::vector<float> x = random_logits(n, 8, 17);
    const float best = *std::max_element(x.begin(), x.end());
    std::vector<float> w(n);
    std::vector<double> sums(sampling::n_blocks(n));
    sampling::exp_row(x, best, 0.7F, w, sums);
    double total = 0;
    for (std::size_t i = n; i-- > 0;) {
      EXPECT_EQ(static_cast<double>(w[i]) * kWeightUnits, std::floor(static_cast<double>(w[i]) * kWeightUnits));
      total += static_cast<double>(w[i]);
    }
    EXPECT_EQ(total, std::accumulate(sums.begin(), sums.end(), 0.0));
  }
}

TEST(Random, PhiloxKnownAnswers) {  // Random123's kat_vectors, philox4x32-10
  const std::array<std::uint32_t, 4> zero{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8};
  EXPECT_EQ(philox4x32({0, 0, 0, 0}, {0, 0}), zero);
  const std::array<std::uint32_t, 4> ones{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd};
  constexpr std::uint32_t kOnes = 0xffffffff;
  EXPECT_EQ(philox4x32({kOnes, kOnes, kOnes, kOnes}, {kOnes, kOnes}), ones);
}

TEST(Random, UniformIsFlatAndPurposesAreIndependent) {
  std::vector<int> cells(100, 0);
  double product = 0;
  for (int i = 0; i < 100000; ++i) {
    const double u = uniform(42, i, Draw::kToken);
    ASSERT_GE(u, 0);
    ASSERT_LT(u, 1);
    ++cells[static_cast<std::size_t>(u * 100)];
    product += (u - 0.5) * (uniform(42, i, Draw::kAccept) - 0.5);
  }
  const auto chi = sampling_reference::chi_square(std::vector<double>(100, 0.01), cells);
  EXPECT_TRUE(chi.ok()) << chi.statistic;
  EXPECT_LT(std::abs(product / 100000), 5.0 / 12 / std::sqrt(100000.0));
}

TEST(TokenCounts, CountsLikeAMap) {
  std::mt19937 rng(1);
  std::vector<std::int32_t> prompt(3000);
  for (auto& id : prompt) id = static_cast<std::int32_t>(rng() % 1000) * 64;
  TokenCounts counts(prompt);
  std::vector<std::int32_t> times(64000, 0);
  for (int i = 0; i < 20000; ++i) {
    const auto id = static_cast<std::int32_t>(rng() % 64000);
    counts.add_generated(id);
    ++times[static_cast<std::size_t>(id)];
  }
  std::vector<bool> seen(64000, false);
  for (const auto& e : counts.entries()) {
    EXPECT_FALSE(seen[static_cast<std::size_t>(e.id)]);
    seen[static_cast<std::size_t>(e.id)] = true;
    EXPECT_EQ(e.generated, times[static_cast<std::size_t>(e.id)]);
  }
  for (std::int32_t id = 0; id < 64000; ++id) EXPECT_EQ(counts.generated(id), times[static_cast<std::size_t>(id)]);
  for (const auto id : prompt) EXPECT_TRUE(seen[static_cast<std::size_t>(id)]);
  EXPECT_EQ(TokenCounts().generated(5), 0);
}

}  // namespace
}  // namespace glint
