// kv_b in INT8 against 16-bit codes, against sums in double: the limit of the op cases, for W's own rounding, is far
// wider than what these products lose.

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "backends/cpu/cpu.hpp"
#include "backends/cpu/kernels.hpp"

namespace glint::cpu {
namespace {

constexpr std::int64_t kRows = 7;
constexpr std::int64_t kCodeStride = kLatent + 32, kScaleStride = 16;

struct Absorbed {
  std::vector<std::int8_t> codes;
  std::vector<float> scales, x;
  Weight w;
  std::int64_t depth = 0, width = 0;  // values that a product adds up, and results of a row

  // Of W_UK, which is read along its rows, or W_UV.
  explicit Absorbed(bool queries, float outlier = 1) {
    w = {.format = WeightFormat::kI8, .rows = queries ? kNope : kValue, .cols = kLatent, .group = kLatent};
    depth = queries ? kNope : kLatent;
    width = queries ? kLatent : kValue;
    std::mt19937 rng(5);
    std::normal_distribution<float> normal;
    codes.resize(static_cast<std::size_t>(w.rows * w.cols));
    for (auto& c : codes) c = static_cast<std::int8_t>(static_cast<int>(rng() % 255) - 127);
    for (std::int64_t i = 0; i < w.rows; ++i) scales.push_back(0.01F + 0.001F * std::abs(normal(rng)));
    for (std::int64_t i = 0; i < kRows * depth; ++i) x.push_back(normal(rng) * (i % 97 == 5 ? outlier : 1));
    w.data = codes.data();
    w.scales = scales.data();
  }
  bool queries() const { return depth == kNope; }

  // Rows [m, m + n) of x.
  std::vector<float> run(const Table& t, std::int64_t m, std::int64_t n) const {
    std::vector<float> out(static_cast<std::size_t>(n * width));
    if (queries()) {
      t.combine(
          {.a = x.data() + m * depth, .a_stride = depth, .rows = n, .w = w, .out = out.data(), .out_stride = width});
      return out;
    }
    std::vector<std::int16_t> of_x(static_cast<std::size_t>(n * kCodeStride));
    std::vector<float> scale(static_cast<std::size_t>(n * kScaleStride));
    const Packed packed{.data = of_x.data(),
                        .rows = n,
                        .cols = kLatent,
                        .quant = kLatent,
                        .words = true,
                        .code_stride = kCodeStride,
                        .scale_stride = kScaleStride,
                        .scales = scale.data()};
    t.encode_words(packed, x.data() + m * depth, depth, 0, n);
    t.dot({.x = &packed, .m1 = n, .w = w, .n1 = kValue, .out = out.data(), .out_stride = width});
    return out;
  }
  double nmse(const std::vector<float>& out) const {
    double error = 0, square = 0;
    for (std::int64_t m = 0; m < kRows; ++m) {
      for (std::int64_t n = 0; n < width; ++n) {
        double sum = 0;
        for (std::int64_t k = 0; k < depth; ++k) {
          const std::int64_t row = queries() ? k : n, col = queries() ? n : k;
          sum += static_cast<double>(x[static_cast<std::size_t>(m * depth + k)]) *
                 codes[static_cast<std::size_t>(row * kLatent + col)] * scales[static_cast<std::size_t>(row)];
        }
        const double off = out[static_cast<std::size_t>(m * width + n)] - sum;
        error += off * off;
        square += sum * sum;
      }
    }
    return error / square;
  }
};

template <typename Fn>
void for_tables(const Fn& fn) {
  for (const std::string& isa : cpu_isas()) {
    if (find_table(isa).dots_words) fn(find_table(isa));
  }
}

TEST(CpuAbsorbed, CodesLoseLittle) {
  for_tables([](const Table& t) {
    for (const bool queries : {true, false}) {
      for (const float outlier : {1.0F, 20.0F}) {
        const Absorbed p(queries, outlier);
        EXPECT_LE(p.nmse(p.run(t, 0, kRows)), outlier > 1 ? 2e-8 : 2e-9) << t.name << " " << queries << " " << outlier;
      }
    }
  });
}

TEST(CpuAbsorbed, ARowAloneHasTheSameBits) {
  for_tables([](const Table& t) {
    for (const bool queries : {true, false}) {
      const Absorbed p(queries);
      const std::vector<float> all = p.run(t, 0, kRows);
      for (const std::int64_t n : {std::int64_t{1}, std::int64_t{3}, std::int64_t{5}}) {
        const std::vector<float> some = p.run(t, 2, n);
        EXPECT_EQ(std::memcmp(some.data(), all.data() + 2 * p.width, some.size() * sizeof(float)), 0) << t.name << n;
      }
    }
  });
}

// The largest codes on both sides with equal signs: the sum is as near to 2^31 as it gets.
TEST(CpuAbsorbed, NoSumOverflows) {
  for_tables([](const Table& t) {
    for (const bool queries : {true, false}) {
      Absorbed p(queries);
      for (auto& c : p.codes) c = -128;
      for (float& s : p.scales) s = 1;
      for (float& v : p.x) v = -3;
      const auto sum = static_cast<float>(384 * p.depth);
      for (const std::int64_t n : {std::int64_t{1}, kRows}) {
        for (const float v : p.run(t, 0, n)) EXPECT_NEAR(v, sum, sum * 1e-6F) << t.name;
      }
    }
  });
}

TEST(CpuAbsorbed, ZerosAndWhatIsNotFinite) {
  for_tables([](const Table& t) {
    for (const bool queries : {true, false}) {
      Absorbed p(queries);
      for (std::int64_t k = 0; k < p.depth; ++k) p.x[static_cast<std::size_t>(k)] = 0;
      p.x[static_cast<std::size_t>(p.depth + 9)] = INFINITY;
      const std::vector<float> out = p.run(t, 0, kRows);
      for (std::int64_t n = 0; n < p.width; ++n) {
        EXPECT_EQ(out[static_cast<std::size_t>(n)], 0) << t.name;
        EXPECT_TRUE(std::isnan(out[static_cast<std::size_t>(p.width + n)])) << t.name;
        EXPECT_TRUE(std::isfinite(out[static_cast<std::size_t>(2 * p.width + n)])) << t.name;
      }
    }
  });
}

}  // namespace
}  // namespace glint::cpu
