#include "server/http_session.hpp"

#include <fmt/chrono.h>
#include <fmt/format.h>

#include <boost/asio/dispatch.hpp>
#include <boost/asio/post.hpp>
#include <ctime>
#include <utility>

namespace glint::server {
namespace {

namespace asio = boost::asio;
namespace http = boost::beast::http;

constexpr std::size_t kMaxPipelinedBytes = 64 << 10;  // read ahead of an unfinished answer; then the client must wait
constexpr std::size_t kMaxLingerBytes = 256 << 20;    // thrown away so that a refused client gets to read why
constexpr std::chrono::seconds kLingerTime{3};
constexpr std::chrono::seconds kTick{1};

std::string lower(std::string_view s) {
  std::string out(s);
  for (char& c : out) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c;
  return out;
}

}  // namespace

Session::Session(Socket socket, SessionHost& host)
    : socket_(std::move(socket)), host_(host), timer_(socket_.get_executor()) {
  ErrorCode error;
  const auto peer = socket_.remote_endpoint(error);
  if (!error) {
    const bool v6 = peer.address().is_v6();
    remote_ = fmt::format("{}{}{}:{}", v6 ? "[" : "", peer.address().to_string(), v6 ? "]" : "", peer.port());
  }
  socket_.set_option(asio::ip::tcp::no_delay(true), error);  // tokens go out one by one
  socket_.non_blocking(true, error);                         // flush() writes what fits
}

Session::~Session() {
  if (exchange_) exchange_->abort();
  host_.session_gone(this);
}

void Session::start() {
  asio::dispatch(socket_.get_executor(), [self = shared_from_this()] {
    self->await_request();
    self->schedule_tick();
  });
}

void Session::drain() {
  asio::post(socket_.get_executor(), [self = shared_from_this()] {
    if (self->state_ == State::kIdle) self->close();
  });
}

void Session::kill() {
  asio::post(socket_.get_executor(), [self = shared_from_this()] { self->client_gone(); });
}

void Session::post(std::function<void()> work) { host_.post(weak_from_this(), std::move(work)); }

void Session::run(std::function<void()> work) {
  asio::dispatch(socket_.get_executor(), [self = shared_from_this(), work = std::move(work)] {
    if (self->state_ == State::kClosed) return;
    try {
      work();
    } catch (...) { self->client_gone(); }
  });
}

void Session::enter(State state) {
  state_ = state;
  since_ = Clock::now();
}

// ---- reading ---------------------------------------------------------------------------------------------------

void Session::await_request() {
  enter(State::kIdle);
  answered_ = done_ = chunked_ = body_unread_ = false;
  path_.clear();
  if (host_.draining()) return close();
  if (!buffer_.empty()) return begin_request();
  read();
}

// One read is pending at most, whatever the state: bytes that arrive with the end of an answer go to the next request.
void Session::read() {
  if (std::exchange(reading_, true)) return;
  socket_.async_read_some(asio::buffer(incoming_), [self = shared_from_this()](const ErrorCode& error, std::size_t n) {
    self->on_bytes(error, n);
  });
}

void Session::on_bytes(ErrorCode error, std::size_t n) {
  reading_ = false;
  if (state_ == State::kClosed) return;
  if (error) {
    // A client may close its sending side once it has asked. An answer that is complete still goes out; one in the
    // making is for nobody: HTTP clients that wait keep their side open.
    if (state_ == State::kAnswering && done_) {
      keep_alive_ = false;
      return;
    }
    return client_gone();
  }
  if (state_ == State::kLingering) {
    lingered_ += n;
    if (lingered_ > kMaxLingerBytes) return close();
    return read();
  }
  buffer_.append(incoming_.data(), n);
  if (state_ == State::kIdle) return begin_request();
  if (state_ != State::kAnswering) return parse();
  if (buffer_.size() < kMaxPipelinedBytes) read();
}

void Session::begin_request() {
  enter(State::kHeader);
  parser_.emplace();
  parser_->header_limit(host_.options().max_header_bytes);
  parser_->body_limit(host_.options().max_body_bytes);
  parse();
}

// Header and body from buffer_, as far as they are there.
void Session::parse() {
  for (;;) {
    ErrorCode error;
    const std::size_t n = parser_->put(asio::buffer(buffer_), error);
    buffer_.erase(0, n);
    if (error == http::error::need_more) return read();
    if (error) return refuse_for(error);
    if (state_ == State::kHeader && parser_->is_header_done() && !accept_header()) return;
    if (parser_->is_done()) return dispatch();
    if (buffer_.empty()) return read();
  }
}

// The header is there: false if it is refused.
bool Session::accept_header() {
  enter(State::kBody);
  const auto expect = parser_->get().find(http::field::expect);
  if (expect == parser_->get().end()) return true;
  if (lower({expect->value().data(), expect->value().size()}) != "100-continue") {
    refuse(400, "Expect: only 100-continue is known");
    return false;
  }
  out_ += "HTTP/1.1 100 Continue\r\n\r\n";
  flush();
  return true;
}

void Session::dispatch() {
  auto& message = parser_->get();
  HttpRequest request;
  request.method = std::string(message.method_string());
  const std::string target(message.target());
  const std::size_t question = std::min(target.find('?'), target.size());
  request.path = target.substr(0, question);
  if (question < target.size()) request.query = target.substr(question + 1);
  for (const auto& field : message) {
    request.headers.emplace_back(lower({field.name_string().data(), field.name_string().size()}),
                                 std::string(field.value()));
  }
  request.body = std::move(message.body());
  request.remote = remote_;
  path_ = request.path;
  keep_alive_ = message.keep_alive();
  head_only_ = message.method() == http::verb::head;
  chunked_ = message.version() >= 11;
  parser_.reset();
  enter(State::kAnswering);
  if (buffer_.size() < kMaxPipelinedBytes) read();
  try {
    std::shared_ptr<Exchange> exchange = host_.handler().handle(std::move(request), shared_from_this());
    if (state_ == State::kAnswering && !done_) exchange_ = std::move(exchange);
  } catch (...) { client_gone(); }
}

// ---- answering -------------------------------------------------------------------------------------------------

void Session::refuse_for(ErrorCode error) {
  const std::string target(parser_->get().target());
  path_ = target.substr(0, target.find('?'));
  if (error == http::error::body_limit) {
    return refuse(413, fmt::format("the body has more than {} bytes", host_.options().max_body_bytes));
  }
  if (error == http::error::header_limit) {
    return refuse(431, fmt::format("the header has more than {} bytes", host_.options().max_header_bytes));
  }
  refuse(400, "not HTTP/1.1: " + error.message());
}

void Session::refuse(int status, const std::string& message) {
  HttpResponse response = host_.handler().refusal(status, path_, message);
  parser_.reset();
  keep_alive_ = head_only_ = false;
  body_unread_ = true;
  enter(State::kAnswering);
  send(std::move(response));
}

std::string Session::head_of(const HttpResponse& response, std::optional<std::size_t> body_bytes) {
  if (host_.draining()) keep_alive_ = false;
  std::string head = fmt::format("HTTP/1.1 {} {}\r\nServer: glint\r\nDate: {:%a, %d %b %Y %H:%M:%S} GMT\r\n",
                                 response.status, status_text(response.status), fmt::gmtime(std::time(nullptr)));
  if (response.status != 304) head += "Content-Type: " + response.content_type + "\r\n";
  if (body_bytes) {
    head += fmt::format("Content-Length: {}\r\n", *body_bytes);
  } else if (chunked_) {
    head += "Transfer-Encoding: chunked\r\n";
  } else {
    keep_alive_ = false;  // HTTP/1.0: the end of the connection is the end of the body
  }
  for (const auto& [name, value] : response.headers) head.append(name).append(": ").append(value).append("\r\n");
  head += keep_alive_ ? "Connection: keep-alive\r\n\r\n" : "Connection: close\r\n\r\n";
  return head;
}

void Session::send(HttpResponse response) {
  if (state_ != State::kAnswering || answered_) return;
  answered_ = done_ = true;
  out_ += head_of(response, response.body.size());
  if (!head_only_) out_ += response.body;
  flush();
}

void Session::start_stream(HttpResponse head) {
  if (state_ != State::kAnswering || answered_) return;
  answered_ = true;
  out_ += head_of(head, std::nullopt);
  flush();
}

void Session::write(std::string_view bytes) {
  if (state_ != State::kAnswering || done_ || bytes.empty()) return;
  if (chunked_) out_ += fmt::format("{:x}\r\n", bytes.size());
  out_ += bytes;
  if (chunked_) out_ += "\r\n";
  if (out_.size() > host_.options().max_unsent_bytes) return client_gone();
  flush();
}

void Session::finish() {
  if (state_ != State::kAnswering || done_) return;
  done_ = true;
  if (chunked_) out_ += "0\r\n\r\n";
  flush();
  if (out_.empty() && in_flight_.empty()) answer_over();
}

void Session::flush() {
  if (!in_flight_.empty() || out_.empty()) return;
  if (state_ == State::kAnswering) since_ = Clock::now();
  // A token fits into the socket's buffer: written here, it needs no operation and no further turn of a thread. What
  // does not, errors, and the end of an answer take the long way.
  std::size_t n = 0;
  if (state_ == State::kAnswering && !done_) {
    ErrorCode error;
    n = socket_.write_some(asio::buffer(out_), error);
    if (error) n = 0;
    if (n == out_.size()) return out_.clear();
  }
  in_flight_.swap(out_);
  written_ = n;
  socket_.async_write_some(
      asio::buffer(in_flight_) + written_,
      [self = shared_from_this()](const ErrorCode& error, std::size_t n) { self->on_written(error, n); });
}

void Session::on_written(ErrorCode error, std::size_t n) {
  if (state_ == State::kClosed) return;
  if (error) return client_gone();
  if (state_ == State::kAnswering) since_ = Clock::now();
  written_ += n;
  if (written_ < in_flight_.size()) {
    socket_.async_write_some(
        asio::buffer(in_flight_) + written_,
        [self = shared_from_this()](const ErrorCode& failed, std::size_t more) { self->on_written(failed, more); });
    return;
  }
  in_flight_.clear();
  if (!out_.empty()) return flush();
  if (done_) answer_over();
}

void Session::answer_over() {
  exchange_.reset();
  if (body_unread_) return linger();
  if (!keep_alive_) return close();
  await_request();
}

// The client may still be sending what was refused: closing now would reset the connection before it has read the
// answer.
void Session::linger() {
  enter(State::kLingering);
  ErrorCode ignored;
  socket_.shutdown(Socket::shutdown_send, ignored);
  buffer_.clear();
  read();
}

// ---- time ------------------------------------------------------------------------------------------------------

void Session::schedule_tick() {
  timer_.expires_after(kTick);
  // Holds the session until it is closed, also while no read or write is pending.
  timer_.async_wait([self = shared_from_this()](const ErrorCode& error) {
    if (error || self->state_ == State::kClosed) return;
    self->on_tick();
    if (self->state_ != State::kClosed) self->schedule_tick();
  });
}

void Session::on_tick() {
  const HttpOptions& o = host_.options();
  const auto waited = Clock::now() - since_;
  switch (state_) {
    case State::kIdle:
      if (waited > o.idle_timeout) close();
      break;
    case State::kHeader:
      if (waited > o.header_timeout) refuse(408, "the header took too long");
      break;
    case State::kBody:
      if (waited > o.body_timeout) refuse(408, "the body took too long");
      break;
    case State::kAnswering:
      if (!in_flight_.empty() && waited > o.write_timeout) return client_gone();
      if (exchange_) {
        const std::shared_ptr<Exchange> exchange = exchange_;  // a tick may finish the answer
        exchange->tick();
      }
      break;
    case State::kLingering:
      if (waited > kLingerTime) close();
      break;
    case State::kClosed:
      break;
  }
}

void Session::client_gone() {
  if (const std::shared_ptr<Exchange> exchange = std::move(exchange_)) exchange->abort();
  exchange_.reset();
  close();
}

void Session::close() {
  if (state_ == State::kClosed) return;
  enter(State::kClosed);
  timer_.cancel();
  ErrorCode ignored;
  socket_.shutdown(Socket::shutdown_both, ignored);
  socket_.close(ignored);
}

}  // namespace glint::server
