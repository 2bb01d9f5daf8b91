// Tokens of logits, by a full sort.

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <span>
#include <vector>

#include "backends/reference/reference.hpp"
#include "ops/sample.hpp"

namespace glint::reference {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

double sum(std::span<const std::int32_t> ids, const std::vector<double>& weights) {
  double total = 0;
  for (const std::int32_t id : ids) total += weights[static_cast<std::size_t>(id)];
  return total;
}

// Tokens that may be drawn, the best first. Each filter leaves a prefix of the one order.
std::span<const std::int32_t> filtered(std::span<const std::int32_t> order, std::span<const float> x,
                                       const std::vector<double>& weights, const SampleRow& row) {
  if (row.top_k > 0) order = order.first(std::min(order.size(), static_cast<std::size_t>(row.top_k)));
  if (row.top_p < 1) {
    const double need = static_cast<double>(row.top_p) * sum(order, weights);
    std::size_t n = 0;
    for (double mass = 0; mass < need; ++n) mass += weights[static_cast<std::size_t>(order[n])];
    order = order.first(n);
  }
  const float least =
      static_cast<float>(std::max(static_cast<double>(x[static_cast<std::size_t>(order[0])]) + row.min_p_nats,
                                  static_cast<double>(std::numeric_limits<float>::lowest())));
  const auto end = std::find_if(order.begin(), order.end(),
                                [&](std::int32_t id) { return x[static_cast<std::size_t>(id)] < least; });
  return order.first(static_cast<std::size_t>(end - order.begin()));
}

std::int32_t token_of(std::span<const float> x, const SampleRow& row) {
  if (std::any_of(x.begin(), x.end(), [](float v) { return std::isnan(v) || v == kInfinity; })) return kLogitsNotFinite;
  std::vector<std::int32_t> order(x.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](std::int32_t a, std::int32_t b) {
    return x[static_cast<std::size_t>(a)] > x[static_cast<std::size_t>(b)];
  });
  const float best = x[static_cast<std::size_t>(order[0])];
  if (best == -kInfinity) return kNoCandidate;
  if (row.mode == SampleMode::kGreedy) return order[0];

  std::vector<double> weights(x.size());
  for (std::size_t i = 0; i < x.size(); ++i)
    weights[i] = static_cast<double>(exp_weight(x[i], best, row.inv_temperature));
  const std::span<const std::int32_t> kept = filtered(order, x, weights, row);
  std::vector<std::int32_t> by_id(kept.begin(), kept.end());
  std::sort(by_id.begin(), by_id.end());
  const double at = row.u * sum(by_id, weights);
  double mass = 0;
  return *std::find_if(by_id.begin(), by_id.end(), [&](std::int32_t id) {
    mass += weights[static_cast<std::size_t>(id)];
    return mass > at;
  });
}

}  // namespace

void sample(const SampleParams& p) {
  const auto vocab = static_cast<std::size_t>(p.logits.shape[1]);
  std::vector<float> x(vocab);
  for (std::int64_t r = 0; r < p.logits.shape[0]; ++r) {
    if (p.rows[r].mode == SampleMode::kNone) continue;
    const SampleRow& row = p.rows[r];
    std::copy_n(p.logits.as<float>() + static_cast<std::size_t>(r) * vocab, vocab, x.begin());
    const std::uint64_t* mask = p.masks + row.mask * mask_words(p.logits.shape[1]);
    for (std::size_t i = 0; i < vocab && row.mask >= 0; ++i) {
      if ((mask[i / 64] >> (i % 64) & 1) == 0) x[i] = refused(x[i]);
    }
    const SampleEdit* biases = p.edits + row.first_edit;
    const SampleEdit* seen = biases + row.n_biases;
    for (const SampleEdit& e : std::span(biases, static_cast<std::size_t>(row.n_biases)))
      x[static_cast<std::size_t>(e.id)] += e.amount;
    for (const SampleEdit& e : std::span(seen, static_cast<std::size_t>(row.n_seen))) {
      float& logit = x[static_cast<std::size_t>(e.id)];
      logit = penalised(logit, row.repetition_penalty, e.amount);
    }
    p.tokens[r] = token_of(x, row);
  }
}

}  // namespace glint::reference
