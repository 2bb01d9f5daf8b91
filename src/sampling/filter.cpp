// Steps 6-9 of the sampler. Each filter keeps a prefix of the tokens in order of (logit, id), so it is one cut: the
// last token that stays. Cuts are found by selection on few candidates, never by sorting the vocabulary; blocks of
// tokens whose largest logit is below what is looked for are not read.

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "ops/sample.hpp"
#include "sampling/kernels.hpp"
#include "sampling/sampler.hpp"

namespace glint {
namespace {

using sampling::kBlock;

constexpr std::int32_t kLastId = std::numeric_limits<std::int32_t>::max();
constexpr float kLowest = std::numeric_limits<float>::lowest();

// First try of top-p: tokens within so many nats of the best. A trained model's nucleus nearly always lies in it.
constexpr float kNearNats = 6.0F;
constexpr std::size_t kNearBlocks = 128;

// Histogram of top-p for flat distributions: buckets of 1/16 nat below the best; the last takes all the rest.
constexpr std::size_t kBuckets = 512;
constexpr float kBucketsANat = 16.0F;

}  // namespace

void Sampler::weigh_all() {
  sampling::exp_row(logits_, max_, inv_temperature_, weights_, block_weight_);
  weighed_ = true;
  total_ = 0;
  for (const double w : block_weight_) total_ += w;
}

void Sampler::filter(const SamplerParams& params) {
  const float inv_temperature = 1.0F / params.temperature;
  weighed_ &= inv_temperature == inv_temperature_;  // the log-probabilities may have weighed the same logits
  inv_temperature_ = inv_temperature;
  kept_all_ = true;
  if (params.top_k > 0 && params.top_k < vocab_) {
    keep(cut_top_k(static_cast<std::size_t>(params.top_k)));
  } else if (params.top_p < 1 || params.min_p == 0) {
    if (!weighed_) weigh_all();
  }
  if (params.top_p < 1) keep(cut_top_p(static_cast<double>(params.top_p)));
  if (params.min_p > 0) {
    const double least = static_cast<double>(max_) + min_p_nats(params);
    const Ranked cut{
        .logit = static_cast<float>(std::max(least, static_cast<double>(kLowest))), .id = kLastId, .weight = 0};
    if (kept_all_) {
      keep(cut);
    } else {
      std::erase_if(kept_, [&](const Ranked& token) { return before(cut, token); });
      total_ = 0;
      for (const Ranked& token : kept_) total_ += static_cast<double>(token.weight);
    }
  }
}

// Every token up to the cut, in order of id. -infinity never comes along: no cut lies below the lowest finite value.
// Without a branch a token, because for flat distributions it would be unpredictable.
void Sampler::gather(Ranked cut, std::vector<Ranked>* out) const {
  out->clear();
  std::array<Ranked, kBlock> taken;
  for (std::size_t block = 0; block < block_max_.size(); ++block) {
    if (block_max_[block] < cut.logit) continue;
    const std::size_t end = std::min(logits_.size(), (block + 1) * kBlock);
    std::size_t n = 0;
    for (std::size_t i = block * kBlock; i < end; ++i) {
      const Ranked token{.logit = logits_[i], .id = static_cast<std::int32_t>(i), .weight = weights_[i]};
      taken[n] = token;
      n += static_cast<std::size_t>(token.logit > cut.logit) |
           static_cast<std::size_t>((token.logit == cut.logit) & (token.id <= cut.id));
    }
    out->insert(out->end(), taken.begin(), taken.begin() + static_cast<std::ptrdiff_t>(n));
  }
}

void Sampler::keep(Ranked cut) {
  gather(cut, &kept_);
  kept_all_ = false;
  total_ = 0;
  for (Ranked& token : kept_) {
    if (!weighed_) token.weight = exp_weight(token.logit, max_, inv_temperature_);
    total_ += static_cast<double>(token.weight);
  }
}

// The k-th token. A buffer of candidates is cut back to the best k whenever it holds twice as many; from then on only
// larger logits enter it (an equal one with a higher id ranks behind).
Sampler::Ranked Sampler::cut_top_k(std::size_t k) {
  std::vector<Ranked>& best = scratch_;
  best.clear();
  const std::size_t room = std::max<std::size_t>(2 * k, 64);
  const auto select = [&] {
    std::nth_element(best.begin(), best.begin() + static_cast<std::ptrdiff_t>(k) - 1, best.end(), before);
  };
  float more_than = -std::numeric_limits<float>::infinity();
  for (std::size_t block = 0; block < block_max_.size(); ++block) {
    if (block_max_[block] <= more_than) continue;
    const std::size_t end = std::min(logits_.size(), (block + 1) * kBlock);
    for (std::size_t i = block * kBlock; i < end; ++i) {
      if (logits_[i] <= more_than) continue;
      best.push_back({.logit = logits_[i], .id = static_cast<std::int32_t>(i), .weight = 0});
      if (best.size() < room) continue;
      select();
      best.resize(k);
      more_than = best[k - 1].logit;
    }
  }
  if (best.size() < k) return {.logit = kLowest, .id = kLastId, .weight = 0};
  select();
  return best[k - 1];
}

// The last token of the nucleus, of what is kept at the moment.
Sampler::Ranked Sampler::cut_top_p(double top_p) {
  const double need = top_p * total_;
  if (!kept_all_) {
    scratch_ = kept_;
    return cut_mass(need);
  }
  const float near = std::max(max_ - kNearNats / inv_temperature_, kLowest);
  if (is_near(near)) {
    gather({.logit = near, .id = kLastId, .weight = 0}, &scratch_);
    double mass = 0;
    for (const Ranked& token : scratch_) mass += static_cast<double>(token.weight);
    if (mass >= need) return cut_mass(need);
  }
  return cut_histogram(need);
}

// Whether few blocks hold a token of that logit or more.
bool Sampler::is_near(float at_least) const {
  std::size_t blocks = 0;
  for (const float best : block_max_) blocks += static_cast<std::size_t>(best >= at_least);
  return blocks <= kNearBlocks;
}

// The last token of the shortest prefix of scratch_, in order, that weighs at least `need`. Sums and
// differences here are exact (ops/sample.hpp). Halves the candidates by selection until few are left to sort.
Sampler::Ranked Sampler::cut_mass(double need) {
  auto first = scratch_.begin();
  auto last = scratch_.end();
  while (last - first > 32) {
    const auto middle = first + (last - first) / 2;
    std::nth_element(first, middle, last, before);
    double mass = 0;
    for (auto it = first; it != middle; ++it) mass += static_cast<double>(it->weight);
    if (mass >= need) {
      last = middle;
    } else {
      need -= mass;
      first = middle;
    }
  }
  std::sort(first, last, before);
  for (auto it = first; it != last; ++it) {
    need -= static_cast<double>(it->weight);
    if (need <= 0) return *it;
  }
  return *(last - 1);
}

// cut_mass over the whole vocabulary: finds the bucket in which the sum is reached, then the cut in that bucket alone.
Sampler::Ranked Sampler::cut_histogram(double need) {
  const float scale = inv_temperature_ * kBucketsANat;
  const auto bucket_of = [&](float logit) {
    return static_cast<std::int32_t>(std::min((max_ - logit) * scale, static_cast<float>(kBuckets - 1)));
  };
  // Two histograms by turns: neighbours often fall into one bucket, and each add would wait for the one before.
  std::array<std::array<double, kBuckets>, 2> half{};
  for (std::size_t i = 0; i < logits_.size(); ++i) {
    half[i % 2][static_cast<std::size_t>(bucket_of(logits_[i]))] += static_cast<double>(weights_[i]);
  }
  const auto mass = [&](std::size_t bucket) { return half[0][bucket] + half[1][bucket]; };
  std::size_t bucket = 0;
  while (mass(bucket) < need) need -= mass(bucket++);  // all of them together have more
  scratch_.clear();
  for (std::size_t i = 0; i < logits_.size(); ++i) {
    if (bucket_of(logits_[i]) == static_cast<std::int32_t>(bucket) && logits_[i] >= kLowest) {
      scratch_.push_back({.logit = logits_[i], .id = static_cast<std::int32_t>(i), .weight = weights_[i]});
    }
  }
  return cut_mass(need);
}

}  // namespace glint
