#pragma once
// Which rows a block of the decode step takes in each stage, and where they lie. Rows are dealt out evenly over the
// blocks, in eights, and stand in tiles of sixteen; of gate and up, eight of each. All of this is worked out once, at
// the beginning.

#include "backends/cuda/decode_memory.cuh"
#include "backends/cuda/decode_shape.cuh"

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
// Whether a row has more than one scale.
__device__ __forceinline__ bool is_grouped(const StepMat& m) { return m.group_shift < kWholeRow; }
__device__ __forceinline__ bool is_pair(StepStage s) { return s == StepStage::kSharedUp || s == StepStage::kExpertUp; }

// How a matrix comes through the ring: what of a stage's work follows from its codes alone.
__device__ __forceinline__ void set_steps(const StepMat& m, StepWork& w) {
  const int steps = max(1, (m.row_bytes + kStepBytes - 1) / kStepBytes);
  w.chunks = (steps + kChunkSteps - 1) / kChunkSteps;
  w.parts = min(steps, kStepWarps);
  w.last_steps = steps - (w.chunks - 1) * kChunkSteps;
  w.even = w.last_steps % 2 == 0;
  w.recip = (256 + w.parts - 1) / w.parts;
  w.together = kStepWarps / w.parts;
  w.row_bytes = w.chunks == 1 ? m.row_bytes : kSplitBytes;
  w.scale_row = w.chunks == 1 || !is_grouped(m) ? m.scale_row_bytes : scale_bytes_of(m, kSplitBytes);
}

__device__ __forceinline__ StepWork& work_of(StepStage s, bool routed) {
  return step.s.work[routed && !is_attention(s) ? 1 : 0][static_cast<int>(s)];
}

// A layer as the stages see it: its table in shared memory, but for what the kernel knows of the model already. `m.at`
// of a known matrix is not set.
template <class P>
struct LayerView {
  const StepLayer& at;
  bool routed;  // it has experts

  __device__ __forceinline__ StepMat mat(StepRole r) const {
    if constexpr (P::kKnown) {
      return P::mat(r, routed);
    } else {
      return at.mats[static_cast<int>(r)];
    }
  }
  __device__ __forceinline__ StepMat mat(StepStage s) const { return mat(role_of(s)); }
  __device__ __forceinline__ StepWork work(StepStage s) const {
    StepWork w = work_of(s, routed);
    if constexpr (P::kKnown) {
      set_steps(mat(s), w);
      w.items = s == StepStage::kExpertDown ? P::kTopK + (down_joined() ? 1 : 0) : 1;
    }
    return w;
  }
  __device__ __forceinline__ int top_k() const {
    if constexpr (P::kKnown) return P::kTopK;
    return step.s.p.top_k;
  }
  __device__ __forceinline__ int q_lora() const {
    if constexpr (P::kKnown) return P::kQLora;
    return step.s.p.q_lora;
  }
  // Whether the shared expert's down is one more of the chosen experts': a layer of experts with codes alike.
  __device__ __forceinline__ bool down_joined() const {
    const StepMat a = mat(StepRole::kDown), b = mat(StepRole::kSharedDown);
    return routed && a.format == b.format && a.cols == b.cols && a.group_shift == b.group_shift &&
           a.scale_dtype == b.scale_dtype;
  }
};

// Whether the stage of W_qb multiplies by W_UK too.
template <class P>
inline constexpr bool kJoins = P::kQueries != StepQueries::kWhole;

template <class P>
__device__ __forceinline__ KvCodec cache_codec() {
  if constexpr (P::kKnown) return P::kCodec;
  return step.s.p.cache.codec;
}

// Whether pieces are merged in a stage of their own.
template <class P>
__device__ __forceinline__ bool merges_pieces() {
  if constexpr (P::kKnown) return P::kFar;
  return step.s.context.merge;
}

// Barriers of the grid that a layer has fewer or more than k…Barriers say.
template <class P>
__device__ __forceinline__ int other_barriers() {
  return (merges_pieces<P>() ? 1 : 0) - (P::kQueries == StepQueries::kParts ? 1 : 0);
}

// Whether such a layer has this stage, of those with weights.
template <class P>
__device__ __forceinline__ bool has_stage(StepStage s, const LayerView<P>& v) {
  if (s == StepStage::kExpertUp || s == StepStage::kExpertDown) return v.routed;
  return s != StepStage::kSharedDown || !v.down_joined();
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

// Of rows (or columns) that each head has `n` of, so that a block has those of one head only: as many blocks a head,
// and never the last one, which fills the cache.
__device__ __forceinline__ int blocks_of_head() { return (static_cast<int>(gridDim.x) - 1) / step.s.p.heads; }
__device__ __forceinline__ Range share_of_head(int n, int unit) {
  const int per = blocks_of_head(), head = static_cast<int>(blockIdx.x) / per,
            i = static_cast<int>(blockIdx.x) - head * per, units = n / unit;
  if (head >= step.s.p.heads) return {0, 0};
  return {head * n + units * i / per * unit, head * n + units * (i + 1) / per * unit};
}

// By one thread; `v`: any layer of its kind. `joined`: see decode_join.cuh.
template <class P>
__device__ __noinline__ void plan_stage(StepStage s, const LayerView<P>& v, bool joined, StepWork& w) {
  const StepMat m = v.mat(s);
  const int blocks = static_cast<int>(gridDim.x);
  int total = m.rows, used = blocks, unit = 8;
  w.items = 1;
  if (s == StepStage::kLow) total += kRowWidth;
  if (s == StepStage::kQuery) used -= 1;  // the last block fills the cache
  if (s == StepStage::kExpertUp) total *= v.top_k();
  if (s == StepStage::kExpertDown) w.items = v.top_k() + (v.down_joined() ? 1 : 0);
  // Few rows: four each of gate and up, where their scales can be copied.
  if (s == StepStage::kSharedUp && m.row_bytes % 4 == 0 && m.scale_row_bytes % 4 == 0) unit = 4;
  const bool of_head = s == StepStage::kValues || (s == StepStage::kQuery && joined);
  const Range r = of_head ? share_of_head(kQkWidth, unit) : share(total, unit, used);
  w.begin = r.begin;
  w.rows = r.end - r.begin;
  w.tiles = is_pair(s) ? (w.rows + 7) / 8 : (w.rows + 15) / 16;
  set_steps(m, w);
  w.groups = (w.tiles + w.together - 1) / w.together;
}

// Which of two places for sums: what follows the shared expert's at once must not lie over them.
__device__ __forceinline__ int pass_of(StepStage s, bool routed) {
  return routed && (s == StepStage::kSharedUp || s == StepStage::kSharedDown) ? 1 : 0;
}

// Half of a tile: rows that lie one behind the other in memory, eight, or fewer at a range's end.
struct StepHalf {
  const char* data;
  const char* scales;
  int rows;
};
template <class P>
__device__ __forceinline__ StepHalf half_of(StepStage s, const LayerView<P>& v, const StepWork& w, int tile, int item,
                                            int half) {
  const StepMat m = v.mat(s);
  const int i = is_pair(s) ? tile * 8 : tile * 16 + half * 8;
  if (i >= w.rows) return {nullptr, nullptr, 0};
  int row = w.begin + i;
  const auto at_of = [&v](StepRole r) { return &v.at.mats[static_cast<int>(r)].at; };
  const MatPtr* at = at_of(role_of(s));
  if (s == StepStage::kLow && row >= m.rows) {
    row -= m.rows;
    at = at_of(StepRole::kKva);
  } else if (s == StepStage::kValues) {
    row += (row / kQkWidth + 1) * kNopeWidth;  // behind this head's W_UK and those of the heads before
  } else if (s == StepStage::kSharedUp) {
    if (half == 1) at = &v.at.shared_up;
  } else if (s == StepStage::kExpertUp) {
    const int e = row / m.rows;
    row -= e * m.rows;
    at = &step.s.experts[half * v.at.n_experts + step.s.ids[e]];
  } else if (s == StepStage::kExpertDown) {
    at = item == v.top_k() ? at_of(StepRole::kSharedDown) : &step.s.experts[2 * v.at.n_experts + step.s.ids[item]];
  }
  return {static_cast<const char*>(at->data) + static_cast<std::int64_t>(row) * m.row_bytes,
          static_cast<const char*>(at->scales) + static_cast<std::int64_t>(row) * m.scale_row_bytes,
          min(8, w.rows - i)};
}

// ---- where x lies ---------------------------------------------------------------------------------------------------

// Bytes between the rows that kSharedUp reads and those that kExpertUp does: none where their order is one.
template <class P>
__device__ __forceinline__ int expert_x_offset(const LayerView<P>& v) {
  const StepMat shared = v.mat(StepRole::kSharedGate), expert = v.mat(StepRole::kGate);
  const bool alike = !v.routed || x_kind(shared.format) == x_kind(expert.format);
  return alike ? 0 : 2 * x_stride(shared.cols);
}
// Of the shared expert's hidden row behind the chosen experts'.
template <class P>
__device__ __forceinline__ int shared_h_offset(const LayerView<P>& v) {
  return v.routed ? 2 * v.top_k() * x_stride(v.mat(StepRole::kDown).cols) : 0;
}
// Of a stage's x, from the beginning.
template <class P>
__device__ __forceinline__ int x_offset(StepStage s, const LayerView<P>& v) {
  return s == StepStage::kExpertUp ? expert_x_offset(v) : s == StepStage::kSharedDown ? shared_h_offset(v) : 0;
}

}  // namespace glint::cuda
#endif
