// The C ABI (glint.h) over the C++ API: converts, and lets no exception pass.

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <utility>

#include "base/error.hpp"
#include "engine/api_json.hpp"
#include "glint/engine.hpp"
#include "glint/glint.h"

struct glint_engine {
  std::unique_ptr<glint::Engine> engine;
};

namespace {

// Memory of malloc, since glint_free must free all kinds. Null when memory is out.
char* copy_bytes(std::string_view s) {
  auto* p = static_cast<char*>(std::malloc(s.size() + 1));
  if (p == nullptr) return nullptr;
  if (!s.empty()) std::memcpy(p, s.data(), s.size());
  p[s.size()] = '\0';
  return p;
}

void set_error(char** error, const char* text) {
  if (error != nullptr) *error = copy_bytes(text);
}

// body()'s value, or `failed` with *error set when it throws.
template <typename T, typename Body>
T guarded(char** error, T failed, Body body) noexcept {
  try {
    return body();
  } catch (const std::bad_alloc&) { set_error(error, "out of memory"); } catch (const std::exception& e) {
    set_error(error, e.what());
  } catch (...) { set_error(error, "unknown failure"); }
  return failed;
}

const char* required(const char* text, const char* name) {
  if (text == nullptr) throw glint::Error({.what = name, .found = "NULL", .expected = "a string"});
  return text;
}

glint::Engine& open_engine(glint_engine* engine) {
  if (engine == nullptr) throw glint::Error({.what = "engine", .found = "NULL", .expected = "an open engine"});
  return *engine->engine;
}

char* give(std::string_view s) {
  char* p = copy_bytes(s);
  if (p == nullptr) throw std::bad_alloc();
  return p;
}

// What the pointers of the thread's last glint_event point into.
struct LastEvent {
  glint::Event event;
  std::vector<glint_token_logprob> top;
};
thread_local LastEvent last_event;

void fill(glint_event& out, LastEvent& last) {
  const glint::Event& e = last.event;
  last.top.clear();
  for (const glint::TokenLogprob& t : e.top_logprobs) last.top.push_back({t.id, t.logprob});
  out = glint_event{};
  out.token = e.token;
  out.text = e.text.c_str();
  out.text_bytes = e.text.size();
  out.has_logprob = e.logprob ? 1 : 0;
  out.logprob = e.logprob ? e.logprob->logprob : 0.0F;
  out.top_logprobs = last.top.data();
  out.n_top_logprobs = last.top.size();
  out.prefill_done = e.prefill_done;
  out.finish = static_cast<std::int32_t>(e.finish);
  out.stop_string = e.stop_string.c_str();
  out.error = e.error.c_str();
  out.usage = {.prompt_tokens = e.usage.prompt_tokens,
               .cached_tokens = e.usage.cached_tokens,
               .generated_tokens = e.usage.generated_tokens,
               .queue_s = e.usage.queue_s,
               .prefill_s = e.usage.prefill_s,
               .decode_s = e.usage.decode_s,
               .seed = e.usage.seed,
               .logits_hash = e.usage.logits_hash};
}

static_assert(GLINT_NOT_FINISHED == static_cast<int>(glint::Finish::kNone));
static_assert(GLINT_EOS == static_cast<int>(glint::Finish::kEos));
static_assert(GLINT_STOP == static_cast<int>(glint::Finish::kStop));
static_assert(GLINT_LENGTH == static_cast<int>(glint::Finish::kLength));
static_assert(GLINT_CANCELLED == static_cast<int>(glint::Finish::kCancelled));
static_assert(GLINT_ERROR == static_cast<int>(glint::Finish::kError));
static_assert(GLINT_TIMEOUT == static_cast<int>(glint::Finish::kTimeout));

}  // namespace

extern "C" {

const char* glint_version(void) { return "0.1.0"; }

glint_engine* glint_open(const char* options_json, const glint_callbacks* callbacks, char** error) {
  return guarded<glint_engine*>(error, nullptr, [&] {
    glint::EngineOptions options = glint::engine_options_from_json(required(options_json, "options"));
    const glint_callbacks c = callbacks != nullptr ? *callbacks : glint_callbacks{};
    if (c.on_load != nullptr) {
      options.on_load = [c](std::uint64_t done, std::uint64_t all) { c.on_load(done, all, c.user); };
    }
    if (c.on_notice != nullptr) options.on_notice = [c](const std::string& text) { c.on_notice(text.c_str(), c.user); };
    auto engine = std::make_unique<glint_engine>();
    engine->engine = glint::Engine::open(options);
    return engine.release();
  });
}

void glint_close(glint_engine* engine) { delete engine; }

int64_t glint_submit(glint_engine* engine, const char* request_json, char** error) {
  return guarded<std::int64_t>(error, -1, [&] {
    return open_engine(engine).submit(glint::request_from_json(required(request_json, "request")));
  });
}

int glint_next(glint_engine* engine, int64_t request, int64_t timeout_ms, glint_event* event, char** error) {
  return guarded<int>(error, -1, [&] {
    if (event == nullptr) throw glint::Error({.what = "event", .found = "NULL", .expected = "a place for the event"});
    std::optional<std::chrono::milliseconds> timeout;
    if (timeout_ms >= 0) timeout = std::chrono::milliseconds(timeout_ms);
    std::optional<glint::Event> next = open_engine(engine).next(request, timeout);
    if (!next) return 0;
    last_event.event = std::move(*next);
    fill(*event, last_event);
    return 1;
  });
}

void glint_cancel(glint_engine* engine, int64_t request) {
  guarded<int>(nullptr, 0, [&] {
    open_engine(engine).cancel(request);
    return 0;
  });
}

int glint_encode(glint_engine* engine, const char* text, size_t text_bytes, int literal, int32_t** ids, size_t* n_ids,
                 char** error) {
  return guarded<int>(error, -1, [&] {
    if (ids == nullptr || n_ids == nullptr) throw glint::Error("glint_encode: ids and n_ids must not be NULL");
    if (text_bytes > 0) required(text, "text");
    const auto tokens = open_engine(engine).encode({text_bytes > 0 ? text : "", text_bytes}, literal != 0);
    auto* out = static_cast<std::int32_t*>(std::malloc(tokens.size() * sizeof(std::int32_t) + 1));
    if (out == nullptr) throw std::bad_alloc();
    if (!tokens.empty()) std::memcpy(out, tokens.data(), tokens.size() * sizeof(std::int32_t));
    *ids = out;
    *n_ids = tokens.size();
    return 0;
  });
}

char* glint_decode(glint_engine* engine, const int32_t* ids, size_t n_ids, int skip_special, size_t* n_bytes,
                   char** error) {
  return guarded<char*>(error, nullptr, [&] {
    if (ids == nullptr && n_ids > 0) throw glint::Error("glint_decode: ids must not be NULL");
    const std::string text = open_engine(engine).decode({ids, n_ids}, skip_special != 0);
    char* out = give(text);
    if (n_bytes != nullptr) *n_bytes = text.size();
    return out;
  });
}

char* glint_render_chat(glint_engine* engine, const char* request_json, char** error) {
  return guarded<char*>(error, nullptr,
                        [&] { return give(open_engine(engine).render_chat(required(request_json, "request"))); });
}

char* glint_parse_output(glint_engine* engine, const char* text, size_t text_bytes, const char* options_json,
                         char** error) {
  return guarded<char*>(error, nullptr, [&] {
    if (text_bytes > 0) required(text, "text");
    return give(open_engine(engine).parse_output({text_bytes > 0 ? text : "", text_bytes},
                                                 options_json == nullptr ? "{}" : options_json));
  });
}

int glint_score(glint_engine* engine, const int32_t* ids, size_t n_ids, float* logprobs, char** error) {
  return guarded<int>(error, -1, [&] {
    if (n_ids > 0 && (ids == nullptr || logprobs == nullptr)) {
      throw glint::Error("glint_score: ids and logprobs must not be NULL");
    }
    const std::vector<float> scores = open_engine(engine).score({ids, n_ids});
    if (!scores.empty()) std::memcpy(logprobs, scores.data(), scores.size() * sizeof(float));
    return 0;
  });
}

char* glint_stats(glint_engine* engine, char** error) {
  return guarded<char*>(error, nullptr, [&] { return give(glint::to_json(open_engine(engine).stats())); });
}

char* glint_info(glint_engine* engine, char** error) {
  return guarded<char*>(error, nullptr, [&] { return give(glint::to_json(open_engine(engine).info())); });
}

void glint_free(void* pointer) { std::free(pointer); }

}  // extern "C"
