// All decoder layers in one kernel: whether it reads these weights, their table in device memory, and a step.

#include <algorithm>
#include <cstring>

#include "backends/cuda/cuda_ops.hpp"

namespace glint::cuda {
namespace {

bool same_codes(const Mat& a, const Mat& b) {
  return a.shape.cols == b.shape.cols && a.shape.format == b.shape.format && a.shape.group == b.shape.group &&
         a.shape.group_rows == b.shape.group_rows && a.shape.scale_dtype == b.shape.scale_dtype &&
         (a.at.mins == nullptr) == (b.at.mins == nullptr);
}
bool alike(const Mat& a, const Mat& b) { return a.shape.rows == b.shape.rows && same_codes(a, b); }

// An expert, or an MLP, whose gate and up are alike.
bool reads_gated(const ExpertWeights& w) {
  const Mat gate = mat_of(w.gate), up = mat_of(w.up), down = mat_of(w.down);
  return alike(gate, up) && step_reads(gate) && step_reads(up) && step_reads(down);
}

bool reads_layer(const LayerWeights& w) {
  if (w.kv_b.format != WeightFormat::kBF16) return false;
  for (const Weight* m : {&w.q_a, &w.kv_a, &w.q_b, &w.o}) {
    if (!step_reads(mat_of(*m))) return false;
  }
  if (!same_codes(mat_of(w.q_a), mat_of(w.kv_a))) return false;  // a tile may have rows of both
  if (w.dense.gate) return reads_gated(w.dense);
  if (w.experts.empty() || w.experts.size() > kStepExperts || !w.shared.gate || !reads_gated(w.shared)) return false;
  const Mat gate = mat_of(w.experts[0].gate), down = mat_of(w.experts[0].down);
  return std::all_of(w.experts.begin(), w.experts.end(), [&](const ExpertWeights& e) {
    return reads_gated(e) && alike(mat_of(e.gate), gate) && alike(mat_of(e.down), down);
  });
}

// The kernel plans its stages once for all layers of a kind.
bool of_one_kind(const LayerWeights& a, const LayerWeights& b) {
  const auto mlp = [](const ExpertWeights& x, const ExpertWeights& y) {
    return alike(mat_of(x.gate), mat_of(y.gate)) && alike(mat_of(x.down), mat_of(y.down));
  };
  for (const auto m :
       {&LayerWeights::q_a, &LayerWeights::kv_a, &LayerWeights::q_b, &LayerWeights::kv_b, &LayerWeights::o}) {
    if (!alike(mat_of(a.*m), mat_of(b.*m))) return false;
  }
  if (a.dense.gate) return mlp(a.dense, b.dense);
  return a.experts.size() == b.experts.size() && mlp(a.shared, b.shared) && mlp(a.experts[0], b.experts[0]);
}
// Layers without experts come first, and those of a kind are alike.
bool reads_all(std::span<const LayerWeights> layers) {
  if (!std::all_of(layers.begin(), layers.end(), reads_layer)) return false;
  for (std::size_t l = 1; l < layers.size(); ++l) {
    const bool dense = static_cast<bool>(layers[l].dense.gate), before = static_cast<bool>(layers[l - 1].dense.gate);
    if (dense && !before) return false;
    if (dense == before && !of_one_kind(layers[l], layers[l - 1])) return false;
  }
  return true;
}

}  // namespace

void CudaOps::prepare_decoder(std::span<const LayerWeights> layers) {
  decoder_ = {};
  if (!one_kernel_ || layers.empty() || !reads_all(layers)) return;
  DecodeStep s;
  const LayerWeights& first = layers[0];
  s.n_layers = static_cast<int>(layers.size());
  s.hidden = static_cast<int>(first.o.rows);
  s.heads = static_cast<int>(first.o.cols / kValue);
  s.q_lora = static_cast<int>(first.q_a.rows);
  s.top_k = static_cast<int>(limits_.top_k);
  int experts = 0;
  const auto room_for = [&s](const Weight& w) {
    s.scale_room = std::max(s.scale_room, step_scale_room(step_mat(mat_of(w))));
  };
  for (const LayerWeights& w : layers) {
    for (const Weight* m : {&w.q_a, &w.q_b, &w.o}) room_for(*m);
    for (const ExpertWeights* e : {&w.dense, &w.shared, w.experts.empty() ? &w.dense : &w.experts[0]}) {
      if (e->gate) room_for(e->gate), room_for(e->down);
    }
    const auto grow = [](int& known, std::int64_t rows) { known = std::max(known, static_cast<int>(rows)); };
    if (w.dense.gate) {
      grow(s.dense_inner, w.dense.gate.rows);
    } else {
      grow(s.expert_inner, w.experts[0].gate.rows);
      grow(s.shared_inner, w.shared.gate.rows);
      grow(experts, static_cast<std::int64_t>(w.experts.size()));
    }
  }
  s.inner_stride = std::max({s.dense_inner, s.expert_inner, s.shared_inner});
  if (step_blocks(device_.launch(), s) < experts) return;

  // The table: layers, then every MoE layer's experts.
  std::size_t pointers = 0;
  for (const LayerWeights& w : layers) pointers += 3 * w.experts.size();
  const std::size_t layer_bytes = layers.size() * sizeof(StepLayer);
  decoder_.table = device_.allocate(layer_bytes + pointers * sizeof(MatPtr));
  std::vector<StepLayer> table(layers.size());
  std::vector<MatPtr> experts_of;
  experts_of.reserve(pointers);
  const auto* on_device =
      reinterpret_cast<const MatPtr*>(static_cast<const std::byte*>(decoder_.table.data()) + layer_bytes);
  for (std::size_t l = 0; l < layers.size(); ++l) {
    const LayerWeights& w = layers[l];
    StepLayer& t = table[l];
    t = {};
    const auto mat = [&t](StepRole r) -> StepMat& { return t.mats[static_cast<int>(r)]; };
    t.input_norm = w.input_norm.as<float>();
    t.q_a_norm = w.q_a_norm.as<float>();
    t.kv_a_norm = w.kv_a_norm.as<float>();
    t.post_norm = w.post_norm.as<float>();
    t.kv_b = w.kv_b.data;
    mat(StepRole::kQa) = step_mat(mat_of(w.q_a));
    mat(StepRole::kKva) = step_mat(mat_of(w.kv_a));
    mat(StepRole::kQb) = step_mat(mat_of(w.q_b));
    mat(StepRole::kO) = step_mat(mat_of(w.o));
    mat(StepRole::kKvb) = step_mat(mat_of(w.kv_b));
    const ExpertWeights& shared = w.dense.gate ? w.dense : w.shared;
    mat(StepRole::kSharedGate) = step_mat(mat_of(shared.gate));
    mat(StepRole::kSharedDown) = step_mat(mat_of(shared.down));
    t.shared_up = mat_of(shared.up).at;
    if (w.dense.gate) continue;
    mat(StepRole::kGate) = step_mat(mat_of(w.experts[0].gate));
    mat(StepRole::kDown) = step_mat(mat_of(w.experts[0].down));
    t.router = w.router.as<float>();
    t.router_bias = w.router_bias.as<float>();
    t.experts = on_device + experts_of.size();
    t.n_experts = static_cast<std::int32_t>(w.experts.size());
    for (const ExpertWeights& e : w.experts) experts_of.push_back(mat_of(e.gate).at);
    for (const ExpertWeights& e : w.experts) experts_of.push_back(mat_of(e.up).at);
    for (const ExpertWeights& e : w.experts) experts_of.push_back(mat_of(e.down).at);
  }
  s.known = step_model(s, table);
  device_.upload(decoder_.table.data(), table.data(), layer_bytes);
  if (pointers > 0) {
    device_.upload(static_cast<std::byte*>(decoder_.table.data()) + layer_bytes, experts_of.data(),
                   pointers * sizeof(MatPtr));
  }
  s.layers = static_cast<const StepLayer*>(decoder_.table.data());

  // The step's own workspace: it holds sums of all blocks at once, and counters that are zero between steps.
  const std::int64_t n = device_.launch().n_sms, heads = s.heads;
  std::vector<std::pair<float**, std::int64_t>> parts{
      {&s.low, s.q_lora},
      {&s.kv, kKvRow},
      {&s.q, heads * kQk},
      {&s.query, kStepJoinParts * heads * kLatent},
      {&s.partial, n * heads * kLatent},
      {reinterpret_cast<float**>(&s.partial_ml), n * heads * 2},
      {&s.latent, heads * kLatent},
      {&s.attended, heads * kValue},
      {&s.scores, std::max(1, experts)},
      {&s.h, std::int64_t{s.top_k + 1} * s.inner_stride},
      {reinterpret_cast<float**>(&s.counters), 64},
  };
  std::int64_t floats = 0;
  for (const auto& [at, size] : parts) floats += (size + 63) / 64 * 64;
  decoder_.workspace = device_.allocate(static_cast<std::size_t>(floats) * sizeof(float));
  auto* next = static_cast<float*>(decoder_.workspace.data());
  for (const auto& [at, size] : parts) {
    *at = next;
    next += (size + 63) / 64 * 64;
  }
  load_step_kernels(device_.launch(), s);
  decoder_.shape = s;
  decoder_.layers = layers.data();
  decoder_.n_layers = layers.size();
}

bool CudaOps::decoder(const DecoderParams& p) {
  const std::int64_t rows = p.hidden.shape[0];
  if (decoder_.layers != p.layers.data() || decoder_.n_layers != p.layers.size() || p.layers.empty()) return false;
  if (rows != 1) return false;
  if (p.top_k > decoder_.shape.top_k) return false;
  if (p.pages.codec == KvCodec::kF32 || !supports(p.pages.codec)) return false;
  DecodeStep s = decoder_.shape;
  s.top_k = p.top_k;
  const Launch& l = begin();
  if (step_blocks(l, s) == 0) return false;
  s.normalize = p.normalize;
  s.routed_scale = p.routed_scale;
  s.eps = p.eps;
  s.latent_eps = p.latent_eps;
  s.rope = rope(p.positions, p.rope_theta);
  s.slots = p.slots;
  s.cache = cache_view(p.pages, p.batch, p.window_tokens);
  s.layer_stride = p.layer_stride_bytes;
  s.stream = p.hidden.as<float>();
  s.final_norm = p.final_norm.as<float>();
  s.out = p.out.as<float>();
  decode_step(l, s);
  return true;
}

}  // namespace glint::cuda
