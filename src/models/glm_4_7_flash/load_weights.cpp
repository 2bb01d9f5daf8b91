// Checkpoint → ModelWeights by the tensor table. Matrices stay in the file's mapping where the backend reads host
// memory; what must change (F8 matrices, norms, routers) is converted once into backend memory.

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <unordered_set>

#include "base/error.hpp"
#include "models/glm_4_7_flash/tensor_table.hpp"
#include "weights/checkpoint.hpp"

namespace glint {
namespace {

// Puts host bytes where the backend can read them: in place for host backends, else copied into chunks of its memory.
class Placer {
 public:
  explicit Placer(Ops& ops) : ops_(ops), in_place_(!ops.name().starts_with("cuda")) {}

  // Bytes that stay valid (a mapped file).
  const void* keep(const void* host, std::size_t bytes) { return in_place_ ? host : copy(host, bytes); }
  // Bytes that do not.
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
  Checkpoint checkpoint;
  std::vector<Buffer> buffers;
  explicit Storage(const std::string& dir) : checkpoint(dir) {}
};

bool is_float(DType t) { return t == DType::kF32 || t == DType::kF16 || t == DType::kBF16 || t == DType::kF8E4M3; }

constexpr const char* kFloats = "BF16, F16, F32 or F8_E4M3";

class Loader {
 public:
  Loader(const Checkpoint& checkpoint, ModelWeights& model, Ops& ops, const LoadProgress& progress)
      : checkpoint_(checkpoint), model_(model), config_(model.config), ops_(ops), placer_(ops), progress_(progress) {}

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
      const std::string name = hf_name(spec, l, expert);
      if (may_be_absent(spec) && checkpoint_.find(name) == nullptr) continue;
      const Checkpoint::Tensor& t = take(spec, name);
      const Slot slot = spec.bind(target);
      if (auto* const* weight = std::get_if<Weight*>(&slot)) {
        **weight = matrix(t, t.view().data, spec.shape(config_)[0], spec.shape(config_)[1]);
      } else {
        *std::get<ConstView*>(slot) = f32(t);
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
    if (checkpoint_.find(hf_name(*gate_up, l)) == nullptr) {
      for (std::int64_t e = 0; e < config_.n_experts; ++e)
        load_scope(Scope::kExpert, l, {.expert = &layer.experts[static_cast<std::size_t>(e)]}, e);
      return;
    }
    cut_experts(
        take(*gate_up, hf_name(*gate_up, l)),
        [&](ExpertWeights& x, const Weight& w) {
          x.gate = w.slice_rows(0, config_.expert_inner);
          x.up = w.slice_rows(config_.expert_inner, config_.expert_inner);
        },
        layer);
    cut_experts(
        take(*down, hf_name(*down, l)), [](ExpertWeights& x, const Weight& w) { x.down = w; }, layer);
  }

  // [E, rows, cols] → one matrix an expert.
  template <typename Assign>
  void cut_experts(const Checkpoint::Tensor& t, const Assign& assign, LayerWeights& layer) {
    const ConstView v = t.view();
    const std::int64_t rows = v.shape[1], cols = v.shape[2];
    const Weight all = matrix(t, v.data, v.shape[0] * rows, cols);
    for (std::int64_t e = 0; e < v.shape[0]; ++e)
      assign(layer.experts[static_cast<std::size_t>(e)], all.slice_rows(e * rows, rows));
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
      throw Error({.what = t->what(), .found = std::string(dtype_name(t->entry->dtype)), .expected = kFloats});
    if (t->entry->shape != shape) {
      throw Error({.what = t->what(),
                   .found = "shape " + t->entry->shape.to_string(),
                   .expected = shape.to_string() + " by config.json"});
    }
    used_.insert(t->entry);
    done_bytes_ += t->entry->end - t->entry->begin;
    if (progress_) progress_(done_bytes_, checkpoint_.data_bytes());
    return *t;
  }

  Weight matrix(const Checkpoint::Tensor& t, const void* data, std::int64_t rows, std::int64_t cols) {
    Weight w{.rows = rows, .cols = cols};
    switch (t.entry->dtype) {
      case DType::kF32:
        w.format = WeightFormat::kF32;
        break;
      case DType::kF16:
        w.format = WeightFormat::kF16;
        break;
      default:
        w.format = WeightFormat::kBF16;
    }
    if (!ops_.supports(w.format)) {
      throw Error({.what = t.what(),
                   .found = std::string(dtype_name(t.entry->dtype)),
                   .expected = "a format that the backend " + ops_.name() + " reads"});
    }
    const auto bytes = static_cast<std::size_t>(w.bytes());
    w.data = t.entry->dtype == DType::kF8E4M3 ? f8_to_bf16(data, rows * cols) : placer_.keep(data, bytes);
    return w;
  }

  // Exact: BF16 has more exponent and mantissa bits than F8_E4M3.
  const void* f8_to_bf16(const void* data, std::int64_t n) {
    std::array<std::uint16_t, 256> table{};
    for (std::size_t i = 0; i < table.size(); ++i)
      table[i] = to_bf16(f8e4m3_to_float(static_cast<std::uint8_t>(i))).bits;
    const auto* in = static_cast<const std::uint8_t*>(data);
    std::vector<std::uint16_t> out(static_cast<std::size_t>(n));
    for (std::size_t i = 0; i < out.size(); ++i) out[i] = table[in[i]];
    return placer_.copy(out.data(), out.size() * sizeof out[0]);
  }

  // Norms, router and correction bias: small, and a NaN in one spoils every token, so that they are checked always.
  ConstView f32(const Checkpoint::Tensor& t) {
    const ConstView v = t.view();
    if (const std::uint64_t bad = count_non_finite(v); bad > 0) {
      throw Error({.what = t.what(),
                   .found = std::to_string(bad) + " values that are NaN or infinite",
                   .expected = "finite values",
                   .hint = "the file is damaged or badly converted"});
    }
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
      if (is_ignored_tensor(t.entry->name) || find_place(t.entry->name, config_)) continue;
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

  // A known name that nothing bound: both forms of the experts in one checkpoint.
  void refuse_unused() const {
    for (const Checkpoint::Tensor& t : checkpoint_.tensors()) {
      if (used_.contains(t.entry) || is_ignored_tensor(t.entry->name)) continue;
      throw Error({.what = t.what(),
                   .found = "per-expert and fused tensors of the same experts",
                   .expected = "one of the two forms"});
    }
  }

  const Checkpoint& checkpoint_;
  ModelWeights& model_;
  ModelConfig& config_;
  Ops& ops_;
  Placer placer_;
  const LoadProgress& progress_;
  std::unordered_set<const SafetensorsEntry*> used_;
  std::uint64_t done_bytes_ = 0;
};

}  // namespace

ModelWeights load_weights(const std::string& model_dir, Ops& ops, const LoadProgress& progress) {
  ModelWeights model;
  model.config = load_config(model_dir);
  auto storage = std::make_shared<Storage>(model_dir);
  Loader loader(storage->checkpoint, model, ops, progress);
  loader.load();
  storage->buffers = loader.take_buffers();
  model.storage = std::move(storage);
  return model;
}

}  // namespace glint
