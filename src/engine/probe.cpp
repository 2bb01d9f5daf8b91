#include "engine/probe.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <string>

#include "base/check.hpp"
#include "base/error.hpp"
#include "sampling/kernels.hpp"

namespace glint {
namespace {

// Books of a cache that holds one sequence of n tokens.
struct OneSequence {
  KvPlan plan;
  SequenceId id;
  OneSequence(Runtime& runtime, std::int64_t n_tokens) : plan(runtime.store().n_pages(), kPageTokens), id(plan.open()) {
    std::optional<PageCopy> copy;
    if (n_tokens <= runtime.model().options().max_context && plan.extend(id, n_tokens, &copy)) return;
    throw Error({.what = "probe",
                 .found = std::to_string(n_tokens) + " tokens",
                 .expected = "at most " + std::to_string(std::min<std::int64_t>(
                                              runtime.model().options().max_context,
                                              static_cast<std::int64_t>(plan.n_pages()) * kPageTokens))});
  }
};

std::int64_t chunk_rows(const ProbeOptions& options, std::int64_t most) {
  return options.chunk_tokens > 0 ? std::min(options.chunk_tokens, most) : most;
}

}  // namespace

void probe_logits(Runtime& runtime, std::span<const std::int32_t> ids, const ProbeOptions& options,
                  const OnLogits& on_logits) {
  Model& model = runtime.model();
  const auto n = static_cast<std::int64_t>(ids.size());
  if (n == 0) return;
  const OneSequence sequence(runtime, n);
  const std::int64_t chunk = chunk_rows(options, model.options().max_rows);
  for (std::int64_t begin = 0; begin < n; begin += chunk) {
    const std::int64_t rows = std::min(chunk, n - begin);
    runtime.batch().begin();
    runtime.batch().add(sequence.plan,
                        {.sequence = sequence.id,
                         .ids = ids.subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(rows)),
                         .first_position = begin});
    runtime.forward(sequence.plan);
    // In parts: all rows of a batch at once would take max_rows x vocab floats.
    for (std::int64_t row = 0; row < rows; row += model.options().max_logits) {
      const std::int64_t part = std::min(model.options().max_logits, rows - row);
      runtime.logits_of_rows(row, part);
      for (std::int64_t r = 0; r < part; ++r) on_logits(begin + row + r, runtime.logits().row(r));
    }
  }
}

void probe_draft_logits(Runtime& runtime, std::span<const std::int32_t> ids, const ProbeOptions& options,
                        const OnLogits& on_logits) {
  Model& model = runtime.model();
  CHECK(model.has_mtp() && runtime.store().n_layers() > model.config().n_layers, "RuntimeOptions::mtp");
  const auto n = static_cast<std::int64_t>(ids.size());
  if (n < 2) return;
  const OneSequence sequence(runtime, n);
  BatchBuilder& batch = runtime.batch();
  // draft() makes the logits of its whole batch, so that a chunk has no more rows than logits.
  const std::int64_t chunk = chunk_rows(options, std::min(model.options().max_rows, model.options().max_logits));
  for (std::int64_t begin = 0; begin < n - 1; begin += chunk) {
    const std::int64_t rows = std::min(chunk, n - 1 - begin);
    const auto at = static_cast<std::size_t>(begin);
    const auto count = static_cast<std::size_t>(rows);
    batch.begin();
    batch.add(sequence.plan, {.sequence = sequence.id, .ids = ids.subspan(at, count), .first_position = begin});
    runtime.forward(sequence.plan);

    batch.begin();
    batch.add(sequence.plan,
              {.sequence = sequence.id, .ids = ids.subspan(at + 1, count), .first_position = begin, .n_logits = rows});
    ConstView hidden = model.final_hidden();
    hidden.shape = Shape{rows, hidden.shape[1]};
    model.draft(batch.finish(sequence.plan), hidden, runtime.store(), runtime.logits().view());
    runtime.logits().renew();
    for (std::int64_t r = 0; r < rows; ++r) on_logits(begin + r, runtime.logits().row(r));
  }
}

double log_prob(std::span<const float> logits, std::int32_t id) {
  CHECK(id >= 0 && static_cast<std::size_t>(id) < logits.size(), std::to_string(id));
  // Piece by piece, so that nothing is allocated and the exponentials stay in the first-level cache.
  constexpr std::size_t kPiece = 2048;
  std::array<float, kPiece> weights;
  std::array<double, kPiece / sampling::kBlock> sums;
  const float top = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (std::size_t at = 0; at < logits.size(); at += kPiece) {
    const std::size_t n = std::min(kPiece, logits.size() - at);
    const std::span<double> blocks = std::span(sums).first(sampling::n_blocks(n));
    sampling::exp_row(logits.subspan(at, n), top, 1.0F, std::span(weights).first(n), blocks);
    for (const double block : blocks) sum += block;
  }
  return static_cast<double>(logits[static_cast<std::size_t>(id)]) - static_cast<double>(top) - std::log(sum);
}

}  // namespace glint
