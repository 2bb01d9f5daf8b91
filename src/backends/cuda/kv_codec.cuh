#pragma once
// Rows of the short cache codecs (ops/kv_codec.hpp) as BF16, by one warp a row. H stays applied: attention turns its
// queries and answers instead.

#include "backends/cuda/common.cuh"
#include "backends/cuda/mla.hpp"

namespace glint::cuda {

__host__ __device__ constexpr bool is_rotated(KvCodec c) { return c == KvCodec::kInt8 || c == KvCodec::kInt4; }
__host__ __device__ constexpr bool is_short(KvCodec c) {
  return c == KvCodec::kFp8 || c == KvCodec::kInt8 || c == KvCodec::kInt4;
}
template <KvCodec kCodec>
inline constexpr int kCacheRowBytes = static_cast<int>(kv_row_bytes(kCodec));
template <KvCodec kCodec>
inline constexpr int kRotaryOffset = kCacheRowBytes<kCodec> - 64;

__device__ __forceinline__ void sts32(std::uint32_t address, std::uint32_t v) {
  asm volatile("st.shared.u32 [%0], %1;" ::"r"(address), "r"(v) : "memory");
}

// A lane's part of a row: 16 latent values as BF16 in two 16-byte units, and rotary values 2 · lane, 2 · lane + 1.
struct RowPart {
  uint4 unit[2];
  std::uint32_t rotary;
};
// Which units of eight values: 2 l, 2 l + 1; INT4 has values 16 apart in one byte: 4 (l / 2) + l % 2, and two further.
template <KvCodec kCodec>
__device__ __forceinline__ int first_unit(int lane) {
  return kCodec == KvCodec::kInt4 ? lane / 2 * 4 + lane % 2 : lane * 2;
}
template <KvCodec kCodec>
constexpr int kUnitStep = kCodec == KvCodec::kInt4 ? 2 : 1;

// The lowest bits of a word's four bytes, byte 0 first.
__device__ __forceinline__ std::uint32_t byte_parities(std::uint32_t v) {
  return ((v & 0x01010101U) * 0x01020408U) >> 24 & 15U;
}

// The raw bytes of a lane's part; `row` lies in global or in shared memory.
struct RawPart {
  uint4 codes;  // INT4: x, y only
  std::uint32_t rotary, scale;
};
template <KvCodec kCodec>
__device__ __forceinline__ RawPart raw_part(const unsigned char* row, int lane) {
  RawPart p{};
  if constexpr (kCodec == KvCodec::kInt4) {
    const uint2 v = reinterpret_cast<const uint2*>(row)[lane];
    p.codes = {v.x, v.y, 0, 0};
    p.scale = row[kLatentWidth / 2 + lane / 2];
  } else {
    p.codes = reinterpret_cast<const uint4*>(row)[lane];
  }
  p.rotary = reinterpret_cast<const std::uint16_t*>(row + kRotaryOffset<kCodec>)[lane];
  return p;
}

// Two BF16 numbers times two others, and the exact difference and combination that integers need.
__device__ __forceinline__ std::uint32_t mul2(std::uint32_t a, std::uint32_t b) {
  const __nv_bfloat162 r = __hmul2(*reinterpret_cast<__nv_bfloat162*>(&a), *reinterpret_cast<__nv_bfloat162*>(&b));
  return *reinterpret_cast<const std::uint32_t*>(&r);
}
__device__ __forceinline__ std::uint32_t sub2(std::uint32_t a, std::uint32_t b) {
  const __nv_bfloat162 r = __hsub2(*reinterpret_cast<__nv_bfloat162*>(&a), *reinterpret_cast<__nv_bfloat162*>(&b));
  return *reinterpret_cast<const std::uint32_t*>(&r);
}
__device__ __forceinline__ std::uint32_t fma2(std::uint32_t a, std::uint32_t b, std::uint32_t c) {
  const __nv_bfloat162 r = __hfma2(*reinterpret_cast<__nv_bfloat162*>(&a), *reinterpret_cast<__nv_bfloat162*>(&b),
                                   *reinterpret_cast<__nv_bfloat162*>(&c));
  return *reinterpret_cast<const std::uint32_t*>(&r);
}

// Two codes, in the low bytes of x's halves, as BF16. E4M3: the bits moved into place stand for 2^-120 of the value.
__device__ __forceinline__ std::uint32_t e4m3_pair(std::uint32_t x) {
  constexpr std::uint32_t kFactor = 0x7b807b80U;  // 2^120
  return mul2((x << 4 & 0x07f007f0U) | (x << 8 & 0x80008000U), kFactor);
}
// Two's complement: 128 + the low seven bits, minus 128 or 256.
__device__ __forceinline__ std::uint32_t int8_pair(std::uint32_t x) {
  return sub2(0x43004300U | (x & 0x007f007fU), 0x43004300U | (x & 0x00800080U));
}

// All lanes of a warp, the same row. Codes are exact in BF16; INT8's products with the scale are rounded to BF16, the
// others are exact as well.
template <KvCodec kCodec>
__device__ __forceinline__ RowPart decode_part(const RawPart& raw, int lane) {
  constexpr bool kFour = kCodec == KvCodec::kInt4;
  // 16 bits of the side word: of the values 16 (l % 4) …, or 32 (l / 2) + 8 (l % 2) … and 16 further.
  std::uint32_t bits;
  if constexpr (kFour) {
    bits = byte_parities(raw.codes.x) | byte_parities(raw.codes.y) << 4 | byte_parities(raw.codes.x >> 4) << 8 |
           byte_parities(raw.codes.y >> 4) << 12;
  } else {
    bits = byte_parities(raw.codes.x) | byte_parities(raw.codes.y) << 4 | byte_parities(raw.codes.z) << 8 |
           byte_parities(raw.codes.w) << 12;
  }
#pragma unroll
  for (int d = 4; d < 32; d <<= 1) bits ^= __shfl_xor_sync(0xffffffffU, bits, d);
  std::uint32_t quarter[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) quarter[i] = ~__shfl_sync(0xffffffffU, bits, i) & 0xffffU;
  std::uint32_t low, high;
  if constexpr (kFour) {
    low = (quarter[0] & 255U) | (quarter[1] & 255U) << 8 | (quarter[0] >> 8) << 16 | (quarter[1] >> 8) << 24;
    high = (quarter[2] & 255U) | (quarter[3] & 255U) << 8 | (quarter[2] >> 8) << 16 | (quarter[3] >> 8) << 24;
  } else {
    low = quarter[0] | quarter[1] << 16;
    high = quarter[2] | quarter[3] << 16;
  }

  RowPart p;
  // Rotary scale lane / 8: twelve bits of the side word from 16 + 12 (lane / 8) on.
  const int at = 16 + lane / 8 * 12;
  const std::uint32_t twelve =
      (at < 32 ? __funnelshift_r(low, high, static_cast<unsigned>(at)) : high >> (at - 32)) & 0xfffU;
  const float rotary_scale = __uint_as_float(twelve << 19);
  p.rotary = pack_bf16(static_cast<float>(static_cast<std::int8_t>(raw.rotary)) * rotary_scale,
                       static_cast<float>(static_cast<std::int8_t>(raw.rotary >> 8)) * rotary_scale);

  std::uint32_t out[2][4];
  if constexpr (kFour) {
    // scale = 2^(e-16) (1 + m/8); code = nibble - 8: a nibble is the low bits of 128 + nibble, and 136 scales are
    // exact.
    const std::uint32_t s = (raw.scale + (111U << 3)) << 4, scale = s | s << 16;
    const std::uint32_t base = mul2(scale, 0xc308c308U);  // -136
    const std::uint32_t words[2] = {raw.codes.x, raw.codes.y};
#pragma unroll
    for (int w = 0; w < 2; ++w) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const std::uint32_t nibbles = words[w] >> (4 * h) & 0x0f0f0f0fU;
        out[h][2 * w] = fma2(__byte_perm(nibbles, 0x43434343U, 0x4140), scale, base);
        out[h][2 * w + 1] = fma2(__byte_perm(nibbles, 0x43434343U, 0x4342), scale, base);
      }
    }
  } else {
    const std::uint32_t scale = quarter[0] | quarter[0] << 16;
    const std::uint32_t words[4] = {raw.codes.x, raw.codes.y, raw.codes.z, raw.codes.w};
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      const std::uint32_t a = __byte_perm(words[w], 0, 0x4140), b = __byte_perm(words[w], 0, 0x4342);
      if constexpr (kCodec == KvCodec::kFp8) {
        out[w / 2][w % 2 * 2] = mul2(e4m3_pair(a), scale);
        out[w / 2][w % 2 * 2 + 1] = mul2(e4m3_pair(b), scale);
      } else {
        out[w / 2][w % 2 * 2] = mul2(int8_pair(a), scale);
        out[w / 2][w % 2 * 2 + 1] = mul2(int8_pair(b), scale);
      }
    }
  }
#pragma unroll
  for (int u = 0; u < 2; ++u) p.unit[u] = {out[u][0], out[u][1], out[u][2], out[u][3]};
  return p;
}

// H over 512 values of a warp, lane l with values 16 l … or N of them: the strides 16, 32 … 256 are lanes 1, 2 … 16
// apart. The order of the sums is kv_hadamard's.
// A loop: straight on it is five times as many instructions, which are seldom in the cache.
template <int N>
__device__ __forceinline__ void warp_hadamard(float (&v)[N], int lane) {
#pragma unroll 1
  for (int d = 1; d < 32; d <<= 1) {
    const float sign = (lane & d) != 0 ? -1.0F : 1.0F;
#pragma unroll
    for (int i = 0; i < N; ++i) v[i] = fmaf(v[i], sign, __shfl_xor_sync(0xffffffffU, v[i], d));
  }
#pragma unroll
  for (int i = 0; i < N; ++i) v[i] = __fmul_rn(v[i], 0.176776695F);
}

// H in place on 512 BF16 values, by a warp.
__device__ __forceinline__ void hadamard_bf16(uint4* row, int lane) {
  uint4 u[2] = {row[2 * lane], row[2 * lane + 1]};
  float v[16];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const std::uint32_t w[4] = {u[h].x, u[h].y, u[h].z, u[h].w};
#pragma unroll
    for (int i = 0; i < 4; ++i) v[8 * h + 2 * i] = bf16_low(w[i]), v[8 * h + 2 * i + 1] = bf16_high(w[i]);
  }
  warp_hadamard(v, lane);
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    row[2 * lane + h] = {pack_bf16(v[8 * h], v[8 * h + 1]), pack_bf16(v[8 * h + 2], v[8 * h + 3]),
                         pack_bf16(v[8 * h + 4], v[8 * h + 5]), pack_bf16(v[8 * h + 6], v[8 * h + 7])};
  }
}

}  // namespace glint::cuda
