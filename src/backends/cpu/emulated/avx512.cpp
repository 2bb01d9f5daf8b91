// The avx512 kernels on top of SIMDe: their semantics can be tested on any machine with AVX2.

#include "backends/cpu/emulated/shim.inl.hpp"

#define GLINT_ISA emulated_avx512
#define GLINT_SIMD "backends/cpu/simd_avx512.hpp"
#include "backends/cpu/kernels.inl.hpp"

namespace glint::cpu {
namespace {

constexpr Table kTable = emulated_avx512::make_table("avx512(emulated)");
[[maybe_unused]] const bool kRegistered = register_table(kTable);

}  // namespace
}  // namespace glint::cpu
