// Many rows through one matrix, or through one matrix a head.

#include "backends/cuda/tiled_wgmma.cuh"

namespace glint::cuda {
namespace {

struct DenseProblem {
  MatShape shape;
  MatPtr at, up;
  const std::uint16_t* x;
  std::int64_t x_stride, x_batch, w_batch_rows, w_first_row;
  int rows;
  void* out;
  std::int64_t out_stride, out_batch;
  TiledOut kind;
  std::int64_t valid;
  int outputs, contraction;
  bool transposed;

  __host__ __device__ bool gated() const { return kind == TiledOut::kSiluMul; }
  __device__ int depth(const TiledBlock&) const { return contraction; }
  __device__ const void* x_base() const { return x; }

  __device__ bool locate(TiledBlock& b, int3 tile, int kM, int kN) const {
    b.shape = shape;
    b.at[0] = at;
    b.at[1] = up;
    b.first_row = tile.x * (gated() ? kN / 2 : kN);
    b.limit = outputs;
    b.begin = tile.y * kM;
    b.z = tile.z;
    b.count = min(kM, rows - b.begin);
    b.shared = false;
    if (!transposed) {  // the batch's matrices are rows of one tall matrix
      const int skip = static_cast<int>(w_first_row + w_batch_rows * b.z);
      b.first_row += skip;
      b.limit += skip;
    }
    return true;
  }
  __device__ int kn_row(const TiledBlock& b) const { return static_cast<int>(w_first_row + w_batch_rows * b.z); }
  __device__ const std::uint16_t* x_row(const TiledBlock& b, int r) const {
    return x + b.z * x_batch + (b.begin + r) * x_stride;
  }

  __device__ void store(const TiledBlock& b, int r, int o, float v0, float v1) const {
    const int skip = b.limit - outputs;
    o -= skip;
    const std::int64_t at_row = b.z * out_batch + (b.begin + r) * out_stride;
    if (kind == TiledOut::kBF16) {
      store_pair(static_cast<std::uint16_t*>(out) + at_row, o, outputs, v0, v1);
      return;
    }
    if (o >= valid) v0 = -INFINITY;
    if (o + 1 >= valid) v1 = -INFINITY;
    store_pair(static_cast<float*>(out) + at_row, o, outputs, v0, v1);
  }
  // Eight BF16 outputs, for the kernels that have them together.
  __host__ __device__ bool in_units() const { return kind != TiledOut::kF32; }
  __device__ void store_unit(const TiledBlock& b, int r, int o, uint4 v) const {
    if (o >= b.limit) return;
    o -= b.limit - outputs;
    auto* to = static_cast<std::uint16_t*>(out) + b.z * out_batch + (b.begin + r) * out_stride + o;
    *reinterpret_cast<uint4*>(to) = v;
  }
  __device__ void store_gated(const TiledBlock& b, int r, int o, float v0, float v1) const {
    store_pair(static_cast<std::uint16_t*>(out) + (b.begin + r) * out_stride, o, outputs, v0, v1);
  }
};

template <int kM, int kN>
void run(const Launch& l, const DenseProblem& p, bool transposed, int batch) {
  const int per_block = p.kind == TiledOut::kSiluMul ? kN / 2 : kN;
  const dim3 grid(ceil_div(p.outputs, per_block), ceil_div(p.rows, kM), static_cast<unsigned>(batch));
  if (transposed) {
    launch_tiled<kM, kN, TiledLoad::kAnyTransposed>(l, p, grid);
  } else if (p.shape.format == WeightFormat::kBF16) {
    launch_tiled<kM, kN, TiledLoad::kBF16>(l, p, grid);
  } else {
    launch_tiled<kM, kN, TiledLoad::kAny>(l, p, grid);
  }
}

// False where the older kernels have to do, or do better: few tiles.
bool run_wgmma(const Launch& l, const DenseProblem& p, int batch) {
  if (!wgmma_takes(l, p.shape) || p.transposed || p.rows <= 64 || p.outputs % 8 != 0) return false;
  if (p.in_units() &&
      (p.out_stride % 8 != 0 || p.out_batch % 8 != 0 || reinterpret_cast<std::uintptr_t>(p.out) % 16 != 0))
    return false;
  const auto tiles = [&](int n) {
    return int3{static_cast<int>(ceil_div(p.outputs, p.gated() ? n / 2 : n)),
                static_cast<int>(ceil_div(p.rows, kWgmmaRows)), batch};
  };
  // The time goes by rounds of tiles; narrow ones are reckoned 15 % slower for the same work.
  const int3 wide = tiles(256), narrow = tiles(128);
  const auto rounds = [&](int3 n) { return ceil_div(std::int64_t{n.x} * n.y * n.z, l.n_sms); };
  if (std::int64_t{3} * narrow.x * narrow.y * narrow.z < l.n_sms) return false;
  if (200 * rounds(wide) <= 115 * rounds(narrow)) {
    launch_tiled_wgmma<256>(l, p, wide, p.shape.format);
  } else {
    launch_tiled_wgmma<128>(l, p, narrow, p.shape.format);
  }
  return true;
}

}  // namespace

bool tiled_fits(const Mat& w) {
  if (w.shape.cols % 8 != 0 || reinterpret_cast<std::uintptr_t>(w.at.data) % 16 != 0) return false;
  if (!has_scales(w.shape.format)) return true;
  return w.shape.group >= w.shape.cols || w.shape.group % 8 == 0;
}

void tiled(const Launch& l, const Tiled& t) {
  if (t.rows == 0) return;
  DenseProblem p{};
  p.shape = t.w.shape;
  p.at = t.w.at;
  p.up = t.up;
  p.x = static_cast<const std::uint16_t*>(t.x);
  p.x_stride = t.x_stride;
  p.x_batch = t.x_batch;
  p.w_batch_rows = t.w_batch_rows;
  p.w_first_row = t.w_first_row;
  p.transposed = t.w_is_kn;
  p.rows = static_cast<int>(t.rows);
  p.out = t.out;
  p.out_stride = t.out_stride;
  p.out_batch = t.out_batch;
  p.kind = t.out_kind;
  p.outputs = t.w_is_kn ? t.w.shape.cols : t.w.shape.rows;
  p.contraction = t.w_is_kn ? t.w.shape.rows : t.w.shape.cols;
  p.valid = t.valid > 0 ? t.valid : p.outputs;
  if (run_wgmma(l, p, t.batch)) return;
  // Large tiles where there are enough of them to fill the device.
  const std::int64_t large = static_cast<std::int64_t>(ceil_div(t.rows, 128)) * ceil_div(p.outputs, 128) * t.batch;
  if (t.rows > 64 && large >= l.n_sms) {
    run<128, 128>(l, p, t.w_is_kn, t.batch);
  } else {
    run<64, 64>(l, p, t.w_is_kn, t.batch);
  }
}

}  // namespace glint::cuda
