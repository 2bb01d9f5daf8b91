// glint bench: how fast the model runs here, beside what this machine can do at most.

#include <fmt/core.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "backends/cpu/cpu.hpp"
#include "backends/cpu/peaks.hpp"
#ifdef GLINT_CUDA
#include "backends/cuda/cuda.hpp"
#endif
#include "backends/reference/reference.hpp"
#include "base/error.hpp"
#include "base/json.hpp"
#include "bench_model.hpp"
#include "bench_serve.hpp"
#include "command.hpp"
#include "engine/loaded_model.hpp"
#include "engine/memory.hpp"
#include "engine_flags.hpp"
#include "models/glm_4_7_flash/load_gguf.hpp"
#include "models/glm_4_7_flash/quantize.hpp"
#include "progress.hpp"

namespace glint::apps {
namespace {

struct BenchFlags {
  EngineFlags engine;
  std::vector<std::int64_t> prompt_tokens{512};
  std::int64_t gen_tokens = 32;
  std::vector<std::int64_t> batch{1};
  std::vector<std::int64_t> depth{0};
  int repeat = 3;
  bool ops = false;
  bool op_by_op = false;
  bool json = false;
  std::string csv;
};

struct BenchRow {
  std::string kind;  // "prefill" or "decode"
  std::int64_t tokens = 0;
  std::int64_t batch = 0;
  std::int64_t depth = 0;
  double seconds = 0;  // median of the repeats; decode: of one step
  double tokens_per_s = 0;
  double gb_per_s = 0;
  double gflop_per_s = 0;
  double read_gb_s = 0;      // the read bandwidth beside this row: of a host, the median of passes between the steps
  double share_of_peak = 0;  // decode: of that read bandwidth; prefill: of the BF16 peak
  std::uint64_t hash = 0;
  std::vector<OpCount> ops;
};

double median(std::vector<double> v) {
  std::sort(v.begin(), v.end());
  return v[v.size() / 2];
}

std::unique_ptr<Ops> make_backend(const EngineOptions& o, [[maybe_unused]] bool op_by_op) {
  if (o.device == "cpu") return make_cpu_ops({.isa = o.isa, .threads = o.threads});
  if (o.device == "reference") return make_reference_ops();
#ifdef GLINT_CUDA
  if (o.device == "cuda") return make_cuda_ops({.one_kernel = !op_by_op});
#endif
  throw Error({.what = "--device", .found = "'" + o.device + "'", .expected = "cpu, cuda (where built) or reference"});
}

// What the machine can do. `probe`: of a host, whose memory other processes use as well.
struct Ceilings {
  CpuPeaks peaks;
  std::unique_ptr<ReadProbe> probe;
};

// What a device does with a large copy (bytes read and written) and a large product of its own.
CpuPeaks measure_device(Ops& ops) {
  const auto best_of = [&](auto work) {
    double best = 1e30;
    for (int i = 0; i < 6; ++i) {
      ops.synchronize();
      ops.start_timer();
      work();
      best = std::min(best, ops.stop_timer());
    }
    return best;
  };
  CpuPeaks peaks;
  {
    constexpr std::size_t kBytes = std::size_t{1} << 30;
    const Buffer from = ops.allocate(kBytes), to = ops.allocate(kBytes);
    peaks.read_gb_s = 2e-9 * kBytes / best_of([&] { ops.copy(to.data(), from.data(), kBytes); });
  }
  constexpr std::int64_t kSize = 8192;
  ops.reserve({.max_rows = kSize, .hidden = kSize / 2});
  std::vector<float> random(kSize * 64);  // repeated: what counts is that the bits are not all equal
  std::vector<BF16> random16(random.size());
  std::uint32_t state = 1;
  for (std::size_t i = 0; i < random.size(); ++i) {
    state = state * 1664525U + 1013904223U;
    random[i] = static_cast<float>(static_cast<std::int32_t>(state)) * 0x1p-31F;
    random16[i] = to_bf16(random[i]);
  }
  constexpr std::size_t kFloats = std::size_t{kSize} * kSize * sizeof(float);
  const Buffer x = ops.allocate(kFloats), w = ops.allocate(kFloats / 2), y = ops.allocate(kFloats);
  for (std::int64_t r = 0; r < kSize; r += 64) {
    ops.upload(static_cast<float*>(x.data()) + r * kSize, random.data(), random.size() * sizeof(float));
    ops.upload(static_cast<BF16*>(w.data()) + r * kSize, random16.data(), random16.size() * sizeof(BF16));
  }
  const Weight weight{.format = WeightFormat::kBF16, .rows = kSize, .cols = kSize, .data = w.data()};
  peaks.bf16_gflop_s = 2e-9 * kSize * kSize * kSize / best_of([&] {
                         ops.linear({.x = View{x.data(), DType::kF32, {kSize, kSize}},
                                     .w = weight,
                                     .out = {y.data(), DType::kF32, {kSize, kSize}}});
                       });
  return peaks;
}

ModelWeights make_weights(EngineFlags& flags, Ops& ops) {
  ProgressBar bar("loading", Unit::kBytes, !flags.quiet);
  const LoadProgress progress = [&bar](std::uint64_t done, std::uint64_t total) { bar.update(done, total); };
  flags.resolve();
  if (flags.options.synthetic_layers == 0) {
    const auto gguf = find_gguf(flags.options.model_dir);
    ModelWeights weights =
        gguf ? load_gguf(*gguf, ops, progress) : load_weights(flags.options.model_dir, ops, progress);
    if (const std::string& w = flags.options.weights; !w.empty())
      quantize_in_memory(weights, QuantRecipe::parse(w), ops, progress);
    return weights;
  }
  SyntheticOptions synthetic{.config = real_config()};
  synthetic.config.n_layers = flags.options.synthetic_layers;
  synthetic.weights = flags.options.weights;
  return synthetic_weights(synthetic, ops, progress);
}

// Seconds, bytes and FLOPs of the work between the last Counted::reset() and now.
// `share`: how much of that was counted.
void finish_row(BenchRow& row, const Counted& ops, double work_seconds, double n_tokens, const CpuPeaks& peaks,
                double share = 1) {
  Cost cost;
  for (const OpCount& c : ops.table()) cost += {.bytes = c.cost.bytes / share, .flops = c.cost.flops / share};
  row.tokens_per_s = n_tokens / work_seconds;
  row.gb_per_s = cost.bytes / work_seconds * 1e-9;
  row.gflop_per_s = cost.flops / work_seconds * 1e-9;
  if (row.read_gb_s == 0) row.read_gb_s = peaks.read_gb_s;
  row.share_of_peak = row.kind == "decode" ? row.gb_per_s / row.read_gb_s : row.gflop_per_s / peaks.bf16_gflop_s;
  row.ops = ops.table();
}

BenchRow bench_prefill(BenchModel& model, Counted& ops, const BenchFlags& f, std::int64_t tokens, std::int64_t depth,
                       const CpuPeaks& peaks) {
  BenchRow row{.kind = "prefill", .tokens = tokens, .batch = 1, .depth = depth};
  model.reset(1, depth);
  model.prefill(tokens);  // warm-up: page faults and first touches
  std::vector<double> seconds;
  const bool device = !ops.host_memory();  // counting would make it wait for every op: repeats first, then one counted
  ops.set_passive(device);
  for (int r = 0; r < f.repeat; ++r) {
    model.reset(1, depth);
    ops.reset();
    seconds.push_back(model.prefill(tokens));
  }
  ops.set_passive(false);
  if (device) {
    model.reset(1, depth);
    model.prefill(tokens);
  }
  row.seconds = median(seconds);
  finish_row(row, ops, row.seconds, static_cast<double>(tokens), peaks);
  row.hash = model.logits_hash();
  return row;
}

BenchRow bench_decode(BenchModel& model, Counted& ops, const BenchFlags& f, std::int64_t batch, std::int64_t depth,
                      const Ceilings& ceilings) {
  BenchRow row{.kind = "decode", .tokens = f.gen_tokens, .batch = batch, .depth = depth};
  model.reset(batch, depth);
  model.decode_step();
  ops.reset();
  const bool device = !ops.host_memory();
  if (device) model.decode_step();  // the one that is counted
  ops.set_passive(device);
  std::vector<double> seconds;
  constexpr std::int64_t kStepsAProbe = 4;
  std::vector<double> read;
  for (std::int64_t i = 0; i < f.gen_tokens; ++i) {
    if (ceilings.probe && i % kStepsAProbe == 0) read.push_back(ceilings.probe->gb_s());
    seconds.push_back(model.decode_step());
  }
  ops.set_passive(false);
  row.seconds = median(seconds);
  if (!read.empty()) row.read_gb_s = median(read);
  finish_row(row, ops, row.seconds * static_cast<double>(f.gen_tokens), static_cast<double>(batch * f.gen_tokens),
             ceilings.peaks, device ? 1.0 / static_cast<double>(f.gen_tokens) : 1.0);
  row.hash = model.logits_hash();
  return row;
}

void print_row(const BenchRow& r) {
  fmt::print("{:<8} {:>7} {:>6} {:>7} {:>10.2f} {:>10.1f} {:>8.1f} {:>10.1f} {:>6.1f} %  {:016x}\n", r.kind, r.tokens,
             r.batch, r.depth, r.seconds * 1e3, r.tokens_per_s, r.gb_per_s, r.gflop_per_s, r.share_of_peak * 100,
             r.hash);
  std::fflush(stdout);
}

void print_ops(const BenchRow& r, const CpuPeaks& peaks) {
  if (r.read_gb_s != peaks.read_gb_s) fmt::print("    memory read beside it: {:.1f} GB/s\n", r.read_gb_s);
  double total = 0;
  for (const OpCount& c : r.ops) total += c.seconds;
  for (const OpCount& c : r.ops) {
    fmt::print(
        "    {:<14} {:>6} calls {:>9.2f} ms {:>5.1f} %  {:>7.1f} GB/s {:>8.1f} GFLOP/s  {:>5.1f} % of the floor\n",
        c.name, c.calls, c.seconds * 1e3, c.seconds / total * 100, c.gigabytes_per_second(), c.gigaflops_per_second(),
        std::max(c.gigabytes_per_second() / r.read_gb_s, c.gigaflops_per_second() / peaks.bf16_gflop_s) * 100);
  }
}

json::object row_json(const BenchRow& r) {
  json::array ops;
  for (const OpCount& c : r.ops) {
    ops.push_back(json::object{{"name", c.name},
                               {"op", c.op},
                               {"calls", c.calls},
                               {"seconds", c.seconds},
                               {"gb_per_s", c.gigabytes_per_second()},
                               {"gflop_per_s", c.gigaflops_per_second()}});
  }
  return {{"kind", r.kind},
          {"tokens", r.tokens},
          {"batch", r.batch},
          {"depth", r.depth},
          {"seconds", r.seconds},
          {"tokens_per_s", r.tokens_per_s},
          {"gb_per_s", r.gb_per_s},
          {"gflop_per_s", r.gflop_per_s},
          {"read_gb_s", r.read_gb_s},
          {"share_of_peak", r.share_of_peak},
          {"logits_hash", fmt::format("{:016x}", r.hash)},
          {"ops", std::move(ops)}};
}

void write_csv(const std::string& path, const std::vector<BenchRow>& rows, const std::string& backend,
               const CpuPeaks& peaks) {
  std::ofstream out(path);
  out << "backend,kind,tokens,batch,depth,ms,tokens_per_s,gb_per_s,gflop_per_s,share_of_peak,read_gb_s,"
         "peak_read_gb_s,peak_bf16_gflop_s,hash\n";
  for (const BenchRow& r : rows) {
    out << fmt::format("{},{},{},{},{},{:.4f},{:.2f},{:.2f},{:.2f},{:.4f},{:.2f},{:.2f},{:.1f},{:016x}\n", backend,
                       r.kind, r.tokens, r.batch, r.depth, r.seconds * 1e3, r.tokens_per_s, r.gb_per_s, r.gflop_per_s,
                       r.share_of_peak, r.read_gb_s, peaks.read_gb_s, peaks.bf16_gflop_s, r.hash);
  }
  if (!out.flush()) throw Error({.what = path, .found = "cannot be written"});
}

BenchLimits limits_for(const BenchFlags& f, const Ops& ops) {
  const std::int64_t longest =
      std::max(*std::max_element(f.prompt_tokens.begin(), f.prompt_tokens.end()), f.gen_tokens + 2);
  const std::int64_t chunk = f.engine.options.chunk_tokens;
  return {.max_batch = *std::max_element(f.batch.begin(), f.batch.end()),
          .max_context = *std::max_element(f.depth.begin(), f.depth.end()) + longest,
          .chunk_tokens = chunk > 0 ? chunk : default_chunk(ops.available_bytes()),
          .codec = kv_codec(f.engine.options)};
}

int run_bench(BenchFlags& f) {
  Counted ops(make_backend(f.engine.options, f.op_by_op));
  Ceilings ceilings;
  if (ops.host_memory()) {
    ceilings.peaks = measure_peaks(f.engine.options.threads);
    ceilings.probe = std::make_unique<ReadProbe>(f.engine.options.threads);
  } else {
    ceilings.peaks = measure_device(ops.inner());
  }
  const CpuPeaks& peaks = ceilings.peaks;
  const ModelWeights weights = make_weights(f.engine, ops);
  BenchModel model(weights, ops, limits_for(f, ops));
  if (!f.json) {
    fmt::print("{} · {} layers · {} of weights, {} a token · peaks here: read {:.1f} GB/s, BF16 {:.0f} GFLOP/s\n",
               ops.name(), weights.config.n_layers, human_bytes(weights.total_bytes()),
               human_bytes(weights.active_bytes()), peaks.read_gb_s, peaks.bf16_gflop_s);
    fmt::print("{:<8} {:>7} {:>6} {:>7} {:>10} {:>10} {:>8} {:>10} {:>8}  {}\n", "", "tokens", "batch", "depth", "ms",
               "tok/s", "GB/s", "GFLOP/s", "of peak", "logits hash");
  }
  std::vector<BenchRow> rows;
  const auto add = [&](BenchRow row) {
    if (!f.json) print_row(row);
    if (!f.json && f.ops) print_ops(row, peaks);
    rows.push_back(std::move(row));
  };
  for (const std::int64_t depth : f.depth) {
    for (const std::int64_t tokens : f.prompt_tokens) {
      if (tokens > 0) add(bench_prefill(model, ops, f, tokens, depth, peaks));
    }
    for (const std::int64_t batch : f.batch) {
      if (f.gen_tokens > 0) add(bench_decode(model, ops, f, batch, depth, ceilings));
    }
  }
  if (!f.csv.empty()) write_csv(f.csv, rows, ops.name(), peaks);
  if (f.json) {
    json::array list;
    for (const BenchRow& r : rows) list.push_back(row_json(r));
    const json::object out{{"backend", ops.name()},
                           {"layers", weights.config.n_layers},
                           {"weight_bytes", weights.total_bytes()},
                           {"active_bytes", weights.active_bytes()},
                           {"peak_read_gb_s", peaks.read_gb_s},
                           {"peak_bf16_gflop_s", peaks.bf16_gflop_s},
                           {"rows", std::move(list)}};
    fmt::print("{}\n", json::dump_python(out));
  }
  return 0;
}

}  // namespace

void register_bench(CLI::App& app, Run& run) {
  CLI::App* c = app.add_subcommand("bench", "Measure prefill and decode, beside this machine's own peaks");
  const auto f = std::make_shared<BenchFlags>();
  f->engine.add_to(*c);
  c->add_option("--prompt-tokens", f->prompt_tokens, "Prompt lengths, e.g. 512,4096 (0: no prefill)")
      ->delimiter(',')
      ->capture_default_str()
      ->check(CLI::NonNegativeNumber);
  c->add_option("--gen-tokens", f->gen_tokens, "Decode steps measured (0: no decode)")
      ->capture_default_str()
      ->check(CLI::NonNegativeNumber);
  c->add_option("--batch", f->batch, "Sequences decoded at once, e.g. 1,4,16")
      ->delimiter(',')
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  c->add_option("--depth", f->depth, "Tokens already in the cache, e.g. 0,2048")
      ->delimiter(',')
      ->capture_default_str()
      ->check(CLI::NonNegativeNumber);
  c->add_option("--repeat", f->repeat, "Repeats of a prefill; the median counts")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  c->add_flag("--op-by-op", f->op_by_op,
              "CUDA: run the ops one by one where one kernel would run all layers of a step");
  c->add_flag("--ops", f->ops, "Time, GB/s and GFLOP/s of every op below each row");
  c->add_flag("--json", f->json, "One JSON object on stdout");
  c->add_option("--csv", f->csv, "Write the rows to this file as well");
  c->footer(
      "The full model's layers without its weights: glint bench --synthetic layers=6\n"
      "\"of peak\": decode as a share of the read bandwidth (on a host the median of passes between the steps), "
      "prefill\n"
      "of the BF16 rate measured at the start.");
  add_bench_serve(*c, run);
  c->callback([f, c, &run] {
    if (c->get_subcommands().empty()) run = [f] { return run_bench(*f); };
  });
}

}  // namespace glint::apps
