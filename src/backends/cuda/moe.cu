// The router, the grouping of its choices by expert, and the weighted sum of the experts' answers.

#include "backends/cuda/common.cuh"

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
  float score[kPerLane], choice[kPerLane];
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int e = lane + 32 * i;
    score[i] = e < n_experts ? __ldcg(scores + row * n_experts + e) : 0.0F;
    choice[i] = e < n_experts ? score[i] + bias[e] : -INFINITY;
    if (!(choice[i] > -3e38F) && e < n_experts) choice[i] = -3e38F;  // NaN too: every row gets experts that exist
  }
  float total = 0, mine = 0;
  int my_id = 0;
  for (int k = 0; k < top_k; ++k) {
    float best = -INFINITY, best_score = 0;
    int id = 1 << 30;
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      if (choice[i] > best) best = choice[i], best_score = score[i], id = lane + 32 * i;
    }
#pragma unroll
    for (int d = 16; d > 0; d >>= 1) {
      const float other = __shfl_xor_sync(0xffffffffU, best, d),
                  other_score = __shfl_xor_sync(0xffffffffU, best_score, d);
      const int other_id = __shfl_xor_sync(0xffffffffU, id, d);
      if (other > best || (other == best && other_id < id)) best = other, best_score = other_score, id = other_id;
    }
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      if (lane + 32 * i == id) choice[i] = -INFINITY;
    }
    total += best_score;
    if (lane == k) mine = best_score, my_id = id;
  }
  if (lane < top_k) {
    ids[row * top_k + lane] = my_id;
    weights[row * top_k + lane] = (normalize ? mine / (total + 1e-20F) : mine) * scale;
  }
}

// One block sorts the slots by expert, stably: each warp has a run of slots; how many of an expert the warps before it
// have, and the experts before this one, gives its places.
constexpr int kGroupWarps = 32;
__global__ void __launch_bounds__(32 * kGroupWarps)
    group_kernel(const std::int32_t* ids, int slots, int shared_rows, int n_experts, int item_rows,
                 const __grid_constant__ GroupBuffers out) {
  extern __shared__ int next[];  // [kGroupWarps][n_experts]: counts, then next places
  __shared__ int count[kMaxExperts], start[kMaxExperts], first_item[kMaxExperts];
  pdl_launch();
  pdl_wait();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int run = (slots + 32 * kGroupWarps - 1) / (32 * kGroupWarps) * 32, begin = warp * run;
  int* mine = next + warp * n_experts;
  for (int e = lane; e < n_experts; e += 32) mine[e] = 0;
  __syncwarp();
  const unsigned before = (1U << lane) - 1U;
  for (int i = begin; i < min(begin + run, slots); i += 32) {
    const int id = i + lane < slots ? ids[i + lane] : -1;
    const unsigned same = __match_any_sync(0xffffffffU, id);
    if (id >= 0 && (same & before) == 0) mine[id] += __popc(same);
    __syncwarp();
  }
  __syncthreads();
  for (int e = threadIdx.x; e < n_experts; e += blockDim.x) {
    int total = 0;
    for (int w = 0; w < kGroupWarps; ++w) {
      const int n = next[w * n_experts + e];
      next[w * n_experts + e] = total;
      total += n;
    }
    count[e] = total;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    int place = 0, item = 0;
    for (int e = 0; e < n_experts; ++e) {
      start[e] = place;
      first_item[e] = item;
      place += count[e];
      item += (count[e] + item_rows - 1) / item_rows;
    }
    *out.n_items = item;
  }
  __syncthreads();
  for (int e = lane; e < n_experts; e += 32) mine[e] += start[e];
  __syncwarp();
  for (int i = begin; i < min(begin + run, slots); i += 32) {
    const int id = i + lane < slots ? ids[i + lane] : -1;
    const unsigned same = __match_any_sync(0xffffffffU, id);
    const int first = id >= 0 ? mine[id] : 0;
    __syncwarp();
    if (id >= 0) {
      const int place = first + __popc(same & before);
      out.order[place] = i + lane;
      out.places[i + lane] = place;
      if ((same & before) == 0) mine[id] = first + __popc(same);
    }
    __syncwarp();
  }
  // An expert's items are of like size, in whole thirty-twos where they are large.
  for (int e = threadIdx.x; e < n_experts; e += blockDim.x) {
    if (count[e] == 0) continue;
    const int n = (count[e] + item_rows - 1) / item_rows, whole = item_rows > 64 ? 32 : 8;
    const int size = min(item_rows, ((count[e] + n - 1) / n + whole - 1) / whole * whole);
    for (int i = 0; i < n; ++i)
      out.items[first_item[e] + i] = {e, start[e] + min(i * size, count[e]), max(0, min(size, count[e] - i * size)), 0};
  }
  for (int i = threadIdx.x; i < shared_rows; i += blockDim.x) out.order[slots + i] = slots + i;
}

// Block (row, 1024 columns): the row's experts in ascending order, then the shared one.
__global__ void moe_sum_kernel(const __grid_constant__ MoeSum s) {
  pdl_launch();
  pdl_wait();
  const std::int64_t row = blockIdx.x;
  const int c = 4 * (blockIdx.y * blockDim.x + threadIdx.x), hidden = static_cast<int>(s.hidden);
  if (c >= hidden) return;
  const bool whole = hidden % 4 == 0;
  float sum[4] = {};
  auto add = [&](std::int64_t from, float weight) {
    const float* y = s.y + from * hidden + c;
    if (whole) {
      const float4 v = *reinterpret_cast<const float4*>(y);
      sum[0] += weight * v.x, sum[1] += weight * v.y, sum[2] += weight * v.z, sum[3] += weight * v.w;
    } else {
      for (int i = 0; i < 4 && c + i < hidden; ++i) sum[i] += weight * y[i];
    }
  };
  int done = -1;  // experts up to here are added
  for (int k = 0; k < s.K; ++k) {
    int next = 1 << 30, at = -1;
    for (int i = 0; i < s.K; ++i) {
      const int id = s.ids[row * s.K + i];
      if (id > done && id < next) next = id, at = i;
    }
    if (at < 0) break;
    const std::int64_t slot = row * s.K + at;
    add(s.places != nullptr ? s.places[slot] : slot, s.weights[slot]);
    done = next;
  }
  if (s.has_shared) add(s.T * s.K + row, 1.0F);
  float* to = s.out + row * hidden + c;
  if (whole) {
    *reinterpret_cast<float4*>(to) = {sum[0], sum[1], sum[2], sum[3]};
  } else {
    for (int i = 0; i < 4 && c + i < hidden; ++i) to[i] = sum[i];
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

void group_slots(const Launch& l, const std::int32_t* ids, std::int64_t slots, std::int64_t shared_rows, int n_experts,
                 int item_rows, const GroupBuffers& out) {
  launch(l, group_kernel, dim3(1), dim3(32 * kGroupWarps), static_cast<std::size_t>(kGroupWarps * n_experts) * 4, ids,
         static_cast<int>(slots), static_cast<int>(shared_rows), n_experts, item_rows, out);
}

void moe_sum(const Launch& l, const MoeSum& s) {
  if (s.T == 0) return;
  launch(l, moe_sum_kernel, dim3(static_cast<unsigned>(s.T), ceil_div(s.hidden, 1024)), dim3(256), 0, s);
}

}  // namespace glint::cuda
