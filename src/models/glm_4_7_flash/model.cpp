#include "models/glm_4_7_flash/model.hpp"

#include <algorithm>

#include "base/check.hpp"

namespace glint {

Model::Model(const ModelWeights& weights, Ops& ops, const ModelOptions& options)
    : weights_(weights), ops_(ops), options_(options) {
  const ModelConfig& c = weights.config;
  if (options_.latent_eps == 0) options_.latent_eps = c.rms_eps;
  if (options_.max_context == 0) options_.max_context = c.max_positions;
  CHECK(options_.max_rows > 0 && options_.max_logits > 0);
  CHECK(options_.valid_vocab >= 0 && options_.valid_vocab <= c.vocab);

  const std::int64_t t = options_.max_rows;
  hidden_ = allocate({t, c.hidden});
  x_ = allocate({t, c.hidden});
  delta_ = allocate({t, c.hidden});
  q_ = allocate({t, c.n_heads, kQk});
  kv_ = allocate({t, kKvRow});
  attn_ = allocate({t, c.n_heads * kValue});
  if (has_mtp()) {
    draft_hidden_ = allocate({t, c.hidden});
    draft_x_ = allocate({t, c.hidden});
  }
  expert_ids_ = ops_.allocate(static_cast<std::size_t>(t * c.top_k) * sizeof(std::int32_t));
  expert_weights_ = ops_.allocate(static_cast<std::size_t>(t * c.top_k) * sizeof(float));

  ops_.reserve({.max_rows = t,
                .max_logits = options_.max_logits,
                .max_context = options_.max_context,
                .hidden = c.hidden,
                .n_heads = c.n_heads,
                .q_lora = c.q_lora,
                .dense_inner = c.dense_inner,
                .expert_inner = c.expert_inner * std::max<std::int64_t>(1, c.n_shared_experts),
                .n_experts = c.n_experts,
                .top_k = c.top_k,
                .vocab = c.vocab});
  ops_.prepare_decoder(weights.layers);
}

View Model::allocate(std::initializer_list<std::int64_t> shape) {
  View v{nullptr, DType::kF32, Shape(shape)};
  v.data = buffers_.emplace_back(ops_.allocate(v.bytes())).data();
  return v;
}

void Model::forward(const Batch& batch, const KvStore& cache, View logits) {
  const ModelConfig& c = weights_.config;
  const std::int64_t t = batch.n_rows;
  CHECK(t > 0 && t <= options_.max_rows, std::to_string(t) + " rows");
  const View hidden = hidden_.first(t);
  const View x = x_.first(t);

  ops_.embed({.tag = {"embed"}, .ids = batch.ids, .table = weights_.embed, .out = hidden});
  if (!all_layers(batch, cache, hidden, x)) {
    for (std::int64_t l = 0; l < c.n_layers; ++l) {
      layer(weights_.layers[static_cast<std::size_t>(l)], l, batch, cache, hidden, x, l > 0);
    }
    ops_.rms_norm({.tag = {"final_norm"},
                   .hidden = hidden,
                   .delta = delta_.first(t),
                   .weight = weights_.final_norm,
                   .eps = c.rms_eps,
                   .out = x});
  }
  if (batch.n_logits > 0) {
    ops_.lm_head({.tag = {"lm_head"},
                  .x = x,
                  .rows = batch.logit_rows,
                  .w = weights_.lm_head,
                  .valid_vocab = options_.valid_vocab,
                  .logits = logits.first(batch.n_logits)});
  }
}

// The same as layer() for each and the final norm, where the backend has it in one.
bool Model::all_layers(const Batch& batch, const KvStore& cache, View hidden, View x) {
  const ModelConfig& c = weights_.config;
  return ops_.decoder({.tag = {"decoder"},
                       .layers = weights_.layers,
                       .positions = batch.positions,
                       .slots = batch.slots,
                       .pages = cache.layer(0),
                       .layer_stride_bytes = cache.layer_bytes(),
                       .batch = batch.attend,
                       .window_tokens = options_.window_tokens,
                       .top_k = static_cast<int>(c.top_k),
                       .normalize = c.norm_topk,
                       .routed_scale = c.routed_scale,
                       .eps = c.rms_eps,
                       .latent_eps = options_.latent_eps,
                       .rope_theta = c.rope_theta,
                       .hidden = hidden,
                       .final_norm = weights_.final_norm,
                       .out = x});
}

void Model::logits_of_rows(std::int64_t first_row, std::int64_t n_rows, View logits) {
  CHECK(first_row >= 0 && n_rows > 0 && first_row + n_rows <= options_.max_rows && n_rows <= options_.max_logits);
  const std::int64_t h = weights_.config.hidden;
  ops_.lm_head({.tag = {"lm_head"},
                .x = {x_.as<float>() + first_row * h, DType::kF32, {n_rows, h}},
                .w = weights_.lm_head,
                .valid_vocab = options_.valid_vocab,
                .logits = logits.first(n_rows)});
}

// hidden += Attn(RMS(hidden)); hidden += MLP(RMS(hidden)). Each addition happens in the next norm (delta_), so after
// the last layer one is still to be made.
void Model::layer(const LayerWeights& w, std::int64_t index, const Batch& batch, const KvStore& cache, View hidden,
                  View x, bool has_delta) {
  const int l = static_cast<int>(index);
  const View delta = delta_.first(batch.n_rows);
  const float eps = weights_.config.rms_eps;
  ops_.rms_norm({.tag = {"input_norm", l},
                 .hidden = hidden,
                 .delta = has_delta ? ConstView(delta) : ConstView{},
                 .weight = w.input_norm,
                 .eps = eps,
                 .out = x});
  attention(w, l, batch, cache, x);
  ops_.rms_norm(
      {.tag = {"post_norm", l}, .hidden = hidden, .delta = delta, .weight = w.post_norm, .eps = eps, .out = x});
  feed_forward(w, l, x);
}

void Model::attention(const LayerWeights& w, int index, const Batch& batch, const KvStore& cache, View x) {
  const std::int64_t t = batch.n_rows;
  const View q = q_.first(t);
  const View kv = kv_.first(t);
  const View attn = attn_.first(t);
  const KvPages pages = cache.layer(index);
  ops_.mla_project({.tag = {"mla_project", index},
                    .x = x,
                    .positions = batch.positions,
                    .q_a = w.q_a,
                    .q_a_norm = w.q_a_norm,
                    .q_b = w.q_b,
                    .kv_a = w.kv_a,
                    .kv_a_norm = w.kv_a_norm,
                    .latent_eps = options_.latent_eps,
                    .rope_theta = weights_.config.rope_theta,
                    .n_seqs = batch.attend.n_seqs,
                    .q = q,
                    .kv = kv});
  ops_.mla_append({.tag = {"mla_append", index}, .kv = kv, .slots = batch.slots, .pages = pages});
  ops_.mla_attend({.tag = {"mla_attend", index},
                   .q = q,
                   .kv_b = w.kv_b,
                   .pages = pages,
                   .batch = batch.attend,
                   .window_tokens = options_.window_tokens,
                   .out = attn});
  ops_.linear({.tag = {"o_proj", index}, .x = attn, .w = w.o, .out = delta_.first(t)});
}

void Model::feed_forward(const LayerWeights& w, int index, View x) {
  const ModelConfig& c = weights_.config;
  const View out = delta_.first(x.shape[0]);
  if (w.dense.gate) {
    ops_.mlp({.tag = {"mlp", index}, .x = x, .mlp = w.dense, .out = out});
    return;
  }
  auto* ids = static_cast<std::int32_t*>(expert_ids_.data());
  auto* weights = static_cast<float*>(expert_weights_.data());
  ops_.route({.tag = {"route", index},
              .x = x,
              .w = w.router,
              .bias = w.router_bias,
              .top_k = static_cast<int>(c.top_k),
              .normalize = c.norm_topk,
              .scale = c.routed_scale,
              .ids = ids,
              .weights = weights});
  ops_.moe({.tag = {"moe", index},
            .x = x,
            .top_k = static_cast<int>(c.top_k),
            .ids = ids,
            .weights = weights,
            .experts = w.experts,
            .shared = w.shared,
            .out = out});
}

void Model::draft(const Batch& batch, ConstView hidden, const KvStore& cache, View logits) {
  CHECK(has_mtp());
  const MtpWeights& mtp = *weights_.mtp;
  const ModelConfig& c = weights_.config;
  const std::int64_t t = batch.n_rows;
  CHECK(t > 0 && t <= options_.max_rows && hidden.shape[0] == t, std::to_string(t) + " rows");
  const int l = static_cast<int>(c.n_layers);
  const View stream = draft_hidden_.first(t);
  const View x = draft_x_.first(t);
  const View embed = delta_.first(t);

  ops_.embed({.tag = {"mtp_embed", l}, .ids = batch.ids, .table = mtp.embed, .out = embed});
  ops_.mtp_input({.tag = {"mtp_input", l},
                  .embed = embed,
                  .hidden = hidden,
                  .e_norm = mtp.e_norm,
                  .h_norm = mtp.h_norm,
                  .eps = c.rms_eps,
                  .eh_proj = mtp.eh_proj,
                  .out = stream});
  layer(mtp.block, l, batch, cache, stream, x, false);
  ops_.rms_norm({.tag = {"mtp_head_norm", l},
                 .hidden = stream,
                 .delta = delta_.first(t),
                 .weight = mtp.head_norm,
                 .eps = c.rms_eps,
                 .out = x});
  if (batch.n_logits > 0) {
    ops_.lm_head({.tag = {"mtp_head", l},
                  .x = x,
                  .rows = batch.logit_rows,
                  .w = mtp.head,
                  .valid_vocab = options_.valid_vocab,
                  .logits = logits.first(batch.n_logits)});
  }
}

}  // namespace glint
