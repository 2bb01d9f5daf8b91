// Many rows through their experts' BF16 matrices: the rows of x lie sorted by expert, a block row is an item of
// group_slots, the shared expert's rows come first.

#include "backends/cuda/gemm.cuh"
#include "backends/cuda/tensor_map.hpp"

namespace glint::cuda {
namespace {

template <bool kDown>
struct MoeGemm {
  static constexpr GemmOut kOut = kDown ? GemmOut::kBF16 : GemmOut::kSiluMul;
  static constexpr GemmShare kShare = GemmShare::kRows;
  static constexpr int kOutputs = kDown ? kGemmCols : kGemmCols / 2;  // of a tile
  static constexpr int kTables = kDown ? 1 : 2;

  CUtensorMap x, shared_x;
  CUtensorMap w[kGemmExperts + 1][kTables];  // the last is the shared expert's
  MoeGroups groups;
  int T, K;
  int first_expert, end_expert;
  bool all;                 // experts
  int shared_items, pairs;  // pairs of tiles of outputs
  int rows, steps, shared_rows, shared_steps;
  std::uint16_t* out;
  std::int64_t stride;

  // Items of experts before `expert`. Each warp for itself.
  __device__ int items_before(int expert, int n_items) const {
    int n = 0;
    for (int base = 0; base < n_items; base += 32) {
      const int i = base + static_cast<int>(threadIdx.x) % 32;
      n += __popc(__ballot_sync(0xffffffffU, i < n_items && groups.items[i].x < expert));
    }
    return n;
  }
  struct Range {
    int first, n;
  };
  __device__ Range range() const {
    const int n = *groups.n_items;
    if (all) return {0, n};
    const int first = items_before(first_expert, n);
    return {first, items_before(end_expert, n) - first};
  }
  __device__ int tiles(Range r) const { return (shared_items + r.n) * pairs; }
  __device__ void locate(GemmTile& t, Range r, int n, int rank) const {
    const int item = n / pairs, column = n % pairs * 2 + rank;
    const bool shared = item < shared_items;
    int expert = kGemmExperts;
    if (shared) {
      t.place = T * K + item * kGemmRows;
      t.x_row = kDown ? t.place : item * kGemmRows;
      t.count = min(kGemmRows, T - item * kGemmRows);
    } else {
      const int4 at = groups.items[r.first + item - shared_items];
      expert = at.x - first_expert;
      t.place = t.x_row = at.y;
      t.count = at.z;
    }
    t.x = shared ? &shared_x : &x;
    t.first = column * kOutputs;
    t.limit = shared ? shared_rows : rows;
    t.w[0] = &w[expert][0];
    t.w[1] = &w[expert][kTables - 1];
    t.w_row[0] = t.first;
    t.w_row[1] = kDown ? t.first + kGemmBoxB : t.first;
    t.steps = t.w_steps = shared ? shared_steps : steps;
  }
  __device__ int key(const GemmTile& t, int r) const {
    const int place = t.place + r;
    return kDown && place < T * K ? groups.order[place] : place;
  }
  __device__ std::uint16_t* row(const GemmTile&, int key) const { return out + key * stride; }
  __device__ void store_unit(std::uint16_t* row, int o, uint4 v) const { *reinterpret_cast<uint4*>(row + o) = v; }
};

template <bool kDown>
void run(const Launch& l, const GemmMoe& m) {
  using Problem = MoeGemm<kDown>;
  Problem p{};
  if (kDown) {
    p.x = p.shared_x = matrix_map(m.h, std::int64_t{m.T} * m.K + m.T, m.depth, m.h_stride, kGemmBoxA);
    if (m.has_shared && m.shared_depth != m.depth)
      p.shared_x = matrix_map(m.h, std::int64_t{m.T} * m.K + m.T, m.shared_depth, m.h_stride, kGemmBoxA);
  } else {
    p.x = matrix_map(m.sorted, std::int64_t{m.T} * m.K, m.depth, m.depth, kGemmBoxA);
    p.shared_x = m.has_shared ? matrix_map(m.x, m.T, m.shared_depth, m.x_stride, kGemmBoxA) : p.x;
  }
  const auto map = [&](int to, int expert, std::int64_t rows, std::int64_t depth) {
    p.w[to][0] = matrix_map(m.first.at[expert].data, rows, depth, depth, kGemmBoxB);
    if constexpr (!kDown) p.w[to][1] = matrix_map(m.second.at[expert].data, rows, depth, depth, kGemmBoxB);
  };
  for (int e = m.first_expert; e < m.end_expert; ++e) map(e - m.first_expert, e, m.rows, m.depth);
  if (m.has_shared) map(kGemmExperts, kMaxExperts, m.shared_rows, m.shared_depth);
  p.groups = m.groups;
  p.T = m.T;
  p.K = m.K;
  p.first_expert = m.first_expert;
  p.end_expert = m.end_expert;
  p.all = m.first_expert == 0 && m.end_expert == m.n_experts;
  p.shared_items = m.has_shared ? static_cast<int>(ceil_div(m.T, kGemmRows)) : 0;
  p.pairs = static_cast<int>(ceil_div(std::max(m.rows, m.has_shared ? m.shared_rows : 0), 2 * Problem::kOutputs));
  p.rows = m.rows;
  p.steps = static_cast<int>(ceil_div(m.depth, kGemmStep));
  p.shared_rows = m.shared_rows;
  p.shared_steps = static_cast<int>(ceil_div(m.shared_depth, kGemmStep));
  p.out = static_cast<std::uint16_t*>(kDown ? m.y : m.h);
  p.stride = kDown ? m.y_stride : m.h_stride;
  launch_gemm(l, p, (m.groups.max_items + p.shared_items) * p.pairs);
}

constexpr int kGatherThreads = 256;

// A warp a place: 16 bytes a lane.
__global__ void __launch_bounds__(kGatherThreads)
    gather_kernel(const __grid_constant__ MoeGroups groups, const uint4* x, std::int64_t x_units, int top_k, int units,
                  uint4* out) {
  pdl_launch();
  pdl_wait();
  const int place = blockIdx.x * (kGatherThreads / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
  const int n_items = *groups.n_items;
  if (n_items == 0) return;
  const int4 last = groups.items[n_items - 1];
  if (place >= last.y + last.z) return;
  const uint4* from = x + groups.order[place] / top_k * x_units;
  uint4* to = out + static_cast<std::int64_t>(place) * units;
  constexpr int kEach = 8;
  for (int u = lane; u < units; u += 32 * kEach) {
    uint4 v[kEach];
#pragma unroll
    for (int i = 0; i < kEach; ++i) v[i] = u + 32 * i < units ? from[u + 32 * i] : uint4{};
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      if (u + 32 * i < units) to[u + 32 * i] = v[i];
    }
  }
}

}  // namespace

bool gemm_moe_takes(const Launch& l, const GemmMoe& m) {
  if (!l.wgmma || !l.clusters || l.smem_limit < static_cast<int>(kGemmBytes) || m.n_experts > kGemmExperts)
    return false;
  return m.depth % 8 == 0 && m.rows % 8 == 0 && m.shared_depth % 8 == 0 && m.shared_rows % 8 == 0;
}

void gemm_moe(const Launch& l, const GemmMoe& m) { m.down ? run<true>(l, m) : run<false>(l, m); }

void gather_rows(const Launch& l, const MoeGroups& groups, const void* x, std::int64_t x_stride, std::int64_t slots,
                 int top_k, std::int64_t cols, void* out) {
  launch(l, gather_kernel, dim3(ceil_div(slots, kGatherThreads / 32)), dim3(kGatherThreads), 0, groups,
         static_cast<const uint4*>(x), x_stride / 8, top_k, static_cast<int>(cols / 8), static_cast<uint4*>(out));
}

}  // namespace glint::cuda
