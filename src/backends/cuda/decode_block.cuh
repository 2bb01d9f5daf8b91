#pragma once
// What a block of the decode kernel does besides products: barriers of the grid, activations into shared memory, the
// cache row, the router's choice, the weighted sum of the experts.

#include "backends/cuda/decode_attend.cuh"

namespace glint::cuda {

struct Block {
  const DecodeStep& s;
  DecodeShared& sh;
  DecodeExpert* experts;  // of this layer
  unsigned char* area;    // activations, partial sums; or attention's
  std::uint32_t table;    // of NF4
  unsigned target;        // of the last barrier
};

// ---- barriers -------------------------------------------------------------------------------------------------------

__device__ __forceinline__ void announce(Block& b) {  // one thread
  asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(b.s.arrivals) : "memory");
}
__device__ __forceinline__ void arrive(Block& b) {
  __syncthreads();
  if (threadIdx.x == 0) announce(b);
  b.target += gridDim.x;
}
__device__ __forceinline__ void wait(const Block& b) {
  if (threadIdx.x == 0) {
    unsigned v;
    do {
      // Not an acquire, which would empty the L1 cache (spilled registers too): what other blocks wrote is read past
      // it.
      asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(b.s.arrivals) : "memory");
    } while (static_cast<int>(v - b.target) < 0);
  }
  __syncthreads();
}
__device__ __forceinline__ void group_sync(int id, int threads) {
  if (threads == 32) {
    __syncwarp();
  } else {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
  }
}

// ---- activations into shared memory ---------------------------------------------------------------------------------

// x ⊙ weight, and the squares' sums by 256 columns. The norm's factor comes later, onto the products. `router`: a row
// of the router, whose products with the same values are summed besides.
__device__ __forceinline__ void stage_norm(const Block& b, const float* x, const float* weight, int cols,
                                           Staging staging, const float* router) {
  const int segments = cols / 256, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const std::uint32_t base = shared_address(b.area), stride = staged_row_bytes(cols);
#pragma unroll 1
  for (int i = warp; i < b.s.n_rows * segments; i += kDecodeWarps) {
    const int row = i / segments, segment = i % segments, unit = segment * 32 + lane;
    const auto* from = reinterpret_cast<const float4*>(x + static_cast<std::int64_t>(row) * cols) + 2 * unit;
    const auto* w = reinterpret_cast<const float4*>(weight) + 2 * unit;
    const float4 a = __ldcg(from), c = __ldcg(from + 1), wa = __ldg(w), wc = __ldg(w + 1);
    float v[8] = {a.x, a.y, a.z, a.w, c.x, c.y, c.z, c.w};
    const float f[8] = {wa.x, wa.y, wa.z, wa.w, wc.x, wc.y, wc.z, wc.w};
    float squares = 0;
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      squares += v[k] * v[k];
      v[k] *= f[k];
    }
    stage8(staging, base + row * stride, unit, v);
    squares = warp_sum(squares);
    if (lane == 0) b.sh.sums[cols == b.s.hidden ? 0 : 1][row][segment] = squares;
    if (router != nullptr) {
      const auto* r = reinterpret_cast<const float4*>(router) + 2 * unit;
      const float4 ra = __ldg(r), rc = __ldg(r + 1);
      const float dot = warp_sum(v[0] * ra.x + v[1] * ra.y + v[2] * ra.z + v[3] * ra.w + v[4] * rc.x + v[5] * rc.y +
                                 v[6] * rc.z + v[7] * rc.w);
      if (lane == 0) b.sh.router_sums[row][segment] = dot;
    }
  }
  __syncthreads();
}

__device__ __forceinline__ float norm_factor(const Block& b, int row, bool low) {
  const DecodeStep& s = b.s;
  const int cols = low ? s.q_lora : s.hidden;
  const auto* from = reinterpret_cast<const float4*>(b.sh.sums[low && s.q_lora != s.hidden ? 1 : 0][row]);
  float sum = 0;  // what lies beyond the last segment is zero
#pragma unroll 2
  for (int i = 0; i < (cols + 1023) / 1024; ++i) {
    const float4 v = from[i];
    sum += v.x + v.y + (v.z + v.w);
  }
  return rsqrtf(sum / static_cast<float>(cols) + (low ? s.latent_eps : s.eps));
}

// Rows of bf16 as they are.
__device__ __forceinline__ void stage_rows(const Block& b, const std::uint16_t* x, int cols, std::int64_t x_stride,
                                           int rows, std::uint32_t stride, Staging staging) {
  const int units = cols / 8;
  const std::uint32_t base = shared_address(b.area);
#pragma unroll 1
  for (int i = threadIdx.x; i < rows * units; i += kDecodeThreads) {
    const int row = i / units, unit = i % units;
    stage8(staging, base + row * stride, unit, __ldcg(reinterpret_cast<const uint4*>(x + row * x_stride) + unit));
  }
}

// The cache row of one sequence: a warp.
__device__ __forceinline__ void append_row(const Block& b, const DecodeLayerData& l, int row) {
  const DecodeStep& s = b.s;
  const int lane = threadIdx.x % 32, slot = s.slots[row];
  const float* kv = s.kv + row * kRowWidth;
  float v[kLatentWidth / 32], squares = 0;
#pragma unroll
  for (int i = 0; i < kLatentWidth / 32; ++i) {
    v[i] = __ldcg(kv + lane + 32 * i);
    squares += v[i] * v[i];
  }
  const float2 k = __ldcg(reinterpret_cast<const float2*>(kv + kLatentWidth) + lane);
  const float factor = 1.0F / sqrtf(warp_sum(squares) / kLatentWidth + s.latent_eps);
  if (slot < 0) return;
  auto* to =
      reinterpret_cast<__nv_bfloat16*>(l.pages + slot / kPageRows * l.page_stride + slot % kPageRows * kKvRowBytes);
#pragma unroll
  for (int i = 0; i < kLatentWidth / 32; ++i)
    to[lane + 32 * i] = __float2bfloat16_rn(v[i] * factor * __ldg(l.kv_a_norm + lane + 32 * i));
  const float c = b.sh.rope_cos[row][lane], n = b.sh.rope_sin[row][lane];
  reinterpret_cast<std::uint32_t*>(to + kLatentWidth)[lane] = pack_bf16(k.x * c - k.y * n, k.x * n + k.y * c);
}

// ---- the router's choice
// ---------------------------------------------------------------------------------------------

// A warp a row; as route_kernel of moe.cu.
__device__ __forceinline__ void choose(const Block& b, const DecodeLayerData& l, int row) {
  constexpr int kPerLane = kMaxExperts / 32;
  const DecodeStep& s = b.s;
  const int lane = threadIdx.x % 32;
  float score[kPerLane], choice[kPerLane];
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int e = lane + 32 * i;
    score[i] = e < s.n_experts ? __ldcg(s.scores + row * s.n_experts + e) : 0.0F;
    choice[i] = e < s.n_experts ? score[i] + __ldg(l.router_bias + e) : -INFINITY;
    if (!(choice[i] > -3e38F) && e < s.n_experts) choice[i] = -3e38F;
  }
  float total = 0, mine = 0;
  int my_id = 0;
#pragma unroll 1
  for (int k = 0; k < s.top_k; ++k) {
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
  if (lane < s.top_k) {
    b.sh.ids[row * s.top_k + lane] = my_id;
    b.sh.weights[row * s.top_k + lane] = (s.normalize ? mine / (total + 1e-20F) : mine) * s.routed_scale;
  }
}

// Rows grouped by expert, in one warp; as skinny_moe.cu does.
__device__ __forceinline__ void group_choices(const Block& b) {
  DecodeShared& sh = b.sh;
  const int lane = threadIdx.x % 32, choices = b.s.n_rows * b.s.top_k;
  const int id = lane < choices ? sh.ids[lane] : -1;
  unsigned todo = __ballot_sync(0xffffffffU, id >= 0);
  int n = 0, place = 0;
  while (todo != 0) {
    const int expert = __shfl_sync(0xffffffffU, id, __ffs(todo) - 1);
    const unsigned same = __ballot_sync(0xffffffffU, id == expert);
    const int count = __popc(same), rank = __popc(same & ((1U << lane) - 1U));
    if (id == expert) {
      sh.choice_place[lane] = static_cast<std::int8_t>(place + rank);
      sh.token[place + rank] = static_cast<std::int8_t>(lane / b.s.top_k);
    }
    if (lane < 3) {
      sh.items[n].data[lane] = b.experts[expert].data[lane];
      sh.items[n].scales[lane] = b.experts[expert].scales[lane];
    }
    if (lane == 3) sh.items[n].first = place;
    if (lane == 4) sh.items[n].count = count;
    place += count;
    todo &= ~same;
    ++n;
  }
  if (lane == 0) sh.n_items = n;
}

// Output column `tile · 16 + c` of one row after the down products: experts in ascending order, then the shared one.
__device__ __forceinline__ float sum_places(const Block& b, const DecodeLayerData& l, int row, int c) {
  const DecodeStep& s = b.s;
  float sum = 0;
  if (l.moe != 0) {
    int done = -1;
#pragma unroll 1
    for (int k = 0; k < s.top_k; ++k) {
      int next = 1 << 30, at = 0;
#pragma unroll 1
      for (int i = 0; i < s.top_k; ++i) {
        const int id = b.sh.ids[row * s.top_k + i];
        if (id > done && id < next) next = id, at = row * s.top_k + i;
      }
      sum += b.sh.weights[at] * b.sh.out[l.n_slices * s.n_rows + b.sh.choice_place[at]][c];
      done = next;
    }
  }
#pragma unroll 1
  for (int i = 0; i < l.n_slices; ++i) sum += b.sh.out[i * s.n_rows + row][c];
  return sum;
}

}  // namespace glint::cuda
