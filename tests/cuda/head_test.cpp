// The head of few rows in INT8, against the codes' own values in double: it is more exact than the op cases ask for.

#include <cmath>
#include <cstring>

#include "cuda/device_matrix.hpp"
#include "ops/params.hpp"

namespace glint {
namespace {

constexpr std::int64_t kVocab = 24576, kHidden = 512;

// Logits of `rows` of x by a backend with the head in INT8, a scale a row.
struct Head {
  Head() : ops(make_cuda_ops({})), random(3) {
    w = matrix(*ops, random, {.format = WeightFormat::kI8, .group = 0}, kVocab, kHidden);
    x = random.normals(6 * kHidden, 1.0F);
    x[3 * kHidden + 17] = 40.0F;  // an outlier takes bits from its row's other values
  }
  std::vector<float> logits(const std::vector<std::int32_t>& rows, std::int64_t valid) {
    const Buffer d_x = to_device(*ops, x.data(), x.size() * 4), d_rows = to_device(*ops, rows.data(), rows.size() * 4);
    const auto n = static_cast<std::int64_t>(rows.size());
    const Buffer out = ops->allocate(static_cast<std::size_t>(n * kVocab) * 4);
    ops->reserve({.max_rows = 8,
                  .max_logits = 8,
                  .max_context = 64,
                  .hidden = kHidden,
                  .n_heads = 4,
                  .q_lora = 128,
                  .dense_inner = 128,
                  .expert_inner = 128,
                  .n_experts = 8,
                  .top_k = 2,
                  .vocab = kVocab});
    ops->lm_head({.x = {d_x.data(), DType::kF32, {6, kHidden}},
                  .rows = static_cast<const std::int32_t*>(d_rows.data()),
                  .w = w.w,
                  .valid_vocab = valid,
                  .logits = {out.data(), DType::kF32, {n, kVocab}}});
    std::vector<float> host(static_cast<std::size_t>(n * kVocab));
    ops->download(host.data(), out.data(), host.size() * 4);
    return host;
  }

  std::unique_ptr<Ops> ops;
  Random random;
  DeviceMatrix w;
  std::vector<float> x;
};

TEST(CudaHead, Int8OfFewRowsIsNearlyExact) {
  NEED_GPU();
  Head head;
  for (const std::vector<std::int32_t>& rows :
       std::vector<std::vector<std::int32_t>>{{2}, {5, 0}, {1, 2, 3}, {3, 0, 4, 1}}) {
    constexpr std::int64_t kValid = kVocab - 37;
    const std::vector<float> got = head.logits(rows, kValid);
    double error = 0, power = 0;
    for (std::size_t n = 0; n < rows.size(); ++n) {
      for (std::int64_t o = 0; o < kVocab; ++o) {
        const float y = got[n * kVocab + static_cast<std::size_t>(o)];
        if (o >= kValid) {
          ASSERT_TRUE(std::isinf(y) && y < 0) << o;
          continue;
        }
        double want = 0;
        for (std::int64_t k = 0; k < kHidden; ++k)
          want += static_cast<double>(head.w.values[static_cast<std::size_t>(o * kHidden + k)]) *
                  static_cast<double>(head.x[static_cast<std::size_t>(rows[n] * kHidden + k)]);
        error += (y - want) * (y - want);
        power += want * want;
      }
    }
    EXPECT_LT(error / power, 1e-6) << rows.size() << " rows";
    const std::vector<float> again = head.logits(rows, kValid);
    EXPECT_EQ(0, std::memcmp(got.data(), again.data(), got.size() * 4)) << "a repeat differs";
    // A row has the same bits whatever other rows are there.
    const std::vector<float> alone = head.logits({rows.back()}, kValid);
    EXPECT_EQ(0, std::memcmp(got.data() + (rows.size() - 1) * kVocab, alone.data(), alone.size() * 4));
  }
}

TEST(CudaHead, NotANumberStaysOne) {
  NEED_GPU();
  Head head;
  head.x[2 * kHidden + 5] = std::nanf("");
  const std::vector<float> got = head.logits({2, 1}, kVocab);
  EXPECT_TRUE(std::isnan(got[0]) && std::isnan(got[kVocab - 1]));
  EXPECT_FALSE(std::isnan(got[kVocab]));
}

}  // namespace
}  // namespace glint
