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

// The power of two by which numbers, the largest of them with this exponent, become FP16 without overflow: it comes to
// be 2^10 …. And its inverse.
struct HalfUnit {
  float by, back;
};
__device__ __forceinline__ HalfUnit half_unit(unsigned exponent) {
  exponent = min(250U, max(20U, exponent));
  return {__uint_as_float((264 - exponent) << 23), __uint_as_float((exponent - 10) << 23)};
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

// A rotary word's four codes, int8 in all short codecs, as the numbers that the codec's products take.
template <KvCodec kCodec>
__device__ __forceinline__ CodePairs rotary_neighbours(std::uint32_t word) {
  if constexpr (kIsHalf<kCodec>) return neighbours<KvCodec::kInt8>(word);
  return {int8_pair(__byte_perm(word, 0, 0x4140)), int8_pair(__byte_perm(word, 0, 0x4342))};
}
// A product's operand of 16 rows: `upper` of row g, `lower` of row g + 8.
__device__ __forceinline__ void make_operand(std::uint32_t (&to)[4], const CodePairs& upper, const CodePairs& lower) {
  to[0] = upper.first, to[1] = lower.first, to[2] = upper.second, to[3] = lower.second;
}

// ---- rows in shared memory, and their scales ------------------------------------------------------------------------

// A stage has the rows of a page: blocks of 128 bytes of all its rows one behind the other, the eight 16-byte units of
// a row turned by the row. Where byte `byte`, the first of a unit, of row `row` lies:
constexpr int kBlockBytes = kPageRows * 128;
__device__ __forceinline__ std::uint32_t in_stage(int row, int byte) {
  return static_cast<std::uint32_t>(byte / 128 * kBlockBytes + row * 128 + ((byte / 16 ^ row) & 7) * 16);
}

// The scales of a row, from the parities that its codes carry (ops/kv_codec.hpp).
struct RowScales {
  float latent, rotary[4];
};

// The rows that a quad of lanes reads for scores: a lane has bytes 4 t … 4 t + 3 of every unit.
template <KvCodec kCodec>
struct SideWord {
  static constexpr int kParts = kIsFour<kCodec> ? 2 : 4;  // units whose values have the same place in the side word
  std::uint32_t parts[kParts] = {};

  __device__ __forceinline__ void add(int unit, std::uint32_t word) { parts[unit % kParts] ^= word; }
  __device__ __forceinline__ RowScales scales(int t) const {
    std::uint32_t words[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const std::uint32_t first = kIsFour<kCodec> ? parts[i % kParts] : parts[2 * i % kParts];
      const std::uint32_t second = kIsFour<kCodec> ? first >> 4 : parts[(2 * i + 1) % kParts];
      std::uint32_t w = (byte_parities(first) | byte_parities(second) << 16) << (4 * t);
      w ^= __shfl_xor_sync(0xffffffffU, w, 1);
      w ^= __shfl_xor_sync(0xffffffffU, w, 2);
      words[i] = ~w;
    }
    const auto twelve = [](std::uint32_t bits) { return __uint_as_float((bits & 0xfffU) << 19); };
    return {__uint_as_float(words[0] << 16),
            {twelve(words[0] >> 16), twelve(__funnelshift_r(words[0], words[1], 28)), twelve(words[1] >> 8),
             twelve(words[1] >> 20)}};
  }
};

}  // namespace glint::cuda
