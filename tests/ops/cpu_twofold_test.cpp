// BF16 weights against values as two bfloat16 numbers (AMX).

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "backends/cpu/cpu.hpp"
#include "backends/cpu/kernels.hpp"
#include "every_table.hpp"
#include "ops/ops.hpp"
#include "tensor/dtype.hpp"

namespace glint {
namespace {

struct Sizes {
  std::int64_t w_rows, cols, x_rows;
};
// Groups of W and tiles of x that are whole, cut short, and fewer than one; strips of several threads' items.
constexpr Sizes kSizes[] = {{16, 32, 16}, {5, 64, 3}, {55, 256, 40}, {64, 1056, 17}, {300, 128, 70}, {33, 96, 9}};

std::vector<std::string> twofold_tables() {
  std::vector<std::string> names = every_table();
  std::erase_if(names, [](const std::string& name) { return !cpu::find_table(name).dots_twofold; });
  return names;
}

std::vector<float> values(std::int64_t n, float deviation, std::uint32_t seed) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal;
  std::vector<float> v(static_cast<std::size_t>(n));
  for (float& x : v) x = normal(rng) * deviation;
  return v;
}

std::vector<float> product(Ops& ops, const std::vector<BF16>& w, const Sizes& s, const float* x, std::int64_t rows) {
  std::vector<float> out(static_cast<std::size_t>(rows * s.w_rows));
  ops.linear({.x = {x, DType::kF32, {rows, s.cols}},
              .w = {.format = WeightFormat::kBF16, .rows = s.w_rows, .cols = s.cols, .data = w.data()},
              .out = {out.data(), DType::kF32, {rows, s.w_rows}}});
  return out;
}

std::vector<BF16> weights(const Sizes& s) {
  std::vector<BF16> w;
  for (const float v : values(s.w_rows * s.cols, 0.1F, 7)) w.push_back(to_bf16(v));
  return w;
}

TEST(CpuTwofold, LosesNextToNothing) {
  const std::vector<std::string> names = twofold_tables();
  if (names.empty()) GTEST_SKIP() << "no table with tiles here";
  for (const std::string& name : names) {
    const auto ops = make_cpu_ops({.isa = name, .threads = 2});
    for (const Sizes& s : kSizes) {
      const std::vector<BF16> w = weights(s);
      std::vector<float> x = values(s.x_rows * s.cols, 1, 8);
      for (std::size_t i = 0; i < x.size(); i += 29) x[i] *= 1000;
      const std::vector<float> out = product(*ops, w, s, x.data(), s.x_rows);
      double error = 0, square = 0;
      for (std::int64_t m = 0; m < s.x_rows; ++m) {
        for (std::int64_t n = 0; n < s.w_rows; ++n) {
          double sum = 0;
          for (std::int64_t k = 0; k < s.cols; ++k)
            sum += static_cast<double>(x[static_cast<std::size_t>(m * s.cols + k)]) *
                   to_float(w[static_cast<std::size_t>(n * s.cols + k)]);
          const double off = out[static_cast<std::size_t>(m * s.w_rows + n)] - sum;
          error += off * off;
          square += sum * sum;
        }
      }
      EXPECT_LT(error / square, 3e-10) << name << ", " << s.w_rows << " x " << s.cols;
    }
  }
}

// A lone row is read where it lies, many are turned.
TEST(CpuTwofold, ARowsBitsDoNotDependOnItsCompany) {
  for (const std::string& name : twofold_tables()) {
    const auto ops = make_cpu_ops({.isa = name, .threads = 1});
    for (const Sizes& s : kSizes) {
      const std::vector<BF16> w = weights(s);
      const std::vector<float> x = values(s.x_rows * s.cols, 1, 9);
      const std::vector<float> all = product(*ops, w, s, x.data(), s.x_rows);
      for (std::int64_t m = 0; m < s.x_rows; ++m) {
        const std::vector<float> alone = product(*ops, w, s, x.data() + m * s.cols, 1);
        EXPECT_EQ(0, std::memcmp(alone.data(), all.data() + m * s.w_rows, alone.size() * sizeof(float)))
            << name << ", " << s.w_rows << " x " << s.cols << ", row " << m;
      }
    }
  }
}

// What is not finite shows, in its own row alone.
TEST(CpuTwofold, ShowsWhatIsNotFinite) {
  const Sizes s{48, 64, 20};
  const std::vector<BF16> w = weights(s);
  for (const std::string& name : twofold_tables()) {
    const auto ops = make_cpu_ops({.isa = name, .threads = 1});
    for (const std::uint32_t bits : {0x7f800000U, 0xff800000U, 0x7fc00000U, 0x7f800001U, 0x7fffffffU}) {
      std::vector<float> x = values(s.x_rows * s.cols, 1, 10);
      std::memcpy(&x[static_cast<std::size_t>(3 * s.cols + 5)], &bits, sizeof bits);
      const std::vector<float> out = product(*ops, w, s, x.data(), s.x_rows);
      for (std::int64_t m = 0; m < s.x_rows; ++m) {
        for (std::int64_t n = 0; n < s.w_rows; ++n)
          EXPECT_EQ(std::isfinite(out[static_cast<std::size_t>(m * s.w_rows + n)]), m != 3) << name << ", row " << m;
      }
    }
  }
}

// Tiles in plain C++ give the bits of the instruction, also where numbers are too small to be normal.
TEST(CpuTwofold, EmulatedTilesGiveTheBitsOfTheInstruction) {
  const std::vector<std::string> names = twofold_tables();
  if (names.size() < 2) GTEST_SKIP() << "only one table with tiles here";
  for (const Sizes& s : kSizes) {
    const std::vector<BF16> w = weights(s);
    for (const float deviation : {1.0F, 1e-20F, 1e-36F, 1e-39F}) {
      const std::vector<float> x = values(s.x_rows * s.cols, deviation, 11);
      std::vector<std::vector<float>> out;
      for (const std::string& name : names)
        out.push_back(product(*make_cpu_ops({.isa = name, .threads = 1}), w, s, x.data(), s.x_rows));
      EXPECT_EQ(0, std::memcmp(out[0].data(), out[1].data(), out[0].size() * sizeof(float))) << deviation;
    }
  }
}

}  // namespace
}  // namespace glint
