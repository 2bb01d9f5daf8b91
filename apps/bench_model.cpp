#include "bench_model.hpp"

#include <algorithm>

#include "base/check.hpp"
#include "base/clock.hpp"
#include "base/hash.hpp"

namespace glint::apps {
namespace {

std::int32_t pages_for(const BenchLimits& limits) {
  return static_cast<std::int32_t>(limits.max_batch * ((limits.max_context + kPageTokens - 1) / kPageTokens + 1));
}

std::uint32_t next_random(std::uint64_t& state) {  // Knuth's MMIX multiplier; the upper half is the better one
  state = state * 6364136223846793005ULL + 1442695040888963407ULL;
  return static_cast<std::uint32_t>(state >> 33);
}

}  // namespace

BenchModel::BenchModel(const ModelWeights& weights, Counted& ops, const BenchLimits& limits)
    : ops_(ops),
      limits_(limits),
      model_(weights, ops,
             {.max_rows = std::max(limits.chunk_tokens, limits.max_batch),
              .max_logits = limits.max_batch,
              .max_context = limits.max_context}),
      plan_(pages_for(limits), kPageTokens),
      store_(ops, {.n_layers = weights.config.n_cache_layers(), .n_pages = pages_for(limits), .codec = limits.codec}),
      builder_(ops, {.max_rows = std::max(limits.chunk_tokens, limits.max_batch),
                     .max_logits = limits.max_batch,
                     .max_seqs = limits.max_batch,
                     .max_context = limits.max_context}) {
  logits_ = {nullptr, DType::kF32, {limits.max_batch, weights.config.vocab}};
  logits_buffer_ = ops.allocate(logits_.bytes());
  logits_.data = logits_buffer_.data();
  fill_cache();
}

// Rows of random values of order one in every page: what a depth is made of.
void BenchModel::fill_cache() {
  constexpr std::int64_t kRows = 64;
  HostTensor rows(DType::kF32, {kRows, kKvRow});
  for (std::int64_t i = 0; i < kRows * kKvRow; ++i) {
    rows.view.as<float>()[i] = static_cast<float>(next_random(random_) >> 8) * 0x1p-22F - 2.0F;  // uniform in [-2, 2)
  }
  Buffer kv = ops_.allocate(rows.view.bytes());
  ops_.upload(kv.data(), rows.view.data, rows.view.bytes());
  Buffer slot_buffer = ops_.allocate(kRows * sizeof(std::int32_t));
  std::vector<std::int32_t> slots(kRows);
  for (std::int32_t page = 0; page < plan_.n_pages(); ++page) {
    for (std::int32_t r = 0; r < kRows; ++r) slots[static_cast<std::size_t>(r)] = page * kPageTokens + r;
    ops_.upload(slot_buffer.data(), slots.data(), slots.size() * sizeof(std::int32_t));
    for (std::int64_t l = 0; l < model_.config().n_layers; ++l) {
      ops_.inner().mla_append({.tag = {"fill"},
                               .kv = View{kv.data(), DType::kF32, {kRows, kKvRow}},
                               .slots = static_cast<const std::int32_t*>(slot_buffer.data()),
                               .pages = store_.layer(l)});
    }
    ops_.synchronize();
  }
}

void BenchModel::reset(std::int64_t batch, std::int64_t depth) {
  CHECK(batch <= limits_.max_batch && depth <= limits_.max_context);
  for (const SequenceId id : sequences_) plan_.release(id);
  sequences_.clear();
  for (std::int64_t i = 0; i < batch; ++i) {
    sequences_.push_back(plan_.open());
    CHECK(plan_.extend(sequences_.back(), depth, nullptr));
  }
}

void BenchModel::step(std::int64_t first_sequence, std::int64_t n_sequences, std::int64_t rows, std::int64_t n_logits) {
  builder_.begin();
  for (std::int64_t s = first_sequence; s < first_sequence + n_sequences; ++s) {
    const SequenceId id = sequences_[static_cast<std::size_t>(s)];
    const std::int64_t position = plan_.tokens(id);
    CHECK(plan_.extend(id, rows, nullptr));
    ids_.resize(static_cast<std::size_t>(rows));
    for (std::int32_t& token : ids_) {
      token = static_cast<std::int32_t>(next_random(random_) % static_cast<std::uint32_t>(model_.config().vocab));
    }
    builder_.add(plan_, {.sequence = id, .ids = ids_, .first_position = position, .n_logits = n_logits});
  }
  n_logits_ = n_sequences * n_logits;
  model_.forward(builder_.finish(plan_), store_, logits_.first(std::max<std::int64_t>(1, n_logits_)));
  ops_.synchronize();
}

double BenchModel::prefill(std::int64_t tokens) {
  const double start = now_s();
  for (std::size_t s = 0; s < sequences_.size(); ++s) {
    for (std::int64_t done = 0; done < tokens;) {
      const std::int64_t rows = std::min(limits_.chunk_tokens, tokens - done);
      done += rows;
      step(static_cast<std::int64_t>(s), 1, rows, done == tokens ? 1 : 0);
    }
  }
  return now_s() - start;
}

double BenchModel::decode_step() {
  const double start = now_s();
  step(0, static_cast<std::int64_t>(sequences_.size()), 1, 1);
  return now_s() - start;
}

std::uint64_t BenchModel::logits_hash() {
  HostTensor host(DType::kF32, {n_logits_, logits_.shape[1]});
  ops_.download(host.view.data, logits_.data, host.view.bytes());
  return hash64(host.view.data, host.view.bytes());
}

}  // namespace glint::apps
