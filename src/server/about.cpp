// GET /v1/models, /v1/models/NAME, /health, /metrics.

#include <fmt/chrono.h>
#include <fmt/format.h>

#include "server/endpoints.hpp"
#include "server/sse.hpp"

namespace glint::server {
namespace {

// The fields of OpenAI's and of Anthropic's model objects in one, so that the clients of both can read it.
std::string model_json(const Call& call) {
  const std::string name = quoted(call.options().model_name);
  const std::int64_t created = call.service().created();
  return fmt::format(R"({{"id":{},"object":"model","created":{},"owned_by":"glint","max_model_len":{},)"
                     R"("type":"model","display_name":{},"created_at":"{:%Y-%m-%dT%H:%M:%SZ}"}})",
                     name, created, call.engine().info().max_context, name, fmt::gmtime(std::time_t{created}));
}

}  // namespace

std::shared_ptr<Exchange> get_models(const std::shared_ptr<Call>& call) {
  const std::string name = quoted(call->options().model_name);
  call->send_json(fmt::format(R"({{"object":"list","data":[{}],"has_more":false,"first_id":{},"last_id":{}}})",
                              model_json(*call), name, name));
  return nullptr;
}

std::shared_ptr<Exchange> get_model(const std::shared_ptr<Call>& call) {
  const std::string_view path = call->request().path;
  const std::string_view name = path.substr(std::string_view("/v1/models/").size());
  if (name != call->options().model_name) {
    throw ApiError({.status = 404,
                    .message = fmt::format("no model \"{}\": this server has \"{}\"", name, call->options().model_name),
                    .param = "model",
                    .code = "model_not_found"});
  }
  call->send_json(model_json(*call));
  return nullptr;
}

std::shared_ptr<Exchange> get_health(const std::shared_ptr<Call>& call) {
  const Service& service = call->service();
  const bool loading = service.engine() == nullptr;
  const char* state = service.draining() ? "draining" : loading ? "loading" : "ok";
  HttpResponse response{.status = service.draining() || loading ? 503 : 200};
  response.headers.emplace_back("Cache-Control", "no-store");
  response.body = fmt::format(R"({{"status":"{}"}})", state);
  call->send(std::move(response));
  return nullptr;
}

std::shared_ptr<Exchange> get_metrics(const std::shared_ptr<Call>& call) {
  Service& service = call->service();
  const ServiceState state{.in_flight = service.in_flight(),
                           .replay_bytes = static_cast<std::int64_t>(service.replay().bytes()),
                           .memory = process_memory()};
  std::string text;
  if (Engine* engine = service.engine()) {
    const EngineStats stats = engine->stats();
    text = service.metrics().print(&stats, &engine->info(), service.options().model_name, state);
  } else {
    text = service.metrics().print(nullptr, nullptr, service.options().model_name, state);
  }
  call->send({.content_type = "text/plain; version=0.0.4; charset=utf-8", .body = std::move(text)});
  return nullptr;
}

}  // namespace glint::server
