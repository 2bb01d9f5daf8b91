#pragma once
// Codes of weights as wgmma's left operand in registers.
//
// A lane (g, t) of a warp needs, of rows g and g + 8 and of each 16 places along the contraction, places 2t, 2t + 1,
// 2t + 8 and 2t + 9. ldmatrix gives it four bytes of each 16 of a row: bytes 4t to 4t + 3. Which column stands at which
// place is free as long as x is ordered alike, so each format has the order in which those bytes need no moving.

#include "backends/cuda/hopper.cuh"
#include "backends/cuda/hopper_job.hpp"

namespace glint::cuda {

// The byte of a stage's codes where 16-byte unit `unit` of row `row` lies: eight rows' units lie in different banks.
template <int kRowBytes>
__device__ __forceinline__ std::uint32_t code_place(int row, int unit) {
  if constexpr (kRowBytes == 128) return swizzled(row, unit, 128);
  if constexpr (kRowBytes == 64) return static_cast<std::uint32_t>(row * 64 + ((unit ^ (row >> 1 & 3)) << 4));
  return static_cast<std::uint32_t>(row * 32 + ((unit ^ (row >> 2 & 1)) << 4));
}

using Bf2 = __nv_bfloat162;
__device__ __forceinline__ Bf2 as_bf2(std::uint32_t v) { return *reinterpret_cast<const Bf2*>(&v); }
__device__ __forceinline__ std::uint32_t as_bits(Bf2 v) { return *reinterpret_cast<const std::uint32_t*>(&v); }

struct FragmentScale {
  Bf2 scale, min;
};

// Four pairs of eight 4-bit codes, in the order of ColumnOrder::kNibbles. `offset` is -136, or -128 where there is a
// minimum: 0x4300 is 128 in bf16, whose last mantissa bit is worth 1.
__device__ __forceinline__ void decode_i4(std::uint32_t q, Bf2 offset, const FragmentScale& s, std::uint32_t (&p)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const Bf2 u = __hadd2(as_bf2(((q >> (4 * i)) & 0x000f000fU) | 0x43004300U), offset);
    p[i] = as_bits(__hfma2(u, s.scale, s.min));
  }
}

// The codebook as bf16, low and high bytes of entries 0 to 15: a byte permute looks up four codes in half of a table.
struct Nf4Bytes {
  std::uint32_t low[4], high[4];
};
__host__ __device__ constexpr std::uint16_t nf4_bf16(int i) {
  constexpr std::uint16_t kBits[16] = {0xbf80, 0xbf32, 0xbf06, 0xbeca, 0xbe92, 0xbe3d, 0xbdba, 0x0000,
                                       0x3da3, 0x3e25, 0x3e7c, 0x3ead, 0x3ee2, 0x3f10, 0x3f39, 0x3f80};
  return kBits[i];
}
__host__ __device__ constexpr Nf4Bytes nf4_bytes() {
  Nf4Bytes t{};
  for (int i = 0; i < 16; ++i) {
    t.low[i / 4] |= static_cast<std::uint32_t>(nf4_bf16(i) & 255) << (8 * (i % 4));
    t.high[i / 4] |= static_cast<std::uint32_t>(nf4_bf16(i) >> 8) << (8 * (i % 4));
  }
  return t;
}

// Pairs of columns (0, 1) (2, 3) (4, 5) (6, 7); the even column is the high nibble of its byte.
__device__ __forceinline__ void decode_nf4(std::uint32_t q, const FragmentScale& s, std::uint32_t (&p)[4]) {
  constexpr Nf4Bytes kTable = nf4_bytes();
  const std::uint32_t index = q & 0x77777777U, shifted = q << 4;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const std::uint32_t at = half == 0 ? index : index >> 16;
    // Bytes of ones where a code's highest bit is set: the sign of byte 0 of `shifted` (code 0), of q (code 1), …
    const std::uint32_t upper = __byte_perm(shifted, q, half == 0 ? 0xd9c8U : 0xfbeaU);
    const std::uint32_t low0 = __byte_perm(kTable.low[0], kTable.low[1], at),
                        low1 = __byte_perm(kTable.low[2], kTable.low[3], at);
    const std::uint32_t high0 = __byte_perm(kTable.high[0], kTable.high[1], at),
                        high1 = __byte_perm(kTable.high[2], kTable.high[3], at);
    const std::uint32_t low = (low0 & ~upper) | (low1 & upper), high = (high0 & ~upper) | (high1 & upper);
    p[2 * half] = as_bits(__hmul2(as_bf2(__byte_perm(low, high, 0x4051U)), s.scale));
    p[2 * half + 1] = as_bits(__hmul2(as_bf2(__byte_perm(low, high, 0x6273U)), s.scale));
  }
}

// Bytes (0, 2) and (1, 3). A signed byte is its low seven bits less 128 if the eighth is set.
__device__ __forceinline__ void decode_i8(std::uint32_t q, const FragmentScale& s, std::uint32_t (&p)[2]) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const std::uint32_t b = q >> (8 * i);
    const Bf2 low = as_bf2((b & 0x007f007fU) | 0x43004300U), sign = as_bf2((b & 0x00800080U) | 0x43004300U);
    p[i] = as_bits(__hfma2(__hsub2(low, sign), s.scale, s.min));
  }
}
// As e4m3_raw: sign, exponent and mantissa in a bf16's places are 2^-120 of the value.
__device__ __forceinline__ void decode_f8(std::uint32_t q, const FragmentScale& s, std::uint32_t (&p)[2]) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const std::uint32_t b = i == 0 ? q << 8 : q;
    const Bf2 raw = as_bf2((b & 0x80008000U) | ((b >> 4) & 0x07f007f0U));
    p[i] = as_bits(__hmul2(__hmul2(raw, as_bf2(0x7b807b80U)), s.scale));
  }
}

template <WeightFormat F>
inline constexpr int kFragmentBits = weight_code_bits(F);

template <WeightFormat F>
struct FragmentSource {
  bool has_min;
  DType dtype;
  int odd[2];  // rows g and g + 8: a lone 16-bit scale is the second of its word

  __device__ __forceinline__ Bf2 value(std::uint32_t at) const {
    if (dtype == DType::kF32) return __float2bfloat162_rn(__uint_as_float(lds32(at)));
    const std::uint32_t raw = lds16(at);
    return __float2bfloat162_rn(scale_value(raw, dtype));
  }
  template <int kScaleRow>
  __device__ __forceinline__ void scales(std::uint32_t at, int row, int entry, FragmentScale (&s)[2]) const {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const std::uint32_t from =
          at + (row + 8 * r) * kScaleRow + (dtype == DType::kF32 ? 4 * entry : 2 * (entry + odd[r]));
      s[r].scale = value(from);
      s[r].min = has_min ? value(from + 128 * kScaleRow) : __float2bfloat162_rn(0.0F);
    }
  }

  // Columns 64 · part to 64 · part + 63 of a stage, as the fragments of four k16 steps.
  template <int kRowBytes, int kScaleRow>
  __device__ __forceinline__ void load(const HopperJob& job, std::uint32_t codes, int code_bytes, int part,
                                       std::uint32_t (&a)[4][4]) const {
    constexpr bool kNibbles = kFragmentBits<F> == 4;
    const int lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16;
    const std::uint32_t scale_at = codes + code_bytes;
    const int scale_row = row + lane / 4;
    const bool many = job.scales_a_stage > 1;
    FragmentScale s[2];
    scales<kScaleRow>(scale_at, scale_row, many ? 64 * part >> job.scale_shift : 0, s);
    [[maybe_unused]] const Bf2 offset = __float2bfloat162_rn(has_min ? -128.0F : -136.0F);
    std::uint32_t q[4];
#pragma unroll
    for (int half = 0; half < 2; ++half) {  // of 32 columns
      if (half == 1 && many && job.scale_shift == 5) scales<kScaleRow>(scale_at, scale_row, 2 * part + 1, s);
      if (!kNibbles || half == 0) {
        const int unit = kNibbles ? 2 * part : 4 * part + 2 * half;
        ldmatrix4(q, codes + code_place<kRowBytes>(row + lane % 16, unit + lane / 16));
      }
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        if constexpr (kNibbles) {
          std::uint32_t p[4];
          if constexpr (F == WeightFormat::kI4) {
            decode_i4(q[2 * half + r], offset, s[r], p);
          } else {
            decode_nf4(q[2 * half + r], s[r], p);
          }
          a[2 * half][r] = p[0], a[2 * half][2 + r] = p[1];
          a[2 * half + 1][r] = p[2], a[2 * half + 1][2 + r] = p[3];
        } else {
#pragma unroll
          for (int k = 0; k < 2; ++k) {
            std::uint32_t p[2];
            if constexpr (F == WeightFormat::kI8) {
              decode_i8(q[2 * k + r], s[r], p);
            } else {
              decode_f8(q[2 * k + r], s[r], p);
            }
            a[2 * half + k][r] = p[0], a[2 * half + k][2 + r] = p[1];
          }
        }
      }
    }
  }
};

}  // namespace glint::cuda
