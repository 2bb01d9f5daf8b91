// GGUF → ModelWeights by the tensor table.

#include "models/glm_4_7_flash/load_gguf.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <future>
#include <unordered_set>

#include "base/error.hpp"
#include "base/thread_pool.hpp"
#include "ops/params.hpp"

namespace glint {
namespace {

constexpr std::int64_t kItemValues = 1 << 16;  // values that a thread converts at a time

struct Storage {
  std::shared_ptr<const GgufModel> file;
  std::vector<Buffer> buffers;
};

// Copies of tensors on their way to a device: while one is uploaded, the next is filled. They are used for all tensors,
// since pages cost more when they are new than what is written to them.
class Staging {
 public:
  // The memory that is not being uploaded.
  std::byte* take(std::size_t bytes) {
    if (buffers_[at_].bytes() < bytes) buffers_[at_] = host_buffer(bytes);
    return static_cast<std::byte*>(buffers_[at_].data());
  }
  // Uploads what was taken, and turns to the other one.
  void upload(Ops& ops, void* dst, std::size_t bytes) {
    wait();
    upload_ = std::async(std::launch::async,
                         [&ops, dst, bytes, from = buffers_[at_].data()] { ops.upload(dst, from, bytes); });
    at_ = 1 - at_;
  }
  // Throws what the upload has thrown.
  void wait() {
    if (upload_.valid()) upload_.get();
  }

 private:
  Buffer buffers_[2];
  int at_ = 0;
  std::future<void> upload_;  // last: it reads a buffer, and its destructor waits
};

// Host memory that becomes the backend's: the backend's own on the host, else a staging copy that is uploaded.
class Target {
 public:
  Target(Ops& ops, std::size_t bytes, std::vector<Buffer>& keep, Staging& staging)
      : ops_(ops), bytes_(bytes), staging_(staging) {
    keep.push_back(ops.allocate(bytes));
    device_ = static_cast<std::byte*>(keep.back().data());
    host_ = ops.name().starts_with("cuda") ? staging.take(bytes) : device_;
  }
  std::byte* host() const { return host_; }
  const std::byte* finish() {
    if (host_ != device_) staging_.upload(ops_, device_, bytes_);
    return device_;
  }

 private:
  Ops& ops_;
  std::size_t bytes_;
  Staging& staging_;
  std::byte* device_ = nullptr;
  std::byte* host_ = nullptr;
};

class GgufLoader {
 public:
  GgufLoader(const GgufModel& file, ModelWeights& model, Ops& ops, const LoadProgress& progress)
      : file_(file), model_(model), config_(model.config), ops_(ops), progress_(progress), pool_(0) {}

  std::vector<Buffer> load() {
    for (const GgufModel::Tensor& t : file_.tensors()) {
      if (!gguf_readable(t.entry->type)) {
        throw Error({.what = t.what(),
                     .found = std::string(gguf_type_name(t.entry->type)),
                     .expected = std::string(kGgufReadable),
                     .hint = "2- and 3-bit, IQ and ternary types are not read: take a Q4_0, Q4_K or larger file"});
      }
    }
    config_.n_mtp_layers = file_.find(layer_name(config_.n_layers, "nextn.eh_proj.weight")) != nullptr ? 1 : 0;
    load_scope(Scope::kModel, -1, {.model = &model_});
    if (!model_.lm_head) model_.lm_head = model_.embed;
    model_.layers.resize(static_cast<std::size_t>(config_.n_layers));
    for (std::int64_t l = 0; l < config_.n_layers; ++l)
      load_layer(l, config_.is_dense(l), model_.layers[static_cast<std::size_t>(l)]);
    if (config_.n_mtp_layers > 0) load_mtp();
    refuse_unused();
    staging_.wait();
    if (progress_) progress_(file_.data_bytes(), file_.data_bytes());
    return std::move(buffers_);
  }

 private:
  static std::string layer_name(std::int64_t l, std::string_view name) {
    return "blk." + std::to_string(l) + "." + std::string(name);
  }

  void load_layer(std::int64_t l, bool dense, LayerWeights& layer) {
    load_scope(Scope::kLayer, l, {.layer = &layer});
    load_scope(dense ? Scope::kDense : Scope::kMoe, l, {.layer = &layer});
    if (!dense) load_experts(l, layer);
  }

  void load_mtp() {
    model_.mtp = std::make_unique<MtpWeights>();
    MtpWeights& mtp = *model_.mtp;
    load_scope(Scope::kMtp, config_.n_layers, {.mtp = &mtp});
    load_layer(config_.n_layers, /*dense=*/false, mtp.block);
    if (!mtp.head_norm) mtp.head_norm = model_.final_norm;
    if (!mtp.embed) mtp.embed = model_.embed;
    if (!mtp.head) mtp.head = model_.lm_head;
  }

  void load_scope(Scope scope, std::int64_t l, const BindTarget& target) {
    for (const TensorSpec& spec : tensor_table()) {
      if (spec.scope != scope || (spec.role == Role::kShared && config_.n_shared_experts == 0)) continue;
      const std::string name = gguf_name(spec, l);
      if (may_be_absent(spec) && file_.find(name) == nullptr) continue;
      const Slot slot = spec.bind(target);
      if (spec.field == "layers.kv_b" && file_.find(name) == nullptr) {
        *std::get<Weight*>(slot) = split_kv_b(l);
        continue;
      }
      const Shape shape = spec.shape(config_);
      const GgufModel::Tensor& t = take(name, shape);
      if (auto* const* weight = std::get_if<Weight*>(&slot)) {
        **weight = spec.field == "layers.kv_b" ? absorbed(t, shape[0], shape[1]) : matrix(t, shape[0], shape[1]);
      } else {
        *std::get<ConstView*>(slot) = f32(t);
      }
    }
  }

  // Model facts §4.3: of the MTP tensors only eh_proj, enorm and hnorm are always there.
  bool may_be_absent(const TensorSpec& spec) const {
    if (spec.field == "mtp.head_norm") return true;
    return spec.presence == Presence::kShared && (spec.scope == Scope::kMtp || config_.tie_embeddings);
  }

  void load_experts(std::int64_t l, LayerWeights& layer) {
    const std::int64_t e = config_.n_experts, inner = config_.expert_inner, hidden = config_.hidden;
    layer.experts.resize(static_cast<std::size_t>(e));
    const auto cut = [&](const char* name, std::int64_t rows, std::int64_t cols, const auto& assign) {
      const Weight all = matrix(take(layer_name(l, name), {e, rows, cols}), e * rows, cols);
      for (std::int64_t i = 0; i < e; ++i)
        assign(layer.experts[static_cast<std::size_t>(i)], all.slice_rows(i * rows, rows));
    };
    if (file_.find(layer_name(l, "ffn_gate_up_exps.weight")) != nullptr) {  // gate rows first
      cut("ffn_gate_up_exps.weight", 2 * inner, hidden, [&](ExpertWeights& x, const Weight& w) {
        x.gate = w.slice_rows(0, inner);
        x.up = w.slice_rows(inner, inner);
      });
    } else {
      cut("ffn_gate_exps.weight", inner, hidden, [](ExpertWeights& x, const Weight& w) { x.gate = w; });
      cut("ffn_up_exps.weight", inner, hidden, [](ExpertWeights& x, const Weight& w) { x.up = w; });
    }
    cut("ffn_down_exps.weight", hidden, inner, [](ExpertWeights& x, const Weight& w) { x.down = w; });
  }

  // Finds a tensor and checks its shape.
  const GgufModel::Tensor& take(const std::string& name, const Shape& shape) {
    const GgufModel::Tensor* t = file_.find(name);
    if (t == nullptr) {
      throw Error({.what = file_.path() + ": tensor " + name,
                   .found = "no such tensor",
                   .expected = "a tensor " + shape.to_string() + " (outermost dimension first)"});
    }
    if (t->entry->shape != shape) {
      throw Error({.what = t->what(),
                   .found = "shape " + t->entry->shape.to_string() + " (outermost dimension first)",
                   .expected = shape.to_string() + " by the file's metadata"});
    }
    used_.insert(t->entry);
    done_bytes_ += t->bytes();
    if (progress_) progress_(done_bytes_, file_.data_bytes());
    return *t;
  }

  Weight matrix(const GgufModel::Tensor& t, std::int64_t rows, std::int64_t cols) {
    const GgufTarget target = gguf_target(t.entry->type);
    if (!ops_.supports(target.format)) return decoded(t, rows, cols, WeightFormat::kF32);
    if (has_scales(target.format)) return repacked(t, rows, cols, target);
    Weight w{.format = target.format, .rows = rows, .cols = cols, .data = t.data()};
    if (!ops_.name().starts_with("cuda")) return w;
    buffers_.push_back(ops_.allocate(t.bytes()));
    ops_.upload(buffers_.back().data(), t.data(), t.bytes());
    w.data = buffers_.back().data();
    t.drop_pages();
    return w;
  }

  // Items of whole rows; fn(first row, rows).
  template <typename Fn>
  void for_rows(std::int64_t rows, std::int64_t cols, const Fn& fn) {
    const std::int64_t step = std::max<std::int64_t>(1, kItemValues / cols);
    pool_.parallel_for((rows + step - 1) / step,
                       [&](std::int64_t item, int) { fn(item * step, std::min(step, rows - item * step)); });
  }

  // Codes, then scales, then mins, in one buffer.
  Weight repacked(const GgufModel::Tensor& t, std::int64_t rows, std::int64_t cols, const GgufTarget& target) {
    Weight w{.format = target.format, .rows = rows, .cols = cols, .scale_dtype = DType::kF16, .group = target.group};
    constexpr std::int64_t kAlign = 256;
    const auto aligned = [](std::int64_t n) { return (n + kAlign - 1) / kAlign * kAlign; };
    const std::int64_t codes = aligned(rows * w.row_bytes());
    const std::int64_t scales = aligned(rows * w.groups_a_row() * 2);
    Target memory(ops_, static_cast<std::size_t>(codes + scales * (target.mins ? 2 : 1)), buffers_, staging_);
    std::byte* base = memory.host();
    const std::int64_t file_row = static_cast<std::int64_t>(t.bytes()) / rows;
    std::atomic<bool> finite{true};
    for_rows(rows, cols, [&](std::int64_t first, std::int64_t n) {
      const std::int64_t group = first * w.groups_a_row();
      const GgufParts parts{base + first * w.row_bytes(), reinterpret_cast<std::uint16_t*>(base + codes) + group,
                            target.mins ? reinterpret_cast<std::uint16_t*>(base + codes + scales) + group : nullptr};
      if (!repack_gguf(t.entry->type, t.data() + first * file_row, n, cols, parts)) finite = false;
    });
    if (!finite) refuse_not_finite(t);
    t.drop_pages();
    const std::byte* data = memory.finish();
    w.data = data;
    w.scales = data + codes;
    if (target.mins) w.mins = data + codes + scales;
    return w;
  }

  [[noreturn]] void refuse_not_finite(const GgufModel::Tensor& t) const {
    throw Error({.what = t.what(),
                 .found = "values that are NaN, infinite or above 65504",
                 .expected = "finite values",
                 .hint = "the file is damaged or badly converted"});
  }

  // A matrix of floats; `format` F32 or F16.
  Weight decoded(const GgufModel::Tensor& t, std::int64_t rows, std::int64_t cols, WeightFormat format) {
    Weight w{.format = format, .rows = rows, .cols = cols};
    Target memory(ops_, static_cast<std::size_t>(w.bytes()), buffers_, staging_);
    const std::int64_t file_row = static_cast<std::int64_t>(t.bytes()) / rows;
    std::atomic<bool> finite{true};
    for_rows(rows, cols, [&](std::int64_t first, std::int64_t n) {
      std::vector<float> values(static_cast<std::size_t>(n * cols));
      decode_gguf(t.entry->type, t.data() + first * file_row, n * cols, values.data());
      if (!store(values.data(), n * cols, format, memory.host() + first * w.row_bytes())) finite = false;
    });
    if (!finite) refuse_not_finite(t);
    t.drop_pages();
    w.data = memory.finish();
    return w;
  }

  // False when a value does not fit. NaN and infinities of the file do not fit anything.
  static bool store(const float* values, std::int64_t n, WeightFormat format, std::byte* out) {
    const DType dtype = format == WeightFormat::kF32   ? DType::kF32
                        : format == WeightFormat::kF16 ? DType::kF16
                                                       : DType::kBF16;
    const float limit = format == WeightFormat::kF16 ? 65504.0F : 3.4e38F;
    bool fits = true;
    for (std::int64_t i = 0; i < n; ++i) {
      fits &= std::abs(values[i]) <= limit;
      store_from_float(out, dtype, static_cast<std::size_t>(i), values[i]);
    }
    return fits;
  }

  // kv_b as floats: its rounding would enter every score. F16 keeps three bits more of a decoded block than BF16.
  WeightFormat absorbed_format(GgufType a, GgufType b) const {
    WeightFormat format = WeightFormat::kF16;
    if (a == GgufType::kBF16 && b == GgufType::kBF16) format = WeightFormat::kBF16;
    else if (a == GgufType::kF32 || b == GgufType::kF32 || a == GgufType::kBF16 || b == GgufType::kBF16)
      format = WeightFormat::kF32;
    return ops_.supports(format) ? format : WeightFormat::kF32;
  }

  Weight absorbed(const GgufModel::Tensor& t, std::int64_t rows, std::int64_t cols) {
    if (!has_scales(gguf_target(t.entry->type).format)) return matrix(t, rows, cols);
    return decoded(t, rows, cols, absorbed_format(t.entry->type, t.entry->type));
  }

  // k_b [N, 512, 192] and v_b [N, 256, 512] → [N·448, 512]: 192 transposed key rows, then 256 value rows, a head.
  Weight split_kv_b(std::int64_t l) {
    const std::int64_t n = config_.n_heads;
    const GgufModel::Tensor& k = take(layer_name(l, kGgufKB), {n, kLatent, kNope});
    const GgufModel::Tensor& v = take(layer_name(l, kGgufVB), {n, kValue, kLatent});
    Weight w{.format = absorbed_format(k.entry->type, v.entry->type), .rows = n * (kNope + kValue), .cols = kLatent};
    Target memory(ops_, static_cast<std::size_t>(w.bytes()), buffers_, staging_);
    std::atomic<bool> finite{true};
    pool_.parallel_for(n, [&](std::int64_t head, int) {
      constexpr std::int64_t kKeys = std::int64_t{kNope} * kLatent, kValues = std::int64_t{kValue} * kLatent;
      std::vector<float> stored(static_cast<std::size_t>(kKeys));
      std::vector<float> rows(static_cast<std::size_t>(kKeys + kValues));
      decode_gguf(k.entry->type, k.data() + head * static_cast<std::int64_t>(k.bytes()) / n, kKeys, stored.data());
      for (std::size_t i = 0; i < kNope; ++i) {
        for (std::size_t j = 0; j < kLatent; ++j) rows[i * kLatent + j] = stored[j * kNope + i];
      }
      decode_gguf(v.entry->type, v.data() + head * static_cast<std::int64_t>(v.bytes()) / n, kValues,
                  rows.data() + kKeys);
      std::byte* out = memory.host() + head * (kNope + kValue) * w.row_bytes();
      if (!store(rows.data(), kKeys + kValues, w.format, out)) finite = false;
    });
    if (!finite) refuse_not_finite(k);
    k.drop_pages();
    v.drop_pages();
    w.data = memory.finish();
    return w;
  }

  // Norms, router and correction bias.
  ConstView f32(const GgufModel::Tensor& t) {
    const std::int64_t n = t.entry->shape.elements();
    Target memory(ops_, static_cast<std::size_t>(n) * sizeof(float), buffers_, staging_);
    std::vector<float> values(static_cast<std::size_t>(n));
    decode_gguf(t.entry->type, t.data(), n, values.data());
    if (!store(values.data(), n, WeightFormat::kF32, memory.host())) refuse_not_finite(t);
    return {memory.finish(), DType::kF32, t.entry->shape};
  }

  void refuse_unused() const {
    for (const GgufModel::Tensor& t : file_.tensors()) {
      const std::string& name = t.entry->name;
      if (used_.contains(t.entry) || name == "rope_freqs.weight" || name.ends_with("attn_rot_embd.weight")) continue;
      throw Error({.what = t.what(),
                   .found = "a tensor that the model does not have, or one that another stands for",
                   .expected = "the tensors of deepseek2 with the sizes of the file's metadata"});
    }
  }

  const GgufModel& file_;
  ModelWeights& model_;
  ModelConfig& config_;
  Ops& ops_;
  const LoadProgress& progress_;
  ThreadPool pool_;
  std::vector<Buffer> buffers_;
  Staging staging_;
  std::unordered_set<const GgufTensor*> used_;
  std::uint64_t done_bytes_ = 0;
};

}  // namespace

std::string gguf_name(const TensorSpec& spec, std::int64_t layer) {
  if (spec.scope == Scope::kModel) return std::string(spec.gguf_name);
  return "blk." + std::to_string(layer) + "." + std::string(spec.gguf_name);
}

ModelWeights load_gguf(std::shared_ptr<const GgufModel> file, Ops& ops, const LoadProgress& progress) {
  ModelWeights model;
  model.config = config_from_gguf(*file);
  auto storage = std::make_shared<Storage>();
  storage->buffers = GgufLoader(*file, model, ops, progress).load();
  storage->file = std::move(file);
  model.storage = std::move(storage);
  return model;
}

ModelWeights load_gguf(const std::string& path, Ops& ops, const LoadProgress& progress) {
  return load_gguf(std::make_shared<const GgufModel>(path), ops, progress);
}

}  // namespace glint
