// A decode step as a CUDA graph of the backend's own ops: the same kernels with the same arguments, launched by the
// device. What changes from step to step lies behind pointers; what does not is the graph's key.

#include <algorithm>
#include <cstring>

#include "backends/cuda/cuda_ops.hpp"

namespace glint::cuda {
namespace {

// Everything that a step's kernels get by value. Compared as bytes: no padding.
struct Key {
  std::uint64_t weights_id = 0;
  const void *ids = nullptr, *positions = nullptr, *slots = nullptr, *context = nullptr, *table = nullptr,
             *offsets = nullptr, *logit_rows = nullptr, *hidden = nullptr, *x = nullptr, *logits = nullptr,
             *pages = nullptr, *scratch = nullptr;
  std::int64_t page_stride = 0, rows = 0, n_logits = 0, max_pages = 0, window = 0, valid_vocab = 0;
  bool operator==(const Key& other) const { return std::memcmp(this, &other, sizeof(Key)) == 0; }
};

Key key_of(const DecodeStepParams& p, const void* scratch) {
  const KvPages& pages = p.layers.front().pages;
  return {.weights_id = p.weights_id,
          .ids = p.ids,
          .positions = p.positions,
          .slots = p.slots,
          .context = p.batch.context_tokens,
          .table = p.batch.page_table,
          .offsets = p.batch.row_offsets,
          .logit_rows = p.logit_rows,
          .hidden = p.hidden.data,
          .x = p.x.data,
          .logits = p.logits.data,
          .pages = pages.base,
          .scratch = scratch,
          .page_stride = pages.page_stride_bytes,
          .rows = p.hidden.shape[0],
          .n_logits = p.logits.data != nullptr ? p.logits.shape[0] : 0,
          .max_pages = p.batch.max_pages,
          .window = p.window_tokens,
          .valid_vocab = p.valid_vocab};
}

constexpr std::size_t kGraphs = 16;       // kept at most
constexpr std::int64_t kGraphRows = 256;  // rows of a step at most

}  // namespace

struct CudaOps::Graphs {
  struct Entry {
    Key key;
    cudaGraphExec_t exec = nullptr;  // null: seen once, not yet captured
    std::uint64_t used = 0;
  };
  std::vector<Entry> entries;
  std::uint64_t clock = 0;
  Buffer buffer;  // activations between ops
  std::int64_t rows = 0;

  ~Graphs() {
    for (const Entry& e : entries) {
      if (e.exec != nullptr) cudaGraphExecDestroy(e.exec);
    }
  }
};

CudaOps::GraphsPtr CudaOps::make_graphs() {
  return {new Graphs, [](Graphs* g) { delete g; }};
}

// The step, op by op.
void CudaOps::run_step(const DecodeStepParams& p) {
  const std::int64_t t = p.hidden.shape[0], hidden = p.hidden.shape[1];
  const std::int64_t heads = p.layers.front().o.cols / kValue;
  Scratch memory(graphs_->buffer.data(), graphs_->buffer.bytes());
  const auto view = [&](std::initializer_list<std::int64_t> shape) {
    View v{nullptr, DType::kF32, Shape(shape)};
    v.data = memory.take<>(static_cast<std::int64_t>(v.bytes()));
    return v;
  };
  const View delta = view({t, hidden}), q = view({t, heads, kQk}), kv = view({t, kKvRow}),
             attn = view({t, heads * kValue});
  auto* expert_ids = memory.take<std::int32_t>(t * p.top_k * 4);
  auto* expert_weights = memory.take<float>(t * p.top_k * 4);

  embed({.ids = p.ids, .table = p.embed, .out = p.hidden});
  bool first = true;
  for (const DecodeLayer& l : p.layers) {
    rms_norm({.hidden = p.hidden,
              .delta = first ? ConstView{} : ConstView(delta),
              .weight = l.input_norm,
              .eps = p.eps,
              .out = p.x});
    first = false;
    mla_project({.x = p.x,
                 .positions = p.positions,
                 .q_a = l.q_a,
                 .q_a_norm = l.q_a_norm,
                 .q_b = l.q_b,
                 .kv_a = l.kv_a,
                 .kv_a_norm = l.kv_a_norm,
                 .latent_eps = p.latent_eps,
                 .rope_theta = p.rope_theta,
                 .q = q,
                 .kv = kv});
    mla_append({.kv = kv, .slots = p.slots, .pages = l.pages});
    mla_attend(
        {.q = q, .kv_b = l.kv_b, .pages = l.pages, .batch = p.batch, .window_tokens = p.window_tokens, .out = attn});
    linear({.x = attn, .w = l.o, .out = delta});
    rms_norm({.hidden = p.hidden, .delta = delta, .weight = l.post_norm, .eps = p.eps, .out = p.x});
    if (l.dense.gate) {
      mlp({.x = p.x, .mlp = l.dense, .out = delta});
      continue;
    }
    route({.x = p.x,
           .w = l.router,
           .bias = l.router_bias,
           .top_k = p.top_k,
           .normalize = p.normalize,
           .scale = p.routed_scale,
           .ids = expert_ids,
           .weights = expert_weights});
    moe({.x = p.x,
         .top_k = p.top_k,
         .ids = expert_ids,
         .weights = expert_weights,
         .experts = l.experts,
         .shared = l.shared,
         .out = delta});
  }
  rms_norm({.hidden = p.hidden, .delta = delta, .weight = p.final_norm, .eps = p.eps, .out = p.x});
  if (p.logits.data != nullptr)
    lm_head({.x = p.x, .rows = p.logit_rows, .w = p.lm_head, .valid_vocab = p.valid_vocab, .logits = p.logits});
}

bool CudaOps::graph_step(const DecodeStepParams& p) {
  Graphs& g = *graphs_;
  const std::int64_t rows = p.hidden.shape[0];
  if (p.layers.empty() || rows < 1 || rows > std::min(kGraphRows, limits_.max_rows)) return false;
  begin();
  if (g.buffer.data() == nullptr) {
    g.rows = std::min(kGraphRows, limits_.max_rows);
    const std::int64_t a_row = limits_.hidden + limits_.n_heads * (kQk + kValue) + kKvRow + 2 * limits_.top_k;
    g.buffer = device_.allocate(static_cast<std::size_t>(g.rows * a_row * 4 + 6 * 256));
  }
  const Key key = key_of(p, device_.scratch().take<>(0));
  auto it = std::find_if(g.entries.begin(), g.entries.end(), [&](const Graphs::Entry& e) { return e.key == key; });
  if (it == g.entries.end()) {
    // The first step of its kind runs as it is; only what comes back is worth a graph.
    if (g.entries.size() == kGraphs) {
      it = std::min_element(g.entries.begin(), g.entries.end(),
                            [](const Graphs::Entry& a, const Graphs::Entry& b) { return a.used < b.used; });
      if (it->exec != nullptr) cudaGraphExecDestroy(it->exec);
      *it = {};
    } else {
      it = g.entries.emplace(g.entries.end());
    }
    it->key = key;
    it->used = ++g.clock;
    run_step(p);
    return true;
  }
  it->used = ++g.clock;
  if (it->exec == nullptr) {
    check(cudaStreamBeginCapture(device_.stream(), cudaStreamCaptureModeThreadLocal), "capture");
    cudaGraph_t graph = nullptr;
    try {
      run_step(p);
    } catch (...) {
      cudaStreamEndCapture(device_.stream(), &graph);
      if (graph != nullptr) cudaGraphDestroy(graph);
      throw;
    }
    check(cudaStreamEndCapture(device_.stream(), &graph), "capture");
    const cudaError_t made = cudaGraphInstantiate(&it->exec, graph, 0);
    cudaGraphDestroy(graph);
    check(made, "graph");
  }
  check(cudaGraphLaunch(it->exec, device_.stream()), "graph launch");
  return true;
}

}  // namespace glint::cuda
