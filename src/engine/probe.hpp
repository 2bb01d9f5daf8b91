#pragma once
// The model by itself, without scheduler and sampler: logits at every position of given tokens, and the MTP layer's.
// For goldens and measurements; Engine::score is the way for users.

#include <cstdint>
#include <functional>
#include <span>

#include "engine/runtime.hpp"

namespace glint {

// Logits [vocab] at `position`. Valid during the call, which may change them.
using OnLogits = std::function<void(std::int64_t position, std::span<float> logits)>;

struct ProbeOptions {
  std::int64_t chunk_tokens = 0;  // rows a forward pass at most; 0: as many as the model takes
};

// Row p predicts ids[p + 1]; all p in [0, n). `runtime` must not be in use by a scheduler: its pages are overwritten.
// Throws Error when the tokens do not fit its cache.
void probe_logits(Runtime& runtime, std::span<const std::int32_t> ids, const ProbeOptions& options,
                  const OnLogits& on_logits);

// The MTP layer's draft logits: row p predicts ids[p + 2] from the target's final hidden state at p and token p + 1,
// for p in [0, n - 1). Model facts §3.2. Needs model().has_mtp().
void probe_draft_logits(Runtime& runtime, std::span<const std::int32_t> ids, const ProbeOptions& options,
                        const OnLogits& on_logits);

// log softmax(logits)[id].
double log_prob(std::span<const float> logits, std::int32_t id);

}  // namespace glint
