#pragma once
// The loader: one warp that brings all weights of a decode step into the ring of shared memory, in the order in which
// the other warps want them, as far ahead as the ring has room: through barriers of the grid, and from layer to layer.
// Only the chosen experts cannot be known ahead, so the loader also makes the choice, as soon as all scores are there.
// Rows of a tile lie one behind the other in memory: most chunks are one or two copies of several kilobytes, and what
// the copy engine takes for a copy (70 to 80 cycles) does not count.

#include <utility>

#include "backends/cuda/decode_attend_pages.cuh"

#if __CUDA_ARCH__ >= 900
namespace glint::cuda {

// What a lane copies of a chunk: from where, to where in the slot, how much of each chunk along a row but the last, and
// of the last.
struct StepCopy {
  const char* from = nullptr;
  int to = 0, bytes = 0, last = 0;
};

// Of whole tiles: four lanes a tile, codes and scales of its two halves.
template <class P>
__device__ __forceinline__ StepCopy copy_of_tiles(StepStage s, const LayerView<P>& v, const StepWork& w, int group,
                                                  int item) {
  const StepMat m = v.mat(s);
  const int lane = threadIdx.x % 32, j = lane / 4, tile = group * w.together + j, half = lane % 2;
  if (j >= w.together || tile >= w.tiles) return {};
  const StepHalf h = half_of(s, v, w, tile, item, half);
  const int first = j * 16 + half * 8;  // row in the slot
  if (lane % 4 < 2) return {h.data, first * m.row_bytes, 0, h.rows * m.row_bytes};
  return {h.scales, kSlotCodes + first * m.scale_row_bytes, 0, h.rows * m.scale_row_bytes};
}

// Of a tile whose rows come in parts: a lane a row for codes, and one for scales.
template <class P>
__device__ __forceinline__ StepCopy copy_of_parts(StepStage s, const LayerView<P>& v, const StepWork& w, int tile,
                                                  int item) {
  const StepMat m = v.mat(s);
  const int lane = threadIdx.x % 32, row = lane % 16, before = (w.chunks - 1) * kSplitBytes;
  const bool whole = !is_grouped(m);  // a row has one scale: a lane takes those of a half, every time
  const StepHalf h = half_of(s, v, w, tile, item, lane >= 16 && whole ? row % 2 : row / 8);
  if (lane < 16) {
    if (row % 8 >= h.rows) return {};
    return {h.data + row % 8 * m.row_bytes, row * kSplitBytes, kSplitBytes, m.row_bytes - before};
  }
  if (m.scale_row_bytes == 0) return {};
  if (whole) {
    if (row >= 2) return {};
    const int bytes = h.rows * m.scale_row_bytes;
    return {h.scales, kSlotCodes + row * 8 * m.scale_row_bytes, bytes, bytes};
  }
  if (row % 8 >= h.rows) return {};
  const int bytes = scale_bytes_of(m, kSplitBytes);
  return {h.scales + row % 8 * m.scale_row_bytes, kSlotCodes + row * bytes, bytes,
          scale_bytes_of(m, m.row_bytes - before)};
}

template <class P>
__device__ __forceinline__ void load_stage(StepStage s, const LayerView<P>& v, StepRing& ring) {
  const StepWork w = v.work(s);
  const bool leads = threadIdx.x % 32 == 0, steps = is_grouped(v.mat(s)) || threadIdx.x % 32 < 16;
  const int chunks = w.chunks;
#pragma unroll 1
  for (int group = 0; group < w.groups; ++group) {
#pragma unroll 1
    for (int item = 0; item < w.items; ++item) {
      StepCopy c = chunks == 1 ? copy_of_tiles(s, v, w, group, item) : copy_of_parts(s, v, w, group, item);
      const unsigned all = __reduce_add_sync(0xffffffffU, static_cast<unsigned>(c.bytes)),
                     last = __reduce_add_sync(0xffffffffU, static_cast<unsigned>(c.last));
#pragma unroll 1
      for (int chunk = 1; chunk <= chunks; ++chunk) {
        const int bytes = chunk < chunks ? c.bytes : c.last;
        barrier_wait(ring.empty(), ring.phase ^ 1);
        if (leads) barrier_expect(ring.full, static_cast<int>(chunk < chunks ? all : last));
        __syncwarp();
        if (bytes > 0) bulk_copy(ring.at + static_cast<std::uint32_t>(c.to), c.from, bytes, ring.full);
        if (steps) c.from += bytes;
        ring.advance();
      }
    }
  }
}

// A layer's table into the loader's buffer of its turn; where its experts lie, and the router's bias.
__device__ __forceinline__ void load_table(int l) {
  const auto* from = reinterpret_cast<const uint4*>(step.s.p.layers + l);
  auto* to = reinterpret_cast<uint4*>(&step.s.ahead[l & 1]);
  for (unsigned i = threadIdx.x % 32; i < sizeof(StepLayer) / 16; i += 32) to[i] = __ldg(from + i);
  __syncwarp();
}
__device__ __forceinline__ void load_experts(const StepLayer& layer) {
  const auto* from = reinterpret_cast<const std::uint64_t*>(layer.experts);
  auto* to = reinterpret_cast<std::uint64_t*>(step.s.experts);
  const unsigned n = static_cast<unsigned>(layer.n_experts) * 3 * (sizeof(MatPtr) / 8);
#pragma unroll 6
  for (unsigned i = threadIdx.x % 32; i < n; i += 32) to[i] = __ldg(from + i);
  for (int i = static_cast<int>(threadIdx.x % 32); i < layer.n_experts; i += 32)
    step.s.router_bias[i] = __ldg(layer.router_bias + i);
  __syncwarp();
}

// W_UK, which the working threads load for themselves, into the second-level cache: else they wait for it behind all
// that the ring has asked for. A block asks for a part of its head's.
__device__ __forceinline__ void prefetch_keys(const StepLayer& layer) {
  if (threadIdx.x % 32 != 0) return;
  constexpr int kLines = kNopeWidth * kLatentWidth * 2 / 128;
  const Range lines = share_of_head(kLines, 1);
  if (lines.begin == lines.end) return;
  const int head = lines.begin / kLines;
  const char* from = static_cast<const char*>(layer.kv_b) + lines.begin * 128 +
                     static_cast<std::int64_t>(head) * kQkWidth * kLatentWidth * 2;  // behind W_UV of the heads before
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from), "r"((lines.end - lines.begin) * 128)
               : "memory");
}

// The token's experts and their weights, once all blocks have announced their scores.
__device__ __forceinline__ void choose(const StepLayer& layer, unsigned epoch) {
  const int lane = threadIdx.x % 32, n = layer.n_experts;
  constexpr int kPerLane = kStepExperts / 32;
  if (lane == 0) grid_poll(epoch);
  __syncwarp();
  float score[kPerLane];
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int e = lane + 32 * i;
    score[i] = e < n ? __ldcg(step.s.p.scores + e) : 0.0F;
  }
  choose_experts(
      {step.s.router_bias, n, step.s.p.top_k, step.s.p.normalize, step.s.p.routed_scale, step.s.ids, step.s.weights}, 0,
      score);
  __syncwarp();
}

template <class P>
__device__ __forceinline__ void load_pages_any(int l, const StepRing& ring, const CUtensorMap* pages) {
  if constexpr (P::kKnown) {
    if (!P::kFar) return;
  }
  if (!step.s.context.by_page) return;
  switch (cache_codec<P>()) {
    case KvCodec::kFp8:
      return load_pages<KvCodec::kFp8>(l, ring, pages);
    case KvCodec::kInt8:
      return load_pages<KvCodec::kInt8>(l, ring, pages);
    case KvCodec::kInt4:
      return load_pages<KvCodec::kInt4>(l, ring, pages);
    default:
      return;
  }
}

template <class P>
__device__ __forceinline__ void load_any(StepStage s, int l, const LayerView<P>& v, unsigned scored, StepRing& ring,
                                         const CUtensorMap* pages) {
  if (s == StepStage::kAttend) load_pages_any<P>(l, ring, pages);
  if (s == StepStage::kKeys || s == StepStage::kAttend || !has_stage(s, v)) return;
  if (s == StepStage::kExpertUp) choose(v.at, scored);
  if (s == StepStage::kValues) {  // attention comes first: there is time
    load_experts(v.at);
    if (l + 1 < step.s.p.n_layers) load_table(l + 1);
  }
  load_stage(s, v, ring);
}
// The stages of a layer. Known ones have each its code: what a chunk takes counts where the experts begin.
template <class P, int... kStages>
__device__ __forceinline__ void load_each(std::integer_sequence<int, kStages...>, int l, const LayerView<P>& v,
                                          unsigned scored, StepRing& ring, const CUtensorMap* pages) {
  if constexpr (P::kKnown) {
    (load_any(static_cast<StepStage>(kStages), l, v, scored, ring, pages), ...);
  } else {
#pragma unroll 1
    for (int s = 0; s < kStepStages; ++s) load_any(static_cast<StepStage>(s), l, v, scored, ring, pages);
  }
}
template <class P>
__device__ __forceinline__ void load_layer(int l, const StepLayer& layer, unsigned scored, StepRing& ring,
                                           const CUtensorMap* pages) {
  const bool routed = layer.n_experts > 0;
  if constexpr (!P::kKnown) {
    load_each(AllStages(), l, LayerView<P>{layer, routed}, scored, ring, pages);
  } else {
    if constexpr (kStepShares) load_each(AttentionStages(), l, LayerView<P>{layer, true}, scored, ring, pages);
    if (routed) {
      load_each(OwnStages(), l, LayerView<P>{layer, true}, scored, ring, pages);
    } else {
      load_each(OwnStages(), l, LayerView<P>{layer, false}, scored, ring, pages);
    }
  }
}

// By the last warp, from beginning to end.
template <class P>
__device__ __forceinline__ void load_all(const CUtensorMap* pages) {
  StepRing ring;
  unsigned epoch = 0;  // of the last barrier of the layer before
  const auto others = static_cast<unsigned>(other_barriers<P>());
  const int n_layers = step.s.p.n_layers;
  load_table(0);
#pragma unroll 1
  for (int l = 0; l < n_layers; ++l) {
    const StepLayer& layer = step.s.ahead[l & 1];
    const unsigned scored = epoch + (kScoreBarrier + others) * gridDim.x;
    const unsigned barriers = layer.n_experts > 0 ? kRoutedBarriers : kDenseBarriers;
    prefetch_keys(layer);
    load_layer<P>(l, layer, scored, ring, pages);
    epoch += (barriers + others) * gridDim.x;
  }
}

}  // namespace glint::cuda
#endif
