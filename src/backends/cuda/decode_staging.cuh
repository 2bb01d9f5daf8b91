#pragma once
// How x comes into shared memory at the beginning of a stage: every block stages all of it for itself, from what the
// blocks wrote in the stage before.

#include "backends/cuda/decode_pieces.cuh"

#if __CUDA_ARCH__ >= 900
namespace glint::cuda {

// F32 rows of other blocks, in one order; a factor for each row. Waits for the other blocks unless that was `waited`.
__device__ __forceinline__ void put_rows(const float* from, int stride, int rows, int cols, XKind kind,
                                         std::uint32_t to, const float* factors, bool waited = false) {
  const int units = cols / 8, row_stride = x_stride(cols), all = rows * units;
  constexpr int kAtOnce = 4;
#pragma unroll 1
  for (int first = threadIdx.x; first < all + static_cast<int>(threadIdx.x); first += kAtOnce * kStepThreads) {
    int row[kAtOnce], unit[kAtOnce];
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      const int j = first + k * kStepThreads;
      row[k] = rows == 1 ? 0 : j / units;
      unit[k] = j - row[k] * units;
    }
    if (!waited) grid_wait();
    waited = true;
    float v[kAtOnce][8] = {}, factor[kAtOnce] = {};
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {  // the loads overlap
      if (first + k * kStepThreads < all) {
        load8(from + row[k] * stride + unit[k] * 8, v[k]);
        factor[k] = factors != nullptr ? factors[row[k]] : 1.0F;
      }
    }
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      const bool mine = first + k * kStepThreads < all;
      if (k > 0 && !__any_sync(0xffffffffU, mine)) break;
#pragma unroll
      for (int c = 0; c < 8; ++c) v[k][c] *= factor[k];
      put_x(kind, to + static_cast<std::uint32_t>(2 * row[k] * row_stride), cols, unit[k], v[k], mine);
    }
  }
  put_tail(kind, to, rows, cols);
}

__device__ __forceinline__ void weights8(const float* from, float (&v)[8]) {
  const uint4 a = load_stream(from), b = load_stream(from + 4);
  v[0] = __uint_as_float(a.x), v[1] = __uint_as_float(a.y), v[2] = __uint_as_float(a.z), v[3] = __uint_as_float(a.w);
  v[4] = __uint_as_float(b.x), v[5] = __uint_as_float(b.y), v[6] = __uint_as_float(b.z), v[7] = __uint_as_float(b.w);
}

// A row that is to be RMS-normed, of at most 8 · kStepThreads columns: times the norm's weights, and its squares; the
// sums of the products are divided by its RMS (norm_factor). Of kSharedUp, on the way: the score of the expert that is
// this block's, which the messenger announces; x then also in the experts' order.
template <class P>
__device__ __forceinline__ void stage_normed(StepStage stage, const LayerView<P>& v) {
  const DecodeStep& p = step.s.p;
  const bool scores = stage == StepStage::kSharedUp && v.routed;
  const StepMat m = v.mat(stage);
  const int cols = m.cols, u = static_cast<int>(threadIdx.x), lane = u % 32, warp = u / 32;
  const float* from = stage == StepStage::kQuery ? p.low : p.stream;
  const float* weight = stage == StepStage::kLow     ? v.at.input_norm
                        : stage == StepStage::kQuery ? v.at.q_a_norm
                                                     : v.at.post_norm;
  const bool mine = u < cols / 8, scored = scores && static_cast<int>(blockIdx.x) < v.at.n_experts;
  float norm[8] = {}, router[8] = {}, x[8] = {};
  if (mine) {
    weights8(weight + u * 8, norm);
    if (scored) weights8(v.at.router + static_cast<std::int64_t>(blockIdx.x) * cols + u * 8, router);
  }
  grid_wait();
  if (mine) load8(from + u * 8, x);
  float squares = 0, dot = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    squares = fmaf(x[i], x[i], squares);
    x[i] *= norm[i];
  }
  if (scored) {
#pragma unroll
    for (int i = 0; i < 8; ++i) dot = fmaf(x[i], router[i], dot);
  }
#pragma unroll
  for (int d = 16; d > 0; d >>= 1) {
    squares += __shfl_xor_sync(0xffffffffU, squares, d);
    if (scored) dot += __shfl_xor_sync(0xffffffffU, dot, d);
  }
  if (lane == 0) {
    step.s.squares[stage == StepStage::kQuery ? 1 : 0][warp] = squares;
    step.s.dots[warp] = dot;
  }
  if (scores) leave_at(Meeting::kScore);
  put_x(x_kind(m.format), step.s.x, cols, u, x, mine);
  put_tail(x_kind(m.format), step.s.x, 1, cols);
  const int second = stage == StepStage::kSharedUp ? expert_x_offset(v) : 0;
  if (second == 0) return;
  const XKind other = x_kind(v.mat(StepStage::kExpertUp).format);
  put_x(other, step.s.x + static_cast<std::uint32_t>(second), cols, u, x, mine);
  put_tail(other, step.s.x + static_cast<std::uint32_t>(second), 1, cols);
}

// Four columns of a lane at a time, 128 columns a warp.
__device__ __forceinline__ void load_piece(int piece, int head, float4 (&part)[4]) {
  const auto* from = reinterpret_cast<const float4*>(step.s.p.partial + piece_row(piece, head) * kLatentWidth);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    part[i] = {};
    if (piece < step.s.context.pieces) part[i] = __ldcg(from + i * 32 + threadIdx.x % 32);
  }
}

// Adds up a head's pieces, as far as they are this warp's. Lane l: columns 128 i + 4 l to 128 i + 4 l + 3.
__device__ __forceinline__ void add_pieces(int head, float (&sum)[16]) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, n = step.s.context.pieces;
  static_assert(kDirectPieces == 64, "two a lane");
  float2 ml[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    ml[i] = {-INFINITY, 0.0F};
    if (lane + 32 * i < n) ml[i] = __ldcg(step.s.p.partial_ml + piece_row(lane + 32 * i, head));
  }
  // So many pieces are on their way at a time, the first ones while the weights are worked out.
  constexpr int kAhead = 4;
  float4 part[kAhead][4];
#pragma unroll
  for (int k = 0; k < kAhead; ++k) load_piece(warp + k * kStepWarps, head, part[k]);
  float top = fmaxf(ml[0].x, ml[1].x);
#pragma unroll
  for (int d = 16; d > 0; d >>= 1) top = fmaxf(top, __shfl_xor_sync(0xffffffffU, top, d));
  float weight[2];  // of this lane's pieces
#pragma unroll
  for (int i = 0; i < 2; ++i) weight[i] = exp2f(ml[i].x - top);
  const float all = warp_sum(weight[0] * ml[0].y + weight[1] * ml[1].y);
#pragma unroll
  for (int i = 0; i < 2; ++i) weight[i] = __fdividef(weight[i], all);
#pragma unroll
  for (int i = 0; i < 16; ++i) sum[i] = 0;
#pragma unroll
  for (int k = 0; k < kDirectPieces / kStepWarps; ++k) {
    if (k > 0 && k * kStepWarps >= n) break;
    const float w = __shfl_sync(0xffffffffU, weight[k * kStepWarps / 32], (warp + k * kStepWarps) % 32);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float4 f = part[k % kAhead][i];
      sum[4 * i] = fmaf(w, f.x, sum[4 * i]), sum[4 * i + 1] = fmaf(w, f.y, sum[4 * i + 1]);
      sum[4 * i + 2] = fmaf(w, f.z, sum[4 * i + 2]), sum[4 * i + 3] = fmaf(w, f.w, sum[4 * i + 3]);
    }
    load_piece(warp + (k + kAhead) * kStepWarps, head, part[k % kAhead]);
  }
}

// The answer of the head that this block's rows of W_UV belong to: from attention's pieces, or merged before.
template <class P>
__device__ __forceinline__ void stage_latents(const LayerView<P>& v) {
  const StepWork w = v.work(StepStage::kValues);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, head = w.begin / kQkWidth;
  const int rows = merges_pieces<P>() ? 0 : min(step.s.context.pieces, kStepWarps);  // warps that have pieces
  const bool rotated = is_rotated(cache_codec<P>());
  constexpr int kStride = x_stride(kLatentWidth), kSumBytes = kLatentWidth * 4;
  const std::uint32_t sums = step.s.x + 2 * kStride;  // [warp][512]
  grid_wait();
  if (w.rows == 0) return;
  if (warp < rows) {
    float sum[16];
    add_pieces(head, sum);
    const std::uint32_t to = sums + static_cast<std::uint32_t>(warp * kSumBytes + lane * 16);
#pragma unroll
    for (int k = 0; k < 4; ++k)
      sts128(to + k * 512, {__float_as_uint(sum[4 * k]), __float_as_uint(sum[4 * k + 1]),
                            __float_as_uint(sum[4 * k + 2]), __float_as_uint(sum[4 * k + 3])});
  }
  step_sync();
  // Two columns a thread.
  static_assert(2 * kStepThreads == kLatentWidth);
  float2 x{};
  if (rows == 0) x = __ldcg(reinterpret_cast<const float2*>(step.s.p.latent + head * kLatentWidth) + threadIdx.x);
  const std::uint32_t from = sums + threadIdx.x * 8;
#pragma unroll
  for (int row = 0; row < kStepWarps; ++row) {
    if (row >= rows) break;
    const float2 y = lds_pair(from + static_cast<std::uint32_t>(row * kSumBytes));
    x.x += y.x, x.y += y.y;
  }
  if (!rotated) {
    const std::uint32_t to = step.s.x + threadIdx.x * 4, high = pack_bf16(x.x, x.y);
    sts32(to, high);
    sts32(to + kStride, pack_bf16(x.x - bf16_low(high), x.y - bf16_high(high)));
    return;
  }
  // Under H: of the columns 16 lane … a warp takes two.
  sts64(from, __float_as_uint(x.x), __float_as_uint(x.y));
  step_sync();
  const int column = lane * 16 + warp * 2;
  const float2 y = lds_pair(sums + static_cast<std::uint32_t>(column * 4));
  float both[2] = {y.x, y.y};
  warp_hadamard(both, lane);
  const std::uint32_t to = step.s.x + static_cast<std::uint32_t>(column * 2), high = pack_bf16(both[0], both[1]);
  sts32(to, high);
  sts32(to + kStride, pack_bf16(both[0] - bf16_low(high), both[1] - bf16_high(high)));
}

// Waits for the other blocks and stages this stage's x. By the working warps; ends with a barrier of theirs.
template <class P>
__device__ __forceinline__ void stage_x(StepStage stage, const LayerView<P>& v) {
  const DecodeStep& p = step.s.p;
  const StepMat m = v.mat(stage);
  switch (stage) {
    case StepStage::kValues:
      stage_latents(v);
      break;
    case StepStage::kOut:
      put_rows(p.attended, m.cols, 1, m.cols, x_kind(m.format), step.s.x, nullptr);
      break;
    case StepStage::kExpertDown:
    case StepStage::kSharedDown: {
      const int items = v.routed ? v.top_k() : 0;
      const StepMat shared = v.mat(StepRole::kSharedDown);
      const bool alike = items == 0 || (x_kind(shared.format) == x_kind(m.format) && shared.cols == m.cols);
      if (items > 0) {
        put_rows(p.h, p.inner_stride, alike ? items + 1 : items, m.cols, x_kind(m.format), step.s.x, step.s.weights);
        if (alike) break;
      }
      put_rows(p.h + static_cast<std::int64_t>(items) * p.inner_stride, p.inner_stride, 1, shared.cols,
               x_kind(shared.format), step.s.x + static_cast<std::uint32_t>(shared_h_offset(v)), nullptr, items > 0);
      break;
    }
    default:
      stage_normed(stage, v);
      break;
  }
  step_sync();
}

}  // namespace glint::cuda
#endif
