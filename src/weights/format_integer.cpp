// Integer codes of compressed-tensors:
//   int-quantized    weight I8 [N, K] with weight_scale a row, a group of columns, or one for all; weight_zero_point I8
//                    of the scales' shape where asymmetric
//   pack-quantized   weight_packed I32 [N, ⌈K/8⌉] (int4) or [N, ⌈K/4⌉] (int8), the first column in the lowest bits,
//   codes
//                    offset by 8 or 128; weight_scale [N, K/g]; weight_zero_point I32, packed the same way along the
//                    rows [⌈N/8⌉, K/g], or I8 [N, K/g]; weight_shape; weight_g_idx
// Scales are in place unless there are zero points, and so are int8 codes and int4 codes whose rows fill their words.

#include <cstring>

#include "weights/format_parts.hpp"

namespace glint {
namespace {

constexpr std::string_view kInt8Suffixes[] = {".weight", ".weight_scale", ".weight_zero_point"};
constexpr std::string_view kPackedSuffixes[] = {".weight_packed", ".weight_scale", ".weight_zero_point",
                                                ".weight_shape", ".weight_g_idx"};

bool matches_int8(const Checkpoint& checkpoint, const std::string& base) {
  return has_part(checkpoint, base, ".weight", DType::kI8) && find_part(checkpoint, base, ".weight_scale") != nullptr;
}

bool matches_packed(const Checkpoint& checkpoint, const std::string& base) {
  return has_part(checkpoint, base, ".weight_packed", DType::kI32);
}

// Zero points as signed codes, one a scale: q stands for scale · (q - zero).
std::vector<float> zero_points(const Checkpoint::Tensor& t, std::int64_t rows, std::int64_t groups, int bits) {
  std::vector<float> zeros(static_cast<std::size_t>(rows * groups));
  if (t.entry->dtype == DType::kI8) {
    expect_shape(t, {rows, groups});
    for (std::size_t i = 0; i < zeros.size(); ++i) zeros[i] = t.view().as<std::int8_t>()[i];
    return zeros;
  }
  expect_dtype(t, {DType::kI32, DType::kI8});
  const std::int64_t a_word = 32 / bits;
  expect_shape(t, {divide_up(rows, a_word), groups});
  if (experts_in(t) > 1) refuse(t, "packed zero points of experts in one tensor", "one tensor an expert");
  const auto* words = t.view().as<std::uint32_t>();
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t g = 0; g < groups; ++g) {
      const unsigned u = (words[r / a_word * groups + g] >> (r % a_word * bits)) & ((1U << bits) - 1U);
      zeros[static_cast<std::size_t>(r * groups + g)] = static_cast<float>(static_cast<int>(u) - (1 << (bits - 1)));
    }
  }
  return zeros;
}

// Replaces the scales by scales and mins. kI8 codes are signed, kI4 codes with mins count from 0.
void add_mins(MatrixParts& parts, const Checkpoint::Tensor& t, int bits, int code_offset) {
  const Weight w = parts.weight();
  if (w.group_rows != 1) refuse(t, "zero points beside 128×128 blocks", "symmetric blocks");
  const std::int64_t groups = w.groups_a_row();
  const std::vector<float> zeros = zero_points(t, parts.rows(), groups, bits);
  bool any = false;
  for (const float z : zeros) any |= z != 0;
  if (!any) return;
  std::vector<float> scales(zeros.size());
  std::vector<float> mins(zeros.size());
  for (std::size_t i = 0; i < zeros.size(); ++i) {
    scales[i] = load_as_float(w.scales, w.scale_dtype, i);
    mins[i] = -scales[i] * (zeros[i] + static_cast<float>(code_offset));
  }
  parts.set_scales(scales, mins, w.group);
}

StoredMatrix read_int8(const Checkpoint& checkpoint, const std::string& base, std::int64_t rows, std::int64_t cols,
                       const QuantConfig& config) {
  MatrixParts parts(checkpoint, base, rows, cols);
  const Checkpoint::Tensor& codes = parts.need(".weight", "I8 codes beside the scales");
  const Checkpoint::Tensor& scales = parts.need(".weight_scale", "the scales of " + codes.entry->name);
  expect_shape(codes, parts.shape());
  check_scales(scales, Sign::kAny);
  parts.weight().format = WeightFormat::kI8;
  parts.codes_in_place(codes);
  parts.read_scales(codes, scales, config.group);
  if (const Checkpoint::Tensor* zeros = parts.find(".weight_zero_point")) {
    // One zero point for all, beside one scale for all: the scales have been given one a row.
    if (zeros->entry->shape.elements() == 1 && zeros->entry->dtype == DType::kI8) {
      if (*zeros->view().as<std::int8_t>() != 0) refuse(*zeros, "one zero point for the matrix", "0, or one a scale");
    } else {
      add_mins(parts, *zeros, 8, 0);
    }
  }
  return parts.finish(WeightFormat::kI8, "compressed-tensors int8");
}

// Every column in the group of its position: no reordering.
void expect_trivial_g_idx(const Checkpoint::Tensor& t, std::int64_t cols, std::int64_t group) {
  expect_dtype(t, {DType::kI32});
  expect_shape(t, {cols, 1});
  const auto* idx = t.view().as<std::int32_t>();
  for (std::int64_t k = 0; k < cols; ++k) {
    if (idx[k] != -1 && idx[k] != k / group) {
      refuse(t, "column " + std::to_string(k) + " in group " + std::to_string(idx[k]),
             "group " + std::to_string(k / group) + ": columns in order", "activation reordering is not supported");
    }
  }
}

// [rows, cols] of the unpacked matrix; rank 3 for experts in one tensor.
void expect_weight_shape(const Checkpoint::Tensor& t, std::int64_t rows, std::int64_t cols) {
  expect_dtype(t, {DType::kI64, DType::kI32});
  const auto n = static_cast<std::size_t>(t.entry->shape.elements());
  std::string found;
  std::int64_t dims[4] = {};
  for (std::size_t i = 0; i < n && i < 4; ++i) {
    dims[i] = t.entry->dtype == DType::kI64 ? t.view().as<std::int64_t>()[i] : t.view().as<std::int32_t>()[i];
    found += (i == 0 ? "[" : ", ") + std::to_string(dims[i]);
  }
  if ((n == 2 || n == 3) && dims[n - 2] == rows && dims[n - 1] == cols) return;
  refuse(t, n == 0 ? "nothing" : found + "]", FlatShape{rows, cols}.to_string() + " by config.json");
}

// Words → bytes of kI4 or kI8. Little-endian words hold kI4's bytes as they are; kI8 differs by the offset of 128.
void unpack_codes(MatrixParts& parts, const Checkpoint::Tensor& packed, int bits) {
  const std::int64_t cols = parts.cols();
  const std::int64_t words = divide_up(cols, 32 / bits);
  const auto* in = packed.view().as<std::uint32_t>();
  const bool four = bits == 4;
  const std::int64_t row_bytes = four ? cols / 2 : cols;
  if (four && words * 4 == row_bytes) return parts.codes_in_place(packed);
  std::uint8_t* out = parts.new_codes(four ? WeightFormat::kI4 : WeightFormat::kI8);
  for (std::int64_t r = 0; r < parts.rows(); ++r) {
    std::uint8_t* row = out + r * row_bytes;
    std::memcpy(row, in + r * words, static_cast<std::size_t>(row_bytes));
    if (!four) {
      for (std::int64_t k = 0; k < cols; ++k) row[k] ^= 0x80U;
    }
  }
}

StoredMatrix read_packed(const Checkpoint& checkpoint, const std::string& base, std::int64_t rows, std::int64_t cols,
                         const QuantConfig& config) {
  MatrixParts parts(checkpoint, base, rows, cols);
  const Checkpoint::Tensor& packed = parts.need(".weight_packed", "I32 codes");
  const FlatShape found = flat_shape(packed);
  const int bits = found.cols == divide_up(cols, 8) ? 4 : 8;
  if (found.rows != rows || found.cols != divide_up(cols, 32 / bits)) {
    refuse(packed, "shape " + packed.entry->shape.to_string(),
           FlatShape{rows, divide_up(cols, 8)}.to_string() + " (int4) or " +
               FlatShape{rows, divide_up(cols, 4)}.to_string() + " (int8) for a matrix of " +
               parts.shape().to_string());
  }
  if (bits == 4 && cols % 2 != 0) refuse(packed, std::to_string(cols) + " columns", "an even number");
  const Checkpoint::Tensor& scales = parts.need(".weight_scale", "the scales of " + packed.entry->name);
  if (const Checkpoint::Tensor* shape = parts.find(".weight_shape"))
    expect_weight_shape(*shape, rows / experts_in(packed), cols);
  check_scales(scales, Sign::kAny);
  parts.weight().format = bits == 4 ? WeightFormat::kI4 : WeightFormat::kI8;
  unpack_codes(parts, packed, bits);
  parts.read_scales(packed, scales, config.group);
  if (const Checkpoint::Tensor* idx = parts.find(".weight_g_idx"))
    expect_trivial_g_idx(*idx, cols, parts.weight().group);
  if (const Checkpoint::Tensor* zeros = parts.find(".weight_zero_point"))
    add_mins(parts, *zeros, bits, bits == 4 ? 8 : 0);
  if (bits == 8) return parts.finish(WeightFormat::kI8, "compressed-tensors int8 packed");
  return parts.finish(WeightFormat::kI4, "compressed-tensors int4");
}

constexpr MatrixScheme kSchemes[] = {{"compressed-tensors int4", kPackedSuffixes, matches_packed, read_packed},
                                     {"compressed-tensors int8", kInt8Suffixes, matches_int8, read_int8}};

}  // namespace

std::span<const MatrixScheme> integer_schemes() { return kSchemes; }

}  // namespace glint
