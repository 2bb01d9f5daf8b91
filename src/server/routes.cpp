#include "server/endpoints.hpp"

namespace glint::server {

std::span<const Route> routes() {
  static constexpr Route kRoutes[] = {
      {.method = "POST", .path = "/v1/chat/completions", .endpoint = post_chat_completions},
      {.method = "POST", .path = "/v1/completions", .endpoint = post_completions},
      {.method = "POST", .path = "/v1/responses", .endpoint = post_responses},
      {.method = "POST", .path = "/v1/messages", .endpoint = post_messages},
      {.method = "POST", .path = "/v1/messages/count_tokens", .endpoint = post_count_tokens},
      {.method = "GET", .path = "/v1/models", .endpoint = get_models},
      {.method = "GET", .path = "/v1/models/", .endpoint = get_model},
      {.method = "POST", .path = "/tokenize", .endpoint = post_tokenize},
      {.method = "POST", .path = "/detokenize", .endpoint = post_detokenize},
      {.method = "GET", .path = "/health", .endpoint = get_health, .open = true, .needs_model = false},
      {.method = "GET", .path = "/metrics", .endpoint = get_metrics, .needs_model = false},
      {.method = "GET", .path = "/", .endpoint = get_page, .open = true, .needs_model = false},
      {.method = "GET", .path = "/app.js", .endpoint = get_page, .open = true, .needs_model = false},
      {.method = "GET", .path = "/openapi.json", .endpoint = get_page, .open = true, .needs_model = false},
      {.method = "GET", .path = "/style.css", .endpoint = get_page, .open = true, .needs_model = false},
  };
  return kRoutes;
}

}  // namespace glint::server
