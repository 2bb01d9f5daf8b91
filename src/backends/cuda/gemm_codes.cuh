#pragma once
// Many rows through their experts' matrices in codes (Hopper): decoded inside the product, once for up to 256 rows of
// x. The codes are the product's first operand: each of two warpgroups takes 64 rows of W from shared memory into the
// registers from which wgmma reads, decoded and rounded to BF16 on the way, while the batch before multiplies. x is the
// second operand, as many columns as an item has rows (in 32s). One thread asks for tensor copies of both; two
// neighbouring blocks are a cluster, have the same rows of x, and fetch half of them for both. Loops are unrolled by a
// turn of x's ring: what a step has to find out would else take longer than its products.
//
// A tile is 128 rows of W: 64 of gate and 64 of up, or 128 of down. Rows g and g + 8 of a warp's sixteen are then the
// same output of gate and up, or two outputs of down. Sums leave through shared memory, 64 or 128 bytes a row of x.

#include "backends/cuda/codes_decoder.cuh"
#include "backends/cuda/gemm.cuh"
#include "backends/cuda/tensor_map.hpp"
#include "backends/cuda/wgmma_columns.cuh"

namespace glint::cuda {

constexpr int kCodesBox = 64;                       // rows of a copy, of x and of W
constexpr int kCodesStages = 4, kCodesWStages = 4;  // steps of x; parts of W
constexpr int kCodesStage = kGemmCodesItem * 128;   // bytes: 64 columns of x
constexpr int kCodesWStage = 2 * kCodesBox * 128;   // 128 bytes of each row of W
constexpr int kCodesOut = 128 * 128;                // of a warpgroup: sums on their way out
constexpr std::size_t kCodesBytes = kCodesStages * kCodesStage + kCodesWStages * kCodesWStage + 2 * kCodesOut + 1024;

struct CodesTile {
  int item_row, place, count;  // the item's first row of x, its first place, its rows
  int expert;                  // in the tables
  int first, limit;            // outputs: of this tile, in all
  int steps;
};

template <bool kDown>
struct CodesProblem {
  static constexpr int kOutputs = kDown ? 128 : 64;  // of a tile
  static constexpr int kTables = kDown ? 1 : 2;

  CUtensorMap x, shared_x;
  CUtensorMap w[kGemmExperts + 1][kTables];  // the last is the shared expert's
  const void *scales[kGemmExperts + 1][kTables], *mins[kGemmExperts + 1][kTables];
  MoeGroups groups;
  int T, K;
  bool routed;              // whether the groups' items are done
  int shared_items, pairs;  // pairs of tiles of outputs
  int rows, steps, shared_rows, shared_steps;
  DType scale_dtype;
  int group_shift, group_rows, groups_a_row, shared_groups_a_row;
  std::uint16_t* out;
  std::int64_t stride;

  __device__ int tiles() const { return (shared_items + (routed ? *groups.n_items : 0)) * pairs; }
  // Tile n of a cluster, where read() gives the item that item_of(n) names.
  __device__ const int4* item_of(int n) const {
    const int item = n / pairs;
    return item < shared_items ? nullptr : groups.items + (item - shared_items);
  }
  template <typename Read>
  __device__ void locate(CodesTile& t, int n, int rank, Read read) const {
    const int item = n / pairs, column = n % pairs * 2 + rank;
    if (item < shared_items) {
      t.expert = kGemmExperts;
      t.place = T * K + item * kGemmCodesItem;
      t.item_row = kDown ? t.place : item * kGemmCodesItem;
      t.count = min(kGemmCodesItem, T - item * kGemmCodesItem);
    } else {
      const int4 at = read();
      t.expert = at.x;
      t.place = t.item_row = at.y;
      t.count = at.z;
    }
    const bool shared = item < shared_items;
    t.first = column * kOutputs;
    t.limit = shared ? shared_rows : rows;
    t.steps = shared ? shared_steps : steps;  // a multiple of kCodesStages
  }
  __device__ int groups_of(const CodesTile& t) const {
    return t.expert == kGemmExperts ? shared_groups_a_row : groups_a_row;
  }
  // Where row r of a tile goes, r < count.
  __device__ int row(const CodesTile& t, int r) const {
    const int place = t.place + r;
    return kDown && place < T * K ? groups.order[place] : place;
  }
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

__device__ __forceinline__ void warpgroup_barrier(int id) {
  asm volatile("barrier.sync %0, 128;" ::"r"(id) : "memory");
}
// Four 8 × 8 tiles turned: lane i has the address of row i % 8 of tile i / 8.
__device__ __forceinline__ void stmatrix4_turned(std::uint32_t at, const std::uint32_t (&v)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(at), "r"(v[0]), "r"(v[1]),
               "r"(v[2]), "r"(v[3])
               : "memory");
}

struct CodesRing {
  int stage = 0;
  std::uint32_t parity = 0;
  template <int kStages>
  __device__ void next() {
    if (++stage == kStages) stage = 0, parity ^= 1;
  }
};

// What a multiplying warp knows of its place and of the rings. Tiles take whole turns of x's ring.
struct CodesWarp {
  std::uint32_t w, out;                 // shared memory: this lane's first row of W, its units turned; sums
  std::uint32_t full, w_full, w_empty;  // barriers
  std::uint32_t empty;                  // x's of one of the two blocks, for lanes 0 and 1
  std::uint64_t x;                      // descriptor of x's first stage
  int half, warp, lane;                 // warpgroup of the block, warp of it
  std::uint32_t x_parity;
  CodesRing w_ring;
};

// Sums of gate and up, or of down, to their rows.
template <bool kDown, int kN>
__device__ __forceinline__ void codes_store(const CodesProblem<kDown>& p, const CodesTile& tile, const CodesWarp& me,
                                            const int (&rows)[2], const float (&acc)[kN / 2]) {
  constexpr int kUnits = kDown ? 8 : 4, kRowBytes = kUnits * 16;  // of a row of x, of this warpgroup
  constexpr int kPass = kDown ? 128 : 256;                        // rows of x that there is room for
  // Where sums go is worked out anew for every tile: kept, it would take registers that products need.
  int lane = me.lane;
  asm volatile("" : "+r"(lane));
  const int warp = me.warp, q = lane % 8, tile_of_lane = lane / 8;
#pragma unroll
  for (int begin = 0; begin < kN; begin += kPass) {
    warpgroup_barrier(1 + me.half);       // the room has been read
    constexpr int kEach = kDown ? 2 : 4;  // eights of rows of x at once
#pragma unroll
    for (int n = begin / 8; n < min(kN, begin + kPass) / 8; n += kEach) {
      std::uint32_t v[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if constexpr (kDown) {
          const float* s = acc + (n + i / 2) * 4 + i % 2 * 2;
          v[i] = pack_bf16(s[0], s[1]);
        } else {
          const float* s = acc + (n + i) * 4;
          v[i] = pack_bf16(fast_silu(s[0]) * s[2], fast_silu(s[1]) * s[3]);
        }
      }
      const int r = (n + (kDown ? tile_of_lane / 2 : tile_of_lane)) * 8 + q - begin;
      const int unit = kDown ? (warp * 2 + tile_of_lane % 2) ^ q : warp ^ (q / 2);
      stmatrix4_turned(me.out + r * kRowBytes + unit * 16, v);
    }
    warpgroup_barrier(1 + me.half);
    constexpr int kAtOnce = 32 / kUnits, kRows = kPass / 4;  // rows of a warp: at once, in all
    constexpr int kTurns = (kN < kRows ? kN : kRows) / kAtOnce;
    const int unit = lane % kUnits, o = tile.first + me.half * (kUnits * 8) + unit * 8;
    uint4 v[kTurns];
#pragma unroll
    for (int i = 0; i < kTurns; ++i) {
      const int r = warp * kRows + i * kAtOnce + lane / kUnits;
      v[i] = lds128(me.out + r * kRowBytes + (kDown ? unit ^ (r & 7) : unit ^ (r / 2 & 3)) * 16);
    }
#pragma unroll
    for (int i = 0; i < kTurns; ++i) {
      const int in_warp = i * kAtOnce + lane / kUnits, r = begin + warp * kRows + in_warp;
      int row = tile.place + r;
      if constexpr (kDown) row = __shfl_sync(0xffffffffU, rows[begin / kPass], in_warp);
      if (r < tile.count && o < tile.limit) *reinterpret_cast<uint4*>(p.out + row * p.stride + o) = v[i];
    }
  }
}

// One tile: kN columns, of which the item has the last 32 in part. `seek` looks for the next tile meanwhile.
template <typename Decoder, bool kDown, int kN, typename Seek>
__device__ __forceinline__ void codes_tile(const CodesProblem<kDown>& p, const CodesTile& tile, CodesWarp& me,
                                           Decoder& decoder, Seek seek) {
  float acc[kN / 2];
#pragma unroll
  for (int i = 0; i < kN / 2; ++i) acc[i] = 0;  // never read undefined: the seven widths' sums then share registers
  const auto release = [&me](int stage) {
    if (me.lane < 2) barrier_arrive_there(me.empty + 8 * stage);
  };
  // A step's codes and scales are in registers before the batch ahead of it has ended. Step i of a turn.
  const auto prepare = [&](int step, int i) {
    constexpr int kSteps = Decoder::kSteps;
    if (i % kSteps == 0) barrier_wait(me.w_full + 8 * me.w_ring.stage, me.w_ring.parity);
    decoder.load(me.w + me.w_ring.stage * kCodesWStage, i % kSteps);
    decoder.scale(step, i);
    if (i % kSteps == kSteps - 1) {
      __syncwarp();
      if (me.lane == 0) barrier_arrive(me.w_empty + 8 * me.w_ring.stage);
      me.w_ring.template next<kCodesWStages>();
    }
  };
  for (int first = 0; first < tile.steps; first += kCodesStages) {
    prepare(first, 0);
#pragma unroll
    for (int i = 0; i < kCodesStages; ++i) {
      barrier_wait(me.full + 8 * i, me.x_parity);
      const std::uint64_t x = further(me.x, i * kCodesStage);
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        std::uint32_t a[2][4];
        decoder.decode(2 * j, a[0]);
        decoder.decode(2 * j + 1, a[1]);
        wgmma_begin();
        wgmma_add_of_registers(acc, a[0], further(x, 64 * j));
        wgmma_add_of_registers(acc, a[1], further(x, 64 * j + 32));
        wgmma_commit();
        if (j == 1 && i + 1 < kCodesStages) prepare(first + i + 1, i + 1);
        wgmma_wait<1>();
        if (j == 0 && (i > 0 || first > 0)) release((i + kCodesStages - 1) % kCodesStages);
      }
    }
    me.x_parity ^= 1;
  }
  int rows[2] = {0, 0};  // of down: where rows 32 warp + lane and 128 further go
  if constexpr (kDown) {
    for (int i = 0; i < 2; ++i) {
      const int r = 128 * i + 32 * me.warp + me.lane;
      if (r < tile.count) rows[i] = p.row(tile, r);
    }
  }
  seek();  // its reads go on while the last products do
  wgmma_wait<0>();
  hold(acc);
  release(kCodesStages - 1);
  if (tile.first < tile.limit) codes_store<kDown, kN>(p, tile, me, rows, acc);
}

#endif

template <WeightFormat F, CodesScaling kScaling, bool kDown>
__global__ void __launch_bounds__(kGemmThreads, 1) codes_kernel(const __grid_constant__ CodesProblem<kDown> problem) {
  pdl_launch();
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using Decoder = CodesDecoder<F, kScaling>;
  extern __shared__ __align__(128) unsigned char smem[];
  __shared__ std::uint64_t barriers[2 * (kCodesStages + kCodesWStages)];
  __shared__ float nf4[16];
  __shared__ __align__(16) int4 items[8];  // of each multiplying warp: the next tile's
  const std::uint32_t base = (shared_address(smem) + 1023) & ~1023U, w_base = base + kCodesStages * kCodesStage;
  const std::uint32_t full = shared_address(barriers), empty = full + 8 * kCodesStages;
  const std::uint32_t w_full = empty + 8 * kCodesStages, w_empty = w_full + 8 * kCodesWStages;
  const int group = __shfl_sync(0xffffffffU, static_cast<int>(threadIdx.x / 128), 0);  // the same in all lanes, visibly
  const int rank = static_cast<int>(blockIdx.x % 2), clusters = static_cast<int>(gridDim.x / 2);
  if (threadIdx.x == 0) {
    for (int s = 0; s < kCodesStages; ++s) {
      barrier_init(full + 8 * s, 1);
      barrier_init(empty + 8 * s, 16);  // the warps that multiply, of both blocks
    }
    for (int s = 0; s < kCodesWStages; ++s) {
      barrier_init(w_full + 8 * s, 1);
      barrier_init(w_empty + 8 * s, 8);
    }
    barrier_init_fence();
  }
  if (threadIdx.x < 16) nf4[threadIdx.x] = kNf4[threadIdx.x];
  __syncthreads();
  cluster_barrier();
  pdl_wait();
  const int n_tiles = problem.tiles();

  if (group == 0) {
    fewer_registers<24>();
    if (threadIdx.x == 0) {
      CodesRing x_ring{.parity = 1}, w_ring{.parity = 1};  // a fresh barrier's previous phase counts as complete
      for (int n = static_cast<int>(blockIdx.x / 2); n < n_tiles; n += clusters) {
        CodesTile tile;
        problem.locate(tile, n, rank, [&] { return *problem.item_of(n); });
        const int boxes = (tile.count + kCodesBox - 1) / kCodesBox;
        const CUtensorMap* x = tile.expert == kGemmExperts ? &problem.shared_x : &problem.x;
        const CUtensorMap* w = problem.w[tile.expert];
        for (int step = 0; step < tile.steps; ++step) {
          if (step % Decoder::kSteps == 0) {
            const std::uint32_t to = w_base + w_ring.stage * kCodesWStage, done = w_full + 8 * w_ring.stage;
            barrier_wait(w_empty + 8 * w_ring.stage, w_ring.parity);
            barrier_expect(done, kCodesWStage);
            const int column = step / Decoder::kSteps * 64;  // in pairs of bytes
            tensor_copy(to, w, column, tile.first, done);
            tensor_copy(to + kCodesWStage / 2, kDown ? w : w + 1, column, tile.first + (kDown ? kCodesBox : 0), done);
            w_ring.next<kCodesWStages>();
          }
          const std::uint32_t to = base + x_ring.stage * kCodesStage, done = full + 8 * x_ring.stage;
          barrier_wait(empty + 8 * x_ring.stage, x_ring.parity);
          barrier_expect(done, boxes * (kCodesBox * 128));
          for (int i = rank; i < boxes; i += 2)
            tensor_copy_both(to + i * (kCodesBox * 128), x, step * 64, tile.item_row + i * kCodesBox, done);
          x_ring.next<kCodesStages>();
        }
      }
    }
    __syncwarp();
  } else {
    more_registers<240>();
    const int warp = static_cast<int>(threadIdx.x / 32 % 4), lane = static_cast<int>(threadIdx.x % 32), g = lane / 4;
    const int half = group - 1;
    // Of the 128 rows in shared memory: gate's and up's lie in halves.
    const int my_row = kDown ? half * 64 + warp * 16 + g : half * 32 + warp * 8 + g;
    CodesWarp me{.w = w_base + my_row * 128 + g * 16,
                 .out = w_base + kCodesWStages * kCodesWStage + half * kCodesOut,
                 .full = full,
                 .w_full = w_full,
                 .w_empty = w_empty,
                 .empty = address_in(empty, lane % 2),
                 .x = k_major(base),
                 .half = half,
                 .warp = warp,
                 .lane = lane,
                 .x_parity = 0,
                 .w_ring = {}};
    Decoder decoder(lane, kDown ? 8 * 128 : kCodesWStage / 2, shared_address(nf4));
    CodesTile tile, next{};
    int n = static_cast<int>(blockIdx.x / 2);
    if (n < n_tiles) {
      problem.locate(tile, n, rank, [&] { return *problem.item_of(n); });
      decoder.seek(problem, tile, my_row);
    }
    const std::uint32_t slot = shared_address(items + group * 4 + warp - 4);
    for (; n < n_tiles; n += clusters, tile = next) {
      // The next tile's item comes while this tile is worked on, without a register.
      const int after = n + clusters;
      if (after < n_tiles && lane == 0 && problem.item_of(after) != nullptr) cp_async16(slot, problem.item_of(after));
      cp_async_commit();
      const auto look = [&] {
        cp_async_wait<0>();
        __syncwarp();
        if (after >= n_tiles) return;
        problem.locate(next, after, rank, [&] {
          const uint4 v = lds128(slot);
          return int4{static_cast<int>(v.x), static_cast<int>(v.y), static_cast<int>(v.z), 0};
        });
        decoder.seek(problem, next, my_row);
      };
      const int columns = (tile.count + 31) / 32;
      if (columns > 6) {
        codes_tile<Decoder, kDown, 256>(problem, tile, me, decoder, look);
      } else if (columns > 5) {
        codes_tile<Decoder, kDown, 192>(problem, tile, me, decoder, look);
      } else if (columns > 4) {
        codes_tile<Decoder, kDown, 160>(problem, tile, me, decoder, look);
      } else if (columns > 3) {
        codes_tile<Decoder, kDown, 128>(problem, tile, me, decoder, look);
      } else if (columns > 2) {
        codes_tile<Decoder, kDown, 96>(problem, tile, me, decoder, look);
      } else if (columns > 1) {
        codes_tile<Decoder, kDown, 64>(problem, tile, me, decoder, look);
      } else {
        codes_tile<Decoder, kDown, 32>(problem, tile, me, decoder, look);
      }
    }
  }
  cluster_barrier();  // no block ends while the other may still reach into it
#else
  pdl_wait();
#endif
}

template <WeightFormat F, CodesScaling kScaling, bool kDown>
void run_codes(const Launch& l, const GemmCodes& g) {
  const GemmMoe& m = g.m;
  CodesProblem<kDown> p{};
  const std::int64_t slots = std::int64_t{m.T} * m.K;
  if constexpr (kDown) {
    p.x = p.shared_x = matrix_map(m.h, slots + m.T, m.depth, m.h_stride, kCodesBox);
    if (m.has_shared && m.shared_depth != m.depth)
      p.shared_x = matrix_map(m.h, slots + m.T, m.shared_depth, m.h_stride, kCodesBox);
  } else {
    p.x = matrix_map(m.sorted, slots, m.depth, m.depth, kCodesBox);
    p.shared_x = m.has_shared ? matrix_map(m.x, m.T, m.shared_depth, m.x_stride, kCodesBox) : p.x;
  }
  const auto set = [&](int to, int expert, const MatShape& shape) {
    const ExpertTable* tables[2] = {&m.first, &m.second};
    const std::int64_t pairs = std::int64_t{shape.cols} * weight_code_bits(F) / 16;  // of bytes
    for (int i = 0; i < CodesProblem<kDown>::kTables; ++i) {
      const MatPtr& at = tables[i]->at[expert];
      p.w[to][i] = matrix_map(at.data, shape.rows, pairs, pairs, kCodesBox);
      p.scales[to][i] = at.scales;
      p.mins[to][i] = at.mins;
    }
  };
  for (int e = 0; e < m.n_experts; ++e) set(e, e, g.shape);
  if (m.has_shared) set(kGemmExperts, kMaxExperts, g.shared_shape);
  p.groups = m.groups;
  p.T = m.T;
  p.K = m.K;
  p.routed = m.n_experts > 0;
  p.shared_items = m.has_shared ? static_cast<int>(ceil_div(m.T, kGemmCodesItem)) : 0;
  p.pairs =
      static_cast<int>(ceil_div(std::max(m.rows, m.has_shared ? m.shared_rows : 0), 2 * CodesProblem<kDown>::kOutputs));
  p.rows = m.rows;
  p.steps = static_cast<int>(ceil_div(m.depth, kCodesStages * kGemmStep)) * kCodesStages;
  p.shared_rows = m.shared_rows;
  p.shared_steps = static_cast<int>(ceil_div(m.shared_depth, kCodesStages * kGemmStep)) * kCodesStages;
  p.scale_dtype = g.shape.scale_dtype;
  p.group_shift = 31;
  for (int shift = 5; shift < 31; ++shift) {
    if (g.shape.group == 1 << shift) p.group_shift = shift;
  }
  p.group_rows = g.shape.group_rows;
  p.groups_a_row = g.shape.groups_a_row;
  p.shared_groups_a_row = g.shared_shape.groups_a_row;
  p.out = static_cast<std::uint16_t*>(kDown ? m.y : m.h);
  p.stride = kDown ? m.y_stride : m.h_stride;
  const std::int64_t clusters = std::min<std::int64_t>((m.groups.max_items + p.shared_items) * p.pairs, l.n_sms / 2);
  launch_clusters(l, codes_kernel<F, kScaling, kDown>, dim3(static_cast<unsigned>(2 * clusters)), dim3(kGemmThreads),
                  kCodesBytes, 2, p);
}

// One instance a file: gemm_codes_*.cu.
template <WeightFormat F, CodesScaling kScaling>
void gemm_codes_of(const Launch& l, const GemmCodes& g) {
  g.m.down ? run_codes<F, kScaling, true>(l, g) : run_codes<F, kScaling, false>(l, g);
}

}  // namespace glint::cuda
