// Products of any shape and alignment, in fp32, for what the tensor-core kernels do not take. Not fast.

#include "backends/cuda/common.cuh"

namespace glint::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kTokens = 8;

// A warp an output row of W, eight rows of x at a time. Lane i sums columns i, i + 32 …, then the lanes are added: the
// order does not depend on the rows.
__global__ void linear_any_kernel(MatShape m, MatPtr w, const __grid_constant__ Act x, float* out,
                                  std::int64_t out_stride, int rows, std::int64_t valid) {
  pdl_launch();
  pdl_wait();
  const int o = blockIdx.x * kWarps + threadIdx.x / 32, lane = threadIdx.x % 32;
  const int first = blockIdx.y * kTokens;
  if (o >= m.rows) return;
  float sum[kTokens] = {};
  for (int c = lane; c < m.cols; c += 32) {
    const float v = weight_at(m, w, o, c);
#pragma unroll
    for (int t = 0; t < kTokens; ++t) {
      if (first + t < rows) sum[t] += v * act_at(x, first + t, c);
    }
  }
#pragma unroll
  for (int t = 0; t < kTokens; ++t) {
    const float s = warp_sum(sum[t]);
    if (lane == 0 && first + t < rows) out[(first + t) * out_stride + o] = o < valid ? s : -INFINITY;
  }
}

// Slot → its expert (negative: unused) and its token.
struct Slot {
  int expert, token;
  bool shared;
};
__device__ Slot slot_of(const MoeAny& m, int slot) {
  const int routed = m.T * m.K;
  if (slot < routed) return {m.ids[slot], slot / m.K, false};
  return {kMaxExperts, slot - routed, true};
}

__global__ void moe_any_up_kernel(const __grid_constant__ MoeAny m, const __grid_constant__ ExpertTable gate,
                                  const __grid_constant__ ExpertTable up, const float* x, __nv_bfloat16* h,
                                  std::int64_t h_stride) {
  pdl_launch();
  pdl_wait();
  const Slot s = slot_of(m, blockIdx.y);
  const MatShape &shape = s.shared ? m.shared_gate : m.gate, &up_shape = s.shared ? m.shared_up : m.up;
  const int o = blockIdx.x * kWarps + threadIdx.x / 32, lane = threadIdx.x % 32;
  if (s.expert < 0 || (m.only >= 0 && s.expert != m.only) || o >= shape.rows) return;
  const float* row = x + static_cast<std::int64_t>(s.token) * m.hidden;
  float g = 0, u = 0;
  for (int c = lane; c < shape.cols; c += 32) {
    g += weight_at(shape, gate.at[s.expert], o, c) * row[c];
    u += weight_at(up_shape, up.at[s.expert], o, c) * row[c];
  }
  g = warp_sum(g);
  u = warp_sum(u);
  if (lane == 0) h[blockIdx.y * h_stride + o] = __float2bfloat16_rn(silu(g) * u);
}

__global__ void moe_any_down_kernel(const __grid_constant__ MoeAny m, const __grid_constant__ ExpertTable down,
                                    const __nv_bfloat16* h, std::int64_t h_stride, float* y) {
  pdl_launch();
  pdl_wait();
  const Slot s = slot_of(m, blockIdx.y);
  const MatShape& shape = s.shared ? m.shared_down : m.down;
  const int o = blockIdx.x * kWarps + threadIdx.x / 32, lane = threadIdx.x % 32;
  if (s.expert < 0 || (m.only >= 0 && s.expert != m.only) || o >= shape.rows) return;
  const __nv_bfloat16* row = h + blockIdx.y * h_stride;
  float sum = 0;
  for (int c = lane; c < shape.cols; c += 32)
    sum += weight_at(shape, down.at[s.expert], o, c) * __bfloat162float(row[c]);
  sum = warp_sum(sum);
  if (lane == 0) y[static_cast<std::int64_t>(blockIdx.y) * m.hidden + o] = sum;
}

}  // namespace

void linear_any(const Launch& l, const Mat& w, const Act& x, float* out, std::int64_t out_stride, std::int64_t rows,
                std::int64_t valid) {
  constexpr std::int64_t kPart = kMaxGridY * kTokens;
  for (std::int64_t r = 0; r < rows; r += kPart) {
    const std::int64_t n = std::min(rows - r, kPart);
    Act part = x;
    if (x.rows_index != nullptr) {
      part.rows_index += r;
    } else {
      part.data = static_cast<const char*>(x.data) + r * x.stride * (x.bf16 ? 2 : 4);
    }
    launch(l, linear_any_kernel, dim3(ceil_div(w.shape.rows, kWarps), ceil_div(n, kTokens)), dim3(32 * kWarps), 0,
           w.shape, w.at, part, out + r * out_stride, out_stride, static_cast<int>(n), valid);
  }
}

// The slots of a call must fit the grid: callers cut T.
void moe_any_up(const Launch& l, const MoeAny& m, const ExpertTable& gate, const ExpertTable& up, const float* x,
                void* h, std::int64_t h_stride) {
  const int widest = std::max(m.inner, m.shared_inner);
  const int slots = m.T * m.K + (m.shared_inner > 0 ? m.T : 0);
  launch(l, moe_any_up_kernel, dim3(ceil_div(widest, kWarps), static_cast<unsigned>(slots)), dim3(32 * kWarps), 0, m,
         gate, up, x, static_cast<__nv_bfloat16*>(h), h_stride);
}

void moe_any_down(const Launch& l, const MoeAny& m, const ExpertTable& down, const void* h, std::int64_t h_stride,
                  float* y) {
  const int slots = m.T * m.K + (m.shared_inner > 0 ? m.T : 0);
  launch(l, moe_any_down_kernel, dim3(ceil_div(m.hidden, kWarps), static_cast<unsigned>(slots)), dim3(32 * kWarps), 0,
         m, down, static_cast<const __nv_bfloat16*>(h), h_stride, y);
}

}  // namespace glint::cuda
