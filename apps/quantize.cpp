// glint quantize: a checkpoint in a smaller format.

#include <fmt/core.h>
#include <unistd.h>

#include <chrono>
#include <cmath>
#include <filesystem>
#include <memory>

#include "backends/cpu/cpu.hpp"
#include "backends/reference/reference.hpp"
#include "base/error.hpp"
#include "base/json.hpp"
#include "calibration_text.hpp"
#include "command.hpp"
#include "model_dir.hpp"
#include "models/glm_4_7_flash/quantize.hpp"
#include "progress.hpp"

namespace glint::apps {
namespace {

struct QuantizeFlags {
  QuantizeJob job;
  std::string model;
  std::string preset = "q4";
  std::vector<std::string> set;
  std::string method;
  std::string calibrate;
  std::int64_t calibration_tokens = kCalibrationTokens;
  double shard_gb = 5;
  bool json = false;
  bool quiet = false;
};

void print_report(const QuantizeReport& r, const QuantizeFlags& f, double seconds) {
  fmt::print("{:<16}{:>16}{:>12}{:>7}{:>11}  {}\n", "", "parameters", "bytes", "bits", "error", "formats");
  for (std::size_t i = 0; i < kRoles; ++i) {
    const QuantizedRole& role = r.roles[i];
    if (role.params == 0) continue;
    std::string formats;
    for (const std::string& s : role.formats) formats += (formats.empty() ? "" : ", ") + s;
    fmt::print(
        "{:<16}{:>16}{:>12}{:>7.2f}{:>11}  {}\n", role_name(static_cast<Role>(i)), role.params,
        human_bytes(static_cast<double>(role.bytes)),
        8.0 * static_cast<double>(role.bytes) / static_cast<double>(role.params),
        role.squared_sum > 0 ? fmt::format("{:.3f} %", 100 * std::sqrt(role.squared_error / role.squared_sum)) : "-",
        formats);
  }
  fmt::print("{} → {} in {} shard{}{} · {:.1f} s · {}\n", human_bytes(static_cast<double>(r.input_bytes)),
             human_bytes(static_cast<double>(r.output_bytes)), r.shards, r.shards == 1 ? "" : "s",
             r.shards_kept > 0 ? fmt::format(" ({} of an earlier run)", r.shards_kept) : "", seconds, f.job.output_dir);
  if (r.starved_experts > 0) {
    fmt::print("{} experts saw few of the calibration tokens and lean on their layer's statistics; more text helps\n",
               r.starved_experts);
  }
}

json::object report_json(const QuantizeReport& r, const QuantizeFlags& f, double seconds) {
  json::object roles;
  for (std::size_t i = 0; i < kRoles; ++i) {
    const QuantizedRole& role = r.roles[i];
    if (role.params == 0) continue;
    json::array formats;
    for (const std::string& s : role.formats) formats.push_back(json::value(s));
    roles[role_name(static_cast<Role>(i))] = {
        {"params", role.params},
        {"bytes", role.bytes},
        {"relative_error", role.squared_sum > 0 ? std::sqrt(role.squared_error / role.squared_sum) : 0.0},
        {"formats", std::move(formats)}};
  }
  return {{"input", f.job.input_dir},
          {"output", f.job.output_dir},
          {"recipe", f.job.recipe.text()},
          {"method", f.method},
          {"calibration_tokens", f.job.calibration.size()},
          {"input_bytes", r.input_bytes},
          {"output_bytes", r.output_bytes},
          {"shards", r.shards},
          {"shards_kept", r.shards_kept},
          {"starved_experts", r.starved_experts},
          {"seconds", seconds},
          {"roles", std::move(roles)}};
}

QuantMethod method_of(const std::string& name) {
  if (name == "rtn") return QuantMethod::kRtn;
  if (name == "mse") return QuantMethod::kSearch;
  return QuantMethod::kGptq;
}

int run_quantize(QuantizeFlags& f) {
  f.model = resolve_model_dir(f.model);
  f.job.input_dir = f.model;
  f.job.recipe = QuantRecipe::preset(f.preset);
  for (const std::string& rule : f.set) f.job.recipe.set(rule);
  // INT8 has nothing to gain from calibration that the evaluation could see.
  if (f.method.empty()) f.method = f.preset == "q8" || f.preset == "bf16" ? "mse" : "gptq";
  f.job.method = method_of(f.method);
  if (f.job.method == QuantMethod::kGptq)
    f.job.calibration = calibration_ids(f.model, f.calibrate, f.calibration_tokens);
  f.job.shard_bytes = static_cast<std::uint64_t>(f.shard_gb * 1e9);
  while (f.job.output_dir.size() > 1 && f.job.output_dir.back() == '/') f.job.output_dir.pop_back();

  const std::unique_ptr<Ops> ops = make_cpu_ops({.threads = f.job.threads});
  const auto start = std::chrono::steady_clock::now();
  QuantizeReport report;
  {
    ProgressBar bar("quantising", Unit::kBytes, !f.quiet);
    report =
        quantize_checkpoint(f.job, *ops, [&bar](std::uint64_t done, std::uint64_t total) { bar.update(done, total); });
  }
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  if (f.json) fmt::print("{}\n", json::dump_python(report_json(report, f, seconds)));
  else if (!f.quiet) print_report(report, f, seconds);
  return 0;
}

}  // namespace

void register_quantize(CLI::App& app, Run& run) {
  CLI::App* c = app.add_subcommand("quantize", "Write a checkpoint in a smaller format");
  const auto f = std::make_shared<QuantizeFlags>();
  c->add_option("-m,--model", f->model, "Checkpoint directory (default: $GLINT_MODEL, else the bundled model)");
  c->add_option("-o,--output", f->job.output_dir, "Directory to make; must not exist")->required();
  c->add_option("--preset", f->preset, "q4, int4 (smaller, further off), q8, nf4 or fp8")
      ->capture_default_str()
      ->check(CLI::IsMember({"q4", "int4", "q8", "nf4", "fp8", "bf16"}));
  c->add_option("--set", f->set, "KEY=SPEC for a role or field, e.g. experts=int4-g32, mtp=bf16, experts@1-3=int8")
      ->delimiter(',');
  c->add_option("--method", f->method,
                "rtn (plain rounding), mse (searched scales) or gptq (calibrated; default except for q8)")
      ->check(CLI::IsMember({"rtn", "mse", "gptq"}));
  c->add_option("--calibrate", f->calibrate, "Text for gptq (default: the one that comes with Glint)");
  c->add_option("--calibration-tokens", f->calibration_tokens, "Tokens of it that are read")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  c->add_option("--calibration-window", f->job.window_tokens, "Tokens a calibration sequence")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  c->add_option("--damping", f->job.damping, "Share of the mean input power added to every input's")
      ->capture_default_str();
  c->add_option("--background", f->job.background, "Weight of tokens that did not choose an expert in its statistics")
      ->capture_default_str();
  c->add_option("--shard-gb", f->shard_gb, "Largest shard")->capture_default_str()->check(CLI::PositiveNumber);
  c->add_option("-t,--threads", f->job.threads, "CPU threads (default: one a core)");
  c->add_flag("--resume", f->job.resume, "Go on with an interrupted run of the same command");
  c->add_flag("--json", f->json, "One JSON object on stdout");
  c->add_flag("-q,--quiet", f->quiet, "No progress bar, no report");
  c->footer(
      "Example: glint quantize -m GLM-4.7-Flash -o GLM-4.7-Flash-q4 --calibrate my_code.txt\n"
      "Norms, the router and its bias are never quantised. The output also loads in programs that read\n"
      "compressed-tensors (q4, q8, fp8) or bitsandbytes (nf4) checkpoints of this model.");
  c->callback([f, &run] { run = [f] { return run_quantize(*f); }; });
}

}  // namespace glint::apps
