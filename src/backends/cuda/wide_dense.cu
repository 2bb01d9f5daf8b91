// More than a few rows through one or two matrices, or through one matrix a head.

#include "backends/cuda/wide_launch.cuh"

namespace glint::cuda {
namespace {

struct DenseProblem {
  static constexpr bool kPrefetch = true, kTall = false;

  MatShape shapes[2];
  MatPtr at[2];
  int shifts[2];
  float* out[2];
  std::int64_t out_stride[2];
  std::uint16_t* out_bf16;
  const void* x;
  std::int64_t x_stride;
  int x_parts, rows, x_rows, tile_rows, row_blocks;
  int first_tiles, n_tiles;  // of the first matrix, of both
  Epilogue epilogue;
  std::int64_t valid;
  const float2* angles;                                   // of kRope
  int heads, head_rows, first_row, out_rows, head_tiles;  // heads > 0: one matrix a head
  int stages, split;

  bool has_mins() const { return at[0].mins != nullptr; }
  __device__ int total() const { return n_tiles * row_blocks; }
  __device__ bool gated() const { return epilogue == Epilogue::kSiluMul; }
  __device__ const MatShape& shape(int matrix) const { return shapes[matrix]; }
  [[maybe_unused]] __device__ int depth(int matrix) const { return x_parts * shapes[matrix].cols; }
  __device__ int shift(int matrix) const { return shifts[matrix]; }

  // The row blocks of a tile follow each other: together they read W once from memory.
  __device__ WideTile locate(int f) const {
    WideTile t{};
    const int index = f / row_blocks;
    t.begin = f % row_blocks * tile_rows;
    t.count = min(tile_rows, rows - t.begin);
    if (heads > 0) {
      t.item = index / head_tiles;
      t.at[0] = t.at[1] = at[0];
      t.first = index % head_tiles * kWideM;
      t.skip = t.item * head_rows + first_row;
      t.limit = out_rows;
      return t;
    }
    if (gated()) {
      t.at[0] = at[0], t.at[1] = at[1];
      t.first = index * (kWideM / 2);
      t.limit = shapes[0].rows;
      return t;
    }
    t.matrix = index >= first_tiles ? 1 : 0;
    t.at[0] = t.at[1] = at[t.matrix];
    t.first = (index - (t.matrix != 0 ? first_tiles : 0)) * kWideM;
    t.limit = shapes[t.matrix].rows;
    return t;
  }

  __device__ std::uint32_t x_unit(const WideTile& t, int n) const {
    return static_cast<std::uint32_t>(((t.begin + n) * x_stride + (heads > 0 ? t.item * shapes[0].cols : 0)) / 8);
  }

  // Where outputs 2p and 2p + 1 of a tile's rows go, or the answers of two matrices for output p. Each row's store is
  // code of its own, mostly run once: `plain` ones are three instructions.
  struct Sink {
    float* at;
    std::uint16_t* at_bf16;
    std::int64_t stride;
    bool plain, gated, live[2], pair, hidden[2];
    const float2* angles;  // null: not rotated

    __device__ void store_plain(int n, float v0, float v1) const {
      *reinterpret_cast<float2*>(at + n * stride) = {v0, v1};
    }
    __device__ void store(int n, float v0, float v1) const {
      if (gated) {
        const float v = silu(v0) * v1;
        if (at_bf16 != nullptr) {
          if (live[0]) at_bf16[n * stride] = static_cast<std::uint16_t>(pack_bf16(v, 0));
        } else if (live[0]) {
          at[n * stride] = v;
        }
        return;
      }
      if (angles != nullptr) {
        const float2 cs = angles[n * (kRowWidth - kLatentWidth) / 2];
        const float a = v0, b = v1;
        v0 = a * cs.x - b * cs.y;
        v1 = a * cs.y + b * cs.x;
      }
      if (hidden[0]) v0 = -INFINITY;
      if (hidden[1]) v1 = -INFINITY;
      float* to = at + n * stride;
      if (pair) {
        *reinterpret_cast<float2*>(to) = {v0, v1};
      } else {
        if (live[0]) to[0] = v0;
        if (live[1]) to[1] = v1;
      }
    }
  };
  __device__ Sink sink(const WideTile& t, int p) const {
    Sink s{};
    s.gated = gated();
    const int o = t.first + (s.gated ? p : 2 * p);
    const std::int64_t skip = t.begin * out_stride[t.matrix] + (heads > 0 ? t.item * out_rows : 0) + o;
    s.stride = out_stride[t.matrix];
    s.at = out[t.matrix] == nullptr ? nullptr : out[t.matrix] + skip;
    s.at_bf16 = out_bf16 == nullptr ? nullptr : out_bf16 + skip;
    s.live[0] = o < t.limit, s.live[1] = o + 1 < t.limit;
    s.pair = s.live[1] && s.stride % 2 == 0 && reinterpret_cast<std::uintptr_t>(s.at) % 8 == 0;
    s.hidden[0] = o >= valid, s.hidden[1] = o + 1 >= valid;
    if (epilogue == Epilogue::kRope && o % kQkWidth >= kNopeWidth)
      s.angles = angles + t.begin * ((kRowWidth - kLatentWidth) / 2) + (o % kQkWidth - kNopeWidth) / 2;
    s.plain = s.pair && !s.gated && !s.hidden[1] && s.angles == nullptr;
    return s;
  }
};

// Parts of the contraction: until one row block has blocks for part of the device. Adding them takes a few us, about
// what a block takes for 512 of the contraction. Any number of rows has the same.
int parts(const Launch& l, const MatShape& m, int tiles) {
  const int steps = m.cols / (weight_code_bits(m.format) >= 16 ? 64 : 128);
  int n = 1;
  while (l.clusters && n < kWideMaxSplit && 4 * n * tiles <= l.n_sms && 4 * n <= steps) n *= 2;
  return n;
}

void set_rows(const Launch& l, DenseProblem& p, std::int64_t rows) {
  // Large tiles where they fill the device: W is read and decoded less often, but one block has a multiprocessor.
  const bool large = l.wgmma && p.n_tiles * std::int64_t{ceil_div(rows, kWideWgmmaRows)} >= 2 * l.n_sms;
  p.rows = static_cast<int>(rows);
  p.tile_rows = large ? kWideWgmmaRows : kWideRows;
  p.row_blocks = static_cast<int>(ceil_div(rows, p.tile_rows));
  p.x_rows = wide_stage_rows(rows, p.tile_rows);
}

// With two parts, the second is what rounding to BF16 took from the first.
__global__ void reorder_kernel(const __grid_constant__ Act x, uint4* out, int cols, WideOrder order, int parts) {
  pdl_launch();
  pdl_wait();
  const std::int64_t row = blockIdx.x, from = (x.rows_index != nullptr ? x.rows_index[row] : row) * x.stride;
  uint4* to = out + row * parts * (cols / 8);
  const int u = blockIdx.y * blockDim.x + threadIdx.x;
  if (u >= cols / 8) return;
  std::uint32_t w[4], rest[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const std::int64_t a = from + wide_value(order, 8 * u + 2 * i), b = from + wide_value(order, 8 * u + 2 * i + 1);
    if (x.bf16) {
      const auto* values = static_cast<const std::uint16_t*>(x.data);
      w[i] = values[a] | static_cast<std::uint32_t>(values[b]) << 16;
      rest[i] = 0;
    } else {
      const auto* values = static_cast<const float*>(x.data);
      w[i] = pack_bf16(values[a], values[b]);
      rest[i] = pack_bf16(values[a] - bf16_low(w[i]), values[b] - bf16_high(w[i]));
    }
  }
  to[u] = {w[0], w[1], w[2], w[3]};
  if (parts == 2) to[cols / 8 + u] = {rest[0], rest[1], rest[2], rest[3]};
}

}  // namespace

bool wide_fits(const Mat& w) {
  const WeightFormat f = w.shape.format;
  if (!has_kernels(f) || f == WeightFormat::kF32 || f == WeightFormat::kF16) return false;
  return skinny_fits(w) && w.shape.cols % (f == WeightFormat::kBF16 ? 64 : 128) == 0;
}

void wide_reorder(const Launch& l, const Act& x, void* out, std::int64_t rows, std::int64_t cols, WeightFormat f,
                  int parts) {
  if (rows == 0) return;
  constexpr int kThreads = 128;
  launch(l, reorder_kernel, dim3(static_cast<unsigned>(rows), ceil_div(cols, 8 * kThreads)), dim3(kThreads), 0, x,
         static_cast<uint4*>(out), static_cast<int>(cols), wide_order(l, f), parts);
}

void wide_dense(const Launch& l, const SkinnyDense& d) {
  DenseProblem p{};
  for (int i = 0; i < d.n_mats; ++i) {
    p.shapes[i] = d.shape[i];
    p.at[i] = d.at[i];
    p.shifts[i] = skinny_shift(d.shape[i]);
    p.out[i] = d.out[i];
    p.out_stride[i] = d.out_stride[i];
  }
  if (d.n_mats == 1) p.shapes[1] = p.shapes[0];
  const bool gated = d.epilogue == Epilogue::kSiluMul;
  p.out_bf16 = static_cast<std::uint16_t*>(d.out_bf16);
  p.x = d.x.data;
  p.x_stride = d.x.stride;
  p.x_parts = d.x_parts;
  p.epilogue = d.epilogue;
  p.valid = d.valid > 0 ? d.valid : std::max(d.shape[0].rows, d.shape[1].rows);
  p.angles = d.rope.angles;
  p.first_tiles = static_cast<int>(ceil_div(d.shape[0].rows, gated ? kWideM / 2 : kWideM));
  p.n_tiles = p.first_tiles + (d.n_mats == 2 && !gated ? static_cast<int>(ceil_div(d.shape[1].rows, kWideM)) : 0);
  p.split = parts(l, d.shape[0], p.n_tiles);
  set_rows(l, p, d.rows);
  launch_wide(l, p, d.shape[0].format, static_cast<std::int64_t>(p.n_tiles) * p.row_blocks);
}

void wide_heads(const Launch& l, const SkinnyHeads& h) {
  DenseProblem p{};
  p.shapes[0] = p.shapes[1] = h.w.shape;
  p.at[0] = h.w.at;
  p.shifts[0] = skinny_shift(h.w.shape);
  p.out[0] = h.out;
  p.out_stride[0] = static_cast<std::int64_t>(h.heads) * h.out_rows;
  p.x = h.x_bf16;
  p.x_parts = 1;
  p.x_stride = static_cast<std::int64_t>(h.heads) * h.w.shape.cols;
  p.epilogue = Epilogue::kStore;
  p.valid = h.out_rows;
  p.heads = h.heads;
  p.head_rows = h.head_rows;
  p.first_row = h.first_row;
  p.out_rows = h.out_rows;
  p.head_tiles = static_cast<int>(ceil_div(h.out_rows, kWideM));
  p.n_tiles = p.head_tiles * h.heads;
  p.split = parts(l, h.w.shape, p.n_tiles);
  set_rows(l, p, h.rows);
  launch_wide(l, p, h.w.shape.format, static_cast<std::int64_t>(p.n_tiles) * p.row_blocks);
}

}  // namespace glint::cuda
