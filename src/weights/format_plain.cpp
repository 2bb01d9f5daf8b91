// Matrices as they are: F32, F16, BF16 in place; F8_E4M3 without a scale becomes BF16, which holds every F8 value.

#include <array>

#include "weights/format_parts.hpp"

namespace glint {
namespace {

// The fused experts of Transformers 5 have no suffix.
constexpr std::string_view kSuffixes[] = {".weight", ""};

bool matches(const Checkpoint& checkpoint, const std::string& base) {
  return find_part(checkpoint, base, ".weight") != nullptr || find_part(checkpoint, base, "") != nullptr;
}

void f8_to_bf16(const Checkpoint::Tensor& t, MatrixParts& parts) {
  std::array<std::uint16_t, 256> table{};
  for (std::size_t i = 0; i < table.size(); ++i) table[i] = to_bf16(f8e4m3_to_float(static_cast<std::uint8_t>(i))).bits;
  auto* out = reinterpret_cast<std::uint16_t*>(parts.new_codes(WeightFormat::kBF16));
  const auto* in = t.view().as<std::uint8_t>();
  const std::int64_t n = parts.rows() * parts.cols();
  for (std::int64_t i = 0; i < n; ++i) out[i] = table[in[i]];
}

StoredMatrix read(const Checkpoint& checkpoint, const std::string& base, std::int64_t rows, std::int64_t cols,
                  const QuantConfig&) {
  MatrixParts parts(checkpoint, base, rows, cols);
  const Checkpoint::Tensor* found = parts.find(".weight");
  const Checkpoint::Tensor& t = found != nullptr ? *found : parts.need("", "a matrix");
  WeightFormat format = WeightFormat::kBF16;
  switch (t.entry->dtype) {
    case DType::kF32:
      format = WeightFormat::kF32;
      break;
    case DType::kF16:
      format = WeightFormat::kF16;
      break;
    case DType::kBF16:
    case DType::kF8E4M3:
      break;
    default:
      refuse(t, std::string(dtype_name(t.entry->dtype)), "BF16, F16, F32 or F8_E4M3",
             "codes of a quantised matrix whose scales are missing");
  }
  expect_shape(t, parts.shape());
  if (t.entry->dtype == DType::kF8E4M3) {
    f8_to_bf16(t, parts);
  } else {
    parts.codes_in_place(t);
  }
  return parts.finish(format, "plain");
}

constexpr MatrixScheme kSchemes[] = {{"plain", kSuffixes, matches, read}};

}  // namespace

std::span<const MatrixScheme> plain_schemes() { return kSchemes; }

}  // namespace glint
