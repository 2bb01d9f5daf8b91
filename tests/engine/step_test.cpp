// The step loop when things go wrong: a request whose logits are broken fails alone, a forward pass that throws ends
// the requests of its step and nothing more, and the books stay whole.

#include <gtest/gtest.h>

#include <limits>
#include <map>
#include <random>
#include <tuple>

#include "backends/cpu/cpu.hpp"
#include "backends/reference/reference.hpp"
#include "base/error.hpp"
#include "engine/constraints.hpp"
#include "engine/step.hpp"
#include "ops/decorated.hpp"

namespace glint {
namespace {

// Breaks the logits of one row, or throws, when told to.
class Faulty final : public DecoratedOps<Faulty> {
 public:
  using DecoratedOps::DecoratedOps;
  std::int64_t poison_row = -1;
  bool fail = false;

  bool sample(const SampleParams& p) override { return inner().sample(p); }

  template <typename Params, typename Run>
  void around(std::string_view, const Params& p, Run run) {
    run();
    if constexpr (std::is_same_v<Params, LmHeadParams>) {
      if (fail) throw Error("the device is lost");
      if (poison_row >= 0 && poison_row < p.logits.shape[0]) {
        p.logits.template as<float>()[poison_row * p.logits.shape[1] + 17] = std::numeric_limits<float>::quiet_NaN();
      }
    }
  }
};

struct StepTest : ::testing::Test {
  Faulty ops{make_cpu_ops({.isa = {}, .threads = 1})};
  ModelWeights weights = load_weights("models/tiny", ops);
  Runtime runtime{
      weights, ops,
      RuntimeOptions{
          .model = {.max_rows = 64, .max_logits = 8, .max_context = 256}, .cache_tokens = 1024, .max_seqs = 4}};
  StepLoop loop{
      runtime,
      {.scheduler = {.n_pages = runtime.store().n_pages(), .chunk_tokens = 64, .max_running = 4, .max_context = 256},
       .eos_ids = weights.config.eos_ids}};

  // A prompt of three tokens, the last one its own; or a longer one that is always the same.
  void admit(RequestId id, std::int64_t max_tokens, std::int32_t prompt_tokens = 3) {
    auto r = std::make_unique<RequestState>();
    r->id = id;
    r->tokens = {8129, 8131, static_cast<std::int32_t>(300 + id)};
    if (prompt_tokens > 3) r->tokens.pop_back();
    while (static_cast<std::int32_t>(r->tokens.size()) < prompt_tokens) {
      r->tokens.push_back(400 + static_cast<std::int32_t>(r->tokens.size() * 37 % 1000));
    }
    r->prompt_tokens = prompt_tokens;
    r->max_tokens = max_tokens;
    r->sampling.temperature = 0;
    r->ignore_eos = true;
    loop.admit(std::move(r));
  }

  // Runs to the end; the ends by request.
  std::map<RequestId, Event> run() {
    std::map<RequestId, Event> ends;
    while (loop.step()) {
      EXPECT_EQ(loop.scheduler().check_integrity(), "");
      for (StepLoop::Outgoing& o : loop.outgoing()) {
        if (o.event.finish != Finish::kNone) ends[o.request] = std::move(o.event);
      }
      loop.outgoing().clear();
      ops.poison_row = -1;
      ops.fail = false;
    }
    return ends;
  }
};

TEST_F(StepTest, BrokenLogitsFailOneRequest) {
  for (const RequestId id : {1, 2, 3}) admit(id, 5);
  ops.poison_row = 1;
  const auto ends = run();
  ASSERT_EQ(ends.size(), 3U);
  EXPECT_EQ(ends.at(1).finish, Finish::kLength);
  EXPECT_EQ(ends.at(2).finish, Finish::kError);
  EXPECT_EQ(ends.at(2).error, sample_status_text(SampleStatus::kNotFinite));
  EXPECT_EQ(ends.at(3).finish, Finish::kLength);
  EXPECT_EQ(ends.at(3).usage.generated_tokens, 5);
  EXPECT_EQ(loop.stats().cache_tokens_used, 0);
}

TEST_F(StepTest, AThrowingForwardEndsItsRequestsOnly) {
  admit(1, 5);
  admit(2, 5);
  ops.fail = true;
  const auto ends = run();
  EXPECT_EQ(ends.at(1).finish, Finish::kError);
  EXPECT_EQ(ends.at(1).error, "the device is lost");
  EXPECT_EQ(ends.at(2).finish, Finish::kError);
  EXPECT_EQ(loop.stats().cache_tokens_used, 0);
  EXPECT_TRUE(loop.idle());
  admit(3, 5);
  EXPECT_EQ(run().at(3).finish, Finish::kLength);
}

// What a broken step computed must not be found by the next request with the same beginning.
TEST_F(StepTest, AFailedRequestLeavesNothingInThePrefixCache) {
  const auto long_prompt = [&](RequestId id) {
    admit(id, 3, 150);
    return run().at(id);
  };
  const Event first = long_prompt(1);
  EXPECT_EQ(first.usage.cached_tokens, 0);
  const Event second = long_prompt(2);
  EXPECT_EQ(second.usage.cached_tokens, 149);
  EXPECT_EQ(second.usage.logits_hash, first.usage.logits_hash);
  ops.fail = true;
  EXPECT_EQ(long_prompt(3).finish, Finish::kError);
  const Event again = long_prompt(4);
  EXPECT_EQ(again.usage.cached_tokens, 0);
  EXPECT_EQ(again.usage.logits_hash, first.usage.logits_hash);
}

TEST_F(StepTest, AThrowWhileScoringEndsTheWindow) {
  std::vector<float> scores(3);
  auto r = std::make_unique<RequestState>();
  r->id = 9;
  r->tokens = {8129, 8131, 300, 301};
  r->prompt_tokens = 3;
  r->max_tokens = 1;
  r->scores = scores.data();
  loop.admit(std::move(r));
  admit(1, 5);
  ops.fail = true;
  const auto ends = run();
  EXPECT_EQ(ends.at(9).finish, Finish::kError);
  EXPECT_EQ(loop.stats().cache_tokens_used, 0);
  EXPECT_TRUE(loop.idle());
}

// A backend that samples draws what the host would; rows that it does not know go through the host as ever.
TEST(StepSampling, ABackendThatSamplesChangesNothing) {
  const auto ops = make_reference_ops();
  const ModelWeights weights = load_weights("models/tiny", *ops);
  const Tokenizer tokenizer = Tokenizer::from_file("models/tiny/tokenizer.json");
  Constraints constraints(tokenizer, weights.config.eos_ids, tokenizer.vocab_size(), weights.config.vocab);
  const auto events = [&](Placement placement) {
    Runtime runtime(weights, *ops,
                    {.model = {.max_rows = 64, .max_logits = 8, .max_context = 256},
                     .cache_tokens = 1024,
                     .max_seqs = 8,
                     .placement = placement});
    StepLoop loop(
        runtime,
        {.scheduler = {.n_pages = runtime.store().n_pages(), .chunk_tokens = 64, .max_running = 8, .max_context = 256},
         .eos_ids = weights.config.eos_ids});
    const std::vector<SamplerParams> params{
        {.temperature = 0},
        {.seed = 3},
        {.temperature = 0.7F, .top_p = 0.9F, .top_k = 30, .min_p = 0.01F, .seed = 4},
        {.repetition_penalty = 1.2F, .seed = 5},
        {.seed = 6, .logprobs = 2}};
    for (std::size_t i = 0; i < params.size(); ++i) {
      auto r = std::make_unique<RequestState>();
      r->id = i + 1;
      r->tokens = {8129, 8131, static_cast<std::int32_t>(300 + i)};
      r->prompt_tokens = 3;
      r->max_tokens = 4 + static_cast<std::int64_t>(i);
      r->sampling = params[i];
      if (r->sampling.needs_counts()) r->counts = TokenCounts(r->tokens);
      r->ignore_eos = true;
      if (i == 5)
        r->constraint = constraints.make(R"({"json_schema": {"type": "array", "items": {"type": "integer"}}})");
      loop.admit(std::move(r));
    }
    std::vector<std::tuple<RequestId, std::int32_t, std::uint64_t>> out;
    while (loop.step()) {
      for (const StepLoop::Outgoing& o : loop.outgoing())
        out.emplace_back(o.request, o.event.token, o.event.usage.logits_hash);
      loop.outgoing().clear();
    }
    return out;
  };
  const auto on_host = events(Placement::kHost);
  EXPECT_GT(on_host.size(), 25U);
  EXPECT_EQ(events(Placement::kDevice), on_host);
}

// The host a step behind: requests of many kinds that come, end and are cancelled at any time get what they get when
// every step waits for the one before; and most steps do not wait.
TEST(StepSampling, AHostThatIsAStepBehindChangesNothing) {
  const auto ops = make_reference_ops();
  const ModelWeights weights = load_weights("models/tiny", *ops);
  struct Plan {
    std::unique_ptr<RequestState> request;
    int begin = 0, cancel = -1;  // steps
  };
  struct Answer {
    std::vector<std::int32_t> tokens;
    Finish finish = Finish::kNone;
    std::uint64_t hash = 0;
  };
  std::int64_t ahead = 0;
  const auto answers = [&](Placement placement, unsigned seed, std::int32_t cache_tokens) {
    std::mt19937 random(seed);
    const auto draw = [&](int n) { return static_cast<int>(random() % static_cast<unsigned>(n)); };
    const bool short_of_pages = cache_tokens < 512;
    std::vector<Plan> plans(5);
    for (std::size_t i = 0; i < plans.size(); ++i) {
      plans[i].request = std::make_unique<RequestState>();
      RequestState& r = *plans[i].request;
      r.id = static_cast<RequestId>(i) + 1;
      r.tokens = {8129, 8131};
      for (int n = short_of_pages ? 48 + draw(12) : 1 + draw(40); n > 0; --n) r.tokens.push_back(300 + draw(500));
      r.prompt_tokens = static_cast<std::int64_t>(r.tokens.size());
      r.max_tokens = (short_of_pages ? 20 : 1) + draw(30);
      r.sampling = {.temperature = static_cast<float>(draw(2)), .seed = seed + i};
      if (draw(6) == 0) r.sampling.repetition_penalty = 1.1F;
      if (draw(6) == 0) r.sampling.logprobs = 1;
      if (r.sampling.needs_counts()) r.counts = TokenCounts(r.tokens);
      r.ignore_eos = draw(2) == 0;
      for (int n = 0; n < 40; ++n) r.stop_ids.push_back(draw(9000));
      plans[i].begin = draw(short_of_pages ? 6 : 20);
      if (!short_of_pages && draw(4) == 0) plans[i].cancel = plans[i].begin + draw(20);
    }
    Runtime runtime(weights, *ops,
                    {.model = {.max_rows = 32, .max_logits = 16, .max_context = 256},
                     .cache_tokens = cache_tokens,
                     .max_seqs = 4,
                     .placement = placement});
    StepLoop loop(
        runtime,
        {.scheduler = {.n_pages = runtime.store().n_pages(), .chunk_tokens = 32, .max_running = 4, .max_context = 256},
         .eos_ids = weights.config.eos_ids});
    std::map<RequestId, Answer> out;
    for (int step = 0; step < 40 || !loop.idle(); ++step) {
      for (Plan& p : plans) {
        if (p.request && p.begin == step) loop.admit(std::move(p.request));
      }
      for (std::size_t i = 0; i < plans.size(); ++i) {
        if (plans[i].cancel == step) loop.cancel(static_cast<RequestId>(i) + 1);
      }
      loop.step();
      EXPECT_EQ(loop.scheduler().check_integrity(), "");
      for (const StepLoop::Outgoing& o : loop.outgoing()) {
        Answer& a = out[o.request];
        EXPECT_EQ(a.finish, Finish::kNone) << "an event behind the last";
        EXPECT_EQ(o.event.error, "");
        if (o.event.token >= 0) a.tokens.push_back(o.event.token);
        a.finish = o.event.finish;
        a.hash = o.event.usage.logits_hash;
      }
      loop.outgoing().clear();
    }
    EXPECT_EQ(loop.stats().cache_tokens_used, 0);
    EXPECT_EQ(loop.scheduler().kv().n_sequences(), 0);
    if (short_of_pages) EXPECT_GT(loop.scheduler().n_preemptions(), 0);
    ahead += loop.steps_ahead();
    return out;
  };
  for (const unsigned seed : {1U, 3U}) {
    const std::int32_t cache_tokens = seed == 3 ? 320 : 1024;  // and where requests are preempted
    const auto want = answers(Placement::kHost, seed, cache_tokens);
    EXPECT_EQ(ahead, 0);
    const auto got = answers(Placement::kDevice, seed, cache_tokens);
    EXPECT_GT(ahead, 5) << "steps waited for each other";
    ahead = 0;
    ASSERT_EQ(got.size(), want.size());
    for (const auto& [id, w] : want) {
      const Answer& g = got.at(id);
      if (w.finish == Finish::kCancelled || g.finish == Finish::kCancelled) {  // who is first is a matter of steps
        const std::size_t n = std::min(g.tokens.size(), w.tokens.size());
        EXPECT_TRUE(std::equal(g.tokens.begin(), g.tokens.begin() + static_cast<std::ptrdiff_t>(n), w.tokens.begin()));
        continue;
      }
      EXPECT_EQ(g.tokens, w.tokens) << id;
      EXPECT_EQ(g.finish, w.finish) << id;
      EXPECT_EQ(g.hash, w.hash) << id;
    }
  }
}

// A device that breaks while two steps are under way ends the requests of both, once each.
TEST(StepSampling, ADeviceThatFailsAStepAheadEndsItsRequests) {
  Faulty ops(make_reference_ops());
  const ModelWeights weights = load_weights("models/tiny", ops);
  for (const bool poison : {false, true}) {
    Runtime runtime(weights, ops,
                    {.model = {.max_rows = 64, .max_logits = 8, .max_context = 256},
                     .cache_tokens = 1024,
                     .max_seqs = 4,
                     .placement = Placement::kDevice});
    StepLoop loop(
        runtime,
        {.scheduler = {.n_pages = runtime.store().n_pages(), .chunk_tokens = 64, .max_running = 4, .max_context = 256},
         .eos_ids = weights.config.eos_ids});
    for (const RequestId id : {1, 2}) {
      auto r = std::make_unique<RequestState>();
      r->id = id;
      r->tokens = {8129, 8131, static_cast<std::int32_t>(300 + id)};
      r->prompt_tokens = 3;
      r->max_tokens = 20;
      r->sampling.temperature = 0;
      r->ignore_eos = true;
      loop.admit(std::move(r));
    }
    std::map<RequestId, std::vector<Event>> events;
    for (int step = 0; step < 60 && !loop.idle(); ++step) {
      if (step == 5) ops.fail = !poison, ops.poison_row = poison ? 0 : -1;
      loop.step();
      if (step == 5) ops.fail = false, ops.poison_row = -1;
      EXPECT_EQ(loop.scheduler().check_integrity(), "");
      for (StepLoop::Outgoing& o : loop.outgoing()) events[o.request].push_back(std::move(o.event));
      loop.outgoing().clear();
    }
    EXPECT_TRUE(loop.idle());
    EXPECT_GT(loop.steps_ahead(), 4);
    ASSERT_EQ(events.size(), 2U);
    for (const auto& [id, of] : events) {
      for (std::size_t i = 0; i + 1 < of.size(); ++i) EXPECT_EQ(of[i].finish, Finish::kNone);
      const bool fails = !poison || id == 1;
      EXPECT_EQ(of.back().finish, fails ? Finish::kError : Finish::kLength) << id;
      if (!poison) EXPECT_EQ(of.back().error, "the device is lost");
      if (!fails) EXPECT_EQ(of.size(), 20U);
    }
    EXPECT_EQ(loop.stats().cache_tokens_used, 0);
  }
}

}  // namespace
}  // namespace glint
