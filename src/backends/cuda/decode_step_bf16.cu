#include "backends/cuda/decode_kernel.cuh"

namespace glint::cuda {

const void* step_kernel_bf16(KvCodec codec, bool far) { return step_kernel_of<FlashBf16>(codec, far); }

}  // namespace glint::cuda
