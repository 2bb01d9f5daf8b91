#pragma once
// Which rows a block of the decode step takes in each stage, and where they lie. Rows are dealt out evenly over the
// blocks and stand in tiles of sixteen; of gate and up, eight of each. Where there are fewer tiles than warps, several
// warps share the steps of a tile, 64 bytes a row each. All of this is worked out once, at the beginning.

#include "backends/cuda/decode_memory.cuh"

#if __CUDA_ARCH__ >= 900
namespace glint::cuda {

__device__ __forceinline__ StepRole role_of(StepStage s) {
  switch (s) {
    case StepStage::kLow:
      return StepRole::kQa;
    case StepStage::kQuery:
      return StepRole::kQb;
    case StepStage::kValues:
      return StepRole::kKvb;
    case StepStage::kOut:
      return StepRole::kO;
    case StepStage::kSharedUp:
      return StepRole::kSharedGate;
    case StepStage::kExpertUp:
      return StepRole::kGate;
    case StepStage::kExpertDown:
      return StepRole::kDown;
    default:
      return StepRole::kSharedDown;
  }
}
__device__ __forceinline__ const StepMat& mat_of(StepStage s, int parity) {
  return step.s.layers[parity].mats[static_cast<int>(role_of(s))];
}
__device__ __forceinline__ bool is_pair(StepStage s) { return s == StepStage::kSharedUp || s == StepStage::kExpertUp; }

struct Range {
  int begin, end;
};
// This block's part of `total` rows in whole units, of the first `blocks` blocks.
__device__ __forceinline__ Range share(int total, int unit, int blocks) {
  const unsigned units = static_cast<unsigned>(total / unit), b = blockIdx.x, n = static_cast<unsigned>(blocks);
  if (b >= n) return {0, 0};
  return {static_cast<int>(units * b / n) * unit, static_cast<int>(units * (b + 1) / n) * unit};
}

// By one thread; `layer`: any of its kind.
__device__ __noinline__ void plan_stage(StepStage s, const StepLayer& layer, StepWork& w, int n_items) {
  const StepMat& m = layer.mats[static_cast<int>(role_of(s))];
  int total = m.rows, used = static_cast<int>(gridDim.x), unit = 1;
  w.items = 1;
  if (s == StepStage::kLow) total += kRowWidth;
  if (s == StepStage::kQuery) unit = 2, used -= step.s.p.T;  // the last blocks fill the cache
  if (s == StepStage::kValues) total = step.s.p.heads * kQkWidth;
  if (s == StepStage::kExpertUp) total *= n_items;
  if (s == StepStage::kExpertDown) w.items = n_items;
  const Range r = share(total, unit, used);
  w.begin = r.begin;
  w.rows = r.end - r.begin;
  w.first_rows = w.rows;
  w.steps = m.cols > 0 ? (m.cols + m.step_cols - 1) / m.step_cols : 0;
  w.tiles = is_pair(s) ? (w.rows + 7) / 8 : (w.rows + 15) / 16;
  if (s == StepStage::kValues) {
    w.first_rows = min(r.end, (r.begin / kQkWidth + 1) * kQkWidth) - r.begin;
    w.tiles = (w.first_rows + 15) / 16 + (w.rows - w.first_rows + 15) / 16;
  }
  w.part_shift = 0;
  while (w.tiles > 0 && (w.tiles << (w.part_shift + 1)) <= kStepWarps) ++w.part_shift;
  const int parts = 1 << w.part_shift;
  w.warps_an_item = s == StepStage::kExpertDown ? max(1, parts / w.items) : parts;
  const int side = parts / w.warps_an_item;  // items at a time
  w.rounds = s == StepStage::kExpertDown ? (w.items + side - 1) / side : (w.tiles + kStepWarps - 1) / kStepWarps;
  if (w.rows == 0) w.rounds = 0;
}
__device__ __forceinline__ const StepWork& work_of(StepStage s, int parity) {
  return step.s.work[step.s.layers[parity].n_experts > 0 ? 1 : 0][static_cast<int>(s)];
}

// Place, in tiles, of row i of the block (gate and up: of gate's; up's is eight further).
__device__ __forceinline__ int place_of(StepStage s, const StepWork& w, int i) {
  if (is_pair(s)) return i / 8 * 16 + i % 8;
  if (s != StepStage::kValues || i < w.first_rows) return i;
  return (w.first_rows + 15) / 16 * 16 + i - w.first_rows;
}

// A row of weights, as a lane reads it: from its first 16 bytes on.
struct StepSource {
  const char* data;
  const char* scales;
};
// Row `half` · 8 + lane / 4 of a tile. Where a tile has no such row: another of the tile's, whose sums nobody reads.
__device__ __forceinline__ StepSource source_of(StepStage s, int parity, const StepWork& w, int tile, int item,
                                                int half) {
  const int lane = threadIdx.x % 32, g = lane / 4;
  const StepLayer& layer = step.s.layers[parity];
  const StepMat* m = &mat_of(s, parity);
  int i = is_pair(s) ? tile * 8 + g : tile * 16 + half * 8 + g, limit = w.rows;
  if (s == StepStage::kValues) {
    const int first = (w.first_rows + 15) / 16 * 16;
    if (i >= first) {
      i += w.first_rows - first;
    } else {
      limit = w.first_rows;
    }
  }
  int row = w.begin + min(i, limit - 1);
  const MatPtr* at = &m->at;
  if (s == StepStage::kLow && row >= m->rows) {
    row -= m->rows;
    m = &layer.mats[static_cast<int>(StepRole::kKva)];
    at = &m->at;
  } else if (s == StepStage::kValues) {
    row += (row / kQkWidth + 1) * kNopeWidth;  // behind this head's W_UK and those of the heads before
  } else if (s == StepStage::kSharedUp) {
    if (half == 1) at = &layer.shared_up;
  } else if (s == StepStage::kExpertUp) {
    int e = 0;
    for (; row >= m->rows; ++e) row -= m->rows;
    at = &step.s.experts[parity][half * layer.n_experts + step.s.items[e].expert];
  } else if (s == StepStage::kExpertDown) {
    at = &step.s.experts[parity][2 * layer.n_experts + step.s.items[item].expert];
  }
  StepSource from;
  from.data = static_cast<const char*>(at->data) + static_cast<std::int64_t>(row) * m->row_bytes + lane % 4 * 16;
  from.scales =
      static_cast<const char*>(at->scales) + static_cast<std::int64_t>(row >> m->rows_shift) * m->scale_row_bytes;
  return from;
}

// ---- where x lies ---------------------------------------------------------------------------------------------------

// Bytes between the rows that kSharedUp reads and those that kExpertUp does: none where their order is one.
__device__ __forceinline__ int expert_x_offset(int parity) {
  const StepLayer& layer = step.s.layers[parity];
  const StepMat &shared = layer.mats[static_cast<int>(StepRole::kSharedGate)],
                &expert = layer.mats[static_cast<int>(StepRole::kGate)];
  const bool alike = layer.n_experts == 0 || in_nibbles(shared.format) == in_nibbles(expert.format);
  return alike ? 0 : 2 * step.s.p.T * x_stride(shared.cols);
}
// Of the shared expert's hidden rows behind the chosen experts'.
__device__ __forceinline__ int shared_h_offset(int parity) {
  const StepLayer& layer = step.s.layers[parity];
  if (layer.n_experts == 0) return 0;
  return 2 * step.s.p.T * step.s.p.top_k * x_stride(layer.mats[static_cast<int>(StepRole::kDown)].cols);
}
// Row of token t for a tile and item, high part; 0: this item is not the token's.
__device__ __forceinline__ std::uint32_t x_row(StepStage s, int parity, const StepWork& w, int tile, int item, int t,
                                               int stride) {
  int row = 2 * t;
  std::uint32_t at = step.s.x;
  if (s == StepStage::kValues && tile * 16 >= w.first_rows) row += 2 * step.s.p.T;
  if (s == StepStage::kExpertUp) at += expert_x_offset(parity);
  if (s == StepStage::kSharedDown) at += shared_h_offset(parity);
  if (s == StepStage::kExpertDown) {
    const int slot = step.s.items[item].slot[t];
    if (slot < 0) return 0;
    row = 2 * slot;
  }
  return at + static_cast<std::uint32_t>(row * stride);
}

// ---- reading ahead --------------------------------------------------------------------------------------------------

__device__ __noinline__ void prefetch_bytes(const void* data, std::int64_t from, std::int64_t bytes) {
  constexpr int kPiece = 4096;
  const auto begin = (reinterpret_cast<std::uintptr_t>(data) + static_cast<std::uintptr_t>(from)) & ~std::uintptr_t{15};
  const auto n = static_cast<int>(bytes) & ~15;
  for (int i = static_cast<int>(threadIdx.x % 32) * kPiece; i < n; i += 32 * kPiece)
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(begin + static_cast<unsigned>(i)),
                 "r"(min(kPiece, n - i))
                 : "memory");
}
__device__ __noinline__ void prefetch_rows(const StepMat& m, const MatPtr& at, int begin, int n) {
  if (n <= 0) return;
  prefetch_bytes(at.data, static_cast<std::int64_t>(begin) * m.row_bytes, static_cast<std::int64_t>(n) * m.row_bytes);
  if (m.scale_row_bytes > 0) {
    const int first = begin >> m.rows_shift, last = (begin + n - 1) >> m.rows_shift;
    prefetch_bytes(at.scales, static_cast<std::int64_t>(first) * m.scale_row_bytes,
                   static_cast<std::int64_t>(last - first + 1) * m.scale_row_bytes);
  }
}
// This block's rows of a stage into the second-level cache, by the last warp.
__device__ __noinline__ void prefetch_stage(StepStage s, int parity) {
  if (threadIdx.x / 32 != kStepWarps - 1) return;
  const StepWork& w = work_of(s, parity);
  const StepLayer& layer = step.s.layers[parity];
  const StepMat& m = mat_of(s, parity);
  if (s == StepStage::kLow) {
    const int mine = max(0, min(w.rows, m.rows - w.begin));
    prefetch_rows(m, m.at, w.begin, mine);
    const StepMat& kva = layer.mats[static_cast<int>(StepRole::kKva)];
    prefetch_rows(kva, kva.at, w.begin + mine - m.rows, w.rows - mine);
  } else if (s == StepStage::kValues) {
    const int head = w.begin / kQkWidth;
    prefetch_rows(m, m.at, w.begin + (head + 1) * kNopeWidth, w.first_rows);
    prefetch_rows(m, m.at, w.begin + w.first_rows + (head + 2) * kNopeWidth, w.rows - w.first_rows);
  } else if (s == StepStage::kExpertDown) {
    for (int i = 0; i < w.items; ++i)
      prefetch_rows(m, step.s.experts[parity][2 * layer.n_experts + step.s.items[i].expert], w.begin, w.rows);
  } else {
    prefetch_rows(m, m.at, w.begin, w.rows);
    if (s == StepStage::kSharedUp) prefetch_rows(m, layer.shared_up, w.begin, w.rows);
  }
}

// The same of W_UK: 192 rows of some columns.
__device__ __noinline__ void prefetch_keys(int parity) {
  if (threadIdx.x / 32 != kStepWarps - 1) return;
  constexpr int kPerHead = kLatentWidth / 8;
  const Range r = share(step.s.p.heads * kPerHead, 1, static_cast<int>(gridDim.x));
  for (int begin = r.begin; begin < r.end;) {
    const int head = begin / kPerHead, end = min(r.end, (head + 1) * kPerHead);
    const auto* from =
        static_cast<const char*>(step.s.layers[parity].kv_b) +
        (static_cast<std::int64_t>(head) * (kNopeWidth + kQkWidth) * kLatentWidth + begin % kPerHead * 8) * 2;
    for (int row = static_cast<int>(threadIdx.x % 32); row < kNopeWidth; row += 32) {
      const char* line = from + row * (kLatentWidth * 2);
      for (int i = 0; i < (end - begin) * 16; i += 128) asm volatile("prefetch.global.L2 [%0];" ::"l"(line + i));
    }
    begin = end;
  }
}

}  // namespace glint::cuda
#endif
