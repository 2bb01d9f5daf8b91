// glint._native: the C ABI (glint.h) as a Python class. Thin on purpose: JSON texts in, events out. Argument checks,
// defaults and documentation are in python/glint/.
//
// The GIL is released in every call that opens, waits, computes or takes a lock. A wait wakes up ten times a second to
// let Python handle signals, so that Ctrl-C works.

#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "glint/glint.h"

namespace nb = nanobind;

namespace {

// Becomes glint.Error.
struct GlintError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Freed {
  void operator()(void* p) const { glint_free(p); }
};
template <typename T>
using Owned = std::unique_ptr<T, Freed>;

// The place for a C function's error text.
class ErrorText {
 public:
  char** out() { return &text_; }
  [[noreturn]] void raise() {
    const Owned<char> owned(text_);
    throw GlintError(text_ == nullptr ? "unknown failure" : text_);
  }

 private:
  char* text_ = nullptr;
};

struct Event {
  std::int32_t token = -1;
  std::string text;
  std::optional<float> logprob;
  std::vector<std::pair<std::int32_t, float>> top_logprobs;
  std::int64_t prefill_done = 0;
  std::int32_t finish = GLINT_NOT_FINISHED;
  std::string stop_string;
  std::string error;
  glint_usage usage{};
};

Event to_event(const glint_event& e) {
  Event out{.token = e.token,
            .text = std::string(e.text, e.text_bytes),
            .logprob = {},
            .top_logprobs = {},
            .prefill_done = e.prefill_done,
            .finish = e.finish,
            .stop_string = e.stop_string,
            .error = e.error,
            .usage = e.usage};
  if (e.has_logprob != 0) out.logprob = e.logprob;
  for (std::size_t i = 0; i < e.n_top_logprobs; ++i) {
    out.top_logprobs.emplace_back(e.top_logprobs[i].id, e.top_logprobs[i].logprob);
  }
  return out;
}

std::optional<std::string> finish_reason(std::int32_t finish) {
  switch (finish) {
    case GLINT_EOS:
      return "eos";
    case GLINT_STOP:
      return "stop";
    case GLINT_LENGTH:
      return "length";
    case GLINT_CANCELLED:
      return "cancelled";
    case GLINT_TIMEOUT:
      return "timeout";
    case GLINT_ERROR:
      return "error";
    default:
      return std::nullopt;
  }
}

// Hears what the engine tells unasked. Loading progress goes to a Python callable; an exception in it is kept for when
// the load has ended, since it must not pass through C. Notices come from any thread and wait, the newest kMost of
// them, until Python asks for them.
class Listener {
 public:
  explicit Listener(const nb::object& on_load) : on_load_(&on_load) {}

  glint_callbacks callbacks() {
    return {.on_load = on_load_->is_none() ? nullptr : &Listener::load, .on_notice = &Listener::notice, .user = this};
  }

  // The load has ended: the callable may go.
  std::exception_ptr loaded() {
    on_load_ = nullptr;
    return std::exchange(failed_, nullptr);
  }

  std::vector<std::string> take_notices() {
    const std::lock_guard lock(mutex_);
    return std::exchange(notices_, {});
  }

 private:
  static constexpr std::size_t kMost = 100;

  static void load(std::uint64_t done, std::uint64_t total, void* self) {
    auto* me = static_cast<Listener*>(self);
    const nb::gil_scoped_acquire gil;
    if (me->failed_) return;
    try {
      (*me->on_load_)(done, total);
    } catch (...) { me->failed_ = std::current_exception(); }
  }

  static void notice(const char* text, void* self) {
    auto* me = static_cast<Listener*>(self);
    const std::lock_guard lock(me->mutex_);
    if (me->notices_.size() == kMost) me->notices_.erase(me->notices_.begin());
    me->notices_.emplace_back(text);
  }

  const nb::object* on_load_;
  std::exception_ptr failed_;
  std::mutex mutex_;
  std::vector<std::string> notices_;
};

class Engine {
 public:
  using Handle = std::shared_ptr<glint_engine>;

  Engine(const std::string& options_json, const nb::object& on_load) : listener_(std::make_shared<Listener>(on_load)) {
    const glint_callbacks callbacks = listener_->callbacks();
    std::exception_ptr failed;
    {
      const nb::gil_scoped_release no_gil;
      ErrorText error;
      glint_engine* opened = glint_open(options_json.c_str(), &callbacks, error.out());
      if (opened == nullptr) error.raise();
      engine_ = Handle(opened, [listener = listener_](glint_engine* engine) { glint_close(engine); });
      failed = listener_->loaded();
      if (failed) engine_.reset();
    }
    if (failed) std::rethrow_exception(failed);
  }
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;
  ~Engine() {
    const nb::gil_scoped_release no_gil;
    close();
  }

  // Ends all requests. Threads inside other calls keep the model until they come back; waiting ones do at once, since
  // their requests are cancelled. Who reads a request's events later finds that it was cancelled.
  void close() {
    Handle engine;
    std::set<std::int64_t> live;
    {
      const std::lock_guard lock(mutex_);
      engine.swap(engine_);
      live = live_;
    }
    if (engine == nullptr) return;
    for (const std::int64_t id : live) glint_cancel(engine.get(), id);
  }

  bool closed() const {
    const std::lock_guard lock(mutex_);
    return engine_ == nullptr;
  }

  std::int64_t submit(const std::string& request_json) {
    const Handle engine = open_handle();
    ErrorText error;
    const std::int64_t id = glint_submit(engine.get(), request_json.c_str(), error.out());
    if (id < 0) error.raise();
    bool closed_meanwhile = false;
    {
      const std::lock_guard lock(mutex_);
      live_.insert(id);
      closed_meanwhile = engine_ == nullptr;
    }
    if (closed_meanwhile) glint_cancel(engine.get(), id);
    return id;
  }

  // The request's next event, or nothing within timeout_ms (negative: no limit). Called with the GIL held.
  std::optional<Event> next(std::int64_t id, std::int64_t timeout_ms) {
    using Clock = std::chrono::steady_clock;
    constexpr std::int64_t kSliceMs = 100;
    Handle engine;
    {
      const nb::gil_scoped_release no_gil;
      const std::lock_guard lock(mutex_);
      engine = engine_;
      if (engine == nullptr) {
        if (live_.erase(id) == 0) throw GlintError("the engine is closed");
        Event cancelled;
        cancelled.finish = GLINT_CANCELLED;
        return cancelled;
      }
    }
    const auto deadline = Clock::now() + std::chrono::milliseconds(std::max<std::int64_t>(timeout_ms, 0));
    for (;;) {
      std::int64_t wait_ms = kSliceMs;
      if (timeout_ms >= 0) {
        const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - Clock::now()).count();
        wait_ms = std::clamp<std::int64_t>(left, 0, kSliceMs);
      }
      std::optional<Event> event;
      {
        const nb::gil_scoped_release no_gil;
        event = wait(engine, id, wait_ms);
        if (event || (timeout_ms >= 0 && Clock::now() >= deadline)) {
          engine.reset();  // perhaps the last one: closing joins a thread
          return event;
        }
      }
      if (PyErr_CheckSignals() != 0) throw nb::python_error();
    }
  }

  void cancel(std::int64_t id) {
    Handle engine;
    {
      const std::lock_guard lock(mutex_);
      engine = engine_;
    }
    if (engine) glint_cancel(engine.get(), id);
  }

  // Cancels a request and reads its events to the end, so that nothing of it stays behind.
  void discard(std::int64_t id) {
    Handle engine;
    {
      const std::lock_guard lock(mutex_);
      engine = engine_;
      if (!engine) live_.erase(id);
      if (live_.find(id) == live_.end()) return;
    }
    glint_cancel(engine.get(), id);
    glint_event event;
    constexpr std::int64_t kWaitMs = 1000;
    for (int got = 1; got >= 0; got = glint_next(engine.get(), id, kWaitMs, &event, nullptr)) {}
    forget(id);
  }

  std::vector<std::int32_t> encode(const nb::bytes& text, bool literal) {
    const char* data = text.c_str();
    const std::size_t size = text.size();
    const nb::gil_scoped_release no_gil;
    const Handle engine = open_handle();
    ErrorText error;
    std::int32_t* ids = nullptr;
    std::size_t n = 0;
    if (glint_encode(engine.get(), data, size, literal ? 1 : 0, &ids, &n, error.out()) != 0) error.raise();
    const Owned<std::int32_t> owned(ids);
    return {ids, ids + n};
  }

  nb::bytes decode(const std::vector<std::int32_t>& ids, bool skip_special) {
    Owned<char> text;
    std::size_t size = 0;
    {
      const nb::gil_scoped_release no_gil;
      const Handle engine = open_handle();
      ErrorText error;
      text.reset(glint_decode(engine.get(), ids.data(), ids.size(), skip_special ? 1 : 0, &size, error.out()));
      if (text == nullptr) error.raise();
    }
    return nb::bytes(text.get(), size);
  }

  std::string render_chat(const std::string& request_json) {
    return text_of([&](glint_engine* e, char** error) { return glint_render_chat(e, request_json.c_str(), error); });
  }

  std::string parse_output(const std::string& text, const std::string& options_json) {
    return text_of([&](glint_engine* e, char** error) {
      return glint_parse_output(e, text.data(), text.size(), options_json.c_str(), error);
    });
  }

  std::vector<float> score(const std::vector<std::int32_t>& ids) {
    const Handle engine = open_handle();
    std::vector<float> out(ids.size() + 1);  // never NULL
    ErrorText error;
    if (glint_score(engine.get(), ids.data(), ids.size(), out.data(), error.out()) != 0) error.raise();
    out.resize(ids.empty() ? 0 : ids.size() - 1);
    return out;
  }

  std::string stats() { return text_of(glint_stats); }
  std::string info() { return text_of(glint_info); }
  std::vector<std::string> notices() { return listener_->take_notices(); }

 private:
  Handle open_handle() const {
    const std::lock_guard lock(mutex_);
    if (engine_ == nullptr) throw GlintError("the engine is closed");
    return engine_;
  }

  void forget(std::int64_t id) {
    const std::lock_guard lock(mutex_);
    live_.erase(id);
  }

  std::optional<Event> wait(const Handle& engine, std::int64_t id, std::int64_t timeout_ms) {
    glint_event event;
    ErrorText error;
    const int got = glint_next(engine.get(), id, timeout_ms, &event, error.out());
    if (got < 0) error.raise();
    if (got == 0) return std::nullopt;
    if (event.finish != GLINT_NOT_FINISHED) forget(id);
    return to_event(event);
  }

  template <typename Call>
  std::string text_of(Call call) {
    const Handle engine = open_handle();
    ErrorText error;
    const Owned<char> text(call(engine.get(), error.out()));
    if (text == nullptr) error.raise();
    return text.get();
  }

  const std::shared_ptr<Listener> listener_;  // the engine's too, until it has closed
  mutable std::mutex mutex_;                  // never held while waiting or while taking the GIL
  Handle engine_;
  std::set<std::int64_t> live_;  // requests whose last event has not been read, also after close()
};

}  // namespace

NB_MODULE(_native, m) {
  nb::exception<GlintError>(m, "Error", PyExc_RuntimeError);
  m.def("version", [] { return std::string(glint_version()); });

  nb::class_<glint_usage>(m, "Usage")
      .def_ro("prompt_tokens", &glint_usage::prompt_tokens)
      .def_ro("cached_tokens", &glint_usage::cached_tokens)
      .def_ro("generated_tokens", &glint_usage::generated_tokens)
      .def_ro("queue_s", &glint_usage::queue_s)
      .def_ro("prefill_s", &glint_usage::prefill_s)
      .def_ro("decode_s", &glint_usage::decode_s)
      .def_ro("seed", &glint_usage::seed)
      .def_ro("logits_hash", &glint_usage::logits_hash);

  nb::class_<Event>(m, "Event")
      .def_ro("token", &Event::token)
      .def_ro("text", &Event::text)
      .def_ro("logprob", &Event::logprob)
      .def_ro("top_logprobs", &Event::top_logprobs)
      .def_ro("prefill_done", &Event::prefill_done)
      .def_prop_ro("finish_reason", [](const Event& e) { return finish_reason(e.finish); })
      .def_ro("stop_string", &Event::stop_string)
      .def_ro("error", &Event::error)
      .def_ro("usage", &Event::usage);

  using Unlocked = nb::call_guard<nb::gil_scoped_release>;
  nb::class_<Engine>(m, "Engine")
      .def(nb::init<const std::string&, const nb::object&>(), nb::arg("options_json"),
           nb::arg("on_load").none() = nb::none())
      .def("close", &Engine::close, Unlocked())
      .def_prop_ro("closed", &Engine::closed)
      .def("submit", &Engine::submit, nb::arg("request_json"), Unlocked())
      .def("next", &Engine::next, nb::arg("request"), nb::arg("timeout_ms") = -1)
      .def("cancel", &Engine::cancel, nb::arg("request"), Unlocked())
      .def("discard", &Engine::discard, nb::arg("request"), Unlocked())
      .def("encode", &Engine::encode, nb::arg("text"), nb::arg("literal") = false)
      .def("decode", &Engine::decode, nb::arg("ids"), nb::arg("skip_special") = false)
      .def("render_chat", &Engine::render_chat, nb::arg("request_json"), Unlocked())
      .def("parse_output", &Engine::parse_output, nb::arg("text"), nb::arg("options_json"), Unlocked())
      .def("score", &Engine::score, nb::arg("ids"), Unlocked())
      .def("stats", &Engine::stats, Unlocked())
      .def("info", &Engine::info, Unlocked())
      .def("notices", &Engine::notices, Unlocked());
}
