#pragma once
// What a model needs in memory, from its config alone. Model facts §1.4.

#include <array>
#include <cstdint>

#include "models/glm_4_7_flash/tensor_table.hpp"

namespace glint {

struct RoleSize {
  std::int64_t tensors = 0;
  std::int64_t params = 0;
  std::int64_t bytes = 0;
};

struct ModelSize {
  std::array<RoleSize, kRoles> roles;  // the MTP layer included
  RoleSize total;
  RoleSize mtp;                    // the MTP layer alone, its own embedding and head included
  std::int64_t active_params = 0;  // that one token of the main layers uses: K experts, no embedding, no head
};

// Of an official checkpoint of this config: matrices in BF16, the correction bias in F32, the MTP layer with an
// embedding and a head of its own.
ModelSize model_size(const ModelConfig& config);

struct MemoryPlanOptions {
  std::int64_t context_tokens = 0;  // a sequence
  std::int64_t n_sequences = 1;
  KvCodec codec = KvCodec::kBF16;
  std::int64_t chunk_tokens = 512;  // rows of a step at most
  std::int64_t weight_bytes = 0;    // as loaded (ModelWeights::total_bytes()); 0: model_size()
};

struct MemoryPlan {
  std::int64_t weight_bytes = 0;
  std::int64_t active_bytes = 0;           // weights that one decoded token reads, head included
  std::int64_t cache_bytes_per_token = 0;  // over the layers that a step runs
  std::int64_t cache_bytes = 0;            // whole pages of kPageTokens
  std::int64_t workspace_bytes = 0;        // estimate: F32 activations of one chunk
  std::int64_t total_bytes = 0;
};

MemoryPlan plan_memory(const ModelConfig& config, const MemoryPlanOptions& options);

}  // namespace glint
