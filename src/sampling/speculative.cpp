// Verification of drafted tokens.

#include <algorithm>
#include <string>

#include "base/check.hpp"
#include "sampling/sampler.hpp"

namespace glint {
namespace {

float probability_of(std::span<const TokenProbability> distribution, std::int32_t id) {
  const auto it = std::lower_bound(distribution.begin(), distribution.end(), id,
                                   [](const TokenProbability& t, std::int32_t wanted) { return t.id < wanted; });
  return it != distribution.end() && it->id == id ? it->probability : 0.0F;
}

// Calls f(id, max(p - q, 0)) for every token of p; both are in order of id.
template <class F>
void for_residual(std::span<const TokenProbability> p, std::span<const TokenProbability> q, F f) {
  std::size_t j = 0;
  for (const TokenProbability& token : p) {
    while (j < q.size() && q[j].id < token.id) ++j;
    const float drafted = j < q.size() && q[j].id == token.id ? q[j].probability : 0.0F;
    f(token.id, static_cast<double>(std::max(token.probability - drafted, 0.0F)));
  }
}

std::int32_t draw_residual(std::span<const TokenProbability> p, std::span<const TokenProbability> q, double u) {
  double total = 0;
  for_residual(p, q, [&](std::int32_t, double w) { total += w; });
  double rest = u * total;
  std::int32_t chosen = -1;
  bool done = false;
  for_residual(p, q, [&](std::int32_t id, double w) {
    if (done || w <= 0) return;
    chosen = id;
    done = rest < w;
    rest -= w;
  });
  return chosen;
}

}  // namespace

std::int32_t draw_draft(std::span<const TokenProbability> distribution, std::uint64_t seed, std::int64_t position) {
  CHECK(!distribution.empty());
  return draw_residual(distribution, {}, uniform(seed, position, Draw::kDraft));
}

Sample Sampler::verify(const SampleInput& input, std::int32_t draft, bool* accepted) {
  const Sample result = sample(input);
  *accepted = result.token == draft && result.status == SampleStatus::kOk;
  return result;
}

Sample Sampler::verify_drawn(const SampleInput& input, std::int32_t draft,
                             std::span<const TokenProbability> draft_distribution, bool* accepted) {
  Sample result;
  *accepted = false;
  const std::span<const TokenProbability> target = target_distribution(input, &result);
  if (result.status != SampleStatus::kOk) return result;
  const auto p = static_cast<double>(probability_of(target, draft));
  const auto q = static_cast<double>(probability_of(draft_distribution, draft));
  CHECK(q > 0, "draft " + std::to_string(draft) + " is not of its distribution");
  const SamplerParams& params = *input.params;
  std::int32_t token = draft;
  *accepted = uniform(params.seed, input.position, Draw::kAccept) * q < p;
  if (!*accepted) {
    token = draw_residual(target, draft_distribution, uniform(params.seed, input.position, Draw::kResidual));
    // p = q up to rounding leaves no residual; the refusal itself was rounding, so any token of the target will do.
    if (token < 0) token = draw_residual(target, {}, uniform(params.seed, input.position, Draw::kResidual));
  }
  finish(input, token, &result);
  return result;
}

}  // namespace glint
