// The query side of attention in the absorbed form on Hopper, for any number of rows: [W_UKᵀ q_nope | q_pe] in BF16,
// under H where the cache is. A block has one head and kRows rows, and all of the head's W_UK in shared memory, which
// the copy engine brings while the kernel before still runs.

#include "backends/cuda/bulk.cuh"
#include "backends/cuda/mla.hpp"

namespace glint::cuda {
namespace {

constexpr int kThreads = 256, kWarps = 8, kColumns = kLatentWidth / kWarps;
// Rows in shared memory begin 16 bytes further in the banks than the row before.
constexpr int kWeightRow = kLatentWidth * 2 + 16, kQueryRow = kNopeWidth * 2 + 16;
constexpr int kParts = 4, kPartRows = kNopeWidth / kParts;  // of W_UK: products begin with the first
constexpr int kSumRow = kLatentWidth + 16;                  // floats: two rows of sixteens meet all banks
constexpr int kHadamard = kLatentWidth / 16;

struct Args {
  const char* w;  // [heads, 192 + 256, 512]
  const float* q;
  std::uint16_t* query;
  int rows, heads;
  bool rotated;
};

// Few rows: q is the sum of two BF16 numbers, hence as good as exact. More would not fit, and q is rounded.
template <int kRows>
constexpr int kTerms = kRows <= 32 ? 2 : 1;
template <int kRows>
constexpr std::size_t kBytes = kNopeWidth* kWeightRow + kTerms<kRows>* kRows* kQueryRow + 8 * kParts;

// The 32 values that H mixes, as kv_hadamard does.
__device__ __forceinline__ void hadamard(float (&v)[kHadamard]) {
#pragma unroll
  for (int d = 1; d < kHadamard; d *= 2) {
#pragma unroll
    for (int i = 0; i < kHadamard; ++i) {
      if ((i & d) != 0) continue;
      const float a = v[i], b = v[i + d];
      v[i] = a + b, v[i + d] = a - b;
    }
  }
#pragma unroll
  for (float& x : v) x = __fmul_rn(x, 0.176776695F);
}

template <int kRows>
__global__ void __launch_bounds__(kThreads, 1) query_kernel(const __grid_constant__ Args a) {
#if __CUDA_ARCH__ >= 900
  constexpr int kTiles = kRows / 16, kBytesX = kRows * kQueryRow;
  static_assert(kRows * kSumRow * 4 <= kNopeWidth * kWeightRow);
  extern __shared__ __align__(128) unsigned char smem[];
  const std::uint32_t weights = shared_address(smem), x = weights + kNopeWidth * kWeightRow;
  const std::uint32_t arrived = x + kTerms<kRows> * kBytesX;
  const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32, g = lane / 4, t = lane % 4;
  const int head = blockIdx.x, first = blockIdx.y * kRows, n = min(kRows, a.rows - first);
  if (warp == 0) {
    if (lane < kParts) barrier_init(arrived + 8 * lane, 1);
    barrier_init_fence();
    __syncwarp();
    if (lane < kParts) barrier_expect(arrived + 8 * lane, kPartRows * kLatentWidth * 2);
    __syncwarp();
    const char* from = a.w + static_cast<std::int64_t>(head) * (kNopeWidth + kQkWidth) * kLatentWidth * 2;
    for (int r = lane; r < kNopeWidth; r += 32)
      bulk_copy(weights + r * kWeightRow, from + r * kLatentWidth * 2, kLatentWidth * 2, arrived + r / kPartRows * 8);
  }
  pdl_launch();
  pdl_wait();

  for (int i = thread; i < kRows * (kQkWidth / 4); i += kThreads) {
    const int r = i / (kQkWidth / 4), column = i % (kQkWidth / 4) * 4;
    const std::int64_t pair = static_cast<std::int64_t>(first + r) * a.heads + head;
    float4 v{};
    if (r < n) v = *reinterpret_cast<const float4*>(a.q + pair * kQkWidth + column);
    const uint2 b{pack_bf16(v.x, v.y), pack_bf16(v.z, v.w)};
    if (column < kNopeWidth) {
      unsigned char* to = smem + kNopeWidth * kWeightRow + r * kQueryRow + column * 2;
      *reinterpret_cast<uint2*>(to) = b;
      if constexpr (kTerms<kRows> == 2) {
        *reinterpret_cast<uint2*>(to + kBytesX) = {pack_bf16(v.x - bf16_low(b.x), v.y - bf16_high(b.x)),
                                                   pack_bf16(v.z - bf16_low(b.y), v.w - bf16_high(b.y))};
      }
    } else if (r < n) {
      *reinterpret_cast<uint2*>(a.query + pair * kRowWidth + kLatentWidth + column - kNopeWidth) = b;
    }
  }
  __syncthreads();

  float sum[kTiles][kColumns / 8][4] = {};
  const std::uint32_t from_x = x + lane % 16 * kQueryRow + lane / 16 * 16;
  const std::uint32_t from_w = weights + lane % 16 * kWeightRow + warp * kColumns * 2 + lane / 16 * 16;
#pragma unroll 1
  for (int k = 0; k < kNopeWidth / 16; ++k) {
    if (k % (kPartRows / 16) == 0) barrier_wait(arrived + k / (kPartRows / 16) * 8, 0);
    std::uint32_t v[kTerms<kRows>][kTiles][4];
#pragma unroll
    for (int i = 0; i < kTerms<kRows>; ++i) {
#pragma unroll
      for (int m = 0; m < kTiles; ++m) ldmatrix4(v[i][m], from_x + i * kBytesX + m * 16 * kQueryRow + k * 32);
    }
#pragma unroll
    for (int j = 0; j < kColumns / 16; ++j) {
      std::uint32_t w[4];
      ldmatrix4_trans(w, from_w + k * 16 * kWeightRow + j * 32);
#pragma unroll
      for (int i = 0; i < kTerms<kRows>; ++i) {
#pragma unroll
        for (int m = 0; m < kTiles; ++m) {
          product(sum[m][2 * j], v[i][m], w[0], w[1]);
          product(sum[m][2 * j + 1], v[i][m], w[2], w[3]);
        }
      }
    }
  }
  __syncthreads();  // the sums take W_UK's place
  auto* sums = reinterpret_cast<float*>(smem);
#pragma unroll
  for (int m = 0; m < kTiles; ++m) {
#pragma unroll
    for (int j = 0; j < kColumns / 8; ++j) {
      float* to = sums + (16 * m + g) * kSumRow + warp * kColumns + 8 * j + 2 * t;
      *reinterpret_cast<float2*>(to) = {sum[m][j][0], sum[m][j][1]};
      *reinterpret_cast<float2*>(to + 8 * kSumRow) = {sum[m][j][2], sum[m][j][3]};
    }
  }
  __syncthreads();
  const auto row_of = [&](int r) {
    return a.query + (static_cast<std::int64_t>(first + r) * a.heads + head) * kRowWidth;
  };
  if (a.rotated) {
    for (int i = thread; i < n * 16; i += kThreads) {
      const float* row = sums + i / 16 * kSumRow + i % 16;
      float v[kHadamard];
#pragma unroll
      for (int k = 0; k < kHadamard; ++k) v[k] = row[16 * k];
      hadamard(v);
      auto* to = reinterpret_cast<__nv_bfloat16*>(row_of(i / 16)) + i % 16;
#pragma unroll
      for (int k = 0; k < kHadamard; ++k) to[16 * k] = __float2bfloat16_rn(v[k]);
    }
  } else {
    for (int i = thread; i < n * (kLatentWidth / 8); i += kThreads) {
      const int r = i / (kLatentWidth / 8), column = i % (kLatentWidth / 8) * 8;
      const float4 u = *reinterpret_cast<const float4*>(sums + r * kSumRow + column);
      const float4 v = *reinterpret_cast<const float4*>(sums + r * kSumRow + column + 4);
      *reinterpret_cast<uint4*>(row_of(r) + column) = {pack_bf16(u.x, u.y), pack_bf16(u.z, u.w), pack_bf16(v.x, v.y),
                                                       pack_bf16(v.z, v.w)};
    }
  }
#endif
}

template <int kRows>
void run(const Launch& l, const Args& a) {
  launch(l, query_kernel<kRows>, dim3(static_cast<unsigned>(a.heads), ceil_div(a.rows, kRows)), dim3(kThreads),
         kBytes<kRows>, a);
}

}  // namespace

bool latent_query_wide_takes(const Launch& l, const Mat& kv_b) {
  return l.smem_limit >= 227 << 10 && kv_b.shape.format == WeightFormat::kBF16;
}

void latent_query_wide(const Launch& l, const Mat& kv_b, const float* q, std::int64_t rows, int heads, bool rotated,
                       void* query) {
  if (rows == 0) return;
  const Args a{.w = static_cast<const char*>(kv_b.at.data),
               .q = q,
               .query = static_cast<std::uint16_t*>(query),
               .rows = static_cast<int>(rows),
               .heads = heads,
               .rotated = rotated};
  // The fewest rows a block with which all blocks run at once.
  const auto fits = [&](int n) {
    return ceil_div(rows, n) * static_cast<unsigned>(heads) <= static_cast<unsigned>(l.n_sms);
  };
  if (fits(16)) return run<16>(l, a);
  if (fits(32)) return run<32>(l, a);
  run<64>(l, a);
}

}  // namespace glint::cuda
