// glint eval all: every weight format and cache codec in one table, made by one command that can be stopped.

#include <fmt/core.h>
#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <ctime>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>

#include "backends/cpu/cpu.hpp"
#include "base/error.hpp"
#include "base/file.hpp"
#include "base/hash.hpp"
#include "base/json.hpp"
#include "calibration_text.hpp"
#include "engine/loaded_model.hpp"
#include "eval_rows.hpp"
#include "model_dir.hpp"
#include "models/glm_4_7_flash/model_weights.hpp"
#include "ops/kv_codec.hpp"

namespace glint::apps {
namespace {

namespace fs = std::filesystem;

struct AllFlags {
  std::string model;
  std::string tokens;
  std::string tasks;
  std::string toolcalls;
  std::string output = "quality";  // without extension
  std::string work;                // default: <output>.work
  std::vector<std::int64_t> windows{1024, 4096};
  std::int64_t max_tokens = 8192;
  std::int64_t task_limit = 100;
  std::int64_t toolcall_limit = 10;
  std::int64_t loop_limit = 50;
  std::int64_t calibration_tokens = 16384;
  std::vector<std::string> only;
  int threads = 0;
  bool quiet = false;
};

double cpu_seconds() {
  rusage u{};
  ::getrusage(RUSAGE_SELF, &u);
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + 1e-6 * static_cast<double>(t.tv_usec);
  };
  return seconds(u.ru_utime) + seconds(u.ru_stime);
}

std::uint64_t hash_of(const std::string& path) {
  const MappedFile file(path);
  return hash64(file.bytes().data(), file.bytes().size());
}

class Evaluation {
 public:
  explicit Evaluation(AllFlags& f) : f_(f) {
    f_.model = resolve_model_dir(f_.model);
    if (f_.work.empty()) f_.work = f_.output + ".work";
    rows_ = all_rows();
    for (const std::string& name : f_.only) {
      const bool known = std::any_of(rows_.begin(), rows_.end(), [&](const RowSpec& r) { return r.name == name; });
      if (!known) throw Error({.what = "--only", .found = "'" + name + "'", .expected = "one of " + row_names()});
    }
    fs::create_directories(f_.work);
    if (const fs::path parent = fs::path(f_.output).parent_path(); !parent.empty()) fs::create_directories(parent);
    calibration_ = calibration_ids(f_.model, "", std::max(f_.calibration_tokens, kCalibrationTokens));
  }

  int run() {
    read_state();
    std::int64_t measured = 0;
    for (const RowSpec& spec : rows_) {
      if (!is_wanted(spec) || results_.contains(spec.name)) continue;
      if (!f_.quiet) fmt::print(stderr, "{} …\n", spec.name);
      const double start = cpu_seconds();
      RowResult r = measure(spec);
      r.cpu_seconds = cpu_seconds() - start;
      results_[spec.name] = std::move(r);
      ++measured;
      write_state();
      write_report();
    }
    write_report();
    std::int64_t misses = 0;
    for (const RowSpec& spec : rows_) {
      const Verdict v = judge(spec, results_);
      misses += v.judged && !v.good ? 1 : 0;
    }
    fmt::print("{} rows ({} measured now), {} that miss their bar · {}.md\n", results_.size(), measured, misses,
               f_.output);
    return 0;
  }

 private:
  std::string row_names() const {
    std::string s;
    for (const RowSpec& r : rows_) s += (s.empty() ? "" : ", ") + r.name;
    return s;
  }

  bool is_wanted(const RowSpec& spec) const {
    return f_.only.empty() || std::find(f_.only.begin(), f_.only.end(), spec.name) != f_.only.end();
  }

  // ---- what was measured before ------------------------------------------------------------------------------

  std::string state_path() const { return f_.work + "/results.json"; }

  // Everything that all rows depend on.
  std::string setup() const {
    std::string s = "1;" + std::to_string(f_.max_tokens) + ";" + std::to_string(f_.task_limit) + ";" +
                    std::to_string(f_.toolcall_limit) + ";" + std::to_string(f_.loop_limit);
    for (const std::int64_t w : f_.windows) s += ";" + std::to_string(w);
    for (const std::string& path : {f_.tokens, f_.tasks, f_.toolcalls})
      s += ";" + (path.empty() ? "" : std::to_string(hash_of(path)));
    std::vector<std::string> files;
    for (const fs::directory_entry& e : fs::directory_iterator(f_.model)) {
      if (e.path().extension() == ".safetensors") files.push_back(e.path().string());
    }
    std::sort(files.begin(), files.end());
    for (const std::string& path : files) s += ";" + std::to_string(hash_of(path));
    return fmt::format("{:016x}", hash64(s.data(), s.size()));
  }

  // What a row depends on besides.
  std::string key(const RowSpec& spec) const {
    std::string s = spec.kv + ";" + spec.recipe().text() + ";" + std::to_string(static_cast<int>(spec.method));
    if (spec.method == QuantMethod::kGptq) {
      const std::span<const std::int32_t> ids = calibration(spec);
      s += ";" + std::to_string(hash64(ids.data(), ids.size_bytes())) + ";" + std::to_string(QuantizeJob{}.damping);
    }
    return fmt::format("{:016x}", hash64(s.data(), s.size()));
  }

  void read_state() {
    setup_ = setup();
    if (!fs::exists(state_path())) return;
    const json::value v = json::parse_file(state_path());
    const json::object* o = v.if_object();
    const json::value* setup = o != nullptr ? o->if_contains("setup") : nullptr;
    const json::value* rows = o != nullptr ? o->if_contains("rows") : nullptr;
    if (setup == nullptr || rows == nullptr || !rows->is_object() || *setup != json::value(setup_)) {
      throw Error({.what = state_path(),
                   .found = "results of another model, text or budget",
                   .hint = "give the options of that run, another --work, or delete the folder"});
    }
    if (const json::value* backend = o->if_contains("backend"); backend != nullptr && backend->is_string())
      backend_ = std::string(backend->get_string());
    for (const RowSpec& spec : rows_) {
      const json::value* row = rows->get_object().if_contains(spec.name);
      const json::object* entry = row != nullptr ? row->if_object() : nullptr;
      const json::value* stored = entry != nullptr ? entry->if_contains("key") : nullptr;
      const json::value* result = entry != nullptr ? entry->if_contains("result") : nullptr;
      // A row whose recipe or calibration has changed since is measured again.
      if (stored == nullptr || result == nullptr || *stored != json::value(key(spec))) continue;
      results_[spec.name] = parse_row(json::serialize(*result), state_path() + ": " + spec.name);
    }
  }

  json::object rows_json() const {
    json::object rows;
    for (const RowSpec& spec : rows_) {
      const auto found = results_.find(spec.name);
      if (found == results_.end()) continue;
      rows[spec.name] =
          json::object{{"key", key(spec)}, {"result", json::parse_text(row_json(found->second), spec.name)}};
    }
    return rows;
  }

  void write_state() const {
    write_file(state_path(),
               json::serialize(json::object{{"setup", setup_}, {"backend", backend_}, {"rows", rows_json()}}));
  }

  // ---- measuring ---------------------------------------------------------------------------------------------

  RowResult measure(const RowSpec& spec) {
    EngineOptions options{.model_dir = f_.model, .threads = f_.threads, .kv = spec.kv};
    RowResult r;
    if (spec.is_cache() && spec.name != rows_.front().name) {
      const std::int64_t row = kv_row_bytes(kv_codec(options));
      r.bits = 8.0 * static_cast<double>(row) / static_cast<double>(kKvRow);
      r.real_bytes = static_cast<double>(row * real_config().n_layers);
    } else {
      const RecipeSize size = recipe_size(spec.recipe(), real_config(), *make_cpu_ops({.threads = 1}));
      r.bits = size.bits();
      r.real_bytes = size.bytes;
      r.active_bytes = size.active_bytes;
    }
    const std::string made = spec.is_cache() ? "" : quantise(spec);
    if (!made.empty()) options.model_dir = made;
    for (const fs::directory_entry& e : fs::directory_iterator(options.model_dir)) {
      if (e.path().extension() == ".safetensors") r.file_bytes += e.file_size();
    }
    // Weights do not differ by window as caches do.
    const std::size_t n_windows = spec.is_cache() ? f_.windows.size() : 1;
    for (std::size_t i = 0; i < n_windows; ++i)
      r.windows.push_back({.window = f_.windows[i], .kl = reference(i).compare(options)});
    answer(options, r);
    if (!made.empty()) fs::remove_all(made);
    return r;
  }

  // Presets calibrate as `glint quantize` does, the other rows on less: they are many.
  std::span<const std::int32_t> calibration(const RowSpec& spec) const {
    const std::int64_t most = spec.is_preset() ? kCalibrationTokens : f_.calibration_tokens;
    return std::span(calibration_).first(std::min(calibration_.size(), static_cast<std::size_t>(most)));
  }

  // The checkpoint of a row, made or finished.
  std::string quantise(const RowSpec& spec) const {
    // Named by what it depends on: an interrupted run is gone on with only if the row is still the same.
    const std::string name = "checkpoint-" + key(spec), dir = f_.work + "/" + name;
    std::vector<fs::path> old;
    for (const fs::directory_entry& e : fs::directory_iterator(f_.work)) {
      const std::string found = e.path().filename().string();
      if (found.starts_with("checkpoint-") && found != name + ".partial") old.push_back(e.path());
    }
    for (const fs::path& path : old) fs::remove_all(path);
    QuantizeJob job{.input_dir = f_.model,
                    .output_dir = dir,
                    .recipe = spec.recipe(),
                    .method = spec.method,
                    .resume = true,
                    .threads = f_.threads};
    if (spec.method == QuantMethod::kGptq) {
      const std::span<const std::int32_t> ids = calibration(spec);
      job.calibration.assign(ids.begin(), ids.end());
    }
    const std::unique_ptr<Ops> ops = make_cpu_ops({.threads = f_.threads});
    quantize_checkpoint(job, *ops);
    return dir;
  }

  const ReferenceRun& reference(std::size_t i) {
    references_.resize(f_.windows.size());
    std::optional<ReferenceRun>& run = references_[i];
    if (!run) {
      const EngineOptions options{.model_dir = f_.model, .threads = f_.threads, .kv = "f32"};
      if (ids_.empty()) ids_ = read_tokens(f_.tokens, *Engine::open(options));
      run.emplace(options, ids_,
                  PplOptions{.window = f_.windows[i], .max_predictions = f_.max_tokens, .quiet = f_.quiet});
    }
    return *run;
  }

  void answer(const EngineOptions& options, RowResult& r) {
    const auto engine = Engine::open(options);
    backend_ = engine->info().backend;
    if (!f_.tasks.empty()) {
      r.tasks = score_tasks(*engine, f_.tasks, f_.task_limit);
      r.loops = count_loops(*engine, f_.tasks, f_.loop_limit, 256);
    }
    if (!f_.toolcalls.empty()) r.toolcalls = score_toolcalls(*engine, f_.toolcalls, f_.toolcall_limit);
  }

  // ---- the report --------------------------------------------------------------------------------------------

  std::string command() const {
    const auto name = [](const std::string& path) { return fs::path(path).filename().string(); };
    std::string s = "glint eval all " + name(f_.tokens);
    if (!f_.tasks.empty()) s += " --tasks " + name(f_.tasks);
    if (!f_.toolcalls.empty()) s += " --toolcalls " + name(f_.toolcalls);
    s += fmt::format(" --max-tokens {} --task-limit {} --toolcall-limit {} --loop-limit {}", f_.max_tokens,
                     f_.task_limit, f_.toolcall_limit, f_.loop_limit);
    return s + " -o " + f_.output;
  }

  void write_report() const {
    const std::time_t now = std::chrono::system_clock::to_time_t(std::chrono::system_clock::now());
    std::tm day{};
    ::gmtime_r(&now, &day);
    const ReportInfo info{.command = command(),
                          .backend = backend_.empty() ? "cpu" : backend_,
                          .date = fmt::format("{:04}-{:02}-{:02}", day.tm_year + 1900, day.tm_mon + 1, day.tm_mday),
                          .max_tokens = f_.max_tokens,
                          .calibration_tokens = f_.calibration_tokens,
                          .plot = fs::path(f_.output).filename().string() + ".svg"};
    write_file(f_.output + ".md", report_markdown(rows_, results_, info));
    write_file(f_.output + ".svg", report_svg(rows_, results_));
    json::array rows;
    for (const RowSpec& spec : rows_) {
      const auto found = results_.find(spec.name);
      if (found == results_.end()) continue;
      const RowResult& r = found->second;
      json::array windows;
      for (const WindowResult& w : r.windows) {
        windows.push_back(json::object{{"window", w.window},
                                       {"positions", w.kl.positions},
                                       {"perplexity", std::exp(w.kl.nll)},
                                       {"perplexity_change", w.kl.change()},
                                       {"kl_mean", w.kl.mean},
                                       {"kl_p99", w.kl.p99},
                                       {"top1_agreement", w.kl.top1_agreement}});
      }
      const RowResult* reference = results_.contains(rows_.front().name) ? &results_.at(rows_.front().name) : &r;
      const auto tally_json = [](const Tally& t) {
        return json::object{
            {"right", t.right}, {"total", t.total}, {"same_as_reference", t.same}, {"lost", t.lost}, {"won", t.won}};
      };
      const Verdict v = judge(spec, results_);
      rows.push_back(json::object{{"name", spec.name},
                                  {"recipe", spec.recipe().text()},
                                  {"kv", spec.kv},
                                  {"bits", r.bits},
                                  {"file_bytes", r.file_bytes},
                                  {"real_bytes", r.real_bytes},
                                  {"active_bytes", r.active_bytes},
                                  {"windows", std::move(windows)},
                                  {"tasks", tally_json(tally(r.tasks, reference->tasks))},
                                  {"toolcalls", tally_json(tally(r.toolcalls, reference->toolcalls))},
                                  {"answers", r.loops.answers},
                                  {"looping", r.loops.looping},
                                  {"bar", bar_text(spec.bar)},
                                  {"meets", v.judged ? json::value(v.good) : json::value(nullptr)},
                                  {"misses", v.why},
                                  {"cpu_seconds", r.cpu_seconds}});
    }
    const json::object all{{"command", info.command}, {"backend", info.backend}, {"rows", std::move(rows)}};
    write_file(f_.output + ".json", json::dump_python(all) + "\n");
  }

  AllFlags& f_;
  std::vector<RowSpec> rows_;
  std::vector<std::int32_t> calibration_;
  std::vector<std::int32_t> ids_;
  std::vector<std::optional<ReferenceRun>> references_;
  Results results_;
  std::string setup_;
  std::string backend_;
};

}  // namespace

void add_all(CLI::App& eval, std::function<int()>& run) {
  CLI::App* c =
      eval.add_subcommand("all", "Every weight format and cache codec in one table; goes on where it stopped");
  const auto f = std::make_shared<AllFlags>();
  c->add_option("file", f->tokens, "Text, .json (array of ids) or .safetensors (I32 tensor `tokens`)")->required();
  c->add_option("-m,--model", f->model,
                "Checkpoint directory, in BF16 (default: $GLINT_MODEL, else the bundled model)");
  c->add_option("--tasks", f->tasks, "JSONL file as for eval tasks (default: none)");
  c->add_option("--toolcalls", f->toolcalls, "JSONL file as for eval toolcalls (default: none)");
  c->add_option("-o,--output", f->output, "Writes OUTPUT.md, OUTPUT.json and OUTPUT.svg")->capture_default_str();
  c->add_option("--work", f->work, "Folder for results so far and checkpoints (default: OUTPUT.work)");
  c->add_option("--windows", f->windows, "Tokens a window; weights use the first only")
      ->delimiter(',')
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  c->add_option("--max-tokens", f->max_tokens, "Tokens compared for each length of window")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  const auto limit = [&](const char* flag, std::int64_t& value, const char* help) {
    c->add_option(flag, value, help)->capture_default_str()->check(CLI::NonNegativeNumber);
  };
  limit("--task-limit", f->task_limit, "Lines of --tasks (0: all)");
  limit("--toolcall-limit", f->toolcall_limit, "Lines of --toolcalls (0: all)");
  limit("--loop-limit", f->loop_limit, "Answers of up to 256 tokens that are searched for loops (0: all)");
  c->add_option("--calibration-tokens", f->calibration_tokens,
                "Tokens that gptq rows other than the presets calibrate on")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  c->add_option("--only", f->only, "Rows to measure, by name (default: all)")->delimiter(',');
  c->add_option("-t,--threads", f->threads, "CPU threads (default: one a core)");
  c->add_flag("-q,--quiet", f->quiet, "No progress");
  c->footer(
      "Example: glint eval all valid.safetensors --tasks tasks.jsonl --toolcalls toolcalls.jsonl -o docs/quality\n"
      "Rows that an earlier run of the same options measured are kept; reports are written after every row.");
  c->callback([f, &run] { run = [f] { return Evaluation(*f).run(); }; });
}

}  // namespace glint::apps
