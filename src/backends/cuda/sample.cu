// Tokens of rows of logits: the chain of sampling/sampler.hpp. Compiled without fused multiply-add,
// so that weights have the host's bits (ops/sample.hpp); all sums are of whole units, in 64 bits, hence exact.
//
// A cluster of eight blocks takes a row, each block an eighth of the vocabulary, which it reads once into shared
// memory. A filter is one cut in the order of (logit, id), found digit by digit: a histogram of what each digit's
// tokens amount to, summed over the cluster, tells which digit has the cut. The first two digits count nats below the
// best, by which few tokens are left: these are ranked as they are. Where many are (ties), four more digits are the
// bytes of the logit.

#include "backends/cuda/sample.hpp"

#include "backends/cuda/bulk.cuh"

namespace glint::cuda {
namespace {

constexpr int kRanks = 8;  // blocks of a cluster, the most that every device has
constexpr int kThreads = 512, kWarps = kThreads / 32;
constexpr int kBins = 256;
constexpr float kStepsANat = 8 * kBins;  // two digits: 32 nats in all, and what lies below weighs nothing
// Histograms are pairs of 32-bit numbers, since shared memory adds no 64 bits: 17 bits each of a weight's 34, summed
// over fewer than 2^15 tokens.
constexpr int kLowBits = 17;
constexpr int kMaxSlice = (1 << 15) - 1;
constexpr int kCandidates = 256;

using U64 = unsigned long long;

struct Candidate {
  float x;
  int id;
  U64 amount;
};

// The last token that is kept; nothing is cut where the id is that of a default.
struct Cut {
  float logit = -INFINITY;
  int id = 0x7fffffff;
  __device__ bool keeps(float x, int token) const { return x > logit || (x == logit && token <= id); }
};

struct Shared {
  std::uint32_t low[kBins], high[kBins];
  U64 warps[kWarps];
  U64 sum;           // of this block, for its cluster
  U64 best;          // the same of packed()
  U64 before;        // select(): what the better digits amount to
  int digit;         // and the digit of the cut
  int found;         // an id, written by the block that has it
  Candidate last;    // that is kept, written by the block that ranked the candidates
  int n_candidates;  // the first block's are the row's
  Candidate candidates[kCandidates];
};

// ---- the cluster ----------------------------------------------------------------------------------------------------

// The same variable in the shared memory of block `rank`.
template <typename T>
__device__ __forceinline__ T* in_block(T* p, int rank) {
  T* there = p;
#if __CUDA_ARCH__ >= 900
  asm("mapa.u64 %0, %1, %2;" : "=l"(there) : "l"(p), "r"(rank));
#endif
  return there;
}

// ---- order ----------------------------------------------------------------------------------------------------------

// Grows with x. The two zeros are equal.
__device__ __forceinline__ std::uint32_t key_of(float x) {
  const std::uint32_t bits = __float_as_uint(x + 0.0F);
  return (bits & 0x80000000U) != 0 ? ~bits : bits | 0x80000000U;
}
__device__ __forceinline__ float logit_of(std::uint32_t key) {
  return __uint_as_float((key & 0x80000000U) != 0 ? key & 0x7fffffffU : ~key);
}

constexpr U64 kNan = ~U64{0};
// Grows in the order of tokens: with the logit, and against the id. NaN is more than all.
__device__ __forceinline__ U64 packed(float x, int id) {
  return x != x ? kNan : static_cast<U64>(key_of(x)) << 32 | static_cast<std::uint32_t>(~id);
}

// ---- a row ----------------------------------------------------------------------------------------------------------

struct Row {
  const float* x;  // this block's logits, in shared memory
  int n;           // of them
  int first;       // id of the first
  int rank;
  float best, inv_temperature;
  Shared* shared;

  __device__ U64 units(float logit) const {
    return __float2ull_rz(exp_weight(logit, best, inv_temperature) * static_cast<float>(kWeightUnits));
  }
};

__device__ U64 block_best(const Row& row) {
  U64 best = 0;
  for (int i = threadIdx.x; i < row.n; i += kThreads) best = max(best, packed(row.x[i], row.first + i));
  for (int lane = 16; lane > 0; lane >>= 1) best = max(best, __shfl_xor_sync(0xffffffffU, best, lane));
  if (threadIdx.x % 32 == 0) row.shared->warps[threadIdx.x / 32] = best;
  __syncthreads();
  for (int w = 0; w < kWarps; ++w) best = max(best, row.shared->warps[w]);
  return best;
}

__device__ U64 row_best(const Row& row) {
  const U64 own = block_best(row);
  if (threadIdx.x == 0) row.shared->best = own;
  cluster_barrier();
  U64 best = 0;
  for (int r = 0; r < kRanks; ++r) best = max(best, *in_block(&row.shared->best, r));
  return best;
}

// Threads have neighbouring tokens, an odd number: then they read different banks.
__device__ __forceinline__ int tokens_a_thread(int n) { return (n + kThreads - 1) / kThreads | 1; }

// The sum up to this lane's value.
__device__ __forceinline__ U64 warp_scan(U64 sum) {
#pragma unroll
  for (int lane = 1; lane < 32; lane <<= 1) {
    const U64 other = __shfl_up_sync(0xffffffffU, sum, lane);
    if (threadIdx.x % 32 >= lane) sum += other;
  }
  return sum;
}

// Sums in order of id: what lies before this thread's tokens, of them, and the row's.
struct Prefix {
  U64 before, own, total;
};
template <typename Amount>
__device__ Prefix prefix(const Row& row, Amount amount) {
  Shared& s = *row.shared;
  const int a_thread = tokens_a_thread(row.n), begin = threadIdx.x * a_thread, end = min(row.n, begin + a_thread);
  U64 own = 0;
  for (int i = begin; i < end; ++i) own += amount(row.x[i], row.first + i);
  const U64 sum = warp_scan(own);
  __syncthreads();  // warps[] of the last use is read
  if (threadIdx.x % 32 == 31) s.warps[threadIdx.x / 32] = sum;
  __syncthreads();
  Prefix p{.before = sum - own, .own = own, .total = 0};
  for (int w = 0; w < kWarps; ++w) {
    if (w < threadIdx.x / 32) p.before += s.warps[w];
    p.total += s.warps[w];
  }
  if (threadIdx.x == 0) s.sum = p.total;
  cluster_barrier();
  p.total = 0;
  for (int r = 0; r < kRanks; ++r) {
    const U64 sum_there = *in_block(&s.sum, r);
    if (r < row.rank) p.before += sum_there;
    p.total += sum_there;
  }
  cluster_barrier();  // all have read the sums
  return p;
}

// Calls found(id) in one thread, that of the first token at which the sum is more than `at`. `unit`: of an amount. The
// warp that has it looks at its thread's tokens together.
template <typename Amount, typename Found>
__device__ void find(const Row& row, const Prefix& p, double at, double unit, Amount amount, Found found) {
  const auto more = [&](U64 sum) { return static_cast<double>(sum) * unit > at; };
  const unsigned owner = __ballot_sync(0xffffffffU, !more(p.before) && more(p.before + p.own));
  if (owner == 0) return;
  const int lane = threadIdx.x % 32, from = __ffs(static_cast<int>(owner)) - 1;
  const int a_thread = tokens_a_thread(row.n), begin = (threadIdx.x - lane + from) * a_thread;
  U64 before = __shfl_sync(0xffffffffU, p.before, from);
  for (int first = begin; first < min(row.n, begin + a_thread); first += 32) {
    const int i = first + lane;
    const U64 sum = before + warp_scan(i < row.n ? amount(row.x[i], row.first + i) : 0);
    const unsigned over = __ballot_sync(0xffffffffU, more(sum));
    if (over != 0) {
      if (lane == __ffs(static_cast<int>(over)) - 1) found(row.first + i);
      return;
    }
    before = __shfl_sync(0xffffffffU, sum, 31);
  }
}

// How far x lies below the best, in two digits.
__device__ __forceinline__ int steps_below(const Row& row, float x) {
  return min(kBins * kBins - 1, static_cast<int>((row.best - x) * (row.inv_temperature * kStepsANat)));
}

// The tokens of `steps`, if they are few, ranked: the last one of the shortest run of them that amounts to `need`.
template <typename Amount>
__device__ bool rank_few(const Row& row, int steps, U64 need, Amount amount, Cut* cut) {
  Shared& s = *row.shared;
  Shared& first = *in_block(&s, 0);
  for (int i = threadIdx.x; i < row.n; i += kThreads) {
    const float x = row.x[i];
    if (x == -INFINITY || steps_below(row, x) != steps) continue;
    const U64 a = amount(x, row.first + i);
    if (a == 0) continue;
    const int at = atomicAdd(&first.n_candidates, 1);
    if (at < kCandidates) first.candidates[at] = {.x = x, .id = row.first + i, .amount = a};
  }
  cluster_barrier();
  const int n = first.n_candidates;
  if (n <= kCandidates && row.rank == 0 && threadIdx.x < n) {
    const Candidate own = s.candidates[threadIdx.x];
    U64 before = 0;
    for (int i = 0; i < n; ++i) {
      const Candidate& c = s.candidates[i];
      if (c.x > own.x || (c.x == own.x && c.id < own.id)) before += c.amount;
    }
    if (before < need && need <= before + own.amount) {
      for (int r = 0; r < kRanks; ++r) in_block(&s, r)->last = own;
    }
  }
  cluster_barrier();
  if (n > kCandidates) return false;
  *cut = {.logit = s.last.x, .id = s.last.id};
  return true;
}

// The last token of the shortest run of the best tokens that amounts to need(total). Tokens of equal logit have equal
// amounts.
template <typename Amount, typename Need>
__device__ Cut select(const Row& row, Amount amount, Need need_of) {
  Shared& s = *row.shared;
  int steps = 0;
  std::uint32_t key = 0;
  U64 need = 0;
  U64 equal = 0;  // what the digit of the cut amounts to: at last, the tokens of its logit
  Cut cut;
  for (int level = 0; level < 6; ++level) {
    if (level == 2 && rank_few(row, steps, need, amount, &cut)) return cut;
    if (threadIdx.x < kBins) s.low[threadIdx.x] = s.high[threadIdx.x] = 0;
    if (threadIdx.x == 0) s.n_candidates = 0;
    __syncthreads();
    const int shift = 24 - 8 * (level - 2);  // of the key's byte
    for (int i = threadIdx.x; i < row.n; i += kThreads) {
      const float x = row.x[i];
      if (x == -INFINITY) continue;
      const int below = steps_below(row, x);
      if (level == 1 && below / kBins != steps / kBins) continue;
      if (level >= 2 && below != steps) continue;
      if (level >= 3 && (key_of(x) ^ key) >> (shift + 8) != 0) continue;
      const U64 a = amount(x, row.first + i);
      if (a == 0) continue;
      const int bin = level == 0   ? below / kBins
                      : level == 1 ? below % kBins
                                   : static_cast<int>(255U - (key_of(x) >> shift & 255U));
      const auto low = static_cast<std::uint32_t>(a & ((1U << kLowBits) - 1));
      const auto high = static_cast<std::uint32_t>(a >> kLowBits);
      if (low != 0) atomicAdd(&s.low[bin], low);
      if (high != 0) atomicAdd(&s.high[bin], high);
    }
    cluster_barrier();
    U64 bin = 0;
    if (threadIdx.x < kBins) {
#pragma unroll
      for (int r = 0; r < kRanks; ++r) {
        const Shared& there = *in_block(&s, r);
        bin += there.low[threadIdx.x] + (static_cast<U64>(there.high[threadIdx.x]) << kLowBits);
      }
    }
    U64 sum = warp_scan(bin);
    if (threadIdx.x % 32 == 31) s.warps[threadIdx.x / 32] = sum;
    __syncthreads();
    U64 total = 0;
    for (int w = 0; w < kBins / 32; ++w) {
      if (w < threadIdx.x / 32) sum += s.warps[w];
      total += s.warps[w];
    }
    if (level == 0) need = need_of(total);
    if (threadIdx.x < kBins && sum >= need && sum - bin < need) {
      s.digit = threadIdx.x;
      s.before = sum - bin;
      s.sum = bin;
    }
    cluster_barrier();  // and nobody clears a histogram that is read
    need -= s.before;
    equal = s.sum;
    if (level < 2) {
      steps += level == 0 ? s.digit * kBins : s.digit;
    } else {
      key |= (255U - static_cast<std::uint32_t>(s.digit)) << shift;
    }
  }
  cut.logit = logit_of(key);
  if (need == equal) return cut;
  // Of the tokens of that logit, the first ones by id.
  const U64 each = amount(cut.logit, 0);
  const auto is_equal = [&](float x, int) { return static_cast<U64>(x == cut.logit); };
  find(row, prefix(row, is_equal), static_cast<double>((need + each - 1) / each - 1), 1, is_equal, [&](int id) {
    for (int r = 0; r < kRanks; ++r) in_block(&s, r)->found = id;
  });
  cluster_barrier();
  cut.id = s.found;
  return cut;
}

__device__ void draw(const Row& row, const SampleRow& how, std::int32_t* token) {
  Cut cut;
  if (how.top_k > 0) {
    cut = select(
        row, [](float, int) { return U64{1}; }, [&](U64 total) { return min(static_cast<U64>(how.top_k), total); });
  }
  if (how.top_p < 1) {
    const Cut within = cut;
    cut = select(
        row, [&](float x, int id) { return within.keeps(x, id) ? row.units(x) : 0; },
        [&](U64 total) {
          const double need = static_cast<double>(how.top_p) * (static_cast<double>(total) / kWeightUnits);
          return static_cast<U64>(ceil(need * kWeightUnits));
        });
  }
  const auto least = static_cast<float>(fmax(static_cast<double>(row.best) + how.min_p_nats, -3.4028234663852886e38));
  if (least > cut.logit) cut = {.logit = least};
  const auto kept = [&](float x, int id) { return cut.keeps(x, id) ? row.units(x) : 0; };
  const Prefix p = prefix(row, kept);
  const double at = how.u * (static_cast<double>(p.total) / kWeightUnits);
  find(row, p, at, 1 / kWeightUnits, kept, [&](int id) { *token = id; });
}

// Mask, biases and penalties, of the tokens that this block has.
__device__ void edit(const Row& row, float* x, const SampleRow& how, const SampleEdit* edits,
                     const std::uint64_t* mask) {
  for (int i = threadIdx.x; i < row.n && how.mask >= 0; i += kThreads) {
    const int id = row.first + i;
    if ((mask[id / 64] >> (id % 64) & 1) == 0) x[i] = refused(x[i]);
  }
  __syncthreads();
  const SampleEdit* biases = edits + how.first_edit;
  const SampleEdit* seen = biases + how.n_biases;
  for (int i = threadIdx.x; i < how.n_biases; i += kThreads) {
    const int at = biases[i].id - row.first;
    if (at >= 0 && at < row.n) x[at] += biases[i].amount;
  }
  __syncthreads();
  for (int i = threadIdx.x; i < how.n_seen; i += kThreads) {
    const int at = seen[i].id - row.first;
    if (at >= 0 && at < row.n) x[at] = penalised(x[at], how.repetition_penalty, seen[i].amount);
  }
  __syncthreads();
}

__global__ void __launch_bounds__(kThreads) sample_kernel(const __grid_constant__ SampleJob job, int slice) {
  __shared__ Shared shared;
  extern __shared__ float x[];
  pdl_launch();
  pdl_wait();
  const int r = blockIdx.x / kRanks;
  const SampleRow how = job.rows[r];
  const int vocab = static_cast<int>(job.vocab);
  if (how.mode == SampleMode::kNone) return;
  Row row{
      .x = x, .rank = static_cast<int>(blockIdx.x) % kRanks, .inv_temperature = how.inv_temperature, .shared = &shared};
  row.first = row.rank * slice;
  row.n = max(0, min(slice, vocab - row.first));
  const float* from = job.logits + r * job.vocab + row.first;
#pragma unroll 8
  for (int i = threadIdx.x; i < row.n; i += kThreads) x[i] = from[i];
  __syncthreads();
  if (how.mask >= 0 || how.n_biases + how.n_seen > 0)
    edit(row, x, how, job.edits, job.masks + how.mask * job.mask_words);

  const U64 best = row_best(row);
  row.best = logit_of(static_cast<std::uint32_t>(best >> 32));
  std::int32_t token = static_cast<std::int32_t>(~static_cast<std::uint32_t>(best));
  const bool bad = best == kNan || row.best == INFINITY;
  if (bad) token = kLogitsNotFinite;
  if (!bad && row.best == -INFINITY) token = kNoCandidate;
  if (token < 0 || how.mode == SampleMode::kGreedy) {
    if (row.rank == 0 && threadIdx.x == 0) job.tokens[r] = token;
  } else {
    draw(row, how, job.tokens + r);
  }
  cluster_barrier();  // no block leaves while its shared memory is read
}

int slice_of(std::int64_t vocab) { return static_cast<int>((vocab + kRanks - 1) / kRanks); }

}  // namespace

bool samples(const Launch& l, std::int64_t vocab) {
  const int slice = slice_of(vocab);
  return l.clusters && slice <= kMaxSlice &&
         slice * sizeof(float) + sizeof(Shared) <= static_cast<std::size_t>(l.smem_limit);
}

void sample(const Launch& l, const SampleJob& job) {
  if (job.n_rows == 0) return;
  const int slice = slice_of(job.vocab);
  launch_clusters(l, sample_kernel, dim3(static_cast<unsigned>(kRanks * job.n_rows)), dim3(kThreads),
                  slice * sizeof(float), kRanks, job, slice);
}

}  // namespace glint::cuda
