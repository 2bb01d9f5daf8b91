// Many rows through one BF16 matrix, or two.

#include "backends/cuda/gemm.cuh"
#include "backends/cuda/tensor_map.hpp"

namespace glint::cuda {
namespace {

template <GemmOut kKind>
struct DenseGemm {
  static constexpr GemmOut kOut = kKind;
  static constexpr GemmShare kShare = GemmShare::kWeights;
  static constexpr bool kGated = kKind == GemmOut::kSiluMul || kKind == GemmOut::kSiluMulParts;
  static constexpr int kOutputs = kGated ? kGemmCols / 2 : kGemmCols;  // of a tile

  CUtensorMap x, w[2];
  int rows, steps, w_steps;
  int pairs, columns, first_columns;  // pairs of row tiles; tiles of outputs, of them the first matrix's
  int outputs[2];
  void* out[2];
  std::int64_t stride[2];
  const float2* angles;

  struct Range {};
  __device__ Range range() const { return {}; }
  __device__ int tiles(Range) const { return pairs * columns; }
  __device__ void locate(GemmTile& t, Range, int n, int rank) const {
    const auto [pair, column] = gemm_place(n, pairs, columns);
    const int second = column >= first_columns ? 1 : 0;
    t.x = &x;
    t.x_row = (2 * pair + rank) * kGemmRows;
    t.count = min(kGemmRows, rows - t.x_row);
    t.first = (column - (second != 0 ? first_columns : 0)) * kOutputs;
    t.limit = outputs[second];
    t.w[0] = &w[second];
    t.w[1] = kGated ? &w[1] : &w[second];
    t.w_row[0] = t.first;
    t.w_row[1] = kGated ? t.first : t.first + kGemmBoxB;
    t.steps = steps;
    t.w_steps = w_steps;
    t.place = second;
  }
  __device__ int key(const GemmTile& t, int r) const { return t.x_row + r; }
  __device__ auto row(const GemmTile& t, int key) const {
    if constexpr (kKind == GemmOut::kF32) {
      return static_cast<float*>(out[t.place]) + key * stride[t.place];
    } else {
      return static_cast<std::uint16_t*>(out[t.place]) + key * stride[t.place];
    }
  }
  __device__ void store_unit(std::uint16_t* row, int o, uint4 v) const { *reinterpret_cast<uint4*>(row + o) = v; }
  __device__ void store_pair(float* row, int o, float v0, float v1) const {
    *reinterpret_cast<float2*>(row + o) = {v0, v1};
  }
  __device__ float2 angle(int key, int i) const { return angles[static_cast<std::int64_t>(key) * 32 + i]; }
};

// Block y a row, eight columns a thread.
__global__ void pack_parts_kernel(const float* x, std::int64_t stride, int units, uint4* out) {
  pdl_launch();
  pdl_wait();
  const int u = blockIdx.x * blockDim.x + threadIdx.x;
  if (u >= units) return;
  const std::int64_t row = blockIdx.y;
  const auto* from = reinterpret_cast<const float4*>(x + row * stride) + 2 * u;
  const float4 a = from[0], b = from[1];
  const uint4 high{pack_bf16(a.x, a.y), pack_bf16(a.z, a.w), pack_bf16(b.x, b.y), pack_bf16(b.z, b.w)};
  uint4* to = out + row * 2 * units;
  to[u] = high;
  to[units + u] = {pack_bf16(a.x - bf16_low(high.x), a.y - bf16_high(high.x)),
                   pack_bf16(a.z - bf16_low(high.y), a.w - bf16_high(high.y)),
                   pack_bf16(b.x - bf16_low(high.z), b.y - bf16_high(high.z)),
                   pack_bf16(b.z - bf16_low(high.w), b.w - bf16_high(high.w))};
}

__global__ void unpack_kernel(const uint4* from, std::int64_t units, float4* to) {
  pdl_launch();
  pdl_wait();
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= units) return;
  const uint4 v = from[i];
  to[2 * i] = {bf16_low(v.x), bf16_high(v.x), bf16_low(v.y), bf16_high(v.y)};
  to[2 * i + 1] = {bf16_low(v.z), bf16_high(v.z), bf16_low(v.w), bf16_high(v.w)};
}

bool aligned(const void* p, std::uintptr_t bytes) { return reinterpret_cast<std::uintptr_t>(p) % bytes == 0; }

bool is_gated(GemmOut kind) { return kind == GemmOut::kSiluMul || kind == GemmOut::kSiluMulParts; }

// Tiles of outputs.
unsigned columns_of(const Gemm& g, int i) {
  return ceil_div(g.w[i].rows, is_gated(g.kind) ? kGemmCols / 2 : kGemmCols);
}

template <GemmOut kKind>
void run(const Launch& l, const Gemm& g) {
  using Problem = DenseGemm<kKind>;
  Problem p{};
  const int n = g.w[1].data != nullptr ? 2 : 1;
  p.x = matrix_map(g.x, g.rows, g.depth * g.x_parts, g.x_stride, kGemmBoxA);
  for (int i = 0; i < n; ++i) {
    p.w[i] = matrix_map(g.w[i].data, g.w[i].rows, g.depth, g.depth, kGemmBoxB);
    p.outputs[i] = static_cast<int>(g.w[i].rows);
    p.out[i] = g.w[i].out;
    p.stride[i] = g.w[i].out_stride;
  }
  p.rows = static_cast<int>(g.rows);
  p.w_steps = static_cast<int>(ceil_div(g.depth, kGemmStep));
  p.steps = p.w_steps * g.x_parts;
  p.pairs = static_cast<int>(ceil_div(g.rows, 2 * kGemmRows));
  p.first_columns = static_cast<int>(columns_of(g, 0));
  p.columns = p.first_columns + (n == 2 && !Problem::kGated ? static_cast<int>(columns_of(g, 1)) : 0);
  p.angles = g.angles;
  launch_gemm(l, p, std::int64_t{p.pairs} * p.columns);
}

}  // namespace

bool gemm_takes(const Launch& l, const Gemm& g) {
  if (!l.wgmma || !l.clusters || l.smem_limit < static_cast<int>(kGemmBytes) || g.rows <= kGemmRows) return false;
  if (g.depth % 8 != 0 || (g.x_parts > 1 && g.depth % kGemmStep != 0)) return false;
  if (!aligned(g.x, 16) || g.x_stride % 8 != 0) return false;
  const std::int64_t pairs = ceil_div(g.rows, 2 * kGemmRows);
  std::int64_t columns = 0;
  for (int i = 0; i < 2; ++i) {
    const GemmMatrix& w = g.w[i];
    if (w.data == nullptr) continue;
    if (!aligned(w.data, 16) || w.rows % 8 != 0) return false;
    if (is_gated(g.kind) && i == 1) continue;
    if (!aligned(w.out, 16) || w.out_stride % 8 != 0) return false;
    columns += columns_of(g, i);
  }
  // With fewer tiles the narrow ones of the other kernels keep more of the device at work.
  return 2 * pairs * columns >= l.n_sms / 2;
}

void gemm(const Launch& l, const Gemm& g) {
  switch (g.kind) {
    case GemmOut::kF32:
      return run<GemmOut::kF32>(l, g);
    case GemmOut::kBF16:
      return run<GemmOut::kBF16>(l, g);
    case GemmOut::kSiluMul:
      return run<GemmOut::kSiluMul>(l, g);
    case GemmOut::kSiluMulParts:
      return run<GemmOut::kSiluMulParts>(l, g);
    case GemmOut::kRope:
      return run<GemmOut::kRope>(l, g);
  }
}

void unpack(const Launch& l, const void* bf16, std::int64_t n, float* out) {
  constexpr int kThreads = 256;
  launch(l, unpack_kernel, dim3(ceil_div(n / 8, kThreads)), dim3(kThreads), 0, static_cast<const uint4*>(bf16), n / 8,
         reinterpret_cast<float4*>(out));
}

void pack_parts(const Launch& l, const float* x, std::int64_t stride, std::int64_t rows, std::int64_t cols, void* out) {
  constexpr int kThreads = 128;
  for (std::int64_t r = 0; r < rows; r += kMaxGridY) {
    const auto units = static_cast<int>(cols / 8);
    launch(l, pack_parts_kernel, dim3(ceil_div(units, kThreads), static_cast<unsigned>(std::min(rows - r, kMaxGridY))),
           dim3(kThreads), 0, x + r * stride, stride, units, static_cast<uint4*>(out) + r * 2 * units);
  }
}

}  // namespace glint::cuda
