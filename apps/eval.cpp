// glint eval: perplexity, divergence from a reference, tasks, tool calls, loops.

#include "eval.hpp"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <memory>

#include "base/clock.hpp"
#include "base/error.hpp"
#include "base/file.hpp"
#include "base/json.hpp"
#include "command.hpp"
#include "progress.hpp"
#include "weights/safetensors.hpp"

namespace glint::apps {

std::vector<std::int32_t> read_tokens(const std::string& path, const Engine& engine) {
  const std::string_view name = path;
  if (name.ends_with(".safetensors")) {
    const SafetensorsFile file(path);
    const ConstView tokens = file.get("tokens");
    if (tokens.dtype != DType::kI32) {
      throw Error(
          {.what = path + ": tensor tokens", .found = std::string(dtype_name(tokens.dtype)), .expected = "I32"});
    }
    const auto* ids = tokens.as<std::int32_t>();
    return {ids, ids + tokens.shape.elements()};
  }
  if (name.ends_with(".json")) {
    const json::value v = json::parse_file(path);
    const bool ids = v.is_array() && std::all_of(v.get_array().begin(), v.get_array().end(),
                                                 [](const json::value& e) { return e.is_int64(); });
    if (!ids) throw Error({.what = path, .found = "other JSON", .expected = "an array of token ids"});
    std::vector<std::int32_t> out;
    for (const json::value& e : v.get_array()) out.push_back(static_cast<std::int32_t>(e.get_int64()));
    return out;
  }
  return engine.encode(read_file(path), true);
}

double PplResult::perplexity() const { return std::exp(nll); }

PplResult perplexity(Engine& engine, std::span<const std::int32_t> ids, const PplOptions& options) {
  const auto n = static_cast<std::int64_t>(ids.size());
  if (n < 2) throw Error({.what = "perplexity", .found = std::to_string(n) + " tokens", .expected = "at least 2"});
  const std::int64_t window = std::min(options.window, n - 1);
  std::int64_t n_windows = n / (window + 1);
  if (options.max_predictions > 0)
    n_windows = std::min(n_windows, std::max<std::int64_t>(1, options.max_predictions / window));
  ProgressBar bar("scoring", Unit::kTokens, !options.quiet);
  const double start = now_s();
  double sum = 0;
  for (const float logprob : engine.score(ids.first(static_cast<std::size_t>(n_windows * (window + 1))), window,
                                          [&bar](std::int64_t done, std::int64_t total) {
                                            bar.update(static_cast<std::uint64_t>(done),
                                                       static_cast<std::uint64_t>(total));
                                          })) {
    sum -= logprob;
  }
  return {.predictions = n_windows * window,
          .nll = sum / static_cast<double>(n_windows * window),
          .seconds = now_s() - start};
}

namespace {

struct PplFlags {
  EngineFlags engine;
  PplOptions options;
  std::string file;
  bool json = false;
};

int run_ppl(PplFlags& f) {
  const auto engine = f.engine.open();
  f.options.quiet = f.engine.quiet || f.json;
  const PplResult r = perplexity(*engine, read_tokens(f.file, *engine), f.options);
  const double tok_s = static_cast<double>(r.predictions) / r.seconds;
  if (f.json) {
    const json::value out = {{"file", f.file},
                             {"backend", engine->info().backend},
                             {"window", f.options.window},
                             {"predictions", r.predictions},
                             {"nll", r.nll},
                             {"perplexity", r.perplexity()},
                             {"seconds", r.seconds},
                             {"tokens_per_second", tok_s}};
    fmt::print("{}\n", json::dump_python(out));
  } else {
    fmt::print("perplexity {:.4f}   nll {:.6f} nats/token   {} predictions, window {}   {} · {:.0f} tok/s\n",
               r.perplexity(), r.nll, r.predictions, f.options.window, engine->info().backend, tok_s);
  }
  return 0;
}

}  // namespace

void register_eval(CLI::App& app, Run& run) {
  CLI::App* eval = app.add_subcommand("eval", "Measure the model's quality");
  eval->require_subcommand(1);
  CLI::App* ppl = eval->add_subcommand("ppl", "Perplexity over non-overlapping windows of a text or token file");
  const auto f = std::make_shared<PplFlags>();
  f->engine.add_to(*ppl);
  ppl->add_option("file", f->file, "Text, .json (array of ids) or .safetensors (I32 tensor `tokens`)")->required();
  ppl->add_option("--window", f->options.window, "Tokens predicted a window")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  ppl->add_option("--max-tokens", f->options.max_predictions,
                  "Predict at most this many tokens (default: the whole file)")
      ->check(CLI::NonNegativeNumber);
  ppl->add_flag("--json", f->json, "One JSON object on stdout");
  ppl->footer(
      "Example: glint eval ppl book.txt --window 4096\n"
      "The same windows give the same figure on every backend to within its rounding.");
  ppl->callback([f, &run] { run = [f] { return run_ppl(*f); }; });
  add_kl(*eval, run);
  add_tasks(*eval, run);
  add_all(*eval, run);
}

}  // namespace glint::apps
