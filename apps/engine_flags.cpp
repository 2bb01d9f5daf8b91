#include "engine_flags.hpp"

#include <fmt/core.h>

#include <charconv>
#include <utility>

#include "base/error.hpp"
#include "model_dir.hpp"
#include "progress.hpp"

namespace glint::apps {

void EngineFlags::add_to(CLI::App& command) {
  command.add_option("-m,--model", options.model_dir,
                     "Checkpoint directory (default: $GLINT_MODEL, else the bundled model)");
  command.add_option("--device", options.device, "cpu, or reference (slow, exact)")->capture_default_str();
  command.add_option("--isa", options.isa,
                     "CPU kernels: generic, avx2, avx512, avx512vnni, avx512bf16, amx (default: the best here)");
  command.add_option("-t,--threads", options.threads, "CPU threads (default: one a core)");
  command
      .add_option(
          "--kv", options.kv,
          "Cache format: int16, f16, bf16, fp8 or int8 (half of it), int4 (30 %), f32; auto: int16, with cuda bf16")
      ->capture_default_str();
  command.add_option("--weights", options.weights,
                     "Quantise while loading: int4, int8, nf4, fp8 or bf16, with overrides as in "
                     "int4:experts=int4-g32,head=bf16 (default: as stored)");
  command.add_option("--context", options.max_context, "Longest context of a request in tokens (default: the model's)");
  command.add_option("--cache-tokens", options.cache_tokens, "Tokens the cache holds (default: what fits in memory)");
  command.add_option("--chunk", options.chunk_tokens,
                     "Prompt tokens read in one step (default: 512; 2048 on a device with room)");
  command.add_option("--latent-eps", options.latent_eps,
                     "Epsilon of the two latent norms; 1e-6 matches Hugging Face bit for bit");
  command.add_option("--attention-window", options.window_tokens,
                     "Sliding-window attention over this many tokens (default: all)");
  command.add_flag("--no-prefix-cache{false}", options.prefix_cache,
                   "Compute every prompt from its first token, whatever the cache still holds");
  command.add_option("--cache-dir", options.cache_dir,
                     "Directory where what the prefix cache kept survives a restart (default: none)");
  command.add_option("--cache-dir-size", cache_dir_bytes, "Its size at most, e.g. 20G (default: 16G)")
      ->transform(CLI::AsSizeValue(false));
  command.add_option("--synthetic", synthetic, "Random weights of the real shape instead of a model, e.g. layers=6");
  command.add_flag("-q,--quiet", quiet, "No progress bars, no closing line");
}

void EngineFlags::add_to_server(CLI::App& command) {
  serves = true;
  command.add_option("--max-requests", options.max_requests, "Generations that run at the same time; more wait")
      ->capture_default_str();
  add_to(command);
}

void EngineFlags::resolve() {
  constexpr std::int64_t kServerTouchAhead = 256 << 20;  // what 64 clients fill in some seconds on a small host
  constexpr std::uint64_t kMost = std::uint64_t{1} << 60;
  if (cache_dir_bytes > kMost) {
    throw Error({.what = "--cache-dir-size", .found = std::to_string(cache_dir_bytes), .expected = "at most 1 EiB"});
  }
  options.cache_dir_bytes = static_cast<std::int64_t>(cache_dir_bytes);
  if (!options.on_notice) {
    options.on_notice = [](const std::string& line) { fmt::print(stderr, "glint: {}\n", line); };
  }
  if (!synthetic.empty()) {
    static constexpr std::string_view kKey = "layers=";
    const std::string_view s = synthetic;
    int layers = 0;
    if (s.substr(0, kKey.size()) == kKey) std::from_chars(s.data() + kKey.size(), s.data() + s.size(), layers);
    if (layers < 2)
      throw Error({.what = "--synthetic", .found = "'" + synthetic + "'", .expected = "layers=N with N ≥ 2"});
    options.synthetic_layers = layers;
  }
  if (serves) options.touch_ahead_bytes = kServerTouchAhead;
  if (synthetic.empty() || serves) options.model_dir = resolve_model_dir(options.model_dir);
}

std::unique_ptr<Engine> EngineFlags::open() {
  resolve();
  ProgressBar bar("loading", Unit::kBytes, !quiet);
  options.on_load = [&bar](std::uint64_t done, std::uint64_t total) { bar.update(done, total); };
  auto engine = Engine::open(options);
  options.on_load = nullptr;
  return engine;
}

void SamplingFlags::add_to(CLI::App& command) {
  command.add_option("--temp,--temperature", params.temperature, "Temperature; 0 takes the likeliest token")
      ->capture_default_str();
  command.add_option("--top-p", params.top_p, "Keep the likeliest tokens up to this probability mass")
      ->capture_default_str();
  command.add_option("--top-k", params.top_k, "Keep the k likeliest tokens (0: all)")->capture_default_str();
  command.add_option("--min-p", params.min_p, "Drop tokens below this share of the likeliest one")
      ->capture_default_str();
  command.add_option("--repetition-penalty", params.repetition_penalty, "1 is off, and best for this model")
      ->capture_default_str();
  command.add_option("--presence-penalty", params.presence_penalty)->capture_default_str();
  command.add_option("--frequency-penalty", params.frequency_penalty)->capture_default_str();
  command.add_option("--seed", seed, "Random seed (default: a new one, printed at the end)");
  command.add_option("--logprobs", params.logprobs, "Report log-probabilities of the n likeliest tokens (with --json)");
  command.add_option("--logit-bias", logit_bias, "ID=BIAS, added to that token's logit; may be repeated");
  command.add_option("-n,--max-tokens", max_tokens, "Longest answer in tokens (default: until the context is full)");
  command.add_option("--stop", stop, "End the answer at this text; may be repeated");
}

Request SamplingFlags::request(std::vector<std::int32_t> ids) const {
  Request r{.ids = std::move(ids), .sampling = params, .max_tokens = max_tokens, .stop = stop};
  r.sampling.seed = seed;
  for (const std::string& item : logit_bias) {
    std::int32_t id = 0;
    float bias = 0;
    const char* end = item.data() + item.size();
    const auto a = std::from_chars(item.data(), end, id);
    const bool ok =
        a.ec == std::errc() && a.ptr < end && *a.ptr == '=' && std::from_chars(a.ptr + 1, end, bias).ptr == end;
    if (!ok) throw Error({.what = "--logit-bias", .found = "'" + item + "'", .expected = "ID=BIAS, e.g. 198=-5"});
    r.sampling.logit_bias.emplace_back(id, bias);
  }
  return r;
}

}  // namespace glint::apps
