#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>

#include "backends/reference/reference.hpp"
#include "models/host_ops.hpp"
#include "models/small_checkpoint.hpp"
#include "weights/checkpoint.hpp"

namespace glint {
namespace {

ModelConfig medium_config() {
  ModelConfig c = small_config();
  c.hidden = 256;
  c.n_experts = 64;
  c.top_k = 4;
  return c;
}

double rms(const Weight& w) {
  double sum = 0;
  for (std::int64_t i = 0; i < w.rows * w.cols; ++i) {
    const double v = load_as_float(w.data, DType::kBF16, static_cast<std::size_t>(i));
    sum += v * v;
  }
  return std::sqrt(sum / static_cast<double>(w.rows * w.cols));
}

TEST(Synthetic, SeededAndScaled) {
  HostOps ops;
  const ModelWeights a = synthetic_weights({.config = medium_config(), .seed = 3}, ops);
  const ModelWeights b = synthetic_weights({.config = medium_config(), .seed = 3}, ops);
  const ModelWeights c = synthetic_weights({.config = medium_config(), .seed = 4}, ops);
  const Weight& wa = a.layers[2].experts[7].down;
  const auto bytes = static_cast<std::size_t>(wa.bytes());
  EXPECT_EQ(std::memcmp(wa.data, b.layers[2].experts[7].down.data, bytes), 0);
  EXPECT_NE(std::memcmp(wa.data, c.layers[2].experts[7].down.data, bytes), 0);
  EXPECT_NE(std::memcmp(wa.data, a.layers[2].experts[8].down.data, bytes), 0);
  EXPECT_NE(std::memcmp(wa.data, a.layers[1].experts[7].down.data, bytes), 0);
  EXPECT_NEAR(rms(a.layers[0].q_a) * std::sqrt(256.0), 1.0, 0.05);
  EXPECT_NEAR(rms(a.layers[1].kv_b) * std::sqrt(512.0), 1.0, 0.05);
  EXPECT_NEAR(rms(a.embed), 1.0, 0.05);
  const ConstView norm = a.final_norm;
  EXPECT_NEAR(std::accumulate(norm.as<float>(), norm.as<float>() + 256, 0.0) / 256, 1.0, 0.05);
  EXPECT_EQ(count_non_finite({a.embed.data, DType::kBF16, {a.embed.rows, a.embed.cols}}), 0U);
  ASSERT_NE(a.mtp, nullptr);
  EXPECT_EQ(a.mtp->head.data, a.lm_head.data);
}

TEST(Synthetic, MoreLayersBeginWithTheSameOnes) {
  HostOps ops;
  ModelConfig more = medium_config();
  more.n_layers = 5;
  const ModelWeights a = synthetic_weights({.config = medium_config()}, ops);
  const ModelWeights b = synthetic_weights({.config = more}, ops);
  EXPECT_EQ(b.layers.size(), 5U);
  const Weight &x = a.layers[2].o, &y = b.layers[2].o;
  EXPECT_EQ(std::memcmp(x.data, y.data, static_cast<std::size_t>(x.bytes())), 0);
}

TEST(Synthetic, FormatsProgressAndDevices) {
  for (const WeightFormat format : {WeightFormat::kF32, WeightFormat::kF16, WeightFormat::kBF16}) {
    HostOps ops, device("cuda (test)");
    std::uint64_t done = 0, total = 0;
    const ModelWeights m = synthetic_weights({.config = small_config(), .format = format}, ops,
                                             [&](std::uint64_t d, std::uint64_t t) { done = d, total = t; });
    EXPECT_EQ(done, total);
    EXPECT_EQ(done, ops.allocated_bytes);
    EXPECT_LE(m.total_bytes(), static_cast<double>(done));
    EXPECT_EQ(ops.uploaded_bytes, 0U);
    EXPECT_EQ(m.layers[1].q_b.format, format);
    const ModelWeights d = synthetic_weights({.config = small_config(), .format = format}, device);
    EXPECT_EQ(device.uploaded_bytes, device.allocated_bytes);
    EXPECT_EQ(
        std::memcmp(m.layers[2].kv_a.data, d.layers[2].kv_a.data, static_cast<std::size_t>(m.layers[2].kv_a.bytes())),
        0);
  }
  HostOps ops;
  expect_error([&] { synthetic_weights({.config = small_config(), .format = WeightFormat::kI4}, ops); },
               "block format");
}

// The load of the busiest and the idlest experts in units of the mean, for random tokens.
TEST(Synthetic, ExpertsAreUnevenlyBusy) {
  HostOps ops;
  const ModelWeights m = synthetic_weights({.config = medium_config()}, ops);
  constexpr std::int64_t kTokens = 4096, kHidden = 256, kTop = 4;
  std::vector<float> x(kTokens * kHidden);
  std::mt19937 rng(5);
  std::normal_distribution<float> normal;
  for (float& v : x) v = normal(rng);
  std::vector<std::int32_t> ids(kTokens * kTop);
  std::vector<float> weights(kTokens * kTop);
  for (const std::size_t layer : {1, 2}) {
    reference::route({.x = {x.data(), DType::kF32, {kTokens, kHidden}},
                      .w = m.layers[layer].router,
                      .bias = m.layers[layer].router_bias,
                      .top_k = kTop,
                      .ids = ids.data(),
                      .weights = weights.data()});
    std::vector<double> load(64);
    for (const std::int32_t id : ids) load[static_cast<std::size_t>(id)] += 64.0 / static_cast<double>(ids.size());
    std::sort(load.begin(), load.end());
    RecordProperty("busiest", std::to_string(load[63]));
    RecordProperty("idlest", std::to_string(load[0]));
    EXPECT_GT(load[63], 2.0);
    EXPECT_LT(load[63], 8.0);
    EXPECT_LT(load[0], 0.6);
    EXPECT_GT(load[0], 0.0) << "no dead expert";
  }
}

}  // namespace
}  // namespace glint
