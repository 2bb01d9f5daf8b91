// Vector wrapper for AVX-512 (F, BW, VL, DQ). Included inside the kernel namespace of one translation unit.
// Only intrinsics that SIMDe has too, or that emulated/shim.inl.hpp adds: the emulated tables are built from this file.

using V = __m512;
inline constexpr int kLanes = 16;
inline constexpr int kTileM = 6;  // 6 × 4 accumulators, 6 of x, 1 of w: 31 of 32 registers
inline constexpr int kTileN = 4;

inline V zero() { return _mm512_setzero_ps(); }
inline V set1(float v) { return _mm512_set1_ps(v); }
inline V load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, V v) { _mm512_storeu_ps(p, v); }
inline V add(V a, V b) { return _mm512_add_ps(a, b); }
inline V sub(V a, V b) { return _mm512_sub_ps(a, b); }
inline V mul(V a, V b) { return _mm512_mul_ps(a, b); }
inline V div(V a, V b) { return _mm512_div_ps(a, b); }
inline V fma(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
inline V larger(V a, V b) { return _mm512_max_ps(a, b); }   // b when either is NaN
inline V smaller(V a, V b) { return _mm512_min_ps(a, b); }  // b when either is NaN
inline V round_even(V a) { return _mm512_roundscale_ps(a, 0); }
inline V scale_by_power(V a, V n) { return _mm512_scalef_ps(a, n); }

inline V load(const BF16* p) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
inline V load(const F16* p) { return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
// Cache codes: 16 int8, 16 E4M3 times 2^-8 (read as half: the exponent's bias is 8 larger), 16 bytes of two halves.
inline V load_int8(const std::uint8_t* p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
inline V load_f8(const std::uint8_t* p) {
  const __m256i wide = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return _mm512_cvtph_ps(_mm256_and_si256(_mm256_slli_epi16(wide, 7), _mm256_set1_epi16(static_cast<short>(0xbf80))));
}
inline void load_int4(const std::uint8_t* p, V* low, V* high) {
  const __m512i bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  *low = _mm512_cvtepi32_ps(_mm512_and_si512(bytes, _mm512_set1_epi32(15)));
  *high = _mm512_cvtepi32_ps(_mm512_srli_epi32(bytes, 4));
}
// As to_bf16 of tensor/dtype.hpp: nearest even, NaN quieted.
inline void store(BF16* p, V v) {
  const __m512i u = _mm512_castps_si512(v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __m512i quiet = _mm512_or_si512(u, _mm512_set1_epi32(0x400000));
  const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
  const __m512i high = _mm512_srli_epi32(_mm512_mask_mov_epi32(rounded, nan, quiet), 16);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(high));
}

inline __m256 fold_half(V v) {
  return _mm256_add_ps(_mm512_castps512_ps256(v), _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(v), 1)));
}
inline __m128 fold(V v) {
  const __m256 half = fold_half(v);
  return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}
// The sums of four vectors; each folds halves until four lanes are left, then adds (0+1) + (2+3).
inline void sum4(V a, V b, V c, V d, float* to) {
  _mm_storeu_ps(to, _mm_hadd_ps(_mm_hadd_ps(fold(a), fold(b)), _mm_hadd_ps(fold(c), fold(d))));
}
inline float sum(V v) {
  const __m128 four = fold(v);
  const __m128 pairs = _mm_hadd_ps(four, four);
  return _mm_cvtss_f32(_mm_hadd_ps(pairs, pairs));
}

#ifdef GLINT_DOT_BF16
// 32 bfloat16 values; a step adds two products to each of 16 lanes.
using VB = __m512bh;
inline VB load_pairs(const BF16* p) { return (VB)_mm512_loadu_si512(p); }
inline V dot_pairs(V c, VB a, VB b) { return _mm512_dpbf16_ps(c, a, b); }
#endif

#ifdef GLINT_VNNI
#include "backends/cpu/simd_int_vnni.hpp"
#else
#include "backends/cpu/simd_int_avx512.hpp"
#endif
