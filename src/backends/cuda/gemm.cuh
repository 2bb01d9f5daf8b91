#pragma once
// Products with many rows on Hopper: tiles of 128 rows of x and 256 outputs, BF16 operands. Both come by tensor copies
// that one thread asks for, four steps ahead; two warpgroups multiply 64 rows each, and store a tile while the copies
// of the next are under way. Two neighbouring blocks are a cluster and share the operand that both want: each fetches
// half of it for both, since the level-2 cache cannot give 48 KB a step to every multiprocessor.
//
// A Problem has, beside what its comments say:
//   kOut, kShare       what becomes of the sums; which operand the two blocks of a cluster have in common
//   range()            what it read of device memory, by all threads; then tiles(range) of a cluster
//   locate(t, range, n, rank)  the tile of block `rank` of the cluster's tile n
//   key(t, r)          what row r < count wants to know of device memory, fetched before the products
//   row(t, key)        where a row goes, then store_unit(row, o, 16 bytes) or store_pair(row, o, v0, v1)

#include <cuda.h>

#include "backends/cuda/gemm.hpp"
#include "backends/cuda/quad_transpose.cuh"
#include "backends/cuda/wgmma.cuh"

namespace glint::cuda {

constexpr int kGemmThreads = 384, kGemmStages = 4;
constexpr int kGemmRows = 128, kGemmCols = 256, kGemmStep = 64;
constexpr int kGemmBoxA = 64, kGemmBoxB = 128;  // rows of a copy
constexpr int kGemmBytesA = kGemmRows * 128, kGemmBytesB = kGemmCols * 128, kGemmStage = kGemmBytesA + kGemmBytesB;
constexpr std::size_t kGemmBytes = kGemmStages * kGemmStage + 1024;  // the first stage is 1024-aligned

enum class GemmShare { kRows, kWeights };

struct GemmTile {
  const CUtensorMap *x, *w[2];  // boxes of 64 and of 128 rows; of gated products w[1] is up
  int x_row, w_row[2];          // of w[1] where a tile has 128 outputs of each; else 128 rows further in w[0]
  int steps, w_steps;           // of the contraction; the columns of W begin anew after w_steps
  int count;                    // rows of x that exist; 0 or less: none
  int first, limit;             // outputs: of this tile, in all
  int place;                    // the problem's own
};

// Tile n of a cluster in a plain product: four pairs of row tiles go through all outputs together, for the level-2
// cache's sake.
struct GemmPlace {
  int pair, column;
};
__device__ __forceinline__ GemmPlace gemm_place(int n, int pairs, int columns) {
  constexpr int kGroup = 4;
  const int group = n / (kGroup * columns), in_group = min(kGroup, pairs - group * kGroup);
  n -= group * kGroup * columns;
  return {group * kGroup + n % in_group, n / in_group};
}

// Subnormal numbers on the way become zeros: without that, four instructions more.
__device__ __forceinline__ float fast_silu(float x) {
  float e, r;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(e) : "f"(x * -1.44269504F));
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(1.0F + e));
  return x * r;
}

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

__device__ __forceinline__ void tensor_copy(std::uint32_t to, const CUtensorMap* map, int column, int row,
                                            std::uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], "
      "[%4];" ::"r"(to),
      "l"(map), "r"(column), "r"(row), "r"(barrier)
      : "memory");
}
// The same into both blocks of a cluster, at the same places.
__device__ __forceinline__ void tensor_copy_both(std::uint32_t to, const CUtensorMap* map, int column, int row,
                                                 std::uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster [%0], "
      "[%1, {%2, %3}], [%4], %5;" ::"r"(to),
      "l"(map), "r"(column), "r"(row), "r"(barrier), "h"(static_cast<std::uint16_t>(3))
      : "memory");
}
__device__ __forceinline__ void prefetch_map(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}
// Where shared memory's `at` is in block `rank` of the cluster, and an arrival there.
__device__ __forceinline__ std::uint32_t address_in(std::uint32_t at, int rank) {
  std::uint32_t there;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(at), "r"(rank));
  return there;
}
__device__ __forceinline__ void barrier_arrive_there(std::uint32_t at) {
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(at) : "memory");
}

// acc of 64 rows from `first_row`; a lane has rows g and g + 8 of its warp's sixteen.
template <typename Problem>
__device__ __forceinline__ void gemm_store(const Problem& p, const GemmTile& tile, const float (&acc)[128],
                                           const int (&key)[2], int first_row, int lane) {
  constexpr GemmOut kOut = Problem::kOut;
  const int g = lane / 4, t = lane % 4;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const bool live = first_row + g + 8 * half < tile.count;
    const auto row = p.row(tile, key[half]);
    if constexpr (kOut == GemmOut::kSiluMul || kOut == GemmOut::kSiluMulParts) {
#pragma unroll
      for (int n = 0; n < 16; n += 4) {
        std::uint32_t w[4], low[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float* gate = acc + (n + i) * 4 + 2 * half;
          if constexpr (kOut == GemmOut::kSiluMul) {
            w[i] = pack_bf16(fast_silu(gate[0]) * gate[64], fast_silu(gate[1]) * gate[65]);
          } else {
            const float v0 = silu(gate[0]) * gate[64], v1 = silu(gate[1]) * gate[65];
            w[i] = pack_bf16(v0, v1);
            low[i] = pack_bf16(v0 - bf16_low(w[i]), v1 - bf16_high(w[i]));
          }
        }
        const int o = tile.first + n * 8 + 8 * t;
        const uint4 unit = quad_transpose(w, t);
        if (live && o < tile.limit) p.store_unit(row, o, unit);
        if constexpr (kOut == GemmOut::kSiluMulParts) {
          const uint4 rest = quad_transpose(low, t);
          if (live && o < tile.limit) p.store_unit(row, o + tile.limit, rest);
        }
      }
    } else if constexpr (kOut == GemmOut::kBF16 || kOut == GemmOut::kRope) {
#pragma unroll
      for (int n = 0; n < 32; n += 4) {
        std::uint32_t w[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          float v0 = acc[(n + i) * 4 + 2 * half], v1 = acc[(n + i) * 4 + 2 * half + 1];
          if constexpr (kOut == GemmOut::kRope) {
            if (n >= kNopeWidth / 8) {  // a tile is a head
              const float2 a = live ? p.angle(key[half], (n + i - kNopeWidth / 8) * 4 + t) : float2{};
              const float u = v0;
              v0 = u * a.x - v1 * a.y;
              v1 = u * a.y + v1 * a.x;
            }
          }
          w[i] = pack_bf16(v0, v1);
        }
        const int o = tile.first + n * 8 + 8 * t;
        const uint4 unit = quad_transpose(w, t);
        if (live && o < tile.limit) p.store_unit(row, o, unit);
      }
    } else {
#pragma unroll
      for (int n = 0; n < 32; ++n) {
        const int o = tile.first + n * 8 + 2 * t;
        if (live && o < tile.limit) p.store_pair(row, o, acc[4 * n + 2 * half], acc[4 * n + 2 * half + 1]);
      }
    }
  }
}
#endif

template <typename Problem>
__global__ void __launch_bounds__(kGemmThreads, 1) gemm_kernel(const __grid_constant__ Problem problem) {
  pdl_launch();
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ __align__(128) unsigned char smem[];
  __shared__ std::uint64_t full_shared[kGemmStages], empty_shared[kGemmStages];
  const std::uint32_t base = (shared_address(smem) + 1023) & ~1023U;
  const std::uint32_t full = shared_address(full_shared), empty = shared_address(empty_shared);
  const int lane = threadIdx.x % 32;
  const int group = __shfl_sync(0xffffffffU, static_cast<int>(threadIdx.x / 128), 0);  // the same in all lanes, visibly
  const int rank = static_cast<int>(blockIdx.x % 2), clusters = static_cast<int>(gridDim.x / 2);
  if (threadIdx.x == 0) {
    for (int s = 0; s < kGemmStages; ++s) {
      barrier_init(full + 8 * s, 1);
      barrier_init(empty + 8 * s, 16);  // the warps that multiply, of both blocks
    }
    barrier_init_fence();
  }
  __syncthreads();
  cluster_barrier();
  pdl_wait();
  const auto range = problem.range();
  const int n_tiles = problem.tiles(range);

  if (group == 0) {
    fewer_registers<56>();
    if (threadIdx.x == 0) {
      int stage = 0;
      std::uint32_t parity = 1;  // a fresh barrier's previous phase counts as complete
      GemmTile tile, next{};
      int n = static_cast<int>(blockIdx.x / 2);
      if (n < n_tiles) problem.locate(tile, range, n, rank);
      for (; n < n_tiles; n += clusters, tile = next) {
        const int halves = tile.count > kGemmBoxA ? 2 : tile.count > 0 ? 1 : 0;
        const int bytes = halves * (kGemmBytesA / 2) + kGemmBytesB;
        for (int step = 0, w_step = 0; step < tile.steps; ++step) {
          const std::uint32_t a = base + stage * kGemmStage, b = a + kGemmBytesA, done = full + 8 * stage;
          barrier_wait(empty + 8 * stage, parity);
          barrier_expect(done, bytes);
          const int column = step * kGemmStep, w_column = w_step * kGemmStep;
          if constexpr (Problem::kShare == GemmShare::kRows) {
            if (rank < halves)
              tensor_copy_both(a + rank * (kGemmBytesA / 2), tile.x, column, tile.x_row + rank * kGemmBoxA, done);
            tensor_copy(b, tile.w[0], w_column, tile.w_row[0], done);
            tensor_copy(b + kGemmBytesB / 2, tile.w[1], w_column, tile.w_row[1], done);
          } else {
            for (int i = 0; i < halves; ++i)
              tensor_copy(a + i * (kGemmBytesA / 2), tile.x, column, tile.x_row + i * kGemmBoxA, done);
            const CUtensorMap* w = rank == 0 ? tile.w[0] : tile.w[1];
            const int w_row = rank == 0 ? tile.w_row[0] : tile.w_row[1];
            tensor_copy_both(b + rank * (kGemmBytesB / 2), w, w_column, w_row, done);
          }
          if (++w_step == tile.w_steps) w_step = 0;
          if (++stage == kGemmStages) stage = 0, parity ^= 1;
          if (step == 0 && n + clusters < n_tiles) {
            problem.locate(next, range, n + clusters, rank);
            prefetch_map(next.w[0]);
            prefetch_map(next.w[1]);
          }
        }
      }
    }
    __syncwarp();
  } else {
    more_registers<224>();
    const int half = group - 1, first_row = half * 64 + threadIdx.x / 32 % 4 * 16;
    int stage = 0, previous = 0;
    std::uint32_t parity = 0;
    GemmTile tile, next{};
    int key[2], next_key[2] = {0, 0};
    const auto seek = [&](int n, GemmTile& to, int(&keys)[2]) {
      if (n >= n_tiles) return;
      problem.locate(to, range, n, rank);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int r = first_row + lane / 4 + 8 * i;
        keys[i] = r < to.count ? problem.key(to, r) : 0;
      }
    };
    int n = static_cast<int>(blockIdx.x / 2);
    seek(n, tile, key);
    // One warpgroup is a step behind the other, so that one multiplies while the other stores.
    bool fresh = n < n_tiles;
    if (fresh && half == 1) asm volatile("barrier.sync 1, 256;" ::: "memory");
    const auto go_on = [&] {
      if (fresh && half == 0) asm volatile("barrier.arrive 1, 256;" ::: "memory");
      fresh = false;
    };
    for (; n < n_tiles; n += clusters) {
      const bool multiplies = half * 64 < tile.count && tile.first < tile.limit;
      float acc[128];
      for (int step = 0; step < tile.steps; ++step) {
        barrier_wait(full + 8 * stage, parity);
        if (multiplies) {
          const std::uint64_t a = k_major(base + stage * kGemmStage + half * 64 * 128);
          const std::uint64_t b = k_major(base + stage * kGemmStage + kGemmBytesA);
          wgmma_begin();
#pragma unroll
          for (int k = 0; k < kGemmStep / 16; ++k) wgmma_256(acc, a + 2 * k, b + 2 * k, step > 0 || k > 0);
          wgmma_commit();
        }
        if (step == 0) {
          seek(n + clusters, next, next_key);  // its reads go on while products do
        } else {
          wgmma_wait<1>();
          if (lane < 2) barrier_arrive_there(address_in(empty + 8 * previous, lane));
          go_on();
        }
        previous = stage;
        if (++stage == kGemmStages) stage = 0, parity ^= 1;
      }
      wgmma_wait<0>();
      hold(acc);
      if (lane < 2) barrier_arrive_there(address_in(empty + 8 * previous, lane));
      go_on();
      if (multiplies) gemm_store(problem, tile, acc, key, first_row, lane);
      tile = next, key[0] = next_key[0], key[1] = next_key[1];
    }
  }
  cluster_barrier();  // no block ends while the other may still reach into it
#else
  pdl_wait();
#endif
}

template <typename Problem>
void launch_gemm(const Launch& l, const Problem& p, std::int64_t most_tiles) {
  const std::int64_t clusters = std::min<std::int64_t>(most_tiles, l.n_sms / 2);
  launch_clusters(l, gemm_kernel<Problem>, dim3(static_cast<unsigned>(2 * clusters)), dim3(kGemmThreads), kGemmBytes, 2,
                  p);
}

}  // namespace glint::cuda
