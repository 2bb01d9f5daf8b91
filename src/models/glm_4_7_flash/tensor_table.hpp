#pragma once
// Every tensor of the model, once: loader, synthetic weights, memory plan and `glint inspect` derive from this table.
// Model facts §3.1 (MTP), §4.1 (Hugging Face names and shapes), §4.3 (GGUF names).

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>

#include "models/glm_4_7_flash/model_weights.hpp"

namespace glint {

// A dimension in terms of the config.
enum class Dim : std::uint8_t {
  kHidden,
  kTwoHidden,
  kVocab,
  kQLora,
  kHeadsQk,         // N · 256
  kKvLora,          // 512
  kKvA,             // 576
  kHeadsNopeValue,  // N · 448
  kHeadsValue,      // N · 256
  kDenseInner,
  kExpertInner,
  kTwoExpertInner,
  kSharedInner,
  kExperts,
};
std::int64_t dim_size(Dim dim, const ModelConfig& config);

// How often a tensor occurs. Dense and MoE layers each have the attention tensors; the MTP layer's block is a MoE
// layer.
enum class Scope : std::uint8_t {
  kModel,   // once
  kLayer,   // every layer and the MTP block
  kDense,   // dense layers
  kMoe,     // MoE layers and the MTP block
  kExpert,  // the same, for each expert
  kFused,   // the same, all experts in one tensor: an alternative to kExpert
  kMtp,     // the MTP layer
};

enum class Role : std::uint8_t {
  kEmbed,
  kHead,
  kAttention,
  kDenseMlp,
  kExperts,
  kShared,
  kRouter,
  kNorm,
  kMtpProjection
};
inline constexpr std::size_t kRoles = 9;
std::string_view role_name(Role role);

// Which dimension tensor parallelism splits.
enum class ShardAxis : std::uint8_t { kNone, kRows, kCols, kExperts };

enum class Presence : std::uint8_t {
  kRequired,
  kShared,  // where absent, the main embedding or head serves (lm_head: only with tie_word_embeddings)
};

// Where a tensor is bound. expert: an entry of LayerWeights::experts.
struct BindTarget {
  ModelWeights* model = nullptr;
  LayerWeights* layer = nullptr;
  ExpertWeights* expert = nullptr;
  MtpWeights* mtp = nullptr;
};
// A Weight keeps its file format; a ConstView becomes F32.
using Slot = std::variant<Weight*, ConstView*>;

struct TensorSpec {
  std::string_view field;      // "layers.q_a"
  std::string_view hf_name;    // after "model.layers.<layer>." except kModel; kExpert: after "mlp.experts.<expert>."
  std::string_view gguf_name;  // after "blk.<layer>." except kModel; experts are one tensor a layer there
  std::array<Dim, 3> dims;
  int rank;
  Scope scope;
  Role role;
  ShardAxis shard = ShardAxis::kNone;
  bool quantisable = false;
  DType stored = DType::kBF16;  // in the official checkpoint
  Presence presence = Presence::kRequired;
  Slot (*bind)(const BindTarget&) = nullptr;  // null for kFused, which the loader cuts into experts

  Shape shape(const ModelConfig& config) const;
};

std::span<const TensorSpec> tensor_table();

// The Hugging Face name; layer and expert are ignored where the name has none.
std::string hf_name(const TensorSpec& spec, std::int64_t layer, std::int64_t expert = 0);

// How many times the tensor occurs in a per-expert checkpoint of this config (kFused: never).
std::int64_t tensor_count(const TensorSpec& spec, const ModelConfig& config);

// What a Hugging Face name stands for; nothing for a name that no tensor of this config has.
struct TensorPlace {
  const TensorSpec* spec = nullptr;
  std::int64_t layer = -1;   // -1: outside the layers
  std::int64_t expert = -1;  // -1: not one expert's
};
std::optional<TensorPlace> find_place(std::string_view hf_tensor_name, const ModelConfig& config);

// The same, also for a part of a quantised matrix ("….q_a_proj.weight_scale"): the place of the matrix.
std::optional<TensorPlace> find_stored_place(std::string_view hf_tensor_name, const ModelConfig& config);

// The name by which weights/matrix_reader.hpp knows the matrix of a spec: hf_name without ".weight".
std::string matrix_base(const TensorSpec& spec, std::int64_t layer, std::int64_t expert = 0);

// Tensors that checkpoints carry and the model does not need: rotary frequencies, which follow from the config, and
// scales of other programs' FP8 caches.
bool is_ignored_tensor(std::string_view hf_tensor_name);

}  // namespace glint
