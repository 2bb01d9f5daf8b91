// Products of 16-bit codes for AVX2. Included inside the kernel namespace, after the integer wrapper.
// See simd_words_vnni.hpp: the same functions for vectors half as wide, with the same meaning.

inline constexpr int kWeighM = 4;  // 4 × 2 sums, 2 of rows, one of weights, one product: 12 of 16 registers
inline constexpr int kWeighN = 2;
inline constexpr int kWeighUnroll = 4;
inline constexpr int kFetchLines = 0;

inline I zero_ints() { return _mm256_setzero_si256(); }
inline I set1_ints(std::int32_t v) { return _mm256_set1_epi32(v); }
inline I load_ints(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline void store_ints(void* p, I v) { _mm256_storeu_si256(static_cast<__m256i*>(p), v); }

inline I add_products(I c, I a, I b) {
  const I products = _mm256_madd_epi16(a, b);
  __asm__("vpaddd %1, %0, %0" : "+x"(c) : "x"(products));  // GCC 12 copies sums around the intrinsic
  return c;
}
inline V magnitude(V v) { return _mm256_and_ps(v, _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff))); }
inline float highest(V v) {
  __m128 four = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  four = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(four, _mm_shuffle_ps(four, four, 1)));
}

inline I codes_of(V a, V b, V by) {
  return _mm256_packs_epi32(_mm256_cvtps_epi32(mul(a, by)), _mm256_cvtps_epi32(mul(b, by)));
}
inline I codes_of_bytes(const std::uint8_t* p) {  // eight from p on, eight from p + kApart on
  const __m128i a = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  const __m128i b = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p + 16));
  return _mm256_cvtepi8_epi16(_mm_unpacklo_epi32(a, b));
}
inline void store_in_order(std::int16_t* to, V v) {
  const I codes = _mm256_packs_epi32(_mm256_cvtps_epi32(v), zero_ints());
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_castsi256_si128(_mm256_permute4x64_epi64(codes, 0xd8)));
}
inline V add_neighbours(V a, V b) { return _mm256_hadd_ps(a, b); }
inline I interleave_low(I a, I b) { return _mm256_unpacklo_epi16(a, b); }
inline I interleave_high(I a, I b) { return _mm256_unpackhi_epi16(a, b); }
inline std::uint32_t lowest_bits_of_words(const void* p) {
  const I a = _mm256_slli_epi16(load_ints(p), 15);
  const I b = _mm256_slli_epi16(load_ints(static_cast<const std::int16_t*>(p) + 16), 15);
  const I bytes = _mm256_permute4x64_epi64(_mm256_packs_epi16(a, b), 0xd8);
  return static_cast<std::uint32_t>(_mm256_movemask_epi8(bytes));
}

inline I larger_half(I top, const void* v) {
  return _mm256_max_epu16(top, _mm256_and_si256(load_ints(v), _mm256_set1_epi16(0x7fff)));
}
inline int highest_half(I v) {
  const __m128i eight = _mm_max_epu16(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  return 0xffff - _mm_extract_epi16(_mm_minpos_epu16(_mm_xor_si128(eight, _mm_set1_epi16(-1))), 0);
}

inline V four_again(const float* p) { return _mm256_broadcast_ps(reinterpret_cast<const __m128*>(p)); }
inline V sum_quarters(V a, V b, V c, V d) {
  const __m256d ab = _mm256_castps_pd(add(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b)));
  const __m256d cd = _mm256_castps_pd(add(_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d)));
  return add(_mm256_castpd_ps(_mm256_unpacklo_pd(ab, cd)), _mm256_castpd_ps(_mm256_unpackhi_pd(ab, cd)));
}
inline V sum_parts(const V (&v)[2]) {
  return add(_mm256_permute2f128_ps(v[0], v[1], 0x20), _mm256_permute2f128_ps(v[0], v[1], 0x31));
}
