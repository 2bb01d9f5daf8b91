#pragma once
// One connection: reads requests one after another, hands them to the handler, writes what it answers. Includes Beast:
// for http_server.cpp and http_session.cpp only.
//
// Everything runs on the socket's strand. While an answer is in the making the socket is read on, so that a client that
// goes away is noticed at once and its work stops.

#include <array>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/strand.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>
#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "server/http.hpp"
#include "server/http_server.hpp"

namespace glint::server {

class Session;

// What sessions need of their server. Outlives them.
class SessionHost {
 public:
  virtual ~SessionHost() = default;
  virtual const HttpOptions& options() const = 0;
  virtual HttpHandler& handler() = 0;
  virtual bool draining() const = 0;
  virtual void session_gone(const void* session) = 0;
  // Runs `work` in the session soon, if it is still there. From any thread.
  virtual void post(std::weak_ptr<Session> session, std::function<void()> work) = 0;
};

class Session final : public Responder, public std::enable_shared_from_this<Session> {
 public:
  using Socket = boost::asio::ip::tcp::socket;
  using ErrorCode = boost::system::error_code;

  // The socket's executor is a strand.
  Session(Socket socket, SessionHost& host);
  ~Session() override;

  void start();
  // Closes if idle; else after the answer in the making. From any thread.
  void drain();
  // Aborts and closes. From any thread.
  void kill();

  void send(HttpResponse response) override;
  void start_stream(HttpResponse head) override;
  void write(std::string_view bytes) override;
  void finish() override;
  void post(std::function<void()> work) override;
  // At once if the calling thread serves sessions and no other has this one.
  void run(std::function<void()> work);

 private:
  using Clock = std::chrono::steady_clock;
  using Parser = boost::beast::http::request_parser<boost::beast::http::string_body>;
  enum class State : std::uint8_t { kIdle, kHeader, kBody, kAnswering, kLingering, kClosed };

  void enter(State state);
  void await_request();
  void read();
  void on_bytes(ErrorCode error, std::size_t n);
  void begin_request();
  void parse();
  bool accept_header();
  void dispatch();
  void refuse(int status, const std::string& message);
  void refuse_for(ErrorCode error);
  std::string head_of(const HttpResponse& response, std::optional<std::size_t> body_bytes);
  void flush();
  void on_written(ErrorCode error, std::size_t n);
  void answer_over();
  void linger();
  void schedule_tick();
  void on_tick();
  void client_gone();
  void close();

  Socket socket_;
  SessionHost& host_;
  boost::asio::steady_timer timer_;
  std::string remote_;
  State state_ = State::kIdle;
  Clock::time_point since_;          // when the state was entered, or something was written in it
  std::array<char, 8192> incoming_;  // where the pending read puts its bytes
  std::string buffer_;               // bytes that no request has taken yet
  std::optional<Parser> parser_;
  bool reading_ = false;  // a read is pending

  // The answer in the making.
  std::shared_ptr<Exchange> exchange_;
  std::string path_;
  bool keep_alive_ = false;
  bool head_only_ = false;    // HEAD: no body
  bool chunked_ = false;      // of a stream
  bool answered_ = false;     // send() or start_stream() was called
  bool done_ = false;         // all of the answer is in out_
  bool body_unread_ = false;  // the request was refused before it was read
  std::string out_;           // to be written
  std::string in_flight_;     // being written
  std::size_t written_ = 0;   // of in_flight_
  std::size_t lingered_ = 0;  // bytes thrown away
};

}  // namespace glint::server
