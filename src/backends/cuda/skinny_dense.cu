// Few rows through one or two matrices, or through one matrix a head.

#include "backends/cuda/skinny.cuh"

namespace glint::cuda {
namespace {

struct DenseProblem {
  static constexpr bool kPrefetch = true;
  struct Scratch {};

  MatShape shapes[2];
  MatPtr at[2];
  int shifts[2];
  float* out[2];
  std::int64_t out_stride[2];
  std::uint16_t* out_bf16;
  Act x;
  int max_cols, max_count;
  int first_tiles, n_tiles;  // of the first matrix, of both
  Epilogue epilogue;
  std::int64_t valid;
  RopeJob rope;
  int heads, head_rows, first_row, out_rows, head_tiles;  // heads > 0: one matrix a head

  __device__ int total(const Scratch&) const { return n_tiles; }
  __device__ bool pairs_apart() const { return epilogue == Epilogue::kSiluMul; }
  __device__ const MatShape& shape(const SkinnyTile& t) const { return shapes[t.shared ? 1 : 0]; }
  __device__ int shift(const SkinnyTile& t) const { return shifts[t.shared ? 1 : 0]; }

  __device__ SkinnyTile locate(int f, const Scratch&) const {
    SkinnyTile t{};
    t.count = max_count;
    if (heads > 0) {
      t.item = f / head_tiles;
      t.index = f % head_tiles;
      const int begin = t.item * head_rows + first_row;
      t.at[0] = t.at[1] = at[0];
      t.row[0] = begin + 16 * t.index;
      t.row[1] = t.row[0] + 8;
      t.limit = begin + out_rows;
      return t;
    }
    if (pairs_apart()) {
      t.index = f;
      t.at[0] = at[0], t.at[1] = at[1];
      t.row[0] = t.row[1] = 8 * f;
      t.limit = shapes[0].rows;
      return t;
    }
    t.shared = f >= first_tiles;
    t.index = t.shared ? f - first_tiles : f;
    t.at[0] = t.at[1] = t.shared ? at[1] : at[0];
    t.row[0] = 16 * t.index;
    t.row[1] = t.row[0] + 8;
    t.limit = t.shared ? shapes[1].rows : shapes[0].rows;
    return t;
  }

  __device__ std::int64_t x_row(const SkinnyTile&, int n, const Scratch&) const {
    return x.rows_index != nullptr ? x.rows_index[n] : n;
  }
  __device__ std::int64_t x_offset(const SkinnyTile& t) const { return heads > 0 ? t.item * shapes[0].cols : 0; }

  __device__ void store(const SkinnyTile& t, int n, int p, float v0, float v1, const Scratch&) const {
    if (pairs_apart()) {
      const int row = 8 * t.index + p;
      if (row < t.limit) {
        const __nv_bfloat16 h = __float2bfloat16_rn(silu(v0) * v1);
        out_bf16[n * out_stride[0] + row] = *reinterpret_cast<const std::uint16_t*>(&h);
      }
      return;
    }
    const int local = 16 * t.index + 2 * p, rows = heads > 0 ? out_rows : t.limit;
    if (epilogue == Epilogue::kRope && local % kQkWidth >= kNopeWidth) {
      float c, s;
      rope_angle(rope.frequencies.revolutions[(local % kQkWidth - kNopeWidth) / 2], rope.positions[n], &c, &s);
      const float a = v0, b = v1;
      v0 = a * c - b * s;
      v1 = a * s + b * c;
    }
    const int m = t.shared ? 1 : 0;
    float* to = out[m] + n * out_stride[m] + (heads > 0 ? t.item * out_rows : 0);
    if (local < rows) to[local] = local < valid ? v0 : -INFINITY;
    if (local + 1 < rows) to[local + 1] = local + 1 < valid ? v1 : -INFINITY;
  }
};

// Rows that one launch takes: what the tensor-core tile and shared memory hold.
int rows_at_once(const Launch& l, std::int64_t rows, std::int64_t cols) {
  if (rows > 8 && skinny_smem(std::min<std::int64_t>(rows, 16), cols, 2) <= static_cast<std::size_t>(l.smem_limit))
    return 16;
  int n = 8;
  while (n > 1 && skinny_smem(n, cols, 1) > static_cast<std::size_t>(l.smem_limit)) n /= 2;
  return n;
}

}  // namespace

bool skinny_fits(const Mat& w) {
  const int bits = weight_code_bits(w.shape.format);
  const int chunk = bits >= 16 ? 32 : 32 * (16 / bits), share = chunk / 4;
  if (w.shape.cols % chunk != 0 || reinterpret_cast<std::uintptr_t>(w.at.data) % 16 != 0) return false;
  if (!has_scales(w.shape.format)) return true;
  return skinny_shift(w.shape) >= 0 && (w.shape.group >= w.shape.cols || w.shape.group % share == 0);
}

void skinny_dense(const Launch& l, const SkinnyDense& d) {
  DenseProblem p{};
  for (int i = 0; i < d.n_mats; ++i) {
    p.shapes[i] = d.shape[i];
    p.at[i] = d.at[i];
    p.shifts[i] = skinny_shift(d.shape[i]);
    p.out_stride[i] = d.out_stride[i];
  }
  const bool gated = d.epilogue == Epilogue::kSiluMul;
  p.max_cols = d.shape[0].cols;
  p.epilogue = d.epilogue;
  p.valid = d.valid > 0 ? d.valid : d.shape[0].rows + d.shape[1].rows;
  p.first_tiles = static_cast<int>(ceil_div(d.shape[0].rows, gated ? 8 : 16));
  p.n_tiles = p.first_tiles + (d.n_mats == 2 && !gated ? static_cast<int>(ceil_div(d.shape[1].rows, 16)) : 0);
  const int step = rows_at_once(l, d.rows, p.max_cols);
  for (std::int64_t r = 0; r < d.rows; r += step) {
    p.max_count = static_cast<int>(std::min<std::int64_t>(step, d.rows - r));
    p.x = d.x;
    if (d.x.rows_index != nullptr) {
      p.x.rows_index += r;
    } else {
      p.x.data = static_cast<const char*>(d.x.data) + r * d.x.stride * (d.x.bf16 ? 2 : 4);
    }
    for (int i = 0; i < d.n_mats; ++i) p.out[i] = gated ? nullptr : d.out[i] + r * d.out_stride[i];
    p.out_bf16 = gated ? static_cast<std::uint16_t*>(d.out_bf16) + r * d.out_stride[0] : nullptr;
    p.rope = d.rope;
    if (d.rope.positions != nullptr) p.rope.positions += r;
    launch_skinny(l, p, d.shape[0].format, p.n_tiles);
  }
}

void skinny_heads(const Launch& l, const SkinnyHeads& h) {
  DenseProblem p{};
  p.shapes[0] = h.w.shape;
  p.at[0] = h.w.at;
  p.shifts[0] = skinny_shift(h.w.shape);
  p.out_stride[0] = static_cast<std::int64_t>(h.heads) * h.out_rows;
  p.max_cols = h.w.shape.cols;
  p.epilogue = Epilogue::kStore;
  p.valid = h.out_rows;
  p.heads = h.heads;
  p.head_rows = h.head_rows;
  p.first_row = h.first_row;
  p.out_rows = h.out_rows;
  p.head_tiles = static_cast<int>(ceil_div(h.out_rows, 16));
  p.n_tiles = p.head_tiles * h.heads;
  const int step = rows_at_once(l, h.rows, p.max_cols);
  for (std::int64_t r = 0; r < h.rows; r += step) {
    p.max_count = static_cast<int>(std::min<std::int64_t>(step, h.rows - r));
    const std::int64_t stride = static_cast<std::int64_t>(h.heads) * h.w.shape.cols;
    p.x = {static_cast<const std::uint16_t*>(h.x_bf16) + r * stride, stride, true, nullptr};
    p.out[0] = h.out + r * p.out_stride[0];
    launch_skinny(l, p, h.w.shape.format, p.n_tiles);
  }
}

}  // namespace glint::cuda
