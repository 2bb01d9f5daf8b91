#pragma once
// The model's weights bound to fields: after loading, code says layer.q_a, never a string.

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "models/glm_4_7_flash/config.hpp"
#include "ops/ops.hpp"

namespace glint {

// The multi-token-prediction layer, model.layers.<n_layers>. Model facts §3.
struct MtpWeights {
  ConstView e_norm;     // enorm [H] F32
  ConstView h_norm;     // hnorm [H] F32
  Weight eh_proj;       // [H, 2H]
  LayerWeights block;   // a MoE layer
  ConstView head_norm;  // shared_head.norm [H] F32
  Weight embed;         // its own, or the main embedding
  Weight head;          // its own, or the main lm_head
};

// What loading found and did.
struct LoadReport {
  struct Scheme {
    std::int64_t matrices = 0;
    std::uint64_t bytes = 0;  // in the files, scales included
  };
  std::map<std::string, Scheme> schemes;  // by the names of weights/matrix_reader.hpp
  std::int64_t kv_b_dequantised = 0;      // to BF16: attention reads them along both axes (Ops::supports_absorbed)
  // Quantised matrices that became BF16 since the backend does not read their format: the memory of an unquantised
  // model. The warning is the caller's.
  std::int64_t dequantised = 0;
};

struct ModelWeights {
  ModelConfig config;
  LoadReport report;  // of load_weights
  Weight embed;       // [vocab, H]
  std::vector<LayerWeights> layers;
  ConstView final_norm;             // [H] F32
  Weight lm_head;                   // [vocab, H]
  std::unique_ptr<MtpWeights> mtp;  // null when the checkpoint has none

  // Bytes of weights that one decoded token reads (top_k experts, one embedding row).
  double active_bytes() const;
  double total_bytes() const;

  // Keeps the mapped files and buffers that the views point into alive.
  std::shared_ptr<void> storage;
};

// Called while loading with bytes done and bytes in all. May be empty.
using LoadProgress = std::function<void(std::uint64_t done_bytes, std::uint64_t total_bytes)>;

// Loads MODEL_DIR: config.json and safetensors (one file or shards with an index; per-expert or fused experts).
// Matrices may be quantised, each in any scheme of weights/matrix_reader.hpp; those that the backend does not read
// become BF16. What lies in the file as the ops read it stays memory-mapped in place on host
// backends; F8_E4M3 without scales becomes BF16 (exact); norms, router and bias become F32. Checks every tensor's name,
// dtype and shape. Throws Error with found / expected / file.
ModelWeights load_weights(const std::string& model_dir, Ops& ops, const LoadProgress& progress = {});
// The same of files that the caller has mapped already, and goes on using.
class Checkpoint;
ModelWeights load_weights(std::shared_ptr<const Checkpoint> checkpoint, Ops& ops, const LoadProgress& progress = {});

struct SyntheticOptions {
  ModelConfig config;  // real_config() with any number of layers
  std::uint64_t seed = 1;
  WeightFormat format = WeightFormat::kBF16;
  std::string weights;  // block formats: a recipe, as QuantRecipe::parse reads it ("int4", …); empty: all in `format`
};

// The official GLM-4.7-Flash numbers (model facts §1.1).
ModelConfig real_config();

// Seeded random weights with sane scales (activations stay of order one) and a realistic router skew.
ModelWeights synthetic_weights(const SyntheticOptions& options, Ops& ops, const LoadProgress& progress = {});

}  // namespace glint
