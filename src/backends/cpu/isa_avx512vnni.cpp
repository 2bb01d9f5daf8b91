// The kernels for AVX-512 with VNNI but without BF16 dot products (Cascade Lake, Ice Lake). Flags: isa.cmake.

#include <immintrin.h>

#define GLINT_ISA avx512vnni
#define GLINT_SIMD "backends/cpu/simd_avx512.hpp"
#define GLINT_VNNI 1
#define GLINT_WORDS 1
#define GLINT_STREAMED_ROWS 1
#include "backends/cpu/kernels.inl.hpp"

namespace glint::cpu {

const Table& avx512vnni_table() {
  static constexpr Table kTable = avx512vnni::make_table("avx512vnni");
  return kTable;
}

}  // namespace glint::cpu
