// Every form of checkpoint that Glint loads gives the same weights; every form that it does not is refused by name.

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "models/glm_4_7_flash/memory_plan.hpp"
#include "models/host_ops.hpp"
#include "models/small_checkpoint.hpp"

namespace glint {
namespace {

DType dtype_of(WeightFormat f) {
  return f == WeightFormat::kF32 ? DType::kF32 : f == WeightFormat::kF16 ? DType::kF16 : DType::kBF16;
}

void expect_same(const Weight& a, const Weight& b) {
  ASSERT_EQ(a.rows, b.rows);
  ASSERT_EQ(a.cols, b.cols);
  ASSERT_TRUE(a && b);
  for (std::size_t i = 0; i < static_cast<std::size_t>(a.rows * a.cols); ++i)
    ASSERT_EQ(load_as_float(a.data, dtype_of(a.format), i), load_as_float(b.data, dtype_of(b.format), i)) << i;
}
void expect_same(const ConstView& a, const ConstView& b) {
  ASSERT_EQ(a.shape, b.shape);
  ASSERT_TRUE(a.dtype == DType::kF32 && b.dtype == DType::kF32);
  ASSERT_EQ(std::memcmp(a.data, b.data, a.bytes()), 0);
}
void expect_same(const ExpertWeights& a, const ExpertWeights& b) {
  expect_same(a.gate, b.gate);
  expect_same(a.up, b.up);
  expect_same(a.down, b.down);
}
void expect_same(const LayerWeights& a, const LayerWeights& b) {
  expect_same(a.input_norm, b.input_norm);
  expect_same(a.q_a, b.q_a);
  expect_same(a.q_a_norm, b.q_a_norm);
  expect_same(a.q_b, b.q_b);
  expect_same(a.kv_a, b.kv_a);
  expect_same(a.kv_a_norm, b.kv_a_norm);
  expect_same(a.kv_b, b.kv_b);
  expect_same(a.o, b.o);
  expect_same(a.post_norm, b.post_norm);
  ASSERT_EQ(static_cast<bool>(a.dense.gate), static_cast<bool>(b.dense.gate));
  if (a.dense.gate) return expect_same(a.dense, b.dense);
  expect_same(a.router, b.router);
  expect_same(a.router_bias, b.router_bias);
  expect_same(a.shared, b.shared);
  ASSERT_EQ(a.experts.size(), b.experts.size());
  for (std::size_t e = 0; e < a.experts.size(); ++e) expect_same(a.experts[e], b.experts[e]);
}
void expect_same(const ModelWeights& a, const ModelWeights& b) {
  expect_same(a.embed, b.embed);
  expect_same(a.final_norm, b.final_norm);
  expect_same(a.lm_head, b.lm_head);
  ASSERT_EQ(a.layers.size(), b.layers.size());
  for (std::size_t l = 0; l < a.layers.size(); ++l) {
    SCOPED_TRACE(l);
    expect_same(a.layers[l], b.layers[l]);
  }
  ASSERT_EQ(a.mtp != nullptr, b.mtp != nullptr);
  if (!a.mtp) return;
  expect_same(a.mtp->e_norm, b.mtp->e_norm);
  expect_same(a.mtp->h_norm, b.mtp->h_norm);
  expect_same(a.mtp->eh_proj, b.mtp->eh_proj);
  expect_same(a.mtp->head_norm, b.mtp->head_norm);
  expect_same(a.mtp->embed, b.mtp->embed);
  expect_same(a.mtp->head, b.mtp->head);
  expect_same(a.mtp->block, b.mtp->block);
}

ModelWeights load(const TempDir& dir) {
  HostOps ops;
  return load_weights(dir.path(), ops);
}

ModelWeights load(const SmallCheckpoint& c, int n_shards = 1) {
  const TempDir dir;
  c.write(dir, n_shards);
  return load(dir);  // the mapping outlives the directory's names
}

template <typename... Parts>
void expect_refused(const SmallCheckpoint& c, const Parts&... parts) {
  const TempDir dir;
  c.write(dir);
  expect_error([&] { load(dir); }, dir.path(), parts...);
}

TEST(LoadWeights, TheBundledModel) {
  HostOps ops;
  std::uint64_t last = 0, calls = 0;
  const ModelWeights m = load_weights("models/tiny", ops, [&](std::uint64_t done, std::uint64_t total) {
    EXPECT_GE(done, last);
    EXPECT_EQ(total, 78665472U);
    last = done;
    ++calls;
  });
  EXPECT_EQ(last, 78665472U);
  EXPECT_GT(calls, 1000U);
  ASSERT_EQ(m.layers.size(), 7U);
  EXPECT_TRUE(m.layers[0].dense.gate);
  EXPECT_TRUE(m.layers[0].experts.empty());
  EXPECT_EQ(m.layers[1].experts.size(), 64U);
  EXPECT_EQ(m.layers[6].kv_b.rows, 4 * 448);
  ASSERT_NE(m.mtp, nullptr);
  EXPECT_EQ(m.mtp->embed.data, m.embed.data);
  EXPECT_EQ(m.mtp->head.data, m.lm_head.data);
  EXPECT_LT(ops.uploaded_bytes, 600'000U) << "only norms and routers are copied";
  EXPECT_EQ(m.total_bytes(), 78915328);
  EXPECT_LT(m.active_bytes(), 30e6);
}

TEST(LoadWeights, ValuesComeFromTheirTensors) {
  const SmallCheckpoint c;
  const ModelWeights m = load(c);
  const auto expect_value = [&](const Weight& w, const std::string& name) {
    const View v = c.tensors.at(name).view;
    ASSERT_EQ(w.rows * w.cols, v.shape.elements()) << name;
    EXPECT_EQ(std::memcmp(w.data, v.data, v.bytes()), 0) << name;
  };
  expect_value(m.embed, "model.embed_tokens.weight");
  expect_value(m.lm_head, "lm_head.weight");
  expect_value(m.layers[0].dense.down, "model.layers.0.mlp.down_proj.weight");
  expect_value(m.layers[1].kv_a, "model.layers.1.self_attn.kv_a_proj_with_mqa.weight");
  expect_value(m.layers[2].experts[5].up, "model.layers.2.mlp.experts.5.up_proj.weight");
  expect_value(m.layers[2].shared.gate, "model.layers.2.mlp.shared_experts.gate_proj.weight");
  expect_value(m.mtp->block.experts[0].down, "model.layers.3.mlp.experts.0.down_proj.weight");
  expect_value(m.mtp->eh_proj, "model.layers.3.eh_proj.weight");
  expect_value(m.mtp->embed, "model.layers.3.embed_tokens.weight");
  expect_value(m.mtp->head, "model.layers.3.shared_head.head.weight");
  const View bias = c.tensors.at("model.layers.1.mlp.gate.e_score_correction_bias").view;
  EXPECT_EQ(std::memcmp(m.layers[1].router_bias.data, bias.data, bias.bytes()), 0);
  const View norm = c.tensors.at("model.layers.1.self_attn.q_a_layernorm.weight").view;
  for (std::size_t i = 0; i < 32; ++i)
    EXPECT_EQ(m.layers[1].q_a_norm.as<float>()[i], load_as_float(norm.data, norm.dtype, i));
}

TEST(LoadWeights, ShardsAreTheSameAsOneFile) { expect_same(load(SmallCheckpoint(), 4), load(SmallCheckpoint())); }

TEST(LoadWeights, FusedExpertsAreTheSameAsSeparateOnes) {
  SmallCheckpoint fused;
  for (const std::int64_t l : {1, 2, 3}) fused.fuse_experts(l);
  expect_same(load(fused), load(SmallCheckpoint()));
}

TEST(LoadWeights, EveryFloatTypeIsTheSame) {
  const ModelWeights bf16 = load(SmallCheckpoint());
  for (const DType t : {DType::kF32, DType::kF16, DType::kF8E4M3}) {
    SCOPED_TRACE(dtype_name(t));
    const ModelWeights m = load(SmallCheckpoint(small_config(), t));
    EXPECT_EQ(dtype_of(m.embed.format), t == DType::kF8E4M3 ? DType::kBF16 : t);
    expect_same(m, bf16);
    SmallCheckpoint fused(small_config(), t);
    fused.fuse_experts(2);
    expect_same(load(fused), bf16);
  }
}

TEST(LoadWeights, F8IsExactForEveryCode) {
  SmallCheckpoint c;
  HostTensor& o = c.add("model.layers.0.self_attn.o_proj.weight", DType::kF8E4M3, {64, 512});
  for (std::size_t i = 0; i < 64 * 512; ++i) o.view.as<std::uint8_t>()[i] = static_cast<std::uint8_t>(i);
  const ModelWeights m = load(c);
  for (std::size_t i = 0; i < 256; ++i) {
    const float expected = f8e4m3_to_float(static_cast<std::uint8_t>(i));
    const float found = load_as_float(m.layers[0].o.data, DType::kBF16, i);
    EXPECT_TRUE(found == expected || (std::isnan(found) && std::isnan(expected))) << i;
  }
}

TEST(LoadWeights, TheBiasMayBeBf16) {
  SmallCheckpoint c;
  for (const std::int64_t l : {1, 2, 3})
    c.add("model.layers." + std::to_string(l) + ".mlp.gate.e_score_correction_bias", DType::kBF16, {6});
  expect_same(load(c), load(SmallCheckpoint()));
}

TEST(LoadWeights, TheMtpLayerIsOptional) {
  SmallCheckpoint shared;
  shared.tensors.erase("model.layers.3.embed_tokens.weight");
  shared.tensors.erase("model.layers.3.shared_head.head.weight");
  const ModelWeights m = load(shared);
  EXPECT_EQ(m.mtp->embed.data, m.embed.data);
  EXPECT_EQ(m.mtp->head.data, m.lm_head.data);
  EXPECT_EQ(m.config.n_mtp_layers, 1);

  SmallCheckpoint without;
  std::erase_if(without.tensors, [](const auto& t) { return t.first.starts_with("model.layers.3."); });
  const ModelWeights plain = load(without);
  EXPECT_EQ(plain.mtp, nullptr);
  EXPECT_EQ(plain.config.n_mtp_layers, 0) << "the config says 1, the files decide";

  SmallCheckpoint unsaid;  // tensors without the field
  unsaid.config.n_mtp_layers = 0;
  EXPECT_NE(load(unsaid).mtp, nullptr);
}

TEST(LoadWeights, TiedEmbeddingsAndNoSharedExpert) {
  ModelConfig config = small_config();
  config.tie_embeddings = true;
  config.n_shared_experts = 0;
  const ModelWeights m = load(SmallCheckpoint(config));
  EXPECT_EQ(m.lm_head.data, m.embed.data);
  EXPECT_FALSE(m.layers[1].shared.gate);
}

TEST(LoadWeights, RotaryFrequenciesAreIgnored) {
  SmallCheckpoint c;
  c.add("model.layers.0.self_attn.rotary_emb.inv_freq", DType::kF32, {32});
  c.add("model.rotary_emb.inv_freq", DType::kF32, {32});
  expect_same(load(c), load(SmallCheckpoint()));
}

TEST(LoadWeights, ADeviceGetsEverythingUploaded) {
  SmallCheckpoint c;
  c.fuse_experts(1);
  const TempDir dir;
  c.write(dir);
  HostOps device("cuda (test)");
  const ModelWeights m = load_weights(dir.path(), device);
  expect_same(m, load(c));
  EXPECT_EQ(static_cast<double>(device.uploaded_bytes), m.total_bytes());
}

TEST(LoadWeights, RefusesMissingTensors) {
  for (const char* name :
       {"model.embed_tokens.weight", "lm_head.weight", "model.norm.weight", "model.layers.2.self_attn.kv_b_proj.weight",
        "model.layers.1.mlp.gate.e_score_correction_bias", "model.layers.1.mlp.experts.5.up_proj.weight",
        "model.layers.3.eh_proj.weight", "model.layers.3.mlp.experts.0.gate_proj.weight"}) {
    SmallCheckpoint c;
    ASSERT_EQ(c.tensors.erase(name), 1U) << name;
    const TempDir dir;
    c.write(dir);
    expect_error([&] { load(dir); }, dir.path(), std::string("tensor ") + name, "no such tensor");
  }
  SmallCheckpoint half;  // one half of a fused pair
  half.fuse_experts(1);
  half.tensors.erase("model.layers.1.mlp.experts.down_proj");
  expect_refused(half, "model.layers.1.mlp.experts.down_proj", "no such tensor", "[6, 64, 32]");
}

TEST(LoadWeights, RefusesWrongShapesAndTypes) {
  const auto refuse = [](const std::string& name, DType dtype, const Shape& shape, const std::string& found,
                         const std::string& expected) {
    SmallCheckpoint c;
    ASSERT_TRUE(c.tensors.contains(name));
    c.add(name, dtype, shape);
    expect_refused(c, "model.safetensors: tensor " + name, found, expected);
  };
  refuse("model.layers.1.self_attn.q_b_proj.weight", DType::kBF16, {32, 512}, "[32, 512]", "[512, 32]");
  refuse("model.layers.1.self_attn.kv_a_proj_with_mqa.weight", DType::kBF16, {512, 64}, "[512, 64]", "[576, 64]");
  refuse("model.norm.weight", DType::kBF16, {1, 64}, "[1, 64]", "[64]");
  refuse("model.layers.1.mlp.gate.weight", DType::kBF16, {64, 64}, "[64, 64]", "[6, 64]");
  refuse("lm_head.weight", DType::kBF16, {127, 64}, "[127, 64]", "[128, 64] by config.json");

  SmallCheckpoint ints;
  ints.tensors["lm_head.weight"] = HostTensor(DType::kI8, {128, 64});
  expect_refused(ints, "lm_head.weight", "I8", "BF16, F16, F32 or F8_E4M3");
}

TEST(LoadWeights, RefusesUnknownNames) {
  for (const char* name : {"model.layers.1.self_attn.q_proj.weight", "model.layers.1.mlp.experts.6.up_proj.weight",
                           "model.layers.4.input_layernorm.weight", "model.layers.01.input_layernorm.weight",
                           "model.layers.0.mlp.gate.weight", "model.layers.1.mlp.up_proj.weight", "lm_head.bias",
                           "model.layers.1.enorm.weight"}) {
    SmallCheckpoint c;
    c.add(name, DType::kBF16, {2});
    expect_refused(c, std::string("tensor ") + name, "does not have");
  }
  SmallCheckpoint quantised;
  quantised.add("model.layers.1.mlp.experts.0.up_proj.weight_scale", DType::kF32, {32});
  quantised.add("model.layers.1.mlp.experts.1.up_proj.weight_scale", DType::kF32, {32});
  expect_refused(quantised, "up_proj.weight_scale", "1 more", "quantised");

  SmallCheckpoint both;
  both.add("model.layers.1.mlp.experts.gate_up_proj", DType::kBF16, {6, 64, 64});
  both.add("model.layers.1.mlp.experts.down_proj", DType::kBF16, {6, 64, 32});
  expect_refused(both, "fused", "one of the two forms");
}

TEST(LoadWeights, RefusesNanInSmallTensors) {
  for (const char* name :
       {"model.norm.weight", "model.layers.0.input_layernorm.weight", "model.layers.1.mlp.gate.weight",
        "model.layers.2.mlp.gate.e_score_correction_bias", "model.layers.3.shared_head.norm.weight"}) {
    SmallCheckpoint c;
    const View v = c.tensors.at(name).view;
    store_from_float(v.data, v.dtype, 3, std::nanf(""));
    store_from_float(v.data, v.dtype, 4, -INFINITY);
    expect_refused(c, name, "2 values that are NaN or infinite");
  }
}

TEST(LoadWeights, RefusesAFormatThatTheBackendDoesNotRead) {
  const TempDir dir;
  SmallCheckpoint(small_config(), DType::kF32).write(dir);
  HostOps ops;
  ops.only_bf16 = true;
  expect_error([&] { load_weights(dir.path(), ops); }, "F32", "a format that the backend host reads");
}

}  // namespace
}  // namespace glint
