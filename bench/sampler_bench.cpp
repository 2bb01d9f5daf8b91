// CPU time of drawing one token from the model's vocabulary, by parameters and by the shape of the logits.
//   build/release/bench/sampler_bench

#include <fmt/format.h>

#include <algorithm>
#include <ctime>
#include <random>
#include <vector>

#include "sampling/sampler.hpp"

namespace {

using namespace glint;

constexpr std::int64_t kVocab = 154880;

double cpu_us() {
  timespec t{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return 1e6 * static_cast<double>(t.tv_sec) + 1e-3 * static_cast<double>(t.tv_nsec);
}

// A trained model's row: most tokens far below, a few dozen near the best. flat: a normal distribution of deviation 1.
std::vector<float> logits(bool flat) {
  std::mt19937 rng(1);
  std::normal_distribution<float> normal(0.0F, flat ? 1.0F : 2.0F);
  std::vector<float> x(kVocab);
  for (float& v : x) v = normal(rng);
  if (!flat) {
    for (int i = 0; i < 40; ++i) x[rng() % kVocab] = 22.0F - 0.25F * static_cast<float>(i);
  }
  return x;
}

double median_us(Sampler& sampler, const SampleInput& base) {
  std::vector<double> times;
  for (int i = 0; i < 41; ++i) {
    SampleInput input = base;
    input.position = i;
    const double start = cpu_us();
    sampler.sample(input);
    times.push_back(cpu_us() - start);
  }
  std::nth_element(times.begin(), times.begin() + 20, times.end());
  return times[20];
}

}  // namespace

int main() {
  struct Case {
    const char* name;
    SamplerParams params;
  };
  const std::vector<Case> cases{
      {"greedy", {.temperature = 0}},
      {"greedy, 20 log-probs", {.temperature = 0, .logprobs = 20}},
      {"temperature 1", {}},
      {"temperature 1, 20 log-probs", {.logprobs = 20}},
      {"top-p 0.95", {.top_p = 0.95F}},
      {"top-k 20, top-p 0.8, t 0.7", {.temperature = 0.7F, .top_p = 0.8F, .top_k = 20}},
      {"top-k 5000", {.top_k = 5000}},
      {"min-p 0.05", {.min_p = 0.05F}},
      {"top-p 0.95, penalties", {.top_p = 0.95F, .repetition_penalty = 1.1F, .presence_penalty = 0.5F}},
  };
  TokenCounts counts;
  std::mt19937 rng(2);
  for (int i = 0; i < 4000; ++i) counts.add_generated(static_cast<std::int32_t>(rng() % kVocab));
  Sampler sampler(kVocab);
  fmt::print("{:<28} {:>10} {:>10}   (CPU us a token, median of 41)\n", "", "peaked", "flat");
  for (const Case& c : cases) {
    fmt::print("{:<28}", c.name);
    for (const bool flat : {false, true}) {
      const std::vector<float> x = logits(flat);
      fmt::print(" {:>10.1f}", median_us(sampler, {.logits = x, .params = &c.params, .counts = &counts}));
    }
    fmt::print("\n");
  }
}
