// The head of one to four rows, INT8 with a scale a row: by far the longest matrix, read once a token. Codes are
// multiplied as they are (m16n8k32), x as a scale a row and 16 bits in two signed bytes, each a column of the product,
// so that sums are exact integers, which may be added in any order: each of a block's eight warps takes a part of every
// row.

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

// kPart: chunks of a row that are a warp's.
template <int kPart>
__global__ void __launch_bounds__(kThreads, 2) head_int8_kernel(const __grid_constant__ Head h) {
  constexpr int kTiles = kDepth / kPart;  // on their way
  extern __shared__ __align__(16) signed char columns[];
  __shared__ unsigned shared[kWarps];
  __shared__ float x_scale[kRowsMost];
  pdl_launch();
  const int tid = threadIdx.x, lane = tid % 32, warp = tid / 32, g = lane / 4, t = lane % 4;
  const std::int64_t tiles = h.rows / 16;
  const int first = static_cast<int>(tiles * blockIdx.x / gridDim.x),
            end = static_cast<int>(tiles * (blockIdx.x + 1) / gridDim.x);

  // A lane takes 16 bytes of rows g and g + 8 of each chunk; a block's warps read whole rows together.
  const std::int64_t eight = std::int64_t{8} * h.cols;
  const unsigned char* codes = h.codes + static_cast<std::int64_t>(g) * h.cols + warp * (kPart * kChunkCols) + t * 16;
  uint4 slot[kDepth][2];
  const auto load = [&](int i, int tile) {
    if (tile >= end) return;
    const unsigned char* from = codes + tile * (2 * eight) + i % kPart * kChunkCols;
    slot[i][0] = load_stream(from);
    slot[i][1] = load_stream(from + eight);
  };
#pragma unroll
  for (int i = 0; i < kDepth; ++i) {
    slot[i][0] = slot[i][1] = {};
    load(i, first + i / kPart);
  }

  pdl_wait();
  const int stride = column_bytes(h.cols), n = h.n;
  for (int i = 0; i < n; ++i) {
    const float scale = stage_row(h, i, columns + 2 * i * stride, columns + (2 * i + 1) * stride, shared);
    if (tid == 0) x_scale[i] = scale;
  }
  __syncthreads();

  // Sums of a warp: [two turns][warp][tile][16 rows][n], high and low.
  auto* sums = reinterpret_cast<int2*>(columns + 2 * n * stride);
  const int warp_sums = kTiles * 16 * n;
  const std::uint32_t x = shared_address(columns) +
                          static_cast<std::uint32_t>(min(g, 2 * n - 1) * stride + warp * (kPart * kChunkCols) + t * 16);
  for (int tile = first, turn = 0; tile < end; tile += kTiles, turn ^= 1) {
    int2* mine = sums + (turn * kWarps + warp) * warp_sums;
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
      int sum[2][4] = {};
#pragma unroll
      for (int c = 0; c < kPart; ++c) {
        const int i = j * kPart + c;
        const uint4 a = slot[i][0], b = slot[i][1], v = lds128(x + static_cast<std::uint32_t>(c * kChunkCols));
        load(i, tile + kTiles + j);
        integer_product(sum[0], {a.x, b.x, a.y, b.y}, v.x, v.y);
        integer_product(sum[1], {a.z, b.z, a.w, b.w}, v.z, v.w);
      }
      if (t < n) {
        mine[(j * 16 + g) * n + t] = {sum[0][0] + sum[1][0], sum[0][1] + sum[1][1]};
        mine[(j * 16 + g + 8) * n + t] = {sum[0][2] + sum[1][2], sum[0][3] + sum[1][3]};
      }
    }
    __syncthreads();  // who writes these sums again has passed the next one
    for (int i = tid; i < warp_sums; i += kThreads) {
      const int at = i % n, row = tile * 16 + i / n;
      if (row >= end * 16) continue;
      int high = 0, low = 0;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) {
        const int2 v = sums[(turn * kWarps + w) * warp_sums + i];
        high += v.x, low += v.y;
      }
      const float y = fmaf(256.0F, static_cast<float>(high), static_cast<float>(low)) * x_scale[at] *
                      scale_value(scale_bits(h.scales, h.scale_dtype, row), h.scale_dtype);
      h.out[at * h.out_stride + row] = row < h.valid ? y : -INFINITY;
    }
  }
}

bool is_part(int cols) {
  const int part = cols / (kWarps * kChunkCols);
  return cols % (kWarps * kChunkCols) == 0 && (part == 1 || part == 2 || part == 4 || part == 8);
}
int sum_bytes(int part, int n) { return 2 * kWarps * (kDepth / part) * 16 * n * static_cast<int>(sizeof(int2)); }
int shared_bytes(int cols, int n) { return 2 * n * column_bytes(cols) + sum_bytes(cols / (kWarps * kChunkCols), n); }

}  // namespace

// Only of long matrices, and of rows that eight warps share in powers of two.
bool head_int8_fits(const Launch& l, const SkinnyDense& d) {
  const MatShape& m = d.shape[0];
  return d.n_mats == 1 && d.epilogue == Epilogue::kStore && d.rows <= kRowsMost && m.format == WeightFormat::kI8 &&
         d.at[0].mins == nullptr && m.group >= m.cols && m.group_rows == 1 && is_part(m.cols) && m.rows % 16 == 0 &&
         m.rows >= 16 * kWarps * l.n_sms && reinterpret_cast<std::uintptr_t>(d.at[0].data) % 16 == 0 &&
         shared_bytes(m.cols, kRowsMost) <= l.smem_limit / 2 - 1024;
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
  const unsigned blocks = std::min(2 * static_cast<unsigned>(l.n_sms), ceil_div(m.rows, 16));
  const auto run = [&](auto kernel) {
    launch(l, kernel, dim3(blocks), dim3(kThreads), static_cast<std::size_t>(shared_bytes(m.cols, h.n)), h);
  };
  switch (m.cols / (kWarps * kChunkCols)) {
    case 1:
      return run(head_int8_kernel<1>);
    case 2:
      return run(head_int8_kernel<2>);
    case 4:
      return run(head_int8_kernel<4>);
    default:
      return run(head_int8_kernel<8>);
  }
}

}  // namespace glint::cuda
