#pragma once
// W_UK in the stage of W_qb. A block has rows of W_qb of one head; each of their outputs multiplies a row of W_UK: the
// block leaves its part of the head's latent query.
//
// Where contexts are not long attention adds up the parts of its heads' blocks (query_part): a stage of the grid less.
// It then follows the stage in which this token's row of the cache is made: who reads that row waits for it alone,
// mostly not at all. Where they are long every block wants all heads: the stage remains, a block a head adds up its
// parts and puts them under H (sum_query), and no block does that for all.

#include "backends/cuda/decode_work.cuh"

namespace glint::cuda {

constexpr int kJoinRows = 64;      // of W_UK that a block has at most
constexpr int kJoinValues = 8448;  // q_nope, behind x of this stage and of the one before
static_assert(kJoinValues >= 2 * x_stride(8 * kStepThreads));
constexpr int kJoinPlaces = kJoinValues + kJoinRows * 4, kJoinBytes = kJoinPlaces + kJoinRows * kLatentWidth * 2;

// Whether a grid of so many blocks can.
constexpr bool joins(int blocks, int heads) {
  const int per = (blocks - 1) / heads;
  return per >= kQkWidth / kJoinRows && per <= kQkWidth / (kNopeWidth / kStepJoinParts);
}

}  // namespace glint::cuda

#if __CUDA_ARCH__ >= 900
namespace glint::cuda {

// By one thread, once a step.
__device__ __forceinline__ void plan_join() {
  StepJoin& j = step.s.join;
  const Range mine = share_of_head(kQkWidth, 8);
  j = {};
  const int per = blocks_of_head();
  j.parts = (kNopeWidth * per + kQkWidth - 1) / kQkWidth;  // the blocks that begin among them
  if (mine.begin == mine.end) return;
  j.head = mine.begin / kQkWidth;
  j.part = static_cast<int>(blockIdx.x) - j.head * per;
  j.first = mine.begin - j.head * kQkWidth;
  j.rows = max(0, min(kNopeWidth, j.first + mine.end - mine.begin) - j.first);
}

// The block's rows of W_UK, which lie one behind the other, on their way into shared memory.
__device__ __forceinline__ void fetch_join(const StepLayer& layer) {
  const StepJoin j = step.s.join;
  const char* from = static_cast<const char*>(layer.kv_b) +
                     (static_cast<std::int64_t>(j.head) * (kNopeWidth + kQkWidth) + j.first) * (kLatentWidth * 2) +
                     threadIdx.x * 16;
  const std::uint32_t to = step.s.x + kJoinPlaces + threadIdx.x * 16;
#pragma unroll 2
  for (int i = 0; i < j.rows * (kLatentWidth * 2 / 16); i += kStepThreads)
    cp_async16(to + static_cast<std::uint32_t>(i * 16), from + i * 16);
  cp_async_commit();
}

// Where finish() leaves this block's output i of W_qb.
__device__ __forceinline__ std::uint32_t join_value(int i) {
  return step.s.x + static_cast<std::uint32_t>(kJoinValues + i * 4);
}

// The part of the latent query of this block's rows, in fp32: two columns a thread.
__device__ __forceinline__ void leave_part() {
  const StepJoin j = step.s.join;
  cp_async_wait<0>();
  step_sync();
  if (j.rows == 0) return;
  float2 sum[2] = {};
  std::uint32_t from = step.s.x + kJoinPlaces + threadIdx.x * 4, q = join_value(0);
#pragma unroll 1
  for (int i = 0; i < j.rows; i += 8) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const uint4 f = lds128(q + static_cast<std::uint32_t>(h * 16));
      const float by[4] = {__uint_as_float(f.x), __uint_as_float(f.y), __uint_as_float(f.z), __uint_as_float(f.w)};
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const std::uint32_t pair = lds32(from + static_cast<std::uint32_t>((4 * h + e) * kLatentWidth * 2));
        sum[e % 2].x = fmaf(bf16_low(pair), by[e], sum[e % 2].x);
        sum[e % 2].y = fmaf(bf16_high(pair), by[e], sum[e % 2].y);
      }
    }
    from += 8 * kLatentWidth * 2;
    q += 32;
  }
  auto* to = reinterpret_cast<float2*>(step.s.p.query + (j.part * step.s.p.heads + j.head) * kLatentWidth);
  to[threadIdx.x] = {sum[0].x + sum[1].x, sum[0].y + sum[1].y};
}

// ---- this token's row of the cache ----------------------------------------------------------------------------------

// By all working threads of the block that wrote it.
__device__ __forceinline__ void announce_row(int layer) {
  step_sync();
  if (threadIdx.x != 0) return;
  asm volatile("fence.release.gpu;" ::: "memory");
  asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(step.s.p.counters + kRowCounter), "r"(layer + 1) : "memory");
}
// For loads that pass by the first-level cache.
__device__ __forceinline__ void wait_for_row(int layer) {
  unsigned seen;
  do {
    asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(step.s.p.counters + kRowCounter) : "memory");
  } while (seen != static_cast<unsigned>(layer + 1));
}

}  // namespace glint::cuda
#endif
