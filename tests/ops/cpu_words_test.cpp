// BF16 weights as 16-bit codes, against sums in double: the wide limit of the cases for rounded activations would not
// notice a code that is off by a few.

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "backends/cpu/cpu.hpp"
#include "backends/cpu/kernels.hpp"

namespace glint {
namespace {

struct Problem {
  std::int64_t rows, w_rows, cols;
  std::vector<float> x;
  std::vector<BF16> w;

  Problem(std::int64_t x_rows, std::int64_t n, std::int64_t k, float outlier)
      : rows(x_rows), w_rows(n), cols(k), x(static_cast<std::size_t>(x_rows * k)), w(static_cast<std::size_t>(n * k)) {
    std::mt19937 rng(7);
    std::normal_distribution<float> normal;
    for (std::size_t i = 0; i < x.size(); ++i) x[i] = normal(rng) * (i % 97 == 5 ? outlier : 1);
    for (BF16& v : w) v = to_bf16(0.05F * normal(rng));
  }
  std::vector<float> run(const std::string& isa) const {
    std::vector<float> out(static_cast<std::size_t>(rows * w_rows));
    make_cpu_ops({.isa = isa, .threads = 1})
        ->linear({.x = {x.data(), DType::kF32, {rows, cols}},
                  .w = {.format = WeightFormat::kBF16, .rows = w_rows, .cols = cols, .data = w.data()},
                  .out = {out.data(), DType::kF32, {rows, w_rows}}});
    return out;
  }
  double nmse(const std::vector<float>& out) const {
    double error = 0, square = 0;
    for (std::int64_t m = 0; m < rows; ++m) {
      for (std::int64_t n = 0; n < w_rows; ++n) {
        double sum = 0;
        for (std::int64_t k = 0; k < cols; ++k)
          sum += static_cast<double>(x[static_cast<std::size_t>(m * cols + k)]) *
                 to_float(w[static_cast<std::size_t>(n * cols + k)]);
        const double off = out[static_cast<std::size_t>(m * w_rows + n)] - sum;
        error += off * off;
        square += sum * sum;
      }
    }
    return error / square;
  }
};

TEST(CpuWords, CodesLoseAHundredthOfBf16) {
  constexpr double kLimit = 6e-8;  // with x in bfloat16 3e-6; the op cases' worst is 2.1e-8
  for (const std::string& isa : cpu_isas()) {
    for (const auto& [rows, w_rows, cols] : {std::array<std::int64_t, 3>{1, 33, 64},
                                             {1, 70, 1024},
                                             {5, 70, 192},
                                             {14, 16, 2176},
                                             {67, 100, 1088},
                                             {3, 7, 10240}}) {
      for (const float outlier : {1.0F, 20.0F}) {
        const Problem p(rows, w_rows, cols, outlier);
        EXPECT_LE(p.nmse(p.run(isa)), kLimit)
            << isa << " " << rows << " x " << w_rows << " x " << cols << " " << outlier;
      }
    }
  }
}

// The largest codes on both sides with equal signs: the sum of a block is as near to 2^31 as it gets.
TEST(CpuWords, NoSumOverflows) {
  for (const std::string& isa : cpu_isas()) {
    for (const std::int64_t rows : {std::int64_t{1}, std::int64_t{7}}) {
      Problem p(rows, 20, 128, 1);
      for (float& v : p.x) v = -3;
      for (BF16& v : p.w) v = to_bf16(-2);
      for (const float v : p.run(isa)) EXPECT_NEAR(v, 768, 0.1) << isa;
    }
  }
}

TEST(CpuWords, ZerosAndWhatIsNotFinite) {
  for (const std::string& isa : cpu_isas()) {
    for (const std::int64_t rows : {std::int64_t{2}, std::int64_t{8}}) {
      Problem p(rows, 18, 256, 1);
      for (std::int64_t k = 0; k < p.cols; ++k) {
        p.x[static_cast<std::size_t>(k)] = 0;
        p.w[static_cast<std::size_t>(3 * p.cols + k)] = to_bf16(0);
      }
      p.x[static_cast<std::size_t>(p.cols + 70)] = std::numeric_limits<float>::infinity();
      p.w[static_cast<std::size_t>(17 * p.cols + 9)] = to_bf16(std::numeric_limits<float>::quiet_NaN());
      const std::vector<float> out = p.run(isa);
      for (std::int64_t n = 0; n < 17; ++n) {
        EXPECT_EQ(out[static_cast<std::size_t>(n)], 0) << isa;
        EXPECT_FALSE(std::isfinite(out[static_cast<std::size_t>(p.w_rows + n)]) && n != 3) << isa;
      }
      for (std::int64_t m = 1; m < rows; ++m) EXPECT_TRUE(std::isnan(out[static_cast<std::size_t>(m * p.w_rows + 17)]));
    }
  }
}

}  // namespace
}  // namespace glint
