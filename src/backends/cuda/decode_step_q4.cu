#include "backends/cuda/decode_kernel.cuh"

namespace glint::cuda {

const void* step_kernel_q4() { return reinterpret_cast<const void*>(decode_step_kernel<FlashQ4>); }

}  // namespace glint::cuda
