// The query side of attention in the absorbed form: [W_UKᵀ q_nope | q_pe] in BF16.

#include "backends/cuda/common.cuh"
#include "backends/cuda/mla.hpp"

namespace glint::cuda {
namespace {

constexpr int kQueryRows = 4;

// Block (head, 128 columns of the latent, four rows): 16 threads of eight columns, 16 groups of twelve rows of W_UK.
// The weights are loaded before the query is waited for.
__global__ void __launch_bounds__(256)
    latent_query_kernel(MatShape m, MatPtr w, const float* q, int rows, int heads, std::uint16_t* query) {
  constexpr int kPart = 12;
  __shared__ float nope[kQueryRows][kNopeWidth];
  __shared__ float part[16][kQueryRows][128];
  pdl_launch();
  const int head = blockIdx.x, column = blockIdx.y * 128, first = blockIdx.z * kQueryRows;
  const int c = threadIdx.x % 16, rg = threadIdx.x / 16, n = min(kQueryRows, rows - first);
  uint4 packed[kPart];
#pragma unroll
  for (int i = 0; i < kPart; ++i) {
    float v[8];
    weight8(m, w, head * (kNopeWidth + kQkWidth) + rg * kPart + i, column + c * 8, v);
    packed[i] = {pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]), pack_bf16(v[4], v[5]), pack_bf16(v[6], v[7])};
  }
  pdl_wait();
  for (int i = threadIdx.x; i < kQueryRows * kNopeWidth; i += 256) {
    const int r = i / kNopeWidth, k = i % kNopeWidth;
    nope[r][k] = r < n ? q[(static_cast<std::int64_t>(first + r) * heads + head) * kQkWidth + k] : 0.0F;
  }
  __syncthreads();
  float sum[kQueryRows][8] = {};
#pragma unroll
  for (int i = 0; i < kPart; ++i) {
    const std::uint32_t u[4] = {packed[i].x, packed[i].y, packed[i].z, packed[i].w};
#pragma unroll
    for (int r = 0; r < kQueryRows; ++r) {
      const float x = nope[r][rg * kPart + i];
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        sum[r][2 * k] = fmaf(x, bf16_low(u[k]), sum[r][2 * k]);
        sum[r][2 * k + 1] = fmaf(x, bf16_high(u[k]), sum[r][2 * k + 1]);
      }
    }
  }
#pragma unroll
  for (int r = 0; r < kQueryRows; ++r) {
#pragma unroll
    for (int k = 0; k < 8; ++k) part[rg][r][c * 8 + k] = sum[r][k];
  }
  __syncthreads();
  for (int i = threadIdx.x; i < n * 128; i += 256) {
    float v = 0;
#pragma unroll
    for (int k = 0; k < 16; ++k) v += part[k][i / 128][i % 128];
    const __nv_bfloat16 b = __float2bfloat16_rn(v);
    query[(static_cast<std::int64_t>(first + i / 128) * heads + head) * kRowWidth + column + i % 128] =
        *reinterpret_cast<const std::uint16_t*>(&b);
  }
  if (blockIdx.y == 0) {
    for (int i = threadIdx.x; i < n * 32; i += 256) {
      const std::int64_t pair = static_cast<std::int64_t>(first + i / 32) * heads + head;
      const float* from = q + pair * kQkWidth + kNopeWidth + 2 * (i % 32);
      reinterpret_cast<std::uint32_t*>(query + pair * kRowWidth + kLatentWidth)[i % 32] = pack_bf16(from[0], from[1]);
    }
  }
}

// Block a pair of (row, head): 96 + 32 threads of two values.
__global__ void split_query_kernel(const float* q, std::uint32_t* nope, std::uint32_t* query) {
  pdl_launch();
  pdl_wait();
  const std::int64_t pair = blockIdx.x;
  const float2 v = reinterpret_cast<const float2*>(q + pair * kQkWidth)[threadIdx.x];
  const std::uint32_t b = pack_bf16(v.x, v.y);
  if (threadIdx.x < kNopeWidth / 2) {
    nope[pair * (kNopeWidth / 2) + threadIdx.x] = b;
  } else {
    query[pair * (kRowWidth / 2) + kLatentWidth / 2 + threadIdx.x - kNopeWidth / 2] = b;
  }
}

}  // namespace

void latent_query(const Launch& l, const Mat& kv_b, const float* q, std::int64_t rows, int heads, void* query) {
  if (rows == 0) return;
  launch(l, latent_query_kernel, dim3(static_cast<unsigned>(heads), kLatentWidth / 128, ceil_div(rows, kQueryRows)),
         dim3(256), 0, kv_b.shape, kv_b.at, q, static_cast<int>(rows), heads, static_cast<std::uint16_t*>(query));
}

void split_query(const Launch& l, const float* q, std::int64_t rows, int heads, void* nope, void* query) {
  if (rows == 0) return;
  launch(l, split_query_kernel, dim3(static_cast<unsigned>(rows * heads)), dim3(128), 0, q,
         static_cast<std::uint32_t*>(nope), static_cast<std::uint32_t*>(query));
}

}  // namespace glint::cuda
