#include "models/glm_4_7_flash/calibrate.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <set>

#include "base/error.hpp"
#include "models/glm_4_7_flash/model.hpp"
#include "models/glm_4_7_flash/quantize_plan.hpp"
#include "ops/decorated.hpp"

namespace glint {
namespace {

constexpr std::string_view kIn = "in", kQb = "q_b", kKvB = "kv_b", kO = "o", kGateUp = "gate_up", kDown = "down",
                           kSharedIn = "shared.gate_up", kSharedDown = "shared.down", kExpertIn = "experts.gate_up",
                           kExpertDown = "experts.down";

constexpr std::pair<std::string_view, std::string_view> kStats[] = {
    {"layers.q_a", kIn},
    {"layers.kv_a", kIn},
    {"layers.q_b", kQb},
    {"layers.kv_b", kKvB},
    {"layers.o", kO},
    {"layers.dense.gate", kGateUp},
    {"layers.dense.up", kGateUp},
    {"layers.dense.down", kDown},
    {"layers.shared.gate", kSharedIn},
    {"layers.shared.up", kSharedIn},
    {"layers.shared.down", kSharedDown},
    {"layers.experts.gate", kExpertIn},
    {"layers.experts.up", kExpertIn},
    {"layers.experts.down", kExpertDown},
};

// Which statistics belong to a matrix; empty: none.
std::string_view stats_name(std::string_view field) {
  for (const auto& [f, name] : kStats) {
    if (f == field) return name;
  }
  return {};
}

// Looks at the inputs of a layer's matrices; computes those that an op keeps to itself.
class Collector final : public DecoratedOps<Collector> {
 public:
  Collector(Ops& ops, LayerStats& stats, const Calibrator::Wanted& wanted, float background, std::int64_t n_experts,
            ThreadPool& pool)
      : DecoratedOps(ops),
        stats_(stats),
        background_(background),
        pool_(pool),
        chosen_(static_cast<std::size_t>(n_experts), 0) {
    for (const auto& [field, name] : kStats) {
      if (wanted(field)) wanted_.insert(name);
    }
  }

  template <typename Params, typename Run>
  void around(std::string_view, const Params& p, Run run) {
    run();
    look(p);
  }

  std::int64_t starved(std::int64_t n) const {
    return std::count_if(chosen_.begin(), chosen_.end(), [n](std::int64_t c) { return c < n / 8; });
  }

 private:
  template <typename Params>
  void look(const Params&) {}

  void look(const MlaProjectParams& p) {
    const std::int64_t rows = p.x.shape[0];
    add(kIn, p.x);
    if (!wanted_.contains(kQb) && !wanted_.contains(kKvB)) return;
    HostTensor latent(DType::kF32, {rows, p.q_a.rows});
    inner().linear({.tag = p.tag, .x = p.x, .w = p.q_a, .out = latent.view});
    inner().rms_norm(
        {.tag = p.tag, .hidden = latent.view, .weight = p.q_a_norm, .eps = p.latent_eps, .out = latent.view});
    add(kQb, latent.view);
    HostTensor c(DType::kF32, {rows, kLatent});
    for (std::int64_t t = 0; t < rows; ++t)
      std::memcpy(c.view.as<float>() + t * kLatent, p.kv.as<float>() + t * kKvRow, kLatent * sizeof(float));
    add(kKvB, c.view);
  }

  void look(const LinearParams& p) { add(kO, p.x); }

  void look(const MlpParams& p) {
    add(kGateUp, p.x);
    if (wanted_.contains(kDown)) add(kDown, inner_of(p.x, p.mlp).view);
  }

  void look(const RouteParams& p) {
    // A routed expert's error counts as much as its weight; on average scale / top_k.
    mean_weight_ = p.scale / static_cast<float>(p.top_k);
  }

  void look(const MoeParams& p) {
    if (p.shared.gate) {
      add(kSharedIn, p.x);
      if (wanted_.contains(kSharedDown)) add(kSharedDown, inner_of(p.x, p.shared).view);
    }
    const bool in = wanted_.contains(kExpertIn), down = wanted_.contains(kExpertDown);
    if (!in && !down) return;
    const std::int64_t rows = p.x.shape[0], n = p.x.shape[1];
    const auto n_experts = static_cast<std::int64_t>(p.experts.size());
    const std::int64_t stride = std::max<std::int64_t>(1, n_experts / p.top_k);
    struct Seen {
      HostTensor x, h;
      std::vector<float> weights;
      Hessian* in = nullptr;
      Hessian* down = nullptr;
    };
    std::vector<Seen> seen(p.experts.size());
    for (std::int64_t e = 0; e < n_experts; ++e) {
      Seen& s = seen[static_cast<std::size_t>(e)];
      std::vector<std::int64_t> picked;
      for (std::int64_t t = 0; t < rows; ++t) {
        const std::int32_t* ids = p.ids + t * p.top_k;
        const std::int64_t k = std::find(ids, ids + p.top_k, e) - ids;
        const bool chosen = k < p.top_k;
        if (!chosen && (background_ == 0 || (t + e) % stride != 0)) continue;
        const float w = chosen ? p.weights[t * p.top_k + k] / mean_weight_ : 1.0F;
        picked.push_back(t);
        s.weights.push_back(chosen ? w * w : background_);
        chosen_[static_cast<std::size_t>(e)] += chosen ? 1 : 0;
      }
      if (in) s.in = &stats_.at(kExpertIn, e, n);
      if (down) s.down = &stats_.at(kExpertDown, e, p.experts[static_cast<std::size_t>(e)].down.cols);
      if (picked.empty()) continue;
      s.x = HostTensor(DType::kF32, {static_cast<std::int64_t>(picked.size()), n});
      for (std::size_t i = 0; i < picked.size(); ++i) {
        std::memcpy(s.x.view.as<float>() + static_cast<std::int64_t>(i) * n, p.x.as<float>() + picked[i] * n,
                    static_cast<std::size_t>(n) * sizeof(float));
      }
      if (down) s.h = inner_of(s.x.view, p.experts[static_cast<std::size_t>(e)]);
    }
    pool_.parallel_for(n_experts, [&](std::int64_t e, int) {
      const Seen& s = seen[static_cast<std::size_t>(e)];
      if (s.weights.empty()) return;
      const auto count = static_cast<std::int64_t>(s.weights.size());
      if (in) s.in->add(s.x.view.as<float>(), count, s.weights.data());
      if (down) s.down->add(s.h.view.as<float>(), count, s.weights.data());
    });
  }

  void add(std::string_view name, const ConstView& x) {
    if (wanted_.contains(name)) stats_.at(name, -1, x.shape[1]).add(x.as<float>(), x.shape[0], nullptr, &pool_);
  }

  // silu(gate x) ⊙ up x: the input of down.
  HostTensor inner_of(const ConstView& x, const ExpertWeights& w) {
    HostTensor gate(DType::kF32, {x.shape[0], w.gate.rows});
    HostTensor up(DType::kF32, {x.shape[0], w.up.rows});
    inner().linear({.tag = {"calibrate"}, .x = x, .w = w.gate, .out = gate.view});
    inner().linear({.tag = {"calibrate"}, .x = x, .w = w.up, .out = up.view});
    float* g = gate.view.as<float>();
    const float* u = up.view.as<float>();
    for (std::int64_t i = 0; i < gate.view.shape.elements(); ++i) g[i] *= u[i] / (1.0F + std::exp(-g[i]));
    return gate;
  }

  LayerStats& stats_;
  std::set<std::string_view> wanted_;  // names of statistics
  float background_;
  ThreadPool& pool_;
  float mean_weight_ = 1;
  std::vector<std::int64_t> chosen_;
};

// Takes the residual stream after the layer: what the final norm was given, its addition made.
class Catcher final : public DecoratedOps<Catcher> {
 public:
  Catcher(Ops& ops, float* next) : DecoratedOps(ops), next_(next) {}

  template <typename Params, typename Run>
  void around(std::string_view, const Params& p, Run run) {
    run();
    if constexpr (std::is_same_v<Params, RmsNormParams>) {
      if (std::string_view(p.tag.name) != "final_norm") return;
      std::memcpy(next_, p.hidden.data, p.hidden.bytes());
      next_ += p.hidden.shape.elements();
    }
  }

 private:
  float* next_;
};

}  // namespace

Hessian& LayerStats::at(std::string_view name, std::int64_t expert, std::int64_t n) {
  return hessians_.try_emplace(Key{name, expert}, n).first->second;
}

const HessianFactor* LayerStats::factor(const TensorSpec& spec, std::int64_t expert, double damping) {
  const std::string_view name = stats_name(spec.field);
  const auto found = hessians_.find({name, expert});
  if (name.empty() || found == hessians_.end()) return nullptr;
  if (last_of_ != &found->second) {
    found->second.finish();
    last_ = glint::factor(found->second, damping);
    last_of_ = &found->second;
  }
  return &last_;
}

Calibrator::Calibrator(const ModelWeights& model, Ops& ops, const CalibrationOptions& options, ThreadPool& pool)
    : model_(model), ops_(ops), options_(options), pool_(pool) {
  CHECK(!ops.name().starts_with("cuda"), "calibration reads activations in place");
  const std::int64_t window = options_.window_tokens;
  CHECK(window > 0);
  // Whole windows; a text shorter than one is one window.
  const auto n = static_cast<std::int64_t>(options_.ids.size());
  if (n < window) options_.window_tokens = n;
  n_tokens_ = n / options_.window_tokens * options_.window_tokens;
  const std::int64_t h = model.config.hidden;
  hidden_ = HostTensor(DType::kF32, {n_tokens_, h});
  for (std::int64_t t = 0; t < n_tokens_; ++t) {
    const std::int32_t id = options_.ids[static_cast<std::size_t>(t)];
    if (id < 0 || id >= model.config.vocab) {
      throw Error({.what = "calibration",
                   .found = "token " + std::to_string(id),
                   .expected = "ids below " + std::to_string(model.config.vocab)});
    }
    decode_row(model.embed, id, hidden_.view.as<float>() + t * h);
  }
}

// The model's own forward pass over a model of this one layer, whose embedding table is the hidden states and whose
// token ids are their row numbers.
template <typename Decorator>
void Calibrator::run(const LayerWeights& layer, Decorator& ops) {
  ModelWeights one;
  one.config = model_.config;
  one.config.n_layers = 1;
  one.config.n_mtp_layers = 0;
  one.config.first_dense_layers = layer.dense.gate ? 1 : 0;
  one.embed = {.format = WeightFormat::kF32, .rows = n_tokens_, .cols = one.config.hidden, .data = hidden_.view.data};
  one.layers = {layer};
  one.final_norm = model_.final_norm;
  one.lm_head = one.embed;

  const std::int64_t window = options_.window_tokens;
  Model model(one, ops, {.max_rows = window, .max_logits = 1, .max_context = window});
  const auto n_pages = static_cast<std::int32_t>((window + kPageTokens - 1) / kPageTokens);
  KvStore store(ops, {.n_layers = 1, .n_pages = n_pages, .codec = KvCodec::kF32});
  std::vector<std::int32_t> ids(static_cast<std::size_t>(window)), positions(ids.size()),
      pages(static_cast<std::size_t>(n_pages));
  std::iota(positions.begin(), positions.end(), 0);  // also the slots: page p holds positions from 64 p on
  std::iota(pages.begin(), pages.end(), 0);
  const auto rows = static_cast<std::int32_t>(window);
  const std::int32_t offsets[] = {0, rows};
  for (std::int64_t t = 0; t < n_tokens_; t += window) {
    std::iota(ids.begin(), ids.end(), static_cast<std::int32_t>(t));
    const Batch batch{.n_rows = window,
                      .ids = ids.data(),
                      .positions = positions.data(),
                      .slots = positions.data(),
                      .attend = {.n_seqs = 1,
                                 .row_offsets = offsets,
                                 .context_tokens = &rows,
                                 .page_table = pages.data(),
                                 .max_pages = n_pages}};
    model.forward(batch, store, {});
  }
}

std::unique_ptr<LayerStats> Calibrator::collect(std::int64_t index, const Wanted& wanted) {
  const LayerWeights& layer = model_.layers[static_cast<std::size_t>(index)];
  auto stats = std::make_unique<LayerStats>();
  Collector ops(ops_, *stats, wanted, options_.background, model_.config.n_experts, pool_);
  run(layer, ops);
  if (!layer.experts.empty()) stats->set_starved(ops.starved(model_.config.hidden));
  return stats;
}

void Calibrator::advance(std::int64_t index) {
  LayerWeights layer = model_.layers[static_cast<std::size_t>(index)];
  std::vector<Buffer> buffers;
  const auto readable = [&](Weight& w) {
    const bool in_place = &w == &layer.kv_b ? ops_.supports_absorbed(quant_spec(w)) : ops_.supports(w.format);
    if (!w || in_place) return;
    Buffer& b = buffers.emplace_back(host_buffer(static_cast<std::size_t>(w.rows * w.cols) * sizeof(BF16)));
    const Weight source = w;
    auto* out = static_cast<BF16*>(b.data());
    pool_.parallel_for(w.rows, [&](std::int64_t r, int) {
      std::vector<float> row(static_cast<std::size_t>(source.cols));
      decode_row(source, r, row.data());
      for (std::size_t k = 0; k < row.size(); ++k)
        out[r * source.cols + static_cast<std::int64_t>(k)] = to_bf16(row[k]);
    });
    w = {.format = WeightFormat::kBF16, .rows = source.rows, .cols = source.cols, .data = b.data()};
  };
  for (Weight* w : {&layer.q_a, &layer.q_b, &layer.kv_a, &layer.kv_b, &layer.o}) readable(*w);
  const auto mlp = [&](ExpertWeights& e) {
    for (Weight* w : {&e.gate, &e.up, &e.down}) readable(*w);
  };
  mlp(layer.dense);
  mlp(layer.shared);
  for (ExpertWeights& e : layer.experts) mlp(e);
  HostTensor next(DType::kF32, hidden_.view.shape);
  Catcher ops(ops_, next.view.as<float>());
  run(layer, ops);
  hidden_ = std::move(next);
}

}  // namespace glint
