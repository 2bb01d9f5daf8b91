// The quantiser: searched scales against the plain rule, error-compensated rounding against both, files by others'
// conventions read back.

#include "weights/quantizer.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "base/json.hpp"
#include "weights/quantizer_files.hpp"
#include "weights/quantizer_gptq.hpp"
#include "weights/quantizer_grid.hpp"
#include "weights/temp_dir.hpp"

namespace glint {
namespace {

std::vector<float> random_matrix(std::int64_t n, unsigned seed, float outliers = 0) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal(0, 0.05F);
  std::vector<float> v(static_cast<std::size_t>(n));
  for (float& x : v) {
    x = normal(rng);
    if (outliers > 0 && rng() % 97 == 0) x *= outliers;
  }
  return v;
}

// Inputs whose columns depend on each other and differ in size, as activations' do.
std::vector<float> correlated_inputs(std::int64_t rows, std::int64_t n, unsigned seed) {
  const std::vector<float> hidden = random_matrix(rows * 8, seed), mix = random_matrix(8 * n, seed + 1);
  std::vector<float> x = random_matrix(rows * n, seed + 2);
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t i = 0; i < n; ++i) {
      float& v = x[static_cast<std::size_t>(r * n + i)];
      v *= 0.05F;
      for (std::int64_t k = 0; k < 8; ++k)
        v += hidden[static_cast<std::size_t>(r * 8 + k)] * mix[static_cast<std::size_t>(k * n + i)] *
             (i % 7 == 0 ? 4.0F : 1.0F);
    }
  }
  return x;
}

double squared_error(const Weight& w, const std::vector<float>& values) {
  std::vector<float> row(static_cast<std::size_t>(w.cols));
  double sum = 0;
  for (std::int64_t r = 0; r < w.rows; ++r) {
    decode_row(w, r, row.data());
    for (std::int64_t k = 0; k < w.cols; ++k) {
      const double d = row[static_cast<std::size_t>(k)] - values[static_cast<std::size_t>(r * w.cols + k)];
      sum += d * d;
    }
  }
  return sum;
}

// Σ_x ‖(W - Ŵ) x‖², by the definition.
double output_squared_error(const Weight& w, const std::vector<float>& values, const std::vector<float>& x) {
  std::vector<float> row(static_cast<std::size_t>(w.cols));
  double sum = 0;
  for (std::int64_t r = 0; r < w.rows; ++r) {
    decode_row(w, r, row.data());
    for (std::int64_t t = 0; t < static_cast<std::int64_t>(x.size()) / w.cols; ++t) {
      double y = 0;
      for (std::int64_t k = 0; k < w.cols; ++k) {
        y +=
            (static_cast<double>(values[static_cast<std::size_t>(r * w.cols + k)]) - row[static_cast<std::size_t>(k)]) *
            x[static_cast<std::size_t>(t * w.cols + k)];
      }
      sum += y * y;
    }
  }
  return sum;
}

TEST(QuantizerGrid, IsTheCodec) {
  for (const char* text : {"int4-g64", "int4-g64-asym", "int8", "int8-asym", "nf4", "fp8"}) {
    const QuantSpec spec = parse_quant_spec(text, "test");
    const GroupScale one{.scale = 1, .min = 0};
    quantizer::with_grid(spec, [&](const auto& grid) {
      for (int i = -8000; i <= 8000; ++i) {
        const float x = static_cast<float>(i) * 0.0637F;
        const int code = encode_value(spec, one, x);
        ASSERT_EQ(decode_value(spec, one, grid.code(x)), decode_value(spec, one, code)) << text << " " << x;
        ASSERT_EQ(grid.level(x), decode_value(spec, one, code)) << text << " " << x;
      }
    });
  }
}

TEST(Quantizer, SearchedScalesAreNeverWorseThanPlain) {
  ThreadPool pool(2);
  const std::int64_t rows = 37, cols = 256;
  for (const char* text : {"int4-g64", "int4-g32-asym", "int4-g128", "int8", "int8-g64", "nf4", "fp8", "fp8-128x128"}) {
    const QuantSpec spec = parse_quant_spec(text, "test");
    const std::vector<float> values = random_matrix(rows * cols, 3, 4.0F);
    const double plain = squared_error(quantize_rtn(spec, values.data(), rows, cols).w, values);
    const double searched = squared_error(quantize_searched(spec, values.data(), rows, cols, {}, pool).w, values);
    EXPECT_LE(searched, plain * 1.0001) << text;
    if (spec.format == WeightFormat::kI4 && spec.symmetric) { EXPECT_LT(searched, plain * 0.9) << text; }
    const QuantizeOptions off{.search = {.steps = 1}};
    EXPECT_NEAR(squared_error(quantize_searched(spec, values.data(), rows, cols, off, pool).w, values), plain,
                plain * 1e-4)
        << text;
  }
}

TEST(Quantizer, ColumnWeightsMoveTheErrorAway) {
  ThreadPool pool(1);
  const std::int64_t rows = 16, cols = 64;
  const QuantSpec spec = parse_quant_spec("int4-g64", "test");
  const std::vector<float> values = random_matrix(rows * cols, 5, 5.0F);
  std::vector<float> weights(64, 0.01F);
  for (std::size_t i = 0; i < 32; ++i) weights[i] = 1;
  const auto error_of_heavy = [&](const QuantizedWeight& q) {
    double sum = 0;
    std::vector<float> row(64);
    for (std::int64_t r = 0; r < rows; ++r) {
      decode_row(q.w, r, row.data());
      for (std::size_t k = 0; k < 32; ++k) sum += std::pow(row[k] - values[static_cast<std::size_t>(r) * 64 + k], 2);
    }
    return sum;
  };
  EXPECT_LT(
      error_of_heavy(quantize_searched(spec, values.data(), rows, cols, {.column_weights = weights.data()}, pool)),
      error_of_heavy(quantize_searched(spec, values.data(), rows, cols, {}, pool)));
}

TEST(Quantizer, ZerosStayZero) {
  ThreadPool pool(1);
  const std::vector<float> zeros(4 * 64, 0.0F);
  for (const char* text : {"int4-g64", "int4-g64-asym", "int8", "nf4", "fp8"}) {
    const QuantizedWeight q = quantize_searched(parse_quant_spec(text, "test"), zeros.data(), 4, 64, {}, pool);
    EXPECT_EQ(squared_error(q.w, zeros), 0) << text;
  }
}

TEST(Hessian, IsTheSumOfProducts) {
  const std::int64_t rows = 131, n = 24;  // not a multiple of the pieces
  const std::vector<float> x = random_matrix(rows * n, 7);
  std::vector<float> weights(static_cast<std::size_t>(rows));
  for (std::size_t r = 0; r < weights.size(); ++r) weights[r] = static_cast<float>(r % 5) * 0.5F;
  ThreadPool pool(2);
  Hessian one(n), two(n);
  one.add(x.data(), rows, weights.data());
  two.add(x.data(), 70, weights.data(), &pool);
  two.add(x.data() + 70 * n, rows - 70, weights.data() + 70, &pool);
  one.finish();
  two.finish();
  for (std::int64_t i = 0; i < n; ++i) {
    for (std::int64_t j = 0; j <= i; ++j) {
      double sum = 0;
      for (std::int64_t r = 0; r < rows; ++r) {
        sum += static_cast<double>(weights[static_cast<std::size_t>(r)]) * x[static_cast<std::size_t>(r * n + i)] *
               x[static_cast<std::size_t>(r * n + j)];
      }
      EXPECT_NEAR(one.at(i, j), sum, 1e-4);
      EXPECT_NEAR(two.at(i, j), sum, 1e-4);
    }
  }
  EXPECT_EQ(two.rows_seen(), rows);
}

TEST(Gptq, FactorGivesTheOutputError) {
  const std::int64_t rows = 5, n = 64;
  const std::vector<float> x = correlated_inputs(300, n, 11), values = random_matrix(rows * n, 12);
  Hessian h(n);
  h.add(x.data(), 300);
  h.finish();
  const HessianFactor f = factor(h, 1e-6);
  double mean = 0;
  for (const float d : h.diagonal()) mean += d / static_cast<double>(n);
  const QuantizedWeight q = quantize_rtn(parse_quant_spec("int4-g32", "test"), values.data(), rows, n);
  const double expected = output_squared_error(q.w, values, x);
  EXPECT_NEAR(output_error(q, values.data(), f) * mean, expected, expected * 1e-3);
}

TEST(Gptq, BeatsSearchedScalesWhereInputsCorrelate) {
  ThreadPool pool(2);
  const std::int64_t rows = 21, n = 192;  // a last block of rows that is not full
  const std::vector<float> x = correlated_inputs(600, n, 21), values = random_matrix(rows * n, 22, 3.0F);
  Hessian h(n);
  h.add(x.data(), 600);
  h.finish();
  const HessianFactor f = factor(h, 0.01);
  for (const char* text : {"int4-g64", "int4-g32", "int4-g64-asym", "nf4", "int8"}) {
    const QuantSpec spec = parse_quant_spec(text, "test");
    const double searched =
        output_squared_error(quantize_searched(spec, values.data(), rows, n, {}, pool).w, values, x);
    const double greedy =
        output_squared_error(quantize_gptq(spec, values.data(), rows, n, f, {}, pool, 0).w, values, x);
    const double swept = output_squared_error(quantize_gptq(spec, values.data(), rows, n, f, {}, pool, 4).w, values, x);
    EXPECT_LT(greedy, searched * 0.75) << text;
    EXPECT_LE(swept, greedy * 1.001) << text;
  }
}

TEST(Gptq, NothingSeenIsPlainRounding) {
  ThreadPool pool(1);
  const std::int64_t rows = 3, n = 64;
  const std::vector<float> values = random_matrix(rows * n, 31);
  const HessianFactor f = factor(Hessian(n), 0.01);
  const QuantSpec spec = parse_quant_spec("int4-g64", "test");
  const double searched = squared_error(quantize_searched(spec, values.data(), rows, n, {}, pool).w, values);
  EXPECT_LE(squared_error(quantize_gptq(spec, values.data(), rows, n, f, {}, pool).w, values), searched * 1.0001);
}

TEST(QuantSpecs, ParseAndFit) {
  for (const char* text :
       {"int4-g64", "int4-g32-asym", "int8-channel", "int8-g128", "nf4-g64", "fp8-channel", "fp8-128x128", "bf16"})
    EXPECT_EQ(parse_quant_spec(text, "test").name(), text);
  for (const char* text : {"", "int5", "int4-", "int4-g", "int4-g0", "int4-gx", "fp8-asym", "nf4-asym", "int4-g64x"})
    expect_error([&] { parse_quant_spec(text, "--set"); }, "--set", "int4-g64");
  EXPECT_EQ(fit_spec(parse_quant_spec("int4-g128", "t"), 64).group, 64);
  EXPECT_EQ(fit_spec(parse_quant_spec("int4-g128", "t"), 96).group, 32);
  EXPECT_EQ(fit_spec(parse_quant_spec("int4-g64", "t"), 72).group, 0);
}

TEST(QuantFiles, ReadBackInPlace) {
  ThreadPool pool(1);
  const TempDir dir;
  const std::int64_t rows = 130, cols = 192;
  const std::vector<float> values = random_matrix(rows * cols, 41);
  for (const char* text : {"int4-g64", "int4-g32-asym", "int8", "int8-asym", "int8-g64", "nf4", "fp8", "fp8-128x128"}) {
    const QuantSpec spec = parse_quant_spec(text, "test");
    const QuantizedWeight q = quantize_searched(spec, values.data(), rows, cols, {}, pool);
    check_storable(spec, "a.b", rows, cols);
    const std::string path = dir / (std::string(text) + ".safetensors");
    SafetensorsWriter writer(path, stored_tensors(spec, "a.b", rows, cols));
    write_quantized(writer, spec, "a.b", q);
    writer.finish();
    const SafetensorsFile file(path);
    const QuantizedWeight stored = stored_weight(file, spec, "a.b", rows, cols);
    const Weight& w = stored.w;
    std::vector<float> made(static_cast<std::size_t>(cols)), read(made.size());
    for (std::int64_t r = 0; r < rows; ++r) {
      decode_row(q.w, r, made.data());
      decode_row(w, r, read.data());
      ASSERT_EQ(made, read) << text << " row " << r;
    }
  }
}

TEST(QuantFiles, WhatNoConventionHolds) {
  const auto check = [](const char* text, std::int64_t cols) {
    check_storable(parse_quant_spec(text, "test"), "a.b", 4, cols);
  };
  expect_error([&] { check("int4-g64", 60); }, "a.b", "multiples of 8");
  expect_error([&] { check("nf4-g32", 64); }, "blocks of 64");
  expect_error([&] { check("nf4", 96); }, "blocks of 64");
  const std::vector<QuantGroup> mixed{{parse_quant_spec("nf4", "t"), {"a"}}, {parse_quant_spec("int8", "t"), {"b"}}};
  expect_error([&] { quantization_config(mixed, {}); }, "nf4 beside other");
}

TEST(QuantFiles, ConfigSaysWhatIsThere) {
  const std::vector<QuantGroup> groups{{parse_quant_spec("int4-g64", "t"), {"re:x"}},
                                       {parse_quant_spec("int8", "t"), {"lm_head"}},
                                       {parse_quant_spec("fp8-128x128", "t"), {"y"}}};
  const json::value v = json::parse_text(quantization_config(groups, {"re:.*gate$"}), "test");
  EXPECT_EQ(v.at("quant_method").as_string(), "compressed-tensors");
  EXPECT_EQ(v.at("format").as_string(), "mixed-precision");
  EXPECT_EQ(v.at("ignore").at(0).as_string(), "re:.*gate$");
  const json::value& first = v.at("config_groups").at("group_0");
  EXPECT_EQ(first.at("format").as_string(), "pack-quantized");
  EXPECT_EQ(first.at("weights").at("num_bits").as_int64(), 4);
  EXPECT_EQ(first.at("weights").at("group_size").as_int64(), 64);
  EXPECT_EQ(v.at("config_groups").at("group_1").at("weights").at("strategy").as_string(), "channel");
  EXPECT_EQ(v.at("config_groups").at("group_2").at("weights").at("block_structure").at(1).as_int64(), 128);
}

}  // namespace
}  // namespace glint
