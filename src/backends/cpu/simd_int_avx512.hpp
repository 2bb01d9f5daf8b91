// Integer dot products for AVX-512 (BW). Included inside the kernel namespace,
// after the vector wrapper. See simd_int_avx2.hpp; only intrinsics that SIMDe or emulated/shim.inl.hpp has.

using I = __m512i;
using W64 = __m512i;
inline constexpr int kSignedBias = 0;
inline constexpr int kCodesN = 4;
inline constexpr int kLaneGroupSplit[kLanes] = {0, 0, 1, 1, 2, 2, 3, 3, 0, 0, 1, 1, 2, 2, 3, 3};
inline constexpr int kLaneGroupBytes[kLanes] = {0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3};

inline W64 load64(const std::uint8_t* p) { return _mm512_loadu_si512(p); }
inline void store64(std::uint8_t* p, W64 w) { _mm512_storeu_si512(p, w); }
// 32 bytes twice, one of the two shifted down.
inline W64 halves_shifted(const std::uint8_t* p, __m512i shift) {
  const __m512i v = _mm512_broadcast_i64x4(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  return _mm512_and_si512(_mm512_srlv_epi64(v, shift), _mm512_set1_epi8(15));
}
inline W64 nibbles(const std::uint8_t* p) { return halves_shifted(p, _mm512_set_epi64(4, 4, 4, 4, 0, 0, 0, 0)); }
inline W64 nibbles_high_first(const std::uint8_t* p) {
  return halves_shifted(p, _mm512_set_epi64(0, 0, 0, 0, 4, 4, 4, 4));
}
inline W64 look_up(W64 w, const std::uint8_t* table) {
  const __m128i t = _mm_loadu_si128(reinterpret_cast<const __m128i*>(table));
  return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(t), w);
}

inline W64 signed_codes(W64 w) { return w; }
template <int Sub>
inline I dot_unsigned(const W64 (&w)[Sub], const std::int8_t* x) {
  __m512i pairs = _mm512_maddubs_epi16(w[0], _mm512_loadu_si512(x));
  if constexpr (Sub == 2) pairs = _mm512_add_epi16(pairs, _mm512_maddubs_epi16(w[1], _mm512_loadu_si512(x + 64)));
  return _mm512_madd_epi16(pairs, _mm512_set1_epi16(1));
}
inline I dot_signed_step(W64 w, const std::int8_t* x) {
  const __m512i xv = _mm512_loadu_si512(x);
  const __m512i same_sign = _mm512_mask_sub_epi8(xv, _mm512_movepi8_mask(w), _mm512_setzero_si512(), xv);
  return _mm512_madd_epi16(_mm512_maddubs_epi16(_mm512_abs_epi8(w), same_sign), _mm512_set1_epi16(1));
}
template <int Sub>
inline I dot_signed(const W64 (&w)[Sub], const std::int8_t* x) {
  I sum = dot_signed_step(w[0], x);
  if constexpr (Sub == 2) sum = _mm512_add_epi32(sum, dot_signed_step(w[1], x + 64));
  return sum;
}
inline I dot_lanes(W64 w, const std::int8_t* x) {
  const W64 one[1] = {w};
  return dot_signed<1>(one, x);
}

inline V to_floats(I v) { return _mm512_cvtepi32_ps(v); }

template <int Groups>
inline V spread_factors(const float* p, const int (&lane_group)[kLanes]) {
  const __m512i group = _mm512_loadu_si512(lane_group);
  if constexpr (Groups == 4) {
    return _mm512_permutexvar_ps(group, _mm512_castps128_ps512(_mm_loadu_ps(p)));
  } else {
    static_assert(Groups == 2);
    const __m128 both = _mm_castsi128_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
    return _mm512_permutexvar_ps(_mm512_srli_epi32(group, 1), _mm512_castps128_ps512(both));
  }
}
