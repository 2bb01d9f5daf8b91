// The kernels for AMX: those for AVX-512 with BF16 dot products, but for many rows of x against codes. Flags:
// isa.cmake.

#include <immintrin.h>

#define GLINT_ISA amx
#define GLINT_SIMD "backends/cpu/simd_avx512.hpp"
#define GLINT_VNNI 1
#include "backends/cpu/kernels_amx.inl.hpp"

namespace glint::cpu {

const Table& amx_table() {
  static const Table kTable = amx::make_table("amx", avx512bf16_table());
  return kTable;
}

}  // namespace glint::cpu
