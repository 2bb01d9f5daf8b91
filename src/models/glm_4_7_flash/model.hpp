#pragma once
// The forward pass. Holds weights and activations, no request state.

#include <cstdint>
#include <initializer_list>
#include <vector>

#include "cache/store.hpp"
#include "models/glm_4_7_flash/batch.hpp"
#include "models/glm_4_7_flash/model_weights.hpp"
#include "ops/ops.hpp"

namespace glint {

struct ModelOptions {
  std::int64_t max_rows = 512;   // largest T of a batch
  std::int64_t max_logits = 64;  // largest R of a batch
  std::int64_t max_context = 0;  // largest context of a sequence; 0: the config's max_positions
  float latent_eps = 0;          // eps of q_a_layernorm and kv_a_layernorm; 0: the config's rms_eps (model facts §2.2)
  std::int64_t valid_vocab = 0;  // real tokens; logits of padding rows are -infinity. 0: all
  int window_tokens = 0;         // sliding-window attention; 0: dense
};

class Model {
 public:
  // Allocates the activations and reserves the backend's workspace. `weights` and `ops` must outlive the model.
  Model(const ModelWeights& weights, Ops& ops, const ModelOptions& options);

  const ModelConfig& config() const { return weights_.config; }
  const ModelOptions& options() const { return options_; }
  bool has_mtp() const { return weights_.mtp != nullptr; }

  // Runs the batch: appends its rows to the cache and writes logits [R, vocab] F32 (backend memory) of
  // batch.logit_rows.
  void forward(const Batch& batch, const KvStore& cache, View logits);

  // Rows [0, T) of the last forward() after the final norm, [max_rows, H]; valid until the next call.
  ConstView final_hidden() const { return x_; }

  // Logits of rows [first_row, first_row + n_rows) of the last forward(), n_rows ≤ max_logits: for callers that want
  // more rows of a batch than that (scoring), part by part.
  void logits_of_rows(std::int64_t first_row, std::int64_t n_rows, View logits);

  // One MTP step: row t holds the token after position p (batch.ids = t_{p+1}, batch.positions = p) and hidden[t] the
  // target's final hidden state at p, or a previous draft's output. Logits predict t_{p+2}. Appends to the MTP layer's
  // cache. Model facts §3.2. Needs has_mtp(). Does not disturb final_hidden().
  void draft(const Batch& batch, ConstView hidden, const KvStore& cache, View logits);

  // Rows of the last draft() after shared_head.norm: the `hidden` of the next draft step.
  ConstView draft_hidden() const { return draft_x_; }

 private:
  bool all_layers(const Batch& batch, const KvStore& cache, View hidden, View x);
  void layer(const LayerWeights& w, std::int64_t index, const Batch& batch, const KvStore& cache, View hidden, View x,
             bool has_delta);
  void attention(const LayerWeights& w, int index, const Batch& batch, const KvStore& cache, View x);
  void feed_forward(const LayerWeights& w, int index, View x);
  View allocate(std::initializer_list<std::int64_t> shape);

  const ModelWeights& weights_;
  Ops& ops_;
  ModelOptions options_;

  std::vector<Buffer> buffers_;
  View hidden_;            // [max_rows, H] the residual stream
  View x_;                 // [max_rows, H] the normed input of a block; after forward(): the final hidden state
  View delta_;             // [max_rows, H] a block's output, added to the residual by the next norm
  View q_;                 // [max_rows, N, 256]
  View kv_;                // [max_rows, 576]
  View attn_;              // [max_rows, N·256]
  View draft_hidden_;      // [max_rows, H] the MTP layer's residual stream
  View draft_x_;           // [max_rows, H]
  Buffer expert_ids_;      // int32 [max_rows, K]
  Buffer expert_weights_;  // float [max_rows, K]
};

}  // namespace glint
