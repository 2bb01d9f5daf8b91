#pragma once
// A stage that multiplies: the working warps take codes from the ring as they come, a step of sixteen rows each.
//
// W is the A operand of m16n8k16, sixteen rows a tile. The order of a contraction is free, so that the 16 bytes a lane
// takes of each of its two rows (lane = 4 g + t: rows g and g + 8, bytes 16 t of the step's 64) are its share of as
// many products as they hold columns. The B operand's eight columns are
//   BF16        the high and the low part of x; and the same of the step beside it, whose codes odd rows take: rows lie
//               a multiple of 128 bytes apart, and two of them then meet different banks
//   short codes column 2 t + part has x only where the contraction is lane t's share. The sums of a lane are then those
//               of its own codes, whose scale is one number: codes enter the product exactly, and scales the sums in
//               fp32, whatever the group. Integers are multiplied as such, with x in two bytes (m16n8k32).

#include "backends/cuda/decode_join.cuh"
#include "backends/cuda/decode_staging.cuh"

#if __CUDA_ARCH__ >= 900
namespace glint::cuda {

template <WeightFormat F>
struct StepFormat {
  static constexpr int kBits = weight_code_bits(F);
  static constexpr int kCols = 128 / kBits;  // columns of a lane's 16 bytes
  static constexpr int kUnits = kCols / 8;   // eights of them
  static constexpr bool kScaled = kBits <= 8;
  static constexpr bool kInteger = F == WeightFormat::kI8 || F == WeightFormat::kI4;
};

__device__ __forceinline__ std::uint32_t word_of(const uint4& v, int i) {
  return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}
// Unit j of a lane's short codes as four pairs of BF16.
template <WeightFormat F>
__device__ __forceinline__ void unit_of(const uint4& code, int j, std::uint32_t nf4, std::uint32_t (&a)[4]) {
  if constexpr (F == WeightFormat::kF8E4M3) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const std::uint32_t w = word_of(code, 2 * j + i);
      a[2 * i] = e4m3_pair(__byte_perm(w, 0, 0x4140));
      a[2 * i + 1] = e4m3_pair(__byte_perm(w, 0, 0x4342));
    }
  } else {
    const std::uint32_t w = word_of(code, j);
#pragma unroll
    for (int i = 0; i < 4; ++i) a[i] = lds32(nf4 + ((w >> (8 * i)) & 255U) * 4);
  }
}

// A word of INT4 codes, which are stored with 8 added: its lower or upper nibbles as bytes, times 16. `by`: 0xf0f0f0f0
// and 0x80808080, from memory. If the compiler knew them it would make two instructions of one, since an instruction
// holds one constant.
__device__ __forceinline__ std::uint32_t upper_nibbles(std::uint32_t w, uint2 by) {
  std::uint32_t v;
  asm("lop3.b32 %0, %1, %2, %3, 0x6a;" : "=r"(v) : "r"(w), "r"(by.x), "r"(by.y));  // (w & by.x) ^ by.y
  return v;
}
__device__ __forceinline__ std::uint32_t lower_nibbles(std::uint32_t w, uint2 by) { return upper_nibbles(w << 4, by); }

// The running sums of a warp's tile.
template <WeightFormat F>
struct StepSums {
  static constexpr bool kScaled = StepFormat<F>::kScaled;
  float v[kScaled ? 2 : 4] = {};

  __device__ __forceinline__ void add(const StepSums& other) {
#pragma unroll
    for (int i = 0; i < (kScaled ? 2 : 4); ++i) v[i] += other.v[i];
  }
  // To [16 rows] at `to`. `rotated`: odd rows have their sums in the second pair of columns.
  __device__ __forceinline__ void flush(std::uint32_t to, bool rotated) {
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    if constexpr (kScaled) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        v[r] += __shfl_xor_sync(0xffffffffU, v[r], 1);
        v[r] += __shfl_xor_sync(0xffffffffU, v[r], 2);
        if (t == r) sts32(to + (8 * r + g) * 4, __float_as_uint(v[r]));
      }
    } else if (t == (rotated ? g % 2 : 0)) {
#pragma unroll
      for (int r = 0; r < 2; ++r) sts32(to + (8 * r + g) * 4, __float_as_uint(v[2 * r] + v[2 * r + 1]));
    }
  }
};

// ---- what can be known before x is there ----------------------------------------------------------------------------

// A lane's part of a stage's products, and a row of the block's tiles: where its sums lie and where their sum goes. A
// thread works both out while it waits for other blocks. Where stages have each its code (a known model) they stay in
// registers; else a thread notes them in shared memory: in registers across the one place for all stages they would end
// in local memory, which the little that is left of the first-level cache does not hold.
struct StepTask {
  std::uint32_t code, scale;  // in a slot: its 16 bytes of row g and their scale
  std::uint32_t x;            // of the first chunk, item and tile
  std::uint32_t sums;         // where the sums of the first tile go
  int tile;                   // in a chunk; or a number that no tile has
  bool brings;                // this lane has columns of x; other lanes bring zeros
  bool ends[2];               // its warp has a first, a second step in a row's last chunk
};
struct StepOutput {
  float* to;           // null: no such row, or the up of a gate
  std::uint32_t sums;  // 0: no such tile
  float old;           // what the sum is added to
  float2 rope;         // kQuery: by which a pair of rows is turned
};

__device__ __forceinline__ std::uint32_t note_at(int i) {
  return step.s.notes + static_cast<std::uint32_t>((i * kStepThreads + static_cast<int>(threadIdx.x)) * kNoteBytes);
}

template <class P>
__device__ __forceinline__ StepTask task_of(StepStage stage, const LayerView<P>& v) {
  const StepWork w = v.work(stage);
  const StepMat m = v.mat(stage);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
  const int in = warp * w.recip >> 8, at = warp - in * w.parts;  // tile and step in a chunk
  const bool pairs = x_kind(m.format) == XKind::kPairs;
  const int lane_cols = m.step_cols / 4, stride = pairs ? x_stride(m.cols) : byte_stride(m.cols), row = in * 16 + g;
  const bool scaled = m.scale_row_bytes > 0, rotated = !scaled && w.even;
  const int code = row * w.row_bytes + (rotated ? at ^ (g & 1) : at) * kStepBytes + t * 16;
  // A row's last step may be longer than the row: x is zero there, and the scale must be a number.
  const int column = (at * 4 + t) * lane_cols;
  const int group = is_grouped(m) && column < m.cols ? column >> m.group_shift : 0;
  const int scale = kSlotCodes + row * w.scale_row + group * (m.scale_dtype == DType::kF32 ? 4 : 2);
  const int x_bytes = pairs ? 2 : 1;
  const int x = x_offset(stage, v) + g % 2 * stride + t * lane_cols * x_bytes +
                (rotated ? at ^ (g >> 1) : at) * m.step_cols * x_bytes;
  const int sums = pass_of(stage, v.routed) * step.s.pass_bytes + (in * w.parts + at) * 64;
  return {static_cast<std::uint32_t>(code),
          static_cast<std::uint32_t>(scale),
          step.s.x + static_cast<std::uint32_t>(x),
          step.s.sums + static_cast<std::uint32_t>(sums),
          in < w.together ? in : 0xffff,
          scaled ? g / 2 == t : g < (rotated ? 4 : 2),
          {at < w.last_steps, at + kStepWarps < w.last_steps}};
}
__device__ __forceinline__ void note(const StepTask& k) {
  sts128(note_at(0), {k.code | k.scale << 16, k.x, k.sums,
                      static_cast<std::uint32_t>(k.tile) | (k.brings ? 1U << 29 : 0U) | (k.ends[0] ? 1U << 30 : 0U) |
                          (k.ends[1] ? 1U << 31 : 0U)});
}
__device__ __forceinline__ StepTask noted_task() {
  const uint4 n = lds128(note_at(0));
  return {n.x & 0xffffU,
          n.x >> 16,
          n.y,
          n.z,
          static_cast<int>(n.w & 0xffffU),
          (n.w >> 29 & 1U) != 0,
          {(n.w >> 30 & 1U) != 0, n.w >> 31 != 0}};
}

// Which of the rows of the block's tiles is this thread's. The shared expert's and the chosen ones' gate and up end
// together: other warps take the shared one's.
__device__ __forceinline__ int place_of(StepStage stage, bool routed) {
  const int tid = static_cast<int>(threadIdx.x);
  return stage == StepStage::kSharedUp && routed ? tid ^ (kStepThreads - 32) : tid;
}
// Where the sums of this thread's row lie; 0: no such tile.
template <class P>
__device__ __forceinline__ std::uint32_t sums_of(StepStage stage, const LayerView<P>& v) {
  const StepWork w = v.work(stage);
  const int place = place_of(stage, v.routed), tile = place >> 4;
  if (tile >= w.tiles) return 0;
  const int group = w.together == 1 ? tile : tile / w.together, in = tile - group * w.together;
  return step.s.sums + static_cast<std::uint32_t>(pass_of(stage, v.routed) * step.s.pass_bytes +
                                                  group * (kStepWarps * 64) + in * w.parts * 64 + place % 16 * 4);
}

template <class P>
__device__ __forceinline__ StepOutput output_of(StepStage stage, const LayerView<P>& v) {
  const DecodeStep& p = step.s.p;
  const StepWork w = v.work(stage);
  const int place = place_of(stage, v.routed), tile = place >> 4;
  StepOutput o{nullptr, sums_of(stage, v), 0.0F, {1.0F, 0.0F}};
  if (o.sums == 0 || (is_pair(stage) && place % 16 >= 8)) return o;
  const int i = is_pair(stage) ? tile * 8 + place % 16 : place;
  if (i >= w.rows) return o;
  const int row = w.begin + i;
  switch (stage) {
    case StepStage::kLow:
      o.to = row < v.q_lora() ? p.low + row : p.kv + (row - v.q_lora());
      break;
    case StepStage::kQuery:
      if (kJoins<P> && row % kQkWidth < kNopeWidth) break;
      o.to = p.q + row;
      if (row % kQkWidth >= kNopeWidth) o.rope = step.s.rope[(row % kQkWidth - kNopeWidth) / 2];
      break;
    case StepStage::kValues:
      o.to = p.attended + row;
      break;
    case StepStage::kSharedUp:
      o.to = p.h + (v.routed ? v.top_k() * p.inner_stride : 0) + row;
      break;
    case StepStage::kExpertUp: {
      const int rows = v.mat(stage).rows, slot = row / rows;
      o.to = p.h + slot * p.inner_stride + (row - slot * rows);
      break;
    }
    default:  // the stages that add to the stream give a block, and a thread, the same rows
      o.to = p.stream + row;
      o.old = __ldcg(o.to);
      break;
  }
  return o;
}
__device__ __forceinline__ void note(StepStage stage, const StepOutput& o) {
  const auto to = reinterpret_cast<std::uintptr_t>(o.to);
  sts128(note_at(1),
         {static_cast<std::uint32_t>(to), static_cast<std::uint32_t>(to >> 32), o.sums, __float_as_uint(o.old)});
  if (stage == StepStage::kQuery) sts64(note_at(2), __float_as_uint(o.rope.x), __float_as_uint(o.rope.y));
}
__device__ __forceinline__ StepOutput noted_output(StepStage stage) {
  const uint4 n = lds128(note_at(1));
  StepOutput o{reinterpret_cast<float*>(static_cast<std::uintptr_t>(n.x) | static_cast<std::uintptr_t>(n.y) << 32),
               n.z,
               __uint_as_float(n.w),
               {1.0F, 0.0F}};
  if (stage == StepStage::kQuery) o.rope = {__uint_as_float(lds32(note_at(2))), __uint_as_float(lds32(note_at(2) + 4))};
  return o;
}

// ---- products -------------------------------------------------------------------------------------------------------

__device__ __forceinline__ float scale_at(std::uint32_t at, DType t) {
  if (t == DType::kF32) return __uint_as_float(lds32(at));
  std::uint16_t bits;
  asm volatile("ld.shared.u16 %0, [%1];" : "=h"(bits) : "r"(at));
  return scale_value(bits, t);
}

// What a lane needs of a step: codes and scales of rows g and g + 8, and its columns of x.
template <WeightFormat F>
struct StepOperands {
  static constexpr int kQuads = F == WeightFormat::kI4 ? 2 : StepFormat<F>::kInteger ? 1 : StepFormat<F>::kUnits;
  uint4 code[2], x[kQuads];
  float scale[2], x_scale;
};
// Where they lie: `code` and `scale` of row g in a slot, row g + 8 so much further.
struct StepPlaces {
  std::uint32_t code, scale, x, x_scale;
  int code8, scale8;
  DType scale_dtype;
  bool brings;
};
template <WeightFormat F>
__device__ __forceinline__ void fetch(const StepPlaces& at, StepOperands<F>& o) {
  using Format = StepFormat<F>;
  o.code[0] = lds128(at.code);
  o.code[1] = lds128(at.code + static_cast<std::uint32_t>(at.code8));
#pragma unroll
  for (int i = 0; i < StepOperands<F>::kQuads; ++i) {
    o.x[i] = {};
    if (at.brings) o.x[i] = lds128(at.x + i * 16);
  }
  if constexpr (Format::kScaled) {
    o.scale[0] = scale_at(at.scale, at.scale_dtype);
    o.scale[1] = scale_at(at.scale + static_cast<std::uint32_t>(at.scale8), at.scale_dtype);
  }
  if constexpr (Format::kInteger) o.x_scale = __uint_as_float(lds32(at.x_scale));
}

// Adds the products of a step.
template <WeightFormat F>
__device__ __forceinline__ void multiply(const StepOperands<F>& o, std::uint32_t nf4, uint2 nibbles,
                                         StepSums<F>& sums) {
  using Format = StepFormat<F>;
  const uint4 &c0 = o.code[0], &c1 = o.code[1];
  if constexpr (!Format::kScaled) {
    product(sums.v, {c0.x, c1.x, c0.y, c1.y}, o.x[0].x, o.x[0].y);
    product(sums.v, {c0.z, c1.z, c0.w, c1.w}, o.x[0].z, o.x[0].w);
  } else if constexpr (Format::kInteger) {
    int part[4] = {};
    if constexpr (F == WeightFormat::kI4) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const std::uint32_t w0 = word_of(c0, j), w1 = word_of(c1, j);
        integer_product(part,
                        {lower_nibbles(w0, nibbles), lower_nibbles(w1, nibbles), upper_nibbles(w0, nibbles),
                         upper_nibbles(w1, nibbles)},
                        word_of(o.x[j / 2], j % 2 * 2), word_of(o.x[j / 2], j % 2 * 2 + 1));
      }
    } else {
      integer_product(part, {c0.x, c1.x, c0.y, c1.y}, o.x[0].x, o.x[0].y);
      integer_product(part, {c0.z, c1.z, c0.w, c1.w}, o.x[0].z, o.x[0].w);
    }
    sums.v[0] = fmaf(static_cast<float>(256 * part[0] + part[1]) * o.x_scale, o.scale[0], sums.v[0]);
    sums.v[1] = fmaf(static_cast<float>(256 * part[2] + part[3]) * o.x_scale, o.scale[1], sums.v[1]);
  } else {
    float part[2][4] = {};
#pragma unroll
    for (int j = 0; j < Format::kUnits; ++j) {
      std::uint32_t a[2][4];
      unit_of<F>(c0, j, nf4, a[0]);
      unit_of<F>(c1, j, nf4, a[1]);
      product(part[0], {a[0][0], a[1][0], a[0][1], a[1][1]}, o.x[j].x, o.x[j].y);
      product(part[1], {a[0][2], a[1][2], a[0][3], a[1][3]}, o.x[j].z, o.x[j].w);
    }
    sums.v[0] = fmaf((part[0][0] + part[0][1]) + (part[1][0] + part[1][1]), o.scale[0], sums.v[0]);
    sums.v[1] = fmaf((part[0][2] + part[0][3]) + (part[1][2] + part[1][3]), o.scale[1], sums.v[1]);
  }
}

// A stage's products, in the ring's order. A warp's two steps of a chunk are fetched together.
template <WeightFormat F>
__device__ __forceinline__ void multiply_stage(const StepWork& w, const StepMat& m, const StepTask& k, StepRing& ring) {
  const std::uint32_t nf4 = shared_address(step.s.nf4);
  uint2 nibbles{};
  if constexpr (F == WeightFormat::kI4) nibbles = lds64(shared_address(&step.s.nibbles));
  const bool leads = threadIdx.x % 32 == 0, rotated = !StepFormat<F>::kScaled && w.even;
  const int groups = w.groups, items = w.items, chunks = w.chunks, tiles = w.tiles, together = w.together;
  constexpr int kBytes = StepFormat<F>::kInteger ? 1 : 2;  // of a column of x
  const std::uint32_t x_item = static_cast<std::uint32_t>(2 * x_stride(m.cols)),
                      x_chunk = static_cast<std::uint32_t>(kChunkSteps * m.step_cols * kBytes);
  // From a warp's first step in a chunk to its second.
  constexpr std::uint32_t kCode = kStepWarps * kStepBytes, kX = kStepWarps * StepFormat<F>::kCols * 4 * kBytes;
  // A scale for each lane's columns of a step, behind both rows of bytes.
  constexpr std::uint32_t kStepScales = 4 * sizeof(float);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, in = warp * w.recip >> 8;
  const std::uint32_t x_scales =
      static_cast<std::uint32_t>((2 - lane / 4 % 2) * byte_stride(m.cols) - lane % 4 * StepFormat<F>::kCols +
                                 lane % 4 * 4 + (warp - in * w.parts) * (static_cast<int>(kStepScales) - m.step_cols));
  const std::uint32_t scale_on =
      is_grouped(m) ? static_cast<std::uint32_t>(scale_bytes_of(m, kStepWarps * kStepBytes)) : 0U;
  StepPlaces at;
  at.code8 = 8 * w.row_bytes;
  at.scale8 = 8 * w.scale_row;
  at.scale_dtype = m.scale_dtype;
  at.brings = k.brings;
  int tile = k.tile;
  std::uint32_t to = k.sums;
#pragma unroll 1
  for (int group = 0; group < groups; ++group) {
    const bool works = tile < tiles;
    const int first_steps = works ? k.ends[0] ? chunks : chunks - 1 : 0,
              second_steps = works ? k.ends[1] ? chunks : chunks - 1 : 0;
    std::uint32_t first = k.x;
    StepSums<F> sums, more;
#pragma unroll 1
    for (int item = 0; item < items; ++item) {
      at.x = first;
      at.x_scale = first + x_scales;
#pragma unroll 1
      for (int chunk = 0; chunk < chunks; ++chunk) {
        at.code = ring.at + k.code;
        at.scale = ring.at + k.scale;
        barrier_wait(ring.full, ring.phase);
        if (chunk < first_steps) {
          StepOperands<F> a, b;
          fetch(at, a);
          if (chunk < second_steps) {
            StepPlaces second = at;
            second.code += kCode;
            second.scale += scale_on;
            second.x += kX;
            second.x_scale += kStepWarps * kStepScales;
            fetch(second, b);
            multiply(a, nf4, nibbles, sums);
            multiply(b, nf4, nibbles, more);
          } else {
            multiply(a, nf4, nibbles, sums);
          }
        }
        __syncwarp();
        if (leads) barrier_arrive(ring.empty());
        ring.advance();
        at.x += x_chunk;
        at.x_scale += kChunkSteps * kStepScales;
      }
      first += x_item;
    }
    if (works) {
      sums.add(more);
      sums.flush(to, rotated);
    }
    tile += together;
    to += static_cast<std::uint32_t>(kStepWarps * 64);
  }
}

template <class P>
__device__ __forceinline__ void products(StepStage stage, const LayerView<P>& v, const StepTask& k, StepRing& ring) {
  const StepWork w = v.work(stage);
  const StepMat m = v.mat(stage);
  switch (m.format) {
    case WeightFormat::kBF16:
      return multiply_stage<WeightFormat::kBF16>(w, m, k, ring);
    case WeightFormat::kF8E4M3:
      return multiply_stage<WeightFormat::kF8E4M3>(w, m, k, ring);
    case WeightFormat::kI8:
      return multiply_stage<WeightFormat::kI8>(w, m, k, ring);
    case WeightFormat::kI4:
      return multiply_stage<WeightFormat::kI4>(w, m, k, ring);
    default:
      return multiply_stage<WeightFormat::kNF4>(w, m, k, ring);
  }
}

// ---- what becomes of the sums ---------------------------------------------------------------------------------------

// A row's parts, after a barrier of the block.
__device__ __forceinline__ float sum_of(std::uint32_t sums, int parts) {
  float v[4] = {};
  if (parts == kStepWarps) {
#pragma unroll
    for (int i = 0; i < kStepWarps; ++i) v[i % 4] += __uint_as_float(lds32(sums + static_cast<std::uint32_t>(i * 64)));
  } else {
#pragma unroll 1
    for (int i = 0; i < parts; ++i) v[0] += __uint_as_float(lds32(sums + static_cast<std::uint32_t>(i * 64)));
  }
  return (v[0] + v[1]) + (v[2] + v[3]);
}

// By which x of a stage, and so its sums, are still to be multiplied: 1 / RMS, where it is normed.
template <class P>
__device__ __forceinline__ float norm_factor(StepStage stage, const LayerView<P>& v) {
  const bool latent = stage == StepStage::kQuery;
  if (stage != StepStage::kLow && !latent && !is_pair(stage)) return 1.0F;
  return rsqrtf(__fdividef(sum_of_warps(step.s.squares[latent ? 1 : 0]), static_cast<float>(v.mat(stage).cols)) +
                (latent ? step.s.p.latent_eps : step.s.p.eps));
}

// `more`: what else is added to the row. Warps that have no tile leave at once.
template <class P>
__device__ __forceinline__ void finish(StepStage stage, const LayerView<P>& v, const StepOutput& o, float more) {
  const StepWork w = v.work(stage);
  if (place_of(stage, v.routed) / 32 * 2 >= w.tiles) return;
  const float factor = norm_factor(stage, v);
  float sum = (o.sums != 0 ? sum_of(o.sums, w.parts) : 0.0F) * factor;
  if (is_pair(stage)) {
    const float up = __shfl_down_sync(0xffffffffU, sum, 8);
    sum = __fdividef(sum, 1.0F + __expf(-sum)) * up;
  } else if (stage == StepStage::kQuery) {
    const float other = __shfl_xor_sync(0xffffffffU, sum, 1);
    sum = threadIdx.x % 2 == 0 ? sum * o.rope.x - other * o.rope.y : other * o.rope.y + sum * o.rope.x;
  }
  if (kJoins<P> && stage == StepStage::kQuery && o.sums != 0)
    sts32(join_value(place_of(stage, v.routed)), __float_as_uint(sum));
  if (o.to != nullptr) *o.to = o.old + (sum + more);
}

}  // namespace glint::cuda
#endif
