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
#include <vector>
#include <cstdlib>
#include <cstdio>

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

__device__ __forceinline__ void load_layer(StepLayer& to, const StepLayer* from, int first, int step) {
#pragma unroll 1
  for (int i = first; i < static_cast<int>(sizeof(StepLayer) / 16); i += step)
    reinterpret_cast<uint4*>(&to)[i] = __ldg(reinterpret_cast<const uint4*>(from) + i);
}

// The copying warp: all tiles of this block, in the order of the stages.
__device__ __forceinline__ void copy_layers(Ring ring, int lane) {
  std::uint32_t routed = 0;
  const StepLayer& w = step.s.copy_layer;
  const int n_layers = step.s.p.n_layers, heads = step.s.p.heads;
#pragma unroll 1
  for (int l = 0; l < n_layers; ++l) {
    __syncwarp();
    load_layer(step.s.copy_layer, step.s.p.layers + l, lane, 32);
    __syncwarp();
    const auto copy = [&](const StepTile& t, auto...) {
      ring.advance(copy_tile(ring, w.mats[t.role], t.at[0], t.at[1], t.row, t.n, t.pair, t.begin, t.end, lane));
    };
    each_low_tile(w, copy);
    each_row_tile(w, kQb, copy);
    each_column_tile(heads, [&](int head, int column) {
      copy_columns(ring, w.kv_b, head * (kNopeWidth + kQkWidth), column, lane);
    });
    each_value_tile(w, heads, copy);
    each_row_tile(w, kO, copy);
    each_shared_tile(w, copy);
    int n_items = 0;
    if (w.n_experts > 0) {
      barrier_wait(shared_address(&step.s.routed), routed);
      routed ^= 1U;
      n_items = step.s.n_items;
      each_expert_tile(w, step.s.experts, step.s.items, n_items, copy);
    }
    each_down_tile(w, step.s.experts, step.s.items, n_items, copy);
  }
}

template <int kT>
__device__ __forceinline__ void work_layers(StepWorker<kT>& c) {
  const int n_layers = step.s.p.n_layers;
#pragma unroll 1
  for (int l = 0; l < n_layers; ++l) {
    c.mark();  // 0
    load_layer(step.s.layer, step.s.p.layers + l, c.tid, kStepWorkers);
    sync_workers();
#pragma unroll 1
    for (int i = c.tid; i < 3 * step.s.layer.n_experts; i += kStepWorkers) step.s.experts[i] = step.s.layer.experts[i];
    c.mark();  // 1
    c.project_low();
    c.mark();  // 2
    c.grid_sync();
    c.mark();  // 3
    c.project_query(l);
    c.mark();
    c.grid_sync();
    c.mark();  // 5
    c.latent_query();
    c.mark();
    c.grid_sync();
    c.mark();  // 7
    attend_pieces_any(l);
    c.mark();
    c.grid_sync();
    c.mark();  // 9
    if (step.s.contexts.merge) {
      merge_pieces();
      c.grid_sync();
    }
    project_values(c);
    c.mark();
    c.grid_sync();
    c.mark();  // 11
    c.project_out();
    c.mark();
    c.grid_sync();
    c.mark();  // 13
    c.score_experts();
    c.mark();  // 14
    const bool routed = step.s.layer.n_experts > 0;
    if (routed) c.grid_arrive();
    c.shared_gate_up();
    c.mark();  // 15
    if (routed) {
      c.grid_wait();
      c.mark();  // 16
      c.choose_experts();
      c.mark();  // 17
      c.expert_gate_up();
    } else {
      c.mark();
      c.mark();
    }
    c.mark();  // 18
    c.grid_sync();
    c.mark();  // 19
    c.down();
    c.mark();  // 20
    c.grid_sync();
    c.mark();  // 21
  }
  c.normed_out();
}

#endif

template <int kT>
__global__ void __launch_bounds__(kStepThreads, 1) decode_step_kernel(const __grid_constant__ DecodeStep p,
                                                                      const __grid_constant__ StepSizes sizes) {
#if __CUDA_ARCH__ >= 900
  extern __shared__ __align__(128) unsigned char smem[];
  const int tid = threadIdx.x, lane = tid % 32, warp = tid / 32;
  Ring ring;
  ring.n = sizes.slots;
  ring.full = shared_address(step.s.full);
  ring.empty = shared_address(step.s.empty);
  const std::uint32_t x = shared_address(smem);
  ring.slots = x + sizes.x_bytes + kStepCacheBytes;
  if (tid == 0) {
    for (int i = 0; i < sizes.slots; ++i) {
      barrier_init(ring.full + 8 * i, 1);
      barrier_init(ring.empty + 8 * i, kStepWarps);
    }
    barrier_init(shared_address(&step.s.routed), 1);
    barrier_init_fence();
    step.s.p = p;
    step.s.x = x;
    step.s.cache = x + sizes.x_bytes;
    step.s.x_bytes = sizes.x_bytes;
    plan_contexts();
  }
  for (int i = tid; i < 256; i += kStepThreads) step.s.nf4[i] = pack_bf16(kNf4[i >> 4], kNf4[i & 15]);
  if (tid < 32 * kT) {
    float2& r = step.s.rope[tid / 32][lane];
    rope_angle(p.rope.frequencies.revolutions[lane], p.rope.positions[tid / 32], &r.x, &r.y);
  }
  __syncthreads();
  if (warp == kStepWarps) {
    copy_layers(ring, lane);
    return;
  }
  StepWorker<kT> c{ring, tid, lane, warp};
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
  s.tile_rows = pair ? kTileRows / 2 : kTileRows;
  if (!has_scales(shape.format)) return s;
  s.mins = m.at.mins != nullptr;
  s.scale_dtype = shape.scale_dtype;
  s.scale_bytes = shape.scale_dtype == DType::kF32 ? 4 : 2;
  s.scale_row_bytes = shape.groups_a_row * s.scale_bytes;
  s.group_shift = shape.group >= shape.cols ? std::uint8_t{30} : log2_of(shape.group);
  s.rows_shift = log2_of(shape.group_rows);
  // As many rows as have their scales in one slot.
  if (shape.group_rows == 1) s.tile_rows = std::min(s.tile_rows, (scale_piece(pair, s.mins) - 32) / s.scale_row_bytes / 2 * 2);
  return s;
}

int step_blocks(const Launch& l, const DecodeStep& s) {
  if (l.smem_limit < (200 << 10) || s.T > kStepRows || s.T * s.top_k > kStepSlots) return 0;
  if (s.heads > kStepHeadsMost || s.hidden > 8 * kStepWorkers || s.hidden % 32 != 0 || s.q_lora > 8 * kStepWorkers || s.q_lora % 32 != 0) return 0;
  return sizes_for(l, s).slots >= 4 ? l.n_sms : 0;
}

void decode_step(const Launch& l, const DecodeStep& step) {
  DecodeStep s = step;
  static int calls = 0;
  static long long* trace = nullptr;
  const bool tracing = getenv("STEP_TRACE") != nullptr && ++calls == 12;
  if (tracing) cudaMalloc(&trace, 132 * 1024 * 8);
  s.trace = tracing ? trace : nullptr;
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
  if (tracing) {
    std::vector<long long> t(132 * 1024);
    cudaDeviceSynchronize();
    cudaMemcpy(t.data(), trace, t.size() * 8, cudaMemcpyDeviceToHost);
    const char* names[] = {"load layer", "low", "-wait", "query", "-wait", "latent", "-wait", "attend", "-wait", "values", "-wait", "out", "-wait", "score", "shared", "-wait", "choose", "gate/up", "-wait", "down", "-wait"};
    for (int i = 0; i < 21; ++i) {
      double sum = 0, most = 0;
      int n = 0;
      for (int b = 0; b < 132; ++b) {
        double mine = 0;
        int m = 0;
        for (int layer = 2; layer < 40; ++layer) {
          const int at = b * 1024 + layer * 22 + i;
          mine += t[at + 1] - t[at];
          ++m;
        }
        sum += mine / m; ++n;
        most = std::max(most, mine / m);
      }
      printf("TRACE %-12s mean %8.0f most %8.0f cycles\n", names[i], sum / n, most);
    }
  }
}

}  // namespace glint::cuda
