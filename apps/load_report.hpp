#pragma once
// What a load run comes to: percentiles, throughput, goodput; as a table row, JSON, CSV and a plot.

#include <cstdint>
#include <string>
#include <vector>

#include "load_client.hpp"

namespace glint::apps {

struct Percentiles {
  double p50 = 0, p90 = 0, p99 = 0, max = 0;
};
// Nearest rank; zeros for no values.
Percentiles percentiles(std::vector<double> values);

// An answer counts towards the goodput when it is whole, its first token came and its tokens followed in time.
struct LoadGoal {
  double first_token_s = 1.0;
  double token_s = 0.1;
};

struct LoadLevel {
  double clients = 0, rate = 0;  // one of them is set: requests in flight, or conversations a second
  double seconds = 0;            // from the first request to the last answer
  std::vector<LoadAnswer> answers;
};

struct LoadSummary {
  double clients = 0, rate = 0, seconds = 0;
  std::int64_t answers = 0, errors = 0, good = 0;
  std::int64_t prompt_tokens = 0, cached_tokens = 0, completion_tokens = 0;
  Percentiles first_token_s, gap_s, token_s;  // gap: between pieces; token: mean of an answer after its first
  std::string first_error;

  double tokens_per_s() const { return static_cast<double>(completion_tokens) / seconds; }
  double answers_per_s() const { return static_cast<double>(answers - errors) / seconds; }
  double good_per_s() const { return static_cast<double>(good) / seconds; }
};
LoadSummary summarise(const LoadLevel& level, const LoadGoal& goal);

std::string load_table_head();
std::string load_table_row(const LoadSummary& s);
std::string load_json(const std::vector<LoadSummary>& levels, const LoadGoal& goal);
// One line an answer.
std::string load_csv(const std::vector<LoadLevel>& levels);
// An SVG: time to the first token and gaps between pieces over the share of all, a curve a level.
std::string load_plot(const std::vector<LoadLevel>& levels);

}  // namespace glint::apps
