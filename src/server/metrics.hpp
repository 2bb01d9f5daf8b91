#pragma once
// Counters and histograms for Prometheus (text format 0.0.4). Thread-safe.

#include <array>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>

#include "base/process_memory.hpp"
#include "glint/engine.hpp"

namespace glint::server {

// Seconds, in fixed buckets.
class Histogram {
 public:
  static constexpr std::array<double, 16> kBounds = {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25,
                                                     0.5,   1,      2.5,   5,    10,    30,   60,  300};
  void add(double seconds);
  void print(std::string_view name, std::string_view help, std::string& out) const;

 private:
  std::array<std::uint64_t, kBounds.size() + 1> counts_{};
  double sum_ = 0;
};

// What the service itself holds now.
struct ServiceState {
  std::int64_t in_flight = 0;     // generations that run or wait
  std::int64_t replay_bytes = 0;  // ReplayMemory
  ProcessMemory memory;
};

class Metrics {
 public:
  void answered(std::string_view route, int status, double seconds);
  // A generation ended; first_token_s < 0: there was none.
  void generated(const Usage& usage, double first_token_s);
  // stats and model: nullptr while loading.
  std::string print(const EngineStats* stats, const ModelInfo* model, std::string_view model_name,
                    const ServiceState& service) const;

 private:
  mutable std::mutex mutex_;
  std::map<std::pair<std::string, int>, std::uint64_t> answers_;
  std::uint64_t prompt_tokens_ = 0;
  std::uint64_t cached_tokens_ = 0;
  std::uint64_t generated_tokens_ = 0;
  Histogram request_s_;
  Histogram first_token_s_;
  Histogram token_s_;
  Histogram queue_s_;
};

}  // namespace glint::server
