#include "backends/cuda/decode_kernel.cuh"

namespace glint::cuda {

const void* step_kernel_int8(KvCodec codec, bool far) { return step_kernel_of<FlashInt8>(codec, far); }

}  // namespace glint::cuda
