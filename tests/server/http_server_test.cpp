// The socket side with a handler of the test's own, spoken to byte by byte.

#include "server/http_server.hpp"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <string>
#include <thread>

#include "base/error.hpp"

namespace glint::testing {
namespace {

using namespace std::chrono_literals;
using server::Exchange;
using server::HttpOptions;
using server::HttpRequest;
using server::HttpResponse;
using server::HttpServer;
using server::Responder;

class Client {
 public:
  explicit Client(std::uint16_t port) : fd_(::socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    connected_ = ::connect(fd_, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0;
    const int on = 1;  // pieces go out as they are sent
    ::setsockopt(fd_, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    timeval limit{.tv_sec = 10, .tv_usec = 0};
    ::setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
  }
  ~Client() { close(); }
  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;

  bool connected() const { return connected_; }
  void send(std::string_view text) {
    while (!text.empty()) {
      const ssize_t n = ::send(fd_, text.data(), text.size(), MSG_NOSIGNAL);
      if (n <= 0) return;
      text.remove_prefix(static_cast<std::size_t>(n));
    }
  }
  // Until `end` has come, or the connection's end.
  std::string read_until(std::string_view end) {
    while (true) {
      const std::size_t at = end.empty() ? std::string::npos : buffer_.find(end);
      if (at != std::string::npos) {
        std::string out = buffer_.substr(0, at + end.size());
        buffer_.erase(0, at + end.size());
        return out;
      }
      char bytes[4096];
      const ssize_t n = ::recv(fd_, bytes, sizeof bytes, 0);
      if (n <= 0) return std::exchange(buffer_, {});
      buffer_.append(bytes, static_cast<std::size_t>(n));
    }
  }
  std::string read_all() { return read_until(""); }
  void close() {
    if (fd_ >= 0) ::close(fd_);
    fd_ = -1;
  }
  void close_sending() { ::shutdown(fd_, SHUT_WR); }

 private:
  int fd_;
  bool connected_ = false;
  std::string buffer_;
};

// /echo gives the body back; /stream sends ticks until it is aborted; /short is a stream of two pieces; /flood writes
// without end.
class EchoHandler final : public server::HttpHandler {
 public:
  std::atomic<int> aborted{0};
  std::atomic<int> streams{0};

  std::shared_ptr<Exchange> handle(HttpRequest request, const std::shared_ptr<Responder>& to) override {
    if (request.path == "/short") {
      to->start_stream({.content_type = "text/plain"});
      to->write("ab");
      to->write("cde");
      to->finish();
      return nullptr;
    }
    if (request.path == "/stream" || request.path == "/flood" || request.path == "/silent") {
      struct Endless final : Exchange {
        EchoHandler& handler;
        explicit Endless(EchoHandler& h) : handler(h) { ++handler.streams; }
        void abort() override { ++handler.aborted; }
      };
      if (request.path != "/silent") to->start_stream({.content_type = "text/plain"});
      if (request.path == "/stream") to->write("tick");
      if (request.path == "/flood") flood(to);
      return std::make_shared<Endless>(*this);
    }
    to->send({.content_type = "text/plain",
              .body = request.method + " " + request.path + "?" + request.query + " " + request.body});
    return nullptr;
  }
  HttpResponse refusal(int status, std::string_view path, std::string_view message) override {
    return {.status = status, .body = std::string(path) + ": " + std::string(message)};
  }

 private:
  static void flood(const std::shared_ptr<Responder>& to) {
    to->write(std::string(100'000, 'x'));
    to->post([weak = std::weak_ptr<Responder>(to)] {
      if (const auto again = weak.lock()) flood(again);
    });
  }
};

class HttpServerTest : public ::testing::Test {
 protected:
  void open(HttpOptions options = {}) {
    options.threads = 2;
    options.max_header_bytes = 2000;
    options.max_body_bytes = 10'000;
    server.emplace(options, handler);
    server->start();
  }
  std::uint16_t port() const { return server->port(); }
  std::string ask(std::string_view text) {
    Client c(port());
    c.send(text);
    return c.read_all();
  }
  template <typename F>
  static bool soon(F f) {
    for (int i = 0; i < 400 && !f(); ++i) std::this_thread::sleep_for(10ms);
    return f();
  }
  void TearDown() override {
    if (!server) return;
    server->stop();
    server->stop();
    server->wait();
  }

  EchoHandler handler;
  std::optional<HttpServer> server;
};

TEST_F(HttpServerTest, KeepAliveAndPipelining) {
  open();
  Client c(port());
  c.send("GET /a?x=1 HTTP/1.1\r\nHost: h\r\n\r\n");
  EXPECT_TRUE(c.read_until("GET /a?x=1 ").starts_with("HTTP/1.1 200 OK\r\n"));
  // Three at once, the last by chunks and with the end of the connection.
  c.send(
      "POST /b HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nxyzGET /short HTTP/1.1\r\nHost: h\r\n\r\n"
      "POST /c HTTP/1.1\r\nHost: h\r\nConnection: close\r\nTransfer-Encoding: "
      "chunked\r\n\r\n2\r\nhe\r\n1\r\ny\r\n0\r\n\r\n");
  const std::string rest = c.read_all();
  EXPECT_NE(rest.find("POST /b? xyz"), std::string::npos) << rest;
  EXPECT_NE(rest.find("2\r\nab\r\n3\r\ncde\r\n0\r\n\r\n"), std::string::npos) << rest;
  EXPECT_TRUE(rest.ends_with("POST /c? hey")) << rest;
  EXPECT_NE(rest.find("Connection: close"), std::string::npos);
}

// The next request arrives in pieces while the server has not yet noticed that its last answer is out.
TEST_F(HttpServerTest, RequestsInPiecesOnOneConnection) {
  open();
  Client c(port());
  for (int i = 0; i < 1000; ++i) {
    c.send("POST /b HTTP/1.1\r\nContent-Length: 6\r\n\r\n");
    c.send("abc");
    if (i % 8 == 0) std::this_thread::sleep_for(1ms);
    c.send("def");
    const std::string answer = c.read_until("POST /b? abcdef");
    ASSERT_TRUE(answer.starts_with("HTTP/1.1 200") && answer.ends_with("abcdef")) << i << ": " << answer;
  }
}

TEST_F(HttpServerTest, OldClientsAndHead) {
  open();
  const std::string old = ask("GET /short HTTP/1.0\r\n\r\n");
  EXPECT_EQ(old.find("chunked"), std::string::npos);
  EXPECT_TRUE(old.ends_with("\r\n\r\nabcde")) << old;
  const std::string head = ask("HEAD /a HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
  EXPECT_TRUE(head.ends_with("\r\n\r\n")) << head;
  EXPECT_NE(head.find("Content-Length: 9\r\n"), std::string::npos) << head;
}

TEST_F(HttpServerTest, LimitsAreAnsweredAndReadable) {
  open();
  EXPECT_TRUE(ask("nonsense\r\n\r\n").starts_with("HTTP/1.1 400 "));
  EXPECT_TRUE(ask("GET / HTTP/1.1\r\nContent-Length: x\r\n\r\n").starts_with("HTTP/1.1 400 "));
  EXPECT_TRUE(ask("GET / HTTP/1.1\r\nLong: " + std::string(3000, 'a') + "\r\n\r\n").starts_with("HTTP/1.1 431 "));
  EXPECT_TRUE(ask("GET / HTTP/1.1\r\nNever: " + std::string(30'000, 'a')).starts_with("HTTP/1.1 431 "));
  // The body follows although it is refused: the answer must reach the client all the same.
  const std::string big(200'000, 'b');
  EXPECT_TRUE(ask("POST /p HTTP/1.1\r\nContent-Length: 200000\r\n\r\n" + big).starts_with("HTTP/1.1 413 "));
  EXPECT_TRUE(ask("POST /p HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n30d40\r\n" + big + "\r\n0\r\n\r\n")
                  .starts_with("HTTP/1.1 413 "));
}

TEST_F(HttpServerTest, ContinueIsSaidBeforeTheBody) {
  open();
  Client c(port());
  c.send("POST /p HTTP/1.1\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n");
  EXPECT_EQ(c.read_until("\r\n\r\n"), "HTTP/1.1 100 Continue\r\n\r\n");
  c.send("ok");
  EXPECT_TRUE(c.read_until("POST /p? ok").starts_with("HTTP/1.1 200"));
}

TEST_F(HttpServerTest, SlowClientsAreCut) {
  open({.header_timeout = 1s, .body_timeout = 1s, .idle_timeout = 1s});
  Client idle(port());
  Client header(port());
  Client body(port());
  header.send("GET / HT");
  body.send("POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nab");
  EXPECT_TRUE(header.read_all().starts_with("HTTP/1.1 408 "));
  EXPECT_TRUE(body.read_all().starts_with("HTTP/1.1 408 "));
  EXPECT_EQ(idle.read_all(), "");
}

TEST_F(HttpServerTest, AClientThatLeavesIsNoticedAtOnce) {
  open();
  for (const char* path : {"/stream", "/silent"}) {
    const int before = handler.aborted;
    Client c(port());
    c.send(std::string("GET ") + path + " HTTP/1.1\r\nHost: h\r\n\r\n");
    ASSERT_TRUE(soon([&] { return handler.streams > before; }));
    c.close();
    EXPECT_TRUE(soon([&] { return handler.aborted == before + 1; })) << path;
  }
}

TEST_F(HttpServerTest, AClientThatOnlyStopsSendingGetsAnAnswerThatIsReady) {
  open();
  Client c(port());
  c.send("GET /a HTTP/1.1\r\nHost: h\r\n\r\n");
  c.close_sending();
  EXPECT_TRUE(c.read_all().ends_with("GET /a? "));
}

TEST_F(HttpServerTest, AReaderThatStopsIsCut) {
  open({.max_unsent_bytes = 1 << 20});
  Client c(port());
  c.send("GET /flood HTTP/1.1\r\nHost: h\r\n\r\n");  // and reads nothing
  EXPECT_TRUE(soon([&] { return handler.aborted == 1; }));
}

TEST_F(HttpServerTest, StopLetsAnswersEndAndThenCutsThem) {
  open({.drain_timeout = 1s});
  const std::uint16_t where = port();
  Client idle(where);
  Client running(where);
  running.send("GET /stream HTTP/1.1\r\nHost: h\r\n\r\n");
  EXPECT_TRUE(running.read_until("tick\r\n").starts_with("HTTP/1.1 200"));
  server->stop();
  EXPECT_EQ(idle.read_all(), "");  // at once
  EXPECT_EQ(handler.aborted, 0);
  EXPECT_TRUE(soon([&] { return !Client(where).connected(); }));
  server->wait();
  EXPECT_EQ(handler.aborted, 1);
}

TEST_F(HttpServerTest, MoreConnectionsThanAllowedWait) {
  open({.max_connections = 2});
  auto first = std::make_unique<Client>(port());
  Client second(port());
  first->send("GET /1 HTTP/1.1\r\nHost: h\r\n\r\n");
  first->read_until("GET /1? ");
  Client third(port());
  third.send("GET /3 HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
  std::this_thread::sleep_for(50ms);
  first.reset();
  EXPECT_TRUE(third.read_all().ends_with("GET /3? "));
}

TEST(HttpServerOpen, AnAddressInUseIsAnError) {
  EchoHandler handler;
  HttpServer first({}, handler);
  EXPECT_THROW(HttpServer({.port = first.port()}, handler), Error);
  EXPECT_THROW(HttpServer({.host = "999.1.1.1"}, handler), Error);
}

}  // namespace
}  // namespace glint::testing
