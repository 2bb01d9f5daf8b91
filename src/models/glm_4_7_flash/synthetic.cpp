// Random weights of any shape, for speed measurements and for tests that need a model but not its sense. Several
// gigabytes must come in seconds, so that each matrix is cut from a pool of random numbers of its scale instead of
// being drawn number by number: pieces of 64 values from hashed places, with hashed signs.

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstring>
#include <map>
#include <thread>

#include "base/error.hpp"
#include "models/glm_4_7_flash/quant_recipe.hpp"
#include "models/glm_4_7_flash/synthetic_blocks.hpp"
#include "models/glm_4_7_flash/tensor_table.hpp"

namespace glint {
namespace {

// splitmix64: a good hash of a counter.
std::uint64_t mix(std::uint64_t x) {
  x += 0x9e3779b97f4a7c15ULL;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
  return x ^ (x >> 31);
}

// A stream of numbers that depends on (seed, stream) only.
class Random {
 public:
  Random(std::uint64_t seed, std::uint64_t stream) : state_(mix(seed ^ mix(stream))) {}
  std::uint64_t bits() { return mix(state_++); }
  // Roughly normal with variance 1 (sum of four uniforms): no tails that a kernel's error bound would trip over.
  float normal() {
    const std::uint64_t b = bits();
    float sum = -2.0F;
    for (int i = 0; i < 4; ++i) sum += static_cast<float>((b >> (16 * i)) & 0xffffU) * (1.0F / 65536.0F);
    return sum * 1.7320508F;
  }

 private:
  std::uint64_t state_;
};

constexpr std::int64_t kPiece = 64;
constexpr std::int64_t kPool = std::int64_t{1} << 16;  // 128 KB of 16-bit values: stays in a core's cache

DType dtype_of(WeightFormat format) {
  switch (format) {
    case WeightFormat::kF32:
      return DType::kF32;
    case WeightFormat::kF16:
      return DType::kF16;
    case WeightFormat::kBF16:
      return DType::kBF16;
    default:
      throw Error({.what = "synthetic weights", .found = "a block format", .expected = "BF16, F16 or F32"});
  }
}

// Random values of one scale, ready in the weights' format.
class Pool {
 public:
  Pool(DType dtype, float scale, std::uint64_t seed) : values_(dtype, {kPool}) {
    Random random(seed, 0x706f6f6cULL);
    for (std::int64_t i = 0; i < kPool; ++i)
      store_from_float(values_.view.data, dtype, static_cast<std::size_t>(i), scale * random.normal());
  }

  const View& values() const { return values_.view; }

  // Fills n values at dst; the same (seed, stream) gives the same values.
  void fill(void* dst, std::int64_t n, std::uint64_t stream) const {
    if (dtype_bytes(values_.view.dtype) == 2) fill_as<std::uint16_t>(dst, n, stream);
    else fill_as<std::uint32_t>(dst, n, stream);
  }

 private:
  template <typename Bits>
  void fill_as(void* dst, std::int64_t n, std::uint64_t stream) const {
    constexpr Bits kSign = Bits(Bits{1} << (8 * sizeof(Bits) - 1));
    auto* out = static_cast<Bits*>(dst);
    const auto* pool = values_.view.as<Bits>();
    for (std::int64_t i = 0; i < n; i += kPiece) {
      const std::uint64_t h = mix(stream + static_cast<std::uint64_t>(i));
      const Bits* src = pool + h % (kPool - kPiece);
      const Bits flip = (h >> 63) != 0 ? kSign : Bits{0};
      const std::int64_t count = std::min(kPiece, n - i);
      for (std::int64_t j = 0; j < count; ++j) out[i + j] = Bits(src[j] ^ flip);
    }
  }

  HostTensor values_;
};

// One matrix to fill: known before any is filled, so that threads can share the work.
struct Job {
  void* dst = nullptr;
  std::int64_t n = 0;
  const Pool* pool = nullptr;
  std::uint64_t stream = 0;
  // Matrices in block formats instead:
  std::optional<QuantSpec> spec;
  Shape shape;
  float deviation = 0;
  std::size_t bytes = 0;  // at dst, padding included
};

class Generator {
 public:
  Generator(const SyntheticOptions& options, ModelWeights& model, Ops& ops, const LoadProgress& progress)
      : options_(options),
        dtype_(dtype_of(options.format)),
        model_(model),
        config_(model.config),
        ops_(ops),
        progress_(progress),
        host_(!ops.name().starts_with("cuda")) {
    if (!options.weights.empty()) recipe_ = QuantRecipe::parse(options.weights);
    if (!ops.supports(options.format)) {
      throw Error({.what = "synthetic weights",
                   .found = std::string(dtype_name(dtype_)),
                   .expected = "a format that the backend " + ops.name() + " reads"});
    }
  }

  // Layer by layer: a layer's memory is one buffer, filled by all threads, then (for devices) uploaded.
  std::vector<Buffer> generate() {
    model_.layers.resize(static_cast<std::size_t>(config_.n_layers));
    total_bytes_ = planned_bytes();
    make({{Scope::kModel, {.model = &model_}, 0}}, -1);
    if (!model_.lm_head) model_.lm_head = model_.embed;
    for (std::int64_t l = 0; l < config_.n_layers; ++l)
      make(layer_parts(model_.layers[static_cast<std::size_t>(l)], config_.is_dense(l)), l);
    if (config_.n_mtp_layers > 0) {
      model_.mtp = std::make_unique<MtpWeights>();
      std::vector<Part> parts = layer_parts(model_.mtp->block, /*dense=*/false);
      parts.push_back({Scope::kMtp, {.mtp = model_.mtp.get()}, 0});
      make(parts, config_.n_layers);
      model_.mtp->embed = model_.embed;
      model_.mtp->head = model_.lm_head;
    }
    return std::move(buffers_);
  }

 private:
  struct Part {
    Scope scope;
    BindTarget target;
    std::int64_t expert;
  };

  std::vector<Part> layer_parts(LayerWeights& layer, bool dense) const {
    std::vector<Part> parts{{Scope::kLayer, {.layer = &layer}, 0}};
    parts.push_back({dense ? Scope::kDense : Scope::kMoe, {.layer = &layer}, 0});
    if (dense) return parts;
    layer.experts.resize(static_cast<std::size_t>(config_.n_experts));
    for (std::int64_t e = 0; e < config_.n_experts; ++e)
      parts.push_back({Scope::kExpert, {.expert = &layer.experts[static_cast<std::size_t>(e)]}, e});
    return parts;
  }

  bool skipped(const TensorSpec& spec) const {
    if (spec.presence == Presence::kShared) return spec.scope == Scope::kMtp || config_.tie_embeddings;
    return spec.role == Role::kShared && config_.n_shared_experts == 0;
  }

  bool is_matrix(const TensorSpec& spec) const {
    return spec.rank == 2 && spec.role != Role::kRouter;  // the rest is F32
  }

  // None: in the plain format. So is a kv_b that the backend does not read in codes, as the loader has it.
  std::optional<QuantSpec> block_spec(const TensorSpec& spec, std::int64_t layer) const {
    if (!recipe_ || !is_matrix(spec)) return std::nullopt;
    const auto block = recipe_->spec(spec, layer, config_);
    if (block && spec.field == "layers.kv_b" && !ops_.supports_absorbed(*block)) return std::nullopt;
    return block;
  }

  std::size_t bytes_of(const TensorSpec& spec, std::int64_t layer) const {
    if (const auto block = block_spec(spec, layer)) {
      const Shape shape = spec.shape(config_);
      return block_layout(*block, shape[0], shape[1]).bytes;
    }
    const std::size_t element = is_matrix(spec) ? dtype_bytes(dtype_) : sizeof(float);
    const std::size_t bytes = static_cast<std::size_t>(spec.shape(config_).elements()) * element;
    return (bytes + kAlign - 1) / kAlign * kAlign;
  }

  std::uint64_t planned_bytes() const {
    std::uint64_t bytes = 0;
    for (const TensorSpec& spec : tensor_table()) {
      if (skipped(spec)) continue;
      // Every layer but the MTP layer is stored as layer 0 would be; rules for single layers are a matter of per cents.
      auto count = static_cast<std::uint64_t>(tensor_count(spec, config_));
      const std::uint64_t mtp =
          count == 0 || config_.n_mtp_layers == 0 || spec.scope == Scope::kModel || spec.scope == Scope::kDense ? 0
          : spec.scope == Scope::kExpert ? static_cast<std::uint64_t>(config_.n_experts)
                                         : 1;
      bytes += bytes_of(spec, 0) * (count - mtp) + bytes_of(spec, config_.n_layers) * mtp;
    }
    return bytes;
  }

  void make(const std::vector<Part>& parts, std::int64_t layer) {
    std::size_t bytes = 0;
    for_each(parts, [&](const TensorSpec& spec, const Part&) { bytes += bytes_of(spec, layer); });
    buffers_.push_back(ops_.allocate(bytes));
    auto* base = static_cast<std::byte*>(buffers_.back().data());
    const Buffer staging = host_ ? Buffer() : host_buffer(bytes);
    auto* host_base = host_ ? base : static_cast<std::byte*>(staging.data());
    std::size_t offset = 0;
    std::vector<Job> jobs;
    for_each(parts, [&](const TensorSpec& spec, const Part& part) {
      const std::uint64_t stream = stream_of(spec, layer, part.expert);
      const Shape shape = spec.shape(config_);
      const Slot slot = spec.bind(part.target);
      if (const auto block = block_spec(spec, layer)) {
        if (!ops_.supports(block->format)) {
          throw Error({.what = "synthetic weights",
                       .found = block->name(),
                       .expected = "a format that the backend " + ops_.name() + " reads"});
        }
        *std::get<Weight*>(slot) = block_weight(*block, shape[0], shape[1], base + offset);
        jobs.push_back({.dst = host_base + offset,
                        .stream = stream,
                        .spec = block,
                        .shape = shape,
                        .deviation = deviation(spec, shape[1]),
                        .bytes = bytes_of(spec, layer)});
      } else if (auto* const* w = std::get_if<Weight*>(&slot)) {
        **w = {.format = options_.format, .rows = shape[0], .cols = shape[1], .data = base + offset};
        const Pool& values = pool(spec, shape[1]);
        if (!fill_in_place(base + offset, shape.elements(), values, stream))
          jobs.push_back({.dst = host_base + offset,
                          .n = shape.elements(),
                          .pool = &values,
                          .stream = stream,
                          .bytes = bytes_of(spec, layer)});
      } else {
        *std::get<ConstView*>(slot) = {base + offset, DType::kF32, shape};
        auto* values = reinterpret_cast<float*>(host_base + offset);
        fill_f32(spec, values, shape.elements(), stream);
        if (!host_) ops_.upload(base + offset, values, bytes_of(spec, layer));
      }
      offset += bytes_of(spec, layer);
    });
    run(jobs);
    if (!host_) {
      for (const Job& job : jobs)
        ops_.upload(base + (static_cast<std::byte*>(job.dst) - host_base), job.dst, job.bytes);
    }
    done_bytes_ += bytes;
    if (progress_) progress_(done_bytes_, total_bytes_);
  }

  // A device makes its own matrices from the same pool: the values are those of a host backend.
  bool fill_in_place(void* dst, std::int64_t n, const Pool& pool, std::uint64_t stream) {
    if (ops_.host_memory()) return false;
    const View& values = pool.values();
    Buffer& copy = device_pools_[&pool];
    if (copy.data() == nullptr) {
      copy = ops_.allocate(values.bytes());
      ops_.upload(copy.data(), values.data, values.bytes());
    }
    return ops_.fill_from_pool(dst, n, copy.data(), kPool, static_cast<int>(dtype_bytes(dtype_)), stream);
  }

  template <typename F>
  void for_each(const std::vector<Part>& parts, const F& f) const {
    for (const Part& part : parts) {
      for (const TensorSpec& spec : tensor_table()) {
        if (spec.scope == part.scope && !skipped(spec)) f(spec, part);
      }
    }
  }

  // Rows of unit variance in, unit variance out: 1/sqrt(fan-in). Embedding rows are of order one themselves.
  static float deviation(const TensorSpec& spec, std::int64_t cols) {
    return spec.role == Role::kEmbed ? 1.0F : 1.0F / std::sqrt(static_cast<float>(cols));
  }

  const Pool& pool(const TensorSpec& spec, std::int64_t cols) {
    const float scale = deviation(spec, cols);
    const auto [it, added] = pools_.try_emplace(scale);
    if (added) it->second = std::make_unique<Pool>(dtype_, scale, mix(options_.seed) + pools_.size());
    return *it->second;
  }

  // Norms near one; router logits of order one; a correction bias that makes some experts several times as busy as
  // others, as in trained models (the distribution is measured in synthetic_test).
  void fill_f32(const TensorSpec& spec, float* out, std::int64_t n, std::uint64_t stream) const {
    Random random(options_.seed, stream);
    float mean = 1.0F, scale = 0.1F;
    if (spec.role == Role::kRouter) {
      mean = 0.0F;
      scale = spec.rank == 1 ? kBiasSpread : 1.0F / std::sqrt(static_cast<float>(config_.hidden));
    }
    for (std::int64_t i = 0; i < n; ++i) out[i] = mean + scale * random.normal();
  }

  // Depends on the tensor's place only, so that a model of more layers begins with the layers of a smaller one.
  std::uint64_t stream_of(const TensorSpec& spec, std::int64_t layer, std::int64_t expert) const {
    const auto index = static_cast<std::uint64_t>(&spec - tensor_table().data());
    const auto place = (static_cast<std::uint64_t>(layer + 1) << 20) | static_cast<std::uint64_t>(expert);
    return mix(mix(options_.seed + index) ^ mix(place));
  }

  static void run(const std::vector<Job>& jobs) {
    std::atomic<std::size_t> next{0};
    const auto work = [&] {
      for (std::size_t i = next++; i < jobs.size(); i = next++) {
        const Job& job = jobs[i];
        if (job.spec) fill_block(*job.spec, job.shape[0], job.shape[1], job.deviation, job.stream, job.dst);
        else job.pool->fill(job.dst, job.n, job.stream);
      }
    };
    const unsigned n_threads = std::min(std::thread::hardware_concurrency(), 16U);
    std::vector<std::jthread> threads;
    for (unsigned i = 1; i < n_threads; ++i) threads.emplace_back(work);
    work();
  }

  static constexpr std::size_t kAlign = 256;
  static constexpr float kBiasSpread = 0.04F;

  const SyntheticOptions& options_;
  std::optional<QuantRecipe> recipe_;
  DType dtype_;
  ModelWeights& model_;
  const ModelConfig& config_;
  Ops& ops_;
  const LoadProgress& progress_;
  bool host_;
  std::map<float, std::unique_ptr<Pool>> pools_;
  std::map<const Pool*, Buffer> device_pools_;
  std::vector<Buffer> buffers_;
  std::uint64_t done_bytes_ = 0;
  std::uint64_t total_bytes_ = 0;
};

}  // namespace

ModelConfig real_config() {
  ModelConfig c;
  c.hidden = 2048;
  c.n_layers = 47;
  c.n_mtp_layers = 1;
  c.n_heads = 20;
  c.q_lora = 768;
  c.dense_inner = 10240;
  c.expert_inner = 1536;
  c.n_experts = 64;
  c.n_shared_experts = 1;
  c.top_k = 4;
  c.first_dense_layers = 1;
  c.norm_topk = true;
  c.routed_scale = 1.8F;
  c.rms_eps = 1e-5F;
  c.rope_theta = 1e6F;
  c.vocab = 154880;
  c.max_positions = 202752;
  c.tie_embeddings = false;
  c.eos_ids = {154820, 154827, 154829};
  c.pad_id = 154820;
  c.dtype = "bfloat16";
  return c;
}

ModelWeights synthetic_weights(const SyntheticOptions& options, Ops& ops, const LoadProgress& progress) {
  ModelWeights model;
  model.config = options.config;
  Generator generator(options, model, ops, progress);
  model.storage = std::make_shared<std::vector<Buffer>>(generator.generate());
  return model;
}

}  // namespace glint
