#include "models/glm_4_7_flash/model_weights.hpp"

#include <algorithm>

namespace glint {
namespace {

double bytes_of(const ExpertWeights& e) { return static_cast<double>(e.gate.bytes() + e.up.bytes() + e.down.bytes()); }

// A layer's bytes with n_experts of its experts.
double layer_bytes(const LayerWeights& l, std::size_t n_experts) {
  const std::size_t views = l.input_norm.bytes() + l.q_a_norm.bytes() + l.kv_a_norm.bytes() + l.post_norm.bytes() +
                            (l.router ? l.router.bytes() + l.router_bias.bytes() : 0);
  const std::int64_t matrices = l.q_a.bytes() + l.q_b.bytes() + l.kv_a.bytes() + l.kv_b.bytes() + l.o.bytes();
  double bytes = static_cast<double>(views) + static_cast<double>(matrices) + bytes_of(l.dense) + bytes_of(l.shared);
  for (std::size_t e = 0; e < std::min(n_experts, l.experts.size()); ++e) bytes += bytes_of(l.experts[e]);
  return bytes;
}

}  // namespace

double ModelWeights::active_bytes() const {
  const auto k = static_cast<std::size_t>(config.top_k);
  double bytes = static_cast<double>(final_norm.bytes()) + static_cast<double>(lm_head.bytes());
  bytes += static_cast<double>(embed.bytes()) / static_cast<double>(embed.rows);
  for (const LayerWeights& l : layers) bytes += layer_bytes(l, k);
  return bytes;
}

double ModelWeights::total_bytes() const {
  const auto all = static_cast<std::size_t>(config.n_experts);
  double bytes = static_cast<double>(final_norm.bytes()) + static_cast<double>(embed.bytes());
  if (lm_head.data != embed.data) bytes += static_cast<double>(lm_head.bytes());
  for (const LayerWeights& l : layers) bytes += layer_bytes(l, all);
  if (!mtp) return bytes;
  bytes += static_cast<double>(mtp->e_norm.bytes() + mtp->h_norm.bytes() + mtp->head_norm.bytes());
  bytes += static_cast<double>(mtp->eh_proj.bytes()) + layer_bytes(mtp->block, all);
  if (mtp->embed.data != embed.data) bytes += static_cast<double>(mtp->embed.bytes());
  if (mtp->head.data != lm_head.data) bytes += static_cast<double>(mtp->head.bytes());
  return bytes;
}

}  // namespace glint
