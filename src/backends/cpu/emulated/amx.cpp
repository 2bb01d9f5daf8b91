// The amx kernels on top of SIMDe, their tiles in plain C++ (simd_amx.hpp).

#include "backends/cpu/emulated/shim.inl.hpp"

#define GLINT_ISA emulated_amx
#define GLINT_SIMD "backends/cpu/simd_avx512.hpp"
#define GLINT_VNNI 1
#include "backends/cpu/kernels_amx.inl.hpp"

namespace glint::cpu {

#ifdef GLINT_EMULATED_UPON_NATIVE
const Table& avx512bf16_table();
const Table& base_table() { return avx512bf16_table(); }
#else
const Table& emulated_avx512bf16_table();
const Table& base_table() { return emulated_avx512bf16_table(); }
#endif

namespace {

const Table kTable = emulated_amx::make_table("amx(emulated)", base_table());
[[maybe_unused]] const bool kRegistered = register_table(kTable);

}  // namespace
}  // namespace glint::cpu
