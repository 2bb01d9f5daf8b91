// glint env: this build, this machine and the environment switches, with their values.

#include <fmt/core.h>
#include <unistd.h>

#include <fstream>
#include <memory>
#include <string>
#include <thread>

#include "backends/cpu/cpu.hpp"
#include "backends/cpu/peaks.hpp"
#include "base/env.hpp"
#include "base/json.hpp"
#include "command.hpp"
#include "glint/glint.h"
#include "progress.hpp"

namespace glint::apps {
namespace {

struct EnvFlags {
  bool measure = false;
  bool json = false;
};

std::string cpu_model() {
  std::ifstream in("/proc/cpuinfo");
  for (std::string line; std::getline(in, line);) {
    const std::size_t colon = line.find(": ");
    if (line.rfind("model name", 0) == 0 && colon != std::string::npos) return line.substr(colon + 2);
  }
  return "unknown";
}

double memory_bytes() {
  return static_cast<double>(::sysconf(_SC_PHYS_PAGES)) * static_cast<double>(::sysconf(_SC_PAGESIZE));
}

int run_env(const EnvFlags& f) {
  json::array isas;
  std::string isa_list;
  for (const std::string& isa : cpu_isas()) {
    isas.emplace_back(isa);
    isa_list += (isa_list.empty() ? "" : ", ") + isa;
  }
  json::object out{{"version", glint_version()},
                   {"cpu", cpu_model()},
                   {"cores", std::thread::hardware_concurrency()},
                   {"memory_bytes", memory_bytes()},
                   {"isas", std::move(isas)}};
  if (f.measure) {
    const CpuPeaks p = measure_peaks();
    out["peaks"] = json::object{{"isa", p.isa},
                                {"threads", p.threads},
                                {"read_gb_s", p.read_gb_s},
                                {"f32_gflop_s", p.f32_gflop_s},
                                {"bf16_gflop_s", p.bf16_gflop_s}};
  }
  json::object switches;
  for (const EnvSwitch& s : env_switches()) {
    const std::string name(s.name);
    const auto value = env_value(s.name);
    switches[name] = value ? json::value(*value) : json::value(nullptr);
  }
  if (f.json) {
    out["switches"] = std::move(switches);
    fmt::print("{}\n", json::dump_python(out));
    return 0;
  }
  fmt::print("glint {}\n{} · {} cores · {} of memory · kernels: {}\n", glint_version(), cpu_model(),
             std::thread::hardware_concurrency(), human_bytes(memory_bytes()), isa_list);
  if (f.measure) {
    const json::object& p = out["peaks"].get_object();
    fmt::print("measured with {} threads ({}): read {:.1f} GB/s · f32 {:.0f} GFLOP/s · bf16 {:.0f} GFLOP/s\n",
               p.at("threads").get_int64(), p.at("isa").get_string().c_str(), p.at("read_gb_s").get_double(),
               p.at("f32_gflop_s").get_double(), p.at("bf16_gflop_s").get_double());
  }
  fmt::print("\nEnvironment switches; none changes a result:\n");
  for (const EnvSwitch& s : env_switches()) {
    const auto value = env_value(s.name);
    fmt::print("  {:<16} {:<5} {}\n{:25}now: {} (default: {})\n", s.name, s.type, s.sentence, "",
               value ? *value : "not set", s.default_value);
  }
  return 0;
}

}  // namespace

void register_env(CLI::App& app, Run& run) {
  CLI::App* c = app.add_subcommand("env", "This build, this machine, and the environment switches");
  const auto f = std::make_shared<EnvFlags>();
  c->add_flag("--measure", f->measure, "Measure the read bandwidth and the arithmetic peaks (about a second)");
  c->add_flag("--json", f->json, "One JSON object on stdout");
  c->callback([f, &run] { run = [f] { return run_env(*f); }; });
}

}  // namespace glint::apps
