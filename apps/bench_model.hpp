#pragma once
// What `glint bench` measures: steps of the bare model (no scheduler, no sampling) at a given batch size and depth.

#include <cstdint>
#include <vector>

#include "cache/store.hpp"
#include "engine/batch_builder.hpp"
#include "models/glm_4_7_flash/model.hpp"
#include "ops/counted.hpp"

namespace glint::apps {

struct BenchLimits {
  std::int64_t max_batch = 1;
  std::int64_t max_context = 0;  // depth + prompt + generated tokens of a sequence, the longest of the run
  std::int64_t chunk_tokens = 512;
  KvCodec codec = KvCodec::kBF16;
};

// A model with a cache of its own, in which every sequence can already hold `depth` tokens of random but sane rows: a
// depth costs no prefill. Token ids are seeded random.
class BenchModel {
 public:
  BenchModel(const ModelWeights& weights, Counted& ops, const BenchLimits& limits);

  // Forgets all sequences and opens `batch` new ones that hold `depth` tokens each.
  void reset(std::int64_t batch, std::int64_t depth);
  // Appends `tokens` tokens to every sequence, in chunks, and computes the last logits of each. Returns seconds.
  double prefill(std::int64_t tokens);
  // One token more for every sequence. Returns seconds.
  double decode_step();
  // xxh3 of all logits of the last step.
  std::uint64_t logits_hash();

 private:
  void step(std::int64_t first_sequence, std::int64_t n_sequences, std::int64_t rows, std::int64_t n_logits);
  void fill_cache();

  Counted& ops_;
  BenchLimits limits_;
  Model model_;
  KvPlan plan_;
  KvStore store_;
  BatchBuilder builder_;
  Buffer logits_buffer_;
  View logits_;
  std::vector<SequenceId> sequences_;
  std::vector<std::int32_t> ids_;
  std::uint64_t random_ = 1;
  std::int64_t n_logits_ = 0;
};

}  // namespace glint::apps
