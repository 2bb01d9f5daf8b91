// The kernel of gemm_codes.cuh for one format of codes.

#include "backends/cuda/gemm_codes.cuh"

namespace glint::cuda {

template void gemm_codes_of<WeightFormat::kI4, CodesScaling::kScales>(const Launch&, const GemmCodes&);
template void gemm_codes_of<WeightFormat::kI4, CodesScaling::kMins>(const Launch&, const GemmCodes&);

}  // namespace glint::cuda
