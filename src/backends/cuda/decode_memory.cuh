#pragma once
// What all stages of the decode step share: a block's fixed part of shared memory, the barrier of the grid, and how
// rows of x lie in shared memory.

#include "backends/cuda/choose_experts.cuh"
#include "backends/cuda/decode_step.hpp"
#include "backends/cuda/kv_codec.cuh"

namespace glint::cuda {

constexpr int kStepWarps = 16, kStepThreads = 32 * kStepWarps;

// Bytes of a row of x in shared memory: whole steps of the contraction, and rows begin half of the banks apart.
constexpr int kWidestStep = 128;  // columns
__host__ __device__ constexpr int x_stride(int cols) {
  return (cols + kWidestStep - 1) / kWidestStep * (kWidestStep * 2) + 64;
}

// Sums of tiles: [pass][tile and part][16 rows][rows of x].
constexpr int kSumTiles = 48, kSumPasses = 2;
__host__ __device__ constexpr int sum_bytes(int rows) { return kSumPasses * kSumTiles * 16 * rows * 4; }

// Of W_UK: eights of columns that a block has, and loads of a thread, at most.
constexpr int kKeyUnits = 16, kKeyLoads = 6;

#if __CUDA_ARCH__ >= 900

// An expert that some rows chose. slot[t] is the place of row t's choice, t · top_k + k, or -1.
struct StepItem {
  std::int32_t expert;
  signed char slot[kStepRows];
};

// Where the rows' contexts lie in the list of all, in blocks of kStepTokens tokens; see decode_attend.cuh.
struct StepContexts {
  std::int32_t first[kStepRows + 1];               // of row t in the list
  std::int32_t begin[kStepRows], end[kStepRows];   // tokens that it sees
  std::int32_t seq[kStepRows], pieces[kStepRows];  // its sequence; the pieces that it is cut into
  std::int32_t origin[kStepRows];  // the number of its first piece, in blocks of the grid or of the list
  std::int32_t groups;             // that the heads are cut into
  std::int32_t group_heads;        // heads of a group
  bool by_grid;                    // a block of the grid makes one piece; otherwise a block of the list is one
  bool merge;                      // pieces are merged in a stage of their own
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

// A block's rows in a stage, and how its warps share them: a tile's steps among 2^part_shift warps. Of the chosen
// experts' down the warps of a tile take different experts, warps_an_item of them one.
struct StepWork {
  std::int32_t begin, rows;  // of gate and up: of each
  std::int32_t tiles;
  std::int32_t steps;  // of 64 bytes, of a row
  std::int32_t items;  // matrices along the contraction
  std::int32_t warps_an_item;
  std::int32_t rounds;  // of tiles, or of items, until all are done
  std::int32_t part_shift;
  std::int32_t first_rows;  // kValues: rows of the first head that the block meets (it meets two at most)
};

// x and what else a stage needs lie behind it, then the sums.
struct StepShared {
  alignas(16) StepLayer layers[2];  // in turn: the next one comes while the other is worked on
  alignas(16) DecodeStep p;
  StepContexts contexts;
  float2 rope[kStepRows][32];  // cosine and sine of each row's position
  MatPtr experts[2][3 * kStepExperts];
  float router_bias[2][kStepExperts];
  StepWork work[2][kStepStages];  // of a dense layer, of one with experts
  StepItem items[kStepSlots];
  float weights[kStepSlots];
  std::int32_t n_items;
  std::int32_t ids[kStepSlots];
  std::uint32_t nf4[256];
  float reduce[2][kStepWarps][kStepRows];
  alignas(16) float kv_row[kRowWidth];
  std::uint32_t x, sums;  // shared addresses
  unsigned epoch;         // barriers passed, in blocks; the first thread's
};
// At namespace scope so that its accesses are known to be of shared memory in every function. A union, since nothing
// initialises it.
union StepMemory {
  StepShared s;
  __device__ StepMemory() {}
};
static __shared__ StepMemory step;

// ---- the barrier of the grid ----------------------------------------------------------------------------------------

// What all blocks wrote before arriving is there after waiting, for loads that pass by the first-level cache (__ldcg):
// hence no fence after the wait, which would throw that cache away.
__device__ __forceinline__ void grid_arrive() {
  __syncthreads();
  if (threadIdx.x == 0) {
    step.s.epoch += gridDim.x;
    asm volatile("fence.acq_rel.gpu;" ::: "memory");
    asm volatile("red.relaxed.gpu.global.add.u32 [%0], 1;" ::"l"(step.s.p.counters) : "memory");
  }
}
__device__ __forceinline__ void grid_wait() {
  if (threadIdx.x == 0) {
    const unsigned* counter = step.s.p.counters;
    const unsigned epoch = step.s.epoch;
    unsigned seen;
    do {
      asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(counter) : "memory");
    } while (static_cast<int>(seen - epoch) < 0);
  }
  __syncthreads();
}

// ---- sums over a block ----------------------------------------------------------------------------------------------

// Of kT numbers a thread, in every thread. `turn`: calls in a row use 0 and 1 in turn.
template <int kT>
__device__ __forceinline__ void block_sums(float (&v)[kT], int turn) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  float(&to)[kStepWarps][kStepRows] = step.s.reduce[turn];
#pragma unroll
  for (int t = 0; t < kT; ++t) {
    const float sum = warp_sum(v[t]);
    if (lane == 0) to[warp][t] = sum;
  }
  __syncthreads();
#pragma unroll
  for (int t = 0; t < kT; ++t) {
    float sum = 0;
#pragma unroll
    for (int w = 0; w < kStepWarps; ++w) sum += to[w][t];
    v[t] = sum;
  }
}

// ---- rows of x ------------------------------------------------------------------------------------------------------

// x is held as two BF16 numbers, x ≈ high + low, a row each: products with BF16, INT8, FP8 and INT4 weights lose
// nothing to the rounding of x. Columns lie in their order, or eights of them as (0, 4) (1, 5) (2, 6) (3, 7), the order
// in which a shift and a mask take INT4 codes apart.
__device__ __forceinline__ bool in_nibbles(WeightFormat f) { return f == WeightFormat::kI4; }

__device__ __forceinline__ void put_unit(bool nibbles, std::uint32_t to, const std::uint32_t (&p)[4]) {
  if (nibbles) {
    sts128(to, {__byte_perm(p[0], p[2], 0x5410), __byte_perm(p[0], p[2], 0x7632), __byte_perm(p[1], p[3], 0x5410),
                __byte_perm(p[1], p[3], 0x7632)});
  } else {
    sts128(to, {p[0], p[1], p[2], p[3]});
  }
}
// Eight values of two rows: rounded at `to`, and what the rounding left a row further.
__device__ __forceinline__ void put_split(bool nibbles, std::uint32_t to, int stride, const float (&v)[8]) {
  std::uint32_t high[4], low[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    high[i] = pack_bf16(v[2 * i], v[2 * i + 1]);
    low[i] = pack_bf16(v[2 * i] - bf16_low(high[i]), v[2 * i + 1] - bf16_high(high[i]));
  }
  put_unit(nibbles, to, high);
  put_unit(nibbles, to + stride, low);
}
// Zeros behind the last column of `rows` rows, up to a whole step. By all threads.
__device__ __forceinline__ void put_tail(std::uint32_t to, int stride, int rows, int cols) {
  const int first = cols / 8, n = (stride - 64) / 16 - first;
  for (int i = threadIdx.x; i < rows * n; i += kStepThreads) sts128(to + i / n * stride + (first + i % n) * 16, {});
}

// Eight floats that another block wrote.
__device__ __forceinline__ void load8(const float* from, float (&v)[8]) {
  const float4 a = __ldcg(reinterpret_cast<const float4*>(from)), b = __ldcg(reinterpret_cast<const float4*>(from) + 1);
  v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w, v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
}

__device__ __forceinline__ std::uint32_t lds32(std::uint32_t address) {
  std::uint32_t v;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(address));
  return v;
}
__device__ __forceinline__ void sts64(std::uint32_t address, std::uint32_t a, std::uint32_t b) {
  asm volatile("st.shared.v2.u32 [%0], {%1, %2};" ::"r"(address), "r"(a), "r"(b) : "memory");
}

#endif
}  // namespace glint::cuda
