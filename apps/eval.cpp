// glint eval ppl FILE: perplexity of a text or token file.

#include <fmt/core.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <memory>
#include <vector>

#include "base/error.hpp"
#include "base/file.hpp"
#include "base/json.hpp"
#include "command.hpp"
#include "engine_flags.hpp"
#include "progress.hpp"
#include "weights/safetensors.hpp"

namespace glint::apps {
namespace {

struct PplFlags {
  EngineFlags engine;
  std::string file;
  std::int64_t window = 1024;
  std::int64_t max_tokens = 0;
  bool json = false;
};

bool ends_with(std::string_view s, std::string_view suffix) {
  return s.size() >= suffix.size() && s.substr(s.size() - suffix.size()) == suffix;
}

// FILE.safetensors: the I32 tensor `tokens`. FILE.json: an array of ids. Anything else: text, tokenised as it stands.
std::vector<std::int32_t> read_tokens(const std::string& path, const Engine& engine) {
  if (ends_with(path, ".safetensors")) {
    const SafetensorsFile file(path);
    const ConstView tokens = file.get("tokens");
    if (tokens.dtype != DType::kI32) {
      throw Error(
          {.what = path + ": tensor tokens", .found = std::string(dtype_name(tokens.dtype)), .expected = "I32"});
    }
    const auto* ids = tokens.as<std::int32_t>();
    return {ids, ids + tokens.shape.elements()};
  }
  if (ends_with(path, ".json")) {
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

struct PplResult {
  std::int64_t predictions = 0;
  double nll = 0;  // nats a token, mean
  double seconds = 0;
};

// Non-overlapping windows: window w reads tokens [wT, wT + T] and predicts the last T of them; a shorter rest is left
// out unless it is all there is.
PplResult perplexity(Engine& engine, std::span<const std::int32_t> ids, std::int64_t window, bool quiet) {
  const auto n = static_cast<std::int64_t>(ids.size());
  if (n < 2) throw Error({.what = "perplexity", .found = std::to_string(n) + " tokens", .expected = "at least 2"});
  window = std::min(window, n - 1);
  const std::int64_t n_windows = (n - 1) / window;
  ProgressBar bar("scoring", Unit::kTokens, !quiet);
  PplResult r;
  double sum = 0;
  const auto start = std::chrono::steady_clock::now();
  for (std::int64_t w = 0; w < n_windows; ++w) {
    for (const float logprob :
         engine.score(ids.subspan(static_cast<std::size_t>(w * window), static_cast<std::size_t>(window + 1)))) {
      sum -= logprob;
    }
    bar.update(static_cast<std::uint64_t>((w + 1) * window), static_cast<std::uint64_t>(n_windows * window));
  }
  r.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  r.predictions = n_windows * window;
  r.nll = sum / static_cast<double>(r.predictions);
  return r;
}

int run_ppl(PplFlags& f) {
  if (f.window < 1) throw Error({.what = "--window", .found = std::to_string(f.window), .expected = "at least 1"});
  const auto engine = f.engine.open();
  std::vector<std::int32_t> ids = read_tokens(f.file, *engine);
  if (f.max_tokens > 0 && static_cast<std::int64_t>(ids.size()) > f.max_tokens + 1) {
    ids.resize(static_cast<std::size_t>(f.max_tokens) + 1);
  }
  const PplResult r = perplexity(*engine, ids, f.window, f.engine.quiet || f.json);
  const double tok_s = static_cast<double>(r.predictions) / r.seconds;
  if (f.json) {
    const json::value out = {
        {"file", f.file}, {"backend", engine->info().backend}, {"window", f.window},   {"predictions", r.predictions},
        {"nll", r.nll},   {"perplexity", std::exp(r.nll)},     {"seconds", r.seconds}, {"tokens_per_second", tok_s}};
    fmt::print("{}\n", json::dump_python(out));
  } else {
    fmt::print("perplexity {:.4f}   nll {:.6f} nats/token   {} predictions, window {}   {} · {:.0f} tok/s\n",
               std::exp(r.nll), r.nll, r.predictions, f.window, engine->info().backend, tok_s);
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
  ppl->add_option("--window", f->window, "Tokens predicted a window")->capture_default_str();
  ppl->add_option("--max-tokens", f->max_tokens, "Stop after this many tokens (default: the whole file)");
  ppl->add_flag("--json", f->json, "One JSON object on stdout");
  ppl->footer(
      "Example: glint eval ppl book.txt --window 4096\nThe same windows give the same figure on every backend to "
      "within its rounding.");
  ppl->callback([f, &run] { run = [f] { return run_ppl(*f); }; });
}

}  // namespace glint::apps
