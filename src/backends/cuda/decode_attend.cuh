#pragma once
// Attention within the decode step: the context in runs of 32 tokens, dealt out evenly over the grid. A block of the
// grid takes neighbouring runs and leaves a piece: the running maximum, the sum, and the latent numbers of all heads;
// where the context is short, of a group of heads, so that as many blocks as there are share the work. Heads stand in a
// product's 16 rows (20 waste 12 of 32).
//   S (heads × 32) = Q (heads × 576) · KVᵀ         a warp of eight: 16 heads, 8 tokens
//   softmax                                        a warp: 2 heads, a lane a token
//   O (heads × 512) += P · KV's first 512 columns  a warp: 32 of the 512
// The next 32 rows are on their way while these are worked on.

#include "backends/cuda/decode_work.cuh"

namespace glint::cuda {

constexpr int kStepTokens = 32, kStepHeads = kStepHeadsMost;
constexpr int kCacheStride = kRowWidth * 2 + 16;  // bytes of a BF16 row of the cache, or of a query, in shared memory
constexpr int kCacheTile = kStepTokens * kCacheStride;
constexpr int kScoreRow = kStepTokens + 4, kWeightRow = kStepTokens * 2 + 16;
// Scores, weights and factors of all heads.
constexpr int kAttendScratch = kStepHeads * (kScoreRow * 4 + kWeightRow + 4) + 128;

}  // namespace glint::cuda

#if __CUDA_ARCH__ >= 900
namespace glint::cuda {

constexpr int kDirectPieces = 64;                            // more are merged in a stage of their own
constexpr float kStepScale = 0.0625F * 1.4426950408889634F;  // 1/16, and to base 2

// By one thread, once a step: the layers have one answer.
__device__ __noinline__ void plan_context() {
  StepContext& c = step.s.context;
  const CacheView& cache = step.s.p.cache;
  const int blocks = static_cast<int>(gridDim.x), b = static_cast<int>(blockIdx.x), heads = step.s.p.heads;
  while (c.seq + 1 < cache.n_seqs && cache.row_offsets[c.seq + 1] == 0) ++c.seq;  // sequences without a row
  c.end = cache.context_tokens[c.seq];
  c.begin = cache.window > 0 ? max(0, c.end - cache.window) : 0;
  const int first = c.begin / kStepTokens, runs = (c.end - 1) / kStepTokens - first + 1;
  int begin = 0, end = 0;
  c.heads = heads;
  if (runs > blocks) {
    begin = static_cast<int>(static_cast<std::int64_t>(b) * runs / blocks);
    end = static_cast<int>(static_cast<std::int64_t>(b + 1) * runs / blocks);
    c.pieces = blocks;
    c.piece = b;
  } else {  // where blocks would stand idle, each takes some of the heads only
    const int per = runs > 16 ? 2 : 1;
    c.pieces = (runs + per - 1) / per;
    const int group = (heads + min(heads, blocks / c.pieces) - 1) / min(heads, blocks / c.pieces);
    const int groups = (heads + group - 1) / group;
    c.piece = b / groups;
    c.first_head = b % groups * group;
    c.heads = min(group, heads - c.first_head);
    if (c.piece < c.pieces) begin = c.piece * per, end = min(begin + per, runs);
  }
  c.token = (first + begin) * kStepTokens;
  c.runs = end - begin;
  c.merge = c.pieces > kDirectPieces;
}

__device__ __forceinline__ std::int64_t piece_row(int piece, int head) {
  return static_cast<std::int64_t>(piece) * step.s.p.heads + head;
}

// Rows of the cache on their way: copied asynchronously as they are (BF16), or held in registers until decoded.
template <KvCodec kCodec>
struct CacheTile {
  static constexpr int kRowsAWarp = kStepTokens / kStepWarps;
  RawPart raw[kRowsAWarp] = {};

  __device__ static const unsigned char* row_at(const unsigned char* pages, int seq, int token) {
    const int page =
        step.s.p.cache.page_table[static_cast<std::int64_t>(seq) * step.s.p.cache.max_pages + token / kPageRows];
    return pages + page * step.s.p.cache.page_stride + token % kPageRows * kCacheRowBytes<kCodec>;
  }
  // Tokens from `token` on, all of one page; those outside [begin, end) become zeros.
  __device__ void load(const unsigned char* pages, int seq, int token, int begin, int end, std::uint32_t to) {
    const int lane = threadIdx.x % 32;
    if constexpr (kCodec == KvCodec::kBF16) {
      constexpr int kUnits = kRowWidth / 8;
      const unsigned char* rows = row_at(pages, seq, token);
#pragma unroll 1
      for (int i = threadIdx.x; i < kStepTokens * kUnits; i += kStepThreads) {
        const int row = i / kUnits, u = i - row * kUnits;
        const bool valid = token + row >= begin && token + row < end;
        cp_async16(to + row * kCacheStride + u * 16, valid ? rows + row * kCacheRowBytes<kCodec> + u * 16 : pages,
                   valid);
      }
      cp_async_commit();
    } else {
#pragma unroll
      for (int i = 0; i < kRowsAWarp; ++i) {
        const int row = token + static_cast<int>(threadIdx.x / 32) * kRowsAWarp + i;
        if (row >= begin && row < end) raw[i] = raw_part<kCodec>(row_at(pages, seq, row), lane);
      }
    }
  }
  // Before the barrier after which all read the tile.
  __device__ void finish(int token, int begin, int end, std::uint32_t to) {
    const int lane = threadIdx.x % 32;
    if constexpr (kCodec == KvCodec::kBF16) {
      cp_async_wait<0>();
    } else {
#pragma unroll
      for (int i = 0; i < kRowsAWarp; ++i) {
        const int r = static_cast<int>(threadIdx.x / 32) * kRowsAWarp + i;
        RowPart part{};
        if (token + r >= begin && token + r < end) part = decode_part<kCodec>(raw[i], lane);
        const std::uint32_t at = to + r * kCacheStride;
        sts128(at + first_unit<kCodec>(lane) * 16, part.unit[0]);
        sts128(at + (first_unit<kCodec>(lane) + kUnitStep<kCodec>)*16, part.unit[1]);
        sts32(at + kLatentWidth * 2 + lane * 4, part.rotary);
      }
    }
  }
};

// The queries in BF16, a row a head of a group: latent (under H where the codec has it) and rotary part.
template <KvCodec kCodec>
__device__ __forceinline__ void stage_queries(int first_head, int heads) {
  const int lane = threadIdx.x % 32;
#pragma unroll 1
  for (int h = static_cast<int>(threadIdx.x / 32); h < heads; h += kStepWarps) {
    const int row = first_head + h;
    float v[16];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float4 f = __ldcg(reinterpret_cast<const float4*>(step.s.p.query + row * kLatentWidth) + lane * 4 + i);
      v[4 * i] = f.x, v[4 * i + 1] = f.y, v[4 * i + 2] = f.z, v[4 * i + 3] = f.w;
    }
    const float2 rope = __ldcg(reinterpret_cast<const float2*>(step.s.p.q + row * kQkWidth + kNopeWidth) + lane);
    if constexpr (is_rotated(kCodec)) warp_hadamard(v, lane);
    const std::uint32_t to = step.s.x + h * kCacheStride;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float* u = v + 8 * i;
      sts128(to + lane * 32 + i * 16,
             {pack_bf16(u[0], u[1]), pack_bf16(u[2], u[3]), pack_bf16(u[4], u[5]), pack_bf16(u[6], u[7])});
    }
    sts32(to + kLatentWidth * 2 + lane * 4, pack_bf16(rope.x, rope.y));
  }
}

// This block's piece. The second tile of heads reads past the queries where there are fewer than 32: what it makes of
// that is not used.
template <KvCodec kCodec>
__device__ __forceinline__ void attend_piece(int layer) {
  constexpr int kMine = kStepHeads / kStepWarps;                               // heads of a warp
  constexpr int kColumns = kLatentWidth / kStepWarps, kBlocks = kColumns / 8;  // columns of O of a warp
  const StepContext c = step.s.context;
  if (c.runs == 0) return grid_wait();
  const int begin = c.begin, end = c.end, heads = c.heads;
  const auto* pages = static_cast<const unsigned char*>(step.s.p.cache.pages) + layer * step.s.p.layer_stride;
  // Queries, two tiles of the cache, scratch.
  const std::uint32_t cache = step.s.x + (heads * kCacheStride + 127) / 128 * 128;
  const std::uint32_t scores = cache + 2 * kCacheTile, weights = scores + kStepHeads * kScoreRow * 4,
                      factors = weights + kStepHeads * kWeightRow;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, q4 = lane % 4;
  const int tiles = (heads + 15) / 16;
  const auto token_of = [&](int run) { return c.token + run * kStepTokens; };

  CacheTile<kCodec> tile;
  tile.load(pages, c.seq, c.token, begin, end, cache);
  grid_wait();  // for the queries; the cache was filled two barriers ago
  stage_queries<kCodec>(c.first_head, heads);
  float acc[2][kBlocks][4] = {};
  float top[kMine], sum[kMine];  // of this warp's heads
#pragma unroll
  for (int i = 0; i < kMine; ++i) top[i] = -INFINITY, sum[i] = 0;
  for (int b = 0; b < c.runs; ++b) {
    const std::uint32_t here = cache + b % 2 * kCacheTile, next = cache + (b + 1) % 2 * kCacheTile;
    tile.finish(token_of(b), begin, end, here);
    step_sync();
    if (b + 1 < c.runs) tile.load(pages, c.seq, token_of(b + 1), begin, end, next);

    // S. With one tile of heads only, two warps share a product's contraction, and softmax adds their halves.
    const bool halves = tiles == 1;
    const int m = warp % 2 * 16, n = warp / 2 * 8;
    float dots[4][4] = {};
    const std::uint32_t a_at = step.s.x + ((halves ? 0 : m) + lane % 16) * kCacheStride + lane / 16 * 16;
    const std::uint32_t b_at = here + (n + lane % 8) * kCacheStride + lane / 8 * 16;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (halves && half != warp % 2) continue;
#pragma unroll
      for (int i = 0; i < kRowWidth / 64; ++i) {
        const int k = half * (kRowWidth / 64) + i;
        std::uint32_t a0[4], a1[4], kv[4];
        ldmatrix4(a0, a_at + k * 64);
        ldmatrix4(a1, a_at + k * 64 + 32);
        ldmatrix4(kv, b_at + k * 64);
        mma(dots[k % 2 * 2], a0[0], a0[1], a0[2], a0[3], kv[0], kv[1]);
        mma(dots[k % 2 * 2 + 1], a1[0], a1[1], a1[2], a1[3], kv[2], kv[3]);
      }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) dots[0][i] = ((dots[0][i] + dots[1][i]) + (dots[2][i] + dots[3][i])) * kStepScale;
    const std::uint32_t at = scores + ((m + g) * kScoreRow + n + 2 * q4) * 4;
    sts64(at, __float_as_uint(dots[0][0]), __float_as_uint(dots[0][1]));
    sts64(at + 8 * kScoreRow * 4, __float_as_uint(dots[0][2]), __float_as_uint(dots[0][3]));
    step_sync();

    // Softmax
    const int token = token_of(b) + lane;
    const bool seen = token >= begin && token < end;
    if (warp * kMine < 16 * tiles) {
      float best[kMine], weight[kMine], factor[kMine], total[kMine];
#pragma unroll
      for (int i = 0; i < kMine; ++i) {
        const std::uint32_t score = scores + ((warp * kMine + i) * kScoreRow + lane) * 4;
        float v = __uint_as_float(lds32(score));
        if (halves) v += __uint_as_float(lds32(score + 16 * kScoreRow * 4));
        best[i] = weight[i] = seen ? v : -INFINITY;
      }
#pragma unroll
      for (int d = 16; d > 0; d >>= 1) {
#pragma unroll
        for (int i = 0; i < kMine; ++i) best[i] = fmaxf(best[i], __shfl_xor_sync(0xffffffffU, best[i], d));
      }
#pragma unroll
      for (int i = 0; i < kMine; ++i) {
        best[i] = fmaxf(best[i], top[i]);
        const bool any = best[i] > -INFINITY;
        factor[i] = any ? exp2f(top[i] - best[i]) : 1.0F;
        const __nv_bfloat16 rounded = __float2bfloat16_rn(any ? exp2f(weight[i] - best[i]) : 0.0F);
        asm volatile("st.shared.b16 [%0], %1;" ::"r"(weights + (warp * kMine + i) * kWeightRow + lane * 2),
                     "h"(__bfloat16_as_ushort(rounded))
                     : "memory");
        total[i] = __bfloat162float(rounded);
        top[i] = best[i];
      }
#pragma unroll
      for (int d = 16; d > 0; d >>= 1) {
#pragma unroll
        for (int i = 0; i < kMine; ++i) total[i] += __shfl_xor_sync(0xffffffffU, total[i], d);
      }
#pragma unroll
      for (int i = 0; i < kMine; ++i) {
        sum[i] = sum[i] * factor[i] + total[i];
        if (lane == i) sts32(factors + (warp * kMine + i) * 4, __float_as_uint(factor[i]));
      }
    }
    step_sync();

    // O
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (i >= tiles) break;
      const float f0 = __uint_as_float(lds32(factors + (16 * i + g) * 4)),
                  f1 = __uint_as_float(lds32(factors + (16 * i + g + 8) * 4));
#pragma unroll
      for (int k = 0; k < kBlocks; ++k) acc[i][k][0] *= f0, acc[i][k][1] *= f0, acc[i][k][2] *= f1, acc[i][k][3] *= f1;
    }
#pragma unroll
    for (int k = 0; k < kStepTokens / 16; ++k) {
      std::uint32_t a[2][4];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        if (i < tiles) ldmatrix4(a[i], weights + (16 * i + lane % 16) * kWeightRow + k * 32 + lane / 16 * 16);
      }
#pragma unroll
      for (int j = 0; j < kBlocks / 2; ++j) {
        std::uint32_t v[4];
        ldmatrix4_trans(v, here + (k * 16 + lane / 8 % 2 * 8 + lane % 8) * kCacheStride +
                               (warp * kColumns + j * 16) * 2 + lane / 16 * 16);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          if (i >= tiles) break;
          mma(acc[i][2 * j], a[i][0], a[i][1], a[i][2], a[i][3], v[0], v[1]);
          mma(acc[i][2 * j + 1], a[i][0], a[i][1], a[i][2], a[i][3], v[2], v[3]);
        }
      }
    }
  }

#pragma unroll
  for (int i = 0; i < 2; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int h = 16 * i + 8 * half + g;
      if (h >= heads) continue;
      float* out = step.s.p.partial + piece_row(c.piece, c.first_head + h) * kLatentWidth + warp * kColumns + 2 * q4;
#pragma unroll
      for (int k = 0; k < kBlocks; ++k)
        *reinterpret_cast<float2*>(out + 8 * k) = {acc[i][k][2 * half], acc[i][k][2 * half + 1]};
    }
  }
  if (lane == 0) {
#pragma unroll
    for (int i = 0; i < kMine; ++i) {
      const int h = warp * kMine + i;
      if (h < heads) step.s.p.partial_ml[piece_row(c.piece, c.first_head + h)] = {top[i], sum[i]};
    }
  }
}

__device__ __forceinline__ void attend_piece_any(int layer) {
  switch (step.s.p.cache.codec) {
    case KvCodec::kFp8:
      return attend_piece<KvCodec::kFp8>(layer);
    case KvCodec::kInt8:
      return attend_piece<KvCodec::kInt8>(layer);
    case KvCodec::kInt4:
      return attend_piece<KvCodec::kInt4>(layer);
    default:
      return attend_piece<KvCodec::kBF16>(layer);
  }
}

// Many pieces: (token, head, 128 columns) a block at a time, a warp every sixteenth piece.
__device__ __forceinline__ void merge_pieces() {
  constexpr int kParts = kLatentWidth / 128;
  const int tid = threadIdx.x, lane = tid % 32, warp = tid / 32, heads = step.s.p.heads;
  for (int unit = blockIdx.x; unit < heads * kParts; unit += gridDim.x) {
    const int h = unit / kParts, part = unit % kParts;
    const int n = step.s.context.pieces;
    float top = -INFINITY;
    for (int i = lane; i < n; i += 32) top = fmaxf(top, __ldcg(&step.s.p.partial_ml[piece_row(i, h)].x));
#pragma unroll
    for (int d = 16; d > 0; d >>= 1) top = fmaxf(top, __shfl_xor_sync(0xffffffffU, top, d));
    float4 sum{};
    float total = 0;
#pragma unroll 4
    for (int i = warp; i < n; i += kStepWarps) {
      const std::int64_t row = piece_row(i, h);
      const float2 ml = __ldcg(step.s.p.partial_ml + row);
      const float4 v =
          __ldcg(reinterpret_cast<const float4*>(step.s.p.partial + row * kLatentWidth + part * 128) + lane);
      const float w = exp2f(ml.x - top);
      total += w * ml.y;
      sum.x += w * v.x, sum.y += w * v.y, sum.z += w * v.z, sum.w += w * v.w;
    }
    step_sync();  // the last unit's sums are read
    sts128(step.s.x + tid * 16,
           {__float_as_uint(sum.x), __float_as_uint(sum.y), __float_as_uint(sum.z), __float_as_uint(sum.w)});
    if (lane == 0) sts32(step.s.x + kStepThreads * 16 + warp * 4, __float_as_uint(total));
    step_sync();
    if (tid < 128) {
      float v = 0, all = 0;
#pragma unroll
      for (int w = 0; w < kStepWarps; ++w) {
        v += __uint_as_float(lds32(step.s.x + (w * 128 + tid) * 4));
        all += __uint_as_float(lds32(step.s.x + kStepThreads * 16 + w * 4));
      }
      step.s.p.latent[h * kLatentWidth + part * 128 + tid] = v / all;
    }
  }
}

}  // namespace glint::cuda
#endif
