#pragma once
// Attention of the decode kernel: a block takes a piece of one row's context, 32 tokens a step, for all query heads.
// Pieces follow from the row's own context, so that its neighbours do not matter.

#include "backends/cuda/decode_product.cuh"

namespace glint::cuda {

constexpr int kAttendTokens = 32;
constexpr int kKvRowBytes = kRowWidth * 2, kKvRowUnits = kRowWidth / 8;
constexpr int kProbStride = kAttendTokens * 2 + 16;
constexpr float kDecodeScaleLog2 = 0.0625F * 1.4426950408889634F;

// Shared memory: query, tokens, two half sums of scores, probabilities, a factor a head.
struct AttendArea {
  static constexpr int kQuery = kDecodeHeads * kKvRowBytes, kTokens = kAttendTokens * kKvRowBytes;
  static constexpr int kScores = 2 * 32 * kAttendTokens * 4, kProbs = 32 * kProbStride;
  static constexpr int kBytes = kQuery + kTokens + kScores + kProbs + 32 * 4;
};

using Pieces = DecodeShared::Seen;  // what a row sees, a piece's length, pieces
__device__ __forceinline__ void see(const DecodeStep& s, DecodeShared& sh, int row) {
  Pieces p;
  p.end = s.context[row];
  p.begin = s.window > 0 ? max(0, p.end - s.window) : 0;
  const int seen = p.end - p.begin;
  const int wanted = max(64, (seen + (seen <= 8192 ? 31 : 63)) / (seen <= 8192 ? 32 : 64));
  p.tokens = 1 << (32 - __clz(wanted - 1));
  p.count = (seen + p.tokens - 1) / p.tokens;
  sh.seen[row] = p;
}

// The one place that knows how a cached row is stored: eight values of it, as bf16.
__device__ __forceinline__ uint4 load_cached(const unsigned char* row, int unit) {
  return __ldcg(reinterpret_cast<const uint4*>(row) + unit);
}

__device__ inline void attend_piece(const DecodeStep& s, const DecodeLayerData& l, unsigned char* area, int row,
                                    const Pieces& pieces, int piece) {
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32, g = lane / 4, t = lane % 4;
  const std::uint32_t q_base = shared_address(area), kv_base = q_base + AttendArea::kQuery;
  auto* scores = reinterpret_cast<float*>(area + AttendArea::kQuery + AttendArea::kTokens);  // [2][32][tokens]
  unsigned char* probs = area + AttendArea::kQuery + AttendArea::kTokens + AttendArea::kScores;
  auto* factors = reinterpret_cast<float*>(probs + AttendArea::kProbs);
  const std::uint32_t p_base = shared_address(probs);
  const int low = pieces.begin + piece * pieces.tokens, high = min(pieces.end, low + pieces.tokens);
  const std::int32_t* table = s.page_table + static_cast<std::int64_t>(row) * s.max_pages;

  constexpr int kLoads = (kAttendTokens * kKvRowUnits + kDecodeThreads - 1) / kDecodeThreads;
  uint4 held[kLoads];
  const auto load = [&](int start) {
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int at = thread + i * kDecodeThreads, r = at / kKvRowUnits, token = start + r;
      held[i] = uint4{};
      if (r < kAttendTokens && token < high) {
        const unsigned char* page = l.pages + table[token / kPageRows] * l.page_stride;
        held[i] = load_cached(page + token % kPageRows * kKvRowBytes, at % kKvRowUnits);
      }
    }
  };
  load(low);
  for (int i = thread; i < s.heads * kKvRowUnits; i += kDecodeThreads) {
    const int head = i / kKvRowUnits, unit = i % kKvRowUnits;
    const std::int64_t pair = static_cast<std::int64_t>(row) * s.heads + head;
    const uint4 v =
        unit < kLatentWidth / 8
            ? __ldcg(reinterpret_cast<const uint4*>(s.query + pair * kLatentWidth) + unit)
            : __ldcg(reinterpret_cast<const uint4*>(s.q + pair * kQkWidth + kNopeWidth) + unit - kLatentWidth / 8);
    sts128(q_base + swizzled(head, unit, kKvRowBytes), v);
  }

  // Scores: warp (tile of 16 heads, eight tokens, half of the contraction). Softmax: warp w has heads 2 w, 2 w + 1.
  const int tile = warp / 8, group = warp / 2 % 4, half = warp % 2;
  float top[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};
  float out[2][4][4] = {};
  for (int start = low; start < high; start += kAttendTokens) {
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int at = thread + i * kDecodeThreads, r = at / kKvRowUnits;
      if (r < kAttendTokens) sts128(kv_base + swizzled(r, at % kKvRowUnits, kKvRowBytes), held[i]);
    }
    __syncthreads();
    if (start + kAttendTokens < high) load(start + kAttendTokens);
    float c[4] = {}, d[4] = {};
    const int q_row = min(tile * 16 + lane % 16, s.heads - 1);
#pragma unroll 3
    for (int k = half * 18; k < half * 18 + 18; k += 2) {
      std::uint32_t b[4], q[4];
      ldmatrix4(b, kv_base + swizzled(group * 8 + lane % 8, 2 * k + lane / 8, kKvRowBytes));
      ldmatrix4(q, q_base + swizzled(q_row, 2 * k + lane / 16, kKvRowBytes));
      mma(c, q[0], q[1], q[2], q[3], b[0], b[1]);
      ldmatrix4(q, q_base + swizzled(q_row, 2 * k + 2 + lane / 16, kKvRowBytes));
      mma(d, q[0], q[1], q[2], q[3], b[2], b[3]);
    }
    float* to = scores + (half * 32 + tile * 16 + g) * kAttendTokens + group * 8 + 2 * t;
    *reinterpret_cast<float2*>(to) = {c[0] + d[0], c[1] + d[1]};
    *reinterpret_cast<float2*>(to + 8 * kAttendTokens) = {c[2] + d[2], c[3] + d[3]};
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int head = 2 * warp + i;
      const float raw = scores[head * kAttendTokens + lane] + scores[(32 + head) * kAttendTokens + lane];
      const float v = start + lane < high ? raw * kDecodeScaleLog2 : -INFINITY;
      float m = v;
#pragma unroll
      for (int x = 16; x > 0; x >>= 1) m = fmaxf(m, __shfl_xor_sync(0xffffffffU, m, x));
      m = fmaxf(m, top[i]);  // finite: every step has a token
      const float factor = exp2f(top[i] - m);
      top[i] = m;
      const __nv_bfloat16 p = __float2bfloat16_rn(exp2f(v - m));
      reinterpret_cast<__nv_bfloat16*>(probs + head * kProbStride)[lane] = p;
      sum[i] = sum[i] * factor + warp_sum(__bfloat162float(p));
      if (lane == 0) factors[head] = factor;
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float f0 = factors[i * 16 + g], f1 = factors[i * 16 + g + 8];
#pragma unroll
      for (int n = 0; n < 4; ++n) out[i][n][0] *= f0, out[i][n][1] *= f0, out[i][n][2] *= f1, out[i][n][3] *= f1;
    }
#pragma unroll
    for (int k = 0; k < kAttendTokens / 16; ++k) {
      std::uint32_t p[2][4];
#pragma unroll
      for (int i = 0; i < 2; ++i)
        ldmatrix4(p[i], p_base + (i * 16 + lane % 16) * kProbStride + (k * 16 + lane / 16 * 8) * 2);
#pragma unroll
      for (int n = 0; n < 4; n += 2) {
        std::uint32_t v[4];
        ldmatrix4_trans(
            v, kv_base + swizzled(k * 16 + lane / 8 % 2 * 8 + lane % 8, warp * 4 + n + lane / 16, kKvRowBytes));
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          mma(out[i][n], p[i][0], p[i][1], p[i][2], p[i][3], v[0], v[1]);
          mma(out[i][n + 1], p[i][0], p[i][1], p[i][2], p[i][3], v[2], v[3]);
        }
      }
    }
    __syncthreads();  // the tokens may be overwritten
  }

  const std::int64_t first = (static_cast<std::int64_t>(row) * kDecodeSplits + piece) * s.heads;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int head = 2 * warp + i;
    if (lane == 0) {
      factors[head] = 1.0F / sum[i];
      if (head < s.heads) s.partial_ml[first + head] = {top[i], sum[i]};
    }
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 2; ++i) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int head = i * 16 + g + 8 * h;
      if (head >= s.heads) continue;
      const float f = factors[head];
      auto* to = reinterpret_cast<std::uint32_t*>(s.partial + (first + head) * kLatentWidth + warp * 32 + 2 * t);
#pragma unroll
      for (int n = 0; n < 4; ++n) to[4 * n] = pack_bf16(out[i][n][2 * h] * f, out[i][n][2 * h + 1] * f);
    }
  }
  __syncthreads();  // the area may be used again
}

__device__ inline void attend_pieces(const DecodeStep& s, const DecodeShared& sh, const DecodeLayerData& l,
                                     unsigned char* area) {
  int job = blockIdx.x;
  for (int row = 0; row < s.n_rows; ++row) {
    const Pieces p = sh.seen[row];
    for (; job < p.count; job += gridDim.x) attend_piece(s, l, area, row, p, job);
    job -= p.count;
  }
}

// Eight columns of a head's result: the pieces added in order.
__device__ __forceinline__ uint4 merged(const DecodeStep& s, const DecodeShared& sh, int row, int head, int unit) {
  const int n = sh.seen[row].count;
  const std::int64_t first = static_cast<std::int64_t>(row) * kDecodeSplits * s.heads + head;
  const auto* from = reinterpret_cast<const uint4*>(s.partial + first * kLatentWidth) + unit;
  if (n == 1) return __ldcg(from);
  float top = -INFINITY;
#pragma unroll 8
  for (int i = 0; i < n; ++i) top = fmaxf(top, __ldcg(s.partial_ml + first + i * s.heads).x);
  float total = 0, sum[8] = {};
#pragma unroll 4
  for (int i = 0; i < n; ++i) {
    const float2 ml = __ldcg(s.partial_ml + first + i * s.heads);
    const uint4 v = __ldcg(from + static_cast<std::int64_t>(i) * s.heads * (kLatentWidth / 8));
    const float w = exp2f(ml.x - top) * ml.y;
    total += w;
    const std::uint32_t u[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      sum[2 * k] = fmaf(w, bf16_low(u[k]), sum[2 * k]);
      sum[2 * k + 1] = fmaf(w, bf16_high(u[k]), sum[2 * k + 1]);
    }
  }
  const float f = 1.0F / total;
  return {pack_bf16(sum[0] * f, sum[1] * f), pack_bf16(sum[2] * f, sum[3] * f), pack_bf16(sum[4] * f, sum[5] * f),
          pack_bf16(sum[6] * f, sum[7] * f)};
}

}  // namespace glint::cuda
