// AWQ ("gemm"): qweight I32 [K, N/8], eight output rows a word in the order 0, 2, 4, 6, 1, 3, 5, 7 from the lowest
// bits; qzeros I32 [K/g, N/8] in the same order; scales [K/g, N]. value = scale · (u - zero). Transposed here to kI4.

#include "weights/format_grouped.hpp"

namespace glint {
namespace {

constexpr std::string_view kSuffixes[] = {".qweight", ".qzeros", ".scales"};
// Output row of a word's nibble, lowest bits first.
constexpr std::int64_t kRowOfNibble[8] = {0, 2, 4, 6, 1, 3, 5, 7};

// GPTQ has tensors of the same names: there qweight is as wide as the scales.
bool matches(const Checkpoint& checkpoint, const std::string& base) {
  const Checkpoint::Tensor* codes = find_part(checkpoint, base, ".qweight");
  const Checkpoint::Tensor* scales = find_part(checkpoint, base, ".scales");
  return codes != nullptr && scales != nullptr && flat_shape(*codes).cols * 8 == flat_shape(*scales).cols;
}

// out: kI4 [N, K/2]. Words are taken a cache line at a time, so that the 128 rows they feed are written in order.
void transpose(const std::uint32_t* words, std::int64_t rows, std::int64_t cols, std::uint8_t* out) {
  constexpr std::int64_t kTile = 16;
  const std::int64_t n_words = rows / 8;
  for (std::int64_t j0 = 0; j0 < n_words; j0 += kTile) {
    const std::int64_t j1 = std::min(n_words, j0 + kTile);
    for (std::int64_t k = 0; k < cols; k += 2) {
      for (std::int64_t j = j0; j < j1; ++j) {
        const std::uint32_t even = words[k * n_words + j];
        const std::uint32_t odd = words[(k + 1) * n_words + j];
        for (int i = 0; i < 8; ++i) {
          const std::uint32_t pair = ((even >> (4 * i)) & 15U) | (((odd >> (4 * i)) & 15U) << 4);
          out[(8 * j + kRowOfNibble[i]) * (cols / 2) + k / 2] = static_cast<std::uint8_t>(pair);
        }
      }
    }
  }
}

StoredMatrix read(const Checkpoint& checkpoint, const std::string& base, std::int64_t rows, std::int64_t cols,
                  const QuantConfig& config) {
  MatrixParts parts(checkpoint, base, rows, cols);
  const Checkpoint::Tensor& codes = parts.need(".qweight", "I32 codes");
  expect_dtype(codes, {DType::kI32});
  if (rows % 8 != 0 || cols % 2 != 0)
    refuse(codes, "a matrix of " + parts.shape().to_string(), "rows a multiple of 8 and an even number of columns");
  expect_shape(codes, {cols, rows / 8});
  GroupedScales grouped(parts, codes, config.group);
  if (const Checkpoint::Tensor* zeros = parts.find(".qzeros")) {
    expect_dtype(*zeros, {DType::kI32});
    expect_shape(*zeros, {grouped.groups(), rows / 8});
    const auto* words = zeros->view().as<std::uint32_t>();
    for (std::int64_t g = 0; g < grouped.groups(); ++g) {
      for (std::int64_t n = 0; n < rows; n += 8) {
        for (int i = 0; i < 8; ++i)
          grouped.set_zero(g, n + kRowOfNibble[i], static_cast<int>((words[(g * rows + n) / 8] >> (4 * i)) & 15U));
      }
    }
  }
  transpose(codes.view().as<std::uint32_t>(), rows, cols, parts.new_codes(WeightFormat::kI4));
  grouped.store(parts, /*symmetric_zero=*/8, /*code_offset=*/0);
  return parts.finish(WeightFormat::kI4, "awq");
}

constexpr MatrixScheme kSchemes[] = {{"awq", kSuffixes, matches, read}};

}  // namespace

std::span<const MatrixScheme> awq_schemes() { return kSchemes; }

}  // namespace glint
