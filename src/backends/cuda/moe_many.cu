// The router and the grouping of its choices by expert, for many rows: what moe.cu does, spread over the device.

#include "backends/cuda/choose_experts.cuh"

namespace glint::cuda {
namespace {

// ---- router ---------------------------------------------------------------------------------------------------------

constexpr int kTile = 64, kStep = 16, kThreads = 256;  // rows and experts of a block; columns a step
constexpr int kStride = kTile + 4;

// Block (64 rows, 64 experts, part of the columns): fp32, a thread 4 × 4. partial[part][row][expert].
__global__ void __launch_bounds__(kThreads)
    scores_kernel(const float* x, const float* w, int rows, int hidden, int n_experts, float* partial) {
  __shared__ __align__(16) float xs[2][kStep][kStride], ws[2][kStep][kStride];
  pdl_launch();
  const int thread = threadIdx.x, part = hidden / static_cast<int>(gridDim.z),
            column = blockIdx.z * part + thread % 4 * 4;
  const int my_row = thread / 4, row = blockIdx.x * kTile + my_row, expert = blockIdx.y * kTile + my_row;
  const float4 zero{};
  const auto* w_from = reinterpret_cast<const float4*>(w + static_cast<std::int64_t>(expert) * hidden + column);
  const auto* x_from = reinterpret_cast<const float4*>(x + static_cast<std::int64_t>(row) * hidden + column);
  pdl_wait();
  float4 wv = expert < n_experts ? *w_from : zero, xv = row < rows ? *x_from : zero;
  float sum[4][4] = {};
  const int y = thread / 16 * 4, e = thread % 16 * 4;
  for (int step = 0; step < part / kStep; ++step) {
    float(*xt)[kStride] = xs[step % 2], (*wt)[kStride] = ws[step % 2];
    const int k = thread % 4 * 4;
    xt[k][my_row] = xv.x, xt[k + 1][my_row] = xv.y, xt[k + 2][my_row] = xv.z, xt[k + 3][my_row] = xv.w;
    wt[k][my_row] = wv.x, wt[k + 1][my_row] = wv.y, wt[k + 2][my_row] = wv.z, wt[k + 3][my_row] = wv.w;
    __syncthreads();  // the other buffer's readers have passed the barrier before
    if (step + 1 < part / kStep) {
      if (expert < n_experts) wv = w_from[(step + 1) * (kStep / 4)];
      if (row < rows) xv = x_from[(step + 1) * (kStep / 4)];
    }
#pragma unroll
    for (int c = 0; c < kStep; ++c) {
      const float4 a = *reinterpret_cast<const float4*>(&xt[c][y]), b = *reinterpret_cast<const float4*>(&wt[c][e]);
      const float av[4] = {a.x, a.y, a.z, a.w}, bv[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) sum[i][j] = fmaf(av[i], bv[j], sum[i][j]);
      }
    }
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const std::int64_t r = blockIdx.x * kTile + y + i;
    float* to = partial + (static_cast<std::int64_t>(blockIdx.z) * rows + r) * n_experts;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int o = blockIdx.y * kTile + e + j;
      if (r < rows && o < n_experts) to[o] = sum[i][j];
    }
  }
}

__device__ __forceinline__ float sigmoid(float x) { return 1.0F / (1.0F + expf(-x)); }

// A warp a row.
__global__ void __launch_bounds__(kThreads)
    choose_kernel(const float* partial, int parts, int rows, const __grid_constant__ Choice c) {
  pdl_launch();
  pdl_wait();
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
  if (row >= rows) return;
  float score[kMaxExperts / 32];
#pragma unroll
  for (int i = 0; i < kMaxExperts / 32; ++i) {
    const int e = threadIdx.x % 32 + 32 * i;
    float s = 0;
    for (int part = 0; part < parts && e < c.n_experts; ++part)
      s += partial[(static_cast<std::int64_t>(part) * rows + row) * c.n_experts + e];
    score[i] = e < c.n_experts ? sigmoid(s) : 0.0F;
  }
  choose_experts(c, row, score);
}

// A block a row, where there are few rows and many parts: a warp adds some parts, the first warp what they have.
__global__ void __launch_bounds__(kThreads)
    choose_by_block_kernel(const float* partial, int parts, int rows, const __grid_constant__ Choice c) {
  constexpr int kWarps = kThreads / 32, kEach = kRouteMostParts / kWarps;
  __shared__ float sums[kWarps][kMaxExperts];
  pdl_launch();
  pdl_wait();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const std::int64_t row = blockIdx.x;
  float score[kMaxExperts / 32];
#pragma unroll
  for (int i = 0; i < kMaxExperts / 32; ++i) {
    const int e = lane + 32 * i;
    float v[kEach], s = 0;
#pragma unroll
    for (int k = 0; k < kEach; ++k) {
      const int part = warp * kEach + k;
      v[k] = e < c.n_experts && part < parts ? partial[(static_cast<std::int64_t>(part) * rows + row) * c.n_experts + e]
                                             : 0.0F;
    }
#pragma unroll
    for (int k = 0; k < kEach; ++k) s += v[k];
    sums[warp][e] = s;
  }
  __syncthreads();
  if (warp != 0) return;
#pragma unroll
  for (int i = 0; i < kMaxExperts / 32; ++i) {
    const int e = lane + 32 * i;
    float s = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) s += sums[w][e];
    score[i] = e < c.n_experts ? sigmoid(s) : 0.0F;
  }
  choose_experts(c, row, score);
}

// ---- grouping -------------------------------------------------------------------------------------------------------

__global__ void __launch_bounds__(kGroupSlots)
    count_kernel(const std::int32_t* ids, int slots, int n_experts, std::int32_t* counts) {
  __shared__ int count[kMaxExperts];
  pdl_launch();
  pdl_wait();
  if (threadIdx.x < kMaxExperts) count[threadIdx.x] = 0;
  __syncthreads();
  const int i = blockIdx.x * kGroupSlots + threadIdx.x;
  if (i < slots && ids[i] >= 0) atomicAdd(count + ids[i], 1);
  __syncthreads();
  if (threadIdx.x < n_experts) counts[blockIdx.x * n_experts + threadIdx.x] = count[threadIdx.x];
}

// The experts' first places and items, from their counts: one warp.
__device__ __forceinline__ void start_experts(const int* count, int n_experts, int item_rows, int* start,
                                              int* first_item, std::int32_t* n_items) {
  constexpr int kEach = kMaxExperts / 32;
  const int lane = threadIdx.x % 32;
  int places = 0, items = 0;
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int e = lane * kEach + i, n = e < n_experts ? count[e] : 0;
    places += n;
    items += (n + item_rows - 1) / item_rows;
  }
  int place = places, item = items;
#pragma unroll
  for (int d = 1; d < 32; d *= 2) {
    const int p = __shfl_up_sync(0xffffffffU, place, d), q = __shfl_up_sync(0xffffffffU, item, d);
    if (lane >= d) place += p, item += q;
  }
  if (lane == 31) *n_items = item;
  place -= places, item -= items;
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int e = lane * kEach + i;
    if (e >= n_experts) break;
    start[e] = place;
    first_item[e] = item;
    place += count[e];
    item += (count[e] + item_rows - 1) / item_rows;
  }
}

// A block places its own slots behind those of the blocks before, in order: the sort is stable. The first writes items.
__global__ void __launch_bounds__(kGroupSlots)
    place_kernel(const std::int32_t* ids, int slots, int shared_rows, int n_experts, int item_rows,
                 const std::int32_t* counts, const __grid_constant__ GroupBuffers out) {
  constexpr int kWarps = kGroupSlots / 32;
  __shared__ int start[kMaxExperts], count[kMaxExperts], first_item[kMaxExperts], before[kMaxExperts];
  __shared__ int of_warp[kWarps][kMaxExperts];
  __shared__ int n_items;
  pdl_launch();
  const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
  for (int i = thread; i < kWarps * kMaxExperts; i += kGroupSlots) of_warp[i / kMaxExperts][i % kMaxExperts] = 0;
  __syncthreads();
  pdl_wait();
  const int i = blockIdx.x * kGroupSlots + thread, expert = i < slots ? ids[i] : -1;
  const unsigned same = __match_any_sync(0xffffffffU, expert);
  const int rank = __popc(same & ((1U << lane) - 1U));
  if (expert >= 0 && rank == 0) of_warp[warp][expert] = __popc(same);
  __syncthreads();
  if (thread < n_experts) {
    int n = 0;
#pragma unroll 8
    for (int w = 0; w < kWarps; ++w) {
      const int more = of_warp[w][thread];
      of_warp[w][thread] = n;
      n += more;
    }
    int earlier = 0, all = 0;
    for (int b = 0; b < static_cast<int>(gridDim.x) && gridDim.x > 1; ++b) {
      const int of_block = counts[b * n_experts + thread];
      if (b < static_cast<int>(blockIdx.x)) earlier += of_block;
      all += of_block;
    }
    count[thread] = gridDim.x > 1 ? all : n;
    before[thread] = earlier;
  }
  __syncthreads();
  if (warp == 0) start_experts(count, n_experts, item_rows, start, first_item, &n_items);
  __syncthreads();
  if (expert >= 0) out.order[start[expert] + before[expert] + of_warp[warp][expert] + rank] = i;
  for (int k = i; k < shared_rows; k += static_cast<int>(gridDim.x) * kGroupSlots) out.order[slots + k] = slots + k;
  if (blockIdx.x != 0) return;
  if (thread == 0) *out.n_items = n_items;
  for (int e = warp; e < n_experts; e += kWarps) {
    for (int k = lane; k * item_rows < count[e]; k += 32)
      out.items[first_item[e] + k] = {e, start[e] + k * item_rows, min(item_rows, count[e] - k * item_rows), 0};
  }
}

// ---- sum ------------------------------------------------------------------------------------------------------------

__device__ __forceinline__ void add_unit(float (&sum)[8], float weight, uint4 v) {
  const std::uint32_t w[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    sum[2 * i] = fmaf(weight, bf16_low(w[i]), sum[2 * i]);
    sum[2 * i + 1] = fmaf(weight, bf16_high(w[i]), sum[2 * i + 1]);
  }
}

// Block a row, eight columns a thread: the row's experts in ascending order, then the shared one.
__global__ void __launch_bounds__(kThreads) sum_kernel(const __grid_constant__ SumMany s) {
  pdl_launch();
  pdl_wait();
  const std::int64_t row = blockIdx.x;
  const int units = static_cast<int>(s.hidden / 8);
  const auto* y = static_cast<const uint4*>(s.y);
  for (int u = threadIdx.x; u < units; u += kThreads) {
    float sum[8] = {};
    int done = -1;  // experts up to here are added
    for (int k = 0; k < s.K; ++k) {
      int next = 1 << 30, at = -1;
      for (int i = 0; i < s.K; ++i) {
        const int id = s.ids[row * s.K + i];
        if (id > done && id < next) next = id, at = i;
      }
      if (at < 0) break;
      add_unit(sum, s.weights[row * s.K + at], y[(row * s.K + at) * units + u]);
      done = next;
    }
    if (s.has_shared) add_unit(sum, 1, y[(s.T * s.K + row) * units + u]);
    auto* to = reinterpret_cast<float4*>(s.out + row * s.hidden) + 2 * u;
    to[0] = {sum[0], sum[1], sum[2], sum[3]};
    to[1] = {sum[4], sum[5], sum[6], sum[7]};
  }
}

}  // namespace

// Few tiles of rows leave the device idle unless the columns are cut into more parts: 256 rows are four tiles.
int route_parts(std::int64_t rows, std::int64_t hidden) {
  if (rows <= kRouteFewRows) return 0;
  int parts = rows > kRouteSomeRows ? kRouteLeastParts : kRouteMostParts;
  while (parts >= kRouteLeastParts && hidden % (kStep * parts) != 0) parts /= 2;
  return parts >= kRouteLeastParts ? parts : 0;
}

void route_many(const Launch& l, const RouteMany& r) {
  const Choice c{.bias = r.bias,
                 .n_experts = r.n_experts,
                 .top_k = r.top_k,
                 .normalize = r.normalize,
                 .scale = r.scale,
                 .ids = r.ids,
                 .weights = r.weights};
  const auto rows = static_cast<int>(r.rows);
  launch(l, scores_kernel, dim3(ceil_div(r.rows, kTile), ceil_div(r.n_experts, kTile), static_cast<unsigned>(r.parts)),
         dim3(kThreads), 0, r.x, r.w, rows, static_cast<int>(r.hidden), r.n_experts, r.partial);
  if (r.rows <= kRouteSomeRows) {
    launch(l, choose_by_block_kernel, dim3(static_cast<unsigned>(rows)), dim3(kThreads), 0, r.partial, r.parts, rows,
           c);
  } else {
    launch(l, choose_kernel, dim3(ceil_div(r.rows, kThreads / 32)), dim3(kThreads), 0, r.partial, r.parts, rows, c);
  }
}

void group_slots(const Launch& l, const GroupSlots& g) {
  const dim3 grid(ceil_div(g.slots, kGroupSlots)), block(kGroupSlots);
  const auto slots = static_cast<int>(g.slots);
  if (g.slots > kGroupSlots) launch(l, count_kernel, grid, block, 0, g.ids, slots, g.n_experts, g.counts);
  launch(l, place_kernel, grid, block, 0, g.ids, slots, static_cast<int>(g.shared_rows), g.n_experts, g.item_rows,
         g.counts, g.out);
}

void sum_many(const Launch& l, const SumMany& s) {
  if (s.T > 0) launch(l, sum_kernel, dim3(static_cast<unsigned>(s.T)), dim3(kThreads), 0, s);
}

}  // namespace glint::cuda
