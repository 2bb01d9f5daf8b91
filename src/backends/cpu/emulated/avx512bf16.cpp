// The avx512bf16 kernels on top of SIMDe: their semantics can be tested on any machine with AVX2.

#include "backends/cpu/emulated/shim.inl.hpp"

#define GLINT_ISA emulated_avx512bf16
#define GLINT_SIMD "backends/cpu/simd_avx512.hpp"
#define GLINT_DOT_BF16 1
#define GLINT_VNNI 1
#define GLINT_WORDS 1
#include "backends/cpu/kernels.inl.hpp"

namespace glint::cpu {
namespace {

constexpr Table kTable = emulated_avx512bf16::make_table("avx512bf16(emulated)");
[[maybe_unused]] const bool kRegistered = register_table(kTable);

}  // namespace

const Table& emulated_avx512bf16_table() { return kTable; }

}  // namespace glint::cpu
