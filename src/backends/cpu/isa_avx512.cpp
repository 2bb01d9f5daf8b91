// The kernels for AVX-512 F/BW/VL/DQ. Flags: isa.cmake.

#include <immintrin.h>

#define GLINT_ISA avx512
#define GLINT_SIMD "backends/cpu/simd_avx512.hpp"
#include "backends/cpu/kernels.inl.hpp"

namespace glint::cpu {

const Table& avx512_table() {
  static constexpr Table kTable = avx512::make_table("avx512");
  return kTable;
}

}  // namespace glint::cpu
