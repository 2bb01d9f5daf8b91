// The host's side of a decode step in one kernel (decode_kernel.cuh): which kernel, its shared memory, its launch.

#include <algorithm>

#include "backends/cuda/common.cuh"
#include "backends/cuda/decode_attend.cuh"
#include "backends/cuda/decode_attend_codes.cuh"
#include "backends/cuda/decode_attend_pages.cuh"
#include "backends/cuda/decode_join.cuh"
#include "backends/cuda/decode_memory.cuh"
#include "backends/cuda/decode_shape.cuh"
#include "backends/cuda/page_tensor.hpp"

namespace glint::cuda {
namespace {

const void* kernel_of(const DecodeStep& s, int blocks) {
  const bool fits = s.top_k == FlashBf16<KvCodec::kBF16, false>::kTopK && joins(blocks, s.heads);
  switch (fits ? s.known : StepModel::kAny) {
    case StepModel::kBf16:
      return step_kernel_bf16(s.cache.codec, s.far);
    case StepModel::kInt8:
      return step_kernel_int8(s.cache.codec, s.far);
    case StepModel::kInt4:
      return step_kernel_int4(s.cache.codec, s.far);
    case StepModel::kQ4:
      return step_kernel_q4(s.cache.codec, s.far);
    default:
      return step_kernel_any();
  }
}

// Up to how many tokens a block takes eight heads of a shorter piece. Where rows are read fast that is worth it for
// longer: then what a piece of all heads costs besides counts. Measured on an H200, 2026-11-30.
int near_tokens(KvCodec codec) {
  switch (codec) {
    case KvCodec::kFp8:
      return 25600;
    case KvCodec::kInt8:
      return 15360;
    case KvCodec::kInt4:
      return 16896;
    default:
      return 12032;
  }
}

// Whether these layers, the first of their kinds, are what P knows.
template <class P>
bool knows(const DecodeStep& s, std::span<const StepLayer> layers) {
  const auto same = [](const StepMat& a, const StepMat& b) {
    return a.rows == b.rows && a.cols == b.cols && a.row_bytes == b.row_bytes && a.format == b.format &&
           a.scale_row_bytes == b.scale_row_bytes && a.group_shift == b.group_shift && a.scale_dtype == b.scale_dtype;
  };
  if (s.heads != P::kHeads || s.hidden != P::kHidden || s.q_lora != P::kQLora || s.top_k != P::kTopK) return false;
  return std::ranges::all_of(layers, [&](const StepLayer& l) {
    const bool routed = l.n_experts > 0;
    for (int r = 0; r < kStepRoles; ++r) {
      const auto role = static_cast<StepRole>(r);
      if (!routed && (role == StepRole::kGate || role == StepRole::kDown)) continue;
      if (!same(l.mats[r], P::mat(role, routed))) return false;
    }
    return true;
  });
}

// What every kernel has of shared memory before a launch adds any; asked once.
int fixed_shared_bytes() {
  static const int bytes = [] {
    cudaFuncAttributes kernel{};
    check(cudaFuncGetAttributes(&kernel, step_kernel_any()), "the kernel of a decode step");
    return static_cast<int>(kernel.sharedSizeBytes);
  }();
  return bytes;
}

// A block's shared memory: what the widest stage needs, then sums, then the ring. slots = 0: there is no room.
StepSizes sizes_for(const Launch& l, const DecodeStep& s) {
  const auto rows = [](int n, int cols) { return cols > 0 ? 2 * n * x_stride(cols) : 0; };
  const int down = std::max(rows(s.top_k, s.expert_inner) + rows(1, s.shared_inner), rows(1, s.dense_inner));
  static_assert(CodeLayout<KvCodec::kInt4, 1>::kBytes <= CodeLayout<KvCodec::kInt8, 1>::kBytes);
  const int grouped = std::max(RowsLayout<1>::kBytes, CodeLayout<KvCodec::kInt8, 1>::kBytes),
            attend = s.heads <= 8 ? grouped : std::max({grouped, RowsLayout<3>::kBytes, PagesLayout::kBytes});
  StepSizes z{};
  const int values = rows(1, kLatentWidth) + kStepWarps * kLatentWidth * 4;
  // Attention has no notes: they lie behind what the other stages need.
  z.note_at = std::max(
      {kKeyBytes, kJoinBytes, down, values, rows(1, s.heads * kQkWidth), rows(2, s.hidden), rows(1, s.q_lora)});
  z.note_at = (z.note_at + 127) / 128 * 128;
  z.x_bytes = (std::max(attend, z.note_at + kNotes) + 127) / 128 * 128;
  // Tiles of a block at most: of pairs of gate and up, of other rows.
  const auto pairs = [&](int inner) { return inner / l.n_sms / 8 + 2; };
  const auto others = [&](int n) { return n / (l.n_sms - 1) / 16 + 3; };
  z.pass_bytes = kTileSums * std::max({pairs(s.dense_inner), pairs(s.expert_inner * s.top_k), others(s.hidden),
                                       others(s.heads * kQkWidth), others(s.q_lora + kRowWidth)});
  z.sum_bytes = z.pass_bytes + kTileSums * std::max(pairs(s.shared_inner), others(s.hidden));
  z.slot_bytes = kSlotCodes + (s.scale_room + 127) / 128 * 128;
  const int room = l.smem_limit - fixed_shared_bytes() - z.x_bytes - z.sum_bytes;
  z.slots = std::clamp(room / z.slot_bytes, 0, kSlotsMost);
  z.bytes = z.x_bytes + z.sum_bytes + z.slots * z.slot_bytes;
  if (s.heads > 8) {  // pages lie in all of it
    z.bytes = std::max(z.bytes, PagesLayout::kAll);
    if (z.bytes > l.smem_limit - fixed_shared_bytes()) z.slots = 0;
  }
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

StepModel step_model(const DecodeStep& s, std::span<const StepLayer> layers) {
  if (knows<FlashBf16<KvCodec::kBF16, false>>(s, layers)) return StepModel::kBf16;
  if (knows<FlashInt8<KvCodec::kBF16, false>>(s, layers)) return StepModel::kInt8;
  if (knows<FlashInt4<KvCodec::kBF16, false>>(s, layers)) return StepModel::kInt4;
  if (knows<FlashQ4<KvCodec::kBF16, false>>(s, layers)) return StepModel::kQ4;
  return StepModel::kAny;
}

int step_blocks(const Launch& l, const DecodeStep& s) {
  if (l.smem_limit < (200 << 10) || s.top_k + 1 > kStepSlots) return 0;
  if (s.heads > std::min(kStepHeadsMost, l.n_sms - 1) || s.hidden > 8 * kStepThreads || s.q_lora > 8 * kStepThreads)
    return 0;
  // A block's columns of W_UK: units of eight, and loads of a thread.
  const int per = (l.n_sms - 1) / s.heads, units = (kLatentWidth / 8 + per - 1) / per;
  if (units > kKeyUnits || (kNopeWidth + kStepThreads / units - 1) / (kStepThreads / units) > kKeyLoads) return 0;
  return sizes_for(l, s).slots >= 2 ? l.n_sms : 0;
}

void load_step_kernels(const Launch& l, const DecodeStep& given) {
  DecodeStep s = given;
  for (const KvCodec codec : {KvCodec::kBF16, KvCodec::kFp8, KvCodec::kInt8, KvCodec::kInt4}) {
    for (const bool far : {false, true}) {
      s.cache.codec = codec;
      s.far = far;
      cudaFuncAttributes kernel{};
      check(cudaFuncGetAttributes(&kernel, kernel_of(s, l.n_sms)), "the kernel of a decode step");
    }
  }
}

void decode_step(const Launch& l, const DecodeStep& given) {
  DecodeStep s = given;
  const bool codes = is_short(s.cache.codec);
  const std::int64_t most = std::int64_t{s.cache.max_pages} * kPageRows;
  s.far = (s.cache.window > 0 ? std::min<std::int64_t>(most, s.cache.window) : most) > near_tokens(s.cache.codec) &&
          (l.wgmma || !codes);  // all heads of a page of codes: decode_attend_pages.cuh
  StepTraceBuffer trace(l, &s);
  const StepSizes sizes = sizes_for(l, s);
  const void* kernel = kernel_of(s, l.n_sms);
  allow_shared_memory(kernel, static_cast<std::size_t>(sizes.bytes));
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
  CUtensorMap pages{};
  if (s.far && codes) {
    pages = page_tensor(s.cache.pages, static_cast<int>(kv_row_bytes(s.cache.codec)),
                        {s.cache.page_stride, s.layer_stride});
  }
  void* arguments[] = {&s, const_cast<StepSizes*>(&sizes), &pages};
  check(cudaLaunchKernelExC(&config, kernel, arguments), "the kernel of a decode step");
  trace.write();
}

}  // namespace glint::cuda
