// Values as 16-bit codes in their order. Included by words_vnni.inl.hpp and kernels_amx.inl.hpp.

// round(v · by) in the low half of each lane, whatever in the high one: |v · by| < 2^15.
inline I low_words(V v, V by) { return as_ints(fma(v, by, set1(12582912.0F))); }

struct Magnitudes {
  float most, total;
};
inline Magnitudes magnitudes(const float* x, std::int64_t n) {
  V top = zero(), all = zero();
#pragma GCC unroll 4
  for (std::int64_t i = 0; i < n; i += kLanes) {
    const V v = magnitude(load(x + i));
    top = larger(v, top);
    all = add(all, v);
  }
  return {highest(top), sum(all)};
}
inline void store_codes(const float* x, std::int64_t n, float by, Code* to) {
#pragma GCC unroll 4
  for (std::int64_t i = 0; i < n; i += kLanes)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i), _mm512_cvtepi32_epi16(low_words(load(x + i), set1(by))));
}
// Codes of values that are too small, or not all numbers; returns their scale.
inline float store_no_codes(std::int64_t n, bool finite, Code* to) {
  __builtin_memset(to, 0, static_cast<std::size_t>(n) * sizeof(Code));
  return finite ? 0 : not_a_number();
}

// All `n` values of x → codes, the largest |value| becomes kCodeMost: for W in bytes, where no sum overflows. Returns
// their scale.
inline float encode_whole(const float* x, std::int64_t n, Code* to) {
  const auto [most, total] = magnitudes(x, n);
  const bool finite = total < __builtin_inff();
  if (!finite || most < kTiniest) return store_no_codes(n, finite, to);
  store_codes(x, n, kCodeMost / most, to);
  return most / kCodeMost;
}
