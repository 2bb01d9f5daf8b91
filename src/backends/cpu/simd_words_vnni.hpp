// Products of 16-bit codes for AVX-512 VNNI. Included inside the kernel namespace, after the integer wrapper. Only
// intrinsics that SIMDe or emulated/shim.inl.hpp has.

// Sums of a tile of weighted rows: queries, vectors of columns. Steps of two rows in a round of its loop.
inline constexpr int kWeighM = kTileM;
inline constexpr int kWeighN = kTileN;
inline constexpr int kWeighUnroll = 1;
inline constexpr int kFetchLines = 16;  // of the next rows, asked for at a time; 0: an even share

// c + the products of two codes, a lane each.
inline I add_products(I c, I a, I b) {
#ifdef __AVX512VNNI__
  __asm__("vpdpwssd %2, %1, %0" : "+v"(c) : "v"(a), "v"(b));  // GCC 12 copies each sum around the intrinsic
  return c;
#else
  return _mm512_dpwssd_epi32(c, a, b);
#endif
}
inline V magnitude(V v) {
  return _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(v), _mm512_set1_epi32(0x7fffffff)));
}
inline float highest(V v) {
  const __m256 half =
      _mm256_max_ps(_mm512_castps512_ps256(v), _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(v), 1)));
  __m128 four = _mm_max_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  four = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(four, _mm_shuffle_ps(four, four, 1)));
}

// Codes of a · by and b · by in the order in which the packing of two vectors leaves them: a0 … a3, b0 … b3, a4 …
inline I codes_of(V a, V b, V by) {
  return _mm512_packs_epi32(_mm512_cvtps_epi32(mul(a, by)), _mm512_cvtps_epi32(mul(b, by)));
}
// The same of codes of 8 bits, 32 from p on.
inline I codes_of_bytes(const std::uint8_t* p) {
  const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm512_cvtepi8_epi16(_mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7)));
}
// A vector's values as codes, in order.
inline void store_in_order(std::int16_t* to, V v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(v)));
}
// The sums of values whose codes, by codes_of, lie in one lane.
inline V add_neighbours(V a, V b) {
  const __m512d low = _mm512_castps_pd(_mm512_unpacklo_ps(a, b)), high = _mm512_castps_pd(_mm512_unpackhi_ps(a, b));
  return add(_mm512_castpd_ps(_mm512_unpacklo_pd(low, high)), _mm512_castpd_ps(_mm512_unpackhi_pd(low, high)));
}
inline I interleave_low(I a, I b) { return _mm512_unpacklo_epi16(a, b); }
inline I interleave_high(I a, I b) { return _mm512_unpackhi_epi16(a, b); }
// The lowest bits of 32 codes.
inline std::uint32_t lowest_bits_of_words(const void* p) {
  return _mm512_movepi16_mask(_mm512_slli_epi16(load_ints(p), 15));
}

// The larger of top and 32 |halves|, all as unsigned numbers; the highest of 32.
inline I larger_half(I top, const void* v) {
  return _mm512_max_epu16(top, _mm512_and_si512(load_ints(v), _mm512_set1_epi16(0x7fff)));
}
inline int highest_half(I v) {
  const __m256i half = _mm256_max_epu16(_mm512_castsi512_si256(v), _mm512_extracti64x4_epi64(v, 1));
  const __m128i eight = _mm_max_epu16(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
  return 0xffff - _mm_extract_epi16(_mm_minpos_epu16(_mm_xor_si128(eight, _mm_set1_epi16(-1))), 0);
}

// p[0] … p[3] again and again.
inline V four_again(const float* p) {
  const __m512i from = _mm512_set_epi32(3, 2, 1, 0, 3, 2, 1, 0, 3, 2, 1, 0, 3, 2, 1, 0);
  return _mm512_permutexvar_ps(from, _mm512_castps128_ps512(_mm_loadu_ps(p)));
}
// Four vectors → in each 128 bits, the sums of these 128 bits of each.
inline V sum_quarters(V a, V b, V c, V d) {
  const __m512d ab = _mm512_castps_pd(add(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b)));
  const __m512d cd = _mm512_castps_pd(add(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d)));
  return add(_mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd)), _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd)));
}
template <int Which>
inline V quarters(V a, V b) {
  return _mm512_castsi512_ps(_mm512_shuffle_i32x4(_mm512_castps_si512(a), _mm512_castps_si512(b), Which));
}
// The four 128-bit parts of each of four vectors, added.
inline V sum_parts(const V (&v)[4]) {
  const V ab = add(quarters<0x44>(v[0], v[1]), quarters<0xee>(v[0], v[1]));
  const V cd = add(quarters<0x44>(v[2], v[3]), quarters<0xee>(v[2], v[3]));
  return add(quarters<0x88>(ab, cd), quarters<0xdd>(ab, cd));
}
