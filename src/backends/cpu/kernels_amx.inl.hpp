// The kernels of AMX, upon a table for AVX-512 with VNNI. The rules of kernels.inl.hpp hold: the translation unit
// defines GLINT_ISA and GLINT_SIMD.

#include <cstdint>

#include "backends/cpu/kernels.hpp"

namespace glint::cpu::GLINT_ISA {
namespace {

#pragma GCC diagnostic ignored "-Wunused-function"  // what is included has more than is used here

#include GLINT_SIMD

const Table* g_base = nullptr;  // for all else

#include "backends/cpu/simd_amx.hpp"

#include "backends/cpu/partial.inl.hpp"

#include "backends/cpu/quant_codes.inl.hpp"

#include "backends/cpu/quant_matrix.inl.hpp"

#include "backends/cpu/quant_tiles.inl.hpp"

#include "backends/cpu/quant_amx.inl.hpp"

#include "backends/cpu/words.inl.hpp"

#include "backends/cpu/exp.inl.hpp"

#include "backends/cpu/fetch.inl.hpp"

#include "backends/cpu/kv_codec.inl.hpp"

#include "backends/cpu/attend_pages.inl.hpp"

void attend(const AttendArgs& a) { g_base->attend(a); }

#define GLINT_STREAMED_ROWS 1
#include "backends/cpu/attend_words.inl.hpp"

#include "backends/cpu/attend_amx.inl.hpp"

#include "backends/cpu/words_encode.inl.hpp"

#include "backends/cpu/absorbed.inl.hpp"

#include "backends/cpu/absorbed_amx.inl.hpp"

#include "backends/cpu/twofold_amx.inl.hpp"

void quantize_any(const Packed& to, const float* x, std::int64_t x_stride, std::int64_t m0, std::int64_t m1) {
  (to.twofold ? encode_twofold : g_base->quantize)(to, x, x_stride, m0, m1);
}

void tile_any(const Packed& from, const std::int32_t* index, const Packed& to, std::int64_t m0, std::int64_t m1) {
  (to.twofold ? turn_twofold : tile_codes)(from, index, to, m0, m1);
}

void combine_any(const CombineArgs& a) { return combines_twofold(a) ? combine_twofold(a) : combine_amx(a); }

void dot(const DotArgs& a) {
  if (a.x->twofold) return dot_twofold(a);
  if (a.x->words && a.w.format == WeightFormat::kI8 && a.m1 - a.m0 >= kTilesFrom) return dot_whole_amx(a);
  if (a.x->tiles == nullptr || a.index != nullptr || a.m0 % kRowTile != 0) return g_base->dot(a);
  switch (a.w.format) {
    case WeightFormat::kI4:
      return codes_amx_any<Int4Codes>(a);
    case WeightFormat::kI8:
      return codes_amx_any<Int8Codes>(a);
    case WeightFormat::kNF4:
      return codes_amx_any<Nf4Codes>(a);
    case WeightFormat::kF4E2M1:
      return codes_amx_any<F4Codes>(a);
    default:
      return g_base->dot(a);
  }
}

}  // namespace

inline Table make_table(const char* name, const Table& base) {
  g_base = &base;
  Table t = base;
  t.name = name;
  t.dot = dot;
  t.dots_twofold = true;
  t.quantize = quantize_any;
  t.combine = combine_any;
  t.attend = attend_amx;
  t.streams_pages = true;
  t.query_block = kMostQueries;
  t.tile_codes = tile_any;
  t.tile_from = kTilesFrom;
  return t;
}

}  // namespace glint::cpu::GLINT_ISA
