#pragma once
// What the matrices of a layer are multiplied with, on given text: second moments H = Σ x xᵀ of every matrix's inputs,
// for each expert its own. Works layer by layer on the hidden states of all tokens (4·H bytes each), so that memory
// holds one layer's statistics whatever the model's size.

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "models/glm_4_7_flash/tensor_table.hpp"
#include "ops/ops.hpp"
#include "weights/quantizer_gptq.hpp"

namespace glint {

struct CalibrationOptions {
  std::vector<std::int32_t> ids;
  std::int64_t window_tokens = 512;  // sequences of it, each from position 0
  // An expert also sees one in n_experts / top_k of the tokens that did not choose it, with this share of a chosen
  // token's weight: an expert that few tokens choose falls back to the layer's statistics, one that many choose hardly
  // notices.
  float background = 0.05F;
};

class LayerStats {
 public:
  // The factor of a matrix's H; null for matrices that are not calibrated. Valid until the next call: gate and up of
  // an expert share H, and more than one factor at a time would be large.
  const HessianFactor* factor(const TensorSpec& spec, std::int64_t expert, double damping);

  // Experts chosen by fewer tokens than an eighth of their input's size.
  std::int64_t starved() const { return starved_; }

  // For the collector: the statistics under a name ("in", "gate_up", "down" …) and expert (-1: none).
  Hessian& at(std::string_view name, std::int64_t expert, std::int64_t n);
  void set_starved(std::int64_t n) { starved_ = n; }

 private:
  using Key = std::pair<std::string_view, std::int64_t>;
  std::map<Key, Hessian> hessians_;
  HessianFactor last_;
  const Hessian* last_of_ = nullptr;
  std::int64_t starved_ = 0;
};

class Calibrator {
 public:
  // `model` and `ops` (a host backend) must outlive it; the model's layers may change between the calls.
  Calibrator(const ModelWeights& model, Ops& ops, const CalibrationOptions& options, ThreadPool& pool);

  // Runs layer `index` as it is now and returns what its matrices saw, those of fields that `wanted` (a name of the
  // tensor table) admits.
  using Wanted = std::function<bool(std::string_view field)>;
  std::unique_ptr<LayerStats> collect(std::int64_t index, const Wanted& wanted);

  // Runs the layer as it is now (quantised) and moves the hidden states behind it. Matrices in formats that the backend
  // does not read are run as BF16.
  void advance(std::int64_t index);

  std::int64_t n_tokens() const { return n_tokens_; }

 private:
  template <typename Decorator>
  void run(const LayerWeights& layer, Decorator& ops);

  const ModelWeights& model_;
  Ops& ops_;
  CalibrationOptions options_;
  ThreadPool& pool_;
  std::int64_t n_tokens_ = 0;
  HostTensor hidden_;  // [n_tokens, H] before the layer to come
};

}  // namespace glint
