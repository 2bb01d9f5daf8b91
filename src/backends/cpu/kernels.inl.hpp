// All kernels of one instruction set. The translation unit that includes this defines
//   GLINT_ISA       the namespace (avx2 …), so that no two builds of a function share a name
//   GLINT_SIMD      its vector wrapper
//   GLINT_DOT_BF16  if BF16 weights are multiplied as bfloat16
//   GLINT_VNNI      if AVX-512 VNNI multiplies codes: of block formats, of BF16 weights and of attention
//   GLINT_WORDS     if attention multiplies 16-bit codes; with GLINT_VNNI it must
// and is compiled with its own flags (isa.cmake). Rules for this code: no standard library templates and no inline
// functions from outside the namespace (their out-of-line copies, built for this instruction set, could be linked into
// code for every machine), and no contraction of a·b+c, which would let a row's bits depend on the tile it is in.

#include <cstdint>

#include "backends/cpu/kernels.hpp"

namespace glint::cpu::GLINT_ISA {
namespace {

#include GLINT_SIMD

void dot_quantized(const DotArgs& a);
#ifdef GLINT_VNNI
void dot_words(const DotArgs& a);
void dot_whole(const DotArgs& a);
#endif

#include "backends/cpu/linear.inl.hpp"

#ifdef GLINT_WORDS
#include "backends/cpu/words.inl.hpp"
#endif

#ifdef GLINT_VNNI
#include "backends/cpu/words_vnni.inl.hpp"

#include "backends/cpu/combine_vnni.inl.hpp"

#include "backends/cpu/absorbed_vnni.inl.hpp"
#endif

#include "backends/cpu/combine.inl.hpp"

#include "backends/cpu/quant.inl.hpp"

#include "backends/cpu/elementwise.inl.hpp"

#include "backends/cpu/kv_codec.inl.hpp"

#include "backends/cpu/attend.inl.hpp"

#ifdef GLINT_WORDS
#include "backends/cpu/attend_words.inl.hpp"
#endif

#ifdef GLINT_DOT_BF16
float multiply_bf16(std::int64_t steps) {
  V acc[1][12];
#pragma GCC unroll 16
  for (int j = 0; j < 12; ++j) acc[0][j] = set1(static_cast<float>(j));
  alignas(64) BF16 values[2 * kLanes];
  for (BF16& v : values) v.bits = 0x3380;  // 6e-8
  const VB x = load_pairs(values);
  for (std::int64_t i = 0; i < steps; ++i) {
#pragma GCC unroll 16
    for (int j = 0; j < 12; ++j) acc[0][j] = dot_pairs(acc[0][j], x, x);
    __asm__ volatile("" ::: "memory");
  }
  V total = zero();
#pragma GCC unroll 16
  for (int j = 0; j < 12; ++j) total = add(total, acc[0][j]);
  return sum(total);
}
#endif

}  // namespace

constexpr Table make_table(const char* name) {
  Table t;
  t.name = name;
  t.lanes = kLanes;
  t.pack = pack;
  t.quantize = quantize;
  t.dot = dot;
  t.combine = combine;
  t.kv_encode = kv_encode;
  t.hadamard = hadamard;
#ifdef GLINT_VNNI
  t.dots_words = true;
  t.encode_words = encode_words;
#endif
#ifdef GLINT_WORDS
  t.attend = attend_codes;
  t.streams_pages = kStreams;
#else
  t.attend = attend;
#endif
  t.attend_merge = attend_merge;
  t.attend_finish = attend_finish;
  t.norm = norm;
  t.silu_mul = silu_mul;
  t.add_scaled = add_scaled;
  t.to_float = to_float;
  t.to_bf16 = to_bf16;
  t.read = read;
  t.multiply_f32 = multiply_f32;
#ifdef GLINT_DOT_BF16
  t.dots_bf16 = true;
  t.multiply_bf16 = multiply_bf16;
#endif
  return t;
}

}  // namespace glint::cpu::GLINT_ISA
