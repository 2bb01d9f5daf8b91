#pragma once
// The bundled model in an engine, and the ways tests read its events.

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "base/error.hpp"
#include "glint/engine.hpp"

namespace glint::testing {

inline EngineOptions tiny_options() {
  EngineOptions o;
  o.model_dir = "models/tiny";
  o.threads = 1;
  o.max_context = 1024;
  o.cache_tokens = 8192;
  o.use_thread = false;
  return o;
}

// One engine for the tests that need no options of their own; without a thread, so that steps are the test's.
inline Engine& shared_engine() {
  static const std::unique_ptr<Engine> engine = Engine::open(tiny_options());
  return *engine;
}

struct Answer {
  std::vector<std::int32_t> ids;
  std::vector<float> logprobs;
  std::vector<std::vector<TokenLogprob>> top;
  std::string text;
  Event last;
};

// Reads a request to its end.
inline Answer collect(Engine& engine, RequestId id) {
  Answer a;
  for (;;) {
    std::optional<Event> event = engine.next(id, std::nullopt);
    if (!event) {
      ADD_FAILURE() << "request " << id << " has nothing to do and no end";
      return a;
    }
    if (event->token >= 0) a.ids.push_back(event->token);
    if (event->logprob) a.logprobs.push_back(event->logprob->logprob);
    if (event->logprob) a.top.push_back(event->top_logprobs);
    a.text += event->text;
    if (event->finish != Finish::kNone) {
      a.last = std::move(*event);
      return a;
    }
  }
}

inline Request greedy(const Engine& engine, const std::string& text, std::int64_t max_tokens = 32) {
  Request r;
  r.ids = engine.encode(text);
  r.sampling.temperature = 0;
  r.max_tokens = max_tokens;
  return r;
}

inline Answer answer(Engine& engine, const Request& request) { return collect(engine, engine.submit(request)); }

inline constexpr const char* kStory = "[gMASK]<sop>Once upon a time, there was a little girl named Lily. She loved to";
inline constexpr const char* kWiki = "[gMASK]<sop>The history of the city of London began with the Romans, who";
inline constexpr const char* kChat = "[gMASK]<sop><|user|>Explain quantum computing.<|assistant|></think>";

}  // namespace glint::testing
