#include "backends/cuda/decode_kernel.cuh"

namespace glint::cuda {

const void* step_kernel_q4(KvCodec codec) { return step_kernel_of<FlashQ4>(codec); }

}  // namespace glint::cuda
