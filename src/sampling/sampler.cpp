#include "sampling/sampler.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "base/check.hpp"
#include "ops/sample.hpp"
#include "sampling/kernels.hpp"

namespace glint {
namespace {

using sampling::kBlock;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

bool edits(const SampleInput& input) {
  return input.params->needs_counts() || !input.params->logit_bias.empty() || !input.allowed_tokens.empty();
}

}  // namespace

const char* sample_status_text(SampleStatus status) {
  switch (status) {
    case SampleStatus::kOk:
      return "ok";
    case SampleStatus::kNotFinite:
      return "the logits hold NaN or infinity";
    case SampleStatus::kNoCandidate:
      return "no token has a finite logit";
  }
  return "unknown";
}

Sampler::Sampler(std::int64_t vocab) : vocab_(vocab) {
  CHECK(vocab > 0 && vocab <= kMaxSampledVocab, std::to_string(vocab));
  const auto n = static_cast<std::size_t>(vocab);
  edited_.resize(n);
  weights_.resize(n);
  block_max_.resize(sampling::n_blocks(n));
  block_weight_.resize(sampling::n_blocks(n));
  kept_.reserve(n);
  scratch_.reserve(n);
  distribution_.reserve(n);
}

Sample Sampler::sample(const SampleInput& input) {
  Sample result;
  result.status = prepare(input, &result);
  if (result.status != SampleStatus::kOk) return result;
  if (input.params->greedy()) {
    finish(input, argmax(), &result);
    return result;
  }
  filter(*input.params);
  finish(input, draw(uniform(input.params->seed, input.position, Draw::kToken)), &result);
  return result;
}

std::span<const TokenProbability> Sampler::distribution(const SampleInput& input, SampleStatus* status) {
  Sample sample;
  target_distribution(input, &sample);
  *status = sample.status;
  return distribution_;
}

std::span<const TokenProbability> Sampler::target_distribution(const SampleInput& input, Sample* sample) {
  distribution_.clear();
  sample->status = prepare(input, sample);
  if (sample->status != SampleStatus::kOk) return distribution_;
  if (input.params->greedy()) {
    distribution_.push_back({argmax(), 1.0F});
    return distribution_;
  }
  filter(*input.params);
  const auto add = [&](std::int32_t id, float w) {
    const auto p = static_cast<float>(static_cast<double>(w) / total_);
    if (p > 0) distribution_.push_back({id, p});
  };
  if (kept_all_) {
    for (std::size_t i = 0; i < weights_.size(); ++i) add(static_cast<std::int32_t>(i), weights_[i]);
  } else {
    for (const Ranked& token : kept_) add(token.id, token.weight);
  }
  return distribution_;
}

SampleStatus Sampler::prepare(const SampleInput& input, Sample* sample) {
  CHECK(input.params != nullptr);
  CHECK(static_cast<std::int64_t>(input.logits.size()) == vocab_, std::to_string(input.logits.size()));
  SampleStatus status = look_at(input.logits);
  if (status != SampleStatus::kOk) return status;
  if (input.params->logprobs >= 0) score(*input.params, sample);
  if (edits(input)) {
    edit(input);
    status = look_at(edited_);
  }
  return status;
}

SampleStatus Sampler::look_at(std::span<const float> logits) {
  logits_ = logits;
  weighed_ = false;
  if (!sampling::scan(logits_, block_max_)) return SampleStatus::kNotFinite;
  max_ = *std::max_element(block_max_.begin(), block_max_.end());
  if (max_ == kInfinity) return SampleStatus::kNotFinite;
  return max_ == -kInfinity ? SampleStatus::kNoCandidate : SampleStatus::kOk;
}

void Sampler::score(const SamplerParams& params, Sample* sample) {
  inv_temperature_ = 1;
  weigh_all();
  raw_max_ = max_;
  raw_log_total_ = std::log(total_);
  if (params.logprobs == 0) return;
  gather(cut_top_k(static_cast<std::size_t>(params.logprobs)), &scratch_);
  std::sort(scratch_.begin(), scratch_.end(), before);
  sample->n_top = static_cast<int>(scratch_.size());
  for (std::size_t i = 0; i < scratch_.size(); ++i) {
    sample->top[i] = {.id = scratch_[i].id, .logprob = raw_logprob(scratch_[i].logit)};
  }
}

void Sampler::edit(const SampleInput& input) {
  const SamplerParams& params = *input.params;
  std::copy(input.logits.begin(), input.logits.end(), edited_.begin());
  if (!input.allowed_tokens.empty()) {
    CHECK(input.allowed_tokens.size() == block_max_.size(), std::to_string(input.allowed_tokens.size()));
    for (std::size_t i = 0; i < edited_.size(); ++i) {
      const std::uint64_t word = input.allowed_tokens[i / kBlock];
      if ((word >> (i % kBlock) & 1) == 0) edited_[i] = -kInfinity;
    }
  }
  for (const auto& [id, bias] : params.logit_bias) {
    CHECK(id >= 0 && id < vocab_, std::to_string(id));
    edited_[static_cast<std::size_t>(id)] += bias;
  }
  if (!params.needs_counts()) return;
  CHECK(input.counts != nullptr, "penalties need TokenCounts");
  for (const TokenCounts::Entry& entry : input.counts->entries()) {
    CHECK(entry.id < vocab_, std::to_string(entry.id));
    float& logit = edited_[static_cast<std::size_t>(entry.id)];
    logit = logit > 0 ? logit / params.repetition_penalty : logit * params.repetition_penalty;
    if (entry.generated > 0) {
      logit -= params.frequency_penalty * static_cast<float>(entry.generated) + params.presence_penalty;
    }
  }
}

// The maximum is taken off first: added to the logarithm, a huge one would swallow it.
float Sampler::raw_logprob(float logit) const {
  return static_cast<float>((static_cast<double>(logit) - static_cast<double>(raw_max_)) - raw_log_total_);
}

void Sampler::finish(const SampleInput& input, std::int32_t token, Sample* sample) const {
  sample->token = token;
  if (input.params->logprobs < 0) return;
  sample->logprob = raw_logprob(input.logits[static_cast<std::size_t>(token)]);
}

std::int32_t Sampler::argmax() const {
  const auto block =
      static_cast<std::size_t>(std::find(block_max_.begin(), block_max_.end(), max_) - block_max_.begin());
  const auto it = std::find(logits_.begin() + static_cast<std::ptrdiff_t>(block * kBlock), logits_.end(), max_);
  CHECK(it != logits_.end());
  return static_cast<std::int32_t>(it - logits_.begin());
}

// The first token at which the sum of weights, in order of id, is more than u · total. Sums are exact: one is.
std::int32_t Sampler::draw(double u) const {
  double rest = u * total_;
  const auto reached = [&rest](double weight) {
    if (rest < weight) return true;
    rest -= weight;
    return false;
  };
  if (!kept_all_) {
    const auto it = std::find_if(kept_.begin(), kept_.end(),
                                 [&](const Ranked& token) { return reached(static_cast<double>(token.weight)); });
    CHECK(it != kept_.end());
    return it->id;
  }
  std::size_t block = 0;
  while (block < block_weight_.size() && !reached(block_weight_[block])) ++block;
  std::size_t i = block * kBlock;
  while (i < weights_.size() && !reached(static_cast<double>(weights_[i]))) ++i;
  CHECK(i < weights_.size());
  return static_cast<std::int32_t>(i);
}

}  // namespace glint
