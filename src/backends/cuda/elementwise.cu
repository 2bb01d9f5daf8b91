// Ops that only move rows or work element by element.

#include "backends/cuda/common.cuh"
#include "backends/cuda/wide_order.cuh"

namespace glint::cuda {
namespace {

constexpr int kThreads = 256;

__global__ void embed_kernel(MatShape m, MatPtr at, const std::int32_t* ids, float* out) {
  pdl_launch();
  pdl_wait();
  const std::int64_t row = ids[blockIdx.x];
  float* to = out + static_cast<std::int64_t>(blockIdx.x) * m.cols;
  for (int c = threadIdx.x; c < m.cols; c += blockDim.x) to[c] = weight_at(m, at, row, c);
}

// One block a row. hidden and out may be the same row: each thread reads its own elements only.
__global__ void rms_norm_kernel(float* hidden, const float* delta, const float* weight, float eps, float* out, int n) {
  __shared__ float shared[33];
  pdl_launch();
  pdl_wait();
  const std::int64_t base = static_cast<std::int64_t>(blockIdx.x) * n;
  float sum = 0;
  for (int i = threadIdx.x; i < n; i += kThreads) {
    float v = hidden[base + i];
    if (delta != nullptr) {
      v += delta[base + i];
      hidden[base + i] = v;
    }
    sum += v * v;
  }
  if (out == nullptr) return;
  const float factor = 1.0F / sqrtf(block_sum(sum, shared) / static_cast<float>(n) + eps);
  for (int i = threadIdx.x; i < n; i += kThreads) out[base + i] = hidden[base + i] * factor * weight[i];
}

// The same for rows of whole float4s that fit the block's registers: one pass over memory.
template <int kVectors>
__global__ void rms_norm_vector_kernel(float4* hidden, const float4* delta, const float4* weight, float eps,
                                       float4* out, int n4) {
  __shared__ float shared[33];
  pdl_launch();
  float4 w[kVectors], v[kVectors];
#pragma unroll
  for (int k = 0; k < kVectors; ++k) {
    const int i = threadIdx.x + k * kThreads;
    w[k] = out != nullptr && i < n4 ? __ldg(weight + i) : float4{};
  }
  pdl_wait();
  const std::int64_t base = static_cast<std::int64_t>(blockIdx.x) * n4;
  float sum = 0;
#pragma unroll
  for (int k = 0; k < kVectors; ++k) {
    const int i = threadIdx.x + k * kThreads;
    if (i >= n4) break;
    v[k] = hidden[base + i];
    if (delta != nullptr) {
      const float4 d = delta[base + i];
      v[k].x += d.x, v[k].y += d.y, v[k].z += d.z, v[k].w += d.w;
      hidden[base + i] = v[k];
    }
    sum += v[k].x * v[k].x + v[k].y * v[k].y + v[k].z * v[k].z + v[k].w * v[k].w;
  }
  if (out == nullptr) return;
  const float factor = 1.0F / sqrtf(block_sum(sum, shared) / static_cast<float>(4 * n4) + eps);
#pragma unroll
  for (int k = 0; k < kVectors; ++k) {
    const int i = threadIdx.x + k * kThreads;
    if (i >= n4) break;
    out[base + i] = {v[k].x * factor * w[k].x, v[k].y * factor * w[k].y, v[k].z * factor * w[k].z,
                     v[k].w * factor * w[k].w};
  }
}

// Block (row, part).
__global__ void norm_pair_kernel(const __grid_constant__ NormPart a, const __grid_constant__ NormPart b, float eps,
                                 const __grid_constant__ RopeJob rope) {
  __shared__ float shared[33];
  pdl_launch();
  pdl_wait();
  const NormPart& p = blockIdx.y == 0 ? a : b;
  const std::int64_t row = blockIdx.x;
  const float* x = p.x + row * p.x_stride;
  const int n = static_cast<int>(p.n);
  float sum = 0;
  for (int i = threadIdx.x; i < n; i += kThreads) sum += x[i] * x[i];
  const float factor = 1.0F / sqrtf(block_sum(sum, shared) / static_cast<float>(n) + eps);
  const std::int64_t to = row * p.out_stride;
  for (int i = threadIdx.x; i < n; i += kThreads) {
    const float v = x[i] * factor * p.weight[i];
    if (p.out_bf16) {
      static_cast<__nv_bfloat16*>(p.out)[to + wide_place(p.order, i)] = __float2bfloat16_rn(v);
    } else {
      static_cast<float*>(p.out)[to + i] = v;
    }
  }
  if (p.rope_tail && threadIdx.x < 32) {  // F32 only; the pair is read and written by one thread
    const int i = threadIdx.x;
    float c, s;
    rope_angle(rope.frequencies.revolutions[i], rope.positions[row], &c, &s);
    if (rope.angles != nullptr) rope.angles[row * (kRowWidth - kLatentWidth) / 2 + i] = {c, s};
    const float u = x[n + 2 * i], v = x[n + 2 * i + 1];
    static_cast<float*>(p.out)[to + n + 2 * i] = u * c - v * s;
    static_cast<float*>(p.out)[to + n + 2 * i + 1] = u * s + v * c;
  }
}

// One thread a pair: block y is the row.
__global__ void rope_heads_kernel(float* q, int heads, const __grid_constant__ RopeJob rope) {
  pdl_launch();
  pdl_wait();
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= heads * 32) return;
  const int pair = i % 32;
  const std::int64_t row = blockIdx.y;
  auto* at = reinterpret_cast<float2*>(q + (row * heads + i / 32) * kQkWidth + kNopeWidth) + pair;
  float c, s;
  rope_angle(rope.frequencies.revolutions[pair], rope.positions[row], &c, &s);
  const float2 v = *at;
  *at = {v.x * c - v.y * s, v.x * s + v.y * c};
}

__global__ void pack_kernel(const __grid_constant__ Act x, std::uint32_t* out, int pairs) {
  pdl_launch();
  pdl_wait();
  const std::int64_t row = x.rows_index != nullptr ? x.rows_index[blockIdx.x] : blockIdx.x;
  std::uint32_t* to = out + static_cast<std::int64_t>(blockIdx.x) * pairs;
  if (x.bf16) {
    const auto* from =
        reinterpret_cast<const std::uint32_t*>(static_cast<const std::uint16_t*>(x.data) + row * x.stride);
    for (int i = threadIdx.x; i < pairs; i += blockDim.x) to[i] = from[i];
  } else {
    const auto* from = reinterpret_cast<const float2*>(static_cast<const float*>(x.data) + row * x.stride);
    for (int i = threadIdx.x; i < pairs; i += blockDim.x) to[i] = pack_bf16(from[i].x, from[i].y);
  }
}

__global__ void silu_mul_kernel(const float* gate, const float* up, __nv_bfloat16* out, std::int64_t n) {
  pdl_launch();
  pdl_wait();
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < n) out[i] = __float2bfloat16_rn(silu(gate[i]) * up[i]);
}

__device__ std::uint64_t mix(std::uint64_t x) {  // splitmix64, as in synthetic.cpp
  x += 0x9e3779b97f4a7c15ULL;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
  return x ^ (x >> 31);
}

constexpr int kPiece = 64;

// A warp a piece: lane i moves values i and i + 32.
template <typename Bits>
__global__ void fill_kernel(Bits* dst, std::int64_t n, const Bits* pool, std::int64_t pool_n, std::uint64_t stream_id) {
  pdl_launch();
  pdl_wait();
  constexpr Bits kSign = static_cast<Bits>(Bits{1} << (8 * sizeof(Bits) - 1));
  const std::int64_t warps = static_cast<std::int64_t>(gridDim.x) * (blockDim.x / 32);
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32;
  for (std::int64_t piece = first; piece * kPiece < n; piece += warps) {
    const std::int64_t i = piece * kPiece;
    const std::uint64_t h = mix(stream_id + static_cast<std::uint64_t>(i));
    const Bits* from = pool + h % static_cast<std::uint64_t>(pool_n - kPiece);
    const Bits flip = (h >> 63) != 0 ? kSign : Bits{0};
    for (std::int64_t j = threadIdx.x % 32; j < kPiece && i + j < n; j += 32)
      dst[i + j] = static_cast<Bits>(from[j] ^ flip);
  }
}

}  // namespace

cudaError_t probe_code() {
  cudaFuncAttributes attributes{};
  return cudaFuncGetAttributes(&attributes, embed_kernel);
}

void embed(const Launch& l, const Mat& table, const std::int32_t* ids, float* out, std::int64_t rows) {
  if (rows == 0) return;
  launch(l, embed_kernel, dim3(static_cast<unsigned>(rows)), dim3(kThreads), 0, table.shape, table.at, ids, out);
}

void rms_norm(const Launch& l, float* hidden, const float* delta, const float* weight, float eps, float* out,
              std::int64_t rows, std::int64_t n) {
  if (rows == 0) return;
  const dim3 grid(static_cast<unsigned>(rows)), block(kThreads);
  const auto aligned = [](const void* p) { return reinterpret_cast<std::uintptr_t>(p) % 16 == 0; };
  constexpr int kVectors = 4;
  if (n % 4 == 0 && n <= kVectors * 4 * kThreads && aligned(hidden) && aligned(delta) && aligned(weight) &&
      aligned(out)) {
    const auto n4 = static_cast<int>(n / 4);
    auto* h = reinterpret_cast<float4*>(hidden);
    const auto* d = reinterpret_cast<const float4*>(delta);
    const auto* w = reinterpret_cast<const float4*>(weight);
    auto* o = reinterpret_cast<float4*>(out);
    if (n4 <= 2 * kThreads) {
      launch(l, rms_norm_vector_kernel<2>, grid, block, 0, h, d, w, eps, o, n4);
    } else {
      launch(l, rms_norm_vector_kernel<kVectors>, grid, block, 0, h, d, w, eps, o, n4);
    }
    return;
  }
  launch(l, rms_norm_kernel, grid, block, 0, hidden, delta, weight, eps, out, static_cast<int>(n));
}

void norm_pair(const Launch& l, const NormPart& a, const NormPart& b, float eps, const RopeJob& rope,
               std::int64_t rows) {
  if (rows == 0) return;
  launch(l, norm_pair_kernel, dim3(static_cast<unsigned>(rows), 2), dim3(kThreads), 0, a, b, eps, rope);
}

void rope_heads(const Launch& l, float* q, std::int64_t rows, std::int64_t heads, const RopeJob& rope) {
  for (std::int64_t r = 0; r < rows; r += kMaxGridY) {  // grids are narrow in y
    RopeJob part = rope;
    part.positions += r;
    launch(l, rope_heads_kernel,
           dim3(ceil_div(heads * 32, kThreads), static_cast<unsigned>(std::min(rows - r, kMaxGridY))), dim3(kThreads),
           0, q + r * heads * kQkWidth, static_cast<int>(heads), part);
  }
}

void pack(const Launch& l, const Act& x, void* out, std::int64_t rows, std::int64_t n) {
  if (rows == 0) return;
  launch(l, pack_kernel, dim3(static_cast<unsigned>(rows)), dim3(kThreads), 0, x, static_cast<std::uint32_t*>(out),
         static_cast<int>(n / 2));
}

void silu_mul(const Launch& l, const float* gate, const float* up, void* out_bf16, std::int64_t n) {
  if (n == 0) return;
  launch(l, silu_mul_kernel, dim3(ceil_div(n, kThreads)), dim3(kThreads), 0, gate, up,
         static_cast<__nv_bfloat16*>(out_bf16), n);
}

void fill_from_pool(const Launch& l, void* dst, std::int64_t n, const void* pool, std::int64_t pool_n, int bytes,
                    std::uint64_t stream_id) {
  if (n == 0) return;
  const dim3 grid(static_cast<unsigned>(std::min<std::int64_t>(ceil_div(n, kPiece * 8), 16 * l.n_sms)));
  if (bytes == 2) {
    launch(l, fill_kernel<std::uint16_t>, grid, dim3(kThreads), 0, static_cast<std::uint16_t*>(dst), n,
           static_cast<const std::uint16_t*>(pool), pool_n, stream_id);
  } else {
    launch(l, fill_kernel<std::uint32_t>, grid, dim3(kThreads), 0, static_cast<std::uint32_t*>(dst), n,
           static_cast<const std::uint32_t*>(pool), pool_n, stream_id);
  }
}

}  // namespace glint::cuda
