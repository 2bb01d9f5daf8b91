// Rows into the paged cache, in each codec, and H over rows of latents.

#include "backends/cuda/kv_encode.cuh"

namespace glint::cuda {
namespace {

constexpr int kPlainThreads = 192;
constexpr int kWarps = 4;  // of the short codecs: a warp a row

struct Target {
  const float* kv;
  const std::int32_t* slots;
  unsigned char* base;
  std::int64_t page_stride;
};

__global__ void append_plain_kernel(const __grid_constant__ Target a, bool f32) {
  pdl_launch();
  pdl_wait();
  const std::int32_t slot = a.slots[blockIdx.x];
  if (slot < 0) return;
  const float* from = a.kv + static_cast<std::int64_t>(blockIdx.x) * kRowWidth;
  unsigned char* to = a.base + slot / kPageRows * a.page_stride + slot % kPageRows * (f32 ? 4LL : 2LL) * kRowWidth;
  for (int i = threadIdx.x; i < kRowWidth; i += blockDim.x) {
    if (f32) {
      reinterpret_cast<float*>(to)[i] = from[i];
    } else {
      reinterpret_cast<__nv_bfloat16*>(to)[i] = __float2bfloat16_rn(from[i]);
    }
  }
}

template <KvCodec kCodec>
__global__ void __launch_bounds__(32 * kWarps) append_short_kernel(const __grid_constant__ Target a, int rows) {
  pdl_launch();
  pdl_wait();
  const int row = static_cast<int>(blockIdx.x) * kWarps + static_cast<int>(threadIdx.x) / 32, lane = threadIdx.x % 32;
  if (row >= rows) return;
  const std::int32_t slot = a.slots[row];
  if (slot < 0) return;
  const float* from = a.kv + static_cast<std::int64_t>(row) * kRowWidth;
  unsigned char* to = a.base + slot / kPageRows * a.page_stride + slot % kPageRows * kCacheRowBytes<kCodec>;
  encode_row<kCodec>(from, to, lane);
}

// A warp a row: the first 512 of `stride` BF16 values.
__global__ void __launch_bounds__(32 * kWarps) hadamard_kernel(uint4* rows, std::int64_t n, int stride_units) {
  pdl_launch();
  pdl_wait();
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (row < n) hadamard_bf16(rows + row * stride_units, threadIdx.x % 32);
}

}  // namespace

void append(const Launch& l, const float* kv, const std::int32_t* slots, void* base, std::int64_t page_stride,
            KvCodec codec, std::int64_t rows) {
  if (rows == 0) return;
  const Target a{kv, slots, static_cast<unsigned char*>(base), page_stride};
  if (!is_short(codec)) {
    launch(l, append_plain_kernel, dim3(static_cast<unsigned>(rows)), dim3(kPlainThreads), 0, a,
           codec == KvCodec::kF32);
    return;
  }
  const dim3 grid(ceil_div(rows, kWarps)), block(32 * kWarps);
  const auto n = static_cast<int>(rows);
  if (codec == KvCodec::kFp8) launch(l, append_short_kernel<KvCodec::kFp8>, grid, block, 0, a, n);
  if (codec == KvCodec::kInt8) launch(l, append_short_kernel<KvCodec::kInt8>, grid, block, 0, a, n);
  if (codec == KvCodec::kInt4) launch(l, append_short_kernel<KvCodec::kInt4>, grid, block, 0, a, n);
}

void hadamard_rows(const Launch& l, void* rows_bf16, std::int64_t n, std::int64_t stride) {
  if (n == 0) return;
  launch(l, hadamard_kernel, dim3(ceil_div(n, kWarps)), dim3(32 * kWarps), 0, static_cast<uint4*>(rows_bf16), n,
         static_cast<int>(stride / 8));
}

}  // namespace glint::cuda
