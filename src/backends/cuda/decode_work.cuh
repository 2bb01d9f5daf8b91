#pragma once
// Which rows a block of the decode step takes in each stage, and where they lie. Rows are dealt out evenly over the
// blocks, in eights, and stand in tiles of sixteen; of gate and up, eight of each. All of this is worked out once, at
// the beginning.

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
__device__ __forceinline__ const StepMat& mat_of(StepStage s, const StepLayer& layer) {
  return layer.mats[static_cast<int>(role_of(s))];
}
// Whether a row has more than one scale.
__device__ __forceinline__ bool is_grouped(const StepMat& m) { return m.group_shift < kWholeRow; }
__device__ __forceinline__ bool is_pair(StepStage s) { return s == StepStage::kSharedUp || s == StepStage::kExpertUp; }

// Whether the shared expert's down is one more of the chosen experts': a layer of experts with codes alike.
__device__ __forceinline__ bool down_joined(const StepLayer& layer) {
  const StepMat &a = layer.mats[static_cast<int>(StepRole::kDown)],
                &b = layer.mats[static_cast<int>(StepRole::kSharedDown)];
  return layer.n_experts > 0 && a.format == b.format && a.cols == b.cols && a.group_shift == b.group_shift &&
         a.scale_dtype == b.scale_dtype;
}

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
__device__ __noinline__ void plan_stage(StepStage s, const StepLayer& layer, StepWork& w) {
  const StepMat& m = mat_of(s, layer);
  int total = m.rows, used = static_cast<int>(gridDim.x), unit = 8;
  w.items = 1;
  if (s == StepStage::kLow) total += kRowWidth;
  if (s == StepStage::kQuery) used -= 1;  // the last block fills the cache
  if (s == StepStage::kValues) total = step.s.p.heads * kQkWidth;
  if (s == StepStage::kExpertUp) total *= step.s.p.top_k;
  if (s == StepStage::kExpertDown) w.items = step.s.p.top_k + (down_joined(layer) ? 1 : 0);
  // Few rows: four each of gate and up, where their scales can be copied.
  if (s == StepStage::kSharedUp && m.row_bytes % 4 == 0 && m.scale_row_bytes % 4 == 0) unit = 4;
  const Range r = share(total, unit, used);
  w.begin = r.begin;
  w.rows = r.end - r.begin;
  w.first_rows = w.rows;
  w.tiles = is_pair(s) ? (w.rows + 7) / 8 : (w.rows + 15) / 16;
  if (s == StepStage::kValues) {
    w.first_rows = min(r.end, (r.begin / kQkWidth + 1) * kQkWidth) - r.begin;
    w.tiles = (w.first_rows + 15) / 16 + (w.rows - w.first_rows + 15) / 16;
  }
  const int steps = max(1, (m.row_bytes + kStepBytes - 1) / kStepBytes);
  w.chunks = (steps + kChunkSteps - 1) / kChunkSteps;
  w.parts = min(steps, kStepWarps);
  w.last_steps = steps - (w.chunks - 1) * kChunkSteps;
  w.even = w.last_steps % 2 == 0;
  w.recip = (256 + w.parts - 1) / w.parts;
  w.together = kStepWarps / w.parts;
  w.groups = (w.tiles + w.together - 1) / w.together;
  w.row_bytes = w.chunks == 1 ? m.row_bytes : kSplitBytes;
  w.scale_row = w.chunks == 1 || !is_grouped(m) ? m.scale_row_bytes : scale_bytes_of(m, kSplitBytes);
  w.second_tile = s == StepStage::kValues ? (w.first_rows + 15) / 16 : 1 << 30;
}
__device__ __forceinline__ const StepWork& work_of(StepStage s, bool routed) {
  return step.s.work[routed ? 1 : 0][static_cast<int>(s)];
}

// Which of two places for sums: what follows the shared expert's at once must not lie over them.
__device__ __forceinline__ int pass_of(StepStage s, const StepLayer& layer) {
  return layer.n_experts > 0 && (s == StepStage::kSharedUp || s == StepStage::kSharedDown) ? 1 : 0;
}

// Half of a tile: rows that lie one behind the other in memory, eight, or fewer at a range's end.
struct StepHalf {
  const char* data;
  const char* scales;
  int rows;
};
__device__ __forceinline__ StepHalf half_of(StepStage s, const StepLayer& layer, const StepWork& w, int tile, int item,
                                            int half) {
  const StepMat* m = &mat_of(s, layer);
  int i = is_pair(s) ? tile * 8 : tile * 16 + half * 8, end = w.rows;
  if (s == StepStage::kValues) {
    const int first = (w.first_rows + 15) / 16 * 16;
    if (i >= first) {
      i += w.first_rows - first;
    } else {
      end = w.first_rows;
    }
  }
  if (i >= end) return {nullptr, nullptr, 0};
  int row = w.begin + i;
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
    at = &step.s.experts[half * layer.n_experts + step.s.ids[e]];
  } else if (s == StepStage::kExpertDown) {
    at = item == step.s.p.top_k ? &layer.mats[static_cast<int>(StepRole::kSharedDown)].at
                                : &step.s.experts[2 * layer.n_experts + step.s.ids[item]];
  }
  return {static_cast<const char*>(at->data) + static_cast<std::int64_t>(row) * m->row_bytes,
          static_cast<const char*>(at->scales) + static_cast<std::int64_t>(row) * m->scale_row_bytes, min(8, end - i)};
}

// ---- where x lies ---------------------------------------------------------------------------------------------------

// Bytes between the rows that kSharedUp reads and those that kExpertUp does: none where their order is one.
__device__ __forceinline__ int expert_x_offset(const StepLayer& layer) {
  const StepMat &shared = layer.mats[static_cast<int>(StepRole::kSharedGate)],
                &expert = layer.mats[static_cast<int>(StepRole::kGate)];
  const bool alike = layer.n_experts == 0 || x_kind(shared.format) == x_kind(expert.format);
  return alike ? 0 : 2 * x_stride(shared.cols);
}
// Of the shared expert's hidden row behind the chosen experts'.
__device__ __forceinline__ int shared_h_offset(const StepLayer& layer) {
  if (layer.n_experts == 0) return 0;
  return 2 * step.s.p.top_k * x_stride(layer.mats[static_cast<int>(StepRole::kDown)].cols);
}
// Of a stage's x, from the beginning.
__device__ __forceinline__ int x_offset(StepStage s, const StepLayer& layer) {
  return s == StepStage::kExpertUp ? expert_x_offset(layer) : s == StepStage::kSharedDown ? shared_h_offset(layer) : 0;
}

}  // namespace glint::cuda
#endif
