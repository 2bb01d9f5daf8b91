// Feed-forward: router, routed and shared experts, dense MLP. Model facts §2.4.

#include <algorithm>
#include <cmath>

#include "backends/cpu/cpu_ops.hpp"

namespace glint::cpu {
namespace {

constexpr double kSigmoidWork = 64;  // of an expert and row, in the units of for_items: about 8 ns

// The experts of row t by its scores [n_experts], which become sigmoids.
void choose_experts(const RouteParams& p, std::int64_t t, float* s) {
  const std::int64_t n_experts = p.w.shape[0];
  const float* bias = p.bias.as<float>();
  std::int32_t* ids = p.ids + t * p.top_k;
  float* weights = p.weights + t * p.top_k;
  for (std::int64_t e = 0; e < n_experts; ++e) s[e] = 1.0F / (1.0F + std::exp(-s[e]));
  float total = 0;
  for (int k = 0; k < p.top_k; ++k) {
    std::int64_t best = -1;
    float highest = 0;
    for (std::int64_t e = 0; e < n_experts; ++e) {
      const float biased = s[e] + bias[e];
      if (best >= 0 && !(biased > highest)) continue;  // ties: the lower id stays
      if (std::find(ids, ids + k, static_cast<std::int32_t>(e)) != ids + k) continue;
      best = e;
      highest = biased;
    }
    ids[k] = static_cast<std::int32_t>(best);
    weights[k] = s[best];
    total += s[best];
  }
  for (int k = 0; k < p.top_k; ++k) weights[k] = (p.normalize ? weights[k] / (total + 1e-20F) : weights[k]) * p.scale;
}

}  // namespace

void CpuOps::route(const RouteParams& p) {
  const std::int64_t rows = p.x.shape[0];
  const std::int64_t n_experts = p.w.shape[0];
  fit({.max_rows = rows, .hidden = p.x.shape[1], .n_experts = n_experts});
  Arena arena(workspace_);
  const Packed x = packed(arena, p.x.as<float>(), rows, p.x.shape[1], PackKind{});
  auto* scores = arena.take<float>(rows * n_experts);
  const DotJob job{x, {WeightFormat::kF32, n_experts, p.x.shape[1], p.w.data}, scores, n_experts};
  dot({&job, 1});

  for_items(rows, static_cast<double>(rows * n_experts) * kSigmoidWork,
            [&](std::int64_t t, int) { choose_experts(p, t, scores + t * n_experts); });
}

// One gated MLP and the rows that run it.
struct CpuOps::ExpertGroup {
  const ExpertWeights* w = nullptr;
  std::int64_t count = 0;
  const std::int32_t* index = nullptr;  // [count] rows of x; null: all rows
  const float* weights = nullptr;       // [count]; null: 1
  bool rounded = true;                  // x may be rounded to bfloat16
};

PackKind CpuOps::kind_of(const ExpertGroup& group, const Weight& w) const {
  const bool twofold = pack_kind(group.w->gate).twofold && pack_kind(group.w->up).twofold;  // both have tiles or none
  return twofold ? pack_kind(w) : group.rounded ? rounded_kind(w) : plain_kind(w);
}

// Of the routed experts' inner activations. Not 16-bit codes beside BF16 dots: of a few rows each, W costs more to turn
// into codes there than it does to multiply (Zen 4). Without them gate and up have codes too, and codes take 0.8 of the
// time of floats (Ice Lake, the whole of 64 rows' experts: docs/experiments/2026-11-30-cpu-vnni-without-bf16.md).
PackKind CpuOps::inner_kind(const ExpertGroup& group) const {
  const PackKind kind = pack_kind(group.w->down);
  return group.rounded && kind.words && table_.dots_bf16 ? PackKind{} : kind;
}

// The inner activations whose down reads codes, an item a tile's rows of a group. A block of codes can be wider than
// the strips of the loop before, whose width depends on the batch.
void CpuOps::quantize_inner(std::span<const ExpertGroup> groups, const Packed* values, const Packed* inner) {
  std::int64_t items = 0, rows = 0;
  for (std::size_t g = 0; g < groups.size(); ++g) {
    if (inner[g].quant == 0) continue;
    items += row_tiles(groups[g].count);
    rows += groups[g].count;
  }
  for_items(items, static_cast<double>(rows * values[0].cols), [&](std::int64_t item, int) {
    std::size_t g = 0;
    for (; inner[g].quant == 0 || item >= row_tiles(groups[g].count); ++g) {
      if (inner[g].quant != 0) item -= row_tiles(groups[g].count);
    }
    const std::int64_t m = item * kRowTile;
    pack_rows(inner[g], static_cast<const float*>(values[g].at(m, 0)), m, std::min(groups[g].count, m + kRowTile));
  });
}

// Tiles of the rows of x that run each group; groups without an index have those of x. tiled[2 g] is for gate,
// tiled[2 g + 1] for up; without tiles where the group's rows are read where they lie.
void CpuOps::tile_groups(Arena& arena, std::span<const ExpertGroup> groups, std::span<const Packed> x_by_kind,
                         Packed* tiled) {
  std::int64_t items = 0, rows = 0;
  for (std::size_t g = 0; g < groups.size(); ++g) {
    const ExpertGroup& group = groups[g];
    const PackKind gate = kind_of(group, group.w->gate), up = kind_of(group, group.w->up);
    const bool wanted = group.index != nullptr && has_tiles(group.count, gate) && has_tiles(group.count, up);
    for (const std::size_t i : {2 * g, 2 * g + 1}) {
      const PackKind kind = i % 2 == 0 ? gate : up;
      const std::int64_t cols = x_by_kind[static_cast<std::size_t>(kind.index())].cols;
      tiled[i] = {.rows = group.count, .cols = cols, .quant = kind.quant, .split = kind.split, .twofold = kind.twofold};
      if (!wanted) continue;
      if (i % 2 != 0 && gate.index() == up.index()) {
        tiled[i] = tiled[i - 1];
        continue;
      }
      make_tiles(arena, tiled[i]);
      items += row_tiles(group.count);
      rows += group.count;
    }
  }
  if (items == 0) return;
  for_items(items, static_cast<double>(rows * tiled[0].cols), [&](std::int64_t item, int) {
    std::size_t i = 0;
    const auto own = [&] { return tiled[i].tiles != nullptr && (i % 2 == 0 || tiled[i].tiles != tiled[i - 1].tiles); };
    for (;; ++i) {
      if (!own()) continue;
      if (item < row_tiles(tiled[i].rows)) break;
      item -= row_tiles(tiled[i].rows);
    }
    const ExpertGroup& group = groups[i / 2];
    const PackKind kind = kind_of(group, i % 2 == 0 ? group.w->gate : group.w->up);
    const std::int64_t m = item * kRowTile;
    table_.tile_codes(x_by_kind[static_cast<std::size_t>(kind.index())], group.index, tiled[i], m,
                      std::min(group.count, m + kRowTile));
  });
}

// out = Σ over the groups, in their order, of weight · down(silu(gate x) ⊙ up x). Two loops: the inner activations of
// all groups, then the outputs, where an item owns some columns of `out` and runs through all groups, so that the order
// of the sum is that of the groups and nothing is added across threads.
void CpuOps::run_experts(Arena& arena, std::span<const ExpertGroup> groups, const ConstView& x, const View& out) {
  const std::int64_t rows = x.shape[0];
  const std::int64_t hidden = x.shape[1];
  const auto n_groups = static_cast<std::int64_t>(groups.size());
  Packed x_by_kind[kPackKinds];                 // as the groups' weights want it
  auto* inner = arena.take<Packed>(n_groups);   // what down reads
  auto* values = arena.take<Packed>(n_groups);  // the same as values, from which codes are made
  auto* first_item = arena.take<std::int64_t>(n_groups + 1);
  auto* tiled = arena.take<Packed>(2 * n_groups);
  bool codes = false;
  std::int64_t w_rows = 0;
  std::int64_t most = 0;  // rows of a group
  double work = 0;
  for (std::int64_t g = 0; g < n_groups; ++g) {
    const ExpertWeights& w = *groups[g].w;
    for (const PackKind kind : {kind_of(groups[g], w.gate), kind_of(groups[g], w.up)}) {
      Packed& xs = x_by_kind[kind.index()];
      if (xs.data == nullptr) xs = packed(arena, x.as<float>(), rows, hidden, kind);
    }
    const PackKind kind = inner_kind(groups[g]);
    inner[g] = make_packed(arena, groups[g].count, w.gate.rows, kind);
    values[g] = inner[g];
    if (kind.quant != 0) {
      auto* data = arena.take<float>(groups[g].count * w.gate.rows);
      values[g] = {.data = data, .rows = groups[g].count, .cols = w.gate.rows, .block = w.gate.rows};
      codes = true;
    }
    most = std::max(most, groups[g].count);
    work += static_cast<double>(w.gate.bytes()) * std::max(1.0, static_cast<double>(groups[g].count) / 8);
  }

  tile_groups(arena, groups, x_by_kind, tiled);
  // What gate (0) or up (1) of a group reads, and whether in tiles.
  const auto x_of = [&](std::int64_t g, int which) {
    const ExpertGroup& group = groups[g];
    const Packed& own = tiled[2 * g + which];
    return own.tiles != nullptr ? &own : &x_by_kind[kind_of(group, which == 0 ? group.w->gate : group.w->up).index()];
  };
  const auto in_tiles = [&](std::int64_t g) {
    const bool own = tiled[2 * g].tiles != nullptr;
    return own || (groups[g].index == nullptr && x_of(g, 0)->tiles != nullptr && x_of(g, 1)->tiles != nullptr);
  };
  for (std::int64_t g = 0; g < n_groups; ++g)
    w_rows += groups[g].w->gate.rows * row_chunks(groups[g].count, in_tiles(g));

  static_assert(kFewRowsOfX * kLongStrip <= kRowChunk * kStrip && kRowChunk <= kTileChunk);  // the items' buffers
  const PackKind first_kind = kind_of(groups[0], groups[0].w->gate);
  const std::int64_t strip = strip_rows(w_rows, 1, most, first_kind.words || first_kind.twofold);
  // The last group first, the shared expert, which has most rows: no long item at the end.
  const auto group_at = [&](std::int64_t place) { return n_groups - 1 - place; };
  first_item[0] = 0;
  for (std::int64_t i = 0; i < n_groups; ++i) {
    const ExpertGroup& group = groups[group_at(i)];
    first_item[i + 1] =
        first_item[i] + (group.w->gate.rows + strip - 1) / strip * row_chunks(group.count, in_tiles(group_at(i)));
  }
  const std::int64_t items = first_item[n_groups];
  struct Place {
    std::int64_t g, chunk, n0;
  };
  const auto place = [&](std::int64_t item) {
    const std::int64_t i = std::upper_bound(first_item, first_item + n_groups + 1, item) - first_item - 1;
    const std::int64_t g = group_at(i);
    const std::int64_t chunks = row_chunks(groups[g].count, in_tiles(g));
    return Place{g, (item - first_item[i]) % chunks, (item - first_item[i]) / chunks * strip};
  };
  for_items(items, 2 * work, [&](std::int64_t item, int) {
    const auto [g, chunk, n0] = place(item);
    const ExpertGroup& group = groups[g];
    const ExpertWeights& w = *group.w;
    const bool tiles = in_tiles(g);
    const std::int64_t after = item + 1;  // what this thread is likely to do next
    const Place then = after < items ? place(after) : Place{g, 0, w.gate.rows};
    const std::int64_t n1 = std::min(w.gate.rows, n0 + strip);
    alignas(64) float gate[kTileChunk * kStrip];
    alignas(64) float up[kTileChunk * kStrip];
    DotArgs a{.x = x_of(g, 0),
              .index = tiles ? nullptr : group.index,
              .m0 = chunk_begin(group.count, chunk, tiles),
              .m1 = chunk_begin(group.count, chunk + 1, tiles),
              .w = w.gate,
              .n0 = n0,
              .n1 = n1,
              .out = gate,
              .out_stride = strip,
              .next = rows_of(w.up, n0)};
    table_.dot(a);
    a.x = x_of(g, 1);
    a.w = w.up;
    a.out = up;
    a.next = rows_of(groups[then.g].w->gate, then.n0);
    table_.dot(a);
    for (std::int64_t m = a.m0; m < a.m1; ++m)
      table_.silu_mul(gate + (m - a.m0) * strip, up + (m - a.m0) * strip, n1 - n0, values[g], m, n0);
  });
  if (codes) quantize_inner(groups, values, inner);

  const std::int64_t out_strip = strip_rows(hidden, 1, most, inner[0].words || inner[0].twofold);
  for_items((hidden + out_strip - 1) / out_strip, work, [&](std::int64_t item, int) {
    const std::int64_t n0 = item * out_strip;
    const std::int64_t n = std::min(hidden, n0 + out_strip) - n0;
    alignas(64) float y[kTileChunk * kStrip];
    float* columns = out.as<float>() + n0;
    for (std::int64_t t = 0; t < rows; ++t) std::fill(columns + t * hidden, columns + t * hidden + n, 0.0F);
    for (std::int64_t g = 0; g < n_groups; ++g) {
      const ExpertGroup& group = groups[g];
      const bool tiles = inner[g].tiles != nullptr;
      for (std::int64_t chunk = 0; chunk < row_chunks(group.count, tiles); ++chunk) {
        const std::int64_t m0 = chunk_begin(group.count, chunk, tiles);
        const std::int64_t m1 = chunk_begin(group.count, chunk + 1, tiles);
        table_.dot({.x = &inner[g],
                    .m0 = m0,
                    .m1 = m1,
                    .w = group.w->down,
                    .n0 = n0,
                    .n1 = n0 + n,
                    .out = y,
                    .out_stride = out_strip,
                    .next = g + 1 < n_groups ? rows_of(groups[g + 1].w->down, n0) : SoonRows{}});
        for (std::int64_t m = m0; m < m1; ++m)
          table_.add_scaled(columns + (group.index != nullptr ? group.index[m] : m) * hidden, y + (m - m0) * out_strip,
                            group.weights != nullptr ? group.weights[m] : 1.0F, n);
      }
    }
  });
}

void CpuOps::moe(const MoeParams& p) {
  const std::int64_t rows = p.x.shape[0];
  const auto n_experts = static_cast<std::int64_t>(p.experts.size());
  const std::int64_t choices = rows * p.top_k;
  const ExpertWeights& any = n_experts > 0 ? p.experts[0] : p.shared;
  fit({.max_rows = rows,
       .hidden = p.x.shape[1],
       .expert_inner = std::max(any.gate.rows, p.shared.gate.rows),
       .n_experts = n_experts,
       .top_k = p.top_k});
  Arena arena(workspace_);
  auto* begin = arena.take<std::int32_t>(n_experts + 1);  // counting sort of the choices by expert
  auto* index = arena.take<std::int32_t>(choices);
  auto* weights = arena.take<float>(choices);
  auto* groups = arena.take<ExpertGroup>(n_experts + 1);
  std::fill(begin, begin + n_experts + 1, 0);
  for (std::int64_t i = 0; i < choices; ++i) {
    if (p.ids[i] >= 0) ++begin[p.ids[i] + 1];
  }
  for (std::int64_t e = 0; e < n_experts; ++e) begin[e + 1] += begin[e];
  for (std::int64_t i = 0; i < choices; ++i) {  // leaves begin[e] at the end of e's entries
    if (p.ids[i] < 0) continue;
    const std::int32_t at = begin[p.ids[i]]++;
    index[at] = static_cast<std::int32_t>(i / p.top_k);
    weights[at] = p.weights[i];
  }
  std::int64_t n_groups = 0;
  for (std::int64_t e = 0, at = 0; e < n_experts; at = begin[e++]) {
    if (begin[e] > at)
      groups[n_groups++] = {&p.experts[static_cast<std::size_t>(e)], begin[e] - at, index + at, weights + at};
  }
  if (p.shared.gate) groups[n_groups++] = {&p.shared, rows, nullptr, nullptr};
  run_experts(arena, {groups, static_cast<std::size_t>(n_groups)}, p.x, p.out);
}

void CpuOps::mlp(const MlpParams& p) {
  fit({.max_rows = p.x.shape[0], .hidden = p.x.shape[1], .dense_inner = p.mlp.gate.rows});
  Arena arena(workspace_);
  const ExpertGroup all{.w = &p.mlp, .count = p.x.shape[0], .rounded = false};
  run_experts(arena, {&all, 1}, p.x, p.out);
}

}  // namespace glint::cpu
