// The engine with its own thread: callers on several threads. Also run under ThreadSanitizer.

#include <gtest/gtest.h>

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "engine/engine_fixture.hpp"

namespace glint::testing {
namespace {

EngineOptions threaded_options() {
  EngineOptions o = tiny_options();
  o.use_thread = true;
  o.threads = 2;  // the backend has a pool of its own
  return o;
}

TEST(EngineThread, ManyCallersGetTheirOwnAnswers) {
  const auto engine = Engine::open(threaded_options());
  const std::vector<std::string> texts = {kStory, kWiki, kChat};
  std::vector<Answer> want;
  for (const std::string& text : texts) want.push_back(answer(*engine, greedy(*engine, text, 12)));
  std::vector<std::thread> callers;
  for (std::size_t t = 0; t < texts.size(); ++t) {
    callers.emplace_back([&, t] {
      for (int i = 0; i < 2; ++i) {
        const Answer got = answer(*engine, greedy(*engine, texts[t], 12));
        EXPECT_EQ(got.ids, want[t].ids);
        EXPECT_EQ(got.last.usage.logits_hash, want[t].last.usage.logits_hash);
        engine->stats();
      }
    });
  }
  callers.emplace_back(
      [&] { EXPECT_EQ(engine->score(engine->encode(kWiki)).size(), engine->encode(kWiki).size() - 1); });
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(engine->stats().running_requests, 0);
  EXPECT_EQ(engine->stats().cache_tokens_used, 0);
}

TEST(EngineThread, TimeoutsAndCancelFromAnotherThread) {
  const auto engine = Engine::open(threaded_options());
  Request r = greedy(*engine, kStory, 900);
  r.ignore_eos = true;
  const RequestId id = engine->submit(r);
  std::atomic<int> tokens{0};
  std::thread reader([&] {
    for (;;) {
      const std::optional<Event> e = engine->next(id, std::chrono::milliseconds(50));
      if (!e) continue;
      if (e->token >= 0) ++tokens;
      if (e->finish == Finish::kNone) continue;
      EXPECT_EQ(e->finish, Finish::kCancelled);
      return;
    }
  });
  while (tokens < 3) std::this_thread::yield();
  engine->cancel(id);
  reader.join();
  EXPECT_THROW(engine->next(id, std::chrono::milliseconds(1)), Error);
  EXPECT_THROW(engine->step(), Error);
}

TEST(EngineThread, NextGivesUpAfterItsTimeout) {
  EngineOptions o = threaded_options();
  o.max_requests = 1;
  const auto engine = Engine::open(o);
  Request r = greedy(*engine, kStory, 900);
  r.ignore_eos = true;
  const RequestId running = engine->submit(r);
  const RequestId waiting = engine->submit(r);
  EXPECT_FALSE(engine->next(waiting, std::chrono::milliseconds(5)).has_value());
  engine->cancel(waiting);
  EXPECT_EQ(collect(*engine, waiting).last.finish, Finish::kCancelled);
  engine->cancel(running);
}

TEST(EngineThread, DestructionEndsRunningRequests) {
  for (int i = 0; i < 3; ++i) {
    auto engine = Engine::open(threaded_options());
    Request r = greedy(*engine, kStory, 900);
    r.ignore_eos = true;
    const RequestId a = engine->submit(r);
    engine->submit(r);  // nobody reads this one
    std::atomic<bool> reading{false};
    Finish finish = Finish::kNone;
    Engine* const raw = engine.get();
    std::thread reader([&, raw] {
      // Only the first wait may meet the destructor: the engine is gone when next() returns the end.
      for (;;) {
        const std::optional<Event> e = raw->next(a);
        reading = true;
        if (!e || e->finish == Finish::kNone) continue;
        finish = e->finish;
        return;
      }
    });
    while (!reading) std::this_thread::yield();
    raw->cancel(a);  // the reader's end, so that it touches the engine no more
    reader.join();
    EXPECT_EQ(finish, Finish::kCancelled);
    engine.reset();  // with the other request still running
  }
}

// on_ready instead of a thread that waits: every event is announced, and none is announced twice while it waits.
TEST(EngineThread, OnReadyAnnouncesEvents) {
  const auto engine = Engine::open(threaded_options());
  const Answer want = answer(*engine, greedy(*engine, kStory, 24));
  std::mutex mutex;
  std::condition_variable changed;
  int announced = 0;
  Request r = greedy(*engine, kStory, 24);
  r.on_ready = [&] {
    const std::lock_guard lock(mutex);
    ++announced;
    changed.notify_all();
  };
  const RequestId id = engine->submit(r);
  std::vector<std::int32_t> ids;
  for (bool over = false; !over;) {
    {
      std::unique_lock lock(mutex);
      ASSERT_TRUE(changed.wait_for(lock, std::chrono::seconds(60), [&] { return announced > 0; }));
      announced = 0;
    }
    while (!over) {
      const auto event = engine->next(id, std::chrono::milliseconds(0));
      if (!event) break;
      if (event->token >= 0) ids.push_back(event->token);
      over = event->finish != Finish::kNone;
    }
  }
  EXPECT_EQ(ids, want.ids);
  EXPECT_EQ(announced, 0);
}

TEST(EngineThread, AbandonedRequestsAreForgottenAtOnce) {
  const auto engine = Engine::open(threaded_options());
  Request r = greedy(*engine, kStory, 900);
  r.ignore_eos = true;
  std::atomic<int> announced{0};
  r.on_ready = [&announced] { ++announced; };
  const RequestId waited_for = engine->submit(r);
  std::thread reader([&] {  // whoever waits for it is told
    EXPECT_THROW(while (engine->next(waited_for)){}, Error);
  });
  while (announced == 0) std::this_thread::yield();
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  engine->abandon(waited_for);
  reader.join();
  EXPECT_THROW(engine->next(waited_for, std::chrono::milliseconds(0)), Error);
  engine->abandon(engine->submit(r));
  engine->abandon(waited_for);
  engine->abandon(12345);
  const auto held = [&engine] {
    const EngineStats s = engine->stats();
    return s.waiting_requests + s.running_requests + s.cache_tokens_used;
  };
  for (int i = 0; i < 500 && held() > 0; ++i) std::this_thread::sleep_for(std::chrono::milliseconds(10));
  EXPECT_EQ(engine->stats().running_requests, 0);
  EXPECT_EQ(engine->stats().waiting_requests, 0);
  EXPECT_EQ(engine->stats().cache_tokens_used, 0);
}

// A thread that waits while the engine goes away gets the end of its request.
TEST(EngineThread, DestructionWakesWaiters) {
  EngineOptions o = threaded_options();
  o.max_requests = 1;
  auto engine = Engine::open(o);
  Request r = greedy(*engine, kStory, 900);
  r.ignore_eos = true;
  engine->submit(r);
  const RequestId waiting = engine->submit(r);  // never starts, so that next() has nothing before the end
  Engine* const raw = engine.get();
  std::atomic<bool> entered{false};
  std::optional<Event> last;
  std::thread reader([&, raw] {
    entered = true;
    last = raw->next(waiting);
  });
  while (!entered) std::this_thread::yield();
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  engine.reset();
  reader.join();
  ASSERT_TRUE(last.has_value());
  EXPECT_EQ(last->finish, Finish::kCancelled);
}

}  // namespace
}  // namespace glint::testing
