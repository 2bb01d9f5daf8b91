#include "load_client.hpp"

#include <algorithm>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <boost/system/system_error.hpp>
#include <chrono>
#include <optional>
#include <stdexcept>
#include <string_view>

#include "base/clock.hpp"
#include "base/error.hpp"
#include "base/json.hpp"

namespace glint::apps {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = beast::http;

std::string_view text_of(const json::object& o, std::string_view key) {
  const json::value* v = o.if_contains(key);
  return v != nullptr && v->is_string() ? std::string_view(v->get_string()) : std::string_view{};
}

std::int64_t count_of(const json::object& o, std::string_view key) {
  const json::value* v = o.if_contains(key);
  return v != nullptr && v->is_int64() ? v->get_int64() : 0;
}

const json::object* object_of(const json::object& o, std::string_view key) {
  const json::value* v = o.if_contains(key);
  return v != nullptr ? v->if_object() : nullptr;
}

// Takes the events of a stream as their bytes come.
class StreamReader {
 public:
  explicit StreamReader(LoadAnswer& answer) : answer_(answer) {}

  void feed(std::string_view bytes) {
    const double now = now_s();
    pending_ += bytes;
    std::size_t begin = 0;
    for (std::size_t end; (end = pending_.find('\n', begin)) != std::string::npos; begin = end + 1) {
      std::string_view line(pending_.data() + begin, end - begin);
      if (line.ends_with('\r')) line.remove_suffix(1);
      if (line.starts_with("data:")) event(line.substr(line.starts_with("data: ") ? 6 : 5), now);
    }
    pending_.erase(0, begin);
  }
  bool done() const { return done_; }

 private:
  void event(std::string_view data, double now) {
    if (data == "[DONE]") {
      done_ = true;
      return;
    }
    const json::value parsed = json::parse_text(data, "an event of the stream");
    const json::object* chunk = parsed.if_object();
    if (chunk == nullptr) throw std::runtime_error("an event that is no object");
    if (const json::object* error = object_of(*chunk, "error"))
      throw std::runtime_error("the stream reports: " + std::string(text_of(*error, "message")));
    if (const json::object* usage = object_of(*chunk, "usage")) {
      answer_.prompt_tokens = count_of(*usage, "prompt_tokens");
      answer_.completion_tokens = count_of(*usage, "completion_tokens");
      if (const json::object* details = object_of(*usage, "prompt_tokens_details"))
        answer_.cached_tokens = count_of(*details, "cached_tokens");
    }
    const json::value* choices = chunk->if_contains("choices");
    if (choices == nullptr || !choices->is_array()) return;
    for (const json::value& choice : choices->get_array()) {
      const json::object* delta = choice.is_object() ? object_of(choice.get_object(), "delta") : nullptr;
      if (delta != nullptr) piece(*delta, now);
    }
  }

  void piece(const json::object& delta, double now) {
    const std::string_view content = text_of(delta, "content"), reasoning = text_of(delta, "reasoning_content");
    if (content.empty() && reasoning.empty() && !delta.contains("tool_calls")) return;
    answer_.content += content;
    answer_.reasoning += reasoning;
    // Tags and halves of characters have no text: a piece may stand for several tokens, which came one a step.
    const std::int64_t tokens = std::max<std::int64_t>(1, answer_.completion_tokens - told_tokens_);
    if (answer_.first_s == 0) {
      answer_.first_s = now;
    } else {
      answer_.gaps_s.insert(answer_.gaps_s.end(), static_cast<std::size_t>(tokens),
                            (now - last_s_) / static_cast<double>(tokens));
    }
    told_tokens_ = answer_.completion_tokens;
    last_s_ = now;
  }

  LoadAnswer& answer_;
  std::string pending_;
  double last_s_ = 0;
  std::int64_t told_tokens_ = 0;  // by the usage of the last piece, where the server sends it with each
  bool done_ = false;
};

}  // namespace

LoadTarget parse_target(const std::string& url) {
  const auto refuse = [&url] {
    throw Error({.what = "--url", .found = "'" + url + "'", .expected = "http://HOST[:PORT][/BASE]"});
  };
  constexpr std::string_view kScheme = "http://";
  if (!url.starts_with(kScheme)) refuse();
  const std::string rest = url.substr(kScheme.size());
  LoadTarget t;
  const std::size_t slash = rest.find('/');
  std::string authority = rest.substr(0, slash);
  if (slash != std::string::npos) t.base = rest.substr(slash);
  while (t.base.ends_with('/')) t.base.pop_back();
  if (t.base.ends_with("/v1")) t.base.resize(t.base.size() - 3);
  t.port = "80";
  const std::size_t bracket = authority.rfind(']');
  const std::size_t colon = authority.rfind(':');
  if (colon != std::string::npos && (bracket == std::string::npos || colon > bracket)) {
    t.port = authority.substr(colon + 1);
    authority.resize(colon);
  }
  if (authority.starts_with('[') && authority.ends_with(']')) authority = authority.substr(1, authority.size() - 2);
  t.host = authority;
  if (t.host.empty() || t.port.empty() || t.port.find_first_not_of("0123456789") != std::string::npos) refuse();
  return t;
}

struct LoadClient::Impl {
  Impl(const asio::any_io_executor& where, LoadTarget to) : executor(where), target(std::move(to)) {}

  asio::awaitable<void> connect() {
    asio::ip::tcp::resolver resolver(executor);
    const auto places = co_await resolver.async_resolve(target.host, target.port, asio::use_awaitable);
    stream.emplace(executor);
    stream->expires_after(std::chrono::seconds(30));
    co_await stream->async_connect(places, asio::use_awaitable);
    stream->socket().set_option(asio::ip::tcp::no_delay(true));
    buffer.clear();
  }

  void limit() { stream->expires_after(std::chrono::milliseconds(std::int64_t(target.timeout_s * 1e3))); }

  asio::awaitable<void> exchange(const std::string& body, LoadAnswer& answer) {
    http::request<http::string_body> request{http::verb::post, target.base + "/v1/chat/completions", 11};
    request.set(http::field::host, target.host + ":" + target.port);
    request.set(http::field::content_type, "application/json");
    if (!target.api_key.empty()) request.set(http::field::authorization, "Bearer " + target.api_key);
    request.body() = body;
    request.prepare_payload();
    limit();
    co_await http::async_write(*stream, request, asio::use_awaitable);

    http::response_parser<http::buffer_body> parser;
    parser.body_limit(boost::none);
    limit();
    co_await http::async_read_header(*stream, buffer, parser, asio::use_awaitable);
    answer.status = parser.get().result_int();
    const bool streamed = answer.status == 200;
    StreamReader reader(answer);
    std::string refusal;
    std::vector<char> bytes(16384);
    while (!parser.is_done()) {
      parser.get().body().data = bytes.data();
      parser.get().body().size = bytes.size();
      beast::error_code error;
      limit();
      co_await http::async_read_some(*stream, buffer, parser, asio::redirect_error(asio::use_awaitable, error));
      if (error && error != http::error::need_buffer) throw boost::system::system_error(error);
      const std::string_view got(bytes.data(), bytes.size() - parser.get().body().size);
      if (streamed) {
        reader.feed(got);
      } else {
        refusal += got;
      }
    }
    if (!parser.get().keep_alive()) stream.reset();
    if (!streamed) throw std::runtime_error("status " + std::to_string(answer.status) + ": " + refusal.substr(0, 300));
    if (!reader.done()) throw std::runtime_error("the stream ended without [DONE]");
  }

  asio::any_io_executor executor;
  LoadTarget target;
  std::optional<beast::tcp_stream> stream;
  beast::flat_buffer buffer;
};

LoadClient::LoadClient(const asio::any_io_executor& executor, LoadTarget target)
    : impl_(std::make_unique<Impl>(executor, std::move(target))) {}
LoadClient::~LoadClient() = default;

asio::awaitable<LoadAnswer> LoadClient::ask(std::string body) {
  LoadAnswer answer;
  answer.start_s = now_s();
  try {
    if (!impl_->stream) co_await impl_->connect();
    co_await impl_->exchange(body, answer);
  } catch (const boost::system::system_error& e) {  // its what() names a line of a library
    answer.error = impl_->target.host + ":" + impl_->target.port + ": " + e.code().message();
    impl_->stream.reset();
  } catch (const std::exception& e) {
    answer.error = e.what();
    impl_->stream.reset();
  }
  answer.end_s = now_s();
  co_return answer;
}

}  // namespace glint::apps
