#include <gtest/gtest.h>

#include "sampling/reference.hpp"
#include "sampling/sampler.hpp"

namespace glint {
namespace {

using sampling_reference::chi_square;
using sampling_reference::random_logits;

constexpr std::int64_t kVocab = 80;

// A toy model: the logits after a token, sharper or flatter.
std::vector<std::vector<float>> toy_model(float sd, std::uint32_t seed) {
  std::vector<std::vector<float>> rows;
  for (std::uint32_t i = 0; i < kVocab; ++i) rows.push_back(random_logits(kVocab, sd, seed + i));
  return rows;
}

TEST(Speculative, DrawnDraftsLeaveTheTargetDistributionUnchanged) {
  const std::vector<float> target = random_logits(kVocab, 1.5F, 1);
  const std::vector<float> drafter = random_logits(kVocab, 1.5F, 2);
  for (const SamplerParams& base :
       {SamplerParams{}, SamplerParams{.temperature = 0.7F, .top_p = 0.9F}, SamplerParams{.top_k = 10}}) {
    SamplerParams p = base;
    p.seed = 99;
    const SamplerParams draft_params{.top_p = 0.95F, .seed = 99};
    Sampler sampler(kVocab);
    Sampler draft_sampler(kVocab);
    SampleStatus status{};
    const auto q = draft_sampler.distribution({.logits = drafter, .params = &draft_params}, &status);
    const std::vector<double> want = sampling_reference::distribution({.logits = target, .params = &p});
    double overlap = 0;  // Σ min(p, q): the share that must be accepted
    for (const auto& t : q)
      overlap += std::min(want[static_cast<std::size_t>(t.id)], static_cast<double>(t.probability));
    std::vector<int> counts(kVocab, 0);
    constexpr int kDraws = 60000;
    int n_accepted = 0;
    for (int i = 0; i < kDraws; ++i) {
      bool accepted = false;
      const std::int32_t draft = draw_draft(q, p.seed, i);
      const Sample s = sampler.verify_drawn({.logits = target, .params = &p, .position = i}, draft, q, &accepted);
      ASSERT_EQ(s.status, SampleStatus::kOk);
      ASSERT_TRUE(!accepted || s.token == draft);
      n_accepted += accepted;
      ++counts[static_cast<std::size_t>(s.token)];
    }
    const auto chi = chi_square(want, counts);
    EXPECT_TRUE(chi.ok()) << chi.statistic << " with " << chi.degrees;
    EXPECT_NEAR(n_accepted / static_cast<double>(kDraws), overlap, 5 * 0.5 / std::sqrt(kDraws));
  }
}

TEST(Speculative, AnEqualDrafterIsAlwaysAcceptedAndAGreedyTargetIsExact) {
  const std::vector<float> x = random_logits(kVocab, 1, 3);
  SamplerParams p{.top_p = 0.9F, .seed = 1};
  Sampler sampler(kVocab);
  Sampler draft_sampler(kVocab);
  SampleStatus status{};
  const auto q = draft_sampler.distribution({.logits = x, .params = &p}, &status);
  for (int i = 0; i < 2000; ++i) {
    bool accepted = false;
    const std::int32_t draft = draw_draft(q, p.seed, i);
    EXPECT_EQ(sampler.verify_drawn({.logits = x, .params = &p, .position = i}, draft, q, &accepted).token, draft);
    EXPECT_TRUE(accepted);
  }
  p.temperature = 0;
  const std::int32_t best = sampler.sample({.logits = x, .params = &p}).token;
  for (int i = 0; i < 200; ++i) {
    bool accepted = false;
    const std::int32_t draft = draw_draft(q, 5, i);
    EXPECT_EQ(sampler.verify_drawn({.logits = x, .params = &p, .position = i}, draft, q, &accepted).token, best);
    EXPECT_EQ(accepted, draft == best);
  }
}

TEST(Speculative, VerifyGivesTheTokensOfAPlainRun) {
  const auto target = toy_model(1.5F, 10);
  const auto drafter = toy_model(1.5F, 10);  // drafts the target's best token: often right
  const SamplerParams p{.temperature = 0.8F, .top_p = 0.95F, .repetition_penalty = 1.1F, .seed = 2024};
  Sampler sampler(kVocab);
  const auto run = [&](int n_drafts, int* steps) {
    TokenCounts counts(std::vector<std::int32_t>{0});
    std::vector<std::int32_t> tokens{0};
    const auto input = [&] {
      return SampleInput{.logits = target[static_cast<std::size_t>(tokens.back())],
                         .params = &p,
                         .counts = &counts,
                         .position = static_cast<std::int64_t>(tokens.size())};
    };
    for (*steps = 0; tokens.size() < 400; ++*steps) {
      bool accepted = true;
      for (int d = 0; d < n_drafts && accepted; ++d) {
        const auto& row = drafter[static_cast<std::size_t>(tokens.back())];
        const auto draft = static_cast<std::int32_t>(std::max_element(row.begin(), row.end()) - row.begin());
        tokens.push_back(sampler.verify(input(), draft, &accepted).token);
        counts.add_generated(tokens.back());
      }
      if (!accepted) continue;
      tokens.push_back(sampler.sample(input()).token);
      counts.add_generated(tokens.back());
    }
    tokens.resize(400);
    return tokens;
  };
  int plain_steps = 0;
  int steps = 0;
  const auto plain = run(0, &plain_steps);
  EXPECT_EQ(run(1, &steps), plain);
  EXPECT_EQ(run(4, &steps), plain);
  EXPECT_LT(steps, plain_steps);
}

}  // namespace
}  // namespace glint
