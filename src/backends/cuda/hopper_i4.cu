#include "backends/cuda/hopper_gemm.cuh"

namespace glint::cuda {

void hopper_i4(const Launch& l, const HopperJob& job, bool large, unsigned blocks) {
  if (large) {
    launch_hopper<WeightFormat::kI4, true>(l, job, blocks);
  } else {
    launch_hopper<WeightFormat::kI4, false>(l, job, blocks);
  }
}

}  // namespace glint::cuda
