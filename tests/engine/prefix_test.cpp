// The prefix cache in the engine: prompts that begin as earlier ones start behind what the cache holds, and nothing of
// an answer changes: not a token, not a log-prob, not a bit of the last logits.

#include <gtest/gtest.h>

#include <random>

#include "engine/engine_fixture.hpp"

namespace glint::testing {
namespace {

EngineOptions prefix_options(bool on) {
  EngineOptions o = tiny_options();
  o.chunk_tokens = 128;
  o.prefix_cache = on;
  return o;
}

// Reads every prompt from its first token.
Engine& cold_engine() {
  static const std::unique_ptr<Engine> engine = Engine::open(prefix_options(false));
  return *engine;
}

void expect_same(const Answer& got, const Answer& want, const std::string& where) {
  EXPECT_EQ(got.ids, want.ids) << where;
  EXPECT_EQ(got.text, want.text) << where;
  EXPECT_EQ(got.logprobs, want.logprobs) << where;
  EXPECT_EQ(got.last.finish, want.last.finish) << where;
  EXPECT_EQ(got.last.usage.logits_hash, want.last.usage.logits_hash) << where;
}

Request of_ids(std::vector<std::int32_t> ids, std::int64_t max_tokens) {
  Request r;
  r.ids = std::move(ids);
  r.sampling.temperature = 0;
  r.sampling.logprobs = 0;
  r.max_tokens = max_tokens;
  r.ignore_eos = true;
  return r;
}

void append(std::vector<std::int32_t>& to, const std::vector<std::int32_t>& from) {
  to.insert(to.end(), from.begin(), from.end());
}

struct PrefixCodec : ::testing::TestWithParam<std::string> {};
INSTANTIATE_TEST_SUITE_P(, PrefixCodec, ::testing::Values("int16", "f16", "int4"),
                         [](const auto& i) { return i.param; });

TEST_P(PrefixCodec, TurnsOfAConversationStartBehindTheLastOne) {
  EngineOptions o = prefix_options(true);
  o.kv = GetParam();
  const auto warm = Engine::open(o);
  o.prefix_cache = false;
  const auto cold = Engine::open(o);
  std::vector<std::int32_t> ids = warm->encode(kStory);
  const std::vector<std::int32_t> turn = warm->encode(" What happened next? They went to the");
  std::int64_t known = 0;  // tokens that the cache may hold
  for (int i = 0; i < 4; ++i) {
    const Request r = of_ids(ids, 17 + 9 * i);
    const Answer got = answer(*warm, r);
    const Answer want = answer(*cold, r);
    expect_same(got, want, "turn " + std::to_string(i));
    const Usage& usage = got.last.usage;
    EXPECT_EQ(usage.prompt_tokens, static_cast<std::int64_t>(ids.size()));
    EXPECT_LE(usage.cached_tokens, known);
    EXPECT_GE(usage.cached_tokens, known - 8) << i;  // a few tokens of a page are not worth a copy
    EXPECT_EQ(want.last.usage.cached_tokens, 0);
    append(ids, got.ids);
    known = static_cast<std::int64_t>(ids.size()) - 1;  // the last sampled token was never computed
    append(ids, turn);
  }
  EXPECT_GT(warm->stats().cached_tokens, 0);
  EXPECT_GT(warm->stats().cache_tokens_kept, 0);
  EXPECT_EQ(warm->stats().cache_tokens_used, 0);
  EXPECT_EQ(cold->stats().cache_tokens_kept, 0);
}

TEST(Prefix, TheLastTokenIsComputedAgainAndBranchesShareWhatIsEqual) {
  const auto warm = Engine::open(prefix_options(true));
  std::vector<std::int32_t> ids = warm->encode(kWiki);
  append(ids, answer(*warm, of_ids(ids, 150)).ids);
  for (int i = 0; i < 2; ++i) {
    const Answer again = answer(*warm, of_ids(ids, 10));
    expect_same(again, answer(cold_engine(), of_ids(ids, 10)), "again");
    EXPECT_EQ(again.last.usage.cached_tokens, static_cast<std::int64_t>(ids.size()) - 1);
  }
  // The same beginning, then something else, in the middle of a page.
  std::vector<std::int32_t> other(ids.begin(), ids.begin() + 100);
  append(other, warm->encode(" and then the ships came"));
  const Answer branch = answer(*warm, of_ids(other, 40));
  expect_same(branch, answer(cold_engine(), of_ids(other, 40)), "branch");
  EXPECT_EQ(branch.last.usage.cached_tokens, 100);
  // The first conversation has not been touched by it.
  const Answer first = answer(*warm, of_ids(ids, 10));
  expect_same(first, answer(cold_engine(), of_ids(ids, 10)), "first");
  EXPECT_EQ(first.last.usage.cached_tokens, static_cast<std::int64_t>(ids.size()) - 1);
}

TEST(Prefix, RequestsThatRunTogetherReadTheirPromptOnce) {
  EngineOptions o = prefix_options(true);
  o.max_requests = 8;
  const auto warm = Engine::open(o);
  std::vector<std::int32_t> ids = warm->encode(kChat);
  std::mt19937 rng(1);
  while (ids.size() < 400) ids.push_back(static_cast<std::int32_t>(300 + rng() % 5000));
  std::vector<RequestId> running;
  const auto request = [&](std::size_t i) {
    Request r = of_ids(ids, 6);
    r.sampling.temperature = 0.9F;
    r.sampling.seed = i;
    return r;
  };
  for (std::size_t i = 0; i < 6; ++i) running.push_back(warm->submit(request(i)));
  std::int64_t cached = 0;
  for (std::size_t i = 0; i < running.size(); ++i) {
    const Answer got = collect(*warm, running[i]);
    expect_same(got, answer(cold_engine(), request(i)), "choice " + std::to_string(i));
    cached += got.last.usage.cached_tokens;
  }
  EXPECT_EQ(warm->stats().cached_tokens, cached);
  EXPECT_LT(warm->stats().prefill_tokens, 400 + 6 * 64);  // of 6 · 400
}

// Conversations that take turns in a cache that holds two of them, with requests that are cancelled in between.
TEST(Prefix, EvictionAndCancelsChangeNothing) {
  EngineOptions o = prefix_options(true);
  o.max_context = 384;
  o.cache_tokens = 512;
  const auto warm = Engine::open(o);
  std::mt19937 rng(7);
  std::vector<std::vector<std::int32_t>> talks;
  for (const char* text : {kStory, kWiki, kChat, kStory}) talks.push_back(warm->encode(text));
  append(talks[3], warm->encode(" swim."));
  for (auto& talk : talks) {
    while (talk.size() < 120) talk.push_back(static_cast<std::int32_t>(300 + rng() % 5000));
  }
  const std::vector<std::int32_t> turn = warm->encode(" Then one day");
  for (int round = 0; round < 4; ++round) {
    std::vector<std::pair<std::size_t, RequestId>> running;
    for (std::size_t t = 0; t < talks.size(); ++t) {
      if (rng() % 3 != 0) running.emplace_back(t, warm->submit(of_ids(talks[t], 10)));
    }
    if (rng() % 2 == 0) {
      const RequestId gone = warm->submit(of_ids(talks[rng() % talks.size()], 20));
      for (std::uint32_t i = rng() % 6; i > 0; --i) warm->step();
      warm->abandon(gone);
    }
    for (const auto& [t, id] : running) {
      const Answer got = collect(*warm, id);
      expect_same(got, answer(cold_engine(), of_ids(talks[t], 10)),
                  "round " + std::to_string(round) + " talk " + std::to_string(t));
      append(talks[t], got.ids);
      append(talks[t], turn);
      if (talks[t].size() > 300) talks[t].resize(30);
    }
  }
  const EngineStats stats = warm->stats();
  EXPECT_GT(stats.evicted_tokens, 0);
  EXPECT_GT(stats.cached_tokens, 0);
  EXPECT_EQ(stats.cache_tokens_used, 0);
}

TEST(Prefix, ScoresComputeEveryRow) {
  const auto warm = Engine::open(prefix_options(true));
  std::vector<std::int32_t> ids = warm->encode(kStory);
  append(ids, answer(*warm, of_ids(ids, 80)).ids);
  const std::vector<float> scores = warm->score(ids);
  EXPECT_EQ(scores, cold_engine().score(ids));
  EXPECT_EQ(warm->stats().cached_tokens, 0);
}

}  // namespace
}  // namespace glint::testing
