#include "models/glm_4_7_flash/quant_recipe.hpp"

#include <algorithm>
#include <array>
#include <charconv>

#include "base/error.hpp"
#include "weights/quantizer.hpp"

namespace glint {
namespace {

// Roles first; then fields of the tensor table without "layers." and "mtp.".
constexpr std::array<std::string_view, 22> kKeys{
    "embed",     "head",        "attention",   "dense_mlp",    "experts",    "shared",      "mtp",      "eh_proj",
    "q_a",       "q_b",         "kv_a",        "kv_b",         "o",          "dense.gate",  "dense.up", "dense.down",
    "shared.up", "shared.gate", "shared.down", "experts.gate", "experts.up", "experts.down"};

std::string_view role_key(Role role) {
  switch (role) {
    case Role::kEmbed:
      return "embed";
    case Role::kHead:
      return "head";
    case Role::kAttention:
      return "attention";
    case Role::kDenseMlp:
      return "dense_mlp";
    case Role::kExperts:
      return "experts";
    case Role::kShared:
      return "shared";
    case Role::kMtpProjection:
      return "eh_proj";
    default:
      return "";
  }
}

std::string_view field_key(std::string_view field) {
  const std::size_t dot = field.find('.');
  return dot == field.npos ? field : field.substr(dot + 1);
}

std::string keys_text() {
  std::string s;
  for (const std::string_view k : kKeys) s += (s.empty() ? "" : ", ") + std::string(k);
  return s;
}

bool read_number(std::string_view s, std::int64_t& n) {
  const auto r = std::from_chars(s.data(), s.data() + s.size(), n);
  return r.ec == std::errc{} && r.ptr == s.data() + s.size() && n >= 0;
}

struct Preset {
  std::string_view name;
  std::string_view alias;  // in --weights
  std::string_view rules;
};

// The router and its bias, and the norms, are not quantisable at all (tensor_table.cpp). What stays at 8 bits, or as it
// is, is a small part of the bytes and showed most in the sensitivity of single roles
// (docs/experiments/2026-11-24-four-bits.md): kv_a and q_a, through which all of attention passes, and the dense first
// layer, which every later one builds on.
constexpr std::array<Preset, 6> kPresets{{
    // Experts are 92 % of the real model. Within the bars of docs/quality.md.
    {"q4", "q4",
     "experts=int4-g64,attention=int8,dense_mlp=int8,shared=int8,embed=int8,head=int8,eh_proj=int8,mtp=int8"},
    // The leanest, for rounding while loading and for measurements of speed.
    {"int4", "int4",
     "attention=int4-g64,dense_mlp=int4-g64,experts=int4-g64,shared=int4-g64,embed=int8,head=int8,kv_b=int8,"
     "eh_proj=int8,mtp=int8"},
    {"q8", "int8", "attention=int8,dense_mlp=int8,experts=int8,shared=int8,embed=int8,head=int8,eh_proj=int8"},
    // bitsandbytes has no 8-bit beside NF4, and leaves embeddings and heads alone.
    {"nf4", "nf4", "experts=nf4,shared=nf4,o=nf4,q_b=nf4,mtp=bf16,mtp.experts=nf4"},
    {"fp8", "fp8", "experts=fp8,shared=fp8,o=fp8,q_b=fp8"},
    {"bf16", "bf16", ""},
}};

}  // namespace

std::span<const std::string_view> quant_keys() { return kKeys; }

QuantRecipe QuantRecipe::preset(std::string_view name) {
  QuantRecipe recipe;
  for (const Preset& p : kPresets) {
    if (p.name != name) continue;
    std::string_view rules = p.rules;
    while (!rules.empty()) {
      const std::size_t comma = std::min(rules.find(','), rules.size());
      recipe.set(rules.substr(0, comma));
      rules.remove_prefix(std::min(rules.size(), comma + 1));
    }
    return recipe;
  }
  throw Error({.what = "preset", .found = "'" + std::string(name) + "'", .expected = "q4, int4, q8, nf4 or fp8"});
}

QuantRecipe QuantRecipe::parse(std::string_view text) {
  const std::size_t colon = std::min(text.find(':'), text.size());
  const std::string_view name = text.substr(0, colon);
  const auto preset_of = std::find_if(kPresets.begin(), kPresets.end(),
                                      [&](const Preset& p) { return p.alias == name || p.name == name; });
  if (preset_of == kPresets.end()) {
    throw Error({.what = "weights",
                 .found = "'" + std::string(text) + "'",
                 .expected = "int4, q4, int8, nf4, fp8 or bf16, with overrides as in int4:experts=int4-g32,head=bf16"});
  }
  QuantRecipe recipe = preset(preset_of->name);
  std::string_view rules = text.substr(std::min(text.size(), colon + 1));
  while (!rules.empty()) {
    const std::size_t comma = std::min(rules.find(','), rules.size());
    recipe.set(rules.substr(0, comma));
    rules.remove_prefix(std::min(rules.size(), comma + 1));
  }
  return recipe;
}

void QuantRecipe::set(std::string_view rule) {
  const std::size_t equals = rule.find('=');
  if (equals == rule.npos) {
    throw Error({.what = "quantisation rule",
                 .found = "'" + std::string(rule) + "'",
                 .expected = "KEY=SPEC, e.g. experts=int4-g32"});
  }
  Rule r;
  std::string_view key = rule.substr(0, equals);
  if (const std::size_t at = key.find('@'); at != key.npos) {
    const std::string_view range = key.substr(at + 1);
    const std::size_t dash = std::min(range.find('-'), range.size());
    const bool ok = read_number(range.substr(0, dash), r.first_layer) &&
                    read_number(dash < range.size() ? range.substr(dash + 1) : range, r.last_layer);
    if (!ok || r.last_layer < r.first_layer) {
      throw Error({.what = "quantisation rule",
                   .found = "'" + std::string(rule) + "'",
                   .expected = "layers as in experts@1-3=int8 or o@0=bf16"});
    }
    key = key.substr(0, at);
  }
  if (key.starts_with("mtp.")) {
    r.mtp = true;
    key.remove_prefix(4);
  }
  if (std::find(kKeys.begin(), kKeys.end(), key) == kKeys.end()) {
    throw Error({.what = "quantisation rule",
                 .found = "'" + std::string(rule.substr(0, equals)) + "'",
                 .expected = "one of " + keys_text()});
  }
  if (key == "mtp") r.mtp = true;
  else r.key = key;
  r.spec_text = rule.substr(equals + 1);
  r.spec = parse_quant_spec(r.spec_text, "quantisation rule " + std::string(rule));
  rules_.push_back(std::move(r));
}

std::optional<QuantSpec> QuantRecipe::spec(const TensorSpec& tensor, std::int64_t layer,
                                           const ModelConfig& config) const {
  if (!tensor.quantisable) return std::nullopt;
  std::optional<QuantSpec> found;
  for (const Rule& r : rules_) {
    if (r.mtp && layer != config.n_layers) continue;
    if (r.last_layer >= 0 && (layer < r.first_layer || layer > r.last_layer)) continue;
    if (!r.key.empty() && r.key != role_key(tensor.role) && r.key != field_key(tensor.field)) continue;
    found = r.spec;
  }
  if (!found || !has_scales(found->format)) return std::nullopt;
  const std::int64_t cols = tensor.shape(config)[tensor.rank - 1];
  return fit_spec(*found, cols);
}

RecipeSize recipe_size(const QuantRecipe& recipe, const ModelConfig& config, const Ops& ops) {
  RecipeSize size;
  const auto add = [&](const TensorSpec& t, std::int64_t layer) {
    const Shape shape = t.shape(config);
    const bool expert = t.scope == Scope::kExpert;
    const std::int64_t params = shape.elements() * (expert ? config.n_experts : 1);
    const auto spec = t.rank == 2 ? recipe.spec(t, layer, config) : std::nullopt;
    const double kept = 8.0 * static_cast<double>(dtype_bytes(t.stored));
    const double bits = spec ? spec->bits(shape[1]) : kept;
    size.params += params;
    size.bytes += static_cast<double>(params) * bits / 8;
    if (layer == config.n_layers || t.role == Role::kEmbed) return;
    const double read = spec && t.field == "layers.kv_b" && !ops.supports_absorbed(*spec) ? kept : bits;
    const double share = expert ? static_cast<double>(config.top_k) / static_cast<double>(config.n_experts) : 1.0;
    size.active_bytes += static_cast<double>(params) * share * read / 8;
  };
  for (const TensorSpec& t : tensor_table()) {
    if (t.scope == Scope::kFused || t.field == "mtp.embed" || t.field == "mtp.head") continue;
    if (t.scope == Scope::kModel) {
      if (t.role != Role::kHead || !config.tie_embeddings) add(t, -1);
      continue;
    }
    for (std::int64_t layer = 0; layer < config.n_layers + config.n_mtp_layers; ++layer) {
      const bool mtp = layer == config.n_layers, dense = !mtp && config.is_dense(layer);
      if (t.scope == Scope::kLayer || (t.scope == Scope::kMtp && mtp) || (t.scope == Scope::kDense && dense) ||
          ((t.scope == Scope::kMoe || t.scope == Scope::kExpert) && !dense))
        add(t, layer);
    }
  }
  return size;
}

std::string QuantRecipe::text() const {
  std::string s;
  for (const Rule& r : rules_) {
    if (!s.empty()) s += ",";
    s += r.mtp ? (r.key.empty() ? "mtp" : "mtp." + r.key) : r.key;
    if (r.last_layer >= 0) s += "@" + std::to_string(r.first_layer) + "-" + std::to_string(r.last_layer);
    s += "=" + r.spec_text;
  }
  return s;
}

}  // namespace glint
