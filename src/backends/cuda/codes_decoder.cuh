#pragma once
// Codes in shared memory as wgmma's first operand: BF16 numbers in registers, those of tensor/codec.hpp rounded once,
// as widen.cu has them. A step is 64 columns; rows of 128 bytes lie as tensor copies leave them, units turned by the
// row.
//
// Of a k16, lane 4 g + t has columns 2t, 2t + 1, 2t + 8 and 2t + 9 of two rows: in 4-bit codes byte t of two words,
// which a quad reads together.

#include "backends/cuda/gemm.hpp"
#include "backends/cuda/kv_codec.cuh"

namespace glint::cuda {

template <WeightFormat F, CodesScaling kScaling>
struct CodesDecoder {
  static constexpr bool kNibbles = F == WeightFormat::kI4 || F == WeightFormat::kNF4;
  static constexpr bool kPlain = kScaling == CodesScaling::kPlain, kMins = kScaling == CodesScaling::kMins;
  static constexpr bool kWhole = F == WeightFormat::kI4 || F == WeightFormat::kI8;  // numbers
  static constexpr int kSteps = kNibbles ? 4 : 2;                                   // of 128 bytes
  static_assert(kWhole || kScaling == CodesScaling::kScales);

  // A lane's scales: of the four 32s of columns that two steps have, lane t of a quad holds the one of number t.
  struct Scales {
    std::uint32_t scale[2], min[2];
  };
  struct Source {
    const void *scales[2], *mins[2];
    int groups;  // of a row
  };

  std::uint32_t codes[2][8];           // of the step: 4-bit codes by eights, others by pairs
  float scale_of[2][2], min_of[2][2];  // [32 of the step][row]; plain: two BF16 numbers
  Source from;
  Scales held, ahead;  // of these two steps, of the next two
  DType dtype = DType::kBF16;
  int shift = 0;
  std::uint32_t second, table, selector;
  int lane_t;

  __device__ CodesDecoder(int lane, std::uint32_t second_row, std::uint32_t nf4)
      : second(second_row), table(nf4), lane_t(lane % 4) {
    const std::uint32_t t = lane_t, even = F == WeightFormat::kNF4 ? 4 + t : t,
                        odd = F == WeightFormat::kNF4 ? t : 4 + t;
    selector = even * 0x11U | odd * 0x1100U;
  }

  // ---- scales -------------------------------------------------------------------------------------------------------

  __device__ void fetch(int pair, Scales& to) const {
    const int at = min((pair * 4 + lane_t) * 32 >> shift, from.groups - 1);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      if constexpr (kPlain) {
        to.scale[r] = __ldg(static_cast<const std::uint16_t*>(from.scales[r]) + at);
      } else {
        to.scale[r] = scale_bits(from.scales[r], dtype, at);
        if constexpr (kMins) to.min[r] = scale_bits(from.mins[r], dtype, at);
      }
    }
  }
  // Where the scales of a tile are; the first are on their way from.
  template <typename Problem, typename Tile>
  __device__ void seek(const Problem& p, const Tile& tile, int my_row) {
    dtype = p.scale_dtype, shift = p.group_shift;
    from.groups = p.groups_of(tile);
    const int bytes = dtype == DType::kF32 ? 4 : 2;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int table_of = Problem::kTables == 2 ? r : 0;
      const int row = min(tile.first + my_row + (Problem::kTables == 2 ? 0 : 8 * r), tile.limit - 1) / p.group_rows;
      const std::int64_t skip = static_cast<std::int64_t>(row) * from.groups * bytes;
      from.scales[r] = static_cast<const char*>(p.scales[tile.expert][table_of]) + skip;
      if constexpr (kMins) { from.mins[r] = static_cast<const char*>(p.mins[tile.expert][table_of]) + skip; }
    }
    fetch(0, ahead);
  }
  // Of step `step`, the i-th of a few.
  __device__ void scale(int step, int i) {
    if (i % 2 == 0) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        if constexpr (kPlain) {
          held.scale[r] = __byte_perm(ahead.scale[r], 0, 0x1010);
        } else {
          held.scale[r] = __float_as_uint(scale_value(ahead.scale[r], dtype));
          if constexpr (kMins) held.min[r] = __float_as_uint(scale_value(ahead.min[r], dtype));
        }
      }
      fetch(step / 2 + 1, ahead);
    }
#pragma unroll
    for (int j = 0; j < 2; ++j) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        scale_of[j][r] = __uint_as_float(__shfl_sync(0xffffffffU, held.scale[r], i % 2 * 2 + j, 4));
        if constexpr (kMins) min_of[j][r] = __uint_as_float(__shfl_sync(0xffffffffU, held.min[r], i % 2 * 2 + j, 4));
      }
    }
  }

  // ---- codes --------------------------------------------------------------------------------------------------------

  // Step `part` of a row's 128 bytes; `at` is this lane's first row, with its turn.
  __device__ void load(std::uint32_t at, int part) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      if constexpr (kNibbles) {
#pragma unroll
        for (int u = 0; u < 2; ++u) {
          const uint4 v = lds128((at ^ (part * 32 + u * 16)) + r * second);
          codes[r][4 * u] = v.x, codes[r][4 * u + 1] = v.y, codes[r][4 * u + 2] = v.z, codes[r][4 * u + 3] = v.w;
        }
      } else {
#pragma unroll
        for (int u = 0; u < 8; ++u) {
          const std::uint32_t place = (at ^ (part * 64 + u / 2 * 16)) + r * second + u % 2 * 8 + lane_t * 2;
          std::uint16_t v;
          asm volatile("ld.shared.u16 %0, [%1];" : "=h"(v) : "r"(place));
          codes[r][u] = v;
        }
      }
    }
  }
  // Two whole numbers in BF16, which has them exactly.
  __device__ std::uint32_t exact(std::uint32_t c) const {
    if constexpr (F == WeightFormat::kI4) {                        // 128 + code, less 136 or 128
      const std::uint32_t two = __byte_perm(c, c >> 4, selector);  // in bits 0 to 3 and 16 to 19
      return sub2(and_or<0x000f000fU, 0x43004300U>(two), kMins ? 0x43004300U : 0x43084308U);
    } else {
      return int8_pair(__byte_perm(c, 0, 0x4140));
    }
  }
  // Two codes as BF16 numbers, `word` of the step's eight.
  __device__ std::uint32_t pair(int r, int word) const {
    const int j = word / 4;
    const std::uint32_t c = codes[r][word];
    const float s = scale_of[j][r];
    float v[2] = {};
    if constexpr (kPlain) {
      return mul2(exact(c), __float_as_uint(s));  // rounded once
    } else if constexpr (kWhole) {
      const std::uint32_t two = exact(c);
      v[0] = __fmul_rn(bf16_low(two), s), v[1] = __fmul_rn(bf16_high(two), s);
      if constexpr (kMins) v[0] = __fadd_rn(v[0], min_of[j][r]), v[1] = __fadd_rn(v[1], min_of[j][r]);
    } else if constexpr (F == WeightFormat::kNF4) {
      const std::uint32_t two = __byte_perm(c, c >> 4, selector);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float value;
        asm volatile("ld.shared.f32 %0, [%1];" : "=f"(value) : "r"(table + (two >> (16 * i) & 15U) * 4));
        v[i] = value * s;
      }
    } else {
#pragma unroll
      for (int i = 0; i < 2; ++i) {  // as e4m3_raw()
        const auto top = static_cast<std::int32_t>(c << (24 - 8 * i) & 0xff000000U);
        v[i] = __uint_as_float(static_cast<std::uint32_t>(top >> 4) & 0x87f00000U) * kE4m3Factor * s;
      }
    }
    return pack_bf16(v[0], v[1]);
  }
  // k16 number `i` of the step.
  __device__ void decode(int i, std::uint32_t (&a)[4]) const {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      a[r] = pair(r, 2 * i);
      a[2 + r] = pair(r, 2 * i + 1);
    }
  }
};

}  // namespace glint::cuda
