// The router, the grouping of its choices by expert, and the weighted sum of the experts' answers.

#include "backends/cuda/choose_experts.cuh"

namespace glint::cuda {
namespace {

constexpr int kWarps = 8;

// Block (eight experts, kRouteRows rows): a warp an expert, in fp32. The last block to finish a group of rows chooses:
// a warp a row.
__global__ void route_kernel(const float* x, const float* w, const float* bias, int rows, int hidden, int n_experts,
                             int top_k, bool normalize, float scale, std::int32_t* ids, float* weights, float* scores,
                             unsigned* counters) {
  __shared__ bool last;
  pdl_launch();
  pdl_wait();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int expert = blockIdx.x * kWarps + warp, first = blockIdx.y * kRouteRows;
  if (expert < n_experts) {
    const float* we = w + static_cast<std::int64_t>(expert) * hidden;
    float sum[kRouteRows] = {};
    if (hidden % 4 == 0) {
      for (int c = 4 * lane; c < hidden; c += 128) {
        const float4 a = *reinterpret_cast<const float4*>(we + c);
#pragma unroll
        for (int t = 0; t < kRouteRows; ++t) {
          if (first + t >= rows) break;
          const float4 b = *reinterpret_cast<const float4*>(x + static_cast<std::int64_t>(first + t) * hidden + c);
          sum[t] += a.x * b.x + a.y * b.y + a.z * b.z + a.w * b.w;
        }
      }
    } else {
      for (int c = lane; c < hidden; c += 32) {
#pragma unroll
        for (int t = 0; t < kRouteRows; ++t) {
          if (first + t < rows) sum[t] += we[c] * x[static_cast<std::int64_t>(first + t) * hidden + c];
        }
      }
    }
#pragma unroll
    for (int t = 0; t < kRouteRows; ++t) {
      const float s = warp_sum(sum[t]);
      if (lane == 0 && first + t < rows)
        scores[static_cast<std::int64_t>(first + t) * n_experts + expert] = 1.0F / (1.0F + expf(-s));
    }
  }
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    last = atomicAdd(counters + blockIdx.y, 1U) == gridDim.x - 1;
    if (last) counters[blockIdx.y] = 0;  // for the next call
  }
  __syncthreads();
  if (!last || warp >= kRouteRows || first + warp >= rows) return;
  __threadfence();

  constexpr int kPerLane = kMaxExperts / 32;
  const std::int64_t row = first + warp;
  float score[kPerLane];
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int e = lane + 32 * i;
    score[i] = e < n_experts ? __ldcg(scores + row * n_experts + e) : 0.0F;
  }
  choose_experts({bias, n_experts, top_k, normalize, scale, ids, weights}, row, score);
}

// Block (row, 256 threads), kColumns columns a thread: the row's experts in ascending order, then the shared one.
template <int kColumns>
__global__ void moe_sum_kernel(const std::int32_t* ids, const float* weights, const float* y, int T, int K, int hidden,
                               bool has_shared, float* out) {
  pdl_launch();
  pdl_wait();
  const std::int64_t row = blockIdx.x;
  const int c = (blockIdx.y * blockDim.x + threadIdx.x) * kColumns;
  if (c >= hidden) return;
  float sum[kColumns] = {};
  const auto add = [&](float weight, std::int64_t slot) {
    const float* from = y + slot * hidden + c;
    if constexpr (kColumns == 4) {
      const float4 v = *reinterpret_cast<const float4*>(from);
      sum[0] += weight * v.x, sum[1] += weight * v.y, sum[2] += weight * v.z, sum[3] += weight * v.w;
    } else {
      sum[0] += weight * *from;
    }
  };
  int done = -1;  // experts up to here are added
  for (int k = 0; k < K; ++k) {
    int next = 1 << 30, at = -1;
    for (int i = 0; i < K; ++i) {
      const int id = ids[row * K + i];
      if (id > done && id < next) next = id, at = i;
    }
    if (at < 0) break;
    add(weights[row * K + at], row * K + at);
    done = next;
  }
  if (has_shared) add(1, static_cast<std::int64_t>(T) * K + row);
  if constexpr (kColumns == 4) {
    *reinterpret_cast<float4*>(out + row * hidden + c) = {sum[0], sum[1], sum[2], sum[3]};
  } else {
    out[row * hidden + c] = sum[0];
  }
}

}  // namespace

void route(const Launch& l, const float* x, const float* w, const float* bias, std::int64_t rows, std::int64_t hidden,
           int n_experts, int top_k, bool normalize, float scale, std::int32_t* ids, float* weights, float* scores,
           unsigned* counters) {
  if (rows == 0) return;
  launch(l, route_kernel, dim3(ceil_div(n_experts, kWarps), ceil_div(rows, kRouteRows)), dim3(32 * kWarps), 0, x, w,
         bias, static_cast<int>(rows), static_cast<int>(hidden), n_experts, top_k, normalize, scale, ids, weights,
         scores, counters);
}

void moe_sum(const Launch& l, const std::int32_t* ids, const float* weights, const float* y, std::int64_t T, int K,
             std::int64_t hidden, bool has_shared, float* out) {
  if (T == 0) return;
  const auto run = [&](auto* kernel, int columns) {
    launch(l, kernel, dim3(static_cast<unsigned>(T), ceil_div(hidden, 256 * columns)), dim3(256), 0, ids, weights, y,
           static_cast<int>(T), K, static_cast<int>(hidden), has_shared, out);
  };
  if (hidden % 4 == 0 && reinterpret_cast<std::uintptr_t>(out) % 16 == 0) {
    run(moe_sum_kernel<4>, 4);
  } else {
    run(moe_sum_kernel<1>, 1);
  }
}

}  // namespace glint::cuda
