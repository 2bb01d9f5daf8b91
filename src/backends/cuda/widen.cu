// Matrices of any format as BF16, at the speed of memory: what products with many rows read. Values are those of
// tensor/codec.hpp, rounded once.

#include "backends/cuda/common.cuh"
#include "backends/cuda/gemm.hpp"

namespace glint::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kEach = 4;  // units of eight values that a lane has under way

struct WidenArgs {
  Widen job;
  int group_shift;  // groups of 2^shift columns; negative: divide
};

// Eight codes: four bits or a byte each.
template <WeightFormat kFormat>
using Codes =
    std::conditional_t<kFormat == WeightFormat::kI8 || kFormat == WeightFormat::kF8E4M3, uint2, std::uint32_t>;

// As code_value() of each code. Whole numbers become floats as the mantissa of 2^23.
template <WeightFormat kFormat>
__device__ __forceinline__ void decode8(const Codes<kFormat>& codes, const Scale& s, bool has_min, const float* nf4,
                                        float (&v)[8]) {
  if constexpr (kFormat == WeightFormat::kI4) {
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      const float c = __uint_as_float((codes >> (4 * k) & 15U) | 0x4b000000U);
      v[k] = has_min ? __fadd_rn(__fmul_rn(c - 8388608.0F, s.scale), s.min) : (c - 8388616.0F) * s.scale;
    }
  } else if constexpr (kFormat == WeightFormat::kI8) {
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      const std::uint32_t four = (k < 4 ? codes.x : codes.y) ^ 0x80808080U;
      const float c = __uint_as_float(__byte_perm(four, 0x4b000000U, 0x7440 + k % 4)) - 8388736.0F;
      v[k] = __fadd_rn(__fmul_rn(c, s.scale), s.min);
    }
  } else if constexpr (kFormat == WeightFormat::kF8E4M3) {
#pragma unroll
    for (int k = 0; k < 8; ++k)
      v[k] = e4m3_raw((k < 4 ? codes.x : codes.y) >> (8 * (k % 4)) & 255U) * kE4m3Factor * s.scale;
  } else {
#pragma unroll
    for (int k = 0; k < 8; ++k) v[k] = nf4[(codes >> (4 * (k ^ 1)) & 15U) * 32] * s.scale;
  }
}

__device__ __forceinline__ uint4 pack8(const float (&v)[8]) {
  return {pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]), pack_bf16(v[4], v[5]), pack_bf16(v[6], v[7])};
}

// A warp a row of a matrix.
template <WeightFormat kFormat>
__global__ void __launch_bounds__(kThreads) widen_kernel(const __grid_constant__ WidenArgs a) {
  constexpr bool kNF4 = kFormat == WeightFormat::kNF4;
  constexpr bool kCodes = kFormat != WeightFormat::kF32 && kFormat != WeightFormat::kF16;
  __shared__ float nf4[kNF4 ? 16 * 32 : 1];  // a copy a lane: no two lanes meet in a bank
  pdl_launch();
  const int lane = threadIdx.x % 32;
  if constexpr (kNF4) {
    for (int i = threadIdx.x; i < 16 * 32; i += kThreads) nf4[i] = kNf4[i / 32];
    __syncthreads();
  }
  pdl_wait();
  const MatShape& m = a.job.shape;
  const MatPtr at = a.job.at[blockIdx.y];
  const int row = blockIdx.x * kWarps + threadIdx.x / 32, units = m.cols / 8;
  if (row >= m.rows) return;
  const bool has_min = at.mins != nullptr;
  auto* to = static_cast<uint4*>(a.job.out) + (static_cast<std::int64_t>(blockIdx.y) * m.rows + row) * units;
  for (int u0 = lane; u0 < units; u0 += 32 * kEach) {
    if constexpr (kCodes) {
      const auto* codes = static_cast<const Codes<kFormat>*>(at.data) + static_cast<std::int64_t>(row) * units;
      const std::int64_t scales = static_cast<std::int64_t>(row / m.group_rows) * m.groups_a_row;
      Codes<kFormat> code[kEach]{};
      std::uint32_t scale[kEach]{}, min[kEach]{};
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        const int u = u0 + 32 * i;
        if (u >= units) break;
        code[i] = __ldcs(codes + u);
        const std::int64_t g = scales + (a.group_shift >= 0 ? u * 8 >> a.group_shift : u * 8 / m.group);
        scale[i] = scale_bits(at.scales, m.scale_dtype, g);
        if (has_min) min[i] = scale_bits(at.mins, m.scale_dtype, g);
      }
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        const int u = u0 + 32 * i;
        if (u >= units) break;
        float v[8];
        const Scale s{scale_value(scale[i], m.scale_dtype), has_min ? scale_value(min[i], m.scale_dtype) : 0.0F};
        decode8<kFormat>(code[i], s, has_min, nf4 + lane, v);
        to[u] = pack8(v);
      }
    } else {
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        const int u = u0 + 32 * i;
        if (u >= units) break;
        float v[8];
        weight8(m, at, row, u * 8, v);
        to[u] = pack8(v);
      }
    }
  }
}

template <WeightFormat kFormat>
void run(const Launch& l, const WidenArgs& a) {
  launch(l, widen_kernel<kFormat>, dim3(ceil_div(a.job.shape.rows, kWarps), static_cast<unsigned>(a.job.n)),
         dim3(kThreads), 0, a);
}

}  // namespace

void widen(const Launch& l, const Widen& w) {
  WidenArgs a{.job = w, .group_shift = -1};
  for (int shift = 0; shift < 30; ++shift) {
    if (w.shape.group == 1 << shift) a.group_shift = shift;
  }
  switch (w.shape.format) {
    case WeightFormat::kF32:
      return run<WeightFormat::kF32>(l, a);
    case WeightFormat::kF16:
      return run<WeightFormat::kF16>(l, a);
    case WeightFormat::kF8E4M3:
      return run<WeightFormat::kF8E4M3>(l, a);
    case WeightFormat::kI8:
      return run<WeightFormat::kI8>(l, a);
    case WeightFormat::kI4:
      return run<WeightFormat::kI4>(l, a);
    default:
      return run<WeightFormat::kNF4>(l, a);
  }
}

}  // namespace glint::cuda
