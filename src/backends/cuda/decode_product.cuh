#pragma once
// The products of the decode kernel: one unit of weights times up to eight rows of x, in any format. Scales are applied
// to sums, not to weights: codes are exact in bf16.

#include "backends/cuda/decode_stream.cuh"

namespace glint::cuda {

__device__ __forceinline__ uint2 lds64(std::uint32_t address) {
  uint2 v;
  asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(address));
  return v;
}
__device__ __forceinline__ std::uint32_t lds32(std::uint32_t address) {
  std::uint32_t v;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(address));
  return v;
}

__device__ __forceinline__ std::uint32_t staged_offset(Staging s, int unit) {  // of the eight columns 8 · unit …
  if (s == Staging::kPlain) return static_cast<std::uint32_t>(unit) * 16;
  return static_cast<std::uint32_t>((unit & ~7) + (unit & 1) * 4 + (unit & 7) / 2) * 16;
}
__device__ __forceinline__ void stage8(Staging s, std::uint32_t row, int unit, const float (&v)[8]) {
  const uint4 packed =
      s == Staging::kPaired
          ? uint4{pack_bf16(v[0], v[4]), pack_bf16(v[1], v[5]), pack_bf16(v[2], v[6]), pack_bf16(v[3], v[7])}
          : uint4{pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]), pack_bf16(v[4], v[5]), pack_bf16(v[6], v[7])};
  sts128(row + staged_offset(s, unit), packed);
}
// The same from eight bf16.
__device__ __forceinline__ void stage8(Staging s, std::uint32_t row, int unit, uint4 v) {
  if (s == Staging::kPaired) {
    v = {__byte_perm(v.x, v.z, 0x5410), __byte_perm(v.x, v.z, 0x7632), __byte_perm(v.y, v.w, 0x5410),
         __byte_perm(v.y, v.w, 0x7632)};
  }
  sts128(row + staged_offset(s, unit), v);
}

// Bytes of a row of x: rows lie 64 bytes off 128, so that eight rows' quads meet each bank as seldom as can be.
__host__ __device__ constexpr std::uint32_t staged_row_bytes(int cols) {
  return static_cast<std::uint32_t>((cols * 2 + 127) / 128 * 128 + 64);
}

// The scale of a row, where one covers the whole row: it comes with a part's first unit.
__device__ __forceinline__ float row_scale(std::uint32_t slot, const DecodeMat& m, int r) {
  const std::uint32_t word = lds32(slot + 1024 + r * 8);
  if (m.scale_bytes == 4) return __uint_as_float(word);
  const std::uint32_t bits = (r & 1) != 0 ? word >> 16 : word & 0xffffU;
  return m.scale_f16 ? half_to_float(static_cast<std::uint16_t>(bits)) : __uint_as_float(bits << 16);
}

// Of row r (0 … 15) of a unit whose first column is 64 · column64: for its first and its second 64 columns.
__device__ __forceinline__ float2 unit_scales(std::uint32_t slot, const DecodeMat& m, int r, int column64) {
  if (m.kind != DecodeScale::kGroup) return {1.0F, 1.0F};
  const uint2 words = lds64(slot + 1024 + r * 8);
  const bool wide = m.format == WeightFormat::kI4 || m.format == WeightFormat::kNF4;
  float2 v{__uint_as_float(words.x), __uint_as_float(words.y)};
  if (m.scale_bytes == 2) {
    v = {__uint_as_float(words.x << 16), __uint_as_float(words.x & 0xffff0000U)};
    if (m.scale_f16) v = __half22float2(*reinterpret_cast<const __half2*>(&words.x));
    if (m.group_shift != 0 || !wide) v.x = v.y = (column64 >> m.group_shift & 1) != 0 ? v.y : v.x;
  } else if (m.group_shift != 0 || !wide) {
    v.y = v.x;
  }
  return v;
}

__device__ __forceinline__ std::uint32_t bf16_fma(std::uint32_t a, std::uint32_t b, std::uint32_t c) {
  std::uint32_t r;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(c));
  return r;
}

// Four codes of a byte each as two pairs of bf16, unscaled.
template <WeightFormat F>
__device__ __forceinline__ void bytes_to_bf16(std::uint32_t w, std::uint32_t& a, std::uint32_t& b) {
  if constexpr (F == WeightFormat::kI8) {
    const std::uint32_t u = w ^ 0x80808080U;  // code + 128
    float v[4];
#pragma unroll
    for (int k = 0; k < 4; ++k)
      v[k] = __uint_as_float(__byte_perm(u, 0x4b000000U, 0x7440U | static_cast<unsigned>(k))) - 8388736.0F;
    a = __byte_perm(__float_as_uint(v[0]), __float_as_uint(v[1]), 0x7632);  // exact: eight bits
    b = __byte_perm(__float_as_uint(v[2]), __float_as_uint(v[3]), 0x7632);
  } else {  // E4M3: sign, exponent and mantissa in a bf16's places are 2^-120 of the value
    const std::uint32_t p = __byte_perm(w, 0U, 0x1404), q = __byte_perm(w, 0U, 0x3424);
    a = bf16_fma((p & 0x80008000U) | (p >> 4 & 0x07f007f0U), 0x7b807b80U, 0x80008000U);
    b = bf16_fma((q & 0x80008000U) | (q >> 4 & 0x07f007f0U), 0x7b807b80U, 0x80008000U);
  }
}

// Eight 4-bit codes as four pairs: INT4 in the order of kPaired, less 8; NF4 in order, by a table of 256 pairs that
// each lane has in its own bank.
template <WeightFormat F>
__device__ __forceinline__ void nibbles_to_bf16(std::uint32_t w, std::uint32_t table, std::uint32_t (&a)[4]) {
  if constexpr (F == WeightFormat::kI4) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      // 0x4300 is 128, whose last mantissa bit is worth 1; 0xc308 is -136.
      a[i] = bf16_fma((w >> (4 * i) & 0x000f000fU) | 0x43004300U, 0x3f803f80U, 0xc308c308U);
    }
  } else {
    a[0] = lds32(table + ((w << 7) & 0x7f80U));
    a[1] = lds32(table + ((w >> 1) & 0x7f80U));
    a[2] = lds32(table + ((w >> 9) & 0x7f80U));
    a[3] = lds32(table + ((w >> 17) & 0x7f80U));
  }
}

struct UnitScales {
  float row0, row1;  // of rows g and g + 8
};
__device__ __forceinline__ void add_scaled(float (&acc)[4], const float (&a)[4], const float (&b)[4],
                                           const UnitScales& s) {
  acc[0] = fmaf(a[0] + b[0], s.row0, acc[0]);
  acc[1] = fmaf(a[1] + b[1], s.row0, acc[1]);
  acc[2] = fmaf(a[2] + b[2], s.row1, acc[2]);
  acc[3] = fmaf(a[3] + b[3], s.row1, acc[3]);
}

// 64 columns of one byte each. own: this lane's bytes of row g; x: its values.
template <WeightFormat F>
__device__ __forceinline__ void multiply_bytes(float (&acc)[4], std::uint32_t own, std::uint32_t x,
                                               const UnitScales& s) {
  const uint4 a = lds128(own), b = lds128(own + 512), v = lds128(x), u = lds128(x + 64);
  float even[4] = {}, odd[4] = {};
  std::uint32_t p[4], q[4];
  bytes_to_bf16<F>(a.x, p[0], p[1]);
  bytes_to_bf16<F>(a.y, p[2], p[3]);
  bytes_to_bf16<F>(b.x, q[0], q[1]);
  bytes_to_bf16<F>(b.y, q[2], q[3]);
  mma(even, p[0], q[0], p[1], q[1], v.x, v.y);
  mma(odd, p[2], q[2], p[3], q[3], v.z, v.w);
  bytes_to_bf16<F>(a.z, p[0], p[1]);
  bytes_to_bf16<F>(a.w, p[2], p[3]);
  bytes_to_bf16<F>(b.z, q[0], q[1]);
  bytes_to_bf16<F>(b.w, q[2], q[3]);
  mma(even, p[0], q[0], p[1], q[1], u.x, u.y);
  mma(odd, p[2], q[2], p[3], q[3], u.z, u.w);
  add_scaled(acc, even, odd, s);
}

// 64 columns of half a byte each.
template <WeightFormat F>
__device__ __forceinline__ void multiply_nibbles(float (&acc)[4], std::uint32_t own, std::uint32_t x,
                                                 std::uint32_t table, const UnitScales& s) {
  const uint2 a = lds64(own), b = lds64(own + 512);
  const uint4 v = lds128(x), u = lds128(x + 64);
  float even[4] = {}, odd[4] = {};
  std::uint32_t p[4], q[4];
  nibbles_to_bf16<F>(a.x, table, p);
  nibbles_to_bf16<F>(b.x, table, q);
  mma(even, p[0], q[0], p[1], q[1], v.x, v.y);
  mma(odd, p[2], q[2], p[3], q[3], v.z, v.w);
  nibbles_to_bf16<F>(a.y, table, p);
  nibbles_to_bf16<F>(b.y, table, q);
  mma(even, p[0], q[0], p[1], q[1], u.x, u.y);
  mma(odd, p[2], q[2], p[3], q[3], u.z, u.w);
  add_scaled(acc, even, odd, s);
}

// acc += W x for one unit. x: this lane's row of x (column g of the product), at the unit.
__device__ __forceinline__ void multiply_unit(float (&acc)[4], const DecodeMat& m, std::uint32_t slot, std::uint32_t x,
                                              int column64, std::uint32_t table, int g, int t) {
  const std::uint32_t own = slot + g * 64 + ((t ^ (g & 2)) << 4);
  x += t * 16;
  const bool group = m.kind == DecodeScale::kGroup;
  switch (m.format) {
    case WeightFormat::kBF16: {
      const uint4 a = lds128(own), b = lds128(own + 512), v = lds128(x);
      mma(acc, a.x, b.x, a.y, b.y, v.x, v.y);
      mma(acc, a.z, b.z, a.w, b.w, v.z, v.w);
      return;
    }
    case WeightFormat::kI8:
    case WeightFormat::kF8E4M3: {
      UnitScales scales{1.0F, 1.0F};
      if (group) scales = {unit_scales(slot, m, g, column64).x, unit_scales(slot, m, g + 8, column64).x};
      if (m.format == WeightFormat::kI8) multiply_bytes<WeightFormat::kI8>(acc, own, x, scales);
      else multiply_bytes<WeightFormat::kF8E4M3>(acc, own, x, scales);
      return;
    }
    default: {
      float2 upper = unit_scales(slot, m, g, column64), lower = unit_scales(slot, m, g + 8, column64);
#pragma unroll 1
      for (int sub = 0; sub < 2; ++sub) {
        const std::uint32_t half = slot + g * 64 + (((2 * sub + t / 2) ^ (g & 2)) << 4) + t % 2 * 8;
        const UnitScales scales{upper.x, lower.x};
        upper.x = upper.y, lower.x = lower.y;
        if (m.format == WeightFormat::kI4) multiply_nibbles<WeightFormat::kI4>(acc, half, x + sub * 128, table, scales);
        else multiply_nibbles<WeightFormat::kNF4>(acc, half, x + sub * 128, table, scales);
      }
      return;
    }
  }
}

// The unit of a matrix that is applied transposed: 16 rows (the contraction) of 32 columns (the outputs).
__device__ __forceinline__ void multiply_unit_transposed(float (&acc)[4], float (&more)[4], std::uint32_t slot,
                                                         std::uint32_t x, int lane) {
  const int r = lane % 8, m = lane / 8, t = lane % 4;
  const std::uint32_t b0 = lds32(x + t * 4), b1 = lds32(x + 16 + t * 4);
  const std::uint32_t from = slot + (m >> 1) * 512 + r * 64;
  std::uint32_t a[4];
  ldmatrix4_trans(a, from + (((m & 1) ^ (r & 2)) << 4));
  mma(acc, a[0], a[1], a[2], a[3], b0, b1);
  ldmatrix4_trans(a, from + (((2 + (m & 1)) ^ (r & 2)) << 4));
  mma(more, a[0], a[1], a[2], a[3], b0, b1);
}

}  // namespace glint::cuda
