// Integer vectors for AVX-512 VNNI. Included inside the kernel namespace, after the vector wrapper. Only intrinsics
// that SIMDe or emulated/shim.inl.hpp has. A quad is 128 bits: most integer instructions work within one.

using I = __m512i;
inline constexpr int kSignedBias = 128;  // dpbusd wants unsigned codes of W

inline I zero_ints() { return _mm512_setzero_si512(); }
inline I set1_ints(std::int32_t v) { return _mm512_set1_epi32(v); }
inline I load_ints(const void* p) { return _mm512_loadu_si512(p); }
inline void store_ints(void* p, I v) { _mm512_storeu_si512(p, v); }
// 32 bytes, and zeros above them.
inline I load_half(const void* p) {
  return _mm512_inserti64x4(zero_ints(), _mm256_loadu_si256(static_cast<const __m256i*>(p)), 0);
}
// v in a register: where it is used twice the compiler would load it twice, and loads are what is scarce.
inline I once(I v) {
#ifndef SIMDE_ENABLE_NATIVE_ALIASES
  __asm__("" : "+v"(v));
#endif
  return v;
}
inline I sub_ints(I a, I b) { return _mm512_sub_epi32(a, b); }
inline I add_ints(I a, I b) { return _mm512_add_epi32(a, b); }
inline I shift_left(I v, int by) { return _mm512_slli_epi32(v, static_cast<unsigned>(by)); }
inline I sub_bytes(I a, I b) { return _mm512_sub_epi8(a, b); }
inline I set1_bytes(int v) { return _mm512_set1_epi8(static_cast<char>(v)); }
inline I multiply_ints(I a, I b) { return _mm512_mullo_epi32(a, b); }
inline I as_ints(V v) { return _mm512_castps_si512(v); }
inline I low_nibbles(I v) { return _mm512_and_si512(v, _mm512_set1_epi8(15)); }
inline I high_nibbles(I v) { return low_nibbles(_mm512_srli_epi16(v, 4)); }
inline I flip_signs(I v) { return _mm512_xor_si512(v, _mm512_set1_epi8(-128)); }  // v + 128 as unsigned bytes
inline I look_up(I nibbles, const std::uint8_t* table) {
  const __m128i t = _mm_loadu_si128(reinterpret_cast<const __m128i*>(table));
  return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(t), nibbles);
}
inline V to_floats(I v) { return _mm512_cvtepi32_ps(v); }
inline V first_lanes(V v, std::int64_t n) {  // zeros after the first n
  return n >= kLanes ? v : _mm512_maskz_mov_ps(static_cast<__mmask16>((1U << n) - 1U), v);
}

// Whole numbers below 2^22, right in the low 16 bits of each lane: SIMDe lacks the conversion.
inline I small_ints(V v) { return as_ints(add(v, set1(12582912.0F))); }
inline void store_bytes(std::int8_t* p, I v) {  // the lanes' low bytes
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(v));
}
inline I even_lanes(I a, I b) {
  const I from = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
  return _mm512_permutex2var_epi32(a, from, b);
}
inline I odd_lanes(I a, I b) {
  const I from = _mm512_set_epi32(31, 29, 27, 25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1);
  return _mm512_permutex2var_epi32(a, from, b);
}

// c + sums of four products of unsigned and signed bytes, a lane each; the signed ones are the 64 at s.
// As the instruction itself: of the intrinsic, GCC 12 copies each accumulator in every round of a loop (96 moves beside
// 24 products, seen in the tile of 6 x 4). It reads s itself: a tenth faster on Zen 4 than with a load of its own.
inline I dot_bytes(I c, I u, const std::int8_t* s) {
#ifdef SIMDE_ENABLE_NATIVE_ALIASES
  return _mm512_dpbusd_epi32(c, u, load_ints(s));
#else
  using Bytes = const std::int8_t[64];
  __asm__("vpdpbusd %2, %1, %0" : "+v"(c) : "v"(u), "m"(*reinterpret_cast<Bytes*>(s)));
  return c;
#endif
}

// The same of the four signed bytes at s in every lane, which the instruction itself broadcasts.
inline I dot_bytes_of_four(I c, I u, const std::int8_t* s) {
#ifdef SIMDE_ENABLE_NATIVE_ALIASES
  std::int32_t four;
  __builtin_memcpy(&four, s, 4);
  return _mm512_dpbusd_epi32(c, u, _mm512_set1_epi32(four));
#else
  using Four = const std::int8_t[4];
  __asm__("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(c) : "v"(u), "m"(*reinterpret_cast<Four*>(s)));
  return c;
#endif
}

// Lanes 2i and 2i + 1 of a added, then those of b, quad by quad: [a01 a23 b01 b23]. Small: all fit 16 bits.
template <bool Small>
inline I pair_sums(I a, I b) {
  if constexpr (Small) return _mm512_madd_epi16(_mm512_packs_epi32(a, b), _mm512_set1_epi16(1));
  const V fa = _mm512_castsi512_ps(a), fb = _mm512_castsi512_ps(b);
  return _mm512_add_epi32(_mm512_castps_si512(_mm512_shuffle_ps(fa, fb, 0x88)),
                          _mm512_castps_si512(_mm512_shuffle_ps(fa, fb, 0xDD)));
}
// Quads 0 and 1 of a added, 2 and 3 of a, then those of b.
inline I quad_pair_sums(I a, I b) {
  return _mm512_add_epi32(_mm512_shuffle_i32x4(a, b, 0x88), _mm512_shuffle_i32x4(a, b, 0xDD));
}
inline I permute_lanes(I v, const std::int32_t (&from)[kLanes]) {
  return _mm512_permutexvar_epi32(_mm512_loadu_si512(from), v);
}

// v[i] lane j ↔ v[j] lane i.
[[gnu::always_inline]] inline void transpose_lanes(I (&v)[16]) {
  I t[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(v[i], v[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(v[i], v[i + 1]);
  }
#pragma GCC unroll 16
  for (int i = 0; i < 16; i += 4) {  // v[i + k]: lane k of each quad, of the rows i … i + 3
    v[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    v[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    v[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    v[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
#pragma GCC unroll 16
  for (int k = 0; k < 4; ++k) {  // quads 0, 2 and 1, 3 of the rows 0-7 and 8-15
    t[k] = _mm512_shuffle_i32x4(v[k], v[4 + k], 0x88);
    t[4 + k] = _mm512_shuffle_i32x4(v[k], v[4 + k], 0xDD);
    t[8 + k] = _mm512_shuffle_i32x4(v[8 + k], v[12 + k], 0x88);
    t[12 + k] = _mm512_shuffle_i32x4(v[8 + k], v[12 + k], 0xDD);
  }
#pragma GCC unroll 16
  for (int k = 0; k < 4; ++k) {
    v[k] = _mm512_shuffle_i32x4(t[k], t[8 + k], 0x88);
    v[4 + k] = _mm512_shuffle_i32x4(t[4 + k], t[12 + k], 0x88);
    v[8 + k] = _mm512_shuffle_i32x4(t[k], t[8 + k], 0xDD);
    v[12 + k] = _mm512_shuffle_i32x4(t[4 + k], t[12 + k], 0xDD);
  }
}

// v[i] lane j = word j of row i at `at`, turned: v[j] lane i. Quads are put in their places as they are loaded, which
// takes half the shuffles of transpose_lanes.
[[gnu::always_inline]] inline void load_transposed(const std::uint8_t* const (&rows)[16], std::int64_t at, I (&v)[16]) {
#pragma GCC unroll 16
  for (int q = 0; q < 4; ++q) {
    I t[4];  // quad q of the rows r, r + 4, r + 8, r + 12
#pragma GCC unroll 16
    for (int r = 0; r < 4; ++r) {
      const auto quad = [&](int row) {
        return _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[row] + at + 16 * q));
      };
      t[r] = _mm512_inserti32x4(_mm512_castsi128_si512(quad(r)), quad(r + 4), 1);
      t[r] = _mm512_inserti32x4(t[r], quad(r + 8), 2);
      t[r] = _mm512_inserti32x4(t[r], quad(r + 12), 3);
    }
    const I a = _mm512_unpacklo_epi32(t[0], t[1]), b = _mm512_unpackhi_epi32(t[0], t[1]);
    const I c = _mm512_unpacklo_epi32(t[2], t[3]), d = _mm512_unpackhi_epi32(t[2], t[3]);
    v[4 * q] = _mm512_unpacklo_epi64(a, c);
    v[4 * q + 1] = _mm512_unpackhi_epi64(a, c);
    v[4 * q + 2] = _mm512_unpacklo_epi64(b, d);
    v[4 * q + 3] = _mm512_unpackhi_epi64(b, d);
  }
}

#include "backends/cpu/simd_words_vnni.hpp"
