// Integer dot products for AVX2. Included inside the kernel namespace, after the vector wrapper.
//
// A step is 64 columns: `a` holds the first 32 codes in the order of Packed, `b` the other 32. Every function returns
// kLanes sums of int32, exact; kLaneGroup* say which 16 columns of the 64 a lane covers.

using I = __m256i;
struct W64 {
  __m256i a, b;
};
inline constexpr int kSignedBias = 0;  // what is added to signed codes to make them unsigned: here they stay signed
inline constexpr int kCodesN = 2;      // rows of W in a tile with 4 rows of x: 8 accumulators, 4 of w
alignas(32) inline constexpr int kLaneGroupSplit[kLanes] = {0, 0, 1, 1, 2, 2, 3, 3};  // even columns first
alignas(32) inline constexpr int kLaneGroupBytes[kLanes] = {0, 0, 2, 2, 1, 1, 3, 3};  // after the hadd of dot_lanes

inline __m256i load_bytes(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline W64 load64(const std::uint8_t* p) { return {load_bytes(p), load_bytes(p + 32)}; }
inline void store64(std::uint8_t* p, W64 w) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), w.a);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 32), w.b);
}
// The 64 nibbles of 32 bytes: all low ones, then all high ones, or the other way round.
inline W64 nibbles(const std::uint8_t* p) {
  const __m256i v = load_bytes(p), mask = _mm256_set1_epi8(15);
  return {_mm256_and_si256(v, mask), _mm256_and_si256(_mm256_srli_epi16(v, 4), mask)};
}
inline W64 nibbles_high_first(const std::uint8_t* p) {
  const W64 w = nibbles(p);
  return {w.b, w.a};
}
inline W64 look_up(W64 w, const std::uint8_t* table) {
  const __m256i t = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
  return {_mm256_shuffle_epi8(t, w.a), _mm256_shuffle_epi8(t, w.b)};
}
inline W64 signed_codes(W64 w) { return w; }

// Unsigned codes up to 24: four products of 24 · 127 · 2 fit int16, so pairs are added before they are widened.
template <int Sub>
inline I dot_unsigned(const W64 (&w)[Sub], const std::int8_t* x) {
  static_assert(Sub <= 2);
  __m256i pairs =
      _mm256_add_epi16(_mm256_maddubs_epi16(w[0].a, load_bytes(x)), _mm256_maddubs_epi16(w[0].b, load_bytes(x + 32)));
  if constexpr (Sub == 2) {
    pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(w[1].a, load_bytes(x + 64)));
    pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(w[1].b, load_bytes(x + 96)));
  }
  return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}
// Signed codes: |w| times x with the sign of w. A pair is at most 2 · 128 · 127 < 2^15.
inline I dot_signed_half(__m256i w, const std::int8_t* x) {
  const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(load_bytes(x), w));
  return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}
template <int Sub>
inline I dot_signed(const W64 (&w)[Sub], const std::int8_t* x) {
  I sum = _mm256_add_epi32(dot_signed_half(w[0].a, x), dot_signed_half(w[0].b, x + 32));
  if constexpr (Sub == 2) {
    const I more = _mm256_add_epi32(dot_signed_half(w[1].a, x + 64), dot_signed_half(w[1].b, x + 96));
    sum = _mm256_add_epi32(sum, more);
  }
  return sum;
}
// Codes in the order of their columns, lanes that stay within 16 columns.
inline I dot_lanes(W64 w, const std::int8_t* x) {
  return _mm256_hadd_epi32(dot_signed_half(w.a, x), dot_signed_half(w.b, x + 32));
}

inline V to_floats(I v) { return _mm256_cvtepi32_ps(v); }

// The factors of the 2 or 4 groups of 64 columns, each in the lanes that cover it.
template <int Groups>
inline V spread_factors(const float* p, const int (&lane_group)[kLanes]) {
  const __m256i group = load_bytes(lane_group);
  if constexpr (Groups == 4) {
    const __m256i all = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    return _mm256_permutevar_ps(_mm256_castsi256_ps(all), group);
  } else {
    static_assert(Groups == 2);
    const __m256i both = _mm256_broadcastq_epi64(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
    return _mm256_permutevar_ps(_mm256_castsi256_ps(both), _mm256_srli_epi32(group, 1));
  }
}

#include "backends/cpu/simd_words_avx2.hpp"
