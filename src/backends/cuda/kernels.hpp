#pragma once
// The launchers that the host side of the backend calls: plain structs in, kernels on a stream out. Shapes are checked
// by the callers (cuda_*.cpp); each launcher says what it needs.

#include <cuda_runtime_api.h>

#include <cstdint>

#include "tensor/weight.hpp"

namespace glint::cuda {

// Throws Error with the call's name when a CUDA call failed.
void check(cudaError_t status, const char* what);

// Where launches go.
struct Launch {
  cudaStream_t stream = nullptr;
  bool pdl = false;       // programmatic dependent launch: the kernel may start before its predecessor has ended
  bool clusters = false;  // blocks of a cluster read each other's shared memory
  bool wgmma = false;     // sm_90a: Hopper's own products, in this build and on this device
  int n_sms = 1;
  int smem_limit = 48 << 10;  // bytes of shared memory a block may have
};

// The format of a matrix, and where one such matrix lies.
struct MatShape {
  std::int32_t rows = 0;
  std::int32_t cols = 0;
  std::int32_t group = 1;
  std::int32_t group_rows = 1;
  std::int32_t groups_a_row = 0;
  WeightFormat format = WeightFormat::kBF16;
  DType scale_dtype = DType::kF32;
};
struct MatPtr {
  const void* data = nullptr;
  const void* scales = nullptr;
  const void* mins = nullptr;
};
struct Mat {
  MatShape shape;
  MatPtr at;
};
Mat mat_of(const Weight& w);

// The formats that every kernel reads.
constexpr bool has_kernels(WeightFormat f) {
  return f == WeightFormat::kF32 || f == WeightFormat::kF16 || f == WeightFormat::kBF16 || f == WeightFormat::kF8E4M3 ||
         f == WeightFormat::kI8 || f == WeightFormat::kI4 || f == WeightFormat::kNF4;
}

// A matrix of activations, F32 or BF16, row r at data + r · stride elements. rows_index, if given, picks the rows.
struct Act {
  const void* data = nullptr;
  std::int64_t stride = 0;
  bool bf16 = false;
  const std::int32_t* rows_index = nullptr;
};

// Angles in revolutions a position: theta^(-2i/64) / 2π.
struct RopeFrequencies {
  double revolutions[32];
};
struct RopeJob {
  const std::int32_t* positions = nullptr;
  RopeFrequencies frequencies;
  float2* angles = nullptr;  // [rows, 32] cosine and sine: norm_pair writes them, the wide kernels read them
};

// The order in which the wide kernels want the values of a row of x. A pair of values is what a lane has of a k8; with
// `apart` values v and v + 4 of an eight, else neighbours. wgmma reads x by itself, in k16 steps to which the four
// lanes of a quad each bring two pairs of their share of 2^share_log2 values; without it (0) eights stay where they
// are, and lanes find theirs.
struct WideOrder {
  int share_log2 = 0;
  bool apart = false;
};
inline WideOrder wide_order(const Launch& l, WeightFormat f) {
  const int bits = weight_code_bits(f);
  return {.share_log2 = !l.wgmma ? 0 : bits >= 16 ? 3 : bits == 8 ? 4 : 5, .apart = f == WeightFormat::kI4};
}

// ---- elementwise.cu -------------------------------------------------------------------------------------------------

// Whether this build has code for the current device.
cudaError_t probe_code();
void embed(const Launch& l, const Mat& table, const std::int32_t* ids, float* out, std::int64_t rows);
void rms_norm(const Launch& l, float* hidden, const float* delta, const float* weight, float eps, float* out,
              std::int64_t rows, std::int64_t n);

// Up to two norms of the rows of two matrices, F32 in; out is F32 or BF16.
struct NormPart {
  const float* x = nullptr;
  std::int64_t x_stride = 0;
  const float* weight = nullptr;
  std::int64_t n = 0;
  void* out = nullptr;
  std::int64_t out_stride = 0;
  bool out_bf16 = false;
  WideOrder order;         // of a BF16 out
  bool rope_tail = false;  // the 64 values behind the n normed ones are a rotary key
};
void norm_pair(const Launch& l, const NormPart& a, const NormPart& b, float eps, const RopeJob& rope,
               std::int64_t rows);
// Rotates the last 64 of each head's 256 values.
void rope_heads(const Launch& l, float* q, std::int64_t rows, std::int64_t heads, const RopeJob& rope);
// Rows of x as BF16, dense.
void pack(const Launch& l, const Act& x, void* out, std::int64_t rows, std::int64_t n);
void silu_mul(const Launch& l, const float* gate, const float* up, void* out_bf16, std::int64_t n);
// out[i] = pool piece, see synthetic.cpp: pieces of 64 values from hashed places of the pool with hashed signs.
void fill_from_pool(const Launch& l, void* dst, std::int64_t n, const void* pool, std::int64_t pool_n, int bytes,
                    std::uint64_t stream_id);

// ---- linear_any.cu: any shape, slow ---------------------------------------------------------------------------------

// out[t][o] = W x[t]; columns from `valid` on become -infinity.
void linear_any(const Launch& l, const Mat& w, const Act& x, float* out, std::int64_t out_stride, std::int64_t rows,
                std::int64_t valid);

inline constexpr int kMaxExperts = 128;

// One matrix of every expert; [n] is the shared expert's.
struct ExpertTable {
  MatPtr at[kMaxExperts + 1];
};
struct MoeAny {
  std::int32_t T, K, hidden, inner, shared_inner, n_experts;
  const std::int32_t* ids;
  MatShape gate, up, down, shared_gate, shared_up, shared_down;
  std::int32_t only = -1;  // if not negative: the slots of this expert alone
};
// h[slot][inner] BF16; slots T·K … T·K + T - 1 are the shared expert's, with rows of `h_stride`.
void moe_any_up(const Launch& l, const MoeAny& m, const ExpertTable& gate, const ExpertTable& up, const float* x,
                void* h, std::int64_t h_stride);
void moe_any_down(const Launch& l, const MoeAny& m, const ExpertTable& down, const void* h, std::int64_t h_stride,
                  float* y);

// ---- skinny.cu: few rows, bound by the memory that the weights lie in -----------------------------------------------

// Whether the kernel reads such a matrix.
bool skinny_fits(const Mat& w);

enum class Epilogue : std::uint8_t { kStore, kRope, kSiluMul };

// y = W x for one or two matrices over the same rows. With kSiluMul: silu(W0 x) ⊙ (W1 x) as BF16 instead.
struct SkinnyDense {
  MatShape shape[2];
  MatPtr at[2];
  float* out[2] = {nullptr, nullptr};
  std::int64_t out_stride[2] = {0, 0};
  void* out_bf16 = nullptr;  // of kSiluMul; the wide kernels write F32 to out[0] without it
  int n_mats = 1;
  Act x;
  int x_parts = 1;  // 2: see wide_takes_parts
  std::int64_t rows = 0;
  Epilogue epilogue = Epilogue::kStore;
  std::int64_t valid = 0;  // columns from here on become -infinity; 0: none
  RopeJob rope;

  explicit SkinnyDense(const Mat& w) { set(0, w); }
  SkinnyDense(const Mat& a, const Mat& b) : n_mats(2) {
    set(0, a);
    set(1, b);
  }

 private:
  void set(int i, const Mat& w) {
    shape[i] = w.shape;
    at[i] = w.at;
  }
};
void skinny_dense(const Launch& l, const SkinnyDense& d);

// One matrix a head: out[t][h · out_rows + r] = Σ_c W[h · head_rows + first_row + r][c] x[t][h][c].
struct SkinnyHeads {
  Mat w;
  int heads = 0, head_rows = 0, first_row = 0, out_rows = 0;
  const void* x_bf16 = nullptr;  // [rows, heads, cols]
  float* out = nullptr;          // [rows, heads · out_rows]
  std::int64_t rows = 0;
};
void skinny_heads(const Launch& l, const SkinnyHeads& h);

// Rows grouped by expert. Sorted place p holds slot order[p]; items are (expert, first place, count).
struct MoeGroups {
  const std::int32_t* order = nullptr;
  const int4* items = nullptr;
  const std::int32_t* n_items = nullptr;
  std::int64_t max_items = 0;
};
inline constexpr int kInlineSlots = 32;  // up to so many choices, the skinny kernel groups by itself
struct SkinnyMoe {
  bool down = false;
  MatShape shape, shared_shape;  // gate (and up), or down
  ExpertTable first, second;     // gate and up, or down
  std::int32_t T, K, n_experts;
  bool has_shared = false;
  const std::int32_t* ids = nullptr;
  MoeGroups groups;   // unused when T·K ≤ kInlineSlots
  int item_rows = 8;  // 8 or 16: rows of an item
  Act x;              // [T, H] by token, or h by place
  void* h = nullptr;  // BF16 [T·K + T, h_stride] by place
  std::int64_t h_stride = 0;
  float* y = nullptr;  // [T·K + T, H] by slot
  std::int64_t y_stride = 0;
};
void skinny_moe(const Launch& l, const SkinnyMoe& m);

// ---- head_int8.cu: a very long INT8 matrix, one to four rows of x ---------------------------------------------------

bool head_int8_fits(const Launch& l, const SkinnyDense& d);
void head_int8(const Launch& l, const SkinnyDense& d);

// ---- wide.cuh: more rows, bound by the same memory ------------------------------------------------------------------

// Rows of a block; more are cut.
inline constexpr int kWideRows = 64, kWideWgmmaRows = 128;

bool wide_fits(const Mat& w);

// Rows of x as BF16, dense, in the order in which the format's kernels read them; false: in their own.
inline bool wide_reorders(const Launch& l, WeightFormat f) { return l.wgmma || f == WeightFormat::kI4; }
void wide_reorder(const Launch& l, const Act& x, void* out, std::int64_t rows, std::int64_t cols, WeightFormat f,
                  int parts);
// Whether rows of x may be [high | low], two BF16 numbers for each F32: rounding takes nothing that counts.
inline bool wide_takes_parts(const Launch& l, WeightFormat f) { return l.wgmma && f == WeightFormat::kBF16; }

// As SkinnyDense for any number of rows; x is BF16, without rows_index, reordered where the format wants it.
void wide_dense(const Launch& l, const SkinnyDense& d);
void wide_heads(const Launch& l, const SkinnyHeads& h);

// As SkinnyMoe; groups are always given, with up to kWideRows rows an item. h is written as down's format wants it.
struct WideMoe {
  bool down = false;
  MatShape shape, shared_shape;
  ExpertTable first, second;
  std::int32_t T, K;
  bool has_shared = false;
  MoeGroups groups;
  int item_rows = kWideRows;
  const void* x = nullptr;  // BF16 [T, H] by token, or h by place
  std::int64_t x_stride = 0;
  void* h = nullptr;
  std::int64_t h_stride = 0;
  WeightFormat down_format = WeightFormat::kBF16;
  float* y = nullptr;
  std::int64_t y_stride = 0;
};
void wide_moe(const Launch& l, const WideMoe& m);

// ---- tiled.cu: many rows --------------------------------------------------------------------------------------------

bool tiled_fits(const Mat& w);

enum class TiledOut : std::uint8_t { kF32, kBF16, kSiluMul };

// C = X · Wᵀ with X BF16. Batched by blockIdx.z with the given strides (elements; W's in rows).
struct Tiled {
  Mat w;                 // the rows of one batch entry
  MatPtr up;             // of kSiluMul: the second matrix, shaped like w
  bool w_is_kn = false;  // W is [K, N]: C = X · W; w.rows = K, w.cols = N
  const void* x = nullptr;
  std::int64_t x_stride = 0;
  std::int64_t rows = 0;
  void* out = nullptr;
  std::int64_t out_stride = 0;
  TiledOut out_kind = TiledOut::kF32;
  std::int64_t valid = 0;
  int batch = 1;
  std::int64_t x_batch = 0, w_first_row = 0, w_batch_rows = 0, out_batch = 0;
};
void tiled(const Launch& l, const Tiled& t);

struct TiledMoe {
  bool down = false;
  MatShape shape, shared_shape;
  ExpertTable first, second;
  std::int32_t T, K, n_experts;
  bool has_shared = false;
  MoeGroups groups;
  int item_rows = 64;  // 64 or 128; 128 for wgmma
  bool wgmma = false;
  const void* x = nullptr;  // BF16 [T, H] by token, or h by place
  std::int64_t x_stride = 0;
  void* h = nullptr;
  std::int64_t h_stride = 0;
  void* y = nullptr;    // by slot
  bool y_bf16 = false;  // wgmma only
  std::int64_t y_stride = 0;
};
void tiled_moe(const Launch& l, const TiledMoe& m);
// m.wgmma may be set where this holds for all shapes of the experts, the shared one's too.
bool tiled_moe_by_wgmma(const Launch& l, const MatShape& shape);

// ---- moe.cu ---------------------------------------------------------------------------------------------------------

void route(const Launch& l, const float* x, const float* w, const float* bias, std::int64_t rows, std::int64_t hidden,
           int n_experts, int top_k, bool normalize, float scale, std::int32_t* ids, float* weights, float* scores,
           unsigned* counters);
inline constexpr int kRouteRows = 4;  // rows a counter

void moe_sum(const Launch& l, const std::int32_t* ids, const float* weights, const float* y, std::int64_t T, int K,
             std::int64_t hidden, bool has_shared, float* out);

// ---- moe_many.cu ----------------------------------------------------------------------------------------------------

// As route(), for many rows: products of parts of the columns first, added in order.
struct RouteMany {
  const float *x = nullptr, *w = nullptr, *bias = nullptr;
  std::int64_t rows = 0, hidden = 0;
  int n_experts = 0, top_k = 0;
  bool normalize = false;
  float scale = 1;
  std::int32_t* ids = nullptr;
  float* weights = nullptr;
  int parts = 0;             // as route_parts() has it
  float* partial = nullptr;  // [parts, rows, n_experts]
};
// 0: such sizes are left to route().
int route_parts(std::int64_t rows, std::int64_t hidden);
inline constexpr std::int64_t kRouteFewRows = 16, kRouteSomeRows = 256;  // route()'s; those with more parts
inline constexpr int kRouteMostParts = 32, kRouteLeastParts = 4;
void route_many(const Launch& l, const RouteMany& r);

// The slots sorted by expert, in order; slots without an expert (-1) have no place.
struct GroupBuffers {
  std::int32_t* order;    // [T·K + T]
  int4* items;            // [max_items]
  std::int32_t* n_items;  // [1]
};
inline constexpr int kGroupSlots = 1024;  // slots of a block
struct GroupSlots {
  const std::int32_t* ids = nullptr;
  std::int64_t slots = 0, shared_rows = 0;
  int n_experts = 0, item_rows = 0;
  std::int32_t* counts = nullptr;  // [slots / kGroupSlots rounded up, n_experts], for more than one block
  GroupBuffers out{};
};
void group_slots(const Launch& l, const GroupSlots& g);

// As moe_sum(), for BF16 y and a hidden size in eights.
struct SumMany {
  const std::int32_t* ids = nullptr;
  const float* weights = nullptr;
  const void* y = nullptr;
  std::int64_t T = 0, hidden = 0;
  int K = 0;
  bool has_shared = false;
  float* out = nullptr;
};
void sum_many(const Launch& l, const SumMany& s);

}  // namespace glint::cuda
