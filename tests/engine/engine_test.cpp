// The engine by itself: what a caller sees of a request, step by step.

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <thread>
#include <utility>

#include "engine/engine_fixture.hpp"

namespace glint::testing {
namespace {

TEST(Engine, AnswersAsTheGoldenDoes) {
  const Answer a = answer(shared_engine(), greedy(shared_engine(), kStory, 64));
  EXPECT_EQ(a.text.substr(0, 41), " play in the lake with a yellow boat.\n\nOn");
  EXPECT_EQ(a.last.finish, Finish::kLength);
  EXPECT_EQ(a.ids.size(), 64U);
  EXPECT_EQ(a.text, shared_engine().decode(a.ids));
  EXPECT_EQ(a.last.usage.prompt_tokens, 18);
  EXPECT_EQ(a.last.usage.generated_tokens, 64);
  EXPECT_NE(a.last.usage.logits_hash, 0U);
  EXPECT_GT(a.last.usage.prefill_s, 0);
  EXPECT_GT(a.last.usage.decode_s, 0);
}

TEST(Engine, EndTokenCountsButHasNoText) {
  const Answer a = answer(shared_engine(), greedy(shared_engine(), kChat, 200));
  ASSERT_EQ(a.last.finish, Finish::kEos);
  EXPECT_EQ(a.ids.back(), 8135);  // <|user|>
  EXPECT_EQ(a.last.usage.generated_tokens, 20);
  EXPECT_EQ(a.text.find("<|user|>"), std::string::npos);

  Request shown = greedy(shared_engine(), kChat, 200);
  shown.skip_special = false;
  EXPECT_EQ(answer(shared_engine(), shown).text, a.text);
}

TEST(Engine, IgnoreEosGoesOn) {
  Request r = greedy(shared_engine(), kChat, 24);
  r.ignore_eos = true;
  const Answer a = answer(shared_engine(), r);
  EXPECT_EQ(a.last.finish, Finish::kLength);
  EXPECT_EQ(a.ids.size(), 24U);
  r.skip_special = false;
  EXPECT_NE(answer(shared_engine(), r).text.find("<|user|>"), std::string::npos);
}

TEST(Engine, StopId) {
  Request r = greedy(shared_engine(), kStory, 64);
  const Answer whole = answer(shared_engine(), r);
  r.stop_ids = {whole.ids[5]};
  const Answer a = answer(shared_engine(), r);
  EXPECT_EQ(a.last.finish, Finish::kStop);
  EXPECT_EQ(a.ids, std::vector(whole.ids.begin(), whole.ids.begin() + 6));
  EXPECT_EQ(a.text, shared_engine().decode(std::span(whole.ids).first(5)));
}

TEST(Engine, StopStringsAcrossTokens) {
  Request r = greedy(shared_engine(), kStory, 64);
  const std::string whole = answer(shared_engine(), r).text;
  // Every substring of a stretch of the answer, cut at any byte: most begin and end inside tokens.
  for (std::size_t at = 9; at < 30; at += 5) {
    for (const std::size_t length : {1U, 3U, 11U}) {
      const std::string stop = whole.substr(at, length);
      r.stop = {"never in the text", stop};
      const Answer a = answer(shared_engine(), r);
      EXPECT_EQ(a.last.finish, Finish::kStop);
      EXPECT_EQ(a.last.stop_string, stop);
      EXPECT_EQ(a.text, whole.substr(0, whole.find(stop)));
    }
  }
}

TEST(Engine, HeldBackTextComesAtTheEnd) {
  Request r = greedy(shared_engine(), kStory, 7);
  const std::string whole = answer(shared_engine(), r).text;
  r.stop = {whole.substr(whole.size() - 3) + "and then something else"};
  const Answer a = answer(shared_engine(), r);
  EXPECT_EQ(a.last.finish, Finish::kLength);
  EXPECT_EQ(a.text, whole);
}

TEST(Engine, MaxTokensIsClippedToTheContext) {
  EngineOptions o = tiny_options();
  o.max_context = 64;
  o.cache_tokens = 256;
  const auto engine = Engine::open(o);
  EXPECT_EQ(engine->info().max_context, 64);
  Request r = greedy(*engine, kStory, 0);
  r.ignore_eos = true;
  const Answer unlimited = answer(*engine, r);
  EXPECT_EQ(unlimited.last.finish, Finish::kLength);
  EXPECT_EQ(unlimited.last.usage.prompt_tokens + unlimited.last.usage.generated_tokens, 64);
  r.max_tokens = 1'000'000;
  EXPECT_EQ(answer(*engine, r).ids, unlimited.ids);
  r.max_tokens = 1;
  EXPECT_EQ(answer(*engine, r).ids.size(), 1U);
}

TEST(Engine, SeedsDecide) {
  Request r = greedy(shared_engine(), kStory, 24);
  r.sampling.temperature = 1;
  r.sampling.seed = 7;
  const Answer a = answer(shared_engine(), r);
  EXPECT_EQ(a.last.usage.seed, 7U);
  EXPECT_EQ(answer(shared_engine(), r).ids, a.ids);
  r.sampling.seed = 8;
  EXPECT_NE(answer(shared_engine(), r).ids, a.ids);

  r.sampling.seed.reset();
  const Answer random = answer(shared_engine(), r);
  r.sampling.seed = random.last.usage.seed;
  EXPECT_EQ(answer(shared_engine(), r).ids, random.ids);
  EXPECT_EQ(answer(shared_engine(), r).last.usage.logits_hash, random.last.usage.logits_hash);
}

TEST(Engine, Logprobs) {
  Request r = greedy(shared_engine(), kStory, 4);
  EXPECT_TRUE(answer(shared_engine(), r).logprobs.empty());
  r.sampling.logprobs = 0;
  const Answer chosen = answer(shared_engine(), r);
  ASSERT_EQ(chosen.logprobs.size(), 4U);
  EXPECT_TRUE(chosen.top[0].empty());
  r.sampling.logprobs = 5;
  const Answer top = answer(shared_engine(), r);
  EXPECT_EQ(top.logprobs, chosen.logprobs);
  for (std::size_t i = 0; i < 4; ++i) {
    ASSERT_EQ(top.top[i].size(), 5U);
    EXPECT_EQ(top.top[i][0].id, top.ids[i]);
    EXPECT_EQ(top.top[i][0].logprob, top.logprobs[i]);
    EXPECT_GE(top.top[i][0].logprob, top.top[i][1].logprob);
  }
  // The same numbers by teacher forcing.
  std::vector<std::int32_t> ids = r.ids;
  ids.insert(ids.end(), top.ids.begin(), top.ids.end());
  const std::vector<float> scores = shared_engine().score(ids);
  ASSERT_EQ(scores.size(), ids.size() - 1);
  for (std::size_t i = 0; i < 4; ++i) EXPECT_NEAR(scores[r.ids.size() - 1 + i], top.logprobs[i], 1e-5);
}

TEST(Engine, LogitBias) {
  Request r = greedy(shared_engine(), kStory, 3);
  const Answer plain = answer(shared_engine(), r);
  r.sampling.logit_bias = {{plain.ids[0], -100.0F}};
  EXPECT_NE(answer(shared_engine(), r).ids[0], plain.ids[0]);
  r.sampling.logit_bias = {{1234, 100.0F}};
  EXPECT_EQ(answer(shared_engine(), r).ids, (std::vector<std::int32_t>{1234, 1234, 1234}));
}

TEST(Engine, PenaltiesSeeThePromptAndTheAnswer) {
  Request r = greedy(shared_engine(), kWiki, 48);
  const Answer plain = answer(shared_engine(), r);  // "The city was the first …", over and over
  r.sampling.frequency_penalty = 2;
  const Answer varied = answer(shared_engine(), r);
  const auto distinct = [](std::vector<std::int32_t> ids) {
    std::sort(ids.begin(), ids.end());
    return std::unique(ids.begin(), ids.end()) - ids.begin();
  };
  EXPECT_GT(distinct(varied.ids), distinct(plain.ids) + 5);
}

// Chunks of 16 tokens: the caller sees the prompt being read.
TEST(Engine, PrefillProgress) {
  EngineOptions o = tiny_options();
  o.chunk_tokens = 16;
  const auto engine = Engine::open(o);
  Request r = greedy(*engine, std::string(kStory) + kWiki, 2);
  const auto n = static_cast<std::int64_t>(r.ids.size());
  const RequestId id = engine->submit(r);
  std::vector<std::int64_t> progress;
  for (;;) {
    const Event e = engine->next(id).value();
    EXPECT_EQ(e.usage.prompt_tokens, n);
    progress.push_back(e.prefill_done);
    if (e.finish != Finish::kNone) break;
  }
  EXPECT_EQ(progress, (std::vector<std::int64_t>{16, 32, n, n}));
}

TEST(Engine, SeveralAtOnceAreAsAlone) {
  Engine& engine = shared_engine();
  std::vector<Request> requests = {greedy(engine, kStory, 20), greedy(engine, kWiki, 33), greedy(engine, kChat, 40)};
  requests.push_back(requests[0]);
  requests[3].sampling.temperature = 0.8F;
  requests[3].sampling.seed = 5;
  std::vector<Answer> alone;
  for (const Request& r : requests) alone.push_back(answer(engine, r));
  std::vector<RequestId> ids;
  for (const Request& r : requests) ids.push_back(engine.submit(r));
  for (std::size_t i = 0; i < ids.size(); ++i) {
    const Answer together = collect(engine, ids[i]);
    EXPECT_EQ(together.ids, alone[i].ids) << i;
    EXPECT_EQ(together.text, alone[i].text) << i;
    EXPECT_EQ(together.last.finish, alone[i].last.finish) << i;
    EXPECT_EQ(together.last.usage.logits_hash, alone[i].last.usage.logits_hash) << i;
  }
}

// A cache that cannot hold all of them at once: some wait or are preempted, and nobody's answer changes.
TEST(Engine, ShortCacheChangesNothing) {
  EngineOptions o = tiny_options();
  o.max_context = 256;
  o.cache_tokens = 256;
  const auto small = Engine::open(o);
  std::vector<Request> requests;
  for (const char* text : {kStory, kWiki, kChat, kStory, kWiki}) {
    requests.push_back(greedy(*small, text, 100));
    requests.back().ignore_eos = true;
    requests.back().sampling.temperature = 0.7F;
    requests.back().sampling.seed = requests.size();
  }
  std::vector<RequestId> ids;
  for (const Request& r : requests) ids.push_back(small->submit(r));
  for (std::size_t i = 0; i < ids.size(); ++i) {
    const Answer got = collect(*small, ids[i]);
    const Answer want = answer(shared_engine(), requests[i]);
    EXPECT_EQ(got.ids, want.ids) << i;
    EXPECT_EQ(got.text, want.text) << i;
    EXPECT_EQ(got.last.usage.logits_hash, want.last.usage.logits_hash) << i;
  }
  EXPECT_EQ(small->stats().cache_tokens_used, 0);
}

TEST(Engine, CancelFreesPages) {
  Engine& engine = shared_engine();
  const RequestId id = engine.submit(greedy(engine, kStory, 500));
  for (int i = 0; i < 5; ++i) EXPECT_TRUE(engine.step());
  EXPECT_EQ(engine.stats().running_requests, 1);
  EXPECT_GT(engine.stats().cache_tokens_used, 0);
  engine.cancel(id);
  EXPECT_TRUE(engine.step());
  EXPECT_EQ(engine.stats().cache_tokens_used, 0);
  EXPECT_EQ(engine.stats().running_requests, 0);
  const Answer a = collect(engine, id);
  EXPECT_EQ(a.last.finish, Finish::kCancelled);
  EXPECT_EQ(a.ids.size(), 5U);
  EXPECT_EQ(a.last.usage.generated_tokens, 5);
  EXPECT_THROW(engine.next(id), Error);  // forgotten
  engine.cancel(id);
  engine.cancel(123456);
  EXPECT_FALSE(engine.step());
}

TEST(Engine, CancelBeforeTheFirstStep) {
  Engine& engine = shared_engine();
  const RequestId id = engine.submit(greedy(engine, kStory));
  engine.cancel(id);
  const Answer a = collect(engine, id);
  EXPECT_EQ(a.last.finish, Finish::kCancelled);
  EXPECT_TRUE(a.ids.empty());
}

TEST(Engine, ATimeoutEndsWhatRunsAndWhatWaits) {
  EngineOptions o = tiny_options();
  o.max_requests = 1;
  const std::unique_ptr<Engine> engine = Engine::open(o);
  constexpr double kTimeout = 0.5;
  Request running = greedy(*engine, kStory, 900);
  running.ignore_eos = true;
  running.timeout_s = kTimeout;
  Request waiting = running;
  Request patient = greedy(*engine, kWiki, 4);
  const RequestId ids[] = {engine->submit(running), engine->submit(waiting), engine->submit(patient)};
  EXPECT_TRUE(engine->step());
  EXPECT_EQ(engine->stats().waiting_requests, 2);
  EXPECT_GT(engine->stats().cache_tokens_used, 0);
  std::this_thread::sleep_for(std::chrono::duration<double>(kTimeout));
  EXPECT_TRUE(engine->step());  // only the third is left, and starts
  EXPECT_EQ(engine->stats().waiting_requests, 0);
  const Answer first = collect(*engine, ids[0]);
  EXPECT_EQ(first.last.finish, Finish::kTimeout);
  EXPECT_EQ(first.ids.size(), 1U);
  EXPECT_EQ(first.last.usage.generated_tokens, 1);
  const Answer second = collect(*engine, ids[1]);
  EXPECT_EQ(second.last.finish, Finish::kTimeout);
  EXPECT_TRUE(second.ids.empty());
  EXPECT_EQ(second.last.error, "");
  EXPECT_EQ(collect(*engine, ids[2]).last.finish, Finish::kLength);
  EXPECT_EQ(engine->stats().cache_tokens_used, 0);
}

TEST(Engine, PrioritiesDecideWhoComesFirst) {
  EngineOptions o = tiny_options();
  o.max_requests = 1;
  const std::unique_ptr<Engine> engine = Engine::open(o);
  std::vector<std::pair<int, RequestId>> waiting;
  const RequestId running = engine->submit(greedy(*engine, kStory, 3));
  EXPECT_TRUE(engine->step());
  for (const int priority : {1, 0, -7, 0}) {
    Request r = greedy(*engine, kWiki, 3);
    r.priority = priority;
    waiting.emplace_back(priority, engine->submit(r));
  }
  EXPECT_EQ(collect(*engine, running).last.finish, Finish::kLength);
  std::stable_sort(waiting.begin(), waiting.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  double earlier_s = -1;
  for (const auto& [priority, id] : waiting) {
    const Answer a = collect(*engine, id);
    EXPECT_EQ(a.last.finish, Finish::kLength);
    EXPECT_GT(a.last.usage.queue_s, earlier_s) << "priority " << priority;
    earlier_s = a.last.usage.queue_s + a.last.usage.prefill_s;
  }
}

TEST(Engine, RequestsThatCanNeverRun) {
  Engine& engine = shared_engine();
  const auto refusal = [&](auto change) {
    Request r = greedy(engine, kStory);
    change(r);
    try {
      engine.submit(r);
    } catch (const Error& e) { return std::string(e.what()); }
    return std::string("accepted");
  };
  EXPECT_EQ(refusal([](Request& r) { r.ids.clear(); }), "ids: found no token, expected at least one");
  EXPECT_NE(refusal([](Request& r) { r.ids[2] = 8190; }).find("ids[2]: found 8190"), std::string::npos);
  EXPECT_NE(refusal([](Request& r) { r.ids[0] = -1; }).find("ids[0]: found -1"), std::string::npos);
  EXPECT_NE(refusal([](Request& r) { r.ids.assign(1024, 5); }).find("1024"), std::string::npos);
  EXPECT_NE(refusal([](Request& r) { r.max_tokens = -1; }).find("max_tokens"), std::string::npos);
  EXPECT_NE(refusal([](Request& r) { r.sampling.temperature = -1; }).find("temperature"), std::string::npos);
  EXPECT_NE(refusal([](Request& r) { r.sampling.temperature = NAN; }).find("temperature"), std::string::npos);
  EXPECT_NE(refusal([](Request& r) { r.sampling.top_p = 0; }).find("top_p"), std::string::npos);
  EXPECT_NE(refusal([](Request& r) { r.sampling.logprobs = 21; }).find("logprobs"), std::string::npos);
  EXPECT_NE(refusal([](Request& r) { r.sampling.logit_bias = {{9000, 1.0F}}; }).find("9000"), std::string::npos);
  EXPECT_NE(refusal([](Request& r) { r.stop_ids = {8192}; }).find("stop_ids[0]"), std::string::npos);
  EXPECT_NE(refusal([](Request& r) { r.timeout_s = -1; }).find("timeout_s"), std::string::npos);
  EXPECT_NE(refusal([](Request& r) { r.timeout_s = NAN; }).find("timeout_s"), std::string::npos);
  EXPECT_NE(refusal([](Request& r) { r.stop = {""}; }).find("stop: found an empty string"), std::string::npos);
  EXPECT_FALSE(engine.step());  // nothing of it got in
}

TEST(Engine, OptionsThatCannotBe) {
  const auto refusal = [](auto change) {
    EngineOptions o = tiny_options();
    change(o);
    try {
      Engine::open(o);
    } catch (const Error& e) { return std::string(e.what()); }
    return std::string("opened");
  };
  EXPECT_NE(refusal([](EngineOptions& o) { o.device = "gpu"; }).find("device: found \"gpu\""), std::string::npos);
  EXPECT_NE(refusal([](EngineOptions& o) { o.kv = "int3"; }).find("kv: found \"int3\""), std::string::npos);
  EXPECT_NE(refusal([](EngineOptions& o) { o.isa = "sse2"; }).find("sse2"), std::string::npos);
  EXPECT_NE(refusal([](EngineOptions& o) { o.chunk_tokens = -1; }).find("chunk_tokens"), std::string::npos);
  EXPECT_NE(refusal([](EngineOptions& o) { o.max_context = 9000; }).find("8192"), std::string::npos);
  EXPECT_NE(refusal([](EngineOptions& o) { o.cache_tokens = 512; }).find("512"), std::string::npos);
  EXPECT_NE(refusal([](EngineOptions& o) { o.cache_tokens = 1 << 30; }).find("free memory"), std::string::npos);
  EXPECT_NE(refusal([](EngineOptions& o) { o.model_dir = "no/such/model"; }).find("no/such/model"), std::string::npos);
  EXPECT_NE(refusal([](EngineOptions& o) { o.model_dir.clear(); }).find("model_dir"), std::string::npos);
  // Random weights take a directory's tokenizer, which is looked for before they are made.
  const std::string random = refusal([](EngineOptions& o) { o.model_dir = "no/such/model", o.synthetic_layers = 2; });
  EXPECT_NE(random.find("no/such/model/tokenizer.json"), std::string::npos) << random;
}

TEST(Engine, ScoreInWindows) {
  Engine& engine = shared_engine();
  const std::vector<std::int32_t> ids = engine.encode(kStory);  // 18
  ASSERT_EQ(ids.size(), 18U);
  std::vector<std::int64_t> progress;
  const std::vector<float> windows = engine.score(ids, 6, [&](std::int64_t done, std::int64_t all) {
    EXPECT_EQ(all, 15);
    progress.push_back(done);
  });
  // Windows of 7 tokens: 6 + 6 predictions, and 3 of the 4 tokens left.
  ASSERT_EQ(windows.size(), 15U);
  EXPECT_EQ(progress.back(), 15);
  const std::vector<float> second = engine.score(std::span(ids).subspan(7, 7));
  EXPECT_EQ(std::vector(windows.begin() + 6, windows.begin() + 12), second);
  const std::vector<float> tail = engine.score(std::span(ids).subspan(14));
  EXPECT_EQ(std::vector(windows.begin() + 12, windows.end()), tail);
  EXPECT_TRUE(engine.score(std::span(ids).first(1)).empty());
  EXPECT_THROW(engine.score(std::vector<std::int32_t>(1026, 5)), Error);
  EXPECT_THROW(engine.score(std::vector<std::int32_t>{1, -7}), Error);
  // A progress callback that throws ends the scoring and leaves no request behind.
  EXPECT_THROW(engine.score(ids, 6, [](std::int64_t, std::int64_t) { throw Error("enough"); }), Error);
  EXPECT_FALSE(engine.step());
  EXPECT_EQ(engine.stats().cache_tokens_used, 0);
}

TEST(Engine, TextAndInfo) {
  Engine& engine = shared_engine();
  EXPECT_EQ(engine.render_chat(R"({"messages": [{"role": "user", "content": "Hi"}], "enable_thinking": false})"),
            "[gMASK]<sop><|user|>Hi<|assistant|></think>");
  EXPECT_EQ(engine.render_chat(R"({"messages": [{"role": "user", "content": "Hi"}], "add_generation_prompt": false})"),
            "[gMASK]<sop><|user|>Hi");
  EXPECT_EQ(engine.parse_output("hm</think>Hi", "{}"),
            R"({"reasoning_content": "hm", "content": "Hi", "tool_calls": []})");
  EXPECT_EQ(engine.encode("<|user|>").size(), 1U);
  EXPECT_GT(engine.encode("<|user|>", true).size(), 1U);
  const ModelInfo& info = engine.info();
  EXPECT_EQ(info.n_layers, 7);
  EXPECT_TRUE(info.has_mtp);
  EXPECT_EQ(info.vocab, 8192);
  EXPECT_EQ(info.eos_ids, (std::vector<std::int32_t>{8128, 8135, 8137}));
  EXPECT_GT(info.n_parameters, 37'000'000);
  EXPECT_LT(info.n_parameters, 42'000'000);
  EXPECT_EQ(info.cache_bytes_a_token, 7 * 1152);
}

}  // namespace
}  // namespace glint::testing
