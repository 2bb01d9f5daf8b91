#include "server/http_server.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/signal_set.hpp>
#include <csignal>
#include <iterator>
#include <mutex>
#include <thread>
#include <unordered_map>
#include <vector>

#include "base/error.hpp"
#include "server/http_session.hpp"

namespace glint::server {

namespace asio = boost::asio;
using Tcp = asio::ip::tcp;

namespace {

struct Posted {
  std::weak_ptr<Session> session;
  std::function<void()> work;
};
// What one thread does before another may help: so much work, and for so long.
constexpr std::size_t kPostedAtOnce = 64;
constexpr std::chrono::milliseconds kPostedTime{4};

}  // namespace

struct HttpServer::Impl final : SessionHost {
  Impl(const HttpOptions& options, HttpHandler& handler) : options_(options), handler_(handler) {}
  ~Impl() override {
    closing_ = true;
    ioc_.stop();
    for (std::thread& t : threads_) {
      if (t.joinable()) t.join();
    }
  }

  const HttpOptions& options() const override { return options_; }
  HttpHandler& handler() override { return handler_; }
  bool draining() const override { return draining_; }
  void session_gone(const void* session) override;
  void post(std::weak_ptr<Session> session, std::function<void()> work) override;

  void run_posted();
  void listen();
  void accept();
  void await_signal();
  void begin_stop();
  void end_stop();
  void for_sessions(void (Session::*what)());

  const HttpOptions options_;
  HttpHandler& handler_;
  std::function<void(int)> signal_handler_;
  int n_signals_ = 0;
  bool ended_ = false;  // on strand_
  std::atomic<bool> draining_{false};
  std::atomic<bool> closing_{false};  // the destructor runs: ioc_ takes no more work
  std::mutex mutex_;                  // guards sessions_ and accept_paused_
  std::unordered_map<const void*, std::weak_ptr<Session>> sessions_;
  bool accept_paused_ = false;
  std::mutex posted_mutex_;  // guards posted_
  std::vector<Posted> posted_;

  // Sessions live in pending operations of ioc_ and call session_gone(): ioc_ goes before what that needs.
  asio::io_context ioc_;
  asio::executor_work_guard<asio::io_context::executor_type> work_{ioc_.get_executor()};
  asio::strand<asio::io_context::executor_type> strand_{asio::make_strand(ioc_)};  // acceptor, signals, stopping
  Tcp::acceptor acceptor_{strand_};
  asio::steady_timer drain_timer_{strand_};
  asio::steady_timer accept_timer_{strand_};
  asio::signal_set signals_{strand_};
  std::vector<std::thread> threads_;
};

void HttpServer::Impl::listen() {
  const std::string where = fmt::format("{}:{}", options_.host, options_.port);
  boost::system::error_code error;
  Tcp::resolver resolver(ioc_);
  const auto found = resolver.resolve(options_.host, std::to_string(options_.port),
                                      Tcp::resolver::passive | Tcp::resolver::numeric_service, error);
  if (error || found.empty()) {
    throw Error({.what = "--host " + options_.host,
                 .found = error ? error.message() : "no address",
                 .expected = "an address of this machine, e.g. 127.0.0.1 or 0.0.0.0"});
  }
  const Tcp::endpoint endpoint = found.begin()->endpoint();
  const auto step = [&](const char* name) {
    if (error) throw Error({.what = "cannot listen on " + where, .found = std::string(name) + ": " + error.message()});
  };
  acceptor_.open(endpoint.protocol(), error);
  step("open");
  acceptor_.set_option(Tcp::acceptor::reuse_address(true), error);
  step("reuse_address");
  acceptor_.bind(endpoint, error);
  step("bind");
  acceptor_.listen(asio::socket_base::max_listen_connections, error);
  step("listen");
}

void HttpServer::Impl::accept() {
  {
    const std::lock_guard lock(mutex_);
    accept_paused_ = sessions_.size() >= static_cast<std::size_t>(options_.max_connections);
    if (accept_paused_ || draining_) return;
  }
  acceptor_.async_accept(asio::make_strand(ioc_), [this](const boost::system::error_code& error, Tcp::socket socket) {
    if (draining_ || error == asio::error::operation_aborted) return;
    if (error) {  // no file descriptors left, most likely: others must close first
      accept_timer_.expires_after(std::chrono::milliseconds(100));
      accept_timer_.async_wait([this](const boost::system::error_code& aborted) {
        if (!aborted) accept();
      });
      return;
    }
    const auto session = std::make_shared<Session>(std::move(socket), *this);
    {
      const std::lock_guard lock(mutex_);
      sessions_.emplace(session.get(), session);
    }
    session->start();
    accept();
  });
}

void HttpServer::Impl::session_gone(const void* session) {
  bool resume = false;
  bool last = false;
  {
    const std::lock_guard lock(mutex_);
    sessions_.erase(session);
    resume = std::exchange(accept_paused_, false);
    last = sessions_.empty();
  }
  if (closing_) return;
  if (last && draining_) {
    asio::post(strand_, [this] { end_stop(); });
  } else if (resume) {
    asio::post(strand_, [this] { accept(); });
  }
}

// A step of the engine has a token for each session that streams. They are served in one go: a thread woken for each of
// them, on a host whose cores all compute, costs more than what it is woken for.
void HttpServer::Impl::post(std::weak_ptr<Session> session, std::function<void()> work) {
  bool first = false;
  {
    const std::lock_guard lock(posted_mutex_);
    first = posted_.empty();
    posted_.push_back({std::move(session), std::move(work)});
  }
  if (first) asio::post(ioc_, [this] { run_posted(); });
}

void HttpServer::Impl::run_posted() {
  std::vector<Posted> all;
  {
    const std::lock_guard lock(posted_mutex_);
    all.swap(posted_);
    if (all.size() > kPostedAtOnce) {
      posted_.assign(std::move_iterator(all.begin() + kPostedAtOnce), std::move_iterator(all.end()));
      all.resize(kPostedAtOnce);
      asio::post(ioc_, [this] { run_posted(); });
    }
  }
  const auto begin = std::chrono::steady_clock::now();
  for (std::size_t i = 0; i < all.size(); ++i) {
    if (const auto session = all[i].session.lock()) session->run(std::move(all[i].work));
    if (i + 1 == all.size() || std::chrono::steady_clock::now() - begin < kPostedTime) continue;
    bool first = false;  // a long answer that ends, a log that waits: the others shall not wait for it
    {
      const std::lock_guard lock(posted_mutex_);
      first = posted_.empty();
      posted_.insert(posted_.begin(), std::move_iterator(all.begin() + static_cast<std::ptrdiff_t>(i) + 1),
                     std::move_iterator(all.end()));
    }
    if (first) asio::post(ioc_, [this] { run_posted(); });
    return;
  }
}

void HttpServer::Impl::for_sessions(void (Session::*what)()) {
  std::vector<std::shared_ptr<Session>> alive;
  {
    const std::lock_guard lock(mutex_);
    for (const auto& entry : sessions_) {
      if (auto session = entry.second.lock()) alive.push_back(std::move(session));
    }
  }
  for (const auto& session : alive) (*session.*what)();
}

void HttpServer::Impl::await_signal() {
  if (ended_) return;  // a signal came with the end: nothing must wait any more
  signals_.async_wait([this](const boost::system::error_code& error, int) {
    if (error) return;
    signal_handler_(++n_signals_);
    await_signal();
  });
}

void HttpServer::Impl::begin_stop() {
  if (draining_.exchange(true)) return for_sessions(&Session::kill);
  boost::system::error_code ignored;
  acceptor_.close(ignored);
  accept_timer_.cancel();
  for_sessions(&Session::drain);
  drain_timer_.expires_after(options_.drain_timeout);
  drain_timer_.async_wait([this](const boost::system::error_code& error) {
    if (!error) for_sessions(&Session::kill);
  });
  bool none = false;
  {
    const std::lock_guard lock(mutex_);
    none = sessions_.empty();
  }
  if (none) end_stop();
}

void HttpServer::Impl::end_stop() {
  ended_ = true;
  drain_timer_.cancel();
  signals_.cancel();
  work_.reset();
}

HttpServer::HttpServer(const HttpOptions& options, HttpHandler& handler)
    : impl_(std::make_unique<Impl>(options, handler)) {
  impl_->listen();
}

HttpServer::~HttpServer() = default;

std::uint16_t HttpServer::port() const { return impl_->acceptor_.local_endpoint().port(); }

std::string HttpServer::url() const {
  const bool v6 = impl_->options_.host.find(':') != std::string::npos;
  return fmt::format("http://{}{}{}:{}", v6 ? "[" : "", impl_->options_.host, v6 ? "]" : "", port());
}

void HttpServer::on_signal(std::function<void(int)> handler) {
  // A set that never goes away: with the last one Asio restores the default action, and a signal that comes between the
  // end of the server and the end of the process would turn a clean exit into a death.
  static asio::signal_set* const kept = new asio::signal_set(*new asio::io_context, SIGTERM, SIGINT);
  static_cast<void>(kept);
  impl_->signal_handler_ = std::move(handler);
  impl_->signals_.add(SIGTERM);
  impl_->signals_.add(SIGINT);
  impl_->await_signal();
}

void HttpServer::start() {
  asio::post(impl_->strand_, [impl = impl_.get()] { impl->accept(); });
  const int cores = static_cast<int>(std::thread::hardware_concurrency());
  const int n = impl_->options_.threads > 0 ? impl_->options_.threads : std::clamp(cores, 2, 8);
  for (int i = 0; i < n; ++i) {
    impl_->threads_.emplace_back([impl = impl_.get()] { impl->ioc_.run(); });
  }
}

void HttpServer::stop() {
  asio::post(impl_->strand_, [impl = impl_.get()] { impl->begin_stop(); });
}

void HttpServer::wait() {
  for (std::thread& t : impl_->threads_) {
    if (t.joinable()) t.join();
  }
}

}  // namespace glint::server
