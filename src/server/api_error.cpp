#include "server/api_error.hpp"

#include "base/json_value.hpp"

namespace glint::server {
namespace {

const char* openai_type(int status) {
  switch (status) {
    case 401:
      return "authentication_error";
    case 404:
      return "not_found_error";
    case 429:
      return "rate_limit_error";
    case 503:
      return "service_unavailable_error";
    case 504:
      return "timeout_error";
    default:
      return status < 500 ? "invalid_request_error" : "server_error";
  }
}

const char* anthropic_type(int status) {
  switch (status) {
    case 401:
      return "authentication_error";
    case 404:
      return "not_found_error";
    case 413:
      return "request_too_large";
    case 429:
      return "rate_limit_error";
    case 503:
      return "overloaded_error";
    case 504:
      return "timeout_error";
    default:
      return status < 500 ? "invalid_request_error" : "api_error";
  }
}

JsonValue text_or_null(const std::string& s) { return s.empty() ? JsonValue() : JsonValue(s); }

}  // namespace

ApiError bad_field(std::string param, std::string_view found, std::string_view expected, std::string_view hint) {
  std::string message = param + ": found ";
  message.append(found).append(", expected ").append(expected);
  if (!hint.empty()) message.append(" (").append(hint).append(")");
  return ApiError({.status = 400, .message = std::move(message), .param = std::move(param), .code = "invalid_value"});
}

ApiError unsupported(std::string param, std::string_view what, std::string_view instead) {
  std::string message = param + ": ";
  message.append(what).append(" is not supported");
  if (!instead.empty()) message.append(" (").append(instead).append(")");
  return ApiError(
      {.status = 400, .message = std::move(message), .param = std::move(param), .code = "unsupported_value"});
}

ApiError from_error(const Error& error) {
  return ApiError({.status = 400, .message = error.what(), .param = error.parts().what, .code = "invalid_value"});
}

std::string error_body(const ApiErrorParts& parts, Dialect dialect, std::string_view request_id) {
  JsonValue error = JsonValue::make_object();
  if (dialect == Dialect::kAnthropic) {
    error.set("type", anthropic_type(parts.status)).set("message", parts.message);
    return dump_json(JsonValue::make_object()
                         .set("type", "error")
                         .set("error", std::move(error))
                         .set("request_id", std::string(request_id)),
                     NumberStyle::kVerbatim);
  }
  error.set("message", parts.message)
      .set("type", openai_type(parts.status))
      .set("param", text_or_null(parts.param))
      .set("code", text_or_null(parts.code));
  return dump_json(JsonValue::make_object().set("error", std::move(error)), NumberStyle::kVerbatim);
}

HttpResponse error_response(const ApiErrorParts& parts, Dialect dialect, std::string_view request_id) {
  HttpResponse response{.status = parts.status, .body = error_body(parts, dialect, request_id)};
  if (parts.retry_after_s > 0) response.headers.emplace_back("Retry-After", std::to_string(parts.retry_after_s));
  if (!parts.allow.empty()) response.headers.emplace_back("Allow", parts.allow);
  // The public clients would ask again, for an answer that is no longer wanted.
  if (parts.status == 504) response.headers.emplace_back("X-Should-Retry", "false");
  if (parts.status == 401) response.headers.emplace_back("WWW-Authenticate", "Bearer");
  return response;
}

}  // namespace glint::server
