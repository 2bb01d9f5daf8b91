// Attention in 16-bit integers. Included inside the kernel namespace, after attend.inl.hpp and words.inl.hpp.
//
// vpdpwssd adds two products of int16 to a lane, twice what an fp32 multiply-add does; so do vpmaddwd and vpaddd, which
// have more pipes than multiply-adds. So cache rows, queries and softmax weights become codes times a scale:
//   rows      latent and rotary part each with its own scale; the largest |value| becomes kRowMost. Those of the codec
//             INT16 are such codes where they lie
//   queries   the same, as fine as the bound below allows
//   weights   those of a query in a page, times the latent scales of the rows; as fine as the bound below allows
// A row's codes depend on that row alone, a query's on the query, weights on the query and the page; sums of integers
// are exact. So bits depend on no tile and no neighbour. What the codes lose is less than what rounding the cache to
// F16 does (docs/experiments/2026-11-28-cpu-attention-int16.md, 2026-11-29-cpu-attention-avx2.md). F32 pages are read
// in floats, as the measure of all others.
//
// No sum of a lane overflows. The codes of a query, or the weights, that are added in one lane have magnitudes of at
// most kLaneSum together before they are rounded, which adds 1/2 at most to each, and each meets a row's code of
// kRowMost at most. A lane holds 512 / kLanes codes of a latent query, 64 / kLanes of a rotary one, or the weights of a
// page's 64 rows. Rows and queries that are not finite have any codes and a scale of NaN: their sums may overflow, and
// do not matter.

static_assert(KvRow16::kMost <= kRowMost);
static_assert(kPageTokens <= kLaneCodes && kLatent / kLanes <= kLaneCodes && kRope / kLanes <= kLaneCodes);

#include "backends/cpu/attend_rows.inl.hpp"

inline constexpr std::int64_t kStripe = kWeighN * kLanes;  // channels that are weighed together
inline constexpr int kScoreM = kLanes / 4;                 // queries that meet four rows at once: one vector of scores
#ifdef GLINT_STREAMED_ROWS
inline constexpr bool kStreams = true;
#else
inline constexpr bool kStreams = false;
#endif
inline constexpr int kSoonLines = 16;  // of AttendArgs::soon: a line every 25 cycles

// N values of a query → codes; returns their scale, NaN if a value is not finite.
template <std::int64_t N>
inline float encode_query(const float* v, Code* to) {
  V top = zero(), a = zero(), b = zero();
  for (std::int64_t i = 0; i < N; i += 2 * kLanes) {
    const V x = magnitude(load(v + column_of(i))), y = magnitude(load(v + column_of(i) + kApart));
    top = larger(x, larger(y, top));
    a = add(a, x);
    b = add(b, y);
  }
  const V lanes = add_neighbours(a, b);
  const bool finite = sum(lanes) < __builtin_inff();
  const float most = highest(top);
  if (!finite || most < kTiniest) {
    __builtin_memset(to, 0, N * sizeof(Code));
    return finite ? 0 : not_a_number();
  }
  const float by_most = kCodeMost / most, by_sum = kLaneSum / highest(lanes);
  const float by = by_most < by_sum ? by_most : by_sum;
  for (std::int64_t i = 0; i < N; i += 2 * kLanes) store_ints(to + i, codes_at(v + column_of(i), by));
  return 1.0F / by;
}

struct QueryScales {  // each four times, as a tile of scores takes them; read for whole tiles
  float latent[kQueryBlock + kScoreM][4];
  float rotary[kQueryBlock + kScoreM][4];
};
struct RowScales {
  float latent[kPageTokens];
  float rotary[kPageTokens];
  float value[kPageTokens];  // latent, 0 for a row that is not finite: it shows in the scores
};

inline constexpr std::int64_t kStreamStep = 192;  // bytes that a step of products asks for at most

// What is asked for while products run: a few lines in each of their steps, so that misses never come in bursts, which
// wait for a core's few buffers for them, or are dropped. Lines that two steps ask for cost little.
struct LineStream {
  const char* at;
  std::int64_t step;  // bytes

  void ask() {
    __builtin_prefetch(at, 0, 3);
    __builtin_prefetch(at + 64, 0, 3);
    __builtin_prefetch(at + 128, 0, 3);
    at += step;
  }
};

// Columns [from, to) of M queries · 4 rows: [kLanes / 4][4] floats, of which the first M are meant.
template <int M, bool Streamed>
[[gnu::always_inline]] inline V dot_codes(const Code* const (&x)[M], const Code* rows, std::int64_t from,
                                          std::int64_t to, LineStream& ahead) {
  I acc[M][4];
#pragma GCC unroll 16
  for (int i = 0; i < M; ++i) {
#pragma GCC unroll 16
    for (int n = 0; n < 4; ++n) acc[i][n] = zero_ints();
  }
#pragma GCC unroll 2
  for (std::int64_t k = from; k < to; k += 2 * kLanes) {
    if constexpr (Streamed) ahead.ask();
    I xv[M];
#pragma GCC unroll 16
    for (int i = 0; i < M; ++i) xv[i] = load_ints(x[i] + k);
#pragma GCC unroll 16
    for (int n = 0; n < 4; ++n) {
      const I r = load_ints(rows + n * kKvRow + k);
#pragma GCC unroll 16
      for (int i = 0; i < M; ++i) acc[i][n] = add_products(acc[i][n], xv[i], r);
    }
  }
  V sums[kScoreM];
#pragma GCC unroll 16
  for (int i = 0; i < kScoreM; ++i) {
    const I(&all)[4] = acc[i < M ? i : 0];
    sums[i] = sum_quarters(to_floats(all[0]), to_floats(all[1]), to_floats(all[2]), to_floats(all[3]));
  }
  return sum_parts(sums);
}

// All n queries in tiles of at most kScoreM, and of at most kWeighM.
template <typename Fn>
inline void for_scores(std::int64_t n, const Fn& fn) {
  if constexpr (kScoreM == 4) {
    for_few(n, fn);
  } else {
    std::int64_t i = 0;
    for (; i + 2 <= n; i += 2) fn.template operator()<2>(i);
    if (i < n) fn.template operator()<1>(i);
  }
}
template <typename Fn>
inline void for_weights(std::int64_t n, const Fn& fn) {
  if constexpr (kWeighM != 4) {
    if (n >= kWeighM) return for_tiles(n, fn);
  }
  for_few(n, fn);
}

// A page's rows as codes; rows kGroupRows at a time for the scores, then all for the weighted sum, which interleaves
// two rows as it loads them (a second, interleaved copy costs more to write than it saves).
struct CodedPage {
  const AttendArgs& a;
  float* scores;  // [n][64]
  Code* q;        // [n][576]
  Code* made;     // [64][576]: codes of rows that have others
  Code* weights;  // [n][64]
  QueryScales* q_scales;
  RowScales* scales;
  Fetch soon;
  const Code* codes = nullptr;  // [64][576]: made, or a page of INT16 where it lies
  const char* rows = nullptr;
  const char* next_rows = nullptr;  // of the next page, or null
  const char* ahead = nullptr;      // what is fetched while the queries pass: the next group
  const char* ahead_end = nullptr;
  std::int64_t lines = 0;  // of it, at a time

  // Of few queries, where kStreams: a page or what a.soon has is asked for while the page before it is worked on.
  bool streamed = false;
  LineStream stream{};

  void start() {
    for (std::int64_t i = 0; i < a.n; ++i) {
      const float latent = encode_query<kLatent>(a.q + i * kKvRow, q + i * kKvRow);
      const float rotary = encode_query<kRope>(a.q + i * kKvRow + kLatent, q + i * kKvRow + kLatent);
      for (int j = 0; j < 4; ++j) q_scales->latent[i][j] = latent, q_scales->rotary[i][j] = rotary;
    }
  }
  void open(std::int64_t position, std::int64_t, std::int64_t hi) {
    rows = page_at(a, position);
    codes = a.pages.codec == KvCodec::kInt16 ? reinterpret_cast<const Code*>(rows) : made;
    const bool more = hi == kPageTokens && position + kPageTokens < (a.last[a.n - 1] < a.end ? a.last[a.n - 1] : a.end);
    next_rows = more ? page_at(a, position + kPageTokens) : nullptr;
    streamed = kStreams && a.n <= kFewQueries;
    if (streamed) start_stream(position, hi);
  }
  void start_stream(std::int64_t position, std::int64_t hi) {
    const std::int64_t row_bytes = kv_row_bytes(a.pages.codec), left = a.last[a.n - 1] - position - kPageTokens;
    std::int64_t bytes = 0;
    if (left > 0) {
      ahead = page_at(a, position + kPageTokens);
      bytes = (left < kPageTokens ? left : kPageTokens) * row_bytes;
    } else if (a.soon.pieces == 1 && a.soon.bytes <= kPageTokens * row_bytes) {
      ahead = static_cast<const char*>(a.soon.data);
      bytes = a.soon.bytes;
    }
    // A row takes as long to become codes as its products do. Steps of products: of scores, of the weighted sum.
    std::int64_t tiles = 0, weighs = 0;
    for_scores(a.n, [&]<int M>(std::int64_t) { ++tiles; });
    for_weights(a.n, [&]<int M>(std::int64_t) { ++weighs; });
    const std::int64_t steps =
        (hi + 3) / 4 * tiles * (kKvRow / (2 * kLanes)) + (hi + 1) / 2 * weighs * (kLatent / kStripe);
    lines = codes != made || bytes == 0 ? 0 : bytes / 128 / hi + 1;
    const std::int64_t by_rows = lines * 64 * hi < bytes ? lines * 64 * hi : bytes;
    const std::int64_t step = (bytes - by_rows + steps - 1) / steps;
    ahead_end = ahead + by_rows;
    stream = {.at = bytes > 0 ? ahead_end : rows, .step = step < kStreamStep ? step : kStreamStep};
  }
  // How often fetch() is called for a group: in each tile of scores, and for each row if these tiles are few.
  std::int64_t stops() const {
    const std::int64_t tiles = (a.n + kScoreM - 1) / kScoreM * (kGroupRows / 4);
    return a.n <= kFewQueries ? tiles + kGroupRows : tiles;
  }
  void look_ahead(std::int64_t first, std::int64_t hi) {
    if (streamed) return;
    const std::int64_t row_bytes = kv_row_bytes(a.pages.codec);
    ahead = first < hi ? rows + first * row_bytes : first == kPageTokens ? next_rows : nullptr;
    ahead_end = ahead != nullptr ? ahead + kGroupRows * row_bytes : nullptr;
    // Evenly if not told otherwise: in bursts they hold up the rows that are read now.
    lines = kFetchLines > 0 ? kFetchLines : (kGroupRows * row_bytes / 64 + stops() - 1) / stops();
  }
  void fetch() {
    const char* end = ahead_end - ahead > lines * 64 ? ahead + lines * 64 : ahead_end;
#pragma GCC unroll 4
    for (; ahead < end; ahead += 64) __builtin_prefetch(ahead, 0, 2);
  }
  template <typename Rows>
  void encode_group(std::int64_t first, std::int64_t lo, std::int64_t hi) {
    const Rows from(a.pages.codec, rows + first * kv_row_bytes(a.pages.codec), lo - first, hi - first);
    for (std::int64_t j = 0; j < kGroupRows; ++j) {
      scales->latent[first + j] = from.latent.scale[j];
      scales->rotary[first + j] = from.rotary.scale[j];
      scales->value[first + j] = from.latent.scale[j] < __builtin_inff() ? from.latent.scale[j] : 0;
    }
    for (std::int64_t j = 0; j < kGroupRows; ++j) {
      if (a.n <= kFewQueries) fetch();
      Code* to = made + (first + j) * kKvRow;
#pragma GCC unroll 4
      for (std::int64_t c = 0; c < kLatent; c += 2 * kLanes) store_ints(to + c, from.latent_codes(j, column_of(c)));
#pragma GCC unroll 2
      for (std::int64_t c = 0; c < kRope; c += 2 * kLanes)
        store_ints(to + kLatent + c, from.rotary_codes(j, column_of(c)));
    }
  }
  // Of rows that are codes already: their scales, zero outside [lo, hi), where there may be anything.
  void take_group(std::int64_t first, std::int64_t lo, std::int64_t hi) {
    for (std::int64_t j = first; j < first + kGroupRows; ++j) {
      if (a.n <= kFewQueries && !streamed) fetch();
      const std::uint32_t side = j >= lo && j < hi ? lowest_bits_of_words(codes + j * kKvRow) : 0;
      const float latent = float_of(side << 16);
      scales->latent[j] = latent;
      scales->rotary[j] = float_of(side & 0xffff0000U);
      scales->value[j] = latent < __builtin_inff() ? latent : 0;
    }
  }
  void encode(std::int64_t first, std::int64_t lo, std::int64_t hi) {
    switch (a.pages.codec) {
      case KvCodec::kInt16:
        return take_group(first, lo, hi);
      case KvCodec::kF16:
        return encode_group<HalfRows<F16>>(first, lo, hi);
      case KvCodec::kBF16:
        return encode_group<HalfRows<BF16>>(first, lo, hi);
      case KvCodec::kInt8:
        return encode_group<ByteRows>(first, lo, hi);
      default:
        return encode_group<FloatRows>(first, lo, hi);
    }
  }
  template <int M, bool Streamed>
  void score_tile(std::int64_t i, std::int64_t j) {
    const Code* x[M];
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) x[m] = q + (i + m) * kKvRow;
    const auto by = [&](const float(&of_query)[4], const float* of_rows) {
      return mul(load(of_query), four_again(of_rows + j));
    };
    if constexpr (!Streamed) fetch();
    soon.lines(kSoonLines);
    const Code* k = codes + j * kKvRow;
    LineStream then = stream;
    const V r = mul(dot_codes<M, Streamed>(x, k, kLatent, kKvRow, then), by(q_scales->rotary[i], scales->rotary));
    const V s = fma(dot_codes<M, Streamed>(x, k, 0, kLatent, then), by(q_scales->latent[i], scales->latent), r);
    if constexpr (Streamed) stream.at = then.at;
    float out[kLanes];
    store(out, s);
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) __builtin_memcpy(scores + (i + m) * kPageTokens + j, out + 4 * m, 4 * sizeof(float));
  }
  void score(std::int64_t lo, std::int64_t hi) {
    if (kStreams && streamed) return score_groups<kStreams>(lo, hi);
    score_groups<false>(lo, hi);
  }
  template <bool Streamed>
  void score_groups(std::int64_t lo, std::int64_t hi) {
    for (std::int64_t first = lo / kGroupRows * kGroupRows; first < hi; first += kGroupRows) {
      look_ahead(first + kGroupRows, hi);
      encode(first, lo, hi);
      for_scores(a.n, [&]<int M>(std::int64_t i) {
        for (std::int64_t j = first; j < first + kGroupRows; j += 4) {
          if (j + 4 > lo && j < hi) score_tile<M, Streamed>(i, j);
        }
      });
    }
  }
  // The weights of query i as codes; returns their scale.
  float encode_weights(std::int64_t i, std::int64_t lo, std::int64_t hi) {
    float* s = scores + i * kPageTokens;
    V top = zero(), all = zero();
    for (std::int64_t j = 0; j < kPageTokens; j += kLanes) {
      V v = zero();
      if (j + kLanes > lo && j < hi) v = mul(load(s + j), load(scales->value + j));
      store(s + j, v);
      top = larger(v, top);
      all = add(all, v);
    }
    const float total = sum(all);
    if (!(total > kTiniest)) {
      __builtin_memset(weights + i * kPageTokens, 0, kPageTokens * sizeof(Code));
      return 0;
    }
    const float by_most = kCodeMost / highest(top), by_sum = kLaneSum / total;
    const float by = by_most < by_sum ? by_most : by_sum;
    for (std::int64_t j = 0; j < kPageTokens; j += kLanes)
      store_in_order(weights + i * kPageTokens + j, mul(load(s + j), set1(by)));
    return 1.0F / by;
  }
  template <int M, bool Streamed>
  void weigh_tile(std::int64_t i, std::int64_t lo, std::int64_t hi, std::int64_t stripe, const float* by) {
    const Code* v = codes + stripe * kStripe;
    LineStream then = stream;
    const Code* x[M];
    I acc[M][kWeighN];
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
      x[m] = weights + (i + m) * kPageTokens;
#pragma GCC unroll 16
      for (int n = 0; n < kWeighN; ++n) acc[m][n] = zero_ints();
    }
#pragma GCC unroll kWeighUnroll
    for (std::int64_t j = lo; j < hi; j += 2) {
      I xv[M];
#pragma GCC unroll 16
      for (int m = 0; m < M; ++m) {
        std::int32_t two;
        __builtin_memcpy(&two, x[m] + j, sizeof two);
        xv[m] = set1_ints(two);
      }
      if constexpr (Streamed) then.ask();
#pragma GCC unroll 16
      for (int n = 0; n < kWeighN; ++n) {
        const Code* at = v + j * kKvRow + n / 2 * 2 * kLanes;
        const I even = load_ints(at), odd = load_ints(at + kKvRow);
        const I r = n % 2 == 0 ? interleave_low(even, odd) : interleave_high(even, odd);
#pragma GCC unroll 16
        for (int m = 0; m < M; ++m) acc[m][n] = add_products(acc[m][n], xv[m], r);
      }
    }
    if constexpr (Streamed) stream.at = then.at;
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
#pragma GCC unroll 16
      for (int n = 0; n < kWeighN; n += 2) {
        float* latent = a.out.latent + (i + m) * kLatent + column_of(stripe * kStripe + n * kLanes);
        store(latent, fma(to_floats(acc[m][n]), set1(by[i + m]), load(latent)));
        store(latent + kApart, fma(to_floats(acc[m][n + 1]), set1(by[i + m]), load(latent + kApart)));
      }
    }
  }
  void weigh(std::int64_t lo, std::int64_t hi) {
    float by[kQueryBlock];
    for (std::int64_t i = 0; i < a.n; ++i) by[i] = encode_weights(i, lo, hi);
    for (std::int64_t stripe = 0; stripe < kLatent / kStripe; ++stripe) {
      for_weights(a.n, [&]<int M>(std::int64_t i) {
        if constexpr (kStreams && M <= kFewQueries) {
          if (streamed) return weigh_tile<M, true>(i, lo / 2 * 2, hi, stripe, by);
        }
        weigh_tile<M, false>(i, lo / 2 * 2, hi, stripe, by);
      });
    }
  }
};

void attend_codes(const AttendArgs& a) {
  if (a.pages.codec == KvCodec::kF32) return attend(a);  // the exact cache, which the others are measured against
  auto* made = reinterpret_cast<Code*>(a.scratch);
  Code* q = made + kPageTokens * kKvRow;
  Code* weights = q + kQueryBlock * kKvRow;
  static_assert((kPageTokens + kQueryBlock) * kKvRow + kQueryBlock * kPageTokens <= 2 * kPageTokens * kKvRow);
  QueryScales q_scales;
  RowScales scales;
  const Fetch soon{static_cast<const char*>(a.soon.data), a.soon.stride, a.soon.bytes, 0, a.soon.pieces};
  CodedPage page{a, a.scratch + kPageTokens * kKvRow, q, made, weights, &q_scales, &scales, soon};
  if (kStreams && a.n <= kFewQueries && a.soon.pieces == 1 && a.soon.bytes <= kPageTokens * kv_row_bytes(a.pages.codec))
    page.soon.rows = 0;  // start_stream() takes it
  page.start();
  attend_pages(a, page);
}
