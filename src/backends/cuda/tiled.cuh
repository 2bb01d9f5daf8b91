#pragma once
// Products with many rows of x: C[kM × kN] tiles over the whole contraction, 64 of it a step, three steps in shared
// memory. x comes as BF16 by asynchronous copies, so do BF16 weights; other formats are decoded on their way in.

#include "backends/cuda/common.cuh"

namespace glint::cuda {

constexpr int kTiledThreads = 256;
constexpr int kTiledStep = 64;  // of the contraction: 128 bytes, eight 16-byte units, a row
constexpr int kTiledStages = 3;

enum class TiledLoad { kBF16, kAny, kAnyTransposed };

template <int kM, int kN>
constexpr std::size_t tiled_smem() {
  return static_cast<std::size_t>(kTiledStages) * (kM + kN) * kTiledStep * 2;
}

// What a block works on.
struct TiledBlock {
  MatShape shape;
  MatPtr at[2];   // the second for gated products only
  int first_row;  // of W's rows (outputs): for gated products half of kN rows of each matrix
  int limit;      // outputs in all
  int count;      // valid rows of x in this tile
  int begin;      // the problem's own number of the first of them
  int z;          // entry of the batch
  bool shared;
};

template <int kM, int kN, TiledLoad kLoad, typename Problem>
__global__ void __launch_bounds__(kTiledThreads, 2) tiled_kernel(const __grid_constant__ Problem problem) {
  constexpr int kWarpM = kM / 2, kWarpN = kN / 4;  // 2 × 4 warps
  constexpr int kMi = kWarpM / 16, kNi = kWarpN / 8;
  constexpr int kRowsA = kM / 32, kRowsB = kN / 32;  // rows a thread copies a step
  constexpr int kBytesA = kM * kTiledStep * 2, kStageBytes = (kM + kN) * kTiledStep * 2;
  static_assert(kNi % 2 == 0, "pairs of n8 tiles");
  extern __shared__ __align__(128) unsigned char smem[];

  pdl_launch();
  pdl_wait();
  TiledBlock block;
  const int3 at{static_cast<int>(blockIdx.x), static_cast<int>(blockIdx.y), static_cast<int>(blockIdx.z)};
  if (!problem.locate(block, at, kM, kN)) return;
  const int K = problem.depth(block);
  const bool gated = problem.gated();
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  const int warp_m = warp / 4 * kWarpM, warp_n = warp % 4 * kWarpN;
  const std::uint32_t base = shared_address(smem);

  const std::uint16_t* x_row[kRowsA];
#pragma unroll
  for (int i = 0; i < kRowsA; ++i) {
    const int r = thread / 8 + 32 * i;
    x_row[i] = r < block.count ? problem.x_row(block, r) : nullptr;
  }
  // Row j of the tile of W: gated tiles take eight rows of each matrix in turn.
  auto w_row = [&](int j, const MatPtr** at) {
    if (!gated) {
      *at = &block.at[0];
      return block.first_row + j;
    }
    *at = &block.at[j / 8 % 2];
    return block.first_row + j / 16 * 8 + j % 8;
  };

  auto load_stage = [&](int step) {
    const std::uint32_t stage = base + step % kTiledStages * kStageBytes;
    const int k0 = step * kTiledStep, unit = thread % 8, k = k0 + unit * 8;
#pragma unroll
    for (int i = 0; i < kRowsA; ++i) {
      const bool valid = x_row[i] != nullptr && k < K;
      cp_async16(stage + swizzled(thread / 8 + 32 * i, unit, 128), valid ? x_row[i] + k : problem.x_base(), valid);
    }
    if constexpr (kLoad == TiledLoad::kAnyTransposed) {
      constexpr int kUnits = kN / 8;  // a row of the tile: kN columns of one row of W
#pragma unroll
      for (int i = 0; i < kTiledStep * kUnits / kTiledThreads; ++i) {
        const int id = thread + i * kTiledThreads, row = id / kUnits, u = id % kUnits;
        uint4 packed{};
        if (k0 + row < K && block.first_row + u * 8 < block.limit) {
          float v[8];
          weight8(block.shape, block.at[0], problem.kn_row(block) + k0 + row, block.first_row + u * 8, v);
          packed = {pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]), pack_bf16(v[4], v[5]), pack_bf16(v[6], v[7])};
        }
        sts128(stage + kBytesA + swizzled(row, u, kN * 2), packed);
      }
    } else {
#pragma unroll
      for (int i = 0; i < kRowsB; ++i) {
        const int j = thread / 8 + 32 * i;
        const MatPtr* at;
        const int row = w_row(j, &at);
        const bool valid = row < block.limit && k < K;
        const std::uint32_t to = stage + kBytesA + swizzled(j, unit, 128);
        if constexpr (kLoad == TiledLoad::kBF16) {
          const auto* from = static_cast<const std::uint16_t*>(at->data);
          cp_async16(to, valid ? from + static_cast<std::int64_t>(row) * block.shape.cols + k : from, valid);
        } else {
          uint4 packed{};
          if (valid) {
            float v[8];
            weight8(block.shape, *at, row, k, v);
            packed = {pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]), pack_bf16(v[4], v[5]), pack_bf16(v[6], v[7])};
          }
          sts128(to, packed);
        }
      }
    }
  };

  float acc[kMi][kNi][4] = {};
  const int steps = (K + kTiledStep - 1) / kTiledStep;
#pragma unroll
  for (int s = 0; s < kTiledStages - 1; ++s) {
    if (s < steps) load_stage(s);
    cp_async_commit();
  }
  for (int step = 0; step < steps; ++step) {
    cp_async_wait<kTiledStages - 2>();
    __syncthreads();
    if (step + kTiledStages - 1 < steps) load_stage(step + kTiledStages - 1);
    cp_async_commit();
    const std::uint32_t a_stage = base + step % kTiledStages * kStageBytes, b_stage = a_stage + kBytesA;
#pragma unroll
    for (int ks = 0; ks < kTiledStep / 16; ++ks) {
      std::uint32_t a[kMi][4], b[kNi][2];
#pragma unroll
      for (int i = 0; i < kMi; ++i)
        ldmatrix4(a[i], a_stage + swizzled(warp_m + i * 16 + lane % 16, ks * 2 + lane / 16, 128));
#pragma unroll
      for (int i = 0; i < kNi; i += 2) {
        std::uint32_t r[4];
        if constexpr (kLoad == TiledLoad::kAnyTransposed) {
          ldmatrix4_trans(
              r, b_stage + swizzled(ks * 16 + lane / 8 % 2 * 8 + lane % 8, (warp_n + i * 8) / 8 + lane / 16, kN * 2));
        } else {
          ldmatrix4(r, b_stage + swizzled(warp_n + i * 8 + lane / 16 * 8 + lane % 8, ks * 2 + lane / 8 % 2, 128));
        }
        b[i][0] = r[0], b[i][1] = r[1], b[i + 1][0] = r[2], b[i + 1][1] = r[3];
      }
#pragma unroll
      for (int i = 0; i < kMi; ++i) {
#pragma unroll
        for (int n = 0; n < kNi; ++n) mma(acc[i][n], a[i][0], a[i][1], a[i][2], a[i][3], b[n][0], b[n][1]);
      }
    }
  }
  cp_async_wait<0>();

  const int g = lane / 4, t = lane % 4;
#pragma unroll
  for (int i = 0; i < kMi; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int r = warp_m + i * 16 + g + half * 8;
      if (r >= block.count) continue;
      if (gated) {
#pragma unroll
        for (int n = 0; n < kNi; n += 2) {
          const int o = block.first_row + (warp_n + n * 8) / 2 + 2 * t;
          const float v0 = silu(acc[i][n][2 * half]) * acc[i][n + 1][2 * half];
          const float v1 = silu(acc[i][n][2 * half + 1]) * acc[i][n + 1][2 * half + 1];
          problem.store_gated(block, r, o, v0, v1);
        }
      } else {
#pragma unroll
        for (int n = 0; n < kNi; ++n)
          problem.store(block, r, block.first_row + warp_n + n * 8 + 2 * t, acc[i][n][2 * half],
                        acc[i][n][2 * half + 1]);
      }
    }
  }
}

template <int kM, int kN, TiledLoad kLoad, typename Problem>
void launch_tiled(const Launch& l, const Problem& p, dim3 grid) {
  launch(l, tiled_kernel<kM, kN, kLoad, Problem>, grid, dim3(kTiledThreads), tiled_smem<kM, kN>(), p);
}

}  // namespace glint::cuda
