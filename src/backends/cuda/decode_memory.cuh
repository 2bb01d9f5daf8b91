#pragma once
// What all stages of the decode step share: a block's fixed part of shared memory, the barrier of the grid, and how
// rows of x lie in shared memory.

#include "backends/cuda/bulk.cuh"
#include "backends/cuda/choose_experts.cuh"
#include "backends/cuda/decode_step.hpp"
#include "backends/cuda/decode_trace.cuh"
#include "backends/cuda/kv_codec.cuh"
#include "backends/cuda/wgmma.cuh"

namespace glint::cuda {

// Eight warps work; the loader only fetches weights, and the messenger waits for other blocks. Every warp has the same
// bookkeeping to do, and two of them on a scheduler do it twice as fast as four. Registers are dealt out to groups of
// four warps: the loader's group has two that leave at once, and on Hopper what it does not need the others get.
constexpr int kStepWarps = 8, kStepThreads = 32 * kStepWarps, kStepBlock = kStepThreads + 128;
constexpr int kWorkerRegisters = 224, kLoaderRegisters = 56;

// Bytes of a row of x in shared memory: whole steps of the contraction, and rows begin half of the banks apart.
constexpr int kWidestStep = 128;  // columns
__host__ __device__ constexpr int x_stride(int cols) {
  return (cols + kWidestStep - 1) / kWidestStep * (kWidestStep * 2) + 64;
}

// A step of the contraction is 64 bytes of a row of weights. A slot of the ring holds the codes of two steps of sixteen
// rows for each warp, and behind them their scales.
constexpr int kStepBytes = 64, kChunkSteps = 2 * kStepWarps;
constexpr int kSplitBytes = kChunkSteps * kStepBytes, kSlotCodes = 16 * kSplitBytes;
constexpr int kSlotsMost = 8;
constexpr int kNoteBytes = 16, kNotes = 3 * kStepThreads * kNoteBytes;  // decode_products.cuh
constexpr int kTileSums = kStepWarps * 16 * 4;                          // bytes of a tile's sums: [warp][16 rows]
constexpr int kPageStages = 4;                                          // decode_attend_pages.cuh

// Bytes of the scales of so many bytes of a row's codes, where a row has several.
__host__ __device__ inline int scale_bytes_of(const StepMat& m, int bytes) {
  return (bytes * m.step_cols / kStepBytes >> m.group_shift) * (m.scale_dtype == DType::kF32 ? 4 : 2);
}

// Of W_UK: eights of columns that a block has, and loads of a thread, at most.
constexpr int kKeyUnits = 16, kKeyLoads = 12;
constexpr int kKeyPlaces = 192 * 4 + kStepThreads * 32, kKeyBytes = kKeyPlaces + kKeyLoads * kStepThreads * 16;

#if __CUDA_ARCH__ >= 900

// A block's columns of W_UK, in eights, and how its threads share them: thread t has column t % n and every so manyth
// row of the 192, from t / n on.
struct StepKeys {
  std::int32_t head, first, n;  // of the head's eights
  std::int32_t parts, recip;    // t / n = t · recip / 2^16
  std::int32_t rows, more;      // of a part; parts that have one more
};

// Where W_UK is joined to W_qb (decode_join.cuh): the rows of a head's 192 that are this block's, and how many blocks
// have some.
struct StepJoin {
  std::int32_t head, part, parts;
  std::int32_t first, rows;
};

// The context, and this block's piece of it; see decode_pieces.cuh.
struct StepContext {
  std::int32_t seq;
  std::int32_t begin, end;         // tokens that the row sees
  std::int32_t token, runs;        // the piece's first run of tokens, and how many runs (or pages) it has
  std::int32_t first_head, heads;  // of the piece
  std::int32_t piece, pieces;
  bool merge;    // pieces are merged in a stage of their own
  bool by_page;  // pieces are of whole pages (decode_attend_pages.cuh)
};

enum class StepStage : std::uint8_t {
  kLow,         // W_qa, then W_kva
  kQuery,       // W_qb
  kKeys,        // W_UK of each head
  kAttend,      // no weights
  kValues,      // W_UV of each head
  kOut,         // W_o
  kSharedUp,    // gate and up of the shared expert or the dense MLP
  kExpertUp,    // of the chosen experts
  kExpertDown,  // down of the chosen experts
  kSharedDown,
};
constexpr int kStepStages = 10;
// Attention's stages are the same in layers of both kinds, with experts and without. A kernel that has them once
// compiles in a third of the time, and is 2 to 8 % slower: instructions of a layer then lie further apart.
#ifdef GLINT_STEP_SHARES
constexpr bool kStepShares = true;
#else
constexpr bool kStepShares = false;
#endif
using AllStages = std::make_integer_sequence<int, kStepStages>;
using AttentionStages = std::make_integer_sequence<int, static_cast<int>(StepStage::kOut) + 1>;
using MlpStages =
    std::integer_sequence<int, static_cast<int>(StepStage::kSharedUp), static_cast<int>(StepStage::kExpertUp),
                          static_cast<int>(StepStage::kExpertDown), static_cast<int>(StepStage::kSharedDown)>;
using OwnStages = std::conditional_t<kStepShares, MlpStages, AllStages>;  // of each kind
__device__ __forceinline__ bool is_attention(StepStage s) { return s <= StepStage::kOut; }
// Barriers of the grid in a layer, where W_UK has a stage and attention's pieces are not merged, and which of them the
// scores are behind.
constexpr unsigned kRoutedBarriers = 9, kDenseBarriers = 8, kScoreBarrier = 7;

// A block's rows in a stage, in tiles of sixteen, and how they come: a chunk, what a slot holds, is some whole tiles,
// or where a row has more than sixteen steps, sixteen steps of one tile. A warp has a step of one tile in it, or two.
struct StepWork {
  std::int32_t begin, rows;  // of gate and up: of each
  std::int32_t tiles;
  std::int32_t items;                 // matrices along the contraction: experts
  std::int32_t together;              // tiles of a chunk
  std::int32_t groups;                // of tiles
  std::int32_t chunks;                // along a row
  std::int32_t parts;                 // warps of a tile
  std::int32_t recip;                 // warp / parts = warp · recip / 256
  std::int32_t last_steps;            // of the last chunk along a row
  std::int32_t row_bytes, scale_row;  // of a row in a slot: codes, scales
  bool even;                          // the last chunk's steps are
};

// x and what else a stage needs lie behind it, then sums, then the ring.
struct StepShared {
  alignas(16) StepLayer layers[2];  // in turn: the next one comes while the other is worked on
  alignas(16) StepLayer ahead[2];   // the same, of the loader
  alignas(16) MatPtr experts[3 * kStepExperts];
  alignas(16) DecodeStep p;
  StepContext context;
  StepKeys keys;
  StepJoin join;
  float2 rope[32];  // cosine and sine of the row's position
  float router_bias[kStepExperts];
  StepWork work[2][kStepStages];  // of a dense layer, and what differs in one with experts
  float weights[kStepSlots];
  std::int32_t ids[kStepSlots];
  std::uint32_t nf4[256];
  uint2 nibbles;  // two constants for INT4 codes (upper_nibbles)
  alignas(16) float reduce[2][kStepWarps];
  alignas(16) float squares[2][kStepWarps];  // of a stage's x, by warp, for its RMS; stages in a row use them in turn
  alignas(16) float dots[kStepWarps];        // of x and a row of the router
  alignas(16) float kv_row[kRowWidth];
  alignas(8) std::uint64_t full[kSlotsMost], empty[kSlotsMost];
  std::uint64_t page_full[kPageStages], page_empty[kPageStages], pages_ready;
  std::uint32_t x, notes, sums, ring;  // shared addresses
  std::int32_t slots, slot_bytes;      // of the ring
  std::int32_t pass_bytes;             // from the sums of pass 0 to those of pass 1
  StepTrace trace;
};
// At namespace scope so that its accesses are known to be of shared memory in every function. A union, since nothing
// initialises it.
union StepMemory {
  StepShared s;
  __device__ StepMemory() {}
};
static __shared__ StepMemory step;

// A barrier of the working warps.
__device__ __forceinline__ void step_sync() { asm volatile("bar.sync 1, %0;" ::"n"(kStepThreads) : "memory"); }

// A place in the ring, and which time it is there.
struct StepRing {
  std::uint32_t at, slot_bytes, full, last, phase = 0;
  __device__ __forceinline__ StepRing()
      : at(step.s.ring),
        slot_bytes(static_cast<std::uint32_t>(step.s.slot_bytes)),
        full(shared_address(step.s.full)),
        last(full + 8 * static_cast<std::uint32_t>(step.s.slots - 1)) {}
  __device__ __forceinline__ void advance() {
    if (full != last) {
      full += 8;
      at += slot_bytes;
      return;
    }
    full = shared_address(step.s.full);
    at = step.s.ring;
    phase ^= 1;
  }
  __device__ __forceinline__ std::uint32_t empty() const { return full + 8 * kSlotsMost; }
};
static_assert(offsetof(StepShared, empty) == offsetof(StepShared, full) + 8 * kSlotsMost);

// ---- the barrier of the grid ----------------------------------------------------------------------------------------

// A warp of its own, the messenger, announces that a block has arrived and waits for the others (a fence alone takes
// 900 cycles), so that the working warps can get ready for the next stage. They meet it at barriers of the block: one
// when they have written, one when all blocks have. What all blocks wrote before arriving is there after waiting, for
// loads that pass by the first-level cache (__ldcg): hence no fence after the wait, which would throw that cache away.
enum class Meeting : std::uint8_t { kArrive = 2, kWait = 3, kScore = 4 };
__device__ __forceinline__ void leave_at(Meeting m) {  // without waiting
  __syncwarp();
  asm volatile("bar.arrive %0, %1;" ::"r"(static_cast<int>(m)), "n"(kStepThreads + 32) : "memory");
}
__device__ __forceinline__ void meet_at(Meeting m) {
  __syncwarp();
  asm volatile("bar.sync %0, %1;" ::"r"(static_cast<int>(m)), "n"(kStepThreads + 32) : "memory");
}

// By the working warps, each when it has written its part. Shared memory that others may still read is not free yet.
__device__ __forceinline__ void grid_arrive() {
  leave_at(Meeting::kArrive);
  step.s.trace.note(StepPart::kArrive);
}
__device__ __forceinline__ void grid_wait() {
  meet_at(Meeting::kWait);
  step.s.trace.note(StepPart::kWait);
}

// Of DecodeStep::counters: blocks that arrived, blocks that are done, and whose row of the cache is written.
constexpr int kRowCounter = 32;

// By one thread: announces its block; waits until so many blocks have arrived.
__device__ __forceinline__ void grid_announce() {
  asm volatile("fence.release.gpu;" ::: "memory");
  asm volatile("red.relaxed.gpu.global.add.u32 [%0], 1;" ::"l"(step.s.p.counters) : "memory");
}
__device__ __forceinline__ void grid_poll(unsigned epoch) {
  unsigned seen;
  do {
    asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(step.s.p.counters) : "memory");
  } while (static_cast<int>(seen - epoch) < 0);
}

// ---- sums over a block ----------------------------------------------------------------------------------------------

// Of what every warp left, after a barrier.
__device__ __forceinline__ float sum_of_warps(const float (&v)[kStepWarps]) {
  const float4 a = *reinterpret_cast<const float4*>(v), b = *reinterpret_cast<const float4*>(v + 4);
  return ((a.x + b.x) + (a.y + b.y)) + ((a.z + b.z) + (a.w + b.w));
}
// Over the working warps, in every thread. `turn`: calls in a row use 0 and 1 in turn.
__device__ __forceinline__ float step_sum(float v, int turn) {
  float(&to)[kStepWarps] = step.s.reduce[turn];
  v = warp_sum(v);
  if (threadIdx.x % 32 == 0) to[threadIdx.x / 32] = v;
  step_sync();
  return sum_of_warps(to);
}

// ---- rows of x ------------------------------------------------------------------------------------------------------

__device__ __forceinline__ std::uint32_t lds32(std::uint32_t address) {
  std::uint32_t v;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(address));
  return v;
}
__device__ __forceinline__ uint2 lds64(std::uint32_t address) {
  uint2 v;
  asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(address));
  return v;
}
__device__ __forceinline__ float2 lds_pair(std::uint32_t address) {
  float2 v;
  asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(v.x), "=f"(v.y) : "r"(address));
  return v;
}
__device__ __forceinline__ void sts16(std::uint32_t address, std::uint32_t v) {
  asm volatile("st.shared.b16 [%0], %1;" ::"r"(address), "h"(static_cast<std::uint16_t>(v)) : "memory");
}
__device__ __forceinline__ void sts64(std::uint32_t address, std::uint32_t a, std::uint32_t b) {
  asm volatile("st.shared.v2.u32 [%0], {%1, %2};" ::"r"(address), "r"(a), "r"(b) : "memory");
}

// x as the products want it, a row of high and a row of low parts: products with weights that are integers or BF16 lose
// nothing to the rounding of x that a float would keep.
//   kPairs    BF16 numbers, x ≈ high + low, in order
//   kBytes    for INT8: signed bytes, x ≈ scale · (256 high + low), in order; a scale for a lane's columns of a step,
//             behind both rows
//   kNibbles  for INT4: the same, eights of columns as 0 2 4 6 1 3 5 7, the order in which masks take codes apart
enum class XKind : std::uint8_t { kPairs, kBytes, kNibbles };
__device__ __forceinline__ XKind x_kind(WeightFormat f) {
  return f == WeightFormat::kI4 ? XKind::kNibbles : f == WeightFormat::kI8 ? XKind::kBytes : XKind::kPairs;
}
// Bytes of a row of bytes: whole steps, and rows begin in other banks.
__host__ __device__ constexpr int byte_stride(int cols) {
  return (cols + kWidestStep - 1) / kWidestStep * kWidestStep + 16;
}

// Eight values of two rows: rounded at `to`, and what the rounding left a row further.
__device__ __forceinline__ void put_pairs(std::uint32_t to, int stride, const float (&v)[8]) {
  std::uint32_t high[4], low[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    high[i] = pack_bf16(v[2 * i], v[2 * i + 1]);
    low[i] = pack_bf16(v[2 * i] - bf16_low(high[i]), v[2 * i + 1] - bf16_high(high[i]));
  }
  sts128(to, {high[0], high[1], high[2], high[3]});
  sts128(to + stride, {low[0], low[1], low[2], low[3]});
}
// Values in two bytes each, four in a word: 256 high + low of four numbers as integer_bits() leaves them.
struct HighLow {
  std::uint32_t high, low;
};
// v · by as an integer of magnitude up to 127 · 256, in the low half.
__device__ __forceinline__ std::uint32_t integer_bits(float v, float by) {
  return __float_as_uint(fmaf(v, by, 12582912.0F + 128));
}
__device__ __forceinline__ HighLow high_low(std::uint32_t a, std::uint32_t b, std::uint32_t c, std::uint32_t d) {
  const std::uint32_t first = __byte_perm(a, b, 0x5410), second = __byte_perm(c, d, 0x5410);
  return {__byte_perm(first, second, 0x7531), __byte_perm(first, second, 0x6420) ^ 0x80808080U};
}
constexpr float kMostInteger = 127 * 256;
// NaN if one of them is.
__device__ __forceinline__ float larger(float a, float b) {
  float v;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(v) : "f"(a), "f"(b));
  return v;
}

// By a whole warp, neighbouring lanes with neighbouring eights; `row`: the high row's address. A NaN makes the scale
// one.
__device__ __forceinline__ void put_bytes(bool nibbles, std::uint32_t row, int stride, int unit, const float (&v)[8],
                                          bool mine) {
  float top = fabsf(v[0]);
#pragma unroll
  for (int i = 1; i < 8; ++i) top = larger(top, fabsf(v[i]));
  top = larger(top, __shfl_xor_sync(0xffffffffU, top, 1));
  if (nibbles) top = larger(top, __shfl_xor_sync(0xffffffffU, top, 2));
  const float inverse = top > 0 ? __fdividef(kMostInteger, top) : 0.0F;
  if (!mine) return;
  std::uint32_t bits[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) bits[i] = integer_bits(v[i], inverse);
  const auto put = [&](int at, const HighLow& w) {
    sts32(row + at, w.high);
    sts32(row + stride + at, w.low);
  };
  if (nibbles) {
    put(unit * 8, high_low(bits[0], bits[2], bits[4], bits[6]));
    put(unit * 8 + 4, high_low(bits[1], bits[3], bits[5], bits[7]));
  } else {
    put(unit * 8, high_low(bits[0], bits[1], bits[2], bits[3]));
    put(unit * 8 + 4, high_low(bits[4], bits[5], bits[6], bits[7]));
  }
  // Nibbles are multiplied by 16 as they are taken apart.
  const int lanes = nibbles ? 4 : 2;
  if (unit % lanes == 0)
    sts32(row + 2 * stride + unit / lanes * 4,
          __float_as_uint(top * (nibbles ? 1 / (16 * kMostInteger) : 1 / kMostInteger)));
}
__device__ __forceinline__ void put_x(XKind kind, std::uint32_t row, int cols, int unit, const float (&v)[8],
                                      bool mine) {
  if (kind != XKind::kPairs) {
    put_bytes(kind == XKind::kNibbles, row, byte_stride(cols), unit, v, mine);
  } else if (mine) {
    put_pairs(row + static_cast<std::uint32_t>(unit * 16), x_stride(cols), v);
  }
}
// Zeros behind the last column of `rows` pairs of rows, up to a whole step. By all working threads.
__device__ __forceinline__ void put_tail(XKind kind, std::uint32_t to, int rows, int cols) {
  if (cols % kWidestStep == 0) return;
  const int n = (kWidestStep - cols % kWidestStep) / 8;  // eights; of pairs, sixteen bytes each
  const bool pairs = kind == XKind::kPairs;
  const int stride = pairs ? x_stride(cols) : byte_stride(cols), first = cols * (pairs ? 2 : 1);
  for (int i = threadIdx.x; i < 2 * rows * n; i += kStepThreads) {
    const int row = i / n;
    const std::uint32_t at = to + static_cast<std::uint32_t>(row / 2 * 2 * x_stride(cols) + row % 2 * stride + first +
                                                             i % n * (pairs ? 16 : 8));
    sts64(at, 0, 0);
    if (pairs) sts64(at + 8, 0, 0);
    const int unit = cols / 8 + i % n, lanes = kind == XKind::kNibbles ? 4 : 2;
    if (!pairs && row % 2 == 0 && unit % lanes == 0)
      sts32(to + static_cast<std::uint32_t>(row / 2 * 2 * x_stride(cols) + 2 * stride + unit / lanes * 4), 0);
  }
}

// Eight floats that another block wrote.
__device__ __forceinline__ void load8(const float* from, float (&v)[8]) {
  const float4 a = __ldcg(reinterpret_cast<const float4*>(from)), b = __ldcg(reinterpret_cast<const float4*>(from) + 1);
  v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w, v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
}

#endif
}  // namespace glint::cuda
