// Integer dot products in plain C++. Included inside the kernel namespace, after the vector wrapper. See
// simd_int_avx2.hpp.

using I = std::int32_t __attribute__((vector_size(16)));
struct W64 {
  std::uint8_t codes[64];
};
inline constexpr int kSignedBias = 0;
inline constexpr int kCodesN = 2;
inline constexpr int kLaneGroupSplit[kLanes] = {0, 1, 2, 3};
inline constexpr int kLaneGroupBytes[kLanes] = {0, 1, 2, 3};

inline W64 load64(const std::uint8_t* p) {
  W64 w;
  __builtin_memcpy(w.codes, p, sizeof w.codes);
  return w;
}
inline void store64(std::uint8_t* p, const W64& w) { __builtin_memcpy(p, w.codes, sizeof w.codes); }
inline W64 nibbles(const std::uint8_t* p) {
  W64 w;
  for (int i = 0; i < 32; ++i) {
    w.codes[i] = p[i] & 15;
    w.codes[32 + i] = p[i] >> 4;
  }
  return w;
}
inline W64 nibbles_high_first(const std::uint8_t* p) {
  W64 w;
  for (int i = 0; i < 32; ++i) {
    w.codes[i] = p[i] >> 4;
    w.codes[32 + i] = p[i] & 15;
  }
  return w;
}
inline W64 look_up(W64 w, const std::uint8_t* table) {
  for (std::uint8_t& c : w.codes) c = table[c];
  return w;
}
inline W64 signed_codes(const W64& w) { return w; }

// Signed codes serve unsigned ones too: those are below 128.
template <int Sub>
inline I dot_signed(const W64 (&w)[Sub], const std::int8_t* x) {
  I sum = {};
  for (int s = 0; s < Sub; ++s) {
    for (int lane = 0; lane < 4; ++lane) {
      std::int32_t total = 0;
      for (int half = 0; half < 64; half += 32) {
        for (int i = half + 8 * lane; i < half + 8 * lane + 8; ++i)
          total += static_cast<std::int8_t>(w[s].codes[i]) * x[64 * s + i];
      }
      sum[lane] += total;
    }
  }
  return sum;
}
template <int Sub>
inline I dot_unsigned(const W64 (&w)[Sub], const std::int8_t* x) {
  return dot_signed<Sub>(w, x);
}
inline I dot_lanes(const W64& w, const std::int8_t* x) {
  I sum = {};
  for (int lane = 0; lane < 4; ++lane) {
    for (int i = 16 * lane; i < 16 * lane + 16; ++i) sum[lane] += static_cast<std::int8_t>(w.codes[i]) * x[i];
  }
  return sum;
}

inline V to_floats(I v) { return __builtin_convertvector(v, V); }

template <int Groups>
inline V spread_factors(const float* p, const int (&lane_group)[kLanes]) {
  V v;
  for (int lane = 0; lane < kLanes; ++lane) v[lane] = p[lane_group[lane] * Groups / 4];
  return v;
}
