#pragma once
// A stage that multiplies: weights go from memory straight into registers, four steps ahead, and the first four are
// on their way before the barrier that the stage's x waits for.
//
// W is the A operand of m16n8k16, sixteen rows a tile. The order of a contraction is free, so that the 16 bytes a lane
// loads of each of its two rows (lane = 4 g + t: rows g and g + 8, bytes 16 t of the step's 64) are its share of as
// many products as they hold columns. The B operand's eight columns are
//   BF16        each row of x, high and low part: column 2 r + part
//   short codes one row of x at a time: column 2 t + part has x only where the contraction is lane t's share. The
//               sums of a lane are then those of its own codes, whose scale is one number: codes enter the product
//               exactly, and scales the sums in fp32, whatever the group.

#include "backends/cuda/decode_staging.cuh"

#if __CUDA_ARCH__ >= 900
namespace glint::cuda {

constexpr int kStepDepth = 4;

// As load_stream(); the rest of the 256 bytes is wanted soon.
__device__ __forceinline__ uint4 load_ahead(const char* p) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.L2::256B.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p));
  return v;
}

template <WeightFormat F>
struct StepFormat {
  static constexpr int kBits = weight_code_bits(F);
  static constexpr int kCols = 128 / kBits;  // columns of a lane's 16 bytes
  static constexpr int kUnits = kCols / 8;   // eights of them
  static constexpr bool kScaled = kBits <= 8;
};

// A lane's codes of a step, of whatever format: two rows.
struct StepLoad {
  uint4 code[2];
  std::uint32_t scale[2];
};

__device__ __forceinline__ std::uint32_t word_of(const uint4& v, int i) {
  return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}
// Unit j of a lane's short codes as four pairs of BF16, in the order in which x lies.
template <WeightFormat F>
__device__ __forceinline__ void unit_of(const uint4& code, int j, std::uint32_t nf4, std::uint32_t (&a)[4]) {
  if constexpr (F == WeightFormat::kI8 || F == WeightFormat::kF8E4M3) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const std::uint32_t w = word_of(code, 2 * j + i);
      const std::uint32_t x = __byte_perm(w, 0, 0x4140), y = __byte_perm(w, 0, 0x4342);
      a[2 * i] = F == WeightFormat::kI8 ? int8_pair(x) : e4m3_pair(x);
      a[2 * i + 1] = F == WeightFormat::kI8 ? int8_pair(y) : e4m3_pair(y);
    }
  } else {
    const std::uint32_t w = word_of(code, j);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if constexpr (F == WeightFormat::kI4) {
        // 0x4300 is 128 in BF16, whose last mantissa bit is worth 1: the code lands in it as 128 + u; less 136.
        a[i] = sub2(((w >> (4 * i)) & 0x000f000fU) | 0x43004300U, 0x43084308U);
      } else {
        a[i] = lds32(nf4 + ((w >> (8 * i)) & 255U) * 4);
      }
    }
  }
}

// The running sums of a warp's tile.
template <int kT, WeightFormat F>
struct StepSums {
  static constexpr bool kScaled = StepFormat<F>::kScaled;
  float v[kScaled ? kT : 1][kScaled ? 2 : 4] = {};

  __device__ __forceinline__ void flush(int pass, int place) {
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const std::uint32_t to = step.s.sums + static_cast<std::uint32_t>(pass * kSumTiles + place) * (64 * kT);
    if constexpr (kScaled) {
#pragma unroll
      for (int k = 0; k < kT; ++k) {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          float sum = v[k][r];
          sum += __shfl_xor_sync(0xffffffffU, sum, 1);
          sum += __shfl_xor_sync(0xffffffffU, sum, 2);
          if (t == k) sts32(to + ((8 * r + g) * kT + k) * 4, __float_as_uint(sum));
        }
      }
    } else if (t < kT) {
#pragma unroll
      for (int r = 0; r < 2; ++r)
        sts32(to + ((8 * r + g) * kT + t) * 4, __float_as_uint(v[0][2 * r] + v[0][2 * r + 1]));
    }
  }
};

// A warp's stretch of the contraction of a tile.
struct StepPiece {
  int tile, item, begin, end;  // steps
};
__device__ __forceinline__ StepPiece piece_of(StepStage s, const StepWork& w, int round) {
  const int warp = threadIdx.x / 32, part = warp & ((1 << w.part_shift) - 1);
  StepPiece p{warp >> w.part_shift, 0, 0, 0};
  if (s == StepStage::kExpertDown) {
    const int n = w.warps_an_item, at_once = (1 << w.part_shift) / n, mine = part / n, i = part - mine * n;
    p.item = mine + round * at_once;
    if (mine >= at_once || p.item >= w.items || p.tile >= w.tiles) return p;
    p.begin = w.steps * i / n;
    p.end = w.steps * (i + 1) / n;
    return p;
  }
  p.tile += round * kStepWarps;
  if (p.tile >= w.tiles) return p;
  p.begin = (w.steps * part) >> w.part_shift;
  p.end = (w.steps * (part + 1)) >> w.part_shift;
  return p;
}

// Two rows of a piece on their way, kStepDepth steps ahead of the products.
struct StepStream {
  StepPiece piece;
  StepSource from[2];
  int cols, lane_cols, group_shift;
  DType scale_dtype;
  bool scaled;

  __device__ __forceinline__ StepStream(const StepMat& m)
      : cols(m.cols),
        lane_cols(m.step_cols / 4),
        group_shift(m.group_shift),
        scale_dtype(m.scale_dtype),
        scaled(m.scale_row_bytes > 0) {}
  __device__ __forceinline__ void load(StepLoad& to, int at) const {
    if (at >= piece.end) return;
    // The last step may be longer than the row: what is read instead meets zeros.
    int column = (at * 4 + static_cast<int>(threadIdx.x % 4)) * lane_cols;
    const int back = column < cols ? 0 : column;
    column -= back;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      to.code[r] = load_ahead(from[r].data + (back == 0 ? at * 64 : -static_cast<int>(threadIdx.x % 4) * 16));
      if (scaled) to.scale[r] = scale_bits(from[r].scales, scale_dtype, column >> group_shift);
    }
  }
  // Of round `round`; issues the first loads.
  __device__ __forceinline__ void start(StepStage s, int parity, const StepWork& w, int round,
                                        StepLoad (&loads)[kStepDepth]) {
    // Everything has a value on every path: what has not is alive all around the kernel's loops, and then in local
    // memory, where a load must have ended before the next one can begin.
    piece = piece_of(s, w, round);
    from[0] = from[1] = {nullptr, nullptr};
#pragma unroll
    for (int i = 0; i < kStepDepth; ++i) loads[i] = {};
    if (piece.begin >= piece.end) return;
    from[0] = source_of(s, parity, w, piece.tile, piece.item, 0);
    from[1] = source_of(s, parity, w, piece.tile, piece.item, 1);
#pragma unroll
    for (int i = 0; i < kStepDepth; ++i) load(loads[i], piece.begin + i);
  }
};

// Adds the products of a step: `offset` from the lane's columns of x on.
template <int kT, WeightFormat F>
__device__ __forceinline__ void multiply(const StepLoad& from, DType scale_dtype, std::uint32_t nf4,
                                         const std::uint32_t (&x)[StepFormat<F>::kScaled ? kT : 1],
                                         std::uint32_t offset, StepSums<kT, F>& sums) {
  using Format = StepFormat<F>;
  if constexpr (Format::kScaled) {
    const bool mine = threadIdx.x % 32 / 8 == threadIdx.x % 4;  // g / 2 == t
    float part[kT][4] = {};
#pragma unroll
    for (int j = 0; j < Format::kUnits; ++j) {
      std::uint32_t a[2][4];
      unit_of<F>(from.code[0], j, nf4, a[0]);
      unit_of<F>(from.code[1], j, nf4, a[1]);
#pragma unroll
      for (int k = 0; k < kT; ++k) {
        if (kT == 1 || x[k] != 0) {
          uint4 b{};
          if (mine) b = lds128(x[k] + offset + j * 16);
          product(part[k], {a[0][0], a[1][0], a[0][1], a[1][1]}, b.x, b.y);
          product(part[k], {a[0][2], a[1][2], a[0][3], a[1][3]}, b.z, b.w);
        }
      }
    }
    const float scale0 = scale_value(from.scale[0], scale_dtype), scale1 = scale_value(from.scale[1], scale_dtype);
#pragma unroll
    for (int k = 0; k < kT; ++k) {
      sums.v[k][0] = fmaf(part[k][0] + part[k][1], scale0, sums.v[k][0]);
      sums.v[k][1] = fmaf(part[k][2] + part[k][3], scale1, sums.v[k][1]);
    }
  } else {
    const uint4 &c0 = from.code[0], &c1 = from.code[1];
    uint4 b{};
    if (x[0] != 0) b = lds128(x[0] + offset);
    product(sums.v[0], {c0.x, c1.x, c0.y, c1.y}, b.x, b.y);
    product(sums.v[0], {c0.z, c1.z, c0.w, c1.w}, b.z, b.w);
  }
}

// Takes a piece's codes, multiplies, and leaves the sums at `place` of the pass's part of step.s.sums.
template <int kT, WeightFormat F>
__device__ __forceinline__ void multiply_piece(StepStage stage, int parity, const StepWork& work,
                                               const StepStream& stream, StepLoad (&loads)[kStepDepth], int pass,
                                               int place) {
  using Format = StepFormat<F>;
  constexpr int kLaneBytes = Format::kCols * 2;  // of x, for a lane's 16 bytes of codes
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, stride = x_stride(stream.cols);
  const std::uint32_t nf4 = shared_address(step.s.nf4);
  const StepPiece& p = stream.piece;
  StepSums<kT, F> sums;
  if (p.begin < p.end) {
    // x at the lane's columns of the rows that are the tile's and item's; 0: none.
    std::uint32_t x[Format::kScaled ? kT : 1];
#pragma unroll
    for (int k = 0; k < (Format::kScaled ? kT : 1); ++k) {
      const int row = Format::kScaled ? k : g / 2;
      x[k] = row < step.s.p.T ? x_row(stage, parity, work, p.tile, p.item, row, stride) : 0;
      if (x[k] != 0) x[k] += g % 2 * stride + t * kLaneBytes;
    }
#pragma unroll 1
    for (int at = p.begin; at < p.end; at += kStepDepth) {
#pragma unroll
      for (int i = 0; i < kStepDepth; ++i) {
        if (at + i < p.end) {
          multiply<kT, F>(loads[i], stream.scale_dtype, nf4, x, static_cast<std::uint32_t>((at + i) * (4 * kLaneBytes)),
                          sums);
          stream.load(loads[i], at + i + kStepDepth);
        }
      }
    }
  }
  sums.flush(pass, place);
}

// A stage's products. `waits`: x is not there yet; waits for the other blocks and stages it, while the first codes
// come.
template <int kT>
__device__ __forceinline__ void products(StepStage stage, int parity, bool waits, int pass) {
  const StepWork& work = work_of(stage, parity);
  const StepMat& m = mat_of(stage, parity);
  StepStream stream(m);
  StepLoad loads[kStepDepth];
  int round = 0;
#pragma unroll 1
  do {
    stream.start(stage, parity, work, round, loads);
    if (round == 0 && waits) stage_x<kT>(stage, parity);
    const int place = static_cast<int>(threadIdx.x / 32) + round * kStepWarps;
    switch (m.format) {
      case WeightFormat::kBF16:
        multiply_piece<kT, WeightFormat::kBF16>(stage, parity, work, stream, loads, pass, place);
        break;
      case WeightFormat::kF8E4M3:
        multiply_piece<kT, WeightFormat::kF8E4M3>(stage, parity, work, stream, loads, pass, place);
        break;
      case WeightFormat::kI8:
        multiply_piece<kT, WeightFormat::kI8>(stage, parity, work, stream, loads, pass, place);
        break;
      case WeightFormat::kI4:
        multiply_piece<kT, WeightFormat::kI4>(stage, parity, work, stream, loads, pass, place);
        break;
      default:
        multiply_piece<kT, WeightFormat::kNF4>(stage, parity, work, stream, loads, pass, place);
        break;
    }
  } while (++round < work.rounds);
}

// The sum of row `place` for row t of x, after a barrier of the block. `rounds`: down's parts, when its experts take
// more than one.
template <int kT>
__device__ __forceinline__ float sum_at(const StepWork& w, int place, int t, int pass = 0, int rounds = 1) {
  const int parts = 1 << w.part_shift;
  float v = 0;
  for (int round = 0; round < rounds; ++round) {
    const int first = pass * kSumTiles + (place / 16 << w.part_shift) + round * kStepWarps;
    const std::uint32_t at = step.s.sums + static_cast<std::uint32_t>(((first * 16 + place % 16) * kT + t) * 4);
#pragma unroll 4
    for (int i = 0; i < parts; ++i) v += __uint_as_float(lds32(at + static_cast<std::uint32_t>(i * 64 * kT)));
  }
  return v;
}

}  // namespace glint::cuda
#endif
