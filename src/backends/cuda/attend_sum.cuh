#pragma once
// The summers of attend_few.cu: softmax, weights times rows, and what becomes of the sums.

#include "backends/cuda/attend_softmax.cuh"

namespace glint::cuda {

#if __CUDA_ARCH__ >= 900
// out += rowsᵀ · weights for a warp's 64 columns: out[i] has columns 16 i + 2 g and the next, of BF16 rows 16 i + g and
// 16 i + g + 8.
template <KvCodec kCodec, int kN8>
__device__ __forceinline__ void sum_step(const unsigned char* stage, const Weighed<8 * kN8>& weighed,
                                         float (&out)[4][kN8][4], int warp, int lane) {
  using M = Memory<kCodec, kN8>;
  const int t = lane % 4;
  float2 factor[kN8];
  bool same = true;
  std::uint32_t p[kN8][4];
#pragma unroll
  for (int j = 0; j < kN8; ++j) {
    factor[j] = *reinterpret_cast<const float2*>(weighed.factors + 8 * j + 2 * t);
    same = same && factor[j].x == 1.0F && factor[j].y == 1.0F;
    ldmatrix4(p[j], shared_address(weighed.weights) + (8 * j + lane % 8) * kWeightStride + lane / 8 * 16);
  }
  if (!__all_sync(0xffffffffU, same)) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int j = 0; j < kN8; ++j) {
        out[i][j][0] *= factor[j].x, out[i][j][1] *= factor[j].y;
        out[i][j][2] *= factor[j].x, out[i][j][3] *= factor[j].y;
      }
    }
  }
  const std::uint32_t row = shared_address(stage) + lane * M::kRow;
  const auto add = [&](int i, int k, const std::uint32_t(&v)[4]) {
#pragma unroll
    for (int j = 0; j < kN8; ++j) code_product<kCodec>(out[i][j], v, p[j][2 * k], p[j][2 * k + 1]);
  };
  if constexpr (!is_short(kCodec)) {
    const std::uint32_t from =
        shared_address(stage) + (lane / 16 * 8 + lane % 8) * M::kRow + (warp * 64 + lane / 8 % 2 * 8) * 2;
#pragma unroll
    for (int k = 0; k < 2; ++k) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        std::uint32_t v[4];
        ldmatrix4_trans(v, from + k * 16 * M::kRow + i * 32);
        add(i, k, v);
      }
    }
  } else if constexpr (kIsFour<kCodec>) {
    std::uint32_t scales[4];  // of tokens 8 i + 2 t and the next: bytes of this warp's two groups
    const unsigned char* from = stage + 2 * t * M::kRow + kLatentWidth / 2 + 2 * warp;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const auto* pair = reinterpret_cast<const std::uint16_t*>(from + 8 * i * M::kRow);
      scales[i] = __byte_perm(pair[0], pair[M::kRow / 2], 0x5410);
    }
#pragma unroll
    for (int u = 0; u < 2; ++u) {
      std::uint32_t r[4];
      ldmatrix4_trans(r, row + (2 * warp + u) * 16);
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        const GroupScale s0 = group_scale(scales[2 * k] >> (8 * u) & 0x00ff00ffU),
                         s1 = group_scale(scales[2 * k + 1] >> (8 * u) & 0x00ff00ffU);
        const std::uint32_t a = r[2 * k], b = r[2 * k + 1];
        add(2 * u, k,
            {nibble_halves(a, s0), nibble_halves(a >> 8, s0), nibble_halves(b, s1), nibble_halves(b >> 8, s1)});
        add(2 * u + 1, k,
            {nibble_halves(a >> 4, s0), nibble_halves(a >> 12, s0), nibble_halves(b >> 4, s1),
             nibble_halves(b >> 12, s1)});
      }
    }
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      std::uint32_t r[4];
      ldmatrix4_trans(r, row + warp * 64 + i * 16);
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        const CodePairs a = alternates<kCodec>(r[2 * k]), b = alternates<kCodec>(r[2 * k + 1]);
        add(i, k, {a.first, a.second, b.first, b.second});
      }
    }
  }
}

// store(j, e, column, values of it and the next) for pair 8 j + 2 t + e. Undoes H where it is: column 64 warp + 16 i +
// c mixes with those of equal c, over i here and over the warps through shared memory.
template <KvCodec kCodec, int kN8, typename Store>
__device__ __forceinline__ void answer(float (&out)[4][kN8][4], Memory<kCodec, kN8>& m, int warp, int lane,
                                       const Store& store) {
  const int g = lane / 4;
  if constexpr (kCodec == KvCodec::kBF16) {
    // Columns g and g + 1 come together in lanes of even g, g + 7 and g + 8 in the others.
    const bool odd = g % 2 != 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int j = 0; j < kN8; ++j) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const float other = __shfl_xor_sync(0xffffffffU, odd ? out[i][j][e] : out[i][j][2 + e], 4);
          store(j, e, warp * 64 + 16 * i + (odd ? g + 7 : g),
                odd ? float2{other, out[i][j][2 + e]} : float2{out[i][j][e], other});
        }
      }
    }
  } else if constexpr (!is_rotated(kCodec)) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int j = 0; j < kN8; ++j) {
#pragma unroll
        for (int e = 0; e < 2; ++e) store(j, e, warp * 64 + 16 * i + 2 * g, float2{out[i][j][e], out[i][j][2 + e]});
      }
    }
  } else {
    // [from warp][i, e][j, half][lane]: the warp of number 2 i + e goes on with that i and e.
    const auto place = [&](int from, int to, int j, int half) -> float& {
      return m.exchange[(((from * 8 + to) * kN8 + j) * 2 + half) * 32 + lane];
    };
#pragma unroll
    for (int j = 0; j < kN8; ++j) {
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const float s0 = out[0][j][c] + out[1][j][c], d0 = out[0][j][c] - out[1][j][c];
        const float s1 = out[2][j][c] + out[3][j][c], d1 = out[2][j][c] - out[3][j][c];
        const float v[4] = {s0 + s1, d0 + d1, s0 - s1, d0 - d1};
#pragma unroll
        for (int i = 0; i < 4; ++i) place(warp, 2 * i + c % 2, j, c / 2) = v[i];
      }
    }
    sync_workers<kSummers>();
#pragma unroll
    for (int j = 0; j < kN8; ++j) {
      float v[2][8];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
#pragma unroll
        for (int k = 0; k < 8; ++k) v[half][k] = place(k, warp, j, half);
#pragma unroll
        for (int d = 1; d < 8; d *= 2) {
#pragma unroll
          for (int k = 0; k < 8; ++k) {
            if ((k & d) != 0) continue;
            const float x = v[half][k], y = v[half][k + d];
            v[half][k] = x + y, v[half][k + d] = x - y;
          }
        }
      }
#pragma unroll
      for (int k = 0; k < 8; ++k)
        store(j, warp % 2, k * 64 + warp / 2 * 16 + 2 * g, float2{v[0][k] * 0.176776695F, v[1][k] * 0.176776695F});
    }
    sync_workers<kSummers>();  // before the next tile's exchange
  }
}

template <KvCodec kCodec, int kN8>
__device__ __forceinline__ void sum_steps(const FewArgs& a, const Share& w, Memory<kCodec, kN8>& m, int thread) {
  using M = Memory<kCodec, kN8>;
  const int warp = thread / 32, lane = thread % 32, t = lane % 4;
  Ring<M::kStages> stage;
  Ring<kPlanes> plane;
  int parity = 0;  // of the tile
  for (int at = w.begin; at < w.end; parity ^= 1) {
    const int stop = min(w.end, end_of(unit_of(a.cache, a.heads, M::kPairs, m.work, at)));
    float out[4][kN8][4] = {};
    {
      const Unit u = unit_of(a.cache, a.heads, M::kPairs, m.work, at);
      Softmax<kCodec, kN8> softmax;
      softmax.start(a, u, m.sees, warp, lane);
      int token = u.token(at) + lane;
      for (int i = at; i < stop; ++i, token += kTokens) {
        barrier_wait(shared_address(&m.scored[plane.at]), plane.phase);
        softmax.weigh(m.scores[plane.at], m.scales[is_short(kCodec) ? stage.at : 0], m.sees, token, m.weighed[i & 1],
                      warp, lane);
        if (i == stop - 1) softmax.finish(m.totals[parity], warp, lane);
        __syncwarp();
        if (lane == 0) barrier_arrive(shared_address(&m.taken[plane.at]));
        plane.next();
        sync_workers<kSummers>();
        barrier_wait(shared_address(&m.full[stage.at]), stage.phase);  // over by then; the copies are seen through it
        sum_step<kCodec, kN8>(m.stages[stage.at], m.weighed[i & 1], out, warp, lane);
        __syncwarp();
        if (lane == 0) barrier_arrive(shared_address(&m.empty[stage.at]));
        stage.next();
      }
    }
    // Found anew, rather than kept in registers.
    const Unit u = unit_of(a.cache, a.heads, M::kPairs, m.work, at);
    const Pieces pieces = pieces_of(u, w.total, w.n, a.heads, M::kPairs);
    const Totals<M::kPairs>& totals = m.totals[parity];
    if (stop - at == u.steps) {
      std::uint16_t* to = a.latent + pieces.global_pair * kLatentWidth;
      answer<kCodec, kN8>(out, m, warp, lane, [&](int j, int e, int column, float2 v) {
        const int pair = 8 * j + 2 * t + e;
        if (pair >= pieces.pairs) return;
        const float inverse = 1.0F / totals.sums[pair];
        *reinterpret_cast<std::uint32_t*>(to + pair * kLatentWidth + column) = pack_bf16(v.x * inverse, v.y * inverse);
      });
    } else {
      const std::int64_t first = static_cast<std::int64_t>(pieces.slot(w.c - pieces.first)) * M::kPairs;
      answer<kCodec, kN8>(out, m, warp, lane, [&](int j, int e, int column, float2 v) {
        const int pair = 8 * j + 2 * t + e;
        if (pair < pieces.pairs) *reinterpret_cast<float2*>(a.partial + (first + pair) * kLatentWidth + column) = v;
      });
      if (thread < pieces.pairs) a.partial_ml[first + thread] = {totals.maxima[thread], totals.sums[thread]};
      announce_piece<kSummers>(a.present, pieces, thread);
    }
    at = stop;
  }
  merge_tiles<M::kPairs, kSummers>(a, w.total, w.n, w.c, m.work, m.merge, thread);
}
#endif

}  // namespace glint::cuda
