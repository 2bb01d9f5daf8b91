#pragma once
// Attention within the decode step: the context in runs of 32 tokens, dealt out over the grid. A block takes
// neighbouring runs, and where blocks would stand idle eight of the heads only, and leaves a piece: maximum, sum and
// latent numbers of each head. Tokens, or latent columns, stand in a product's sixteen rows and heads in its eights of
// columns, so that the cache's tile, which is read most, is read least: 20 heads waste 4 of 24.
//   Sᵀ (32 × heads) = KV · Qᵀ                     a warp: 16 tokens, a quarter of the 576; its part of Q in registers
//   softmax                                       a warp: every eighth head, a lane a token
//   Oᵀ (512 × heads) += KV's first 512 ᵀ · Pᵀ     a warp: 64 of the 512
// The next 32 rows are on their way while these are worked on.

#include "backends/cuda/decode_work.cuh"

namespace glint::cuda {

constexpr int kStepTokens = 32, kStepHeads = kStepHeadsMost;
constexpr int kCacheStride = kRowWidth * 2 + 16;  // bytes of a BF16 row of the cache, or of a query, in shared memory
constexpr int kCacheTile = kStepTokens * kCacheStride;
// Floats of a head's row of scores, bytes of its row of weights: neighbouring heads' rows begin in other banks.
constexpr int kScoreRow = kStepTokens + 4, kWeightRow = kStepTokens * 2 + 16;
constexpr int kScoreParts = 4;  // of a token's row: warps add up to its scores

// Where things of a piece lie from x on, for so many heads.
struct PiecePlaces {
  int scores, weights, factors, tiles, bytes;
  __host__ __device__ constexpr explicit PiecePlaces(int heads)
      : scores(0),
        weights(scores + kScoreParts * kStepHeads * kScoreRow * 4),
        factors(weights + kStepHeads * kWeightRow),
        // Queries, rows as the cache's, are in registers before the first scores come.
        tiles(up(factors + kStepHeads * 4 > query_bytes(heads) ? factors + kStepHeads * 4 : query_bytes(heads))),
        bytes(tiles + 2 * kCacheTile) {}
  __host__ __device__ static constexpr int query_bytes(int heads) { return (heads + 7) / 8 * 8 * kCacheStride; }
  __host__ __device__ static constexpr int up(int n) { return (n + 127) / 128 * 128; }
};

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
  const int per = runs > 128 ? 1 : runs > 64 ? 3 : runs > 16 ? 2 : 1;  // a piece more takes time when they are added
  c.pieces = min((runs + per - 1) / per, blocks);
  // Where blocks would stand idle, each takes some of the heads only.
  const int eights = (heads + 7) / 8, groups = c.pieces * eights <= blocks ? eights : 1;
  c.piece = b / groups;
  c.first_head = b % groups * 8;
  c.heads = groups == 1 ? heads : min(8, heads - c.first_head);
  const auto part = [&](int i) { return static_cast<int>(static_cast<std::int64_t>(i) * runs / c.pieces); };
  const int begin = part(c.piece), end = c.piece < c.pieces ? part(c.piece + 1) : begin;
  c.token = (first + begin) * kStepTokens;
  c.runs = end - begin;
  c.merge = c.pieces > kDirectPieces;
}

__device__ __forceinline__ std::int64_t piece_row(int piece, int head) {
  return static_cast<std::int64_t>(piece) * step.s.p.heads + head;
}

__device__ __forceinline__ bool sees(int token) { return token >= step.s.context.begin && token < step.s.context.end; }

// Runs of 32 rows of the cache, copied a run ahead: BF16 rows into two tiles in turn; the bytes of short codecs, which
// lie one behind the other, into two places behind one tile, and from there into it. Which page a run lies in is asked
// for another run ahead.
template <KvCodec kCodec>
struct CacheTile {
  static constexpr bool kShort = is_short(kCodec);
  static constexpr int kRowBytes = kCacheRowBytes<kCodec>, kRunBytes = kStepTokens * kRowBytes,
                       kRowsAWarp = kStepTokens / kStepWarps;
  static_assert(!kShort || 2 * kRunBytes <= kCacheTile);
  std::uint32_t tiles;  // room for two
  std::int32_t page = 0;

  // Tokens from `token` on are what load() is called for next.
  __device__ __forceinline__ void seek(int token) {
    const StepContext& c = step.s.context;
    const CacheView& cache = step.s.p.cache;
    if (token >= c.end) return;
    page = __ldg(cache.page_table + static_cast<std::int64_t>(c.seq) * cache.max_pages + token / kPageRows);
  }
  // Those tokens, all of one page, as run number `run`.
  __device__ __forceinline__ void load(const unsigned char* pages, int token, int run) {
    const unsigned char* rows = pages + page * step.s.p.cache.page_stride + token % kPageRows * kRowBytes;
    if constexpr (kShort) {
      const std::uint32_t to = bytes_of(run);
#pragma unroll
      for (int i = 0; i < kRunBytes; i += kStepThreads * 16) {
        const int at = i + static_cast<int>(threadIdx.x) * 16;
        if (at < kRunBytes) cp_async16(to + static_cast<std::uint32_t>(at), rows + at);
      }
    } else {
      constexpr int kUnits = kRowWidth / 8;
      const int lane = threadIdx.x % 32, first = static_cast<int>(threadIdx.x / 32) * kRowsAWarp;
#pragma unroll
      for (int i = 0; i < kRowsAWarp; ++i) {
        const bool valid = sees(token + first + i);
        const unsigned char* from = rows + (first + i) * kRowBytes + lane * 16;
        const std::uint32_t to = tile_of(run) + static_cast<std::uint32_t>((first + i) * kCacheStride + lane * 16);
#pragma unroll
        for (int u = 0; u < kUnits; u += 32) {
          if (u + 32 <= kUnits || lane < kUnits - u) cp_async16(to + u * 16, valid ? from + u * 16 : pages, valid);
        }
      }
    }
    cp_async_commit();
  }
  // Run number `run` as BF16 rows, where it is returned; what is outside the context as zeros. All warps are past the
  // run before.
  __device__ __forceinline__ std::uint32_t finish(int token, int run) {
    cp_async_wait<0>();
    step_sync();
    if constexpr (kShort) {
      const int lane = threadIdx.x % 32, first = static_cast<int>(threadIdx.x / 32) * kRowsAWarp;
      const auto* bytes = static_cast<const unsigned char*>(__cvta_shared_to_generic(bytes_of(run)));
#pragma unroll
      for (int i = 0; i < kRowsAWarp; ++i) {
        RowPart part{};
        if (sees(token + first + i)) {
          part = decode_part<kCodec>(raw_part<kCodec>(bytes + (first + i) * kRowBytes, lane), lane);
        }
        const std::uint32_t to = tiles + static_cast<std::uint32_t>((first + i) * kCacheStride);
        sts128(to + first_unit<kCodec>(lane) * 16, part.unit[0]);
        sts128(to + (first_unit<kCodec>(lane) + kUnitStep<kCodec>)*16, part.unit[1]);
        sts32(to + kLatentWidth * 2 + lane * 4, part.rotary);
      }
      step_sync();
    }
    return tile_of(run);
  }

 private:
  __device__ __forceinline__ std::uint32_t tile_of(int run) const {
    return tiles + static_cast<std::uint32_t>(kShort ? 0 : run % 2 * kCacheTile);
  }
  __device__ __forceinline__ std::uint32_t bytes_of(int run) const {
    return tiles + static_cast<std::uint32_t>(kCacheTile + run % 2 * kRunBytes);
  }
};

// The queries in BF16, a row a head: latent (under H where the codec has it) and rotary part.
template <KvCodec kCodec, int kEights>
__device__ __forceinline__ void stage_queries() {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, heads = step.s.context.heads;
  const float* query = step.s.p.query + step.s.context.first_head * kLatentWidth;
  const float* rotated = step.s.p.q + step.s.context.first_head * kQkWidth + kNopeWidth;
  float4 latent[kEights][4];
  float2 rotary[kEights];
#pragma unroll
  for (int j = 0; j < kEights; ++j) {
    const int h = min(warp + kStepWarps * j, heads - 1);
#pragma unroll
    for (int i = 0; i < 4; ++i)
      latent[j][i] = __ldcg(reinterpret_cast<const float4*>(query + h * kLatentWidth) + lane * 4 + i);
    rotary[j] = __ldcg(reinterpret_cast<const float2*>(rotated + h * kQkWidth) + lane);
  }
#pragma unroll
  for (int j = 0; j < kEights; ++j) {
    const int h = warp + kStepWarps * j;
    if (h >= heads) break;
    const float2 rope = rotary[j];
    float v[16];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float4& f = latent[j][i];
      v[4 * i] = f.x, v[4 * i + 1] = f.y, v[4 * i + 2] = f.z, v[4 * i + 3] = f.w;
    }
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

// This block's piece, of at most kEights · 8 heads. Queries that are not there may be any numbers: they meet nothing
// but their own columns, which nobody reads.
template <KvCodec kCodec, int kEights>
__device__ __forceinline__ void attend_piece(int layer) {
  constexpr int kSteps = kRowWidth / 16 / kScoreParts;                         // of a warp's part of a row
  constexpr int kColumns = kLatentWidth / kStepWarps, kTiles = kColumns / 16;  // of O of a warp
  const StepContext& c = step.s.context;
  const int runs = c.runs, heads = c.heads;
  if (runs == 0) return grid_wait();
  const auto* pages = static_cast<const unsigned char*>(step.s.p.cache.pages) + layer * step.s.p.layer_stride;
  const PiecePlaces places(step.s.p.heads);
  const std::uint32_t scores = step.s.x + places.scores, weights = step.s.x + places.weights,
                      factors = step.s.x + places.factors;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;

  CacheTile<kCodec> tile{step.s.x + places.tiles};
  const bool early = c.token + kStepTokens < c.end;
  tile.seek(c.token);
  if (early) tile.load(pages, c.token, 0);
  grid_wait();  // for the queries, and for this token's row of the cache
  if (!early) tile.load(pages, c.token, 0);
  tile.seek(c.token + kStepTokens);
  stage_queries<kCodec, kEights>();
  step_sync();
  const int m = warp % 2 * 16, part = warp / 2;
  std::uint32_t q[kEights][kSteps][2];
#pragma unroll
  for (int j = 0; j < kEights; ++j) {
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      const std::uint32_t from =
          step.s.x + static_cast<std::uint32_t>((8 * j + g) * kCacheStride + (part * kSteps + i) * 32 + t * 4);
      q[j][i][0] = lds32(from);
      q[j][i][1] = lds32(from + 16);
    }
  }
  // Where lanes read a tile: tokens for S, and transposed for O.
  const auto of_tokens =
      static_cast<std::uint32_t>((m + lane % 16) * kCacheStride + part * (kSteps * 32) + lane / 16 * 16);
  const auto of_columns =
      static_cast<std::uint32_t>((lane / 16 * 8 + lane % 8) * kCacheStride + warp * (kColumns * 2) + lane / 8 % 2 * 16);
  float acc[kTiles][kEights][4] = {};
  float top[kEights], sum[kEights];  // of this warp's heads, warp + 8 i; sum: of this lane's tokens
#pragma unroll
  for (int i = 0; i < kEights; ++i) top[i] = -INFINITY, sum[i] = 0;
#pragma unroll 1
  for (int b = 0; b < runs; ++b) {
    const int token = c.token + b * kStepTokens;
    const std::uint32_t here = tile.finish(token, b);
    if (b + 1 < runs) {
      tile.load(pages, token + kStepTokens, b + 1);
      tile.seek(token + 2 * kStepTokens);
    }

    {  // S
      float dots[kEights][4] = {};
      std::uint32_t a[kSteps][4];
#pragma unroll
      for (int i = 0; i < kSteps; ++i) ldmatrix4(a[i], here + of_tokens + i * 32);
#pragma unroll
      for (int i = 0; i < kSteps; ++i) {
#pragma unroll
        for (int j = 0; j < kEights; ++j) product(dots[j], a[i], q[j][i][0], q[j][i][1]);
      }
#pragma unroll
      for (int j = 0; j < kEights; ++j) {
        const std::uint32_t to =
            scores + static_cast<std::uint32_t>(((part * kStepHeads + 8 * j + 2 * t) * kScoreRow + m + g) * 4);
        sts32(to, __float_as_uint(dots[j][0]));
        sts32(to + kScoreRow * 4, __float_as_uint(dots[j][1]));
        sts32(to + 32, __float_as_uint(dots[j][2]));
        sts32(to + kScoreRow * 4 + 32, __float_as_uint(dots[j][3]));
      }
    }
    step_sync();

    {  // Softmax
      const bool seen = sees(token + lane);
      float best[kEights], weight[kEights];
#pragma unroll
      for (int i = 0; i < kEights; ++i) {
        float v[kScoreParts];
#pragma unroll
        for (int k = 0; k < kScoreParts; ++k)
          v[k] = __uint_as_float(
              lds32(scores + static_cast<std::uint32_t>(((k * kStepHeads + warp + 8 * i) * kScoreRow + lane) * 4)));
        best[i] = weight[i] = seen ? ((v[0] + v[1]) + (v[2] + v[3])) * kStepScale : -INFINITY;
      }
#pragma unroll
      for (int d = 16; d > 0; d >>= 1) {
#pragma unroll
        for (int i = 0; i < kEights; ++i) best[i] = fmaxf(best[i], __shfl_xor_sync(0xffffffffU, best[i], d));
      }
#pragma unroll
      for (int i = 0; i < kEights; ++i) {
        best[i] = fmaxf(best[i], top[i]);
        const bool any = best[i] > -INFINITY;
        const float factor = any ? power_of_two(top[i] - best[i]) : 1.0F;
        const __nv_bfloat16 rounded = __float2bfloat16_rn(any ? power_of_two(weight[i] - best[i]) : 0.0F);
        sts16(weights + static_cast<std::uint32_t>((warp + 8 * i) * kWeightRow + lane * 2),
              __bfloat16_as_ushort(rounded));
        if (lane == 0) sts32(factors + static_cast<std::uint32_t>(warp + 8 * i) * 4, __float_as_uint(factor));
        sum[i] = fmaf(sum[i], factor, __bfloat162float(rounded));
        top[i] = best[i];
      }
    }
    step_sync();

    // O
    std::uint32_t p[kStepTokens / 16][kEights][2];
#pragma unroll
    for (int j = 0; j < kEights; ++j) {
      const float2 f = lds_pair(factors + static_cast<std::uint32_t>(8 * j + 2 * t) * 4);
#pragma unroll
      for (int i = 0; i < kTiles; ++i) {
        acc[i][j][0] *= f.x, acc[i][j][1] *= f.y;
        acc[i][j][2] *= f.x, acc[i][j][3] *= f.y;
      }
#pragma unroll
      for (int k = 0; k < kStepTokens / 16; ++k) {
        const std::uint32_t from = weights + static_cast<std::uint32_t>((8 * j + g) * kWeightRow + k * 32 + t * 4);
        p[k][j][0] = lds32(from);
        p[k][j][1] = lds32(from + 16);
      }
    }
#pragma unroll
    for (int k = 0; k < kStepTokens / 16; ++k) {
      std::uint32_t a[kTiles][4];
#pragma unroll
      for (int i = 0; i < kTiles; ++i)
        ldmatrix4_trans(a[i], here + of_columns + static_cast<std::uint32_t>(k * 16 * kCacheStride + i * 32));
#pragma unroll
      for (int i = 0; i < kTiles; ++i) {
#pragma unroll
        for (int j = 0; j < kEights; ++j) product(acc[i][j], a[i], p[k][j][0], p[k][j][1]);
      }
    }
  }

#pragma unroll
  for (int j = 0; j < kEights; ++j) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int head = 8 * j + 2 * t + e;
      if (head >= heads) continue;
      float* out = step.s.p.partial + piece_row(c.piece, c.first_head + head) * kLatentWidth + warp * kColumns + g;
#pragma unroll
      for (int i = 0; i < kTiles; ++i) {
        out[16 * i] = acc[i][j][e];
        out[16 * i + 8] = acc[i][j][2 + e];
      }
    }
  }
#pragma unroll
  for (int i = 0; i < kEights; ++i) {
    const float all = warp_sum(sum[i]);
    const int head = warp + 8 * i;
    if (lane == 0 && head < heads) step.s.p.partial_ml[piece_row(c.piece, c.first_head + head)] = {top[i], all};
  }
}

template <KvCodec kCodec, class P>
__device__ __forceinline__ void attend_piece_of(int layer) {
  if (step.s.context.heads <= 8) {
    attend_piece<kCodec, 1>(layer);
  } else if constexpr (P::kKnown) {
    attend_piece<kCodec, (P::kHeads + 7) / 8>(layer);
  } else {
    attend_piece<kCodec, kStepHeads / 8>(layer);
  }
}
template <class P>
__device__ __forceinline__ void attend_piece_any(int layer) {
  switch (step.s.p.cache.codec) {
    case KvCodec::kFp8:
      return attend_piece_of<KvCodec::kFp8, P>(layer);
    case KvCodec::kInt8:
      return attend_piece_of<KvCodec::kInt8, P>(layer);
    case KvCodec::kInt4:
      return attend_piece_of<KvCodec::kInt4, P>(layer);
    default:
      return attend_piece_of<KvCodec::kBF16, P>(layer);
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
