#pragma once
// All layers of a decode step of one row in one kernel, a block a multiprocessor, resident to the end. A layer is eight
// to ten stages with a barrier of the grid after each, since every output of one is an input of all blocks in the next:
//
//   low     RMS, W_qa and W_kva            | attend  pieces of the context        | score    RMS, router; the shared
//   query   RMS, W_qb, rope; cache write   | (merge  where the pieces are many)   |          expert's gate and up
//   keys    W_UKᵀ, or what is left of it   | values  W_UV                         | gate/up  choice, experts
//           (decode_join.cuh)              | out     W_o, into the stream         | down     experts, into the stream
//
// Blocks stage x for themselves: what one would write and all read again is computed by all instead. A warp of its own
// (decode_loader.cuh) keeps the memory busy while the others wait for each other, and another one does the waiting.
//
// State that is needed on both sides of a call lies in shared memory: in local memory it cost more than the barriers
// did (docs/experiments/2026-11-24-cuda-decode-step.md).

#include <utility>

#include "backends/cuda/decode_loader.cuh"
#include "backends/cuda/decode_stages.cuh"

namespace glint::cuda {

#if __CUDA_ARCH__ >= 900

// A stage of all working warps but those without weights.
template <class P>
__device__ __forceinline__ void work_stage(StepStage s, const LayerView<P>& v, StepRing& ring, float& experts,
                                           StepOutput& kept) {
  StepTask task = task_of(s, v);
  StepOutput out;
  if constexpr (P::kKnown) {
    out = output_of(s, v);
  } else {
    note(task);
    // Down's two stages have the same rows: the second only needs to know where its sums lie.
    if (s == StepStage::kSharedDown && v.routed) {
      sts32(note_at(1) + 8, sums_of(s, v));
    } else {
      note(s, output_of(s, v));
    }
  }
  if (s != StepStage::kExpertUp && (s != StepStage::kSharedDown || !v.routed)) stage_x(s, v);
  step.s.trace.note(StepPart::kX);
  if constexpr (!P::kKnown) task = noted_task();
  products(s, v, task, ring);
  step.s.trace.note(StepPart::kProducts);
  if constexpr (P::kKnown) {
    if (s == StepStage::kSharedUp && v.routed) {  // ends with the experts'
      kept = out;
      return;
    }
  }
  step_sync();
  if constexpr (!P::kKnown) out = noted_output(s);
  if (s == StepStage::kExpertDown && !v.down_joined()) {
    experts = out.sums != 0 ? sum_of(out.sums, v.work(s).parts) : 0.0F;
    return;
  }
  finish(s, v, out, s == StepStage::kSharedDown ? experts : 0.0F);
  if (kJoins<P> && s == StepStage::kQuery) leave_part();
  if constexpr (P::kKnown) {
    if (s == StepStage::kExpertUp) finish(StepStage::kSharedUp, v, kept, 0.0F);
  }
  step.s.trace.note(StepPart::kFinish);
  if (s == StepStage::kSharedUp && v.routed) return;  // the shared expert's rows: with the others
  grid_arrive();
}

template <class P>
__device__ __forceinline__ void work_any(StepStage s, int l, const LayerView<P>& v, StepRing& ring, float& experts,
                                         StepOutput& kept) {
  step.s.trace.enter(static_cast<int>(s));
  if (s == StepStage::kKeys) {
    if constexpr (P::kQueries == StepQueries::kSummed) {
      sum_query<P>();
      grid_arrive();
    } else if constexpr (!kJoins<P>) {
      latent_query(v.at);
      grid_arrive();
    }
    step_sync();  // attention's tiles lie where its sums do
    if (l + 1 < step.s.p.n_layers) fetch_layer(l + 1);
  } else if (s == StepStage::kAttend) {
    attend_piece_any<P>(l);
    grid_arrive();
    if (merges_pieces<P>()) {
      step.s.trace.enter(kTraceStages - 1);
      grid_wait();
      merge_pieces();
      grid_arrive();
    }
    if (!P::kKnown) step_sync();                                       // notes lie where its tiles do
  } else if (s == StepStage::kQuery && blockIdx.x == gridDim.x - 1) {  // this token's row of the cache
    append_row<P>(l);
  } else if (has_stage(s, v)) {
    if (kJoins<P> && s == StepStage::kQuery) fetch_join(v.at);
    work_stage(s, v, ring, experts, kept);
  }
}

// Known stages have each its code; of others there is one place for all, so that it fits the instruction cache.
template <class P, int... kStages>
__device__ __forceinline__ void work_each(std::integer_sequence<int, kStages...>, int l, const LayerView<P>& v,
                                          StepRing& ring) {
  float experts = 0;  // of a row of the stream: what the chosen experts add, where the shared one comes behind them
  StepOutput kept{};
  if constexpr (P::kKnown) {
    (work_any(static_cast<StepStage>(kStages), l, v, ring, experts, kept), ...);
  } else {
#pragma unroll 1
    for (int s = 0; s < kStepStages; ++s) work_any(static_cast<StepStage>(s), l, v, ring, experts, kept);
  }
}
template <class P>
__device__ __forceinline__ void work_layer(int l, const StepLayer& layer, StepRing& ring) {
  const bool routed = layer.n_experts > 0;
  if constexpr (!P::kKnown) {
    work_each(AllStages(), l, LayerView<P>{layer, routed}, ring);
  } else {
    if constexpr (kStepShares) work_each(AttentionStages(), l, LayerView<P>{layer, true}, ring);
    if (routed) {
      work_each(OwnStages(), l, LayerView<P>{layer, true}, ring);
    } else {
      work_each(OwnStages(), l, LayerView<P>{layer, false}, ring);
    }
  }
}

template <class P>
__device__ __forceinline__ void work_layers() {
  if (threadIdx.x == 0) step.s.trace.begin();
  StepRing ring;
  const int n_layers = step.s.p.n_layers;
#pragma unroll 1
  for (int l = 0; l < n_layers; ++l) work_layer<P>(l, step.s.layers[l & 1], ring);
  step.s.trace.write(step.s.p.trace);
  normed_out();
}

#endif

template <class P>
__global__ void __launch_bounds__(kStepBlock, 1)
    decode_step_kernel(const __grid_constant__ DecodeStep p, const __grid_constant__ StepSizes sizes,
                       const __grid_constant__ CUtensorMap pages) {
#if __CUDA_ARCH__ >= 900
  extern __shared__ __align__(128) unsigned char smem[];
  const int tid = threadIdx.x;
  if (tid == 0) {
    step.s.p = p;
    step.s.x = shared_address(smem);
    step.s.notes = step.s.x + static_cast<std::uint32_t>(sizes.note_at);
    step.s.sums = step.s.x + static_cast<std::uint32_t>(sizes.x_bytes);
    step.s.ring = step.s.sums + static_cast<std::uint32_t>(sizes.sum_bytes);
    step.s.pass_bytes = sizes.pass_bytes;
    step.s.slot_bytes = sizes.slot_bytes;
    step.s.slots = sizes.slots;
    step.s.nibbles = {0xf0f0f0f0U, 0x80808080U};
    step.s.weights[p.top_k] = 1;  // the shared expert's
    for (int i = 0; i < sizes.slots; ++i) {
      barrier_init(shared_address(&step.s.full[i]), 1);
      barrier_init(shared_address(&step.s.empty[i]), kStepWarps);
    }
    for (int i = 0; i < kPageStages; ++i) {
      barrier_init(shared_address(&step.s.page_full[i]), 1);
      barrier_init(shared_address(&step.s.page_empty[i]), kStepWarps / 2);
    }
    barrier_init(shared_address(&step.s.pages_ready), 1);
    barrier_init_fence();
    step.s.context = {};
    plan_context();
    plan_keys();
  }
  __syncthreads();
  if (tid < 2 * kStepStages) {  // the first layer's kind and the last one's are all there are
    const StepLayer& layer = p.layers[tid < kStepStages ? 0 : p.n_layers - 1];
    const int stage = tid % kStepStages;
    const LayerView<AnyStep> v{layer, layer.n_experts > 0};
    plan_stage(static_cast<StepStage>(stage), v, kJoins<P>, work_of(static_cast<StepStage>(stage), v.routed));
  }
  for (int i = tid; i < 256; i += kStepBlock) step.s.nf4[i] = pack_bf16(kNf4[i >> 4], kNf4[i & 15]);
  if (tid < 32) {
    float2& r = step.s.rope[tid];
    rope_angle(p.rope.frequencies.revolutions[tid], p.rope.positions[0], &r.x, &r.y);
  }
  if (tid < kStepThreads) fetch_layer(0);
  __syncthreads();
  if (tid >= kStepThreads) {
    fewer_registers<kLoaderRegisters>();
    if (tid < kStepThreads + 32) {
      load_all<P>(&pages);
    } else if (tid < kStepThreads + 64) {
      carry_messages<P>();
    }
  } else {
    more_registers<kWorkerRegisters>();
    work_layers<P>();
    // The last block to come here leaves the counters as it found them.
    step_sync();
    if (tid == 0 && atomicAdd(step.s.p.counters + 1, 1U) == gridDim.x - 1) {
      step.s.p.counters[0] = 0;
      step.s.p.counters[1] = 0;
      step.s.p.counters[kRowCounter] = 0;
    }
  }
#endif
}

// A known model's kernel for a codec and a length of contexts.
template <template <KvCodec, bool> class P, KvCodec kCodec>
const void* step_kernel_of(bool far) {
  return far ? reinterpret_cast<const void*>(decode_step_kernel<P<kCodec, true>>)
             : reinterpret_cast<const void*>(decode_step_kernel<P<kCodec, false>>);
}
template <template <KvCodec, bool> class P>
const void* step_kernel_of(KvCodec codec, bool far) {
#ifdef GLINT_STEP_CODEC  // where code is compiled and never run (.ci/run): the kernels of one codec
  return step_kernel_of<P, GLINT_STEP_CODEC>(far);
#else
  switch (codec) {
    case KvCodec::kFp8:
      return step_kernel_of<P, KvCodec::kFp8>(far);
    case KvCodec::kInt8:
      return step_kernel_of<P, KvCodec::kInt8>(far);
    case KvCodec::kInt4:
      return step_kernel_of<P, KvCodec::kInt4>(far);
    default:
      return step_kernel_of<P, KvCodec::kBF16>(far);
  }
#endif
}

}  // namespace glint::cuda
