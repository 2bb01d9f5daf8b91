#pragma once
// The summers of attend_decode.cu, two warpgroups: weights times rows, and what becomes of the sums. Each has 256
// of the 512 columns; a product has 64 of them as its rows.

#include "backends/cuda/attend_tiles.cuh"

namespace glint::cuda {

#if __CUDA_ARCH__ >= 900
// out += rowsᵀ · weights. Row 16 w + r of product i is column column_of(i) + r for BF16; of short codecs rows g and
// g + 8 are columns 2 g and 2 g + 1 (attend_codes.cuh).
template <KvCodec kCodec>
__device__ __forceinline__ int column_of(int i, int warp) {
  return is_short(kCodec) ? warp * 64 + 16 * i : warp / 4 * 256 + 64 * i + warp % 4 * 16;
}

template <KvCodec kCodec, int kN8>
__device__ __forceinline__ void sum_page(float (&out)[4][4 * kN8], const unsigned char* stage, std::uint32_t weights,
                                         int warp, int lane) {
  const std::uint32_t rows = shared_address(stage);
  const std::uint64_t of_weights = k_major(weights);
  // A lane's row; units further: turned by their number.
  const std::uint32_t of_lane = in_stage(lane, (kIsFour<kCodec> ? 32 : 64) * warp);
  if constexpr (!is_short(kCodec)) {
    const std::uint64_t of_rows = mn_major(rows + warp / 4 * (4 * kBlockBytes), kBlockBytes);
    wgmma_begin();
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int k = 0; k < kTokens / 16; ++k)
        wgmma_narrow<true>(out[i], further(of_rows, i * kBlockBytes + k * 2048), further(of_weights, 32 * k), true);
    }
    wgmma_commit();
  } else if constexpr (kIsFour<kCodec>) {
    const int t = lane % 4;
    std::uint32_t scales[8];  // of tokens 8 i + 2 t and the next: bytes of this warp's two groups
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int token = 8 * i + 2 * t;
      const auto of = [&](int row) {
        return *reinterpret_cast<const std::uint16_t*>(stage + in_stage(row, kLatentWidth / 2) + 2 * warp);
      };
      scales[i] = __byte_perm(of(token), of(token + 1), 0x5410);
    }
#pragma unroll
    for (int u = 0; u < 2; ++u) {
      std::uint32_t r[2][4];
#pragma unroll
      for (int tokens32 = 0; tokens32 < 2; ++tokens32)
        ldmatrix4_trans(r[tokens32], rows + (of_lane ^ (16 * u)) + 32 * 128 * tokens32);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        std::uint32_t v[4][4];
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          const GroupScale s0 = group_scale(scales[2 * k] >> (8 * u) & 0x00ff00ffU),
                           s1 = group_scale(scales[2 * k + 1] >> (8 * u) & 0x00ff00ffU);
          const std::uint32_t a = r[k / 2][k % 2 * 2] >> (4 * h), b = r[k / 2][k % 2 * 2 + 1] >> (4 * h);
          v[k][0] = nibble_halves(a, s0), v[k][1] = nibble_halves(a >> 8, s0);
          v[k][2] = nibble_halves(b, s1), v[k][3] = nibble_halves(b >> 8, s1);
        }
        wgmma_begin();
#pragma unroll
        for (int k = 0; k < 4; ++k) wgmma_narrow<false>(out[2 * u + h], v[k], further(of_weights, 32 * k), true);
        wgmma_commit();
        wgmma_wait<0>();  // there are no registers for more operands
      }
    }
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      std::uint32_t v[4][4];
#pragma unroll
      for (int tokens32 = 0; tokens32 < 2; ++tokens32) {
        std::uint32_t r[4];
        ldmatrix4_trans(r, rows + (of_lane ^ (16 * i)) + 32 * 128 * tokens32);
#pragma unroll
        for (int k = 0; k < 2; ++k) {
          const CodePairs a = alternates<kCodec>(r[2 * k]), b = alternates<kCodec>(r[2 * k + 1]);
          auto& to = v[2 * tokens32 + k];
          to[0] = a.first, to[1] = a.second, to[2] = b.first, to[3] = b.second;
        }
      }
      wgmma_begin();
#pragma unroll
      for (int k = 0; k < 4; ++k) wgmma_narrow<true>(out[i], v[k], further(of_weights, 32 * k), true);
      wgmma_commit();
      wgmma_wait<0>();  // there are no registers for more operands
    }
  }
  wgmma_wait<0>();
#pragma unroll
  for (int i = 0; i < 4; ++i) hold(out[i]);
}

// store(j, e, column, values of it and the next) for pair 8 j + 2 t + e. Undoes H where it is: column 64 warp + 16 i +
// c mixes with those of equal c, over i here and over the warps through shared memory.
template <KvCodec kCodec, int kN8, typename Store>
__device__ __forceinline__ void answer(const float (&out)[4][4 * kN8], Memory<kCodec, kN8>& m, int warp, int lane,
                                       const Store& store) {
  const int g = lane / 4;
  if constexpr (!is_short(kCodec)) {
    // Columns g and g + 1 come together in lanes of even g, g + 7 and g + 8 in the others.
    const bool odd = g % 2 != 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int j = 0; j < kN8; ++j) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const float low = out[i][4 * j + e], high = out[i][4 * j + 2 + e];
          const float other = __shfl_xor_sync(0xffffffffU, odd ? low : high, 4);
          store(j, e, column_of<kCodec>(i, warp) + (odd ? g + 7 : g), odd ? float2{other, high} : float2{low, other});
        }
      }
    }
  } else if constexpr (!is_rotated(kCodec)) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int j = 0; j < kN8; ++j) {
#pragma unroll
        for (int e = 0; e < 2; ++e)
          store(j, e, column_of<kCodec>(i, warp) + 2 * g, float2{out[i][4 * j + e], out[i][4 * j + 2 + e]});
      }
    }
  } else {
    // [from warp][i, e][half][lane]: the warp of number 2 i + e goes on with that i and e.
    const auto place = [&](int from, int to, int half) -> float& {
      return m.exchange[((from * 8 + to) * 2 + half) * 32 + lane];
    };
#pragma unroll
    for (int j = 0; j < kN8; ++j) {
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const int at = 4 * j + c;
        const float s0 = out[0][at] + out[1][at], d0 = out[0][at] - out[1][at];
        const float s1 = out[2][at] + out[3][at], d1 = out[2][at] - out[3][at];
        const float v[4] = {s0 + s1, d0 + d1, s0 - s1, d0 - d1};
#pragma unroll
        for (int i = 0; i < 4; ++i) place(warp, 2 * i + c % 2, c / 2) = v[i];
      }
      sync_workers<kSummerBarrier>();
      float v[2][8];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
#pragma unroll
        for (int k = 0; k < 8; ++k) v[half][k] = place(k, warp, half);
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
      sync_workers<kSummerBarrier>();  // before the next exchange
    }
  }
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
    if (stop - start == u.steps) {
      std::uint16_t* to = a.latent + pieces.global_pair * kLatentWidth;
      answer<kCodec, kN8>(out, m, warp, lane, [&](int j, int e, int column, float2 v) {
        const int pair = 8 * j + 2 * t + e;
        if (pair >= pieces.pairs) return;
        const float inverse = 1.0F / totals.sum(pair);
        *reinterpret_cast<std::uint32_t*>(to + pair * kLatentWidth + column) = pack_bf16(v.x * inverse, v.y * inverse);
      });
    } else {
      const std::int64_t first = static_cast<std::int64_t>(pieces.slot(w.c - pieces.first)) * kPairs;
      answer<kCodec, kN8>(out, m, warp, lane, [&](int j, int e, int column, float2 v) {
        const int pair = 8 * j + 2 * t + e;
        if (pair < pieces.pairs) *reinterpret_cast<float2*>(a.partial + (first + pair) * kLatentWidth + column) = v;
      });
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
