// Many rows through their experts: a block row an item of group_slots, the shared expert's rows first.

#include "backends/cuda/tiled_wgmma.cuh"

namespace glint::cuda {
namespace {

struct MoeProblem {
  MatShape routed_shape, shared_shape;
  ExpertTable first, second;
  int T, K;
  bool down;
  MoeGroups groups;
  int item_rows, shared_items;
  const std::uint16_t* x;
  std::int64_t x_stride;
  std::uint16_t* h;
  std::int64_t h_stride;
  void* y;
  bool y_bf16;
  std::int64_t y_stride;

  __device__ bool gated() const { return !down; }
  __device__ int depth(const TiledBlock& b) const { return b.shape.cols; }
  __device__ const void* x_base() const { return x; }

  __device__ bool locate(TiledBlock& b, int3 tile, int, int kN) const {
    int expert;
    b.shared = tile.y < shared_items;
    if (b.shared) {
      const int begin = tile.y * item_rows;
      expert = kMaxExperts;
      b.shape = shared_shape;
      b.begin = T * K + begin;
      b.count = min(item_rows, T - begin);
    } else {
      const int i = tile.y - shared_items;
      const int4 item = groups.items[i];  // read without waiting for the number
      if (i >= *groups.n_items) return false;
      expert = item.x;
      b.shape = routed_shape;
      b.begin = item.y;
      b.count = item.z;
    }
    b.at[0] = first.at[expert];
    b.at[1] = down ? b.at[0] : second.at[expert];
    b.first_row = tile.x * (down ? kN : kN / 2);
    b.limit = b.shape.rows;
    return b.first_row < b.limit;
  }
  __device__ const std::uint16_t* x_row(const TiledBlock& b, int r) const {
    std::int64_t row = b.begin + r;
    if (!down) row = b.shared ? row - static_cast<std::int64_t>(T) * K : groups.order[row] / K;
    return x + row * x_stride;
  }
  __device__ void store(const TiledBlock& b, int r, int o, float v0, float v1) const {
    const std::int64_t slot = b.shared ? b.begin + r : groups.order[b.begin + r];
    store_pair(static_cast<float*>(y) + slot * y_stride, o, b.limit, v0, v1);
  }
  __device__ bool in_units() const { return !down || y_bf16; }
  __device__ void store_unit(const TiledBlock& b, int r, int o, uint4 v) const {
    if (o >= b.limit) return;
    std::int64_t row = b.begin + r;
    if (down && !b.shared) row = groups.order[row];
    std::uint16_t* to = down ? static_cast<std::uint16_t*>(y) + row * y_stride : h + row * h_stride;
    *reinterpret_cast<uint4*>(to + o) = v;
  }
  __device__ void store_gated(const TiledBlock& b, int r, int o, float v0, float v1) const {
    store_pair(h + static_cast<std::int64_t>(b.begin + r) * h_stride, o, b.limit, v0, v1);
  }
};

template <int kM>
void run(const Launch& l, const MoeProblem& p, std::int64_t max_items) {
  constexpr int kN = 128;
  const int rows = std::max(p.routed_shape.rows, p.shared_items > 0 ? p.shared_shape.rows : 0);
  const dim3 grid(ceil_div(rows, p.down ? kN : kN / 2), static_cast<unsigned>(max_items + p.shared_items));
  if (p.routed_shape.format == WeightFormat::kBF16) {
    launch_tiled<kM, kN, TiledLoad::kBF16>(l, p, grid);
  } else {
    launch_tiled<kM, kN, TiledLoad::kAny>(l, p, grid);
  }
}

}  // namespace

void tiled_moe(const Launch& l, const TiledMoe& m) {
  MoeProblem p;
  p.routed_shape = m.shape;
  p.shared_shape = m.shared_shape;
  p.first = m.first;
  p.second = m.second;
  p.T = m.T;
  p.K = m.K;
  p.down = m.down;
  p.groups = m.groups;
  p.item_rows = m.item_rows;
  p.shared_items = m.has_shared ? static_cast<int>(ceil_div(m.T, m.item_rows)) : 0;
  p.x = static_cast<const std::uint16_t*>(m.x);
  p.x_stride = m.x_stride;
  p.h = static_cast<std::uint16_t*>(m.h);
  p.h_stride = m.h_stride;
  p.y = m.y;
  p.y_bf16 = m.y_bf16;
  p.y_stride = m.y_stride;
  if (m.wgmma) {
    const int rows = std::max(p.routed_shape.rows, p.shared_items > 0 ? p.shared_shape.rows : 0);
    launch_tiled_wgmma<256>(l, p,
                            {static_cast<int>(ceil_div(rows, p.down ? 256 : 128)),
                             static_cast<int>(m.groups.max_items + p.shared_items), 1},
                            p.routed_shape.format);
  } else if (m.item_rows == 128) {
    run<128>(l, p, m.groups.max_items);
  } else {
    run<64>(l, p, m.groups.max_items);
  }
}

bool tiled_moe_by_wgmma(const Launch& l, const MatShape& shape) { return wgmma_takes(l, shape) && shape.rows % 8 == 0; }

}  // namespace glint::cuda
