#pragma once
// Scales and zero points a group of columns, as AWQ and GPTQ store them: groups outermost. Internal to format_*.cpp.

#include "weights/format_parts.hpp"

namespace glint {

class GroupedScales {
 public:
  // Takes BASE.scales [groups, N] of `parts`.
  GroupedScales(MatrixParts& parts, const Checkpoint::Tensor& codes, std::int64_t configured_group)
      : scales_(parts.need(".scales", "the scales of " + codes.entry->name)), rows_(parts.rows()) {
    expect_dtype(scales_, {DType::kF16, DType::kBF16, DType::kF32});
    const FlatShape shape = flat_shape(scales_);
    expect_shape(scales_, {shape.rows, rows_});
    check_scales(scales_, Sign::kAny);  // AutoRound writes negative scales
    groups_ = shape.rows;
    group_ = group_size(scales_, groups_, parts.cols(), configured_group);
  }

  std::int64_t groups() const { return groups_; }
  std::int64_t group() const { return group_; }

  void set_zero(std::int64_t g, std::int64_t row, int zero) {
    if (zeros_.empty()) zeros_.resize(static_cast<std::size_t>(groups_ * rows_));
    zeros_[static_cast<std::size_t>(g * rows_ + row)] = static_cast<std::int16_t>(zero);
  }
  float scale(std::int64_t g, std::int64_t row) const {
    return load_as_float(scales_.view().data, scales_.entry->dtype, static_cast<std::size_t>(g * rows_ + row));
  }
  // Of a code counted from 0; symmetric_zero where the file has no zero points.
  int zero(std::int64_t g, std::int64_t row, int symmetric_zero) const {
    return zeros_.empty() ? symmetric_zero : zeros_[static_cast<std::size_t>(g * rows_ + row)];
  }

  // Rows outermost, into `parts`. Symmetric where every zero point is symmetric_zero. code_offset: what the stored
  // code is less than the code counted from 0 (128 for kI8).
  void store(MatrixParts& parts, int symmetric_zero, int code_offset) const {
    bool symmetric = true;
    for (const std::int16_t z : zeros_) symmetric &= z == symmetric_zero;
    std::vector<float> scales(static_cast<std::size_t>(rows_ * groups_));
    std::vector<float> mins(symmetric ? 0 : scales.size());
    for (std::int64_t r = 0; r < rows_; ++r) {
      for (std::int64_t g = 0; g < groups_; ++g) {
        const auto i = static_cast<std::size_t>(r * groups_ + g);
        scales[i] = scale(g, r);
        if (!symmetric) mins[i] = scales[i] * static_cast<float>(code_offset - zero(g, r, symmetric_zero));
      }
    }
    parts.set_scales(scales, mins, group_);
  }

 private:
  const Checkpoint::Tensor& scales_;
  std::int64_t rows_;
  std::int64_t groups_ = 0;
  std::int64_t group_ = 0;
  std::vector<std::int16_t> zeros_;  // [groups, N]
};

}  // namespace glint
