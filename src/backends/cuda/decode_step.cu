// All layers for few rows in one kernel. A block a multiprocessor, resident to the end: eight warps multiply, and four
// copy weights into a ring in shared memory ahead of them (decode_ring.cuh). A layer is nine stages with a barrier of
// the grid after each, since every output of one is an input of all blocks in the next:
//
//   low     RMS, W_qa and W_kva            | attend  pieces of the contexts       | score    RMS, router; the shared
//   query   RMS, W_qb, rope; cache write   | (merge  where the pieces are many)   |          expert's gate and up
//   latent  W_UKᵀ                          | values  W_UV                         | gate/up  choice, experts
//                                          | out     W_o, into the stream         | down     experts, into the stream
//
// Blocks stage x for themselves: what one would write and all read again is computed by all instead. While they wait at
// a barrier, the ring fills. Only the chosen experts cannot be copied ahead.

#include "backends/cuda/decode_attend.cuh"
#include "backends/cuda/decode_trace.cuh"

namespace glint::cuda {
namespace {

struct StepSizes {
  int slots, x_bytes, bytes;
};
constexpr int kStepCacheBytes = 2 * kCacheTile;
constexpr int kStepSlotsMost = 32;

__host__ __device__ constexpr int sum_bytes(int rows) { return sum_buffers(rows) * sum_buffer_bytes(rows); }

#if __CUDA_ARCH__ >= 900

// The copying warps: all tiles of this block, in the order of the stages.
__device__ __forceinline__ void copy_layers(Ring ring, int i) {
  std::uint32_t routed = 0;
  const int n_layers = step.s.p.n_layers, heads = step.s.p.heads;
#pragma unroll 1
  for (int l = 0; l < n_layers; ++l) {
    const StepLayer& w = step.s.layers[l & 1];
    const MatPtr* experts = step.s.experts[l & 1];
    const auto copy = [&](const StepTile& t, auto...) {
      ring.advance(copy_tile(ring, w.mats[t.role], t.at[0], t.at[1], t.row, t.n, t.pair, t.begin, t.end, i));
    };
    each_low_tile(w, copy);
    each_row_tile(w, kQb, copy);
    each_column_tile(
        heads, [&](int head, int column) { copy_columns(ring, w.kv_b, head * (kNopeWidth + kQkWidth), column, i); });
    each_value_tile(w, heads, copy);
    each_row_tile(w, kO, copy);
    each_shared_tile(w, copy);
    barrier_wait(shared_address(&step.s.routed), routed);  // and the next layer is in shared memory
    routed ^= 1U;
    const int n_items = w.n_experts > 0 ? step.s.n_items : 0;
    each_expert_tile(w, experts, step.s.items, n_items, copy);
    each_down_tile(w, experts, step.s.items, n_items, copy);
  }
}

template <int kT>
__device__ __forceinline__ void work_layers(StepWorker<kT>& c) {
  StepTrace trace(step.s.p.trace);
  const int n_layers = step.s.p.n_layers;
#pragma unroll 1
  for (int l = 0; l < n_layers; ++l) {
    trace.mark();
    c.parity = l & 1;
    c.project_low();
    trace.mark();
    c.grid_sync();
    trace.mark();
    c.project_query(l);
    trace.mark();
    c.grid_sync();
    trace.mark();
    c.latent_query();
    trace.mark();
    c.grid_sync();
    trace.mark();
    if (l + 1 < n_layers) c.fetch_layer(l + 1);
    attend_pieces_any(l);
    trace.mark();
    c.grid_sync();
    trace.mark();
    if (step.s.contexts.merge) {
      merge_pieces();
      c.grid_sync();
    }
    project_values(c);
    trace.mark();
    c.grid_sync();
    trace.mark();
    c.project_out();
    trace.mark();
    c.grid_sync();
    trace.mark();
    c.score_experts();
    trace.mark();
    const bool routed = c.weights().n_experts > 0;
    if (routed) c.grid_arrive();
    c.shared_gate_up();
    trace.mark();
    if (routed) {
      c.grid_wait();
      trace.mark();
      c.choose_experts();
      trace.mark();
      c.expert_gate_up();
    } else {
      if (c.tid == 0) barrier_arrive(shared_address(&step.s.routed));
      trace.mark();
      trace.mark();
    }
    trace.mark();
    c.grid_sync();
    trace.mark();
    c.down();
    trace.mark();
    c.grid_sync();
    trace.mark();
  }
  c.normed_out();
}

#endif

template <int kT>
__global__ void __launch_bounds__(kStepThreads, 1)
    decode_step_kernel(const __grid_constant__ DecodeStep p, const __grid_constant__ StepSizes sizes) {
#if __CUDA_ARCH__ >= 900
  extern __shared__ __align__(128) unsigned char smem[];
  const int tid = threadIdx.x, lane = tid % 32, warp = tid / 32;
  Ring ring;
  ring.n = sizes.slots;
  ring.full = shared_address(step.s.full);
  ring.empty = shared_address(step.s.empty);
  const std::uint32_t x = shared_address(smem);
  ring.slots = x + sizes.x_bytes + kStepCacheBytes + sum_bytes(kT);
  if (tid == 0) {
    for (int i = 0; i < sizes.slots; ++i) {
      barrier_init(ring.full + 8 * i, kCopyThreads);
      barrier_init(ring.empty + 8 * i, kStepWarps);
    }
    barrier_init(shared_address(&step.s.routed), 1);
    barrier_init_fence();
    step.s.p = p;
    step.s.x = x;
    step.s.cache = x + sizes.x_bytes;
    step.s.sums = x + sizes.x_bytes + kStepCacheBytes;
    step.s.x_bytes = sizes.x_bytes;
    plan_contexts();
  }
  for (int i = tid; i < 256; i += kStepThreads) step.s.nf4[i] = pack_bf16(kNf4[i >> 4], kNf4[i & 15]);
  __syncthreads();
  StepWorker<kT> c{ring, tid, lane, warp};
  if (warp < kStepWarps) c.fetch_layer(0);
  if (tid < 32 * kT) {
    float2& r = step.s.rope[tid / 32][lane];
    rope_angle(p.rope.frequencies.revolutions[lane], p.rope.positions[tid / 32], &r.x, &r.y);
  }
  __syncthreads();
  if (warp >= kStepWarps) {
    copy_layers(ring, tid - kStepWorkers);
    return;
  }
  work_layers(c);
  // The last block to come here leaves the counters as it found them.
  sync_workers();
  if (tid == 0 && atomicAdd(step.s.p.counters + 1, 1U) == gridDim.x - 1) {
    step.s.p.counters[0] = 0;
    step.s.p.counters[1] = 0;
  }
#endif
}

using StepKernel = void (*)(DecodeStep, StepSizes);
StepKernel kernel_for(int rows) {
  constexpr StepKernel kKernels[kStepRows] = {decode_step_kernel<1>, decode_step_kernel<2>, decode_step_kernel<3>,
                                              decode_step_kernel<4>};
  return kKernels[rows - 1];
}

// How a block's shared memory is cut up: x, two tiles of the cache, and as many slots of the ring as fit.
StepSizes sizes_for(const Launch& l, const DecodeStep& s) {
  cudaFuncAttributes kernel{};
  check(cudaFuncGetAttributes(&kernel, kernel_for(s.T)), "the kernel of a decode step");
  const auto rows = [&](int n, int cols) { return 2 * n * x_stride(cols); };
  const int heads_a_block = s.heads / l.n_sms + 2;
  const int needed = std::max({s.heads * kCacheStride + kAttendScratch, rows(s.T, s.heads * kQkWidth),
                               2 * rows(s.T, s.hidden), rows(s.T, s.q_lora), rows(s.T * heads_a_block, kLatentWidth),
                               rows(s.T, std::min(kStepSegment, s.dense_inner)), rows(s.T, s.shared_inner),
                               rows(s.T, s.expert_inner)});
  const int all_experts = rows(s.T * s.top_k, s.expert_inner) + rows(s.T, s.shared_inner);
  StepSizes z{};
  z.x_bytes = std::max(needed, std::min(all_experts, 84 << 10));
  z.x_bytes = (z.x_bytes + 127) / 128 * 128;
  const int rest =
      l.smem_limit - static_cast<int>(kernel.sharedSizeBytes) - kStepCacheBytes - z.x_bytes - sum_bytes(s.T) - 128;
  z.slots = std::clamp(rest / kSlotBytes, 0, kStepSlotsMost);
  z.bytes = z.x_bytes + kStepCacheBytes + sum_bytes(s.T) + z.slots * kSlotBytes;
  return z;
}

}  // namespace

bool step_reads(const Mat& m, bool pair) {
  const MatShape& shape = m.shape;
  switch (shape.format) {
    case WeightFormat::kBF16:
    case WeightFormat::kF8E4M3:
    case WeightFormat::kI8:
    case WeightFormat::kI4:
    case WeightFormat::kNF4:
      break;
    default:
      return false;
  }
  const StepMat s = step_mat(m, pair);
  if (shape.cols % 32 != 0 || s.row_bytes % 16 != 0 || shape.rows % 2 != 0) return false;
  if (reinterpret_cast<std::uintptr_t>(m.at.data) % 16 != 0) return false;
  if (!has_scales(shape.format)) return true;
  if (shape.group < shape.cols && (shape.group < 32 || shape.group != 1 << s.group_shift)) return false;
  if (shape.group_rows != 1 << s.rows_shift) return false;
  return s.tile_rows >= 2 && (shape.group_rows == 1 || 2 * s.scale_row_bytes + 32 <= scale_piece(pair, s.mins));
}

StepMat step_mat(const Mat& m, bool pair) {
  const MatShape& shape = m.shape;
  const auto log2_of = [](int n) {
    int shift = 0;
    while (1 << (shift + 1) <= n) ++shift;
    return static_cast<std::uint8_t>(shift);
  };
  StepMat s;
  s.at = m.at;
  s.rows = shape.rows;
  s.cols = shape.cols;
  s.row_bytes = shape.cols * weight_code_bits(shape.format) / 8;
  s.format = shape.format;
  const int most = weight_code_bits(shape.format) == 4 ? 64 : 32;  // a warp has at least 16 columns of a slot
  s.tile_rows = pair ? most / 2 : most;
  if (!has_scales(shape.format)) return s;
  s.mins = m.at.mins != nullptr;
  s.scale_dtype = shape.scale_dtype;
  s.scale_bytes = shape.scale_dtype == DType::kF32 ? 4 : 2;
  s.scale_row_bytes = shape.groups_a_row * s.scale_bytes;
  s.group_shift = shape.group >= shape.cols ? std::uint8_t{30} : log2_of(shape.group);
  s.rows_shift = log2_of(shape.group_rows);
  // As many rows as have their scales in one slot.
  if (shape.group_rows == 1)
    s.tile_rows = std::min(s.tile_rows, (scale_piece(pair, s.mins) - 32) / s.scale_row_bytes / 2 * 2);
  return s;
}

int step_blocks(const Launch& l, const DecodeStep& s) {
  if (l.smem_limit < (200 << 10) || s.T > kStepRows || s.T * s.top_k > kStepSlots) return 0;
  if (s.heads > kStepHeadsMost || s.hidden > 8 * kStepWorkers || s.hidden % 32 != 0 || s.q_lora > 8 * kStepWorkers ||
      s.q_lora % 32 != 0)
    return 0;
  return sizes_for(l, s).slots >= 4 ? l.n_sms : 0;
}

void decode_step(const Launch& l, const DecodeStep& given) {
  DecodeStep s = given;
  StepTraceBuffer trace(l, &s);
  const StepSizes sizes = sizes_for(l, s);
  const StepKernel kernel = kernel_for(s.T);
  allow_shared_memory(reinterpret_cast<const void*>(kernel), static_cast<std::size_t>(sizes.bytes));
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeCooperative;
  attribute.val.cooperative = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(l.n_sms));
  config.blockDim = dim3(kStepThreads);
  config.dynamicSmemBytes = static_cast<std::size_t>(sizes.bytes);
  config.stream = l.stream;
  config.attrs = &attribute;
  config.numAttrs = 1;
  check(cudaLaunchKernelEx(&config, kernel, s, sizes), "the kernel of a decode step");
  trace.write();
}

}  // namespace glint::cuda
