#pragma once
// Which of the wide kernels runs. One source file instantiates one problem.

#include "backends/cuda/wide_wgmma.cuh"

namespace glint::cuda {

template <WeightFormat F, bool kExact, typename Problem>
void launch_wide_either(const Launch& l, const Problem& p, std::int64_t max_total) {
  if (l.wgmma) {
    launch_wide_wgmma<F, kExact>(l, p, max_total);
  } else {
    launch_wide_format<F, kExact>(l, p, max_total);
  }
}

// Codes without minima whose scales cover whole steps: the sums of a step are scaled, not the codes.
template <WeightFormat F, typename Problem>
void launch_wide_codes(const Launch& l, const Problem& p, std::int64_t max_total) {
  bool exact = true;
  for (const MatShape& m : p.shapes)
    exact = exact && (m.group >= m.cols || m.group % WideFormat<F>::kStep == 0) && !p.has_mins();
  exact ? launch_wide_either<F, true>(l, p, max_total) : launch_wide_either<F, false>(l, p, max_total);
}

template <typename Problem>
void launch_wide(const Launch& l, const Problem& p, WeightFormat format, std::int64_t max_total) {
  switch (format) {
    case WeightFormat::kBF16:
      return launch_wide_either<WeightFormat::kBF16, false>(l, p, max_total);
    case WeightFormat::kF8E4M3:
      return launch_wide_codes<WeightFormat::kF8E4M3>(l, p, max_total);
    case WeightFormat::kI8:
      return launch_wide_codes<WeightFormat::kI8>(l, p, max_total);
    case WeightFormat::kI4:
      return launch_wide_codes<WeightFormat::kI4>(l, p, max_total);
    case WeightFormat::kNF4:
      return launch_wide_either<WeightFormat::kNF4, false>(l, p, max_total);
    default:
      check(cudaErrorNotSupported, "a weight format without wide kernels");
  }
}

}  // namespace glint::cuda
