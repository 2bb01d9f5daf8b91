// Attention over the paged latent cache in the absorbed form, for any device and any batch: every query head of a row
// meets the same 576 numbers a token, so that the (row, head) pairs of a sequence are the rows of one product. A block
// takes kM = 16 · kTiles pairs and one piece of the context, page by page (64 tokens a page, kTokens a step):
//   S = Q (kM × 576) · KVᵀ (576 × kTokens), online softmax in base 2, O (kM × 512) += P · KV's first 512 columns.
// The page is read from global memory once, and decoded on the way; both products read it from shared memory.
// Running maxima are rounded up to whole numbers: weights relative to them differ by exact powers of two then, so that
// how a context is cut into pieces and steps changes the order of fp32 sums and nothing else.

#include <limits>

#include "backends/cuda/kv_codec.cuh"

namespace glint::cuda {
namespace {

constexpr int kThreads = 256, kWarps = 8;
constexpr int kRowBytes = kRowWidth * 2;  // 1152 = 9 · 128: rows are swizzled by eights of 16-byte units
constexpr int kRowUnits = kRowWidth / 8;
constexpr int kMinSplit = 128;                               // tokens a piece of the context has at least
constexpr float kScaleLog2 = 0.0625F * 1.4426950408889634F;  // 1/16, and to base 2

struct Args {
  const std::uint16_t* query;
  const unsigned char* pages;
  std::int64_t page_stride;
  const std::int32_t *row_offsets, *context_tokens, *page_table;
  int T, heads, n_seqs, max_pages, window, min_split, many_rows;
  float* partial;
  float2* partial_ml;
  std::uint16_t* latent;
};

// Tokens a piece of a context has: a power of two that gives at most kMaxPieces pieces.
__device__ int split_tokens(int context, int min_split) {
  const int wanted = max(min_split, (context + kMaxPieces - 1) / kMaxPieces);
  return 1 << (32 - __clz(wanted - 1));
}

// What a row sees: positions [begin, end).
struct Visible {
  int begin, end;
};
__device__ Visible visible(const Args& a, int rows, int context, int i) {
  const int end = context - rows + i + 1;
  return {a.window > 0 ? max(0, end - a.window) : 0, end};
}

// The sequence whose tile number `tile` is, and the tile's number within it; -1 beyond the last. Every warp searches
// for itself, 32 sequences at a time.
__device__ int2 find_tile(const Args& a, int tile, int pairs_a_tile) {
  const int lane = threadIdx.x % 32;
  for (int base = 0; base < a.n_seqs; base += 32) {
    const int s = base + lane;
    int n = 0;
    if (s < a.n_seqs) n = ((a.row_offsets[s + 1] - a.row_offsets[s]) * a.heads + pairs_a_tile - 1) / pairs_a_tile;
    if (s < a.n_seqs && a.row_offsets[s + 1] - a.row_offsets[s] >= a.many_rows) n = 0;
    int sum = n;
#pragma unroll
    for (int d = 1; d < 32; d <<= 1) {
      const int other = __shfl_up_sync(0xffffffffU, sum, d);
      if (lane >= d) sum += other;
    }
    const unsigned here = __ballot_sync(0xffffffffU, tile < sum && tile >= sum - n);
    if (here != 0) {
      const int at = __ffs(here) - 1;
      return {base + at, tile - __shfl_sync(0xffffffffU, sum - n, at)};
    }
    tile -= __shfl_sync(0xffffffffU, sum, 31);
  }
  return {-1, 0};
}

template <int kTiles, int kTokens>
struct Sizes {
  static constexpr int kM = 16 * kTiles;
  static constexpr int kGroupTokens = kTiles * kTokens >= 128 ? 16 : 8;  // tokens of a warp in S
  static constexpr int kGroups = kTokens / kGroupTokens;
  static constexpr int kWarpsM = kWarps / kGroups < kTiles ? kWarps / kGroups : kTiles;
  static constexpr int kTilesAWarp = kTiles / kWarpsM;
  static constexpr int kStage = kTokens * kRowBytes;
  static constexpr int kPStride = kTokens * 2 + 16;  // padded: conflict-free for ldmatrix
  static constexpr int kQBytes = kM * kRowBytes, kPBytes = kM * kPStride;
  static constexpr std::size_t kBytes = kQBytes + 2 * kStage + kPBytes + sizeof(float) * kM * (kGroups + 1);
};

template <int kTiles, int kTokens, KvCodec kCodec>
__global__ void __launch_bounds__(kThreads, 1) attend_kernel(const __grid_constant__ Args a) {
  using S = Sizes<kTiles, kTokens>;
  constexpr int kM = S::kM, kGroups = S::kGroups, kMine = S::kTilesAWarp, kNs = S::kGroupTokens / 8;
  extern __shared__ __align__(128) unsigned char smem[];
  unsigned char* p_shared = smem + S::kQBytes + 2 * S::kStage;
  auto* maxima = reinterpret_cast<float*>(p_shared + S::kPBytes);  // [kM][kGroups]
  float* factors = maxima + kM * kGroups;                          // [kM]
  const std::uint32_t q_base = shared_address(smem), kv_base = q_base + S::kQBytes, p_base = kv_base + 2 * S::kStage;
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32, g = lane / 4, t = lane % 4;

  pdl_launch();
  pdl_wait();
  // Later tiles of a prefill see more tokens: they start first.
  const int2 found = find_tile(a, static_cast<int>(gridDim.y - 1 - blockIdx.y), kM);
  const int seq = found.x, first_pair = found.y * kM;
  if (seq < 0) return;
  const int row0 = a.row_offsets[seq], rows = a.row_offsets[seq + 1] - row0, context = a.context_tokens[seq];
  const int pairs = min(kM, rows * a.heads - first_pair);
  const int split = split_tokens(context, a.min_split);
  const bool direct = context <= split;
  // Tokens that some pair of this tile sees, within this piece.
  const int low = max(visible(a, rows, context, first_pair / a.heads).begin, static_cast<int>(blockIdx.x) * split);
  const int high = min(static_cast<std::int64_t>(visible(a, rows, context, (first_pair + pairs - 1) / a.heads).end),
                       (static_cast<std::int64_t>(blockIdx.x) + 1) * split);
  if (low >= high) return;
  const std::int64_t global_pair = static_cast<std::int64_t>(row0) * a.heads + first_pair;

  const int first_step = low / kTokens, last_step = (high - 1) / kTokens;
  const std::int32_t* table = a.page_table + static_cast<std::int64_t>(seq) * a.max_pages;
  auto load_step = [&](int step) {
    const int start = step * kTokens;
    const unsigned char* page = a.pages + table[start / kPageRows] * a.page_stride;
    const std::uint32_t stage = kv_base + (step & 1) * S::kStage;
    if constexpr (is_short(kCodec)) {
      constexpr int kRows = kTokens / kWarps;
      RawPart raw[kRows];
#pragma unroll
      for (int k = 0; k < kRows; ++k) {
        const int r = warp * kRows + k;
        raw[k] = {};
        if (start + r >= low && start + r < high)
          raw[k] = raw_part<kCodec>(page + (start % kPageRows + r) * kCacheRowBytes<kCodec>, lane);
      }
#pragma unroll
      for (int k = 0; k < kRows; ++k) {
        const int r = warp * kRows + k, unit = first_unit<kCodec>(lane);
        RowPart part{};
        if (start + r >= low && start + r < high) part = decode_part<kCodec>(raw[k], lane);
        sts128(stage + swizzled(r, unit, kRowBytes), part.unit[0]);
        sts128(stage + swizzled(r, unit + kUnitStep<kCodec>, kRowBytes), part.unit[1]);
        sts32(stage + swizzled(r, kLatentWidth / 8 + lane / 4, kRowBytes) + lane % 4 * 4, part.rotary);
      }
    } else {
      for (int i = thread; i < kTokens * kRowUnits; i += kThreads) {
        const int r = i / kRowUnits, unit = i % kRowUnits;
        const bool live = start + r >= low && start + r < high;
        const std::uint32_t to = stage + swizzled(r, unit, kRowBytes);
        const unsigned char* row = page + (start % kPageRows + r) * kCacheRowBytes<kCodec>;
        if constexpr (kCodec == KvCodec::kF32) {
          uint4 v{};
          if (live) {
            const auto* from = reinterpret_cast<const float4*>(row) + unit * 2;
            const float4 x = from[0], y = from[1];
            v = {pack_bf16(x.x, x.y), pack_bf16(x.z, x.w), pack_bf16(y.x, y.y), pack_bf16(y.z, y.w)};
          }
          sts128(to, v);
        } else {
          cp_async16(to, live ? row + unit * 16 : a.pages, live);
        }
      }
    }
  };
  for (int i = thread; i < kM * kRowUnits; i += kThreads) {
    const int r = i / kRowUnits, unit = i % kRowUnits;
    cp_async16(q_base + swizzled(r, unit, kRowBytes),
               r < pairs ? a.query + (global_pair + r) * kRowWidth + unit * 8 : a.query, r < pairs);
  }
  load_step(first_step);
  cp_async_commit();

  // S belongs to warps by (tiles of pairs, tokens); of each of its pairs a thread knows what it sees and its maximum.
  const int group = warp % kGroups, warp_m = warp / kGroups;
  const bool scores = warp_m < S::kWarpsM;
  Visible sees[kMine][2];
  float top[kMine][2], sum[kMine][2];
#pragma unroll
  for (int i = 0; i < kMine; ++i) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int r = (warp_m * kMine + i) * 16 + g + 8 * h;
      sees[i][h] = r < pairs && scores ? visible(a, rows, context, (first_pair + r) / a.heads) : Visible{0, 0};
      top[i][h] = -INFINITY;
      sum[i][h] = 0;
    }
  }
  float out[kTiles][8][4] = {};  // this warp's 64 columns of O

  for (int step = first_step; step <= last_step; ++step) {
    cp_async_wait<0>();
    __syncthreads();  // the step's tokens are there; everyone is done with the other stage
    if (step < last_step) {
      load_step(step + 1);
      cp_async_commit();
    }
    const std::uint32_t stage = kv_base + (step & 1) * S::kStage;
    float s[kMine][kNs][4] = {};
    if (scores) {
      float odd[kMine][kNs][4] = {};  // two chains of sums: half the waiting
#pragma unroll 3
      for (int k = 0; k < kRowUnits / 2; k += 2) {
        std::uint32_t b[2][kNs][2];
        if constexpr (kNs == 2) {
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            std::uint32_t r[4];
            ldmatrix4(r,
                      stage + swizzled(group * 16 + lane / 16 * 8 + lane % 8, 2 * (k + e) + lane / 8 % 2, kRowBytes));
            b[e][0][0] = r[0], b[e][0][1] = r[1], b[e][kNs - 1][0] = r[2], b[e][kNs - 1][1] = r[3];
          }
        } else {
          std::uint32_t r[4];
          ldmatrix4(r, stage + swizzled(group * 8 + lane % 8, 2 * k + lane / 8, kRowBytes));
          b[0][0][0] = r[0], b[0][0][1] = r[1], b[1][0][0] = r[2], b[1][0][1] = r[3];
        }
#pragma unroll
        for (int i = 0; i < kMine; ++i) {
          const int row = (warp_m * kMine + i) * 16 + lane % 16;
          std::uint32_t q[4];
          ldmatrix4(q, q_base + swizzled(row, 2 * k + lane / 16, kRowBytes));
#pragma unroll
          for (int n = 0; n < kNs; ++n) mma(s[i][n], q[0], q[1], q[2], q[3], b[0][n][0], b[0][n][1]);
          ldmatrix4(q, q_base + swizzled(row, 2 * k + 2 + lane / 16, kRowBytes));
#pragma unroll
          for (int n = 0; n < kNs; ++n) mma(odd[i][n], q[0], q[1], q[2], q[3], b[1][n][0], b[1][n][1]);
        }
      }
#pragma unroll
      for (int i = 0; i < kMine; ++i) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          float m = -INFINITY;
#pragma unroll
          for (int n = 0; n < kNs; ++n) {
#pragma unroll
            for (int e = 0; e < 2; ++e) {
              const int token = step * kTokens + group * S::kGroupTokens + n * 8 + 2 * t + e;
              const bool seen = token >= max(low, sees[i][h].begin) && token < min(high, sees[i][h].end);
              float& v = s[i][n][2 * h + e];
              v = seen ? (v + odd[i][n][2 * h + e]) * kScaleLog2 : -INFINITY;
              m = fmaxf(m, v);
            }
          }
          m = fmaxf(m, __shfl_xor_sync(0xffffffffU, m, 1));
          m = fmaxf(m, __shfl_xor_sync(0xffffffffU, m, 2));
          if (t == 0) maxima[((warp_m * kMine + i) * 16 + g + 8 * h) * kGroups + group] = m;
        }
      }
    }
    __syncthreads();
    if (scores) {
#pragma unroll
      for (int i = 0; i < kMine; ++i) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const int r = (warp_m * kMine + i) * 16 + g + 8 * h;
          float m = top[i][h];
#pragma unroll
          for (int k = 0; k < kGroups; ++k) m = fmaxf(m, ceilf(maxima[r * kGroups + k]));
          const float base = m == -INFINITY ? 0.0F : m;  // nothing seen so far: every weight is 2^-inf = 0
          const float factor = exp2f(top[i][h] - base);
          top[i][h] = m;
          float added = 0;
#pragma unroll
          for (int n = 0; n < kNs; ++n) {
            const std::uint32_t p = pack_bf16(exp2f(s[i][n][2 * h] - base), exp2f(s[i][n][2 * h + 1] - base));
            added += bf16_low(p) + bf16_high(p);
            *reinterpret_cast<std::uint32_t*>(p_shared + r * S::kPStride +
                                              (group * S::kGroupTokens + n * 8 + 2 * t) * 2) = p;
          }
          sum[i][h] = sum[i][h] * factor + added;
          if (group == 0 && t == 0) factors[r] = factor;
        }
      }
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
      const float f0 = factors[i * 16 + g], f1 = factors[i * 16 + g + 8];
#pragma unroll
      for (int n = 0; n < 8; ++n) out[i][n][0] *= f0, out[i][n][1] *= f0, out[i][n][2] *= f1, out[i][n][3] *= f1;
    }
#pragma unroll
    for (int k = 0; k < kTokens / 16; ++k) {
      std::uint32_t p[kTiles][4];
#pragma unroll
      for (int i = 0; i < kTiles; ++i)
        ldmatrix4(p[i], p_base + (i * 16 + lane % 16) * S::kPStride + (k * 16 + lane / 16 * 8) * 2);
#pragma unroll
      for (int n = 0; n < 8; n += 2) {
        std::uint32_t v[4];
        ldmatrix4_trans(v, stage + swizzled(k * 16 + lane / 8 % 2 * 8 + lane % 8, warp * 8 + n + lane / 16, kRowBytes));
#pragma unroll
        for (int i = 0; i < kTiles; ++i) {
          mma(out[i][n], p[i][0], p[i][1], p[i][2], p[i][3], v[0], v[1]);
          mma(out[i][n + 1], p[i][0], p[i][1], p[i][2], p[i][3], v[2], v[3]);
        }
      }
    }
  }

  __syncthreads();  // everyone has read the last factors
  // The sums of a pair lie with its quads in every token group.
  if (scores) {
#pragma unroll
    for (int i = 0; i < kMine; ++i) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float v = sum[i][h];
        v += __shfl_xor_sync(0xffffffffU, v, 1);
        v += __shfl_xor_sync(0xffffffffU, v, 2);
        const int r = (warp_m * kMine + i) * 16 + g + 8 * h;
        if (t == 0) maxima[r * kGroups + group] = v;
        if (t == 0 && group == 0) factors[r] = top[i][h];
      }
    }
  }
  __syncthreads();
  const std::int64_t plane = static_cast<std::int64_t>(blockIdx.x) * a.T * a.heads;
#pragma unroll
  for (int i = 0; i < kTiles; ++i) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int r = i * 16 + g + 8 * h;
      if (r >= pairs) continue;
      float total = 0;
#pragma unroll
      for (int k = 0; k < kGroups; ++k) total += maxima[r * kGroups + k];
      if (direct) {
        const float inverse = 1.0F / total;
        auto* to = reinterpret_cast<std::uint32_t*>(a.latent + (global_pair + r) * kLatentWidth + warp * 64 + 2 * t);
#pragma unroll
        for (int n = 0; n < 8; ++n) to[4 * n] = pack_bf16(out[i][n][2 * h] * inverse, out[i][n][2 * h + 1] * inverse);
      } else {
        auto* to = reinterpret_cast<float2*>(a.partial + (plane + global_pair + r) * kLatentWidth + warp * 64 + 2 * t);
#pragma unroll
        for (int n = 0; n < 8; ++n) to[4 * n] = {out[i][n][2 * h], out[i][n][2 * h + 1]};
        if (warp == 0 && t == 0) a.partial_ml[plane + global_pair + r] = {factors[r], total};
      }
    }
  }
}

// A block a pair, four columns a thread: adds the pieces of the context in order.
__global__ void merge_kernel(const __grid_constant__ Args a) {
  __shared__ float m_shared[kMaxPieces], l_shared[kMaxPieces];
  pdl_launch();
  pdl_wait();
  const int row = blockIdx.x / a.heads, lane = threadIdx.x % 32;
  int seq = -1;  // the last sequence that begins at or before the row
  for (int base = 0; base < a.n_seqs; base += 32) {
    const int s = base + lane;
    const bool here = s < a.n_seqs && a.row_offsets[s] <= row && row < a.row_offsets[s + 1];
    const unsigned mask = __ballot_sync(0xffffffffU, here);
    if (mask != 0) {
      seq = base + __ffs(mask) - 1;
      break;
    }
  }
  if (seq < 0) return;
  const int row0 = a.row_offsets[seq], context = a.context_tokens[seq];
  const int split = split_tokens(context, a.min_split);
  if (context <= split) return;
  if (a.row_offsets[seq + 1] - row0 >= a.many_rows) return;
  const Visible sees = visible(a, a.row_offsets[seq + 1] - row0, context, row - row0);
  const int first = sees.begin / split, n = (sees.end - 1) / split - first + 1;
  const std::int64_t pairs = static_cast<std::int64_t>(a.T) * a.heads;
  if (static_cast<int>(threadIdx.x) < n) {
    const float2 ml = a.partial_ml[(first + threadIdx.x) * pairs + blockIdx.x];
    m_shared[threadIdx.x] = ml.x;
    l_shared[threadIdx.x] = ml.y;
  }
  __syncthreads();
  float top = -INFINITY;
  for (int i = 0; i < n; ++i) top = fmaxf(top, m_shared[i]);
  float total = 0;
  float4 sum{};
#pragma unroll 4
  for (int i = 0; i < n; ++i) {
    const float w = exp2f(m_shared[i] - top);
    const float4 v =
        reinterpret_cast<const float4*>(a.partial + ((first + i) * pairs + blockIdx.x) * kLatentWidth)[threadIdx.x];
    total += w * l_shared[i];
    sum.x += w * v.x, sum.y += w * v.y, sum.z += w * v.z, sum.w += w * v.w;
  }
  const float inverse = 1.0F / total;
  reinterpret_cast<uint2*>(a.latent + static_cast<std::int64_t>(blockIdx.x) * kLatentWidth)[threadIdx.x] = {
      pack_bf16(sum.x * inverse, sum.y * inverse), pack_bf16(sum.z * inverse, sum.w * inverse)};
}

template <int kTiles, int kTokens>
void run(const Launch& l, const Args& a, KvCodec codec, int n_splits) {
  using S = Sizes<kTiles, kTokens>;
  const std::int64_t pairs = static_cast<std::int64_t>(a.T) * a.heads;
  const dim3 grid(static_cast<unsigned>(n_splits),
                  static_cast<unsigned>((pairs + static_cast<std::int64_t>(a.n_seqs) * (S::kM - 1)) / S::kM));
  const auto go = [&](auto kernel) { launch(l, kernel, grid, dim3(kThreads), S::kBytes, a); };
  switch (codec) {
    case KvCodec::kF32:
      return go(attend_kernel<kTiles, kTokens, KvCodec::kF32>);
    case KvCodec::kBF16:
      return go(attend_kernel<kTiles, kTokens, KvCodec::kBF16>);
    case KvCodec::kFp8:
      return go(attend_kernel<kTiles, kTokens, KvCodec::kFp8>);
    case KvCodec::kInt8:
      return go(attend_kernel<kTiles, kTokens, KvCodec::kInt8>);
    case KvCodec::kInt4:
      return go(attend_kernel<kTiles, kTokens, KvCodec::kInt4>);
    case KvCodec::kF16:  // CudaOps::supports says no
      break;
  }
}

}  // namespace

void attend(const Launch& l, const Attend& j) {
  if (j.T == 0 || j.cache.n_seqs == 0) return;
  Args a{};
  a.query = static_cast<const std::uint16_t*>(j.query);
  a.pages = static_cast<const unsigned char*>(j.cache.pages);
  a.page_stride = j.cache.page_stride;
  a.row_offsets = j.cache.row_offsets;
  a.context_tokens = j.cache.context_tokens;
  a.page_table = j.cache.page_table;
  a.T = static_cast<int>(j.T);
  a.heads = j.heads;
  a.n_seqs = j.cache.n_seqs;
  a.max_pages = j.cache.max_pages;
  a.window = j.cache.window;
  a.many_rows = j.cache.many_rows > 0 ? j.cache.many_rows : std::numeric_limits<int>::max();
  a.partial = j.partial;
  a.partial_ml = j.partial_ml;
  a.latent = static_cast<std::uint16_t*>(j.latent);

  const std::int64_t pairs = j.T * j.heads, longest = static_cast<std::int64_t>(j.cache.max_pages) * kPageRows;
  const auto fits = [&](std::size_t bytes) { return bytes <= static_cast<std::size_t>(l.smem_limit); };
  const bool tall = fits(Sizes<4, 64>::kBytes);
  const int tiles = tall ? 4 : fits(Sizes<2, 32>::kBytes) ? 2 : 1;

  // Pieces as short as their partial results fit the workspace; none at all for a prefill that fills the device.
  const auto pieces = [&](std::int64_t split) {
    return std::min<std::int64_t>(kMaxPieces, (longest + split - 1) / split);
  };
  std::int64_t split = kMinSplit;
  const bool filled = j.T > 4LL * j.cache.n_seqs && pairs / (16 * tiles) >= 2 * l.n_sms;
  while (pieces(split) > 1 && (filled || pieces(split) * pairs > j.partial_rows)) split *= 2;
  a.min_split = static_cast<int>(split);
  const int n = static_cast<int>(pieces(split));

  if (tiles == 4) run<4, 64>(l, a, j.cache.codec, n);
  if (tiles == 2) run<2, 32>(l, a, j.cache.codec, n);
  if (tiles == 1) run<1, 32>(l, a, j.cache.codec, n);
  if (n > 1) launch(l, merge_kernel, dim3(static_cast<unsigned>(pairs)), dim3(kLatentWidth / 4), 0, a);
}

}  // namespace glint::cuda
