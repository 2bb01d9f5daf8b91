#pragma once
// Rows encoded in the short cache codecs, by one warp a row, as ops/kv_codec.cpp does it, to the bit: sums and products
// are rounded where it rounds them.

#include "backends/cuda/kv_codec.cuh"

namespace glint::cuda {

constexpr float kLargest = 0x1p100F, kSmallestScale = 0x1p-100F;

__device__ __forceinline__ float warp_max(float v, int lanes) {
  for (int d = lanes / 2; d > 0; d >>= 1) v = fmaxf(v, __shfl_xor_sync(0xffffffffU, v, d));
  return v;
}
__device__ __forceinline__ std::uint32_t bf16_bits(float v) { return __bfloat16_as_ushort(__float2bfloat16_rn(v)); }
__device__ __forceinline__ int nearest_code(float v, int lowest, int highest) {
  return static_cast<int>(fminf(fmaxf(rintf(v), static_cast<float>(lowest)), static_cast<float>(highest)));
}

// |v| ≤ 448 as an E4M3 code without sign, to nearest even.
__device__ __forceinline__ int e4m3_code(float a) {
  if (a < 0x1p-6F) return static_cast<int>(rintf(a * 512.0F));
  std::uint32_t u = __float_as_uint(a);
  u += 0x7ffffU + (u >> 20 & 1U);
  return min(static_cast<int>(u >> 20) - (120 << 3), 0x7e);
}
__device__ __forceinline__ float e4m3_value(int code) {
  return __uint_as_float(static_cast<std::uint32_t>(code) << 20) * kE4m3Factor;
}

// The nearest code, the other neighbour, and what that one costs in squared error.
template <int N>
struct CodeChoice {
  int code[N], other[N];
  float cost[N];
};

template <int N>
__device__ __forceinline__ void put_integer(CodeChoice<N>& c, int i, float steps, float step, int lowest, int highest) {
  const int code = nearest_code(steps, lowest, highest);
  const float off = __fsub_rn(steps, static_cast<float>(code));
  int other = off >= 0 ? code + 1 : code - 1;
  if (other > highest) other = code - 1;
  if (other < lowest) other = code + 1;
  const float far = __fsub_rn(steps, static_cast<float>(other));
  c.code[i] = code;
  c.other[i] = other;
  c.cost[i] = __fmul_rn(__fsub_rn(__fmul_rn(far, far), __fmul_rn(off, off)), __fmul_rn(step, step));
}

template <int N>
__device__ __forceinline__ void put_fp8(CodeChoice<N>& c, int i, float v) {
  const int sign = (__float_as_uint(v) >> 31) != 0 ? 0x80 : 0;
  const int code = e4m3_code(fabsf(v));
  const float off = __fsub_rn(fabsf(v), e4m3_value(code));
  int other = off >= 0 ? code + 1 : code - 1;
  if (other > 0x7e) other = code - 1;
  const float far = __fsub_rn(fabsf(v), e4m3_value(other));
  c.code[i] = code | sign;
  c.other[i] = other | sign;
  c.cost[i] = __fsub_rn(__fmul_rn(far, far), __fmul_rn(off, off));
}

// Makes the codes carry the side word: bit b lies in the codes of one place b % 16 of the eight lanes l % 4 = b / 16.
// `wanted`, `which`: of the places that a lane has here. Of equal costs, the lowest index takes the change.
template <int N>
__device__ __forceinline__ void embed_side(CodeChoice<N>& c, std::uint32_t wanted, std::uint32_t which, int lane) {
  std::uint32_t parity = 0;
#pragma unroll
  for (int i = 0; i < N; ++i) parity |= (static_cast<std::uint32_t>(c.code[i]) & 1U) << i;
#pragma unroll
  for (int d = 4; d < 32; d <<= 1) parity ^= __shfl_xor_sync(0xffffffffU, parity, d);
  const std::uint32_t change = (parity ^ ~wanted) & which;
#pragma unroll
  for (int i = 0; i < N; ++i) {
    float best = c.cost[i];
    int at = lane;
#pragma unroll
    for (int d = 4; d < 32; d <<= 1) {
      const float cost = __shfl_xor_sync(0xffffffffU, best, d);
      const int from = __shfl_xor_sync(0xffffffffU, at, d);
      if (cost < best || (cost == best && from < at)) best = cost, at = from;
    }
    if ((change >> i & 1U) != 0 && at == lane) c.code[i] = c.other[i];
  }
}

// Two rotary values a lane; eight lanes share a scale. Returns bits 16 … 63 of the side word as two words of 32.
struct Rotary {
  std::uint32_t codes;  // two bytes
  std::uint64_t side;
};
__device__ __forceinline__ Rotary encode_rotary(float2 v, int lane) {
  const float top = warp_max(fmaxf(fabsf(v.x), fabsf(v.y)), 8);
  const std::uint32_t exact = __float_as_uint(fmaxf(__fdiv_rn(top, 127.0F), kSmallestScale));
  const std::uint32_t scale = (exact + 0x7ffffU) >> 19;
  const float inverse = __fdiv_rn(1.0F, __uint_as_float(scale << 19));
  const auto a = static_cast<std::uint8_t>(nearest_code(__fmul_rn(v.x, inverse), -127, 127));
  const auto b = static_cast<std::uint8_t>(nearest_code(__fmul_rn(v.y, inverse), -127, 127));
  Rotary r{static_cast<std::uint32_t>(a) | static_cast<std::uint32_t>(b) << 8, 0};
#pragma unroll
  for (int g = 0; g < 4; ++g)
    r.side |= static_cast<std::uint64_t>(__shfl_sync(0xffffffffU, scale, 8 * g)) << (16 + 12 * g);
  (void)lane;
  return r;
}

__device__ __forceinline__ float group_scale(int code) {
  return __uint_as_float((static_cast<std::uint32_t>(code) + (111U << 3)) << 20);
}

// The squared error of a group of 32 under a scale: the values i and 16 + i lie with lanes 2 g and 2 g + 1.
__device__ __forceinline__ float group_error(const float (&v)[16], float scale) {
  const float inverse = __fdiv_rn(1.0F, scale);
  float e[16];
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    const float code = static_cast<float>(nearest_code(__fmul_rn(v[i], inverse), -8, 7));
    const float off = __fsub_rn(v[i], __fmul_rn(code, scale));
    const float square = __fmul_rn(off, off);
    e[i] = __fadd_rn(square, __shfl_xor_sync(0xffffffffU, square, 1));
  }
#pragma unroll
  for (int half = 8; half > 0; half /= 2) {
#pragma unroll
    for (int i = 0; i < half; ++i) e[i] = __fadd_rn(e[i], e[i + half]);
  }
  return e[0];
}

// FP8 and INT8: the codes of N of a lane's values, whose row has `top` as its largest magnitude. The row's scale goes
// into the side word.
template <KvCodec kCodec, int N>
__device__ __forceinline__ CodeChoice<N> eight_bit_codes(const float (&v)[N], float top, Rotary& rotary) {
  std::uint32_t scale;
  if constexpr (kCodec == KvCodec::kFp8) {
    const std::uint32_t u = __float_as_uint(fmaxf(__fdiv_rn(top, 448.0F), kSmallestScale));
    scale = bf16_bits(__uint_as_float((u + 0x7fffffU) & 0x7f800000U));
  } else {
    scale = bf16_bits(fmaxf(__fdiv_rn(top, 127.0F), kSmallestScale));
  }
  rotary.side |= scale;
  const float inverse = __fdiv_rn(1.0F, __uint_as_float(scale << 16));
  CodeChoice<N> c;
#pragma unroll
  for (int i = 0; i < N; ++i) {
    if constexpr (kCodec == KvCodec::kFp8) put_fp8(c, i, __fmul_rn(v[i], inverse));
    else put_integer(c, i, __fmul_rn(v[i], inverse), 1, -127, 127);
  }
  return c;
}
// What a lane has of the side word.
__device__ __forceinline__ std::uint32_t side_of_lane(const Rotary& rotary, int lane) {
  return static_cast<std::uint32_t>(rotary.side >> (16 * (lane % 4))) & 0xffffU;
}

// One row: 576 floats at `from` (16-byte aligned) to the codec's bytes at `to`, by all lanes of a warp.
template <KvCodec kCodec>
__device__ __forceinline__ void encode_row(const float* from, unsigned char* to, int lane) {
  float v[16];
  bool sane = true;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float4 x = reinterpret_cast<const float4*>(from)[lane * 4 + i];
    v[4 * i] = x.x, v[4 * i + 1] = x.y, v[4 * i + 2] = x.z, v[4 * i + 3] = x.w;
  }
#pragma unroll
  for (int i = 0; i < 16; ++i) sane = sane && fabsf(v[i]) <= kLargest;
  const float2 rope = reinterpret_cast<const float2*>(from + kLatentWidth)[lane];
  sane = sane && fabsf(rope.x) <= kLargest && fabsf(rope.y) <= kLargest;
  if (!__all_sync(0xffffffffU, sane)) {
    for (int i = lane; i < kCacheRowBytes<kCodec> / 16; i += 32)
      reinterpret_cast<uint4*>(to)[i] = {0xffffffffU, 0xffffffffU, 0xffffffffU, 0xffffffffU};
    return;
  }
  if constexpr (is_rotated(kCodec)) warp_hadamard(v, lane);
  Rotary rotary = encode_rotary(rope, lane);

  float top = 0;
#pragma unroll
  for (int i = 0; i < 16; ++i) top = fmaxf(top, fabsf(v[i]));
  CodeChoice<16> c;
  std::uint32_t which = 0xffffU;
  if constexpr (kCodec == KvCodec::kInt4) {
    top = warp_max(top, 2);
    const float start = fminf(fmaxf(__fdiv_rn(top, 7.5F), 0x1p-16F), 61440.0F);
    const int widest = static_cast<int>(((__float_as_uint(start) + 0x80000U) >> 20) - (111U << 3));
    int best = widest;
    float best_error = INFINITY;
    for (int k = 0; k < 4; ++k) {  // every lane takes part in the sums, also where the scale does not exist
      const int code = widest - k;
      const float error = group_error(v, group_scale(max(code, 0)));
      if (code >= 0 && error < best_error) best = code, best_error = error;
    }
    const float step = group_scale(best), inverse = __fdiv_rn(1.0F, step);
#pragma unroll
    for (int i = 0; i < 16; ++i) put_integer(c, i, __fmul_rn(v[i], inverse), step, -8, 7);
    if (lane % 2 == 0) to[kLatentWidth / 2 + lane / 2] = static_cast<unsigned char>(best);
    if (lane % 4 == 0) which = 0;
  } else {
    c = eight_bit_codes<kCodec>(v, warp_max(top, 32), rotary);
  }
  embed_side(c, side_of_lane(rotary, lane), which, lane);

  std::uint32_t packed[4] = {};
  if constexpr (kCodec == KvCodec::kInt4) {
    // Byte i of a group holds value i (this lane, if even) and value 16 + i (the next lane).
#pragma unroll
    for (int i = 0; i < 16; ++i) packed[i / 4] |= static_cast<std::uint32_t>(c.code[i] + 8) << (8 * (i % 4));
#pragma unroll
    for (int k = 0; k < 4; ++k) packed[k] |= __shfl_xor_sync(0xffffffffU, packed[k], 1) << 4;
    if (lane % 2 == 0) reinterpret_cast<uint4*>(to)[lane / 2] = {packed[0], packed[1], packed[2], packed[3]};
  } else {
#pragma unroll
    for (int i = 0; i < 16; ++i) packed[i / 4] |= (static_cast<std::uint32_t>(c.code[i]) & 255U) << (8 * (i % 4));
    reinterpret_cast<uint4*>(to)[lane] = {packed[0], packed[1], packed[2], packed[3]};
  }
  reinterpret_cast<std::uint16_t*>(to + kRotaryOffset<kCodec>)[lane] = static_cast<std::uint16_t>(rotary.codes);
}

}  // namespace glint::cuda
