// The products of attention in the absorbed form on Hopper, for any number of rows, kv_b in BF16: W_UK before it, W_UV
// behind it. A block has a part of one head's matrix in shared memory, which the copy engine brings while the kernel
// before still runs, and some rows. Each sum is made in one order, whatever the number of rows.

#include "backends/cuda/bulk.cuh"
#include "backends/cuda/mla.hpp"

namespace glint::cuda {
namespace {

constexpr int kThreads = 256, kHeadRows = kNopeWidth + kQkWidth;
constexpr int kHadamard = kLatentWidth / 16;  // values that H mixes

// Warps share a block's rows by two where there are enough, and its columns.
template <int kRows, int kColumns>
struct WarpTiles {
  static constexpr int kRowWarps = kRows >= 32 ? 2 : 1, kColumnWarps = 8 / kRowWarps;
  static constexpr int kRowsAWarp = kRows / kRowWarps, kColumnsAWarp = kColumns / kColumnWarps;
  static constexpr int kTiles = kRowsAWarp / 16, kEights = kColumnsAWarp / 8;
};

#if __CUDA_ARCH__ >= 900
// Of all four blocks of a cluster.
__device__ __forceinline__ void sync_cluster() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}
__device__ __forceinline__ float load_of_block(std::uint32_t address, int block) {
  float v;
  asm volatile("{\n.reg .b32 there;\nmapa.shared::cluster.u32 there, %1, %2;\nld.shared::cluster.f32 %0, [there];\n}"
               : "=f"(v)
               : "r"(address), "r"(block)
               : "memory");
  return v;
}
#endif

// ---- W_UK -----------------------------------------------------------------------------------------------------------

// [W_UKᵀ q_nope | q_pe] in BF16, under H where the cache is. Four blocks share the 512 columns; q is the sum of two
// BF16 numbers, hence as good as exact.
struct Query {
  const char* w;
  const float* q;
  std::uint16_t* query;
  int rows, heads;
  bool rotated;
};
constexpr int kSplit = 4, kColumns = kLatentWidth / kSplit;
// Rows in shared memory begin 16 bytes further in the banks than the row before.
constexpr int kWeightRow = kColumns * 2 + 16, kQueryRow = kNopeWidth * 2 + 16;
constexpr int kSumRow = kColumns + 16;  // floats
template <int kRows>
constexpr std::size_t kQueryBytes = kNopeWidth* kWeightRow + 2 * kRows* kQueryRow + 8;

template <int kRows>
__global__ void __launch_bounds__(kThreads) query_kernel(const __grid_constant__ Query a) {
#if __CUDA_ARCH__ >= 900
  using W = WarpTiles<kRows, kColumns>;
  constexpr int kBytesX = kRows * kQueryRow;
  static_assert(kRows * kSumRow * 4 <= kNopeWidth * kWeightRow);
  extern __shared__ __align__(128) unsigned char smem[];
  const std::uint32_t weights = shared_address(smem), x = weights + kNopeWidth * kWeightRow, arrived = x + 2 * kBytesX;
  const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32, g = lane / 4, t = lane % 4;
  const int head = blockIdx.x / kSplit, part = blockIdx.x % kSplit;
  const int first = blockIdx.y * kRows, n = min(kRows, a.rows - first);
  if (warp == 0) {
    if (lane == 0) {
      barrier_init(arrived, 1);
      barrier_init_fence();
      barrier_expect(arrived, kNopeWidth * kColumns * 2);
    }
    __syncwarp();
    const char* from = a.w + (static_cast<std::int64_t>(head) * kHeadRows * kLatentWidth + part * kColumns) * 2;
    for (int r = lane; r < kNopeWidth; r += 32)
      bulk_copy(weights + r * kWeightRow, from + r * kLatentWidth * 2, kColumns * 2, arrived);
  }
  pdl_launch();
  pdl_wait();

  // A thread takes four neighbours of every fourth row; loads first, so that they are under way together.
  constexpr int kUnits = kQkWidth / 4, kStep = kThreads / kUnits;
  const int column = thread % kUnits * 4;
  float4 v[kRows / kStep];
#pragma unroll
  for (int i = 0; i < kRows / kStep; ++i) {
    const int r = thread / kUnits + i * kStep;
    v[i] = {};
    if (r < n)
      v[i] = *reinterpret_cast<const float4*>(a.q + (static_cast<std::int64_t>(first + r) * a.heads + head) * kQkWidth +
                                              column);
  }
#pragma unroll
  for (int i = 0; i < kRows / kStep; ++i) {
    const int r = thread / kUnits + i * kStep;
    const uint2 b{pack_bf16(v[i].x, v[i].y), pack_bf16(v[i].z, v[i].w)};
    if (column < kNopeWidth) {
      unsigned char* to = smem + kNopeWidth * kWeightRow + r * kQueryRow + column * 2;
      *reinterpret_cast<uint2*>(to) = b;
      *reinterpret_cast<uint2*>(to + kBytesX) = {pack_bf16(v[i].x - bf16_low(b.x), v[i].y - bf16_high(b.x)),
                                                 pack_bf16(v[i].z - bf16_low(b.y), v[i].w - bf16_high(b.y))};
    } else if (r < n && part == 0) {
      const std::int64_t pair = static_cast<std::int64_t>(first + r) * a.heads + head;
      *reinterpret_cast<uint2*>(a.query + pair * kRowWidth + kLatentWidth + column - kNopeWidth) = b;
    }
  }
  __syncthreads();
  barrier_wait(arrived, 0);

  const int row0 = warp / W::kColumnWarps * W::kRowsAWarp, column0 = warp % W::kColumnWarps * W::kColumnsAWarp;
  float sum[W::kTiles][W::kEights][4] = {};
  const std::uint32_t from_x = x + (row0 + lane % 16) * kQueryRow + lane / 16 * 16;
  const std::uint32_t from_w = weights + lane % 16 * kWeightRow + column0 * 2 + lane / 16 * 16;
#pragma unroll 4
  for (int k = 0; k < kNopeWidth / 16; ++k) {
    std::uint32_t x2[2][W::kTiles][4], w[W::kEights / 2][4];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int m = 0; m < W::kTiles; ++m) ldmatrix4(x2[i][m], from_x + i * kBytesX + m * 16 * kQueryRow + k * 32);
    }
#pragma unroll
    for (int j = 0; j < W::kEights / 2; ++j) ldmatrix4_trans(w[j], from_w + k * 16 * kWeightRow + j * 32);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int m = 0; m < W::kTiles; ++m) {
#pragma unroll
        for (int j = 0; j < W::kEights; ++j) product(sum[m][j], x2[i][m], w[j / 2][j % 2 * 2], w[j / 2][j % 2 * 2 + 1]);
      }
    }
  }
  __syncthreads();  // the sums take W_UK's place
  auto* sums = reinterpret_cast<float*>(smem);
#pragma unroll
  for (int m = 0; m < W::kTiles; ++m) {
#pragma unroll
    for (int j = 0; j < W::kEights; ++j) {
      float* to = sums + (row0 + 16 * m + g) * kSumRow + column0 + 8 * j + 2 * t;
      *reinterpret_cast<float2*>(to) = {sum[m][j][0], sum[m][j][1]};
      *reinterpret_cast<float2*>(to + 8 * kSumRow) = {sum[m][j][2], sum[m][j][3]};
    }
  }
  const auto row_of = [&](int r) {
    return a.query + (static_cast<std::int64_t>(first + r) * a.heads + head) * kRowWidth;
  };
  if (!a.rotated) {
    __syncthreads();
    for (int i = thread; i < n * (kColumns / 8); i += kThreads) {
      const int r = i / (kColumns / 8), column = i % (kColumns / 8) * 8;
      const float4 u = *reinterpret_cast<const float4*>(sums + r * kSumRow + column);
      const float4 v = *reinterpret_cast<const float4*>(sums + r * kSumRow + column + 4);
      *reinterpret_cast<uint4*>(row_of(r) + part * kColumns + column) = {pack_bf16(u.x, u.y), pack_bf16(u.z, u.w),
                                                                         pack_bf16(v.x, v.y), pack_bf16(v.z, v.w)};
    }
    return;
  }
  // H mixes values 16 apart, eight in each block of the cluster: a thread takes one row's.
  sync_cluster();
  for (int i = part * kThreads + thread; i < n * 16; i += kSplit * kThreads) {
    const std::uint32_t row = shared_address(sums + i / 16 * kSumRow + i % 16);
    float v[kHadamard];
#pragma unroll
    for (int k = 0; k < kHadamard; ++k) v[k] = load_of_block(row + k % 8 * 64, k / 8);
#pragma unroll
    for (int d = 1; d < kHadamard; d *= 2) {
#pragma unroll
      for (int k = 0; k < kHadamard; ++k) {
        if ((k & d) != 0) continue;
        const float p = v[k], q = v[k + d];
        v[k] = p + q, v[k + d] = p - q;
      }
    }
    auto* to = reinterpret_cast<__nv_bfloat16*>(row_of(i / 16)) + i % 16;
#pragma unroll
    for (int k = 0; k < kHadamard; ++k) to[16 * k] = __float2bfloat16_rn(__fmul_rn(v[k], 0.176776695F));
  }
  sync_cluster();  // nobody leaves while others read its sums
#endif
}

template <int kRows>
void run_query(const Launch& l, const Query& a) {
  launch_clusters(l, query_kernel<kRows>, dim3(static_cast<unsigned>(kSplit * a.heads), ceil_div(a.rows, kRows)),
                  dim3(kThreads), kQueryBytes<kRows>, kSplit, a);
}

// ---- W_UV -----------------------------------------------------------------------------------------------------------

// out[t][h] = W_UV latent[t][h]; a block has 64 of a head's 256 outputs.
struct Values {
  const char* w;
  const char* latent;  // BF16 [rows, heads, 512]
  float* out;          // [rows, heads, 256]
  int rows, heads;
};
constexpr int kOutputs = 64, kValueSplit = kQkWidth / kOutputs, kLatentRow = kLatentWidth * 2 + 16;
template <int kRows>
constexpr std::size_t kValueBytes = (kOutputs + kRows) * kLatentRow + 16;

template <int kRows>
__global__ void __launch_bounds__(kThreads) value_kernel(const __grid_constant__ Values a) {
#if __CUDA_ARCH__ >= 900
  using W = WarpTiles<kRows, kOutputs>;
  extern __shared__ __align__(128) unsigned char smem[];
  const std::uint32_t weights = shared_address(smem), x = weights + kOutputs * kLatentRow;
  const std::uint32_t arrived = x + kRows * kLatentRow;  // W_UV, then the rows
  const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32, g = lane / 4, t = lane % 4;
  const int head = blockIdx.x / kValueSplit, part = blockIdx.x % kValueSplit;
  const int first = blockIdx.y * kRows, n = min(kRows, a.rows - first);
  constexpr int kRowBytes = kLatentWidth * 2;
  if (warp == 0) {
    if (lane == 0) {
      barrier_init(arrived, 1);
      barrier_init(arrived + 8, 1);
      barrier_init_fence();
      barrier_expect(arrived, kOutputs * kRowBytes);
    }
    __syncwarp();
    const char* from = a.w + (static_cast<std::int64_t>(head) * kHeadRows + kNopeWidth + part * kOutputs) * kRowBytes;
    for (int r = lane; r < kOutputs; r += 32)
      bulk_copy(weights + r * kLatentRow, from + r * kRowBytes, kRowBytes, arrived);
  }
  pdl_launch();
  pdl_wait();
  if (warp == 0) {
    if (lane == 0) barrier_expect(arrived + 8, n * kRowBytes);
    __syncwarp();
    const char* from = a.latent + (static_cast<std::int64_t>(first) * a.heads + head) * kRowBytes;
    for (int r = lane; r < n; r += 32)
      bulk_copy(x + r * kLatentRow, from + static_cast<std::int64_t>(r) * a.heads * kRowBytes, kRowBytes, arrived + 8);
  }
  for (int i = thread; i < (kRows - n) * (kRowBytes / 16); i += kThreads)
    sts128(x + (n + i / (kRowBytes / 16)) * kLatentRow + i % (kRowBytes / 16) * 16, {});
  __syncthreads();
  barrier_wait(arrived, 0);
  barrier_wait(arrived + 8, 0);

  const int row0 = warp / W::kColumnWarps * W::kRowsAWarp, output0 = warp % W::kColumnWarps * W::kColumnsAWarp;
  float sum[2][W::kTiles][W::kEights][4] = {};  // of every second 16 of the contraction: half the waiting
  const std::uint32_t from_x = x + (row0 + lane % 16) * kLatentRow + lane / 16 * 16;
  const std::uint32_t from_w = weights + (output0 + lane % 8) * kLatentRow + lane / 8 * 16;
#pragma unroll 4
  for (int k = 0; k < kLatentWidth / 32; ++k) {
    std::uint32_t v[2][W::kTiles][4], w[W::kEights][4];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int m = 0; m < W::kTiles; ++m) ldmatrix4(v[i][m], from_x + m * 16 * kLatentRow + (2 * k + i) * 32);
    }
#pragma unroll
    for (int j = 0; j < W::kEights; ++j) ldmatrix4(w[j], from_w + j * 8 * kLatentRow + k * 64);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int m = 0; m < W::kTiles; ++m) {
#pragma unroll
        for (int j = 0; j < W::kEights; ++j) product(sum[i][m][j], v[i][m], w[j][2 * i], w[j][2 * i + 1]);
      }
    }
  }
#pragma unroll
  for (int m = 0; m < W::kTiles; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int r = row0 + 16 * m + g + 8 * half;
      if (r >= n) continue;
      float* to = a.out + (static_cast<std::int64_t>(first + r) * a.heads + head) * kQkWidth + part * kOutputs;
#pragma unroll
      for (int j = 0; j < W::kEights; ++j) {
        *reinterpret_cast<float2*>(to + output0 + 8 * j + 2 * t) = {
            sum[0][m][j][2 * half] + sum[1][m][j][2 * half], sum[0][m][j][2 * half + 1] + sum[1][m][j][2 * half + 1]};
      }
    }
  }
#endif
}

template <int kRows>
void run_values(const Launch& l, const Values& a) {
  launch(l, value_kernel<kRows>, dim3(static_cast<unsigned>(kValueSplit * a.heads), ceil_div(a.rows, kRows)),
         dim3(kThreads), kValueBytes<kRows>, a);
}

// Rows a block: the fewest of 16, 32 and 64 with which no multiprocessor has more than two.
int rows_a_block(const Launch& l, std::int64_t rows, int blocks_a_tile) {
  for (const int n : {16, 32}) {
    if (static_cast<std::int64_t>(ceil_div(rows, n)) * blocks_a_tile <= 2 * l.n_sms) return n;
  }
  return 64;
}

}  // namespace

bool latent_products_take(const Launch& l, const Mat& kv_b) {
  return l.clusters && l.smem_limit >= 227 << 10 && kv_b.shape.format == WeightFormat::kBF16;
}

void latent_queries(const Launch& l, const Mat& kv_b, const float* q, std::int64_t rows, int heads, bool rotated,
                    void* query) {
  if (rows == 0) return;
  const Query a{.w = static_cast<const char*>(kv_b.at.data),
                .q = q,
                .query = static_cast<std::uint16_t*>(query),
                .rows = static_cast<int>(rows),
                .heads = heads,
                .rotated = rotated};
  const int n = rows_a_block(l, rows, kSplit * heads);
  n == 16 ? run_query<16>(l, a) : n == 32 ? run_query<32>(l, a) : run_query<64>(l, a);
}

void latent_values(const Launch& l, const Mat& kv_b, const void* latent, std::int64_t rows, int heads, float* out) {
  if (rows == 0) return;
  const Values a{.w = static_cast<const char*>(kv_b.at.data),
                 .latent = static_cast<const char*>(latent),
                 .out = out,
                 .rows = static_cast<int>(rows),
                 .heads = heads};
  const int n = rows_a_block(l, rows, kValueSplit * heads);
  n == 16 ? run_values<16>(l, a) : n == 32 ? run_values<32>(l, a) : run_values<64>(l, a);
}

}  // namespace glint::cuda
