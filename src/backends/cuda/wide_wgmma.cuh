#pragma once
// wide.cuh on Hopper. Each code is decoded once, into the registers from which wgmma takes its A operand, and meets up
// to 128 rows of x, which lie in shared memory as wgmma wants its B operand. mma.sync instead has every warp read all
// of x.
//
// The last warpgroup copies, the others multiply, 64 rows of W each: warp w has rows 16 w … 16 w + 15 of the tile, as
// in wide.cuh. The order of x follows from W: a lane's contiguous 16 bytes of a row hold its share of several k16 steps
// (wide_place), and x is laid out so when it is packed.

#include "backends/cuda/wgmma_registers.cuh"
#include "backends/cuda/wide.cuh"

namespace glint::cuda {

// Where scales go. kAny: into the codes, in any form (or there are none). kSums: codes are multiplied as they are, and
// the sums over a scale's part of the contraction scaled in F32. kPlain: of 4-bit codes, BF16 scales without minima
// whose groups are 32, 64 or 128 columns, found by counting.
enum class WideScaling { kAny, kSums, kPlain };

// kM: rows of W of a tile; kN: rows of x at most. Tall tiles copy x for twice the rows of W.
template <WeightFormat F, int kM, int kN>
struct WideWgmmaFormat {
  using Skinny = SkinnyFormat<F>;
  static constexpr int kWarps = kM / 16, kThreads = 32 * kWarps + 128;
  static constexpr int kUnits = Skinny::kUnits;  // eights of values a share
  static constexpr int kShare = 32 * kUnits;     // of the contraction: 16 bytes of each lane of a quad
  // Whole cache lines of W a row, unless many rows of x would leave room for too few stages.
  static constexpr int kHalves = Skinny::kNibbles && kN > 32 && kM == 128 ? 1 : 2;
  static constexpr int kStep = kHalves * kShare;
  static constexpr int kRowBytes = 64 * kHalves;  // of W, a step
  static constexpr int kBytesW = kM * kRowBytes;
  static constexpr int kXUnits = kStep / 8;                      // 16-byte units of a row of x, a step
  static constexpr int kBlocks = kM == 128 && kN <= 64 ? 2 : 1;  // of a multiprocessor
  // Of the registers that the launch bounds leave a thread.
  static constexpr int kCopying = kBlocks == 2 ? 48 : kM == 128 ? 88 : 64;
  static constexpr int kMultiplying = kBlocks == 2 ? 96 : kM == 128 ? 208 : 104;
};

// ---- copies ---------------------------------------------------------------------------------------------------------

// A copying thread's part of a tile: one 16-byte unit of every kRows-th row of W, and of every kXRows-th row of x.
template <WeightFormat F, int kM, int kN>
struct WideCopies {
  using Format = WideWgmmaFormat<F, kM, kN>;
  static constexpr int kWUnits = Format::kRowBytes / 16, kXUnits = Format::kXUnits;
  static constexpr int kRows = 128 / kWUnits, kXRows = 128 / kXUnits;

  const char* w;
  std::int64_t w_stride;
  int w_live;
  int row_steps, left;           // of W's row: in all, and until its end (BF16: x may have two parts, see reordered())
  const char* x_at;              // this thread's unit of the step, were there one row
  std::uint32_t x[kN / kXRows];  // rows from there, in units
  int x_live;

  template <typename Problem>
  __device__ void start(const Problem& problem, const WideTile& tile, int first_step, int thread) {
    const MatShape& m = problem.shape(tile.matrix);
    const int row = thread / kWUnits, g = row % 8, half = row / 8 % 2, of_warp = row / 16;
    const bool gated = problem.gated();
    const int step = (gated ? 8 : 16) * (kRows / 16);
    const int o = tile.first + (gated ? 8 * of_warp + g : 16 * of_warp + 2 * g + half);
    const std::int64_t row_bytes = m.cols / 8 * Format::Skinny::kBits;
    int in_row = first_step;
    if constexpr (F == WeightFormat::kBF16) {
      row_steps = m.cols / Format::kStep;
      in_row = first_step % row_steps;
      left = row_steps - in_row;
    }
    w = static_cast<const char*>(half != 0 ? tile.at[1].data : tile.at[0].data) + (tile.skip + o) * row_bytes +
        in_row * Format::kRowBytes + thread % kWUnits * 16;
    w_stride = step * row_bytes;
    w_live = max(0, (tile.limit - o + step - 1) / step);
    const int n = thread / kXUnits;
    x_live = max(0, (tile.count - n + kXRows - 1) / kXRows);
#pragma unroll
    for (int i = 0; i < kN / kXRows; ++i) {
      if (i < x_live) x[i] = problem.x_unit(tile, n + i * kXRows);
    }
    x_at = static_cast<const char*>(problem.x) + (first_step * kXUnits + thread % kXUnits) * 16;
    if constexpr (Format::Skinny::kScaled) fetch_scales(tile, m, gated, thread);
  }

  // Scales are read where they are used; until then they come as far as the level-2 cache.
  __device__ static void fetch_scales(const WideTile& tile, const MatShape& m, bool gated, int thread) {
    const int bytes = m.groups_a_row * (m.scale_dtype == DType::kF32 ? 4 : 2);
    for (int r = thread; r < kM; r += 128) {
      const int g = r % 8, half = r / 8 % 2, of_warp = r / 16;
      const int o = tile.first + (gated ? 8 * of_warp + g : 16 * of_warp + 2 * g + half);
      if (o >= tile.limit) return;
      const auto* row = static_cast<const char*>(half != 0 ? tile.at[1].scales : tile.at[0].scales) +
                        static_cast<std::int64_t>((tile.skip + o) / m.group_rows) * bytes;
      for (int i = 0; i < bytes; i += 32) asm volatile("prefetch.global.L2 [%0];" ::"l"(row + i));
    }
  }

  // One step of W; of its last one there may be only the first half.
  __device__ void weights(std::uint32_t stage, int thread, bool whole) {
    const int row = thread / kWUnits, unit = thread % kWUnits;
    const std::uint32_t to = stage + row * Format::kRowBytes + (kWUnits == 8 ? unit ^ ((row & 1) * 4) : unit) * 16;
    const char* from = w;
    w += Format::kRowBytes;
    if constexpr (F == WeightFormat::kBF16) {
      if (--left == 0) w -= row_steps * Format::kRowBytes, left = row_steps;
    }
    if (!whole && unit >= kWUnits / 2) return;
#pragma unroll
    for (int i = 0; i < kM / kRows; ++i, from += w_stride) {
      if (i < w_live) cp_async_weights(to + i * kRows * Format::kRowBytes, from);
    }
  }
  __device__ void rows(std::uint32_t stage, int stage_rows, int thread, bool whole) {
    const int n = thread / kXUnits, unit = thread % kXUnits;
    const std::uint32_t to = stage + Format::kBytesW + (unit / 8 * stage_rows + n) * 128, place = ((unit ^ n) & 7) * 16;
    const int live = whole || unit < kXUnits / 2 ? x_live : 0;
#pragma unroll
    for (int i = 0; i < kN / kXRows; ++i) {
      if (i < live) cp_async16(to + i * kXRows * 128 + (place ^ (i * kXRows % 8 * 16)), x_at + x[i] * 16ULL);
    }
    x_at += kXUnits * 16;
  }
};

// ---- products -------------------------------------------------------------------------------------------------------

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
// One stage for kRows rows of x. kSums scales after a half of 4-bit codes, after the whole step of others.
template <WeightFormat F, WideScaling kScaling, int kM, int kN, int kRows>
__device__ __forceinline__ void wide_wgmma_stage(float (&all)[kN / 2], std::uint32_t stage, int stage_rows,
                                                 const SkinnyScale (&scale)[WideWgmmaFormat<F, kM, kN>::kHalves],
                                                 const std::uint32_t* nf4_pairs, bool whole) {
  using Format = WideWgmmaFormat<F, kM, kN>;
  constexpr int kUnits = Format::kUnits, kHalves = Format::kHalves;
  constexpr bool kExact = kScaling == WideScaling::kSums, kSumHalf = Format::Skinny::kNibbles;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
  const std::uint32_t w = stage + (warp * 16 + g) * Format::kRowBytes + t * 16;
  const std::uint64_t x = k_major(stage + Format::kBytesW);
  auto& acc = reinterpret_cast<float(&)[kRows / 2]>(all);
  float sum[kExact ? kRows / 2 : 1];
#pragma unroll
  for (int h = 0; h < kHalves; ++h) {
    if (Format::Skinny::kNibbles && h == 1 && !whole) break;  // other codes always fill steps
    SkinnySlot<F> slot;
    const std::uint32_t at = w + (kHalves == 2 ? (h * 64) ^ ((g & 1) * 64) : 0);
    slot.codes[0][0] = lds128(at);
    slot.codes[1][0] = lds128(at + 8 * Format::kRowBytes);
#pragma unroll
    for (int j = 0; j < kUnits; ++j) {
      std::uint32_t a[2][4];
      const int s = kExact && !kSumHalf ? 0 : h;
      wide_decode<F, kExact>(slot, scale[s], 0, j, nf4_pairs, a[0]);
      wide_decode<F, kExact>(slot, scale[s], 1, j, nf4_pairs, a[1]);
      wgmma_begin();
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int k16 = (h * kUnits + j) * 2 + i;
        const std::uint32_t part[4] = {a[0][2 * i], a[1][2 * i], a[0][2 * i + 1], a[1][2 * i + 1]};
        const std::uint64_t b = x + k16 / 4 * stage_rows * 8 + k16 % 4 * 2;
        if constexpr (kExact) {
          wgmma_of_registers(sum, part, b, j > 0 || i > 0 || (h > 0 && !kSumHalf));
        } else {
          wgmma_of_registers(acc, part, b, true);
        }
      }
      wgmma_commit();
      wgmma_wait<1>();  // decoding goes on beside one batch
    }
    if constexpr (kExact) {
      if (kSumHalf || h == kHalves - 1) {
        wgmma_wait<0>();
        hold(sum);
#pragma unroll
        for (int i = 0; i < kRows / 2; ++i) acc[i] = fmaf(sum[i], scale[kSumHalf ? h : 0].scale[i / 2 % 2], acc[i]);
      }
    }
  }
  if constexpr (!kExact) {
    wgmma_wait<0>();
    hold(acc);
  }
}
#endif

template <WeightFormat F, WideScaling kScaling, int kM, int kN, typename Problem>
__global__ void __launch_bounds__(WideWgmmaFormat<F, kM, kN>::kThreads, WideWgmmaFormat<F, kM, kN>::kBlocks)
    wide_wgmma_kernel(const __grid_constant__ Problem problem) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using Format = WideWgmmaFormat<F, kM, kN>;
  constexpr int kHalves = Format::kHalves, kStep = Format::kStep;
  constexpr bool kScaled = Format::Skinny::kScaled, kExact = kScaling == WideScaling::kSums;
  constexpr bool kPlain = kScaling == WideScaling::kPlain;
  constexpr int kTiles = kWideMaxStages + 2;  // every stage may be of another tile, and one is being stored
  extern __shared__ __align__(128) unsigned char smem[];
  __shared__ __align__(8) std::uint64_t barriers[2 * kWideMaxStages];
  __shared__ __align__(16) unsigned char tile_bytes[kTiles * sizeof(WideTile)];
  __shared__ std::uint32_t nf4_pairs[F == WeightFormat::kNF4 ? 256 : 1];

  pdl_launch();
  const int stages = problem.stages, split = problem.split, stage_rows = problem.x_rows;
  const int split_log2 = __ffs(split) - 1, rank = static_cast<int>(blockIdx.x) & (split - 1);
  const int stride = static_cast<int>(gridDim.x) >> split_log2;
  const std::uint32_t ring = (shared_address(smem) + 1023) & ~1023U;
  const std::uint32_t full = shared_address(barriers), empty = full + 8 * kWideMaxStages;
  const std::uint32_t stage_bytes = Format::kBytesW + stage_rows * Format::kXUnits * 16;
  auto* tiles = reinterpret_cast<WideTile*>(tile_bytes);
  if constexpr (F == WeightFormat::kNF4) {
    if (threadIdx.x < 256)
      nf4_pairs[threadIdx.x] = pack_bf16(kNf4[threadIdx.x / 16], kNf4[threadIdx.x % 16]);  // even column: high nibble
  }
  if (threadIdx.x == 0) {
    for (int s = 0; s < stages; ++s) {
      barrier_init(full + 8 * s, 4);  // warps that copy
      barrier_init(empty + 8 * s, Format::kWarps);
    }
    barrier_init_fence();
  }
  __syncthreads();

  if constexpr (!Problem::kPrefetch) pdl_wait();
  const int total = problem.total();
  // Parts are whole pairs of halves, whatever kN makes of them.
  const auto steps_of = [&](int matrix) {
    const int cols = problem.depth(matrix), pairs = (cols + 2 * Format::kShare - 1) / (2 * Format::kShare);
    constexpr int kSteps = 2 / kHalves;
    return int2{(rank * pairs >> split_log2) * kSteps,
                min(((rank + 1) * pairs >> split_log2) * kSteps, (cols + kStep - 1) / kStep)};
  };
  int f = static_cast<int>(blockIdx.x) >> split_log2, stage = 0, parity = 0, slot = 0;
  const auto next_stage = [&] {
    if (++stage == stages) stage = 0, parity ^= 1;
  };

  if (threadIdx.x >= 32 * Format::kWarps) {
    fewer_registers<Format::kCopying>();
    const int thread = threadIdx.x - 32 * Format::kWarps, lane = thread % 32;
    int ahead = 0, announced = 0;  // stages that are copied to, and the next to be announced
    const auto announce = [&] {
      fence_async_proxy();
      __syncwarp();
      if (lane == 0) barrier_arrive(full + 8 * announced);
      if (++announced == stages) announced = 0;
      --ahead;
    };
    bool waited = !Problem::kPrefetch;
    for (; f < total; f += stride) {
      const WideTile tile = problem.locate(f);
      const int2 steps = steps_of(tile.matrix);
      const int cols = problem.depth(tile.matrix);
      WideCopies<F, kM, kN> copies;
      if (thread == 0) tiles[slot] = tile;
      slot = slot + 1 == kTiles ? 0 : slot + 1;
      copies.start(problem, tile, steps.x, thread);
      const auto whole = [&](int step) { return (step + 1) * kStep <= cols; };
      int early = 0;
      if (!waited) {  // the first weights are on their way before x exists
        early = min(stages, steps.y - steps.x);
        for (int i = 0; i < early; ++i) copies.weights(ring + i * stage_bytes, thread, whole(steps.x + i));
        pdl_wait();
        waited = true;
      }
      for (int step = steps.x; step < steps.y; ++step) {
        const std::uint32_t to = ring + stage * stage_bytes;
        if (early > 0) {
          --early;
        } else {
          barrier_wait(empty + 8 * stage, parity ^ 1);
          copies.weights(to, thread, whole(step));
        }
        copies.rows(to, stage_rows, thread, whole(step));
        cp_async_commit();
        next_stage();
        ++ahead;
        if (stages >= 4 && ahead > 2) {
          cp_async_wait<2>();
          announce();
        } else if (stages < 4 && ahead > 1) {
          cp_async_wait<1>();
          announce();
        }
      }
    }
    if (!waited) pdl_wait();
    cp_async_wait<0>();
    while (ahead > 0) announce();
    if (split > 1) {
      __syncwarp();
      cluster_barrier();
      cluster_barrier();
    }
    return;
  }

  more_registers<Format::kMultiplying>();
  if constexpr (Problem::kPrefetch) pdl_wait();
  if (f >= total) return;  // whole clusters only
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
  const char* scales[2] = {nullptr, nullptr};
  const char* mins[2] = {nullptr, nullptr};
  std::uint32_t scale_raw[kHalves][2] = {}, min_raw[kHalves][2] = {};
  int shift = 0, last_group = 0;
  DType scale_dtype = DType::kF32;
  const auto load_scales = [&](int step) {
    if constexpr (kPlain) {  // the next step's: pointers are counted on
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const auto* at = reinterpret_cast<const std::uint16_t*>(scales[r]);
#pragma unroll
        for (int h = 0; h < kHalves; ++h) scale_raw[h][r] = __ldg(at + (h * Format::kShare >> shift));
        scales[r] += kStep >> shift << 1;
      }
    } else {
#pragma unroll
      for (int h = 0; h < (kExact && !Format::Skinny::kNibbles ? 1 : kHalves); ++h) {
        const int at =
            min((step * kStep + h * Format::kShare + (kExact ? 0 : t * 8 * Format::kUnits)) >> shift, last_group);
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          scale_raw[h][r] = scale_bits(scales[r], scale_dtype, at);
          if (!kExact && mins[0] != nullptr) min_raw[h][r] = scale_bits(mins[r], scale_dtype, at);
        }
      }
    }
  };
  const auto open_scales = [&](const WideTile& of) {
    const MatShape& m = problem.shape(of.matrix);
    shift = problem.shift(of.matrix);
    last_group = m.groups_a_row - 1;
    scale_dtype = m.scale_dtype;
    const int bytes = scale_dtype == DType::kF32 ? 4 : 2;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int o = of.first + (problem.gated() ? warp * 8 + g : warp * 16 + 2 * g + r);
      const int row = of.skip + min(o, of.limit - 1);
      const std::int64_t skip = static_cast<std::int64_t>(row / m.group_rows) * m.groups_a_row * bytes;
      scales[r] = static_cast<const char*>(of.at[r].scales) + skip;
      if (kPlain) scales[r] += (steps_of(of.matrix).x * kStep + t * 8 * Format::kUnits) >> shift << 1;
      if (kScaling == WideScaling::kAny && of.at[r].mins != nullptr)
        mins[r] = static_cast<const char*>(of.at[r].mins) + skip;
    }
    load_scales(steps_of(of.matrix).x);
  };

  barrier_wait(full, 0);
  if constexpr (kScaled) open_scales(tiles[0]);
  float acc[kN / 2];
  while (true) {
    barrier_wait(full + 8 * stage, parity);  // with a tile's first stage the tile itself is there
#pragma unroll
    for (int i = 0; i < kN / 2; ++i) acc[i] = 0;
    const int count = tiles[slot].count, next_slot = slot + 1 == kTiles ? 0 : slot + 1;
    const int2 steps = steps_of(tiles[slot].matrix);
    const int cols = problem.depth(tiles[slot].matrix);
    for (int step = steps.x; step < steps.y; ++step) {
      barrier_wait(full + 8 * stage, parity);
      const std::uint32_t from = ring + stage * stage_bytes, done = empty + 8 * stage;
      next_stage();
      SkinnyScale scale[kHalves];
      if constexpr (kScaled) {
#pragma unroll
        for (int h = 0; h < kHalves; ++h) {
          if constexpr (kExact) {
#pragma unroll
            for (int r = 0; r < 2; ++r) scale[h].scale[r] = scale_value(scale_raw[h][r], scale_dtype);
          } else if constexpr (kPlain) {
            scale[h].offset2 = __float2bfloat162_rn(-136.0F);
#pragma unroll
            for (int r = 0; r < 2; ++r) {
              const std::uint32_t both = scale_raw[h][r] * 0x10001U;
              scale[h].scale2[r] = *reinterpret_cast<const __nv_bfloat162*>(&both);
              scale[h].min2[r] = __float2bfloat162_rn(0.0F);
            }
          } else {
            scale[h] = wide_scale<F>(scale_raw[h], min_raw[h], scale_dtype, mins[0] != nullptr);
          }
        }
        if (step + 1 < steps.y) {
          load_scales(step + 1);
        } else if (f + stride < total) {  // the next tile's, whose first stage is mostly there
          barrier_wait(full + 8 * stage, parity);
          open_scales(tiles[next_slot]);
        }
      }
      const bool whole = (step + 1) * kStep <= cols;
      if (count <= 8) {
        wide_wgmma_stage<F, kScaling, kM, kN, 8>(acc, from, stage_rows, scale, nf4_pairs, whole);
      } else if (count <= 16) {
        wide_wgmma_stage<F, kScaling, kM, kN, 16>(acc, from, stage_rows, scale, nf4_pairs, whole);
      } else if (kN == 32 || count <= 32) {
        wide_wgmma_stage<F, kScaling, kM, kN, 32>(acc, from, stage_rows, scale, nf4_pairs, whole);
      } else if constexpr (kN >= 64) {
        if (kN == 64 || count <= 64) {
          wide_wgmma_stage<F, kScaling, kM, kN, 64>(acc, from, stage_rows, scale, nf4_pairs, whole);
        } else if constexpr (kN == 128) {
          wide_wgmma_stage<F, kScaling, kM, kN, 128>(acc, from, stage_rows, scale, nf4_pairs, whole);
        }
      }
      __syncwarp();
      if (lane == 0) barrier_arrive(done);
    }

    if (kM == kWideM && split > 1) {
      wide_reduce(problem, tiles[slot], reinterpret_cast<float(&)[kN / 8][4]>(acc),
                  smem + (ring - shared_address(smem)), rank);
      return;
    }
    const auto sink = problem.sink(tiles[slot], warp * 8 + g);
    const auto store_all = [&](auto store) {
#pragma unroll
      for (int i = 0; i < kN / 8; ++i) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const int n = i * 8 + 2 * t + c;
          if (n < count) store(n, acc[4 * i + c], acc[4 * i + 2 + c]);
        }
      }
    };
    if (sink.plain) {
      store_all([&](int n, float v0, float v1) { sink.store_plain(n, v0, v1); });
    } else {
      store_all([&](int n, float v0, float v1) { sink.store(n, v0, v1); });
    }
    f += stride;
    if (f >= total) return;
    slot = next_slot;
  }
#endif
}

// ---- launching ------------------------------------------------------------------------------------------------------

template <WeightFormat F, WideScaling kScaling, int kM, int kN, typename Problem>
void launch_wide_wgmma(const Launch& l, Problem p, std::int64_t max_total) {
  using Format = WideWgmmaFormat<F, kM, kN>;
  const std::size_t stage = Format::kBytesW + static_cast<std::size_t>(p.x_rows) * Format::kXUnits * 16;
  const std::size_t budget = static_cast<std::size_t>(l.smem_limit) / Format::kBlocks - 4096;
  p.stages = static_cast<int>(std::clamp<std::size_t>((budget - 1024) / stage, 3, kWideMaxStages));
  const std::size_t sums = p.split > 1 ? static_cast<std::size_t>(p.x_rows) * (kWideM + 8) * sizeof(float) : 0;
  const std::int64_t blocks =
      p.split > 1 ? max_total * p.split : std::min<std::int64_t>(max_total, Format::kBlocks * l.n_sms);
  launch_clusters(l, wide_wgmma_kernel<F, kScaling, kM, kN, Problem>,
                  dim3(static_cast<unsigned>(std::max<std::int64_t>(1, blocks))), dim3(Format::kThreads),
                  std::max(p.stages * stage, sums) + 1024, p.split, p);
}

template <WeightFormat F, WideScaling kScaling, typename Problem>
void launch_wide_wgmma(const Launch& l, const Problem& p, std::int64_t max_total) {
  if constexpr (Problem::kTall) {
    if (p.w_rows == 256) return launch_wide_wgmma<F, kScaling, 256, 64>(l, p, max_total);
  }
  if (p.x_rows <= 32) {
    launch_wide_wgmma<F, kScaling, 128, 32>(l, p, max_total);
  } else if (p.x_rows <= 64) {
    launch_wide_wgmma<F, kScaling, 128, 64>(l, p, max_total);
  } else if constexpr (!Problem::kTall) {
    launch_wide_wgmma<F, kScaling, 128, 128>(l, p, max_total);
  }
}

template <WeightFormat F, bool kExact, typename Problem>
void launch_wide_wgmma(const Launch& l, const Problem& p, std::int64_t max_total) {
  if constexpr (kExact) {
    launch_wide_wgmma<F, WideScaling::kSums>(l, p, max_total);
  } else {
    if constexpr (F == WeightFormat::kI4) {
      bool plain = !p.has_mins();
      for (const MatShape& m : p.shapes)
        plain = plain && m.scale_dtype == DType::kBF16 && m.group_rows == 1 && m.cols % 256 == 0 &&
                (m.group == 32 || m.group == 64 || m.group == 128);
      if (plain) return launch_wide_wgmma<F, WideScaling::kPlain>(l, p, max_total);
    }
    launch_wide_wgmma<F, WideScaling::kAny>(l, p, max_total);
  }
}

}  // namespace glint::cuda
