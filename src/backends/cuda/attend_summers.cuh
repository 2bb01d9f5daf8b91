#pragma once
// The summers of attend_decode.cu, two warpgroups: weights times rows, and what becomes of the sums. Each has 256
// of the 512 columns; a product has 64 of them as its rows.

#include "backends/cuda/attend_tiles.cuh"

namespace glint::cuda {

#if __CUDA_ARCH__ >= 900
// store(pair, column, values of it and the next three or, under H, of it and the next), which threads do with
// neighbouring columns. Eight pairs at a time go through shared memory, in a loop: this code runs once a tile, and
// instructions that are not in the cache take longer than the work. Undoes H where it is: column 64 warp + 16 i + c
// mixes with those of equal c, over i here and over the warps behind the exchange.
template <KvCodec kCodec, int kN8, typename Store>
__device__ __forceinline__ void answer(const float (&out)[4][4 * kN8], Memory<kCodec, kN8>& m, int warp, int lane,
                                       const Store& store) {
  const int g = lane / 4, t = lane % 4;
#pragma unroll 1
  for (int j = 0; j < kN8; ++j) {
    float v[4][4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        v[i][c] = out[i][c];
#pragma unroll
        for (int k = 1; k < kN8; ++k) v[i][c] = j == k ? out[i][4 * k + c] : v[i][c];
      }
    }
    if constexpr (!is_rotated(kCodec)) {
      // [pair][column], the columns' fours turned by the pair.
      const auto place = [&](int e, int column) -> float& {
        const int pair = 2 * t + e;
        return m.exchange[pair * kLatentWidth + (column ^ (4 * pair))];
      };
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int column = column_of<kCodec>(i, warp);
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          place(e, column + (is_short(kCodec) ? 2 * g : g)) = v[i][e];
          place(e, column + (is_short(kCodec) ? 2 * g + 1 : g + 8)) = v[i][2 + e];
        }
      }
      sync_workers<kSummerBarrier>();
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int column = 128 * i + 4 * lane;
        store(8 * j + warp, column,
              *reinterpret_cast<const float4*>(&m.exchange[warp * kLatentWidth + (column ^ (4 * warp))]));
      }
    } else {
      // [from warp][i, e][half][lane]: the warp of number 2 i + e goes on with that i and e.
      const auto place = [&](int from, int to, int half) -> float& {
        return m.exchange[((from * 8 + to) * 2 + half) * 32 + lane];
      };
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const float s0 = v[0][c] + v[1][c], d0 = v[0][c] - v[1][c], s1 = v[2][c] + v[3][c], d1 = v[2][c] - v[3][c];
        const float mixed[4] = {s0 + s1, d0 + d1, s0 - s1, d0 - d1};
#pragma unroll
        for (int i = 0; i < 4; ++i) place(warp, 2 * i + c % 2, c / 2) = mixed[i];
      }
      sync_workers<kSummerBarrier>();
      float w[2][8];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
#pragma unroll
        for (int k = 0; k < 8; ++k) w[half][k] = place(k, warp, half);
#pragma unroll
        for (int d = 1; d < 8; d *= 2) {
#pragma unroll
          for (int k = 0; k < 8; ++k) {
            if ((k & d) != 0) continue;
            const float x = w[half][k], y = w[half][k + d];
            w[half][k] = x + y, w[half][k + d] = x - y;
          }
        }
      }
#pragma unroll
      for (int k = 0; k < 8; ++k)
        store(8 * j + 2 * t + warp % 2, k * 64 + warp / 2 * 16 + 2 * g,
              float2{w[0][k] * 0.176776695F, w[1][k] * 0.176776695F});
    }
    sync_workers<kSummerBarrier>();  // before the next exchange
  }
}

__device__ __forceinline__ void store_floats(float* to, float2 v) { *reinterpret_cast<float2*>(to) = v; }
__device__ __forceinline__ void store_floats(float* to, float4 v) { *reinterpret_cast<float4*>(to) = v; }
__device__ __forceinline__ void store_scaled(std::uint16_t* to, float2 v, float scale) {
  *reinterpret_cast<std::uint32_t*>(to) = pack_bf16(v.x * scale, v.y * scale);
}
__device__ __forceinline__ void store_scaled(std::uint16_t* to, float4 v, float scale) {
  *reinterpret_cast<uint2*>(to) = {pack_bf16(v.x * scale, v.y * scale), pack_bf16(v.z * scale, v.w * scale)};
}

template <KvCodec kCodec, int kN8>
__device__ __forceinline__ void sum_steps(const FewArgs& a, const Share& w, Memory<kCodec, kN8>& m, int thread) {
  using M = Memory<kCodec, kN8>;
  constexpr int kPairs = M::kPairs;
  const int warp = thread / 32, lane = thread % 32, t = lane % 4;
  Ring<M::kStages> stage;
  Ring<kPlanes> plane;
  int tile = 0;
  for (int at = w.begin; at < w.end; ++tile) {
    const Unit u = unit_of(a.cache, a.heads, kPairs, m.work, at);
    const int start = at, stop = min(w.end, end_of(u));
    float out[4][4 * kN8] = {};
    int last = 0;  // the plane of the last step, which the scorers get back when the answer is written
    for (; at < stop; ++at) {
      barrier_wait(shared_address(&m.weighed[plane.at]), plane.phase);
      if (m.grown[plane.at] != 0) {
#pragma unroll
        for (int j = 0; j < kN8; ++j) {
          const float2 factor = *reinterpret_cast<const float2*>(&m.factors[plane.at][8 * j + 2 * t]);
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            out[i][4 * j] *= factor.x, out[i][4 * j + 1] *= factor.y;
            out[i][4 * j + 2] *= factor.x, out[i][4 * j + 3] *= factor.y;
          }
        }
      }
      barrier_wait(shared_address(&m.full[stage.at]), stage.phase);  // over by then; the copies are seen through it
      if constexpr (!is_rotated(kCodec)) barrier_wait(shared_address(&m.clear[stage.at]), stage.phase);
      sum_page<kCodec, kN8>(out, m.stages[stage.at], shared_address(m.weights[plane.at]), warp, lane);
      __syncwarp();
      if (lane == 0) {
        barrier_arrive(shared_address(&m.empty[stage.at]));
        if (at < stop - 1) barrier_arrive(shared_address(&m.taken[plane.at]));
      }
      last = plane.at;
      stage.next();
      plane.next();
    }
    const Pieces pieces = pieces_of(u, w.total, w.n, a.heads, kPairs);
    const Totals<kPairs>& totals = m.totals[tile % kTotals];
    const bool whole = stop - start == u.steps;
    if (thread < kPairs) m.inverse[thread] = 1.0F / totals.sum(thread);  // read behind answer()'s barrier
    std::uint16_t* to = a.latent + pieces.global_pair * kLatentWidth;
    const std::int64_t first = whole ? 0 : static_cast<std::int64_t>(pieces.slot(w.c - pieces.first)) * kPairs;
    answer<kCodec, kN8>(out, m, warp, lane, [&](int pair, int column, auto v) {
      if (pair >= pieces.pairs) return;
      if (whole) {
        store_scaled(to + pair * kLatentWidth + column, v, m.inverse[pair]);
      } else {
        store_floats(a.partial + (first + pair) * kLatentWidth + column, v);
      }
    });
    if (!whole) {
      if (thread < pieces.pairs) a.partial_ml[first + thread] = {totals.top(thread), totals.sum(thread)};
      announce_piece<kSummerBarrier>(a.present, pieces, thread);
    }
    __syncwarp();
    if (lane == 0) barrier_arrive(shared_address(&m.taken[last]));
  }
  merge_tiles<kPairs, kSummerBarrier>(a, w.total, w.n, w.c, m.work, m.merge, thread);
}
#endif

}  // namespace glint::cuda
