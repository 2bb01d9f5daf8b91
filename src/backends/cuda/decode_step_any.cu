#include "backends/cuda/decode_kernel.cuh"

namespace glint::cuda {

const void* step_kernel_any() { return reinterpret_cast<const void*>(decode_step_kernel<AnyStep>); }

}  // namespace glint::cuda
