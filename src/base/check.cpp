#include "base/check.hpp"

#include <cstdio>
#include <cstdlib>

#include "base/error.hpp"

namespace glint {

void check_failed(const char* condition, const std::string& message, const char* file, int line) {
  std::fprintf(stderr, "glint: bug: CHECK(%s) failed at %s:%d%s%s\n", condition, file, line,
               message.empty() ? "" : ": ", message.c_str());
  std::abort();
}

Error::Error(ErrorParts parts) : parts_(std::move(parts)) {
  message_ = parts_.what;
  if (!parts_.found.empty()) message_ += ": found " + parts_.found;
  if (!parts_.expected.empty()) message_ += (parts_.found.empty() ? ": expected " : ", expected ") + parts_.expected;
  if (!parts_.hint.empty()) message_ += " (" + parts_.hint + ")";
}

}  // namespace glint
