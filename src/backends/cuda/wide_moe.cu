// Experts with some rows each: one list of (expert, rows) items over all multiprocessors, the shared expert first.

#include "backends/cuda/wide_launch.cuh"

namespace glint::cuda {
namespace {

struct MoeProblem {
  static constexpr bool kTall = true;       // tiles may have 256 rows of W
  static constexpr bool kPrefetch = false;  // which experts is not known before the router has ended

  MatShape shapes[2];  // routed, shared
  int shifts[2];
  ExpertTable first, second;
  int T, K;
  std::uint32_t inverse_k;  // 2^32 / K, rounded up
  bool down;
  MoeGroups groups;
  int item_rows, tiles, shared_tiles, shared_items;
  const void* x;
  std::int64_t x_stride;
  int x_rows, w_rows;
  std::uint16_t* h;
  std::int64_t h_stride;
  WideOrder h_order;
  float* y;
  std::int64_t y_stride;
  int stages, split;

  bool has_mins() const { return first.at[0].mins != nullptr; }
  __device__ int total() const { return shared_items * shared_tiles + *groups.n_items * tiles; }
  __device__ bool gated() const { return !down; }
  __device__ const MatShape& shape(int matrix) const { return shapes[matrix]; }
  [[maybe_unused]] __device__ int depth(int matrix) const { return shapes[matrix].cols; }
  __device__ int shift(int matrix) const { return shifts[matrix]; }

  __device__ WideTile locate(int f) const {
    WideTile t{};
    const int n_shared = shared_items * shared_tiles;
    int expert, index;
    if (f < n_shared) {  // the items of a tile follow each other: together they read W once from memory
      t.matrix = 1;
      index = f / shared_items;
      const int begin = f % shared_items * item_rows;
      t.begin = T * K + begin;
      t.count = min(item_rows, T - begin);
      expert = kMaxExperts;
    } else {
      index = (f - n_shared) % tiles;
      const int4 item = groups.items[(f - n_shared) / tiles];
      expert = item.x;
      t.begin = item.y;
      t.count = item.z;
    }
    t.at[0] = first.at[expert];
    t.at[1] = down ? t.at[0] : second.at[expert];
    t.first = index * (down ? w_rows : w_rows / 2);
    t.limit = shapes[t.matrix].rows;
    return t;
  }
  // slot / K, by a multiplication: exact below 2^32 / K.
  __device__ int token_of(int slot) const {
    return K == 1 ? slot : static_cast<int>(__umulhi(static_cast<unsigned>(slot), inverse_k));
  }
  __device__ std::uint32_t x_unit(const WideTile& t, int n) const {
    std::int64_t row = t.begin + n;
    if (!down) row = t.matrix != 0 ? row - static_cast<std::int64_t>(T) * K : token_of(groups.order[row]);
    return static_cast<std::uint32_t>(row * x_stride / 8);
  }

  // As of the dense products.
  struct Sink {
    std::uint16_t* h;
    float* y;
    const std::int32_t* order;  // null: rows are in their places
    std::int64_t stride;
    int o, limit;
    bool plain;

    __device__ void store_plain(int n, float v0, float v1) const {
      *reinterpret_cast<float2*>(y + (order != nullptr ? order[n] : n) * stride) = {v0, v1};
    }
    __device__ void store(int n, float v0, float v1) const {
      if (h != nullptr) {
        if (o < limit) h[n * stride] = static_cast<std::uint16_t>(pack_bf16(silu(v0) * v1, 0));
      } else {
        float* to = y + (order != nullptr ? order[n] : n) * stride;
        if (o < limit) to[0] = v0;
        if (o + 1 < limit) to[1] = v1;
      }
    }
  };
  __device__ Sink sink(const WideTile& t, int p) const {
    Sink s{};
    s.limit = t.limit;
    if (down) {
      s.o = t.first + 2 * p;
      s.stride = y_stride;
      s.order = t.matrix != 0 ? nullptr : groups.order + t.begin;
      s.y = (t.matrix != 0 ? y + t.begin * y_stride : y) + s.o;
      s.plain = s.o + 1 < s.limit && y_stride % 2 == 0 && reinterpret_cast<std::uintptr_t>(s.y) % 8 == 0;
    } else {
      s.o = t.first + p;
      s.stride = h_stride;
      s.h = h + t.begin * h_stride + wide_place(h_order, s.o);
    }
    return s;
  }
};

}  // namespace

void wide_moe(const Launch& l, const WideMoe& m) {
  MoeProblem p{};
  p.shapes[0] = m.shape;
  p.shapes[1] = m.shared_shape;
  for (int i = 0; i < 2; ++i) p.shifts[i] = skinny_shift(p.shapes[i]);
  p.first = m.first;
  p.second = m.second;
  p.T = m.T;
  p.K = m.K;
  p.inverse_k = static_cast<std::uint32_t>(((std::uint64_t{1} << 32) + m.K - 1) / m.K);
  p.down = m.down;
  p.groups = m.groups;
  p.item_rows = m.item_rows;
  // With more rows of x a tile, codes are decoded less often; with more rows of W, x is copied less often.
  p.w_rows = l.wgmma && m.item_rows == kWideRows ? 256 : kWideM;
  const int tile_rows = m.down ? p.w_rows : p.w_rows / 2;
  p.tiles = static_cast<int>(ceil_div(m.shape.rows, tile_rows));
  p.shared_tiles = m.has_shared ? static_cast<int>(ceil_div(m.shared_shape.rows, tile_rows)) : 1;
  p.shared_items = m.has_shared ? static_cast<int>(ceil_div(m.T, m.item_rows)) : 0;
  p.x = m.x;
  p.x_stride = m.x_stride;
  p.x_rows = wide_stage_rows(std::min(m.T, m.item_rows), kWideRows);
  p.h = static_cast<std::uint16_t*>(m.h);
  p.h_stride = m.h_stride;
  p.h_order = wide_order(l, m.down_format);
  p.y = m.y;
  p.y_stride = m.y_stride;
  p.split = 1;
  launch_wide(l, p, m.shape.format,
              m.groups.max_items * p.tiles + static_cast<std::int64_t>(p.shared_items) * p.shared_tiles);
}

}  // namespace glint::cuda
