#pragma once
// The flags that every command with a model takes, and the sampling flags of those that generate.

#include <CLI/CLI.hpp>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "glint/engine.hpp"

namespace glint::apps {

struct EngineFlags {
  EngineOptions options;
  bool quiet = false;     // no progress, no closing line
  std::string synthetic;  // "layers=6": random weights of the real shape
  bool serves = false;    // has its cache touched ahead, and needs a tokenizer, with random weights too: that of the
                          // model directory
  std::uint64_t cache_dir_bytes = 0;

  void add_to(CLI::App& command);
  // For commands that serve many requests: these flags too.
  void add_to_server(CLI::App& command);
  // Reads --synthetic, or else finds the model directory. Throws Error.
  void resolve();
  // resolve(), then loads with a progress bar.
  std::unique_ptr<Engine> open();
};

struct SamplingFlags {
  // Z.ai's recommendation for the model, also in its generation_config (model facts §6.7).
  SamplingParams params{.temperature = 1.0F, .top_p = 0.95F};
  std::int64_t max_tokens = 0;
  std::vector<std::string> stop;
  std::vector<std::string> logit_bias;  // "ID=BIAS"
  std::optional<std::uint64_t> seed;

  void add_to(CLI::App& command);
  // A request for these ids. Throws Error for a malformed --logit-bias.
  Request request(std::vector<std::int32_t> ids) const;
};

}  // namespace glint::apps
