#pragma once
// Products with more than a few rows of x on sm_90a: C[row of x][row of W] = Σ_k W[o][k] x[t][k], one kernel for dense
// matrices and for experts.
//
// A block computes tiles of 128 rows of W by up to kTokens rows of x, one after another. Four warps copy what comes
// next into a ring of stages (cp.async, an mbarrier a stage); two warpgroups of 64 rows of W each multiply (wgmma). W
// is the left operand. BF16 is read from shared memory; codes are decoded into registers, once a tile, while the
// product before runs. x is the right operand, in a column order that gives a lane its codes in one register
// (ColumnOrder). The copies do not stop at a tile's end, so that the next tile's weights are under way while the last
// one's results are stored.
//
// The order of a sum depends on the format and on the number of parts that the contraction is cut into, not on which
// rows share the tile.

#include "backends/cuda/hopper.cuh"
#include "backends/cuda/hopper_decode.cuh"
#include "backends/cuda/hopper_job.hpp"

namespace glint::cuda {

constexpr int kHopperThreads = 384, kHopperRows = 128;
constexpr int kHopperShared = 226 << 10;  // of the 227 KiB that a block may have

template <WeightFormat F, bool kLarge>
struct HopperTile {
  static constexpr int kBits = weight_code_bits(F);
  static constexpr bool kCodes = kBits <= 8;
  static constexpr int kTokens = kLarge ? hopper_tokens(F) : 64;
  // Values of the contraction a stage. Where few rows of x are met, reading W is what takes the time: whole lines then.
  static constexpr int kDepth = kLarge ? 64 : 64 * 16 / kBits;
  static constexpr int kParts = kDepth / 64;
  static constexpr int kRowBytes = kDepth * kBits / 8;
  static constexpr int kUnits = kRowBytes / 16;
  static constexpr int kBytesW = kHopperRows * kRowBytes;
  static constexpr int kBytesX = kTokens * kDepth * 2;
  static constexpr int kScaleRow = kCodes ? kDepth / 32 * 4 : 0;  // bytes for a row's scales; as many for its minima
  static constexpr int kStage = (kBytesX + kBytesW + 2 * kHopperRows * kScaleRow + 1023) / 1024 * 1024;
  static constexpr int kStaging = 32 << 10;
  static constexpr int kStages = std::min(8, (kHopperShared - 1024 - 1024 - kStaging) / kStage);
  static constexpr int kSmem = kStages * kStage + kStaging + 1024 + 1024;  // to align; barriers
  static_assert(kStages >= 3);
};

// What a block works on next.
struct HopperUnit {
  MatPtr at[2];
  int shape;         // of the job's two
  int batch;         // dense products only
  int row;           // first output
  int begin, count;  // rows of x (before any gathering) and of out
};

__device__ __forceinline__ HopperUnit hopper_unit(const HopperJob& job, int u) {
  HopperUnit unit{};
  if (job.items == nullptr) {
    const int item = u / job.row_tiles[0];
    unit.row = u % job.row_tiles[0] * job.tile_outputs;
    unit.batch = item / job.token_tiles;
    unit.begin = item % job.token_tiles * job.item_rows;
    unit.count = min(job.item_rows, job.rows - unit.begin);
    unit.at[0] = job.first.at[0];
    unit.at[1] = job.second.at[0];
    return unit;
  }
  const int n_shared = job.shared_items * job.row_tiles[1];
  int expert;
  if (u < n_shared) {
    const int first = u / job.row_tiles[1] * job.item_rows;
    unit.row = u % job.row_tiles[1] * job.tile_outputs;
    unit.shape = 1;
    unit.begin = job.slots + first;
    unit.count = min(job.item_rows, job.rows - first);
    expert = kMaxExperts;
  } else {
    const int4 item = job.items[(u - n_shared) / job.row_tiles[0]];
    unit.row = (u - n_shared) % job.row_tiles[0] * job.tile_outputs;
    expert = item.x;
    unit.begin = item.y;
    unit.count = item.z;
  }
  unit.at[0] = job.first.at[expert];
  unit.at[1] = job.second.at[expert];
  return unit;
}
__device__ __forceinline__ int hopper_units(const HopperJob& job) {
  if (job.items == nullptr) return job.row_tiles[0] * job.token_tiles * job.batch;
  return job.shared_items * job.row_tiles[1] + *job.n_items * job.row_tiles[0];
}

// Row j of a unit's tile of W: which matrix, and which of its rows (may be past the end). Gated tiles take eight rows
// of each matrix in turn, in the order in which the next product wants its columns.
__device__ __forceinline__ int hopper_w_row(const HopperJob& job, const HopperUnit& unit, int j) {
  if (!job.gated()) return unit.row + j;
  const int place = j / 16 * 8 + j % 8;
  return unit.row + ordered_column(job.out_order, place);
}
__device__ __forceinline__ int hopper_w_matrix(const HopperJob& job, int j) { return job.gated() ? j / 8 % 2 : 0; }

// Which stages of the contraction this block multiplies.
struct HopperSteps {
  int begin, end;
};
template <typename Tile>
__device__ __forceinline__ HopperSteps hopper_steps(const HopperJob& job, const HopperUnit& unit) {
  const int n = (job.shape[unit.shape].cols + Tile::kDepth - 1) / Tile::kDepth;
  const int rank = static_cast<int>(blockIdx.x) % job.split;
  return {n * rank / job.split, n * (rank + 1) / job.split};
}

// The ring's state as one side sees it.
template <typename Tile>
struct HopperRing {
  std::uint32_t base, bars;
  int stage = 0;
  std::uint32_t phase = 0;
  __device__ std::uint32_t x() const { return base + stage * Tile::kStage; }
  __device__ std::uint32_t full() const { return bars + 16 * stage; }
  __device__ std::uint32_t empty() const { return bars + 16 * stage + 8; }
  __device__ void next() {
    if (++stage == Tile::kStages) stage = 0, phase ^= 1;
  }
};

// ---- copies ---------------------------------------------------------------------------------------------------------

// The scales of row j of W that a stage needs, raw. A lone 16-bit scale comes with its neighbour.
template <typename Tile>
__device__ __forceinline__ void copy_scales(const HopperJob& job, const MatShape& m, const void* from, int row, int k0,
                                            std::uint32_t to) {
  const int size = m.scale_dtype == DType::kF32 ? 4 : 2;
  const int group = k0 >> job.scale_shift, left = m.groups_a_row - group;
  const std::int64_t first = static_cast<std::int64_t>(row / m.group_rows) * m.groups_a_row + group;
  const char* at = static_cast<const char*>(from) + first * size;
  if (job.scales_a_stage == 1) {
    if (size == 4) {
      cp_async4(to, at, 4);
    } else {
      const std::int64_t n = static_cast<std::int64_t>((m.rows + m.group_rows - 1) / m.group_rows) * m.groups_a_row;
      cp_async4(to, at - first % 2 * 2, (first | 1) < n ? 4 : 2);
    }
    return;
  }
  for (int e = 0; e * 4 < job.scales_a_stage * size; ++e)
    cp_async4(to + e * 4, at + e * 4, max(0, min(4, (left * size) - e * 4)));
}

template <typename Tile>
__device__ __forceinline__ void hopper_produce(const HopperJob& job, HopperRing<Tile> ring) {
  constexpr int kUnits = Tile::kUnits, kStepW = 128 / kUnits, kRowsX = Tile::kTokens / 16;
  constexpr std::uint32_t kNone = 0xffffffffU;
  const int thread = threadIdx.x % 128;
  const int w_unit = thread % kUnits, w_first = thread / kUnits, x_unit = thread % 8, x_first = thread / 8;
  const int n_units = hopper_units(job), stride = gridDim.x / job.split;
  for (int u = blockIdx.x / job.split; u < n_units; u += stride) {
    const HopperUnit unit = hopper_unit(job, u);
    const MatShape& m = job.shape[unit.shape];
    const int row_units = m.cols * Tile::kBits / 128;  // 16-byte units of a row of W
    const int w_skip = job.w_first_row + job.w_batch_rows * unit.batch;
    const char* w = static_cast<const char*>(unit.at[hopper_w_matrix(job, w_first)].data);
    std::uint32_t w_offset[kUnits], x_offset[kRowsX];  // in 16-byte units
#pragma unroll
    for (int i = 0; i < kUnits; ++i) {
      const int row = hopper_w_row(job, unit, w_first + i * kStepW);
      w_offset[i] = row < m.rows ? static_cast<std::uint32_t>(row + w_skip) * row_units : kNone;
    }
    const char* x = static_cast<const char*>(job.x) + unit.batch * job.x_batch * 2;
#pragma unroll
    for (int i = 0; i < kRowsX; ++i) {
      const int c = x_first + 16 * i;
      x_offset[i] = kNone;
      if (c < unit.count) {
        int row = unit.begin + c;
        if (job.order != nullptr) {
          row = job.order[row];
          row = row < job.slots ? row / job.top_k : row - job.slots;
        }
        x_offset[i] = static_cast<std::uint32_t>(row) * job.x_units;
      }
    }
    int scale_row = -1;
    const MatPtr* scales = nullptr;
    if constexpr (Tile::kCodes) {
      const int row = hopper_w_row(job, unit, thread);
      if (row < m.rows) scale_row = row + w_skip;
      scales = &unit.at[hopper_w_matrix(job, thread)];
    }
    const HopperSteps steps = hopper_steps<Tile>(job, unit);
    for (int s = steps.begin; s < steps.end; ++s) {
      mbar_wait(ring.empty(), ring.phase ^ 1);
      const std::uint32_t x_stage = ring.x(), w_stage = x_stage + Tile::kBytesX;
      const int wk = s * kUnits + w_unit;
      const bool w_valid = wk < row_units;
#pragma unroll
      for (int i = 0; i < kUnits; ++i) {
        if (w_offset[i] == kNone) continue;
        cp_async16(w_stage + code_place<Tile::kRowBytes>(w_first + i * kStepW, w_unit),
                   w_valid ? w + (static_cast<std::uint64_t>(w_offset[i]) + wk) * 16 : w, w_valid);
      }
#pragma unroll
      for (int part = 0; part < Tile::kParts; ++part) {
        const int xk = (s * Tile::kParts + part) * 8 + x_unit;
        const bool x_valid = xk * 8 < m.cols;
        const std::uint32_t to = x_stage + part * (Tile::kTokens * 128);
#pragma unroll
        for (int i = 0; i < kRowsX; ++i) {
          if (x_offset[i] == kNone) break;
          cp_async16(to + swizzled(x_first + 16 * i, x_unit, 128),
                     x_valid ? x + (static_cast<std::uint64_t>(x_offset[i]) + xk) * 16 : x, x_valid);
        }
      }
      if constexpr (Tile::kCodes) {
        if (scale_row >= 0) {
          const std::uint32_t to = w_stage + Tile::kBytesW + thread * Tile::kScaleRow;
          copy_scales<Tile>(job, m, scales->scales, scale_row, s * Tile::kDepth, to);
          if (scales->mins != nullptr)
            copy_scales<Tile>(job, m, scales->mins, scale_row, s * Tile::kDepth, to + kHopperRows * Tile::kScaleRow);
        }
      }
      mbar_arrive_after_copies(ring.full());
      ring.next();
    }
  }
  cp_async_wait_all();
}

// ---- products -------------------------------------------------------------------------------------------------------

// One stage. A product runs while the next one's fragments are decoded; across stages only where a stage has several
// parts, since the compiler cannot follow fragments in turn through a loop. Then the other warpgroup fills the gap.
template <typename Tile, WeightFormat F, int kN>
__device__ __forceinline__ void hopper_stage(const HopperJob& job, HopperRing<Tile>& ring, float (&acc)[kN / 2],
                                             std::uint32_t (&a)[2][4][4], const FragmentSource<F>& source,
                                             std::uint32_t& last_empty) {
  constexpr int kPending = Tile::kCodes && Tile::kParts == 1 ? 0 : 1;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  mbar_wait(ring.full(), ring.phase);
  fence_async();
  const std::uint32_t x_stage = ring.x(), w_stage = x_stage + Tile::kBytesX;
#pragma unroll
  for (int part = 0; part < Tile::kParts; ++part) {
    const std::uint64_t b = wgmma_tile(x_stage + part * (Tile::kTokens * 128));
    if constexpr (Tile::kCodes) {
      auto& now = a[part % 2];
      source.template load<Tile::kRowBytes, Tile::kScaleRow>(job, w_stage, Tile::kBytesW, part, now);
      wgmma_inputs(now);
      wgmma_fence();
#pragma unroll
      for (int k = 0; k < 4; ++k) Wgmma<kN>::registers(acc, now[k], b + 2 * k, 1);
    } else {
      const std::uint64_t w = wgmma_tile(w_stage + warp / 4 * (64 * 128));
      wgmma_fence();
#pragma unroll
      for (int k = 0; k < 4; ++k) Wgmma<kN>::shared(acc, w + 2 * k, b + 2 * k, 1);
    }
    wgmma_commit();
    wgmma_wait<kPending>();  // the group before: its fragments are free, and at a stage's first part its stage
    if (part == 0 && last_empty != 0 && lane == 0) mbar_arrive(last_empty);
  }
  last_empty = ring.empty();
  ring.next();
}

// Multiplies a unit's stages; the ring moves on by as many.
template <typename Tile, WeightFormat F, int kN>
__device__ __forceinline__ void hopper_multiply(const HopperJob& job, const HopperUnit& unit, HopperRing<Tile>& ring,
                                                float (&acc)[kN / 2]) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;  // 0 to 7: 16 rows of W each
  const HopperSteps steps = hopper_steps<Tile>(job, unit);
  std::uint32_t last_empty = 0;
  std::uint32_t a[2][4][4];  // fragments of 64 columns; one is decoded while the other multiplies
  FragmentSource<F> source;
  if constexpr (Tile::kCodes) {
    const MatShape& m = job.shape[unit.shape];
    const int j = warp * 16 + lane / 4;
    source.has_min = unit.at[0].mins != nullptr;
    source.dtype = m.scale_dtype;
    const int skip = job.w_first_row + job.w_batch_rows * unit.batch;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = hopper_w_row(job, unit, j + 8 * r) + skip;
      source.odd[r] = job.scales_a_stage == 1 ? (row / m.group_rows * m.groups_a_row) & 1 : 0;
    }
  }
  for (int s = steps.begin; s < steps.end; ++s) hopper_stage<Tile, F, kN>(job, ring, acc, a, source, last_empty);
  wgmma_wait<0>();
  wgmma_results(acc);
  if (lane == 0) mbar_arrive(last_empty);
}

// ---- results --------------------------------------------------------------------------------------------------------

template <int kN>
__device__ __forceinline__ void hopper_store(const HopperJob& job, const HopperUnit& unit, float (&acc)[kN / 2]) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
  const int row = unit.row + warp * 16 + g, limit = job.shape[unit.shape].rows;
  const std::int64_t start = unit.batch * job.out_batch;
#pragma unroll
  for (int j = 0; j < kN / 8; ++j) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int c = 8 * j + 2 * t + e;
      if (c >= unit.count) continue;
      const std::int64_t to = start + (unit.begin + c) * job.out_stride;
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int o = row + 8 * r;
        if (o >= limit) continue;
        const float v = acc[4 * j + 2 * r + e];
        if (job.kind == TiledOut::kF32) {
          static_cast<float*>(job.out)[to + o] = o < job.valid ? v : -INFINITY;
        } else {
          static_cast<__nv_bfloat16*>(job.out)[to + o] = __float2bfloat16_rn(v);
        }
      }
    }
  }
}

// silu(gate) ⊙ up as BF16, turned in shared memory so that rows are written whole.
template <int kN>
__device__ __forceinline__ void hopper_store_gated(const HopperJob& job, const HopperUnit& unit, float (&acc)[kN / 2],
                                                   std::uint32_t staging) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  auto place = [&](int c, int u) { return staging + swizzled(c, u, 128); };
  std::uint32_t h[kN / 8];
#pragma unroll
  for (int j = 0; j < kN / 8; ++j)
    h[j] = pack_bf16(silu(acc[4 * j]) * acc[4 * j + 2], silu(acc[4 * j + 1]) * acc[4 * j + 3]);
  consumer_sync();  // the last unit's rows have been read
  if constexpr (kN >= 32) {
#pragma unroll
    for (int j = 0; j < kN / 8; j += 4)
      stmatrix4_trans(place(8 * j + lane, warp), {h[j], h[j + 1], h[j + 2], h[j + 3]});
  } else {
#pragma unroll
    for (int j = 0; j < kN / 8; ++j) stmatrix_trans(place(8 * j + lane % 8, warp), h[j]);
  }
  consumer_sync();
  const int limit = job.shape[unit.shape].rows;
  auto* out = static_cast<std::uint16_t*>(job.out);
  for (int i = threadIdx.x; i < unit.count * 8; i += 256) {
    const int c = i / 8, o = unit.row + i % 8 * 8;
    if (o >= limit) continue;
    // An order of columns may put some beyond `limit` among these eight: rows of h are padded to whole orders.
    *reinterpret_cast<uint4*>(out + (unit.begin + c) * job.out_stride + o) = lds128(place(c, i % 8));
  }
}

// The blocks of a cluster hold parts of one sum: each adds up some rows, in the order of the ranks.
template <int kN>
__device__ __forceinline__ void hopper_store_split(const HopperJob& job, const HopperUnit& unit, float (&acc)[kN / 2],
                                                   std::uint32_t staging) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
  auto place = [&](int c, int row) { return staging + c * 512 + (row ^ (c / 2 % 4 * 8)) * 4; };
#pragma unroll
  for (int j = 0; j < kN / 8; ++j) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      sts32(place(8 * j + 2 * t + e, warp * 16 + g), acc[4 * j + e]);
      sts32(place(8 * j + 2 * t + e, warp * 16 + g + 8), acc[4 * j + 2 + e]);
    }
  }
  cluster_sync();
  const int rank = static_cast<int>(blockIdx.x) % job.split, limit = job.shape[unit.shape].rows;
  const int fours = job.gated() ? 16 : 32;  // fours of outputs a row
  auto total = [&](int c, int row) {
    float4 sum{};
    for (int q = 0; q < job.split; ++q) {
      const float4 v = load_cluster(place(c, row), q);
      sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
    }
    return sum;
  };
  for (int i = threadIdx.x; i < (unit.count - rank + job.split - 1) / job.split * fours; i += 256) {
    const int c = i / fours * job.split + rank, f = i % fours;
    const std::int64_t to = unit.batch * job.out_batch + (unit.begin + c) * job.out_stride;
    if (job.gated()) {
      const int o = unit.row + f * 4, in = f / 2 * 16 + f % 2 * 4;
      const float4 x = total(c, in), y = total(c, in + 8);
      if (o >= limit) continue;
      *reinterpret_cast<uint2*>(static_cast<std::uint16_t*>(job.out) + to + o) = {
          pack_bf16(silu(x.x) * y.x, silu(x.y) * y.y), pack_bf16(silu(x.z) * y.z, silu(x.w) * y.w)};
      continue;
    }
    const float4 v = total(c, f * 4);
    const float values[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const int o = unit.row + f * 4 + k;
      if (o >= limit) break;
      if (job.kind == TiledOut::kF32) {
        static_cast<float*>(job.out)[to + o] = o < job.valid ? values[k] : -INFINITY;
      } else {
        static_cast<__nv_bfloat16*>(job.out)[to + o] = __float2bfloat16_rn(values[k]);
      }
    }
  }
  __syncwarp();
  cluster_sync();  // nobody leaves while others read
}

template <typename Tile, WeightFormat F, int kN>
__device__ __forceinline__ void hopper_unit_of(const HopperJob& job, const HopperUnit& unit, HopperRing<Tile>& ring,
                                               std::uint32_t staging) {
  // Zeros rather than a first product that overwrites: otherwise the compiler holds the accumulators of all sizes at
  // once.
  float acc[kN / 2] = {};
  hopper_multiply<Tile, F, kN>(job, unit, ring, acc);
  if constexpr (kN <= 64) {
    if (job.split > 1) return hopper_store_split<kN>(job, unit, acc, staging);
  }
  if (job.gated()) {
    hopper_store_gated<kN>(job, unit, acc, staging);
  } else {
    hopper_store<kN>(job, unit, acc);
  }
}

template <WeightFormat F, bool kLarge>
__global__ void __launch_bounds__(kHopperThreads, 1)
    hopper_kernel([[maybe_unused]] const __grid_constant__ HopperJob job) {
#if GLINT_HOPPER
  using Tile = HopperTile<F, kLarge>;
  extern __shared__ unsigned char smem[];
  HopperRing<Tile> ring;
  ring.base = (shared_address(smem) + 1023U) & ~1023U;
  const std::uint32_t staging = ring.base + Tile::kStages * Tile::kStage;
  ring.bars = staging + Tile::kStaging;
  if (threadIdx.x == 0) {
    for (int s = 0; s < Tile::kStages; ++s) {
      mbar_init(ring.bars + 16 * s, 128);    // full: every copying thread
      mbar_init(ring.bars + 16 * s + 8, 8);  // empty: every multiplying warp
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();
  pdl_launch();
  pdl_wait();
  if (threadIdx.x >= 256) {
    // 88 and 208 for 128 and 256 threads: the 168 for 384 that the kernel starts with.
    if constexpr (kLarge) shrink_registers<88>();
    hopper_produce<Tile>(job, ring);
    if (job.split > 1) {
      __syncwarp();
      cluster_sync();
      cluster_sync();
    }
  } else {
    if constexpr (kLarge) grow_registers<208>();
    const int n_units = hopper_units(job), stride = gridDim.x / job.split;
    for (int u = blockIdx.x / job.split; u < n_units; u += stride) {
      const HopperUnit unit = hopper_unit(job, u);
      if constexpr (kLarge) {
        switch ((unit.count + 31) / 32) {
          case 0:
          case 1:
          case 2:
            hopper_unit_of<Tile, F, 64>(job, unit, ring, staging);
            break;
          case 3:
            hopper_unit_of<Tile, F, 96>(job, unit, ring, staging);
            break;
          case 4:
            hopper_unit_of<Tile, F, 128>(job, unit, ring, staging);
            break;
          case 5:
            hopper_unit_of<Tile, F, 160>(job, unit, ring, staging);
            break;
          case 6:
            hopper_unit_of<Tile, F, 192>(job, unit, ring, staging);
            break;
          default:
            if constexpr (Tile::kTokens == 256) {
              if (unit.count <= 224) {
                hopper_unit_of<Tile, F, 224>(job, unit, ring, staging);
              } else {
                hopper_unit_of<Tile, F, 256>(job, unit, ring, staging);
              }
            }
        }
      } else {
        if (unit.count <= 8) {
          hopper_unit_of<Tile, F, 8>(job, unit, ring, staging);
        } else if (unit.count <= 16) {
          hopper_unit_of<Tile, F, 16>(job, unit, ring, staging);
        } else if (unit.count <= 32) {
          hopper_unit_of<Tile, F, 32>(job, unit, ring, staging);
        } else {
          hopper_unit_of<Tile, F, 64>(job, unit, ring, staging);
        }
      }
    }
  }
#endif
}

template <WeightFormat F, bool kLarge>
void launch_hopper(const Launch& l, const HopperJob& job, unsigned blocks) {
  launch_cluster(l, hopper_kernel<F, kLarge>, blocks, job.split, kHopperThreads, HopperTile<F, kLarge>::kSmem, job);
}

}  // namespace glint::cuda
