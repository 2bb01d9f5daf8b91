#pragma once
// The sampler's chain written the plain way: doubles and a full sort. The tests compare the fast one with it.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <random>
#include <span>
#include <vector>

#include "sampling/sampler.hpp"

namespace glint::sampling_reference {

// Probabilities [vocab] of the chain's steps 2-9.
inline std::vector<double> distribution(const SampleInput& in) {
  const SamplerParams& p = *in.params;
  const std::size_t n = in.logits.size();
  std::vector<float> x(in.logits.begin(), in.logits.end());
  for (std::size_t i = 0; i < n && !in.allowed_tokens.empty(); ++i) {
    if ((in.allowed_tokens[i / 64] >> (i % 64) & 1) == 0) x[i] = -std::numeric_limits<float>::infinity();
  }
  for (const auto& [id, bias] : p.logit_bias) x[static_cast<std::size_t>(id)] += bias;
  if (in.counts != nullptr) {
    for (const auto& e : in.counts->entries()) {
      float& v = x[static_cast<std::size_t>(e.id)];
      v = v > 0 ? v / p.repetition_penalty : v * p.repetition_penalty;
      v -= p.frequency_penalty * static_cast<float>(e.generated);
      if (e.generated > 0) v -= p.presence_penalty;
    }
  }
  std::vector<std::size_t> order(n);
  std::iota(order.begin(), order.end(), 0U);
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return x[a] > x[b]; });
  std::vector<double> w(n, 0.0);
  if (p.temperature == 0) {
    w[order[0]] = 1;
    return w;
  }
  const auto best = static_cast<double>(x[order[0]]);
  for (std::size_t i = 0; i < n; ++i)
    w[i] = std::exp((static_cast<double>(x[i]) - best) / static_cast<double>(p.temperature));
  std::size_t kept = p.top_k > 0 ? std::min(n, static_cast<std::size_t>(p.top_k)) : n;
  if (p.top_p < 1) {
    double total = 0;
    for (std::size_t r = 0; r < kept; ++r) total += w[order[r]];
    double sum = 0;
    std::size_t r = 0;
    while (r < kept && sum < static_cast<double>(p.top_p) * total) sum += w[order[r++]];
    kept = r;
  }
  while (kept > 1 && w[order[kept - 1]] < static_cast<double>(p.min_p)) --kept;
  for (std::size_t r = kept; r < n; ++r) w[order[r]] = 0;
  const double total = std::accumulate(w.begin(), w.end(), 0.0);
  for (double& v : w) v /= total;
  return w;
}

// Normal logits; `sd` 1 is flat, 4 is like a trained model's.
inline std::vector<float> random_logits(std::size_t n, float sd, std::uint32_t seed) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal(0.0F, sd);
  std::vector<float> x(n);
  for (float& v : x) v = normal(rng);
  return x;
}

// Upper 1e-6 quantile of chi-square with k degrees of freedom (Wilson-Hilferty).
inline double chi_square_limit(double k) {
  const double a = 2.0 / (9.0 * k);
  return k * std::pow(1 - a + 4.75 * std::sqrt(a), 3);
}

// Pearson's statistic over the cells that expect at least 5 draws (the rest pooled), and its degrees of freedom.
struct ChiSquare {
  double statistic = 0;
  double degrees = 0;
  bool ok() const { return degrees > 0 && statistic < chi_square_limit(degrees); }
};
inline ChiSquare chi_square(const std::vector<double>& p, const std::vector<int>& counts) {
  const double n = std::accumulate(counts.begin(), counts.end(), 0.0);
  ChiSquare result{.statistic = 0, .degrees = -1};
  double rest_expected = 0;
  double rest_seen = 0;
  for (std::size_t i = 0; i < p.size(); ++i) {
    const double expected = p[i] * n;
    const double seen = counts[i];
    if (expected < 5) {
      rest_expected += expected;
      rest_seen += seen;
      continue;
    }
    result.statistic += (seen - expected) * (seen - expected) / expected;
    result.degrees += 1;
  }
  if (rest_expected >= 5) {
    result.statistic += (rest_seen - rest_expected) * (rest_seen - rest_expected) / rest_expected;
    result.degrees += 1;
  } else if (rest_expected == 0 && rest_seen > 0) {
    result.statistic = std::numeric_limits<double>::infinity();  // drew what has no probability
  }
  return result;
}

}  // namespace glint::sampling_reference
