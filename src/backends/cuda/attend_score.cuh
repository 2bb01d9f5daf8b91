#pragma once
// The scorers of attend_few.cu: products of queries and rows.

#include "backends/cuda/attend_memory.cuh"

namespace glint::cuda {

#if __CUDA_ARCH__ >= 900
// The queries of a warp's quarter, nine blocks of 16 values: of BF16 rows in their order, else eight of the latent and
// one rotary, as the codes' products want them; for FP16 times a power of two, whose inverse is kept.
template <KvCodec kCodec, int kN8>
struct Queries {
  std::uint32_t q[9][kN8][2];
  float inverse;

  __device__ __forceinline__ void load(const std::uint16_t* query, int pairs, int quarter, int lane) {
    const int g = lane / 4, t = lane % 4;
#pragma unroll
    for (int j = 0; j < kN8; ++j) {
      const std::uint16_t* from = query + static_cast<std::int64_t>(8 * j + g) * kRowWidth;
#pragma unroll
      for (int k = 0; k < 9; ++k) {
        uint2 v{};
        if constexpr (!is_short(kCodec)) {
          const auto* at = reinterpret_cast<const std::uint32_t*>(from + 16 * (quarter * 9 + k) + 2 * t);
          if (8 * j + g < pairs) v = {at[0], at[4]};
        } else {
          const int block = k < 8 ? quarter * 8 + k : kLatentWidth / 16 + quarter;
          if (8 * j + g < pairs) v = *reinterpret_cast<const uint2*>(from + 16 * block + 4 * t);
        }
        q[k][j][0] = v.x, q[k][j][1] = v.y;
      }
    }
    if constexpr (kIsHalf<kCodec>) scale();
  }
  // The largest comes to be 2^10 …; BF16 numbers from 2^-27 of it on are exact.
  __device__ __forceinline__ void scale() {
    std::uint32_t largest = 0;  // two BF16 numbers' bits without the signs, in order as integers are
#pragma unroll
    for (int k = 0; k < 9; ++k) {
#pragma unroll
      for (int j = 0; j < kN8; ++j) {
#pragma unroll
        for (int h = 0; h < 2; ++h) largest = __vmaxu2(largest, q[k][j][h] & 0x7fff7fffU);
      }
    }
    largest = __reduce_max_sync(0xffffffffU, max(largest & 0xffffU, largest >> 16));
    const unsigned exponent = min(250U, max(20U, largest >> 7));
    const float factor = __uint_as_float((264 - exponent) << 23);
    inverse = __uint_as_float((exponent - 10) << 23);
#pragma unroll
    for (int k = 0; k < 9; ++k) {
#pragma unroll
      for (int j = 0; j < kN8; ++j) {
#pragma unroll
        for (int h = 0; h < 2; ++h)
          q[k][j][h] = pack_half(bf16_low(q[k][j][h]) * factor, bf16_high(q[k][j][h]) * factor);
      }
    }
  }
};

// Sums over a quarter of the values, of 16 tokens and all pairs, into the quarter's plane of scores.
template <KvCodec kCodec, int kN8>
__device__ __forceinline__ void score(const unsigned char* stage, const Queries<kCodec, kN8>& query,
                                      const RowScales& scales, float (&plane)[8 * kN8][kScoreStride], int tokens16,
                                      int quarter, int lane) {
  using M = Memory<kCodec, kN8>;
  constexpr int kLoads = kIsFour<kCodec> ? 2 : 4;
  const int g = lane / 4, t = lane % 4;
  const std::uint32_t row = shared_address(stage) + (tokens16 + lane % 16) * M::kRow;
  float* to = &plane[2 * t][tokens16 + g];
  if constexpr (!is_short(kCodec)) {
    float s[2][kN8][4] = {};  // two chains of sums: half the waiting
    std::uint32_t v[9][4];
#pragma unroll
    for (int k = 0; k < 9; ++k) ldmatrix4(v[k], row + (quarter * 9 + k) * 32 + lane / 16 * 16);
#pragma unroll
    for (int k = 0; k < 9; ++k) {
#pragma unroll
      for (int j = 0; j < kN8; ++j) product(s[k % 2][j], v[k], query.q[k][j][0], query.q[k][j][1]);
    }
#pragma unroll
    for (int j = 0; j < kN8; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) to[(8 * j + e % 2) * kScoreStride + e / 2 * 8] = s[0][j][e] + s[1][j][e];
    }
  } else {
    float latent[kN8][4] = {}, rotary[kN8][4] = {};
    const auto add = [&](float(&sum)[kN8][4], int k, const std::uint32_t(&v)[4]) {
#pragma unroll
      for (int j = 0; j < kN8; ++j) code_product<kCodec>(sum[j], v, query.q[k][j][0], query.q[k][j][1]);
    };
    std::uint32_t r[kLoads][4], turned[4];
#pragma unroll
    for (int i = 0; i < kLoads; ++i) ldmatrix4(r[i], row + (quarter * kLoads + i) * 32 + lane / 16 * 16);
    ldmatrix4(turned, row + kRotaryOffset<kCodec> + quarter * 16);
    const float of_rotary[2] = {scales.rotary[quarter][tokens16 + g], scales.rotary[quarter][tokens16 + g + 8]};
    if constexpr (kIsFour<kCodec>) {
      const unsigned char* scale_bytes = stage + (tokens16 + g) * M::kRow + kLatentWidth / 2 + quarter * 4;
      const std::uint32_t bytes[2] = {*reinterpret_cast<const std::uint32_t*>(scale_bytes),
                                      *reinterpret_cast<const std::uint32_t*>(scale_bytes + 8 * M::kRow)};
#pragma unroll
      for (int group = 0; group < 4; ++group) {
        const std::uint32_t low = r[group / 2][group % 2 * 2], high = r[group / 2][group % 2 * 2 + 1];
        const GroupScale s[2] = {group_scale(__byte_perm(bytes[0], 0, 0x4040 + 0x0101 * group)),
                                 group_scale(__byte_perm(bytes[1], 0, 0x4040 + 0x0101 * group))};
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const CodePairs a = nibble_neighbours(low >> (4 * h) & 0x0f0f0f0fU, s[0]);
          const CodePairs b = nibble_neighbours(high >> (4 * h) & 0x0f0f0f0fU, s[1]);
          add(latent, 2 * group + h, {a.first, b.first, a.second, b.second});
        }
      }
      const CodePairs a = {int8_pair(__byte_perm(turned[0], 0, 0x4140)), int8_pair(__byte_perm(turned[0], 0, 0x4342))};
      const CodePairs b = {int8_pair(__byte_perm(turned[1], 0, 0x4140)), int8_pair(__byte_perm(turned[1], 0, 0x4342))};
      add(rotary, 8, {a.first, b.first, a.second, b.second});
#pragma unroll
      for (int j = 0; j < kN8; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e)
          to[(8 * j + e % 2) * kScoreStride + e / 2 * 8] = fmaf(rotary[j][e], of_rotary[e / 2], latent[j][e]);
      }
    } else {
      const float of_latent[2] = {scales.latent[tokens16 + g] * query.inverse,
                                  scales.latent[tokens16 + g + 8] * query.inverse};
#pragma unroll
      for (int k = 0; k < 8; ++k) {
        const CodePairs a = neighbours<kCodec>(r[k / 2][k % 2 * 2]), b = neighbours<kCodec>(r[k / 2][k % 2 * 2 + 1]);
        add(latent, k, {a.first, b.first, a.second, b.second});
      }
      const CodePairs a = neighbours<KvCodec::kInt8>(turned[0]), b = neighbours<KvCodec::kInt8>(turned[1]);
      add(rotary, 8, {a.first, b.first, a.second, b.second});
      const float rotary_too[2] = {of_rotary[0] * query.inverse, of_rotary[1] * query.inverse};
#pragma unroll
      for (int j = 0; j < kN8; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e)
          to[(8 * j + e % 2) * kScoreStride + e / 2 * 8] =
              fmaf(rotary[j][e], rotary_too[e / 2], latent[j][e] * of_latent[e / 2]);
      }
    }
  }
}

template <KvCodec kCodec, int kN8>
__device__ __forceinline__ void score_steps(const FewArgs& a, const Share& w, Memory<kCodec, kN8>& m, int warp,
                                            int lane) {
  using M = Memory<kCodec, kN8>;
  Ring<M::kStages> stage;
  Ring<kPlanes> plane;
  plane.phase = 1;  // a fresh barrier's previous phase counts as complete
  const int tokens16 = warp % 2 * 16, quarter = warp / 2;
  for (int at = w.begin; at < w.end;) {
    const Unit u = unit_of(a.cache, a.heads, M::kPairs, m.work, at);
    const Pieces pieces = pieces_of(u, w.total, w.n, a.heads, M::kPairs);
    Queries<kCodec, kN8> query;
    query.load(a.query + pieces.global_pair * kRowWidth, pieces.pairs, quarter, lane);
    for (const int stop = min(w.end, end_of(u)); at < stop; ++at) {
      barrier_wait(shared_address(&m.full[stage.at]), stage.phase);
      if constexpr (is_short(kCodec)) barrier_wait(shared_address(&m.scaled[stage.at]), stage.phase);
      barrier_wait(shared_address(&m.taken[plane.at]), plane.phase);
      score<kCodec, kN8>(m.stages[stage.at], query, m.scales[is_short(kCodec) ? stage.at : 0],
                         m.scores[plane.at][quarter], tokens16, quarter, lane);
      __syncwarp();
      if (lane == 0) barrier_arrive(shared_address(&m.scored[plane.at]));
      stage.next();
      plane.next();
    }
  }
}

// The readers: scales of rows as stages arrive, eight warps' worth by three.
template <KvCodec kCodec, int kN8>
__device__ __forceinline__ void scale_steps(const Share& w, Memory<kCodec, kN8>& m, int warp, int lane) {
  using M = Memory<kCodec, kN8>;
  Ring<M::kStages> stage;
  for (int at = w.begin; at < w.end; ++at) {
    barrier_wait(shared_address(&m.full[stage.at]), stage.phase);
    for (int part = warp; part < kTokens / 4; part += kReaderWarps)
      read_scales<kCodec, M::kRow>(m.stages[stage.at] + 4 * part * M::kRow, 4 * part, lane, m.scales[stage.at]);
    __syncwarp();
    if (lane == 0) barrier_arrive(shared_address(&m.scaled[stage.at]));
    stage.next();
  }
}
#endif

}  // namespace glint::cuda
