#include "engine/batch_builder.hpp"

#include <algorithm>

#include "base/check.hpp"

namespace glint {

BatchBuilder::BatchBuilder(Ops& ops, const BatchLimits& limits)
    : limits_(limits), max_pages_((limits.max_context + kPageTokens - 1) / kPageTokens), ops_(ops) {
  CHECK(limits.max_rows > 0 && limits.max_logits > 0 && limits.max_seqs > 0 && limits.max_context > 0);
  const std::int64_t n =
      3 * limits.max_rows + limits.max_logits + 2 * limits.max_seqs + 1 + limits.max_seqs * max_pages_;
  host_.resize(static_cast<std::size_t>(n));
  device_ = ops.allocate(host_.size() * sizeof(std::int32_t));
  ids_ = host_.data();
  positions_ = ids_ + limits.max_rows;
  slots_ = positions_ + limits.max_rows;
  logit_rows_ = slots_ + limits.max_rows;
  row_offsets_ = logit_rows_ + limits.max_logits;
  context_tokens_ = row_offsets_ + limits.max_seqs + 1;
  page_table_ = context_tokens_ + limits.max_seqs;
  sequences_.reserve(static_cast<std::size_t>(limits.max_seqs));
  token_rows_.reserve(static_cast<std::size_t>(limits.max_seqs));
}

void BatchBuilder::begin() {
  sequences_.clear();
  token_rows_.clear();
  n_rows_ = 0;
  n_logits_ = 0;
  row_offsets_[0] = 0;
}

std::int64_t BatchBuilder::add(const KvPlan& plan, const SequenceRows& rows) {
  const auto n = rows.token ? 1 : static_cast<std::int64_t>(rows.ids.size());
  const std::int64_t end = rows.first_position + n;
  CHECK(n > 0 && n_rows_ + n <= limits_.max_rows, std::to_string(n_rows_ + n) + " rows");
  CHECK(rows.n_logits >= 0 && rows.n_logits <= n && n_logits_ + rows.n_logits <= limits_.max_logits);
  CHECK(static_cast<std::int64_t>(sequences_.size()) < limits_.max_seqs && end <= limits_.max_context);
  CHECK(plan.tokens(rows.sequence) >= end);

  const std::span<const PageId> pages = plan.pages(rows.sequence);
  for (std::int64_t i = 0; i < n; ++i) {
    const std::int64_t position = rows.first_position + i;
    const std::int64_t row = n_rows_ + i;
    ids_[row] = rows.token ? 0 : rows.ids[static_cast<std::size_t>(i)];
    positions_[row] = static_cast<std::int32_t>(position);
    slots_[row] = pages[static_cast<std::size_t>(position / kPageTokens)] * kPageTokens +
                  static_cast<std::int32_t>(position % kPageTokens);
  }
  if (rows.token) {
    const bool next = !token_rows_.empty() && token_rows_.back().row + token_rows_.back().n == n_rows_ &&
                      token_rows_.back().token + token_rows_.back().n == *rows.token;
    if (next) {
      ++token_rows_.back().n;
    } else {
      token_rows_.push_back({.row = n_rows_, .token = *rows.token, .n = 1});
    }
  }
  const std::int64_t first_logits = n_logits_;
  for (std::int64_t i = n - rows.n_logits; i < n; ++i) {
    logit_rows_[n_logits_++] = static_cast<std::int32_t>(n_rows_ + i);
  }
  n_rows_ += n;
  sequences_.push_back(rows.sequence);
  row_offsets_[sequences_.size()] = static_cast<std::int32_t>(n_rows_);
  context_tokens_[sequences_.size() - 1] = static_cast<std::int32_t>(end);
  return first_logits;
}

const Batch& BatchBuilder::finish(const KvPlan& plan, const std::int32_t* tokens) {
  CHECK(token_rows_.empty() || tokens != nullptr);
  // Tables are packed at the width of the longest sequence, so that the upload is no larger than it must be.
  std::size_t stride = 1;
  for (const SequenceId id : sequences_) stride = std::max(stride, plan.pages(id).size());
  CHECK(stride <= static_cast<std::size_t>(max_pages_));
  std::int32_t* table = page_table_;
  for (const SequenceId id : sequences_) {
    const std::span<const PageId> pages = plan.pages(id);
    std::copy(pages.begin(), pages.end(), table);
    std::fill(table + pages.size(), table + stride, -1);
    table += stride;
  }
  ops_.upload(device_.data(), host_.data(), static_cast<std::size_t>(table - host_.data()) * sizeof(std::int32_t));

  for (const TokenRows& t : token_rows_)
    ops_.copy(static_cast<std::int32_t*>(device_.data()) + t.row, tokens + t.token,
              static_cast<std::size_t>(t.n) * sizeof(std::int32_t));

  const auto* base = static_cast<const std::int32_t*>(device_.data());
  const auto on_device = [&](const std::int32_t* p) { return base + (p - host_.data()); };
  batch_ = {.n_rows = n_rows_,
            .ids = on_device(ids_),
            .positions = on_device(positions_),
            .slots = on_device(slots_),
            .attend = {.n_seqs = static_cast<int>(sequences_.size()),
                       .row_offsets = on_device(row_offsets_),
                       .context_tokens = on_device(context_tokens_),
                       .page_table = on_device(page_table_),
                       .max_pages = static_cast<int>(stride)},
            .n_logits = n_logits_,
            .logit_rows = on_device(logit_rows_)};
  return batch_;
}

}  // namespace glint
