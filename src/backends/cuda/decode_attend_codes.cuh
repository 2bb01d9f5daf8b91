#pragma once
// Attention within the decode step (decode_pieces.cuh), of eight heads, where contexts are not long, over rows of the
// short codecs as they lie: codes become exact operands in registers (attend_codes.cuh), eight-bit ones in FP16 without
// their row's scale, INT4 in BF16 with the scales of its groups; and nothing else of a row is decoded but its scales.
//   scales                                         a warp: four rows, from the parities of their codes
//   Sᵀ (32 × heads) = KV · Qᵀ                      a warp: 16 tokens, a quarter of the latent and of the rotary part,
//                                                  which has one scale; its part of Q in registers
//   softmax                                        a warp: every eighth head, a lane a token
//   Oᵀ (512 × heads) += KV's first 512 ᵀ · Pᵀ      a warp: 64 of the 512
// For FP16 products queries are times a power of two, and a weight of O is times its row's scale, relative to the
// scales that came first.

#include "backends/cuda/attend_codes.cuh"
#include "backends/cuda/decode_pieces.cuh"

namespace glint::cuda {

// Bytes from row to row in shared memory: eight rows' units of one column lie in other banks.
template <KvCodec kCodec>
inline constexpr int kCodeStride = kCacheRowBytes<kCodec> + (kIsFour<kCodec> ? 0 : 16);
template <KvCodec kCodec>
inline constexpr int kCodeRun = kStepTokens* kCodeStride<kCodec>;
static_assert(kCodeStride<KvCodec::kInt4> % 32 == 16 && kCodeStride<KvCodec::kInt8> % 32 == 16 &&
              kCodeStride<KvCodec::kFp8> % 32 == 16);
constexpr int kQueryStride = kRowWidth * 2 + 32;  // bytes of a query
constexpr int kScaleKinds = 1 + 4;                // of a row: latent, and four of the rotary part

// One run is worked on, and two are on their way.
constexpr int kCodeRuns = 1;
template <KvCodec kCodec, int kEights>
struct CodeLayout
    : PieceLayout<kEights, kCodeRuns * kStepTokens, kQueryStride, kScaleKinds * kCodeRuns * kStepTokens * 4> {
  static constexpr int kRuns = kCodeRuns, kTokens = kRuns * kStepTokens;
  static constexpr int kPlace = kRuns * kCodeRun<kCodec>, kPlaces = 3;
  static constexpr int kScaleRow = kTokens * 4;  // bytes of the scales of a kind
  static constexpr int kBytes = CodeLayout::kRows + kPlaces * kPlace;
};

}  // namespace glint::cuda

#if __CUDA_ARCH__ >= 900
namespace glint::cuda {

// Runs of 32 rows, copied ahead into places of one or two runs in turn.
template <KvCodec kCodec, class Layout>
struct CodeRuns {
  static constexpr int kRowBytes = kCacheRowBytes<kCodec>, kGap = kCodeStride<kCodec> - kRowBytes;
  static constexpr int kUnits = kStepTokens * kRowBytes / 16, kCopies = (kUnits + kStepThreads - 1) / kStepThreads;
  const PieceRows& from_rows;
  std::uint32_t next, places;  // where the next runs go; the first place
  int token, end;              // of the next run; behind the piece's last
  std::int32_t page;           // of the next run
  std::uint32_t to[kCopies];   // of this thread's units, in a place

  __device__ __forceinline__ CodeRuns(const PieceRows& rows, std::uint32_t at, int first, int n)
      : from_rows(rows), next(at), places(at), token(first), end(first + n * kStepTokens), page(rows.page_of(first)) {
#pragma unroll
    for (int i = 0; i < kCopies; ++i) {
      const unsigned unit = threadIdx.x + static_cast<unsigned>(i * kStepThreads);
      to[i] = unit * 16 + unit / (kRowBytes / 16) * kGap;
    }
  }
  __device__ __forceinline__ std::uint32_t after(std::uint32_t place) const {
    place += Layout::kPlace;
    return place == places + Layout::kPlaces * Layout::kPlace ? places : place;
  }
  // The next place's runs, as far as there are any.
  __device__ __forceinline__ void load() {
#pragma unroll
    for (int r = 0; r < Layout::kRuns; ++r, token += kStepTokens) {
      if (token >= end) continue;
      const unsigned char* rows = from_rows.template rows_of<kRowBytes>(page, token) + threadIdx.x * 16;
#pragma unroll
      for (int i = 0; i < kCopies; ++i) {
        const bool mine = (i + 1) * kStepThreads <= kUnits || threadIdx.x + i * kStepThreads < kUnits;
        if (mine) cp_async16(next + r * kCodeRun<kCodec> + to[i], rows + i * kStepThreads * 16);
      }
      page = from_rows.page_of(token + kStepTokens);
    }
    cp_async_commit();
    next = after(next);
  }
};

__device__ __forceinline__ std::uint32_t lds16(std::uint32_t address) {
  std::uint16_t v;
  asm volatile("ld.shared.u16 %0, [%1];" : "=h"(v) : "r"(address));
  return v;
}

// Two numbers as the codec's products take them, and a product.
template <KvCodec kCodec>
__device__ __forceinline__ std::uint32_t pack_operand(float lo, float hi) {
  if constexpr (kIsHalf<kCodec>) return pack_half(lo, hi);
  return pack_bf16(lo, hi);
}
template <KvCodec kCodec>
__device__ __forceinline__ void code_product(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                                             std::uint32_t b1) {
  if constexpr (kIsHalf<kCodec>) {
    half_product(c, a, b0, b1);
  } else {
    product(c, a, b0, b1);
  }
}

// The queries, a row a head, and what a head's scores are to be multiplied by.
template <KvCodec kCodec, int kEights, StepQueries kQueries>
__device__ __forceinline__ void stage_code_queries() {
  const int lane = threadIdx.x % 32;
  for_queries<kCodec, kEights, kQueries>([&](int h, const float(&v)[16], float2 rotary) {
    HalfUnit unit{1, 1};
    if constexpr (kIsHalf<kCodec>) {
      float most = fmaxf(fabsf(rotary.x), fabsf(rotary.y));
#pragma unroll
      for (const float x : v) most = fmaxf(most, fabsf(x));
      unit = half_unit(__float_as_uint(largest_of_warp(most)) >> 23);
    }
    const auto pack = [&](float lo, float hi) { return pack_operand<kCodec>(lo * unit.by, hi * unit.by); };
    const std::uint32_t to = step.s.x + static_cast<std::uint32_t>(h * kQueryStride);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float* u = v + 4 * i;
      sts64(to + lane * 8 + i * 256, pack(u[0], u[1]), pack(u[2], u[3]));
    }
    sts32(to + kLatentWidth * 2 + lane * 4, pack(rotary.x, rotary.y));
    if (lane == 0) {
      sts32(step.s.x + static_cast<std::uint32_t>(CodeLayout<kCodec, kEights>::kQueryScales + h * 4),
            __float_as_uint(unit.back * kStepScale));
    }
  });
}

// The scales of this warp's four rows of a run, from the parities that their codes carry (ops/kv_codec.hpp). A lane has
// 16 codes of each row; bit 4 w + i of them, of byte i of word w, is that bit of a quarter of the row's side word.
// (INT4 has scales of its rotary part there only, and words 2 and 3 are the upper nibbles of words 0 and 1.)
template <KvCodec kCodec, int kScaleRow>
__device__ __forceinline__ void find_scales(std::uint32_t rows, std::uint32_t scales) {
  const int lane = threadIdx.x % 32, first = static_cast<int>(threadIdx.x / 32) * 4;
  std::uint32_t bits[4];  // bit w of byte i
#pragma unroll
  for (int r = 0; r < 4; ++r) {
    const std::uint32_t row = rows + static_cast<std::uint32_t>((first + r) * kCodeStride<kCodec>);
    uint4 v;
    if constexpr (kIsFour<kCodec>) {
      const uint2 w = lds64(row + static_cast<std::uint32_t>(lane * 8));
      v = {w.x, w.y, w.x >> 4, w.y >> 4};
    } else {
      v = lds128(row + static_cast<std::uint32_t>(lane * 16));
    }
    constexpr std::uint32_t kLowest = 0x01010101U;
    bits[r] = (v.x & kLowest) + (v.y & kLowest) * 2 + (v.z & kLowest) * 4 + (v.w & kLowest) * 8;
  }
  // Over the lanes of one quarter, l % 4, two rows in a word; then a lane goes on with the rows of its place.
  const std::uint32_t a = bits[0] | bits[1] << 4, b = bits[2] | bits[3] << 4;
  const bool second = (lane & 4) != 0;
  std::uint32_t both = (second ? b : a) ^ __shfl_xor_sync(0xffffffffU, second ? a : b, 4);
  both ^= __shfl_xor_sync(0xffffffffU, both, 8);
  both ^= __shfl_xor_sync(0xffffffffU, both, 16);
  const std::uint32_t mine = both >> (lane >> 1 & 4);
  const int row = first + (second ? 2 : 0) + (lane >> 3 & 1);
  const std::uint32_t quarter = ~(byte_parities(mine) | byte_parities(mine >> 1) << 4 | byte_parities(mine >> 2) << 8 |
                                  byte_parities(mine >> 3) << 12) &
                                0xffffU;
  const std::uint32_t other = __shfl_xor_sync(0xffffffffU, quarter, 1);
  const std::uint32_t even = (lane & 1) != 0 ? other : quarter, odd = (lane & 1) != 0 ? quarter : other;
  const std::uint32_t word = kIsFour<kCodec> ? __byte_perm(even, odd, 0x5140) : even | odd << 16;
  const std::uint32_t far = __shfl_xor_sync(0xffffffffU, word, 2);
  const std::uint32_t low = (lane & 2) != 0 ? far : word, high = (lane & 2) != 0 ? word : far;
  if (lane >= 16) return;
  const int kind = lane % 4, at = 16 + 12 * kind;
  const std::uint32_t twelve =
      (at < 32 ? __funnelshift_r(low, high, static_cast<unsigned>(at)) : high >> (at - 32)) & 0xfffU;
  const std::uint32_t to = scales + static_cast<std::uint32_t>(row * 4);
  sts32(to + static_cast<std::uint32_t>((1 + kind) * kScaleRow), twelve << 19);
  if (!kIsFour<kCodec> && kind == 0) sts32(to, low << 16);
}

// A warp's part of the queries: a quarter of the latent and of the rotary part, of all heads, 16 values a step. A
// lane's four values of a block are those whose codes it has of a row.
template <KvCodec kCodec, int kEights>
struct CodeQueries {
  static constexpr int kSteps = kLatentWidth / 16 / kScoreParts;
  uint2 latent[kEights][kSteps], rotary[kEights];

  __device__ __forceinline__ void load(int part) {
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
#pragma unroll
    for (int j = 0; j < kEights; ++j) {
      const std::uint32_t from = step.s.x + static_cast<std::uint32_t>((8 * j + g) * kQueryStride + t * 8);
#pragma unroll
      for (int i = 0; i < kSteps; ++i)
        latent[j][i] = lds64(from + static_cast<std::uint32_t>((part * kSteps + i) * 32));
      rotary[j] = lds64(from + static_cast<std::uint32_t>((kLatentWidth / 16 + part) * 32));
    }
  }
  // Scores of the 16 tokens that `rows` begins with, this part of them and without scales.
  __device__ __forceinline__ void score(std::uint32_t rows, int part, float (&dots)[kEights][4],
                                        float (&of_rotary)[kEights][4]) const {
    const int lane = threadIdx.x % 32, g = lane / 4;
    const std::uint32_t from = rows + static_cast<std::uint32_t>(lane % 16 * kCodeStride<kCodec>);
    constexpr int kUnits = kIsFour<kCodec> ? kSteps / 2 : kSteps;  // of 16 bytes
    std::uint32_t r[kUnits / 2][4], b[2], a[4];
#pragma unroll
    for (int i = 0; i < kUnits / 2; ++i)
      ldmatrix4(r[i], from + static_cast<std::uint32_t>((part * kUnits + 2 * i) * 16 + lane / 16 * 16));
    ldmatrix2(b, from + static_cast<std::uint32_t>(kRotaryOffset<kCodec> + part * 16));
    const auto add = [&](int step) {
#pragma unroll
      for (int j = 0; j < kEights; ++j) code_product<kCodec>(dots[j], a, latent[j][step].x, latent[j][step].y);
    };
    if constexpr (kIsFour<kCodec>) {
      std::uint32_t bytes[2];  // scales of four groups, of the rows g and g + 8
#pragma unroll
      for (int h = 0; h < 2; ++h)
        bytes[h] =
            lds32(rows + static_cast<std::uint32_t>((g + 8 * h) * kCodeStride<kCodec> + kLatentWidth / 2 + part * 4));
#pragma unroll
      for (int i = 0; i < kUnits; ++i) {
        const GroupScale scale[2] = {group_scale(__byte_perm(bytes[0], 0, 0x4040 + 0x0101 * i)),
                                     group_scale(__byte_perm(bytes[1], 0, 0x4040 + 0x0101 * i))};
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const auto operands = [&](int k) {
            return nibble_neighbours(r[i / 2][i % 2 * 2 + k] >> (4 * h) & 0x0f0f0f0fU, scale[k]);
          };
          make_operand(a, operands(0), operands(1));
          add(2 * i + h);
        }
      }
    } else {
#pragma unroll
      for (int i = 0; i < kUnits; ++i) {
        make_operand(a, neighbours<kCodec>(r[i / 2][i % 2 * 2]), neighbours<kCodec>(r[i / 2][i % 2 * 2 + 1]));
        add(i);
      }
    }
    make_operand(a, rotary_neighbours<kCodec>(b[0]), rotary_neighbours<kCodec>(b[1]));
#pragma unroll
    for (int j = 0; j < kEights; ++j) code_product<kCodec>(of_rotary[j], a, rotary[j].x, rotary[j].y);
  }
};

// acc += 64 latent columns from `column` on of 32 rows, times their weights p. Rows g of a product are the columns 2 g
// of its sixteen, rows g + 8 the columns 2 g + 1.
template <KvCodec kCodec, int kEights>
__device__ __forceinline__ void add_rows(float (&acc)[4][kEights][4], std::uint32_t rows, int column,
                                         const std::uint32_t (*p)[kEights][2]) {
  constexpr int kSteps = kStepTokens / 16;
  const int lane = threadIdx.x % 32, t = lane % 4;
  const auto add = [&](int tile, int k, const std::uint32_t(&a)[4]) {
#pragma unroll
    for (int j = 0; j < kEights; ++j) code_product<kCodec>(acc[tile][j], a, p[k][j][0], p[k][j][1]);
  };
  const std::uint32_t from = rows + static_cast<std::uint32_t>(lane * kCodeStride<kCodec>);
  std::uint32_t r[4];
  if constexpr (kIsFour<kCodec>) {
    // Of the tokens 8 i + 2 t and the one behind: the scales of both groups.
    std::uint32_t bytes[4][2];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int e = 0; e < 2; ++e)
        bytes[i][e] = lds16(rows + static_cast<std::uint32_t>((8 * i + 2 * t + e) * kCodeStride<kCodec> +
                                                              kLatentWidth / 2 + column / 32));
    }
#pragma unroll
    for (int u = 0; u < 2; ++u) {
      ldmatrix4_trans(r, from + static_cast<std::uint32_t>(column / 2 + u * 16));
      GroupScale scale[4];
#pragma unroll
      for (int i = 0; i < 4; ++i)
        scale[i] = group_scale(__byte_perm(bytes[i][0], bytes[i][1], u == 0 ? 0x6420 : 0x6521));
#pragma unroll
      for (int k = 0; k < kSteps; ++k) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const auto halves = [&](int i, int shift) { return nibble_halves(r[i] >> (4 * h + shift), scale[i]); };
          add(2 * u + h, k, {halves(2 * k, 0), halves(2 * k, 8), halves(2 * k + 1, 0), halves(2 * k + 1, 8)});
        }
      }
    }
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      ldmatrix4_trans(r, from + static_cast<std::uint32_t>(column + i * 16));
#pragma unroll
      for (int k = 0; k < kSteps; ++k) {
        const CodePairs low = alternates<kCodec>(r[2 * k]), high = alternates<kCodec>(r[2 * k + 1]);
        add(i, k, {low.first, low.second, high.first, high.second});
      }
    }
  }
}

// This block's piece, of at most kEights · 8 heads. Queries that are not there may be any numbers: they meet nothing
// but their own columns, which nobody reads. Rows outside the context have a weight of zero and, if their codes may be
// no numbers (FP8), are cleared; and so are rows of runs that are not there.
template <KvCodec kCodec, int kEights, StepQueries kQueries>
__device__ __forceinline__ void attend_codes(int layer) {
  using Layout = CodeLayout<kCodec, kEights>;
  using Softmax = PieceSoftmax<kEights, Layout::kRuns>;
  constexpr int kRuns = Layout::kRuns, kTokens = Layout::kTokens, kScaleRow = Layout::kScaleRow,
                kWeightRow = weight_row(kTokens);
  constexpr int kColumns = kLatentWidth / kStepWarps, kTiles = kColumns / 16;  // of O of a warp
  static_assert(kTiles == 4);
  constexpr float kGrown = 256;  // times the first scales: later ones beyond it make O's unit larger
  StepContext c = step.s.context;
  if (c.runs == 0) return grid_wait();
  const PieceRows from_rows(c, layer);
  const std::uint32_t scores = step.s.x, weights = scores + Layout::kWeights, factors = scores + Layout::kFactors,
                      scales = scores + Layout::kScales;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;

  CodeRuns<kCodec, Layout> runs(from_rows, scores + Layout::kRows, c.token, c.runs);
  std::uint32_t here = runs.next;
  // append_row may still write the newest row, until all have been waited for.
  int loaded = 0;
  const auto load_until = [&](int limit) {
#pragma unroll
    for (; loaded < Layout::kPlaces - 1; ++loaded) {
      if (c.token + (loaded + 1) * kTokens >= limit) break;
      runs.load();
    }
  };
  load_until(c.end);
  grid_wait();  // for the queries, and for this token's row of the cache
  if (kQueries == StepQueries::kParts && runs.end >= c.end) wait_for_row(layer);
  load_until(1 << 30);
  stage_code_queries<kCodec, kEights, kQueries>();
  step_sync();
  c.end = min(c.end, runs.end);
  const int m = warp % 2 * 16, part = warp / 2;
  CodeQueries<kCodec, kEights> queries;
  queries.load(part);

  float acc[kTiles][kEights][4] = {};
  float unit = 0;  // of O: the weights' row scales are times this
  Softmax softmax;
  float scale[kEights];
#pragma unroll
  for (int i = 0; i < kEights; ++i)
    scale[i] = __uint_as_float(lds32(scores + static_cast<std::uint32_t>(Layout::kQueryScales + (warp + 8 * i) * 4)));
#pragma unroll 1
  for (int token = c.token; token < c.end; token += kTokens, here = runs.after(here)) {
    cp_async_wait<Layout::kPlaces - 2>();
    step_sync();
    runs.load();
    if constexpr (kCodec == KvCodec::kFp8) {
      if (token < c.begin || token + kTokens > c.end) {
        constexpr int kRowUnits = kCacheRowBytes<kCodec> / 16;
        for (int i = static_cast<int>(threadIdx.x); i < kTokens * kRowUnits; i += kStepThreads) {
          const int row = i / kRowUnits;
          if (!sees(c, token + row))
            sts128(here + static_cast<std::uint32_t>(row * kCodeStride<kCodec> + i % kRowUnits * 16), {});
        }
        step_sync();
      }
    }
    float dots[kRuns][kEights][4] = {}, of_rotary[kRuns][kEights][4] = {};
#pragma unroll
    for (int r = 0; r < kRuns; ++r)
      find_scales<kCodec, kScaleRow>(here + r * kCodeRun<kCodec>, scales + r * kStepTokens * 4);
#pragma unroll
    for (int r = 0; r < kRuns; ++r)
      queries.score(here + static_cast<std::uint32_t>(r * kCodeRun<kCodec> + m * kCodeStride<kCodec>), part, dots[r],
                    of_rotary[r]);
    step_sync();
#pragma unroll
    for (int r = 0; r < 2 * kRuns; ++r) {
      const std::uint32_t of_token = static_cast<std::uint32_t>((r / 2 * kStepTokens + m + g + r % 2 * 8) * 4);
      const float latent = kIsFour<kCodec> ? 1.0F : __uint_as_float(lds32(scales + of_token)),
                  rotary =
                      __uint_as_float(lds32(scales + static_cast<std::uint32_t>((1 + part) * kScaleRow) + of_token));
#pragma unroll
      for (int j = 0; j < kEights; ++j) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int at = r % 2 * 2 + e;
          sts32(scores + of_token +
                    static_cast<std::uint32_t>(part * Softmax::kScorePart + (8 * j + 2 * t + e) * Softmax::kScoreRow),
                __float_as_uint(fmaf(latent, dots[r / 2][j][at], rotary * of_rotary[r / 2][j][at])));
        }
      }
    }
    step_sync();

    bool seen[kRuns];
    float by[kRuns];  // of this lane's weights: their rows' scales in O's unit
#pragma unroll
    for (int r = 0; r < kRuns; ++r) seen[r] = sees(c, token + r * kStepTokens + lane), by[r] = 1;
    if constexpr (kIsHalf<kCodec>) {
      float most = 0;
#pragma unroll
      for (int r = 0; r < kRuns; ++r) {
        by[r] = 0;
        if (seen[r]) by[r] = __uint_as_float(lds32(scales + static_cast<std::uint32_t>((r * kStepTokens + lane) * 4)));
        most = fmaxf(most, by[r]);
      }
      most = largest_of_warp(most);
      if (unit == 0 || most * unit > kGrown) {
        const float now = __fdividef(1.0F, most), smaller = unit == 0 ? 0.0F : __fdividef(now, unit);
#pragma unroll
        for (int i = 0; i < kTiles; ++i) {
#pragma unroll
          for (int j = 0; j < kEights; ++j) {
#pragma unroll
            for (float& f : acc[i][j]) f *= smaller;
          }
        }
        unit = now;
      }
#pragma unroll
      for (float& f : by) f *= unit;
    }
    softmax.weigh(scores, factors, seen, scale, [&](int i, int r, float weight) {
      sts16(weights + static_cast<std::uint32_t>((warp + 8 * i) * kWeightRow + (r * kStepTokens + lane) * 2),
            pack_operand<kCodec>(weight * by[r], 0));
      return weight;
    });
    step_sync();

    // O
    std::uint32_t p[kTokens / 16][kEights][2];
    float2 factor[kEights];
    bool moved = false;  // maxima seldom move
#pragma unroll
    for (int j = 0; j < kEights; ++j) {
      factor[j] = lds_pair(factors + static_cast<std::uint32_t>(8 * j + 2 * t) * 4);
      moved = moved || factor[j].x != 1.0F || factor[j].y != 1.0F;
#pragma unroll
      for (int k = 0; k < kTokens / 16; ++k) {
        const std::uint32_t from = weights + static_cast<std::uint32_t>((8 * j + g) * kWeightRow + k * 32 + t * 4);
        p[k][j][0] = lds32(from);
        p[k][j][1] = lds32(from + 16);
      }
    }
    if (__any_sync(0xffffffffU, moved)) {
#pragma unroll
      for (int i = 0; i < kTiles; ++i) {
#pragma unroll
        for (int j = 0; j < kEights; ++j) {
          acc[i][j][0] *= factor[j].x, acc[i][j][1] *= factor[j].y;
          acc[i][j][2] *= factor[j].x, acc[i][j][3] *= factor[j].y;
        }
      }
    }
#pragma unroll
    for (int h = 0; h < kRuns; ++h)
      add_rows<kCodec>(acc, here + h * kCodeRun<kCodec>, warp * kColumns, p + h * (kStepTokens / 16));
  }

  const float back = kIsHalf<kCodec> ? __fdividef(1.0F, unit) : 1.0F;
#pragma unroll
  for (int j = 0; j < kEights; ++j) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int head = 8 * j + 2 * t + e;
      if (head >= c.heads) continue;
      float* out = step.s.p.partial + piece_row(c.piece, c.first_head + head) * kLatentWidth + warp * kColumns + 2 * g;
#pragma unroll
      for (int i = 0; i < kTiles; ++i)
        *reinterpret_cast<float2*>(out + 16 * i) = {acc[i][j][e] * back, acc[i][j][2 + e] * back};
    }
  }
  softmax.store();
}

}  // namespace glint::cuda
#endif
