#include "backends/cuda/decode_kernel.cuh"

namespace glint::cuda {

const void* step_kernel_int8() { return reinterpret_cast<const void*>(decode_step_kernel<FlashInt8>); }

}  // namespace glint::cuda
