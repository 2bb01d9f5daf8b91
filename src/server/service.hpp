#pragma once
// What the server does with a request: finds its endpoint, checks the key, gives it to the endpoint, and keeps count.

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "glint/engine.hpp"
#include "server/api_error.hpp"
#include "server/http.hpp"
#include "server/metrics.hpp"
#include "server/replay.hpp"

namespace glint::server {

struct ServiceOptions {
  std::string model_name = "glint";
  std::vector<std::string> api_keys;  // none: everyone is served
  // What a request gets that does not say: Z.ai's recommendation for the model (model facts §6.7).
  SamplingParams sampling{.temperature = 1.0F, .top_p = 0.95F};
  std::int64_t max_in_flight = 512;                    // generations that run or wait; more are refused with 429
  double keep_alive_s = 10;                            // a stream that has been silent for so long says so
  std::function<void(const std::string&)> access_log;  // one line of JSON an answer, without its end; from any thread
};

class Service;
struct Route;

// Room for generations, given back when it goes.
class Slots {
 public:
  Slots() = default;
  Slots(std::atomic<std::int64_t>& in_use, std::int64_t n) : in_use_(&in_use), n_(n) {}
  Slots(Slots&& other) noexcept : in_use_(std::exchange(other.in_use_, nullptr)), n_(other.n_) {}
  Slots& operator=(Slots&& other) noexcept {
    std::swap(in_use_, other.in_use_);
    std::swap(n_, other.n_);
    return *this;
  }
  ~Slots() {
    if (in_use_ != nullptr) *in_use_ -= n_;
  }

 private:
  std::atomic<std::int64_t>* in_use_ = nullptr;
  std::int64_t n_ = 0;
};

// One request on its way through an endpoint: what was asked, how to answer, and what the log will say. On the
// connection's sequence, like the Responder that it wraps.
class Call final : public Responder {
 public:
  Call(Service& service, HttpRequest request, const std::shared_ptr<Responder>& responder);

  const HttpRequest& request() const { return request_; }
  const std::string& id() const { return id_; }  // "req_…", also in the header X-Request-Id
  Dialect dialect() const { return dialect_; }
  Service& service() const { return service_; }
  Engine& engine() const;
  const ServiceOptions& options() const;
  double age_s() const;

  // Throws 429 when there is no room for n more generations.
  Slots admit(std::int64_t n) const;

  void send(HttpResponse response) override;
  void start_stream(HttpResponse head) override;
  void write(std::string_view bytes) override;
  void finish() override;
  void post(std::function<void()> work) override;

  void send_json(std::string body) { send({.body = std::move(body)}); }
  void send_error(const ApiErrorParts& parts);
  // The client left or was cut off before the answer was complete.
  void aborted();
  // A way back to the connection's sequence that may outlive the connection.
  std::weak_ptr<Responder> responder() const { return responder_; }

  // For the log.
  Usage usage;
  double first_token_s = -1;
  std::string finish_reason;
  bool stream = false;
  std::size_t n_choices = 0;

 private:
  friend class Service;
  void end(int status);

  Service& service_;
  HttpRequest request_;
  std::weak_ptr<Responder> responder_;  // the connection owns the exchange that owns this
  std::string id_;
  double started_s_;
  std::string_view route_ = "none";
  Dialect dialect_ = Dialect::kOpenAi;
  int status_ = 0;  // of a stream
  bool ended_ = false;
};

using Endpoint = std::shared_ptr<Exchange> (*)(const std::shared_ptr<Call>&);

struct Route {
  std::string_view method;
  std::string_view path;  // one that ends in '/' stands for all below it
  Endpoint endpoint;
  bool open = false;        // served without a key
  bool needs_model = true;  // 503 until the model is loaded
};

class Service final : public HttpHandler {
 public:
  explicit Service(ServiceOptions options);

  // The model is loaded: `engine` must outlive all requests.
  void set_engine(Engine& engine) { engine_ = &engine; }
  // No new generations; what runs goes on.
  void drain() { draining_ = true; }

  std::shared_ptr<Exchange> handle(HttpRequest request, const std::shared_ptr<Responder>& responder) override;
  HttpResponse refusal(int status, std::string_view path, std::string_view message) override;

  const ServiceOptions& options() const { return options_; }
  Engine* engine() const { return engine_; }
  bool draining() const { return draining_; }
  std::int64_t created() const { return created_; }  // seconds since 1970
  std::int64_t in_flight() const { return in_flight_; }
  Metrics& metrics() { return metrics_; }
  ReplayMemory& replay() { return replay_; }

 private:
  friend class Call;
  std::shared_ptr<Exchange> answer(const std::shared_ptr<Call>& call);
  const Route& find_route(const HttpRequest& request) const;
  void check_key(const HttpRequest& request) const;

  const ServiceOptions options_;
  const std::int64_t created_;
  std::atomic<Engine*> engine_{nullptr};
  std::atomic<bool> draining_{false};
  mutable std::atomic<std::int64_t> in_flight_{0};
  Metrics metrics_;
  ReplayMemory replay_;
};

}  // namespace glint::server
