#pragma once
// One step's work as plain data in the backend's memory. Prefill and decode rows mix; rows of one sequence are adjacent
// and in order of position.

#include <cstdint>

#include "ops/params.hpp"

namespace glint {

struct Batch {
  std::int64_t n_rows = 0;                   // T
  const std::int32_t* ids = nullptr;         // [T]
  const std::int32_t* positions = nullptr;   // [T]
  const std::int32_t* slots = nullptr;       // [T], where each row's cache entry goes
  AttendBatch attend;                        // row offsets, context lengths, page tables
  std::int64_t n_logits = 0;                 // R
  const std::int32_t* logit_rows = nullptr;  // [R]: which rows want logits
};

}  // namespace glint
