// The eight tile registers of AMX. Included inside the kernel namespace, after simd_int_vnni.hpp. A product's sums are
// tiles 0 to 3, two rows of two; its left operands are tiles 4 and 5, its right ones 6 and 7.

// As LDTILECFG reads it (Intel SDM volume 1, chapter 18).
struct alignas(64) TileShapes {
  std::uint8_t palette = 1;
  std::uint8_t start_row = 0;
  std::uint8_t reserved[14] = {};
  std::uint16_t bytes[16] = {};  // of a row
  std::uint8_t rows[16] = {};
};

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
  template <int T>
  void store(void* to, std::int64_t stride) const {
    __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(T) : "memory");
  }
  // C += A · B: signed bytes of a row of A times those of B, whose word k holds rows 4k … 4k + 3 of a column.
  template <int C, int A, int B>
  void multiply() {
    __asm__ volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
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
  void store(void* to, std::int64_t stride) const {
    for (int i = 0; i < shapes_.rows[T]; ++i)
      __builtin_memcpy(static_cast<char*>(to) + i * stride, data_[T][i], shapes_.bytes[T]);
  }
  template <int C, int A, int B>
  void multiply() {
    for (int m = 0; m < shapes_.rows[C]; ++m) {
      for (int n = 0; n < shapes_.bytes[C] / 4; ++n) {
        std::int32_t sum;
        __builtin_memcpy(&sum, data_[C][m] + 4 * n, 4);
        for (int k = 0; k < shapes_.bytes[A]; ++k) sum += data_[A][m][k] * data_[B][k / 4][4 * n + k % 4];
        __builtin_memcpy(data_[C][m] + 4 * n, &sum, 4);
      }
    }
  }

 private:
  TileShapes shapes_;
  std::int8_t data_[8][16][64] = {};
};

#endif
