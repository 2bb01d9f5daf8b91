#pragma once
// Attention within the decode step: the contexts of all rows in blocks of 32 tokens, dealt out evenly over the grid.
// A block of the grid takes a contiguous range of them, whichever rows that meets, and leaves a piece for each row: the
// running maximum, the sum, and the latent numbers of all heads. Heads stand in a product's 16 rows (20 waste 12 of 32).
//   S (heads × 32) = Q (heads × 576) · KVᵀ         a warp: 16 heads, 8 tokens
//   softmax                                        a warp: 4 heads, a lane a token
//   O (heads × 512) += P · KV's first 512 columns  a warp: 64 of the 512
// The next 32 rows are on their way while these are worked on.

#include "backends/cuda/decode_stages.cuh"

#if __CUDA_ARCH__ >= 900
namespace glint::cuda {

constexpr int kStepTokens = 32, kStepHeads = kStepHeadsMost;
constexpr int kCacheStride = kRowWidth * 2 + 16;  // bytes of a BF16 row of the cache, or of a query, in shared memory
constexpr int kCacheTile = kStepTokens * kCacheStride;
constexpr int kScoreRow = kStepTokens + 4, kWeightRow = kStepTokens * 2 + 16;
constexpr int kDirectPieces = 16;  // of a row: more are merged in a stage of their own
constexpr float kStepScale = 0.0625F * 1.4426950408889634F;  // 1/16, and to base 2

// Where the rows' blocks of tokens lie in the list of all.
struct StepContexts {
  int first[kStepRows + 1];            // of row t in the list
  int begin[kStepRows], end[kStepRows];  // tokens that it sees
  int seq[kStepRows];

  __device__ explicit StepContexts(const DecodeStep& p) {
    first[0] = 0;
#pragma unroll
    for (int t = 0; t < kStepRows; ++t) {
      if (t >= p.T) {
        first[t + 1] = first[t];
        continue;
      }
      int s = 0;
      while (s + 1 < p.cache.n_seqs && p.cache.row_offsets[s + 1] <= t) ++s;
      seq[t] = s;
      end[t] = p.cache.context_tokens[s] - (p.cache.row_offsets[s + 1] - 1 - t);
      begin[t] = p.cache.window > 0 ? max(0, end[t] - p.cache.window) : 0;
      first[t + 1] = first[t] + (end[t] - 1) / kStepTokens - begin[t] / kStepTokens + 1;
    }
  }
  __device__ int total() const { return first[kStepRows]; }
  // Pieces of row t, and which one holds block b of the list.
  __device__ int owner(int b) const {
    const int n = static_cast<int>(gridDim.x);
    return static_cast<int>((static_cast<std::int64_t>(b + 1) * n - 1) / total());
  }
  __device__ int pieces(int t) const {
    if (total() <= static_cast<int>(gridDim.x)) return first[t + 1] - first[t];
    return owner(first[t + 1] - 1) - owner(first[t]) + 1;
  }
  __device__ int piece(int t, int b) const {
    return total() <= static_cast<int>(gridDim.x) ? b - first[t] : owner(b) - owner(first[t]);
  }
  __device__ int most_pieces(int rows) const {
    int n = 0;
    for (int t = 0; t < rows; ++t) n = max(n, pieces(t));
    return n;
  }
};

__device__ __forceinline__ std::int64_t piece_row(const DecodeStep& p, int t, int piece, int head) {
  return (static_cast<std::int64_t>(t) * gridDim.x + piece) * p.heads + head;
}

// Rows of the cache on their way: copied asynchronously as they are (BF16), or held in registers until decoded.
template <KvCodec kCodec>
struct CacheTile {
  static constexpr int kRowsAWarp = kStepTokens / kStepWarps;
  RawPart raw[kRowsAWarp];

  __device__ static const unsigned char* row_at(const DecodeStep& p, const unsigned char* pages, int seq, int token) {
    const int page = p.cache.page_table[static_cast<std::int64_t>(seq) * p.cache.max_pages + token / kPageRows];
    return pages + page * p.cache.page_stride + token % kPageRows * kCacheRowBytes<kCodec>;
  }
  // Tokens from `token` on; those outside [begin, end) become zeros.
  __device__ void load(const StepWorker& c, const unsigned char* pages, int seq, int token, int begin, int end,
                       std::uint32_t to) {
    if constexpr (kCodec == KvCodec::kBF16) {
      constexpr int kUnits = kRowWidth / 8;
      for (int i = c.tid; i < kStepTokens * kUnits; i += kStepWorkers) {
        const int row = i / kUnits, u = i % kUnits;
        const bool valid = token + row >= begin && token + row < end;
        cp_async16(to + row * kCacheStride + u * 16,
                   (valid ? row_at(c.p, pages, seq, token + row) : pages) + u * 16, valid);
      }
      cp_async_commit();
    } else {
#pragma unroll
      for (int i = 0; i < kRowsAWarp; ++i) {
        const int row = token + c.warp * kRowsAWarp + i;
        if (row >= begin && row < end) raw[i] = raw_part<kCodec>(row_at(c.p, pages, seq, row), c.lane);
      }
    }
  }
  // Before the barrier after which all read the tile.
  __device__ void finish(const StepWorker& c, int token, int begin, int end, std::uint32_t to) {
    if constexpr (kCodec == KvCodec::kBF16) {
      cp_async_wait<0>();
    } else {
#pragma unroll
      for (int i = 0; i < kRowsAWarp; ++i) {
        const int r = c.warp * kRowsAWarp + i;
        RowPart part{};
        if (token + r >= begin && token + r < end) part = decode_part<kCodec>(raw[i], c.lane);
        const std::uint32_t at = to + r * kCacheStride;
        sts128(at + first_unit<kCodec>(c.lane) * 16, part.unit[0]);
        sts128(at + (first_unit<kCodec>(c.lane) + kUnitStep<kCodec>) * 16, part.unit[1]);
        sts32(at + kLatentWidth * 2 + c.lane * 4, part.rotary);
      }
    }
  }
};

// The queries of one token in BF16, a row a head: latent (under H where the codec has it) and rotary part.
template <KvCodec kCodec>
__device__ __forceinline__ void stage_queries(const StepWorker& c, int t) {
  for (int h = c.warp; h < c.p.heads; h += kStepWarps) {
    const std::int64_t row = static_cast<std::int64_t>(t) * c.p.heads + h;
    float v[16];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float4 f = __ldcg(reinterpret_cast<const float4*>(c.p.query + row * kLatentWidth) + c.lane * 4 + i);
      v[4 * i] = f.x, v[4 * i + 1] = f.y, v[4 * i + 2] = f.z, v[4 * i + 3] = f.w;
    }
    const float2 rope = __ldcg(reinterpret_cast<const float2*>(c.p.q + row * kQkWidth + kNopeWidth) + c.lane);
    if constexpr (is_rotated(kCodec)) warp_hadamard(v, c.lane);
    const std::uint32_t to = c.x + h * kCacheStride;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      sts128(to + c.lane * 32 + i * 16, {pack_bf16(v[8 * i], v[8 * i + 1]), pack_bf16(v[8 * i + 2], v[8 * i + 3]),
                                         pack_bf16(v[8 * i + 4], v[8 * i + 5]), pack_bf16(v[8 * i + 6], v[8 * i + 7])});
    }
    sts32(to + kLatentWidth * 2 + c.lane * 4, pack_bf16(rope.x, rope.y));
  }
}

// Pieces of all rows that meet this block's range. The second tile of heads reads past the queries where there are fewer
// than 32: what it makes of that is not used.
template <KvCodec kCodec>
__device__ __noinline__ void attend_pieces(const StepWorker& c, int layer) {
  const DecodeStep& p = c.p;
  const StepContexts contexts(p);
  const auto* pages = static_cast<const unsigned char*>(p.cache.pages) + layer * p.layer_stride;
  const int total = contexts.total();
  const int first = static_cast<int>(static_cast<std::int64_t>(total) * blockIdx.x / gridDim.x);
  const int last = static_cast<int>(static_cast<std::int64_t>(total) * (blockIdx.x + 1) / gridDim.x);
  const std::uint32_t scores = c.x + p.heads * kCacheStride, weights = scores + kStepHeads * kScoreRow * 4,
                      factors = weights + kStepHeads * kWeightRow;
  const int lane = c.lane, warp = c.warp, g = lane / 4, q4 = lane % 4;
  const int tiles = (p.heads + 15) / 16;

  CacheTile<kCodec> tile;
  for (int t = 0; t < p.T; ++t) {
    const int from = max(first, contexts.first[t]), to = min(last, contexts.first[t + 1]);
    if (from >= to) continue;
    const int begin = contexts.begin[t], end = contexts.end[t], seq = contexts.seq[t];
    auto token_of = [&](int b) { return (begin / kStepTokens + b - contexts.first[t]) * kStepTokens; };
    sync_workers();  // the last row's tiles are read
    tile.load(c, pages, seq, token_of(from), begin, end, c.cache);
    stage_queries<kCodec>(c, t);

    float acc[2][8][4] = {};
    float top[4], sum[4];  // of this warp's heads
#pragma unroll
    for (int i = 0; i < 4; ++i) top[i] = -INFINITY, sum[i] = 0;
    for (int b = from; b < to; ++b) {
      const std::uint32_t here = c.cache + (b - from) % 2 * kCacheTile, next = c.cache + (b - from + 1) % 2 * kCacheTile;
      tile.finish(c, token_of(b), begin, end, here);
      sync_workers();
      if (b + 1 < to) tile.load(c, pages, seq, token_of(b + 1), begin, end, next);

      // S
      const int m = warp % 2 * 16, n = warp / 2 * 8;
      if (warp % 2 < tiles) {
        float s[4][4] = {};
        const std::uint32_t a_at = c.x + (m + lane % 16) * kCacheStride + lane / 16 * 16;
        const std::uint32_t b_at = here + (n + lane % 8) * kCacheStride + lane / 8 * 16;
#pragma unroll
        for (int k = 0; k < kRowWidth / 32; ++k) {
          std::uint32_t a0[4], a1[4], kv[4];
          ldmatrix4(a0, a_at + k * 64);
          ldmatrix4(a1, a_at + k * 64 + 32);
          ldmatrix4(kv, b_at + k * 64);
          mma(s[k % 2 * 2], a0[0], a0[1], a0[2], a0[3], kv[0], kv[1]);
          mma(s[k % 2 * 2 + 1], a1[0], a1[1], a1[2], a1[3], kv[2], kv[3]);
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) s[0][i] = ((s[0][i] + s[1][i]) + (s[2][i] + s[3][i])) * kStepScale;
        const std::uint32_t at = scores + ((m + g) * kScoreRow + n + 2 * q4) * 4;
        sts64(at, __float_as_uint(s[0][0]), __float_as_uint(s[0][1]));
        sts64(at + 8 * kScoreRow * 4, __float_as_uint(s[0][2]), __float_as_uint(s[0][3]));
      }
      sync_workers();

      // Softmax
      const int token = token_of(b) + lane;
      const bool seen = token >= begin && token < end;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int h = warp * 4 + i;
        if (h >= 16 * tiles) break;
        float v = seen && h < p.heads ? __uint_as_float(lds32(scores + (h * kScoreRow + lane) * 4)) : -INFINITY;
        float best = v;
#pragma unroll
        for (int d = 16; d > 0; d >>= 1) best = fmaxf(best, __shfl_xor_sync(0xffffffffU, best, d));
        best = fmaxf(best, top[i]);
        const float weight = best > -INFINITY ? exp2f(v - best) : 0.0F;
        const float factor = best > -INFINITY ? exp2f(top[i] - best) : 1.0F;
        const __nv_bfloat16 rounded = __float2bfloat16_rn(weight);
        asm volatile("st.shared.b16 [%0], %1;" ::"r"(weights + h * kWeightRow + lane * 2), "h"(__bfloat16_as_ushort(rounded))
                     : "memory");
        sum[i] = sum[i] * factor + warp_sum(__bfloat162float(rounded));
        top[i] = best;
        if (lane == 0) sts32(factors + h * 4, __float_as_uint(factor));
      }
      sync_workers();

      // O
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        if (i >= tiles) break;
        const float f0 = __uint_as_float(lds32(factors + (16 * i + g) * 4)),
                    f1 = __uint_as_float(lds32(factors + (16 * i + g + 8) * 4));
#pragma unroll
        for (int k = 0; k < 8; ++k) acc[i][k][0] *= f0, acc[i][k][1] *= f0, acc[i][k][2] *= f1, acc[i][k][3] *= f1;
      }
#pragma unroll
      for (int k = 0; k < kStepTokens / 16; ++k) {
        std::uint32_t a[2][4];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          if (i < tiles) ldmatrix4(a[i], weights + (16 * i + lane % 16) * kWeightRow + k * 32 + lane / 16 * 16);
        }
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          std::uint32_t v[4];
          ldmatrix4_trans(v, here + (k * 16 + lane / 8 % 2 * 8 + lane % 8) * kCacheStride + (warp * 64 + j * 16) * 2 +
                                 lane / 16 * 16);
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            if (i >= tiles) break;
            mma(acc[i][2 * j], a[i][0], a[i][1], a[i][2], a[i][3], v[0], v[1]);
            mma(acc[i][2 * j + 1], a[i][0], a[i][1], a[i][2], a[i][3], v[2], v[3]);
          }
        }
      }
    }

    const int piece = contexts.piece(t, from);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int h = 16 * i + 8 * half + g;
        if (h >= p.heads) continue;
        float* out = p.partial + piece_row(p, t, piece, h) * kLatentWidth + warp * 64 + 2 * q4;
#pragma unroll
        for (int k = 0; k < 8; ++k)
          *reinterpret_cast<float2*>(out + 8 * k) = {acc[i][k][2 * half], acc[i][k][2 * half + 1]};
      }
    }
    if (lane == 0) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int h = warp * 4 + i;
        if (h < p.heads) p.partial_ml[piece_row(p, t, piece, h)] = {top[i], sum[i]};
      }
    }
  }
}

__device__ __forceinline__ void attend_pieces_any(const StepWorker& c, int layer) {
  switch (c.p.cache.codec) {
    case KvCodec::kFp8:
      return attend_pieces<KvCodec::kFp8>(c, layer);
    case KvCodec::kInt8:
      return attend_pieces<KvCodec::kInt8>(c, layer);
    case KvCodec::kInt4:
      return attend_pieces<KvCodec::kInt4>(c, layer);
    default:
      return attend_pieces<KvCodec::kBF16>(c, layer);
  }
}

// Many pieces: (token, head, 128 columns) a block at a time, a warp every eighth piece.
__device__ __noinline__ void merge_pieces(StepWorker& c, const StepContexts& contexts) {
  const DecodeStep& p = c.p;
  constexpr int kParts = kLatentWidth / 128;
  for (int unit = blockIdx.x; unit < p.T * p.heads * kParts; unit += gridDim.x) {
    const int t = unit / (p.heads * kParts), h = unit / kParts % p.heads, part = unit % kParts;
    const int n = contexts.pieces(t);
    float top = -INFINITY;
    for (int i = c.lane; i < n; i += 32) top = fmaxf(top, __ldcg(&p.partial_ml[piece_row(p, t, i, h)].x));
#pragma unroll
    for (int d = 16; d > 0; d >>= 1) top = fmaxf(top, __shfl_xor_sync(0xffffffffU, top, d));
    float4 sum{};
    float total = 0;
#pragma unroll 4
    for (int i = c.warp; i < n; i += kStepWarps) {
      const std::int64_t row = piece_row(p, t, i, h);
      const float2 ml = __ldcg(p.partial_ml + row);
      const float4 v = __ldcg(reinterpret_cast<const float4*>(p.partial + row * kLatentWidth + part * 128) + c.lane);
      const float w = exp2f(ml.x - top);
      total += w * ml.y;
      sum.x += w * v.x, sum.y += w * v.y, sum.z += w * v.z, sum.w += w * v.w;
    }
    sync_workers();  // the last unit's sums are read
    sts128(c.x + (c.warp * 32 + c.lane) * 16,
           {__float_as_uint(sum.x), __float_as_uint(sum.y), __float_as_uint(sum.z), __float_as_uint(sum.w)});
    if (c.lane == 0) sts32(c.x + 4096 + c.warp * 4, __float_as_uint(total));
    sync_workers();
    if (c.tid < 128) {
      float v = 0, all = 0;
#pragma unroll
      for (int w = 0; w < kStepWarps; ++w) {
        v += __uint_as_float(lds32(c.x + (w * 128 + c.tid) * 4));
        all += __uint_as_float(lds32(c.x + 4096 + w * 4));
      }
      p.latent[(static_cast<std::int64_t>(t) * p.heads + h) * kLatentWidth + part * 128 + c.tid] = v / all;
    }
  }
}

// 16 columns of a head's answer, from 16 · lane on: merged before, or from the pieces.
__device__ __forceinline__ void load_latent(const StepWorker& c, const StepContexts& contexts, bool merged, int t, int h,
                                            float (&v)[16]) {
  const DecodeStep& p = c.p;
  const int n = merged ? 1 : contexts.pieces(t);
  float top = 0, total = 1;
  if (!merged) {
    const float2 ml = c.lane < n ? __ldcg(p.partial_ml + piece_row(p, t, c.lane, h)) : float2{-INFINITY, 0.0F};
    top = ml.x;
#pragma unroll
    for (int d = 16; d > 0; d >>= 1) top = fmaxf(top, __shfl_xor_sync(0xffffffffU, top, d));
    const float w = exp2f(ml.x - top);
    total = warp_sum(w * ml.y);
    top = w;  // this lane's piece
  }
#pragma unroll
  for (int i = 0; i < 16; ++i) v[i] = 0;
  for (int k = 0; k < n; ++k) {
    const float* from = merged ? p.latent + (static_cast<std::int64_t>(t) * p.heads + h) * kLatentWidth
                               : p.partial + piece_row(p, t, k, h) * kLatentWidth;
    const float w = merged ? 1.0F : __shfl_sync(0xffffffffU, top, k) / total;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float4 f = __ldcg(reinterpret_cast<const float4*>(from) + c.lane * 4 + i);
      v[4 * i] += w * f.x, v[4 * i + 1] += w * f.y, v[4 * i + 2] += w * f.z, v[4 * i + 3] += w * f.w;
    }
  }
}

// attended = W_UV · latent, a head at a time.
__device__ __forceinline__ void project_values(StepWorker& c, const StepContexts& contexts, bool merged) {
  const DecodeStep& p = c.p;
  constexpr int kStride = x_stride(kLatentWidth);
  const Range all = share(p.heads * kQkWidth, 2);
  if (all.begin >= all.end) return;  // and no tile in the ring either
  const int first = all.begin / kQkWidth, n = (all.end - 1) / kQkWidth - first + 1;
  const bool rotated = is_rotated(p.cache.codec);
  for (int i = c.warp; i < n * p.T; i += kStepWarps) {
    const int t = i % p.T, h = i / p.T;
    float v[16];
    load_latent(c, contexts, merged, t, first + h, v);
    if (rotated) warp_hadamard(v, c.lane);
    const std::uint32_t to = c.x + static_cast<std::uint32_t>((h * p.T + t) * 2 * kStride);
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      float part[8];
#pragma unroll
      for (int j = 0; j < 8; ++j) part[j] = v[8 * k + j];
      put_split(StepOrder::kWords, to, to + kStride, 2 * c.lane + k, part);
    }
  }
  sync_workers();
  each_value_tile(c.s.layer.kv_b, p.heads, [&](const StepTile& t, int head) {
    const std::uint32_t rows = c.x + static_cast<std::uint32_t>((head - first) * p.T * 2 * kStride);
    const float v = c.tile_value(t, c.own_row(rows, kStride));
    const int token = c.tid / 16, row = t.row + c.tid % 16 - head * (kNopeWidth + kQkWidth) - kNopeWidth;
    if (token < p.T && c.tid % 16 < t.n)
      p.attended[(static_cast<std::int64_t>(token) * p.heads + head) * kQkWidth + row] = v;
  });
}

}  // namespace glint::cuda
#endif
