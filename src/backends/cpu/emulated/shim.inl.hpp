#pragma once
// AVX-512 on AVX2 through SIMDe, for tests: the intrinsics of simd_avx512.hpp under their own names.
// SIMDe 0.7 lacks some conversions, which are made here of AVX2 halves.

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>
#include <simde/x86/f16c.h>

namespace glint::cpu::emulated {

inline __m512i join(__m256i low, __m256i high) {
  return simde_mm512_inserti64x4(simde_mm512_castsi256_si512(low), high, 1);
}
inline __m512i cvtepu16_epi32(__m256i v) {
  return join(_mm256_cvtepu16_epi32(_mm256_castsi256_si128(v)), _mm256_cvtepu16_epi32(_mm256_extracti128_si256(v, 1)));
}
inline __m256i cvtepi32_epi16(__m512i v) {  // truncates
  const __m256i mask = _mm256_set1_epi32(0xffff);
  const __m256i low = _mm256_and_si256(simde_mm512_castsi512_si256(v), mask);
  const __m256i high = _mm256_and_si256(simde_mm512_extracti64x4_epi64(v, 1), mask);
  return _mm256_permute4x64_epi64(_mm256_packus_epi32(low, high), 0xd8);
}
inline __m128i cvtepi32_epi8(__m512i v) {  // truncates
  const __m256i words = _mm256_and_si256(cvtepi32_epi16(v), _mm256_set1_epi16(0xff));
  return _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
}
inline __m512i cvtepi8_epi32(__m128i v) {
  return join(_mm256_cvtepi8_epi32(v), _mm256_cvtepi8_epi32(_mm_srli_si128(v, 8)));
}
inline __m512i cvtepu8_epi32(__m128i v) {
  return join(_mm256_cvtepu8_epi32(v), _mm256_cvtepu8_epi32(_mm_srli_si128(v, 8)));
}
inline __m512 cvtepi32_ps(__m512i v) {
  const __m256 low = _mm256_cvtepi32_ps(simde_mm512_castsi512_si256(v));
  const __m256 high = _mm256_cvtepi32_ps(simde_mm512_extracti64x4_epi64(v, 1));
  return simde_mm512_castsi512_ps(join(_mm256_castps_si256(low), _mm256_castps_si256(high)));
}
inline __m512i cvtps_epi32(__m512 v) {
  const __m256i low = _mm256_cvtps_epi32(simde_mm512_castps512_ps256(v));
  const __m512i bits = simde_mm512_castps_si512(v);
  return join(low, _mm256_cvtps_epi32(_mm256_castsi256_ps(simde_mm512_extracti64x4_epi64(bits, 1))));
}
inline __m512 cvtph_ps(__m256i v) {
  const __m256 low = _mm256_cvtph_ps(_mm256_castsi256_si128(v));
  const __m256 high = _mm256_cvtph_ps(_mm256_extracti128_si256(v, 1));
  return simde_mm512_castsi512_ps(join(_mm256_castps_si256(low), _mm256_castps_si256(high)));
}
inline void mask_storeu_ps(void* to, __mmask16 lanes, __m512 v) {
  float values[16];
  simde_mm512_storeu_ps(values, v);
  for (int i = 0; i < 16; ++i) {
    if ((lanes >> i & 1) != 0) static_cast<float*>(to)[i] = values[i];
  }
}

}  // namespace glint::cpu::emulated

#define _mm512_cvtepu16_epi32(a) ::glint::cpu::emulated::cvtepu16_epi32(a)
#define _mm512_cvtepi32_epi16(a) ::glint::cpu::emulated::cvtepi32_epi16(a)
#define _mm512_cvtepi32_epi8(a) ::glint::cpu::emulated::cvtepi32_epi8(a)
#undef _mm512_cvtepi8_epi32
#undef _mm512_cvtepu8_epi32
#undef _mm512_cvtepi32_ps
#define _mm512_cvtepi8_epi32(a) ::glint::cpu::emulated::cvtepi8_epi32(a)
#define _mm512_cvtepu8_epi32(a) ::glint::cpu::emulated::cvtepu8_epi32(a)
#define _mm512_cvtepi32_ps(a) ::glint::cpu::emulated::cvtepi32_ps(a)
#define _mm512_cvtps_epi32(a) ::glint::cpu::emulated::cvtps_epi32(a)
#define _mm512_cvtph_ps(a) ::glint::cpu::emulated::cvtph_ps(a)
#define _mm512_mask_storeu_ps(to, lanes, v) ::glint::cpu::emulated::mask_storeu_ps(to, lanes, v)
#undef _mm512_madd_epi16  // SIMDe 0.7 gives it the arguments of the masked form
#define _mm512_madd_epi16(a, b) simde_mm512_madd_epi16(a, b)
