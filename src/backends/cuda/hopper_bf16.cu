#include "backends/cuda/hopper_gemm.cuh"

namespace glint::cuda {

void hopper_bf16(const Launch& l, const HopperJob& job, bool large, unsigned blocks) {
  if (large) {
    launch_hopper<WeightFormat::kBF16, true>(l, job, blocks);
  } else {
    launch_hopper<WeightFormat::kBF16, false>(l, job, blocks);
  }
}

}  // namespace glint::cuda
