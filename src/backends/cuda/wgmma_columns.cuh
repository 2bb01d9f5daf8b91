#pragma once
// d[64 × N] += a[64 × 16] · b[16 × N] for N in 32s up to 256, with a in registers, as mma() has it, and b K-major in
// shared memory; see wgmma.cuh. Registers of a are read until a later wgmma_wait has seen the product.

#include "backends/cuda/wgmma.cuh"

namespace glint::cuda {

// The sums' names and operands, sixteen at a time.
#define GLINT_NAMES_1 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define GLINT_NAMES_2 GLINT_NAMES_1 ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define GLINT_NAMES_3 GLINT_NAMES_2 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define GLINT_NAMES_4 GLINT_NAMES_3 ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define GLINT_NAMES_5 GLINT_NAMES_4 ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79"
#define GLINT_NAMES_6 GLINT_NAMES_5 ", %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define GLINT_NAMES_7 \
  GLINT_NAMES_6 ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111"
#define GLINT_NAMES_8 \
  GLINT_NAMES_7 ", %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define GLINT_SUMS(i)                                                                                         \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), \
      "+f"(d[i + 7]), "+f"(d[i + 8]), "+f"(d[i + 9]), "+f"(d[i + 10]), "+f"(d[i + 11]), "+f"(d[i + 12]),      \
      "+f"(d[i + 13]), "+f"(d[i + 14]), "+f"(d[i + 15])
#define GLINT_SUMS_1 GLINT_SUMS(0)
#define GLINT_SUMS_2 GLINT_SUMS_1, GLINT_SUMS(16)
#define GLINT_SUMS_3 GLINT_SUMS_2, GLINT_SUMS(32)
#define GLINT_SUMS_4 GLINT_SUMS_3, GLINT_SUMS(48)
#define GLINT_SUMS_5 GLINT_SUMS_4, GLINT_SUMS(64)
#define GLINT_SUMS_6 GLINT_SUMS_5, GLINT_SUMS(80)
#define GLINT_SUMS_7 GLINT_SUMS_6, GLINT_SUMS(96)
#define GLINT_SUMS_8 GLINT_SUMS_7, GLINT_SUMS(112)
#define GLINT_WGMMA_ADD(columns, k, A0, A1, A2, A3, B)                                            \
  asm volatile("wgmma.mma_async.sync.aligned.m64n" #columns "k16.f32.bf16.bf16 {" GLINT_NAMES_##k \
               "}, {%" #A0 ", %" #A1 ", %" #A2 ", %" #A3 "}, %" #B ", 1, 1, 1, 0;"                \
               : GLINT_SUMS_##k                                                                   \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))

template <int kSums>
__device__ __forceinline__ void wgmma_add_of_registers(float (&d)[kSums], const std::uint32_t (&a)[4],
                                                       std::uint64_t b) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  static_assert(kSums % 16 == 0 && kSums >= 16 && kSums <= 128);
  if constexpr (kSums == 16) GLINT_WGMMA_ADD(32, 1, 16, 17, 18, 19, 20);
  if constexpr (kSums == 32) GLINT_WGMMA_ADD(64, 2, 32, 33, 34, 35, 36);
  if constexpr (kSums == 48) GLINT_WGMMA_ADD(96, 3, 48, 49, 50, 51, 52);
  if constexpr (kSums == 64) GLINT_WGMMA_ADD(128, 4, 64, 65, 66, 67, 68);
  if constexpr (kSums == 80) GLINT_WGMMA_ADD(160, 5, 80, 81, 82, 83, 84);
  if constexpr (kSums == 96) GLINT_WGMMA_ADD(192, 6, 96, 97, 98, 99, 100);
  if constexpr (kSums == 112) GLINT_WGMMA_ADD(224, 7, 112, 113, 114, 115, 116);
  if constexpr (kSums == 128) GLINT_WGMMA_ADD(256, 8, 128, 129, 130, 131, 132);
#endif
}

#undef GLINT_WGMMA_ADD
#undef GLINT_SUMS
#undef GLINT_NAMES_1
#undef GLINT_SUMS_1
#undef GLINT_NAMES_2
#undef GLINT_SUMS_2
#undef GLINT_NAMES_3
#undef GLINT_SUMS_3
#undef GLINT_NAMES_4
#undef GLINT_SUMS_4
#undef GLINT_NAMES_5
#undef GLINT_SUMS_5
#undef GLINT_NAMES_6
#undef GLINT_SUMS_6
#undef GLINT_NAMES_7
#undef GLINT_SUMS_7
#undef GLINT_NAMES_8
#undef GLINT_SUMS_8

}  // namespace glint::cuda
