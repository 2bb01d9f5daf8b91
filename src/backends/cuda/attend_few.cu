// Attention over the paged latent cache where a sequence has few rows: decoding, with or without drafts. Bound by the
// memory that the cache lies in, so that a latent row is read once for all heads. Compute capability 9.0 and later.
//
// Tokens stand where a product has its 16 rows, (row, head) pairs where it has its columns by eights: 20 heads waste 4
// of 24 columns. A step takes 32 tokens:
//   Sᵀ (32 × pairs) = KV (32 × 576) · Qᵀ      a scorer: 16 tokens, a quarter of the 576, Q in registers
//   softmax           a summer: kN8 pairs, a lane a token
//   Oᵀ (512 × pairs) += KV's first 512 columns ᵀ · Pᵀ      a summer: 64 of the 512
// Eight warps score. Eight others weigh and sum, with one barrier among themselves a step, and write answers while the
// next tile is scored. One copies rows into a ring of stages ahead of all, by the bulk copy engine, and three read the
// scales of what has arrived.
// Rows of the short codecs go to the tensor cores as they are (attend_codes.cuh). A score of eight-bit codes is sums
// times the row's scale. The scale belongs to the row's weight in the answer as well: weights are relative to the
// largest product of a weight and a scale then, in FP16, and their sum is of the plain weights.
//
// Work is dealt out evenly (attend_work.cuh). A tile within one block is finished there; the pieces of others lie in
// the workspace, at most two a block, until the blocks add them in order (attend_merge.cuh). Running maxima are whole
// numbers (see attend.cu): where a range begins changes the order of fp32 sums only.

#include "backends/cuda/attend_score.cuh"
#include "backends/cuda/attend_sum.cuh"

namespace glint::cuda {
namespace {

// Scorers, summers, and the warpgroup of readers and copier. Of 96 registers a thread on average.
constexpr int kThreads = 64 * kGroupWarps + 32 * (kReaderWarps + 1);
constexpr int kScorerRegisters = 112, kSummerRegisters = 104, kOtherRegisters = 40;

#if __CUDA_ARCH__ >= 900
template <KvCodec kCodec, int kN8>
__device__ __forceinline__ void copy_rows(const FewArgs& a, const Share& w, Memory<kCodec, kN8>& m, int lane) {
  using M = Memory<kCodec, kN8>;
  Ring<M::kStages> ring;
  ring.phase = 1;  // a fresh barrier's previous phase counts as complete
  for (int at = w.begin; at < w.end;) {
    const Unit u = unit_of(a.cache, a.heads, M::kPairs, m.work, at);
    const int stop = min(w.end, u.first + u.steps);
    const std::int32_t* table = a.cache.page_table + static_cast<std::int64_t>(u.seq) * a.cache.max_pages;
    int page_at = -1;
    const unsigned char* page = nullptr;
    for (; at < stop; ++at) {
      const int token = u.token(at);
      if (token / kPageRows != page_at) {
        page_at = token / kPageRows;
        page = static_cast<const unsigned char*>(a.cache.pages) + table[page_at] * a.cache.page_stride;
      }
      barrier_wait(shared_address(&m.empty[ring.at]), ring.phase);
      const std::uint32_t to = shared_address(m.stages[ring.at]), barrier = shared_address(&m.full[ring.at]);
      const unsigned char* from = page + token % kPageRows * kCacheRowBytes<kCodec>;
      const bool whole = token >= u.low && token + kTokens <= u.context;
      if (kIsFour<kCodec> && whole) {
        if (lane == 0) {
          barrier_expect(barrier, M::kStage);
          bulk_copy(to, from, M::kStage, barrier);
        } else {
          barrier_arrive(barrier);
        }
      } else if (token + lane >= u.low && token + lane < u.context) {
        barrier_expect(barrier, kCacheRowBytes<kCodec>);
        bulk_copy(to + lane * M::kRow, from + lane * kCacheRowBytes<kCodec>, kCacheRowBytes<kCodec>, barrier);
      } else {
        if constexpr (!is_rotated(kCodec)) {  // where nobody owns the row there may be NaN; INT8 and INT4 have none
          for (int i = 0; i < M::kRow / 16; ++i) sts128(to + lane * M::kRow + 16 * i, {});
          fence_async_proxy();
        }
        barrier_arrive(barrier);
      }
      ring.next();
    }
  }
}

#endif

template <KvCodec kCodec, int kN8>
__global__ void __launch_bounds__(kThreads, 1) attend_few_kernel(const __grid_constant__ FewArgs a) {
#if __CUDA_ARCH__ >= 900
  using M = Memory<kCodec, kN8>;
  extern __shared__ __align__(128) unsigned char smem[];
  M& m = *reinterpret_cast<M*>(smem);
  const int thread = threadIdx.x, lane = thread % 32;
  if (thread == 0) {
    for (int i = 0; i < M::kStages; ++i) {
      barrier_init(shared_address(&m.full[i]), 32);
      barrier_init(shared_address(&m.scaled[i]), kReaderWarps);
      barrier_init(shared_address(&m.empty[i]), kGroupWarps);
    }
    for (int i = 0; i < kPlanes; ++i) {
      barrier_init(shared_address(&m.scored[i]), kGroupWarps);
      barrier_init(shared_address(&m.taken[i]), kGroupWarps);
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
  if (thread < 32 * kGroupWarps) {
    more_registers<kScorerRegisters>();
    score_steps<kCodec, kN8>(a, w, m, thread / 32, lane);
  } else if (thread < 64 * kGroupWarps) {
    more_registers<kSummerRegisters>();
    sum_steps<kCodec, kN8>(a, w, m, thread - 32 * kGroupWarps);
  } else {
    fewer_registers<kOtherRegisters>();
    const int warp = thread / 32 - 2 * kGroupWarps;
    if (warp == kReaderWarps) {
      copy_rows<kCodec, kN8>(a, w, m, lane);
    } else if (is_short(kCodec)) {
      scale_steps<kCodec, kN8>(w, m, warp, lane);
    }
  }
#endif
}

template <KvCodec kCodec, int kN8>
void run(const Launch& l, const Attend& j) {
  using M = Memory<kCodec, kN8>;
  static_assert(sizeof(M) <= 227 << 10);
  const FewArgs a = few_args(l, j, M::kPairs);
  launch(l, attend_few_kernel<kCodec, kN8>, dim3(static_cast<unsigned>(a.n_blocks)), dim3(kThreads), sizeof(M), a);
}

template <KvCodec kCodec>
void run(const Launch& l, const Attend& j) {
  const std::int64_t pairs = (j.T + j.cache.n_seqs - 1) / j.cache.n_seqs * j.heads;  // of a sequence, on average
  if (pairs <= 8) return run<kCodec, 1>(l, j);
  if (pairs <= 16) return run<kCodec, 2>(l, j);
  if (pairs <= 24 || is_short(kCodec)) return run<kCodec, 3>(l, j);
  attend_pairs(l, j);
}

}  // namespace

// So much shared memory implies compute capability 9.0.
bool attend_few_takes(const Launch& l, const Attend& j) {
  return l.smem_limit >= 227 << 10 && (j.cache.codec == KvCodec::kBF16 || is_short(j.cache.codec)) &&
         j.cache.n_seqs > 0 && j.cache.n_seqs <= kFewSequences &&
         j.T * j.heads <= std::int64_t{kFewPairs} * j.cache.n_seqs && j.partial_rows >= 2 * kFewTile;
}

void attend_few(const Launch& l, const Attend& j) {
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
