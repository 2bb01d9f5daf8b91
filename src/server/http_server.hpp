#pragma once
// The socket side: HTTP/1.1 with keep-alive, chunked streams, limits and timeouts, over Boost.Asio and Beast, which
// stay in http_server.cpp and http_session.cpp (they are slow to compile).

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "server/http.hpp"

namespace glint::server {

struct HttpOptions {
  std::string host = "127.0.0.1";
  std::uint16_t port = 0;  // 0: a free one; see HttpServer::port()
  int threads = 0;         // 0: one a core, at least two
  std::uint32_t max_header_bytes = 32U << 10;
  std::uint64_t max_body_bytes = 64ULL << 20;
  std::uint64_t max_unsent_bytes = 16ULL << 20;  // a stream whose client reads this much too slowly is cut
  int max_connections = 4096;
  std::chrono::seconds header_timeout{15};  // from a request's first byte to the end of its header
  std::chrono::seconds body_timeout{120};   // for its body
  std::chrono::seconds idle_timeout{75};    // between requests of a connection
  std::chrono::seconds write_timeout{60};   // without the client taking a byte
  std::chrono::seconds drain_timeout{30};   // how long stop() waits for answers in the making
};

class HttpServer {
 public:
  // Binds and listens, so that an address in use is an Error here. The handler must outlive the server.
  HttpServer(const HttpOptions& options, HttpHandler& handler);
  ~HttpServer();
  HttpServer(const HttpServer&) = delete;
  HttpServer& operator=(const HttpServer&) = delete;

  std::uint16_t port() const;
  // "http://127.0.0.1:8080"
  std::string url() const;

  // Begins to answer, on threads of its own.
  void start();
  // SIGTERM and SIGINT call this on a thread of the server: `number` counts them from 1. Call before start().
  void on_signal(std::function<void(int number)> handler);
  // Graceful: takes no more connections, closes idle ones, lets answers in the making end for drain_timeout, then
  // aborts them. Returns at once; called again, it aborts at once. From any thread.
  void stop();
  // Until a stop has come to its end and the threads are gone.
  void wait();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace glint::server
