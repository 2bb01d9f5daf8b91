#include "models/glm_4_7_flash/export_gguf.hpp"

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <random>
#include <tuple>

#include "base/thread_pool.hpp"
#include "models/glm_4_7_flash/load_gguf.hpp"
#include "ops/params.hpp"
#include "tensor/codec.hpp"

namespace glint {
namespace {

struct TypeName {
  std::string_view name;
  GgufType type;
  std::uint32_t file_type;  // general.file_type, llama.cpp's number for "mostly" this type
};
constexpr TypeName kTypes[] = {{"f32", GgufType::kF32, 0},    {"f16", GgufType::kF16, 1},
                               {"bf16", GgufType::kBF16, 32}, {"q8_0", GgufType::kQ8_0, 7},
                               {"q4_0", GgufType::kQ4_0, 2},  {"q4_k", GgufType::kQ4_K, 14}};

bool is_block(GgufType type) { return gguf_block(type)->values > 1; }

GgufType type_for(GgufType wanted, std::int64_t cols) {
  const auto fits = [&](GgufType t) { return cols % gguf_block(t)->values == 0; };
  return fits(wanted) ? wanted : fits(GgufType::kQ8_0) ? GgufType::kQ8_0 : GgufType::kF16;
}

// Rows [first, first + n) of a tensor as floats.
using Rows = std::function<void(std::int64_t first, std::int64_t n, float* out)>;

struct Item {
  GgufTensorInfo info;
  const TensorSpec* spec = nullptr;
  std::int64_t chunk = 1;  // rows must come in multiples of it
  Rows rows;               // empty for random weights

  std::int64_t cols() const { return info.shape[info.shape.rank() - 1]; }
  std::int64_t n_rows() const { return info.shape.elements() / cols(); }
};

// Every tensor of the file in order. `model` is null for random weights.
class Plan {
 public:
  Plan(const ModelConfig& config, const GgufExport& options, const ModelWeights* model)
      : config_(config), options_(options), model_(model) {
    add_scope(Scope::kModel, -1);
    for (std::int64_t l = 0; l < config.n_layers; ++l) add_layer(l, config.is_dense(l));
    if (config.n_mtp_layers == 0) return;
    add_layer(config.n_layers, /*dense=*/false);
    add_scope(Scope::kMtp, config.n_layers);
  }
  std::vector<Item> items;

 private:
  void add_layer(std::int64_t l, bool dense) {
    add_scope(Scope::kLayer, l);
    add_scope(dense ? Scope::kDense : Scope::kMoe, l);
    if (!dense) add_scope(Scope::kExpert, l);
  }

  LayerWeights* layer(std::int64_t l) const {
    auto* m = const_cast<ModelWeights*>(model_);  // bind hands out slots for writing; here they are only read
    if (l < 0) return nullptr;
    return l == config_.n_layers ? &m->mtp->block : &m->layers[static_cast<std::size_t>(l)];
  }

  Slot slot(const TensorSpec& spec, std::int64_t l, std::size_t expert = 0) const {
    auto* m = const_cast<ModelWeights*>(model_);
    LayerWeights* w = layer(l);
    ExpertWeights* x = spec.scope == Scope::kExpert ? &w->experts[expert] : nullptr;
    return spec.bind({m, w, x, m->mtp.get()});
  }

  // The MTP layer's own embedding and head, where the model has none of its own.
  bool is_absent(const TensorSpec& spec, std::int64_t l) const {
    if (spec.role == Role::kShared && config_.n_shared_experts == 0) return true;
    if (spec.presence != Presence::kShared) return false;
    if (spec.scope != Scope::kMtp) return config_.tie_embeddings;
    if (model_ == nullptr) return true;
    const Weight* w = std::get<Weight*>(slot(spec, l));
    return w->data == model_->embed.data || w->data == model_->lm_head.data;
  }

  void add_scope(Scope scope, std::int64_t l) {
    for (const TensorSpec& spec : tensor_table()) {
      if (spec.scope != scope || is_absent(spec, l)) continue;
      if (spec.field == "layers.kv_b") add_kv_b(spec, l);
      else if (scope == Scope::kExpert) add_experts(spec, l);
      else add(spec, l);
    }
  }

  GgufType matrix_type(const TensorSpec& spec, std::int64_t cols) const {
    const bool head = spec.role == Role::kHead || spec.role == Role::kMtpProjection;
    return type_for(head ? options_.head_type : options_.type, cols);
  }

  void add(const TensorSpec& spec, std::int64_t l) {
    const Shape shape = spec.shape(config_);
    const bool matrix = spec.rank == 2 && spec.role != Role::kRouter;
    Item item{{gguf_name(spec, l), matrix ? matrix_type(spec, shape[1]) : GgufType::kF32, shape}, &spec};
    if (model_ != nullptr) {
      const Slot s = slot(spec, l);
      if (matrix) {
        item.rows = [w = *std::get<Weight*>(s)](std::int64_t first, std::int64_t n, float* out) {
          for (std::int64_t r = 0; r < n; ++r) decode_row(w, first + r, out + r * w.cols);
        };
      } else {
        item.rows = [v = *std::get<ConstView*>(s), cols = item.cols()](std::int64_t first, std::int64_t n, float* out) {
          std::copy_n(v.as<float>() + first * cols, n * cols, out);
        };
      }
    }
    items.push_back(std::move(item));
  }

  void add_experts(const TensorSpec& spec, std::int64_t l) {
    const Shape one = spec.shape(config_);
    Item item{{gguf_name(spec, l), matrix_type(spec, one[1]), {config_.n_experts, one[0], one[1]}}, &spec};
    if (model_ != nullptr) {
      std::vector<Weight> experts;
      for (std::size_t e = 0; e < static_cast<std::size_t>(config_.n_experts); ++e)
        experts.push_back(*std::get<Weight*>(slot(spec, l, e)));
      item.rows = [experts = std::move(experts)](std::int64_t first, std::int64_t n, float* out) {
        for (std::int64_t r = first; r < first + n; ++r) {
          const Weight& w = experts[static_cast<std::size_t>(r / experts[0].rows)];
          decode_row(w, r % w.rows, out + (r - first) * w.cols);
        }
      };
    }
    items.push_back(std::move(item));
  }

  // kv_b [N·448, 512] → k_b [N, 512, 192], transposed a head, and v_b [N, 256, 512].
  void add_kv_b(const TensorSpec& spec, std::int64_t l) {
    const GgufType type = is_block(options_.type) ? GgufType::kQ8_0 : options_.type;
    const std::string prefix = "blk." + std::to_string(l) + ".";
    Item k{{prefix + std::string(kGgufKB), type, {config_.n_heads, kLatent, kNope}}, &spec, /*chunk=*/kLatent};
    Item v{{prefix + std::string(kGgufVB), type, {config_.n_heads, kValue, kLatent}}, &spec};
    if (model_ != nullptr) {
      const Weight w = *std::get<Weight*>(slot(spec, l));
      k.rows = [w](std::int64_t first, std::int64_t n, float* out) {
        std::vector<float> row(kLatent);
        for (std::int64_t head = first / kLatent; head < (first + n) / kLatent; ++head, out += kLatent * kNope) {
          for (std::int64_t i = 0; i < kNope; ++i) {
            decode_row(w, head * (kNope + kValue) + i, row.data());
            for (std::size_t j = 0; j < kLatent; ++j) out[static_cast<std::int64_t>(j) * kNope + i] = row[j];
          }
        }
      };
      v.rows = [w](std::int64_t first, std::int64_t n, float* out) {
        for (std::int64_t r = first; r < first + n; ++r, out += kLatent)
          decode_row(w, r / kValue * (kNope + kValue) + kNope + r % kValue, out);
      };
    }
    items.push_back(std::move(k));
    items.push_back(std::move(v));
  }

  const ModelConfig& config_;
  const GgufExport& options_;
  const ModelWeights* model_;
};

std::vector<GgufTensorInfo> infos(const Plan& plan) {
  std::vector<GgufTensorInfo> list;
  for (const Item& item : plan.items) list.push_back(item.info);
  return list;
}

std::uint64_t row_bytes(const Item& item) {
  const GgufBlock block = *gguf_block(item.info.type);
  return static_cast<std::uint64_t>(item.cols() / block.values * block.bytes);
}

// Encoded random values of one type and scale.
class BlockPool {
 public:
  BlockPool(GgufType type, float mean, float scale, std::uint64_t seed) : block_(*gguf_block(type)) {
    std::mt19937_64 random(seed);
    std::normal_distribution<float> normal(mean, scale);
    std::vector<float> values(kValues);
    for (float& v : values) v = normal(random);
    bytes_.resize(static_cast<std::size_t>(kValues / block_.values * block_.bytes));
    encode_gguf(type, values.data(), kValues, bytes_.data());
  }
  // `n` bytes, whole blocks, from a hashed place; fewer when the pool ends.
  std::span<const std::byte> piece(std::uint64_t hash, std::uint64_t n) const {
    const std::uint64_t blocks = bytes_.size() / static_cast<std::uint64_t>(block_.bytes);
    const std::uint64_t at = hash % (blocks / 2) * static_cast<std::uint64_t>(block_.bytes);
    return std::span(bytes_).subspan(at, std::min<std::uint64_t>(n, bytes_.size() - at));
  }

 private:
  static constexpr std::int64_t kValues = 1 << 20;
  GgufBlock block_;
  std::vector<std::byte> bytes_;
};

ModelConfig exported_config(ModelConfig config, const GgufExport& options, bool has_mtp) {
  if (!options.mtp || !has_mtp) config.n_mtp_layers = 0;
  return config;
}

}  // namespace

std::optional<GgufType> gguf_export_type(std::string_view name) {
  for (const TypeName& t : kTypes) {
    if (t.name == name) return t.type;
  }
  return std::nullopt;
}

void add_gguf_config(GgufMetadataBuilder& m, const ModelConfig& c, const GgufExport& options) {
  const std::int64_t mtp = options.mtp ? c.n_mtp_layers : 0;
  m.add_text("general.architecture", "deepseek2");
  m.add_text("general.type", "model");
  for (const TypeName& t : kTypes) {
    if (t.type == options.type) m.add_u32("general.file_type", t.file_type);
  }
  m.add_u32("general.quantization_version", 2);
  const auto add = [&](const std::string& key, std::int64_t v) {
    m.add_u32("deepseek2." + key, static_cast<std::uint32_t>(v));
  };
  add("block_count", c.n_layers + mtp);
  if (mtp > 0) add("nextn_predict_layers", mtp);
  add("context_length", c.max_positions);
  add("embedding_length", c.hidden);
  add("feed_forward_length", c.dense_inner);
  add("attention.head_count", c.n_heads);
  add("attention.head_count_kv", 1);
  add("attention.q_lora_rank", c.q_lora);
  add("attention.kv_lora_rank", kLatent);
  add("attention.key_length", kKvRow);
  add("attention.value_length", kLatent);
  add("attention.key_length_mla", kQk);
  add("attention.value_length_mla", kValue);
  m.add_f32("deepseek2.attention.layer_norm_rms_epsilon", c.rms_eps);
  add("leading_dense_block_count", c.first_dense_layers);
  add("expert_feed_forward_length", c.expert_inner);
  add("expert_count", c.n_experts);
  add("expert_used_count", c.top_k);
  add("expert_shared_count", c.n_shared_experts);
  add("expert_group_count", 1);
  add("expert_group_used_count", 1);
  m.add_f32("deepseek2.expert_weights_scale", c.routed_scale);
  m.add_bool("deepseek2.expert_weights_norm", c.norm_topk);
  add("expert_gating_func", 2);
  add("rope.dimension_count", kRope);
  m.add_f32("deepseek2.rope.freq_base", c.rope_theta);
  add("vocab_size", c.vocab);
}

void export_gguf(const std::string& path, const ModelWeights& model, const GgufMetadataBuilder& metadata,
                 const GgufExport& options, const LoadProgress& progress) {
  const ModelConfig config = exported_config(model.config, options, model.mtp != nullptr);
  const Plan plan(config, options, &model);
  GgufWriter writer(path, metadata, infos(plan));
  ThreadPool pool(0);
  constexpr std::int64_t kValues = 1 << 18;  // of a thread's piece
  const auto threads = static_cast<std::size_t>(pool.size());
  std::vector<std::vector<float>> values(threads);
  std::vector<std::vector<std::byte>> encoded(threads);
  std::uint64_t done = 0;
  for (const Item& item : plan.items) {
    const std::int64_t step = std::max<std::int64_t>(1, kValues / item.cols() / item.chunk) * item.chunk;
    const std::int64_t rows = item.n_rows();
    for (std::int64_t begin = 0; begin < rows; begin += step * pool.size()) {
      const std::int64_t pieces = std::min<std::int64_t>(pool.size(), (rows - begin + step - 1) / step);
      const auto piece_rows = [&](std::int64_t p) { return std::min(step, rows - begin - p * step); };
      pool.parallel_for(pieces, [&](std::int64_t p, int) {
        const std::int64_t n = piece_rows(p);
        std::vector<float>& v = values[static_cast<std::size_t>(p)];
        std::vector<std::byte>& e = encoded[static_cast<std::size_t>(p)];
        v.resize(static_cast<std::size_t>(n * item.cols()));
        e.resize(static_cast<std::size_t>(n) * row_bytes(item));
        item.rows(begin + p * step, n, v.data());
        encode_gguf(item.info.type, v.data(), n * item.cols(), e.data());
      });
      for (std::int64_t p = 0; p < pieces; ++p) {
        const std::vector<std::byte>& e = encoded[static_cast<std::size_t>(p)];
        writer.append(item.info.name, e.data(), e.size());
        done += e.size();
      }
      if (progress) progress(done, writer.data_bytes());
    }
  }
  writer.finish();
}

void export_synthetic_gguf(const std::string& path, const ModelConfig& model_config, std::uint64_t seed,
                           const GgufMetadataBuilder& metadata, const GgufExport& options,
                           const LoadProgress& progress) {
  const ModelConfig config = exported_config(model_config, options, true);
  const Plan plan(config, options, nullptr);
  GgufWriter writer(path, metadata, infos(plan));
  std::map<std::tuple<GgufType, float, float>, BlockPool> pools;
  std::mt19937_64 random(seed);
  std::uint64_t done = 0;
  for (const Item& item : plan.items) {
    // As synthetic.cpp: unit variance through a matrix, norms near one, a bias that makes some experts busier.
    float mean = 0, scale = 1.0F / std::sqrt(static_cast<float>(item.cols()));
    if (item.spec->role == Role::kEmbed) scale = 1;
    if (item.spec->role == Role::kNorm) mean = 1, scale = 0.1F;
    if (item.spec->role == Role::kRouter && item.spec->rank == 1) scale = 0.04F;
    const auto key = std::make_tuple(item.info.type, mean, scale);
    const auto pool = pools.try_emplace(key, item.info.type, mean, scale, seed + pools.size()).first;
    for (std::uint64_t left = static_cast<std::uint64_t>(item.n_rows()) * row_bytes(item); left > 0;) {
      const std::span<const std::byte> piece = pool->second.piece(random(), left);
      writer.append(item.info.name, piece.data(), piece.size());
      left -= piece.size();
      done += piece.size();
      if (progress) progress(done, writer.data_bytes());
    }
  }
  writer.finish();
}

}  // namespace glint
