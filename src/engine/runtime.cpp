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

View LogitsBuffer::view_from(std::int64_t first) const {
  CHECK(first >= 0 && first < n_rows(), std::to_string(first));
  return {view_.as<float>() + first * view_.shape[1], DType::kF32, {n_rows() - first, view_.shape[1]}};
}

void LogitsBuffer::renew(std::int64_t first, std::int64_t n) {
  CHECK(first >= 0 && n >= 0 && first + n <= n_rows(), std::to_string(first) + " + " + std::to_string(n));
  if (on_host()) {
    ops_.synchronize();
  } else {
    std::fill_n(fetched_.begin() + first, n, false);
  }
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
  if (options.touch_ahead_bytes > 0 && ops.host_memory())
    toucher_ = std::make_unique<PageToucher>(store_, options.touch_ahead_bytes);
  if (logits_.on_host()) return;
  const auto rows = static_cast<std::size_t>(model_.options().max_logits);
  sample_rows_ = ops.allocate(rows * sizeof(SampleRow));
  sample_edits_ = ops.allocate(kMaxEdits * sizeof(SampleEdit));
  sample_masks_ =
      ops.allocate(rows * static_cast<std::size_t>(mask_words(weights.config.vocab)) * sizeof(std::uint64_t));
  sample_tokens_ = ops.allocate(rows * sizeof(std::int32_t));
  for (Tokens& t : tokens_) t.ids.resize(rows);
}

void Runtime::forward(const KvPlan& plan, std::int64_t first_logits) {
  const Batch& batch = batch_.finish(plan, static_cast<const std::int32_t*>(sample_tokens_.data()));
  if (toucher_) toucher_->used(plan.pages_ever_used());
  model_.forward(batch, store_, logits_.view_from(first_logits));
  logits_.renew(first_logits, batch.n_logits);
}

bool Runtime::sample(const SampleBatch& batch, std::int64_t first_logits) {
  if (logits_.on_host() || batch.rows.empty()) return false;
  const auto upload = [this](const Buffer& to, const auto& from) {
    const std::size_t bytes = from.size() * sizeof from[0];
    CHECK(bytes <= to.bytes(), std::to_string(bytes));
    ops_.upload(to.data(), from.data(), bytes);
  };
  upload(sample_rows_, batch.rows);
  upload(sample_edits_, batch.edits);
  upload(sample_masks_, batch.masks);
  auto* tokens = static_cast<std::int32_t*>(sample_tokens_.data());
  const auto n = static_cast<std::int64_t>(batch.rows.size());
  const bool offered = ops_.sample({.tag = {"sample"},
                                    .logits = logits_.view_from(first_logits).first(n),
                                    .rows = static_cast<const SampleRow*>(sample_rows_.data()),
                                    .edits = static_cast<const SampleEdit*>(sample_edits_.data()),
                                    .masks = static_cast<const std::uint64_t*>(sample_masks_.data()),
                                    .tokens = tokens});
  if (!offered) return false;
  Tokens& to = tokens_[next_tokens_];
  next_tokens_ = (next_tokens_ + 1) % Ops::kFetches;
  to.n = batch.rows.size();
  ops_.start_download(to.ids.data(), tokens, to.n * sizeof(std::int32_t));
  return true;
}

std::span<const std::int32_t> Runtime::take_tokens() {
  ops_.finish_download();
  const Tokens& from = tokens_[oldest_tokens_];
  oldest_tokens_ = (oldest_tokens_ + 1) % Ops::kFetches;
  return std::span(from.ids).first(from.n);
}

void Runtime::logits_of_rows(std::int64_t first_row, std::int64_t n_rows) {
  model_.logits_of_rows(first_row, n_rows, logits_.view());
  logits_.renew();
}

}  // namespace glint
