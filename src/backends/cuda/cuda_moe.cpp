// Router, experts and the dense MLP.

#include <algorithm>

#include "backends/cuda/cuda_ops.hpp"

namespace glint::cuda {

// One call's experts as kernels take them. All routed experts have one format; the shared expert may have another, and
// is then computed by itself.
struct CudaOps::MoeCall {
  Act x;
  std::int64_t T = 0, hidden = 0, inner = 0, shared_inner = 0;
  int K = 0, n_experts = 0;
  bool has_shared = false;  // in the tables
  const std::int32_t* ids = nullptr;
  MatShape gate, down, shared_gate, shared_down;
  ExpertTable gates, ups, downs;
  float* y = nullptr;                  // [T·K + T, hidden]
  bool wgmma = false, y_bf16 = false;  // y_bf16: y holds BF16
  bool codes = false;                  // that gemm_codes() reads

  std::int64_t slots() const { return T * K; }
  std::int64_t widest() const { return std::max(inner, shared_inner); }
};

namespace {

bool same_format(const MatShape& a, const MatPtr& ap, const MatShape& b, const MatPtr& bp) {
  return a.format == b.format && a.group == b.group && a.group_rows == b.group_rows && a.scale_dtype == b.scale_dtype &&
         (ap.mins == nullptr) == (bp.mins == nullptr);
}

bool all_fit(const ExpertWeights& e, bool (*fits)(const Mat&)) {
  return fits(mat_of(e.gate)) && fits(mat_of(e.up)) && fits(mat_of(e.down));
}

}  // namespace

void CudaOps::route(const RouteParams& p) {
  const Launch& l = begin();
  Scratch scratch = device_.scratch();
  const std::int64_t rows = p.x.shape[0], n_experts = p.w.shape[0];
  const int parts = route_parts(rows, p.x.shape[1]);
  auto* scores = scratch.take<float>(rows * n_experts * std::max(parts, 1) * 4);
  if (parts > 0) {
    route_many(l, {.x = p.x.as<float>(),
                   .w = p.w.as<float>(),
                   .bias = p.bias.as<float>(),
                   .rows = rows,
                   .hidden = p.x.shape[1],
                   .n_experts = static_cast<int>(n_experts),
                   .top_k = p.top_k,
                   .normalize = p.normalize,
                   .scale = p.scale,
                   .ids = p.ids,
                   .weights = p.weights,
                   .parts = parts,
                   .partial = scores});
    return;
  }
  CHECK(n_experts <= kMaxExperts && static_cast<std::int64_t>(route_counters_.bytes() / 4) * kRouteRows >= rows);
  cuda::route(l, p.x.as<float>(), p.w.as<float>(), p.bias.as<float>(), rows, p.x.shape[1], static_cast<int>(n_experts),
              p.top_k, p.normalize, p.scale, p.ids, p.weights, scores, static_cast<unsigned*>(route_counters_.data()));
}

void CudaOps::mlp(const MlpParams& p) {
  begin();
  Scratch scratch = device_.scratch();
  gated(p.mlp, {.data = p.x.data, .stride = p.x.shape[1]}, p.out.as<float>(), p.x.shape[0], scratch);
}

void CudaOps::moe(const MoeParams& p) {
  const Launch& l = begin();
  Scratch scratch = device_.scratch();
  CHECK(!p.experts.empty() && p.experts.size() <= kMaxExperts, std::to_string(p.experts.size()) + " experts");
  MoeCall c;
  c.T = p.x.shape[0];
  if (c.T == 0) return;
  c.x = {.data = p.x.data, .stride = p.x.shape[1]};
  c.hidden = p.x.shape[1];
  c.K = p.top_k;
  c.n_experts = static_cast<int>(p.experts.size());
  c.ids = p.ids;
  bool wide = c.T > kSkinnyExpertRows, skinny = c.T <= kSkinnyMoeRows, tiled = true, mixed = false;
  c.codes = c.T >= kCodesRows;
  for (std::size_t e = 0; e < p.experts.size(); ++e) {
    const Mat gate = mat_of(p.experts[e].gate), up = mat_of(p.experts[e].up), down = mat_of(p.experts[e].down);
    if (e == 0) {
      c.gate = gate.shape;
      c.down = down.shape;
      c.inner = gate.shape.rows;
    }
    mixed = mixed || !same_format(gate.shape, gate.at, c.gate, e == 0 ? gate.at : c.gates.at[0]) ||
            !same_format(up.shape, up.at, c.gate, e == 0 ? gate.at : c.gates.at[0]) ||
            !same_format(down.shape, down.at, c.down, e == 0 ? down.at : c.downs.at[0]);
    c.gates.at[e] = gate.at;
    c.ups.at[e] = up.at;
    c.downs.at[e] = down.at;
    wide = wide && all_fit(p.experts[e], wide_fits);
    skinny = skinny && all_fit(p.experts[e], skinny_fits);
    tiled = tiled && all_fit(p.experts[e], tiled_fits);
    c.codes = c.codes && all_fit(p.experts[e], gemm_codes_fits);
  }
  wide = wide && c.T <= std::min(most_wide_rows(c.gate), most_wide_rows(c.down));
  c.y = scratch.take<float>((c.slots() + c.T) * c.hidden * 4);

  const bool shared = static_cast<bool>(p.shared.gate);
  const SumMany sum{.ids = p.ids,
                    .weights = p.weights,
                    .y = c.y,
                    .T = c.T,
                    .hidden = c.hidden,
                    .K = c.K,
                    .has_shared = shared,
                    .out = p.out.as<float>()};
  if (!mixed && tiled && moe_by_gemm(c, p.shared, scratch)) return sum_many(l, sum);
  if (shared) {
    const Mat gate = mat_of(p.shared.gate), up = mat_of(p.shared.up), down = mat_of(p.shared.down);
    const bool fits_in = !mixed && gate.shape.format == c.gate.format && down.shape.format == c.down.format &&
                         (gate.at.mins == nullptr) == (c.gates.at[0].mins == nullptr) &&
                         (down.at.mins == nullptr) == (c.downs.at[0].mins == nullptr) &&
                         (!wide || all_fit(p.shared, wide_fits)) && (!skinny || all_fit(p.shared, skinny_fits)) &&
                         (!tiled || all_fit(p.shared, tiled_fits));
    if (fits_in) {
      c.has_shared = true;
      c.shared_gate = gate.shape;
      c.shared_down = down.shape;
      c.shared_inner = gate.shape.rows;
      c.gates.at[kMaxExperts] = gate.at;
      c.ups.at[kMaxExperts] = up.at;
      c.downs.at[kMaxExperts] = down.at;
    } else {
      Scratch its_own = scratch;  // the experts' come after it
      gated(p.shared, c.x, c.y + c.slots() * c.hidden, c.T, its_own);
    }
  }
  wide = wide && !mixed;
  c.wgmma = !mixed && !wide && !skinny && tiled && tiled_moe_by_wgmma(l, c.gate) && tiled_moe_by_wgmma(l, c.down) &&
            (!c.has_shared || (tiled_moe_by_wgmma(l, c.shared_gate) && tiled_moe_by_wgmma(l, c.shared_down)));
  c.y_bf16 = c.wgmma && c.has_shared == shared;
  if (mixed) {
    moe_mixed(c, p.experts, scratch);
  } else if (wide) {
    moe_wide(c, scratch);
  } else if (skinny) {
    moe_skinny(c, scratch);
  } else if (tiled) {
    moe_tiled(c, scratch);
  } else {
    moe_any(c, scratch);
  }
  if (c.y_bf16) {
    sum_many(l, sum);
  } else {
    moe_sum(l, p.ids, p.weights, c.y, c.T, c.K, c.hidden, shared, p.out.as<float>());
  }
}

MoeGroups CudaOps::grouped(const MoeCall& c, int item_rows, Scratch& scratch) {
  const std::int64_t most = std::min(c.slots(), c.n_experts + c.slots() / item_rows);
  const GroupBuffers buffers{.order = scratch.take<std::int32_t>((c.slots() + c.T) * 4),
                             .items = scratch.take<int4>(most * 16),
                             .n_items = scratch.take<std::int32_t>(4)};
  group_slots(device_.launch(), {.ids = c.ids,
                                 .slots = c.slots(),
                                 .shared_rows = c.T,
                                 .n_experts = c.n_experts,
                                 .item_rows = item_rows,
                                 .counts = scratch.take<std::int32_t>((c.slots() / kGroupSlots + 1) * c.n_experts * 4),
                                 .out = buffers});
  return {.order = buffers.order, .items = buffers.items, .n_items = buffers.n_items, .max_items = most};
}

// A launcher's job but for its groups: the same numbers and buffers for gate and up as for down.
template <typename Job>
void CudaOps::set_moe(Job& m, const MoeCall& c, Scratch& scratch) {
  m.T = static_cast<std::int32_t>(c.T);
  m.K = c.K;
  m.has_shared = c.has_shared;
  m.h_stride = (c.widest() + 7) / 8 * 8;  // whole 16-byte units
  m.h = scratch.take<>((c.slots() + c.T) * m.h_stride * 2);
  m.y = c.y;
  m.y_stride = c.hidden;
}

// Gate and up of x, then down of what they left.
template <typename Job>
void CudaOps::run_moe(Job& m, const MoeCall& c, const Act& x, void (*run)(const Launch&, const Job&)) {
  const auto read = [&m](const Act& a) {
    if constexpr (requires { m.x_stride; }) {
      m.x = a.data;
      m.x_stride = a.stride;
    } else {
      m.x = a;
    }
  };
  m.shape = c.gate;
  m.shared_shape = c.has_shared ? c.shared_gate : c.gate;
  m.first = c.gates;
  m.second = c.ups;
  read(x);
  run(device_.launch(), m);

  m.down = true;
  m.shape = c.down;
  m.shared_shape = c.has_shared ? c.shared_down : c.down;
  m.first = c.downs;
  read({.data = m.h, .stride = m.h_stride, .bf16 = true});
  run(device_.launch(), m);
}

void CudaOps::moe_skinny(const MoeCall& c, Scratch& scratch) {
  SkinnyMoe m;
  m.item_rows = c.T <= 8 ? 8 : 16;
  if (c.slots() > kInlineSlots) m.groups = grouped(c, m.item_rows, scratch);
  m.n_experts = c.n_experts;
  m.ids = c.ids;
  set_moe(m, c, scratch);
  run_moe(m, c, c.x, skinny_moe);
}

void CudaOps::moe_wide(const MoeCall& c, Scratch& scratch) {
  WideMoe m;
  // Small items leave more of the ring to the weights; an expert with more rows is read again, mostly from the cache,
  // and its codes are decoded again, which counts for more on Hopper.
  const int some = device_.launch().wgmma ? 12 : 24;
  m.item_rows = c.slots() <= some * c.n_experts ? kWideRows / 2 : kWideRows;
  m.groups = grouped(c, m.item_rows, scratch);
  m.down_format = c.down.format;
  set_moe(m, c, scratch);
  run_moe(m, c, reordered(c.x, c.T, c.gate, scratch), wide_moe);
}

void CudaOps::moe_tiled(const MoeCall& c, Scratch& scratch) {
  TiledMoe m;
  m.wgmma = c.wgmma;
  m.item_rows = m.wgmma || c.slots() >= 96 * c.n_experts ? 128 : 64;
  m.groups = grouped(c, m.item_rows, scratch);
  m.n_experts = c.n_experts;
  m.y_bf16 = c.y_bf16;
  set_moe(m, c, scratch);
  run_moe(m, c, packed(c.x, c.T, c.hidden, scratch), tiled_moe);
}

// By tensor copies (Hopper): rows of x are written once more, sorted. Codes are decoded in the product; those that
// gemm_codes() does not read become BF16 first, some experts at a time. Each kind of matrix has one format in all
// experts, the shared expert's may be another. False: nothing was done.
bool CudaOps::moe_by_gemm(const MoeCall& c, const ExpertWeights& shared, Scratch scratch) {
  const Launch& l = device_.launch();
  const auto in_bf16 = [](const MatShape& gate, const MatShape& down) {
    return gate.format == WeightFormat::kBF16 && down.format == WeightFormat::kBF16;
  };
  GemmMoe m;
  m.T = static_cast<std::int32_t>(c.T);
  m.K = c.K;
  m.n_experts = c.n_experts;
  m.has_shared = static_cast<bool>(shared.gate);
  const Mat gate = m.has_shared ? mat_of(shared.gate) : Mat{.shape = c.gate};
  const Mat up = m.has_shared ? mat_of(shared.up) : gate;
  const Mat down = m.has_shared ? mat_of(shared.down) : Mat{.shape = c.down};
  if (m.has_shared && (!all_fit(shared, tiled_fits) || !same_format(gate.shape, gate.at, up.shape, up.at)))
    return false;
  const auto shapes = [&m](const MatShape& routed, const MatShape& other) {
    m.rows = routed.rows;
    m.depth = routed.cols;
    m.shared_rows = other.rows;
    m.shared_depth = other.cols;
  };
  shapes(c.down, down.shape);
  bool taken = gemm_moe_takes(l, m), codes = c.codes && gemm_codes_takes(l, m);
  shapes(c.gate, gate.shape);
  taken = taken && gemm_moe_takes(l, m), codes = codes && gemm_codes_takes(l, m);
  if (!taken) return false;
  // What that kernel does not read of the shared expert is widened, for which there is room from kWidenRows on.
  const auto readable = [](const Mat& w) { return w.shape.format == WeightFormat::kBF16 || gemm_codes_fits(w); };
  const bool roomless = codes && (!m.has_shared || (readable(gate) && readable(up) && readable(down)));
  const bool plain = in_bf16(c.gate, c.down) && (!m.has_shared || in_bf16(gate.shape, down.shape));
  if (c.T <= (plain ? kWideWgmmaBf16Rows : roomless ? kCodesRows - 1 : kWidenRows - 1)) return false;

  m.groups = grouped(c, codes ? kGemmCodesItem : 128, scratch);
  m.h_stride = (std::max<std::int64_t>(c.inner, m.shared_rows) + 7) / 8 * 8;
  m.h = scratch.take<>((c.slots() + c.T) * m.h_stride * 2);
  m.y = c.y;
  m.y_stride = c.hidden;
  const Act x = packed(c.x, c.T, c.hidden, scratch);
  m.x = x.data;
  m.x_stride = x.stride;
  auto* sorted = reinterpret_cast<std::uint16_t*>(c.y) + (c.slots() + c.T) * c.hidden;  // y has room for F32
  m.sorted = sorted;
  gather_rows(l, m.groups, x.data, x.stride, c.slots(), c.K, c.hidden, sorted);

  m.first = c.gates;
  m.second = c.ups;
  m.first.at[kMaxExperts] = gate.at;
  m.second.at[kMaxExperts] = up.at;
  codes ? codes_experts(m, c.gate, gate.shape, scratch) : gemm_experts(m, c.gate, gate.shape, scratch);
  m.down = true;
  shapes(c.down, down.shape);
  m.first = c.downs;
  m.first.at[kMaxExperts] = down.at;
  codes ? codes_experts(m, c.down, down.shape, scratch) : gemm_experts(m, c.down, down.shape, scratch);
  return true;
}

// A shared expert that is not in the routed ones' codes goes by itself.
void CudaOps::codes_experts(const GemmMoe& m, const MatShape& shape, const MatShape& shared, Scratch scratch) {
  const Launch& l = device_.launch();
  GemmCodes g{.m = m, .shape = shape, .shared_shape = shared};
  const Mat first{shared, m.first.at[kMaxExperts]}, second{shared, m.second.at[kMaxExperts]};
  const bool fits = m.has_shared && gemm_codes_fits(first) && (m.down || gemm_codes_fits(second));
  g.m.has_shared = fits && same_format(shape, m.first.at[0], shared, first.at);
  gemm_codes(l, g);
  if (!m.has_shared || g.m.has_shared) return;
  if (fits) {
    g.shape = shared;
    g.m.n_experts = 0;
    g.m.has_shared = true;
    return gemm_codes(l, g);
  }
  GemmMoe alone = m;
  alone.first_expert = alone.end_expert = 0;
  widen_shared(alone, shared, scratch);
  gemm_moe(l, alone);
}

void CudaOps::widen_shared(GemmMoe& m, const MatShape& shared, Scratch& scratch) {
  for (ExpertTable* table : {&m.first, &m.second}) {
    if (m.down && table == &m.second) break;
    MatPtr& at = table->at[kMaxExperts];
    at = {.data = as_bf16({shared, at}, scratch)};
  }
}

void CudaOps::gemm_experts(GemmMoe& m, const MatShape& shape, const MatShape& shared, Scratch scratch) {
  const Launch& l = device_.launch();
  ExpertTable* tables[2] = {&m.first, &m.second};
  const int n_tables = m.down ? 1 : 2;
  const auto shared_in = m.has_shared;
  const auto bytes_of = [](const MatShape& s) { return std::int64_t{s.rows} * s.cols * 2; };
  if (shared_in) widen_shared(m, shared, scratch);
  int each = m.n_experts;
  if (shape.format != WeightFormat::kBF16) {
    const std::int64_t fit = (scratch.left() - 256) / (n_tables * bytes_of(shape));
    CHECK(fit > 0, std::to_string(scratch.left()) + " bytes");
    const auto rounds = static_cast<int>((m.n_experts + fit - 1) / fit);
    each = (m.n_experts + rounds - 1) / rounds;
  }
  const ExpertTable codes[2] = {m.first, m.second};
  void* room = shape.format != WeightFormat::kBF16 ? scratch.take<>(each * n_tables * bytes_of(shape)) : nullptr;
  for (int e = 0; e < m.n_experts; e += each) {
    m.first_expert = e;
    m.end_expert = std::min(m.n_experts, e + each);
    m.has_shared = shared_in && e == 0;
    if (room != nullptr) {
      Widen job{.shape = shape, .out = room};
      for (int i = e; i < m.end_expert; ++i) {
        for (int k = 0; k < n_tables; ++k) {
          tables[k]->at[i] = {.data = static_cast<std::byte*>(room) + job.n * bytes_of(shape)};
          job.at[job.n++] = codes[k].at[i];
        }
      }
      widen(l, job);
    }
    gemm_moe(l, m);
  }
  m.has_shared = shared_in;
}

void CudaOps::moe_any(const MoeCall& c, Scratch& scratch) {
  const Launch& l = device_.launch();
  const std::int64_t stride = c.widest();
  auto* h = scratch.take<>((c.slots() + c.T) * stride * 2);
  MoeAny m{.T = static_cast<std::int32_t>(c.T),
           .K = c.K,
           .hidden = static_cast<std::int32_t>(c.hidden),
           .inner = static_cast<std::int32_t>(c.inner),
           .shared_inner = static_cast<std::int32_t>(c.shared_inner),
           .n_experts = c.n_experts,
           .ids = c.ids,
           .gate = c.gate,
           .up = c.gate,
           .down = c.down,
           .shared_gate = c.shared_gate,
           .shared_up = c.shared_gate,
           .shared_down = c.shared_down};
  moe_any_up(l, m, c.gates, c.ups, static_cast<const float*>(c.x.data), h, stride);
  moe_any_down(l, m, c.downs, h, stride, c.y);
}

// Experts of several formats, one after the other: right, not fast. The shared expert is done by itself.
void CudaOps::moe_mixed(const MoeCall& c, std::span<const ExpertWeights> experts, Scratch& scratch) {
  const Launch& l = device_.launch();
  auto* h = scratch.take<>(c.slots() * c.inner * 2);
  MoeAny m{.T = static_cast<std::int32_t>(c.T),
           .K = c.K,
           .hidden = static_cast<std::int32_t>(c.hidden),
           .inner = static_cast<std::int32_t>(c.inner),
           .shared_inner = 0,
           .n_experts = c.n_experts,
           .ids = c.ids};
  for (std::size_t e = 0; e < experts.size(); ++e) {
    m.only = static_cast<std::int32_t>(e);
    m.gate = mat_of(experts[e].gate).shape;
    m.up = mat_of(experts[e].up).shape;
    m.down = mat_of(experts[e].down).shape;
    moe_any_up(l, m, c.gates, c.ups, static_cast<const float*>(c.x.data), h, c.inner);
    moe_any_down(l, m, c.downs, h, c.inner, c.y);
  }
}

}  // namespace glint::cuda
