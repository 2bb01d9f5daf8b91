// A row's result does not depend on its batch: one prompt whole, in chunks, alone, among others and with more threads
// gives the same bits, within one backend.

#include <gtest/gtest.h>

#include <numeric>

#include "base/hash.hpp"
#include "models/tiny_model.hpp"

namespace glint::testing {
namespace {

class Chunking : public ::testing::TestWithParam<std::string> {};
INSTANTIATE_TEST_SUITE_P(, Chunking, ::testing::ValuesIn(all_backends()),
                         [](const auto& i) { return test_name(i.param); });

std::uint64_t hash(std::span<const float> row) { return hash64(row.data(), row.size_bytes()); }

// Hashes of every position's logits.
std::vector<std::uint64_t> hashes(TinyModel& model, std::span<const std::int32_t> ids, std::int64_t chunk) {
  std::vector<std::uint64_t> out;
  probe_logits(*model.runtime, ids, {.chunk_tokens = chunk},
               [&](std::int64_t, std::span<float> row) { out.push_back(hash(row)); });
  return out;
}

std::span<const std::int32_t> prompt() { return golden_ids("tool").first(150); }

TEST_P(Chunking, ChunksGiveTheSameBits) {
  TinyModel model(make_ops(GetParam()), {.codec = KvCodec::kBF16});
  const auto whole = hashes(model, prompt(), 0);
  ASSERT_EQ(whole.size(), prompt().size());
  for (const std::int64_t chunk : {1, 7, 64}) EXPECT_EQ(hashes(model, prompt(), chunk), whole) << "chunks of " << chunk;
}

TEST_P(Chunking, ChunksOfDraftsGiveTheSameBits) {
  TinyModel model(make_ops(GetParam()), {.codec = KvCodec::kBF16});
  const auto run = [&](std::int64_t chunk) {
    std::vector<std::uint64_t> out;
    probe_draft_logits(*model.runtime, prompt(), {.chunk_tokens = chunk},
                       [&](std::int64_t, std::span<float> row) { out.push_back(hash(row)); });
    return out;
  };
  const auto whole = run(0);
  EXPECT_EQ(run(1), whole);
  EXPECT_EQ(run(7), whole);
}

TEST_P(Chunking, ThreadsGiveTheSameBits) {
  if (GetParam() == "reference") GTEST_SKIP() << "one thread by design";
  TinyModel one(make_ops(GetParam(), 1));
  TinyModel two(make_ops(GetParam(), 2));
  TinyModel three(make_ops(GetParam(), 3));
  const auto want = hashes(one, prompt(), 0);
  EXPECT_EQ(hashes(two, prompt(), 0), want);
  EXPECT_EQ(hashes(three, prompt(), 7), want);
}

// Three prompts advance together, by different numbers of rows a step; each must come out as it does alone.
TEST_P(Chunking, CompanyGivesTheSameBits) {
  TinyModel model(make_ops(GetParam()), {.codec = KvCodec::kBF16});
  Runtime& runtime = *model.runtime;
  const std::vector<std::span<const std::int32_t>> prompts = {prompt().first(97), golden_ids("story"),
                                                              golden_ids("unicode")};
  std::vector<std::vector<std::uint64_t>> alone;
  for (const auto ids : prompts) alone.push_back(hashes(model, ids, 0));

  KvPlan plan(runtime.store().n_pages(), kPageTokens);
  std::vector<SequenceId> sequences;
  for (const auto ids : prompts) {
    sequences.push_back(plan.open());
    ASSERT_TRUE(plan.extend(sequences.back(), static_cast<std::int64_t>(ids.size()), nullptr));
  }
  const std::vector<std::size_t> share = {13, 1, 6};
  std::vector<std::size_t> done(prompts.size(), 0);
  std::vector<std::vector<std::uint64_t>> together(prompts.size());
  for (bool more = true; more;) {
    more = false;
    struct Part {
      std::size_t prompt;
      std::int64_t first;
      std::size_t n;
    };
    std::vector<Part> parts;
    runtime.batch().begin();
    for (std::size_t i = 0; i < prompts.size(); ++i) {
      const std::size_t n = std::min(share[i], prompts[i].size() - done[i]);
      if (n == 0) continue;
      more = true;
      const std::int64_t first = runtime.batch().add(plan, {.sequence = sequences[i],
                                                            .ids = prompts[i].subspan(done[i], n),
                                                            .first_position = static_cast<std::int64_t>(done[i]),
                                                            .n_logits = static_cast<std::int64_t>(n)});
      parts.push_back({i, first, n});
      done[i] += n;
    }
    if (!more) break;
    runtime.forward(plan);
    for (const Part& part : parts) {
      for (std::size_t r = 0; r < part.n; ++r) {
        together[part.prompt].push_back(hash(runtime.logits().row(part.first + static_cast<std::int64_t>(r))));
      }
    }
  }
  for (std::size_t i = 0; i < prompts.size(); ++i) EXPECT_EQ(together[i], alone[i]) << "prompt " << i;
}

// Pages that belong to nobody may hold anything: a second run over dirty pages gives what the first gave.
TEST_P(Chunking, UsedPagesDoNotShow) {
  TinyModel model(make_ops(GetParam()));
  const auto first = hashes(model, golden_ids("story"), 0);
  hashes(model, prompt(), 0);
  EXPECT_EQ(hashes(model, golden_ids("story"), 0), first);
}

}  // namespace
}  // namespace glint::testing
