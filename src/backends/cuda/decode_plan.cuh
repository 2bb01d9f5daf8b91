#pragma once
// Which tiles a block of the decode step takes, stage by stage: the copying warps and the multiplying warps walk
// through the same lists. Rows are dealt out evenly over the blocks, to the pair of rows, and cut into tiles.

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
// This block's part of `total` rows, in whole units.
__device__ __forceinline__ Range share(int total, int unit) {
  const unsigned units = static_cast<unsigned>(total / unit);
  return {static_cast<int>(units * blockIdx.x / gridDim.x) * unit,
          static_cast<int>(units * (blockIdx.x + 1) / gridDim.x) * unit};
}
__device__ __forceinline__ Range cut(Range r, int begin, int end) { return {max(r.begin, begin), min(r.end, end)}; }

// Calls visit(tile) for rows [begin, end) of a matrix, or of two alike.
template <typename Visit>
__device__ __forceinline__ void each_tile(const StepLayer& w, StepRole role, const MatPtr& a, const MatPtr& b,
                                          bool pair, Range rows, int most, Visit&& visit) {
  const int n = rows.end - rows.begin;
  if (n <= 0) return;
  const int tiles = (n + most - 1) / most, size = min(most, ((n + tiles - 1) / tiles + 1) / 2 * 2);
  StepTile t{role, {a, b}, rows.begin, 0, pair, 0, w.mats[role].cols};
#pragma unroll 1
  for (; t.row < rows.end; t.row += size) {
    t.n = min(size, rows.end - t.row);
    visit(t);
  }
}

// visit(tile): W_qa, then W_kva.
template <typename Visit>
__device__ __forceinline__ void each_low_tile(const StepLayer& w, Visit&& visit) {
  const int first = w.mats[kQa].rows, second = w.mats[kKva].rows;
  const Range all = share(first + second, 2);
#pragma unroll 1
  for (int i = 0; i < 2; ++i) {
    const StepRole role = i == 0 ? kQa : kKva;
    const Range here = i == 0 ? cut(all, 0, first) : cut(all, first, first + second);
    const int skip = i == 0 ? 0 : first;
    each_tile(w, role, w.mats[role].at, w.mats[role].at, false, {here.begin - skip, here.end - skip},
              w.mats[role].tile_rows, visit);
  }
}

template <typename Visit>
__device__ __forceinline__ void each_row_tile(const StepLayer& w, StepRole role, Visit&& visit) {
  const StepMat& m = w.mats[role];
  each_tile(w, role, m.at, m.at, false, share(m.rows, 2), m.tile_rows, visit);
}

// visit(head, first column): kColumns columns of a head's W_UK.
template <typename Visit>
__device__ __forceinline__ void each_column_tile(int heads, Visit&& visit) {
  constexpr int kPerHead = kLatentWidth / kColumns;
  const Range r = share(heads * kPerHead, 1);
#pragma unroll 1
  for (int i = r.begin; i < r.end; ++i) visit(i / kPerHead, i % kPerHead * kColumns);
}

// visit(tile, head): rows of a head's W_UV.
template <typename Visit>
__device__ __forceinline__ void each_value_tile(const StepLayer& w, int heads, Visit&& visit) {
  const StepMat& m = w.mats[kValues];
  const Range all = share(heads * kQkWidth, 2);
#pragma unroll 1
  for (int h = all.begin / kQkWidth; h * kQkWidth < all.end; ++h) {
    const Range here = cut(all, h * kQkWidth, (h + 1) * kQkWidth);
    const int skip = h * kNopeWidth + kNopeWidth;
    each_tile(w, kValues, m.at, m.at, false, {here.begin + skip, here.end + skip}, m.tile_rows,
              [&](const StepTile& t) { visit(t, h); });
  }
}

// Gate and up of the shared expert, or of the dense MLP.
template <typename Visit>
__device__ __forceinline__ void each_shared_tile(const StepLayer& w, Visit&& visit) {
  const StepMat& m = w.mats[kSharedGate];
  each_tile(w, kSharedGate, m.at, w.shared_up, true, share(m.rows, 1), m.tile_rows, visit);
}
// visit(tile, item): gate and up of the chosen experts. `experts`: [3][n_experts].
template <typename Visit>
__device__ __forceinline__ void each_expert_tile(const StepLayer& w, const MatPtr* experts, const StepItem* items,
                                                 int n_items, Visit&& visit) {
  const StepMat& m = w.mats[kGate];
  const Range all = share(n_items * m.rows, 1);
#pragma unroll 1
  for (int i = all.begin / m.rows; i * m.rows < all.end; ++i) {
    const Range here = cut(all, i * m.rows, (i + 1) * m.rows);
    const int e = items[i].expert;
    each_tile(w, kGate, experts[e], experts[w.n_experts + e], true, {here.begin - i * m.rows, here.end - i * m.rows},
              m.tile_rows, [&](const StepTile& t) { visit(t, i); });
  }
}

// Down: for each tile of output rows visit(tile, i) for the experts in order, then i = n_items for the shared one; a
// dense layer's segments of columns count as items.
template <typename Visit>
__device__ __forceinline__ void each_down_tile(const StepLayer& w, const MatPtr* experts, const StepItem* items,
                                               int n_items, Visit&& visit) {
  const StepMat& shared = w.mats[kSharedDown];
  const int segments = (shared.cols + kStepSegment - 1) / kStepSegment;
  const int most = w.n_experts > 0 ? min(shared.tile_rows, w.mats[kDown].tile_rows) : shared.tile_rows;
  each_tile(w, kSharedDown, shared.at, shared.at, false, share(shared.rows, 2), most, [&](const StepTile& of_shared) {
#pragma unroll 1
    for (int i = 0; i < n_items + segments; ++i) {
      StepTile t = of_shared;
      if (i < n_items) {
        t.role = kDown;
        t.at[0] = t.at[1] = experts[2 * w.n_experts + items[i].expert];
        t.end = w.mats[kDown].cols;
      } else {
        t.begin = (i - n_items) * kStepSegment;
        t.end = min(shared.cols, t.begin + kStepSegment);
      }
      visit(t, i);
    }
  });
}

}  // namespace glint::cuda
#endif
