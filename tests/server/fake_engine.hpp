#pragma once
// An engine of scripts for tests of endpoints: answers are texts that the test wrote, one token a piece, so that what a
// client gets can be compared word for word. Tokens are bytes: id = the byte. And a connection without a socket.

#include <algorithm>
#include <deque>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "base/error.hpp"
#include "base/json_value.hpp"
#include "glint/engine.hpp"
#include "server/http.hpp"
#include "server/service.hpp"

namespace glint::testing {

struct Script {
  std::vector<std::string> pieces;  // one event each
  Finish finish = Finish::kEos;
  std::string stop_string;
  std::string error;
  bool endless = false;  // no end: the request runs until it is cancelled
};

class FakeEngine : public Engine {
 public:
  FakeEngine() {
    info_.backend = "fake";
    info_.max_context = 4000;
    info_.vocab = 256;
  }

  // Answers of the next submits, in order; then the last one again and again.
  std::deque<Script> scripts;
  std::vector<Request> requests;  // what was submitted
  std::set<RequestId> running;
  std::vector<RequestId> abandoned;

  RequestId submit(Request request) override {
    if (request.sampling.top_k > 1'000'000) throw Error({.what = "top_k", .found = "too much", .expected = "less"});
    const RequestId id = ++last_id_;
    running.insert(id);
    Script script = scripts.empty() ? Script{} : scripts.front();
    if (scripts.size() > 1) scripts.pop_front();
    std::deque<Event>& events = events_[id];
    Usage usage{.prompt_tokens = static_cast<std::int64_t>(request.ids.size()), .cached_tokens = 3};
    for (const std::string& piece : script.pieces) {
      Event e;
      e.token = 'a';
      e.text = piece;
      e.prefill_done = usage.prompt_tokens;
      ++usage.generated_tokens;
      e.usage = usage;
      if (request.sampling.logprobs >= 0) {
        e.logprob = TokenLogprob{piece.empty() ? 'a' : static_cast<unsigned char>(piece[0]), -0.5F};
        for (int i = 0; i < request.sampling.logprobs; ++i)
          e.top_logprobs.push_back({'a' + i, -0.5F - static_cast<float>(i)});
      }
      events.push_back(std::move(e));
    }
    if (!script.endless) {
      if (events.empty() || script.finish == Finish::kEos) {
        Event e;
        e.token = script.finish == Finish::kEos ? 0 : -1;
        ++usage.generated_tokens;
        e.usage = usage;
        e.prefill_done = usage.prompt_tokens;
        if (request.sampling.logprobs >= 0) e.logprob = TokenLogprob{0, -0.1F};
        events.push_back(std::move(e));
      }
      events.back().finish = script.finish;
      events.back().stop_string = script.stop_string;
      events.back().error = script.error;
    }
    const auto on_ready = request.on_ready;
    requests.push_back(std::move(request));
    if (on_ready) on_ready();
    return id;
  }

  std::optional<Event> next(RequestId id, std::optional<std::chrono::milliseconds>) override {
    if (!running.contains(id)) throw Error("unknown request");
    std::deque<Event>& events = events_[id];
    if (events.empty()) return std::nullopt;
    Event e = std::move(events.front());
    events.pop_front();
    if (e.finish != Finish::kNone) running.erase(id);
    return e;
  }

  void cancel(RequestId id) override { running.erase(id); }
  void abandon(RequestId id) override {
    abandoned.push_back(id);
    running.erase(id);
  }
  bool step() override { return false; }
  std::vector<float> score(std::span<const std::int32_t>, std::int64_t,
                           const std::function<void(std::int64_t, std::int64_t)>&) override {
    return {};
  }
  EngineStats stats() const override {
    EngineStats s;
    s.running_requests = static_cast<std::int64_t>(running.size());
    return s;
  }
  const ModelInfo& info() const override { return info_; }
  std::vector<std::int32_t> encode(std::string_view text, bool) const override {
    std::vector<std::int32_t> ids;
    for (const char c : text) ids.push_back(static_cast<unsigned char>(c));
    return ids;
  }
  std::string decode(std::span<const std::int32_t> ids, bool) const override {
    std::string text;
    for (const std::int32_t id : ids) {
      if (id < 0 || id > 255) throw Error({.what = "token", .found = std::to_string(id)});
      text += static_cast<char>(id);
    }
    return text;
  }
  std::string render_chat(std::string_view) const override { return {}; }
  std::string parse_output(std::string_view, std::string_view) const override { return {}; }

  // The prompt of the last request.
  std::string prompt() const { return decode(requests.back().ids, false); }

 private:
  ModelInfo info_;
  RequestId last_id_ = 0;
  std::map<RequestId, std::deque<Event>> events_;
};

// A connection of which nothing leaves the test.
class FakeConnection final : public server::Responder {
 public:
  server::HttpResponse response;
  std::string streamed;
  bool streaming = false;
  bool finished = false;

  void send(server::HttpResponse r) override {
    response = std::move(r);
    finished = true;
  }
  void start_stream(server::HttpResponse head) override {
    response = std::move(head);
    streaming = true;
  }
  void write(std::string_view bytes) override { streamed += bytes; }
  void finish() override { finished = true; }
  void post(std::function<void()> work) override { work_.push_back(std::move(work)); }

  // Runs what was posted.
  void pump() {
    while (!work_.empty()) {
      const auto work = std::move(work_.front());
      work_.pop_front();
      work();
    }
  }

 private:
  std::deque<std::function<void()>> work_;
};

struct Reply {
  int status = 0;
  std::string content_type;
  std::string body;  // of a stream all that was written
  bool finished = false;
  JsonValue json;                   // of a whole answer
  std::vector<JsonValue> chunks;    // of a stream, without [DONE]
  std::vector<std::string> events;  // their names, where they have some
  bool done_marker = false;
  std::string header(std::string_view name) const {
    for (const auto& [key, value] : headers) {
      if (key == name) return value;
    }
    return "";
  }
  std::vector<std::pair<std::string, std::string>> headers;
};

// Takes apart "data: …" and "event: …" lines.
inline void parse_stream(Reply& reply) {
  std::size_t at = 0;
  while (at < reply.body.size()) {
    const std::size_t end = std::min(reply.body.find('\n', at), reply.body.size());
    const std::string line = reply.body.substr(at, end - at);
    at = end + 1;
    if (line.starts_with("event: ")) reply.events.push_back(line.substr(7));
    if (!line.starts_with("data: ")) continue;
    if (line == "data: [DONE]") {
      reply.done_marker = true;
    } else {
      reply.chunks.push_back(parse_json_value(line.substr(6), "chunk"));
    }
  }
}

// The text at a path such as "choices/0/message/content"; "" if there is none.
inline const JsonValue* json_at(const JsonValue& json, std::string_view path) {
  const JsonValue* at = &json;
  while (!path.empty() && at != nullptr) {
    const std::size_t slash = std::min(path.find('/'), path.size());
    const std::string key(path.substr(0, slash));
    path.remove_prefix(std::min(slash + 1, path.size()));
    if (at->is(JsonValue::Kind::kArray)) {
      const std::size_t i = std::stoul(key);
      at = i < at->items.size() ? &at->items[i] : nullptr;
    } else {
      at = at->find(key);
    }
  }
  return at;
}
inline std::string text_at(const JsonValue& json, std::string_view path) {
  const JsonValue* v = json_at(json, path);
  return v == nullptr ? "(absent)" : v->is(JsonValue::Kind::kNull) ? "(null)" : v->text;
}

class ServiceFixture {
 public:
  explicit ServiceFixture(server::ServiceOptions options = {}) : service(prepare(std::move(options))) {
    service.set_engine(engine);
  }

  FakeEngine engine;
  std::vector<std::string> log;
  server::Service service;

  Reply call(std::string method, std::string path, std::string body,
             std::vector<std::pair<std::string, std::string>> headers = {}) {
    const auto connection = std::make_shared<FakeConnection>();
    server::HttpRequest request{.method = std::move(method),
                                .path = std::move(path),
                                .headers = std::move(headers),
                                .body = std::move(body),
                                .remote = "127.0.0.1:1"};
    const auto exchange = service.handle(std::move(request), connection);
    connection->pump();
    Reply reply{.status = connection->response.status,
                .content_type = connection->response.content_type,
                .body = connection->streaming ? connection->streamed : connection->response.body,
                .finished = connection->finished,
                .headers = connection->response.headers};
    if (connection->streaming) {
      parse_stream(reply);
    } else if (reply.content_type == "application/json") {
      reply.json = parse_json_value(reply.body, "answer");
    }
    return reply;
  }
  Reply post(std::string path, std::string body) { return call("POST", std::move(path), std::move(body)); }

 private:
  server::ServiceOptions prepare(server::ServiceOptions options) {
    if (options.model_name == "glint") options.model_name = "test-model";
    options.access_log = [this](const std::string& line) { log.push_back(line); };
    return options;
  }
};

}  // namespace glint::testing
