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

// Rows of one matrix, or the same rows of two.
struct StepTile {
  MatShape shape;
  MatPtr at[2];
  int row = 0, n = 0;  // a pair's rows: n of each matrix, at most eight
  bool pair = false;
  int begin = 0, end = 0;  // columns
};

__host__ __device__ inline int code_bits(WeightFormat f) {
  if (f == WeightFormat::kBF16) return 16;
  return f == WeightFormat::kI4 || f == WeightFormat::kNF4 ? 4 : 8;
}
__host__ __device__ inline bool is_scaled(WeightFormat f) { return f != WeightFormat::kBF16; }
__host__ __device__ inline int row_bytes(const MatShape& m, int cols) { return cols * code_bits(m.format) / 8; }
__host__ __device__ inline int scale_size(const MatShape& m) { return m.scale_dtype == DType::kF32 ? 4 : 2; }
// Scale pieces of a tile share a slot: of both matrices, and their mins.
__host__ __device__ inline int scale_piece(bool pair, bool mins) { return kSlotBytes / ((pair ? 2 : 1) * (mins ? 2 : 1)); }
// Rows that a tile may have so that its scales fit a slot; even.
__host__ __device__ inline int tile_rows(const MatShape& m, bool pair, bool mins) {
  const int most = pair ? kTileRows / 2 : kTileRows;
  if (!is_scaled(m.format)) return most;
  const int a_row = m.groups_a_row * scale_size(m);
  const int fits = (scale_piece(pair, mins) - 32) / a_row / 2 * 2;
  return m.group_rows > 1 || fits > most ? most : fits;
}

// Bytes of a row of x in shared memory: rows begin half a bank apart.
__host__ __device__ constexpr int x_stride(int cols) { return (cols * 2 + 127) / 128 * 128 + 64; }

#if __CUDA_ARCH__ >= 900

struct Ring {
  std::uint32_t slots, full, empty;  // shared addresses
  int n, at = 0;
  std::uint32_t phase = 0;

  __device__ std::uint32_t slot() const { return slots + at * kSlotBytes; }
  __device__ void advance() {
    if (++at == n) at = 0, phase ^= 1U;
  }
};

// Where the scales of a tile's rows begin, and how many bytes hold them.
struct ScaleSpan {
  std::int64_t first;  // byte offset of the first row's scales
  int bytes;
};
__device__ __forceinline__ ScaleSpan scale_span(const StepTile& t) {
  const std::int64_t a_row = static_cast<std::int64_t>(t.shape.groups_a_row) * scale_size(t.shape);
  const int first = t.row / t.shape.group_rows, last = (t.row + t.n - 1) / t.shape.group_rows;
  return {first * a_row, static_cast<int>((last - first + 1) * a_row)};
}
__device__ __forceinline__ std::uint32_t misalignment(const void* base, std::int64_t offset) {
  return static_cast<std::uint32_t>(reinterpret_cast<std::uintptr_t>(base) + static_cast<std::uintptr_t>(offset)) & 15U;
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

__device__ __forceinline__ void copy_scales(Ring& r, const StepTile& t, int lane) {
  const bool mins = t.at[0].mins != nullptr;
  const int pieces = (t.pair ? 2 : 1) * (mins ? 2 : 1), piece_bytes = scale_piece(t.pair, mins);
  const ScaleSpan span = scale_span(t);
  const void* base = nullptr;
  if (lane < pieces) {
    const MatPtr& at = t.at[t.pair ? lane & 1 : 0];
    base = (t.pair ? lane >> 1 : lane) != 0 ? at.mins : at.scales;
  }
  const std::uint32_t off = misalignment(base, span.first);
  const int bytes = lane < pieces ? (span.bytes + static_cast<int>(off) + 15) / 16 * 16 : 0;
  int total = bytes;
#pragma unroll
  for (int d = 2; d > 0; d >>= 1) total += __shfl_xor_sync(0xffffffffU, total, d);
  open_slot(r, total, lane);
  if (lane < pieces)
    bulk_copy(r.slot() + lane * piece_bytes, static_cast<const char*>(base) + span.first - off, bytes, r.full + 8 * r.at);
  r.advance();
}

__device__ __forceinline__ void copy_tile(Ring& r, const StepTile& t, int lane) {
  if (is_scaled(t.shape.format)) copy_scales(r, t, lane);
  const int all = row_bytes(t.shape, t.shape.cols), begin = row_bytes(t.shape, t.begin), end = row_bytes(t.shape, t.end);
  const int rows = t.pair ? 2 * t.n : t.n;
  // Lane j copies the tile's row j; of pairs, the second matrix's rows stand in rows 8 to 15.
  const int matrix = t.pair ? lane / t.n : 0, row = t.row + (t.pair ? lane % t.n : lane);
  const int place = t.pair ? matrix * 8 + lane % t.n : lane;
  const char* from = lane < rows ? static_cast<const char*>(t.at[matrix].data) + static_cast<std::int64_t>(row) * all : nullptr;
  for (int b = begin; b < end; b += kSliceBytes) {
    const int bytes = min(kSliceBytes, end - b);
    open_slot(r, bytes * rows, lane);
    if (lane < rows) bulk_copy(r.slot() + place * kSlotRow, from + b, bytes, r.full + 8 * r.at);
    r.advance();
  }
}

// 192 rows of W_UK from `rows` on, 64 columns from `column` on.
__device__ __forceinline__ void copy_columns(Ring& r, const void* kv_b, int row, int column, int lane) {
  const auto* from = static_cast<const std::uint16_t*>(kv_b) + static_cast<std::int64_t>(row) * kLatentWidth + column;
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
__host__ __device__ inline StepOrder order_of(WeightFormat f) {
  if (f == WeightFormat::kBF16) return StepOrder::kWords;
  if (f == WeightFormat::kNF4) return StepOrder::kCodebook;
  return f == WeightFormat::kI4 ? StepOrder::kNibbles : StepOrder::kBytes;
}

__device__ __forceinline__ void sts64(std::uint32_t address, std::uint32_t a, std::uint32_t b) {
  asm volatile("st.shared.v2.u32 [%0], {%1, %2};" ::"r"(address), "r"(a), "r"(b) : "memory");
}

// Eight columns, 8 · unit and on, of one row at `row`.
__device__ __forceinline__ void put_unit(StepOrder order, std::uint32_t row, int unit, const float (&v)[8]) {
  const std::uint32_t block = row + unit / 4 * 64;
  const int u = unit % 4;
  switch (order) {
    case StepOrder::kWords: {  // columns of two steps of 16: pairs 2 t, 2 t + 8 of the first, then of the second
      const std::uint32_t to = block + u / 2 * 8 + u % 2 * 4;
#pragma unroll
      for (int q = 0; q < 4; ++q) sts32(to + 16 * q, pack_bf16(v[2 * q], v[2 * q + 1]));
      break;
    }
    case StepOrder::kBytes: {  // lane t has bytes 4 t … 4 t + 3 of each step
      const std::uint32_t to = block + u % 2 * 32 + u / 2 * 8;
      sts64(to, pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]));
      sts64(to + 16, pack_bf16(v[4], v[5]), pack_bf16(v[6], v[7]));
      break;
    }
    case StepOrder::kNibbles:
      sts128(block + u * 16, {pack_bf16(v[0], v[4]), pack_bf16(v[1], v[5]), pack_bf16(v[2], v[6]), pack_bf16(v[3], v[7])});
      break;
    case StepOrder::kCodebook:
      sts128(block + u * 16, {pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]), pack_bf16(v[4], v[5]), pack_bf16(v[6], v[7])});
      break;
  }
}
// The same as two rows: the values rounded, and what the rounding left.
__device__ __forceinline__ void put_split(StepOrder order, std::uint32_t high_row, std::uint32_t low_row, int unit,
                                          const float (&v)[8]) {
  float low[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) low[i] = v[i] - __bfloat162float(__float2bfloat16_rn(v[i]));
  put_unit(order, high_row, unit, v);
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
};

// 32 columns of the warp's 16 rows as two A operands. `at`: the slot's place of the warp's bytes.
template <WeightFormat F>
__device__ __forceinline__ void block_of(std::uint32_t at, int lane, const std::uint32_t* nf4, std::uint32_t offset,
                                         std::uint32_t (&a)[2][4]) {
  const int g = lane / 4, t = lane % 4;
  if constexpr (F == WeightFormat::kBF16) {
    const std::uint32_t from = at + (lane % 16) * kSlotRow + lane / 16 * 16;
    ldmatrix4(a[0], from);
    ldmatrix4(a[1], from + 32);
  } else if constexpr (F == WeightFormat::kI8 || F == WeightFormat::kF8E4M3) {
#pragma unroll
    for (int k = 0; k < 2; ++k) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const std::uint32_t w = lds32(at + (g + 8 * r) * kSlotRow + k * 16 + t * 4);
        const std::uint32_t x = __byte_perm(w, 0, 0x4140), y = __byte_perm(w, 0, 0x4342);
        a[k][r] = F == WeightFormat::kI8 ? int8_pair(x) : e4m3_pair(x);
        a[k][r + 2] = F == WeightFormat::kI8 ? int8_pair(y) : e4m3_pair(y);
      }
    }
  } else {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const std::uint32_t w = lds32(at + (g + 8 * r) * kSlotRow + t * 4);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        std::uint32_t v;
        if constexpr (F == WeightFormat::kI4) {
          // 0x4300 is 128 in BF16, whose last mantissa bit is worth 1: the code lands in it as 128 + u.
          v = sub2(((w >> (4 * i)) & 0x000f000fU) | 0x43004300U, offset);
        } else {
          v = nf4[(w >> (8 * i)) & 255U];
        }
        a[i / 2][r + i % 2 * 2] = v;
      }
    }
  }
}

// One tile's columns [begin, end): this warp's part of the sums, rows g and g + 8, columns of x 2 t and 2 t + 1.
// x: this lane's address in x's row g. Takes the tile's slots from the ring, which the caller moves on by as many.
template <WeightFormat F>
__device__ __noinline__ float4 tile_sum(Ring ring, const StepTile& t, std::uint32_t x, const std::uint32_t* nf4) {
  constexpr int kBlock = StepFormat<F>::kBits * 4;  // bytes of 32 columns
  constexpr bool kScaled = StepFormat<F>::kBits <= 8;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4;
  const bool mins = kScaled && t.at[0].mins != nullptr;
  const std::uint32_t offset = mins ? 0x43004300U : 0x43084308U;  // 128 or 136

  // This lane's two rows of scales.
  std::uint32_t scale_row[2] = {}, min_row[2] = {}, scale_slot = 0;
  const int size = scale_size(t.shape);
  const int scales_at = ring.at;
  if constexpr (kScaled) {
    const ScaleSpan span = scale_span(t);
    const int piece = scale_piece(t.pair, mins);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int m = t.pair ? r : 0;
      const int row = min(t.row + g + (t.pair ? 0 : 8 * r), t.row + t.n - 1);
      const std::uint32_t in = static_cast<std::uint32_t>(row / t.shape.group_rows - t.row / t.shape.group_rows) *
                               (t.shape.groups_a_row * size);
      scale_row[r] = ring.slot() + m * piece + in + misalignment(t.at[m].scales, span.first);
      if (mins) min_row[r] = ring.slot() + (t.pair ? 2 + m : 1) * piece + in + misalignment(t.at[m].mins, span.first);
    }
    barrier_wait(ring.full + 8 * ring.at, ring.phase);
    scale_slot = ring.empty + 8 * scales_at;
    ring.advance();
  }
  const int shift = t.shape.group >= t.shape.cols ? 30 : 31 - __clz(t.shape.group);
  float acc[4] = {}, part[4] = {}, ones[4] = {};
  int column = t.begin + warp * (64 / kBlock) * 32;  // of this warp's first block in the slot
  auto apply = [&](int group) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const std::uint32_t at = scale_row[r] + group * size;
      const float scale = scale_value(size == 4 ? lds32(at) : lds16(at), t.shape.scale_dtype);
      acc[2 * r] = fmaf(part[2 * r], scale, acc[2 * r]);
      acc[2 * r + 1] = fmaf(part[2 * r + 1], scale, acc[2 * r + 1]);
      if (mins) {
        const std::uint32_t low = min_row[r] + group * size;
        const float min = scale_value(size == 4 ? lds32(low) : lds16(low), t.shape.scale_dtype);
        acc[2 * r] = fmaf(ones[2 * r], min, acc[2 * r]);
        acc[2 * r + 1] = fmaf(ones[2 * r + 1], min, acc[2 * r + 1]);
      }
      part[2 * r] = part[2 * r + 1] = ones[2 * r] = ones[2 * r + 1] = 0;
    }
  };
  const int bytes = row_bytes(t.shape, t.end - t.begin);
  for (int b = 0; b < bytes; b += kSliceBytes) {
    barrier_wait(ring.full + 8 * ring.at, ring.phase);
    const int mine = min(64, min(kSliceBytes, bytes - b) - warp * 64);
    const std::uint32_t from = ring.slot() + warp * 64;
    const std::uint32_t x_at = x + (column - t.begin) * 2;
#pragma unroll
    for (int i = 0; i < 64 / kBlock; ++i) {
      if (i * kBlock >= mine) break;
      std::uint32_t a[2][4];
      block_of<F>(from + i * kBlock, lane, nf4, offset, a);
      const uint4 v = lds128(x_at + i * 64);
      if constexpr (kScaled) {
        mma(part, a[0][0], a[0][1], a[0][2], a[0][3], v.x, v.y);
        mma(part, a[1][0], a[1][1], a[1][2], a[1][3], v.z, v.w);
        if (mins) {
          constexpr std::uint32_t kOnes = 0x3f803f80U;
          mma(ones, kOnes, kOnes, kOnes, kOnes, v.x, v.y);
          mma(ones, kOnes, kOnes, kOnes, kOnes, v.z, v.w);
        }
        const int here = column + 32 * i;
        if ((i + 1) * kBlock >= mine || here >> shift != (here + 32) >> shift) apply(here >> shift);
      } else {
        mma(acc, a[0][0], a[0][1], a[0][2], a[0][3], v.x, v.y);
        mma(acc, a[1][0], a[1][1], a[1][2], a[1][3], v.z, v.w);
      }
    }
    __syncwarp();
    if (lane == 0) barrier_arrive(ring.empty + 8 * ring.at);
    ring.advance();
    column += kSliceBytes / kBlock * 32;
  }
  if constexpr (kScaled) {
    __syncwarp();
    if (lane == 0) barrier_arrive(scale_slot);
  }
  return {acc[0], acc[1], acc[2], acc[3]};
}

__device__ __forceinline__ float4 tile_sum_any(Ring& ring, const StepTile& t, std::uint32_t x, const std::uint32_t* nf4) {
  float4 r{};
  switch (t.shape.format) {
    case WeightFormat::kBF16:
      r = tile_sum<WeightFormat::kBF16>(ring, t, x, nf4);
      break;
    case WeightFormat::kF8E4M3:
      r = tile_sum<WeightFormat::kF8E4M3>(ring, t, x, nf4);
      break;
    case WeightFormat::kI8:
      r = tile_sum<WeightFormat::kI8>(ring, t, x, nf4);
      break;
    case WeightFormat::kI4:
      r = tile_sum<WeightFormat::kI4>(ring, t, x, nf4);
      break;
    default:
      r = tile_sum<WeightFormat::kNF4>(ring, t, x, nf4);
      break;
  }
  const int used = (is_scaled(t.shape.format) ? 1 : 0) +
                   (row_bytes(t.shape, t.end - t.begin) + kSliceBytes - 1) / kSliceBytes;
  for (int i = 0; i < used; ++i) ring.advance();
  return r;
}

#endif
}  // namespace glint::cuda
