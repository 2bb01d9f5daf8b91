// Block-format kernels with inputs that int8 codes hold exactly: then nothing but the order of the sums may differ from
// the decoded weights, which the wide limits of the cases for rounded activations would not notice.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "backends/cpu/cpu.hpp"
#include "every_table.hpp"
#include "tensor/codec.hpp"

namespace glint {
namespace {

// More than one step of columns, no whole tiles; with AMX two tiles of x and five rows, three groups of W and seven
// rows.
constexpr std::int64_t kCols = 2176, kWRows = 55, kXRows = 37;

// Integers times a power of two a block, which is as wide as a group of W, 128 at most; ±127 is in each, so that the
// scale is the power itself. Neighbouring blocks differ in it: a factor in the lanes of the next group would show.
std::vector<float> exact_codes(const QuantSpec& spec) {
  const std::size_t width = spec.group == 0 ? 128 : static_cast<std::size_t>(std::min<std::int64_t>(spec.group, 128));
  std::mt19937 rng(5);
  std::vector<float> x(static_cast<std::size_t>(kXRows * kCols));
  for (std::size_t i = 0; i < x.size(); ++i) {
    const int code = i % 16 == 1 ? (i % 32 == 1 ? 127 : -127) : static_cast<int>(rng() % 255) - 127;
    const int power = static_cast<int>(i / width % 5) - 2;
    x[i] = std::ldexp(static_cast<float>(code), power);
  }
  return x;
}

const QuantSpec kSpecs[] = {
    {WeightFormat::kI4, 128, 1, true, DType::kBF16},   {WeightFormat::kI4, 64, 1, false, DType::kF16},
    {WeightFormat::kI4, 32, 1, false, DType::kF32},    {WeightFormat::kI4, 16, 1, true, DType::kF32},
    {WeightFormat::kI4, 32, 1, true, DType::kF16},     {WeightFormat::kI4, 16, 1, false, DType::kBF16},
    {WeightFormat::kI8, 0, 1, true, DType::kF32},      {WeightFormat::kI8, 128, 1, false, DType::kBF16},
    {WeightFormat::kI8, 32, 1, false, DType::kF16},    {WeightFormat::kI8, 16, 1, true, DType::kF16},
    {WeightFormat::kF4E2M1, 16, 1, true, DType::kF32}, {WeightFormat::kF4E2M1, 32, 1, true, DType::kF16},
    {WeightFormat::kF4E2M1, 64, 1, true, DType::kF32}, {WeightFormat::kF8E4M3, 128, 128, true, DType::kF32},
    {WeightFormat::kNF4, 64, 1, true, DType::kF32},    {WeightFormat::kNF4, 32, 1, true, DType::kF32}};

std::vector<float> normal_values(std::int64_t n, float deviation, std::uint32_t seed) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal(0, deviation);
  std::vector<float> values(static_cast<std::size_t>(n));
  for (float& v : values) v = normal(rng);
  return values;
}

// Products by tiles of bytes against those by vectors: every bit, since sums of integers are exact and the rest is the
// same in the same order. Also where groups of W and rows of x fill no tile.
TEST(CpuCodes, TilesGiveTheBitsOfVectors) {
  const std::vector<std::string> names = every_table();
  int compared = 0;
  for (const std::string& tiles : names) {
    if (!tiles.starts_with("amx")) continue;
    std::string vectors = "avx512bf16" + tiles.substr(3);
    if (std::find(names.begin(), names.end(), vectors) == names.end()) vectors = "avx512bf16";  // emulated upon it
    const auto by_tiles = make_cpu_ops({.isa = tiles, .threads = 1});
    const auto by_vectors = make_cpu_ops({.isa = vectors, .threads = 1});
    for (const QuantSpec& spec : kSpecs) {
      const std::vector<float> values = normal_values(kWRows * kCols, 0.1F, 7);
      std::vector<float> x = normal_values(kXRows * kCols, 1, 8);
      const QuantizedWeight q = quantize_rtn(spec, values.data(), kWRows, kCols);
      std::vector<float> out[2];
      for (const int which : {0, 1}) {
        out[which].resize(static_cast<std::size_t>(kXRows * kWRows));
        (which == 0 ? by_tiles : by_vectors)
            ->linear({.x = {x.data(), DType::kF32, {kXRows, kCols}},
                      .w = q.w,
                      .out = {out[which].data(), DType::kF32, {kXRows, kWRows}}});
      }
      EXPECT_EQ(0, std::memcmp(out[0].data(), out[1].data(), out[0].size() * sizeof(float)))
          << tiles << ", " << spec.name();
      ++compared;
    }
  }
  if (compared == 0) GTEST_SKIP() << "no table with tiles here";
}

// One row alone, whose last step of columns may be known to the compiler, against the same row among others: every bit.
// The parts of a step that are left over are those of groups of 16 to 128, ten steps are read at a time, and the last
// row's factors are the end of their table.
TEST(CpuCodes, ARowEndsAnywhereInAStep) {
  constexpr std::int64_t kRows = 5, kOutputs = 11;
  const std::vector<std::string> names = every_table();
  for (const std::int64_t cols : {128, 384, 512, 768, 1280, 1536, 1792, 2048, 8960, 10240, 11008}) {
    const std::vector<float> values = normal_values(kOutputs * cols, 0.1F, 9);
    std::vector<float> x = normal_values(kRows * cols, 1, 10);
    for (const QuantSpec& spec : kSpecs) {
      const QuantizedWeight q = quantize_rtn(spec, values.data(), kOutputs, cols);
      for (const std::string& isa : names) {
        const auto ops = make_cpu_ops({.isa = isa, .threads = 1});
        std::vector<float> together(kRows * kOutputs), alone(kOutputs);
        ops->linear({.x = {x.data(), DType::kF32, {kRows, cols}},
                     .w = q.w,
                     .out = {together.data(), DType::kF32, {kRows, kOutputs}}});
        for (std::int64_t m = 0; m < kRows; ++m) {
          ops->linear({.x = {x.data() + m * cols, DType::kF32, {1, cols}},
                       .w = q.w,
                       .out = {alone.data(), DType::kF32, {1, kOutputs}}});
          EXPECT_EQ(0, std::memcmp(alone.data(), together.data() + m * kOutputs, kOutputs * sizeof(float)))
              << isa << ", " << spec.name() << ", " << cols << " columns, row " << m;
        }
      }
    }
  }
}

TEST(CpuCodes, ExactInputsLoseNothing) {
  const std::vector<float> values = normal_values(kWRows * kCols, 0.1F, 6);
  const std::vector<std::string> names = every_table();
  for (const QuantSpec& spec : kSpecs) {
    const QuantizedWeight q = quantize_rtn(spec, values.data(), kWRows, kCols);
    std::vector<float> x = exact_codes(spec);
    std::vector<float> row(kCols);
    std::vector<double> expected;
    double square = 0;
    for (std::int64_t n = 0; n < kWRows; ++n) {
      decode_row(q.w, n, row.data());
      for (std::int64_t m = 0; m < kXRows; ++m) {
        double sum = 0;
        for (std::int64_t k = 0; k < kCols; ++k)
          sum += static_cast<double>(row[static_cast<std::size_t>(k)]) * x[static_cast<std::size_t>(m * kCols + k)];
        expected.push_back(sum);
        square += sum * sum;
      }
    }
    // NF4's codebook as integers has an error of its own, 1.8e-5 of the square; single rows of 55 outputs scatter.
    const double limit = spec.format == WeightFormat::kNF4 ? 1e-4 : 1e-11;
    for (const std::string& isa : names) {
      for (const std::int64_t rows : {kXRows, std::int64_t{1}}) {
        std::vector<float> out(static_cast<std::size_t>(rows * kWRows));
        const auto ops = make_cpu_ops({.isa = isa, .threads = 1});
        for (std::int64_t m = 0; m < kXRows; m += rows) {
          ops->linear({.x = {x.data() + m * kCols, DType::kF32, {rows, kCols}},
                       .w = q.w,
                       .out = {out.data(), DType::kF32, {rows, kWRows}}});
          double error = 0;
          for (std::int64_t i = 0; i < rows; ++i) {
            for (std::int64_t n = 0; n < kWRows; ++n) {
              const double e = out[static_cast<std::size_t>(i * kWRows + n)] -
                               expected[static_cast<std::size_t>(n * kXRows + m + i)];
              error += e * e;
            }
          }
          EXPECT_LE(error / (square * static_cast<double>(rows) / kXRows), limit)
              << isa << ", " << spec.name() << ", row " << m << " of " << rows;
        }
      }
    }
  }
}

}  // namespace
}  // namespace glint
