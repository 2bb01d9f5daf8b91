#pragma once
// How x comes into shared memory at the beginning of a stage: every block stages all of it for itself, from what the
// blocks wrote in the stage before.

#include "backends/cuda/decode_attend.cuh"

#if __CUDA_ARCH__ >= 900
namespace glint::cuda {

// F32 rows of other blocks, in one order; a factor for each row.
__device__ __forceinline__ void put_rows(const float* from, int stride, int rows, int cols, bool nibbles,
                                         std::uint32_t to, const float* factors) {
  const int units = cols / 8, row_stride = x_stride(cols);
#pragma unroll 1
  for (int i = threadIdx.x; i < rows * units; i += 2 * kStepThreads) {  // two at a time: the loads overlap
    float v[2][8] = {};
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const int j = i + k * kStepThreads;
      if (j < rows * units) load8(from + static_cast<std::int64_t>(j / units) * stride + j % units * 8, v[k]);
    }
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const int j = i + k * kStepThreads;
      if (j < rows * units) {
        const float f = factors != nullptr ? factors[j / units] : 1.0F;
#pragma unroll
        for (int c = 0; c < 8; ++c) v[k][c] *= f;
        put_split(nibbles, to + static_cast<std::uint32_t>(2 * (j / units) * row_stride + j % units * 16), row_stride,
                  v[k]);
      }
    }
  }
  put_tail(to, row_stride, 2 * rows, cols);
}

__device__ __forceinline__ void weights8(const float* from, float (&v)[8]) {
  const uint4 a = load_stream(from), b = load_stream(from + 4);
  v[0] = __uint_as_float(a.x), v[1] = __uint_as_float(a.y), v[2] = __uint_as_float(a.z), v[3] = __uint_as_float(a.w);
  v[4] = __uint_as_float(b.x), v[5] = __uint_as_float(b.y), v[6] = __uint_as_float(b.z), v[7] = __uint_as_float(b.w);
}

// An RMS-normed row of at most 8 · kStepThreads columns. Of kSharedUp, on the way: the score of the expert that is this
// block's, and the arrival at the barrier behind which all scores are known; x then also in the experts' order.
__device__ __forceinline__ void stage_normed(StepStage stage, const StepLayer& layer) {
  const DecodeStep& p = step.s.p;
  const bool scores = stage == StepStage::kSharedUp && layer.n_experts > 0;
  const StepMat& m = mat_of(stage, layer);
  const int cols = m.cols, row_stride = x_stride(cols), u = static_cast<int>(threadIdx.x);
  const float* from = stage == StepStage::kQuery ? p.low : p.stream;
  const float* weight = stage == StepStage::kLow     ? layer.input_norm
                        : stage == StepStage::kQuery ? layer.q_a_norm
                                                     : layer.post_norm;
  const bool mine = u < cols / 8, scored = scores && static_cast<int>(blockIdx.x) < layer.n_experts;
  float norm[8] = {}, router[8] = {}, v[8] = {};
  if (mine) {
    weights8(weight + u * 8, norm);
    if (scored) weights8(layer.router + static_cast<std::int64_t>(blockIdx.x) * cols + u * 8, router);
  }
  grid_wait();
  if (mine) load8(from + u * 8, v);
  float squares = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i) squares = fmaf(v[i], v[i], squares);
  const float factor = rsqrtf(__fdividef(step_sum(squares, 0), static_cast<float>(cols)) +
                              (stage == StepStage::kQuery ? p.latent_eps : p.eps));
#pragma unroll
  for (int i = 0; i < 8; ++i) v[i] *= factor * norm[i];
  if (scores) {
    if (scored) {
      float dot = 0;
#pragma unroll
      for (int i = 0; i < 8; ++i) dot = fmaf(v[i], router[i], dot);
      dot = step_sum(dot, 1);
      if (u == 0) p.scores[blockIdx.x] = __fdividef(1.0F, 1.0F + __expf(-dot));
    }
    grid_arrive();
  }
  if (mine) {
    const int second = stage == StepStage::kSharedUp ? expert_x_offset(layer) : 0;
    const std::uint32_t to = step.s.x + static_cast<std::uint32_t>(u * 16);
    put_split(in_nibbles(m.format), to, row_stride, v);
    if (second != 0) put_split(!in_nibbles(m.format), to + static_cast<std::uint32_t>(second), row_stride, v);
  }
  put_tail(step.s.x, row_stride, 4, cols);
}

// The answers of the heads that this block's rows of W_UV belong to, from attention's pieces.
__device__ __forceinline__ void stage_latents(const StepLayer& layer) {
  grid_wait();
  const StepWork& w = work_of(StepStage::kValues, layer.n_experts > 0);
  if (w.rows == 0) return;
  const int lane = threadIdx.x % 32, first = w.begin / kQkWidth;
  const int heads = w.first_rows < w.rows ? 2 : 1;
  constexpr int kStride = x_stride(kLatentWidth);
  const bool rotated = is_rotated(step.s.p.cache.codec);
#pragma unroll 1
  for (int i = threadIdx.x / 32; i < heads; i += kStepWarps) {
    float v[16];
    load_latent(0, first + i, v);
    if (rotated) warp_hadamard(v, lane);
    const std::uint32_t to = step.s.x + static_cast<std::uint32_t>(2 * i * kStride + lane * 32);
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      float part[8];
#pragma unroll
      for (int j = 0; j < 8; ++j) part[j] = v[8 * k + j];
      put_split(false, to + 16 * k, kStride, part);
    }
  }
}

// Waits for the other blocks and stages this stage's x. By the working warps; ends with a barrier of theirs.
__device__ __forceinline__ void stage_x(StepStage stage, const StepLayer& layer) {
  const DecodeStep& p = step.s.p;
  const StepMat& m = mat_of(stage, layer);
  switch (stage) {
    case StepStage::kValues:
      stage_latents(layer);
      break;
    case StepStage::kOut:
      grid_wait();
      put_rows(p.attended, m.cols, 1, m.cols, in_nibbles(m.format), step.s.x, nullptr);
      break;
    case StepStage::kExpertDown:
    case StepStage::kSharedDown: {
      const int items = layer.n_experts > 0 ? p.top_k : 0;
      const StepMat& shared = layer.mats[static_cast<int>(StepRole::kSharedDown)];
      const bool alike = items == 0 || (in_nibbles(shared.format) == in_nibbles(m.format) && shared.cols == m.cols);
      grid_wait();
      if (items > 0) {
        put_rows(p.h, p.inner_stride, alike ? items + 1 : items, m.cols, in_nibbles(m.format), step.s.x,
                 step.s.weights);
        if (alike) break;
      }
      put_rows(p.h + static_cast<std::int64_t>(items) * p.inner_stride, p.inner_stride, 1, shared.cols,
               in_nibbles(shared.format), step.s.x + static_cast<std::uint32_t>(shared_h_offset(layer)), nullptr);
      break;
    }
    default:
      stage_normed(stage, layer);
      break;
  }
  step_sync();
}

}  // namespace glint::cuda
#endif
