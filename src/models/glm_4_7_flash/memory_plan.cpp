#include "models/glm_4_7_flash/memory_plan.hpp"

#include <algorithm>

namespace glint {
namespace {

void add(RoleSize& size, std::int64_t count, std::int64_t params, DType stored) {
  size.tensors += count;
  size.params += count * params;
  size.bytes += count * params * static_cast<std::int64_t>(dtype_bytes(stored));
}

// Tensors of the spec that one token's main layers read.
std::int64_t active_count(const TensorSpec& spec, const ModelConfig& main) {
  if (spec.role == Role::kEmbed || spec.role == Role::kHead) return 0;
  const std::int64_t count = tensor_count(spec, main);
  return spec.scope == Scope::kExpert ? count / main.n_experts * main.top_k : count;
}

std::int64_t workspace(const ModelConfig& c, std::int64_t rows) {
  const std::int64_t attention = c.q_lora + 2 * c.n_heads * kQk + kKvRow + c.n_heads * kLatent;
  const std::int64_t moe = c.top_k * (2 * c.expert_inner + c.hidden) + 2 * c.n_shared_experts * c.expert_inner;
  const std::int64_t widest = std::max({attention, moe, 2 * c.dense_inner});
  const std::int64_t logits = c.vocab;  // a row of them for each sequence that decodes; one is counted
  return static_cast<std::int64_t>(sizeof(float)) * (rows * (4 * c.hidden + widest) + logits);
}

}  // namespace

ModelSize model_size(const ModelConfig& config) {
  ModelConfig main = config;
  main.n_mtp_layers = 0;
  ModelSize size;
  for (const TensorSpec& spec : tensor_table()) {
    const std::int64_t params = spec.shape(config).elements();
    const std::int64_t all = tensor_count(spec, config);
    add(size.roles[static_cast<std::size_t>(spec.role)], all, params, spec.stored);
    add(size.total, all, params, spec.stored);
    add(size.mtp, all - tensor_count(spec, main), params, spec.stored);
    size.active_params += active_count(spec, main) * params;
  }
  return size;
}

MemoryPlan plan_memory(const ModelConfig& config, const MemoryPlanOptions& o) {
  const ModelSize size = model_size(config);
  MemoryPlan plan;
  plan.weight_bytes = o.weight_bytes > 0 ? o.weight_bytes : size.total.bytes;
  plan.active_bytes = 2 * (size.active_params + config.vocab * config.hidden);
  plan.cache_bytes_per_token = config.n_cache_layers() * kv_row_bytes(o.codec);
  const std::int64_t pages = (o.context_tokens + kPageTokens - 1) / kPageTokens;
  plan.cache_bytes = o.n_sequences * pages * kPageTokens * plan.cache_bytes_per_token;
  plan.workspace_bytes = workspace(config, std::min(o.chunk_tokens, std::max<std::int64_t>(o.context_tokens, 1)));
  plan.total_bytes = plan.weight_bytes + plan.cache_bytes + plan.workspace_bytes;
  return plan;
}

}  // namespace glint
