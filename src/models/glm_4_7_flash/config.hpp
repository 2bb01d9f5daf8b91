#pragma once
// The model's numbers, read from config.json (model facts §1). Field names are Hugging Face's, shortened where the
// field has its own word. Every size except the MLA head sizes (ops/params.hpp) comes from here; nothing is hard-coded.

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace glint {

struct QuantConfig;  // weights/matrix_reader.hpp

struct ModelConfig {
  std::int64_t hidden = 0;              // hidden_size
  std::int64_t n_layers = 0;            // num_hidden_layers, the MTP layer not counted
  std::int64_t n_mtp_layers = 0;        // num_nextn_predict_layers: 0 or 1
  std::int64_t n_heads = 0;             // num_attention_heads
  std::int64_t q_lora = 0;              // q_lora_rank
  std::int64_t dense_inner = 0;         // intermediate_size
  std::int64_t expert_inner = 0;        // moe_intermediate_size
  std::int64_t n_experts = 0;           // n_routed_experts (alias num_local_experts)
  std::int64_t n_shared_experts = 0;    // width of the shared expert in units of expert_inner
  std::int64_t top_k = 0;               // num_experts_per_tok
  std::int64_t first_dense_layers = 0;  // first_k_dense_replace, or counted from mlp_layer_types
  bool norm_topk = true;                // norm_topk_prob
  float routed_scale = 1.0F;            // routed_scaling_factor
  float rms_eps = 1e-5F;                // rms_norm_eps
  float rope_theta = 1e6F;              // rope_theta, or rope_parameters.rope_theta
  std::int64_t vocab = 0;               // vocab_size, padding rows included
  std::int64_t max_positions = 0;       // max_position_embeddings
  bool tie_embeddings = false;          // tie_word_embeddings
  std::vector<std::int32_t> eos_ids;    // eos_token_id: an int or a list
  std::int32_t pad_id = -1;             // pad_token_id, -1: none
  std::string dtype;                    // dtype or torch_dtype, informative

  bool is_dense(std::int64_t layer) const { return layer < first_dense_layers; }
  // Layers whose rows a cache holds. The MTP layer's are only kept by who runs it (RuntimeOptions::mtp).
  std::int64_t n_cache_layers() const { return n_layers; }
};

// Parses config.json. `source` names the file in errors. Refuses, with found and expected, a model_type other than
// glm4_moe_lite, head sizes that the kernels do not have, group-limited routing, a scoring function other than sigmoid,
// rope scaling, and sizes that are missing, not positive or absurd.
ModelConfig parse_config(std::string_view json_text, std::string_view source);
ModelConfig load_config(
    const std::string& model_dir);  // MODEL_DIR/config.json, eos ids also from generation_config.json

// What quantization_config (compression_config in older files) says, as hints for the readers of quantised matrices:
// the tensors decide. Empty when there is none. Throws Error when a field that is read has the wrong type.
QuantConfig parse_quant_config(std::string_view json_text, std::string_view source);
QuantConfig load_quant_config(const std::string& model_dir);

}  // namespace glint
