// GPTQ and AutoRound: qweight I32 [K/8, N] (4 bits; [K/4, N] for 8), eight columns of an output row a word from the
// lowest bits; qzeros I32 [K/g, N/8], eight rows a word; scales [K/g, N]; g_idx I32 [K], the group of a column.
// value = scale · (u - zero). Format v1 stores zero - 1, v2 stores zero; a file whose stored zeros are all 7 (127) or
// all 8 (128) is symmetric in either, whatever its config says.
// With act-order (a g_idx out of order) neighbouring columns have different scales, which no block format expresses:
// such a matrix is dequantised, exactly, to whatever float type holds its values.

#include <cstring>

#include "weights/format_grouped.hpp"

namespace glint {
namespace {

constexpr std::string_view kSuffixes[] = {".qweight", ".qzeros", ".scales", ".g_idx"};

bool matches(const Checkpoint& checkpoint, const std::string& base) {
  return find_part(checkpoint, base, ".qweight") != nullptr;
}

void read_zeros(const Checkpoint::Tensor& t, int bits, std::int64_t rows, const QuantConfig& config,
                GroupedScales& grouped) {
  const std::int64_t a_word = 32 / bits;
  const unsigned mask = (1U << bits) - 1U;
  const unsigned middle = 1U << (bits - 1);
  expect_dtype(t, {DType::kI32});
  const std::int64_t n_words = divide_up(rows, a_word);
  expect_shape(t, {grouped.groups(), n_words});
  const auto* words = t.view().as<std::uint32_t>();
  const auto stored = [&](std::int64_t g, std::int64_t n) {
    return (words[g * n_words + n / a_word] >> (n % a_word * bits)) & mask;
  };
  const unsigned first = stored(0, 0);
  bool same = first == middle || first == middle - 1;
  for (std::int64_t g = 0; g < grouped.groups() && same; ++g) {
    for (std::int64_t n = 0; n < rows && same; ++n) same = stored(g, n) == first;
  }
  if (same) return;  // symmetric
  // A v1 zero of 0 wrapped around when it was stored, so that it wraps back.
  const unsigned offset = config.gptq_v2 ? 0 : 1;
  for (std::int64_t g = 0; g < grouped.groups(); ++g) {
    for (std::int64_t n = 0; n < rows; ++n) grouped.set_zero(g, n, static_cast<int>((stored(g, n) + offset) & mask));
  }
}

// Whether the columns are out of order. Throws Error for a group that is not there.
bool is_act_order(const Checkpoint::Tensor& t, std::int64_t cols, const GroupedScales& grouped) {
  expect_dtype(t, {DType::kI32});
  expect_shape(t, {cols, 1});
  const auto* idx = t.view().as<std::int32_t>();
  bool ordered = true;
  for (std::int64_t k = 0; k < cols; ++k) {
    if (idx[k] < 0 || idx[k] >= grouped.groups()) {
      refuse(t, "group " + std::to_string(idx[k]) + " of column " + std::to_string(k),
             "groups from 0 to " + std::to_string(grouped.groups() - 1));
    }
    ordered &= idx[k] == k / grouped.group();
  }
  return !ordered;
}

void dequantise(MatrixParts& parts, const Checkpoint::Tensor& codes, int bits, const std::int32_t* g_idx,
                const GroupedScales& grouped) {
  const std::int64_t rows = parts.rows(), cols = parts.cols(), a_word = 32 / bits;
  const unsigned mask = (1U << bits) - 1U;
  const auto* words = codes.view().as<std::uint32_t>();
  std::vector<float> values(static_cast<std::size_t>(rows * cols));
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t k = 0; k < cols; ++k) {
      const auto u = static_cast<int>((words[k / a_word * rows + r] >> (k % a_word * bits)) & mask);
      const int zero = grouped.zero(g_idx[k], r, 1 << (bits - 1));
      values[static_cast<std::size_t>(r * cols + k)] = grouped.scale(g_idx[k], r) * static_cast<float>(u - zero);
    }
  }
  parts.set_values(values);
}

// Words of [K/8, N] are the bytes of kI4 rows, but for the transposition; of kI8 rows, but for the offset of 128 too.
void transpose(MatrixParts& parts, const Checkpoint::Tensor& codes, int bits) {
  const std::int64_t rows = parts.rows();
  const std::int64_t n_words = parts.cols() * bits / 32;
  const auto* in = codes.view().as<std::uint32_t>();
  auto* out = reinterpret_cast<std::uint32_t*>(parts.new_codes(bits == 4 ? WeightFormat::kI4 : WeightFormat::kI8));
  const std::uint32_t flip = bits == 4 ? 0 : 0x80808080U;
  constexpr std::int64_t kTile = 16;  // words of a cache line
  for (std::int64_t r0 = 0; r0 < rows; r0 += kTile) {
    const std::int64_t r1 = std::min(rows, r0 + kTile);
    for (std::int64_t w = 0; w < n_words; ++w) {
      for (std::int64_t r = r0; r < r1; ++r) out[r * n_words + w] = in[w * rows + r] ^ flip;
    }
  }
}

StoredMatrix read(const Checkpoint& checkpoint, const std::string& base, std::int64_t rows, std::int64_t cols,
                  const QuantConfig& config) {
  MatrixParts parts(checkpoint, base, rows, cols);
  const Checkpoint::Tensor& codes = parts.need(".qweight", "I32 codes");
  expect_dtype(codes, {DType::kI32});
  const FlatShape found = flat_shape(codes);
  const int bits = found.rows * 4 == cols ? 8 : 4;
  if (codes.entry->shape.rank() != 2 || found.cols != rows || found.rows * 32 != cols * bits) {
    refuse(codes, "shape " + codes.entry->shape.to_string(),
           FlatShape{cols / 8, rows}.to_string() + " (4 bits) or " + FlatShape{cols / 4, rows}.to_string() +
               " (8 bits) for a matrix of " + parts.shape().to_string());
  }
  GroupedScales grouped(parts, codes, config.group);
  if (const Checkpoint::Tensor* zeros = parts.find(".qzeros")) read_zeros(*zeros, bits, rows, config, grouped);
  const Checkpoint::Tensor* g_idx = parts.find(".g_idx");
  if (g_idx != nullptr && is_act_order(*g_idx, cols, grouped)) {
    dequantise(parts, codes, bits, g_idx->view().as<std::int32_t>(), grouped);
    return parts.finish(parts.weight().format, "gptq act-order, dequantised");
  }
  transpose(parts, codes, bits);
  grouped.store(parts, 1 << (bits - 1), bits == 4 ? 0 : 128);
  return bits == 4 ? parts.finish(WeightFormat::kI4, "gptq") : parts.finish(WeightFormat::kI8, "gptq int8");
}

constexpr MatrixScheme kSchemes[] = {{"gptq", kSuffixes, matches, read}};

}  // namespace

std::span<const MatrixScheme> gptq_schemes() { return kSchemes; }

}  // namespace glint
