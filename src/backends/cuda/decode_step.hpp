#pragma once
// All decoder layers for one row in one kernel that stays on the device: what its host side and its device side share.
// decode_step.cu says how it works.

#include <span>

#include "backends/cuda/mla.hpp"

namespace glint::cuda {

inline constexpr int kStepExperts = 64;  // experts of a layer at most
inline constexpr int kStepSlots = 8;     // experts of a token at most, and the shared one
inline constexpr int kStepHeadsMost = 24;
inline constexpr int kStepJoinParts = 6;  // blocks that a head's rows of W_UK are with, at most (decode_join.cuh)
inline constexpr int kWholeRow = 30;      // group_shift where a row has one scale

// A matrix with all that the kernel would otherwise work out for each tile. A row of it has scales of its own.
struct StepMat {
  MatPtr at;
  std::int32_t rows = 0, cols = 0;
  std::int32_t row_bytes = 0, scale_row_bytes = 0;
  std::int32_t step_cols = 0;            // columns of 64 bytes of a row: a step of the contraction
  std::uint8_t group_shift = kWholeRow;  // a scale covers 2^group_shift columns
  WeightFormat format = WeightFormat::kBF16;
  DType scale_dtype = DType::kF32;
};

// A layer's matrices. A dense layer has no experts, and its MLP in the place of the shared one.
enum class StepRole : std::uint8_t { kQa, kKva, kQb, kKvb, kO, kSharedGate, kSharedDown, kGate, kDown };
inline constexpr int kStepRoles = 9;

// A layer's weights in device memory.
struct alignas(16) StepLayer {
  const float* input_norm;
  const float* q_a_norm;
  const float* kv_a_norm;
  const float* post_norm;
  const float* router;
  const float* router_bias;
  const MatPtr* experts;  // [3][n_experts]: gate, up, down
  const void* kv_b;       // BF16, as mats has it
  StepMat mats[kStepRoles];
  MatPtr shared_up;
  std::int32_t n_experts;
};
static_assert(sizeof(StepLayer) % 16 == 0, "copied by sixteen bytes");

// Models whose sizes and formats a kernel knows when it is compiled (decode_shape.cuh): the real one's, in these
// formats.
enum class StepModel : std::uint8_t { kAny, kBf16, kInt8, kInt4, kQ4 };

struct DecodeStep {
  const StepLayer* layers = nullptr;
  int n_layers = 0;
  int heads = 0, hidden = 0, q_lora = 0, top_k = 0;
  int scale_room = 0;                                       // bytes that a chunk's scales take at most
  int dense_inner = 0, expert_inner = 0, shared_inner = 0;  // the largest of any layer; 0: there is none
  int inner_stride = 0;                                     // floats of a row of h
  StepModel known = StepModel::kAny;
  bool far = false;  // the context may be long: a block takes all heads then (decode_pieces.cuh)
  bool normalize = true;
  float routed_scale = 1, eps = 0, latent_eps = 0;
  RopeJob rope;
  const std::int32_t* slots = nullptr;
  CacheView cache;                // of the first layer
  std::int64_t layer_stride = 0;  // bytes from a layer's pages to the next layer's
  float* stream = nullptr;        // [hidden]: the residual stream, updated
  const float* final_norm = nullptr;
  float* out = nullptr;  // [hidden]: the stream after the final norm

  // Workspace, F32.
  float* low = nullptr;          // [q_lora]
  float* kv = nullptr;           // [576]
  float* q = nullptr;            // [N, 256]
  float* query = nullptr;        // [N, 512], or parts of it: [kStepJoinParts, N, 512]
  float* partial = nullptr;      // [n_blocks, N, 512]
  float2* partial_ml = nullptr;  // [n_blocks, N]
  float* latent = nullptr;       // [N, 512]: the queries' sums (StepQueries::kSummed), later attention's answer
  float* attended = nullptr;     // [N, 256]
  float* scores = nullptr;       // [experts]
  float* h = nullptr;            // [top_k + 1, inner_stride]
  unsigned* counters = nullptr;  // [2], zero between steps
  unsigned* trace = nullptr;     // decode_trace.cuh; null: none
};

// Whether the kernel reads such a matrix, and as what. Formats with minima or with scales of several rows it does not.
bool step_reads(const Mat& m);
StepMat step_mat(const Mat& m);
int step_scale_room(const StepMat& m);  // bytes that the scales of a chunk take

// Bytes of a block's shared memory: x and notes, sums, and the ring.
struct StepSizes {
  int x_bytes, note_at, sum_bytes, pass_bytes, slot_bytes, slots, bytes;
};

// The kernel that knows a model, for cudaLaunchKernel: arguments are a DecodeStep and its StepSizes. Each has a file of
// its own, so that they compile side by side.
const void* step_kernel_any();
const void* step_kernel_bf16(KvCodec codec, bool far);
const void* step_kernel_int8(KvCodec codec, bool far);
const void* step_kernel_int4(KvCodec codec, bool far);
const void* step_kernel_q4(KvCodec codec, bool far);

// Which kernel knows these layers; s: sizes and top_k.
StepModel step_model(const DecodeStep& s, std::span<const StepLayer> layers);

// Blocks that a step of this shape runs with; 0: not on this device, or not of this shape.
int step_blocks(const Launch& l, const DecodeStep& s);
void decode_step(const Launch& l, const DecodeStep& s);
// Has the device load the kernels of such steps, for every codec and length of contexts: when a kernel is first used
// that takes tens of milliseconds, and an answer's first token would wait for it.
void load_step_kernels(const Launch& l, const DecodeStep& s);

}  // namespace glint::cuda
