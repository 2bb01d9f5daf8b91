#pragma once
// What a client is told when its request is refused: status, kind, the field at fault, in the dialect of the API it
// speaks.

#include <exception>
#include <string>
#include <string_view>

#include "base/error.hpp"
#include "server/http.hpp"

namespace glint::server {

enum class Dialect : std::uint8_t { kOpenAi, kAnthropic };

struct ApiErrorParts {
  int status = 400;
  std::string message;
  std::string param;  // the field at fault, "messages[2].content"; empty: none
  std::string code;   // OpenAI's, e.g. "context_length_exceeded"; may be empty
  int retry_after_s = 0;
  std::string allow;  // 405: the methods that the path has
};

class ApiError : public std::exception {
 public:
  explicit ApiError(ApiErrorParts parts) : parts_(std::move(parts)) {}
  const char* what() const noexcept override { return parts_.message.c_str(); }
  const ApiErrorParts& parts() const { return parts_; }

 private:
  ApiErrorParts parts_;
};

// A 400 that names the field.
ApiError bad_field(std::string param, std::string_view found, std::string_view expected, std::string_view hint = {});
// A 400 for what Glint does not offer.
ApiError unsupported(std::string param, std::string_view what, std::string_view instead = {});
// An Error of the text or engine rooms that a request caused.
ApiError from_error(const Error& error);

// {"error": {"message", "type", "param", "code"}} or {"type": "error", "error": {"type", "message"}, "request_id"}.
std::string error_body(const ApiErrorParts& parts, Dialect dialect, std::string_view request_id);
HttpResponse error_response(const ApiErrorParts& parts, Dialect dialect, std::string_view request_id);

}  // namespace glint::server
