#pragma once
// Hopper's own instructions (sm_90a): warpgroup products, barriers in shared memory, clusters. Every function here is
// empty in code for other architectures; hopper.cu sees to it that none of that runs.

#include "backends/cuda/common.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define GLINT_HOPPER 1
#else
#define GLINT_HOPPER 0
#endif

namespace glint::cuda {

// ---- barriers -------------------------------------------------------------------------------------------------------

__device__ __forceinline__ void mbar_init([[maybe_unused]] std::uint32_t bar, [[maybe_unused]] int count) {
#if GLINT_HOPPER
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(count) : "memory");
#endif
}
__device__ __forceinline__ void mbar_arrive([[maybe_unused]] std::uint32_t bar) {
#if GLINT_HOPPER
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(bar) : "memory");
#endif
}
// Arrives when all copies that this thread has begun are there.
__device__ __forceinline__ void mbar_arrive_after_copies([[maybe_unused]] std::uint32_t bar) {
#if GLINT_HOPPER
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(bar) : "memory");
#endif
}
// Waits until the phase with this parity has ended.
__device__ __forceinline__ void mbar_wait([[maybe_unused]] std::uint32_t bar, [[maybe_unused]] std::uint32_t parity) {
#if GLINT_HOPPER
  asm volatile(
      "{\n.reg .pred done;\nwait:\nmbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra wait;\n}" ::"r"(bar),
      "r"(parity)
      : "memory");
#endif
}
// Ordinary writes to shared memory before it are seen by the tensor cores after it.
__device__ __forceinline__ void fence_async() {
#if GLINT_HOPPER
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}
__device__ __forceinline__ void cluster_sync() {
#if GLINT_HOPPER
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}
__device__ __forceinline__ float4 load_cluster([[maybe_unused]] std::uint32_t address, [[maybe_unused]] int rank) {
  float4 v{};
#if GLINT_HOPPER
  asm volatile(
      "{\n.reg .b32 at;\nmapa.shared::cluster.u32 at, %4, %5;\n"
      "ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [at];\n}"
      : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
      : "r"(address), "r"(rank)
      : "memory");
#endif
  return v;
}
// Only the 256 threads that multiply.
__device__ __forceinline__ void consumer_sync() { asm volatile("bar.sync 1, 256;" ::: "memory"); }

template <int kRegisters>
__device__ __forceinline__ void grow_registers() {
#if GLINT_HOPPER
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
#endif
}
template <int kRegisters>
__device__ __forceinline__ void shrink_registers() {
#if GLINT_HOPPER
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
#endif
}

// Stores 8×8 tiles turned: lane 4 g + t holds column g of rows 2t and 2t + 1; lane i gives the address of row i % 8 of
// tile i / 8.
__device__ __forceinline__ void stmatrix4_trans([[maybe_unused]] std::uint32_t address,
                                                [[maybe_unused]] const std::uint32_t (&r)[4]) {
#if GLINT_HOPPER
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(r[0]),
               "r"(r[1]), "r"(r[2]), "r"(r[3])
               : "memory");
#endif
}
__device__ __forceinline__ void stmatrix_trans([[maybe_unused]] std::uint32_t address,
                                               [[maybe_unused]] std::uint32_t r) {
#if GLINT_HOPPER
  asm volatile("stmatrix.sync.aligned.m8n8.x1.trans.shared.b16 [%0], {%1};" ::"r"(address), "r"(r) : "memory");
#endif
}

// ---- products of a warpgroup ----------------------------------------------------------------------------------------

// A tile in shared memory: rows of 128 bytes (64 values along the contraction), units turned as by swizzled(), eight
// rows a KiB. 16 values further along the contraction are 2 more in the descriptor.
__device__ __forceinline__ std::uint64_t wgmma_tile(std::uint32_t address) {
  return static_cast<std::uint64_t>((address & 0x3ffffU) >> 4) | (std::uint64_t{1} << 16) | (std::uint64_t{64} << 32) |
         (std::uint64_t{1} << 62);
}

__device__ __forceinline__ void wgmma_fence() {
#if GLINT_HOPPER
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}
__device__ __forceinline__ void wgmma_commit() {
#if GLINT_HOPPER
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}
template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
#if GLINT_HOPPER
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
#endif
}
// The compiler must not read results before the wait that this stands behind.
template <int kCount>
__device__ __forceinline__ void wgmma_results(float (&d)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

// Nor may it compute fragments later than here.
__device__ __forceinline__ void wgmma_inputs(std::uint32_t (&a)[4][4]) {
#pragma unroll
  for (int i = 0; i < 16; ++i) asm volatile("" : "+r"(a[i / 4][i % 4])::"memory");
}

// d[64 × kN] (+)= a · b: a from shared memory, or as fragments of m16n8k16, warp w rows 16 w to 16 w + 15; b is kN rows
// of x. d[4 j + 2 r + e] is row 16 w + g + 8 r, column 8 j + 2 t + e. With `add` 0 the old d is not read.
template <int kN>
struct Wgmma;

#if GLINT_HOPPER

#define GLINT_R0                     \
  "%0, %1, %2, %3, %4, %5, %6, %7, " \
  "%8, %9, %10, %11, %12, %13, %14, %15"
#define GLINT_R1                             \
  "%16, %17, %18, %19, %20, %21, %22, %23, " \
  "%24, %25, %26, %27, %28, %29, %30, %31"
#define GLINT_R2                             \
  "%32, %33, %34, %35, %36, %37, %38, %39, " \
  "%40, %41, %42, %43, %44, %45, %46, %47"
#define GLINT_R3                             \
  "%48, %49, %50, %51, %52, %53, %54, %55, " \
  "%56, %57, %58, %59, %60, %61, %62, %63"
#define GLINT_R4                             \
  "%64, %65, %66, %67, %68, %69, %70, %71, " \
  "%72, %73, %74, %75, %76, %77, %78, %79"
#define GLINT_R5                             \
  "%80, %81, %82, %83, %84, %85, %86, %87, " \
  "%88, %89, %90, %91, %92, %93, %94, %95"
#define GLINT_R6                                 \
  "%96, %97, %98, %99, %100, %101, %102, %103, " \
  "%104, %105, %106, %107, %108, %109, %110, %111"
#define GLINT_R7                                     \
  "%112, %113, %114, %115, %116, %117, %118, %119, " \
  "%120, %121, %122, %123, %124, %125, %126, %127"
#define GLINT_D8(i)                                                                                           \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), \
      "+f"(d[i + 7])
#define GLINT_D16(i) GLINT_D8(i), GLINT_D8(i + 8)

// n, its registers as text and as operands, and the numbers of the five operands behind them.
#define GLINT_WGMMA(n, TEXT, OPERANDS, p0, p1, p2, p3, p4, p5)                                                        \
  template <>                                                                                                         \
  struct Wgmma<n> {                                                                                                   \
    static __device__ __forceinline__ void shared(float (&d)[n / 2], std::uint64_t a, std::uint64_t b, int add) {     \
      asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #p2 ", 0;\nwgmma.mma_async.sync.aligned.m64n" #n              \
                   "k16.f32.bf16.bf16 {" TEXT "}, %" #p0 ", %" #p1 ", p, 1, 1, 0, 0;\n}"                              \
                   : OPERANDS                                                                                         \
                   : "l"(a), "l"(b), "r"(add));                                                                       \
    }                                                                                                                 \
    static __device__ __forceinline__ void registers(float (&d)[n / 2], const std::uint32_t (&a)[4], std::uint64_t b, \
                                                     int add) {                                                       \
      asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #p5 ", 0;\nwgmma.mma_async.sync.aligned.m64n" #n              \
                   "k16.f32.bf16.bf16 {" TEXT "}, {%" #p0 ", %" #p1 ", %" #p2 ", %" #p3 "}, %" #p4 ", p, 1, 1, 0;\n}" \
                   : OPERANDS                                                                                         \
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add));                                   \
    }                                                                                                                 \
  };

#define GLINT_OPS8 "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
GLINT_WGMMA(8, "%0, %1, %2, %3", GLINT_OPS8, 4, 5, 6, 7, 8, 9)
#define GLINT_OPS16 GLINT_D8(0)
GLINT_WGMMA(16, "%0, %1, %2, %3, %4, %5, %6, %7", GLINT_OPS16, 8, 9, 10, 11, 12, 13)
#define GLINT_OPS32 GLINT_D16(0)
GLINT_WGMMA(32, GLINT_R0, GLINT_OPS32, 16, 17, 18, 19, 20, 21)
#define GLINT_OPS64 GLINT_D16(0), GLINT_D16(16)
GLINT_WGMMA(64, GLINT_R0 ", " GLINT_R1, GLINT_OPS64, 32, 33, 34, 35, 36, 37)
#define GLINT_OPS96 GLINT_D16(0), GLINT_D16(16), GLINT_D16(32)
GLINT_WGMMA(96, GLINT_R0 ", " GLINT_R1 ", " GLINT_R2, GLINT_OPS96, 48, 49, 50, 51, 52, 53)
#define GLINT_OPS128 GLINT_D16(0), GLINT_D16(16), GLINT_D16(32), GLINT_D16(48)
GLINT_WGMMA(128, GLINT_R0 ", " GLINT_R1 ", " GLINT_R2 ", " GLINT_R3, GLINT_OPS128, 64, 65, 66, 67, 68, 69)
#define GLINT_OPS160 GLINT_D16(0), GLINT_D16(16), GLINT_D16(32), GLINT_D16(48), GLINT_D16(64)
GLINT_WGMMA(160, GLINT_R0 ", " GLINT_R1 ", " GLINT_R2 ", " GLINT_R3 ", " GLINT_R4, GLINT_OPS160, 80, 81, 82, 83, 84, 85)
#define GLINT_OPS192 GLINT_D16(0), GLINT_D16(16), GLINT_D16(32), GLINT_D16(48), GLINT_D16(64), GLINT_D16(80)
GLINT_WGMMA(192, GLINT_R0 ", " GLINT_R1 ", " GLINT_R2 ", " GLINT_R3 ", " GLINT_R4 ", " GLINT_R5, GLINT_OPS192, 96, 97,
            98, 99, 100, 101)
#define GLINT_OPS224 \
  GLINT_D16(0), GLINT_D16(16), GLINT_D16(32), GLINT_D16(48), GLINT_D16(64), GLINT_D16(80), GLINT_D16(96)
GLINT_WGMMA(224, GLINT_R0 ", " GLINT_R1 ", " GLINT_R2 ", " GLINT_R3 ", " GLINT_R4 ", " GLINT_R5 ", " GLINT_R6,
            GLINT_OPS224, 112, 113, 114, 115, 116, 117)
#define GLINT_OPS256 \
  GLINT_D16(0), GLINT_D16(16), GLINT_D16(32), GLINT_D16(48), GLINT_D16(64), GLINT_D16(80), GLINT_D16(96), GLINT_D16(112)
GLINT_WGMMA(256,
            GLINT_R0 ", " GLINT_R1 ", " GLINT_R2 ", " GLINT_R3 ", " GLINT_R4 ", " GLINT_R5 ", " GLINT_R6 ", " GLINT_R7,
            GLINT_OPS256, 128, 129, 130, 131, 132, 133)
#else
template <int kN>
struct Wgmma {
  static __device__ void shared(float (&)[kN / 2], std::uint64_t, std::uint64_t, int) {}
  static __device__ void registers(float (&)[kN / 2], const std::uint32_t (&)[4], std::uint64_t, int) {}
};
#endif

}  // namespace glint::cuda
