#pragma once
// Error is for the world: a bad file, a bad flag, no memory. Thrown while loading and at the API's edge only;
// the step loop never throws.

#include <exception>
#include <string>
#include <utility>

namespace glint {

// what: the subject ("model.safetensors: tensor lm_head.weight"); found / expected: the two sides; hint: what to do.
// Empty parts are left out of the message.
struct ErrorParts {
  std::string what;
  std::string found;
  std::string expected;
  std::string hint;
};

class Error : public std::exception {
 public:
  explicit Error(ErrorParts parts);
  explicit Error(std::string what) : Error(ErrorParts{.what = std::move(what)}) {}

  // One line: "WHAT: found F, expected E (HINT)".
  const char* what() const noexcept override { return message_.c_str(); }
  const ErrorParts& parts() const noexcept { return parts_; }

 private:
  ErrorParts parts_;
  std::string message_;
};

}  // namespace glint
