#pragma once
// Products with many rows on Hopper: C[128 × kN] tiles by wgmma, BF16 weights. A block works through tiles: one
// warpgroup copies (x may be gathered, hence no tensor maps), two multiply, 64 rows of x each; a warpgroup whose rows
// are all beyond the tile's count multiplies nothing. While they store a tile, the copies of the next are under way.

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

// Lane t of a quad has word i of four units: afterwards it has the four words of unit t.
__device__ __forceinline__ uint4 quad_transpose(std::uint32_t (&w)[4], int t) {
#pragma unroll
  for (int i = 0; i < 4; i += 2) {
    const std::uint32_t other = __shfl_xor_sync(0xffffffffU, (t & 1) != 0 ? w[i] : w[i + 1], 1);
    if ((t & 1) != 0) {
      w[i] = other;
    } else {
      w[i + 1] = other;
    }
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const std::uint32_t other = __shfl_xor_sync(0xffffffffU, (t & 2) != 0 ? w[i] : w[i + 2], 2);
    if ((t & 2) != 0) {
      w[i] = other;
    } else {
      w[i + 2] = other;
    }
  }
  return {w[0], w[1], w[2], w[3]};
}

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
template <int kN, typename Problem>
__global__ void __launch_bounds__(kWgmmaThreads, 1)
    tiled_wgmma_kernel(const __grid_constant__ Problem problem, int3 tiles) {
  pdl_launch();
  pdl_wait();
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using S = WgmmaSizes<kN>;
  constexpr int kStages = S::kStages;
  constexpr int kAhead = 2;  // stages whose copies are not waited for; two less than stages, or none is ever given back
  static_assert(kAhead <= kStages - 2);
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
    barrier_init_done();
  }
  __syncthreads();
  const int n_tiles = tiles.x * tiles.y * tiles.z;
  const bool gated = problem.gated();
  TiledBlock block;

  if (group == 0) {
    fewer_registers<88>();
    int filled = 0;
    const auto announce = [&](int stage) {
      if (lane == 0) barrier_arrive(full + 8 * (stage % kStages));
    };
    for (int tile = blockIdx.x; tile < n_tiles; tile += gridDim.x) {
      if (!problem.locate(block, {tile % tiles.x, tile / tiles.x % tiles.y, tile / tiles.x / tiles.y}, kWgmmaRows, kN))
        continue;
      const int K = problem.depth(block), unit = thread % 8, row = thread / 8;  // and every 16th row from there
      const std::uint16_t* x_row[kWgmmaRows / 16];
#pragma unroll
      for (int i = 0; i < kWgmmaRows / 16; ++i)
        x_row[i] = row + 16 * i < block.count ? problem.x_row(block, row + 16 * i) + unit * 8 : nullptr;
      // Gated tiles take eight rows of each matrix in turn: a thread sees one of them.
      const auto* w = static_cast<const std::uint16_t*>(gated && row >= 8 ? block.at[1].data : block.at[0].data);
      const int w_first = block.first_row + (gated ? row % 8 : row), w_step = gated ? 8 : 16;
      const int w_live = min(kN / 16, max(0, (block.limit - w_first + w_step - 1) / w_step));
      w += static_cast<std::int64_t>(w_first) * block.shape.cols + unit * 8;
      const std::int64_t w_stride = static_cast<std::int64_t>(w_step) * block.shape.cols;
      const std::uint32_t place = swizzled(row, unit, 128);
      for (int k0 = 0; k0 < K; k0 += kTiledStep, ++filled) {
        const int s = filled % kStages, round = filled / kStages;
        if (round > 0) barrier_wait(empty + 8 * s, (round - 1) & 1);
        const std::uint32_t to = base + s * S::kStage + place;
        const bool inside = k0 + unit * 8 < K;
#pragma unroll
        for (int i = 0; i < kWgmmaRows / 16; ++i) {
          const bool valid = inside && x_row[i] != nullptr;
          cp_async16(to + i * 2048, valid ? x_row[i] + k0 : problem.x_base(), valid);
        }
#pragma unroll
        for (int i = 0; i < kN / 16; ++i) {
          const bool valid = inside && i < w_live;
          cp_async16(to + S::kBytesA + i * 2048, valid ? w + i * w_stride + k0 : block.at[0].data, valid);
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

  more_registers<208>();
  const int half = group - 1;
  int used = 0;
  for (int tile = blockIdx.x; tile < n_tiles; tile += gridDim.x) {
    if (!problem.locate(block, {tile % tiles.x, tile / tiles.x % tiles.y, tile / tiles.x / tiles.y}, kWgmmaRows, kN))
      continue;
    const int K = problem.depth(block);
    const bool multiplies = half * 64 < block.count;
    const auto release = [&](int stage) {
      if (lane == 0) barrier_arrive(empty + 8 * (stage % kStages));
    };
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
        wgmma_wait<1>();
      }
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
  return l.wgmma && w.format == WeightFormat::kBF16 && w.cols % 8 == 0;
}

template <int kN, typename Problem>
void launch_tiled_wgmma(const Launch& l, const Problem& p, int3 tiles) {
  const std::int64_t n = std::int64_t{tiles.x} * tiles.y * tiles.z;
  launch(l, tiled_wgmma_kernel<kN, Problem>, dim3(static_cast<unsigned>(std::min<std::int64_t>(n, l.n_sms))),
         dim3(kWgmmaThreads), WgmmaSizes<kN>::kBytes, p, tiles);
}

}  // namespace glint::cuda
