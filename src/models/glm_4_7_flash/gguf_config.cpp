// GGUF metadata → ModelConfig, model facts §4.3.

#include <algorithm>

#include "models/glm_4_7_flash/load_gguf.hpp"
#include "ops/params.hpp"
#include "ops/sample.hpp"

namespace glint {
namespace {

// Bounds against nonsense and overflow, as in config.cpp.
constexpr std::int64_t kMaxLayers = 1024;
constexpr std::int64_t kMaxWidth = 1 << 17;
constexpr std::int64_t kMaxHeads = 1024;
constexpr std::int64_t kMaxExperts = 4096;
constexpr std::int64_t kMaxPositions = std::int64_t{1} << 30;
constexpr std::int64_t kMaxInt = INT32_MAX;

constexpr std::int64_t kSoftmax = 1, kSigmoid = 2;  // llama.cpp's numbers of gating functions

class Reader {
 public:
  explicit Reader(const GgufModel& file) : file_(file), m_(file.metadata()) {
    const auto arch = m_.text("general.architecture");
    if (arch != "deepseek2") {
      m_.refuse("general.architecture", arch ? '"' + std::string(*arch) + '"' : "nothing", "\"deepseek2\"",
                "Glint runs GLM-4.7-Flash and its derivatives only");
    }
  }

  ModelConfig read() {
    ModelConfig c;
    c.n_mtp_layers = integer("nextn_predict_layers", 0, 1).value_or(0);
    c.n_layers = required("block_count", 1 + c.n_mtp_layers, kMaxLayers) - c.n_mtp_layers;
    c.hidden = required("embedding_length", 1, kMaxWidth);
    c.dense_inner = required("feed_forward_length", 1, kMaxWidth);
    c.max_positions = required("context_length", 1, kMaxPositions);
    read_attention(c);
    read_experts(c);
    read_rope(c);
    read_vocabulary(c);
    c.dtype = "gguf";
    return c;
  }

 private:
  static std::string key(const std::string& name) { return "deepseek2." + name; }
  std::optional<std::int64_t> integer(const std::string& name, std::int64_t min, std::int64_t max) const {
    return m_.integer(key(name), min, max);
  }
  std::int64_t required(const std::string& name, std::int64_t min, std::int64_t max) const {
    return m_.required_integer(key(name), min, max);
  }
  void must_be(const std::string& name, std::int64_t value, const std::string& reason) const {
    const auto v = integer(name, 0, kMaxInt);
    if (v && *v != value) m_.refuse(key(name), std::to_string(*v), std::to_string(value) + ", " + reason);
  }

  void read_attention(ModelConfig& c) const {
    const std::string kernels = "the size that the MLA kernels have";
    c.n_heads = required("attention.head_count", 1, kMaxHeads);
    c.q_lora = required("attention.q_lora_rank", 1, kMaxWidth);
    required("attention.kv_lora_rank", 1, kMaxWidth);
    must_be("attention.kv_lora_rank", kLatent, kernels);
    // Current files describe the absorbed attention (one head of 576 and 512), older ones the plain one.
    const std::int64_t kv_heads = integer("attention.head_count_kv", 1, kMaxHeads).value_or(1);
    const bool absorbed = kv_heads == 1 && c.n_heads != 1;
    if (kv_heads != 1 && kv_heads != c.n_heads) {
      m_.refuse(key("attention.head_count_kv"), std::to_string(kv_heads),
                "1 or " + std::to_string(c.n_heads) + ", the number of heads");
    }
    if (integer("attention.key_length_mla", 0, kMaxInt)) {
      must_be("attention.key_length_mla", kQk, kernels);
      must_be("attention.value_length_mla", kValue, kernels);
    } else {
      must_be("attention.key_length", absorbed ? kKvRow : kQk, kernels);
      must_be("attention.value_length", absorbed ? kLatent : kValue, kernels);
    }
    c.rms_eps = static_cast<float>(m_.number(key("attention.layer_norm_rms_epsilon"), 1e-12, 0.1).value_or(1e-5));
  }

  void read_experts(ModelConfig& c) const {
    c.first_dense_layers = required("leading_dense_block_count", 0, c.n_layers);
    c.expert_inner = required("expert_feed_forward_length", 1, kMaxWidth);
    c.n_experts = required("expert_count", 1, kMaxExperts);
    c.top_k = required("expert_used_count", 1, c.n_experts);
    c.n_shared_experts = integer("expert_shared_count", 0, kMaxExperts).value_or(1);
    c.norm_topk = m_.flag(key("expert_weights_norm")).value_or(true);
    const double scale = m_.number(key("expert_weights_scale"), 0, 1e3).value_or(0);
    if (scale > 0 && scale < 1e-3) m_.refuse(key("expert_weights_scale"), std::to_string(scale), "0, or 0.001 to 1000");
    c.routed_scale = scale > 0 ? static_cast<float>(scale) : 1.8F;
    const std::int64_t gating = integer("expert_gating_func", 0, kMaxInt).value_or(kSigmoid);
    if (gating != 0 && gating != kSigmoid) {
      m_.refuse(key("expert_gating_func"), std::to_string(gating) + (gating == kSoftmax ? " (softmax)" : ""),
                "2 (sigmoid), the scoring that the model was trained with", "convert the model again");
    }
    const std::string reason = "since group-limited routing is not implemented";
    if (integer("expert_group_count", 0, kMaxInt).value_or(0) != 0) must_be("expert_group_count", 1, reason);
    if (integer("expert_group_used_count", 0, kMaxInt).value_or(0) != 0) must_be("expert_group_used_count", 1, reason);
  }

  void read_rope(ModelConfig& c) const {
    must_be("rope.dimension_count", kRope, "the size that the MLA kernels have");
    const auto theta = m_.number(key("rope.freq_base"), 1, 1e12);
    if (!theta) m_.refuse(key("rope.freq_base"), "nothing", "a number");
    c.rope_theta = static_cast<float>(*theta);
    if (const auto type = m_.text(key("rope.scaling.type")); type && *type != "none" && *type != "default") {
      m_.refuse(key("rope.scaling.type"), '"' + std::string(*type) + '"', "\"none\"",
                "rope scaling is not implemented");
    }
  }

  void read_vocabulary(ModelConfig& c) const {
    const GgufModel::Tensor* embed = file_.find("token_embd.weight");
    const auto* tokens = m_.texts("tokenizer.ggml.tokens");
    const auto said = integer("vocab_size", 1, kMaxSampledVocab);
    if (embed != nullptr && embed->entry->shape.rank() == 2) c.vocab = embed->entry->shape[0];
    else c.vocab = said ? *said : tokens != nullptr ? static_cast<std::int64_t>(tokens->size()) : 0;
    if (c.vocab < 1 || c.vocab > kMaxSampledVocab)
      m_.refuse(key("vocab_size"), std::to_string(c.vocab), "1 to " + std::to_string(kMaxSampledVocab));
    if (said && *said != c.vocab) {
      m_.refuse(key("vocab_size"), std::to_string(*said), std::to_string(c.vocab) + ", the rows of token_embd.weight");
    }
    c.tie_embeddings = file_.find("output.weight") == nullptr;
    read_ends(c, tokens);
    c.pad_id = static_cast<std::int32_t>(token_key("tokenizer.ggml.padding_token_id", c).value_or(-1));
  }

  std::optional<std::int64_t> token_key(const std::string& name, const ModelConfig& c) const {
    return m_.integer(name, 0, c.vocab - 1);
  }

  // Stopping on <|endoftext|> alone lets the model talk on as the user or the tool (model facts §7.7).
  void read_ends(ModelConfig& c, const std::vector<std::string_view>* tokens) const {
    const auto add = [&](std::int64_t id) {
      const auto token = static_cast<std::int32_t>(id);
      if (std::find(c.eos_ids.begin(), c.eos_ids.end(), token) == c.eos_ids.end()) c.eos_ids.push_back(token);
    };
    const auto add_key = [&](const std::string& name) {
      const auto id = token_key(name, c);
      if (id) add(*id);
      return id.has_value();
    };
    const auto add_text = [&](std::string_view text) {
      if (tokens == nullptr) return;
      const auto it = std::find(tokens->begin(), tokens->end(), text);
      if (it != tokens->end() && it - tokens->begin() < c.vocab) add(it - tokens->begin());
    };
    add_key("tokenizer.ggml.eos_token_id");
    if (!add_key("tokenizer.ggml.eot_token_id")) add_text("<|user|>");
    if (!add_key("tokenizer.ggml.eom_token_id")) add_text("<|observation|>");
    const std::string list = "tokenizer.ggml.eos_token_ids";
    const GgufValue* v = m_.find(list);
    if (v == nullptr) return;
    constexpr std::uint64_t kMaxEos = 64;
    if (v->kind == GgufKind::kArray && v->count > kMaxEos) m_.refuse(list, std::to_string(v->count) + " ids", "a few");
    const std::vector<std::int64_t> ids = *m_.integers(list);
    for (const std::int64_t id : ids) {
      if (id < 0 || id >= c.vocab)
        m_.refuse(list, std::to_string(id), "token ids from 0 to " + std::to_string(c.vocab - 1));
      add(id);
    }
  }

  const GgufModel& file_;
  const GgufMetadata& m_;
};

}  // namespace

ModelConfig config_from_gguf(const GgufModel& file) { return Reader(file).read(); }

}  // namespace glint
