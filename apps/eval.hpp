#pragma once
// The measures of `glint eval`, each a function, so that `glint eval all` can run them over many formats.

#include <CLI/CLI.hpp>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "engine_flags.hpp"
#include "glint/engine.hpp"

namespace glint::apps {

// FILE.safetensors: the I32 tensor `tokens`. FILE.json: an array of ids. Anything else: text, tokenised as it stands.
std::vector<std::int32_t> read_tokens(const std::string& path, const Engine& engine);

struct PplResult {
  std::int64_t predictions = 0;
  double nll = 0;  // nats a token, mean
  double seconds = 0;
  double perplexity() const;
};

// Non-overlapping windows: each reads window + 1 tokens and predicts the last `window` of them. Whole windows only,
// unless the tokens are fewer than one; at most max_predictions / window of them (0: no limit).
struct PplOptions {
  std::int64_t window = 1024;
  std::int64_t max_predictions = 0;
  bool quiet = false;
};
PplResult perplexity(Engine& engine, std::span<const std::int32_t> ids, const PplOptions& options);

struct KlResult {
  std::int64_t positions = 0;
  double reference_nll = 0;  // nats a token, mean, over the same positions
  double nll = 0;
  double mean = 0;  // KL(reference ‖ tested), nats a token
  double p99 = 0;
  double max = 0;
  double top1_agreement = 0;  // share of positions where both rank the same token first
  double change() const;      // of the perplexity: 0.01 is 1 % more than the reference's
};

// A model's log-probabilities over windows, kept to compare others with. Windows as in perplexity(): each reads
// window + 1 tokens, and every prediction is compared. Takes 4 · vocab bytes a position.
class ReferenceRun {
 public:
  ReferenceRun(const EngineOptions& reference, std::span<const std::int32_t> ids, const PplOptions& options);
  // The other model over the same windows. Throws Error when the vocabularies differ.
  KlResult compare(const EngineOptions& tested) const;
  std::int64_t positions() const { return n_windows_ * window_; }

 private:
  std::span<const std::int32_t> window_ids(std::int64_t w) const;

  std::vector<std::int32_t> ids_;
  std::int64_t window_ = 0;
  std::int64_t n_windows_ = 0;
  std::size_t vocab_ = 0;
  bool quiet_ = false;
  double nll_ = 0;
  std::vector<float> log_p_;  // [n_windows · window, vocab]
};

struct TaskScore {
  std::string task;
  std::int64_t right = 0;
  std::int64_t total = 0;
};

// One question and what came of it.
struct Outcome {
  std::string task;
  bool right = false;
  std::uint64_t answer = 0;  // hash of the answer's tokens
};

// Exact match of greedy answers without thinking. tasks.jsonl: {"task", "user", "assistant"}.
std::vector<Outcome> score_tasks(Engine& engine, const std::string& path, std::int64_t limit);
// {"task", "tools", "messages"}: every assistant message is asked for in its context; calls must agree in name and
// arguments (as JSON values), texts exactly.
std::vector<Outcome> score_toolcalls(Engine& engine, const std::string& path, std::int64_t limit);
std::vector<TaskScore> by_task(const std::vector<Outcome>& outcomes);

struct LoopResult {
  std::int64_t answers = 0;
  std::int64_t looping = 0;  // answers in which some 16 tokens in a row occur three times
};
// Greedy answers of up to max_tokens to the "user" texts of a JSONL file.
LoopResult count_loops(Engine& engine, const std::string& path, std::int64_t limit, std::int64_t max_tokens);
bool repeats(std::span<const std::int32_t> ids, std::size_t n, int times);

void add_kl(CLI::App& eval, std::function<int()>& run);
void add_tasks(CLI::App& eval, std::function<int()>& run);  // tasks, toolcalls, loops
void add_all(CLI::App& eval, std::function<int()>& run);

}  // namespace glint::apps
