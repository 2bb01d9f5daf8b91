#pragma once
// Checkpoints of a small model, made from the tensor table and then spoiled as a test likes.

#include <array>
#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "models/glm_4_7_flash/tensor_table.hpp"
#include "weights/safetensors.hpp"
#include "weights/temp_dir.hpp"

namespace glint {

inline ModelConfig small_config() {
  ModelConfig c = real_config();
  c.hidden = 64;
  c.n_layers = 3;
  c.n_mtp_layers = 1;
  c.n_heads = 2;
  c.q_lora = 32;
  c.dense_inner = 96;
  c.expert_inner = 32;
  c.n_experts = 6;
  c.top_k = 2;
  c.vocab = 128;
  c.max_positions = 256;
  c.eos_ids = {5};
  c.pad_id = 0;
  return c;
}

inline std::string config_text(const ModelConfig& c) {
  const auto n = [](const char* name, std::int64_t v) {
    return ", \"" + std::string(name) + "\": " + std::to_string(v);
  };
  return "{\"model_type\": \"glm4_moe_lite\", \"kv_lora_rank\": 512, \"qk_nope_head_dim\": 192, \"qk_rope_head_dim\": "
         "64, "
         "\"v_head_dim\": 256, \"rope_theta\": 1000000, \"eos_token_id\": 5" +
         n("hidden_size", c.hidden) + n("num_hidden_layers", c.n_layers) +
         n("num_nextn_predict_layers", c.n_mtp_layers) + n("num_attention_heads", c.n_heads) +
         n("q_lora_rank", c.q_lora) + n("intermediate_size", c.dense_inner) +
         n("moe_intermediate_size", c.expert_inner) + n("n_routed_experts", c.n_experts) +
         n("n_shared_experts", c.n_shared_experts) + n("num_experts_per_tok", c.top_k) + n("vocab_size", c.vocab) +
         n("first_k_dense_replace", c.first_dense_layers) + n("max_position_embeddings", c.max_positions) +
         ", \"tie_word_embeddings\": " + (c.tie_embeddings ? "true" : "false") + "}";
}

// Tensors by name. Values are small multiples of 1/8, which every float type down to F8_E4M3 holds exactly.
struct SmallCheckpoint {
  ModelConfig config = small_config();
  std::map<std::string, HostTensor> tensors;

  HostTensor& add(const std::string& name, DType dtype, const Shape& shape) {
    HostTensor t(dtype, shape);
    std::size_t h = std::hash<std::string>{}(name);
    for (std::size_t i = 0; i < static_cast<std::size_t>(shape.elements()); ++i) {
      h = h * 6364136223846793005ULL + 1442695040888963407ULL;
      store_from_float(t.view.data, dtype, i, static_cast<float>(h >> 60) / 8.0F - 0.875F);
    }
    return tensors[name] = std::move(t);
  }

  // Every tensor of the config, matrices of type `matrices`.
  explicit SmallCheckpoint(const ModelConfig& c = small_config(), DType matrices = DType::kBF16) : config(c) {
    for (const TensorSpec& spec : tensor_table()) {
      for (std::int64_t l = 0; l <= c.n_layers; ++l) {
        for (std::int64_t e = 0; e < (spec.scope == Scope::kExpert ? c.n_experts : 1); ++e) {
          if (spec.scope == Scope::kFused || (l == c.n_layers && c.n_mtp_layers == 0)) continue;
          const std::string name = hf_name(spec, l, e);
          if (!find_place(name, c)) continue;
          if (tensors.contains(name) || (spec.scope == Scope::kModel && spec.role == Role::kHead && c.tie_embeddings))
            continue;
          add(name, spec.quantisable ? matrices : spec.stored, spec.shape(c));
        }
      }
    }
  }

  void write(const TempDir& dir, int n_shards = 1) const {
    dir.write("config.json", config_text(config));
    std::vector<std::vector<NamedTensor>> shards(static_cast<std::size_t>(n_shards));
    std::string map;
    std::size_t i = 0;
    for (const auto& [name, t] : tensors) {
      const std::size_t shard = i++ % shards.size();
      shards[shard].push_back({name, t.view});
      map += (map.empty() ? "\"" : ", \"") + name + "\": \"" + std::to_string(shard) + ".safetensors\"";
    }
    if (n_shards == 1) return write_safetensors(dir / "model.safetensors", shards[0], {{"format", "pt"}});
    for (std::size_t s = 0; s < shards.size(); ++s)
      write_safetensors(dir / (std::to_string(s) + ".safetensors"), shards[s]);
    dir.write("model.safetensors.index.json", "{\"metadata\": {\"total_size\": 3}, \"weight_map\": {" + map + "}}");
  }

  // Replaces the per-expert tensors of a layer by the fused pair.
  void fuse_experts(std::int64_t layer) {
    const std::string prefix = "model.layers." + std::to_string(layer) + ".mlp.experts.";
    const std::int64_t e = config.n_experts, inner = config.expert_inner, h = config.hidden;
    const DType dtype = tensors.at(prefix + "0.gate_proj.weight").view.dtype;
    HostTensor gate_up(dtype, {e, 2 * inner, h}), down(dtype, {e, h, inner});
    for (std::int64_t x = 0; x < e; ++x) {
      const auto copy = [&](HostTensor& to, const std::string& field, std::int64_t part, std::int64_t parts) {
        const std::string name = prefix + std::to_string(x) + "." + field + "_proj.weight";
        const View from = tensors.at(name).view;
        std::memcpy(to.view.as<std::byte>() + static_cast<std::size_t>(x * parts + part) * from.bytes(), from.data,
                    from.bytes());
        tensors.erase(name);
      };
      copy(gate_up, "gate", 0, 2);
      copy(gate_up, "up", 1, 2);
      copy(down, "down", 0, 1);
    }
    tensors[prefix + "gate_up_proj"] = std::move(gate_up);
    tensors[prefix + "down_proj"] = std::move(down);
  }
};

}  // namespace glint
