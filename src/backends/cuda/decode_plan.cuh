#pragma once
// Which tiles a block of the decode step takes, stage by stage: the copying warp and the multiplying warps walk through
// the same lists. Rows are dealt out evenly over the blocks, to the pair of rows, and cut into tiles.

#include "backends/cuda/decode_ring.cuh"

#if __CUDA_ARCH__ >= 900
namespace glint::cuda {

// An expert that some rows chose. slot[t] is the place of row t's choice, t · top_k + k, or -1.
struct StepItem {
  std::int32_t expert;
  signed char slot[kStepRows];
};

struct Range {
  int begin, end;
};
__device__ __forceinline__ Range share(int total, int unit) {
  const std::int64_t units = total / unit;
  return {static_cast<int>(units * blockIdx.x / gridDim.x) * unit,
          static_cast<int>(units * (blockIdx.x + 1) / gridDim.x) * unit};
}

// Calls visit(tile) for rows [begin, end) of a matrix, or of two alike.
template <typename Visit>
__device__ __forceinline__ void each_tile(const MatShape& shape, const MatPtr& a, const MatPtr* b, Range rows, int most,
                                          Visit&& visit) {
  const int n = rows.end - rows.begin;
  if (n <= 0) return;
  const int tiles = (n + most - 1) / most, size = min(most, ((n + tiles - 1) / tiles + 1) / 2 * 2);
  StepTile t;
  t.shape = shape;
  t.at[0] = a;
  t.at[1] = b != nullptr ? *b : a;
  t.pair = b != nullptr;
  t.begin = 0;
  t.end = shape.cols;
  for (int r = rows.begin; r < rows.end; r += size) {
    t.row = r;
    t.n = min(size, rows.end - r);
    visit(t);
  }
}
__device__ __forceinline__ Range cut(Range r, int begin, int end) { return {max(r.begin, begin), min(r.end, end)}; }

// visit(tile, 0) for q_a, visit(tile, 1) for kv_a.
template <typename Visit>
__device__ __forceinline__ void each_low_tile(const StepLayer& w, Visit&& visit) {
  const int first = w.q_a.shape.rows;
  const Range all = share(first + w.kv_a.shape.rows, 2), second = cut(all, first, first + w.kv_a.shape.rows);
  each_tile(w.q_a.shape, w.q_a.at, nullptr, cut(all, 0, first), tile_rows(w.q_a.shape, false, w.q_a.at.mins != nullptr),
            [&](const StepTile& t) { visit(t, 0); });
  each_tile(w.kv_a.shape, w.kv_a.at, nullptr, {second.begin - first, second.end - first},
            tile_rows(w.kv_a.shape, false, w.kv_a.at.mins != nullptr), [&](const StepTile& t) { visit(t, 1); });
}

template <typename Visit>
__device__ __forceinline__ void each_row_tile(const Mat& m, Visit&& visit) {
  each_tile(m.shape, m.at, nullptr, share(m.shape.rows, 2), tile_rows(m.shape, false, m.at.mins != nullptr), visit);
}

// visit(head, first column): kColumns columns of a head's W_UK.
template <typename Visit>
__device__ __forceinline__ void each_column_tile(int heads, Visit&& visit) {
  constexpr int kPerHead = kLatentWidth / kColumns;
  const Range r = share(heads * kPerHead, 1);
  for (int i = r.begin; i < r.end; ++i) visit(i / kPerHead, i % kPerHead * kColumns);
}

// visit(tile, head): rows of a head's W_UV.
template <typename Visit>
__device__ __forceinline__ void each_value_tile(const void* kv_b, int heads, Visit&& visit) {
  constexpr int kHeadRows = kNopeWidth + kQkWidth;  // 192 of W_UK, 256 of W_UV
  MatShape shape;
  shape.rows = heads * kHeadRows;
  shape.cols = kLatentWidth;
  shape.format = WeightFormat::kBF16;
  const Range all = share(heads * kQkWidth, 2);
  for (int h = all.begin / kQkWidth; h * kQkWidth < all.end; ++h) {
    const Range here = cut(all, h * kQkWidth, (h + 1) * kQkWidth);
    const int skip = h * (kHeadRows - kQkWidth) + kNopeWidth;
    each_tile(shape, {kv_b, nullptr, nullptr}, nullptr, {here.begin + skip, here.end + skip}, kTileRows,
              [&](const StepTile& t) { visit(t, h); });
  }
}

// Gate and up of the shared expert, or of the dense MLP.
template <typename Visit>
__device__ __forceinline__ void each_shared_tile(const StepLayer& w, Visit&& visit) {
  each_tile(w.shared_gate.shape, w.shared_gate.at, &w.shared_up, share(w.shared_gate.shape.rows, 1),
            tile_rows(w.shared_gate.shape, true, w.shared_gate.at.mins != nullptr), visit);
}
// visit(tile, item): gate and up of the chosen experts. `experts`: [3][n_experts].
template <typename Visit>
__device__ __forceinline__ void each_expert_tile(const StepLayer& w, const MatPtr* experts, const StepItem* items,
                                                 int n_items, Visit&& visit) {
  if (n_items == 0) return;
  const int inner = w.gate.rows;
  const Range all = share(n_items * inner, 1);
  for (int i = all.begin / inner; i * inner < all.end; ++i) {
    const Range here = cut(all, i * inner, (i + 1) * inner);
    const MatPtr& gate = experts[items[i].expert];
    each_tile(w.gate, gate, &experts[w.n_experts + items[i].expert], {here.begin - i * inner, here.end - i * inner},
              tile_rows(w.gate, true, gate.mins != nullptr), [&](const StepTile& t) { visit(t, i); });
  }
}

// Down: for each tile of output rows visit(tile, i) for the experts in order, then i = n_items for the shared one; a
// dense layer's segments of columns count as items.
template <typename Visit>
__device__ __forceinline__ void each_down_tile(const StepLayer& w, const MatPtr* experts, const StepItem* items,
                                               int n_items, Visit&& visit) {
  const MatShape& shared = w.shared_down.shape;
  int most = tile_rows(shared, false, w.shared_down.at.mins != nullptr);
  if (w.n_experts > 0) most = min(most, tile_rows(w.down, false, experts[2 * w.n_experts].mins != nullptr));
  each_tile(shared, w.shared_down.at, nullptr, share(shared.rows, 2), most, [&](const StepTile& of_shared) {
    StepTile t = of_shared;
    t.shape = w.down;
    t.end = w.down.cols;
    for (int i = 0; i < n_items; ++i) {
      t.at[0] = experts[2 * w.n_experts + items[i].expert];
      visit(t, i);
    }
    t = of_shared;
    for (int c = 0; c < shared.cols; c += kStepSegment) {
      t.begin = c;
      t.end = min(shared.cols, c + kStepSegment);
      visit(t, n_items + c / kStepSegment);
    }
  });
}

}  // namespace glint::cuda
#endif
