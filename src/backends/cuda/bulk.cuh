#pragma once
// Barriers in shared memory, copies that arrive there, and the bulk copy engine (compute capability 9.0 and later).

#include "backends/cuda/common.cuh"

namespace glint::cuda {

__device__ __forceinline__ void barrier_init(std::uint32_t at, int count) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(at), "r"(count) : "memory");
}
__device__ __forceinline__ void barrier_arrive(std::uint32_t at) {
  asm volatile("{\n.reg .b64 state;\nmbarrier.arrive.shared.b64 state, [%0];\n}" ::"r"(at) : "memory");
}
// Once this thread's cp.async so far have ended.
__device__ __forceinline__ void barrier_arrive_copied(std::uint32_t at) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(at) : "memory");
}
// Of all threads of a cluster's blocks.
__device__ __forceinline__ void cluster_barrier() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}
// Until the phase of that parity has ended.
__device__ __forceinline__ void barrier_wait(std::uint32_t at, std::uint32_t parity) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "{\n .reg .pred done;\n again:\n mbarrier.try_wait.parity.shared.b64 done, [%0], %1;\n @!done bra again;\n}" ::
          "r"(at),
      "r"(parity)
      : "memory");
#else
  asm volatile(
      "{\n .reg .pred done;\n again:\n mbarrier.test_wait.parity.shared.b64 done, [%0], %1;\n @!done bra again;\n}" ::
          "r"(at),
      "r"(parity)
      : "memory");
#endif
}

#if __CUDA_ARCH__ >= 900
// After the inits, before other threads and the copy engine use the barriers.
__device__ __forceinline__ void barrier_init_fence() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ __forceinline__ void barrier_expect(std::uint32_t at, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(at), "r"(bytes) : "memory");
}
// `bytes`, and both addresses, are multiples of 16.
__device__ __forceinline__ void bulk_copy(std::uint32_t to, const void* from, int bytes, std::uint32_t barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
               "l"(from), "r"(bytes), "r"(barrier)
               : "memory");
}
// Ordinary writes to shared memory before it are seen by products and bulk copies after the next barrier.
__device__ __forceinline__ void fence_async_proxy() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
#endif

}  // namespace glint::cuda
