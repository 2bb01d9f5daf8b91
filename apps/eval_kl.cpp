// glint eval kl: how far a model's distributions are from a reference's, position by position.

#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

#include "base/error.hpp"
#include "base/json.hpp"
#include "engine/loaded_model.hpp"
#include "engine/probe.hpp"
#include "eval.hpp"
#include "model_dir.hpp"
#include "progress.hpp"

namespace glint::apps {
namespace {

// A model that gives log-probabilities of whole windows.
class Prober {
 public:
  Prober(const EngineOptions& options, std::int64_t window)
      : model_(load_model(options)),
        runtime_(model_.weights, *model_.ops,
                 {.model = {.max_rows = std::min<std::int64_t>(window, 512),
                            .max_logits = 64,
                            .max_context = window,
                            .latent_eps = options.latent_eps,
                            .valid_vocab = model_.valid_vocab,
                            .window_tokens = options.window_tokens},
                  .codec = kv_codec(options),
                  .cache_tokens = window,
                  .max_seqs = 1,
                  .placement = options.device == "cuda" ? Placement::kDevice : Placement::kHost}) {}

  // row(position, log-probs [vocab]).
  template <typename Row>
  void run(std::span<const std::int32_t> ids, Row row) {
    probe_logits(runtime_, ids, {}, [&](std::int64_t position, std::span<float> logits) {
      const float top = *std::max_element(logits.begin(), logits.end());
      double sum = 0;
      for (const float v : logits) sum += std::exp(static_cast<double>(v - top));
      const auto shift = static_cast<float>(top + std::log(sum));
      for (float& v : logits) v -= shift;
      row(position, std::span<const float>(logits));
    });
  }
  std::int64_t vocab() const { return model_.weights.config.vocab; }

 private:
  LoadedModel model_;
  Runtime runtime_;
};

double kl(std::span<const float> p, std::span<const float> q) {
  double sum = 0;
  for (std::size_t i = 0; i < p.size(); ++i) {
    if (p[i] > -87.0F) sum += std::exp(static_cast<double>(p[i])) * (static_cast<double>(p[i]) - q[i]);
  }
  return std::max(0.0, sum);
}

}  // namespace

double KlResult::change() const { return std::exp(nll - reference_nll) - 1; }

ReferenceRun::ReferenceRun(const EngineOptions& reference, std::span<const std::int32_t> ids, const PplOptions& options)
    : ids_(ids.begin(), ids.end()), quiet_(options.quiet) {
  const auto n = static_cast<std::int64_t>(ids.size());
  if (n < 2) throw Error({.what = "divergence", .found = std::to_string(n) + " tokens", .expected = "at least 2"});
  window_ = std::min(options.window, n - 1);
  n_windows_ = n / (window_ + 1);
  if (options.max_predictions > 0)
    n_windows_ = std::min(n_windows_, std::max<std::int64_t>(1, options.max_predictions / window_));
  Prober model(reference, window_);
  vocab_ = static_cast<std::size_t>(model.vocab());
  log_p_.resize(static_cast<std::size_t>(positions()) * vocab_);
  ProgressBar bar("reference", Unit::kTokens, !quiet_);
  for (std::int64_t w = 0; w < n_windows_; ++w) {
    const auto part = window_ids(w);
    model.run(part.first(part.size() - 1), [&](std::int64_t position, std::span<const float> row) {
      nll_ -= row[static_cast<std::size_t>(part[static_cast<std::size_t>(position) + 1])];
      std::copy(row.begin(), row.end(), log_p_.begin() + (w * window_ + position) * static_cast<std::int64_t>(vocab_));
    });
    bar.update(static_cast<std::uint64_t>((w + 1) * window_), static_cast<std::uint64_t>(positions()));
  }
  nll_ /= static_cast<double>(positions());
}

std::span<const std::int32_t> ReferenceRun::window_ids(std::int64_t w) const {
  return std::span(ids_).subspan(static_cast<std::size_t>(w * (window_ + 1)), static_cast<std::size_t>(window_ + 1));
}

KlResult ReferenceRun::compare(const EngineOptions& tested) const {
  Prober model(tested, window_);
  if (model.vocab() != static_cast<std::int64_t>(vocab_)) {
    throw Error({.what = "the tested model's vocabulary",
                 .found = std::to_string(model.vocab()),
                 .expected = std::to_string(vocab_) + " as in the reference"});
  }
  const auto first = [](std::span<const float> row) { return std::max_element(row.begin(), row.end()) - row.begin(); };
  std::vector<double> all;
  std::int64_t agree = 0;
  KlResult r{.positions = positions(), .reference_nll = nll_};
  ProgressBar bar("comparing", Unit::kTokens, !quiet_);
  for (std::int64_t w = 0; w < n_windows_; ++w) {
    const auto part = window_ids(w);
    model.run(part.first(part.size() - 1), [&](std::int64_t position, std::span<const float> row) {
      const std::span<const float> p(log_p_.data() + static_cast<std::size_t>(w * window_ + position) * vocab_, vocab_);
      r.nll -= row[static_cast<std::size_t>(part[static_cast<std::size_t>(position) + 1])];
      all.push_back(kl(p, row));
      agree += first(p) == first(row) ? 1 : 0;
    });
    bar.update(static_cast<std::uint64_t>((w + 1) * window_), static_cast<std::uint64_t>(positions()));
  }
  std::sort(all.begin(), all.end());
  const auto count = static_cast<double>(all.size());
  r.nll /= count;
  for (const double v : all) r.mean += v / count;
  r.p99 = all[static_cast<std::size_t>(0.99 * (count - 1))];
  r.max = all.back();
  r.top1_agreement = static_cast<double>(agree) / count;
  return r;
}

namespace {

struct KlFlags {
  EngineFlags engine;
  EngineOptions reference{.device = "cpu", .kv = "f32"};
  std::string file;
  PplOptions options{.window = 512};
  bool json = false;
};

int run_kl(KlFlags& f) {
  f.engine.resolve();
  f.reference.model_dir =
      f.reference.model_dir.empty() ? f.engine.options.model_dir : resolve_model_dir(f.reference.model_dir);
  f.reference.latent_eps = f.engine.options.latent_eps;
  f.reference.threads = f.engine.options.threads;
  f.options.quiet = f.engine.quiet || f.json;
  const auto tokenizer_only = Engine::open(f.engine.options);
  const std::vector<std::int32_t> ids = read_tokens(f.file, *tokenizer_only);
  const KlResult r = ReferenceRun(f.reference, ids, f.options).compare(f.engine.options);
  if (f.json) {
    const json::value out = {{"file", f.file},
                             {"positions", r.positions},
                             {"reference_perplexity", std::exp(r.reference_nll)},
                             {"perplexity", std::exp(r.nll)},
                             {"perplexity_change", r.change()},
                             {"kl_mean", r.mean},
                             {"kl_p99", r.p99},
                             {"kl_max", r.max},
                             {"top1_agreement", r.top1_agreement}};
    fmt::print("{}\n", json::dump_python(out));
  } else {
    fmt::print("KL mean {:.3e}  p99 {:.3e}  max {:.3e} nats   the same first token at {:.2f} % of {} positions\n",
               r.mean, r.p99, r.max, r.top1_agreement * 100, r.positions);
    fmt::print("perplexity {:.4f} → {:.4f} ({:+.2f} %)\n", std::exp(r.reference_nll), std::exp(r.nll),
               r.change() * 100);
  }
  return 0;
}

}  // namespace

void add_kl(CLI::App& eval, std::function<int()>& run) {
  CLI::App* c = eval.add_subcommand("kl", "Divergence of a model from a reference, over a text or token file");
  const auto f = std::make_shared<KlFlags>();
  f->engine.add_to(*c);
  c->add_option("file", f->file, "Text, .json (array of ids) or .safetensors (I32 tensor `tokens`)")->required();
  c->add_option("--ref-model", f->reference.model_dir, "Reference checkpoint (default: the same)");
  c->add_option("--ref-device", f->reference.device)->capture_default_str();
  c->add_option("--ref-kv", f->reference.kv, "Cache format of the reference")->capture_default_str();
  c->add_option("--window", f->options.window, "Tokens a window")->capture_default_str()->check(CLI::PositiveNumber);
  c->add_option("--max-tokens", f->options.max_predictions, "Compare at most this many positions")
      ->check(CLI::NonNegativeNumber);
  c->add_flag("--json", f->json, "One JSON object on stdout");
  c->footer(
      "The model flags describe the tested model; the reference is the same checkpoint in full precision unless "
      "--ref-… says otherwise.");
  c->callback([f, &run] { run = [f] { return run_kl(*f); }; });
}

}  // namespace glint::apps
