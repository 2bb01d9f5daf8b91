// The decode step in one kernel against the same model op by op: small random models, every weight format, several
// batch sizes and depths.

#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <cstring>

#include "backends/cuda/cuda.hpp"
#include "engine/batch_builder.hpp"
#include "models/glm_4_7_flash/model.hpp"
#include "ops/decorated.hpp"

namespace glint {
namespace {

#define NEED_GPU()                                                                         \
  do {                                                                                     \
    std::string why;                                                                       \
    if (!cuda_available(&why)) {                                                           \
      std::printf("  *** NOT TESTED: no usable CUDA device here (%s) ***\n", why.c_str()); \
      GTEST_SKIP() << why;                                                                 \
    }                                                                                      \
  } while (false)

// As many experts as a token takes: then no near-tie of the router can turn rounding into another answer.
ModelConfig decode_config(std::int64_t n_experts) {
  ModelConfig c = real_config();
  c.hidden = 512;
  c.n_layers = 3;
  c.n_mtp_layers = 0;
  c.n_heads = 5;
  c.q_lora = 256;
  c.dense_inner = 2560;
  c.expert_inner = 512;
  c.n_experts = n_experts;
  c.vocab = 1040;
  return c;
}

constexpr std::int64_t kMaxBatch = 8, kMaxContext = 3000;

// Hands a step on as a whole, or lets the model run its ops.
class Switch final : public DecoratedOps<Switch> {
 public:
  using DecoratedOps::DecoratedOps;
  bool decode_step(const DecodeStepParams& p) override { return taken = whole && inner().decode_step(p); }
  template <typename Params, typename Run>
  void around(std::string_view /*op*/, const Params& /*p*/, Run run) {
    run();
  }
  bool whole = true;   // wanted
  bool taken = false;  // of the last step
};

// One model and a cache full of random rows.
class Decoder {
 public:
  Decoder(const ModelConfig& config, const std::string& weights, int window, bool kernel = true)
      : ops_(make_cuda_ops({.graphs = !kernel, .decode_kernel = kernel})),
        weights_(synthetic_weights({.config = config, .weights = weights}, ops_)),
        model_(weights_, ops_,
               {.max_rows = 64,
                .max_logits = kMaxBatch,
                .max_context = kMaxContext,
                .valid_vocab = config.vocab - 7,
                .window_tokens = window}),
        plan_(kMaxBatch * (kMaxContext / kPageTokens + 1), kPageTokens),
        store_(ops_, {.n_layers = config.n_layers, .n_pages = plan_.n_pages()}),
        builder_(ops_, {.max_rows = 64, .max_logits = kMaxBatch, .max_seqs = kMaxBatch, .max_context = kMaxContext}) {
    logits_ = {nullptr, DType::kF32, {kMaxBatch, config.vocab}};
    logits_buffer_ = ops_.allocate(logits_.bytes());
    logits_.data = logits_buffer_.data();
    fill();
  }

  // Sequences of these depths, each to take one more token.
  void open(const std::vector<std::int64_t>& depths, int first_token = 0) {
    for (const SequenceId id : sequences_) plan_.release(id);
    sequences_.clear();
    depths_ = depths;
    first_token_ = first_token;
    for (const std::int64_t depth : depths) {
      sequences_.push_back(plan_.open());
      EXPECT_TRUE(plan_.extend(sequences_.back(), depth + 1, nullptr));
    }
  }
  // The step of the first n of them: logits [n, vocab], then the final hidden rows [n, H].
  std::vector<float> step(bool whole, std::size_t n) {
    builder_.begin();
    for (std::size_t i = 0; i < n; ++i) {
      const std::int32_t token = first_token_ + static_cast<std::int32_t>(i) * 37;
      builder_.add(
          plan_, {.sequence = sequences_[i], .ids = std::span(&token, 1), .first_position = depths_[i], .n_logits = 1});
    }
    ops_.whole = whole;
    const auto rows = static_cast<std::int64_t>(n);
    model_.forward(builder_.finish(plan_), store_, logits_.first(rows));
    EXPECT_EQ(ops_.taken, whole) << "the backend did not take the step";
    std::vector<float> out(static_cast<std::size_t>(rows * (logits_.shape[1] + model_.config().hidden)));
    const auto split = static_cast<std::size_t>(rows * logits_.shape[1]);
    ops_.download(out.data(), logits_.data, split * sizeof(float));
    ops_.download(out.data() + split, model_.final_hidden().data, (out.size() - split) * sizeof(float));
    return out;
  }
  std::vector<float> step(bool whole) { return step(whole, depths_.size()); }
  std::int64_t vocab() const { return logits_.shape[1]; }

 private:
  void fill() {
    HostTensor rows(DType::kF32, {kPageTokens, kKvRow});
    std::uint64_t state = 5;
    for (std::int64_t i = 0; i < kPageTokens * kKvRow; ++i) {
      state = state * 6364136223846793005ULL + 1442695040888963407ULL;
      rows.view.as<float>()[i] = static_cast<float>(state >> 40) * 0x1p-22F - 2.0F;
    }
    const Buffer kv = ops_.allocate(rows.view.bytes()), slots = ops_.allocate(kPageTokens * 4);
    ops_.upload(kv.data(), rows.view.data, rows.view.bytes());
    for (std::int32_t page = 0; page < plan_.n_pages(); ++page) {
      std::int32_t host[kPageTokens];
      for (std::int32_t r = 0; r < kPageTokens; ++r) host[r] = page * kPageTokens + (r * 7 + page) % kPageTokens;
      ops_.upload(slots.data(), host, sizeof(host));
      for (std::int64_t l = 0; l < model_.config().n_layers; ++l) {
        ops_.inner().mla_append({.kv = {kv.data(), DType::kF32, {kPageTokens, kKvRow}},
                                 .slots = static_cast<const std::int32_t*>(slots.data()),
                                 .pages = store_.layer(l)});
      }
      ops_.synchronize();
    }
  }

  Switch ops_;
  ModelWeights weights_;
  Model model_;
  KvPlan plan_;
  KvStore store_;
  BatchBuilder builder_;
  View logits_;
  Buffer logits_buffer_;
  std::vector<SequenceId> sequences_;
  std::vector<std::int64_t> depths_;
  int first_token_ = 0;
};

// Relative squared error of one row; the -infinities of padding must be the same.
double row_error(const float* got, const float* want, std::int64_t n) {
  double error = 0, square = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    if (std::isinf(want[i])) {
      if (got[i] != want[i]) return INFINITY;
      continue;
    }
    error += (double{got[i]} - want[i]) * (double{got[i]} - want[i]);
    square += double{want[i]} * want[i];
  }
  return error / square;
}

const std::vector<std::vector<std::int64_t>> kBatches = {{0},
                                                         {31},
                                                         {32},
                                                         {700},
                                                         {2990},
                                                         {5, 63},
                                                         {64, 0, 500},
                                                         {100, 130, 0, 1},
                                                         {1, 2, 3, 4, 5},
                                                         {9, 0, 300, 65, 64, 2900, 33, 7}};

// bf16 activations, rounded at other places: three layers give about 1e-5.
constexpr double kLimit = 2e-4;

class DecodeFormats : public testing::TestWithParam<const char*> {};

TEST_P(DecodeFormats, AgreesWithTheOps) {
  NEED_GPU();
  Decoder decoder(decode_config(4), GetParam(), 0);
  double worst = 0;
  for (const auto& depths : kBatches) {
    decoder.open(depths);
    const auto got = decoder.step(true), again = decoder.step(true);
    EXPECT_EQ(0, std::memcmp(got.data(), again.data(), got.size() * sizeof(float))) << "two runs differ";
    const auto want = decoder.step(false);
    for (std::size_t i = 0; i < depths.size(); ++i) {
      const double e = row_error(got.data() + i * static_cast<std::size_t>(decoder.vocab()),
                                 want.data() + i * static_cast<std::size_t>(decoder.vocab()), decoder.vocab());
      const std::size_t h = depths.size() * static_cast<std::size_t>(decoder.vocab()) + i * 512;
      EXPECT_LT(e, kLimit) << "row " << i << " of " << depths.size() << ", depth " << depths[i];
      EXPECT_LT(row_error(got.data() + h, want.data() + h, 512), kLimit) << "final hidden, row " << i;
      worst = std::max(worst, e);
    }
  }
  std::printf("  %-24s worst %.2e\n", GetParam(), worst);
}

INSTANTIATE_TEST_SUITE_P(Cuda, DecodeFormats,
                         testing::Values("bf16", "int8", "fp8", "int4", "nf4",
                                         "int4:experts=int4-g128,shared=int4-g128",
                                         "fp8:experts=fp8-128x128,shared=fp8-128x128,o=int8-g128,q_b=int4-g128",
                                         "int8:experts=nf4,shared=fp8,shared.down=int8,experts.down=int8"));

// With more experts than are taken, rounding may flip a near-tie: few rows may differ, and no more.
TEST(CudaDecode, RoutedRowsAgreeButForNearTies) {
  NEED_GPU();
  Decoder decoder(decode_config(32), "bf16", 0);
  int rows = 0, differ = 0;
  for (int token = 0; token < 20; ++token) {
    const std::vector<std::int64_t> depths = {3, 70, 200, 0, 5, 90, 64, 31};
    decoder.open(depths, token * 11);
    const auto got = decoder.step(true), want = decoder.step(false);
    for (std::size_t i = 0; i < depths.size(); ++i) {
      const auto at = i * static_cast<std::size_t>(decoder.vocab());
      ++rows;
      if (!(row_error(got.data() + at, want.data() + at, decoder.vocab()) < kLimit)) ++differ;
    }
  }
  std::printf("  %d of %d rows took another expert\n", differ, rows);
  EXPECT_LE(differ, rows / 16);
}

TEST(CudaDecode, ARowDoesNotSeeItsBatch) {
  NEED_GPU();
  for (const char* weights : {"bf16", "int4"}) {
    Decoder decoder(decode_config(32), weights, 0);
    decoder.open({70, 2500, 0, 300, 5, 90, 64, 31});
    const auto together = decoder.step(true);
    for (const std::size_t n : {1, 2, 5}) {
      const auto fewer = decoder.step(true, n);
      EXPECT_EQ(0, std::memcmp(fewer.data(), together.data(), n * static_cast<std::size_t>(decoder.vocab()) * 4))
          << weights << ", " << n << " rows";
    }
  }
}

// The same kernels, launched by the device: the same bits, also when a graph is used again and when sizes change.
TEST(CudaDecode, GraphsAreTheOps) {
  NEED_GPU();
  Decoder decoder(decode_config(32), "bf16", 0, /*kernel=*/false);
  for (int round = 0; round < 3; ++round) {
    for (const auto& depths : kBatches) {
      decoder.open(depths, round * 5);
      const auto want = decoder.step(false);
      for (int again = 0; again < 3; ++again) {
        const auto got = decoder.step(true);
        ASSERT_EQ(0, std::memcmp(got.data(), want.data(), got.size() * sizeof(float))) << depths.size() << " rows";
      }
    }
  }
}

TEST(CudaDecode, WindowsAreTheOps) {
  NEED_GPU();
  Decoder decoder(decode_config(4), "bf16", 100);
  for (const std::int64_t depth : {5, 99, 100, 101, 1000}) {
    decoder.open({depth});
    const auto got = decoder.step(true), want = decoder.step(false);
    EXPECT_LT(row_error(got.data(), want.data(), decoder.vocab()), kLimit) << depth;
  }
}

}  // namespace
}  // namespace glint
