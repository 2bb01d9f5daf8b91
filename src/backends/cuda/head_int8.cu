// The head of one to four rows, INT8 with a scale a row: by far the longest matrix, read once a token. Codes are
// multiplied as they are (m16n8k32), x as a scale a row and 16 bits in two signed bytes, each a column of the product,
// so that sums are exact integers over the whole contraction. A warp streams tiles of sixteen rows by itself: nothing
// to wait for.

#include "backends/cuda/common.cuh"

namespace glint::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kDepth = 8;  // chunks on their way: 64 columns of sixteen rows each
constexpr int kChunkCols = 64;
constexpr int kRowsMost = 4;  // of x: two of the product's eight columns each
constexpr float kLargest = 127 * 256;

struct Head {
  const unsigned char* codes;
  const void* scales;
  DType scale_dtype;
  int rows, cols;  // of the matrix
  Act x;
  int n;  // rows of x
  float* out;
  std::int64_t out_stride, valid;
};

// Bytes between columns of x in shared memory: neighbours begin half of the banks apart.
__host__ __device__ constexpr int column_bytes(int cols) { return cols + 64; }

// Row `row` of x as two columns of bytes, x ≈ scale · (256 high + low). By all threads; returns the scale.
__device__ float stage_row(const Head& h, int row, signed char* high, signed char* low, unsigned* shared) {
  unsigned bits = 0;  // of magnitudes: a NaN is the largest, and makes the scale one
  for (int i = threadIdx.x; i < h.cols; i += kThreads)
    bits = max(bits, __float_as_uint(act_at(h.x, row, i)) & 0x7fffffffU);
  bits = __reduce_max_sync(0xffffffffU, bits);
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = bits;
  __syncthreads();
  bits = 0;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) bits = max(bits, shared[w]);
  const float most = __uint_as_float(bits);
  const float inverse = most > 0 ? kLargest / most : 0.0F;
  for (int i = threadIdx.x; i < h.cols; i += kThreads) {
    const int v = __float2int_rn(act_at(h.x, row, i) * inverse), up = (v + 128) >> 8;
    high[i] = static_cast<signed char>(up);
    low[i] = static_cast<signed char>(v - 256 * up);
  }
  __syncthreads();  // `shared` is free again
  return most / kLargest;
}

__device__ __forceinline__ void product_of_bytes(int (&c)[4], std::uint32_t a0, std::uint32_t a1, std::uint32_t a2,
                                                 std::uint32_t a3, std::uint32_t b0, std::uint32_t b1) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

__global__ void __launch_bounds__(kThreads, 2) head_int8_kernel(const __grid_constant__ Head h) {
  extern __shared__ __align__(16) signed char columns[];
  __shared__ unsigned shared[kWarps];
  __shared__ float x_scale[kRowsMost];
  pdl_launch();
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const std::int64_t warps = static_cast<std::int64_t>(gridDim.x) * kWarps,
                     warp = static_cast<std::int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  const int tiles = h.rows / 16, first = static_cast<int>(tiles * warp / warps),
            end = static_cast<int>(tiles * (warp + 1) / warps);

  // Chunks of all the warp's tiles in a row. A lane takes 16 bytes of rows g and g + 8.
  const std::int64_t eight = std::int64_t{8} * h.cols;
  const unsigned char* next = h.codes + (static_cast<std::int64_t>(first) * 16 + g) * h.cols + t * 16;
  const int chunks = h.cols / kChunkCols;
  int left = (end - first) * chunks, in_tile = 0;
  uint4 slot[kDepth][2];
  const auto load = [&](uint4(&to)[2]) {
    if (left <= 0) return;
    to[0] = load_stream(next);
    to[1] = load_stream(next + eight);
    --left;
    next += kChunkCols;
    if (++in_tile == chunks) in_tile = 0, next += 15 * static_cast<std::int64_t>(h.cols);
  };
#pragma unroll
  for (int i = 0; i < kDepth; ++i) slot[i][0] = slot[i][1] = {};
#pragma unroll
  for (int i = 0; i < kDepth; ++i) load(slot[i]);

  pdl_wait();
  const int stride = column_bytes(h.cols);
  for (int n = 0; n < h.n; ++n) {
    const float scale = stage_row(h, n, columns + 2 * n * stride, columns + (2 * n + 1) * stride, shared);
    if (threadIdx.x == 0) x_scale[n] = scale;
  }
  __syncthreads();

  const std::uint32_t x = shared_address(columns) + static_cast<std::uint32_t>(min(g, 2 * h.n - 1) * stride + t * 16);
  for (int tile = first; tile < end; ++tile) {
    const int row = tile * 16 + g;
    const std::uint32_t bits[2] = {scale_bits(h.scales, h.scale_dtype, row),
                                   scale_bits(h.scales, h.scale_dtype, row + 8)};
    int sum[2][4] = {};
    for (int chunk = 0; chunk < chunks; chunk += kDepth) {
#pragma unroll
      for (int i = 0; i < kDepth; ++i) {
        const uint4 a = slot[i][0], b = slot[i][1],
                    v = lds128(x + static_cast<std::uint32_t>((chunk + i) * kChunkCols));
        load(slot[i]);
        product_of_bytes(sum[0], a.x, b.x, a.y, b.y, v.x, v.y);
        product_of_bytes(sum[1], a.z, b.z, a.w, b.w, v.z, v.w);
      }
    }
    if (t >= h.n) continue;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float high = static_cast<float>(sum[0][2 * r] + sum[1][2 * r]),
                  low = static_cast<float>(sum[0][2 * r + 1] + sum[1][2 * r + 1]);
      const float y = fmaf(256.0F, high, low) * x_scale[t] * scale_value(bits[r], h.scale_dtype);
      h.out[t * h.out_stride + row + 8 * r] = row + 8 * r < h.valid ? y : -INFINITY;
    }
  }
}

}  // namespace

// Only of matrices that give every warp a tile of its own.
bool head_int8_fits(const Launch& l, const SkinnyDense& d) {
  const MatShape& m = d.shape[0];
  return d.n_mats == 1 && d.epilogue == Epilogue::kStore && d.rows <= kRowsMost && m.format == WeightFormat::kI8 &&
         d.at[0].mins == nullptr && m.group >= m.cols && m.group_rows == 1 && m.cols % (kDepth * kChunkCols) == 0 &&
         m.rows % 16 == 0 && m.rows >= 16 * kWarps * l.n_sms &&
         reinterpret_cast<std::uintptr_t>(d.at[0].data) % 16 == 0 &&
         2 * kRowsMost * column_bytes(m.cols) <= l.smem_limit / 2 - 1024;
}

void head_int8(const Launch& l, const SkinnyDense& d) {
  const MatShape& m = d.shape[0];
  const Head h{.codes = static_cast<const unsigned char*>(d.at[0].data),
               .scales = d.at[0].scales,
               .scale_dtype = m.scale_dtype,
               .rows = m.rows,
               .cols = m.cols,
               .x = d.x,
               .n = static_cast<int>(d.rows),
               .out = d.out[0],
               .out_stride = d.out_stride[0],
               .valid = d.valid > 0 ? d.valid : m.rows};
  const unsigned blocks = std::min(2 * static_cast<unsigned>(l.n_sms), ceil_div(m.rows, 16 * kWarps));
  launch(l, head_int8_kernel, dim3(blocks), dim3(kThreads), static_cast<std::size_t>(2 * h.n * column_bytes(m.cols)),
         h);
}

}  // namespace glint::cuda
