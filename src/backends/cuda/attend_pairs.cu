// As attend_few.cu for BF16 rows and more pairs than its registers hold: tiles of 40. Eight warps do all three of its
// parts, between two barriers each for another step: the products of one step, the softmax of the step before, and the
// sums of the one before that.

#include "backends/cuda/attend_merge.cuh"
#include "backends/cuda/bulk.cuh"
#include "backends/cuda/kv_codec.cuh"

namespace glint::cuda {
namespace {

constexpr int kWarps = 8, kThreads = 32 * (kWarps + 1);
static_assert(kMergeThreads == 32 * kWarps);
constexpr int kRowBytes = kRowWidth * 2;
constexpr int kRow = kRowBytes + 16;  // bytes of a BF16 row in shared memory: rows begin in different banks
constexpr int kScoreStride = kTokens + 4, kWeightStride = kTokens * 2 + 16;
constexpr float kScaleLog2 = 0.0625F * 1.4426950408889634F;  // 1/16, and to base 2

template <int kN8>
struct Layout {
  static constexpr int kPairs = 8 * kN8;
  static constexpr int kStage = kTokens * kRow;
  static constexpr int kScores = 4 * kPairs * kScoreStride * 4;  // twice
  static constexpr int kWeights = kPairs * kWeightStride;        // twice
  static constexpr int kFixed = 2 * kScores + 2 * kWeights + 4 * kPairs * 4 + 256 + static_cast<int>(sizeof(WorkTable));
  static constexpr int kFits = ((227 << 10) - kFixed) / kStage;
  static constexpr int kStages = kFits < 8 ? kFits : 8;
  static constexpr int kBytes = kFixed + kStages * kStage;
};

constexpr int kNothing = -(1 << 20);  // the maximum of no scores

template <int kN8>
__global__ void __launch_bounds__(kThreads, 1) attend_pairs_kernel(const __grid_constant__ FewArgs a) {
#if __CUDA_ARCH__ >= 900
  using L = Layout<kN8>;
  constexpr int kPairs = L::kPairs, kStages = L::kStages;
  extern __shared__ __align__(128) unsigned char smem[];
  const std::uint32_t base = shared_address(smem);
  // stages | weights | scores, then what merging needs | factors, maxima, sums | barriers | work
  const std::uint32_t weights = base + kStages * L::kStage;
  auto* scores = reinterpret_cast<float*>(smem + kStages * L::kStage + 2 * L::kWeights);
  float* factors = scores + 2 * L::kScores / 4;  // [2][kPairs]
  float *last_max = factors + 2 * kPairs, *last_sum = last_max + kPairs;
  const std::uint32_t full = shared_address(last_sum + kPairs), empty = full + 8 * kStages;
  auto& work = *reinterpret_cast<WorkTable*>(last_sum + kPairs + 4 * kStages);
  static_assert(sizeof(MergeMemory) <= 2 * L::kScores);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;

  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) {
      barrier_init(full + 8 * i, 32);
      barrier_init(empty + 8 * i, kWarps);
    }
    barrier_init_fence();
  }
  __syncthreads();
  pdl_launch();
  pdl_wait();

  count_work(a.cache, a.heads, kPairs, work);
  const int total = work.starts[a.cache.n_seqs];
  const int n = active_blocks(total, a.n_blocks), c = static_cast<int>(blockIdx.x);
  if (c >= n) return;
  const int begin = range_begin(total, n, c), end = range_begin(total, n, c + 1);

  if (warp == kWarps) {  // the copying warp: a lane a row
    int stage = 0;
    std::uint32_t phase = 1;  // a fresh barrier's previous phase counts as complete
    for (int at = begin; at < end;) {
      const Unit u = unit_of(a.cache, a.heads, kPairs, work, at);
      const int stop = min(end, u.first + u.steps);
      const std::int32_t* table = a.cache.page_table + static_cast<std::int64_t>(u.seq) * a.cache.max_pages;
      int page_at = -1;
      const unsigned char* page = nullptr;
      for (; at < stop; ++at) {
        const int token = u.token(at);
        if (token / kPageRows != page_at) {
          page_at = token / kPageRows;
          page = static_cast<const unsigned char*>(a.cache.pages) + table[page_at] * a.cache.page_stride;
        }
        barrier_wait(empty + 8 * stage, phase);
        const std::uint32_t to = base + stage * L::kStage, barrier = full + 8 * stage;
        const unsigned char* from = page + token % kPageRows * kRowBytes;
        if (token + lane >= u.low && token + lane < u.context) {
          barrier_expect(barrier, kRowBytes);
          bulk_copy(to + lane * kRow, from + lane * kRowBytes, kRowBytes, barrier);
        } else {
          // Rows that nobody owns may hold anything.
          for (int i = 0; i < kRow / 16; ++i) sts128(to + lane * kRow + 16 * i, {});
          fence_async_proxy();
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
    const Unit u = unit_of(a.cache, a.heads, kPairs, work, at);
    const int start = at, n_steps = min(end, u.first + u.steps) - start;
    const Pieces pieces = pieces_of(u, total, n, a.heads, kPairs);
    const int first_pair = u.tile * kPairs, pairs = pieces.pairs;
    const std::int64_t global_pair = pieces.global_pair;
    const int first_token = u.token(start);

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

    for (int i = -2; i < n_steps; ++i) {
      const int scoring = i + 2, weighing = i + 1;
      if (scoring < n_steps) {
        barrier_wait(full + 8 * arriving.at, arriving.phase);
        const std::uint32_t rows = base + arriving.at * L::kStage;
        arriving.next();
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
        const std::uint32_t rows = base + leaving.at * L::kStage;
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
        __syncwarp();
        if (lane == 0) barrier_arrive(empty + 8 * leaving.at);
        leaving.next();
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
    const std::int64_t slot = static_cast<std::int64_t>(pieces.slot(c - pieces.first)) * kPairs;
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
    if (!direct) announce_piece(a.present, pieces, static_cast<int>(threadIdx.x));
  }
  merge_tiles<kPairs, 1>(a, total, n, c, work, *reinterpret_cast<MergeMemory*>(scores), static_cast<int>(threadIdx.x));
#endif
}

}  // namespace

void attend_pairs(const Launch& l, const Attend& j) {
  constexpr int kN8 = 5;
  using Shape = Layout<kN8>;
  static_assert(Shape::kStages >= 2 && Shape::kBytes <= 227 << 10);
  const FewArgs a = few_args(l, j, Shape::kPairs);
  launch(l, attend_pairs_kernel<kN8>, dim3(static_cast<unsigned>(a.n_blocks)), dim3(kThreads), Shape::kBytes, a);
}

}  // namespace glint::cuda
