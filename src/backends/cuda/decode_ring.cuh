#pragma once
// Weights on their way through shared memory: one warp copies, tile after tile, into a ring of slots; eight warps take
// the tiles out of it in the same order and multiply. The copies wait for free slots only, never for activations, so that
// memory is read while the others wait for each other.
//
// A tile is up to 16 rows of a matrix (or eight of each of two). It travels as one slot of scales, where the format has
// scales, and slots of 512 bytes of each row. Each of the eight warps takes 64 of these 512 bytes: the sum of an output
// has one order, whatever the number of rows of x.

#include "backends/cuda/bulk.cuh"
#include "backends/cuda/decode_step.hpp"
#include "backends/cuda/kv_codec.cuh"

namespace glint::cuda {

constexpr int kStepWarps = 8, kStepWorkers = 32 * kStepWarps, kStepThreads = kStepWorkers + 32;
constexpr int kSliceBytes = 512;            // of each row in a slot
constexpr int kSlotRow = kSliceBytes + 16;  // rows begin in different banks
constexpr int kSlotBytes = 9216;            // 16 such rows, 64 rows of 128 + 16 bytes, or scales
constexpr int kTileRows = 16;
constexpr int kColumns = 64;  // columns of W_UK a tile of the latent query has

// Scale pieces of a tile share a slot: of both matrices, and their mins.
__host__ __device__ inline int scale_piece(bool pair, bool mins) { return kSlotBytes / ((pair ? 2 : 1) * (mins ? 2 : 1)); }
// Bytes of a row of x in shared memory: rows begin half a bank apart.
__host__ __device__ constexpr int x_stride(int cols) { return (cols * 2 + 127) / 128 * 128 + 64; }

#if __CUDA_ARCH__ >= 900

// Rows of one matrix, or the same rows of two.
struct StepTile {
  StepRole role;
  MatPtr at[2];
  int row, n;  // a pair's rows: n of each matrix, at most eight
  bool pair;
  int begin, end;  // columns
};

struct Ring {
  std::uint32_t slots, full, empty;  // shared addresses
  int n, at = 0;
  std::uint32_t phase = 0;

  __device__ std::uint32_t slot() const { return slots + at * kSlotBytes; }
  __device__ void advance() {
    if (++at == n) at = 0, phase ^= 1U;
  }
  __device__ void advance(int by) {
    at += by;
    while (at >= n) at -= n, phase ^= 1U;
  }
};

__device__ __forceinline__ int bytes_of(const StepMat& m, int cols) {
  return m.format == WeightFormat::kBF16 ? cols * 2
         : m.format == WeightFormat::kI4 || m.format == WeightFormat::kNF4 ? cols / 2 : cols;
}
__device__ __forceinline__ bool is_scaled(const StepMat& m) { return m.format != WeightFormat::kBF16; }
__device__ __forceinline__ std::uint32_t low_bits(const void* p) {
  return static_cast<std::uint32_t>(reinterpret_cast<std::uintptr_t>(p)) & 15U;
}

// ---- the copying warp -----------------------------------------------------------------------------------------------

// Waits until the slot is free and says what will come. All lanes; the copies may be issued by any lane after it.
__device__ __forceinline__ void open_slot(const Ring& r, int bytes, int lane) {
  if (lane == 0) {
    barrier_wait(r.empty + 8 * r.at, r.phase ^ 1U);
    barrier_expect(r.full + 8 * r.at, bytes);
  }
  __syncwarp();
}

__device__ __forceinline__ void copy_scales(Ring& r, const StepMat& m, const MatPtr& a, const MatPtr& b, int row, int n,
                                            bool pair, int lane) {
  const int pieces = (pair ? 2 : 1) * (m.mins ? 2 : 1);
  const int first = row >> m.rows_shift, last = (row + n - 1) >> m.rows_shift;
  const void* base = nullptr;
  if (lane < pieces) {
    const MatPtr& at = pair && (lane & 1) != 0 ? b : a;
    base = (pair ? lane >> 1 : lane) != 0 ? at.mins : at.scales;
  }
  const char* from = static_cast<const char*>(base) + static_cast<std::int64_t>(first) * m.scale_row_bytes;
  const int off = static_cast<int>(low_bits(from));
  const int bytes = lane < pieces ? ((last - first + 1) * m.scale_row_bytes + off + 15) / 16 * 16 : 0;
  int total = bytes;
#pragma unroll
  for (int d = 2; d > 0; d >>= 1) total += __shfl_xor_sync(0xffffffffU, total, d);
  open_slot(r, total, lane);
  if (lane < pieces) bulk_copy(r.slot() + lane * scale_piece(pair, m.mins), from - off, bytes, r.full + 8 * r.at);
  r.advance();
}

__device__ __noinline__ int copy_tile(Ring r, const StepMat& m, MatPtr a, MatPtr b, int row, int n, bool pair, int begin,
                                      int end, int lane) {
  int used = 0;
  if (is_scaled(m)) {
    copy_scales(r, m, a, b, row, n, pair, lane);
    ++used;
  }
  // Lane j copies the tile's row j; of pairs, the second matrix's rows stand in rows 8 to 15.
  const bool second = pair && lane >= 8;
  const int in = second ? lane - 8 : lane, rows = pair ? 2 * n : n;
  const bool mine = in < n && (second || !pair || lane < 8) && lane < 16;
  const char* from = static_cast<const char*>(second ? b.data : a.data) + static_cast<std::int64_t>(row + in) * m.row_bytes;
  const int last = bytes_of(m, end);
  for (int at = bytes_of(m, begin); at < last; at += kSliceBytes, ++used) {
    const int bytes = min(kSliceBytes, last - at);
    open_slot(r, bytes * rows, lane);
    if (mine) bulk_copy(r.slot() + lane * kSlotRow, from + at, bytes, r.full + 8 * r.at);
    r.advance();
  }
  return used;
}

// 192 rows of W_UK from `row` on, 64 columns from `column` on.
__device__ __forceinline__ void copy_columns(Ring& r, const void* kv_b, int row, int column, int lane) {
  const auto* from = static_cast<const std::uint16_t*>(kv_b) + static_cast<std::int64_t>(row) * kLatentWidth + column;
#pragma unroll 1
  for (int part = 0; part < kNopeWidth; part += 64) {
    open_slot(r, 64 * kColumns * 2, lane);
#pragma unroll
    for (int i = lane; i < 64; i += 32)
      bulk_copy(r.slot() + i * (kColumns * 2 + 16), from + static_cast<std::int64_t>(part + i) * kLatentWidth, kColumns * 2,
                r.full + 8 * r.at);
    r.advance();
  }
}

// ---- rows of x in shared memory -------------------------------------------------------------------------------------

// x is held as two BF16 numbers, x ≈ high + low, in a column of the product each: products with BF16, INT8, FP8 and INT4
// weights lose nothing to the rounding of x. A block of 32 columns takes 64 bytes, of which lane t of a quad reads the
// 16 from 16 t on, in the order in which the format's codes come apart.
enum class StepOrder : std::uint8_t { kWords, kBytes, kNibbles, kCodebook };
__device__ __forceinline__ StepOrder order_of(WeightFormat f) {
  if (f == WeightFormat::kBF16) return StepOrder::kWords;
  if (f == WeightFormat::kNF4) return StepOrder::kCodebook;
  return f == WeightFormat::kI4 ? StepOrder::kNibbles : StepOrder::kBytes;
}

__device__ __forceinline__ void sts64(std::uint32_t address, std::uint32_t a, std::uint32_t b) {
  asm volatile("st.shared.v2.u32 [%0], {%1, %2};" ::"r"(address), "r"(a), "r"(b) : "memory");
}

// Eight columns, 8 · unit and on, of one row at `row`; p: the pairs (0, 1), (2, 3) … as BF16.
__device__ __forceinline__ void put_unit(StepOrder order, std::uint32_t row, int unit, const std::uint32_t (&p)[4]) {
  const std::uint32_t block = row + unit / 4 * 64;
  const int u = unit % 4;
  if (order == StepOrder::kNibbles) {  // pairs (0, 4), (1, 5) …
    sts128(block + u * 16, {__byte_perm(p[0], p[2], 0x5410), __byte_perm(p[0], p[2], 0x7632),
                            __byte_perm(p[1], p[3], 0x5410), __byte_perm(p[1], p[3], 0x7632)});
  } else if (order == StepOrder::kWords) {  // two steps of 16: lane t has 2 t, 2 t + 8 of the first, then of the second
    const std::uint32_t to = block + u / 2 * 8 + u % 2 * 4;
#pragma unroll
    for (int q = 0; q < 4; ++q) sts32(to + 16 * q, p[q]);
  } else if (order == StepOrder::kBytes) {  // lane t has columns 4 t … 4 t + 3 of each step
    const std::uint32_t to = block + u % 2 * 32 + u / 2 * 8;
    sts64(to, p[0], p[1]);
    sts64(to + 16, p[2], p[3]);
  } else {
    sts128(block + u * 16, {p[0], p[1], p[2], p[3]});
  }
}
// Eight values as two rows: rounded, and what the rounding left.
__device__ __forceinline__ void put_split(StepOrder order, std::uint32_t high_row, std::uint32_t low_row, int unit,
                                          const float (&v)[8]) {
  std::uint32_t high[4], low[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    high[i] = pack_bf16(v[2 * i], v[2 * i + 1]);
    low[i] = pack_bf16(v[2 * i] - bf16_low(high[i]), v[2 * i + 1] - bf16_high(high[i]));
  }
  put_unit(order, high_row, unit, high);
  put_unit(order, low_row, unit, low);
}

// ---- products -------------------------------------------------------------------------------------------------------

__device__ __forceinline__ std::uint32_t lds32(std::uint32_t address) {
  std::uint32_t v;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(address));
  return v;
}
__device__ __forceinline__ std::uint32_t lds16(std::uint32_t address) {
  std::uint16_t v;
  asm volatile("ld.shared.u16 %0, [%1];" : "=h"(v) : "r"(address));
  return v;
}

// 32 columns of the warp's 16 rows as two A operands. `at`: this lane's place in them, see tile_sum.
template <WeightFormat F>
__device__ __forceinline__ void block_of(std::uint32_t at, std::uint32_t nf4, std::uint32_t offset,
                                         std::uint32_t (&a)[2][4]) {
  if constexpr (F == WeightFormat::kBF16) {
    ldmatrix4(a[0], at);
    ldmatrix4(a[1], at + 32);
  } else if constexpr (F == WeightFormat::kI8 || F == WeightFormat::kF8E4M3) {
#pragma unroll
    for (int k = 0; k < 2; ++k) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const std::uint32_t w = lds32(at + 8 * r * kSlotRow + k * 16);
        const std::uint32_t x = __byte_perm(w, 0, 0x4140), y = __byte_perm(w, 0, 0x4342);
        a[k][r] = F == WeightFormat::kI8 ? int8_pair(x) : e4m3_pair(x);
        a[k][r + 2] = F == WeightFormat::kI8 ? int8_pair(y) : e4m3_pair(y);
      }
    }
  } else {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const std::uint32_t w = lds32(at + 8 * r * kSlotRow);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if constexpr (F == WeightFormat::kI4) {
          // 0x4300 is 128 in BF16, whose last mantissa bit is worth 1: the code lands in it as 128 + u.
          a[i / 2][r + i % 2 * 2] = sub2(((w >> (4 * i)) & 0x000f000fU) | 0x43004300U, offset);
        } else {
          a[i / 2][r + i % 2 * 2] = lds32(nf4 + ((w >> (8 * i)) & 255U) * 4);
        }
      }
    }
  }
}

template <WeightFormat F>
struct StepFormat {
  static constexpr int kBits = weight_code_bits(F);
};

// What tile_sum() is to do, in registers.
struct TileJob {
  std::uint32_t x;      // this lane's address in its row of x
  std::uint32_t nf4;    // of the table of pairs
  std::uint32_t bases;  // low bits of the addresses of scales (first matrix, second), then mins
  int row, n, begin, end;
  bool pair;
};

// One tile's columns [begin, end): this warp's part of the sums, rows g and g + 8, columns of x 2 t and 2 t + 1. Takes the
// tile's slots from the ring, which the caller moves on by as many. kApplies: scales of a row in the warp's 64 bytes.
template <WeightFormat F, int kApplies, bool kMins>
__device__ __noinline__ float4 tile_sum(Ring ring, const StepMat& m, TileJob job) {
  constexpr int kBlock = StepFormat<F>::kBits * 4;  // bytes of 32 columns
  constexpr int kBlocks = 64 / kBlock, kWarpColumns = 32 * kBlocks;
  constexpr bool kScaled = StepFormat<F>::kBits <= 8;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
  constexpr std::uint32_t kOffset = kMins ? 0x43004300U : 0x43084308U;  // 128 or 136

  std::uint32_t scale_row[2] = {}, min_row[2] = {}, scale_slot = 0;
  const int size = m.scale_bytes, shift = m.group_shift;
  const DType dtype = m.scale_dtype;
  if constexpr (kScaled) {
    const int piece = scale_piece(job.pair, kMins), first = job.row >> m.rows_shift;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int which = job.pair ? r : 0;
      const int row = min(job.row + g + (job.pair ? 0 : 8 * r), job.row + job.n - 1);
      const std::uint32_t begin = static_cast<std::uint32_t>(first * m.scale_row_bytes);
      const std::uint32_t in = static_cast<std::uint32_t>(((row >> m.rows_shift) - first) * m.scale_row_bytes);
      scale_row[r] = ring.slot() + which * piece + in + (((job.bases >> (4 * which)) + begin) & 15U);
      if (kMins)
        min_row[r] = ring.slot() + (job.pair ? 2 + which : 1) * piece + in + (((job.bases >> (8 + 4 * which)) + begin) & 15U);
    }
    barrier_wait(ring.full + 8 * ring.at, ring.phase);
    scale_slot = ring.empty + 8 * ring.at;
    ring.advance();
  }
  float acc[4] = {};
  int column = job.begin + warp * kWarpColumns;
  std::uint32_t x = job.x + warp * (kWarpColumns * 2);
  // Where this lane's codes lie in the warp's 64 bytes of a slot.
  const std::uint32_t own = warp * 64 + (F == WeightFormat::kBF16 ? (lane % 16) * kSlotRow + lane / 16 * 16 : g * kSlotRow + t * 4);
  int left = (job.end - job.begin - warp * kWarpColumns) / 32;  // blocks from this warp's first on
  const int slices = ((job.end - job.begin) * StepFormat<F>::kBits / 8 + kSliceBytes - 1) / kSliceBytes;
#pragma unroll 1
  for (int slice = 0; slice < slices; ++slice) {
    barrier_wait(ring.full + 8 * ring.at, ring.phase);
    const std::uint32_t from = ring.slot() + own;
    if (left > 0) {
      float scale[kApplies][2], low[kApplies][2];
      if constexpr (kScaled) {
#pragma unroll
        for (int i = 0; i < kApplies; ++i) {
          const int at = ((column + i * (kWarpColumns / kApplies)) >> shift) * size;
          const bool there = i * (kBlocks / kApplies) < left;  // what lies behind the last group is anything
#pragma unroll
          for (int r = 0; r < 2; ++r) {
            const float v = scale_value(size == 4 ? lds32(scale_row[r] + at) : lds16(scale_row[r] + at), dtype);
            scale[i][r] = there ? v : 0.0F;
            if (kMins) {
              const float w = scale_value(size == 4 ? lds32(min_row[r] + at) : lds16(min_row[r] + at), dtype);
              low[i][r] = there ? w : 0.0F;
            }
          }
        }
      }
      float part[4] = {}, ones[4] = {};
#pragma unroll
      for (int i = 0; i < kBlocks; ++i) {
        if (i < left) {
          std::uint32_t a[2][4];
          block_of<F>(from + i * kBlock, job.nf4, kOffset, a);
          const uint4 v = lds128(x + i * 64);
          float(&sum)[4] = kScaled ? part : acc;
          mma(sum, a[0][0], a[0][1], a[0][2], a[0][3], v.x, v.y);
          mma(sum, a[1][0], a[1][1], a[1][2], a[1][3], v.z, v.w);
          if constexpr (kMins) {
            constexpr std::uint32_t kOnes = 0x3f803f80U;
            mma(ones, kOnes, kOnes, kOnes, kOnes, v.x, v.y);
            mma(ones, kOnes, kOnes, kOnes, kOnes, v.z, v.w);
          }
        }
        if constexpr (kScaled) {
          if ((i + 1) % (kBlocks / kApplies) == 0) {
            constexpr int kPer = kBlocks / kApplies;
            const int group = i / kPer;
#pragma unroll
            for (int k = 0; k < 4; ++k) {
              acc[k] = fmaf(part[k], scale[group][k / 2], acc[k]);
              if (kMins) acc[k] = fmaf(ones[k], low[group][k / 2], acc[k]);
              part[k] = ones[k] = 0;
            }
          }
        }
      }
    }
    __syncwarp();
    if (lane == 0) barrier_arrive(ring.empty + 8 * ring.at);
    ring.advance();
    constexpr int kSliceColumns = kSliceBytes / kBlock * 32;
    column += kSliceColumns;
    x += kSliceColumns * 2;
    left -= kSliceColumns / 32;
  }
  if constexpr (kScaled) {
    if (lane == 0) barrier_arrive(scale_slot);
  }
  return {acc[0], acc[1], acc[2], acc[3]};
}

template <WeightFormat F, int kMost>
__device__ __forceinline__ float4 tile_sum_of(Ring ring, const StepMat& m, const TileJob& job) {
  constexpr int kWarpShift = F == WeightFormat::kI4 || F == WeightFormat::kNF4 ? 7 : 6;  // of its columns
  const int shift = min(static_cast<int>(m.group_shift), kWarpShift);
  if constexpr (F == WeightFormat::kI4 || F == WeightFormat::kI8) {
    if (m.mins) {
      if constexpr (kMost == 4) {
        if (shift == 5) return tile_sum<F, 4, true>(ring, m, job);
      }
      if (shift == kWarpShift - 1) return tile_sum<F, 2, true>(ring, m, job);
      return tile_sum<F, 1, true>(ring, m, job);
    }
  }
  if constexpr (kMost == 4) {
    if (shift == 5) return tile_sum<F, 4, false>(ring, m, job);
  }
  if (shift == kWarpShift - 1) return tile_sum<F, 2, false>(ring, m, job);
  return tile_sum<F, 1, false>(ring, m, job);
}

__device__ __forceinline__ float4 tile_sum_any(Ring& ring, const StepMat& m, const TileJob& job) {
  float4 r;
  switch (m.format) {
    case WeightFormat::kBF16:
      r = tile_sum<WeightFormat::kBF16, 1, false>(ring, m, job);
      break;
    case WeightFormat::kF8E4M3:
      r = tile_sum_of<WeightFormat::kF8E4M3, 2>(ring, m, job);
      break;
    case WeightFormat::kI8:
      r = tile_sum_of<WeightFormat::kI8, 2>(ring, m, job);
      break;
    case WeightFormat::kI4:
      r = tile_sum_of<WeightFormat::kI4, 4>(ring, m, job);
      break;
    default:
      r = tile_sum_of<WeightFormat::kNF4, 4>(ring, m, job);
      break;
  }
  ring.advance((is_scaled(m) ? 1 : 0) + (bytes_of(m, job.end - job.begin) + kSliceBytes - 1) / kSliceBytes);
  return r;
}

#endif
}  // namespace glint::cuda
