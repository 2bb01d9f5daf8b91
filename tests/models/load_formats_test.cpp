// Quantised checkpoints of the small model, matrix by matrix in the schemes of weights/matrix_reader.hpp. Its values
// are multiples of 1/8 that every scheme here holds exactly, so that each must load as the BF16 checkpoint does.

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "models/host_ops.hpp"
#include "models/small_checkpoint.hpp"
#include "tensor/codec.hpp"
#include "weights/matrix_reader.hpp"

namespace glint {
namespace {

constexpr std::int64_t kGroup = 32;
constexpr int kZero = 7;  // u - 7 = 8 · value, for values from -7/8 to 8/8

// One matrix: its values times 8, and where its tensors go.
struct Matrix {
  SmallCheckpoint& c;
  std::string base;
  std::int64_t rows;
  std::int64_t cols;
  std::vector<int> n;  // [rows, cols]

  int u(std::int64_t r, std::int64_t k) const { return n[static_cast<std::size_t>(r * cols + k)] + kZero; }
  View add(const char* suffix, DType dtype, const Shape& shape) {
    HostTensor t(dtype, shape);
    const View v = t.view;
    c.tensors[base + suffix] = std::move(t);
    return v;
  }
  void fill(const char* suffix, DType dtype, const Shape& shape, float value) {
    const View v = add(suffix, dtype, shape);
    for (std::int64_t i = 0; i < shape.elements(); ++i)
      store_from_float(v.data, dtype, static_cast<std::size_t>(i), value);
  }
  void fill_words(const char* suffix, const Shape& shape, std::uint32_t word) {
    const View v = add(suffix, DType::kI32, shape);
    for (std::int64_t i = 0; i < shape.elements(); ++i) v.as<std::uint32_t>()[i] = word;
  }
};

void int4(Matrix& m) {
  const View w = m.add(".weight_packed", DType::kI32, {m.rows, m.cols / 8});
  for (std::int64_t i = 0; i < m.rows * m.cols; ++i)
    w.as<std::uint32_t>()[i / 8] |= static_cast<unsigned>(m.u(i / m.cols, i % m.cols)) << (i % 8 * 4);
  m.fill(".weight_scale", DType::kBF16, {m.rows, m.cols / kGroup}, 0.125F);
  m.fill_words(".weight_zero_point", {(m.rows + 7) / 8, m.cols / kGroup}, 0x77777777U);
  const View shape = m.add(".weight_shape", DType::kI64, {2});
  shape.as<std::int64_t>()[0] = m.rows;
  shape.as<std::int64_t>()[1] = m.cols;
}

void awq(Matrix& m) {
  constexpr int kBit[8] = {0, 16, 4, 20, 8, 24, 12, 28};
  const View w = m.add(".qweight", DType::kI32, {m.cols, m.rows / 8});
  for (std::int64_t r = 0; r < m.rows; ++r) {
    for (std::int64_t k = 0; k < m.cols; ++k)
      w.as<std::uint32_t>()[(k * m.rows + r) / 8] |= static_cast<unsigned>(m.u(r, k)) << kBit[r % 8];
  }
  m.fill_words(".qzeros", {m.cols / kGroup, m.rows / 8}, 0x77777777U);
  m.fill(".scales", DType::kF16, {m.cols / kGroup, m.rows}, 0.125F);
}

void gptq(Matrix& m, bool shuffled) {
  const View w = m.add(".qweight", DType::kI32, {m.cols / 8, m.rows});
  for (std::int64_t r = 0; r < m.rows; ++r) {
    for (std::int64_t k = 0; k < m.cols; ++k)
      w.as<std::uint32_t>()[k / 8 * m.rows + r] |= static_cast<unsigned>(m.u(r, k)) << (k % 8 * 4);
  }
  const std::int64_t groups = m.cols / kGroup;
  m.fill_words(".qzeros", {groups, m.rows / 8}, 0x66666666U);
  m.fill(".scales", DType::kF16, {groups, m.rows}, 0.125F);
  const View idx = m.add(".g_idx", DType::kI32, {m.cols});
  for (std::int64_t k = 0; k < m.cols; ++k)
    idx.as<std::int32_t>()[k] = static_cast<std::int32_t>(shuffled ? k % groups : k / kGroup);
}

void codes(Matrix& m, DType dtype) {
  const View w = m.add(".weight", dtype, {m.rows, m.cols});
  for (std::size_t i = 0; i < m.n.size(); ++i) {
    if (dtype == DType::kI8) w.as<std::int8_t>()[i] = static_cast<std::int8_t>(m.n[i]);
    else store_from_float(w.data, dtype, i, static_cast<float>(m.n[i]));
  }
}

enum class Scheme : std::uint8_t { kInt4, kInt8, kBnbInt8, kFp8, kBlockFp8, kAwq, kGptq, kActOrder, kPlain };
constexpr Scheme kSchemes[] = {Scheme::kInt4,     Scheme::kInt8, Scheme::kBnbInt8, Scheme::kFp8,
                               Scheme::kBlockFp8, Scheme::kAwq,  Scheme::kGptq,    Scheme::kActOrder};

void store(Matrix& m, Scheme scheme) {
  m.c.tensors.erase(m.base + ".weight");
  switch (scheme) {
    case Scheme::kInt4:
      return int4(m);
    case Scheme::kInt8:
      codes(m, DType::kI8);
      return m.fill(".weight_scale", DType::kF32, {m.rows, 1}, 0.125F);
    case Scheme::kBnbInt8:
      codes(m, DType::kI8);
      return m.fill(".SCB", DType::kF32, {m.rows}, 127 * 0.125F);
    case Scheme::kFp8:
      codes(m, DType::kF8E4M3);
      m.fill(".input_scale", DType::kF32, {1}, 3);
      return m.fill(".weight_scale", DType::kBF16, {m.rows, 1}, 0.125F);
    case Scheme::kBlockFp8:
      codes(m, DType::kF8E4M3);
      return m.fill(".weight_scale_inv", DType::kF32, {(m.rows + 127) / 128, (m.cols + 127) / 128}, 0.125F);
    case Scheme::kAwq:
      return awq(m);
    case Scheme::kGptq:
      return gptq(m, false);
    case Scheme::kActOrder:
      return gptq(m, true);
    case Scheme::kPlain:
      break;
  }
}

// Matrix number i of the checkpoint gets choose(i).
template <typename Choose>
SmallCheckpoint quantised(const Choose& choose) {
  SmallCheckpoint c;
  std::vector<std::string> names;
  for (const auto& [name, t] : c.tensors) {
    const auto place = find_place(name, c.config);
    if (place->spec->quantisable) names.push_back(name);
  }
  for (std::size_t i = 0; i < names.size(); ++i) {
    const Scheme scheme = choose(i);
    if (scheme == Scheme::kPlain) continue;
    const View v = c.tensors.at(names[i]).view;
    Matrix m{c, matrix_base(names[i]), v.shape[0], v.shape[1], {}};
    for (std::size_t k = 0; k < static_cast<std::size_t>(m.rows * m.cols); ++k)
      m.n.push_back(static_cast<int>(std::lround(8 * load_as_float(v.data, v.dtype, k))));
    store(m, scheme);
  }
  return c;
}

SmallCheckpoint quantised(Scheme scheme) {
  return quantised([=](std::size_t) { return scheme; });
}

// Every matrix of the model by its spec.
template <typename F>
void for_each_matrix(ModelWeights& m, const F& f) {
  const auto visit = [&](Scope scope, const BindTarget& target) {
    for (const TensorSpec& spec : tensor_table()) {
      if (spec.scope != scope || spec.bind == nullptr) continue;
      const Slot slot = spec.bind(target);
      if (auto* const* w = std::get_if<Weight*>(&slot)) f(spec, **w);
    }
  };
  const auto visit_layer = [&](LayerWeights& layer, bool dense) {
    visit(Scope::kLayer, {.layer = &layer});
    visit(dense ? Scope::kDense : Scope::kMoe, {.layer = &layer});
    for (ExpertWeights& e : layer.experts) visit(Scope::kExpert, {.expert = &e});
  };
  visit(Scope::kModel, {.model = &m});
  for (std::size_t l = 0; l < m.layers.size(); ++l)
    visit_layer(m.layers[l], m.config.is_dense(static_cast<std::int64_t>(l)));
  visit(Scope::kMtp, {.mtp = m.mtp.get()});
  visit_layer(m.mtp->block, false);
}

std::vector<float> values(ModelWeights& m) {
  std::vector<float> all;
  for_each_matrix(m, [&](const TensorSpec&, const Weight& w) {
    std::vector<float> row(static_cast<std::size_t>(w.cols));
    for (std::int64_t r = 0; r < w.rows; ++r) {
      decode_row(w, r, row.data());
      all.insert(all.end(), row.begin(), row.end());
    }
  });
  return all;
}

ModelWeights load(const SmallCheckpoint& c, Ops& ops, int n_shards = 1) {
  const TempDir dir;
  c.write(dir, n_shards);
  return load_weights(dir.path(), ops);
}
ModelWeights load(const SmallCheckpoint& c, int n_shards = 1) {
  HostOps ops;
  return load(c, ops, n_shards);
}

template <typename... Parts>
void expect_refused(const SmallCheckpoint& c, const Parts&... parts) {
  expect_error([&] { load(c); }, "model.safetensors", parts...);
}

class LoadFormats : public testing::Test {
 protected:
  void SetUp() override {
    ModelWeights plain = load(SmallCheckpoint());
    expected_ = values(plain);
    for_each_matrix(plain, [&](const TensorSpec&, const Weight&) { ++n_matrices_; });
  }
  std::vector<float> expected_;
  std::int64_t n_matrices_ = 0;
};

TEST_F(LoadFormats, EverySchemeLoadsAsItsValues) {
  for (const Scheme s : kSchemes) {
    SCOPED_TRACE(static_cast<int>(s));
    ModelWeights m = load(quantised(s), 3);
    EXPECT_EQ(values(m), expected_);
    std::int64_t read = 0;
    for (const auto& [name, count] : m.report.schemes) read += count.matrices;
    EXPECT_EQ(read, n_matrices_ + 3) << "and the routers";
    // The routers are plain; with act-order the matrices of one group have nothing to reorder.
    EXPECT_EQ(m.report.schemes.size(), s == Scheme::kActOrder ? 3U : 2U);
    EXPECT_EQ(m.report.schemes.at("plain").matrices, 3);
    EXPECT_EQ(m.report.dequantised, 0);
    // Act-order matrices have been turned into floats before.
    EXPECT_EQ(m.report.kv_b_dequantised, s == Scheme::kActOrder ? 0 : 4);
    for_each_matrix(m, [&](const TensorSpec& spec, const Weight& w) {
      const bool floats = spec.field == "layers.kv_b" || (s == Scheme::kActOrder && w.cols > kGroup);
      EXPECT_EQ(w.format == WeightFormat::kBF16, floats) << spec.field;
      EXPECT_EQ(has_scales(w.format), !floats) << spec.field;
    });
  }
}

TEST_F(LoadFormats, SchemesMixMatrixByMatrix) {
  ModelWeights m = load(quantised([](std::size_t i) { return static_cast<Scheme>(i * 7 % 9); }));
  EXPECT_EQ(values(m), expected_);
  EXPECT_EQ(m.report.schemes.size(), 9U);  // the eight, and plain
}

TEST_F(LoadFormats, MatricesInGlintsLayoutStayInTheFile) {
  HostOps ops;
  const ModelWeights m = load(quantised(Scheme::kFp8), ops);
  EXPECT_LT(ops.uploaded_bytes, 20'000U) << "norms and routers";
}

TEST_F(LoadFormats, ADeviceGetsCodesScalesAndMins) {
  for (const Scheme s : kSchemes) {
    HostOps device("cuda (test)");
    ModelWeights m = load(quantised(s), device);
    EXPECT_EQ(values(m), expected_);
    EXPECT_EQ(static_cast<double>(device.uploaded_bytes), m.total_bytes());
  }
}

TEST_F(LoadFormats, WhatABackendDoesNotReadBecomesBf16) {
  HostOps ops;
  ops.only_bf16 = true;
  for (const Scheme s : kSchemes) {
    ModelWeights m = load(quantised(s), ops);
    EXPECT_EQ(values(m), expected_);
    for_each_matrix(m, [](const TensorSpec&, const Weight& w) { EXPECT_EQ(w.format, WeightFormat::kBF16); });
    if (s == Scheme::kActOrder) continue;  // most are floats already
    EXPECT_EQ(m.report.dequantised, n_matrices_ - 4);
  }
}

TEST_F(LoadFormats, TheConfigsHintsDoNotOverruleTheTensors) {
  const SmallCheckpoint c = quantised([](std::size_t i) { return i % 2 == 0 ? Scheme::kFp8 : Scheme::kInt4; });
  const TempDir dir;
  c.write(dir);
  std::string text = config_text(c.config);
  text.back() = ',';
  dir.write("config.json", text +
                               R"( "quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 64,
                                   "modules_to_not_convert": ["lm_head", "self_attn"]}})");
  HostOps ops;
  ModelWeights m = load_weights(dir.path(), ops);
  EXPECT_EQ(values(m), expected_);
}

TEST_F(LoadFormats, AQuantisedRouterIsReadIntoF32) {
  SmallCheckpoint c;
  const std::string name = "model.layers.1.mlp.gate.weight";
  const View v = c.tensors.at(name).view;
  Matrix m{c, "model.layers.1.mlp.gate", v.shape[0], v.shape[1], {}};
  for (std::size_t k = 0; k < 6 * 64; ++k)
    m.n.push_back(static_cast<int>(std::lround(8 * load_as_float(v.data, v.dtype, k))));
  const ModelWeights plain = load(c);
  store(m, Scheme::kFp8);
  const ModelWeights w = load(c);
  ASSERT_EQ(w.layers[1].router.dtype, DType::kF32);
  EXPECT_EQ(std::memcmp(w.layers[1].router.data, plain.layers[1].router.data, 6 * 64 * sizeof(float)), 0);
}

TEST_F(LoadFormats, FusedExpertsInBlocks) {
  SmallCheckpoint c;
  for (const std::int64_t l : {1, 2, 3}) {
    c.fuse_experts(l);
    for (const char* field : {"gate_up_proj", "down_proj"}) {
      const std::string name = "model.layers." + std::to_string(l) + ".mlp.experts." + field;
      const HostTensor from = std::move(c.tensors.at(name));
      const Shape shape = from.view.shape;
      HostTensor to(DType::kF8E4M3, shape);
      for (std::size_t i = 0; i < static_cast<std::size_t>(shape.elements()); ++i)
        store_from_float(to.view.data, DType::kF8E4M3, i, 8 * load_as_float(from.view.data, from.view.dtype, i));
      c.tensors[name] = std::move(to);
      HostTensor scales(DType::kF32, {6, 1, 1});
      for (int e = 0; e < 6; ++e) scales.view.as<float>()[e] = 0.125F;
      c.tensors[name + "_scale_inv"] = std::move(scales);
    }
  }
  ModelWeights m = load(c);
  EXPECT_EQ(values(m), expected_);
  EXPECT_EQ(m.report.schemes.at("block fp8").matrices, 6);

  // The same numbers of values in another number of experts.
  const std::string name = "model.layers.2.mlp.experts.down_proj";
  c.tensors[name] = HostTensor(DType::kF8E4M3, {12, 32, 32});
  c.tensors[name + "_scale_inv"] = HostTensor(DType::kF32, {12, 1, 1});
  expect_refused(c, name, "[12, 32, 32]", "[6, 64, 32]");
}

TEST_F(LoadFormats, PartsWithoutTheirMatrixAreRefused) {
  const std::string base = "model.layers.1.mlp.experts.3.up_proj";
  const auto without = [&](Scheme s, const std::string& suffix) {
    SmallCheckpoint c = quantised(s);
    EXPECT_EQ(c.tensors.erase(base + suffix), 1U);
    return c;
  };
  expect_error([&] { load(without(Scheme::kInt4, ".weight_scale")); }, base + ".weight_scale", "no such tensor");
  expect_error([&] { load(without(Scheme::kInt4, ".weight_packed")); }, base, "only", "weight_zero_point");
  expect_error([&] { load(without(Scheme::kBlockFp8, ".weight")); }, base + ".weight", "no such tensor");
  expect_error([&] { load(without(Scheme::kBnbInt8, ".SCB")); }, base + ".weight", "I8", "scales are missing");
  expect_error([&] { load(without(Scheme::kAwq, ".scales")); }, base, "expected");

  SmallCheckpoint both = quantised(Scheme::kPlain);  // a scale that nothing uses
  both.add(base + ".weight_scale", DType::kF32, {32, 1});
  expect_refused(both, base + ".weight_scale", "do not use", "in the form plain");
  SmallCheckpoint unknown = quantised(Scheme::kInt4);
  unknown.add(base + ".suh", DType::kF16, {32});
  expect_refused(unknown, base + ".suh", "does not have");
  unknown = quantised(Scheme::kFp8);
  unknown.add("model.layers.1.self_attn.k_scale", DType::kF32, {1});  // of a cache in FP8
  EXPECT_NO_THROW(load(unknown));
}

TEST(QuantConfig, IsReadFromEveryDialect) {
  const auto parse = [](const std::string& text) {
    return parse_quant_config("{\"quantization_config\": " + text + "}", "config.json");
  };
  QuantConfig c = parse(R"({"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": true, "sym": false,
                           "checkpoint_format": "gptq_v2"})");
  EXPECT_EQ(c.method, "gptq");
  EXPECT_EQ(c.bits, 4);
  EXPECT_EQ(c.group, 128);
  EXPECT_TRUE(c.desc_act && c.gptq_v2 && !c.symmetric);
  c = parse(R"({"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights":
                {"num_bits": 8, "group_size": null, "symmetric": true}}}})");
  EXPECT_EQ(c.bits, 8);
  EXPECT_EQ(c.group, 0);
  EXPECT_EQ(parse(R"({"quant_method": "awq", "w_bit": 4, "q_group_size": -1})").group, 0);
  EXPECT_TRUE(parse(R"({"quant_method": "auto-round", "packing_format": "auto_round:gptqv2"})").gptq_v2);
  EXPECT_EQ(parse("null").method, "");
  EXPECT_EQ(parse_quant_config("{}", "config.json").method, "");
  EXPECT_EQ(parse_quant_config(R"({"compression_config": {"quant_method": "x"}})", "config.json").method, "x");
  expect_error([&] { parse(R"({"bits": "four"})"); }, "config.json: quantization_config.bits", "\"four\"");
  expect_error([&] { parse("[1]"); }, "quantization_config", "an object");
}

}  // namespace
}  // namespace glint
