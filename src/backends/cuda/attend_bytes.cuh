#pragma once
// Scores of a page of INT8 rows by products of bytes: rows are operands where they lie, none of their codes is
// converted. A query is two signed bytes a number, 256 high + low, in units of its own for the latent and the rotary
// part; sums are exact.

#include "backends/cuda/attend_page.cuh"

namespace glint::cuda {

// Queries as products want them: rows of 128 bytes, turned as those of a page, first the high parts of all pairs, then
// the low ones; in blocks of so many columns: four of the latent part and one of the rotary part, whose groups of 16
// have 32 bytes each, the other 16 zero, since a product takes 32 columns and each group of a row has a scale.
template <int kPairs>
inline constexpr int kByteBlock = 2 * kPairs * 128;

#if __CUDA_ARCH__ >= 900
// d[64 × 48] = a[64 × 32] · b[32 × 48] (+ d where `add`) of signed bytes, both K-major in shared memory.
__device__ __forceinline__ void wgmma_bytes(int (&d)[24], std::uint64_t a, std::uint64_t b, bool add) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define GLINT_I4(i) "+r"(d[i]), "+r"(d[i + 1]), "+r"(d[i + 2]), "+r"(d[i + 3])
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %26, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n48k32.s32.s8.s8 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, "
      "%14, %15, %16, %17, %18, %19, %20, %21, %22, %23}, %24, %25, p;\n}"
      : GLINT_I4(0), GLINT_I4(4), GLINT_I4(8), GLINT_I4(12), GLINT_I4(16), GLINT_I4(20)
      : "l"(a), "l"(b), "r"(static_cast<int>(add)));
#undef GLINT_I4
#endif
}
template <int N>
__device__ __forceinline__ void hold(int (&d)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) asm volatile("" : "+r"(d[i])::"memory");
}

// As score_page(), of 24 pairs. s is in the unit of the query's rotary part; `of_latent`: the latent one's over it, a
// pair.
__device__ __forceinline__ void score_bytes(float (&s)[12], const unsigned char* stage, const unsigned char* queries,
                                            const float* of_latent, float (&scale)[2], int warp, int lane) {
  constexpr KvCodec kCodec = KvCodec::kInt8;
  const std::uint32_t rows = uniform(shared_address(stage));
  const std::uint64_t of_rows = k_major(rows), query = k_major(uniform(shared_address(queries)));
  const auto multiply = [&](int(&d)[24], int row_at, int query_at, bool add) {
    wgmma_bytes(d, further(of_rows, static_cast<std::uint32_t>(row_at / 128 * kBlockBytes + row_at % 128)),
                further(query, static_cast<std::uint32_t>(query_at / 128 * kByteBlock<24> + query_at % 128)), add);
  };
  int even[24], odd[24];  // sums under way
  wgmma_begin();
#pragma unroll
  for (int k = 0; k < kLatentWidth / 32; ++k) multiply(even, 32 * k, 32 * k, k > 0);
  wgmma_commit();
  multiply(odd, kLatentWidth, kLatentWidth, false);
  wgmma_commit();
  // Meanwhile the rows' scales.
  const std::uint32_t of_row = in_stage(16 * warp + lane % 16, 16 * (lane / 16));
  SideWord<kCodec> side[2];
#pragma unroll
  for (int unit = 0; unit < kLatentWidth / 16; unit += 2) {
    std::uint32_t r[4];
    ldmatrix4(r, rows + (of_row ^ (unit % 8 * 16)) + unit / 8 * kBlockBytes);
#pragma unroll
    for (int k = 0; k < 4; ++k) side[k % 2].add(unit + k / 2, r[k]);
  }
  const RowScales of[2] = {side[0].scales(lane % 4), side[1].scales(lane % 4)};
  scale[0] = of[0].latent, scale[1] = of[1].latent;
  const auto whole = [](const int(&d)[24], int k) { return static_cast<float>(256 * d[k] + d[12 + k]); };
  wgmma_wait<1>();
  hold(even);
#pragma unroll
  for (int j = 0; j < 3; ++j) {
    const float2 unit = *reinterpret_cast<const float2*>(of_latent + 8 * j + 2 * (lane % 4));
#pragma unroll
    for (int k = 0; k < 4; ++k) s[4 * j + k] = whole(even, 4 * j + k) * (scale[k / 2] * (k % 2 == 0 ? unit.x : unit.y));
  }
#pragma unroll
  for (int group = 0; group < 4; ++group) {
    wgmma_wait<0>();
    hold(odd);
    float x[12];
#pragma unroll
    for (int k = 0; k < 12; ++k) x[k] = whole(odd, k);
    if (group < 3) {
      wgmma_begin();
      multiply(odd, kLatentWidth + (group + 1) / 2 * 32, kLatentWidth + (group + 1) * 32, false);
      wgmma_commit();
    }
#pragma unroll
    for (int k = 0; k < 12; ++k) s[k] = fmaf(x[k], of[k / 2 % 2].rotary[group], s[k]);
  }
}
#endif

}  // namespace glint::cuda
