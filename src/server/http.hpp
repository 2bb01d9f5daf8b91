#pragma once
// HTTP as the endpoints see it: a request that has been read whole, and the ways to answer it. No sockets here, so that
// tests drive endpoints directly; http_server.hpp has the sockets.

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace glint::server {

struct HttpRequest {
  std::string method;                                        // "GET"
  std::string path;                                          // without the query: "/v1/models"
  std::string query;                                         // what follows '?'
  std::vector<std::pair<std::string, std::string>> headers;  // names in lower case
  std::string body;
  std::string remote;  // "127.0.0.1:51234"

  // The first header of that name (lower case); empty if there is none.
  std::string_view header(std::string_view name) const;
};

struct HttpResponse {
  int status = 200;
  std::string content_type = "application/json";
  std::vector<std::pair<std::string, std::string>> headers;  // besides Content-Type, Content-Length and Connection
  std::string body;
};

std::string_view status_text(int status);

// Where an answer goes: either send(), or start_stream(), write() any number of times, finish(). All but post() are
// called on the connection's own sequence, where calls never overlap. After the client has gone all of them do nothing.
class Responder {
 public:
  virtual ~Responder() = default;
  virtual void send(HttpResponse response) = 0;
  virtual void start_stream(HttpResponse head) = 0;  // its body is not used
  virtual void write(std::string_view bytes) = 0;
  virtual void finish() = 0;
  // Runs `work` later on the connection's sequence. From any thread.
  virtual void post(std::function<void()> work) = 0;
};

// An answer in the making. Lives on the connection's sequence, owned by the connection until the answer is finished.
class Exchange {
 public:
  virtual ~Exchange() = default;
  // About once a second.
  virtual void tick() {}
  // The client has gone or the server will not wait any longer: stop working at once, answer nothing.
  virtual void abort() = 0;
};

// What answers requests. handle() is called on the connection's sequence, for many connections at once; nullptr: the
// answer has been given already. Never throws.
class HttpHandler {
 public:
  virtual ~HttpHandler() = default;
  virtual std::shared_ptr<Exchange> handle(HttpRequest request, const std::shared_ptr<Responder>& responder) = 0;
  // The body of an error that the HTTP layer itself answers with (400, 408, 413, 431, 503), for that path if it is
  // known.
  virtual HttpResponse refusal(int status, std::string_view path, std::string_view message) = 0;
};

}  // namespace glint::server
