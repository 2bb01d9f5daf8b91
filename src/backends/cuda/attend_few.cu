// Attention over the paged latent cache where a sequence has few rows: decoding, with or without drafts. Bound by the
// memory that the cache lies in, so that a latent row is read once for all heads. Compute capability 9.0 and later.
//
// Tokens stand where a product has its 16 rows, (row, head) pairs where it has its columns by eights: 20 heads waste 4
// of 24 columns. A step takes 32 tokens:
//   Sᵀ (32 × pairs) = KV (32 × 576) · Qᵀ      a warp: 16 tokens, a quarter of the 576, Q in registers
//   softmax           a warp: kN8 pairs, a lane a token
//   Oᵀ (512 × pairs) += KV's first 512 columns ᵀ · Pᵀ      a warp: 64 of the 512
// Between two barriers each warp does its parts of the third for one step, of the second for the next step, and of the
// first for the one after: none waits for another. A ninth warp copies rows into a ring of stages ahead of the others,
// by the bulk copy engine. Rows of the short codecs are decoded from the ring into BF16 yet a step earlier.
//
// Work is counted in steps, over all sequences, and dealt out evenly: a block takes a contiguous range of steps,
// whichever sequences that meets. A sequence within one block is finished there; the pieces of others lie in the
// workspace, at most two a block, until merge_kernel adds them in order. Running maxima are whole numbers (see
// attend.cu): where a range begins changes the order of fp32 sums only.

#include "backends/cuda/bulk.cuh"
#include "backends/cuda/kv_codec.cuh"

namespace glint::cuda {
namespace {

constexpr int kTokens = 32, kWarps = 8, kThreads = 32 * (kWarps + 1);
constexpr int kRow = kRowWidth * 2 + 16;  // bytes of a BF16 row in shared memory: rows begin in different banks
constexpr int kMinSteps = 4;              // of a block: fewer are not worth a piece
constexpr int kScoreStride = kTokens + 4, kWeightStride = kTokens * 2 + 16;
constexpr float kScaleLog2 = 0.0625F * 1.4426950408889634F;  // 1/16, and to base 2

struct Args {
  const std::uint16_t* query;
  CacheView cache;
  int heads, n_blocks;
  float* partial;  // [2 · n_blocks · pairs of a tile, 512]
  float2* partial_ml;
  std::uint16_t* latent;
};

template <KvCodec kCodec, int kN8>
struct Layout {
  static constexpr bool kShort = is_short(kCodec);
  static constexpr int kPairs = 8 * kN8;
  static constexpr int kStageRow = kShort ? kCacheRowBytes<kCodec> : kRow;
  static constexpr int kStage = kTokens * kStageRow;
  static constexpr int kScores = 4 * kPairs * kScoreStride * 4;  // twice
  static constexpr int kWeights = kPairs * kWeightStride;        // twice
  static constexpr int kDecoded = kShort ? 4 * kTokens * kRow : 0;
  static constexpr int kFixed = 2 * kScores + 2 * kWeights + kDecoded + 4 * kPairs * 4 + 256;
  static constexpr int kFits = ((227 << 10) - kFixed) / kStage;
  static constexpr int kStages = kFits < 8 ? kFits : 8;
  static constexpr int kBytes = kFixed + kStages * kStage;
};

// ---- asynchronous copies
// ---------------------------------------------------------------------------------------------

#if __CUDA_ARCH__ >= 900
// The eight warps that compute.
__device__ __forceinline__ void sync_workers() { asm volatile("bar.sync 1, 256;" ::: "memory"); }
#endif

// ---- dealing out the work
// --------------------------------------------------------------------------------------------

// A tile of pairs of one sequence: steps [first, first + steps) of all, tokens from 32 · low_step on.
struct Unit {
  int seq, tile, first, steps, low_step, row0, rows, context;
};

struct Sequence {
  int row0, rows, context, low_step, steps, tiles;
};
__device__ Sequence sequence(const CacheView& c, int heads, int pairs_a_tile, int s) {
  Sequence q{};
  if (s >= c.n_seqs) return q;
  q.row0 = c.row_offsets[s];
  q.rows = c.row_offsets[s + 1] - q.row0;
  q.context = c.context_tokens[s];
  if (q.rows <= 0) return q;
  const int low = c.window > 0 ? max(0, q.context - q.rows + 1 - c.window) : 0;
  q.low_step = low / kTokens;
  q.steps = (q.context + kTokens - 1) / kTokens - q.low_step;
  q.tiles = (q.rows * heads + pairs_a_tile - 1) / pairs_a_tile;
  return q;
}

__device__ int warp_prefix(int v, int lane) {  // inclusive
#pragma unroll
  for (int d = 1; d < 32; d <<= 1) {
    const int other = __shfl_up_sync(0xffffffffU, v, d);
    if (lane >= d) v += other;
  }
  return v;
}

// All steps. Every warp counts for itself.
__device__ int total_steps(const CacheView& c, int heads, int pairs_a_tile) {
  const int lane = threadIdx.x % 32;
  int total = 0;
  for (int base = 0; base < c.n_seqs; base += 32) {
    const Sequence q = sequence(c, heads, pairs_a_tile, base + lane);
    int n = q.steps * q.tiles;
#pragma unroll
    for (int d = 16; d > 0; d >>= 1) n += __shfl_xor_sync(0xffffffffU, n, d);
    total += n;
  }
  return total;
}

// The unit that step number `at` belongs to; `at` is below total_steps.
__device__ Unit unit_of(const CacheView& c, int heads, int pairs_a_tile, int at) {
  const int lane = threadIdx.x % 32;
  int before = 0;
  for (int base = 0;; base += 32) {
    const Sequence q = sequence(c, heads, pairs_a_tile, base + lane);
    const int n = q.steps * q.tiles, end = before + warp_prefix(n, lane);
    const unsigned here = __ballot_sync(0xffffffffU, at < end && at >= end - n);
    if (here != 0) {
      const int l = __ffs(here) - 1;
      const auto from = [&](int v) { return __shfl_sync(0xffffffffU, v, l); };
      Unit u{.seq = base + l,
             .steps = from(q.steps),
             .low_step = from(q.low_step),
             .row0 = from(q.row0),
             .rows = from(q.rows),
             .context = from(q.context)};
      const int start = from(end - n);
      u.tile = (at - start) / u.steps;
      u.first = start + u.tile * u.steps;
      return u;
    }
    before = __shfl_sync(0xffffffffU, end, 31);
  }
}

// Block c of n takes the steps [total · c / n, total · (c + 1) / n).
__device__ int active_blocks(int total, int n_blocks) { return min(n_blocks, (total + kMinSteps - 1) / kMinSteps); }
__device__ int range_begin(int total, int n, int c) {
  return static_cast<int>(static_cast<std::int64_t>(total) * c / n);
}
__device__ int range_of(int total, int n, int step) {
  return static_cast<int>(((step + std::int64_t{1}) * n - 1) / total);
}

// ---- the kernel
// ------------------------------------------------------------------------------------------------------

template <int kStages>
struct Ring {
  int stage = 0;
  std::uint32_t phase = 0;
  __device__ __forceinline__ void next() {
    if (++stage == kStages) stage = 0, phase ^= 1U;
  }
};
constexpr int kNothing = -(1 << 20);  // the maximum of no scores

template <KvCodec kCodec, int kN8>
__global__ void __launch_bounds__(kThreads, 1) attend_few_kernel(const __grid_constant__ Args a) {
#if __CUDA_ARCH__ >= 900
  using L = Layout<kCodec, kN8>;
  constexpr int kPairs = L::kPairs, kStages = L::kStages;
  extern __shared__ __align__(128) unsigned char smem[];
  const std::uint32_t base = shared_address(smem);
  // stages | decoded | weights | scores | factors, maxima, sums | barriers
  const std::uint32_t decoded = base + kStages * L::kStage, weights = decoded + L::kDecoded;
  auto* scores = reinterpret_cast<float*>(smem + kStages * L::kStage + L::kDecoded + 2 * L::kWeights);
  float* factors = scores + 2 * L::kScores / 4;  // [2][kPairs]
  float *last_max = factors + 2 * kPairs, *last_sum = last_max + kPairs;
  const std::uint32_t full = shared_address(last_sum + kPairs), empty = full + 8 * kStages;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;

  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) {
      barrier_init(full + 8 * i, 32);
      barrier_init(empty + 8 * i, L::kShort ? 32 * kWarps : kWarps);
    }
    barrier_init_fence();
  }
  __syncthreads();
  pdl_launch();
  pdl_wait();

  const int total = total_steps(a.cache, a.heads, kPairs);
  const int n = active_blocks(total, a.n_blocks), c = static_cast<int>(blockIdx.x);
  if (c >= n) return;
  const int begin = range_begin(total, n, c), end = range_begin(total, n, c + 1);

  if (warp == kWarps) {  // the copying warp: a lane a row
    int stage = 0;
    std::uint32_t phase = 1;  // a fresh barrier's previous phase counts as complete
    for (int at = begin; at < end;) {
      const Unit u = unit_of(a.cache, a.heads, kPairs, at);
      const int stop = min(end, u.first + u.steps);
      const int low = a.cache.window > 0 ? max(0, u.context - u.rows + 1 - a.cache.window) : 0;
      const std::int32_t* table = a.cache.page_table + static_cast<std::int64_t>(u.seq) * a.cache.max_pages;
      int page_at = -1;
      const unsigned char* page = nullptr;
      for (; at < stop; ++at) {
        const int token = (u.low_step + at - u.first) * kTokens;
        if (token / kPageRows != page_at) {
          page_at = token / kPageRows;
          page = static_cast<const unsigned char*>(a.cache.pages) + table[page_at] * a.cache.page_stride;
        }
        barrier_wait(empty + 8 * stage, phase);
        const std::uint32_t to = base + stage * L::kStage, barrier = full + 8 * stage;
        const unsigned char* from = page + token % kPageRows * kCacheRowBytes<kCodec>;
        const bool whole = token >= low && token + kTokens <= u.context;
        if (L::kShort && whole) {
          if (lane == 0) {
            barrier_expect(barrier, L::kStage);
            bulk_copy(to, from, L::kStage, barrier);
          } else {
            barrier_arrive(barrier);
          }
        } else if (token + lane >= low && token + lane < u.context) {
          barrier_expect(barrier, kCacheRowBytes<kCodec>);
          bulk_copy(to + lane * L::kStageRow, from + lane * kCacheRowBytes<kCodec>, kCacheRowBytes<kCodec>, barrier);
        } else {
          if constexpr (!L::kShort) {  // rows that nobody owns may hold anything
            for (int i = 0; i < kRow / 16; ++i) sts128(to + lane * kRow + 16 * i, {});
            fence_async_proxy();
          }
          barrier_arrive(barrier);
        }
        if (++stage == kStages) stage = 0, phase ^= 1U;
      }
    }
    return;
  }

  Ring<kStages> arriving, leaving;  // the stage whose rows are waited for; that which the last product reads
  const int tokens16 = warp % 2 * 16, quarter = warp / 2;  // this warp's part of S
  for (int at = begin; at < end;) {
    const Unit u = unit_of(a.cache, a.heads, kPairs, at);
    const int start = at, n_steps = min(end, u.first + u.steps) - start;
    const int first_pair = u.tile * kPairs, pairs = min(kPairs, u.rows * a.heads - first_pair);
    const std::int64_t global_pair = static_cast<std::int64_t>(u.row0) * a.heads + first_pair;
    const int low = a.cache.window > 0 ? max(0, u.context - u.rows + 1 - a.cache.window) : 0;
    const int first_token = (u.low_step + start - u.first) * kTokens;

    std::uint32_t q[9][kN8][2];
#pragma unroll
    for (int j = 0; j < kN8; ++j) {
      const auto* from = reinterpret_cast<const std::uint32_t*>(a.query + (global_pair + 8 * j + g) * kRowWidth);
#pragma unroll
      for (int k = 0; k < 9; ++k) {
#pragma unroll
        for (int h = 0; h < 2; ++h) q[k][j][h] = 8 * j + g < pairs ? from[(quarter * 9 + k) * 8 + 4 * h + t] : 0U;
      }
    }
    // Softmax: this warp's pairs are warp, warp + 8 …
    int sees_begin[kN8], sees_end[kN8], top[kN8];
    float sum[kN8];
#pragma unroll
    for (int j = 0; j < kN8; ++j) {
      const int pair = warp + 8 * j, row = (first_pair + pair) / a.heads;
      sees_end[j] = pair < pairs ? u.context - u.rows + row + 1 : 0;
      sees_begin[j] = a.cache.window > 0 ? max(0, sees_end[j] - a.cache.window) : 0;
      top[j] = kNothing;
      sum[j] = 0;
    }
    float out[4][kN8][4] = {};

    for (int i = L::kShort ? -3 : -2; i < n_steps; ++i) {
      const int decoding = i + 3, scoring = i + 2, weighing = i + 1;
      if constexpr (L::kShort) {
        if (decoding < n_steps) {
          barrier_wait(full + 8 * arriving.stage, arriving.phase);
          const unsigned char* raw_rows = smem + arriving.stage * L::kStage + warp * (kTokens / kWarps) * L::kStageRow;
          const std::uint32_t rows = decoded + decoding % 4 * kTokens * kRow;
          const int token = first_token + decoding * kTokens;
#pragma unroll
          for (int k = 0; k < kTokens / kWarps; ++k) {
            const int r = warp * (kTokens / kWarps) + k, unit = first_unit<kCodec>(lane);
            RowPart part = decode_part<kCodec>(raw_part<kCodec>(raw_rows + k * L::kStageRow, lane), lane);
            if (token + r < low || token + r >= u.context) part = {};
            sts128(rows + r * kRow + unit * 16, part.unit[0]);
            sts128(rows + r * kRow + (unit + kUnitStep<kCodec>)*16, part.unit[1]);
            sts32(rows + r * kRow + kLatentWidth * 2 + lane * 4, part.rotary);
          }
          barrier_arrive(empty + 8 * arriving.stage);  // each lane for its own reads: racecheck follows that
          arriving.next();
        }
      }

      if (scoring >= 0 && scoring < n_steps) {
        std::uint32_t rows = decoded + scoring % 4 * kTokens * kRow;
        if constexpr (!L::kShort) {
          barrier_wait(full + 8 * arriving.stage, arriving.phase);
          rows = base + arriving.stage * L::kStage;
          arriving.next();
        }
        float s[2][kN8][4] = {};  // two chains of sums: half the waiting
        const std::uint32_t from = rows + (tokens16 + lane % 16) * kRow + quarter * 9 * 32 + lane / 16 * 16;
#pragma unroll
        for (int k = 0; k < 9; ++k) {
          std::uint32_t v[4];
          ldmatrix4(v, from + k * 32);
#pragma unroll
          for (int j = 0; j < kN8; ++j) product(s[k % 2][j], v, q[k][j][0], q[k][j][1]);
        }
        float* to = scores + scoring % 2 * (L::kScores / 4) + (quarter * kPairs + 2 * t) * kScoreStride + tokens16 + g;
#pragma unroll
        for (int j = 0; j < kN8; ++j) {
          to[8 * j * kScoreStride] = s[0][j][0] + s[1][j][0];
          to[(8 * j + 1) * kScoreStride] = s[0][j][1] + s[1][j][1];
          to[8 * j * kScoreStride + 8] = s[0][j][2] + s[1][j][2];
          to[(8 * j + 1) * kScoreStride + 8] = s[0][j][3] + s[1][j][3];
        }
      }

      if (i >= 0) {
        const std::uint32_t rows = L::kShort ? decoded + i % 4 * kTokens * kRow : base + leaving.stage * L::kStage;
        float2 factor[kN8];
        bool same = true;
#pragma unroll
        for (int j = 0; j < kN8; ++j) {
          factor[j] = *reinterpret_cast<const float2*>(factors + i % 2 * kPairs + 8 * j + 2 * t);
          same = same && factor[j].x == 1.0F && factor[j].y == 1.0F;
        }
        std::uint32_t p[kN8][4];
#pragma unroll
        for (int j = 0; j < kN8; ++j)
          ldmatrix4(p[j], weights + i % 2 * L::kWeights + (8 * j + lane % 8) * kWeightStride + lane / 8 * 16);
        if (!__all_sync(0xffffffffU, same)) {
#pragma unroll
          for (int m = 0; m < 4; ++m) {
#pragma unroll
            for (int j = 0; j < kN8; ++j) {
              out[m][j][0] *= factor[j].x, out[m][j][1] *= factor[j].y;
              out[m][j][2] *= factor[j].x, out[m][j][3] *= factor[j].y;
            }
          }
        }
        const std::uint32_t from = rows + (lane / 16 * 8 + lane % 8) * kRow + (warp * 64 + lane / 8 % 2 * 8) * 2;
#pragma unroll
        for (int k = 0; k < kTokens / 16; ++k) {
#pragma unroll
          for (int m = 0; m < 4; ++m) {
            std::uint32_t v[4];
            ldmatrix4_trans(v, from + k * 16 * kRow + m * 32);
#pragma unroll
            for (int j = 0; j < kN8; ++j) product(out[m][j], v, p[j][2 * k], p[j][2 * k + 1]);
          }
        }
        if constexpr (!L::kShort) {
          __syncwarp();
          if (lane == 0) barrier_arrive(empty + 8 * leaving.stage);
          leaving.next();
        }
      }

      if (weighing >= 0 && weighing < n_steps) {
        const int token = first_token + weighing * kTokens + lane;
        const float* from = scores + weighing % 2 * (L::kScores / 4) + warp * kScoreStride + lane;
        const std::uint32_t to = weights + weighing % 2 * L::kWeights + warp * kWeightStride + lane * 2;
        float v[kN8];
        int m[kN8];
#pragma unroll
        for (int j = 0; j < kN8; ++j) {
          const float* at_pair = from + 8 * j * kScoreStride;
          v[j] = (at_pair[0] + at_pair[kPairs * kScoreStride]) +
                 (at_pair[2 * kPairs * kScoreStride] + at_pair[3 * kPairs * kScoreStride]);
          const bool seen = token >= sees_begin[j] && token < sees_end[j];
          v[j] = seen ? v[j] * kScaleLog2 : -INFINITY;
          m[j] = seen ? __float2int_ru(v[j]) : kNothing;
        }
#pragma unroll
        for (int j = 0; j < kN8; ++j) m[j] = max(top[j], __reduce_max_sync(0xffffffffU, m[j]));
#pragma unroll
        for (int j = 0; j < kN8; ++j) {
          // Where nothing is seen so far, m is far below: every weight is 2^-inf = 0 and the factor 2^0.
          const float factor = power_of_two(static_cast<float>(top[j] - m[j]));
          const __nv_bfloat16 p = __float2bfloat16_rn(power_of_two(v[j] - static_cast<float>(m[j])));
          top[j] = m[j];
          sum[j] = sum[j] * factor + __bfloat162float(p);
          asm volatile("st.shared.b16 [%0], %1;" ::"r"(to + 8 * j * kWeightStride), "h"(__bfloat16_as_ushort(p)));
          if (lane == 0) factors[weighing % 2 * kPairs + warp + 8 * j] = factor;
        }
      }
      sync_workers();
    }
    at += n_steps;

#pragma unroll
    for (int j = 0; j < kN8; ++j) {
      const float total_sum = warp_sum(sum[j]);
      if (lane == 0) last_max[warp + 8 * j] = static_cast<float>(top[j]), last_sum[warp + 8 * j] = total_sum;
    }
    sync_workers();
    const bool direct = n_steps == u.steps;
    const std::int64_t slot = (2 * static_cast<std::int64_t>(c) + (u.first <= begin ? 0 : 1)) * kPairs;
#pragma unroll
    for (int j = 0; j < kN8; ++j) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int pair = 8 * j + 2 * t + e;
        if (pair >= pairs) continue;
        const int column = warp * 64 + g;
        if (direct) {
          const float inverse = 1.0F / last_sum[pair];
          auto* to = reinterpret_cast<__nv_bfloat16*>(a.latent) + (global_pair + pair) * kLatentWidth + column;
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            to[16 * i] = __float2bfloat16_rn(out[i][j][e] * inverse);
            to[16 * i + 8] = __float2bfloat16_rn(out[i][j][2 + e] * inverse);
          }
        } else {
          float* to = a.partial + (slot + pair) * kLatentWidth + column;
#pragma unroll
          for (int i = 0; i < 4; ++i) to[16 * i] = out[i][j][e], to[16 * i + 8] = out[i][j][2 + e];
          if (warp == 0 && g == 0) a.partial_ml[slot + pair] = {last_max[pair], last_sum[pair]};
        }
      }
    }
  }
#endif
}

// Block (pair, 128 columns): eight groups of threads add every eighth piece, then the eight sums are added in order.
constexpr int kMergeGroups = 8;
__global__ void __launch_bounds__(32 * kMergeGroups)
    merge_few_kernel(const __grid_constant__ Args a, int pairs_a_tile) {
  constexpr int kThreadsHere = 32 * kMergeGroups;
  __shared__ float4 sums[kMergeGroups][32];
  __shared__ float factors[kThreadsHere], totals[kMergeGroups], maxima[kMergeGroups];
  __shared__ int slots[kThreadsHere];
  pdl_launch();
  pdl_wait();
  const int lane = threadIdx.x % 32, group = threadIdx.x / 32;
  const int row = static_cast<int>(blockIdx.x) / a.heads;
  const int total = total_steps(a.cache, a.heads, pairs_a_tile);
  if (total == 0) return;
  const int n = active_blocks(total, a.n_blocks);
  // The sequence of this row, and the steps before it.
  int before = 0;
  Sequence q{};
  for (int base = 0; base < a.cache.n_seqs; base += 32) {
    const Sequence mine = sequence(a.cache, a.heads, pairs_a_tile, base + lane);
    const int steps = mine.steps * mine.tiles, last = before + warp_prefix(steps, lane);
    const unsigned here = __ballot_sync(0xffffffffU, row >= mine.row0 && row < mine.row0 + mine.rows);
    if (here != 0) {
      const int l = __ffs(here) - 1;
      const auto from = [&](int v) { return __shfl_sync(0xffffffffU, v, l); };
      q = {from(mine.row0),     from(mine.rows),  from(mine.context),
           from(mine.low_step), from(mine.steps), from(mine.tiles)};
      before = from(last - steps);
      break;
    }
    before = __shfl_sync(0xffffffffU, last, 31);
  }
  if (q.rows == 0) return;
  const int pair = static_cast<int>(blockIdx.x) - q.row0 * a.heads, tile = pair / pairs_a_tile;
  const int first_step = before + tile * q.steps;
  const int first = range_of(total, n, first_step), last = range_of(total, n, first_step + q.steps - 1);
  if (first == last) return;  // finished by its block
  // A thread a piece: where it lies, and the factor that makes it one of the whole.
  const int piece = static_cast<int>(threadIdx.x), n_pieces = last - first + 1;
  int slot = 0;
  float2 ml{-INFINITY, 0};
  if (piece < n_pieces) {
    const int c = first + piece;
    slot = (2 * c + (first_step <= range_begin(total, n, c) ? 0 : 1)) * pairs_a_tile + pair % pairs_a_tile;
    ml = a.partial_ml[slot];
  }
  float top = ml.x;
#pragma unroll
  for (int d = 16; d > 0; d >>= 1) top = fmaxf(top, __shfl_xor_sync(0xffffffffU, top, d));
  if (lane == 0) maxima[group] = top;
  __syncthreads();
#pragma unroll
  for (int k = 0; k < kMergeGroups; ++k) top = fmaxf(top, maxima[k]);
  const float factor = exp2f(ml.x - top), weight = warp_sum(factor * ml.y);
  factors[piece] = factor;
  slots[piece] = slot;
  if (lane == 0) totals[group] = weight;
  __syncthreads();
  float4 sum{};
#pragma unroll 8
  for (int k = group; k < n_pieces; k += kMergeGroups) {
    const float w = factors[k];
    const float4 v = reinterpret_cast<const float4*>(a.partial + static_cast<std::int64_t>(slots[k]) *
                                                                     kLatentWidth)[blockIdx.y * 32 + lane];
    sum.x += w * v.x, sum.y += w * v.y, sum.z += w * v.z, sum.w += w * v.w;
  }
  sums[group][lane] = sum;
  __syncthreads();
  if (group != 0) return;
  float whole = 0;
  sum = {};
#pragma unroll
  for (int k = 0; k < kMergeGroups; ++k) {
    const float4 v = sums[k][lane];
    whole += totals[k];
    sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
  }
  const float inverse = 1.0F / whole;
  reinterpret_cast<uint2*>(a.latent + static_cast<std::int64_t>(blockIdx.x) * kLatentWidth)[blockIdx.y * 32 + lane] = {
      pack_bf16(sum.x * inverse, sum.y * inverse), pack_bf16(sum.z * inverse, sum.w * inverse)};
}

template <KvCodec kCodec, int kN8>
void run(const Launch& l, const Attend& j) {
  using Shape = Layout<kCodec, kN8>;
  static_assert(Shape::kStages >= 2 && Shape::kBytes <= 227 << 10);
  Args a{};
  a.query = static_cast<const std::uint16_t*>(j.query);
  a.cache = j.cache;
  a.heads = j.heads;
  // No more blocks than merge_few_kernel has threads for their pieces.
  a.n_blocks =
      static_cast<int>(std::min<std::int64_t>({l.n_sms, 32 * kMergeGroups, j.partial_rows / (2 * Shape::kPairs)}));
  a.partial = j.partial;
  a.partial_ml = j.partial_ml;
  a.latent = static_cast<std::uint16_t*>(j.latent);
  launch(l, attend_few_kernel<kCodec, kN8>, dim3(static_cast<unsigned>(a.n_blocks)), dim3(kThreads), Shape::kBytes, a);
  launch(l, merge_few_kernel, dim3(static_cast<unsigned>(j.T * j.heads), kLatentWidth / 128), dim3(32 * kMergeGroups),
         0, a, Shape::kPairs);
}

template <KvCodec kCodec>
void run(const Launch& l, const Attend& j) {
  const std::int64_t pairs = (j.T + j.cache.n_seqs - 1) / j.cache.n_seqs * j.heads;  // of a sequence, on average
  if (pairs <= 8) return run<kCodec, 1>(l, j);
  if (pairs <= 16) return run<kCodec, 2>(l, j);
  if (pairs <= 24) return run<kCodec, 3>(l, j);
  if constexpr (is_short(kCodec)) {
    run<kCodec, 3>(l, j);
  } else {
    run<kCodec, 5>(l, j);
  }
}

}  // namespace

// So much shared memory implies compute capability 9.0.
bool attend_few_takes(const Launch& l, const Attend& j) {
  return l.smem_limit >= 227 << 10 && j.cache.codec != KvCodec::kF32 && j.cache.n_seqs > 0 &&
         j.T * j.heads <= std::int64_t{kFewPairs} * j.cache.n_seqs && j.partial_rows >= 2 * kFewTile;
}

void attend_few(const Launch& l, const Attend& j) {
  switch (j.cache.codec) {
    case KvCodec::kBF16:
      return run<KvCodec::kBF16>(l, j);
    case KvCodec::kFp8:
      return run<KvCodec::kFp8>(l, j);
    case KvCodec::kInt8:
      return run<KvCodec::kInt8>(l, j);
    case KvCodec::kInt4:
      return run<KvCodec::kInt4>(l, j);
    case KvCodec::kF32:
    case KvCodec::kF16:
      break;
  }
}

}  // namespace glint::cuda
