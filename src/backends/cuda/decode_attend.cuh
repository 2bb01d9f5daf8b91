#pragma once
// Attention within the decode step (decode_pieces.cuh), over BF16 rows. Tokens, or
// latent columns, stand in a product's sixteen rows and heads in its eights of columns, so that the cache's tile, which
// is read most, is read least: 20 heads waste 4 of 24.
//   Sᵀ (32 × heads) = KV · Qᵀ                     a warp: 16 tokens, a quarter of the 576; its part of Q in registers
//   softmax                                       a warp: every eighth head, a lane a token
//   Oᵀ (512 × heads) += KV's first 512 ᵀ · Pᵀ     a warp: 64 of the 512
// The next 32 rows are on their way while these are worked on.

#include "backends/cuda/decode_pieces.cuh"

namespace glint::cuda {

constexpr int kCacheStride = kRowWidth * 2 + 16;  // bytes of a BF16 row of the cache, or of a query, in shared memory
constexpr int kCacheTile = kStepTokens * kCacheStride;

template <int kEights>
struct RowsLayout : PieceLayout<kEights, kStepTokens, kCacheStride, 0> {
  static constexpr int kBytes = RowsLayout::kRows + 2 * kCacheTile;
};

}  // namespace glint::cuda

#if __CUDA_ARCH__ >= 900
namespace glint::cuda {

// Runs of 32 rows of the cache, copied a run ahead into two tiles in turn. Which page a run lies in is asked for
// another run ahead.
struct CacheTile {
  static constexpr int kRowBytes = kRowWidth * 2, kRowsAWarp = kStepTokens / kStepWarps;
  const StepContext& c;
  const PieceRows& from_rows;
  std::uint32_t tiles;  // room for two
  std::int32_t page = 0;

  // Tokens from `token` on are what load() is called for next.
  __device__ __forceinline__ void seek(int token) { page = from_rows.page_of(token); }
  // Those tokens, all of one page, as run number `run`; what is outside the context as zeros.
  __device__ __forceinline__ void load(int token, int run) {
    constexpr int kUnits = kRowWidth / 8;
    const unsigned char* rows = from_rows.rows_of<kRowBytes>(page, token);
    const int lane = threadIdx.x % 32, first = static_cast<int>(threadIdx.x / 32) * kRowsAWarp;
#pragma unroll
    for (int i = 0; i < kRowsAWarp; ++i) {
      const bool valid = sees(c, token + first + i);
      const unsigned char* from = rows + (first + i) * kRowBytes + lane * 16;
      const std::uint32_t to = tile_of(run) + static_cast<std::uint32_t>((first + i) * kCacheStride + lane * 16);
#pragma unroll
      for (int u = 0; u < kUnits; u += 32) {
        if (u + 32 <= kUnits || lane < kUnits - u)
          cp_async16(to + u * 16, valid ? from + u * 16 : from_rows.pages, valid);
      }
    }
    cp_async_commit();
  }
  // Where run number `run` lies. All warps are past the run before.
  __device__ __forceinline__ std::uint32_t finish(int run) const {
    cp_async_wait<0>();
    step_sync();
    return tile_of(run);
  }

 private:
  __device__ __forceinline__ std::uint32_t tile_of(int run) const {
    return tiles + static_cast<std::uint32_t>(run % 2 * kCacheTile);
  }
};

// The queries in BF16, a row a head.
template <int kEights, StepQueries kQueries>
__device__ __forceinline__ void stage_queries() {
  const int lane = threadIdx.x % 32;
  for_queries<KvCodec::kBF16, kEights, kQueries>([&](int h, const float(&v)[16], float2 rotary) {
    const std::uint32_t to = step.s.x + h * kCacheStride;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float* u = v + 4 * i;
      sts64(to + lane * 8 + i * 256, pack_bf16(u[0], u[1]), pack_bf16(u[2], u[3]));
    }
    sts32(to + kLatentWidth * 2 + lane * 4, pack_bf16(rotary.x, rotary.y));
  });
}

// This block's piece, of at most kEights · 8 heads. Queries that are not there may be any numbers: they meet nothing
// but their own columns, which nobody reads.
template <int kEights, StepQueries kQueries>
__device__ __forceinline__ void attend_piece(int layer) {
  constexpr int kSteps = kRowWidth / 16 / kScoreParts;                         // of a warp's part of a row
  constexpr int kColumns = kLatentWidth / kStepWarps, kTiles = kColumns / 16;  // of O of a warp
  const StepContext c = step.s.context;
  const int runs = c.runs, heads = c.heads;
  if (runs == 0) return grid_wait();
  const PieceRows from_rows(c, layer);
  using Layout = RowsLayout<kEights>;
  using Softmax = PieceSoftmax<kEights, 1>;
  constexpr int kWeightRow = weight_row(kStepTokens);
  const std::uint32_t scores = step.s.x, weights = scores + Layout::kWeights, factors = scores + Layout::kFactors;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;

  CacheTile tile{c, from_rows, scores + Layout::kRows};
  tile.seek(c.token);
  // The newest row has been there for a barrier, or is waited for: before this if it is in the first run.
  const bool newest = kQueries == StepQueries::kParts && c.token + runs * kStepTokens >= c.end;
  if (newest && runs == 1) wait_for_row(layer);
  tile.load(c.token, 0);
  grid_wait();  // for the queries
  if (newest && runs > 1) wait_for_row(layer);
  tile.seek(c.token + kStepTokens);
  stage_queries<kEights, kQueries>();
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
  Softmax softmax;
  float scale[kEights];
#pragma unroll
  for (float& f : scale) f = kStepScale;
#pragma unroll 1
  for (int b = 0; b < runs; ++b) {
    const int token = c.token + b * kStepTokens;
    const std::uint32_t here = tile.finish(b);
    if (b + 1 < runs) {
      tile.load(token + kStepTokens, b + 1);
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
            scores +
            static_cast<std::uint32_t>(part * Softmax::kScorePart + (8 * j + 2 * t) * Softmax::kScoreRow + (m + g) * 4);
        sts32(to, __float_as_uint(dots[j][0]));
        sts32(to + Softmax::kScoreRow, __float_as_uint(dots[j][1]));
        sts32(to + 32, __float_as_uint(dots[j][2]));
        sts32(to + Softmax::kScoreRow + 32, __float_as_uint(dots[j][3]));
      }
    }
    step_sync();

    softmax.weigh(scores, factors, {sees(c, token + lane)}, scale, [&](int i, int, float weight) {
      const __nv_bfloat16 rounded = __float2bfloat16_rn(weight);
      sts16(weights + static_cast<std::uint32_t>((warp + 8 * i) * kWeightRow + lane * 2),
            __bfloat16_as_ushort(rounded));
      return __bfloat162float(rounded);
    });
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
  softmax.store();
}

}  // namespace glint::cuda
#endif
