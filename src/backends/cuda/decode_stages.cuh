#pragma once
// What else the blocks of a decode step do between two barriers: W_UK, the cache, which attention, the final norm.

#include "backends/cuda/decode_attend.cuh"
#include "backends/cuda/decode_attend_codes.cuh"
#include "backends/cuda/decode_attend_pages.cuh"
#include "backends/cuda/decode_products.cuh"
#include "backends/cuda/kv_encode.cuh"

#if __CUDA_ARCH__ >= 900
namespace glint::cuda {

// n floats into the second-level cache; `line`: which 128 bytes are this thread's.
__device__ __forceinline__ void prefetch_floats(const float* at, int n, int line) {
  if (line >= 0 && line * 32 < n) asm volatile("prefetch.global.L2 [%0];" ::"l"(at + line * 32));
}

// Into the buffer of a layer that is over. By all threads; a barrier follows before anyone reads it.
__device__ __forceinline__ void fetch_layer(int l) {
  const StepLayer* from = step.s.p.layers + l;
  StepLayer& to = step.s.layers[l & 1];
  const int tid = static_cast<int>(threadIdx.x), n = from->n_experts;
  for (int i = tid; i < static_cast<int>(sizeof(StepLayer) / 16); i += kStepThreads)
    reinterpret_cast<uint4*>(&to)[i] = __ldg(reinterpret_cast<const uint4*>(from) + i);
  const int line = static_cast<int>(blockIdx.x) * kStepThreads + tid;
  prefetch_floats(from->input_norm, step.s.p.hidden, line);
  prefetch_floats(from->post_norm, step.s.p.hidden, line - 64);
  prefetch_floats(from->q_a_norm, step.s.p.q_lora, line - 128);
  prefetch_floats(from->kv_a_norm, kLatentWidth, line - 192);
  if (static_cast<int>(blockIdx.x) < n)
    prefetch_floats(from->router + static_cast<std::int64_t>(blockIdx.x) * step.s.p.hidden, step.s.p.hidden, tid);
}

// ---- the cache ------------------------------------------------------------------------------------------------------

template <KvCodec kCodec>
__device__ __forceinline__ unsigned char* cache_row(int layer, int slot) {
  auto* pages = static_cast<unsigned char*>(const_cast<void*>(step.s.p.cache.pages)) + layer * step.s.p.layer_stride;
  return pages + slot / kPageRows * step.s.p.cache.page_stride + slot % kPageRows * kCacheRowBytes<kCodec>;
}
// The token's row in FP8 or INT8, in encode_row()'s steps, by all warps: of every lane's 16 latent values a
// warp has two. One warp alone took longer than other blocks' latent queries take.
template <KvCodec kCodec>
__device__ __forceinline__ void encode_by_warps(unsigned char* to) {
  constexpr int kMine = kLatentWidth / kStepThreads;
  static_assert(kMine == 2 && kStepWarps * kMine == 16);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const float2 x = reinterpret_cast<const float2*>(step.s.kv_row)[lane * kStepWarps + warp];
  const float2 rope = reinterpret_cast<const float2*>(step.s.kv_row + kLatentWidth)[lane];
  float v[kMine] = {x.x, x.y};
  const bool sane = fmaxf(fmaxf(fabsf(v[0]), fabsf(v[1])), fmaxf(fabsf(rope.x), fabsf(rope.y))) <= kLargest &&
                    v[0] == v[0] && v[1] == v[1] && rope.x == rope.x && rope.y == rope.y;
  const bool all_sane = __all_sync(0xffffffffU, sane);
  if constexpr (is_rotated(kCodec)) warp_hadamard(v, lane);
  const float most = warp_max(fmaxf(fabsf(v[0]), fabsf(v[1])), 32);
  if (lane == 0) step.s.reduce[1][warp] = all_sane ? most : INFINITY;
  step_sync();
  float top = 0;
#pragma unroll
  for (const float f : step.s.reduce[1]) top = fmaxf(top, f);
  std::uint32_t codes = 0xffffU, rotary_codes = 0xffffU;
  if (top < INFINITY) {
    Rotary rotary = encode_rotary(rope, lane);
    CodeChoice<kMine> c = eight_bit_codes<kCodec>(v, top, rotary);
    embed_side(c, side_of_lane(rotary, lane) >> (kMine * warp), (1U << kMine) - 1, lane);
    codes = (static_cast<std::uint32_t>(c.code[0]) & 255U) | (static_cast<std::uint32_t>(c.code[1]) & 255U) << 8;
    rotary_codes = rotary.codes;
  }
  reinterpret_cast<std::uint16_t*>(to)[lane * kStepWarps + warp] = static_cast<std::uint16_t>(codes);
  if (warp == 0)
    reinterpret_cast<std::uint16_t*>(to + kRotaryOffset<kCodec>)[lane] = static_cast<std::uint16_t>(rotary_codes);
}

// The token's latent, normed, and its rotary key go into the cache. By one block, which arrives before it encodes a
// short codec: others make their latent queries meanwhile, and attention is two barriers away, or waits for the row.
template <class P>
__device__ __forceinline__ void append_row(int layer) {
  const int tid = static_cast<int>(threadIdx.x), lane = tid % 32;
  static_assert(2 * kStepThreads == kLatentWidth, "two numbers a thread");
  const float2 by = __ldg(reinterpret_cast<const float2*>(step.s.layers[layer & 1].kv_a_norm) + tid);
  grid_wait();
  const float* from = step.s.p.kv;
  const float2 v = __ldcg(reinterpret_cast<const float2*>(from) + tid);
  const float factor = rsqrtf(step_sum(v.x * v.x + v.y * v.y, 0) / kLatentWidth + step.s.p.latent_eps);
  step.s.kv_row[2 * tid] = v.x * factor * by.x;
  step.s.kv_row[2 * tid + 1] = v.y * factor * by.y;
  if (tid < 32) {
    const float2 r = step.s.rope[tid];
    const float2 u = __ldcg(reinterpret_cast<const float2*>(from + kLatentWidth) + tid);
    step.s.kv_row[kLatentWidth + 2 * tid] = u.x * r.x - u.y * r.y;
    step.s.kv_row[kLatentWidth + 2 * tid + 1] = u.x * r.y + u.y * r.x;
  }
  step_sync();
  const std::int32_t slot = step.s.p.slots[0];
  const KvCodec codec = cache_codec<P>();
  if constexpr (P::kQueries == StepQueries::kParts) {
    grid_arrive();
    if (slot >= 0) {
      if constexpr (is_short(P::kCodec)) {
        encode_by_warps<P::kCodec>(cache_row<P::kCodec>(layer, slot));
      } else {
        auto* to = reinterpret_cast<__nv_bfloat162*>(cache_row<KvCodec::kBF16>(layer, slot));
        for (int i = tid; i < kRowWidth / 2; i += kStepThreads)
          to[i] = __floats2bfloat162_rn(step.s.kv_row[2 * i], step.s.kv_row[2 * i + 1]);
      }
    }
    return announce_row(layer);
  }
  if (!is_short(codec)) {
    if (slot >= 0) {
      auto* to = reinterpret_cast<__nv_bfloat16*>(cache_row<KvCodec::kBF16>(layer, slot));
      for (int i = tid; i < kRowWidth; i += kStepThreads) to[i] = __float2bfloat16_rn(step.s.kv_row[i]);
    }
    return grid_arrive();
  }
  grid_arrive();
  if (slot < 0) return;
  if (codec == KvCodec::kInt8) return encode_by_warps<KvCodec::kInt8>(cache_row<KvCodec::kInt8>(layer, slot));
  if (codec == KvCodec::kFp8) return encode_by_warps<KvCodec::kFp8>(cache_row<KvCodec::kFp8>(layer, slot));
  if (tid < 32) encode_row<KvCodec::kInt4>(step.s.kv_row, cache_row<KvCodec::kInt4>(layer, slot), lane);
}

// ---- attention ------------------------------------------------------------------------------------------------------

template <class P, int kEights>
__device__ __forceinline__ void attend_piece_of(int layer) {
  switch (cache_codec<P>()) {
    case KvCodec::kFp8:
      return attend_codes<KvCodec::kFp8, kEights, P::kQueries>(layer);
    case KvCodec::kInt8:
      return attend_codes<KvCodec::kInt8, kEights, P::kQueries>(layer);
    case KvCodec::kInt4:
      return attend_codes<KvCodec::kInt4, kEights, P::kQueries>(layer);
    default:
      return attend_piece<kEights, P::kQueries>(layer);
  }
}
// Of all heads.
template <class P>
__device__ __forceinline__ void attend_all_of(int layer) {
  constexpr int kEights = kStepHeadsMost / 8;
  switch (cache_codec<P>()) {
    case KvCodec::kFp8:
      return attend_pages<KvCodec::kFp8, P::kQueries>(layer);
    case KvCodec::kInt8:
      return attend_pages<KvCodec::kInt8, P::kQueries>(layer);
    case KvCodec::kInt4:
      return attend_pages<KvCodec::kInt4, P::kQueries>(layer);
    default:
      return attend_piece<kEights, P::kQueries>(layer);
  }
}
template <class P>
__device__ __forceinline__ void attend_piece_any(int layer) {
  if constexpr (P::kKnown) {
    if constexpr (P::kFar) {
      attend_all_of<P>(layer);
    } else {
      attend_piece_of<P, 1>(layer);
    }
  } else if (step.s.context.heads <= 8) {
    attend_piece_of<P, 1>(layer);
  } else {
    attend_all_of<P>(layer);
  }
}

// ---- W_UK -----------------------------------------------------------------------------------------------------------

// The parts of a head's latent query become one, under H where the codec has it: a block a head.
template <class P>
__device__ __forceinline__ void sum_query() {
  constexpr int kParts = kStepJoinParts;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, heads = step.s.p.heads, parts = step.s.join.parts;
  const int head = static_cast<int>(blockIdx.x), at = head * kLatentWidth + lane * 16 + warp * 2;
  grid_wait();
  if (head >= heads) return;
  float2 part[kParts];
#pragma unroll
  for (int k = 0; k < kParts; ++k) {
    part[k] = {};
    if (k < parts) part[k] = __ldcg(reinterpret_cast<const float2*>(step.s.p.query + k * heads * kLatentWidth + at));
  }
  float v[2] = {part[0].x, part[0].y};
#pragma unroll
  for (int k = 1; k < kParts; ++k) v[0] += part[k].x, v[1] += part[k].y;
  if constexpr (is_rotated(P::kCodec)) warp_hadamard(v, lane);
  *reinterpret_cast<float2*>(step.s.p.latent + at) = {v[0], v[1]};
}

// By one thread, once a step.
__device__ __noinline__ void plan_keys() {
  plan_join();
  constexpr int kPerHead = kLatentWidth / 8;
  const Range mine = share_of_head(kPerHead, 1);
  StepKeys& k = step.s.keys;
  k = {};
  k.n = mine.end - mine.begin;
  if (k.n == 0) return;
  k.head = mine.begin / kPerHead;
  k.first = mine.begin - k.head * kPerHead;
  k.parts = min(kNopeWidth, kStepThreads / k.n);
  k.recip = (65536 + k.n - 1) / k.n;
  k.rows = kNopeWidth / k.parts;
  k.more = kNopeWidth - k.rows * k.parts;
}

// query = W_UKᵀ q_nope in fp32.
__device__ __forceinline__ void latent_query(const StepLayer& layer) {
  const DecodeStep& p = step.s.p;
  const StepKeys k = step.s.keys;
  const int tid = static_cast<int>(threadIdx.x), n = k.n, parts = k.parts;
  const int part = tid * k.recip >> 16, unit = tid - part * n;
  const bool works = part < parts;
  const int rows = works ? k.rows + (part < k.more ? 1 : 0) : 0;  // of this thread
  const char* from =
      static_cast<const char*>(layer.kv_b) +
      ((static_cast<std::int64_t>(k.head) * (kNopeWidth + kQkWidth) + part) * kLatentWidth + (k.first + unit) * 8) * 2;
  // Through shared memory, where each thread has places of its own: loops over registers would be straight code.
  const std::uint32_t places = step.s.x + static_cast<std::uint32_t>(kKeyPlaces + tid * 16);
#pragma unroll 2
  for (int i = 0; i < rows; ++i) {
    cp_async16(places + static_cast<std::uint32_t>(i * kStepThreads * 16), from);
    from += parts * (kLatentWidth * 2);
  }
  cp_async_commit();
  grid_wait();
  if (n == 0) return;
  constexpr int kQuads = kNopeWidth / 4;
  if (tid < kQuads) {  // q_nope
    const float4 v = __ldcg(reinterpret_cast<const float4*>(p.q + k.head * kQkWidth) + tid);
    sts128(step.s.x + static_cast<std::uint32_t>(tid) * 16,
           {__float_as_uint(v.x), __float_as_uint(v.y), __float_as_uint(v.z), __float_as_uint(v.w)});
  }
  step_sync();
  float sum[8] = {};
  const std::uint32_t q = step.s.x + static_cast<std::uint32_t>(part * 4);
  cp_async_wait<0>();
#pragma unroll 4
  for (int i = 0; i < rows; ++i) {
    const uint4 w = lds128(places + static_cast<std::uint32_t>(i * kStepThreads * 16));
    const std::uint32_t pair[4] = {w.x, w.y, w.z, w.w};
    const float f = __uint_as_float(lds32(q + static_cast<std::uint32_t>(i * parts * 4)));
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      sum[2 * e] = fmaf(bf16_low(pair[e]), f, sum[2 * e]);
      sum[2 * e + 1] = fmaf(bf16_high(pair[e]), f, sum[2 * e + 1]);
    }
  }
  // The parts' sums: [part][columns].
  const std::uint32_t sums = step.s.x + static_cast<std::uint32_t>(kNopeWidth * 4);
  if (works) {
    const std::uint32_t to = sums + static_cast<std::uint32_t>(part * n + unit) * 32;
    sts128(to, {__float_as_uint(sum[0]), __float_as_uint(sum[1]), __float_as_uint(sum[2]), __float_as_uint(sum[3])});
    sts128(to + 16,
           {__float_as_uint(sum[4]), __float_as_uint(sum[5]), __float_as_uint(sum[6]), __float_as_uint(sum[7])});
  }
  step_sync();
  for (int i = tid; i < n * 8; i += kStepThreads) {
    float v[4] = {};
    int j = 0;
#pragma unroll 1
    for (; j + 4 <= parts; j += 4) {
#pragma unroll
      for (int e = 0; e < 4; ++e)
        v[e] += __uint_as_float(lds32(sums + static_cast<std::uint32_t>((j + e) * n * 8 + i) * 4));
    }
#pragma unroll 1
    for (; j < parts; ++j) v[0] += __uint_as_float(lds32(sums + static_cast<std::uint32_t>(j * n * 8 + i) * 4));
    p.query[k.head * kLatentWidth + k.first * 8 + i] = (v[0] + v[1]) + (v[2] + v[3]);
  }
}

// The messenger, from beginning to end; decode_memory.cuh says what for.
template <class P>
__device__ __forceinline__ void carry_messages() {
  const bool leads = threadIdx.x % 32 == 0;
  const int others = other_barriers<P>(), n_layers = step.s.p.n_layers;
  unsigned epoch = 0;
  meet_at(Meeting::kWait);
#pragma unroll 1
  for (int l = 0; l < n_layers; ++l) {
    const int n_experts = step.s.layers[l & 1].n_experts;
    const int scored = n_experts > 0 ? static_cast<int>(kScoreBarrier) - 1 + others : -1,
              n = static_cast<int>(n_experts > 0 ? kRoutedBarriers : kDenseBarriers) + others;
#pragma unroll 1
    for (int i = 0; i < n; ++i) {
      epoch += gridDim.x;
      if (i == scored) {
        meet_at(Meeting::kScore);
        if (leads) {
          if (static_cast<int>(blockIdx.x) < n_experts) {
            const float factor =
                rsqrtf(__fdividef(sum_of_warps(step.s.squares[0]), static_cast<float>(step.s.p.hidden)) + step.s.p.eps);
            step.s.p.scores[blockIdx.x] = __fdividef(1.0F, 1.0F + __expf(-sum_of_warps(step.s.dots) * factor));
          }
          grid_announce();
        }
        continue;
      }
      meet_at(Meeting::kArrive);
      if (leads) {
        grid_announce();
        grid_poll(epoch);
      }
      __syncwarp();
      meet_at(Meeting::kWait);
    }
  }
}

// out = RMS(stream), by one block.
__device__ __forceinline__ void normed_out() {
  grid_wait();
  if (blockIdx.x != 0) return;
  const int hidden = step.s.p.hidden;
  float squares = 0;
  for (int i = threadIdx.x; i < hidden; i += kStepThreads) {
    const float v = __ldcg(step.s.p.stream + i);
    squares += v * v;
  }
  const float factor = rsqrtf(step_sum(squares, 0) / static_cast<float>(hidden) + step.s.p.eps);
  for (int i = threadIdx.x; i < hidden; i += kStepThreads)
    step.s.p.out[i] = __ldcg(step.s.p.stream + i) * factor * step.s.p.final_norm[i];
}

}  // namespace glint::cuda
#endif
