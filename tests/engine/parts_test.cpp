// The engine's small parts alone: stop strings, the batch builder, memory sizing, JSON of the public structs.

#include <gtest/gtest.h>

#include <random>

#include "backends/reference/reference.hpp"
#include "base/error.hpp"
#include "engine/api_json.hpp"
#include "engine/batch_builder.hpp"
#include "engine/memory.hpp"
#include "engine/stop_matcher.hpp"
#include "models/glm_4_7_flash/model_weights.hpp"

namespace glint {
namespace {

std::string feed_all(StopMatcher& m, const std::vector<std::string>& pieces, std::string* stop) {
  std::string out;
  for (const std::string& piece : pieces) {
    if (const std::string* found = m.feed(piece, &out)) {
      *stop = *found;
      return out;
    }
  }
  m.flush(&out);
  return out;
}

TEST(StopMatcher, HoldsBackOnlyWhatMayBeAStop) {
  StopMatcher m({"END", "\n\n"});
  std::string out;
  EXPECT_EQ(m.feed("hello E", &out), nullptr);
  EXPECT_EQ(out, "hello ");
  EXPECT_EQ(m.feed("N", &out), nullptr);
  EXPECT_EQ(out, "hello ");
  EXPECT_EQ(m.feed("T\n", &out), nullptr);
  EXPECT_EQ(out, "hello ENT");
  m.flush(&out);
  EXPECT_EQ(out, "hello ENT\n");
}

TEST(StopMatcher, TheFirstToEndWinsThenTheLongest) {
  StopMatcher a({"bcd", "abcdef", "cd"});
  std::string out;
  EXPECT_EQ(*a.feed("xxabcdefg", &out), "bcd");
  EXPECT_EQ(out, "xxa");
}

// However the text is cut, the result is that of the whole text; and that is what a plain search says.
TEST(StopMatcher, CutsDoNotMatter) {
  std::mt19937 random(1);
  const auto letters = [&](std::size_t n) {
    std::string s;
    for (std::size_t i = 0; i < n; ++i) s += static_cast<char>('a' + random() % 2);
    return s;
  };
  for (int round = 0; round < 2000; ++round) {
    const std::string text = letters(random() % 12);
    std::vector<std::string> stops;
    for (std::size_t i = 0; i < 1 + random() % 3; ++i) stops.push_back(letters(1 + random() % 4));
    std::string want_stop;
    std::size_t want_end = std::string::npos;
    for (const std::string& s : stops) {
      const std::size_t at = text.find(s);
      if (at == std::string::npos) continue;
      if (at + s.size() < want_end || (at + s.size() == want_end && s.size() > want_stop.size())) {
        want_end = at + s.size();
        want_stop = s;
      }
    }
    const std::string want = want_end == std::string::npos ? text : text.substr(0, want_end - want_stop.size());
    std::vector<std::string> pieces;
    for (std::size_t at = 0; at < text.size();) {
      const std::size_t n = 1 + random() % 4;
      pieces.push_back(text.substr(at, n));
      at += n;
    }
    StopMatcher m(stops);
    std::string stop;
    EXPECT_EQ(feed_all(m, pieces, &stop), want) << text;
    EXPECT_EQ(stop, want_stop) << text;
  }
}

TEST(BatchBuilder, RowsSlotsAndTables) {
  const auto ops = make_reference_ops();
  BatchBuilder builder(*ops, {.max_rows = 16, .max_logits = 4, .max_seqs = 3, .max_context = 256});
  KvPlan plan(8, kPageTokens);
  const SequenceId a = plan.open();
  const SequenceId b = plan.open();
  ASSERT_TRUE(plan.extend(a, 66, nullptr));
  ASSERT_TRUE(plan.extend(b, 3, nullptr));
  builder.begin();
  EXPECT_EQ(builder.add(plan, {.sequence = a, .ids = std::vector{5, 6, 7}, .first_position = 63, .n_logits = 2}), 0);
  EXPECT_EQ(builder.add(plan, {.sequence = b, .ids = std::vector{9, 8, 7}, .first_position = 0, .n_logits = 1}), 2);
  const Batch& batch = builder.finish(plan);
  EXPECT_EQ(batch.n_rows, 6);
  EXPECT_EQ(batch.n_logits, 3);
  const auto list = [](const std::int32_t* p, int n) { return std::vector<std::int32_t>(p, p + n); };
  EXPECT_EQ(list(batch.ids, 6), (std::vector{5, 6, 7, 9, 8, 7}));
  EXPECT_EQ(list(batch.positions, 6), (std::vector{63, 64, 65, 0, 1, 2}));
  EXPECT_EQ(batch.slots[0], plan.slot(a, 63));
  EXPECT_EQ(batch.slots[1], plan.slot(a, 64));
  EXPECT_EQ(batch.slots[5], plan.slot(b, 2));
  EXPECT_EQ(list(batch.logit_rows, 3), (std::vector{1, 2, 5}));
  EXPECT_EQ(list(batch.attend.row_offsets, 3), (std::vector{0, 3, 6}));
  EXPECT_EQ(list(batch.attend.context_tokens, 2), (std::vector{66, 3}));
  EXPECT_EQ(batch.attend.n_seqs, 2);
  EXPECT_EQ(batch.attend.max_pages, 2);
  EXPECT_EQ(list(batch.attend.page_table, 4), (std::vector{plan.pages(a)[0], plan.pages(a)[1], plan.pages(b)[0], -1}));
}

constexpr std::int64_t kGiB = std::int64_t{1} << 30;

TEST(Memory, ChunksAreLargerOnADeviceWithRoom) {
  EXPECT_EQ(default_chunk(-1), 512);          // a host
  EXPECT_EQ(default_chunk(6 * kGiB), 512);    // 24 GB and weights of four bits
  EXPECT_EQ(default_chunk(60 * kGiB), 2048);  // 80 GB
}

TEST(Memory, TheRealModel) {
  const ModelConfig config = real_config();
  EngineOptions o;
  // 24 GiB free, 17 GiB of mapped weights: 0.6 of the 7 GiB left over 47 layers: the engine runs no MTP layer.
  const CachePlan plan = plan_cache(o, config, KvCodec::kBF16, {24 * kGiB, 17 * kGiB});
  EXPECT_NEAR(static_cast<double>(plan.cache_tokens) * 47 * 1152, 0.6 * 7 * kGiB, 64 * 47 * 1152);
  EXPECT_EQ(plan.max_context, plan.cache_tokens);
  const CachePlan large = plan_cache(o, config, KvCodec::kBF16, {512 * kGiB, 64 * kGiB});
  EXPECT_EQ(large.max_context, 202'752);

  o.max_context = 202'752;
  EXPECT_THROW(plan_cache(o, config, KvCodec::kBF16, {24 * kGiB, 17 * kGiB}), Error);
  o.max_context = 1000;
  EXPECT_EQ(plan_cache(o, config, KvCodec::kBF16, {512 * kGiB, 0}).cache_tokens, 64 * 1024);  // no more than is useful
  o.cache_tokens = 500'000;
  try {
    plan_cache(o, config, KvCodec::kBF16, {24 * kGiB, 0});
    FAIL();
  } catch (const Error& e) {
    EXPECT_EQ(std::string(e.what()),
              "cache of 500032 tokens: found 24.00 GiB of free memory, expected 25.21 GiB (54144 bytes a token) (lower "
              "cache_tokens)");
  }
}

TEST(Memory, TheMachineSaysWhatItHas) { EXPECT_GT(available_memory(), std::int64_t{1} << 26); }

std::string error_of(auto body) {
  try {
    body();
  } catch (const Error& e) { return e.what(); }
  return "no error";
}

TEST(ApiJson, RequestFields) {
  const Request r = request_from_json(R"({"ids": [1, 2, 3], "max_tokens": 9, "stop": ["a", "b"], "stop_ids": [4],
    "ignore_eos": true, "skip_special": false, "sampling": {"temperature": 0.5, "top_p": 1, "top_k": 40, "min_p": 0.1,
    "repetition_penalty": 1.5, "presence_penalty": -1, "frequency_penalty": 0.25, "seed": 18446744073709551615,
    "logit_bias": [[7, -2.5], [8, 1]], "logprobs": 3}})");
  EXPECT_EQ(r.ids, (std::vector{1, 2, 3}));
  EXPECT_EQ(r.max_tokens, 9);
  EXPECT_EQ(r.stop, (std::vector<std::string>{"a", "b"}));
  EXPECT_EQ(r.stop_ids, std::vector{4});
  EXPECT_TRUE(r.ignore_eos);
  EXPECT_FALSE(r.skip_special);
  EXPECT_EQ(r.sampling.temperature, 0.5F);
  EXPECT_EQ(r.sampling.top_k, 40);
  EXPECT_EQ(r.sampling.repetition_penalty, 1.5F);
  EXPECT_EQ(r.sampling.presence_penalty, -1.0F);
  EXPECT_EQ(r.sampling.seed, 18446744073709551615U);
  EXPECT_EQ(r.sampling.logit_bias, (std::vector<std::pair<std::int32_t, float>>{{7, -2.5F}, {8, 1.0F}}));
  EXPECT_EQ(r.sampling.logprobs, 3);
  EXPECT_FALSE(request_from_json(R"({"ids": [1], "sampling": {"seed": null}})").sampling.seed.has_value());
}

TEST(ApiJson, Refusals) {
  EXPECT_NE(error_of([] { request_from_json(R"({"ids": [1], "max_token": 3})"); }).find("unknown field \"max_token\""),
            std::string::npos);
  EXPECT_NE(error_of([] { request_from_json(R"({"sampling": {"temp": 3}})"); }).find("sampling: found unknown field"),
            std::string::npos);
  EXPECT_NE(error_of([] { request_from_json(R"({"ids": "abc"})"); }).find("field \"ids\""), std::string::npos);
  EXPECT_NE(error_of([] { request_from_json(R"({"ids": [3000000000]})"); }).find("3000000000"), std::string::npos);
  EXPECT_NE(error_of([] { request_from_json(R"({"ids": [1.5]})"); }).find("1.5"), std::string::npos);
  EXPECT_NE(error_of([] { request_from_json(R"({"sampling": {"seed": -1}})"); }).find("-1"), std::string::npos);
  EXPECT_NE(error_of([] { request_from_json("[1]"); }).find("an object"), std::string::npos);
  EXPECT_NE(error_of([] { request_from_json("{"); }).find("request"), std::string::npos);
  EXPECT_NE(error_of([] { engine_options_from_json(R"({"gpu": 1})"); }).find("unknown field \"gpu\""),
            std::string::npos);
  EXPECT_NE(error_of([] { engine_options_from_json(R"({"use_thread": 1})"); }).find("true or false"),
            std::string::npos);
}

}  // namespace
}  // namespace glint
