#pragma once
// Weights on their way through shared memory: four warps copy, tile after tile, into a ring of slots; eight warps take
// the tiles out of it in the same order and multiply. The copies wait for free slots only, never for activations, so
// that memory is read while the others wait for each other.
//
// A tile is up to 16, 32 or 64 rows of a matrix (or half as many of each of two), which travel as one slot of scales,
// where the format has scales, and slots of 512, 256 or 128 bytes of each row. Each of the eight warps takes an eighth
// of these bytes, of all rows: the sum of an output has one order, whatever the number of rows of x.

#include "backends/cuda/bulk.cuh"
#include "backends/cuda/decode_step.hpp"
#include "backends/cuda/kv_codec.cuh"

namespace glint::cuda {

constexpr int kStepWarps = 8, kStepWorkers = 32 * kStepWarps;
constexpr int kCopyWarps = 4, kCopyThreads = 32 * kCopyWarps, kStepThreads = kStepWorkers + kCopyThreads;
constexpr int kSlotBytes = 9216;  // 16 rows of 512 + 16 bytes, 32 of 256 + 16, 64 of 128 + 16, or scales
constexpr int kColumns = 64;      // columns of W_UK a tile of the latent query has

// Scale pieces of a tile share a slot: of both matrices, and their mins.
__host__ __device__ inline int scale_piece(bool pair, bool mins) {
  return kSlotBytes / ((pair ? 2 : 1) * (mins ? 2 : 1));
}
// Bytes of a row of x in shared memory: rows begin half a bank apart.
__host__ __device__ constexpr int x_stride(int cols) { return (cols * 2 + 127) / 128 * 128 + 64; }

// Sums of a tile: a part a warp, 64 rows, two columns a token; two buffers in turn where there is room.
constexpr int kSumRows = 64;
__host__ __device__ constexpr int sum_buffers(int rows) { return rows <= 2 ? 2 : 1; }
__host__ __device__ constexpr int sum_buffer_bytes(int rows) { return kStepWarps * kSumRows * 2 * rows * 4; }

#if __CUDA_ARCH__ >= 900

// Rows of one matrix, or the same rows of two.
struct StepTile {
  StepRole role;
  MatPtr at[2];
  int row, n;  // a pair's rows: n of each matrix
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
  return m.format == WeightFormat::kBF16                                   ? cols * 2
         : m.format == WeightFormat::kI4 || m.format == WeightFormat::kNF4 ? cols / 2
                                                                           : cols;
}
// Sixteens of rows that a tile's slots have room for, as a shift; rows begin in different banks.
__device__ __forceinline__ int shape_of(int rows) { return rows <= 16 ? 0 : rows <= 32 ? 1 : 2; }
__device__ __forceinline__ int slice_of(int shape) { return 512 >> shape; }
__device__ __forceinline__ bool is_scaled(const StepMat& m) { return m.format != WeightFormat::kBF16; }
__device__ __forceinline__ std::uint32_t low_bits(const void* p) {
  return static_cast<std::uint32_t>(reinterpret_cast<std::uintptr_t>(p)) & 15U;
}

// ---- the copying warps ----------------------------------------------------------------------------------------------

// Sixteen bytes at a time: the bulk copy engine takes some 75 cycles for each piece of a row, however short, and rows
// must lie apart in shared memory. i: the thread's number among the copying ones.

__device__ __forceinline__ void wait_for_slot(const Ring& r) { barrier_wait(r.empty + 8 * r.at, r.phase ^ 1U); }
// The slot is full once every copying thread's copies so far have come.
__device__ __forceinline__ void close_slot(Ring& r) {
  barrier_arrive_copied(r.full + 8 * r.at);
  r.advance();
}
__device__ __forceinline__ void copy16(std::uint32_t to, const char* from) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}

__device__ __forceinline__ void copy_scales(Ring& r, const StepMat& m, const MatPtr& a, const MatPtr& b, int row, int n,
                                            bool pair, int i) {
  const int pieces = (pair ? 2 : 1) * (m.mins ? 2 : 1), piece_bytes = scale_piece(pair, m.mins);
  const int first = row >> m.rows_shift, last = (row + n - 1) >> m.rows_shift;
  wait_for_slot(r);
  for (int k = 0; k < pieces; ++k) {
    const MatPtr& at = pair && (k & 1) != 0 ? b : a;
    const char* from = static_cast<const char*>((pair ? k >> 1 : k) != 0 ? at.mins : at.scales) +
                       static_cast<std::int64_t>(first) * m.scale_row_bytes;
    const int off = static_cast<int>(low_bits(from)), bytes = (last - first + 1) * m.scale_row_bytes + off;
    for (int j = 16 * i; j < bytes; j += 16 * kCopyThreads) copy16(r.slot() + k * piece_bytes + j, from - off + j);
  }
  close_slot(r);
}

// Returns how many slots the tile has.
__device__ __noinline__ int copy_tile(Ring r, const StepMat& m, MatPtr a, MatPtr b, int row, int n, bool pair,
                                      int begin, int end, int i) {
  int used = 0;
  if (is_scaled(m)) {
    copy_scales(r, m, a, b, row, n, pair, i);
    ++used;
  }
  const int shape = shape_of(pair ? (n + 7) / 8 * 16 : n), slice = slice_of(shape);
  // A thread has one place of sixteen bytes in four rows. Of pairs, eight rows of each matrix stand in turn.
  const int unit = i & ((32 >> shape) - 1), place0 = i >> (5 - shape), step = kCopyWarps << shape;
  const int last = bytes_of(m, end);
  int at = bytes_of(m, begin) + 16 * unit;
  const char* from[4];
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    const int place = place0 + k * step, in = pair ? place / 16 * 8 + place % 8 : place;
    const void* base = pair && place / 8 % 2 != 0 ? b.data : a.data;
    from[k] = in < n ? static_cast<const char*>(base) + static_cast<std::int64_t>(row + in) * m.row_bytes : nullptr;
  }
  const std::uint32_t to = static_cast<std::uint32_t>(place0 * (slice + 16) + 16 * unit);
  const std::uint32_t apart = static_cast<std::uint32_t>(step * (slice + 16));
#pragma unroll 1
  for (int done = bytes_of(m, begin); done < last; done += slice, at += slice, ++used) {
    wait_for_slot(r);
    if (at < last) {
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        if (from[k] != nullptr) copy16(r.slot() + to + k * apart, from[k] + at);
      }
    }
    close_slot(r);
  }
  return used;
}

// 192 rows of W_UK from `row` on, 64 columns from `column` on.
__device__ __forceinline__ void copy_columns(Ring& r, const void* kv_b, int row, int column, int i) {
  const auto* from = reinterpret_cast<const char*>(static_cast<const std::uint16_t*>(kv_b) +
                                                   static_cast<std::int64_t>(row) * kLatentWidth + column);
#pragma unroll 1
  for (int part = 0; part < kNopeWidth; part += 64) {
    wait_for_slot(r);
#pragma unroll
    for (int j = i; j < 64 * 8; j += kCopyThreads)
      copy16(r.slot() + j / 8 * (kColumns * 2 + 16) + j % 8 * 16,
             from + (part + j / 8) * (kLatentWidth * 2) + j % 8 * 16);
    close_slot(r);
  }
}

// ---- rows of x in shared memory -------------------------------------------------------------------------------------

// x is held as two BF16 numbers, x ≈ high + low, in a column of the product each: products with BF16, INT8, FP8 and
// INT4 weights lose nothing to the rounding of x. A block of 32 columns takes 64 bytes, of which lane t of a quad reads
// the 16 from 16 t on, in the order in which the format's codes come apart.
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

template <WeightFormat F>
struct StepFormat {
  static constexpr int kBits = weight_code_bits(F);
  static constexpr int kBlock = kBits * 4;  // bytes of 32 columns
};

// 32 columns of 16 rows as two A operands. `at`: this lane's place in them, see tile_sum.
template <WeightFormat F, int kRowBytes>
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
        const std::uint32_t w = lds32(at + 8 * r * kRowBytes + k * 16);
        const std::uint32_t x = __byte_perm(w, 0, 0x4140), y = __byte_perm(w, 0, 0x4342);
        a[k][r] = F == WeightFormat::kI8 ? int8_pair(x) : e4m3_pair(x);
        a[k][r + 2] = F == WeightFormat::kI8 ? int8_pair(y) : e4m3_pair(y);
      }
    }
  } else {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const std::uint32_t w = lds32(at + 8 * r * kRowBytes);
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

// What tile_sum() is to do, in registers.
struct TileJob {
  std::uint32_t x;      // this lane's address in its row of x, at column `begin`
  std::uint32_t nf4;    // of the table of pairs
  std::uint32_t bases;  // low bits of the addresses of scales (first matrix, second), then mins
  std::uint32_t sums;   // of this warp's sums: [rows][row_floats]
  int row_floats;       // 2 · tokens: the columns of x that are real
  int row, n, columns;
  int first_group;  // of scales, at the tile's first column
  bool pair;
  bool add;         // to the sums that are there
  float weight[2];  // of this lane's columns; a negative one: that column gets nothing
};

// The running sums of a tile of kM sixteens of rows: rows g and g + 8 of each, columns 2 t and 2 t + 1 of x.
template <int kM>
struct TileSums {
  float v[kM][4];
};

// Adds one tile. Takes its slots from the ring, which the caller moves on by as many. kApplies: scales that a row has
// in the warp's part of a slot.
template <WeightFormat F, int kM, int kApplies, bool kMins>
__device__ __forceinline__ void tile_sum(Ring& ring, const StepMat& m, const TileJob& job, TileSums<kM>& acc) {
  constexpr int kSlice = 512 / kM, kRowBytes = kSlice + 16, kMine = kSlice / 8;
  constexpr bool kHalf = kMine < StepFormat<F>::kBlock;  // 16 columns only
  constexpr int kBlocks = kHalf ? 1 : kMine / StepFormat<F>::kBlock, kWarpColumns = kHalf ? 16 : 32 * kBlocks;
  constexpr bool kScaled = StepFormat<F>::kBits <= 8;
  static_assert(!kHalf || F == WeightFormat::kBF16);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
  constexpr std::uint32_t kOffset = kMins ? 0x43004300U : 0x43084308U;  // 128 or 136

  std::uint32_t scale_row[kM][2], min_row[kM][2], scale_slot = 0;
  const int size = m.scale_bytes, shift = m.group_shift;
  const DType dtype = m.scale_dtype;
  if constexpr (kScaled) {
    const int piece = scale_piece(job.pair, kMins), first = job.row >> m.rows_shift;
    const std::uint32_t begin = static_cast<std::uint32_t>(first * m.scale_row_bytes);
#pragma unroll
    for (int i = 0; i < kM; ++i) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int which = job.pair ? r : 0;
        const int in = min((job.pair ? 8 * i : 16 * i + 8 * r) + g, job.n - 1);
        const std::uint32_t off =
            static_cast<std::uint32_t>((((job.row + in) >> m.rows_shift) - first) * m.scale_row_bytes);
        scale_row[i][r] = ring.slot() + which * piece + off + (((job.bases >> (4 * which)) + begin) & 15U);
        if (kMins)
          min_row[i][r] =
              ring.slot() + (job.pair ? 2 + which : 1) * piece + off + (((job.bases >> (8 + 4 * which)) + begin) & 15U);
      }
    }
    barrier_wait(ring.full + 8 * ring.at, ring.phase);
    scale_slot = ring.empty + 8 * ring.at;
    ring.advance();
  }
  int column = warp * kWarpColumns;  // from the tile's first on
  std::uint32_t x = job.x + (kHalf ? warp / 2 * 64 + warp % 2 * 8 : warp * (kWarpColumns * 2));
  // Where this lane's codes lie in a slot.
  const std::uint32_t own =
      warp * kMine + (F == WeightFormat::kBF16 ? (lane % 16) * kRowBytes + lane / 16 * 16 : g * kRowBytes + t * 4);
  constexpr int kSliceColumns = 8 * kWarpColumns;
#pragma unroll 1
  for (int done = 0; done < job.columns; done += kSliceColumns) {
    barrier_wait(ring.full + 8 * ring.at, ring.phase);
    const std::uint32_t from = ring.slot() + own;
    const int left = (job.columns - column) / (kHalf ? 16 : 32);  // blocks from here on
    if (left > 0) {
      float scale[kApplies][kM][2], low[kApplies][kM][2];
      if constexpr (kScaled) {
#pragma unroll
        for (int i = 0; i < kApplies; ++i) {
          const int at = (job.first_group + ((column + i * (kWarpColumns / kApplies)) >> shift)) * size;
          const bool there = i * (kBlocks / kApplies) < left;  // what lies behind the last group is anything
#pragma unroll
          for (int k = 0; k < kM; ++k) {
#pragma unroll
            for (int r = 0; r < 2; ++r) {
              const float v = scale_value(size == 4 ? lds32(scale_row[k][r] + at) : lds16(scale_row[k][r] + at), dtype);
              scale[i][k][r] = there ? v : 0.0F;
              if (kMins) {
                const float w = scale_value(size == 4 ? lds32(min_row[k][r] + at) : lds16(min_row[k][r] + at), dtype);
                low[i][k][r] = there ? w : 0.0F;
              }
            }
          }
        }
      }
      if constexpr (kHalf) {
        uint2 v;
        asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(x));
#pragma unroll
        for (int k = 0; k < kM; ++k) {
          std::uint32_t a[4];
          ldmatrix4(a, from + k * 16 * kRowBytes);
          product(acc.v[k], a, v.x, v.y);
        }
      } else {
        float part[kM][4] = {}, ones[4] = {};
#pragma unroll
        for (int i = 0; i < kBlocks; ++i) {
          if (i < left) {
            const uint4 v = lds128(x + i * 64);
#pragma unroll
            for (int k = 0; k < kM; ++k) {
              std::uint32_t a[2][4];
              block_of<F, kRowBytes>(from + k * 16 * kRowBytes + i * StepFormat<F>::kBlock, job.nf4, kOffset, a);
              float(&sum)[4] = kScaled ? part[k] : acc.v[k];
              product(sum, a[0], v.x, v.y);
              product(sum, a[1], v.z, v.w);
            }
            if constexpr (kMins) {
              constexpr std::uint32_t kOnes[4] = {0x3f803f80U, 0x3f803f80U, 0x3f803f80U, 0x3f803f80U};
              product(ones, kOnes, v.x, v.y);
              product(ones, kOnes, v.z, v.w);
            }
          }
          if constexpr (kScaled) {
            constexpr int kPer = kBlocks / kApplies;
            if ((i + 1) % kPer == 0) {
#pragma unroll
              for (int k = 0; k < kM; ++k) {
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                  acc.v[k][j] = fmaf(part[k][j], scale[i / kPer][k][j / 2], acc.v[k][j]);
                  if (kMins) acc.v[k][j] = fmaf(ones[j], low[i / kPer][k][j / 2], acc.v[k][j]);
                  part[k][j] = 0;
                }
              }
#pragma unroll
              for (int j = 0; j < 4; ++j) ones[j] = 0;
            }
          }
        }
      }
    }
    __syncwarp();
    if (lane == 0) barrier_arrive(ring.empty + 8 * ring.at);
    ring.advance();
    column += kSliceColumns;
    x += kSliceColumns * 2;
  }
  if constexpr (kScaled) {
    if (lane == 0) barrier_arrive(scale_slot);
  }
}

// One tile's sums, weighted, into shared memory.
template <WeightFormat F, int kM, int kApplies, bool kMins>
__device__ __noinline__ void lone_tile(Ring ring, const StepMat& m, TileJob job) {
  TileSums<kM> acc{};
  tile_sum<F, kM, kApplies, kMins>(ring, m, job, acc);
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  if (2 * t >= job.row_floats) return;
#pragma unroll
  for (int k = 0; k < kM; ++k) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const std::uint32_t at = job.sums + static_cast<std::uint32_t>((16 * k + 8 * r + g) * job.row_floats + 2 * t) * 4;
      float v[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) v[i] = job.weight[i] < 0 ? 0.0F : acc.v[k][2 * r + i] * job.weight[i];
      if (job.add) {
        v[0] += __uint_as_float(lds32(at));
        v[1] += __uint_as_float(lds32(at + 4));
      }
      sts64(at, __float_as_uint(v[0]), __float_as_uint(v[1]));
    }
  }
}

template <WeightFormat F, int kM>
__device__ __forceinline__ void lone_tile_of(const Ring& ring, const StepMat& m, const TileJob& job) {
  constexpr int kWarpColumns = 512 / kM / 8 * 8 / StepFormat<F>::kBits;
  const int scales = kWarpColumns >> min(static_cast<int>(m.group_shift), 7);  // of a row in the warp's part
  if constexpr (F == WeightFormat::kI4 || F == WeightFormat::kI8) {
    if (m.mins) {
      if constexpr (kWarpColumns >= 128) {
        if (scales == 4) return lone_tile<F, kM, 4, true>(ring, m, job);
      }
      if constexpr (kWarpColumns >= 64) {
        if (scales == 2) return lone_tile<F, kM, 2, true>(ring, m, job);
      }
      return lone_tile<F, kM, 1, true>(ring, m, job);
    }
  }
  if constexpr (kWarpColumns >= 128) {
    if (scales == 4) return lone_tile<F, kM, 4, false>(ring, m, job);
  }
  if constexpr (kWarpColumns >= 64) {
    if (scales == 2) return lone_tile<F, kM, 2, false>(ring, m, job);
  }
  return lone_tile<F, kM, 1, false>(ring, m, job);
}

template <WeightFormat F>
__device__ __forceinline__ void lone_tile_by_rows(const Ring& ring, const StepMat& m, const TileJob& job, int shape) {
  if (shape == 0) return lone_tile_of<F, 1>(ring, m, job);
  if constexpr (StepFormat<F>::kBits == 4) {
    if (shape == 2) return lone_tile_of<F, 4>(ring, m, job);
  }
  return lone_tile_of<F, 2>(ring, m, job);
}

// Returns how many slots the tile had.
__device__ __noinline__ int lone_tile_any(Ring ring, const StepMat& m, TileJob job) {
  const int shape = shape_of(job.pair ? (job.n + 7) / 8 * 16 : job.n);
  switch (m.format) {
    case WeightFormat::kBF16:
      if (shape == 0) {
        lone_tile<WeightFormat::kBF16, 1, 1, false>(ring, m, job);
      } else {
        lone_tile<WeightFormat::kBF16, 2, 1, false>(ring, m, job);
      }
      break;
    case WeightFormat::kF8E4M3:
      lone_tile_by_rows<WeightFormat::kF8E4M3>(ring, m, job, shape);
      break;
    case WeightFormat::kI8:
      lone_tile_by_rows<WeightFormat::kI8>(ring, m, job, shape);
      break;
    case WeightFormat::kI4:
      lone_tile_by_rows<WeightFormat::kI4>(ring, m, job, shape);
      break;
    default:
      lone_tile_by_rows<WeightFormat::kNF4>(ring, m, job, shape);
      break;
  }
  const int slice = slice_of(shape);
  return (is_scaled(m) ? 1 : 0) + ((bytes_of(m, job.columns) + slice - 1) >> (9 - shape));
}

#endif
}  // namespace glint::cuda
