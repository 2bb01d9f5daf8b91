#include "backends/cuda/decode_kernel.cuh"

namespace glint::cuda {

const void* step_kernel_int4(KvCodec codec) { return step_kernel_of<FlashInt4>(codec); }

}  // namespace glint::cuda
