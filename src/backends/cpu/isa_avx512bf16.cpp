// The kernels for AVX-512 with BF16 dot products. Flags: isa.cmake.

#include <immintrin.h>

#define GLINT_ISA avx512bf16
#define GLINT_SIMD "backends/cpu/simd_avx512.hpp"
#define GLINT_DOT_BF16 1
#define GLINT_VNNI 1
#define GLINT_WORDS 1
#define GLINT_STREAMED_ROWS 1
#include "backends/cpu/kernels.inl.hpp"

namespace glint::cpu {

const Table& avx512bf16_table() {
  static constexpr Table kTable = avx512bf16::make_table("avx512bf16");
  return kTable;
}

}  // namespace glint::cpu
