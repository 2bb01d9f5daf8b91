#pragma once
// Products with more rows of x than one tensor-core tile and fewer than make the products themselves the cost: decode
// of many sequences, experts with some rows each. The time is still that of reading W once.
//
// A block holds 128 rows of W, 16 a warp, and up to 64 rows of x. Both come through one ring of asynchronous copies, a
// step of the contraction a stage; the ring runs on from tile to tile, so that the memory is never idle between them.
// Codes lie in the ring as stored, and are decoded on their way into the tensor cores: W is the A operand of m16n8k16,
// x the B operand (8 columns = rows of x). As in skinny.cuh a lane's contiguous 16 bytes of a row of W are its share of
// one or more k16 steps, and x lies in the matching order.
//
// A tile of a small matrix is shared by the blocks of a cluster, each with a part of the contraction. How many parts
// follows from the matrix alone: the sum of an output has the same order for any number of rows.

#include "backends/cuda/skinny.cuh"

namespace glint::cuda {

constexpr int kWideWarps = 8;
constexpr int kWideThreads = 32 * kWideWarps;
constexpr int kWideM = 16 * kWideWarps;
constexpr int kWideMaxStages = 8;

template <WeightFormat F>
struct WideFormat {
  using Skinny = SkinnyFormat<F>;
  static constexpr int kHalves = Skinny::kNibbles ? 1 : 2;  // 16-byte shares of a lane a row and step
  static constexpr int kStep = kHalves * Skinny::kChunk;    // of the contraction: 64 of BF16, 128 of codes
  static constexpr int kUnits = Skinny::kUnits;             // eights of values a share
  static constexpr int kRowBytes = 64 * kHalves;            // of W, a step
  static constexpr int kPasses = kWideM * kRowBytes / 16 / kWideThreads;
  static constexpr int kXRowBytes = 2 * kStep;
  static constexpr int kXPasses = kWideRows * kXRowBytes / 16 / kWideThreads;
};

// What a block works on.
struct WideTile {
  MatPtr at[2];      // of rows g and of rows g + 8 of each warp's sixteen
  int first;         // outputs begin here
  int skip;          // rows of the matrix before output 0
  int limit;         // outputs
  int begin, count;  // x's rows in the problem's own numbering
  int matrix;        // of the problem's shapes
  int item;          // of the problem
};

// 16 bytes of weights; the rest of their 128 bytes is wanted next.
__device__ __forceinline__ void cp_async_weights(std::uint32_t dst, const void* src) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(dst), "l"(src) : "memory");
}
// Waits until at most n of the newest groups of copies are under way.
__device__ __forceinline__ void cp_async_wait_for(int n) {
  switch (n) {
    case 0:
      return cp_async_wait<0>();
    case 1:
      return cp_async_wait<1>();
    case 2:
      return cp_async_wait<2>();
    case 3:
      return cp_async_wait<3>();
    case 4:
      return cp_async_wait<4>();
    case 5:
      return cp_async_wait<5>();
    default:
      return cp_async_wait<6>();
  }
}

__device__ __forceinline__ void cluster_barrier() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}
__device__ __forceinline__ float cluster_read(std::uint32_t address, int rank) {
  float v = 0;
#if __CUDA_ARCH__ >= 900
  asm volatile("{\n.reg .b32 there;\nmapa.shared::cluster.u32 there, %1, %2;\nld.shared::cluster.f32 %0, [there];\n}"
               : "=f"(v)
               : "r"(address), "r"(rank)
               : "memory");
#endif
  return v;
}

template <WeightFormat F>
__device__ __forceinline__ SkinnyScale wide_scale(const std::uint32_t (&scale)[2], const std::uint32_t (&min)[2],
                                                  DType dtype, bool has_min) {
  SkinnySlot<F> s;
#pragma unroll
  for (int r = 0; r < 2; ++r) s.scale[r] = scale[r], s.min[r] = min[r];
  SkinnyScale v = skinny_scale<F>(s, dtype, has_min);
  if constexpr (F == WeightFormat::kNF4) {
#pragma unroll
    for (int r = 0; r < 2; ++r) v.scale2[r] = __float2bfloat162_rn(v.scale[r]);
  }
  return v;
}

// Unit j of row r of a share as four pairs of bf16: what skinny_decode does, where the codes of a step leave less time.
template <WeightFormat F>
__device__ __forceinline__ void wide_decode(const SkinnySlot<F>& s, const SkinnyScale& scale, int r, int j,
                                            const std::uint32_t* nf4_pairs, std::uint32_t (&a)[4]) {
  const uint4 c = s.codes[r][0];
  if constexpr (F == WeightFormat::kF8E4M3) {
    const std::uint32_t w[2] = {j == 0 ? c.x : c.z, j == 0 ? c.y : c.w};
    const __nv_bfloat162 factor = __float2bfloat162_rn(kE4m3Factor);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      // As e4m3_raw, two codes in the places of bf16: exact.
      const std::uint32_t p = __byte_perm(w[i / 2], 0U, i % 2 == 0 ? 0x1404U : 0x3424U);
      const std::uint32_t raw = (p & 0x80008000U) | ((p >> 4) & 0x07f007f0U);
      const __nv_bfloat162 v = __hmul2(*reinterpret_cast<const __nv_bfloat162*>(&raw), factor);
      const std::uint32_t u = *reinterpret_cast<const std::uint32_t*>(&v);
      a[i] = pack_bf16(bf16_low(u) * scale.scale[r], bf16_high(u) * scale.scale[r]);
    }
  } else if constexpr (F == WeightFormat::kNF4) {
    const std::uint32_t q = j == 0 ? c.x : j == 1 ? c.y : j == 2 ? c.z : c.w;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const std::uint32_t u = nf4_pairs[(q >> (8 * i)) & 255U];
      const __nv_bfloat162 v = __hmul2(*reinterpret_cast<const __nv_bfloat162*>(&u), scale.scale2[r]);
      a[i] = *reinterpret_cast<const std::uint32_t*>(&v);
    }
  } else {
    skinny_decode<F>(s, scale, r, j, nullptr, a);
  }
}

// One stage for the first kTiles eights of rows of x.
template <WeightFormat F, int kTiles>
__device__ __forceinline__ void wide_multiply(float (&acc)[kWideRows / 8][4], std::uint32_t stage,
                                              const SkinnyScale (&scale)[WideFormat<F>::kHalves],
                                              const std::uint32_t* nf4_pairs) {
  using Format = WideFormat<F>;
  constexpr int kUnits = Format::kUnits, kHalves = Format::kHalves, kRowBytes = Format::kRowBytes;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
  const std::uint32_t turn = (g & 1) * 64;
  const std::uint32_t w = stage + (warp * 16 + g) * kRowBytes + t * 16;
  const std::uint32_t x = stage + kWideM * kRowBytes + g * Format::kXRowBytes + t * 16;
#pragma unroll
  for (int h = 0; h < kHalves; ++h) {
    SkinnySlot<F> slot;
    const std::uint32_t at = w + (kHalves == 2 ? (h * 64) ^ turn : 0);
    slot.codes[0][0] = lds128(at);
    slot.codes[1][0] = lds128(at + 8 * kRowBytes);
#pragma unroll
    for (int j = 0; j < kUnits; ++j) {
      std::uint32_t a[2][4];
      wide_decode<F>(slot, scale[h], 0, j, nf4_pairs, a[0]);
      wide_decode<F>(slot, scale[h], 1, j, nf4_pairs, a[1]);
      const std::uint32_t unit = x + (((h * kUnits + j) * 64) ^ turn);
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
        const uint4 b = lds128(unit + n * 8 * Format::kXRowBytes);
        mma(acc[n], a[0][0], a[1][0], a[0][1], a[1][1], b.x, b.y);
        mma(acc[n], a[0][2], a[1][2], a[0][3], a[1][3], b.z, b.w);
      }
    }
  }
}

// Problem has: shape(matrix), shift(matrix), total(), locate(f), x, x_rows (of a stage), x_row(tile, n),
// kPrefetch (weights may be loaded before pdl_wait), gated(), split, stages, store(tile, n, p, v0, v1): outputs 2p and
// 2p + 1 of a tile, or the answers of two matrices for output p.
template <WeightFormat F, typename Problem>
__global__ void __launch_bounds__(kWideThreads, 2) wide_kernel(const __grid_constant__ Problem problem) {
  using Format = WideFormat<F>;
  constexpr int kHalves = Format::kHalves, kRowBytes = Format::kRowBytes;
  constexpr bool kScaled = Format::Skinny::kScaled;
  constexpr int kRowUnits = kRowBytes / 16, kXRowUnits = Format::kXRowBytes / 16;
  extern __shared__ __align__(128) unsigned char smem[];
  __shared__ std::uint32_t nf4_pairs[F == WeightFormat::kNF4 ? 256 : 1];

  pdl_launch();
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32, g = lane / 4, t = lane % 4;
  if constexpr (F == WeightFormat::kNF4)
    nf4_pairs[thread] = pack_bf16(kNf4[thread / 16], kNf4[thread % 16]);  // the even column in the high nibble
  const bool gated = problem.gated();
  const int stages = problem.stages, split = problem.split;
  const int rank = split > 1 ? static_cast<int>(blockIdx.x) % split : 0;
  const int stride = static_cast<int>(gridDim.x) / split;
  const std::uint32_t ring = shared_address(smem);
  const std::uint32_t stage_bytes = kWideM * kRowBytes + problem.x_rows * Format::kXRowBytes;

  if constexpr (!Problem::kPrefetch) pdl_wait();
  const int total = problem.total();
  auto steps_of = [&](const WideTile& tile) {
    const int n = problem.shape(tile.matrix).cols / Format::kStep;
    return int2{rank * n / split, (rank + 1) * n / split};
  };
  // Row of W that lies r-th in the tile, and whose matrix.
  auto w_row = [&](const WideTile& tile, int r) {
    const int o = tile.first + (gated ? r / 16 * 8 + r % 8 : r / 16 * 16 + 2 * (r % 8) + r / 8 % 2);
    return tile.skip + min(o, tile.limit - 1);
  };

  // ---- the copying side: where the next stage comes from
  int ahead = static_cast<int>(blockIdx.x) / split, ahead_left = 0, ahead_stage = 0;
  const char* w_from[Format::kPasses];
  const char* x_from[Format::kXPasses];
  int x_count = 0;
  auto open_weights = [&](const WideTile& tile, int2 steps) {
    const std::int64_t row_bytes =
        static_cast<std::int64_t>(problem.shape(tile.matrix).cols) * Format::Skinny::kBits / 8;
#pragma unroll
    for (int i = 0; i < Format::kPasses; ++i) {
      const int r = thread / kRowUnits + i * (kWideThreads / kRowUnits);
      w_from[i] = static_cast<const char*>(tile.at[r / 8 % 2].data) + w_row(tile, r) * row_bytes +
                  static_cast<std::int64_t>(steps.x) * kRowBytes + thread % kRowUnits * 16;
    }
    ahead_left = steps.y - steps.x;
  };
  auto open_rows = [&](const WideTile& tile, int2 steps) {
    x_count = tile.count;
#pragma unroll
    for (int i = 0; i < Format::kXPasses; ++i) {
      const int n = thread / kXRowUnits + i * (kWideThreads / kXRowUnits);
      if (n < tile.count)
        x_from[i] = reinterpret_cast<const char*>(problem.x_row(tile, n)) +
                    static_cast<std::int64_t>(steps.x) * Format::kXRowBytes + thread % kXRowUnits * 16;
    }
  };
  auto copy_weights = [&](std::uint32_t to) {
#pragma unroll
    for (int i = 0; i < Format::kPasses; ++i) {
      const int r = thread / kRowUnits + i * (kWideThreads / kRowUnits), u = thread % kRowUnits;
      cp_async_weights(to + r * kRowBytes + (kHalves == 2 ? u ^ ((r & 1) * 4) : u) * 16, w_from[i]);
      w_from[i] += kRowBytes;
    }
  };
  auto copy_rows = [&](std::uint32_t to) {
    // Units stand in the order in which a quad reads them; odd rows have their halves swapped: no bank is met twice.
    const int u = thread % kXRowUnits, place = staged_unit<F>(u);
#pragma unroll
    for (int i = 0; i < Format::kXPasses; ++i) {
      const int n = thread / kXRowUnits + i * (kWideThreads / kXRowUnits);
      if (n < x_count) {
        cp_async16(to + kWideM * kRowBytes + n * Format::kXRowBytes + (place ^ ((n & 1) * 4)) * 16, x_from[i]);
        x_from[i] += Format::kXRowBytes;
      }
    }
  };
  auto next_stage = [&](int s) { return s + 1 == stages ? 0 : s + 1; };
  auto copy_stage = [&] {
    if (ahead_left == 0) {
      if (ahead >= total) return;
      const WideTile tile = problem.locate(ahead);
      const int2 steps = steps_of(tile);
      open_weights(tile, steps);
      open_rows(tile, steps);
      ahead += stride;
    }
    copy_weights(ring + ahead_stage * stage_bytes);
    copy_rows(ring + ahead_stage * stage_bytes);
    ahead_stage = next_stage(ahead_stage);
    --ahead_left;
  };

  int f = ahead;
  if (f >= total) {
    if constexpr (Problem::kPrefetch) pdl_wait();
    return;  // whole clusters only
  }
  WideTile tile = problem.locate(f);
  int2 steps = steps_of(tile);
  if constexpr (Problem::kPrefetch) {
    // The weights of the first tile's first stages are on their way before x exists.
    open_weights(tile, steps);
    const int n = min(stages - 1, ahead_left);
    for (int s = 0; s < n; ++s) copy_weights(ring + s * stage_bytes);
    pdl_wait();
    open_rows(tile, steps);
    for (int s = 0; s < n; ++s) {
      copy_rows(ring + s * stage_bytes);
      cp_async_commit();
    }
    ahead_stage = n;
    ahead_left -= n;
    ahead += stride;
    for (int s = n; s < stages - 1; ++s) {
      copy_stage();
      cp_async_commit();
    }
  } else {
    for (int s = 0; s < stages - 1; ++s) {
      copy_stage();
      cp_async_commit();
    }
  }

  // ---- the computing side
  const void* scales[2] = {nullptr, nullptr};
  const void* mins[2] = {nullptr, nullptr};
  std::int64_t scale_row[2] = {0, 0};
  std::uint32_t scale_raw[kHalves][2] = {}, min_raw[kHalves][2] = {};
  int shift = 0;
  DType scale_dtype = DType::kF32;
  bool has_min = false;
  auto open_scales = [&](const WideTile& of) {
    const MatShape& m = problem.shape(of.matrix);
    shift = problem.shift(of.matrix);
    scale_dtype = m.scale_dtype;
    has_min = of.at[0].mins != nullptr;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      scales[r] = of.at[r].scales;
      mins[r] = of.at[r].mins;
      scale_row[r] = static_cast<std::int64_t>(w_row(of, warp * 16 + g + 8 * r) / m.group_rows) * m.groups_a_row;
    }
  };
  auto load_scales = [&](int step) {
#pragma unroll
    for (int h = 0; h < kHalves; ++h) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const std::int64_t at =
            scale_row[r] + ((step * Format::kStep + h * (Format::kStep / kHalves) + t * 8 * Format::kUnits) >> shift);
        scale_raw[h][r] = scale_bits(scales[r], scale_dtype, at);
        if (has_min) min_raw[h][r] = scale_bits(mins[r], scale_dtype, at);
      }
    }
  };

  float acc[kWideRows / 8][4];
  if constexpr (kScaled) {
    open_scales(tile);
    load_scales(steps.x);
  }
  int stage = 0;
  while (true) {
#pragma unroll
    for (int n = 0; n < kWideRows / 8; ++n) acc[n][0] = acc[n][1] = acc[n][2] = acc[n][3] = 0;
    const int tiles = (tile.count + 7) / 8;
    WideTile next = tile;
    int2 next_steps = steps;
    for (int step = steps.x; step < steps.y; ++step) {
      cp_async_wait_for(stages - 2);
      __syncthreads();
      copy_stage();
      cp_async_commit();
      SkinnyScale scale[kHalves];
      if constexpr (kScaled) {
#pragma unroll
        for (int h = 0; h < kHalves; ++h) scale[h] = wide_scale<F>(scale_raw[h], min_raw[h], scale_dtype, has_min);
      }
      if (step + 1 < steps.y) {
        if constexpr (kScaled) load_scales(step + 1);
      } else if (f + stride < total) {
        next = problem.locate(f + stride);
        next_steps = steps_of(next);
        if constexpr (kScaled) {
          open_scales(next);
          load_scales(next_steps.x);
        }
      }
      const std::uint32_t from = ring + stage * stage_bytes;
      if (tiles == 1) {
        wide_multiply<F, 1>(acc, from, scale, nf4_pairs);
      } else if (tiles == 2) {
        wide_multiply<F, 2>(acc, from, scale, nf4_pairs);
      } else if (tiles <= 4) {
        wide_multiply<F, 4>(acc, from, scale, nf4_pairs);
      } else {
        wide_multiply<F, 8>(acc, from, scale, nf4_pairs);
      }
      stage = next_stage(stage);
    }

    if (split == 1) {
#pragma unroll
      for (int i = 0; i < kWideRows / 8; ++i) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const int n = i * 8 + 2 * t + c;
          if (n < tile.count) problem.store(tile, n, warp * 8 + g, acc[i][c], acc[i][2 + c]);
        }
      }
    } else {
      // Each block adds a part of the tile's outputs, in the order of the blocks. One tile a cluster: the ring is
      // empty.
      cp_async_wait<0>();
      __syncthreads();
      auto* sums = reinterpret_cast<float*>(smem);
#pragma unroll
      for (int i = 0; i < kWideRows / 8; ++i) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const int n = i * 8 + 2 * t + c;
          if (n < tile.count) {
            *reinterpret_cast<float2*>(sums + n * kWideM + warp * 16 + 2 * g) = {acc[i][c], acc[i][2 + c]};
          }
        }
      }
      cluster_barrier();
      const int mine = kWideM / 2 / split;  // pairs of outputs
      for (int i = thread; i < mine * tile.count; i += kWideThreads) {
        const int p = rank * mine + i % mine, n = i / mine;
        const std::uint32_t at = ring + (n * kWideM + 2 * p) * 4;
        float v0 = 0, v1 = 0;
        for (int r = 0; r < split; ++r) {
          v0 += cluster_read(at, r);
          v1 += cluster_read(at + 4, r);
        }
        problem.store(tile, n, p, v0, v1);
      }
      cluster_barrier();  // nobody leaves while its sums are read
      return;
    }
    f += stride;
    if (f >= total) break;
    tile = next;
    steps = next_steps;
  }
  cp_async_wait<0>();
}

// Two neighbouring outputs of a row, as far as the row goes.
__device__ __forceinline__ void store_two(float* row, int o, int limit, float v0, float v1) {
  if (o + 1 < limit && reinterpret_cast<std::uintptr_t>(row + o) % 8 == 0) {
    *reinterpret_cast<float2*>(row + o) = {v0, v1};
  } else {
    if (o < limit) row[o] = v0;
    if (o + 1 < limit) row[o + 1] = v1;
  }
}

// Rows of x that a stage has room for, given the most that a tile has.
inline int wide_stage_rows(std::int64_t rows) {
  int n = 8;
  while (n < rows && n < kWideRows) n *= 2;
  return n;
}

// ---- launching ------------------------------------------------------------------------------------------------------

template <WeightFormat F, typename Problem>
void launch_wide_format(const Launch& l, Problem p, std::int64_t max_total) {
  using Format = WideFormat<F>;
  const std::size_t stage = kWideM * Format::kRowBytes + static_cast<std::size_t>(p.x_rows) * Format::kXRowBytes;
  const std::size_t budget = static_cast<std::size_t>(l.smem_limit) / 2 - 2048;  // two blocks a multiprocessor
  p.stages = static_cast<int>(std::clamp<std::size_t>(budget / stage, 2, kWideMaxStages));
  const std::size_t sums = p.split > 1 ? static_cast<std::size_t>(p.x_rows) * kWideM * sizeof(float) : 0;
  const std::int64_t blocks = p.split > 1 ? max_total * p.split : std::min<std::int64_t>(max_total, 2 * l.n_sms);
  launch_clusters(l, wide_kernel<F, Problem>, dim3(static_cast<unsigned>(std::max<std::int64_t>(1, blocks))),
                  dim3(kWideThreads), std::max(p.stages * stage, sums), p.split, p);
}

// One source file instantiates one problem.
template <typename Problem>
void launch_wide(const Launch& l, const Problem& p, WeightFormat format, std::int64_t max_total) {
  switch (format) {
    case WeightFormat::kBF16:
      return launch_wide_format<WeightFormat::kBF16>(l, p, max_total);
    case WeightFormat::kF8E4M3:
      return launch_wide_format<WeightFormat::kF8E4M3>(l, p, max_total);
    case WeightFormat::kI8:
      return launch_wide_format<WeightFormat::kI8>(l, p, max_total);
    case WeightFormat::kI4:
      return launch_wide_format<WeightFormat::kI4>(l, p, max_total);
    case WeightFormat::kNF4:
      return launch_wide_format<WeightFormat::kNF4>(l, p, max_total);
    default:
      check(cudaErrorNotSupported, "a weight format without wide kernels");
  }
}

}  // namespace glint::cuda
