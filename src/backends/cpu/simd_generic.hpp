// Vector wrapper in the compiler's own vector types: four lanes, any x86-64 (or other) machine. Included inside the
// kernel namespace of one translation unit.

using V = float __attribute__((vector_size(16)));
using U = std::uint32_t __attribute__((vector_size(16)));
inline constexpr int kLanes = 4;
inline constexpr int kTileM = 2;  // 2 × 4 accumulators leave room for products: SSE2 has no fused multiply-add
inline constexpr int kTileN = 4;

inline V set1(float v) { return V{v, v, v, v}; }
inline V zero() { return set1(0); }
// A vector anywhere in memory. Not memcpy: the address sanitizer makes a call of that, which took half of its tests'
// time.
template <typename T>
struct __attribute__((packed, may_alias)) Unaligned {
  T value;
};
template <typename T>
inline T load_as(const void* p) {
  return static_cast<const Unaligned<T>*>(p)->value;
}
inline V load(const float* p) { return load_as<V>(p); }
inline void store(float* p, V v) { reinterpret_cast<Unaligned<V>*>(p)->value = v; }
inline V add(V a, V b) { return a + b; }
inline V sub(V a, V b) { return a - b; }
inline V mul(V a, V b) { return a * b; }
inline V div(V a, V b) { return a / b; }
inline V fma(V a, V b, V c) { return a * b + c; }  // two roundings; -ffp-contract=off keeps it so everywhere
inline V select(U mask, V a, V b) { return (V)((mask & (U)a) | (~mask & (U)b)); }
inline V larger(V a, V b) { return select((U)(a > b), a, b); }   // b when either is NaN
inline V smaller(V a, V b) { return select((U)(a < b), a, b); }  // b when either is NaN
// Adding and taking away 1.5 · 2^23 rounds to an integer, nearest even, for |a| < 2^22.
inline V round_even(V a) { return (a + set1(12582912.0F)) - set1(12582912.0F); }
inline V scale_by_power(V a, V n) {
  const U exponent = (U) __builtin_convertvector(n, std::int32_t __attribute__((vector_size(16)))) + 127U;
  return a * (V)(exponent << 23);
}

using U16 = std::uint16_t __attribute__((vector_size(8)));
using U8 = std::uint8_t __attribute__((vector_size(4)));
using I8 = std::int8_t __attribute__((vector_size(4)));
inline U load_u16(const void* p) { return __builtin_convertvector(load_as<U16>(p), U); }
inline V load(const BF16* p) { return (V)(load_u16(p) << 16); }
inline V load(const F16* p) {
  const U u = load_u16(p);
  const U magnitude = (u & 0x7fffU) << 13;
  // As a float of the same digits the exponent is 112 too small (denormals too); infinities and NaN need all ones.
  const V scaled = (V)magnitude * set1(0x1p112F);
  const U special = (U)(magnitude >= 0x0f800000U);
  const U bits = (special & (magnitude | 0x7f800000U)) | (~special & (U)scaled);
  return (V)(bits | ((u & 0x8000U) << 16));
}
// Cache codes: 4 int8, 4 E4M3 times 2^-8, 4 bytes of two 4-bit halves.
inline V load_int8(const std::uint8_t* p) { return __builtin_convertvector(load_as<I8>(p), V); }
inline U load_u8(const std::uint8_t* p) { return __builtin_convertvector(load_as<U8>(p), U); }
inline V load_f8(const std::uint8_t* p) {
  const U u = load_u8(p);
  // As a float of the same digits the exponent is 120 too small.
  return (V)((U)((V)((u & 0x7fU) << 20) * set1(0x1p112F)) | ((u & 0x80U) << 24));
}
inline void load_int4(const std::uint8_t* p, V* low, V* high) {
  const U u = load_u8(p);
  *low = __builtin_convertvector(u & 15U, V);
  *high = __builtin_convertvector(u >> 4, V);
}
inline void store(BF16* p, V v) {
  const U u = (U)v;
  const U nan = (U)(v != v);
  const U rounded = u + 0x7fffU + ((u >> 16) & 1U);
  const U high = ((nan & (u | 0x400000U)) | (~nan & rounded)) >> 16;
  reinterpret_cast<Unaligned<U16>*>(p)->value = __builtin_convertvector(high, U16);
}

inline float sum(V v) { return (v[0] + v[1]) + (v[2] + v[3]); }
inline void sum4(V a, V b, V c, V d, float* to) {
  to[0] = sum(a);
  to[1] = sum(b);
  to[2] = sum(c);
  to[3] = sum(d);
}

#include "backends/cpu/simd_int_generic.hpp"
