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

#include "backends/cuda/bulk.cuh"
#include "backends/cuda/skinny.cuh"
#include "backends/cuda/wide_order.cuh"

namespace glint::cuda {

constexpr int kWideWarps = 8;
constexpr int kWideThreads = 32 * (kWideWarps + 1);  // the last warp copies
constexpr int kWideM = 16 * kWideWarps;
constexpr int kWideMaxStages = 8;
constexpr int kWideMaxSplit = 4;

template <WeightFormat F>
struct WideFormat {
  using Skinny = SkinnyFormat<F>;
  static constexpr int kHalves = Skinny::kNibbles ? 1 : 2;  // 16-byte shares of a lane a row and step
  static constexpr int kStep = kHalves * Skinny::kChunk;    // of the contraction: 64 of BF16, 128 of codes
  static constexpr int kUnits = Skinny::kUnits;             // eights of values a share
  static constexpr int kRowBytes = 64 * kHalves;            // of W, a step
  static constexpr int kXRowBytes = 2 * kStep;
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

// 16 bytes of weights; the rest of their 256 bytes is wanted in the next steps.
__device__ __forceinline__ void cp_async_weights(std::uint32_t dst, const void* src) {
  asm volatile("cp.async.cg.shared.global.L2::256B [%0], [%1], 16;" ::"r"(dst), "l"(src) : "memory");
}
// The computing warps among themselves.
__device__ __forceinline__ void computing_barrier() {
  asm volatile("bar.sync 1, %0;" ::"n"(32 * kWideWarps) : "memory");
}

__device__ __forceinline__ float2 cluster_read(std::uint32_t address, int rank) {
  float2 v{};
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "{\n.reg .b32 there;\nmapa.shared::cluster.u32 there, %2, %3;\n"
      "ld.shared::cluster.v2.f32 {%0, %1}, [there];\n}"
      : "=f"(v.x), "=f"(v.y)
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

// Unit j of row r of a share as four pairs of bf16. kExact: the codes' own values, which bf16 holds exactly; the scale
// is left to the sums. Otherwise scaled, as skinny_decode does.
template <WeightFormat F, bool kExact>
__device__ __forceinline__ void wide_decode(const SkinnySlot<F>& s, const SkinnyScale& scale, int r, int j,
                                            const std::uint32_t* nf4_pairs, std::uint32_t (&a)[4]) {
  const uint4 c = s.codes[r][0];
  if constexpr (F == WeightFormat::kF8E4M3) {
    const std::uint32_t w[2] = {j == 0 ? c.x : c.z, j == 0 ? c.y : c.w};
    const __nv_bfloat162 factor = __float2bfloat162_rn(kE4m3Factor);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      // As e4m3_raw, two codes in the places of bf16.
      const std::uint32_t p = __byte_perm(w[i / 2], 0U, i % 2 == 0 ? 0x1404U : 0x3424U);
      const std::uint32_t raw = (p & 0x80008000U) | ((p >> 4) & 0x07f007f0U);
      const __nv_bfloat162 v = __hmul2(*reinterpret_cast<const __nv_bfloat162*>(&raw), factor);
      a[i] = *reinterpret_cast<const std::uint32_t*>(&v);
      if constexpr (!kExact) a[i] = pack_bf16(bf16_low(a[i]) * scale.scale[r], bf16_high(a[i]) * scale.scale[r]);
    }
  } else if constexpr (F == WeightFormat::kNF4) {
    const std::uint32_t q = j == 0 ? c.x : j == 1 ? c.y : j == 2 ? c.z : c.w;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const std::uint32_t u = nf4_pairs[(q >> (8 * i)) & 255U];
      const __nv_bfloat162 v = __hmul2(*reinterpret_cast<const __nv_bfloat162*>(&u), scale.scale2[r]);
      a[i] = *reinterpret_cast<const std::uint32_t*>(&v);
    }
  } else if constexpr (F == WeightFormat::kI8 && kExact) {
    // As bf16, 0x4300 | code & 127 is 128 more than the code's low bits, and 0x4300 | code & 128 is 128, or 256 where
    // the code is negative.
    const std::uint32_t w[2] = {j == 0 ? c.x : c.z, j == 0 ? c.y : c.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const std::uint32_t two = __byte_perm(w[i / 2], 0U, i % 2 == 0 ? 0x4140U : 0x4342U);
      const std::uint32_t low = and_or<0x007f007fU, 0x43004300U>(two), sign = and_or<0x00800080U, 0x43004300U>(two);
      const __nv_bfloat162 v =
          __hsub2(*reinterpret_cast<const __nv_bfloat162*>(&low), *reinterpret_cast<const __nv_bfloat162*>(&sign));
      a[i] = *reinterpret_cast<const std::uint32_t*>(&v);
    }
  } else if constexpr (F == WeightFormat::kI4 && kExact) {
    const std::uint32_t q = j == 0 ? c.x : j == 1 ? c.y : j == 2 ? c.z : c.w;
    const __nv_bfloat162 offset = __float2bfloat162_rn(-136.0F), one = __float2bfloat162_rn(1.0F);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const std::uint32_t magic = and_or<0x000f000fU, 0x43004300U>(q >> (4 * i));  // 128 + u
      const __nv_bfloat162 v = __hfma2(*reinterpret_cast<const __nv_bfloat162*>(&magic), one, offset);
      a[i] = *reinterpret_cast<const std::uint32_t*>(&v);
    }
  } else {
    skinny_decode<F>(s, scale, r, j, nullptr, a);
  }
}

// One stage for kTiles eights of rows of x from kFirst on.
template <WeightFormat F, bool kExact, int kFirst, int kTiles, int kMost>
__device__ __forceinline__ void wide_multiply(float (&acc)[kMost][4], std::uint32_t stage,
                                              const SkinnyScale (&scale)[WideFormat<F>::kHalves],
                                              const std::uint32_t* nf4_pairs) {
  using Format = WideFormat<F>;
  constexpr int kUnits = Format::kUnits, kHalves = Format::kHalves, kRowBytes = Format::kRowBytes;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
  const std::uint32_t turn = (g & 1) * 64;
  const std::uint32_t w = stage + (warp * 16 + g) * kRowBytes + t * 16;
  const std::uint32_t x = stage + kWideM * kRowBytes + (kFirst * 8 + g) * Format::kXRowBytes + t * 16;
  float sum[kTiles][4];
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) sum[n][i] = kExact ? 0.0F : acc[kFirst + n][i];
  }
#pragma unroll
  for (int h = 0; h < kHalves; ++h) {
    SkinnySlot<F> slot;
    const std::uint32_t at = w + (kHalves == 2 ? (h * 64) ^ turn : 0);
    slot.codes[0][0] = lds128(at);
    slot.codes[1][0] = lds128(at + 8 * kRowBytes);
#pragma unroll
    for (int j = 0; j < kUnits; ++j) {
      std::uint32_t a[2][4];
      wide_decode<F, kExact>(slot, scale[h], 0, j, nf4_pairs, a[0]);
      wide_decode<F, kExact>(slot, scale[h], 1, j, nf4_pairs, a[1]);
      const std::uint32_t unit = x + (((h * kUnits + j) * 64) ^ turn);
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
        const uint4 b = lds128(unit + n * 8 * Format::kXRowBytes);
        mma(sum[n], a[0][0], a[1][0], a[0][1], a[1][1], b.x, b.y);
        mma(sum[n], a[0][2], a[1][2], a[0][3], a[1][3], b.z, b.w);
      }
    }
  }
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      acc[kFirst + n][i] = kExact ? fmaf(sum[n][i], scale[0].scale[i / 2], acc[kFirst + n][i]) : sum[n][i];
  }
}

// Each block of a cluster adds a part of the tile's outputs, in the order of the blocks. A cluster has one tile: the
// ring is empty.
template <int kMost, typename Problem>
__device__ __forceinline__ void wide_reduce(const Problem& problem, const WideTile& tile, const float (&acc)[kMost][4],
                                            unsigned char* smem, int rank) {
  constexpr int kStride = kWideM + 8;  // eight lanes of two rows in different banks
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32, g = lane / 4, t = lane % 4;
  computing_barrier();
  auto* sums = reinterpret_cast<float*>(smem);
#pragma unroll
  for (int i = 0; i < kMost; ++i) {
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const int n = i * 8 + 2 * t + c;
      if (n < tile.count)
        *reinterpret_cast<float2*>(sums + n * kStride + warp * 16 + 2 * g) = {acc[i][c], acc[i][2 + c]};
    }
  }
  cluster_barrier();
  const int split = problem.split, mine = kWideM / 2 / split;  // pairs of outputs: a power of two
  const int p = rank * mine + thread % mine;
  const auto sink = problem.sink(tile, p);
  const int apart = 32 * kWideWarps / mine;
  constexpr int kRows = 4;  // whose parts are on their way together
  for (int first = thread / mine; first < tile.count; first += kRows * apart) {
    float2 part[kRows][kWideMaxSplit];
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int n = first + i * apart;
      const std::uint32_t at = shared_address(smem) + (n * kStride + 2 * p) * 4;
#pragma unroll
      for (int r = 0; r < kWideMaxSplit; ++r)
        part[i][r] = r < split && n < tile.count ? cluster_read(at, r) : float2{0, 0};
    }
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      float2 v = part[i][0];
#pragma unroll
      for (int r = 1; r < kWideMaxSplit; ++r) v.x += part[i][r].x, v.y += part[i][r].y;
      const int n = first + i * apart;
      if (n >= tile.count) break;
      if (sink.plain) {
        sink.store_plain(n, v.x, v.y);
      } else {
        sink.store(n, v.x, v.y);
      }
    }
  }
  cluster_barrier();  // nobody leaves while its sums are read
}

// The copying warp's view of the tile it is in.
struct WideSource {
  const char* w[2];  // of even and odd eights of rows: the lane's unit of row 0 of their matrix, at the next step
  std::uint32_t row_bytes;
  int first, skip, last;  // rows of W: the lane's first, those before it, the last
  int count;              // rows of x
  std::uint32_t x_skip;   // units of x before the next step, the lane's among them
};

// One stage of W by one warp.
template <WeightFormat F>
__device__ __forceinline__ void wide_copy_weights(WideSource& s, std::uint32_t stage, bool gated) {
  constexpr int kRowBytes = WideFormat<F>::kRowBytes, kUnits = kRowBytes / 16;
  constexpr int kRows = 32 / kUnits, kInEight = 8 / kRows;  // rows a pass, passes an eight of rows
  const int lane = threadIdx.x % 32, r = lane / kUnits, u = lane % kUnits;
  const std::uint32_t to = stage + r * kRowBytes + (kUnits == 8 ? u ^ ((r & 1) * 4) : u) * 16;
  const int apart = gated ? 1 : 2;
#pragma unroll 1  // else the rows' places are kept in more registers than there are
  for (int two = 0; two < kWideM / 16; ++two) {
#pragma unroll
    for (int i = 0; i < 16 / kRows; ++i) {
      const int o = s.first + apart * (two * 8 + i % kInEight * kRows) + (gated ? 0 : i / kInEight);
      cp_async_weights(to + (two * 16 + i * kRows) * kRowBytes,
                       s.w[i / kInEight] + static_cast<std::int64_t>(s.skip + min(o, s.last)) * s.row_bytes);
    }
  }
  s.w[0] += kRowBytes;
  s.w[1] += kRowBytes;
}

// One stage of x. Units stand in the order in which a quad reads them; odd rows have their halves swapped: no bank is
// met twice.
template <WeightFormat F>
__device__ __forceinline__ void wide_copy_rows(WideSource& s, std::uint32_t stage, const void* x,
                                               const std::uint32_t* units) {
  constexpr int kRowBytes = WideFormat<F>::kXRowBytes, kUnits = kRowBytes / 16, kRows = 32 / kUnits;
  const int lane = threadIdx.x % 32, r = lane / kUnits, u = lane % kUnits;
  const std::uint32_t to =
      stage + kWideM * WideFormat<F>::kRowBytes + r * kRowBytes + (staged_unit<F>(u) ^ ((r & 1) * 4)) * 16;
  for (int n = r; n < s.count; n += 4 * kRows) {  // four places are read before the first is used
    std::uint32_t from[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (n + i * kRows < s.count) from[i] = units[n + i * kRows];
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (n + i * kRows < s.count)
        cp_async16(to + (n - r + i * kRows) * kRowBytes, static_cast<const char*>(x) + (from[i] + s.x_skip) * 16ULL);
    }
  }
  s.x_skip += kUnits;
}

// Problem has: shape(matrix), shift(matrix), total(), locate(f), x, x_rows (of a stage), x_unit(tile, n): where a row
// of x begins, in units of 16 bytes, kPrefetch (weights may be loaded before pdl_wait), gated(), split, stages, and
// sink(tile, p), whose store(n, v0, v1) takes outputs 2p and 2p + 1 of row n of a tile, or the answers of
// two matrices for output p. kMost: eights of rows of x that a tile may have.
template <WeightFormat F, bool kExact, int kMost, typename Problem>
__global__ void __launch_bounds__(kWideThreads, 2) wide_kernel(const __grid_constant__ Problem problem) {
#if !defined(__CUDA_ARCH_FEAT_SM90_ALL)  // there wide_wgmma.cuh does it
  using Format = WideFormat<F>;
  constexpr int kHalves = Format::kHalves, kStep = Format::kStep;
  constexpr bool kScaled = Format::Skinny::kScaled;
  constexpr int kTiles = kWideMaxStages + 2;  // every stage may be of another tile, and one is being stored
  extern __shared__ __align__(128) unsigned char smem[];
  __shared__ __align__(8) std::uint64_t barriers[2 * kWideMaxStages];
  __shared__ __align__(16) unsigned char tile_bytes[kTiles * sizeof(WideTile)];
  __shared__ std::uint32_t x_units[kWideRows];
  __shared__ std::uint32_t nf4_pairs[F == WeightFormat::kNF4 ? 256 : 1];

  pdl_launch();
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32, g = lane / 4, t = lane % 4;
  const int stages = problem.stages, split = problem.split;
  const int rank = split > 1 ? static_cast<int>(blockIdx.x) % split : 0;
  const int stride = static_cast<int>(gridDim.x) / split;
  const std::uint32_t ring = shared_address(smem), full = shared_address(barriers), empty = full + 8 * kWideMaxStages;
  const std::uint32_t stage_bytes = kWideM * Format::kRowBytes + problem.x_rows * Format::kXRowBytes;
  auto* tiles = reinterpret_cast<WideTile*>(tile_bytes);
  if constexpr (F == WeightFormat::kNF4) {
    if (thread < 256)
      nf4_pairs[thread] = pack_bf16(kNf4[thread / 16], kNf4[thread % 16]);  // the even column in the high nibble
  }
  if (thread == 0) {
    for (int s = 0; s < stages; ++s) {
      barrier_init(full + 8 * s, 33);  // every lane's copies, and one that says so
      barrier_init(empty + 8 * s, kWideWarps);
    }
  }
  __syncthreads();

  if constexpr (!Problem::kPrefetch) pdl_wait();
  const int total = problem.total();
  auto steps_of = [&](int matrix) {
    const int n = problem.shape(matrix).cols / kStep;
    return int2{rank * n / split, (rank + 1) * n / split};
  };
  int f = static_cast<int>(blockIdx.x) / split, stage = 0, parity = 0, slot = 0;
  auto next_stage = [&] {
    if (++stage == stages) stage = 0, parity ^= 1;
  };

  if (warp == kWideWarps) {
    for (bool waited = !Problem::kPrefetch; f < total || !waited; f += stride) {
      if (f >= total) {
        pdl_wait();
        break;
      }
      const WideTile tile = problem.locate(f);
      const int2 steps = steps_of(tile.matrix);
      const bool gated = problem.gated();
      constexpr int kUnits = Format::kRowBytes / 16;
      WideSource s;
      s.row_bytes = problem.shape(tile.matrix).cols / 8 * Format::Skinny::kBits;
#pragma unroll
      for (int i = 0; i < 2; ++i)
        s.w[i] = static_cast<const char*>(tile.at[i].data) + steps.x * Format::kRowBytes + lane % kUnits * 16;
      s.first = tile.first + (gated ? 1 : 2) * (lane / kUnits);
      s.skip = tile.skip;
      s.last = tile.limit - 1;
      s.count = tile.count;
      s.x_skip = steps.x * (Format::kXRowBytes / 16) + lane % (Format::kXRowBytes / 16);
      if (lane == 0) tiles[slot] = tile;
      slot = slot + 1 == kTiles ? 0 : slot + 1;
      int step = steps.x, early = 0;
      if (!waited) {  // the first weights are on their way before x exists
        early = min(stages, steps.y - steps.x);
        for (int i = 0; i < early; ++i) wide_copy_weights<F>(s, ring + i * stage_bytes, gated);
        pdl_wait();
        waited = true;
      }
      __syncwarp();
      for (int n = lane; n < s.count; n += 32) x_units[n] = problem.x_unit(tile, n);
      __syncwarp();
      for (; step < steps.y; ++step) {
        const std::uint32_t to = ring + stage * stage_bytes;
        if (early > 0) {
          --early;
        } else {
          barrier_wait(empty + 8 * stage, parity ^ 1);
          wide_copy_weights<F>(s, to, gated);
        }
        wide_copy_rows<F>(s, to, problem.x, x_units);
        barrier_arrive_copied(full + 8 * stage);
        if (lane == 0) barrier_arrive(full + 8 * stage);
        next_stage();
      }
    }
    if (split > 1) {
      __syncwarp();
      cluster_barrier();
      cluster_barrier();
    }
    return;
  }

  if constexpr (Problem::kPrefetch) pdl_wait();
  if (f >= total) return;  // whole clusters only
  const char* scales[2] = {nullptr, nullptr};
  const char* mins[2] = {nullptr, nullptr};
  std::uint32_t scale_raw[kHalves][2] = {}, min_raw[kHalves][2] = {};
  int shift = 0;
  DType scale_dtype = DType::kF32;
  auto load_scales = [&](int step) {
#pragma unroll
    for (int h = 0; h < (kExact ? 1 : kHalves); ++h) {
      const int in_step = kExact ? 0 : h * (kStep / kHalves) + t * 8 * Format::kUnits;
      const int at = (step * kStep + in_step) >> shift;
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        scale_raw[h][r] = scale_bits(scales[r], scale_dtype, at);
        if (!kExact && mins[0] != nullptr) min_raw[h][r] = scale_bits(mins[r], scale_dtype, at);
      }
    }
  };
  auto open_scales = [&](const WideTile& of) {
    const MatShape& m = problem.shape(of.matrix);
    shift = problem.shift(of.matrix);
    scale_dtype = m.scale_dtype;
    const int bytes = scale_dtype == DType::kF32 ? 4 : 2;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int o = of.first + (problem.gated() ? warp * 8 + g : warp * 16 + 2 * g + r);
      const int row = of.skip + min(o, of.limit - 1);
      const std::int64_t skip = static_cast<std::int64_t>(row / m.group_rows) * m.groups_a_row * bytes;
      scales[r] = static_cast<const char*>(of.at[r].scales) + skip;
      if (!kExact && of.at[r].mins != nullptr) mins[r] = static_cast<const char*>(of.at[r].mins) + skip;
    }
    load_scales(steps_of(of.matrix).x);
  };

  barrier_wait(full, 0);
  if constexpr (kScaled) open_scales(tiles[0]);
  float acc[kMost][4];
  while (true) {
    barrier_wait(full + 8 * stage, parity);  // with a tile's first stage the tile itself is there
#pragma unroll
    for (int n = 0; n < kMost; ++n) acc[n][0] = acc[n][1] = acc[n][2] = acc[n][3] = 0;
    const int eights = (tiles[slot].count + 7) / 8, next_slot = slot + 1 == kTiles ? 0 : slot + 1;
    const int2 steps = steps_of(tiles[slot].matrix);
    for (int step = steps.x; step < steps.y; ++step) {
      barrier_wait(full + 8 * stage, parity);
      const std::uint32_t from = ring + stage * stage_bytes, done = empty + 8 * stage;
      next_stage();
      SkinnyScale scale[kHalves];
      if constexpr (kScaled) {
        if constexpr (kExact) {
#pragma unroll
          for (int r = 0; r < 2; ++r) scale[0].scale[r] = scale_value(scale_raw[0][r], scale_dtype);
        } else {
#pragma unroll
          for (int h = 0; h < kHalves; ++h)
            scale[h] = wide_scale<F>(scale_raw[h], min_raw[h], scale_dtype, mins[0] != nullptr);
        }
        if (step + 1 < steps.y) {
          load_scales(step + 1);
        } else if (f + stride < total) {  // the next tile's, whose first stage is mostly there
          barrier_wait(full + 8 * stage, parity);
          open_scales(tiles[next_slot]);
        }
      }
      if (eights == 1) {
        wide_multiply<F, kExact, 0, 1>(acc, from, scale, nf4_pairs);
      } else if (eights == 2) {
        wide_multiply<F, kExact, 0, 2>(acc, from, scale, nf4_pairs);
      } else if (kMost == 4 || eights <= 4) {
        wide_multiply<F, kExact, 0, 4>(acc, from, scale, nf4_pairs);
      } else if constexpr (kMost == 8 && kExact) {  // decoding twice takes fewer registers than eight more sums
        wide_multiply<F, kExact, 0, 4>(acc, from, scale, nf4_pairs);
        wide_multiply<F, kExact, 4, 4>(acc, from, scale, nf4_pairs);
      } else if constexpr (kMost == 8) {
        wide_multiply<F, kExact, 0, 8>(acc, from, scale, nf4_pairs);
      }
      __syncwarp();
      if (lane == 0) barrier_arrive(done);
    }

    if (split > 1) {
      wide_reduce(problem, tiles[slot], acc, smem, rank);
      return;
    }
    const int count = tiles[slot].count;
    const auto sink = problem.sink(tiles[slot], warp * 8 + g);
    const auto store_all = [&](auto store) {
#pragma unroll
      for (int i = 0; i < kMost; ++i) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const int n = i * 8 + 2 * t + c;
          if (n < count) store(n, acc[i][c], acc[i][2 + c]);
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

// Rows of x that a stage has room for, given the most that a tile has.
inline int wide_stage_rows(std::int64_t rows, int tile_rows) {
  int n = 8;
  while (n < rows && n < tile_rows) n *= 2;
  return n;
}

// ---- launching ------------------------------------------------------------------------------------------------------

template <WeightFormat F, bool kExact, typename Problem>
void launch_wide_format(const Launch& l, Problem p, std::int64_t max_total) {
  using Format = WideFormat<F>;
  const std::size_t stage = kWideM * Format::kRowBytes + static_cast<std::size_t>(p.x_rows) * Format::kXRowBytes;
  const std::size_t budget = static_cast<std::size_t>(l.smem_limit) / 2 - 4096;  // two blocks a multiprocessor
  p.stages = static_cast<int>(std::clamp<std::size_t>(budget / stage, 3, kWideMaxStages));
  const std::size_t sums = p.split > 1 ? static_cast<std::size_t>(p.x_rows) * (kWideM + 8) * sizeof(float) : 0;
  const std::int64_t blocks = p.split > 1 ? max_total * p.split : std::min<std::int64_t>(max_total, 2 * l.n_sms);
  auto* kernel = p.x_rows <= 32 ? wide_kernel<F, kExact, 4, Problem> : wide_kernel<F, kExact, 8, Problem>;
  launch_clusters(l, kernel, dim3(static_cast<unsigned>(std::max<std::int64_t>(1, blocks))), dim3(kWideThreads),
                  std::max(p.stages * stage, sums), p.split, p);
}

}  // namespace glint::cuda
