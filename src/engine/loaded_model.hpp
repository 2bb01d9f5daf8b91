#pragma once
// What Engine::open loads: backend, weights and tokenizer.

#include <memory>
#include <optional>

#include "glint/engine.hpp"
#include "models/glm_4_7_flash/model_weights.hpp"
#include "text/tokenizer.hpp"

namespace glint {

struct LoadedModel {
  std::unique_ptr<Ops> ops;  // first: weights and buffers must go before the backend
  ModelWeights weights;
  std::optional<Tokenizer> tokenizer;  // none for synthetic weights without a directory
  // Real tokens of the vocabulary: ids below it may be used. The embedding may have padding rows above.
  std::int64_t valid_vocab = 0;
  double device_s = 0;  // seconds that making `ops` took
  double load_s = 0;    // and all the rest
};

// Throws Error for an unknown device, codec or instruction set, and for whatever is wrong with the checkpoint.
LoadedModel load_model(const EngineOptions& options);

KvCodec kv_codec(const EngineOptions& options);

// Everything but max_context, which memory decides.
ModelInfo describe(const EngineOptions& options, const LoadedModel& model);

}  // namespace glint
