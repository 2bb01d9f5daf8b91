#pragma once
// Attention within the decode step: the context in runs of 32 tokens, dealt out over the grid. A block takes
// neighbouring runs, where the context is not long of eight of the heads only, and leaves a piece: maximum, sum and
// latent numbers of each head. Here is what pieces are, the softmax, and how many pieces become one; decode_attend.cuh,
// decode_attend_codes.cuh and, of all heads and whole pages, decode_attend_pages.cuh make them.

#include "backends/cuda/decode_join.cuh"

namespace glint::cuda {

constexpr int kStepTokens = 32;
constexpr int kScoreParts = 4;  // of a token's row: warps add up to its scores

// Bytes of a head's row of scores and of its weights in 16 bits: neighbouring heads' rows begin in other banks.
__host__ __device__ constexpr int score_row(int tokens) { return tokens * 4 + 16; }
__host__ __device__ constexpr int weight_row(int tokens) { return tokens * 2 + 16; }

// Where things of a piece of 8 kEights heads lie from x on, so many tokens at a time.
template <int kEights, int kTokens, int kQueryBytes, int kScaleBytes>
struct PieceLayout {
  static constexpr int kHeads = 8 * kEights;
  static constexpr int kWeights = kScoreParts * kHeads * score_row(kTokens);  // behind the scores
  static constexpr int kFactors = kWeights + kHeads * weight_row(kTokens);
  static constexpr int kScales = kFactors + kHeads * 4;  // of rows
  // Queries lie where the scores do: they are in registers before the first ones come.
  static constexpr int kQueries = kHeads * kQueryBytes, kEnd = kScales + kScaleBytes;
  static constexpr int kQueryScales = kQueries > kEnd ? kQueries : kEnd;
  static constexpr int kRows = (kQueryScales + kHeads * 4 + 127) / 128 * 128;
};

}  // namespace glint::cuda

#if __CUDA_ARCH__ >= 900
namespace glint::cuda {

constexpr int kDirectPieces = 64;                            // more are merged in a stage of their own
constexpr int kMergedPieces = 136;                           // at most
constexpr float kStepScale = 0.0625F * 1.4426950408889634F;  // 1/16, and to base 2

// By one thread, once a step: the layers have one answer.
__device__ __noinline__ void plan_context() {
  StepContext& c = step.s.context;
  const CacheView& cache = step.s.p.cache;
  const int blocks = static_cast<int>(gridDim.x), b = static_cast<int>(blockIdx.x), heads = step.s.p.heads;
  while (c.seq + 1 < cache.n_seqs && cache.row_offsets[c.seq + 1] == 0) ++c.seq;  // sequences without a row
  c.end = cache.context_tokens[c.seq];
  c.begin = cache.window > 0 ? max(0, c.end - cache.window) : 0;
  int first = c.begin / kStepTokens, runs = (c.end - 1) / kStepTokens - first + 1;
  const int per = runs > 128 ? 1 : runs > 64 ? 3 : runs > 16 ? 2 : 1;  // a piece more takes time when they are added
  c.pieces = min((runs + per - 1) / per, min(blocks, kMergedPieces));
  // Reading rows for each eight heads costs less than adding up more pieces, where the context is not long.
  const int eights = (heads + 7) / 8, groups = step.s.p.far ? 1 : eights;
  c.pieces = min(c.pieces, groups == 1 ? blocks : min(blocks / groups, kDirectPieces));
  c.piece = b / groups;
  c.first_head = b % groups * 8;
  c.heads = groups == 1 ? heads : min(8, heads - c.first_head);
  c.by_page = c.heads > 8 && is_short(cache.codec);
  const int tokens = c.by_page ? kPageRows : kStepTokens;
  if (c.by_page) {
    first = c.begin / kPageRows, runs = (c.end - 1) / kPageRows - first + 1;
    c.pieces = min(runs, c.pieces);
  }
  const auto part = [&](int i) { return static_cast<int>(static_cast<std::int64_t>(i) * runs / c.pieces); };
  const int begin = part(c.piece), end = c.piece < c.pieces ? part(c.piece + 1) : begin;
  c.token = (first + begin) * tokens;
  c.runs = end - begin;
  c.merge = step.s.p.far || c.pieces > kDirectPieces;
}

__device__ __forceinline__ std::int64_t piece_row(int piece, int head) {
  return static_cast<std::int64_t>(piece) * step.s.p.heads + head;
}

__device__ __forceinline__ bool sees(const StepContext& c, int token) { return token >= c.begin && token < c.end; }

// Where runs lie: what the loop over them needs, in registers.
struct PieceRows {
  const unsigned char* pages;  // of the layer
  const std::int32_t* table;   // of the sequence
  std::int64_t page_stride;
  int end;

  __device__ __forceinline__ PieceRows(const StepContext& c, int layer)
      : pages(static_cast<const unsigned char*>(step.s.p.cache.pages) + layer * step.s.p.layer_stride),
        table(step.s.p.cache.page_table + static_cast<std::int64_t>(c.seq) * step.s.p.cache.max_pages),
        page_stride(step.s.p.cache.page_stride),
        end(c.end) {}
  // The page that `token` lies in: asked for a run before its rows are.
  __device__ __forceinline__ std::int32_t page_of(int token) const {
    return token < end ? __ldg(table + token / kPageRows) : 0;
  }
  template <int kRowBytes>
  __device__ __forceinline__ const unsigned char* rows_of(std::int32_t page, int token) const {
    return pages + page * page_stride + token % kPageRows * kRowBytes;
  }
};

__device__ __forceinline__ float largest_of_warp(float v) {  // of magnitudes
  return __uint_as_float(__reduce_max_sync(0xffffffffU, __float_as_uint(v)));
}

// A head's query: a lane's latent values 128 i + 4 lane … of i < 4, and its two rotary ones.
struct QueryPart {
  float4 latent[4];
  float2 rotary;
};
// Of parts, the sum of what the head's blocks left, all of it on its way at once.
template <StepQueries kQueries>
__device__ __forceinline__ QueryPart query_part(int head) {
  constexpr bool kJoined = kQueries == StepQueries::kParts;
  constexpr int kParts = kJoined ? kStepJoinParts : 1;
  const int lane = threadIdx.x % 32, parts = kJoined ? step.s.join.parts : 1, stride = step.s.p.heads * kLatentWidth;
  const float* latent =
      (kQueries == StepQueries::kSummed ? step.s.p.latent : step.s.p.query) + head * kLatentWidth + 4 * lane;
  float4 part[kParts][4];
#pragma unroll
  for (int k = 0; k < kParts; ++k) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      part[k][i] = {};
      if (!kJoined || k < parts) part[k][i] = __ldcg(reinterpret_cast<const float4*>(latent + k * stride + 128 * i));
    }
  }
  QueryPart q;
  q.rotary = __ldcg(reinterpret_cast<const float2*>(step.s.p.q + head * kQkWidth + kNopeWidth) + lane);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    q.latent[i] = part[0][i];
#pragma unroll
    for (int k = 1; k < kParts; ++k) {
      const float4& v = part[k][i];
      q.latent[i].x += v.x, q.latent[i].y += v.y, q.latent[i].z += v.z, q.latent[i].w += v.w;
    }
  }
  return q;
}
// H over a head's latent values as a lane has them: of a block's number, value / 16, three bits are the lane's. The
// order of the sums is not kv_hadamard's.
__device__ __forceinline__ void query_hadamard(float (&v)[16], int lane) {
#pragma unroll
  for (int d = 4; d < 16; d *= 2) {
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      if ((i & d) != 0) continue;
      const float a = v[i], b = v[i + d];
      v[i] = a + b, v[i + d] = a - b;
    }
  }
#pragma unroll 1
  for (int d = 4; d < 32; d *= 2) {
    const float sign = (lane & d) != 0 ? -1.0F : 1.0F;
#pragma unroll
    for (float& x : v) x = fmaf(x, sign, __shfl_xor_sync(0xffffffffU, x, d));
  }
#pragma unroll
  for (float& x : v) x *= 0.176776695F;
}

// put(h, latent, rotary) for each of this warp's heads h = warp + 8 j, latent under H where the codec has it. There in
// a loop: this code runs once a layer, and instructions that are not in the cache take longer than the work.
template <KvCodec kCodec, int kEights, StepQueries kQueries, typename Put>
__device__ __forceinline__ void for_queries(const Put& put) {
  constexpr bool kTurns = is_rotated(kCodec) && kQueries != StepQueries::kSummed;
  const int lane = threadIdx.x % 32, heads = step.s.context.heads, first = step.s.context.first_head;
  int h = static_cast<int>(threadIdx.x / 32);
  const auto hand_over = [&](int head, const QueryPart& q) {
    float v[16];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float4& f = q.latent[i];
      v[4 * i] = f.x, v[4 * i + 1] = f.y, v[4 * i + 2] = f.z, v[4 * i + 3] = f.w;
    }
    if constexpr (kTurns) query_hadamard(v, lane);
    put(head, v, q.rotary);
  };
  if constexpr (!is_rotated(kCodec)) {
    QueryPart q[kEights];
#pragma unroll
    for (int j = 0; j < kEights; ++j) q[j] = query_part<kQueries>(first + min(h + j * kStepWarps, heads - 1));
#pragma unroll
    for (int j = 0; j < kEights; ++j) {
      if (h + j * kStepWarps < heads) hand_over(h + j * kStepWarps, q[j]);
    }
  } else {
    if (h >= heads) return;
    QueryPart q = query_part<kQueries>(first + h);
#pragma unroll 1
    while (true) {
      const QueryPart now = q;
      const int next = h + kStepWarps;
      if (kEights > 1 && next < heads) q = query_part<kQueries>(first + next);
      hand_over(h, now);
      if (kEights == 1 || next >= heads) break;
      h = next;
    }
  }
}

// The softmax of a piece, 32 kRuns tokens at a time: a warp has every eighth head, a lane every 32nd token.
template <int kEights, int kRuns>
struct PieceSoftmax {
  static constexpr int kScoreRow = score_row(kRuns * kStepTokens);
  static constexpr int kScorePart = 8 * kEights * kScoreRow;  // bytes from part to part
  float top[kEights], sum[kEights];                           // of the heads warp + 8 i; sum: of this lane's tokens

  __device__ __forceinline__ PieceSoftmax() {
#pragma unroll
    for (int i = 0; i < kEights; ++i) top[i] = -INFINITY, sum[i] = 0;
  }
  // Takes scores, parts still to be added and multiplied by `scale`, and leaves by how much what was summed before is
  // to be multiplied. put(i, r, weight) stores a weight of this lane and returns what it counts as in the sum.
  template <typename Put>
  __device__ __forceinline__ void weigh(std::uint32_t scores, std::uint32_t factors, const bool (&seen)[kRuns],
                                        const float (&scale)[kEights], const Put& put) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    float best[kEights], score[kEights][kRuns];
#pragma unroll
    for (int i = 0; i < kEights; ++i) {
      best[i] = top[i];
#pragma unroll
      for (int r = 0; r < kRuns; ++r) {
        float v[kScoreParts];
#pragma unroll
        for (int k = 0; k < kScoreParts; ++k) {
          v[k] = __uint_as_float(lds32(
              scores + static_cast<std::uint32_t>(k * kScorePart + (warp + 8 * i) * kScoreRow + (32 * r + lane) * 4)));
        }
        score[i][r] = seen[r] ? ((v[0] + v[1]) + (v[2] + v[3])) * scale[i] : -INFINITY;
        best[i] = fmaxf(best[i], score[i][r]);
      }
    }
#pragma unroll
    for (int d = 16; d > 0; d >>= 1) {
#pragma unroll
      for (int i = 0; i < kEights; ++i) best[i] = fmaxf(best[i], __shfl_xor_sync(0xffffffffU, best[i], d));
    }
#pragma unroll
    for (int i = 0; i < kEights; ++i) {
      const bool any = best[i] > -INFINITY;
      const float factor = any ? power_of_two(top[i] - best[i]) : 1.0F;
      float counts = 0;
#pragma unroll
      for (int r = 0; r < kRuns; ++r) counts += put(i, r, any ? power_of_two(score[i][r] - best[i]) : 0.0F);
      if (lane == 0) sts32(factors + static_cast<std::uint32_t>(warp + 8 * i) * 4, __float_as_uint(factor));
      sum[i] = fmaf(sum[i], factor, counts);
      top[i] = best[i];
    }
  }
  __device__ __forceinline__ void store() const {
    const StepContext& c = step.s.context;
#pragma unroll
    for (int i = 0; i < kEights; ++i) {
      const float all = warp_sum(sum[i]);
      const int head = static_cast<int>(threadIdx.x / 32) + 8 * i;
      if (threadIdx.x % 32 == 0 && head < c.heads)
        step.s.p.partial_ml[piece_row(c.piece, c.first_head + head)] = {top[i], all};
    }
  }
};

// Many pieces: (head, 128 columns) a block at a time, a warp every eighth piece. They come through shared memory, where
// each thread has places of its own: a loop over registers would be straight code.
constexpr int kMergeWeights = kMergedPieces / kStepWarps * kStepThreads * 16;  // behind the pieces: [warp][piece]
static_assert(kMergedPieces % kStepWarps == 0 &&
              kMergeWeights + kStepWarps * ((kMergedPieces + 31) / 32) * 128 <= kJoinBytes + kNotes);
__device__ __forceinline__ void merge_pieces() {
  constexpr int kParts = kLatentWidth / 128, kWeights = (kMergedPieces + 31) / 32;
  const int tid = threadIdx.x, lane = tid % 32, warp = tid / 32, heads = step.s.p.heads, n = step.s.context.pieces;
  const std::uint32_t places = step.s.x + static_cast<std::uint32_t>(tid * 16),
                      weights = step.s.x + static_cast<std::uint32_t>(kMergeWeights + warp * kWeights * 128);
  const std::int64_t stride = std::int64_t{kStepWarps * kLatentWidth} * heads;
#pragma unroll 1
  for (int unit = blockIdx.x; unit < heads * kParts; unit += gridDim.x) {
    const int h = unit / kParts, part = unit % kParts;
    // A lane's pieces are lane, lane + 32 …
    float2 ml[kWeights];
#pragma unroll
    for (int i = 0; i < kWeights; ++i) {
      ml[i] = {-INFINITY, 0};
      if (lane + 32 * i < n) ml[i] = __ldcg(step.s.p.partial_ml + piece_row(lane + 32 * i, h));
    }
    const float* from = step.s.p.partial + piece_row(warp, h) * kLatentWidth + part * 128 + lane * 4;
    std::uint32_t to = places;
#pragma unroll 2
    for (int i = warp; i < n; i += kStepWarps, to += kStepThreads * 16, from += stride) cp_async16(to, from);
    cp_async_commit();
    float top = -INFINITY, total = 0;
#pragma unroll
    for (int i = 0; i < kWeights; ++i) top = fmaxf(top, ml[i].x);
#pragma unroll
    for (int d = 16; d > 0; d >>= 1) top = fmaxf(top, __shfl_xor_sync(0xffffffffU, top, d));
#pragma unroll
    for (int i = 0; i < kWeights; ++i) {
      const float weight = power_of_two(ml[i].x - top);
      total = fmaf(weight, ml[i].y, total);
      sts32(weights + static_cast<std::uint32_t>((lane + 32 * i) * 4), __float_as_uint(weight));
    }
    total = warp_sum(total);
    __syncwarp();
    cp_async_wait<0>();
    float4 sum{};
    to = places;
    std::uint32_t by = weights + static_cast<std::uint32_t>(warp * 4);
#pragma unroll 4
    for (int i = warp; i < n; i += kStepWarps, to += kStepThreads * 16, by += kStepWarps * 4) {
      const uint4 v = lds128(to);
      const float w = __uint_as_float(lds32(by));
      sum.x = fmaf(w, __uint_as_float(v.x), sum.x), sum.y = fmaf(w, __uint_as_float(v.y), sum.y);
      sum.z = fmaf(w, __uint_as_float(v.z), sum.z), sum.w = fmaf(w, __uint_as_float(v.w), sum.w);
    }
    step_sync();  // all pieces and the last unit's sums are read
    sts128(places, {__float_as_uint(sum.x), __float_as_uint(sum.y), __float_as_uint(sum.z), __float_as_uint(sum.w)});
    step_sync();
    if (tid < 128) {
      float all = 0;
#pragma unroll
      for (int w = 0; w < kStepWarps; ++w) all += __uint_as_float(lds32(step.s.x + (w * 128 + tid) * 4));
      step.s.p.latent[h * kLatentWidth + part * 128 + tid] = __fdividef(all, total);
    }
    if (unit + static_cast<int>(gridDim.x) < heads * kParts) step_sync();  // else the next stage's barriers do
  }
}

}  // namespace glint::cuda
#endif
