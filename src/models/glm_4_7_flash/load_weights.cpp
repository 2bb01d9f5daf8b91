// Checkpoint → ModelWeights by the tensor table. Matrices stay in the file's mapping where the backend reads host
// memory and the file has Glint's layout; what must change is converted once, matrix by matrix.

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <unordered_set>

#include "base/error.hpp"
#include "models/glm_4_7_flash/tensor_table.hpp"
#include "tensor/codec.hpp"
#include "weights/checkpoint.hpp"
#include "weights/matrix_reader.hpp"

namespace glint {
namespace {

// Puts host bytes where the backend can read them: in place for host backends, else copied into chunks of its memory.
class Placer {
 public:
  explicit Placer(Ops& ops) : ops_(ops), in_place_(!ops.name().starts_with("cuda")) {}

  // A matrix in a mapped file or in memory of its own.
  Weight keep(StoredMatrix m) {
    Weight w = m.weight;
    if (in_place_) {
      for (Buffer& b : m.owned) buffers_.push_back(std::move(b));
      return w;
    }
    const auto scale_bytes = static_cast<std::size_t>(w.scale_bytes()) / (w.mins != nullptr ? 2 : 1);
    w.data = copy(w.data, static_cast<std::size_t>(w.rows * w.row_bytes()));
    if (w.scales != nullptr) w.scales = copy(w.scales, scale_bytes);
    if (w.mins != nullptr) w.mins = copy(w.mins, scale_bytes);
    return w;
  }
  // Bytes that do not stay valid.
  const void* copy(const void* host, std::size_t bytes) {
    void* dst = allocate(bytes);
    ops_.upload(dst, host, bytes);
    return dst;
  }
  std::vector<Buffer> take_buffers() { return std::move(buffers_); }

 private:
  static constexpr std::size_t kChunk = std::size_t{8} << 20;
  static constexpr std::size_t kAlign = 256;

  // Norms are small and many, so that they share chunks; a matrix gets its own.
  void* allocate(std::size_t bytes) {
    if (bytes > kChunk / 4) return buffers_.emplace_back(ops_.allocate(bytes)).data();
    if (bytes > left_) {
      next_ = static_cast<std::byte*>(buffers_.emplace_back(ops_.allocate(kChunk)).data());
      left_ = kChunk;
    }
    void* p = next_;
    const std::size_t used = std::min(left_, (bytes + kAlign - 1) / kAlign * kAlign);
    next_ += used;
    left_ -= used;
    return p;
  }

  Ops& ops_;
  bool in_place_;
  std::vector<Buffer> buffers_;
  std::byte* next_ = nullptr;
  std::size_t left_ = 0;
};

struct Storage {
  std::shared_ptr<const Checkpoint> checkpoint;
  std::vector<Buffer> buffers;
};

bool is_float(DType t) { return t == DType::kF32 || t == DType::kF16 || t == DType::kBF16 || t == DType::kF8E4M3; }

// Rounded to BF16, row by row.
StoredMatrix dequantised(StoredMatrix m) {
  const std::int64_t rows = m.weight.rows, cols = m.weight.cols;
  Buffer values = host_buffer(static_cast<std::size_t>(rows * cols) * sizeof(BF16));
  auto* out = static_cast<BF16*>(values.data());
  std::vector<float> row(static_cast<std::size_t>(cols));
  for (std::int64_t r = 0; r < rows; ++r) {
    decode_row(m.weight, r, row.data());
    for (const float v : row) *out++ = to_bf16(v);
  }
  m.weight = {.format = WeightFormat::kBF16, .rows = rows, .cols = cols, .data = values.data()};
  m.owned.clear();
  m.owned.push_back(std::move(values));
  return m;
}

class Loader {
 public:
  Loader(const Checkpoint& checkpoint, ModelWeights& model, Ops& ops, const LoadProgress& progress)
      : checkpoint_(checkpoint),
        model_(model),
        config_(model.config),
        quant_(load_quant_config(checkpoint.dir())),
        ops_(ops),
        placer_(ops),
        progress_(progress) {}

  void load() {
    refuse_unknown_names();
    config_.n_mtp_layers = has_mtp() ? 1 : 0;  // the files decide: re-saved checkpoints drop the layer, not the field
    const BindTarget whole{.model = &model_};
    load_scope(Scope::kModel, -1, whole);
    if (!model_.lm_head) model_.lm_head = model_.embed;
    model_.layers.resize(static_cast<std::size_t>(config_.n_layers));
    for (std::int64_t l = 0; l < config_.n_layers; ++l) {
      load_layer(l, config_.is_dense(l), model_.layers[static_cast<std::size_t>(l)]);
    }
    if (config_.n_mtp_layers > 0) load_mtp();
    refuse_unused();
    if (progress_) progress_(checkpoint_.data_bytes(), checkpoint_.data_bytes());
  }

  std::vector<Buffer> take_buffers() { return placer_.take_buffers(); }

 private:
  bool has_mtp() const {
    const std::string prefix = "model.layers." + std::to_string(config_.n_layers) + ".";
    return std::any_of(checkpoint_.tensors().begin(), checkpoint_.tensors().end(),
                       [&](const Checkpoint::Tensor& t) { return t.entry->name.starts_with(prefix); });
  }

  void load_layer(std::int64_t l, bool dense, LayerWeights& layer) {
    const BindTarget target{.layer = &layer};
    load_scope(Scope::kLayer, l, target);
    load_scope(dense ? Scope::kDense : Scope::kMoe, l, target);
    if (!dense) load_experts(l, layer);
  }

  void load_mtp() {
    model_.mtp = std::make_unique<MtpWeights>();
    MtpWeights& mtp = *model_.mtp;
    load_scope(Scope::kMtp, config_.n_layers, {.mtp = &mtp});
    load_layer(config_.n_layers, /*dense=*/false, mtp.block);
    if (!mtp.embed) mtp.embed = model_.embed;
    if (!mtp.head) mtp.head = model_.lm_head;
  }

  void load_scope(Scope scope, std::int64_t l, const BindTarget& target, std::int64_t expert = 0) {
    for (const TensorSpec& spec : tensor_table()) {
      if (spec.scope != scope) continue;
      if (spec.role == Role::kShared && config_.n_shared_experts == 0) continue;
      const std::string base = matrix_base(spec, l, expert);
      if (may_be_absent(spec) && !has_matrix(checkpoint_, base)) continue;
      const Slot slot = spec.bind(target);
      if (auto* const* weight = std::get_if<Weight*>(&slot)) {
        **weight = matrix(spec, base);
      } else {
        *std::get<ConstView*>(slot) = spec.rank == 2 ? router(spec, base) : f32(take(spec, hf_name(spec, l, expert)));
      }
    }
  }

  bool may_be_absent(const TensorSpec& spec) const {
    if (spec.presence != Presence::kShared) return false;
    return spec.scope == Scope::kMtp || config_.tie_embeddings;
  }

  void load_experts(std::int64_t l, LayerWeights& layer) {
    layer.experts.resize(static_cast<std::size_t>(config_.n_experts));
    const TensorSpec* gate_up = nullptr;
    const TensorSpec* down = nullptr;
    for (const TensorSpec& spec : tensor_table()) {
      if (spec.scope == Scope::kFused) (gate_up == nullptr ? gate_up : down) = &spec;
    }
    if (!has_matrix(checkpoint_, matrix_base(*gate_up, l))) {
      for (std::int64_t e = 0; e < config_.n_experts; ++e)
        load_scope(Scope::kExpert, l, {.expert = &layer.experts[static_cast<std::size_t>(e)]}, e);
      return;
    }
    const std::int64_t inner = config_.expert_inner;
    const Weight both = matrix(*gate_up, matrix_base(*gate_up, l));
    const Weight downs = matrix(*down, matrix_base(*down, l));
    for (std::int64_t e = 0; e < config_.n_experts; ++e) {
      ExpertWeights& x = layer.experts[static_cast<std::size_t>(e)];
      x.gate = both.slice_rows(2 * e * inner, inner);
      x.up = both.slice_rows((2 * e + 1) * inner, inner);
      x.down = downs.slice_rows(e * config_.hidden, config_.hidden);
    }
  }

  // Finds a tensor and checks it against the table.
  const Checkpoint::Tensor& take(const TensorSpec& spec, const std::string& name) {
    const Shape shape = spec.shape(config_);
    const Checkpoint::Tensor* t = checkpoint_.find(name);
    if (t == nullptr) {
      throw Error({.what = checkpoint_.dir() + ": tensor " + name,
                   .found = "no such tensor",
                   .expected = std::string(dtype_name(spec.stored)) + " " + shape.to_string()});
    }
    if (!is_float(t->entry->dtype))
      throw Error({.what = t->what(),
                   .found = std::string(dtype_name(t->entry->dtype)),
                   .expected = "BF16, F16, F32 or F8_E4M3"});
    if (t->entry->shape != shape) {
      throw Error({.what = t->what(),
                   .found = "shape " + t->entry->shape.to_string(),
                   .expected = shape.to_string() + " by config.json"});
    }
    mark_used(*t);
    return *t;
  }

  void mark_used(const Checkpoint::Tensor& t) {
    used_.insert(t.entry);
    done_bytes_ += t.entry->end - t.entry->begin;
    if (progress_) progress_(done_bytes_, checkpoint_.data_bytes());
  }

  // A matrix as the file has it; all experts of a fused one as rows of one matrix.
  StoredMatrix read(const TensorSpec& spec, const std::string& base) {
    const Shape shape = spec.shape(config_);
    const bool fused = spec.rank == 3;
    if (!has_matrix(checkpoint_, base)) {
      throw Error({.what = checkpoint_.dir() + ": tensor " + base + (fused ? "" : ".weight"),
                   .found = "no such tensor",
                   .expected = std::string(dtype_name(spec.stored)) + " " + shape.to_string()});
    }
    const std::int64_t rows = fused ? shape[0] * shape[1] : shape[0];
    StoredMatrix m = read_matrix(checkpoint_, base, rows, shape[spec.rank - 1], quant_);
    LoadReport::Scheme& scheme = model_.report.schemes[std::string(m.scheme)];
    ++scheme.matrices;
    bool by_expert = false;
    for (const Checkpoint::Tensor* t : m.used) {
      const Shape& s = t->entry->shape;
      if (s.rank() == 3 && !(fused && s[0] == config_.n_experts)) refuse_shape(*t, shape);
      by_expert |= s.rank() == 3;
      scheme.bytes += t->entry->end - t->entry->begin;
      mark_used(*t);
    }
    if (fused && !by_expert) refuse_shape(*m.used.back(), shape);
    return m;
  }

  [[noreturn]] static void refuse_shape(const Checkpoint::Tensor& t, const Shape& matrix) {
    throw Error({.what = t.what(),
                 .found = "shape " + t.entry->shape.to_string(),
                 .expected = "the shape of a matrix of " + matrix.to_string() + " by config.json"});
  }

  Weight matrix(const TensorSpec& spec, const std::string& base) {
    StoredMatrix m = read(spec, base);
    const bool absorbed = spec.field == "layers.kv_b";
    if (absorbed && has_scales(m.weight.format) && !ops_.supports_absorbed(quant_spec(m.weight))) {
      ++model_.report.kv_b_dequantised;
      m = dequantised(std::move(m));
    } else if (m.scheme != "plain" && !ops_.supports(m.weight.format)) {
      ++model_.report.dequantised;
      m = dequantised(std::move(m));
    }
    if (!ops_.supports(m.weight.format)) {
      const Checkpoint::Tensor& t = *m.used.back();
      throw Error({.what = t.what(),
                   .found = std::string(dtype_name(t.entry->dtype)),
                   .expected = "a format that the backend " + ops_.name() + " reads"});
    }
    return placer_.keep(std::move(m));
  }

  // F32 whatever the file has (model facts §2.4).
  ConstView router(const TensorSpec& spec, const std::string& base) {
    const StoredMatrix m = read(spec, base);
    const Weight& w = m.weight;
    std::vector<float> out(static_cast<std::size_t>(w.rows * w.cols));
    for (std::int64_t r = 0; r < w.rows; ++r) decode_row(w, r, out.data() + r * w.cols);
    refuse_non_finite(*m.used.back(), count_non_finite({out.data(), DType::kF32, {w.rows, w.cols}}));
    return {placer_.copy(out.data(), out.size() * sizeof(float)), DType::kF32, {w.rows, w.cols}};
  }

  static void refuse_non_finite(const Checkpoint::Tensor& t, std::uint64_t bad) {
    if (bad == 0) return;
    throw Error({.what = t.what(),
                 .found = std::to_string(bad) + " values that are NaN or infinite",
                 .expected = "finite values",
                 .hint = "the file is damaged or badly converted"});
  }

  // Norms, router and correction bias: small, and a NaN in one spoils every token, so that they are checked always.
  ConstView f32(const Checkpoint::Tensor& t) {
    const ConstView v = t.view();
    refuse_non_finite(t, count_non_finite(v));
    std::vector<float> out(static_cast<std::size_t>(v.shape.elements()));
    for (std::size_t i = 0; i < out.size(); ++i) out[i] = load_as_float(v.data, v.dtype, i);
    return {placer_.copy(out.data(), out.size() * sizeof(float)), DType::kF32, v.shape};
  }

  // Before anything else, since an unknown name explains a missing one best.
  void refuse_unknown_names() const {
    std::string first;
    std::string file;
    std::size_t count = 0;
    for (const Checkpoint::Tensor& t : checkpoint_.tensors()) {
      if (is_ignored_tensor(t.entry->name) || find_stored_place(t.entry->name, config_)) continue;
      if (count++ == 0) {
        first = t.entry->name;
        file = t.what();
      }
    }
    if (count == 0) return;
    const bool scales = first.find("scale") != first.npos || first.find("packed") != first.npos ||
                        first.find("qweight") != first.npos || first.find("zero") != first.npos;
    throw Error({.what = file,
                 .found = "a tensor that the model does not have" +
                          (count > 1 ? ", and " + std::to_string(count - 1) + " more" : std::string()),
                 .expected = "the tensors of glm4_moe_lite with the sizes of config.json",
                 .hint = scales ? "a quantised checkpoint of a scheme that Glint does not read" : ""});
  }

  // A known name that nothing bound: both forms of the experts in one checkpoint, or a scale beside a matrix that has
  // no use for it.
  void refuse_unused() const {
    const Checkpoint::Tensor* first = nullptr;
    std::size_t count = 0;
    for (const Checkpoint::Tensor& t : checkpoint_.tensors()) {
      if (used_.contains(t.entry) || is_ignored_tensor(t.entry->name)) continue;
      if (count++ == 0) first = &t;
    }
    if (count == 0) return;
    const std::string more = count > 1 ? ", and " + std::to_string(count - 1) + " more" : std::string();
    const std::string base = matrix_base(first->entry->name);
    const bool bound = std::any_of(used_.begin(), used_.end(),
                                   [&](const SafetensorsEntry* e) { return matrix_base(e->name) == base; });
    if (!bound) {
      throw Error({.what = first->what(),
                   .found = "per-expert and fused tensors of the same experts" + more,
                   .expected = "one of the two forms"});
    }
    const MatrixScheme* scheme = find_scheme(checkpoint_, base);
    throw Error({.what = first->what(),
                 .found = "a part of a quantised matrix that its other tensors do not use" + more,
                 .expected = scheme == nullptr
                                 ? "the matrix"
                                 : "the tensors of " + base + " in the form " + std::string(scheme->name)});
  }

  const Checkpoint& checkpoint_;
  ModelWeights& model_;
  ModelConfig& config_;
  QuantConfig quant_;
  Ops& ops_;
  Placer placer_;
  const LoadProgress& progress_;
  std::unordered_set<const SafetensorsEntry*> used_;
  std::uint64_t done_bytes_ = 0;
};

ModelWeights load(ModelConfig config, std::shared_ptr<const Checkpoint> checkpoint, Ops& ops,
                  const LoadProgress& progress) {
  ModelWeights model;
  model.config = std::move(config);
  Loader loader(*checkpoint, model, ops, progress);
  loader.load();
  model.storage = std::make_shared<Storage>(Storage{std::move(checkpoint), loader.take_buffers()});
  return model;
}

}  // namespace

ModelWeights load_weights(const std::string& model_dir, Ops& ops, const LoadProgress& progress) {
  // The config first: of a directory that is no model at all, it says what is wrong.
  ModelConfig config = load_config(model_dir);
  return load(std::move(config), std::make_shared<const Checkpoint>(model_dir), ops, progress);
}

ModelWeights load_weights(std::shared_ptr<const Checkpoint> checkpoint, Ops& ops, const LoadProgress& progress) {
  ModelConfig config = load_config(checkpoint->dir());
  return load(std::move(config), std::move(checkpoint), ops, progress);
}

}  // namespace glint
