// Few rows through their experts: one list of (expert, rows) items over all multiprocessors, the shared expert first.

#include "backends/cuda/skinny.cuh"

namespace glint::cuda {
namespace {

struct MoeProblem {
  static constexpr bool kPrefetch = false;  // which experts is not known before the router has ended
  struct Scratch {
    int4 items[kInlineSlots];
    std::int32_t order[kInlineSlots];
    std::int32_t n_items;
  };

  MatShape routed_shape, shared_shape;
  int routed_shift, shared_shift;
  ExpertTable first, second;
  int T, K;
  bool down, inline_groups;
  const std::int32_t* ids;
  MoeGroups groups;
  int item_rows, tiles, shared_tiles, shared_items;
  Act x;
  std::uint16_t* h;
  std::int64_t h_stride;
  float* y;
  std::int64_t y_stride;
  int max_cols, max_count;

  __device__ bool pairs_apart() const { return !down; }
  __device__ const MatShape& shape(const SkinnyTile& t) const { return t.shared ? shared_shape : routed_shape; }
  __device__ int shift(const SkinnyTile& t) const { return t.shared ? shared_shift : routed_shift; }

  // Groups up to 32 choices in one warp, as group_slots would: every item has one expert and at most item_rows slots.
  __device__ void begin(Scratch& s) const {
    if (!inline_groups) return;
    if (threadIdx.x < 32) {
      const unsigned lane = threadIdx.x;
      const int id = lane < T * K ? ids[lane] : -1;
      unsigned todo = __ballot_sync(0xffffffffU, id >= 0);
      int n = 0, place = 0;
      while (todo != 0) {
        const int expert = __shfl_sync(0xffffffffU, id, __ffs(todo) - 1);
        const unsigned same = __ballot_sync(0xffffffffU, id == expert) & todo;
        const int rank = __popc(same & ((1U << lane) - 1U));
        const bool take = ((same >> lane) & 1U) != 0 && rank < item_rows;
        const unsigned taken = __ballot_sync(0xffffffffU, take);
        if (take) s.order[place + rank] = static_cast<int>(lane);
        if (lane == 0) s.items[n] = {expert, place, __popc(taken), 0};
        place += __popc(taken);
        todo &= ~taken;
        ++n;
      }
      if (lane == 0) s.n_items = n;
    }
    __syncthreads();
  }

  __device__ int total(const Scratch& s) const {
    const int n = inline_groups ? s.n_items : *groups.n_items;
    return shared_items * shared_tiles + n * tiles;
  }
  __device__ int slot_at(int place, const Scratch& s) const {
    return inline_groups ? s.order[place] : groups.order[place];
  }

  __device__ SkinnyTile locate(int f, const Scratch& s) const {
    SkinnyTile t{};
    const int n_shared = shared_items * shared_tiles;
    int expert;
    if (f < n_shared) {
      t.shared = true;
      const int i = f / shared_tiles;
      t.item = -1 - i;
      t.index = f % shared_tiles;
      t.first = i * item_rows;
      t.count = min(item_rows, T - t.first);
      expert = kMaxExperts;
    } else {
      t.item = (f - n_shared) / tiles;
      t.index = (f - n_shared) % tiles;
      const int4 item = inline_groups ? s.items[t.item] : groups.items[t.item];
      expert = item.x;
      t.first = item.y;
      t.count = item.z;
    }
    t.at[0] = first.at[expert];
    t.at[1] = down ? t.at[0] : second.at[expert];
    t.row[0] = (down ? 16 : 8) * t.index;
    t.row[1] = down ? t.row[0] + 8 : t.row[0];
    t.limit = shape(t).rows;
    return t;
  }

  __device__ std::int64_t place_of(const SkinnyTile& t, int n) const {
    return t.shared ? static_cast<std::int64_t>(T) * K + t.first + n : t.first + n;
  }
  __device__ std::int64_t x_row(const SkinnyTile& t, int n, const Scratch& s) const {
    if (down) return place_of(t, n);
    return t.shared ? t.first + n : slot_at(t.first + n, s) / K;
  }
  __device__ std::int64_t x_offset(const SkinnyTile&) const { return 0; }

  __device__ void store(const SkinnyTile& t, int n, int p, float v0, float v1, const Scratch& s) const {
    const std::int64_t place = place_of(t, n);
    if (!down) {
      const int row = 8 * t.index + p;
      if (row < t.limit) {
        const __nv_bfloat16 v = __float2bfloat16_rn(silu(v0) * v1);
        h[place * h_stride + row] = *reinterpret_cast<const std::uint16_t*>(&v);
      }
      return;
    }
    const int row = 16 * t.index + 2 * p;
    const std::int64_t slot = t.shared ? place : slot_at(t.first + n, s);
    float* to = y + slot * y_stride;
    if (row < t.limit) to[row] = v0;
    if (row + 1 < t.limit) to[row + 1] = v1;
  }
};

}  // namespace

void skinny_moe(const Launch& l, const SkinnyMoe& m) {
  MoeProblem p;
  p.routed_shape = m.shape;
  p.shared_shape = m.shared_shape;
  p.routed_shift = skinny_shift(m.shape);
  p.shared_shift = skinny_shift(m.shared_shape);
  p.first = m.first;
  p.second = m.second;
  p.T = m.T;
  p.K = m.K;
  p.down = m.down;
  p.inline_groups = m.T * m.K <= kInlineSlots;
  p.ids = m.ids;
  p.groups = m.groups;
  p.item_rows = m.item_rows;
  const int tile_rows = m.down ? 16 : 8;
  p.tiles = static_cast<int>(ceil_div(m.shape.rows, tile_rows));
  p.shared_tiles = m.has_shared ? static_cast<int>(ceil_div(m.shared_shape.rows, tile_rows)) : 1;
  p.shared_items = m.has_shared ? static_cast<int>(ceil_div(m.T, m.item_rows)) : 0;
  p.x = m.x;
  p.h = static_cast<std::uint16_t*>(m.h);
  p.h_stride = m.h_stride;
  p.y = m.y;
  p.y_stride = m.y_stride;
  p.max_cols = std::max(m.shape.cols, m.has_shared ? m.shared_shape.cols : 0);
  p.max_count = std::min(m.item_rows, m.T);
  const std::int64_t items = p.inline_groups ? m.T * m.K : m.groups.max_items;
  launch_skinny(l, p, m.shape.format, items * p.tiles + p.shared_items * p.shared_tiles);
}

}  // namespace glint::cuda
