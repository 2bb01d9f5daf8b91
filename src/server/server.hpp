#pragma once
// glint serve as a whole: HTTP server and service, before, while and after the model is there.

#include <string>

#include "server/http_server.hpp"
#include "server/service.hpp"

namespace glint::server {

// Usage: listen (constructor), start, then load the model and set_engine, then wait. The engine must outlive the
// server.
class Server {
 public:
  Server(const HttpOptions& http, ServiceOptions service);

  // on_signal is called with 1 for the first SIGTERM or SIGINT, after the drain has begun, and so on.
  void start(std::function<void(int)> on_signal);
  void set_engine(Engine& engine) { service_.set_engine(engine); }
  // Drains; called again, cuts off. From any thread.
  void stop();
  void wait() { http_.wait(); }

  std::string url() const { return http_.url(); }
  bool stopping() const { return service_.draining(); }

 private:
  Service service_;
  HttpServer http_;  // after the service that it calls
};

}  // namespace glint::server
