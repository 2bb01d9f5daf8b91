#pragma once
// Products with few rows of x: y[n][o] = Σ_k W[o][k] x[n][k] for n < 16. The time is that of reading W once, so that W
// goes from global memory straight into registers, with as many 16-byte loads in flight as the registers hold.
//
// W is the A operand of m16n8k16 (16 rows a tile), x the B operand (8 columns = rows of x). Since the order of a
// contraction is free, a lane's 16 contiguous bytes of a row are its share of one or more k16 steps, and x is laid into
// shared memory in the matching order. The contraction is cut into eight contiguous parts, one a warp, added in order
// of the warps: the sum of an output has the same order for any number of rows.

#include "backends/cuda/common.cuh"

namespace glint::cuda {

constexpr int kSkinnyWarps = 8;
constexpr int kSkinnyThreads = 32 * kSkinnyWarps;

// kUnits: eights of values that a lane's share of a chunk holds; kLoads: 16-byte loads of it; kDepth: chunks in flight.
template <WeightFormat F>
struct SkinnyFormat {
  static constexpr int kBits = weight_code_bits(F);
  static constexpr int kUnits = kBits >= 16 ? 1 : 16 / kBits;
  static constexpr int kLoads = kBits == 32 ? 2 : 1;
  static constexpr int kChunk = 32 * kUnits;
  static constexpr int kDepth = kBits == 16 ? 8 : 4;
  static constexpr bool kScaled = kBits <= 8;
  static constexpr bool kNibbles = kBits == 4;
};

// Where a value lies in x's shared row. Units of eight values are turned so that the four lanes of a quad read 64
// contiguous bytes; in the 4-bit formats a unit's values are paired (0,4) (1,5) (2,6) (3,7), as a shift and a mask give
// them.
template <WeightFormat F>
__device__ __forceinline__ int staged_unit(int unit) {
  constexpr int kUnits = SkinnyFormat<F>::kUnits;
  const int chunk = unit / (4 * kUnits), rest = unit % (4 * kUnits);
  return chunk * (4 * kUnits) + rest % kUnits * 4 + rest / kUnits;
}
template <WeightFormat F>
__device__ __forceinline__ uint4 staged_values(const float (&v)[8]) {
  if constexpr (SkinnyFormat<F>::kNibbles) {
    return {pack_bf16(v[0], v[4]), pack_bf16(v[1], v[5]), pack_bf16(v[2], v[6]), pack_bf16(v[3], v[7])};
  } else {
    return {pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]), pack_bf16(v[4], v[5]), pack_bf16(v[6], v[7])};
  }
}

// Eight values of a row of activations whose rows are aligned to 16 bytes.
__device__ __forceinline__ void load_eight(const Act& x, std::int64_t row, std::int64_t unit, float (&v)[8]) {
  if (x.bf16) {
    const uint4 u =
        *reinterpret_cast<const uint4*>(static_cast<const std::uint16_t*>(x.data) + row * x.stride + unit * 8);
    const std::uint32_t w[4] = {u.x, u.y, u.z, u.w};
#pragma unroll
    for (int k = 0; k < 4; ++k) v[2 * k] = bf16_low(w[k]), v[2 * k + 1] = bf16_high(w[k]);
  } else {
    const auto* p = reinterpret_cast<const float4*>(static_cast<const float*>(x.data) + row * x.stride + unit * 8);
    const float4 a = p[0], b = p[1];
    v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w, v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
  }
}

// A lane's share of one chunk of two rows, as loaded.
template <WeightFormat F>
struct SkinnySlot {
  uint4 codes[2][SkinnyFormat<F>::kLoads];
  std::uint32_t scale[2], min[2];  // raw; block formats only
};

// A lane's view of the two rows (g and g + 8 of a tile) that it loads from.
struct SkinnySource {
  const char* row[2];
  const void* scales[2];
  const void* mins[2];
  std::int64_t scale_row[2];
};

template <WeightFormat F>
__device__ __forceinline__ void skinny_load(SkinnySlot<F>& s, const SkinnySource& from, int chunk, int t, int shift,
                                            DType scale_dtype) {
  using Format = SkinnyFormat<F>;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
#pragma unroll
    for (int i = 0; i < Format::kLoads; ++i)
      s.codes[r][i] = load_stream(from.row[r] + static_cast<std::int64_t>(chunk) * (64 * Format::kLoads) + 16 * i);
    if constexpr (Format::kScaled) {
      const std::int64_t at = from.scale_row[r] + ((chunk * Format::kChunk + t * 8 * Format::kUnits) >> shift);
      s.scale[r] = scale_bits(from.scales[r], scale_dtype, at);
      if (from.mins[r] != nullptr) s.min[r] = scale_bits(from.mins[r], scale_dtype, at);
    }
  }
}

// Scales of a slot's two rows, ready to use.
struct SkinnyScale {
  float scale[2], min[2];
  __nv_bfloat162 scale2[2], min2[2], offset2;
};

template <WeightFormat F>
__device__ __forceinline__ SkinnyScale skinny_scale(const SkinnySlot<F>& s, DType dtype, bool has_min) {
  SkinnyScale v;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    v.scale[r] = scale_value(s.scale[r], dtype);
    v.min[r] = has_min ? scale_value(s.min[r], dtype) : 0.0F;
    if constexpr (F == WeightFormat::kI4) {
      // scale · u + min = scale · (u - 8) + (min + 8 scale): the second part is small, and so is what its rounding
      // loses.
      v.scale2[r] = __float2bfloat162_rn(v.scale[r]);
      v.min2[r] = __float2bfloat162_rn(has_min ? fmaf(8.0F, v.scale[r], v.min[r]) : 0.0F);
    }
  }
  v.offset2 = __float2bfloat162_rn(-136.0F);
  return v;
}

// Unit j of row r of a slot as four pairs of bf16.
template <WeightFormat F>
__device__ __forceinline__ void skinny_decode(const SkinnySlot<F>& s, const SkinnyScale& scale, int r, int j,
                                              const float* nf4, std::uint32_t (&a)[4]) {
  const uint4 c = s.codes[r][0];
  if constexpr (F == WeightFormat::kBF16) {
    a[0] = c.x, a[1] = c.y, a[2] = c.z, a[3] = c.w;
  } else if constexpr (F == WeightFormat::kF16) {
    const std::uint32_t w[4] = {c.x, c.y, c.z, c.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 f = __half22float2(*reinterpret_cast<const __half2*>(&w[i]));
      a[i] = pack_bf16(f.x, f.y);
    }
  } else if constexpr (F == WeightFormat::kF32) {
    const uint4 d = s.codes[r][SkinnyFormat<F>::kLoads - 1];
    a[0] = pack_bf16(__uint_as_float(c.x), __uint_as_float(c.y));
    a[1] = pack_bf16(__uint_as_float(c.z), __uint_as_float(c.w));
    a[2] = pack_bf16(__uint_as_float(d.x), __uint_as_float(d.y));
    a[3] = pack_bf16(__uint_as_float(d.z), __uint_as_float(d.w));
  } else if constexpr (F == WeightFormat::kI8 || F == WeightFormat::kF8E4M3) {
    const std::uint32_t w[2] = {j == 0 ? c.x : c.z, j == 0 ? c.y : c.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float v[2];
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        const std::uint32_t word = w[i / 2], byte = 2 * (i % 2) + k;
        if constexpr (F == WeightFormat::kI8) {
          // 2^23 + (code + 128), less 2^23 + 128: the code, without the slow conversion unit.
          const std::uint32_t bits = __byte_perm(word ^ 0x80808080U, 0x4b000000U, 0x7440U | byte);
          v[k] = fmaf(__uint_as_float(bits) - 8388736.0F, scale.scale[r], scale.min[r]);
        } else {
          v[k] = e4m3_raw(word >> (8 * byte)) * kE4m3Factor * scale.scale[r];
        }
      }
      a[i] = pack_bf16(v[0], v[1]);
    }
  } else {
    std::uint32_t q = j == 0 ? c.x : j == 1 ? c.y : j == 2 ? c.z : c.w;
    if constexpr (F == WeightFormat::kI4) {
      const __nv_bfloat162 one = __float2bfloat162_rn(1.0F);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        // 0x4300 is 128 in bf16, whose last mantissa bit is worth 1: the code lands in it as 128 + u.
        const std::uint32_t magic = and_or<0x000f000fU, 0x43004300U>(q >> (4 * i));
        const __nv_bfloat162 u = __hfma2(*reinterpret_cast<const __nv_bfloat162*>(&magic), one, scale.offset2);
        const __nv_bfloat162 v = __hfma2(u, scale.scale2[r], scale.min2[r]);
        a[i] = *reinterpret_cast<const std::uint32_t*>(&v);
      }
    } else {
      q = ((q >> 4) & 0x0f0f0f0fU) | ((q << 4) & 0xf0f0f0f0U);  // column k at bit 4 k
#pragma unroll
      for (int i = 0; i < 4; ++i)
        a[i] = pack_bf16(nf4[(q >> (4 * i)) & 15U] * scale.scale[r], nf4[(q >> (4 * i + 16)) & 15U] * scale.scale[r]);
    }
  }
}

// What a tile is: rows of one or two matrices, and which rows of x it meets.
struct SkinnyTile {
  MatPtr at[2];      // of rows g and of rows g + 8
  int row[2];        // their first rows
  int limit;         // rows of the matrices: beyond it, the last row is read again and nothing stored
  int item;          // tiles of one item share x
  int first, count;  // x's rows in the problem's own numbering
  int index;         // of the tile within its item
  bool shared;       // second shape
};

// Shared memory: rows of x, then two buffers of partial sums.
inline std::size_t skinny_x_stride(std::int64_t cols) {
  return static_cast<std::size_t>((cols * 2 + 127) / 128 * 128 + 64);
}
inline std::size_t skinny_smem(std::int64_t rows, std::int64_t cols, int n_tiles) {
  return static_cast<std::size_t>(rows) * skinny_x_stride(cols) +
         2ULL * kSkinnyWarps * 16 * 8 * n_tiles * sizeof(float);
}

// Problem has: kPrefetch (weights of the first tile may be loaded before pdl_wait), begin(), total(), locate(f),
// shape(tile), shift(tile), x (Act), x_row(tile, n), kPairsApart (rows p and p + 8 make an output, not 2p and 2p + 1),
// store(tile, n, p, v0, v1), max_cols.
template <WeightFormat F, int kTiles, typename Problem>
__global__ void __launch_bounds__(kSkinnyThreads, 2) skinny_kernel(const __grid_constant__ Problem problem) {
  using Format = SkinnyFormat<F>;
  constexpr int kDepth = Format::kDepth, kUnits = Format::kUnits, kColumns = 8 * kTiles;
  extern __shared__ __align__(128) unsigned char smem[];
  __shared__ float nf4[16];
  __shared__ typename Problem::Scratch scratch;

  pdl_launch();
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
  if constexpr (F == WeightFormat::kNF4) {
    if (threadIdx.x < 16) nf4[threadIdx.x] = kNf4[threadIdx.x];
  }

  auto source_of = [&](const SkinnyTile& tile) {
    const MatShape& m = problem.shape(tile);
    SkinnySource s;
    const std::int64_t row_bytes = static_cast<std::int64_t>(m.cols) * Format::kBits / 8;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = min(tile.row[r] + g, tile.limit - 1);
      s.row[r] = static_cast<const char*>(tile.at[r].data) + row * row_bytes + t * (16 * Format::kLoads);
      s.scales[r] = tile.at[r].scales;
      s.mins[r] = tile.at[r].mins;
      s.scale_row[r] = Format::kScaled ? static_cast<std::int64_t>(row / m.group_rows) * m.groups_a_row : 0;
    }
    return s;
  };
  // This warp's chunks.
  auto chunks_of = [&](const SkinnyTile& tile) {
    const int n = problem.shape(tile).cols / Format::kChunk;
    return int2{warp * n / kSkinnyWarps, (warp + 1) * n / kSkinnyWarps};
  };

  SkinnySlot<F> slots[kDepth];
  SkinnyTile tile;
  SkinnySource source;
  int2 chunks;
  int f, end;
  auto range = [&](std::int64_t total) {
    f = static_cast<int>(total * blockIdx.x / gridDim.x);
    end = static_cast<int>(total * (blockIdx.x + 1) / gridDim.x);
  };
  auto first_loads = [&] {
    if (f >= end) return;
    tile = problem.locate(f, scratch);
    source = source_of(tile);
    chunks = chunks_of(tile);
    const MatShape& m = problem.shape(tile);
#pragma unroll
    for (int i = 0; i < kDepth; ++i) {
      if (chunks.x + i < chunks.y)
        skinny_load<F>(slots[i], source, chunks.x + i, t, problem.shift(tile), m.scale_dtype);
    }
  };
  if constexpr (Problem::kPrefetch) {
    range(problem.total(scratch));
    first_loads();
    pdl_wait();
  } else {
    pdl_wait();
    problem.begin(scratch);
    range(problem.total(scratch));
    first_loads();
  }

  const std::uint32_t x_stride = static_cast<std::uint32_t>((problem.max_cols * 2 + 127) / 128 * 128 + 64);
  const std::uint32_t x_shared = shared_address(smem);
  auto* sums = reinterpret_cast<float*>(smem + static_cast<std::size_t>(problem.max_count) * x_stride);
  int item = -(1 << 30);  // none

  for (; f < end; ++f) {
    const SkinnyTile now = tile;
    const MatShape& m = problem.shape(now);
    if (now.item != item) {  // every warp is past the last tile's products: a barrier lies between
      item = now.item;
      const int units = m.cols / 8;
      for (int i = threadIdx.x; i < units * now.count; i += kSkinnyThreads) {
        const int n = i / units, unit = i % units;
        const std::int64_t row = problem.x_row(now, n, scratch);
        float v[8];
        load_eight(problem.x, row, problem.x_offset(now) / 8 + unit, v);
        sts128(x_shared + n * x_stride + staged_unit<F>(unit) * 16, staged_values<F>(v));
      }
      __syncthreads();
    }

    float acc[kTiles][4] = {};
    std::uint32_t x_row[kTiles];
#pragma unroll
    for (int n = 0; n < kTiles; ++n) x_row[n] = x_shared + min(n * 8 + g, now.count - 1) * x_stride + t * 16;
    const int shift = problem.shift(now);
    const int2 mine = chunks;
    const int groups = max(1, (mine.y - mine.x + kDepth - 1) / kDepth);
    for (int group = 0; group < groups; ++group) {
      // The slots are refilled with this tile's next chunks, or with the first ones of the next tile.
      int next = mine.x + (group + 1) * kDepth, limit = mine.y, next_shift = shift;
      if (group == groups - 1) {
        limit = next = 0;
        if (f + 1 < end) {
          tile = problem.locate(f + 1, scratch);
          source = source_of(tile);
          chunks = chunks_of(tile);
          next = chunks.x, limit = chunks.y, next_shift = problem.shift(tile);
        }
      }
#pragma unroll
      for (int i = 0; i < kDepth; ++i) {
        const int chunk = mine.x + group * kDepth + i;
        if (chunk < mine.y) {
          SkinnyScale scale;
          if constexpr (Format::kScaled) scale = skinny_scale<F>(slots[i], m.scale_dtype, now.at[0].mins != nullptr);
#pragma unroll
          for (int j = 0; j < kUnits; ++j) {
            std::uint32_t a[2][4];
            skinny_decode<F>(slots[i], scale, 0, j, nf4, a[0]);
            skinny_decode<F>(slots[i], scale, 1, j, nf4, a[1]);
#pragma unroll
            for (int n = 0; n < kTiles; ++n) {
              const uint4 x = lds128(x_row[n] + (chunk * kUnits + j) * 64);
              mma(acc[n], a[0][0], a[1][0], a[0][1], a[1][1], x.x, x.y);
              mma(acc[n], a[0][2], a[1][2], a[0][3], a[1][3], x.z, x.w);
            }
          }
        }
        if (next + i < limit)
          skinny_load<F>(slots[i], source, next + i, t, next_shift, problem.shape(tile).scale_dtype);
      }
    }

    // Two buffers in turn: who writes one has passed the barrier after which the other was read.
    float* mine_sums = sums + (f & 1) * (kSkinnyWarps * 16 * kColumns);
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      float* to = mine_sums + (warp * 16 + g) * kColumns + n * 8 + 2 * t;
      *reinterpret_cast<float2*>(to) = {acc[n][0], acc[n][1]};
      *reinterpret_cast<float2*>(to + 8 * kColumns) = {acc[n][2], acc[n][3]};
    }
    __syncthreads();
    for (int i = threadIdx.x; i < 8 * now.count; i += kSkinnyThreads) {
      const int p = i % 8, n = i / 8;
      const bool apart = problem.pairs_apart();
      const int r0 = apart ? p : 2 * p, r1 = apart ? p + 8 : 2 * p + 1;
      float v0 = 0, v1 = 0;
#pragma unroll
      for (int w = 0; w < kSkinnyWarps; ++w) {
        v0 += mine_sums[(w * 16 + r0) * kColumns + n];
        v1 += mine_sums[(w * 16 + r1) * kColumns + n];
      }
      problem.store(now, n, p, v0, v1, scratch);
    }
  }
}

// The power of two that a scale covers, as a shift; -1 if there is none.
inline int skinny_shift(const MatShape& m) {
  if (m.group >= m.cols) return 30;
  for (int s = 0; s < 30; ++s) {
    if (m.group == 1 << s) return s;
  }
  return -1;
}

template <typename Problem, WeightFormat F>
void launch_skinny_format(const Launch& l, const Problem& p, std::int64_t max_total) {
  const int tiles = p.max_count > 8 ? 2 : 1;
  const std::size_t smem = skinny_smem(p.max_count, p.max_cols, tiles);
  const std::int64_t per_sm = smem > static_cast<std::size_t>(l.smem_limit / 2) - 2048 ? 1 : 2;
  const dim3 grid(static_cast<unsigned>(std::max<std::int64_t>(1, std::min(max_total, per_sm * l.n_sms))));
  if (tiles == 1) {
    launch(l, skinny_kernel<F, 1, Problem>, grid, dim3(kSkinnyThreads), smem, p);
  } else {
    launch(l, skinny_kernel<F, 2, Problem>, grid, dim3(kSkinnyThreads), smem, p);
  }
}

// One source file instantiates one problem.
template <typename Problem>
void launch_skinny(const Launch& l, const Problem& p, WeightFormat format, std::int64_t max_total) {
  switch (format) {
    case WeightFormat::kF32:
      return launch_skinny_format<Problem, WeightFormat::kF32>(l, p, max_total);
    case WeightFormat::kF16:
      return launch_skinny_format<Problem, WeightFormat::kF16>(l, p, max_total);
    case WeightFormat::kBF16:
      return launch_skinny_format<Problem, WeightFormat::kBF16>(l, p, max_total);
    case WeightFormat::kF8E4M3:
      return launch_skinny_format<Problem, WeightFormat::kF8E4M3>(l, p, max_total);
    case WeightFormat::kI8:
      return launch_skinny_format<Problem, WeightFormat::kI8>(l, p, max_total);
    case WeightFormat::kI4:
      return launch_skinny_format<Problem, WeightFormat::kI4>(l, p, max_total);
    case WeightFormat::kNF4:
      return launch_skinny_format<Problem, WeightFormat::kNF4>(l, p, max_total);
    default:
      check(cudaErrorNotSupported, "a weight format without kernels");
  }
}

}  // namespace glint::cuda
