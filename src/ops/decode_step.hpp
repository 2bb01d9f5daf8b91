#pragma once
// A whole decode step as one op, for backends that run it faster than op by op: Ops::decode_step.

#include <cstdint>
#include <span>

#include "ops/params.hpp"

namespace glint {

// One layer's weights and pages, as the single ops would get them.
struct DecodeLayer {
  ConstView input_norm, q_a_norm, kv_a_norm, post_norm;  // F32
  Weight q_a, q_b, kv_a, kv_b, o;
  ExpertWeights dense;                     // dense layers only
  ConstView router, router_bias;           // F32; MoE layers only, as are the next two
  std::span<const ExpertWeights> experts;  // may be empty in a dense layer
  ExpertWeights shared;                    // may be empty
  KvPages pages;
};

// Embedding, every layer, the final norm and the head, for T rows of T sequences: what Model::forward does with the ops
// of params.hpp, to the accuracy of the backend's own ops.
struct DecodeStepParams {
  OpTag tag;
  // Names `layers`: the same number means the same weights at the same places, so that a backend may keep what it made
  // of them. Pages may differ from step to step.
  std::uint64_t weights_id = 0;
  std::span<const DecodeLayer> layers;
  Weight embed;          // [vocab, H]
  ConstView final_norm;  // [H] F32
  Weight lm_head;        // [vocab, H]
  float eps = 1e-5F;
  float latent_eps = 1e-5F;
  float rope_theta = 1e6F;
  int top_k = 4;
  bool normalize = true;
  float routed_scale = 1.8F;
  int window_tokens = 0;
  std::int64_t valid_vocab = 0;  // 0: all

  const std::int32_t* ids = nullptr;         // [T]
  const std::int32_t* positions = nullptr;   // [T]
  const std::int32_t* slots = nullptr;       // [T]
  AttendBatch batch;                         // n_seqs == T: row s is sequence s
  const std::int32_t* logit_rows = nullptr;  // [R]
  View hidden;                               // [T, H]: the residual stream after the last layer
  View x;                                    // [T, H]: after the final norm
  View logits;                               // [R, vocab] F32; R may be 0
};

}  // namespace glint
