#pragma once
// Seconds of the monotonic clock, for durations only.

#include <chrono>

namespace glint {
inline double now_s() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}
}  // namespace glint
