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

// 1 / RMS of rows that the threads hold eight columns each of.
template <int kT>
__device__ __forceinline__ void rms_factors(const float (&v)[kT][8], bool mine, int cols, float eps,
                                            float (&factor)[kT]) {
#pragma unroll
  for (int t = 0; t < kT; ++t) {
    factor[t] = 0;
    if (mine) {
#pragma unroll
      for (int i = 0; i < 8; ++i) factor[t] += v[t][i] * v[t][i];
    }
  }
  block_sums(factor, 0);
#pragma unroll
  for (int t = 0; t < kT; ++t) factor[t] = rsqrtf(__fdividef(factor[t], static_cast<float>(cols)) + eps);
}

// RMS-normed rows of at most 8 · kStepThreads columns. With `scores`, on the way: the score of the expert that is this
// block's, and the arrival at the barrier behind which all scores are known; x then also in the experts' order.
template <int kT>
__device__ __forceinline__ void stage_normed(StepStage stage, int parity) {
  const StepLayer& layer = step.s.layers[parity];
  const bool scores = stage == StepStage::kSharedUp;
  const StepMat& m = mat_of(stage, parity);
  const int cols = m.cols, row_stride = x_stride(cols), u = static_cast<int>(threadIdx.x), T = step.s.p.T;
  const float* from = stage == StepStage::kQuery ? step.s.p.low : step.s.p.stream;
  const float* weight = stage == StepStage::kLow ? layer.input_norm : scores ? layer.post_norm : layer.q_a_norm;
  const float eps = stage == StepStage::kQuery ? step.s.p.latent_eps : step.s.p.eps;
  const bool mine = u < cols / 8, scored = scores && static_cast<int>(blockIdx.x) < layer.n_experts;
  uint4 w[2]{}, router[2]{};
  if (mine) {
    w[0] = load_stream(weight + u * 8), w[1] = load_stream(weight + u * 8 + 4);
    if (scored) {
      const float* row = layer.router + static_cast<std::int64_t>(blockIdx.x) * cols + u * 8;
      router[0] = load_stream(row), router[1] = load_stream(row + 4);
    }
  }
  const float norm[8] = {__uint_as_float(w[0].x), __uint_as_float(w[0].y), __uint_as_float(w[0].z),
                         __uint_as_float(w[0].w), __uint_as_float(w[1].x), __uint_as_float(w[1].y),
                         __uint_as_float(w[1].z), __uint_as_float(w[1].w)};
  grid_wait();
  float v[kT][8] = {};
#pragma unroll
  for (int t = 0; t < kT; ++t) {
    if (mine && t < T) load8(from + t * cols + u * 8, v[t]);
  }
  float factor[kT];
  rms_factors(v, mine, cols, eps, factor);
#pragma unroll
  for (int t = 0; t < kT; ++t) {
#pragma unroll
    for (int i = 0; i < 8; ++i) v[t][i] *= factor[t] * norm[i];
  }
  if (scores && layer.n_experts > 0) {
    const float by[8] = {__uint_as_float(router[0].x), __uint_as_float(router[0].y), __uint_as_float(router[0].z),
                         __uint_as_float(router[0].w), __uint_as_float(router[1].x), __uint_as_float(router[1].y),
                         __uint_as_float(router[1].z), __uint_as_float(router[1].w)};
    float dot[kT] = {};
    if (scored) {
#pragma unroll
      for (int t = 0; t < kT; ++t) {
#pragma unroll
        for (int i = 0; i < 8; ++i) dot[t] = fmaf(v[t][i], by[i], dot[t]);
      }
      block_sums(dot, 1);
      if (u < T) {
        float mine_dot = dot[0];
#pragma unroll
        for (int t = 1; t < kT; ++t) mine_dot = u == t ? dot[t] : mine_dot;
        step.s.p.scores[u * step.s.p.score_stride + blockIdx.x] = __fdividef(1.0F, 1.0F + __expf(-mine_dot));
      }
    }
    grid_arrive();
  }
  const int second = scores ? expert_x_offset(parity) : 0;
  if (mine) {
    const std::uint32_t to = step.s.x + static_cast<std::uint32_t>(u * 16);
#pragma unroll
    for (int t = 0; t < kT; ++t) {
      if (t < T) {
        put_split(in_nibbles(m.format), to + 2 * t * row_stride, row_stride, v[t]);
        if (second != 0) put_split(!in_nibbles(m.format), to + second + 2 * t * row_stride, row_stride, v[t]);
      }
    }
  }
  put_tail(step.s.x, row_stride, second != 0 ? 4 * T : 2 * T, cols);
}

// The answers of the heads that this block's rows of W_UV belong to, from attention's pieces.
__device__ __forceinline__ void stage_latents(int parity) {
  grid_wait();
  const StepWork& w = work_of(StepStage::kValues, parity);
  if (w.rows == 0) return;
  const int lane = threadIdx.x % 32, T = step.s.p.T, first = w.begin / kQkWidth;
  const int heads = w.first_rows < w.rows ? 2 : 1;
  constexpr int kStride = x_stride(kLatentWidth);
  const bool rotated = is_rotated(step.s.p.cache.codec);
#pragma unroll 1
  for (int i = threadIdx.x / 32; i < heads * T; i += kStepWarps) {
    float v[16];
    load_latent(i % T, first + i / T, v);
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

// Waits for the other blocks and stages this stage's x. By all threads; ends with a barrier of the block.
template <int kT>
__device__ __forceinline__ void stage_x(StepStage stage, int parity) {
  const StepLayer& layer = step.s.layers[parity];
  const DecodeStep& p = step.s.p;
  const StepMat& m = mat_of(stage, parity);
  switch (stage) {
    case StepStage::kValues:
      stage_latents(parity);
      break;
    case StepStage::kOut:
      grid_wait();
      put_rows(p.attended, m.cols, p.T, m.cols, in_nibbles(m.format), step.s.x, nullptr);
      break;
    case StepStage::kExpertDown:
    case StepStage::kSharedDown: {
      grid_wait();
      const int slots = layer.n_experts > 0 ? p.T * p.top_k : 0;
      if (slots > 0) put_rows(p.h, p.inner_stride, slots, m.cols, in_nibbles(m.format), step.s.x, step.s.weights);
      const StepMat& shared = layer.mats[static_cast<int>(StepRole::kSharedDown)];
      put_rows(p.h + static_cast<std::int64_t>(slots) * p.inner_stride, p.inner_stride, p.T, shared.cols,
               in_nibbles(shared.format), step.s.x + shared_h_offset(parity), nullptr);
      break;
    }
    default:
      stage_normed<kT>(stage, parity);
      break;
  }
  __syncthreads();
}

}  // namespace glint::cuda
#endif
