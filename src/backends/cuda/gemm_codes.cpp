// Which kernel of gemm_codes.cuh reads which codes.

#include "backends/cuda/gemm.hpp"

namespace glint::cuda {

template <WeightFormat F, CodesScaling kScaling>
void gemm_codes_of(const Launch& l, const GemmCodes& g);

bool gemm_codes_fits(const Mat& w) {
  const MatShape& s = w.shape;
  const auto aligned = [](const void* p) { return reinterpret_cast<std::uintptr_t>(p) % 16 == 0; };
  switch (s.format) {
    case WeightFormat::kI4:
    case WeightFormat::kI8:
    case WeightFormat::kF8E4M3:
    case WeightFormat::kNF4:
      break;
    default:
      return false;
  }
  const bool power = s.group >= 32 && (s.group & (s.group - 1)) == 0;
  return s.cols % 32 == 0 && s.rows % 8 == 0 && aligned(w.at.data) && (power || s.group >= s.cols);
}

bool gemm_codes_takes(const Launch& l, const GemmMoe& m) {
  return l.wgmma && l.clusters && l.smem_limit >= 227 << 10 && m.n_experts <= kGemmExperts && m.depth % 32 == 0 &&
         m.rows % 8 == 0 && m.shared_depth % 32 == 0 && m.shared_rows % 8 == 0;
}

void gemm_codes(const Launch& l, const GemmCodes& g) {
  using enum CodesScaling;
  const MatPtr& any = g.m.first.at[g.m.n_experts > 0 ? 0 : kMaxExperts];
  const bool mins = any.mins != nullptr, plain = !mins && g.shape.scale_dtype == DType::kBF16;
  switch (g.shape.format) {
    case WeightFormat::kI4:
      return plain  ? gemm_codes_of<WeightFormat::kI4, kPlain>(l, g)
             : mins ? gemm_codes_of<WeightFormat::kI4, kMins>(l, g)
                    : gemm_codes_of<WeightFormat::kI4, kScales>(l, g);
    case WeightFormat::kI8:
      return plain  ? gemm_codes_of<WeightFormat::kI8, kPlain>(l, g)
             : mins ? gemm_codes_of<WeightFormat::kI8, kMins>(l, g)
                    : gemm_codes_of<WeightFormat::kI8, kScales>(l, g);
    case WeightFormat::kF8E4M3:
      return gemm_codes_of<WeightFormat::kF8E4M3, kScales>(l, g);
    default:
      return gemm_codes_of<WeightFormat::kNF4, kScales>(l, g);
  }
}

}  // namespace glint::cuda
