#pragma once
// One params struct an op: views with their shapes beside them. T = rows (tokens) of the batch, H = hidden,
// N = query heads, R = rows that want logits, E = experts, K = experts a token. All data lies in the backend's memory.
// Activations are F32 on the reference and CPU backends. Dimensions come from the views; the MLA head sizes are
// constants.

#include <cstdint>
#include <span>
#include <vector>

#include "tensor/weight.hpp"

namespace glint {

// MLA sizes of GLM-4.7-Flash, the same in every derivative that Glint loads (model facts §2.3).
inline constexpr int kLatent = 512;              // kv_lora_rank: the shared latent, which is both key and value
inline constexpr int kRope = 64;                 // qk_rope_head_dim: the shared rotary key
inline constexpr int kNope = 192;                // qk_nope_head_dim
inline constexpr int kQk = kNope + kRope;        // 256: a query head is [192 nope | 64 rope]
inline constexpr int kValue = 256;               // v_head_dim
inline constexpr int kKvRow = kLatent + kRope;   // 576: a cache row is [512 latent (normed) | 64 rope (rotated)]
inline constexpr float kSoftmaxScale = 0.0625F;  // 256^-0.5, also in the absorbed form

// Names an op's place in the model for traces, counters and error messages. layer -1: outside the layers.
struct OpTag {
  const char* name = "";
  int layer = -1;
};

struct EmbedParams {
  OpTag tag;
  const std::int32_t* ids = nullptr;  // [T], each in [0, table.rows)
  Weight table;                       // [vocab, H]
  View out;                           // [T, H]
};

// Fused residual add and RMSNorm: if delta is given, hidden += delta; then out = hidden · rsqrt(mean(hidden²) + eps) ·
// weight.
struct RmsNormParams {
  OpTag tag;
  View hidden;       // [T, H], updated in place when delta is given
  ConstView delta;   // [T, H] or empty
  ConstView weight;  // [H] F32
  float eps = 1e-5F;
  View out;  // [T, H]; may be empty (only the add) or alias hidden
};

struct LinearParams {
  OpTag tag;
  ConstView x;  // [T, in]
  Weight w;     // [out, in]
  View out;     // [T, out]
};

// Everything before attention: q = rope(W_qb · RMS(W_qa x)); kv = [RMS(c) | rope(k_pe)] of W_kva x. Model facts §2.3.
struct MlaProjectParams {
  OpTag tag;
  ConstView x;                              // [T, H], normed
  const std::int32_t* positions = nullptr;  // [T]
  Weight q_a;                               // [q_lora, H]
  ConstView q_a_norm;                       // [q_lora] F32
  Weight q_b;                               // [N·256, q_lora]
  Weight kv_a;                              // [576, H]
  ConstView kv_a_norm;                      // [512] F32
  float latent_eps = 1e-5F;
  float rope_theta = 1e6F;  // interleaved pairs
  int n_seqs = 0;           // whose rows these are; 0: not known. Of one, q may go to mla_attend in the form it wants
  View q;                   // [T, N, 256], rope applied to the last 64 of each head
  View kv;                  // [T, 576]
};

// How a cache row is stored; ops/kv_codec.hpp defines the bytes of each.
enum class KvCodec : std::uint8_t { kF32, kBF16, kF16, kFp8, kInt8, kInt4, kInt16 };

constexpr std::int64_t kv_row_bytes(KvCodec codec) {
  switch (codec) {
    case KvCodec::kF32:
      return kKvRow * 4;
    case KvCodec::kBF16:
    case KvCodec::kF16:
    case KvCodec::kInt16:
      return kKvRow * 2;
    case KvCodec::kFp8:
    case KvCodec::kInt8:
      return kKvRow;
    case KvCodec::kInt4:
      return kLatent / 2 + kLatent / 32 + kRope;
  }
  return 0;
}

inline constexpr int kPageTokens = 64;  // rows in a cache page

// One layer's pages. Row r of page p lies at base + p · page_stride + r · kv_row_bytes(codec).
struct KvPages {
  void* base = nullptr;
  std::int64_t page_stride_bytes = 0;
  KvCodec codec = KvCodec::kBF16;
  std::int32_t n_pages = 0;  // 0: not known. Only checks read it
};

// Encodes row t of kv into slot slots[t] = page · kPageTokens + row. A negative slot is a row that is not stored.
struct MlaAppendParams {
  OpTag tag;
  ConstView kv;                         // [T, 576]
  const std::int32_t* slots = nullptr;  // [T]
  KvPages pages;
};

// Which rows belong to which sequence, and where each sequence's cache lies.
struct AttendBatch {
  int n_seqs = 0;
  const std::int32_t* row_offsets = nullptr;  // [n_seqs + 1]: rows row_offsets[s] … row_offsets[s+1]-1 are sequence s
  const std::int32_t* context_tokens = nullptr;  // [n_seqs]: tokens in the cache, this step's rows included
  const std::int32_t* page_table = nullptr;      // [n_seqs, max_pages]
  int max_pages = 0;
};

// Causal attention over the latent cache. Row i of a sequence with n rows and c cached tokens is at position c - n + i
// and sees every position up to its own, or the last window_tokens of them.
// Absorbed form (= multi-query attention: all N query heads share one key/value head, the latent row):
//   q_lat = W_UKᵀ q_nope,  s = (q_lat · c + q_pe · k_pe) / 16,  o = W_UV Σ softmax(s) c.
// A backend may use the expanded form instead where that is cheaper.
struct MlaAttendParams {
  OpTag tag;
  ConstView q;  // [T, N, 256]
  Weight kv_b;  // [N·448, 512]: per head 192 rows W_UK, then 256 rows W_UV
  KvPages pages;
  AttendBatch batch;
  int window_tokens = 0;  // 0: dense
  View out;               // [T, N·256]
};

// s = sigmoid(x · Wᵀ); the K experts with the largest s + bias; weights s, normalised to sum 1 and scaled. §2.4.
// Ties go to the lower expert id. ids are ordered by falling s + bias.
struct RouteParams {
  OpTag tag;
  ConstView x;     // [T, H]
  ConstView w;     // [E, H] F32
  ConstView bias;  // [E] F32, used for selection only
  int top_k = 4;
  bool normalize = true;
  float scale = 1.8F;
  std::int32_t* ids = nullptr;  // [T, K]
  float* weights = nullptr;     // [T, K]
};

struct ExpertWeights {
  Weight gate;  // [I, H]
  Weight up;    // [I, H]
  Weight down;  // [H, I]
};

// out = Σ_k weights[t,k] · down_e(silu(gate_e x) ⊙ up_e x), plus the shared expert unscaled.
// The sum over k runs in ascending expert id, so that a row's result does not depend on the batch.
struct MoeParams {
  OpTag tag;
  ConstView x;  // [T, H]
  int top_k = 4;
  const std::int32_t* ids = nullptr;  // [T, K]; a negative id is an unused choice
  const float* weights = nullptr;     // [T, K]
  std::span<const ExpertWeights> experts;
  ExpertWeights shared;  // may be empty
  View out;              // [T, H]
};

struct MlpParams {
  OpTag tag;
  ConstView x;        // [T, H]
  ExpertWeights mlp;  // gate, up [I, H]; down [H, I]
  View out;           // [T, H]
};

// logits[r] = W · x[rows[r]]; columns from valid_vocab on (padding of the vocabulary) become -infinity.
struct LmHeadParams {
  OpTag tag;
  ConstView x;                         // [T, H], normed
  const std::int32_t* rows = nullptr;  // [R], or null: the first R rows
  Weight w;                            // [vocab, H]
  std::int64_t valid_vocab = 0;        // 0: all
  View logits;                         // [R, vocab] F32
};

// MTP input: out = W_eh · [RMS(embed; enorm) ; RMS(hidden; hnorm)], embedding first. Model facts §3.2.
struct MtpInputParams {
  OpTag tag;
  ConstView embed;   // [T, H]
  ConstView hidden;  // [T, H], after the final norm
  ConstView e_norm;  // [H] F32
  ConstView h_norm;  // [H] F32
  float eps = 1e-5F;
  Weight eh_proj;  // [H, 2H]
  View out;        // [T, H]
};

// A decoder layer's weights: what the ops of a layer take.
struct LayerWeights {
  ConstView input_norm;  // [H] F32
  Weight q_a;            // [q_lora, H]
  ConstView q_a_norm;    // [q_lora] F32
  Weight q_b;            // [N·256, q_lora]
  Weight kv_a;           // [576, H]
  ConstView kv_a_norm;   // [512] F32
  Weight kv_b;           // [N·448, 512]
  Weight o;              // [H, N·256]
  ConstView post_norm;   // [H] F32

  ExpertWeights dense;    // dense layers only: [dense_inner, H] …
  ConstView router;       // [E, H] F32; MoE layers only, as are the next three
  ConstView router_bias;  // [E] F32
  std::vector<ExpertWeights> experts;
  ExpertWeights shared;  // [n_shared · expert_inner, H] …
};

// All decoder layers at once, and the final norm: what Model::forward does between embedding and lm_head, op by op.
struct DecoderParams {
  OpTag tag;
  std::span<const LayerWeights> layers;
  const std::int32_t* positions = nullptr;  // [T]
  const std::int32_t* slots = nullptr;      // [T]
  KvPages pages;                            // of the first layer
  std::int64_t layer_stride_bytes = 0;      // from there to the next layer's
  AttendBatch batch;
  int window_tokens = 0;
  int top_k = 4;
  bool normalize = true;
  float routed_scale = 1.8F;
  float eps = 1e-5F;
  float latent_eps = 1e-5F;
  float rope_theta = 1e6F;
  View hidden;           // [T, H]: embeddings in; the stream before the final norm out
  ConstView final_norm;  // [H] F32
  View out;              // [T, H]: after the final norm
};

}  // namespace glint
