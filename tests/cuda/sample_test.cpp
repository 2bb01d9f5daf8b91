// Sampling on the GPU: the host's tokens, to the last tie, and what it costs.

#include <gtest/gtest.h>

#include <cstdio>
#include <cstring>
#include <initializer_list>

#include "cuda/device_matrix.hpp"
#include "sampling/sample_cases.hpp"

namespace glint {
namespace {

class DeviceSampler {
 public:
  DeviceSampler(Ops& ops, std::size_t max_rows, std::size_t vocab)
      : ops_(ops),
        vocab_(vocab),
        logits_(ops.allocate(max_rows * vocab * sizeof(float))),
        rows_(ops.allocate(max_rows * sizeof(SampleRow))),
        edits_(ops.allocate((2 * vocab + 8) * sizeof(SampleEdit))),
        masks_(ops.allocate(2 * (vocab + 63) / 64 * sizeof(std::uint64_t) + 16)),
        tokens_(ops.allocate(max_rows * sizeof(std::int32_t))) {}

  void upload(const std::vector<float>& x, const SampleBatch& batch) {
    ops_.upload(logits_.data(), x.data(), x.size() * sizeof(float));
    ops_.upload(rows_.data(), batch.rows.data(), batch.rows.size() * sizeof(SampleRow));
    ops_.upload(edits_.data(), batch.edits.data(), batch.edits.size() * sizeof(SampleEdit));
    ops_.upload(masks_.data(), batch.masks.data(), batch.masks.size() * sizeof(std::uint64_t));
    n_ = batch.rows.size();
  }
  bool run() {
    return ops_.sample(
        {.logits = {logits_.data(), DType::kF32, {static_cast<std::int64_t>(n_), static_cast<std::int64_t>(vocab_)}},
         .rows = static_cast<const SampleRow*>(rows_.data()),
         .edits = static_cast<const SampleEdit*>(edits_.data()),
         .masks = static_cast<const std::uint64_t*>(masks_.data()),
         .tokens = static_cast<std::int32_t*>(tokens_.data())});
  }
  std::vector<std::int32_t> tokens() {
    std::vector<std::int32_t> out(n_);
    ops_.download(out.data(), tokens_.data(), n_ * sizeof(std::int32_t));
    return out;
  }

 private:
  Ops& ops_;
  std::size_t vocab_;
  Buffer logits_, rows_, edits_, masks_, tokens_;
  std::size_t n_ = 0;
};

constexpr std::size_t kVocab = 154880;

// Rows alone, and twice with as many beside them: few and many rows take different launches.
void expect_the_hosts_tokens(std::initializer_list<std::size_t> vocabularies) {
  const auto ops = make_cuda_ops({});
  for (const std::size_t vocab : vocabularies) {
    DeviceSampler sampler(*ops, 32, vocab);
    const auto run = [&](const std::vector<float>& x, const SampleBatch& batch) {
      sampler.upload(x, batch);
      EXPECT_TRUE(sampler.run());
      return sampler.tokens();
    };
    sampling_cases::expect_tokens_of_the_sampler(
        vocab, [&](const std::vector<float>& x, const SampleBatch& batch) { return run(x, batch); });
    sampling_cases::expect_tokens_of_the_sampler(vocab, [&](std::vector<float> x, SampleBatch batch) {
      const std::size_t n = batch.rows.size();
      x.reserve(2 * x.size());
      x.insert(x.end(), x.begin(), x.end());
      batch.rows.reserve(2 * n);
      batch.rows.insert(batch.rows.end(), batch.rows.begin(), batch.rows.end());
      std::vector<std::int32_t> tokens = run(x, batch);
      for (std::size_t r = 0; r < n; ++r) {
        if (r != 1) EXPECT_EQ(tokens[n + r], tokens[r]) << r;  // 1 is not looked at
      }
      tokens.resize(n);
      return tokens;
    });
  }
}

TEST(CudaSample, DrawsTheHostsTokens) {  // few enough for a sanitizer
  NEED_GPU();
  expect_the_hosts_tokens({1, 9, 1000, 4133});
}

TEST(CudaSample, DrawsTheHostsTokensOfManyMore) {
  NEED_GPU();
  expect_the_hosts_tokens({8192, kVocab});
}

TEST(CudaSample, VocabulariesThatDoNotFitAreTheHosts) {
  NEED_GPU();
  const auto ops = make_cuda_ops({});
  DeviceSampler sampler(*ops, 1, 300000);
  sampler.upload(std::vector<float>(300000),
                 {.rows = {SampleRow{.mode = SampleMode::kGreedy}}, .edits = {}, .masks = {}});
  EXPECT_FALSE(sampler.run());
}

// Not a test of speed: prints it.
TEST(CudaSample, Times) {
  NEED_GPU();
  const auto ops = make_cuda_ops({});
  for (const std::size_t n : {std::size_t{1}, std::size_t{64}, std::size_t{256}}) {
    std::vector<float> x;
    for (std::size_t r = 0; r < n; ++r) {
      const auto row = r < 4 ? sampling_reference::random_logits(kVocab, 2.5F, 1000 + static_cast<unsigned>(r))
                             : std::vector<float>(x.begin(), x.begin() + kVocab);
      x.insert(x.end(), row.begin(), row.end());
    }
    DeviceSampler sampler(*ops, n, kVocab);
    for (const SamplerParams& p : {SamplerParams{.temperature = 0}, SamplerParams{}, SamplerParams{.top_p = 0.95F},
                                   SamplerParams{.top_p = 0.95F, .top_k = 40}}) {
      SampleBatch batch;
      add_sample_row({.params = &p, .position = 7}, kVocab, 0, batch);
      batch.rows.resize(n, batch.rows[0]);
      sampler.upload(x, batch);
      sampler.run();
      constexpr int kRepeats = 50;
      ops->start_timer();
      for (int i = 0; i < kRepeats; ++i) sampler.run();
      const double us = 1e6 * ops->stop_timer() / kRepeats;
      std::printf("  %3zu rows, t %.0f, top-p %.2f, top-k %2d: %6.1f us\n", n, static_cast<double>(p.temperature),
                  static_cast<double>(p.top_p), p.top_k, us);
    }
  }
}

}  // namespace
}  // namespace glint
