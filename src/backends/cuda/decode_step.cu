// All layers for few rows in one kernel. A block a multiprocessor, resident to the end: eight warps multiply, and one
// copies weights into a ring in shared memory ahead of them (decode_ring.cuh). A layer is nine stages with a barrier of
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

namespace glint::cuda {
namespace {

struct StepSizes {
  int slots, x_bytes, bytes;
};
constexpr int kStepHeadBytes = kRowWidth * 2 + 16;              // a query, or a row of the cache
constexpr int kStepCacheBytes = 2 * 32 * kStepHeadBytes;
constexpr int kStepScoreBytes = 32 * (36 * 4 + 80 + 4) + 128;  // scores, weights and factors of 32 heads
constexpr int kStepSlotsMost = 32;

#if __CUDA_ARCH__ >= 900

__device__ void load_layer(StepLayer& to, const StepLayer* from, int first, int step) {
  for (int i = first; i < static_cast<int>(sizeof(StepLayer) / 16); i += step)
    reinterpret_cast<uint4*>(&to)[i] = __ldg(reinterpret_cast<const uint4*>(from) + i);
}

// The copying warp: all tiles of this block, in the order of the stages.
__device__ void copy_layers(const DecodeStep& p, StepShared& s, Ring ring, int lane) {
  std::uint32_t routed = 0;
  const StepLayer& w = s.copy_layer;
  for (int l = 0; l < p.n_layers; ++l) {
    __syncwarp();
    load_layer(s.copy_layer, p.layers + l, lane, 32);
    __syncwarp();
    const auto copy = [&](const StepTile& t, auto...) { copy_tile(ring, t, lane); };
    each_low_tile(w, copy);
    each_row_tile(w.q_b, copy);
    each_column_tile(p.heads, [&](int head, int column) {
      copy_columns(ring, w.kv_b, head * (kNopeWidth + kQkWidth), column, lane);
    });
    each_value_tile(w.kv_b, p.heads, copy);
    each_row_tile(w.o, copy);
    each_shared_tile(w, copy);
    int n_items = 0;
    if (w.n_experts > 0) {
      barrier_wait(shared_address(&s.routed), routed);
      routed ^= 1U;
      n_items = s.n_items;
      each_expert_tile(w, s.experts, s.items, n_items, copy);
    }
    each_down_tile(w, s.experts, s.items, n_items, copy);
  }
}

__device__ void work_layers(StepWorker& c) {
  const DecodeStep& p = c.p;
  const StepContexts contexts(p);
  const bool merge = contexts.most_pieces(p.T) > kDirectPieces;
  for (int l = 0; l < p.n_layers; ++l) {
    load_layer(c.s.layer, p.layers + l, c.tid, kStepWorkers);
    sync_workers();
    for (int i = c.tid; i < 3 * c.s.layer.n_experts; i += kStepWorkers) c.s.experts[i] = c.s.layer.experts[i];
    c.project_low();
    c.grid_sync();
    c.project_query(l);
    c.grid_sync();
    c.latent_query();
    c.grid_sync();
    attend_pieces_any(c, l);
    c.grid_sync();
    if (merge) {
      merge_pieces(c, contexts);
      c.grid_sync();
    }
    project_values(c, contexts, merge);
    c.grid_sync();
    c.project_out();
    c.grid_sync();
    c.score_experts();
    if (c.s.layer.n_experts > 0) {
      c.grid_arrive();
      c.shared_gate_up();
      c.grid_wait();
      c.choose_experts();
      c.expert_gate_up();
    } else {
      c.shared_gate_up();
    }
    c.grid_sync();
    c.down();
    c.grid_sync();
  }
  c.normed_out();
}

#endif

__global__ void __launch_bounds__(kStepThreads, 1) decode_step_kernel(const __grid_constant__ DecodeStep p,
                                                                      const __grid_constant__ StepSizes sizes) {
#if __CUDA_ARCH__ >= 900
  extern __shared__ __align__(128) unsigned char smem[];
  __shared__ __align__(16) StepShared s;
  const int tid = threadIdx.x, lane = tid % 32, warp = tid / 32;
  Ring ring;
  ring.n = sizes.slots;
  ring.full = shared_address(s.full);
  ring.empty = shared_address(s.empty);
  const std::uint32_t x = shared_address(smem), cache = x + sizes.x_bytes;
  ring.slots = cache + kStepCacheBytes;
  if (tid == 0) {
    for (int i = 0; i < sizes.slots; ++i) {
      barrier_init(ring.full + 8 * i, 1);
      barrier_init(ring.empty + 8 * i, kStepWarps);
    }
    barrier_init(shared_address(&s.routed), 1);
    barrier_init_fence();
  }
  for (int i = tid; i < 256; i += kStepThreads) s.nf4[i] = pack_bf16(kNf4[i >> 4], kNf4[i & 15]);
  __syncthreads();
  if (warp == kStepWarps) {
    copy_layers(p, s, ring, lane);
    return;
  }
  StepWorker c{p, s, ring, x, sizes.x_bytes, cache, tid, lane, warp};
  work_layers(c);
  // The last block to come here leaves the counters as it found them.
  sync_workers();
  if (tid == 0 && atomicAdd(p.counters + 1, 1U) == gridDim.x - 1) {
    p.counters[0] = 0;
    p.counters[1] = 0;
  }
#endif
}

// How a block's shared memory is cut up: x, two tiles of the cache, and as many slots of the ring as fit.
StepSizes sizes_for(const Launch& l, const DecodeStep& s) {
  cudaFuncAttributes kernel{};
  check(cudaFuncGetAttributes(&kernel, decode_step_kernel), "the kernel of a decode step");
  const auto rows = [&](int n, int cols) { return 2 * n * x_stride(cols); };
  const int heads_a_block = s.heads / l.n_sms + 2;
  const int needed = std::max({s.heads * kStepHeadBytes + kStepScoreBytes, rows(s.T, s.heads * kQkWidth),
                               2 * rows(s.T, s.hidden), rows(s.T, s.q_lora), rows(s.T * heads_a_block, kLatentWidth),
                               rows(s.T, std::min(kStepSegment, s.dense_inner)), rows(s.T, s.shared_inner),
                               rows(s.T, s.expert_inner)});
  const int all_experts = rows(s.T * s.top_k, s.expert_inner) + rows(s.T, s.shared_inner);
  StepSizes z{};
  z.x_bytes = std::max(needed, std::min(all_experts, 84 << 10));
  z.x_bytes = (z.x_bytes + 127) / 128 * 128;
  const int rest = l.smem_limit - static_cast<int>(kernel.sharedSizeBytes) - kStepCacheBytes - z.x_bytes - 128;
  z.slots = std::clamp(rest / kSlotBytes, 0, kStepSlotsMost);
  z.bytes = z.x_bytes + kStepCacheBytes + z.slots * kSlotBytes;
  return z;
}

}  // namespace

bool step_reads(const Mat& m, bool pair) {
  const MatShape& s = m.shape;
  switch (s.format) {
    case WeightFormat::kBF16:
    case WeightFormat::kF8E4M3:
    case WeightFormat::kI8:
    case WeightFormat::kI4:
    case WeightFormat::kNF4:
      break;
    default:
      return false;
  }
  if (s.cols % 32 != 0 || row_bytes(s, s.cols) % 16 != 0 || s.rows % 2 != 0) return false;
  if (reinterpret_cast<std::uintptr_t>(m.at.data) % 16 != 0) return false;
  if (!has_scales(s.format)) return true;
  if (s.group < s.cols && (s.group < 32 || (s.group & (s.group - 1)) != 0)) return false;
  const bool mins = m.at.mins != nullptr;
  if (s.group_rows > 1) return 2 * s.groups_a_row * scale_size(s) + 32 <= scale_piece(pair, mins);
  return tile_rows(s, pair, mins) >= 2;
}

int step_blocks(const Launch& l, const DecodeStep& s) {
  if (l.smem_limit < (200 << 10) || s.T > kStepRows || s.T * s.top_k > kStepSlots) return 0;
  if (s.heads > kStepHeadsMost || s.hidden > 4096 || s.hidden % 32 != 0 || s.q_lora > 4096 || s.q_lora % 32 != 0) return 0;
  return sizes_for(l, s).slots >= 4 ? l.n_sms : 0;
}

void decode_step(const Launch& l, const DecodeStep& s) {
  const StepSizes sizes = sizes_for(l, s);
  allow_shared_memory(reinterpret_cast<const void*>(decode_step_kernel), static_cast<std::size_t>(sizes.bytes));
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
  check(cudaLaunchKernelEx(&config, decode_step_kernel, s, sizes), "the kernel of a decode step");
}

}  // namespace glint::cuda
