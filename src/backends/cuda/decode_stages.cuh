#pragma once
// What else the blocks of a decode step do between two barriers: what becomes of the sums, W_UK, the cache, the choice
// of experts, the final norm.

#include "backends/cuda/decode_products.cuh"
#include "backends/cuda/kv_encode.cuh"

#if __CUDA_ARCH__ >= 900
namespace glint::cuda {

// n floats into the second-level cache; `line`: which 128 bytes are this thread's.
__device__ __forceinline__ void prefetch_floats(const float* at, int n, int line) {
  if (line >= 0 && line * 32 < n) asm volatile("prefetch.global.L2 [%0];" ::"l"(at + line * 32));
}

// Into the buffer of a layer that is over. By all threads; a barrier follows before anyone reads it.
__device__ __noinline__ void fetch_layer(int l) {
  const StepLayer* from = step.s.p.layers + l;
  StepLayer& to = step.s.layers[l & 1];
  const int tid = static_cast<int>(threadIdx.x), n = from->n_experts;
  for (int i = tid; i < static_cast<int>(sizeof(StepLayer) / 16); i += kStepThreads)
    reinterpret_cast<uint4*>(&to)[i] = __ldg(reinterpret_cast<const uint4*>(from) + i);
  for (int i = tid; i < 3 * n; i += kStepThreads) step.s.experts[l & 1][i] = from->experts[i];
  for (int i = tid; i < n; i += kStepThreads) step.s.router_bias[l & 1][i] = from->router_bias[i];
  const int line = static_cast<int>(blockIdx.x) * kStepThreads + tid;
  prefetch_floats(from->input_norm, step.s.p.hidden, line);
  prefetch_floats(from->post_norm, step.s.p.hidden, line - 64);
  prefetch_floats(from->q_a_norm, step.s.p.q_lora, line - 128);
  prefetch_floats(from->kv_a_norm, kLatentWidth, line - 192);
  if (static_cast<int>(blockIdx.x) < n)
    prefetch_floats(from->router + static_cast<std::int64_t>(blockIdx.x) * step.s.p.hidden, step.s.p.hidden, tid);
}

// ---- what becomes of a stage's sums ---------------------------------------------------------------------------------

template <int kT>
__device__ __forceinline__ void finish_row(StepStage stage, int parity, const StepWork& w, int i, int t) {
  const DecodeStep& p = step.s.p;
  const int row = w.begin + i, place = place_of(stage, w, i);
  float v = sum_at<kT>(w, place, t);
  switch (stage) {
    case StepStage::kLow:
      (row < p.q_lora ? p.low + t * p.q_lora + row : p.kv + t * kRowWidth + row - p.q_lora)[0] = v;
      return;
    case StepStage::kQuery: {
      const int in_head = row % kQkWidth;
      if (in_head >= kNopeWidth) {
        const float other = sum_at<kT>(w, place ^ 1, t);
        const float2 by = step.s.rope[t][(in_head - kNopeWidth) / 2];
        v = in_head % 2 == 0 ? v * by.x - other * by.y : other * by.y + v * by.x;
      }
      p.q[t * p.heads * kQkWidth + row] = v;
      return;
    }
    case StepStage::kValues:
      p.attended[t * p.heads * kQkWidth + row] = v;
      return;
    case StepStage::kOut: {
      float* at = p.stream + t * p.hidden + row;
      *at = __ldcg(at) + v;
      return;
    }
    default: {  // gate, with up eight places further
      const float up = sum_at<kT>(w, place + 8, t), h = v / (1.0F + __expf(-v)) * up;
      int slot, inner_row = row;
      if (stage == StepStage::kSharedUp) {
        slot = (step.s.layers[parity].n_experts > 0 ? p.T * p.top_k : 0) + t;
      } else {
        const int rows = mat_of(stage, parity).rows, item = row / rows;
        slot = step.s.items[item].slot[t];
        inner_row -= item * rows;
      }
      if (slot >= 0) p.h[slot * p.inner_stride + inner_row] = h;
    }
  }
}
template <int kT>
__device__ __noinline__ void finish(StepStage stage, int parity) {
  __syncthreads();
  const StepWork& w = work_of(stage, parity);
  const int T = step.s.p.T;
  for (int i = threadIdx.x; i < w.rows * T; i += kStepThreads) {
    const int t = T == 1 ? 0 : i / w.rows;
    finish_row<kT>(stage, parity, w, i - t * w.rows, t);
  }
}
// stream += both parts of down: the experts' sums (pass 0; none in a dense layer) and the shared expert's (pass 1).
template <int kT>
__device__ __noinline__ void finish_down(int parity) {
  __syncthreads();
  const DecodeStep& p = step.s.p;
  const bool routed = step.s.layers[parity].n_experts > 0;
  const StepWork &shared = work_of(StepStage::kSharedDown, parity), &experts = work_of(StepStage::kExpertDown, parity);
  for (int i = threadIdx.x; i < shared.rows * p.T; i += kStepThreads) {
    const int t = p.T == 1 ? 0 : i / shared.rows, place = i - t * shared.rows;
    float* at = p.stream + t * p.hidden + shared.begin + place;
    const float v = routed ? sum_at<kT>(experts, place, t, 0, experts.rounds) : 0.0F;
    *at = __ldcg(at) + (v + sum_at<kT>(shared, place, t, 1));
  }
}

// ---- the cache ------------------------------------------------------------------------------------------------------

template <KvCodec kCodec>
__device__ __forceinline__ unsigned char* cache_row(int layer, int slot) {
  auto* pages = static_cast<unsigned char*>(const_cast<void*>(step.s.p.cache.pages)) + layer * step.s.p.layer_stride;
  return pages + slot / kPageRows * step.s.p.cache.page_stride + slot % kPageRows * kCacheRowBytes<kCodec>;
}
// Token t's latent, normed, and its rotary key go into the cache. By all threads of one block.
__device__ __noinline__ void append_row(int t, int layer) {
  const int tid = static_cast<int>(threadIdx.x), lane = tid % 32;
  const float* norm = step.s.layers[layer & 1].kv_a_norm;
  const float by = __ldg(norm + tid);
  static_assert(kStepThreads == kLatentWidth);
  grid_wait();
  const float* from = step.s.p.kv + t * kRowWidth;
  const float v = __ldcg(from + tid);
  float squares[1] = {v * v};
  block_sums(squares, 0);
  step.s.kv_row[tid] = v * rsqrtf(squares[0] / kLatentWidth + step.s.p.latent_eps) * by;
  if (tid < 32) {
    const float2 r = step.s.rope[t][tid];
    const float2 u = __ldcg(reinterpret_cast<const float2*>(from + kLatentWidth) + tid);
    step.s.kv_row[kLatentWidth + 2 * tid] = u.x * r.x - u.y * r.y;
    step.s.kv_row[kLatentWidth + 2 * tid + 1] = u.x * r.y + u.y * r.x;
  }
  __syncthreads();
  const std::int32_t slot = step.s.p.slots[t];
  if (tid >= 32 || slot < 0) return;
  switch (step.s.p.cache.codec) {
    case KvCodec::kFp8:
      return encode_row<KvCodec::kFp8>(step.s.kv_row, cache_row<KvCodec::kFp8>(layer, slot), lane);
    case KvCodec::kInt8:
      return encode_row<KvCodec::kInt8>(step.s.kv_row, cache_row<KvCodec::kInt8>(layer, slot), lane);
    case KvCodec::kInt4:
      return encode_row<KvCodec::kInt4>(step.s.kv_row, cache_row<KvCodec::kInt4>(layer, slot), lane);
    default:
      auto* to = reinterpret_cast<__nv_bfloat16*>(cache_row<KvCodec::kBF16>(layer, slot));
      for (int i = lane; i < kRowWidth; i += 32) to[i] = __float2bfloat16_rn(step.s.kv_row[i]);
  }
}

// ---- W_UK -----------------------------------------------------------------------------------------------------------

// query = W_UKᵀ q_nope in fp32: a thread has eight columns of a head, and every so manyth row of the 192.

template <int kT>
__device__ __noinline__ void latent_query(int parity) {
  constexpr int kPerHead = kLatentWidth / 8;
  const DecodeStep& p = step.s.p;
  const int tid = static_cast<int>(threadIdx.x);
  const Range mine = share(p.heads * kPerHead, 1, static_cast<int>(gridDim.x));
  const int n = mine.end - mine.begin;
  const int parts = n > 0 ? min(kNopeWidth, kStepThreads / n) : 0, unit = n > 0 ? tid % n : 0,
            part = n > 0 ? tid / n : 0;
  const bool works = part < parts;
  const int head = (mine.begin + unit) / kPerHead, column = (mine.begin + unit) % kPerHead * 8;
  const char* from = static_cast<const char*>(step.s.layers[parity].kv_b) +
                     (static_cast<std::int64_t>(head) * (kNopeWidth + kQkWidth) * kLatentWidth + column) * 2;
  uint4 w[kKeyLoads];
#pragma unroll
  for (int i = 0; i < kKeyLoads; ++i) {
    const int row = part + i * parts;
    w[i] = {};
    if (works && row < kNopeWidth) w[i] = load_stream(from + row * (kLatentWidth * 2));
  }
  grid_wait();
  if (n == 0) return;
  // q_nope of the heads that the block meets, two at most: [head][token][192].
  const int first = mine.begin / kPerHead, heads = (mine.end - 1) / kPerHead - first + 1;
  constexpr int kQuads = kNopeWidth / 4;
  for (int i = tid; i < heads * p.T * kQuads; i += kStepThreads) {
    const int t = i / kQuads % p.T, h = i / kQuads / p.T;
    const float4 v = __ldcg(reinterpret_cast<const float4*>(p.q + (t * p.heads + first + h) * kQkWidth) + i % kQuads);
    sts128(step.s.x + static_cast<std::uint32_t>(i) * 16,
           {__float_as_uint(v.x), __float_as_uint(v.y), __float_as_uint(v.z), __float_as_uint(v.w)});
  }
  __syncthreads();
  float sum[kT][8] = {};
  const std::uint32_t q = step.s.x + static_cast<std::uint32_t>((head - first) * p.T * kNopeWidth * 4);
#pragma unroll
  for (int i = 0; i < kKeyLoads; ++i) {
    const int row = part + i * parts;
    if (!works || row >= kNopeWidth) continue;
    const std::uint32_t pair[4] = {w[i].x, w[i].y, w[i].z, w[i].w};
#pragma unroll
    for (int t = 0; t < kT; ++t) {
      if (t >= p.T) continue;
      const float f = __uint_as_float(lds32(q + static_cast<std::uint32_t>(t * kNopeWidth + row) * 4));
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        sum[t][2 * k] = fmaf(bf16_low(pair[k]), f, sum[t][2 * k]);
        sum[t][2 * k + 1] = fmaf(bf16_high(pair[k]), f, sum[t][2 * k + 1]);
      }
    }
  }
  // The parts' sums, a token at a time: [part][columns].
  const std::uint32_t sums = step.s.x + static_cast<std::uint32_t>(heads * p.T * kNopeWidth * 4);
#pragma unroll
  for (int t = 0; t < kT; ++t) {
    if (t >= p.T) continue;
    if (works) {
      const std::uint32_t to = sums + static_cast<std::uint32_t>(part * n + unit) * 32;
      sts128(to, {__float_as_uint(sum[t][0]), __float_as_uint(sum[t][1]), __float_as_uint(sum[t][2]),
                  __float_as_uint(sum[t][3])});
      sts128(to + 16, {__float_as_uint(sum[t][4]), __float_as_uint(sum[t][5]), __float_as_uint(sum[t][6]),
                       __float_as_uint(sum[t][7])});
    }
    __syncthreads();
    for (int i = tid; i < n * 8; i += kStepThreads) {
      float v = 0;
      for (int k = 0; k < parts; ++k) v += __uint_as_float(lds32(sums + static_cast<std::uint32_t>(k * n * 8 + i) * 4));
      const int u = mine.begin + i / 8;
      p.query[(t * p.heads + u / kPerHead) * kLatentWidth + u % kPerHead * 8 + i % 8] = v;
    }
    if (t + 1 < p.T) __syncthreads();
  }
}

// ---- experts --------------------------------------------------------------------------------------------------------

// Every block for itself: each row's experts and weights, and the list of experts by rising number.
template <int kT>
__device__ __noinline__ void choose(int parity) {
  grid_wait();
  const int n_experts = step.s.layers[parity].n_experts, top_k = step.s.p.top_k, T = step.s.p.T;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  if (warp < T) {
    constexpr int kPerLane = kStepExperts / 32;
    float score[kPerLane];
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      const int e = lane + 32 * i;
      score[i] = e < n_experts ? __ldcg(step.s.p.scores + warp * step.s.p.score_stride + e) : 0.0F;
    }
    choose_experts({step.s.router_bias[parity], n_experts, top_k, step.s.p.normalize, step.s.p.routed_scale, step.s.ids,
                    step.s.weights},
                   warp, score);
  }
  if (kT > 1) __syncthreads();
  if (warp == 0) {
    __syncwarp();
    const int slots = T * top_k;
    const int id = lane < slots ? step.s.ids[lane] : -1 - lane;  // no two of the others alike
    const unsigned same = __match_any_sync(0xffffffffU, id);
    const bool leads = lane < slots && __ffs(same) - 1 == lane;
    const unsigned leaders = __ballot_sync(0xffffffffU, leads);
    int place = 0;
#pragma unroll 1
    for (int i = 0; i < slots; ++i) {
      const int other = __shfl_sync(0xffffffffU, id, i);
      if ((leaders >> i & 1U) != 0 && other < id) ++place;
    }
    if (leads) {
      StepItem item{id, {-1, -1, -1, -1}};
      for (unsigned rest = same; rest != 0; rest &= rest - 1) {
        const int slot = __ffs(rest) - 1;
        item.slot[slot / top_k] = static_cast<signed char>(slot);
      }
      step.s.items[place] = item;
    }
    if (lane == 0) step.s.n_items = __popc(leaders);
  }
  __syncthreads();
  if (T == 1) return;  // so many as ever
  if (threadIdx.x < 2) {
    const StepStage s = threadIdx.x == 0 ? StepStage::kExpertUp : StepStage::kExpertDown;
    plan_stage(s, step.s.layers[parity], step.s.work[1][static_cast<int>(s)], step.s.n_items);
  }
  __syncthreads();
}

// out = RMS(stream), a block a row.
__device__ __noinline__ void normed_out() {
  grid_wait();
  if (static_cast<int>(blockIdx.x) >= step.s.p.T) return;
  const int hidden = step.s.p.hidden, base = static_cast<int>(blockIdx.x) * hidden;
  float squares[1] = {};
  for (int i = threadIdx.x; i < hidden; i += kStepThreads) {
    const float v = __ldcg(step.s.p.stream + base + i);
    squares[0] += v * v;
  }
  block_sums(squares, 0);
  const float factor = rsqrtf(squares[0] / static_cast<float>(hidden) + step.s.p.eps);
  for (int i = threadIdx.x; i < hidden; i += kStepThreads)
    step.s.p.out[base + i] = __ldcg(step.s.p.stream + base + i) * factor * step.s.p.final_norm[i];
}

}  // namespace glint::cuda
#endif
