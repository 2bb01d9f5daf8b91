// Attention over the paged latent cache where a sequence has few rows: decoding, with or without drafts. Bound by the
// memory that the cache lies in, so that a latent row is read once for all heads. Hopper (sm_90a).
//
// Tokens stand where a product has its 64 rows, (row, head) pairs where it has its columns by eights: 20 heads waste 4
// of 24 columns. A step takes a page, 64 tokens:
//   Sᵀ (64 × pairs) = KV (64 × 576) · Qᵀ, softmax      two warpgroups, the scorers, which take pages in turn
//   Oᵀ (512 × pairs) += KV's first 512 columns ᵀ · Pᵀ      two, the summers, 256 of the 512 each
// One warp copies pages into a ring of stages ahead of all, by tensor copies (nine instructions a BF16 page); another
// clears rows that nobody owns. BF16 rows are operands of products where they lie. Rows of the short codecs become
// operands in registers, straight from their bytes (attend_codes.cuh), and who scores them finds their scales besides.
// A score of eight-bit codes is sums times the row's scale. The scale belongs to the row's weight in the answer as
// well: the products of weights and scales are bounded then, in FP16, and the sum is of the plain weights.
//
// Work is dealt out evenly (attend_work.cuh). A tile within one block is finished there; the pieces of others lie in
// the workspace, at most two a block, until the blocks add them in order (attend_merge.cuh). Running maxima are whole
// numbers (see attend.cu): where a range begins changes the order of fp32 sums only.

#include "backends/cuda/attend_scorers.cuh"
#include "backends/cuda/attend_summers.cuh"
#include "backends/cuda/page_tensor.hpp"

namespace glint::cuda {
namespace {

// Scorers, summers, and a warpgroup of which one warp copies and one clears. Of 96 registers a thread on average.
constexpr int kThreads = kScorerThreads + kSummerThreads + 128;
template <KvCodec kCodec>
inline constexpr int kScorerRegisters = kIsHalf<kCodec>   ? 120
                                        : kIsFour<kCodec> ? 112
                                                          : 104;
template <KvCodec kCodec>
inline constexpr int kSummerRegisters = kIsHalf<kCodec>   ? 96
                                        : kIsFour<kCodec> ? 104
                                                          : 112;
constexpr int kOtherRegisters = 40;

#if __CUDA_ARCH__ >= 900
// The pages of a layer as a tensor: bytes of a row, rows, pages.
__device__ __forceinline__ void copy_block(std::uint32_t to, const CUtensorMap& pages, int byte, int page,
                                           std::uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4}], "
      "[%5];" ::"r"(to),
      "l"(&pages), "r"(byte), "r"(0), "r"(page), "r"(barrier)
      : "memory");
}

template <KvCodec kCodec, int kN8>
__device__ __forceinline__ void copy_pages(const FewArgs& a, const CUtensorMap& pages, const Share& w,
                                           Memory<kCodec, kN8>& m, int lane) {
  using M = Memory<kCodec, kN8>;
  Ring<M::kStages> ring;
  ring.phase = 1;  // a fresh barrier's previous phase counts as complete
  for (int at = w.begin; at < w.end;) {
    const Unit u = unit_of(a.cache, a.heads, M::kPairs, m.work, at);
    const int stop = min(w.end, end_of(u));
    const std::int32_t* table = a.cache.page_table + static_cast<std::int64_t>(u.seq) * a.cache.max_pages;
    const std::int32_t* next = table + u.token(at) / kPageRows;
    for (int page = *next; at < stop; ++at) {
      const int page_after = at + 1 < stop ? *++next : 0;
      barrier_wait(shared_address(&m.empty[ring.at]), ring.phase);
      if (lane == 0) {
        const std::uint32_t to = shared_address(m.stages[ring.at]), barrier = shared_address(&m.full[ring.at]);
        barrier_expect(barrier, M::kStage);
#pragma unroll
        for (int i = 0; i < M::kBlocks; ++i) copy_block(to + i * kBlockBytes, pages, 128 * i, page, barrier);
      }
      __syncwarp();
      page = page_after;
      ring.next();
    }
  }
}

// Rows that nobody owns may hold anything, and NaN times a weight of zero is NaN: they are cleared. (Codes of INT8 and
// INT4 are numbers whatever they are.)
template <KvCodec kCodec, int kN8>
__device__ __forceinline__ void clear_pages(const FewArgs& a, const Share& w, Memory<kCodec, kN8>& m, int lane) {
  using M = Memory<kCodec, kN8>;
  Ring<M::kStages> stage;
  for (int at = w.begin; at < w.end;) {
    const Unit u = unit_of(a.cache, a.heads, M::kPairs, m.work, at);
    for (const int stop = min(w.end, end_of(u)); at < stop; ++at) {
      barrier_wait(shared_address(&m.full[stage.at]), stage.phase);
      const int token = u.token(at);
      if (token < u.low || token + kTokens > u.context) {
        for (int r = 0; r < kTokens; ++r) {
          if (token + r >= u.low && token + r < u.context) continue;
          for (int unit = lane; unit < 8 * M::kBlocks; unit += 32)
            sts128(shared_address(m.stages[stage.at]) + in_stage(r, 16 * unit), {});
        }
        fence_async_proxy();
      }
      __syncwarp();
      if (lane == 0) barrier_arrive(shared_address(&m.clear[stage.at]));
      stage.next();
    }
  }
}
#endif

template <KvCodec kCodec, int kN8>
__global__ void __launch_bounds__(kThreads, 1)
    attend_decode_kernel(const __grid_constant__ FewArgs a, const __grid_constant__ CUtensorMap pages) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  static_assert(2 * kScorerRegisters<kCodec> + 2 * kSummerRegisters<kCodec> + kOtherRegisters <= 5 * 96);
  using M = Memory<kCodec, kN8>;
  extern __shared__ __align__(1024) unsigned char smem[];
  M& m = *reinterpret_cast<M*>(smem);
  const int thread = threadIdx.x, lane = thread % 32;
  if (thread == 0) {
    m.version = 0;
    for (int i = 0; i < M::kStages; ++i) {
      barrier_init(shared_address(&m.full[i]), 1);
      barrier_init(shared_address(&m.clear[i]), 1);
      barrier_init(shared_address(&m.empty[i]), kSummerThreads / 32);
    }
    for (int i = 0; i < kPlanes; ++i) {
      barrier_init(shared_address(&m.weighed[i]), 4);
      barrier_init(shared_address(&m.taken[i]), kSummerThreads / 32);
      barrier_init(shared_address(&m.turn[i]), 4);
    }
    barrier_init_fence();
  }
  __syncthreads();
  pdl_launch();
  pdl_wait();
  count_work(a.cache, a.heads, M::kPairs, m.work);
  Share w{.total = m.work.starts[a.cache.n_seqs], .c = static_cast<int>(blockIdx.x)};
  w.n = active_blocks(w.total, a.n_blocks);
  if (w.c >= w.n) return;
  w.begin = range_begin(w.total, w.n, w.c), w.end = range_begin(w.total, w.n, w.c + 1);
  if (thread < kScorerThreads) {
    more_registers<kScorerRegisters<kCodec>>();
    score_steps<kCodec, kN8>(a, w, m, thread);
  } else if (thread < kScorerThreads + kSummerThreads) {
    more_registers<kSummerRegisters<kCodec>>();
    sum_steps<kCodec, kN8>(a, w, m, thread - kScorerThreads);
  } else {
    fewer_registers<kOtherRegisters>();
    const int warp = (thread - kScorerThreads - kSummerThreads) / 32;
    if (warp == 0) copy_pages<kCodec, kN8>(a, pages, w, m, lane);
    if (warp == 1 && !is_rotated(kCodec)) clear_pages<kCodec, kN8>(a, w, m, lane);
  }
#endif
}

template <KvCodec kCodec, int kN8>
void run(const Launch& l, const Attend& j) {
  using M = Memory<kCodec, kN8>;
  static_assert(sizeof(M) <= 227 << 10);
  const FewArgs a = few_args(l, j, M::kPairs);
  launch(l, attend_decode_kernel<kCodec, kN8>, dim3(static_cast<unsigned>(a.n_blocks)), dim3(kThreads), sizeof(M), a,
         page_tensor(j.cache.pages, kCacheRowBytes<kCodec>, {j.cache.page_stride}));
}

template <KvCodec kCodec>
void run(const Launch& l, const Attend& j) {
  const std::int64_t pairs = (j.T + j.cache.n_seqs - 1) / j.cache.n_seqs * j.heads;  // of a sequence, on average
  if (pairs <= 8) return run<kCodec, 1>(l, j);
  if (pairs <= 16) return run<kCodec, 2>(l, j);
  if (pairs <= 24) return run<kCodec, 3>(l, j);
  if constexpr (is_short(kCodec)) {
    run<kCodec, 3>(l, j);
  } else {
    run<kCodec, 5>(l, j);
  }
}

}  // namespace

bool attend_decode_takes(const Launch& l, const Attend& j) {
  return l.wgmma && l.smem_limit >= 227 << 10 && (j.cache.codec == KvCodec::kBF16 || is_short(j.cache.codec)) &&
         j.cache.n_seqs > 0 && j.cache.n_seqs <= kFewSequences &&
         j.T * j.heads <= std::int64_t{kFewPairs} * j.cache.n_seqs && j.partial_rows >= 2 * kFewTile;
}

void attend_decode(const Launch& l, const Attend& j) {
  switch (j.cache.codec) {
    case KvCodec::kBF16:
      return run<KvCodec::kBF16>(l, j);
    case KvCodec::kFp8:
      return run<KvCodec::kFp8>(l, j);
    case KvCodec::kInt8:
      return run<KvCodec::kInt8>(l, j);
    case KvCodec::kInt4:
      return run<KvCodec::kInt4>(l, j);
    case KvCodec::kF32:
    case KvCodec::kF16:
      break;
  }
}

}  // namespace glint::cuda
