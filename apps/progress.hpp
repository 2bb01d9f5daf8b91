#pragma once
// A progress bar on stderr: drawn only on a terminal, at most 20 times a second, erased when done.

#include <chrono>
#include <cstdint>
#include <string>

namespace glint::apps {

// How the numbers are written.
enum class Unit : std::uint8_t { kBytes, kTokens };

class ProgressBar {
 public:
  // `label` stands before the bar ("loading", "reading the prompt"). `enabled` false: draws nothing.
  ProgressBar(std::string label, Unit unit, bool enabled);
  ~ProgressBar() { clear(); }
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;

  void update(std::uint64_t done, std::uint64_t total);
  void clear();

 private:
  using Clock = std::chrono::steady_clock;
  std::string label_;
  Unit unit_;
  bool enabled_;
  bool drawn_ = false;
  Clock::time_point start_ = Clock::now();
  Clock::time_point last_{};
};

bool stderr_is_terminal();
bool stdout_is_terminal();
bool stdin_is_terminal();

// "1.2 GB", "512 B": powers of 1000.
std::string human_bytes(double bytes);

}  // namespace glint::apps
