// config.json → ModelConfig, model facts §1.1–1.3. Absent fields get the official model's value where Hugging Face's
// class has it as its default; what Glint cannot compute is refused by name.

#include "models/glm_4_7_flash/config.hpp"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <optional>

#include "base/error.hpp"
#include "base/file.hpp"
#include "base/json.hpp"
#include "ops/params.hpp"
#include "ops/sample.hpp"
#include "weights/matrix_reader.hpp"

namespace glint {
namespace {

// Bounds against nonsense and overflow, far above any plausible derivative.
constexpr std::int64_t kMaxLayers = 1024;
constexpr std::int64_t kMaxWidth = 1 << 17;
constexpr std::int64_t kMaxHeads = 1024;
constexpr std::int64_t kMaxExperts = 4096;
constexpr std::int64_t kMaxPositions = std::int64_t{1} << 30;

struct Range {
  std::int64_t min;
  std::int64_t max;
};

// Typed access to one object of the file; every error names the file and the field.
class Fields {
 public:
  Fields(const json::object& object, std::string source, std::string prefix = "")
      : object_(object), source_(std::move(source)), prefix_(std::move(prefix)) {}

  // Null and absent are the same: Hugging Face writes null for "not set".
  const json::value* find(std::string_view name) const {
    const json::value* v = object_.if_contains(name);
    return v == nullptr || v->is_null() ? nullptr : v;
  }

  [[noreturn]] void refuse(std::string_view name, const std::string& found, const std::string& expected,
                           const std::string& hint = "") const {
    throw Error(
        {.what = source_ + ": " + prefix_ + std::string(name), .found = found, .expected = expected, .hint = hint});
  }
  [[noreturn]] void refuse_value(std::string_view name, const json::value& v, const std::string& expected) const {
    std::string found = json::dump_python(v);
    constexpr std::size_t kMaxShown = 80;
    if (found.size() > kMaxShown) found = found.substr(0, kMaxShown) + "…";
    refuse(name, found, expected);
  }

  static std::optional<std::int64_t> as_integer(const json::value& v) {
    if (v.is_int64()) return v.get_int64();
    return std::nullopt;  // a uint64 is larger than any bound here
  }

  std::optional<std::int64_t> integer(std::string_view name, Range range) const {
    const json::value* v = find(name);
    if (v == nullptr) return std::nullopt;
    const std::optional<std::int64_t> n = as_integer(*v);
    if (!n || *n < range.min || *n > range.max)
      refuse_value(name, *v, "an integer from " + std::to_string(range.min) + " to " + std::to_string(range.max));
    return n;
  }
  std::int64_t required(std::string_view name, Range range) const {
    const std::optional<std::int64_t> n = integer(name, range);
    if (!n) refuse(name, "nothing", "an integer");
    return *n;
  }
  void must_equal(std::string_view name, std::int64_t value, const std::string& reason) const {
    const json::value* v = find(name);
    if (v != nullptr && as_integer(*v) != value) refuse_value(name, *v, std::to_string(value) + ", " + reason);
  }

  std::optional<double> number(std::string_view name, double min, double max) const {
    const json::value* v = find(name);
    if (v == nullptr) return std::nullopt;
    boost::json::error_code ec;
    const double d = v->is_number() ? v->to_number<double>(ec) : std::nan("");
    if (ec || !(d >= min && d <= max)) {
      refuse_value(name, *v, "a number from " + json::dump_python(min) + " to " + json::dump_python(max));
    }
    return d;
  }

  bool boolean(std::string_view name, bool absent) const {
    const json::value* v = find(name);
    if (v == nullptr) return absent;
    if (!v->is_bool()) refuse_value(name, *v, "true or false");
    return v->get_bool();
  }
  void must_be_flag(std::string_view name, bool value, const std::string& reason) const {
    if (boolean(name, value) != value) refuse(name, value ? "false" : "true", value ? "true" : "false", reason);
  }

  std::optional<std::string> string(std::string_view name) const {
    const json::value* v = find(name);
    if (v == nullptr) return std::nullopt;
    if (!v->is_string()) refuse_value(name, *v, "a string");
    return std::string(v->get_string());
  }
  void must_be(std::string_view name, std::string_view value, const std::string& reason) const {
    const json::value* v = find(name);
    if (v != nullptr && (!v->is_string() || v->get_string() != value))
      refuse_value(name, *v, "\"" + std::string(value) + "\", " + reason);
  }

  std::optional<Fields> object(std::string_view name) const {
    const json::value* v = find(name);
    if (v == nullptr) return std::nullopt;
    if (!v->is_object()) refuse_value(name, *v, "an object or null");
    return Fields(v->get_object(), source_, prefix_ + std::string(name) + ".");
  }

  const std::string& source() const { return source_; }

 private:
  const json::object& object_;
  std::string source_;
  std::string prefix_;
};

void check_architecture(const Fields& f) {
  if (!f.find("model_type")) f.refuse("model_type", "nothing", "\"glm4_moe_lite\"", "Glint runs GLM-4.7-Flash only");
  f.must_be("model_type", "glm4_moe_lite", "Glint runs GLM-4.7-Flash and its derivatives only");
  const std::string kernels = "the size that the MLA kernels have";
  for (const auto& [name, size] : {std::pair<const char*, std::int64_t>{"kv_lora_rank", kLatent},
                                   {"qk_rope_head_dim", kRope},
                                   {"qk_nope_head_dim", kNope},
                                   {"v_head_dim", kValue}}) {
    if (!f.find(name)) f.refuse(name, "nothing", std::to_string(size));
    f.must_equal(name, size, kernels);
  }
  f.must_equal("qk_head_dim", kQk, kernels);  // head_dim is an alias of qk_rope_head_dim and says nothing
  f.must_equal("n_group", 1, "since group-limited routing is not implemented");
  f.must_equal("topk_group", 1, "since group-limited routing is not implemented");
  f.must_equal("moe_layer_freq", 1, "a MoE in every layer after the dense ones");
  f.must_be("topk_method", "noaux_tc", "the routing with a correction bias");
  f.must_be("scoring_func", "sigmoid", "the scoring that the model was trained with");
  f.must_be("hidden_act", "silu", "the activation of the model");
  f.must_be_flag("attention_bias", false, "projections with a bias are not implemented");
  f.must_be_flag("rope_interleave", true, "the model rotates interleaved pairs");
}

// Top-level rope_theta (official) or rope_parameters (transformers ≥ 5); both may be there if they agree.
float rope_theta(const Fields& f) {
  constexpr double kMin = 1, kMax = 1e12;
  std::optional<double> theta = f.number("rope_theta", kMin, kMax);
  const std::string reason = "since rope scaling is not implemented";
  const auto check_form = [&](const Fields& rope) {
    for (const char* name : {"rope_type", "type"}) rope.must_be(name, "default", reason);
    if (rope.number("partial_rotary_factor", 0, 1).value_or(1) != 1)
      rope.refuse("partial_rotary_factor", "less than 1", "1", "all 64 rope dimensions rotate");
    const std::optional<double> inner = rope.number("rope_theta", kMin, kMax);
    if (theta && inner && *inner != *theta) {
      rope.refuse("rope_theta", json::dump_python(*inner),
                  json::dump_python(*theta) + ", as rope_theta elsewhere says");
    }
    if (inner) theta = inner;
  };
  check_form(f);
  if (const auto scaling = f.object("rope_scaling")) {
    if (!scaling->find("rope_type") && !scaling->find("type")) f.refuse("rope_scaling", "an object", "null", reason);
    check_form(*scaling);
  }
  if (const auto parameters = f.object("rope_parameters")) check_form(*parameters);
  if (!theta) f.refuse("rope_theta", "nothing", "rope_theta or rope_parameters.rope_theta");
  return static_cast<float>(*theta);
}

// first_k_dense_replace, or the leading "dense" entries of mlp_layer_types; the official model's 1 when neither is
// there.
std::int64_t first_dense_layers(const Fields& f, std::int64_t n_layers) {
  const std::optional<std::int64_t> replace = f.integer("first_k_dense_replace", {0, n_layers});
  const json::value* types = f.find("mlp_layer_types");
  if (types == nullptr) return replace.value_or(std::min<std::int64_t>(1, n_layers));
  if (!types->is_array()) f.refuse_value("mlp_layer_types", *types, "a list of \"dense\" and \"sparse\"");
  const json::array& list = types->get_array();
  if (static_cast<std::int64_t>(list.size()) < n_layers) {
    f.refuse("mlp_layer_types", std::to_string(list.size()) + " entries", std::to_string(n_layers) + ", one a layer");
  }
  std::int64_t dense = 0;
  for (std::int64_t i = 0; i < n_layers; ++i) {
    const json::value& v = list[static_cast<std::size_t>(i)];
    const bool is_dense = v.is_string() && v.get_string() == "dense";
    if (!is_dense && !(v.is_string() && v.get_string() == "sparse"))
      f.refuse_value("mlp_layer_types", v, "\"dense\" or \"sparse\"");
    if (is_dense && dense != i)
      f.refuse("mlp_layer_types", "a dense layer after a sparse one", "all dense layers first");
    if (is_dense) ++dense;
  }
  if (replace && *replace != dense) {
    f.refuse("mlp_layer_types", std::to_string(dense) + " dense layers",
             std::to_string(*replace) + ", as first_k_dense_replace says");
  }
  return dense;
}

std::int64_t n_experts(const Fields& f) {
  constexpr Range kRange{1, kMaxExperts};
  const std::optional<std::int64_t> routed = f.integer("n_routed_experts", kRange);
  const std::optional<std::int64_t> local = f.integer("num_local_experts", kRange);
  if (routed && local && *routed != *local) {
    f.refuse("num_local_experts", std::to_string(*local), std::to_string(*routed) + ", as n_routed_experts says");
  }
  if (!routed && !local) f.refuse("n_routed_experts", "nothing", "an integer");
  return routed ? *routed : *local;
}

// Appends the ids of eos_token_id (an int or a list) that are not yet in `ids`.
void merge_eos_ids(const Fields& f, std::int64_t vocab, std::vector<std::int32_t>& ids) {
  const json::value* v = f.find("eos_token_id");
  if (v == nullptr) return;
  const auto add = [&](const json::value& id) {
    const std::optional<std::int64_t> n = Fields::as_integer(id);
    if (!n || *n < 0 || *n >= vocab)
      f.refuse_value("eos_token_id", id, "token ids from 0 to " + std::to_string(vocab - 1));
    const auto token = static_cast<std::int32_t>(*n);
    if (std::find(ids.begin(), ids.end(), token) == ids.end()) ids.push_back(token);
  };
  if (!v->is_array()) return add(*v);
  constexpr std::size_t kMaxEos = 64;
  if (v->get_array().size() > kMaxEos) f.refuse("eos_token_id", "more than 64 ids", "a few");
  for (const json::value& id : v->get_array()) add(id);
}

Fields root(const json::value& document, const std::string& source) {
  if (!document.is_object())
    throw Error({.what = source, .found = "no JSON object", .expected = "an object of fields"});
  return {document.get_object(), source};
}

}  // namespace

ModelConfig parse_config(std::string_view json_text, std::string_view source) {
  const json::value document = json::parse_text(json_text, source);
  const Fields f = root(document, std::string(source));
  check_architecture(f);
  ModelConfig c;
  c.hidden = f.required("hidden_size", {1, kMaxWidth});
  c.n_layers = f.required("num_hidden_layers", {1, kMaxLayers});
  c.n_mtp_layers = f.integer("num_nextn_predict_layers", {0, 1}).value_or(0);
  c.n_heads = f.required("num_attention_heads", {1, kMaxHeads});
  f.must_equal("num_key_value_heads", c.n_heads, "num_attention_heads (MLA has one latent head for all)");
  c.q_lora = f.required("q_lora_rank", {1, kMaxWidth});
  c.dense_inner = f.required("intermediate_size", {1, kMaxWidth});
  c.expert_inner = f.required("moe_intermediate_size", {1, kMaxWidth});
  c.n_experts = n_experts(f);
  c.n_shared_experts = f.integer("n_shared_experts", {0, kMaxExperts}).value_or(1);
  c.top_k = f.required("num_experts_per_tok", {1, c.n_experts});
  c.first_dense_layers = first_dense_layers(f, c.n_layers);
  c.norm_topk = f.boolean("norm_topk_prob", true);
  c.routed_scale = static_cast<float>(f.number("routed_scaling_factor", 1e-3, 1e3).value_or(1.8));
  c.rms_eps = static_cast<float>(f.number("rms_norm_eps", 1e-12, 1e-1).value_or(1e-5));
  c.rope_theta = rope_theta(f);
  c.vocab = f.required("vocab_size", {1, kMaxSampledVocab});
  c.max_positions = f.required("max_position_embeddings", {1, kMaxPositions});
  c.tie_embeddings = f.boolean("tie_word_embeddings", false);
  merge_eos_ids(f, c.vocab, c.eos_ids);
  c.pad_id = static_cast<std::int32_t>(f.integer("pad_token_id", {-1, c.vocab - 1}).value_or(-1));
  c.dtype = f.string("dtype").value_or(f.string("torch_dtype").value_or(""));
  return c;
}

ModelConfig load_config(const std::string& model_dir) {
  const std::filesystem::path dir(model_dir);
  const std::string path = (dir / "config.json").string();
  ModelConfig c = parse_config(read_file(path), path);
  const std::string generation = (dir / "generation_config.json").string();
  std::error_code ec;
  if (std::filesystem::exists(generation, ec)) {
    const json::value document = json::parse_file(generation);
    merge_eos_ids(root(document, generation), c.vocab, c.eos_ids);
  }
  return c;
}

QuantConfig parse_quant_config(std::string_view json_text, std::string_view source) {
  const json::value document = json::parse_text(json_text, source);
  const Fields f = root(document, std::string(source));
  const auto q =
      f.find("quantization_config") != nullptr ? f.object("quantization_config") : f.object("compression_config");
  QuantConfig c;
  if (!q) return c;
  const auto read_weights = [&](const Fields& w) {
    constexpr Range kBits{1, 16}, kGroup{-1, kMaxWidth};
    for (const char* name : {"bits", "w_bit", "num_bits"}) c.bits = w.integer(name, kBits).value_or(c.bits);
    for (const char* name : {"group_size", "q_group_size"})
      c.group = std::max<std::int64_t>(0, w.integer(name, kGroup).value_or(c.group));
    for (const char* name : {"sym", "symmetric"}) c.symmetric = w.boolean(name, c.symmetric);
  };
  c.method = q->string("quant_method").value_or("");
  read_weights(*q);
  c.desc_act = q->boolean("desc_act", false);
  // AutoRound names the format "auto_round:gptqv2".
  c.gptq_v2 = q->string("checkpoint_format").value_or("") == "gptq_v2" ||
              q->string("packing_format").value_or("").find("gptqv2") != std::string::npos;
  if (const auto groups = q->object("config_groups")) {  // compressed-tensors and modelopt; the first speaks for all
    if (const auto group = groups->object("group_0")) {
      if (const auto weights = group->object("weights")) read_weights(*weights);
    }
  }
  return c;
}

QuantConfig load_quant_config(const std::string& model_dir) {
  const std::string path = (std::filesystem::path(model_dir) / "config.json").string();
  return parse_quant_config(read_file(path), path);
}

}  // namespace glint
