// FP8 E4M3 codes with scales beside them, all used in place:
//   compressed-tensors float-quantized   weight F8_E4M3 [N, K], weight_scale [N, 1], scalar, or one a 128×128 block
//   NVIDIA modelopt FP8                  the same with a scalar
//   block FP8 (DeepSeek's)               weight, weight_scale_inv [⌈N/128⌉, ⌈K/128⌉]
// `inv` is a historical name: in every case value = scale · code. Scales of activations (input_scale) are not used.

#include "weights/format_parts.hpp"

namespace glint {
namespace {

constexpr std::string_view kScaleSuffixes[] = {".weight", ".weight_scale", "_scale"};
constexpr std::string_view kBlockSuffixes[] = {".weight", ".weight_scale_inv", "_scale_inv"};

// The codes: BASE.weight, or BASE for fused experts.
const Checkpoint::Tensor* codes_of(const Checkpoint& checkpoint, const std::string& base) {
  const Checkpoint::Tensor* t = find_part(checkpoint, base, ".weight");
  return t != nullptr ? t : find_part(checkpoint, base, "");
}

bool is_f8(const Checkpoint& checkpoint, const std::string& base) {
  const Checkpoint::Tensor* t = codes_of(checkpoint, base);
  return t != nullptr && t->entry->dtype == DType::kF8E4M3;
}

bool matches_scale(const Checkpoint& checkpoint, const std::string& base) {
  return is_f8(checkpoint, base) &&
         (find_part(checkpoint, base, ".weight_scale") != nullptr || find_part(checkpoint, base, "_scale") != nullptr);
}

bool matches_block(const Checkpoint& checkpoint, const std::string& base) {
  return find_part(checkpoint, base, ".weight_scale_inv") != nullptr ||
         find_part(checkpoint, base, "_scale_inv") != nullptr;
}

StoredMatrix read(MatrixParts parts, std::string_view scale_suffix, std::string_view fused_suffix,
                  const QuantConfig& config, std::string_view scheme) {
  const Checkpoint::Tensor* fused = parts.find("");
  const Checkpoint::Tensor& weight =
      fused != nullptr ? *fused : parts.need(".weight", "F8_E4M3 codes beside the scales");
  expect_dtype(weight, {DType::kF8E4M3});
  expect_shape(weight, parts.shape());
  const Checkpoint::Tensor* given = parts.find(fused_suffix);
  const Checkpoint::Tensor& scales =
      given != nullptr ? *given : parts.need(scale_suffix, "the scales of " + weight.entry->name);
  check_scales(scales, Sign::kNotNegative);
  parts.codes_in_place(weight);
  parts.read_scales(weight, scales, config.group);
  return parts.finish(WeightFormat::kF8E4M3, scheme);
}

StoredMatrix read_scale(const Checkpoint& checkpoint, const std::string& base, std::int64_t rows, std::int64_t cols,
                        const QuantConfig& config) {
  const bool modelopt = config.method == "modelopt";
  return read(MatrixParts(checkpoint, base, rows, cols), ".weight_scale", "_scale", config,
              modelopt ? "modelopt fp8" : "compressed-tensors fp8");
}

StoredMatrix read_block(const Checkpoint& checkpoint, const std::string& base, std::int64_t rows, std::int64_t cols,
                        const QuantConfig& config) {
  return read(MatrixParts(checkpoint, base, rows, cols), ".weight_scale_inv", "_scale_inv", config, "block fp8");
}

constexpr MatrixScheme kSchemes[] = {{"block fp8", kBlockSuffixes, matches_block, read_block},
                                     {"compressed-tensors fp8", kScaleSuffixes, matches_scale, read_scale}};

}  // namespace

std::span<const MatrixScheme> fp8_schemes() { return kSchemes; }

}  // namespace glint
