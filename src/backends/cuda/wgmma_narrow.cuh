#pragma once
// Products of 64 rows with few columns (8, 16, 24 or 40); see wgmma.cuh. b is K-major in shared memory. d has half the
// columns' number of sums.

#include "backends/cuda/wgmma.cuh"

namespace glint::cuda {

#define GLINT_D4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define GLINT_D8 GLINT_D4(0), GLINT_D4(4)
#define GLINT_D12 GLINT_D8, GLINT_D4(8)
#define GLINT_D20 GLINT_D12, GLINT_D4(12), GLINT_D4(16)
#define GLINT_N4 "{%0, %1, %2, %3}, "
#define GLINT_N8 "{%0, %1, %2, %3, %4, %5, %6, %7}, "
#define GLINT_N12 "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11}, "
#define GLINT_N20 "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19}, "

// d[64 × N] = a[64 × 16] · b[16 × N] (+ d where `add`): a in shared memory, K-major or MN-major.
template <bool kTurned, int kSums>
__device__ __forceinline__ void wgmma_narrow(float (&d)[kSums], std::uint64_t a, std::uint64_t b, bool add) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  static_assert(kSums == 4 || kSums == 8 || kSums == 12 || kSums == 20);
#define GLINT_NARROW(columns, names, sums, A, B, P, T)                                                    \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #P ", 0;\nwgmma.mma_async.sync.aligned.m64n" #columns \
               "k16.f32.bf16.bf16 " names "%" #A ", %" #B ", p, 1, 1, %" #T ", 0;\n}"                     \
               : sums                                                                                     \
               : "l"(a), "l"(b), "r"(static_cast<int>(add)), "n"(kTurned ? 1 : 0))
  if constexpr (kSums == 4) GLINT_NARROW(8, GLINT_N4, GLINT_D4(0), 4, 5, 6, 7);
  if constexpr (kSums == 8) GLINT_NARROW(16, GLINT_N8, GLINT_D8, 8, 9, 10, 11);
  if constexpr (kSums == 12) GLINT_NARROW(24, GLINT_N12, GLINT_D12, 12, 13, 14, 15);
  if constexpr (kSums == 20) GLINT_NARROW(40, GLINT_N20, GLINT_D20, 20, 21, 22, 23);
#undef GLINT_NARROW
#endif
}

// The same with a in registers, as mma() has it, of BF16 or FP16 numbers; a's are read until a later wgmma_wait has
// seen the product.
template <bool kHalf, int kSums>
__device__ __forceinline__ void wgmma_narrow(float (&d)[kSums], const std::uint32_t (&a)[4], std::uint64_t b,
                                             bool add) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  static_assert(kSums == 4 || kSums == 8 || kSums == 12 || kSums == 20);
#define GLINT_NARROW(columns, type, names, sums, A0, A1, A2, A3, B, P)                                       \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #P ", 0;\nwgmma.mma_async.sync.aligned.m64n" #columns    \
               "k16.f32." type " " names "{%" #A0 ", %" #A1 ", %" #A2 ", %" #A3 "}, %" #B ", p, 1, 1, 0;\n}" \
               : sums                                                                                        \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(add)))
  if constexpr (kHalf) {
    if constexpr (kSums == 4) GLINT_NARROW(8, "f16.f16", GLINT_N4, GLINT_D4(0), 4, 5, 6, 7, 8, 9);
    if constexpr (kSums == 8) GLINT_NARROW(16, "f16.f16", GLINT_N8, GLINT_D8, 8, 9, 10, 11, 12, 13);
    if constexpr (kSums == 12) GLINT_NARROW(24, "f16.f16", GLINT_N12, GLINT_D12, 12, 13, 14, 15, 16, 17);
    if constexpr (kSums == 20) GLINT_NARROW(40, "f16.f16", GLINT_N20, GLINT_D20, 20, 21, 22, 23, 24, 25);
  } else {
    if constexpr (kSums == 4) GLINT_NARROW(8, "bf16.bf16", GLINT_N4, GLINT_D4(0), 4, 5, 6, 7, 8, 9);
    if constexpr (kSums == 8) GLINT_NARROW(16, "bf16.bf16", GLINT_N8, GLINT_D8, 8, 9, 10, 11, 12, 13);
    if constexpr (kSums == 12) GLINT_NARROW(24, "bf16.bf16", GLINT_N12, GLINT_D12, 12, 13, 14, 15, 16, 17);
    if constexpr (kSums == 20) GLINT_NARROW(40, "bf16.bf16", GLINT_N20, GLINT_D20, 20, 21, 22, 23, 24, 25);
  }
#undef GLINT_NARROW
#endif
}

#undef GLINT_N4
#undef GLINT_N8
#undef GLINT_N12
#undef GLINT_N20
#undef GLINT_D4
#undef GLINT_D8
#undef GLINT_D12
#undef GLINT_D20

}  // namespace glint::cuda
