#pragma once
// CHECK is for our own bugs: it prints the condition, the values and the place to stderr and aborts.
// What the world does wrong (files, flags, requests) is an Error (error.hpp), never a CHECK.

#include <string>

namespace glint {
[[noreturn]] void check_failed(const char* condition, const std::string& message, const char* file, int line);
}  // namespace glint

// CHECK(cond) or CHECK(cond, "text " + std::to_string(value)); the message is built only on failure.
#define CHECK(cond, ...)                                                          \
  do {                                                                            \
    if (!(cond)) [[unlikely]]                                                     \
      ::glint::check_failed(#cond, std::string{__VA_ARGS__}, __FILE__, __LINE__); \
  } while (false)
