// FP4 E2M1 codes, two a byte, the even column in the low nibble; used in place. A scale covers 16 or 32 columns:
//   compressed-tensors nvfp4   weight_packed U8 [N, K/2], weight_scale F8_E4M3 [N, K/16], weight_global_scale F32, by
//                              which the scale is divided
//   NVIDIA modelopt NVFP4      weight U8, weight_scale F8_E4M3, weight_scale_2 F32, by which it is multiplied
//   compressed-tensors mxfp4   weight_packed U8, weight_scale U8 [N, K/32]: a power of two, 2^(u - 127)
// The product of both scales is one float, which is rounded once; where all of them fit into BF16 they are kept so.

#include <cmath>

#include "weights/format_parts.hpp"

namespace glint {
namespace {

constexpr std::string_view kPackedSuffixes[] = {".weight_packed", ".weight_scale", ".weight_global_scale"};
constexpr std::string_view kMxSuffixes[] = {".weight_packed", ".weight_scale"};
constexpr std::string_view kModeloptSuffixes[] = {".weight", ".weight_scale", ".weight_scale_2"};
constexpr std::int64_t kNvGroup = 16;
constexpr std::int64_t kMxGroup = 32;

bool matches_mx(const Checkpoint& checkpoint, const std::string& base) {
  return has_part(checkpoint, base, ".weight_packed", DType::kU8) &&
         has_part(checkpoint, base, ".weight_scale", DType::kU8);
}

bool matches_packed(const Checkpoint& checkpoint, const std::string& base) {
  return has_part(checkpoint, base, ".weight_packed", DType::kU8);
}

bool matches_modelopt(const Checkpoint& checkpoint, const std::string& base) {
  return has_part(checkpoint, base, ".weight", DType::kU8) &&
         (find_part(checkpoint, base, ".weight_scale_2") != nullptr ||
          has_part(checkpoint, base, ".weight_scale", DType::kF8E4M3));
}

// The codes, in place.
const Checkpoint::Tensor& take_codes(MatrixParts& parts, std::string_view suffix) {
  const Checkpoint::Tensor& t = parts.need(suffix, "FP4 codes beside the scales");
  expect_dtype(t, {DType::kU8});
  if (parts.cols() % 2 != 0) refuse(t, std::to_string(parts.cols()) + " columns", "an even number");
  expect_shape(t, {parts.rows(), parts.cols() / 2});
  parts.codes_in_place(t);
  return t;
}

const Checkpoint::Tensor& take_scales(MatrixParts& parts, DType dtype, std::int64_t group) {
  const Checkpoint::Tensor& t = parts.need(".weight_scale", "a scale for every " + std::to_string(group) + " columns");
  expect_dtype(t, {dtype});
  expect_shape(t, {parts.rows(), divide_up(parts.cols(), group)});
  return t;
}

enum class Global : std::uint8_t { kDivides, kMultiplies };

StoredMatrix read_nv(MatrixParts parts, std::string_view codes_suffix, std::string_view global_suffix, Global how,
                     std::string_view scheme) {
  const Checkpoint::Tensor& codes = take_codes(parts, codes_suffix);
  const Checkpoint::Tensor& t = take_scales(parts, DType::kF8E4M3, kNvGroup);
  check_scales(t, Sign::kNotNegative);
  const Checkpoint::Tensor& global = parts.need(global_suffix, "the scale of all scales of " + codes.entry->name);
  const std::vector<float> globals = parts.read_globals(codes, global);
  const auto n = static_cast<std::size_t>(t.entry->shape.elements());
  const std::size_t an_expert = n / globals.size();
  const auto* in = t.view().as<std::uint8_t>();
  std::vector<float> scales(n);
  for (std::size_t i = 0; i < n; ++i) {
    const float s = f8e4m3_to_float(in[i]);
    const float g = globals[i / an_expert];
    scales[i] = how == Global::kDivides ? s / g : s * g;
    if (!std::isfinite(scales[i])) refuse(global, std::to_string(g), "a value with which the scales stay finite");
  }
  parts.set_scales(scales, {}, std::min(kNvGroup, parts.cols()));
  return parts.finish(WeightFormat::kF4E2M1, scheme);
}

StoredMatrix read_packed(const Checkpoint& checkpoint, const std::string& base, std::int64_t rows, std::int64_t cols,
                         const QuantConfig&) {
  return read_nv(MatrixParts(checkpoint, base, rows, cols), ".weight_packed", ".weight_global_scale", Global::kDivides,
                 "compressed-tensors nvfp4");
}

StoredMatrix read_modelopt(const Checkpoint& checkpoint, const std::string& base, std::int64_t rows, std::int64_t cols,
                           const QuantConfig&) {
  return read_nv(MatrixParts(checkpoint, base, rows, cols), ".weight", ".weight_scale_2", Global::kMultiplies,
                 "modelopt nvfp4");
}

StoredMatrix read_mx(const Checkpoint& checkpoint, const std::string& base, std::int64_t rows, std::int64_t cols,
                     const QuantConfig&) {
  MatrixParts parts(checkpoint, base, rows, cols);
  take_codes(parts, ".weight_packed");
  const Checkpoint::Tensor& t = take_scales(parts, DType::kU8, kMxGroup);
  const auto* in = t.view().as<std::uint8_t>();
  std::vector<float> scales(static_cast<std::size_t>(t.entry->shape.elements()));
  for (std::size_t i = 0; i < scales.size(); ++i) {
    if (in[i] == 0xff) refuse(t, "a scale that is NaN (255)", "exponents from 0 to 254");
    scales[i] = std::ldexp(1.0F, in[i] - 127);
  }
  parts.set_scales(scales, {}, std::min(kMxGroup, parts.cols()));
  return parts.finish(WeightFormat::kF4E2M1, "compressed-tensors mxfp4");
}

constexpr MatrixScheme kSchemes[] = {{"compressed-tensors mxfp4", kMxSuffixes, matches_mx, read_mx},
                                     {"compressed-tensors nvfp4", kPackedSuffixes, matches_packed, read_packed},
                                     {"modelopt nvfp4", kModeloptSuffixes, matches_modelopt, read_modelopt}};

}  // namespace

std::span<const MatrixScheme> fp4_schemes() { return kSchemes; }

}  // namespace glint
