#include "backends/cuda/decode_kernel.cuh"

namespace glint::cuda {

const void* step_kernel_q4(KvCodec codec, bool far) { return step_kernel_of<FlashQ4>(codec, far); }

}  // namespace glint::cuda
