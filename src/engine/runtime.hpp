#pragma once
// What a forward pass needs beside requests and the cache's books: the model, the cache's pages, the batch under
// construction and the logits. Owned and used by one thread at a time.

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "cache/store.hpp"
#include "cache/touch.hpp"
#include "engine/batch_builder.hpp"
#include "models/glm_4_7_flash/model.hpp"
#include "sampling/sample_row.hpp"

namespace glint {

enum class Placement : std::uint8_t {
  kHost,   // the backend's memory is the host's: logits are read in place
  kDevice  // logits are downloaded, row by row as they are wanted; the backend samples if it can
};

struct RuntimeOptions {
  ModelOptions model;
  KvCodec codec = KvCodec::kBF16;
  std::int64_t cache_tokens = 0;       // rounded up to whole pages
  std::int64_t max_seqs = 64;          // sequences in one batch
  std::int64_t touch_ahead_bytes = 0;  // of pages, on a host; see cache/touch.hpp
  bool mtp = false;                    // the MTP layer will be run: the cache has its rows too
  Placement placement = Placement::kHost;
};

// [max_logits, vocab] F32 in the backend's memory, and the way to read rows of it on the host.
class LogitsBuffer {
 public:
  LogitsBuffer(Ops& ops, std::int64_t max_rows, std::int64_t vocab, Placement placement);
  View view() const { return view_; }
  // The rows from `first` on.
  View view_from(std::int64_t first) const;
  std::int64_t n_rows() const { return view_.shape[0]; }
  bool on_host() const { return staging_.empty(); }
  // The backend has been told to write other logits, to the n rows from `first` on (default: to all).
  void renew() { renew(0, n_rows()); }
  void renew(std::int64_t first, std::int64_t n);
  // Row r, fetched if it is not there yet; the sampler may write to it.
  std::span<float> row(std::int64_t r);

 private:
  Ops& ops_;
  Buffer buffer_;
  View view_;
  std::vector<float> staging_;  // only on a device
  std::vector<bool> fetched_;   // rows of it since renew()
};

class Runtime {
 public:
  // `weights` and `ops` must outlive it. Throws Error when memory is short.
  Runtime(const ModelWeights& weights, Ops& ops, const RuntimeOptions& options);

  Ops& ops() { return ops_; }
  Model& model() { return model_; }
  KvStore& store() { return store_; }
  BatchBuilder& batch() { return batch_; }
  LogitsBuffer& logits() { return logits_; }

  // The batch that was built since batch().begin(), with its sequences' page tables from `plan`: forward pass. Its
  // logits are rows from `first_logits` on. Ids that the batch takes from tokens are of the last sample().
  void forward(const KvPlan& plan, std::int64_t first_logits = 0);
  // Has the backend draw the tokens of those rows of logits (ops/sample.hpp); false: they are the caller's to sample.
  // Two calls may be under way; take_tokens() waits for the older one.
  bool sample(const SampleBatch& batch, std::int64_t first_logits = 0);
  std::span<const std::int32_t> take_tokens();
  static constexpr std::size_t kMaxEdits = std::size_t{1} << 17;  // of one call: 1 MB
  // Logits of those rows of the last forward pass become rows [0, n_rows).
  void logits_of_rows(std::int64_t first_row, std::int64_t n_rows);

 private:
  Ops& ops_;
  Model model_;
  KvStore store_;
  std::unique_ptr<PageToucher> toucher_;
  BatchBuilder batch_;
  LogitsBuffer logits_;
  Buffer sample_rows_, sample_edits_, sample_masks_, sample_tokens_;  // in the backend's memory
  struct Tokens {
    std::vector<std::int32_t> ids;
    std::size_t n = 0;
  };
  Tokens tokens_[Ops::kFetches];
  int next_tokens_ = 0, oldest_tokens_ = 0;  // places that sample() and take_tokens() go on with
};

}  // namespace glint
