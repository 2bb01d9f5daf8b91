// The kernels for AVX2 + FMA + F16C. Flags: isa.cmake.

#include <immintrin.h>

#define GLINT_ISA avx2
#define GLINT_SIMD "backends/cpu/simd_avx2.hpp"
#define GLINT_WORDS 1
#include "backends/cpu/kernels.inl.hpp"

namespace glint::cpu {

const Table& avx2_table() {
  static constexpr Table kTable = avx2::make_table("avx2");
  return kTable;
}

}  // namespace glint::cpu
