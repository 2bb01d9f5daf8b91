#include "backends/cuda/decode_kernel.cuh"

namespace glint::cuda {

const void* step_kernel_bf16() { return reinterpret_cast<const void*>(decode_step_kernel<FlashBf16>); }

}  // namespace glint::cuda
