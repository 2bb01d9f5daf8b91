#pragma once
// Builds a step's Batch: the rows of each sequence, their cache slots and page tables, as arrays in the backend's
// memory. Every array has its full size from the start, so that a step allocates nothing.

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "cache/plan.hpp"
#include "models/glm_4_7_flash/batch.hpp"
#include "ops/ops.hpp"

namespace glint {

struct BatchLimits {
  std::int64_t max_rows = 0;     // T
  std::int64_t max_logits = 0;   // R
  std::int64_t max_seqs = 0;     // sequences in one batch
  std::int64_t max_context = 0;  // cached tokens of one sequence
};

// One sequence's part of a batch. The plan already holds its tokens up to first_position + ids.size().
struct SequenceRows {
  SequenceId sequence = 0;
  std::span<const std::int32_t> ids;  // read by add() only
  std::int64_t first_position = 0;
  std::int64_t n_logits = 0;  // the last n_logits rows want logits
  // Set: the only row's id is not known here yet; it will be this one of the tokens that finish() is given.
  std::optional<std::int64_t> token = std::nullopt;
};

class BatchBuilder {
 public:
  BatchBuilder(Ops& ops, const BatchLimits& limits);

  void begin();
  // Returns the index of the sequence's first logits row among [0, R).
  std::int64_t add(const KvPlan& plan, const SequenceRows& rows);
  std::int64_t n_rows() const { return n_rows_; }
  std::int64_t n_logits() const { return n_logits_; }
  // Uploads. The batch is valid until the next begin(); `plan` must be as it was at add(). `tokens`: in the backend's
  // memory, for rows whose ids are there only.
  const Batch& finish(const KvPlan& plan, const std::int32_t* tokens = nullptr);

 private:
  BatchLimits limits_;
  std::int64_t max_pages_;
  Ops& ops_;
  // One block holds all arrays, in this order: ids, positions, slots [max_rows]; logit_rows [max_logits]; row_offsets
  // [max_seqs + 1]; context_tokens [max_seqs]; page_table [max_seqs, max_pages]. One upload moves it.
  std::vector<std::int32_t> host_;
  Buffer device_;
  std::int32_t* ids_;
  std::int32_t* positions_;
  std::int32_t* slots_;
  std::int32_t* logit_rows_;
  std::int32_t* row_offsets_;
  std::int32_t* context_tokens_;
  std::int32_t* page_table_;
  std::vector<SequenceId> sequences_;
  struct TokenRows {  // neighbours on both sides
    std::int64_t row, token, n;
  };
  std::vector<TokenRows> token_rows_;
  std::int64_t n_rows_ = 0;
  std::int64_t n_logits_ = 0;
  Batch batch_;
};

}  // namespace glint
