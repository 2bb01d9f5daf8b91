#pragma once
// Products with many rows on Hopper: C[128 × kN] tiles by wgmma, BF16 or INT4 weights. A block works through tiles: one
// warpgroup copies (x may be gathered, hence no tensor maps; INT4 is decoded on the way), two multiply, 64 rows of x
// each; a warpgroup whose rows are all beyond the tile's count multiplies nothing. While they store a tile, the copies
// of the next are under way.

#include <type_traits>

#include "backends/cuda/kv_codec.cuh"
#include "backends/cuda/quad_transpose.cuh"
#include "backends/cuda/tiled.cuh"
#include "backends/cuda/wgmma.cuh"

namespace glint::cuda {

constexpr int kWgmmaThreads = 384;
constexpr int kWgmmaRows = 128;

template <int kN>
struct WgmmaSizes {
  static constexpr int kStages = kN == 256 ? 4 : 6;
  static constexpr int kBytesA = kWgmmaRows * 128, kStage = (kWgmmaRows + kN) * 128;
  static constexpr std::size_t kBytes = kStages * kStage + 1024;  // the first stage is 1024-aligned
};

// The copying thread's part of W's tiles: unit `unit` (eight columns) of every 16th row from `row` on; of gated tiles,
// which take eight rows of each matrix in turn, rows of one matrix.
struct WeightRows {
  MatPtr at;
  int first, step, live;  // rows first, first + step … of which `live` exist

  __device__ WeightRows(const TiledBlock& block, bool gated, int row, int n) {
    const bool second = gated && row >= 8;
    at.data = second ? block.at[1].data : block.at[0].data;
    at.scales = second ? block.at[1].scales : block.at[0].scales;
    at.mins = second ? block.at[1].mins : block.at[0].mins;
    step = gated ? 8 : 16;
    first = block.first_row + (gated ? row % 8 : row);
    live = min(n, max(0, (block.limit - first + step - 1) / step));
  }
};

// Copies by one warpgroup have little to hide their instructions behind: addresses are counted up, not computed.
template <int kCount>
struct Bf16Copies {
  const char* from;
  std::int64_t stride;
  int live;

  __device__ void start(const TiledBlock& block, const WeightRows& rows, int column, int) {
    from = static_cast<const char*>(rows.at.data) +
           (static_cast<std::int64_t>(rows.first) * block.shape.cols + column) * 2;
    stride = static_cast<std::int64_t>(rows.step) * block.shape.cols * 2;
    live = rows.live;
  }
  __device__ bool whole() const { return live == kCount; }
  template <bool kWhole>
  __device__ void copy(std::uint32_t to, bool inside) {
    const char* row = from;
#pragma unroll
    for (int i = 0; i < kCount; ++i, row += stride) {
      if constexpr (kWhole) {
        cp_async16(to + i * 2048, row);
      } else {
        cp_async16(to + i * 2048, row, inside && i < live);
      }
    }
    from += kTiledStep * 2;
  }
};

// Codes and scales of the next step wait in registers.
template <int kCount>
struct I4Copies {
  const unsigned char* codes;
  const void *scales, *mins;
  DType scale_dtype;
  int stride, group, scale_stride, live, column, depth;  // strides from row to row: bytes, scales
  std::uint32_t code[kCount], scale[kCount], min[kCount];

  __device__ bool plain() const { return mins == nullptr && scale_dtype == DType::kBF16; }
  __device__ void fetch(int i, int group_column) {
    code[i] = 0x88888888U, scale[i] = 0, min[i] = 0;
    if (i >= live || column >= depth) return;
    code[i] = __ldg(reinterpret_cast<const std::uint32_t*>(codes + i * stride));
    const int at = i * scale_stride + group_column;
    if (plain()) {
      scale[i] = __ldg(static_cast<const std::uint16_t*>(scales) + at);
      return;
    }
    scale[i] = scale_bits(scales, scale_dtype, at);
    if (mins != nullptr) min[i] = scale_bits(mins, scale_dtype, at);
  }
  __device__ void start(const TiledBlock& block, const WeightRows& rows, int first_column, int contraction) {
    const MatShape& m = block.shape;
    column = first_column, depth = contraction, live = rows.live, group = m.group, scale_dtype = m.scale_dtype;
    codes = static_cast<const unsigned char*>(rows.at.data) + static_cast<std::int64_t>(rows.first) * (m.cols / 2) +
            column / 2;
    stride = rows.step * (m.cols / 2);
    const std::int64_t skip =
        static_cast<std::int64_t>(rows.first) * m.groups_a_row * (scale_dtype == DType::kF32 ? 4 : 2);
    scales = static_cast<const unsigned char*>(rows.at.scales) + skip;
    mins = rows.at.mins == nullptr ? nullptr : static_cast<const unsigned char*>(rows.at.mins) + skip;
    scale_stride = rows.step * m.groups_a_row;
#pragma unroll
    for (int i = 0; i < kCount; ++i) fetch(i, column / group);
  }
  // (code - 8) · scale, rounded once: with a BF16 scale the product is exact in fp32, so that this is code_value's.
  __device__ static uint4 decode_plain(std::uint32_t code, std::uint32_t scale) {
    const std::uint32_t s = scale | scale << 16;
    std::uint32_t v[4];  // values j and j + 4
#pragma unroll
    for (int j = 0; j < 4; ++j) v[j] = mul2(sub2(and_or<0x000f000fU, 0x43004300U>(code >> (4 * j)), 0x43084308U), s);
    return {__byte_perm(v[0], v[1], 0x5410), __byte_perm(v[2], v[3], 0x5410), __byte_perm(v[0], v[1], 0x7632),
            __byte_perm(v[2], v[3], 0x7632)};
  }
  __device__ uint4 decode(int i) const {
    const float s = scale_value(scale[i], scale_dtype), low = scale_value(min[i], scale_dtype);
    float v[8];
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      // 2^23 + code as a float; then as code_value.
      const float c = __uint_as_float((code[i] >> (4 * k) & 15U) | 0x4b000000U);
      v[k] = mins != nullptr ? __fadd_rn(__fmul_rn(c - 8388608.0F, s), low) : (c - 8388616.0F) * s;
    }
    return {pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]), pack_bf16(v[4], v[5]), pack_bf16(v[6], v[7])};
  }
  __device__ bool whole() const { return true; }
  template <bool kWhole>
  __device__ void copy(std::uint32_t to, bool) {
    constexpr int kPart = kCount / 2;  // while one half is decoded, the other is on its way
    codes += kTiledStep / 2, column += kTiledStep;
    const int group_column = column / group;
#pragma unroll
    for (int part = 0; part < kCount; part += kPart) {
      if (plain()) {
#pragma unroll
        for (int i = part; i < part + kPart; ++i) sts128(to + i * 2048, decode_plain(code[i], scale[i]));
      } else {
#pragma unroll
        for (int i = part; i < part + kPart; ++i) sts128(to + i * 2048, decode(i));
      }
#pragma unroll
      for (int i = part; i < part + kPart; ++i) fetch(i, group_column);
    }
  }
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
__device__ __forceinline__ void wgmma_of(float (&d)[128], std::uint64_t a, std::uint64_t b, bool add) {
  wgmma_256(d, a, b, add);
}
__device__ __forceinline__ void wgmma_of(float (&d)[64], std::uint64_t a, std::uint64_t b, bool add) {
  wgmma_128(d, a, b, add);
}

template <int kN, typename Problem>
__device__ __forceinline__ void wgmma_store(const Problem& problem, const TiledBlock& block, const float (&acc)[kN / 2],
                                            int first_row, int lane) {
  const int g = lane / 4, t = lane % 4;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int r = first_row + g + 8 * half;
    const bool live = r < block.count;
    if (problem.gated()) {
#pragma unroll
      for (int n = 0; n < kN / 8; n += 8) {
        std::uint32_t w[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float* gate = acc + (n + 2 * i) * 4 + 2 * half;
          w[i] = pack_bf16(silu(gate[0]) * gate[4], silu(gate[1]) * gate[5]);
        }
        const uint4 unit = quad_transpose(w, t);
        if (live) problem.store_unit(block, r, block.first_row + n * 4 + 8 * t, unit);
      }
    } else if (problem.in_units()) {
#pragma unroll
      for (int n = 0; n < kN / 8; n += 4) {
        std::uint32_t w[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) w[i] = pack_bf16(acc[(n + i) * 4 + 2 * half], acc[(n + i) * 4 + 2 * half + 1]);
        const uint4 unit = quad_transpose(w, t);
        if (live) problem.store_unit(block, r, block.first_row + n * 8 + 8 * t, unit);
      }
    } else if (live) {
#pragma unroll
      for (int n = 0; n < kN / 8; ++n)
        problem.store(block, r, block.first_row + n * 8 + 2 * t, acc[4 * n + 2 * half], acc[4 * n + 2 * half + 1]);
    }
  }
}
#endif

// A problem is what tiled_kernel takes, with outputs in eights. Tiles are numbered x first.
template <int kN, TiledLoad kLoad, typename Problem>
__global__ void __launch_bounds__(kWgmmaThreads, 1)
    tiled_wgmma_kernel(const __grid_constant__ Problem problem, int3 tiles) {
  pdl_launch();
  pdl_wait();
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using S = WgmmaSizes<kN>;
  constexpr int kStages = S::kStages;
  constexpr int kAhead = 2;  // stages whose copies are not waited for; two less than stages, or none is ever given back
  static_assert(kAhead <= kStages - 2);
  // Of 168 registers a thread on average.
  constexpr int kCopying = kLoad == TiledLoad::kBF16 ? 88 : 152, kMultiplying = (504 - kCopying) / 2;
  extern __shared__ __align__(128) unsigned char smem[];
  __shared__ std::uint64_t full_shared[kStages], empty_shared[kStages];
  const std::uint32_t base = (shared_address(smem) + 1023) & ~1023U;
  const std::uint32_t full = shared_address(full_shared), empty = shared_address(empty_shared);
  const int thread = threadIdx.x % 128, lane = threadIdx.x % 32, group = threadIdx.x / 128;
  if (threadIdx.x == 0) {
    for (int s = 0; s < kStages; ++s) {
      barrier_init(full + 8 * s, 4);   // warps that copy
      barrier_init(empty + 8 * s, 8);  // warps that multiply
    }
    barrier_init_fence();
  }
  __syncthreads();
  const int n_tiles = tiles.x * tiles.y * tiles.z;
  const bool gated = problem.gated();
  // This block's next tile from `tile` on.
  const auto seek = [&](int tile, TiledBlock& b) {
    while (tile < n_tiles &&
           !problem.locate(b, {tile % tiles.x, tile / tiles.x % tiles.y, tile / tiles.x / tiles.y}, kWgmmaRows, kN))
      tile += gridDim.x;
    return tile;
  };

  if (group == 0) {
    fewer_registers<kCopying>();
    TiledBlock block;
    int filled = 0;
    const auto announce = [&](int stage) {
      if (lane == 0) barrier_arrive(full + 8 * (stage % kStages));
    };
    for (int tile = seek(blockIdx.x, block); tile < n_tiles; tile = seek(tile + gridDim.x, block)) {
      const int K = problem.depth(block), unit = thread % 8, row = thread / 8;  // and every 16th row from there
      const char* x_row[kWgmmaRows / 16];
#pragma unroll
      for (int i = 0; i < kWgmmaRows / 16; ++i) {
        const bool live = row + 16 * i < block.count;
        x_row[i] = static_cast<const char*>(live ? problem.x_row(block, row + 16 * i) : problem.x_base()) + unit * 16;
      }
      const int x_live = max(0, (block.count - row + 15) / 16);  // of them
      std::conditional_t<kLoad == TiledLoad::kBF16, Bf16Copies<kN / 16>, I4Copies<kN / 16>> weights;
      weights.start(block, WeightRows(block, gated, row, kN / 16), unit * 8, K);
      const bool whole = __all_sync(0xffffffffU, x_live >= kWgmmaRows / 16 && weights.whole() && K % kTiledStep == 0);
      const std::uint32_t place = swizzled(row, unit, 128);
      for (int k0 = 0; k0 < K; k0 += kTiledStep, ++filled) {
        const int s = filled % kStages, round = filled / kStages;
        if (round > 0) barrier_wait(empty + 8 * s, (round - 1) & 1);
        const std::uint32_t to = base + s * S::kStage + place;
        if (whole) {
#pragma unroll
          for (int i = 0; i < kWgmmaRows / 16; ++i) cp_async16(to + i * 2048, x_row[i] + k0 * 2);
          weights.template copy<true>(to + S::kBytesA, true);
        } else {
          const bool inside = k0 + unit * 8 < K;
#pragma unroll
          for (int i = 0; i < kWgmmaRows / 16; ++i) cp_async16(to + i * 2048, x_row[i] + k0 * 2, inside && i < x_live);
          weights.template copy<false>(to + S::kBytesA, inside);
        }
        cp_async_commit();
        if (filled >= kAhead) {
          cp_async_wait<kAhead>();
          fence_async_proxy();
          __syncwarp();
          announce(filled - kAhead);
        }
      }
    }
    cp_async_wait<0>();
    fence_async_proxy();
    __syncwarp();
    for (int i = max(0, filled - kAhead); i < filled; ++i) announce(i);
    return;
  }

  more_registers<kMultiplying>();
  const int half = group - 1;
  const auto release = [&](int stage) {
    if (lane == 0) barrier_arrive(empty + 8 * (stage % kStages));
  };
  int used = 0;
  TiledBlock block, next;
  for (int tile = seek(blockIdx.x, block), next_tile; tile < n_tiles; tile = next_tile, block = next) {
    const int K = problem.depth(block);
    const bool multiplies = half * 64 < block.count;
    next_tile = n_tiles;
    float acc[kN / 2];
    for (int k0 = 0; k0 < K; k0 += kTiledStep, ++used) {
      const int s = used % kStages;
      barrier_wait(full + 8 * s, used / kStages & 1);
      if (multiplies) {
        const std::uint64_t a = k_major(base + s * S::kStage + half * 64 * 128);
        const std::uint64_t b = k_major(base + s * S::kStage + S::kBytesA);
        wgmma_begin();
#pragma unroll
        for (int k = 0; k < kTiledStep / 16; ++k) wgmma_of(acc, a + 2 * k, b + 2 * k, k0 > 0 || k > 0);
        wgmma_commit();
      }
      if (k0 == 0) next_tile = seek(tile + gridDim.x, next);  // its reads go on while products do
      wgmma_wait<1>();
      if (k0 > 0) release(used - 1);
    }
    wgmma_wait<0>();
    hold(acc);
    release(used - 1);
    if (multiplies) wgmma_store<kN>(problem, block, acc, half * 64 + thread / 32 * 16, lane);
  }
#endif
}

// Whether the kernel reads such a matrix, on this device.
inline bool wgmma_takes(const Launch& l, const MatShape& w) {
  if (!l.wgmma || w.cols % 8 != 0) return false;
  if (w.format == WeightFormat::kI4) return w.group_rows == 1 && (w.group % 8 == 0 || w.group >= w.cols);
  return w.format == WeightFormat::kBF16;
}

template <int kN, TiledLoad kLoad, typename Problem>
void launch_tiled_wgmma(const Launch& l, const Problem& p, int3 tiles) {
  const std::int64_t n = std::int64_t{tiles.x} * tiles.y * tiles.z;
  launch(l, tiled_wgmma_kernel<kN, kLoad, Problem>, dim3(static_cast<unsigned>(std::min<std::int64_t>(n, l.n_sms))),
         dim3(kWgmmaThreads), WgmmaSizes<kN>::kBytes, p, tiles);
}
template <int kN, typename Problem>
void launch_tiled_wgmma(const Launch& l, const Problem& p, int3 tiles, WeightFormat format) {
  if (format == WeightFormat::kBF16) {
    launch_tiled_wgmma<kN, TiledLoad::kBF16>(l, p, tiles);
  } else {
    launch_tiled_wgmma<kN, TiledLoad::kAny>(l, p, tiles);
  }
}

}  // namespace glint::cuda
