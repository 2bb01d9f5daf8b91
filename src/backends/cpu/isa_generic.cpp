// The kernels for any machine. Flags: isa.cmake.

#define GLINT_ISA generic
#define GLINT_SIMD "backends/cpu/simd_generic.hpp"
#include "backends/cpu/kernels.inl.hpp"

namespace glint::cpu {

const Table& generic_table() {
  static constexpr Table kTable = generic::make_table("generic");
  return kTable;
}

}  // namespace glint::cpu
