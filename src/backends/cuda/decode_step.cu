// All layers for few rows in one kernel, a block a multiprocessor, resident to the end. A layer is nine or ten stages
// with a barrier of the grid after each, since every output of one is an input of all blocks in the next:
//
//   low     RMS, W_qa and W_kva            | attend  pieces of the contexts       | score    RMS, router; the shared
//   query   RMS, W_qb, rope; cache write   | (merge  where the pieces are many)   |          expert's gate and up
//   keys    W_UKᵀ                          | values  W_UV                         | gate/up  choice, experts
//                                          | out     W_o, into the stream         | down     experts, into the stream
//
// Blocks stage x for themselves: what one would write and all read again is computed by all instead. Two things keep
// the memory busy while they wait for each other: the first loads of a stage are issued before its barrier, and a warp
// asks for the rows of later stages to come into the second-level cache. Only the chosen experts cannot be known ahead.
//
// The products of all stages stand in one place, and what comes between them in functions that take what they need from
// shared memory: state in local memory cost more than the barriers did
// (docs/experiments/2026-11-24-cuda-decode-step.md).

#include "backends/cuda/decode_stages.cuh"
#include "backends/cuda/decode_trace.cuh"

namespace glint::cuda {
namespace {

struct StepSizes {
  int x_bytes, bytes;
};

#if __CUDA_ARCH__ >= 900

// What a warp asks for at the end of a stage: rows of later ones.
__device__ __forceinline__ void read_ahead(StepStage s, int l) {
  const int parity = l & 1, next = parity ^ 1;
  if (s == StepStage::kLow) {
    prefetch_stage(StepStage::kValues, parity);
    prefetch_stage(StepStage::kOut, parity);
  } else if (s == StepStage::kQuery) {
    prefetch_stage(StepStage::kSharedUp, parity);
    prefetch_stage(StepStage::kSharedDown, parity);
  } else if (s == StepStage::kExpertUp && l + 1 < step.s.p.n_layers) {
    prefetch_stage(StepStage::kLow, next);
    prefetch_stage(StepStage::kQuery, next);
    prefetch_keys(next);
  }
}

template <int kT>
__device__ __forceinline__ void work_layers() {
  StepTrace trace(step.s.p.trace);
  const int n_layers = step.s.p.n_layers;
  const int append = static_cast<int>(gridDim.x) - 1 - static_cast<int>(blockIdx.x);  // this token's row of the cache
#pragma unroll 1
  for (int l = 0; l < n_layers; ++l) {
    const int parity = l & 1;
    const bool routed = step.s.layers[parity].n_experts > 0;
    // One place for the products of all stages: the compiler has one function with one set of registers.
#pragma unroll 1
    for (int i = 0; i <= static_cast<int>(StepStage::kSharedDown); ++i) {
      const auto s = static_cast<StepStage>(i);
      trace.mark();
      if (s == StepStage::kKeys) {
        latent_query<kT>(parity);
        grid_arrive();
        if (l + 1 < n_layers) fetch_layer(l + 1);
        continue;
      }
      if (s == StepStage::kAttend) {
        attend_pieces_any(l);
        grid_arrive();
        if (step.s.contexts.merge) {
          grid_wait();
          merge_pieces();
          grid_arrive();
        }
        continue;
      }
      if (s == StepStage::kQuery && append < step.s.p.T) {
        append_row(append, l);
        grid_arrive();
        read_ahead(s, l);
        continue;
      }
      if (!routed && (s == StepStage::kExpertUp || s == StepStage::kExpertDown)) {
        if (s == StepStage::kExpertUp) read_ahead(s, l);
        continue;
      }
      if (s == StepStage::kExpertUp) {
        choose<kT>(parity);
        prefetch_stage(StepStage::kExpertDown, parity);
      }
      const bool waits = s != StepStage::kExpertUp && (s != StepStage::kSharedDown || !routed);
      products<kT>(s, parity, waits, s == StepStage::kSharedDown ? 1 : 0);
      if (s == StepStage::kExpertDown) continue;
      if (s == StepStage::kSharedDown) {
        finish_down<kT>(parity);
      } else {
        finish<kT>(s, parity);
      }
      if (s != StepStage::kSharedUp || !routed)
        grid_arrive();  // the shared expert's rows are announced with the others
      read_ahead(s, l);
    }
  }
  trace.mark();
  normed_out();
}

#endif

template <int kT>
__global__ void __launch_bounds__(kStepThreads, 1)
    decode_step_kernel(const __grid_constant__ DecodeStep p, const __grid_constant__ StepSizes sizes) {
#if __CUDA_ARCH__ >= 900
  extern __shared__ __align__(128) unsigned char smem[];
  const int tid = threadIdx.x, lane = tid % 32;
  if (tid == 0) {
    step.s.p = p;
    step.s.x = shared_address(smem);
    step.s.sums = step.s.x + sizes.x_bytes;
    step.s.epoch = 0;
    plan_contexts();
  }
  __syncthreads();
  if (tid < 2 * kStepStages) {  // the first layer's kind and the last one's are all there are
    const StepLayer& layer = p.layers[tid < kStepStages ? 0 : p.n_layers - 1];
    const int stage = tid % kStepStages;
    plan_stage(static_cast<StepStage>(stage), layer, step.s.work[layer.n_experts > 0 ? 1 : 0][stage], p.T * p.top_k);
  }
  for (int i = tid; i < 256; i += kStepThreads) step.s.nf4[i] = pack_bf16(kNf4[i >> 4], kNf4[i & 15]);
  __syncthreads();
  fetch_layer(0);
  if (tid < 32 * p.T) {
    float2& r = step.s.rope[tid / 32][lane];
    rope_angle(p.rope.frequencies.revolutions[lane], p.rope.positions[tid / 32], &r.x, &r.y);
  }
  __syncthreads();
  work_layers<kT>();
  // The last block to come here leaves the counters as it found them.
  __syncthreads();
  if (tid == 0 && atomicAdd(step.s.p.counters + 1, 1U) == gridDim.x - 1) {
    step.s.p.counters[0] = 0;
    step.s.p.counters[1] = 0;
  }
#endif
}

using StepKernel = void (*)(DecodeStep, StepSizes);
// The rows that the kernel for so many has room for.
int step_room(int rows) { return rows <= 2 ? rows : kStepRows; }
StepKernel kernel_for(int rows) {
  return rows == 1 ? decode_step_kernel<1> : rows == 2 ? decode_step_kernel<2> : decode_step_kernel<kStepRows>;
}

// A block's shared memory: what the widest stage needs, then sums. bytes = 0: there is no room.
StepSizes sizes_for(const Launch& l, const DecodeStep& s) {
  cudaFuncAttributes kernel{};
  check(cudaFuncGetAttributes(&kernel, kernel_for(s.T)), "the kernel of a decode step");
  const auto rows = [](int n, int cols) { return cols > 0 ? 2 * n * x_stride(cols) : 0; };
  const int down = std::max(rows(s.T * s.top_k, s.expert_inner) + rows(s.T, s.shared_inner), rows(s.T, s.dense_inner));
  const int attend = (s.heads * kCacheStride + 127) / 128 * 128 + 2 * kCacheTile + kAttendScratch;
  const int keys = 2 * s.T * kNopeWidth * 4 + kStepThreads * 32;
  StepSizes z{};
  z.x_bytes = std::max({attend, keys, down, rows(s.T, s.heads * kQkWidth), 2 * rows(s.T, s.hidden), rows(s.T, s.q_lora),
                        rows(2 * s.T, kLatentWidth)});
  z.x_bytes = (z.x_bytes + 127) / 128 * 128;
  z.bytes = z.x_bytes + sum_bytes(step_room(s.T));
  if (z.bytes + static_cast<int>(kernel.sharedSizeBytes) > l.smem_limit) z.bytes = 0;
  return z;
}

// Whether the sums have room for every stage's tiles.
bool tiles_fit(const Launch& l, const DecodeStep& s) {
  const int pairs = std::max({s.dense_inner, s.shared_inner, s.expert_inner * s.T * s.top_k});
  const int rows = std::max({s.hidden, s.q_lora + kRowWidth, s.heads * kQkWidth});
  const int tiles = std::max(pairs / l.n_sms / 8, rows / (l.n_sms - s.T) / 16) + 2;
  const int down = s.hidden / l.n_sms / 16 + 2;  // tiles, of T · top_k experts
  return tiles <= kSumTiles && down * s.T * s.top_k <= 2 * kStepWarps;
}

}  // namespace

bool step_reads(const Mat& m) {
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
  const StepMat s = step_mat(m);
  if (shape.cols % 32 != 0 || s.row_bytes % 16 != 0 || reinterpret_cast<std::uintptr_t>(m.at.data) % 16 != 0)
    return false;
  if (!has_scales(shape.format)) return true;
  if (m.at.mins != nullptr) return false;
  if (shape.group < shape.cols && (shape.group < s.step_cols / 4 || shape.group != 1 << s.group_shift)) return false;
  return shape.group_rows == 1 << s.rows_shift;
}

StepMat step_mat(const Mat& m) {
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
  s.format = shape.format;
  const int bits = weight_code_bits(shape.format);
  s.row_bytes = shape.cols * bits / 8;
  s.step_cols = 512 / bits;
  if (!has_scales(shape.format)) return s;
  s.scale_dtype = shape.scale_dtype;
  s.scale_row_bytes = shape.groups_a_row * (shape.scale_dtype == DType::kF32 ? 4 : 2);
  s.group_shift = shape.group >= shape.cols ? std::uint8_t{30} : log2_of(shape.group);
  s.rows_shift = log2_of(shape.group_rows);
  return s;
}

int step_blocks(const Launch& l, const DecodeStep& s) {
  if (l.smem_limit < (200 << 10) || s.T > kStepRows || s.T * s.top_k > kStepSlots) return 0;
  if (s.heads > std::min(kStepHeadsMost, l.n_sms) || s.hidden > 8 * kStepThreads || s.hidden % 32 != 0 ||
      s.q_lora > 8 * kStepThreads || s.q_lora % 32 != 0)
    return 0;
  // A block's columns of W_UK: units of eight, and loads of a thread.
  const int units = s.heads * (kLatentWidth / 8) / l.n_sms + 1;
  if (units > kKeyUnits || (kNopeWidth + kStepThreads / units - 1) / (kStepThreads / units) > kKeyLoads) return 0;
  return tiles_fit(l, s) && sizes_for(l, s).bytes > 0 ? l.n_sms : 0;
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
