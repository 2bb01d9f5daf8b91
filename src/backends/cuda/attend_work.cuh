#pragma once
// How attend_decode deals its work out. Work is counted in steps of kTokens tokens, over all sequences: block c of n
// takes the steps [total · c / n, total · (c + 1) / n), whichever sequences those meet.

#include "backends/cuda/common.cuh"
#include "backends/cuda/mla.hpp"

namespace glint::cuda {

constexpr int kTokens = 64;   // of a step: a page
constexpr int kMinSteps = 2;  // of a block: fewer are not worth a piece

// Steps before each sequence, in shared memory.
struct WorkTable {
  int starts[kFewSequences + 1];
  int chunks[kFewSequences / 32];  // sums of 32 sequences
};

// The whole block: a thread a sequence, prefixes by warps, then the sums of whole chunks before each.
__device__ __forceinline__ void count_work(const CacheView& c, int heads, int pairs_a_tile, WorkTable& work) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, stride = static_cast<int>(blockDim.x);
  for (int base = 32 * warp; base < c.n_seqs; base += stride) {
    const int s = base + lane;
    int steps = 0;
    if (s < c.n_seqs) {
      const int rows = c.row_offsets[s + 1] - c.row_offsets[s], context = c.context_tokens[s];
      const int low = c.window > 0 ? max(0, context - rows + 1 - c.window) : 0;
      const int tiles = (rows * heads + pairs_a_tile - 1) / pairs_a_tile;
      if (rows > 0) steps = ((context + kTokens - 1) / kTokens - low / kTokens) * tiles;
    }
#pragma unroll
    for (int d = 1; d < 32; d <<= 1) {
      const int other = __shfl_up_sync(0xffffffffU, steps, d);
      if (lane >= d) steps += other;
    }
    work.starts[s + 1] = steps;
    if (lane == 31) work.chunks[base / 32] = steps;
  }
  if (threadIdx.x == 0) work.starts[0] = 0;
  __syncthreads();
  for (int base = 32 * warp; base < c.n_seqs; base += stride) {
    int before = lane < base / 32 ? work.chunks[lane] : 0;
#pragma unroll
    for (int d = 16; d > 0; d >>= 1) before += __shfl_xor_sync(0xffffffffU, before, d);
    work.starts[base + lane + 1] += before;
  }
  __syncthreads();
}

__device__ __forceinline__ int active_blocks(int total, int n_blocks) {
  return min(n_blocks, (total + kMinSteps - 1) / kMinSteps);
}
// total · n stays below 2^32: a thousand sequences of 200,000 tokens are 3.2 million steps.
__device__ __forceinline__ int range_begin(int total, int n, int c) {
  return static_cast<int>(static_cast<unsigned>(total) * static_cast<unsigned>(c) / static_cast<unsigned>(n));
}
__device__ __forceinline__ int range_of(int total, int n, int step) {
  return static_cast<int>(((static_cast<unsigned>(step) + 1) * static_cast<unsigned>(n) - 1) /
                          static_cast<unsigned>(total));
}

// A tile of (row, head) pairs of one sequence: steps [first, first + steps) of all.
struct Unit {
  int seq, tile, first, steps;
  int row0, rows, context;  // of the sequence
  int low;                  // the first token that any of its rows sees

  __device__ int token(int step) const { return (low / kTokens + step - first) * kTokens; }
};

__device__ __forceinline__ int end_of(const Unit& u) { return u.first + u.steps; }

// The unit that step number `at` belongs to, which some sequence has. All lanes of a warp.
__device__ __forceinline__ Unit unit_of(const CacheView& c, int heads, int pairs_a_tile, const WorkTable& work,
                                        int at) {
  const int lane = threadIdx.x % 32, chunks = (c.n_seqs + 31) / 32;
  const bool over = lane < chunks && work.starts[min(32 * (lane + 1), c.n_seqs)] > at;
  const int base = 32 * (__ffs(__ballot_sync(0xffffffffU, over)) - 1);
  const bool here = base + lane < c.n_seqs && work.starts[base + lane + 1] > at;
  Unit u{};
  u.seq = base + __ffs(__ballot_sync(0xffffffffU, here)) - 1;
  u.row0 = c.row_offsets[u.seq];
  u.rows = c.row_offsets[u.seq + 1] - u.row0;
  u.context = c.context_tokens[u.seq];
  u.low = c.window > 0 ? max(0, u.context - u.rows + 1 - c.window) : 0;
  u.steps = (u.context + kTokens - 1) / kTokens - u.low / kTokens;
  const int start = work.starts[u.seq];
  u.tile = (at - start) / u.steps;
  u.first = start + u.tile * u.steps;
  return u;
}

}  // namespace glint::cuda
