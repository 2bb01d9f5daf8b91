#include "backends/cuda/hopper_gemm.cuh"

namespace glint::cuda {

void hopper_f8(const Launch& l, const HopperJob& job, bool large, unsigned blocks) {
  if (large) {
    launch_hopper<WeightFormat::kF8E4M3, true>(l, job, blocks);
  } else {
    launch_hopper<WeightFormat::kF8E4M3, false>(l, job, blocks);
  }
}

}  // namespace glint::cuda
