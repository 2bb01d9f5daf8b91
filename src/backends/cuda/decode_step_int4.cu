#include "backends/cuda/decode_kernel.cuh"

namespace glint::cuda {

const void* step_kernel_int4() { return reinterpret_cast<const void*>(decode_step_kernel<FlashInt4>); }

}  // namespace glint::cuda
