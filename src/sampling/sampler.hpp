#pragma once
// Logits → token, on the host. The chain, in this order:
//   1. log-probabilities, if asked for: of the model's own distribution, softmax(logits), before all that follows;
//   2. grammar mask: tokens that are not allowed get -infinity;
//   3. logit bias: logit += bias;
//   4. repetition penalty, for tokens of the prompt or generated: logit > 0 ? logit / r : logit · r;
//   5. frequency and presence penalty, for generated tokens (as OpenAI and vLLM do; the prompt does not count):
//      logit -= frequency · times generated + presence;
//   6. temperature: logit / t; t = 0 takes the largest logit and ends here;
//   7. top-k: the k largest;
//   8. top-p: the fewest of the largest whose probabilities, renormalised after top-k, sum to at least p;
//   9. min-p: those with probability ≥ min_p · the largest probability;
//  10. the draw: inverse CDF in order of token id, with uniform(seed, position).
// Equal logits rank by id, the lower first, so that steps 6-9 never depend on a sort's whims. Each of 7-9 keeps a
// prefix of that order, hence at least the best token.

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "sampling/params.hpp"
#include "sampling/random.hpp"
#include "sampling/token_counts.hpp"

namespace glint {

enum class SampleStatus : std::uint8_t {
  kOk,
  kNotFinite,    // the logits, or the logits after bias and penalties, hold NaN or +infinity
  kNoCandidate,  // every logit is -infinity, or the mask allows no token that has a finite logit
};
const char* sample_status_text(SampleStatus status);

struct ScoredToken {
  std::int32_t id = -1;
  float logprob = 0;
};

struct SampleInput {
  std::span<const float> logits;                  // [vocab]
  const SamplerParams* params = nullptr;          // validated
  const TokenCounts* counts = nullptr;            // needed when params->needs_counts()
  std::int64_t position = 0;                      // tokens that precede the one to draw
  std::span<const std::uint64_t> allowed_tokens;  // bit id % 64 of word id / 64; empty: every token is allowed
};

struct Sample {
  SampleStatus status = SampleStatus::kOk;
  std::int32_t token = -1;  // ≥ 0 if and only if status is kOk
  float logprob = 0;        // of token, when params->logprobs ≥ 0
  int n_top = 0;            // entries of top, the most likely first
  std::array<ScoredToken, kMaxTopLogprobs> top{};
};

struct TokenProbability {
  std::int32_t id = -1;
  float probability = 0;
};

// Holds scratch for one vocabulary; one a thread. No call allocates once the vectors have reached their sizes, which
// the constructor reserves. Results do not depend on earlier calls.
class Sampler {
 public:
  explicit Sampler(std::int64_t vocab);

  // Draws the token.
  Sample sample(const SampleInput& input);

  // The distribution that sample() draws from, in order of id, tokens of probability 0 left out; greedy: one token. The
  // span is valid until the next call. Empty when *status is not kOk.
  std::span<const TokenProbability> distribution(const SampleInput& input, SampleStatus* status);

  // Verifies one drafted token whose drafter had no randomness (or whose distribution is unknown): draws from the
  // target as sample() would and tells whether the draw is the draft. Lossless, accepts with probability p(draft),
  // which no method can better for such a draft, and the tokens are those of a run without speculation.
  Sample verify(const SampleInput& input, std::int32_t draft, bool* accepted);

  // Verifies a token drawn from `draft_distribution` with Draw::kDraft (Leviathan et al. 2023, arXiv 2211.17192):
  // accepts with probability min(1, p/q), else draws from max(p - q, 0). Lossless in distribution; accepts more than
  // verify() when the drafter is uncertain; the tokens differ from a run without speculation.
  // draft_distribution: in order of id, from distribution() of another Sampler or copied.
  Sample verify_drawn(const SampleInput& input, std::int32_t draft,
                      std::span<const TokenProbability> draft_distribution, bool* accepted);

  std::int64_t vocab() const { return vocab_; }

 private:
  struct Ranked {
    float logit = 0;
    std::int32_t id = -1;
    float weight = 0;  // exp((logit - max) / t), where it is needed
  };
  static bool before(const Ranked& a, const Ranked& b) {
    return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
  }

  // Steps 1-5.
  SampleStatus prepare(const SampleInput& input, Sample* sample);
  SampleStatus look_at(std::span<const float> logits);
  void score(const SamplerParams& params, Sample* sample);
  void edit(const SampleInput& input);
  // Steps 6-9. Sets kept_all_ or kept_ and total_.
  void filter(const SamplerParams& params);
  Ranked cut_top_k(std::size_t k);
  Ranked cut_top_p(double top_p);
  Ranked cut_mass(double need);
  Ranked cut_histogram(double need);
  bool is_near(float at_least) const;
  void gather(Ranked cut, std::vector<Ranked>* out) const;
  void keep(Ranked cut);
  void weigh_all();

  std::span<const TokenProbability> target_distribution(const SampleInput& input, Sample* sample);

  std::int32_t argmax() const;
  std::int32_t draw(double u) const;
  float raw_logprob(float logit) const;
  void finish(const SampleInput& input, std::int32_t token, Sample* sample) const;

  std::int64_t vocab_;
  std::span<const float> logits_;  // of the step at hand: the input's own or edited_
  float max_ = 0;                  // of logits_
  float inv_temperature_ = 1;
  float raw_max_ = 0;                 // of the input's logits
  double raw_log_total_ = 0;          // log Σ exp(logit - raw_max_) over them
  bool kept_all_ = true;              // nothing is cut: weights_ stand for every token, kept_ is not used
  bool weighed_ = false;              // weights_ are of logits_ and inv_temperature_
  double total_ = 0;                  // weight of all that is kept
  std::vector<float> edited_;         // [vocab]
  std::vector<float> block_max_;      // of logits_, a block of 64 tokens each
  std::vector<float> weights_;        // [vocab] exp((logit - max) / t), when weigh_all() ran
  std::vector<double> block_weight_;  // their sum a block
  std::vector<Ranked> kept_;          // in order of id
  std::vector<Ranked> scratch_;
  std::vector<TokenProbability> distribution_;
};

// Draws a draft token from a distribution (in order of id) with Draw::kDraft.
std::int32_t draw_draft(std::span<const TokenProbability> distribution, std::uint64_t seed, std::int64_t position);

}  // namespace glint
