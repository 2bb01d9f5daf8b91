// Attention of long prefills on Hopper, in the expanded form: kv_b makes keys and values of the cached latents, in
// blocks of the context that fit the workspace; then each query head meets its own keys and values. A pair of a row and
// a token costs 1,024 multiply-adds a head less than half of the absorbed form's 2,176 FLOPs, and a token of the
// context 9.2 MFLOP once a chunk, so that this pays from some 200 rows on.
//
// The pages of all sequences with enough rows are numbered one after the other; a block is kBlockPages of them. For
// each block: the latents as BF16 (decoded, H undone), one product with kv_b that writes keys and values as the tiles
// that wgmma reads, and attention over the block. What a (row, head) has at the end of a block, its answer not yet
// divided by its sum of weights, waits in `out` for the next. Running maxima are rounded up to whole numbers as in
// attend.cu, so that cutting a context changes the order of sums only.

#include "backends/cuda/gemm.cuh"
#include "backends/cuda/kv_codec.cuh"
#include "backends/cuda/tensor_map.hpp"

namespace glint::cuda {
namespace {

constexpr int kRows = 128, kThreads = 384, kStages = 2;
constexpr int kHeadRows = 448, kValueWidth = 256;  // of kv_b: 192 W_UK, then 256 W_UV
// A page's keys or values: tiles of 64 tokens and 64 columns.
constexpr int kTile = kPageRows * 128, kNopeTiles = 3, kHeadTiles = kHeadRows / 64;
constexpr int kKeyBytes = 4 * kTile, kValueBytes = 4 * kTile, kQueryBytes = kRows * kQkWidth * 2;
constexpr std::size_t kFlashBytes = kQueryBytes + kStages * (kKeyBytes + kValueBytes) + 1024;
constexpr float kScaleLog2 = 0.0625F * 1.4426950408889634F;  // 1/16, and to base 2

struct Args {
  const float* q;
  const std::uint16_t* q_bf16;  // instead, if given
  float* out;                   // what waits between blocks of the context, too
  std::uint16_t* out_bf16;      // where answers go instead, if given; may be q_bf16
  float2* state;                // [T, heads]: maximum and sum of the blocks so far
  const unsigned char* pages;
  std::int64_t page_stride;
  const std::int32_t *row_offsets, *context_tokens, *page_table;
  int heads, n_seqs, max_pages, window;
  int block_pages, first_page;    // of this block, counted over all sequences
  std::uint16_t* latent;          // [block_pages · 64, 512]
  unsigned char *tiles, *rotary;  // [block_pages][heads][7], [block_pages] tiles
  int* live_pages;                // [1]: of this block
};

// A sequence of this op: its rows, and the pages that some row of it sees.
struct Span {
  int row0, rows, context, begin, first_page, pages;  // begin: the first token seen
};
__device__ Span span_of(const Args& a, int seq) {
  Span s{};
  if (seq >= a.n_seqs) return s;
  s.row0 = a.row_offsets[seq];
  s.rows = a.row_offsets[seq + 1] - s.row0;
  if (s.rows < kManyRows) return {};
  s.context = a.context_tokens[seq];
  s.begin = a.window > 0 ? max(0, s.context - s.rows + 1 - a.window) : 0;
  s.first_page = s.begin / kPageRows;
  s.pages = (s.context - 1) / kPageRows - s.first_page + 1;
  return s;
}

// Where number `wanted` of the pages, or of the tiles of rows, lies: its sequence, its number there, and how many pages
// the sequences before have. seq is -1 beyond the last; pages_before is then the number of all. Each warp for itself.
struct Place {
  int seq, index, pages_before;
};
template <bool kPages>
__device__ Place find(const Args& a, int wanted) {
  const int lane = threadIdx.x % 32;
  int pages_before = 0;
  for (int base = 0; base < a.n_seqs; base += 32) {
    const Span s = span_of(a, base + lane);
    const int n = kPages ? s.pages : (s.rows + kRows - 1) / kRows;
    int sum = n, pages = s.pages;
#pragma unroll
    for (int d = 1; d < 32; d <<= 1) {
      const int other = __shfl_up_sync(0xffffffffU, sum, d), more = __shfl_up_sync(0xffffffffU, pages, d);
      if (lane >= d) sum += other, pages += more;
    }
    const unsigned here = __ballot_sync(0xffffffffU, wanted < sum && wanted >= sum - n);
    if (here != 0) {
      const int at = __ffs(here) - 1;
      return {base + at, wanted - __shfl_sync(0xffffffffU, sum - n, at),
              pages_before + __shfl_sync(0xffffffffU, pages - s.pages, at)};
    }
    wanted -= __shfl_sync(0xffffffffU, sum, 31);
    pages_before += __shfl_sync(0xffffffffU, pages, 31);
  }
  return {-1, 0, pages_before};
}

// ---- latents --------------------------------------------------------------------------------------------------------

// A block a page, a warp eight of its rows: latents dense, rotary keys as a tile. Rows that nobody sees become zeros.
template <KvCodec kCodec>
__global__ void __launch_bounds__(256) gather_kernel(const __grid_constant__ Args a) {
  __shared__ uint4 turned[8][kLatentWidth / 8];
  pdl_launch();
  pdl_wait();
  if (blockIdx.x == 0 && threadIdx.x < 32) {
    const int live = find<true>(a, 1 << 30).pages_before - a.first_page;
    if (threadIdx.x == 0) *a.live_pages = max(0, min(a.block_pages, live));
  }
  const Place place = find<true>(a, a.first_page + static_cast<int>(blockIdx.x));
  if (place.seq < 0) return;
  const Span s = span_of(a, place.seq);
  const int page = s.first_page + place.index, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const unsigned char* from =
      a.pages + a.page_table[static_cast<std::int64_t>(place.seq) * a.max_pages + page] * a.page_stride;
  auto* latent = reinterpret_cast<uint4*>(a.latent) + static_cast<std::int64_t>(blockIdx.x) * kPageRows * 64;
  unsigned char* rotary = a.rotary + static_cast<std::int64_t>(blockIdx.x) * kTile;
  for (int r = warp; r < kPageRows; r += 8) {
    const int token = page * kPageRows + r;
    const unsigned char* row = from + r * kCacheRowBytes<kCodec>;
    uint4 unit[2] = {};  // 2 lane, 2 lane + 1
    std::uint32_t pair = 0;
    if (token >= s.begin && token < s.context) {
      if constexpr (is_short(kCodec)) {
        const RowPart part = decode_part<kCodec>(raw_part<kCodec>(row, lane), lane);
        pair = part.rotary;
        if constexpr (is_rotated(kCodec)) {
          turned[warp][first_unit<kCodec>(lane)] = part.unit[0];
          turned[warp][first_unit<kCodec>(lane) + kUnitStep<kCodec>] = part.unit[1];
          __syncwarp();
          hadamard_bf16(turned[warp], lane);
          unit[0] = turned[warp][2 * lane], unit[1] = turned[warp][2 * lane + 1];
          __syncwarp();
        } else {
          unit[0] = part.unit[0], unit[1] = part.unit[1];
        }
      } else if constexpr (kCodec == KvCodec::kF32) {
        const auto* v = reinterpret_cast<const float4*>(row) + 4 * lane;
#pragma unroll
        for (int u = 0; u < 2; ++u) {
          const float4 x = v[2 * u], y = v[2 * u + 1];
          unit[u] = {pack_bf16(x.x, x.y), pack_bf16(x.z, x.w), pack_bf16(y.x, y.y), pack_bf16(y.z, y.w)};
        }
        const float2 p = reinterpret_cast<const float2*>(row)[kLatentWidth / 2 + lane];
        pair = pack_bf16(p.x, p.y);
      } else {
        unit[0] = reinterpret_cast<const uint4*>(row)[2 * lane];
        unit[1] = reinterpret_cast<const uint4*>(row)[2 * lane + 1];
        pair = reinterpret_cast<const std::uint32_t*>(row)[kLatentWidth / 2 + lane];
      }
    }
    latent[r * 64 + 2 * lane] = unit[0];
    latent[r * 64 + 2 * lane + 1] = unit[1];
    *reinterpret_cast<std::uint32_t*>(rotary + swizzled(r, lane / 4, 128) + lane % 4 * 4) = pair;
  }
}

// ---- keys and values ------------------------------------------------------------------------------------------------

// latents · kv_bᵀ, as a problem of gemm.cuh: 64 columns of the product are one of a head's seven tiles.
struct Expansion {
  static constexpr GemmOut kOut = GemmOut::kBF16;
  static constexpr GemmShare kShare = GemmShare::kWeights;

  CUtensorMap x, w;
  Args a;
  int outputs, columns;

  struct Range {
    int rows, pairs;
  };
  __device__ Range range() const {
    const int rows = *a.live_pages * kPageRows;
    return {rows, (rows + 2 * kGemmRows - 1) / (2 * kGemmRows)};
  }
  __device__ int tiles(Range r) const { return r.pairs * columns; }
  __device__ void locate(GemmTile& t, Range r, int n, int rank) const {
    const GemmPlace at = gemm_place(n, r.pairs, columns);
    t.x = &x;
    t.w[0] = t.w[1] = &w;
    t.x_row = (2 * at.pair + rank) * kGemmRows;
    t.count = min(kGemmRows, r.rows - t.x_row);
    t.first = at.column * kGemmCols;
    t.limit = outputs;
    t.w_row[0] = t.first;
    t.w_row[1] = t.first + kGemmBoxB;
    t.steps = t.w_steps = kLatentWidth / kGemmStep;
  }
  __device__ int key(const GemmTile& t, int r) const { return t.x_row + r; }
  struct Row {
    unsigned char* tiles;
    int row;
  };
  __device__ Row row(const GemmTile&, int token) const {
    return {a.tiles + static_cast<std::int64_t>(token / kPageRows) * a.heads * kHeadTiles * kTile, token % kPageRows};
  }
  __device__ void store_unit(Row row, int o, uint4 v) const {
    *reinterpret_cast<uint4*>(row.tiles + o / 64 * kTile + swizzled(row.row, o % 64 / 8, 128)) = v;
  }
};

// ---- attention ------------------------------------------------------------------------------------------------------

// Block (128 rows of a sequence, head), later rows first: a thread of the first warpgroup fetches keys and values, the
// other two have 64 rows each.
__global__ void __launch_bounds__(kThreads, 1) flash_kernel(const __grid_constant__ Args a) {
  pdl_launch();
  pdl_wait();
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ __align__(128) unsigned char smem[];
  __shared__ std::uint64_t barriers[4 * kStages];
  const Place place = find<false>(a, static_cast<int>(gridDim.x - 1 - blockIdx.x));
  if (place.seq < 0) return;
  const Span s = span_of(a, place.seq);
  const int head = blockIdx.y, first_row = place.index * kRows, count = min(kRows, s.rows - first_row);
  // What rows see, by their number in the sequence; pages in the order of all pages.
  const auto end_of = [&](int row) { return s.context - s.rows + row + 1; };
  const auto begin_of = [&](int row) { return a.window > 0 ? max(0, end_of(row) - a.window) : 0; };
  const int shift = place.pages_before - s.first_page;  // from pages of the sequence
  const int low_page = shift + begin_of(first_row) / kPageRows;
  const int high_page = shift + (end_of(first_row + count - 1) - 1) / kPageRows;
  const int low = max(low_page, a.first_page), high = min(high_page, a.first_page + a.block_pages - 1);
  if (low > high) return;

  const std::uint32_t q_base = (shared_address(smem) + 1023) & ~1023U, k_base = q_base + kQueryBytes;
  const std::uint32_t v_base = k_base + kStages * kKeyBytes;
  const std::uint32_t full_k = shared_address(barriers), full_v = full_k + 8 * kStages;
  const std::uint32_t empty_k = full_v + 8 * kStages, empty_v = empty_k + 8 * kStages;
  const int thread = threadIdx.x % 128, lane = threadIdx.x % 32;
  const int group = __shfl_sync(0xffffffffU, static_cast<int>(threadIdx.x / 128), 0);  // the same in all lanes, visibly
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) {
      barrier_init(full_k + 8 * i, 1);
      barrier_init(full_v + 8 * i, 1);
      barrier_init(empty_k + 8 * i, 8);
      barrier_init(empty_v + 8 * i, 8);
    }
    barrier_init_fence();
  }
  __syncthreads();

  if (group == 0) {
    fewer_registers<24>();
    if (threadIdx.x != 0) return;
    for (int page = low; page <= high; ++page) {
      const int i = page - low, stage = i % kStages, round = i / kStages;
      const std::int64_t local = page - a.first_page;
      const unsigned char* from = a.tiles + (local * a.heads + head) * kHeadTiles * kTile;
      const std::uint32_t k = k_base + stage * kKeyBytes;
      if (round > 0) barrier_wait(empty_k + 8 * stage, (round - 1) & 1);
      barrier_expect(full_k + 8 * stage, kKeyBytes);
      bulk_copy(k, from, kNopeTiles * kTile, full_k + 8 * stage);
      bulk_copy(k + kNopeTiles * kTile, a.rotary + local * kTile, kTile, full_k + 8 * stage);
      if (round > 0) barrier_wait(empty_v + 8 * stage, (round - 1) & 1);
      barrier_expect(full_v + 8 * stage, kValueBytes);
      bulk_copy(v_base + stage * kValueBytes, from + kNopeTiles * kTile, kValueBytes, full_v + 8 * stage);
    }
    return;
  }

  more_registers<240>();
  const int half = group - 1, g = lane / 4, t = lane % 4;
  const int group_row = first_row + half * 64, group_count = min(64, count - half * 64);  // of this warpgroup
  for (int i = thread; i < 64 * 32; i += 128) {
    const int r = i / 32, unit = i % 32;
    uint4 v{};
    const std::int64_t at = (static_cast<std::int64_t>(s.row0 + group_row + r) * a.heads + head) * kQkWidth;
    if (r < group_count && a.q_bf16 != nullptr) {
      v = reinterpret_cast<const uint4*>(a.q_bf16 + at)[unit];
    } else if (r < group_count) {
      const auto* from = reinterpret_cast<const float4*>(a.q + at) + 2 * unit;
      const float4 x = from[0], y = from[1];
      v = {pack_bf16(x.x, x.y), pack_bf16(x.z, x.w), pack_bf16(y.x, y.y), pack_bf16(y.z, y.w)};
    }
    sts128(q_base + unit / 8 * (kRows * 128) + swizzled(half * 64 + r, unit % 8, 128), v);
  }
  fence_async_proxy();
  asm volatile("bar.sync %0, 128;" ::"r"(group) : "memory");

  // This thread's two rows.
  const int row = group_row + thread / 32 * 16 + g;
  float out[128], top[2] = {-INFINITY, -INFINITY}, sum[2] = {};
  const bool resumed = low > low_page, ends = high == high_page;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const bool live = row + 8 * h < first_row + count;
    const std::int64_t pair = static_cast<std::int64_t>(s.row0 + row + 8 * h) * a.heads + head;
    if (resumed && live) {
      const float2 before = a.state[pair];
      top[h] = before.x;
      sum[h] = t == 0 ? before.y : 0.0F;
    }
#pragma unroll
    for (int n = 0; n < 32; ++n) {
      float2 v{};
      if (resumed && live) v = reinterpret_cast<const float2*>(a.out + pair * kValueWidth)[4 * n + t];
      out[4 * n + 2 * h] = v.x, out[4 * n + 2 * h + 1] = v.y;
    }
  }

  const int my_low = shift + begin_of(group_row) / kPageRows;
  const int my_high = group_count > 0 ? shift + (end_of(group_row + group_count - 1) - 1) / kPageRows : -1;
  const std::uint64_t q_tile = k_major(q_base + half * 64 * 128);
  // A page's place in the ring.
  const auto stage_of = [&](int page) { return (page - low) % kStages; };
  const auto parity_of = [&](int page) { return static_cast<std::uint32_t>((page - low) / kStages & 1); };
  const auto release = [&](std::uint32_t empty, int page) {
    if (lane == 0) barrier_arrive(empty + 8 * stage_of(page));
  };
  const auto multiply_keys = [&](float(&score)[32], int page) {
    barrier_wait(full_k + 8 * stage_of(page), parity_of(page));
    const std::uint64_t k_tile = k_major(k_base + stage_of(page) * kKeyBytes);
    wgmma_begin();
#pragma unroll
    for (int c = 0; c < 16; ++c)
      wgmma_64(score, q_tile + (c / 4 * (kRows * 128) + c % 4 * 32) / 16, k_tile + (c / 4 * kTile + c % 4 * 32) / 16,
               c > 0);
    wgmma_commit();
  };
  // Pages that only the other warpgroup wants.
  const auto skip = [&](int begin, int end) {
    for (int page = begin; page < end; ++page) {
      barrier_wait(full_k + 8 * stage_of(page), parity_of(page));
      release(empty_k, page);
      barrier_wait(full_v + 8 * stage_of(page), parity_of(page));
      release(empty_v, page);
    }
  };
  const int first = max(low, my_low), last = min(high, my_high);
  float score[32], factor[2];
  std::uint32_t p[4][4];  // weights: 16 tokens each
  // Scores to weights, and what sums so far have to be multiplied by. Products may read p meanwhile.
  const auto weigh = [&](int page) {
    const int token0 = (page - shift) * kPageRows;
    const bool partly = token0 + kPageRows > end_of(group_row) || token0 < begin_of(group_row + 63);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      if (partly) {
        const int begin = begin_of(row + 8 * h) - token0, end = end_of(row + 8 * h) - token0;
#pragma unroll
        for (int n = 0; n < 8; ++n) {
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            const int token = 8 * n + 2 * t + e;
            if (token < begin || token >= end) score[4 * n + 2 * h + e] = -INFINITY;
          }
        }
      }
      float m = -INFINITY;
#pragma unroll
      for (int n = 0; n < 8; ++n) m = fmaxf(m, fmaxf(score[4 * n + 2 * h], score[4 * n + 2 * h + 1]));
      m = fmaxf(m, __shfl_xor_sync(0xffffffffU, m, 1));
      m = fmaxf(m, __shfl_xor_sync(0xffffffffU, m, 2));
      m = fmaxf(top[h], ceilf(m * kScaleLog2));
      const float base = m == -INFINITY ? 0.0F : m;  // nothing seen so far: every weight is 2^-inf = 0
      factor[h] = power_of_two(top[h] - base);
      top[h] = m;
      float added = 0;
#pragma unroll
      for (int n = 0; n < 8; ++n) {
        const std::uint32_t w = pack_bf16(power_of_two(fmaf(score[4 * n + 2 * h], kScaleLog2, -base)),
                                          power_of_two(fmaf(score[4 * n + 2 * h + 1], kScaleLog2, -base)));
        added += bf16_low(w) + bf16_high(w);
        score[4 * n + 2 * h] = bf16_low(w);
        score[4 * n + 2 * h + 1] = bf16_high(w);
      }
      sum[h] = sum[h] * factor[h] + added;
    }
  };
  const auto take_weights = [&] {
    // Whole numbers seldom grow.
    if (__any_sync(0xffffffffU, factor[0] != 1 || factor[1] != 1)) {
#pragma unroll
      for (int n = 0; n < 32; ++n) {
        out[4 * n] *= factor[0], out[4 * n + 1] *= factor[0];
        out[4 * n + 2] *= factor[1], out[4 * n + 3] *= factor[1];
      }
    }
#pragma unroll
    for (int i = 0; i < 16; ++i)
      p[i / 4][i % 4] = __byte_perm(__float_as_uint(score[2 * i]), __float_as_uint(score[2 * i + 1]), 0x7632);
  };
  const auto multiply_values = [&](int page) {
    barrier_wait(full_v + 8 * stage_of(page), parity_of(page));
    const std::uint64_t v_tile = mn_major(v_base + stage_of(page) * kValueBytes, kTile);
    wgmma_begin();
#pragma unroll
    for (int k = 0; k < 4; ++k) wgmma_256_of_registers(out, p[k], v_tile + k * (2048 / 16));
    wgmma_commit();
  };
  if (first > last) {
    skip(low, high + 1);
  } else {
    skip(low, first);
    multiply_keys(score, first);
    wgmma_wait<0>();
    hold(score);
    release(empty_k, first);
    weigh(first);
    take_weights();
    // A page's softmax runs beside the products of the page before with its values.
    for (int page = first; page < last; ++page) {
      hold(out);
      hold(score);
      multiply_keys(score, page + 1);
      multiply_values(page);
      wgmma_wait<1>();
      hold(score);
      release(empty_k, page + 1);
      weigh(page + 1);
      wgmma_wait<0>();
      hold(out);
      release(empty_v, page);
      take_weights();
    }
    hold(out);
    multiply_values(last);
    wgmma_wait<0>();
    hold(out);
    release(empty_v, last);
    skip(last + 1, high + 1);
  }

#pragma unroll
  for (int h = 0; h < 2; ++h) {
    sum[h] += __shfl_xor_sync(0xffffffffU, sum[h], 1);
    sum[h] += __shfl_xor_sync(0xffffffffU, sum[h], 2);
    const bool live = row + 8 * h < first_row + count;
    const std::int64_t pair = static_cast<std::int64_t>(s.row0 + row + 8 * h) * a.heads + head;
    const float factor = ends ? 1.0F / sum[h] : 1.0F;
    if (ends && a.out_bf16 != nullptr) {
#pragma unroll
      for (int n = 0; n < 32; n += 4) {
        std::uint32_t w[4];
#pragma unroll
        for (int i = 0; i < 4; ++i)
          w[i] = pack_bf16(out[4 * (n + i) + 2 * h] * factor, out[4 * (n + i) + 2 * h + 1] * factor);
        const uint4 unit = quad_transpose(w, t);
        if (live) reinterpret_cast<uint4*>(a.out_bf16 + pair * kValueWidth)[n + t] = unit;
      }
      continue;
    }
    if (!live) continue;
    if (!ends && t == 0) a.state[pair] = {top[h], sum[h]};
#pragma unroll
    for (int n = 0; n < 32; ++n) {
      reinterpret_cast<float2*>(a.out + pair * kValueWidth)[4 * n + t] = {out[4 * n + 2 * h] * factor,
                                                                          out[4 * n + 2 * h + 1] * factor};
    }
  }
#endif
}

void gather(const Launch& l, const Args& a, KvCodec codec) {
  const auto go = [&](auto kernel) { launch(l, kernel, dim3(static_cast<unsigned>(a.block_pages)), dim3(256), 0, a); };
  switch (codec) {
    case KvCodec::kF32:
      return go(gather_kernel<KvCodec::kF32>);
    case KvCodec::kBF16:
      return go(gather_kernel<KvCodec::kBF16>);
    case KvCodec::kFp8:
      return go(gather_kernel<KvCodec::kFp8>);
    case KvCodec::kInt8:
      return go(gather_kernel<KvCodec::kInt8>);
    case KvCodec::kInt4:
      return go(gather_kernel<KvCodec::kInt4>);
    case KvCodec::kF16:  // CudaOps::supports says no
      break;
  }
}

}  // namespace

PrefillSizes prefill_sizes(std::int64_t max_rows, std::int64_t max_context, std::int64_t heads) {
  PrefillSizes s;
  if (max_rows < kManyRows) return s;
  s.block_pages = std::clamp<std::int64_t>((max_context + kPageRows - 1) / kPageRows, 2, kBlockPages);
  s.latent_bytes = s.block_pages * kPageRows * kLatentWidth * 2 + 16;  // and Args::live_pages
  s.tile_bytes = s.block_pages * (heads * kHeadTiles + 1) * kTile;
  s.state_bytes = max_rows * heads * static_cast<std::int64_t>(sizeof(float2));
  return s;
}

bool attend_prefill_takes(const Launch& l, const Mat& kv_b, std::int64_t rows) {
  return rows >= kManyRows && l.wgmma && l.clusters && kv_b.shape.format == WeightFormat::kBF16 &&
         l.smem_limit >= static_cast<int>(std::max(kFlashBytes, kGemmBytes));
}

void attend_prefill(const Launch& l, const AttendPrefill& j) {
  Args a{};
  a.q = j.q;
  a.q_bf16 = static_cast<const std::uint16_t*>(j.q_bf16);
  a.out = j.out;
  a.out_bf16 = static_cast<std::uint16_t*>(j.out_bf16);
  a.state = static_cast<float2*>(j.state);
  a.pages = static_cast<const unsigned char*>(j.cache.pages);
  a.page_stride = j.cache.page_stride;
  a.row_offsets = j.cache.row_offsets;
  a.context_tokens = j.cache.context_tokens;
  a.page_table = j.cache.page_table;
  a.heads = j.heads;
  a.n_seqs = j.cache.n_seqs;
  a.max_pages = j.cache.max_pages;
  a.window = j.cache.window;
  a.latent = static_cast<std::uint16_t*>(j.latent);
  a.tiles = static_cast<unsigned char*>(j.tiles);

  // The host knows how many such sequences there may be, and how long the longest is.
  const std::int64_t seqs = std::min<std::int64_t>(a.n_seqs, j.rows / kManyRows);
  const std::int64_t pages = seqs * a.max_pages, row_tiles = j.rows / kRows + seqs;
  for (std::int64_t first = 0; first < pages; first += j.block_pages) {
    a.first_page = static_cast<int>(first);
    a.block_pages = static_cast<int>(std::min(j.block_pages, pages - first));
    a.rotary = a.tiles + static_cast<std::int64_t>(a.block_pages) * a.heads * kHeadTiles * kTile;
    a.live_pages =
        reinterpret_cast<int*>(a.latent + static_cast<std::int64_t>(a.block_pages) * kPageRows * kLatentWidth);
    gather(l, a, j.cache.codec);
    Expansion e{};
    const std::int64_t rows = std::int64_t{a.block_pages} * kPageRows;
    e.x = matrix_map(a.latent, rows, kLatentWidth, kLatentWidth, kGemmBoxA);
    e.w = matrix_map(j.kv_b.at.data, j.kv_b.shape.rows, kLatentWidth, kLatentWidth, kGemmBoxB);
    e.a = a;
    e.outputs = j.kv_b.shape.rows;
    e.columns = static_cast<int>(ceil_div(e.outputs, kGemmCols));
    launch_gemm(l, e, std::int64_t{ceil_div(rows, 2 * kGemmRows)} * e.columns);
    launch(l, flash_kernel, dim3(static_cast<unsigned>(row_tiles), static_cast<unsigned>(a.heads)), dim3(kThreads),
           kFlashBytes, a);
  }
}

}  // namespace glint::cuda
