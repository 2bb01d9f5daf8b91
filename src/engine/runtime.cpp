#include "engine/runtime.hpp"

#include "base/check.hpp"

namespace glint {

LogitsBuffer::LogitsBuffer(Ops& ops, std::int64_t max_rows, std::int64_t vocab, Placement placement) : ops_(ops) {
  view_ = View{nullptr, DType::kF32, {max_rows, vocab}};
  buffer_ = ops.allocate(view_.bytes());
  view_.data = buffer_.data();
  if (placement == Placement::kDevice || !ops.host_memory())
    staging_.resize(static_cast<std::size_t>(max_rows * vocab));
}

void LogitsBuffer::fetch(std::int64_t n_rows) {
  if (n_rows == 0) return;
  if (staging_.empty()) {
    ops_.synchronize();
  } else {
    ops_.download(staging_.data(), view_.data, view_.first(n_rows).bytes());
  }
}

std::span<float> LogitsBuffer::row(std::int64_t r) {
  CHECK(r >= 0 && r < view_.shape[0], std::to_string(r));
  const auto vocab = static_cast<std::size_t>(view_.shape[1]);
  float* base = staging_.empty() ? view_.as<float>() : staging_.data();
  return {base + static_cast<std::size_t>(r) * vocab, vocab};
}

namespace {
std::int32_t pages_of(std::int64_t tokens) {
  return static_cast<std::int32_t>((tokens + kPageTokens - 1) / kPageTokens);
}
}  // namespace

Runtime::Runtime(const ModelWeights& weights, Ops& ops, const RuntimeOptions& options)
    : ops_(ops),
      model_(weights, ops, options.model),
      store_(ops, {.n_layers = weights.config.n_cache_layers() + (options.mtp ? weights.config.n_mtp_layers : 0),
                   .n_pages = pages_of(options.cache_tokens),
                   .codec = options.codec}),
      batch_(ops, {.max_rows = model_.options().max_rows,
                   .max_logits = model_.options().max_logits,
                   .max_seqs = options.max_seqs,
                   .max_context = model_.options().max_context}),
      logits_(ops, model_.options().max_logits, weights.config.vocab, options.placement) {}

void Runtime::forward(const KvPlan& plan) {
  const Batch& batch = batch_.finish(plan);
  model_.forward(batch, store_, logits_.view());
  logits_.fetch(batch.n_logits);
}

void Runtime::logits_of_rows(std::int64_t first_row, std::int64_t n_rows) {
  model_.logits_of_rows(first_row, n_rows, logits_.view());
  logits_.fetch(n_rows);
}

}  // namespace glint
