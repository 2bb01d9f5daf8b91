#include "models/glm_4_7_flash/tensor_table.hpp"

#include <charconv>

#include "ops/params.hpp"
#include "weights/matrix_reader.hpp"

namespace glint {
namespace {

using D = Dim;
using S = Scope;
using R = Role;
using Bind = Slot (*)(const BindTarget&);

struct Names {
  std::string_view field;
  std::string_view hf;
  std::string_view gguf;
};

constexpr TensorSpec matrix(const Names& n, D rows, D cols, S scope, R role, ShardAxis shard, Bind bind) {
  return {n.field,
          n.hf,
          n.gguf,
          {rows, cols},
          2,
          scope,
          role,
          shard,
          /*quantisable=*/true,
          DType::kBF16,
          Presence::kRequired,
          bind};
}
constexpr TensorSpec vector(const Names& n, D size, S scope, R role, Bind bind) {
  return {n.field,
          n.hf,
          n.gguf,
          {size},
          1,
          scope,
          role,
          ShardAxis::kNone,
          /*quantisable=*/false,
          DType::kBF16,
          Presence::kRequired,
          bind};
}
constexpr TensorSpec fused(const Names& n, D rows, D cols) {
  return {n.field, n.hf, n.gguf, {D::kExperts, rows, cols}, 3, S::kFused, R::kExperts, ShardAxis::kExperts, true};
}
constexpr TensorSpec or_shared(TensorSpec spec) {
  spec.presence = Presence::kShared;
  return spec;
}
// The router decides by small differences: stored BF16, computed in F32, never quantised (model facts §2.4).
constexpr TensorSpec router(TensorSpec spec) {
  spec.quantisable = false;
  return spec;
}
constexpr TensorSpec stored_f32(TensorSpec spec) {
  spec.stored = DType::kF32;
  return spec;
}

constexpr ShardAxis kWhole = ShardAxis::kNone;
constexpr ShardAxis kRows = ShardAxis::kRows;
constexpr ShardAxis kCols = ShardAxis::kCols;

#define GLINT_BIND(owner, member) [](const BindTarget& t) -> Slot { return &t.owner->member; }

// clang-format off
constexpr TensorSpec kTable[] = {
    matrix({"embed", "model.embed_tokens.weight", "token_embd.weight"}, D::kVocab, D::kHidden, S::kModel, R::kEmbed, kRows, GLINT_BIND(model, embed)),
    vector({"final_norm", "model.norm.weight", "output_norm.weight"}, D::kHidden, S::kModel, R::kNorm, GLINT_BIND(model, final_norm)),
    or_shared(matrix({"lm_head", "lm_head.weight", "output.weight"}, D::kVocab, D::kHidden, S::kModel, R::kHead, kRows, GLINT_BIND(model, lm_head))),

    // Attention: q_a and kv_a are small and feed every head, so that each rank keeps them whole.
    vector({"layers.input_norm", "input_layernorm.weight", "attn_norm.weight"}, D::kHidden, S::kLayer, R::kNorm, GLINT_BIND(layer, input_norm)),
    matrix({"layers.q_a", "self_attn.q_a_proj.weight", "attn_q_a.weight"}, D::kQLora, D::kHidden, S::kLayer, R::kAttention, kWhole, GLINT_BIND(layer, q_a)),
    vector({"layers.q_a_norm", "self_attn.q_a_layernorm.weight", "attn_q_a_norm.weight"}, D::kQLora, S::kLayer, R::kNorm, GLINT_BIND(layer, q_a_norm)),
    matrix({"layers.q_b", "self_attn.q_b_proj.weight", "attn_q_b.weight"}, D::kHeadsQk, D::kQLora, S::kLayer, R::kAttention, kRows, GLINT_BIND(layer, q_b)),
    matrix({"layers.kv_a", "self_attn.kv_a_proj_with_mqa.weight", "attn_kv_a_mqa.weight"}, D::kKvA, D::kHidden, S::kLayer, R::kAttention, kWhole, GLINT_BIND(layer, kv_a)),
    vector({"layers.kv_a_norm", "self_attn.kv_a_layernorm.weight", "attn_kv_a_norm.weight"}, D::kKvLora, S::kLayer, R::kNorm, GLINT_BIND(layer, kv_a_norm)),
    // GGUF: the legacy name; current files split it into attn_k_b (transposed) and attn_v_b.
    matrix({"layers.kv_b", "self_attn.kv_b_proj.weight", "attn_kv_b.weight"}, D::kHeadsNopeValue, D::kKvLora, S::kLayer, R::kAttention, kRows, GLINT_BIND(layer, kv_b)),
    matrix({"layers.o", "self_attn.o_proj.weight", "attn_output.weight"}, D::kHidden, D::kHeadsValue, S::kLayer, R::kAttention, kCols, GLINT_BIND(layer, o)),
    vector({"layers.post_norm", "post_attention_layernorm.weight", "ffn_norm.weight"}, D::kHidden, S::kLayer, R::kNorm, GLINT_BIND(layer, post_norm)),

    matrix({"layers.dense.gate", "mlp.gate_proj.weight", "ffn_gate.weight"}, D::kDenseInner, D::kHidden, S::kDense, R::kDenseMlp, kRows, GLINT_BIND(layer, dense.gate)),
    matrix({"layers.dense.up", "mlp.up_proj.weight", "ffn_up.weight"}, D::kDenseInner, D::kHidden, S::kDense, R::kDenseMlp, kRows, GLINT_BIND(layer, dense.up)),
    matrix({"layers.dense.down", "mlp.down_proj.weight", "ffn_down.weight"}, D::kHidden, D::kDenseInner, S::kDense, R::kDenseMlp, kCols, GLINT_BIND(layer, dense.down)),

    router({"layers.router", "mlp.gate.weight", "ffn_gate_inp.weight", {D::kExperts, D::kHidden}, 2, S::kMoe, R::kRouter, kWhole, false, DType::kBF16, Presence::kRequired, GLINT_BIND(layer, router)}),
    stored_f32(vector({"layers.router_bias", "mlp.gate.e_score_correction_bias", "exp_probs_b.bias"}, D::kExperts, S::kMoe, R::kRouter, GLINT_BIND(layer, router_bias))),
    matrix({"layers.shared.gate", "mlp.shared_experts.gate_proj.weight", "ffn_gate_shexp.weight"}, D::kSharedInner, D::kHidden, S::kMoe, R::kShared, kRows, GLINT_BIND(layer, shared.gate)),
    matrix({"layers.shared.up", "mlp.shared_experts.up_proj.weight", "ffn_up_shexp.weight"}, D::kSharedInner, D::kHidden, S::kMoe, R::kShared, kRows, GLINT_BIND(layer, shared.up)),
    matrix({"layers.shared.down", "mlp.shared_experts.down_proj.weight", "ffn_down_shexp.weight"}, D::kHidden, D::kSharedInner, S::kMoe, R::kShared, kCols, GLINT_BIND(layer, shared.down)),
    matrix({"layers.experts.gate", "gate_proj.weight", "ffn_gate_exps.weight"}, D::kExpertInner, D::kHidden, S::kExpert, R::kExperts, ShardAxis::kExperts, GLINT_BIND(expert, gate)),
    matrix({"layers.experts.up", "up_proj.weight", "ffn_up_exps.weight"}, D::kExpertInner, D::kHidden, S::kExpert, R::kExperts, ShardAxis::kExperts, GLINT_BIND(expert, up)),
    matrix({"layers.experts.down", "down_proj.weight", "ffn_down_exps.weight"}, D::kHidden, D::kExpertInner, S::kExpert, R::kExperts, ShardAxis::kExperts, GLINT_BIND(expert, down)),
    // The fused form: gate rows first, then up rows.
    fused({"layers.experts.gate_up", "mlp.experts.gate_up_proj", "ffn_gate_up_exps.weight"}, D::kTwoExpertInner, D::kHidden),
    fused({"layers.experts.down", "mlp.experts.down_proj", "ffn_down_exps.weight"}, D::kHidden, D::kExpertInner),

    vector({"mtp.e_norm", "enorm.weight", "nextn.enorm.weight"}, D::kHidden, S::kMtp, R::kNorm, GLINT_BIND(mtp, e_norm)),
    vector({"mtp.h_norm", "hnorm.weight", "nextn.hnorm.weight"}, D::kHidden, S::kMtp, R::kNorm, GLINT_BIND(mtp, h_norm)),
    matrix({"mtp.eh_proj", "eh_proj.weight", "nextn.eh_proj.weight"}, D::kHidden, D::kTwoHidden, S::kMtp, R::kMtpProjection, kWhole, GLINT_BIND(mtp, eh_proj)),
    vector({"mtp.head_norm", "shared_head.norm.weight", "nextn.shared_head_norm.weight"}, D::kHidden, S::kMtp, R::kNorm, GLINT_BIND(mtp, head_norm)),
    or_shared(matrix({"mtp.embed", "embed_tokens.weight", "nextn.embed_tokens.weight"}, D::kVocab, D::kHidden, S::kMtp, R::kEmbed, kRows, GLINT_BIND(mtp, embed))),
    or_shared(matrix({"mtp.head", "shared_head.head.weight", "nextn.shared_head_head.weight"}, D::kVocab, D::kHidden, S::kMtp, R::kHead, kRows, GLINT_BIND(mtp, head))),
};
// clang-format on
#undef GLINT_BIND

constexpr std::string_view kLayerPrefix = "model.layers.";
constexpr std::string_view kExpertPrefix = "mlp.experts.";

// Reads "<number>." off the front of s.
std::optional<std::int64_t> take_index(std::string_view& s) {
  std::int64_t n = 0;
  const auto r = std::from_chars(s.data(), s.data() + s.size(), n);
  if (r.ec != std::errc{} || r.ptr == s.data() + s.size() || *r.ptr != '.') return std::nullopt;
  s.remove_prefix(static_cast<std::size_t>(r.ptr - s.data()) + 1);
  return n;
}

// Whether layer `layer` (n_layers: the MTP layer) has tensors of this scope.
bool layer_has(Scope scope, std::int64_t layer, const ModelConfig& c) {
  const bool mtp = layer == c.n_layers;
  switch (scope) {
    case S::kModel:
      return false;
    case S::kLayer:
      return true;
    case S::kDense:
      return !mtp && c.is_dense(layer);
    case S::kMoe:
    case S::kExpert:
    case S::kFused:
      return mtp || !c.is_dense(layer);
    case S::kMtp:
      return mtp;
  }
  return false;
}

}  // namespace

std::int64_t dim_size(Dim dim, const ModelConfig& c) {
  switch (dim) {
    case D::kHidden:
      return c.hidden;
    case D::kTwoHidden:
      return 2 * c.hidden;
    case D::kVocab:
      return c.vocab;
    case D::kQLora:
      return c.q_lora;
    case D::kHeadsQk:
      return c.n_heads * kQk;
    case D::kKvLora:
      return kLatent;
    case D::kKvA:
      return kKvRow;
    case D::kHeadsNopeValue:
      return c.n_heads * (kNope + kValue);
    case D::kHeadsValue:
      return c.n_heads * kValue;
    case D::kDenseInner:
      return c.dense_inner;
    case D::kExpertInner:
      return c.expert_inner;
    case D::kTwoExpertInner:
      return 2 * c.expert_inner;
    case D::kSharedInner:
      return c.n_shared_experts * c.expert_inner;
    case D::kExperts:
      return c.n_experts;
  }
  return 0;
}

std::string_view role_name(Role role) {
  constexpr std::array<std::string_view, kRoles> kNames{"embedding", "lm_head", "attention",
                                                        "dense mlp", "experts", "shared experts",
                                                        "router",    "norms",   "mtp projection"};
  return kNames[static_cast<std::size_t>(role)];
}

Shape TensorSpec::shape(const ModelConfig& config) const {
  Shape s;
  for (int i = 0; i < rank; ++i) s.push_back(dim_size(dims[static_cast<std::size_t>(i)], config));
  return s;
}

std::span<const TensorSpec> tensor_table() { return kTable; }

std::string hf_name(const TensorSpec& spec, std::int64_t layer, std::int64_t expert) {
  if (spec.scope == S::kModel) return std::string(spec.hf_name);
  std::string name = std::string(kLayerPrefix) + std::to_string(layer) + ".";
  if (spec.scope == S::kExpert) name += std::string(kExpertPrefix) + std::to_string(expert) + ".";
  return name += spec.hf_name;
}

std::int64_t tensor_count(const TensorSpec& spec, const ModelConfig& c) {
  const std::int64_t moe_layers = c.n_layers - c.first_dense_layers + c.n_mtp_layers;
  const bool no_shared = spec.role == R::kShared && c.n_shared_experts == 0;
  switch (spec.scope) {
    case S::kModel:
      return spec.role == R::kHead && c.tie_embeddings ? 0 : 1;
    case S::kLayer:
      return c.n_layers + c.n_mtp_layers;
    case S::kDense:
      return c.first_dense_layers;
    case S::kMoe:
      return no_shared ? 0 : moe_layers;
    case S::kExpert:
      return moe_layers * c.n_experts;
    case S::kFused:
      return 0;
    case S::kMtp:
      return c.n_mtp_layers;
  }
  return 0;
}

std::optional<TensorPlace> find_place(std::string_view name, const ModelConfig& c) {
  TensorPlace place;
  std::string_view rest = name;
  if (rest.starts_with(kLayerPrefix)) {
    rest.remove_prefix(kLayerPrefix.size());
    const std::optional<std::int64_t> layer = take_index(rest);
    if (!layer || *layer < 0 || *layer > c.n_layers) return std::nullopt;
    place.layer = *layer;
    if (rest.starts_with(kExpertPrefix)) {
      std::string_view after = rest.substr(kExpertPrefix.size());
      const std::optional<std::int64_t> expert = take_index(after);
      if (expert) {
        if (*expert < 0 || *expert >= c.n_experts) return std::nullopt;
        place.expert = *expert;
        rest = after;
      }
    }
  }
  for (const TensorSpec& spec : kTable) {
    if (spec.hf_name != rest || (spec.scope == S::kExpert) != (place.expert >= 0)) continue;
    if (place.layer < 0 ? spec.scope != S::kModel : !layer_has(spec.scope, place.layer, c)) continue;
    if (spec.role == R::kShared && c.n_shared_experts == 0) continue;
    if (hf_name(spec, place.layer, place.expert) != name) continue;  // "model.layers.01." is not a name
    place.spec = &spec;
    return place;
  }
  return std::nullopt;
}

std::optional<TensorPlace> find_stored_place(std::string_view name, const ModelConfig& c) {
  if (const auto place = find_place(name, c)) return place;
  const std::string base = matrix_base(name);
  if (base.size() == name.size()) return std::nullopt;
  for (const std::string& matrix : {base + ".weight", base}) {
    const auto place = find_place(matrix, c);
    if (place && place->spec->rank >= 2) return place;
  }
  return std::nullopt;
}

std::string matrix_base(const TensorSpec& spec, std::int64_t layer, std::int64_t expert) {
  return matrix_base(hf_name(spec, layer, expert));
}

bool is_ignored_tensor(std::string_view name) {
  return name.ends_with("rotary_emb.inv_freq") || name.ends_with(".k_scale") || name.ends_with(".v_scale");
}

}  // namespace glint
