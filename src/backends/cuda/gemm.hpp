#pragma once
// Launchers of products with many rows whose operands are both BF16 (Hopper); see kernels.hpp for what all launchers
// have in common.

#include "backends/cuda/mla.hpp"

namespace glint::cuda {

// ---- gemm_dense.cu --------------------------------------------------------------------------------------------------

// What becomes of the sums: numbers; silu of the first matrix's times the second's; the same as [high | low] of each
// row; BF16 numbers, of whose 256 a head the last 64 are rotated.
enum class GemmOut : std::uint8_t { kF32, kBF16, kSiluMul, kSiluMulParts, kRope };

struct GemmMatrix {
  const void* data = nullptr;  // BF16 [rows, depth]
  std::int64_t rows = 0;
  void* out = nullptr;
  std::int64_t out_stride = 0;
};
// out = x · Wᵀ for one matrix or for two of the same depth; of gated products w[1] is up, and only w[0] has an out.
struct Gemm {
  GemmMatrix w[2];
  std::int64_t depth = 0;
  const void* x = nullptr;  // BF16 [rows, x_stride]
  std::int64_t x_stride = 0, rows = 0;
  int x_parts = 1;  // 2: a row of x is [high | low], whose sum is meant
  GemmOut kind = GemmOut::kF32;
  const float2* angles = nullptr;  // of kRope: [rows, 32]
};
// False where the other kernels have to do, or do better: odd shapes, few tiles.
bool gemm_takes(const Launch& l, const Gemm& g);
void gemm(const Launch& l, const Gemm& g);
// Rows of F32 numbers as [high | low]; cols in eights, rows aligned to 16 bytes.
void pack_parts(const Launch& l, const float* x, std::int64_t stride, std::int64_t rows, std::int64_t cols, void* out);

// BF16 numbers as F32; n in eights.
void unpack(const Launch& l, const void* bf16, std::int64_t n, float* out);

// ---- gemm_moe.cu ----------------------------------------------------------------------------------------------------

inline constexpr int kGemmExperts = 64;  // beside the shared one: their maps are the kernel's parameters

// As TiledMoe, of BF16 matrices; groups of 128 rows an item.
struct GemmMoe {
  bool down = false;
  std::int32_t rows = 0, depth = 0, shared_rows = 0, shared_depth = 0;  // of gate and up, or of down
  ExpertTable first, second;
  std::int32_t T = 0, K = 0, n_experts = 0;
  std::int32_t first_expert = 0, end_expert = 0;  // whose items are done
  bool has_shared = false;
  MoeGroups groups;
  const void* x = nullptr;  // BF16 [T, x_stride] by token: the shared expert's
  std::int64_t x_stride = 0;
  const void* sorted = nullptr;  // BF16 [T·K, depth] by place
  void* h = nullptr;             // BF16 [T·K + T, h_stride] by place
  std::int64_t h_stride = 0;
  void* y = nullptr;  // BF16 [T·K + T, y_stride] by slot
  std::int64_t y_stride = 0;
};
bool gemm_moe_takes(const Launch& l, const GemmMoe& m);
void gemm_moe(const Launch& l, const GemmMoe& m);

// Rows of x by place.
void gather_rows(const Launch& l, const MoeGroups& groups, const void* x, std::int64_t x_stride, std::int64_t slots,
                 int top_k, std::int64_t cols, void* out);

// ---- gemm_codes*.cu -------------------------------------------------------------------------------------------------

inline constexpr int kGemmCodesItem = 256;  // rows an item

// Of whole numbers: BF16 scales without minima; other scales; with minima. Of other codes: kScales.
enum class CodesScaling : std::uint8_t { kPlain, kScales, kMins };

// As GemmMoe, of codes, all of one format: m's tables hold them, and its items are those of kGemmCodesItem rows.
// Without experts the shared one is done, in shape's format too.
struct GemmCodes {
  GemmMoe m;
  MatShape shape, shared_shape;
};
// Whether the kernel reads such a matrix.
bool gemm_codes_fits(const Mat& w);
bool gemm_codes_takes(const Launch& l, const GemmMoe& m);
void gemm_codes(const Launch& l, const GemmCodes& g);

// ---- widen.cu -------------------------------------------------------------------------------------------------------

// n matrices of one shape as BF16, one behind the other. tiled_fits() holds for them.
struct Widen {
  MatShape shape;
  int n = 0;
  MatPtr at[2 * kGemmExperts];
  void* out = nullptr;
};
void widen(const Launch& l, const Widen& w);

}  // namespace glint::cuda
