// Recipes, quantised checkpoints (written, resumed, refused) and quantised models in memory.

#include "models/glm_4_7_flash/quantize.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>

#include "backends/cpu/cpu.hpp"
#include "backends/reference/reference.hpp"
#include "base/json.hpp"
#include "base/resident.hpp"
#include "models/glm_4_7_flash/calibrate.hpp"
#include "models/glm_4_7_flash/memory_plan.hpp"
#include "models/glm_4_7_flash/quantize_plan.hpp"
#include "models/small_checkpoint.hpp"
#include "models/tiny_model.hpp"
#include "ops/decorated.hpp"

namespace glint {
namespace {

namespace fs = std::filesystem;

// Every name in the table once, of a layer that has it.
const TensorSpec& spec_of(std::string_view field) {
  for (const TensorSpec& s : tensor_table()) {
    if (s.field == field && s.scope != Scope::kFused) return s;
  }
  throw Error("no field " + std::string(field));
}

std::string recipe_spec(const QuantRecipe& r, std::string_view field, std::int64_t layer) {
  const auto spec = r.spec(spec_of(field), layer, real_config());
  return spec ? spec->name() : "kept";
}

TEST(QuantRecipe, LaterRulesWin) {
  QuantRecipe r = QuantRecipe::parse("bf16");
  EXPECT_EQ(recipe_spec(r, "layers.experts.up", 5), "kept");
  r.set("experts=int4-g64");
  r.set("experts.down=int4-g32");
  r.set("experts@1-3=int8");
  r.set("mtp=int8");
  r.set("mtp.o=bf16");
  EXPECT_EQ(recipe_spec(r, "layers.experts.up", 5), "int4-g64");
  EXPECT_EQ(recipe_spec(r, "layers.experts.down", 5), "int4-g32");
  EXPECT_EQ(recipe_spec(r, "layers.experts.down", 3), "int8-channel");
  EXPECT_EQ(recipe_spec(r, "layers.experts.down", 47), "int8-channel");
  EXPECT_EQ(recipe_spec(r, "layers.o", 47), "kept");
  EXPECT_EQ(recipe_spec(r, "layers.q_a", 47), "int8-channel");
  EXPECT_EQ(recipe_spec(r, "layers.q_a", 5), "kept");
}

TEST(QuantRecipe, WhatPresetsKeep) {
  for (const char* name : {"q4", "q8", "nf4", "fp8"}) {
    const QuantRecipe r = QuantRecipe::preset(name);
    for (const TensorSpec& t : tensor_table()) {
      if (t.quantisable) continue;
      EXPECT_FALSE(r.spec(t, 5, real_config())) << name << " " << t.field;
    }
    EXPECT_NE(recipe_spec(r, "layers.experts.up", 5), "kept") << name;
  }
  // Eight bits or more, in every preset.
  for (const char* field : {"embed", "lm_head", "layers.kv_b", "mtp.eh_proj"}) {
    const auto spec = QuantRecipe::preset("q4").spec(spec_of(field), 47, real_config());
    EXPECT_TRUE(!spec || weight_code_bits(spec->format) == 8) << field;
  }
}

TEST(QuantRecipe, SizeOfTheRealModel) {
  const ModelConfig real = real_config();
  const auto cpu = make_cpu_ops({.threads = 1});
  const auto size_of = [&](const char* recipe) { return recipe_size(QuantRecipe::parse(recipe), real, *cpu); };
  const RecipeSize kept = size_of("bf16");
  const ModelSize official = model_size(real);
  const std::int64_t copies = 2 * real.vocab * real.hidden;  // the MTP layer's own embedding and head
  EXPECT_EQ(kept.params, official.total.params - copies);
  EXPECT_DOUBLE_EQ(kept.bytes, static_cast<double>(official.total.bytes - 2 * copies));
  const double active = 2.0 * static_cast<double>(official.active_params + real.vocab * real.hidden);
  EXPECT_NEAR(kept.active_bytes / active, 1.0, 1e-3);  // norms and the bias apart

  EXPECT_NEAR(size_of("q8").bits(), 8.0, 0.05);
  const RecipeSize g64 = size_of("bf16:experts=int4-g64");
  const double experts = static_cast<double>(official.roles[static_cast<std::size_t>(Role::kExperts)].params);
  EXPECT_NEAR(kept.bytes - g64.bytes, experts * (16 - 4.25) / 8, 1e-6 * experts);

  // kv_b: read as it is where attention can, else as BF16.
  const double kv_b = 47.0 * 20 * 448 * 512;
  EXPECT_NEAR(kept.active_bytes - size_of("bf16:kv_b=int8").active_bytes, kv_b, 0.01 * kv_b);
  EXPECT_EQ(kept.active_bytes, size_of("bf16:kv_b=int4-g64").active_bytes);
}

TEST(QuantRecipe, Refusals) {
  QuantRecipe r;
  expect_error([&] { r.set("experts"); }, "KEY=SPEC");
  expect_error([&] { r.set("router=int4"); }, "router", "experts.down");
  expect_error([&] { r.set("experts=int3"); }, "int3");
  expect_error([&] { r.set("experts@3-1=int4"); }, "layers");
  expect_error([&] { r.set("experts@x=int4"); }, "layers");
  expect_error([] { QuantRecipe::parse("int3"); }, "int3", "int4");
  expect_error([] { QuantRecipe::preset("q5"); }, "q5");
}

ModelConfig job_config() {
  ModelConfig c = small_config();
  c.expert_inner = 64;
  c.q_lora = 64;
  c.dense_inner = 128;
  return c;
}

QuantizeJob job_for(const TempDir& in, const TempDir& out, const char* preset = "q4") {
  return {.input_dir = in.path(),
          .output_dir = out / "made",
          .recipe = QuantRecipe::preset(preset),
          .shard_bytes = 60'000,
          .threads = 2};
}

// Largest difference of any matrix between two checkpoints, relative to the largest value of the matrix.
double worst_difference(const std::string& a, const std::string& b) {
  const auto ops = make_reference_ops();
  ModelWeights x = load_weights(a, *ops), y = load_weights(b, *ops);
  const std::vector<ModelTensor> left = list_tensors(x), right = list_tensors(y);
  EXPECT_EQ(left.size(), right.size());
  double worst = 0;
  for (std::size_t i = 0; i < std::min(left.size(), right.size()); ++i) {
    EXPECT_EQ(left[i].name(), right[i].name());
    if (left[i].weight == nullptr) {
      const ConstView &p = *left[i].view, &q = *right[i].view;
      EXPECT_EQ(std::memcmp(p.data, q.data, p.bytes()), 0) << left[i].name();
      continue;
    }
    const Weight &p = *left[i].weight, &q = *right[i].weight;
    std::vector<float> u(static_cast<std::size_t>(p.cols)), v(u.size());
    double most = 0, top = 0;
    for (std::int64_t r = 0; r < p.rows; ++r) {
      decode_row(p, r, u.data());
      decode_row(q, r, v.data());
      for (std::size_t k = 0; k < u.size(); ++k) {
        most = std::max(most, static_cast<double>(std::fabs(u[k] - v[k])));
        top = std::max(top, static_cast<double>(std::fabs(u[k])));
      }
    }
    worst = std::max(worst, most / top);
  }
  return worst;
}

TEST(QuantizeCheckpoint, LoadsAndIsClose) {
  const TempDir in, out;
  SmallCheckpoint(job_config()).write(in, 3);
  in.write("tokenizer.json", "{}");
  const auto ops = make_reference_ops();
  // Half the widest step of each format, and what a searched scale may clip off the largest value of a group.
  for (const auto& [preset, limit] : {std::pair{"q4", 0.12}, {"q8", 0.006}, {"nf4", 0.25}, {"fp8", 0.05}}) {
    const TempDir there;
    const QuantizeJob job = job_for(in, there, preset);
    const QuantizeReport report = quantize_checkpoint(job, *ops);
    EXPECT_LT(report.output_bytes, report.input_bytes);
    EXPECT_GT(report.shards, 1);
    EXPECT_TRUE(fs::exists(job.output_dir + "/tokenizer.json"));
    EXPECT_FALSE(fs::exists(job.output_dir + ".partial"));
    EXPECT_FALSE(fs::exists(job.output_dir + "/quantize.state.json"));
    const double worst = worst_difference(in.path(), job.output_dir);
    EXPECT_LT(worst, limit) << preset;
    EXPECT_GT(worst, 0) << preset;
    const json::value config = json::parse_file(job.output_dir + "/config.json");
    EXPECT_TRUE(config.as_object().contains("quantization_config")) << preset;
  }
}

TEST(QuantizeCheckpoint, FusedExpertsBecomeSingle) {
  const TempDir in, out;
  SmallCheckpoint c(job_config());
  c.fuse_experts(1);
  c.write(in);
  const auto ops = make_reference_ops();
  const QuantizeJob job = job_for(in, out, "q8");
  quantize_checkpoint(job, *ops);
  EXPECT_LT(worst_difference(in.path(), job.output_dir), 0.006);
}

std::string bytes_of(const std::string& dir) {
  std::string all;
  std::vector<std::string> names;
  for (const auto& e : fs::directory_iterator(dir)) names.push_back(e.path().string());
  std::sort(names.begin(), names.end());
  for (const std::string& n : names) all += fs::path(n).filename().string() + read_file(n);
  return all;
}

TEST(QuantizeCheckpoint, ResumesToTheSameBytes) {
  const TempDir in, out;
  SmallCheckpoint(job_config()).write(in);
  const auto ops = make_reference_ops();
  QuantizeJob job = job_for(in, out);
  job.method = QuantMethod::kGptq;
  job.window_tokens = 64;
  for (int i = 0; i < 256; ++i) job.calibration.push_back((i * 37) % 100);
  const QuantizeReport whole = quantize_checkpoint(job, *ops);
  const std::string expected = bytes_of(job.output_dir);
  fs::remove_all(job.output_dir);

  // Stopped in the middle: an exception from the progress callback is as good as a kill.
  struct Stop {};
  int calls = 0;
  const auto interrupted = [&] {
    quantize_checkpoint(job, *ops, [&](std::uint64_t done, std::uint64_t total) {
      if (++calls > 1 && done > total / 2) throw Stop{};
    });
  };
  EXPECT_THROW(interrupted(), Stop);
  EXPECT_FALSE(fs::exists(job.output_dir));
  const std::string partial = job.output_dir + ".partial";
  ASSERT_TRUE(fs::exists(partial));
  expect_error([&] { quantize_checkpoint(job, *ops); }, "unfinished run", "--resume");

  job.resume = true;
  QuantizeJob other = job;
  other.recipe.set("o=int8");
  expect_error([&] { quantize_checkpoint(other, *ops); }, "another job");

  // A finished shard whose bytes changed is made again.
  std::string damaged;
  for (const auto& e : fs::directory_iterator(partial)) {
    if (e.path().extension() == ".safetensors" && (damaged.empty() || e.path().string() < damaged))
      damaged = e.path().string();
  }
  ASSERT_FALSE(damaged.empty());
  {
    std::fstream f(damaged, std::ios::in | std::ios::out | std::ios::binary);
    f.seekp(-1, std::ios::end);
    f.put('\x55');
  }
  const QuantizeReport resumed = quantize_checkpoint(job, *ops);
  EXPECT_GE(resumed.shards_kept, 1);
  EXPECT_LT(resumed.shards_kept, whole.shards);
  EXPECT_EQ(bytes_of(job.output_dir), expected);
  expect_error([&] { quantize_checkpoint(job, *ops); }, "something there already");
}

// Neither what was read of the input nor what was written counts as the process's memory: a checkpoint of 62 GB is
// quantised in less than 4 GB. The bundled model has 79 MB, its largest layer 11, its embedding and head 8.
TEST(QuantizeCheckpoint, LetsGoOfWhatItHasRead) {
  const TempDir out;
  const auto ops = make_cpu_ops({.threads = 2});
  const std::string input = fs::canonical(testing::kTinyDir).string();
  for (const QuantMethod method : {QuantMethod::kRtn, QuantMethod::kGptq}) {
    QuantizeJob job{.input_dir = input,
                    .output_dir = out / "made" + std::to_string(static_cast<int>(method)),
                    .recipe = QuantRecipe::preset("q8"),  // no statistics: gptq runs its layers all the same
                    .method = method,
                    .window_tokens = 32,
                    .shard_bytes = 20'000'000,
                    .threads = 2};
    if (method == QuantMethod::kGptq) job.calibration.assign(64, 1);
    const std::size_t others = resident_bytes(input);  // maps of tests before this one
    std::size_t most = 0, calls = 0;
    quantize_checkpoint(job, *ops, [&](std::uint64_t, std::uint64_t) {
      if (calls++ % 16 != 0) return;
      const std::string partial = fs::canonical(job.output_dir + ".partial").string();
      most = std::max(most, resident_bytes(input) + resident_bytes(partial));
    });
    EXPECT_GT(calls, 1000U);
    EXPECT_GT(most, others);
    EXPECT_LT(most - others, 20U << 20) << static_cast<int>(method);
    EXPECT_EQ(resident_bytes(out.path()), 0U);
  }
}

// The backend that `glint quantize` uses reads codes in place; FP8 is calibrated as well.
TEST(QuantizeCheckpoint, CalibratesOnTheFastBackend) {
  const TempDir in;
  SmallCheckpoint(job_config()).write(in);
  const auto ops = make_cpu_ops({.threads = 2});
  for (const char* preset : {"q4", "fp8"}) {
    const TempDir out;
    QuantizeJob job = job_for(in, out, preset);
    job.recipe.set("kv_b=int8");
    job.method = QuantMethod::kGptq;
    job.window_tokens = 64;
    for (int i = 0; i < 128; ++i) job.calibration.push_back((i * 37) % 100);
    const QuantizeReport report = quantize_checkpoint(job, *ops);
    EXPECT_LT(report.output_bytes, report.input_bytes) << preset;
    EXPECT_LT(worst_difference(in.path(), job.output_dir), 0.3) << preset;
  }
}

TEST(QuantizeCheckpoint, Refusals) {
  const TempDir in, out;
  SmallCheckpoint c(job_config());
  c.write(in);
  const auto ops = make_reference_ops();
  QuantizeJob job = job_for(in, out);
  job.method = QuantMethod::kGptq;
  expect_error([&] { quantize_checkpoint(job, *ops); }, "calibration");
  job.calibration = {1, 2, 100000};
  expect_error([&] { quantize_checkpoint(job, *ops); }, "token 100000");
  fs::remove_all(job.output_dir + ".partial");
  job = job_for(in, out);
  job.recipe.set("experts=nf4-g32");
  expect_error([&] { quantize_checkpoint(job, *ops); }, "blocks of 64");
  EXPECT_FALSE(fs::exists(job.output_dir + ".partial"));
  job = job_for(in, out);
  job.output_dir = "/dev/null/made";
  expect_error([&] { quantize_checkpoint(job, *ops); }, "/dev/null/made");

  HostTensor& spoiled = c.tensors.at("model.layers.1.mlp.experts.2.up_proj.weight");
  store_from_float(spoiled.view.data, spoiled.view.dtype, 7, NAN);
  const TempDir bad;
  c.write(bad);
  expect_error([&] { quantize_checkpoint(job_for(bad, out), *ops); }, "experts.2.up_proj", "NaN");
}

TEST(Calibrator, SeesWhatTheModelComputes) {
  const auto ops = make_reference_ops();
  const ModelWeights model = load_weights(testing::kTinyDir, *ops);
  ThreadPool pool(2);
  std::vector<std::int32_t> ids;
  for (const std::int32_t id : testing::golden_ids("story")) ids.push_back(id);
  ids.resize(48);
  Calibrator calibrator(model, *ops, {.ids = ids, .window_tokens = 48, .background = 0}, pool);
  const auto all = [](std::string_view) { return true; };
  calibrator.collect(0, all);
  calibrator.advance(0);
  const auto stats = calibrator.collect(1, all);

  // Every token chooses top_k experts.
  std::int64_t rows = 0;
  for (std::int64_t e = 0; e < model.config.n_experts; ++e)
    rows += stats->at("experts.gate_up", e, model.config.hidden).rows_seen();
  EXPECT_EQ(rows, 48 * model.config.top_k);
  // The normed input of the second layer, by the model itself.
  testing::TinyModel whole(make_reference_ops());
  EXPECT_EQ(stats->at("in", -1, model.config.hidden).rows_seen(), 48);
  EXPECT_NE(stats->factor(spec_of("layers.experts.down"), 3, 0.01), nullptr);
  EXPECT_EQ(stats->factor(spec_of("layers.kv_b"), -1, 0.01)->n, kLatent);
  EXPECT_EQ(stats->factor(spec_of("lm_head"), -1, 0.01), nullptr);
}

TEST(QuantizeInMemory, IsTheCheckpointsRounding) {
  const TempDir in;
  SmallCheckpoint(job_config()).write(in);
  const auto ops = make_reference_ops();
  ModelWeights model = load_weights(in.path(), *ops);
  const double before = model.total_bytes();
  quantize_in_memory(model, QuantRecipe::parse("int8:experts=int4-g32"), *ops);
  EXPECT_EQ(model.layers[1].experts[0].up.format, WeightFormat::kI4);
  EXPECT_EQ(model.layers[1].experts[0].up.group, 32);
  EXPECT_EQ(model.layers[1].o.format, WeightFormat::kI8);
  EXPECT_EQ(model.layers[1].kv_b.format, WeightFormat::kI8);
  EXPECT_EQ(model.embed.format, WeightFormat::kI8);
  const Weight& up = model.layers[1].experts[0].up;
  EXPECT_EQ(up.bytes(), up.rows * (up.cols / 2 + up.cols / 32 * 2));  // 4.5 bits
  EXPECT_LT(model.total_bytes(), before);
}

// A backend that reads kv_b as plain values only, whatever the inner one does.
class WidensKvB final : public DecoratedOps<WidensKvB> {
 public:
  using DecoratedOps::DecoratedOps;
  bool supports_absorbed(const QuantSpec& kv_b) const override { return Ops::supports_absorbed(kv_b); }
  template <typename Params, typename Run>
  void around(std::string_view, const Params&, Run run) {
    run();
  }
};

TEST(QuantizedKvB, StaysInCodesWhereAttentionReadsThem) {
  const TempDir out;
  const QuantizeJob job{.input_dir = testing::kTinyDir,
                        .output_dir = out / "made",
                        .recipe = QuantRecipe::parse("bf16:kv_b=int8"),
                        .method = QuantMethod::kRtn};
  quantize_checkpoint(job, *make_reference_ops());
  const auto logits = [&](Ops& ops, bool widened) {
    ModelWeights weights = load_weights(job.output_dir, ops);
    EXPECT_EQ(weights.report.kv_b_dequantised, widened ? weights.config.n_layers + weights.config.n_mtp_layers : 0);
    for (const LayerWeights& l : weights.layers)
      EXPECT_EQ(l.kv_b.format, widened ? WeightFormat::kBF16 : WeightFormat::kI8);
    Runtime runtime(weights, ops,
                    {.model = {.max_rows = 512, .max_logits = 64, .max_context = 512},
                     .codec = KvCodec::kF32,
                     .cache_tokens = 512,
                     .max_seqs = 1});
    std::vector<float> all;
    probe_logits(runtime, testing::golden_ids("story"), {},
                 [&](std::int64_t, std::span<float> row) { all.insert(all.end(), row.begin(), row.end()); });
    return all;
  };
  WidensKvB widening(make_cpu_ops({.threads = 2}));
  const std::vector<float> expected = logits(widening, true), found = logits(widening.inner(), false);
  double error = 0, square = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    error += std::pow(static_cast<double>(found[i]) - expected[i], 2);
    square += static_cast<double>(expected[i]) * expected[i];
  }
  EXPECT_GT(error, 0);
  EXPECT_LT(error, 1e-5 * square);  // kv_b's values rounded to bf16, where it is widened, in every layer
}

TEST(QuantizedKvB, OfRandomWeightsAsOfFiles) {
  const SyntheticOptions options{.config = job_config(), .weights = "int4"};
  WidensKvB widening(make_reference_ops());
  EXPECT_EQ(synthetic_weights(options, widening).layers[1].kv_b.format, WeightFormat::kBF16);
  const ModelWeights model = synthetic_weights(options, widening.inner());
  EXPECT_EQ(model.layers[1].kv_b.format, WeightFormat::kI8);
  EXPECT_EQ(model.mtp->block.kv_b.format, WeightFormat::kI8);
}

TEST(SyntheticBlocks, HaveTheScaleOfPlainOnes) {
  const auto ops = make_reference_ops();
  SyntheticOptions options{.config = job_config(), .weights = "int4"};
  ModelWeights model = synthetic_weights(options, *ops);
  const auto deviation = [](const Weight& w) {
    std::vector<float> row(static_cast<std::size_t>(w.cols));
    double sum = 0, square = 0;
    for (std::int64_t r = 0; r < w.rows; ++r) {
      decode_row(w, r, row.data());
      for (const float v : row) {
        EXPECT_TRUE(std::isfinite(v));
        sum += v;
        square += static_cast<double>(v) * v;
      }
    }
    const double n = static_cast<double>(w.rows * w.cols);
    EXPECT_LT(std::fabs(sum / n), 0.1 * std::sqrt(square / n));
    return std::sqrt(square / n);
  };
  const Weight& up = model.layers[1].experts[3].up;
  EXPECT_EQ(up.format, WeightFormat::kI4);
  EXPECT_NEAR(deviation(up) * std::sqrt(static_cast<double>(up.cols)), 1.0, 0.15);
  EXPECT_EQ(model.lm_head.format, WeightFormat::kI8);
  EXPECT_NEAR(deviation(model.lm_head) * std::sqrt(static_cast<double>(model.lm_head.cols)), 1.0, 0.15);
  const ModelWeights again = synthetic_weights(options, *ops);
  EXPECT_EQ(
      std::memcmp(up.data, again.layers[1].experts[3].up.data, static_cast<std::size_t>(up.rows * up.row_bytes())), 0);
}

}  // namespace
}  // namespace glint
