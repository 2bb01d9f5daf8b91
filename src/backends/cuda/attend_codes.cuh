#pragma once
// Rows of the short codecs as operands of tensor-core products, straight from their bytes: no decoded copy of a row
// exists. Codes become exact numbers of 16 bits: FP16 for eight-bit codes, whose one scale a row multiplies the score
// and the weight instead; BF16 for INT4, with the scales of its groups.
//
// A 16-byte unit of a row is one or two blocks of 16 values. As tokens × values (scores), lane 4 g + t has bytes 4 t …
// 4 t + 3 of the unit of token g: values 2 t, 2 t + 1, 2 t + 8, 2 t + 9 of a product's contraction are then the block's
// values 4 t … 4 t + 3. As values × tokens (answers), it has bytes 2 g, 2 g + 1 of tokens 2 t, 2 t + 1: the product's
// rows g and g + 8 are the block's values 2 g and 2 g + 1.

#include "backends/cuda/kv_codec.cuh"

namespace glint::cuda {

template <KvCodec kCodec>
inline constexpr bool kIsFour = kCodec == KvCodec::kInt4;
template <KvCodec kCodec>
inline constexpr bool kIsHalf = kCodec == KvCodec::kFp8 || kCodec == KvCodec::kInt8;

__device__ __forceinline__ std::uint32_t sub_half2(std::uint32_t a, std::uint32_t b) {
  const __half2 r = __hsub2(*reinterpret_cast<__half2*>(&a), *reinterpret_cast<__half2*>(&b));
  return *reinterpret_cast<const std::uint32_t*>(&r);
}
__device__ __forceinline__ std::uint32_t pack_half(float lo, float hi) {
  std::uint32_t r;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
  return r;
}
__device__ __forceinline__ void product_half(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                                             std::uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <KvCodec kCodec>
__device__ __forceinline__ void code_product(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                                             std::uint32_t b1) {
  if constexpr (kIsHalf<kCodec>) {
    product_half(c, a, b0, b1);
  } else {
    product(c, a, b0, b1);
  }
}

// Four int8 codes as FP16: with the sign bit turned a byte is code + 128, and 1024 + that is one byte above it.
// kBytes: which two, as __byte_perm's selector of the bytes and of 0x64.
template <int kBytes>
__device__ __forceinline__ std::uint32_t int8_half2(std::uint32_t turned) {
  return sub_half2(__byte_perm(turned, 0x64646464U, kBytes), 0x64806480U);  // - 1152
}
// The two E4M3 codes of a word's lower or upper half.
__device__ __forceinline__ std::uint32_t e4m3_half2(std::uint32_t codes) {
  std::uint32_t r;
  asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(r) : "h"(static_cast<std::uint16_t>(codes)));
  return r;
}

// Bytes 0, 1 and 2, 3 (scores), or 0, 2 and 1, 3 (answers), of a word of eight-bit codes.
struct CodePairs {
  std::uint32_t first, second;
};
template <KvCodec kCodec>
__device__ __forceinline__ CodePairs neighbours(std::uint32_t word) {
  if constexpr (kCodec == KvCodec::kFp8) return {e4m3_half2(word), e4m3_half2(word >> 16)};
  const std::uint32_t turned = word ^ 0x80808080U;
  return {int8_half2<0x4140>(turned), int8_half2<0x4342>(turned)};
}
template <KvCodec kCodec>
__device__ __forceinline__ CodePairs alternates(std::uint32_t word) {
  if constexpr (kCodec == KvCodec::kFp8) {
    const std::uint32_t sorted = __byte_perm(word, 0, 0x3120);
    return {e4m3_half2(sorted), e4m3_half2(sorted >> 16)};
  }
  const std::uint32_t turned = word ^ 0x80808080U;
  return {int8_half2<0x4240>(turned), int8_half2<0x4341>(turned)};
}

// A nibble is the low bits of 128 + nibble; times the scale, less 136 scales (`base`), exact.
constexpr std::uint32_t kMinus136 = 0xc308c308U;
struct GroupScale {
  std::uint32_t scale, base;  // pairs of BF16
};
// Two scale bytes, in the low bytes of x's halves: 2^(e-16) (1 + m/8).
__device__ __forceinline__ GroupScale group_scale(std::uint32_t x) {
  const std::uint32_t s = x * 16 + 0x37803780U;
  return {s, mul2(s, kMinus136)};
}
// Bytes 0 … 3 hold nibbles.
__device__ __forceinline__ CodePairs nibble_neighbours(std::uint32_t nibbles, const GroupScale& s) {
  return {fma2(__byte_perm(nibbles, 0x43434343U, 0x4140), s.scale, s.base),
          fma2(__byte_perm(nibbles, 0x43434343U, 0x4342), s.scale, s.base)};
}
// The lowest nibbles of the halves.
__device__ __forceinline__ std::uint32_t nibble_halves(std::uint32_t word, const GroupScale& s) {
  return fma2((word & 0x000f000fU) | 0x43004300U, s.scale, s.base);
}

// ---- scales of rows -------------------------------------------------------------------------------------------------

// A stage has the rows of a page: blocks of 128 bytes of all its rows one behind the other, the eight 16-byte units of a
// row turned by the row. Where byte `byte`, the first of a unit, of row `row` lies:
constexpr int kBlockBytes = kPageRows * 128;
__device__ __forceinline__ std::uint32_t in_stage(int row, int byte) {
  return static_cast<std::uint32_t>(byte / 128 * kBlockBytes + row * 128 + ((byte / 16 ^ row) & 7) * 16);
}

// Of a page's rows: four rotary scales; of FP8 and INT8 the latent scale.
struct RowScales {
  float rotary[4][kPageRows], latent[kPageRows];
};

// A warp, four rows from number `first` on, eight lanes a row. A lane combines a part of the row's codes, the lanes
// their parts.
template <KvCodec kCodec>
__device__ __forceinline__ void read_scales(const unsigned char* stage, int first, int lane, RowScales& out) {
  const int r = first + lane / 8, half = lane / 4 % 2, part = lane % 4;
  std::uint32_t word;  // of the side word: its part of 16 bits in the upper or the lower half
  if constexpr (kIsFour<kCodec>) {
    uint2 x{};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const unsigned char* unit = stage + in_stage(r, 32 * (2 * i + half) + 16 * (part / 2));
      const uint2 v = *reinterpret_cast<const uint2*>(unit + 8 * (part % 2));
      x.x ^= v.x, x.y ^= v.y;
    }
    const std::uint32_t low = byte_parities(x.x) | byte_parities(x.y) << 4;
    const std::uint32_t high = byte_parities(x.x >> 4) | byte_parities(x.y >> 4) << 4;
    word = (low | high << 16) << (8 * (part % 2));
  } else {
    uint4 x{};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint4 v = *reinterpret_cast<const uint4*>(stage + in_stage(r, 64 * (2 * i + half) + 16 * part));
      x.x ^= v.x, x.y ^= v.y, x.z ^= v.z, x.w ^= v.w;
    }
    word = (byte_parities(x.x) | byte_parities(x.y) << 4 | byte_parities(x.z) << 8 | byte_parities(x.w) << 12)
           << (16 * (part % 2));
  }
  word ^= __shfl_xor_sync(0xffffffffU, word, 4);
  word |= __shfl_xor_sync(0xffffffffU, word, 1);
  const std::uint32_t other = __shfl_xor_sync(0xffffffffU, word, 2);
  const std::uint32_t low = ~(part < 2 ? word : other), high = ~(part < 2 ? other : word);
  if (half == 0) {  // twelve bits of the side word from 16 + 12 part on
    const int at = 16 + part * 12;
    const std::uint32_t twelve =
        (at < 32 ? __funnelshift_r(low, high, static_cast<unsigned>(at)) : high >> (at - 32)) & 0xfffU;
    out.rotary[part][r] = __uint_as_float(twelve << 19);
  } else if (!kIsFour<kCodec> && part == 0) {
    out.latent[r] = __uint_as_float(low << 16);
  }
}

}  // namespace glint::cuda
