#include "engine/runtime.hpp"

#include <algorithm>

#include "base/check.hpp"

namespace glint {

LogitsBuffer::LogitsBuffer(Ops& ops, std::int64_t max_rows, std::int64_t vocab, Placement placement) : ops_(ops) {
  view_ = View{nullptr, DType::kF32, {max_rows, vocab}};
  buffer_ = ops.allocate(view_.bytes());
  view_.data = buffer_.data();
  if (placement == Placement::kHost && ops.host_memory()) return;
  staging_.resize(static_cast<std::size_t>(max_rows * vocab));
  fetched_.resize(static_cast<std::size_t>(max_rows));
}

void LogitsBuffer::renew() {
  if (on_host()) ops_.synchronize();
  std::fill(fetched_.begin(), fetched_.end(), false);
}

std::span<float> LogitsBuffer::row(std::int64_t r) {
  CHECK(r >= 0 && r < view_.shape[0], std::to_string(r));
  const auto vocab = static_cast<std::size_t>(view_.shape[1]);
  const auto index = static_cast<std::size_t>(r);
  float* on_backend = view_.as<float>() + index * vocab;
  if (on_host()) return {on_backend, vocab};
  const std::span<float> row(staging_.data() + index * vocab, vocab);
  if (!fetched_[index]) ops_.download(row.data(), on_backend, row.size_bytes());
  fetched_[index] = true;
  return row;
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
      logits_(ops, model_.options().max_logits, weights.config.vocab, options.placement) {
  if (logits_.on_host()) return;
  const auto rows = static_cast<std::size_t>(model_.options().max_logits);
  sample_rows_ = ops.allocate(rows * sizeof(SampleRow));
  sample_edits_ = ops.allocate(kMaxEdits * sizeof(SampleEdit));
  sample_masks_ =
      ops.allocate(rows * static_cast<std::size_t>(mask_words(weights.config.vocab)) * sizeof(std::uint64_t));
  sample_tokens_ = ops.allocate(rows * sizeof(std::int32_t));
  tokens_.resize(rows);
}

void Runtime::forward(const KvPlan& plan) {
  model_.forward(batch_.finish(plan), store_, logits_.view());
  logits_.renew();
}

std::span<const std::int32_t> Runtime::sample(const SampleBatch& batch) {
  if (logits_.on_host() || batch.rows.empty()) return {};
  const auto upload = [this](const Buffer& to, const auto& from) {
    const std::size_t bytes = from.size() * sizeof from[0];
    CHECK(bytes <= to.bytes(), std::to_string(bytes));
    ops_.upload(to.data(), from.data(), bytes);
  };
  upload(sample_rows_, batch.rows);
  upload(sample_edits_, batch.edits);
  upload(sample_masks_, batch.masks);
  auto* tokens = static_cast<std::int32_t*>(sample_tokens_.data());
  const bool offered = ops_.sample({.tag = {"sample"},
                                    .logits = logits_.view().first(static_cast<std::int64_t>(batch.rows.size())),
                                    .rows = static_cast<const SampleRow*>(sample_rows_.data()),
                                    .edits = static_cast<const SampleEdit*>(sample_edits_.data()),
                                    .masks = static_cast<const std::uint64_t*>(sample_masks_.data()),
                                    .tokens = tokens});
  if (!offered) return {};
  ops_.download(tokens_.data(), tokens, batch.rows.size() * sizeof(std::int32_t));
  return std::span(tokens_).first(batch.rows.size());
}

void Runtime::logits_of_rows(std::int64_t first_row, std::int64_t n_rows) {
  model_.logits_of_rows(first_row, n_rows, logits_.view());
  logits_.renew();
}

}  // namespace glint
