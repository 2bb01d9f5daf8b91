// The amx kernels on top of SIMDe, their tiles in plain C++ (simd_amx.hpp).

#include "backends/cpu/emulated/shim.inl.hpp"

#define GLINT_ISA emulated_amx
#define GLINT_SIMD "backends/cpu/simd_avx512.hpp"
#define GLINT_VNNI 1
#include "backends/cpu/kernels_amx.inl.hpp"

namespace glint::cpu {

const Table& emulated_avx512bf16_table();

namespace {

#ifdef GLINT_EMULATED_UPON_NATIVE
constexpr auto* base_table = avx512bf16_table;
#else
constexpr auto* base_table = emulated_avx512bf16_table;
#endif
const Table kTable = emulated_amx::make_table("amx(emulated)", base_table());
[[maybe_unused]] const bool kRegistered = register_table(kTable);

}  // namespace
}  // namespace glint::cpu
