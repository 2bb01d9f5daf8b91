// All layers of a decode step of one row in one kernel, a block a multiprocessor, resident to the end. A layer is nine
// or ten stages with a barrier of the grid after each, since every output of one is an input of all blocks in the next:
//
//   low     RMS, W_qa and W_kva            | attend  pieces of the context        | score    RMS, router; the shared
//   query   RMS, W_qb, rope; cache write   | (merge  where the pieces are many)   |          expert's gate and up
//   keys    W_UKᵀ                          | values  W_UV                         | gate/up  choice, experts
//                                          | out     W_o, into the stream         | down     experts, into the stream
//
// Blocks stage x for themselves: what one would write and all read again is computed by all instead. A warp of its own
// (decode_loader.cuh) keeps the memory busy while the others wait for each other.
//
// State that is needed on both sides of a call lies in shared memory: in local memory it cost more than the barriers
// did (docs/experiments/2026-11-24-cuda-decode-step.md).

#include "backends/cuda/decode_loader.cuh"
#include "backends/cuda/decode_stages.cuh"

namespace glint::cuda {
namespace {

struct StepSizes {
  int x_bytes, note_at, sum_bytes, pass_bytes, slot_bytes, slots, bytes;
};

#if __CUDA_ARCH__ >= 900

__device__ __forceinline__ void work_layers() {
  if (threadIdx.x == 0) step.s.trace.begin();
  StepRing ring;
  const int n_layers = step.s.p.n_layers;
  const bool appends = blockIdx.x == gridDim.x - 1;  // this token's row of the cache
#pragma unroll 1
  for (int l = 0; l < n_layers; ++l) {
    const StepLayer& layer = step.s.layers[l & 1];
    const bool routed = layer.n_experts > 0, joined = down_joined(layer);
    float experts = 0;  // of a row of the stream: what the chosen experts add, where the shared one comes behind them
                        // One place for the products of all stages: less code than the instruction cache holds.
#pragma unroll 1
    for (int i = 0; i < kStepStages; ++i) {
      const auto s = static_cast<StepStage>(i);
      step.s.trace.enter(i);
      if (s == StepStage::kKeys) {
        latent_query(layer);
        grid_arrive();
        if (l + 1 < n_layers) fetch_layer(l + 1);
        continue;
      }
      if (s == StepStage::kAttend) {
        attend_piece_any(l);
        grid_arrive();
        if (step.s.context.merge) {
          grid_wait();
          merge_pieces();
          grid_arrive();
        }
        continue;
      }
      if (s == StepStage::kQuery && appends) {
        append_row(l);
        grid_arrive();
        continue;
      }
      if (!routed && (s == StepStage::kExpertUp || s == StepStage::kExpertDown)) continue;
      if (s == StepStage::kSharedDown && joined) continue;
      note_task(s, layer);
      note_output(s, layer);
      if (s != StepStage::kExpertUp && (s != StepStage::kSharedDown || !routed)) stage_x(s, layer);
      step.s.trace.note(StepPart::kX);
      products(s, layer, ring);
      step.s.trace.note(StepPart::kProducts);
      step_sync();
      if (s == StepStage::kExpertDown && !joined) {
        experts = noted_sum(s, layer);
        continue;
      }
      finish(s, layer, s == StepStage::kSharedDown ? experts : 0.0F);
      step.s.trace.note(StepPart::kFinish);
      if (s != StepStage::kSharedUp || !routed) grid_arrive();  // the shared expert's rows: with the others
    }
  }
  step.s.trace.write(step.s.p.trace);
  normed_out();
}

#endif

__global__ void __launch_bounds__(kStepBlock, 1)
    decode_step_kernel(const __grid_constant__ DecodeStep p, const __grid_constant__ StepSizes sizes) {
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
    step.s.epoch = 0;
    step.s.weights[p.top_k] = 1;  // the shared expert's
    for (int i = 0; i < sizes.slots; ++i) {
      barrier_init(shared_address(&step.s.full[i]), 1);
      barrier_init(shared_address(&step.s.empty[i]), kStepWarps);
    }
    barrier_init_fence();
    step.s.context = {};
    plan_context();
  }
  __syncthreads();
  if (tid < 2 * kStepStages) {  // the first layer's kind and the last one's are all there are
    const StepLayer& layer = p.layers[tid < kStepStages ? 0 : p.n_layers - 1];
    const int stage = tid % kStepStages;
    plan_stage(static_cast<StepStage>(stage), layer, step.s.work[layer.n_experts > 0 ? 1 : 0][stage]);
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
    if (tid < kStepThreads + 32) load_all();
  } else {
    more_registers<kWorkerRegisters>();
    work_layers();
    // The last block to come here leaves the counters as it found them.
    step_sync();
    if (tid == 0 && atomicAdd(step.s.p.counters + 1, 1U) == gridDim.x - 1) {
      step.s.p.counters[0] = 0;
      step.s.p.counters[1] = 0;
    }
  }
#endif
}

// A block's shared memory: what the widest stage needs, then sums, then the ring. slots = 0: there is no room.
StepSizes sizes_for(const Launch& l, const DecodeStep& s) {
  cudaFuncAttributes kernel{};
  check(cudaFuncGetAttributes(&kernel, decode_step_kernel), "the kernel of a decode step");
  const auto rows = [](int n, int cols) { return cols > 0 ? 2 * n * x_stride(cols) : 0; };
  const int down = std::max(rows(s.top_k, s.expert_inner) + rows(1, s.shared_inner), rows(1, s.dense_inner));
  const int attend = (s.heads * kCacheStride + 127) / 128 * 128 + 2 * kCacheTile + kAttendScratch;
  const int keys = 2 * kNopeWidth * 4 + kStepThreads * 32;
  StepSizes z{};
  const int values = rows(2, kLatentWidth) + 2 * kStepWarps * kLatentWidth * 4;
  // Attention has no notes: they lie behind what the other stages need.
  z.note_at = std::max({keys, down, values, rows(1, s.heads * kQkWidth), rows(2, s.hidden), rows(1, s.q_lora)});
  z.note_at = (z.note_at + 127) / 128 * 128;
  z.x_bytes = (std::max(attend, z.note_at + kNotes) + 127) / 128 * 128;
  // Tiles of a block at most: of pairs of gate and up, of other rows.
  const auto pairs = [&](int inner) { return inner / l.n_sms / 8 + 2; };
  const auto others = [&](int n) { return n / (l.n_sms - 1) / 16 + 3; };
  z.pass_bytes = kTileSums * std::max({pairs(s.dense_inner), pairs(s.expert_inner * s.top_k), others(s.hidden),
                                       others(s.heads * kQkWidth), others(s.q_lora + kRowWidth)});
  z.sum_bytes = z.pass_bytes + kTileSums * std::max(pairs(s.shared_inner), others(s.hidden));
  z.slot_bytes = kSlotCodes + (s.scale_room + 127) / 128 * 128;
  const int room = l.smem_limit - static_cast<int>(kernel.sharedSizeBytes) - z.x_bytes - z.sum_bytes;
  z.slots = std::clamp(room / z.slot_bytes, 0, kSlotsMost);
  z.bytes = z.x_bytes + z.sum_bytes + z.slots * z.slot_bytes;
  return z;
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
  const auto aligned = [](const void* p) { return reinterpret_cast<std::uintptr_t>(p) % 16 == 0; };
  if (shape.cols % 32 != 0 || shape.rows % 8 != 0 || s.row_bytes % 16 != 0 || !aligned(m.at.data)) return false;
  if (!has_scales(shape.format)) return true;
  if (m.at.mins != nullptr || shape.group_rows != 1 || !aligned(m.at.scales)) return false;
  if (s.group_shift == kWholeRow) return true;
  // A step that goes past its row's end finds a scale only as a warp's first in the first chunk.
  if (s.row_bytes % kStepBytes != 0 && s.row_bytes > kStepWarps * kStepBytes) return false;
  if (shape.group < s.step_cols / 4 || shape.group > kStepWarps * s.step_cols || shape.group != 1 << s.group_shift)
    return false;
  if (s.row_bytes <= kSplitBytes) return true;
  // Scales of a part of a row are copied by themselves.
  return scale_bytes_of(s, kSplitBytes) % 16 == 0 && scale_bytes_of(s, s.row_bytes % kSplitBytes) % 16 == 0 &&
         scale_bytes_of(s, s.row_bytes) == s.scale_row_bytes;
}

int step_scale_room(const StepMat& m) {
  if (m.scale_row_bytes == 0) return 0;
  if (m.row_bytes > kSplitBytes)
    return 16 * (m.group_shift == kWholeRow ? m.scale_row_bytes : scale_bytes_of(m, kSplitBytes));
  const int steps = (m.row_bytes + kStepBytes - 1) / kStepBytes;
  return std::max(1, kStepWarps / steps) * 16 * m.scale_row_bytes;
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
  if (shape.group < shape.cols) s.group_shift = log2_of(shape.group);
  return s;
}

int step_blocks(const Launch& l, const DecodeStep& s) {
  if (l.smem_limit < (200 << 10) || s.top_k + 1 > kStepSlots) return 0;
  if (s.heads > std::min(kStepHeadsMost, l.n_sms) || s.hidden > 8 * kStepThreads || s.q_lora > 8 * kStepThreads)
    return 0;
  // A block's columns of W_UK: units of eight, and loads of a thread.
  const int units = s.heads * (kLatentWidth / 8) / l.n_sms + 1;
  if (units > kKeyUnits || (kNopeWidth + kStepThreads / units - 1) / (kStepThreads / units) > kKeyLoads) return 0;
  return sizes_for(l, s).slots >= 2 ? l.n_sms : 0;
}

void decode_step(const Launch& l, const DecodeStep& given) {
  DecodeStep s = given;
  StepTraceBuffer trace(l, &s);
  const StepSizes sizes = sizes_for(l, s);
  allow_shared_memory(reinterpret_cast<const void*>(decode_step_kernel), static_cast<std::size_t>(sizes.bytes));
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeCooperative;
  attribute.val.cooperative = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(l.n_sms));
  config.blockDim = dim3(kStepBlock);
  config.dynamicSmemBytes = static_cast<std::size_t>(sizes.bytes);
  config.stream = l.stream;
  config.attrs = &attribute;
  config.numAttrs = 1;
  check(cudaLaunchKernelEx(&config, decode_step_kernel, s, sizes), "the kernel of a decode step");
  trace.write();
}

}  // namespace glint::cuda
