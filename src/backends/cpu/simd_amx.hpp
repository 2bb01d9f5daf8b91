// The eight tile registers of AMX. Included inside the kernel namespace, after simd_int_vnni.hpp. A product's sums are
// tiles 0 to 3, two rows of two; its left operands are tiles 4 and 5, its right ones 6 and 7.

inline I set1_words(int v) { return _mm512_set1_epi16(static_cast<short>(v)); }
inline I add_words(I a, I b) { return _mm512_add_epi16(a, b); }
// Byte `from` of the 128 of a and b. Every CPU with AMX has VBMI.
inline I pick_bytes(I a, I from, I b) {
#ifndef SIMDE_ENABLE_NATIVE_ALIASES
  return _mm512_permutex2var_epi8(a, from, b);
#else
  std::uint8_t bytes[128], which[64], out[64];
  store_ints(bytes, a);
  store_ints(bytes + 64, b);
  store_ints(which, from);
  for (int i = 0; i < 64; ++i) out[i] = bytes[which[i] % 128];
  return load_ints(out);
#endif
}
inline I interleave_low_bytes(I a, I b) { return _mm512_unpacklo_epi8(a, b); }
inline I interleave_high_bytes(I a, I b) { return _mm512_unpackhi_epi8(a, b); }
// Quad i of v[p] ↔ quad p of v[i].
inline void turn_quads(V (&v)[4]) {
  const V a = quarters<0x44>(v[0], v[1]), b = quarters<0xee>(v[0], v[1]);
  const V c = quarters<0x44>(v[2], v[3]), d = quarters<0xee>(v[2], v[3]);
  v[0] = quarters<0x88>(a, c);
  v[1] = quarters<0xdd>(a, c);
  v[2] = quarters<0x88>(b, d);
  v[3] = quarters<0xdd>(b, d);
}

// 64 columns of four rows → words of the four: columns 16 i + 4 p … + 3 in quad i of v[p].
[[gnu::always_inline]] inline void turn_four_rows(I a, I b, I c, I d, I (&v)[4]) {
  const I low = interleave_low_bytes(a, b), high = interleave_high_bytes(a, b);
  const I low2 = interleave_low_bytes(c, d), high2 = interleave_high_bytes(c, d);
  v[0] = interleave_low(low, low2);
  v[1] = interleave_high(low, low2);
  v[2] = interleave_low(high, high2);
  v[3] = interleave_high(high, high2);
}

// As LDTILECFG reads it (Intel SDM volume 1, chapter 18).
struct alignas(64) TileShapes {
  std::uint8_t palette = 1;
  std::uint8_t start_row = 0;
  std::uint8_t reserved[14] = {};
  std::uint16_t bytes[16] = {};  // of a row
  std::uint8_t rows[16] = {};
};
inline TileShapes whole_tiles() {
  TileShapes shapes;
  for (int i = 0; i < 8; ++i) {
    shapes.rows[i] = 16;
    shapes.bytes[i] = 64;
  }
  return shapes;
}

using TileSums = std::int32_t[4][16][kLanes];

inline constexpr std::int64_t kTilesFrom = 8;  // rows of x from which tiles are faster than vectors

#ifndef SIMDE_ENABLE_NATIVE_ALIASES

// Not the intrinsics: GCC 12 makes their numbers part of the text, so that they cannot be a template's.
class Tiles {
 public:
  void shape(const TileShapes& shapes) { __asm__ volatile("ldtilecfg %0" ::"m"(shapes)); }
  void release() { __asm__ volatile("tilerelease"); }
  template <int T>
  void clear() {
    __asm__ volatile("tilezero %%tmm%c0" ::"i"(T));
  }
  template <int T>
  void load(const void* from, std::int64_t stride) {
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(T) : "memory");
  }
  // The same of what is not read again soon, and shall not push other things out of L1.
  template <int T>
  void load_passing(const void* from, std::int64_t stride) {
    __asm__ volatile("tileloaddt1 (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(T) : "memory");
  }
  template <int T>
  void store(void* to, std::int64_t stride) const {
    __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(T) : "memory");
  }
  // C += A · B: signed bytes of a row of A times those of B, whose word k holds rows 4k … 4k + 3 of a column.
  template <int C, int A, int B>
  void multiply() {
    __asm__ volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
  }
  // The same with unsigned bytes of A.
  template <int C, int A, int B>
  void multiply_unsigned() {
    __asm__ volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
  }
  // C += A · B in fp32, bfloat16 numbers: word k of a row of A is a pair, row k of B has the pairs of the columns. The
  // sums of the even and of the odd numbers of a pair are made apart, added, and then added to C, numbers too small to
  // be normal counting as zero (Intel SDM volume 2, TDPBF16PS).
  template <int C, int A, int B>
  void multiply_pairs() {
    __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
  }
};

#else  // the same in plain C++, for tests where there is no AMX

class Tiles {
 public:
  void shape(const TileShapes& shapes) { shapes_ = shapes; }
  void release() {}
  template <int T>
  void clear() {
    __builtin_memset(data_[T], 0, sizeof data_[T]);
  }
  template <int T>
  void load(const void* from, std::int64_t stride) {
    clear<T>();
    for (int i = 0; i < shapes_.rows[T]; ++i)
      __builtin_memcpy(data_[T][i], static_cast<const char*>(from) + i * stride, shapes_.bytes[T]);
  }
  template <int T>
  void load_passing(const void* from, std::int64_t stride) {
    load<T>(from, stride);
  }
  template <int T>
  void store(void* to, std::int64_t stride) const {
    for (int i = 0; i < shapes_.rows[T]; ++i)
      __builtin_memcpy(static_cast<char*>(to) + i * stride, data_[T][i], shapes_.bytes[T]);
  }
  template <int C, int A, int B>
  void multiply() {
    add_products<C, A, B, std::int8_t>();
  }
  template <int C, int A, int B>
  void multiply_unsigned() {
    add_products<C, A, B, std::uint8_t>();
  }
  template <int C, int A, int B>
  void multiply_pairs() {
    for (int m = 0; m < shapes_.rows[C]; ++m) {
      for (int n = 0; n < shapes_.bytes[C] / 4; ++n) {
        float sums[2] = {};
        for (int k = 0; k < shapes_.bytes[A] / 2; ++k) {
          const float x = value(data_[A][m] + 2 * k), w = value(data_[B][k / 2] + 4 * n + k % 2 * 2);
          sums[k % 2] = normal(__builtin_fmaf(x, w, sums[k % 2]));
        }
        float sum;
        __builtin_memcpy(&sum, data_[C][m] + 4 * n, 4);
        sum = normal(normal(sum) + normal(sums[0] + sums[1]));
        __builtin_memcpy(data_[C][m] + 4 * n, &sum, 4);
      }
    }
  }

 private:
  static float normal(float v) { return __builtin_fabsf(v) < 0x1p-126F ? __builtin_copysignf(0, v) : v; }
  static float value(const std::int8_t* bfloat16) {
    std::uint32_t bits = 0;
    __builtin_memcpy(reinterpret_cast<char*>(&bits) + 2, bfloat16, 2);
    float v;
    __builtin_memcpy(&v, &bits, 4);
    return normal(v);
  }
  template <int C, int A, int B, typename Byte>
  void add_products() {
    for (int m = 0; m < shapes_.rows[C]; ++m) {
      for (int n = 0; n < shapes_.bytes[C] / 4; ++n) {
        std::int32_t sum;
        __builtin_memcpy(&sum, data_[C][m] + 4 * n, 4);
        for (int k = 0; k < shapes_.bytes[A]; ++k)
          sum += static_cast<Byte>(data_[A][m][k]) * data_[B][k / 4][4 * n + k % 4];
        __builtin_memcpy(data_[C][m] + 4 * n, &sum, 4);
      }
    }
  }

  TileShapes shapes_;
  std::int8_t data_[8][16][64] = {};
};

#endif

// The sums of a product, tiles 0 to 3: to zero, and to memory.
inline void clear_sums(Tiles& tiles) {
  tiles.clear<0>();
  tiles.clear<1>();
  tiles.clear<2>();
  tiles.clear<3>();
}
inline void store_sums(const Tiles& tiles, TileSums& to) {
  tiles.store<0>(to[0], 64);
  tiles.store<1>(to[1], 64);
  tiles.store<2>(to[2], 64);
  tiles.store<3>(to[3], 64);
}
