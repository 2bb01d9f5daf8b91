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
//               fp32, whatever the group.

#include "backends/cuda/decode_staging.cuh"

#if __CUDA_ARCH__ >= 900
namespace glint::cuda {

template <WeightFormat F>
struct StepFormat {
  static constexpr int kBits = weight_code_bits(F);
  static constexpr int kCols = 128 / kBits;  // columns of a lane's 16 bytes
  static constexpr int kUnits = kCols / 8;   // eights of them
  static constexpr bool kScaled = kBits <= 8;
};

__device__ __forceinline__ std::uint32_t word_of(const uint4& v, int i) {
  return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}
// Unit j of a lane's short codes as four pairs of BF16, in the order in which x lies.
template <WeightFormat F>
__device__ __forceinline__ void unit_of(const uint4& code, int j, std::uint32_t nf4, std::uint32_t (&a)[4]) {
  if constexpr (F == WeightFormat::kI8 || F == WeightFormat::kF8E4M3) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const std::uint32_t w = word_of(code, 2 * j + i);
      const std::uint32_t x = __byte_perm(w, 0, 0x4140), y = __byte_perm(w, 0, 0x4342);
      a[2 * i] = F == WeightFormat::kI8 ? int8_pair(x) : e4m3_pair(x);
      a[2 * i + 1] = F == WeightFormat::kI8 ? int8_pair(y) : e4m3_pair(y);
    }
  } else {
    const std::uint32_t w = word_of(code, j);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if constexpr (F == WeightFormat::kI4) {
        // 0x4300 is 128 in BF16, whose last mantissa bit is worth 1: the code lands in it as 128 + u; less 136.
        a[i] = sub2(((w >> (4 * i)) & 0x000f000fU) | 0x43004300U, 0x43084308U);
      } else {
        a[i] = lds32(nf4 + ((w >> (8 * i)) & 255U) * 4);
      }
    }
  }
}

// The running sums of a warp's tile.
template <WeightFormat F>
struct StepSums {
  static constexpr bool kScaled = StepFormat<F>::kScaled;
  float v[kScaled ? 2 : 4] = {};

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

// Where a lane's share of a stage's steps lies.
struct StepLane {
  std::uint32_t code;   // in a slot: 16 bytes of row g; of row g + 8 `rows` further
  std::uint32_t rows;   // bytes of eight rows
  std::uint32_t scale;  // in a slot: of row g; of row g + 8 `scale_rows` further
  std::uint32_t scale_rows;
};

__device__ __forceinline__ float scale_at(std::uint32_t at, DType t) {
  if (t == DType::kF32) return __uint_as_float(lds32(at));
  std::uint16_t bits;
  asm volatile("ld.shared.u16 %0, [%1];" : "=h"(bits) : "r"(at));
  return scale_value(bits, t);
}

// Adds the products of a step. `brings`: this lane has columns of x; other lanes bring zeros.
template <WeightFormat F>
__device__ __forceinline__ void multiply(const StepLane& at, std::uint32_t slot, std::uint32_t x, bool brings,
                                         DType scale_dtype, std::uint32_t nf4, StepSums<F>& sums) {
  using Format = StepFormat<F>;
  const uint4 c0 = lds128(slot + at.code), c1 = lds128(slot + at.code + at.rows);
  if constexpr (Format::kScaled) {
    const float scale0 = scale_at(slot + at.scale, scale_dtype),
                scale1 = scale_at(slot + at.scale + at.scale_rows, scale_dtype);
    float part[2][4] = {};
#pragma unroll
    for (int j = 0; j < Format::kUnits; ++j) {
      std::uint32_t a[2][4];
      unit_of<F>(c0, j, nf4, a[0]);
      unit_of<F>(c1, j, nf4, a[1]);
      uint4 b{};
      if (brings) b = lds128(x + j * 16);
      product(part[0], {a[0][0], a[1][0], a[0][1], a[1][1]}, b.x, b.y);
      product(part[1], {a[0][2], a[1][2], a[0][3], a[1][3]}, b.z, b.w);
    }
    sums.v[0] = fmaf((part[0][0] + part[0][1]) + (part[1][0] + part[1][1]), scale0, sums.v[0]);
    sums.v[1] = fmaf((part[0][2] + part[0][3]) + (part[1][2] + part[1][3]), scale1, sums.v[1]);
  } else {
    uint4 b{};
    if (brings) b = lds128(x);
    product(sums.v, {c0.x, c1.x, c0.y, c1.y}, b.x, b.y);
    product(sums.v, {c0.z, c1.z, c0.w, c1.w}, b.z, b.w);
  }
}

// A stage's products, in the ring's order; their sums lie where sum_at() looks for them.
template <WeightFormat F>
__device__ __forceinline__ void multiply_stage(StepStage stage, const StepLayer& layer, const StepWork& w,
                                               StepRing& ring) {
  using Format = StepFormat<F>;
  constexpr int kLaneBytes = Format::kCols * 2;  // of x, for a lane's 16 bytes of codes
  const StepMat& m = mat_of(stage, layer);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
  const int in = warp * w.recip >> 8, at = warp - in * w.parts;  // tile and step in a chunk
  const bool rotated = !Format::kScaled && w.even;
  const int stride = x_stride(m.cols), chunks = w.chunks, tiles = w.tiles, items = w.items;
  const DType scale_dtype = m.scale_dtype;
  const std::uint32_t nf4 = shared_address(step.s.nf4);
  const std::uint32_t sums_at = step.s.sums + static_cast<std::uint32_t>(pass_of(stage, layer) * step.s.pass_bytes);
  // Where this lane's x begins in a row of x, if it brings any.
  const bool brings = Format::kScaled ? g / 2 == t : g < (rotated ? 4 : 2);
  const int x_step = rotated ? at ^ (g >> 1) : at;
  const int x_lane = g % 2 * stride + t * kLaneBytes + x_step * (4 * kLaneBytes);
  const std::uint32_t step_bytes = static_cast<std::uint32_t>((rotated ? at ^ (g & 1) : at) * kStepBytes + t * 16);
  const int column = (at * 4 + t) * Format::kCols;  // in a chunk
  const bool grouped = is_grouped(m);
  const int scale_size = scale_dtype == DType::kF32 ? 4 : 2;

#pragma unroll 1
  for (int group = 0; group < w.groups; ++group) {
    const int tile = group * w.together + in;
    const bool works = in < w.together && tile < tiles;
    StepSums<F> sums;
#pragma unroll 1
    for (int item = 0; item < items; ++item) {
      const std::uint32_t x = x_row(stage, layer, w, tile, item, stride) + static_cast<std::uint32_t>(x_lane);
#pragma unroll 1
      for (int chunk = 0; chunk < chunks; ++chunk) {
        const int row_bytes = chunks == 1 ? m.row_bytes : min(kSplitBytes, m.row_bytes - chunk * kSplitBytes);
        const int row = in * 16 + g;
        StepLane lanes;
        lanes.code = static_cast<std::uint32_t>(row * row_bytes) + step_bytes;
        lanes.rows = static_cast<std::uint32_t>(8 * row_bytes);
        if constexpr (Format::kScaled) {
          // A row's last step may be longer than the row: x is zero there, and the scale must be a number.
          const int group_of = grouped && column < row_bytes / 16 * Format::kCols ? column >> m.group_shift : 0;
          const int scale_row = chunks == 1 || !grouped ? m.scale_row_bytes : scale_bytes_of(m, row_bytes);
          lanes.scale = static_cast<std::uint32_t>(kSlotCodes + row * scale_row + group_of * scale_size);
          lanes.scale_rows = static_cast<std::uint32_t>(8 * scale_row);
        }
        barrier_wait(ring.full(), ring.phase);
        if (works && (chunk + 1 < chunks || at < w.last_steps))
          multiply<F>(lanes, ring.at(), x + static_cast<std::uint32_t>(chunk * (kStepWarps * 4 * kLaneBytes)), brings,
                      scale_dtype, nf4, sums);
        __syncwarp();
        if (lane == 0) barrier_arrive(ring.empty());
        ring.advance();
      }
    }
    if (works) sums.flush(sums_at + static_cast<std::uint32_t>((tile * w.parts + at) * 64), rotated);
  }
}

__device__ __forceinline__ void products(StepStage stage, const StepLayer& layer, StepRing& ring) {
  const StepWork& w = work_of(stage, layer.n_experts > 0);
  switch (mat_of(stage, layer).format) {
    case WeightFormat::kBF16:
      return multiply_stage<WeightFormat::kBF16>(stage, layer, w, ring);
    case WeightFormat::kF8E4M3:
      return multiply_stage<WeightFormat::kF8E4M3>(stage, layer, w, ring);
    case WeightFormat::kI8:
      return multiply_stage<WeightFormat::kI8>(stage, layer, w, ring);
    case WeightFormat::kI4:
      return multiply_stage<WeightFormat::kI4>(stage, layer, w, ring);
    default:
      return multiply_stage<WeightFormat::kNF4>(stage, layer, w, ring);
  }
}

// The sum of row `place`, after a barrier of the block.
__device__ __forceinline__ float sum_at(const StepWork& w, int place, int pass) {
  const std::uint32_t at =
      step.s.sums + static_cast<std::uint32_t>(pass * step.s.pass_bytes + place / 16 * w.parts * 64 + place % 16 * 4);
  float v[4] = {};
  int i = 0;
#pragma unroll 1
  for (; i + 4 <= w.parts; i += 4) {
#pragma unroll
    for (int k = 0; k < 4; ++k) v[k] += __uint_as_float(lds32(at + static_cast<std::uint32_t>((i + k) * 64)));
  }
#pragma unroll 1
  for (; i < w.parts; ++i) v[0] += __uint_as_float(lds32(at + static_cast<std::uint32_t>(i * 64)));
  return (v[0] + v[1]) + (v[2] + v[3]);
}

}  // namespace glint::cuda
#endif
