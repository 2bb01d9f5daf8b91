#include "server/service.hpp"

#include <fmt/chrono.h>
#include <fmt/format.h>

#include <algorithm>
#include <ctime>
#include <span>

#include "base/clock.hpp"
#include "server/endpoints.hpp"
#include "server/sse.hpp"

namespace glint::server {
namespace {

// Takes the same time wherever the two differ.
bool equal_secret(std::string_view given, std::string_view secret) {
  if (secret.empty()) return false;
  unsigned different = given.size() == secret.size() ? 0 : 1;
  for (std::size_t i = 0; i < given.size(); ++i) {
    different |= static_cast<unsigned char>(given[i]) ^ static_cast<unsigned char>(secret[i % secret.size()]);
  }
  return different == 0;
}

Dialect dialect_of(std::string_view path) {
  return path.starts_with("/v1/messages") ? Dialect::kAnthropic : Dialect::kOpenAi;
}

bool matches(const Route& route, std::string_view path) {
  if (route.path.size() > 1 && route.path.ends_with('/')) {
    return path.starts_with(route.path) && path.size() > route.path.size();
  }
  return route.path == path;
}

}  // namespace

// ---- Call ------------------------------------------------------------------------------------------------------

Call::Call(Service& service, HttpRequest request, const std::shared_ptr<Responder>& responder)
    : service_(service),
      request_(std::move(request)),
      responder_(responder),
      id_(random_id("req_")),
      started_s_(now_s()),
      dialect_(dialect_of(request_.path)) {}

Engine& Call::engine() const { return *service_.engine(); }
const ServiceOptions& Call::options() const { return service_.options(); }
double Call::age_s() const { return now_s() - started_s_; }

Slots Call::admit(std::int64_t n) const {
  std::atomic<std::int64_t>& in_flight = service_.in_flight_;
  const std::int64_t now = in_flight += n;
  Slots slots(in_flight, n);
  if (now > options().max_in_flight) {
    throw ApiError({.status = 429,
                    .message = fmt::format("{} generations run or wait and the limit is {}: try again later", now - n,
                                           options().max_in_flight),
                    .code = "queue_full",
                    .retry_after_s = 1});
  }
  return slots;
}

void Call::send(HttpResponse response) {
  const int status = response.status;
  response.headers.emplace_back("X-Request-Id", id_);
  if (const auto to = responder_.lock()) to->send(std::move(response));
  end(status);
}

void Call::start_stream(HttpResponse head) {
  status_ = head.status;
  head.headers.emplace_back("X-Request-Id", id_);
  if (const auto to = responder_.lock()) to->start_stream(std::move(head));
}

void Call::write(std::string_view bytes) {
  if (const auto to = responder_.lock()) to->write(bytes);
}

void Call::finish() {
  end(status_);
  if (const auto to = responder_.lock()) to->finish();
}

void Call::post(std::function<void()> work) {
  if (const auto to = responder_.lock()) to->post(std::move(work));
}

void Call::send_error(const ApiErrorParts& parts) { send(error_response(parts, dialect_, id_)); }

void Call::aborted() { end(499); }

void Call::end(int status) {
  if (std::exchange(ended_, true)) return;
  const double seconds = age_s();
  service_.metrics().answered(route_, status, seconds);
  if (!options().access_log) return;
  std::string line =
      fmt::format(R"({{"time":"{:%Y-%m-%dT%H:%M:%SZ}","id":"{}","remote":{},"method":{},"path":{},)"
                  R"("status":{},"ms":{:.1f})",
                  fmt::gmtime(std::time(nullptr)), id_, quoted(request_.remote), quoted(request_.method.substr(0, 16)),
                  quoted(request_.path.substr(0, 128)), status, seconds * 1e3);
  if (n_choices > 0) {
    line += fmt::format(R"(,"stream":{},"n":{},"prompt_tokens":{},"cached_tokens":{},"generated_tokens":{},)"
                        R"("first_token_ms":{:.1f},"finish":{})",
                        stream, n_choices, usage.prompt_tokens, usage.cached_tokens, usage.generated_tokens,
                        first_token_s * 1e3, quoted(finish_reason));
  }
  options().access_log(line + "}");
}

// ---- Service ---------------------------------------------------------------------------------------------------

Service::Service(ServiceOptions options)
    : options_(std::move(options)), created_(static_cast<std::int64_t>(std::time(nullptr))) {}

std::shared_ptr<Exchange> Service::handle(HttpRequest request, const std::shared_ptr<Responder>& responder) {
  const auto call = std::make_shared<Call>(*this, std::move(request), responder);
  try {
    return answer(call);
  } catch (const ApiError& e) { call->send_error(e.parts()); } catch (const Error& e) {
    call->send_error(from_error(e).parts());
  } catch (const std::exception& e) {
    call->send_error({.status = 500, .message = e.what(), .code = "internal_error"});
  }
  return nullptr;
}

std::shared_ptr<Exchange> Service::answer(const std::shared_ptr<Call>& call) {
  const HttpRequest& request = call->request();
  const bool is_known =
      std::any_of(routes().begin(), routes().end(), [&](const Route& r) { return r.open && matches(r, request.path); });
  if (!is_known) check_key(request);  // before anything is said about paths
  const Route& route = find_route(request);
  call->route_ = route.path;
  if (route.needs_model && engine() == nullptr) {
    throw ApiError({.status = 503, .message = "the model is being loaded", .code = "loading", .retry_after_s = 5});
  }
  if (route.method == "POST" && draining()) {
    throw ApiError({.status = 503, .message = "the server is shutting down", .code = "draining", .retry_after_s = 5});
  }
  return route.endpoint(call);
}

const Route& Service::find_route(const HttpRequest& request) const {
  std::string allow;
  const std::string_view method = request.method == "HEAD" ? "GET" : std::string_view(request.method);
  for (const Route& route : routes()) {
    if (!matches(route, request.path)) continue;
    if (route.method == method) return route;
    allow += (allow.empty() ? "" : ", ") + std::string(route.method);
    if (route.method == "GET") allow += ", HEAD";
  }
  if (!allow.empty()) {
    throw ApiError({.status = 405,
                    .message = request.path + " takes " + allow + ", not " + request.method,
                    .code = "method_not_allowed",
                    .allow = allow});
  }
  throw ApiError({.status = 404, .message = "no such path: " + request.path, .code = "unknown_path"});
}

void Service::check_key(const HttpRequest& request) const {
  if (options_.api_keys.empty()) return;
  static constexpr std::string_view kBearer = "Bearer ";
  std::string_view given = request.header("authorization");
  if (given.size() > kBearer.size() && (given[0] == 'B' || given[0] == 'b') &&
      given.substr(1, kBearer.size() - 1) == kBearer.substr(1)) {
    given.remove_prefix(kBearer.size());
  } else {
    given = request.header("x-api-key");
  }
  bool known = false;
  for (const std::string& key : options_.api_keys) known = equal_secret(given, key) || known;
  if (!known) {
    throw ApiError({.status = 401,
                    .message = given.empty() ? "an API key is needed: Authorization: Bearer KEY, or X-Api-Key: KEY"
                                             : "the API key is wrong",
                    .code = "invalid_api_key"});
  }
}

HttpResponse Service::refusal(int status, std::string_view path, std::string_view message) {
  metrics_.answered("none", status, 0);
  return error_response({.status = status, .message = std::string(message)}, dialect_of(path), random_id("req_"));
}

}  // namespace glint::server
