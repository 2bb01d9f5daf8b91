#include "weights/format_parts.hpp"

#include <cmath>
#include <cstring>

namespace glint {
namespace {

// How many elements have the exponent bits all set (NaN, infinity), or the sign bit, counted apart.
template <typename T>
void count_bad(const void* data, std::int64_t n, T exponent, T sign, std::int64_t& not_finite, std::int64_t& negative) {
  const auto* p = static_cast<const T*>(data);
  for (std::int64_t i = 0; i < n; ++i) {
    not_finite += (p[i] & exponent) == exponent ? 1 : 0;
    negative += (p[i] & sign) != 0 ? 1 : 0;
  }
}

bool exact_in(DType dtype, const std::vector<float>& values) {
  for (const float v : values) {
    const float rounded = dtype == DType::kBF16 ? to_float(to_bf16(v)) : to_float(to_f16(v));
    if (rounded != v) return false;
  }
  return true;
}

DType smallest_exact(const std::vector<float>& a, const std::vector<float>& b) {
  for (const DType t : {DType::kBF16, DType::kF16}) {
    if (exact_in(t, a) && exact_in(t, b)) return t;
  }
  return DType::kF32;
}

void store_all(void* data, DType dtype, const std::vector<float>& values) {
  if (dtype == DType::kF32) {
    std::memcpy(data, values.data(), values.size() * sizeof(float));
    return;
  }
  for (std::size_t i = 0; i < values.size(); ++i) store_from_float(data, dtype, i, values[i]);
}

std::string dtype_list(std::initializer_list<DType> dtypes) {
  std::string s;
  for (const DType t : dtypes) {
    if (!s.empty()) s += " or ";
    s += dtype_name(t);
  }
  return s;
}

}  // namespace

void refuse(const Checkpoint::Tensor& t, const std::string& found, const std::string& expected,
            const std::string& hint) {
  throw Error({.what = t.what(), .found = found, .expected = expected, .hint = hint});
}

FlatShape flat_shape(const Checkpoint::Tensor& t) {
  const Shape& s = t.entry->shape;
  if (s.rank() == 0) return {};
  if (s.rank() == 1) return {s[0], 1};
  FlatShape flat{1, s[s.rank() - 1]};
  for (int i = 0; i + 1 < s.rank(); ++i) flat.rows *= s[i];
  return flat;
}

std::int64_t experts_in(const Checkpoint::Tensor& t) { return t.entry->shape.rank() == 3 ? t.entry->shape[0] : 1; }

void expect_dtype(const Checkpoint::Tensor& t, std::initializer_list<DType> dtypes) {
  for (const DType d : dtypes) {
    if (t.entry->dtype == d) return;
  }
  refuse(t, std::string(dtype_name(t.entry->dtype)), dtype_list(dtypes));
}

void expect_shape(const Checkpoint::Tensor& t, FlatShape shape) {
  const int rank = t.entry->shape.rank();
  if (rank <= 3 && flat_shape(t) == shape && (rank >= 2 || shape.cols == 1)) return;
  refuse(t, "shape " + t.entry->shape.to_string(), shape.to_string() + " by config.json");
}

const Checkpoint::Tensor* find_part(const Checkpoint& checkpoint, const std::string& base, std::string_view suffix) {
  return checkpoint.find(base + std::string(suffix));
}

bool has_part(const Checkpoint& checkpoint, const std::string& base, std::string_view suffix, DType dtype) {
  const Checkpoint::Tensor* t = find_part(checkpoint, base, suffix);
  return t != nullptr && t->entry->dtype == dtype;
}

void check_scales(const Checkpoint::Tensor& t, Sign sign) {
  const ConstView v = t.view();
  const std::int64_t n = v.shape.elements();
  std::int64_t not_finite = 0;
  std::int64_t negative = 0;
  switch (v.dtype) {
    case DType::kF32:
      count_bad<std::uint32_t>(v.data, n, 0x7f800000U, 0x80000000U, not_finite, negative);
      break;
    case DType::kF16:
      count_bad<std::uint16_t>(v.data, n, 0x7c00U, 0x8000U, not_finite, negative);
      break;
    case DType::kBF16:
      count_bad<std::uint16_t>(v.data, n, 0x7f80U, 0x8000U, not_finite, negative);
      break;
    case DType::kF8E4M3:
      count_bad<std::uint8_t>(v.data, n, 0x7fU, 0x80U, not_finite, negative);
      break;
    default:
      refuse(t, std::string(dtype_name(v.dtype)), "scales of a float type");
  }
  const std::string of = " of " + std::to_string(n) + " scales ";
  constexpr const char* kHint = "the file is damaged or badly converted";
  if (not_finite > 0) refuse(t, std::to_string(not_finite) + of + "NaN or infinite", "finite scales", kHint);
  if (negative > 0 && sign == Sign::kNotNegative)
    refuse(t, std::to_string(negative) + of + "negative", "scales of zero and above", kHint);
}

std::int64_t group_size(const Checkpoint::Tensor& scales, std::int64_t n_groups, std::int64_t cols,
                        std::int64_t configured) {
  if (n_groups == 1) return cols;
  if (configured > 0 && configured % 8 == 0 && divide_up(cols, configured) == n_groups) return configured;
  if (n_groups > 0 && cols % n_groups == 0 && cols / n_groups % 8 == 0) return cols / n_groups;
  refuse(scales, std::to_string(n_groups) + " groups a row in shape " + scales.entry->shape.to_string(),
         "groups of equal size, a multiple of 8, over " + std::to_string(cols) + " columns");
}

MatrixParts::MatrixParts(const Checkpoint& checkpoint, const std::string& base, std::int64_t rows, std::int64_t cols)
    : checkpoint_(checkpoint), base_(base), rows_(rows), cols_(cols) {
  matrix_.weight.rows = rows;
  matrix_.weight.cols = cols;
  for (const std::string_view suffix : kActivationSuffixes) find(suffix);
}

const Checkpoint::Tensor* MatrixParts::find(std::string_view suffix) {
  const Checkpoint::Tensor* t = find_part(checkpoint_, base_, suffix);
  if (t != nullptr) matrix_.used.push_back(t);
  return t;
}

const Checkpoint::Tensor& MatrixParts::need(std::string_view suffix, const std::string& role) {
  const Checkpoint::Tensor* t = find(suffix);
  if (t == nullptr) {
    throw Error({.what = checkpoint_.dir() + ": tensor " + base_ + std::string(suffix),
                 .found = "no such tensor",
                 .expected = role});
  }
  return *t;
}

void MatrixParts::scales_in_place(const Checkpoint::Tensor& t, std::int64_t group, std::int64_t group_rows) {
  Weight& w = matrix_.weight;
  w.scales = t.view().data;
  w.scale_dtype = t.entry->dtype;
  w.group = group;
  w.group_rows = group_rows;
}

void* MatrixParts::own(std::size_t bytes) { return matrix_.owned.emplace_back(host_buffer(bytes)).data(); }

std::uint8_t* MatrixParts::new_codes(WeightFormat format) {
  Weight& w = matrix_.weight;
  w.format = format;
  auto* codes = static_cast<std::uint8_t*>(own(static_cast<std::size_t>(rows_ * w.row_bytes())));
  w.data = codes;
  return codes;
}

void MatrixParts::set_scales(const std::vector<float>& scales, const std::vector<float>& mins, std::int64_t group,
                             std::int64_t group_rows) {
  Weight& w = matrix_.weight;
  CHECK(mins.empty() || mins.size() == scales.size());
  CHECK(static_cast<std::int64_t>(scales.size()) == divide_up(rows_, group_rows) * divide_up(cols_, group));
  w.scale_dtype = smallest_exact(scales, mins);
  const std::size_t bytes = scales.size() * dtype_bytes(w.scale_dtype);
  const auto put = [&](const std::vector<float>& values) {
    void* data = own(bytes);
    store_all(data, w.scale_dtype, values);
    return data;
  };
  w.scales = put(scales);
  w.mins = mins.empty() ? nullptr : put(mins);
  w.group = group;
  w.group_rows = group_rows;
}

void MatrixParts::set_values(const std::vector<float>& values) {
  Weight& w = matrix_.weight;
  const DType dtype = smallest_exact(values, {});
  w.format = dtype == DType::kBF16  ? WeightFormat::kBF16
             : dtype == DType::kF16 ? WeightFormat::kF16
                                    : WeightFormat::kF32;
  void* data = own(values.size() * dtype_bytes(dtype));
  store_all(data, dtype, values);
  w.data = data;
}

// A scale of its own for every row: what a backend need not know about.
void MatrixParts::expand_scales(const Checkpoint::Tensor& scales, std::int64_t experts, std::int64_t rows_a_scale,
                                std::int64_t group) {
  // Scale rows start anew at each expert, so that the last one of an expert may cover fewer rows.
  const std::int64_t n_groups = divide_up(cols_, group);
  const std::int64_t scale_rows = scales.entry->shape.elements() / n_groups / experts;  // an expert; 0: one for all
  const std::int64_t rows_an_expert = rows_ / experts;
  const ConstView v = scales.view();
  std::vector<float> out(static_cast<std::size_t>(rows_ * n_groups));
  for (std::int64_t r = 0; r < rows_; ++r) {
    const std::int64_t from = r / rows_an_expert * scale_rows + r % rows_an_expert / rows_a_scale;
    for (std::int64_t g = 0; g < n_groups; ++g) {
      out[static_cast<std::size_t>(r * n_groups + g)] =
          load_as_float(v.data, v.dtype, static_cast<std::size_t>(from * n_groups + g));
    }
  }
  set_scales(out, {}, group);
}

void MatrixParts::read_scales(const Checkpoint::Tensor& weight, const Checkpoint::Tensor& scales,
                              std::int64_t configured_group) {
  expect_dtype(scales, {DType::kF32, DType::kBF16, DType::kF16});
  constexpr std::int64_t kBlock = 128;
  const std::int64_t experts = experts_in(weight);
  const bool fused = weight.entry->shape.rank() == 3;  // to be cut: no scale may cover rows of two matrices
  const FlatShape s = flat_shape(scales);
  const std::int64_t n = s.rows * s.cols;
  const std::int64_t rows_an_expert = rows_ / experts;
  const std::int64_t block_cols = divide_up(cols_, kBlock);
  const std::int64_t block = std::min(kBlock, cols_);
  if (scales.entry->shape.rank() <= 3) {
    if (n == 1) return expand_scales(scales, experts, rows_, cols_);
    if (fused && n == experts && s.rows == experts) return expand_scales(scales, experts, rows_an_expert, cols_);
    if (s.rows == rows_) return scales_in_place(scales, group_size(scales, s.cols, cols_, configured_group));
    if (fused && s == FlatShape{experts * divide_up(rows_an_expert, kBlock), block_cols})
      return expand_scales(scales, experts, kBlock, block);
    if (!fused && s == FlatShape{divide_up(rows_, kBlock), block_cols}) return scales_in_place(scales, block, kBlock);
  }
  const std::string r = std::to_string(rows_);
  const std::string blocks = FlatShape{experts * divide_up(rows_an_expert, kBlock), block_cols}.to_string();
  refuse(scales, "shape " + scales.entry->shape.to_string(),
         "[1], [" + r + ", 1], [" + r + ", groups] or " + blocks + " (128×128 blocks) for a matrix of " +
             shape().to_string());
}

std::vector<float> MatrixParts::read_globals(const Checkpoint::Tensor& weight, const Checkpoint::Tensor& t) {
  expect_dtype(t, {DType::kF32});
  const std::int64_t experts = experts_in(weight);
  const std::int64_t n = t.entry->shape.elements();
  if (n != 1 && n != experts)
    refuse(t, "shape " + t.entry->shape.to_string(), experts > 1 ? "one value an expert" : "one value");
  std::vector<float> out;
  for (std::int64_t e = 0; e < experts; ++e) {
    const float v = t.view().as<float>()[n == 1 ? 0 : e];
    if (!(std::isfinite(v) && v > 0)) refuse(t, std::to_string(v), "a positive number");
    out.push_back(v);
  }
  return out;
}

StoredMatrix MatrixParts::finish(WeightFormat format, std::string_view scheme) {
  matrix_.weight.format = format;
  matrix_.scheme = scheme;
  CHECK(matrix_.weight.data != nullptr && (!has_scales(format) || matrix_.weight.scales != nullptr));
  return std::move(matrix_);
}

}  // namespace glint
