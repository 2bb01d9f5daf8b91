#pragma once
// One request inside the engine: its tokens, sampler state, text on the way out, and times. Made by the thread that
// submits, then owned by the engine thread.

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "engine/stop_matcher.hpp"
#include "glint/engine.hpp"
#include "grammar/token_constraint.hpp"
#include "sampling/sampler.hpp"
#include "text/decoder.hpp"

namespace glint {

struct RequestState {
  RequestId id = 0;
  std::vector<std::int32_t> tokens;  // the prompt, then what was generated; of a scored window also the last target
  std::int64_t prompt_tokens = 0;
  std::int64_t max_tokens = 0;     // clipped to the context
  std::int64_t cached_tokens = 0;  // of the prompt, found in the cache

  SamplerParams sampling;
  TokenCounts counts;                                    // filled only if a penalty needs them
  std::unique_ptr<grammar::TokenConstraint> constraint;  // none: every token may come
  std::vector<std::int32_t> stop_ids;
  bool ignore_eos = false;
  std::optional<IncrementalDecoder> decoder;  // none: a model without a tokenizer gives no text
  StopMatcher stops;
  // Set: this is a window of Engine::score and nothing is sampled. scores[i] = log p(tokens[i + 1] | tokens[0 … i]) for
  // i in [0, prompt_tokens).
  float* scores = nullptr;

  std::int64_t priority = 0;
  double timeout_s = 0;  // 0: none

  double submitted_s = 0;
  double started_s = 0;  // 0: not yet
  double first_token_s = 0;
  double last_token_s = 0;

  std::int64_t generated() const { return static_cast<std::int64_t>(tokens.size()) - prompt_tokens; }

  // Appends a sampled token and gives its event: text that is certain, log-probs, and finish if it was the last.
  // Afterwards only end() may follow if finish is set.
  Event take(const Sample& sample, std::span<const std::int32_t> eos_ids, double now);

  // The last event of a request that ends without a token.
  Event end(Finish finish, std::string error);

  // Times so far, and the counts; logits_hash is left to the caller.
  Usage usage() const;
};

}  // namespace glint
