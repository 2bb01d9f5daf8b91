// Attention in 16-bit integers (VNNI). Included inside the kernel namespace, after attend.inl.hpp.
//
// vpdpwssd adds two products of int16 to a lane, twice what an fp32 multiply-add does. So cache rows, queries and
// softmax weights become codes times a scale:
//   rows      latent and rotary part each with its own scale; the largest |value| becomes kRowMost
//   queries   the same, as fine as the bound below allows
//   weights   those of a query in a page, times the latent scales of the rows; as fine as the bound below allows
// A row's codes depend on that row alone, a query's on the query, weights on the query and the page; sums of integers
// are exact. So bits depend on no tile and no neighbour. What the codes lose is less than what rounding the cache to
// F16 does (docs/experiments/2026-11-28-cpu-attention-int16.md). F32 pages are read in floats, as the measure of all
// others.
//
// No sum of a lane overflows. The codes of a query, or the weights, that are added in one lane have magnitudes of at
// most kLaneSum together before they are rounded, which adds 1/2 at most to each, and each meets a row's code of
// kRowMost at most. A lane holds 32 codes of a latent query (16 steps of two), 4 of a rotary one, or the weights of a
// page's 64 rows. Rows and queries that are not finite have any codes and a scale of NaN: their sums may overflow, and
// do not matter.

static_assert(kPageTokens <= kLaneCodes && kLatent / kLanes <= kLaneCodes && kRope / kLanes <= kLaneCodes);

inline constexpr std::int64_t kGroupRows = 16;            // rows that stay in L1 while the queries pass: 18 KB
inline constexpr std::int64_t kStripe = kTileN * kLanes;  // channels that are weighed together: 8 KB of a page
inline constexpr int kFetchLines = 16;                    // of the next group, fetched in each tile of scores
inline constexpr int kSoonLines = 16;                     // of AttendArgs::soon: a line every 25 cycles

// Rows and queries hold their codes in the order in which _mm512_packs_epi32 leaves those of two vectors a and b: a0 …
// a3, b0 … b3, a4 … of 32 values. Interleaving two such rows by halves of 128 bits gives a and b in order.
inline __m512i codes_of(V a, V b, V by) {
  return _mm512_packs_epi32(_mm512_cvtps_epi32(mul(a, by)), _mm512_cvtps_epi32(mul(b, by)));
}
inline void store_codes(Code* to, __m512i codes) { _mm512_storeu_si512(to, codes); }
inline __m512i load_codes(const Code* from) { return _mm512_loadu_si512(from); }

// N values of a query → codes; returns their scale, NaN if a value is not finite.
template <std::int64_t N>
inline float encode_query(const float* v, Code* to) {
  V top = zero(), a = zero(), b = zero();
  for (std::int64_t i = 0; i < N; i += 2 * kLanes) {
    const V x = magnitude(load(v + i)), y = magnitude(load(v + i + kLanes));
    top = larger(x, larger(y, top));
    a = add(a, x);
    b = add(b, y);
  }
  // Lanes 0 and 1, 2 and 3 of a vector meet rows in one lane.
  const __m512d low = _mm512_castps_pd(_mm512_unpacklo_ps(a, b)), high = _mm512_castps_pd(_mm512_unpackhi_ps(a, b));
  const V lanes = add(_mm512_castpd_ps(_mm512_unpacklo_pd(low, high)), _mm512_castpd_ps(_mm512_unpackhi_pd(low, high)));
  const bool finite = sum(lanes) < __builtin_inff();
  const float most = highest(top);
  if (!finite || most < kTiniest) {
    __builtin_memset(to, 0, N * sizeof(Code));
    return finite ? 0 : not_a_number();
  }
  const float by_most = kCodeMost / most, by_sum = kLaneSum / highest(lanes);
  const float by = by_most < by_sum ? by_most : by_sum;
  for (std::int64_t i = 0; i < N; i += 2 * kLanes)
    store_codes(to + i, codes_of(load(v + i), load(v + i + kLanes), set1(by)));
  return 1.0F / by;
}

// max |v| of N halves, as a half.
template <std::int64_t N>
inline int largest_half(const F16* v) {
  __m512i top = _mm512_setzero_si512();
#pragma GCC unroll 16
  for (std::int64_t i = 0; i < N; i += 2 * kLanes)
    top = _mm512_max_epu16(top, _mm512_and_si512(_mm512_loadu_si512(v + i), _mm512_set1_epi16(0x7fff)));
  const __m256i half = _mm256_max_epu16(_mm512_castsi512_si256(top), _mm512_extracti64x4_epi64(top, 1));
  const __m128i eight = _mm_max_epu16(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
  return 0xffff - _mm_extract_epi16(_mm_minpos_epu16(_mm_xor_si128(eight, _mm_set1_epi16(-1))), 0);
}

// One part of a group's rows: its scales (NaN if a value is not finite) and what values are multiplied by.
struct PartScales {
  float scale[kGroupRows];
  float inverse[kGroupRows];

  void set(const float* most) {
    for (std::int64_t j = 0; j < kGroupRows; ++j) {
      const bool finite = most[j] < __builtin_inff(), some = most[j] >= kTiniest;
      const float up = kRowMost / most[j], down = most[j] / kRowMost;
      inverse[j] = finite && some ? up : 0;
      scale[j] = finite ? (some ? down : 0) : not_a_number();
    }
  }
};

// The rows of a group in each kind of page: scales, and 32 codes of a row from a column on. Rows outside [lo, hi) are
// not read and have scales and codes of zero.
alignas(64) inline constexpr char kZeroRow[kKvRow * sizeof(F16)] = {};

struct HalfRows {
  const F16* row[kGroupRows];
  PartScales latent, rotary;

  HalfRows(KvCodec, const char* rows, std::int64_t lo, std::int64_t hi) {
    std::uint16_t tops[2][kGroupRows];
    for (std::int64_t j = 0; j < kGroupRows; ++j) {
      row[j] = reinterpret_cast<const F16*>(j >= lo && j < hi ? rows + j * kKvRow * 2 : kZeroRow);
      tops[0][j] = static_cast<std::uint16_t>(largest_half<kLatent>(row[j]));
      tops[1][j] = static_cast<std::uint16_t>(largest_half<kRope>(row[j] + kLatent));
    }
    float most[2][kGroupRows];
    widen<F16>(tops, most[0], 2 * kGroupRows);
    latent.set(most[0]);
    rotary.set(most[1]);
  }
  __m512i latent_codes(std::int64_t j, std::int64_t c) const {
    return codes_of(load(row[j] + c), load(row[j] + c + kLanes), set1(latent.inverse[j]));
  }
  __m512i rotary_codes(std::int64_t j, std::int64_t c) const {
    return codes_of(load(row[j] + kLatent + c), load(row[j] + kLatent + c + kLanes), set1(rotary.inverse[j]));
  }
};

// INT8: the latent part's codes as they are.
struct ByteRows {
  const std::uint8_t* row[kGroupRows];
  PartScales latent, rotary;
  float v[kGroupRows][kRope];

  ByteRows(KvCodec, const char* rows, std::int64_t lo, std::int64_t hi) {
    float most[kGroupRows] = {};
    for (std::int64_t j = 0; j < kGroupRows; ++j) {
      const bool seen = j >= lo && j < hi;
      row[j] = reinterpret_cast<const std::uint8_t*>(seen ? rows + j * KvRow8::kBytes : kZeroRow);
      if (!seen) {
        __builtin_memset(v[j], 0, sizeof v[j]);
        latent.scale[j] = 0;
        continue;
      }
      const std::uint64_t side = side_word_8(row[j]);
      decode_rotary(row[j] + KvRow8::kRotary, side, v[j]);
      latent.scale[j] = latent_scale(side);
      most[j] = largest<kRope>(v[j]);
    }
    rotary.set(most);
  }
  __m512i latent_codes(std::int64_t j, std::int64_t c) const {
    const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row[j] + c));
    return _mm512_cvtepi8_epi16(_mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7)));
  }
  __m512i rotary_codes(std::int64_t j, std::int64_t c) const {
    return codes_of(load(v[j] + c), load(v[j] + c + kLanes), set1(rotary.inverse[j]));
  }
};

// Any other codec, through floats.
struct FloatRows {
  PartScales latent, rotary;
  float v[kGroupRows][kKvRow];

  FloatRows(KvCodec codec, const char* rows, std::int64_t lo, std::int64_t hi) {
    float most[2][kGroupRows] = {};
    for (std::int64_t j = 0; j < kGroupRows; ++j) {
      if (j < lo || j >= hi) {
        __builtin_memset(v[j], 0, sizeof v[j]);
        continue;
      }
      kv_decode(codec, rows + j * kv_row_bytes(codec), v[j]);
      most[0][j] = largest<kLatent>(v[j]);
      most[1][j] = largest<kRope>(v[j] + kLatent);
    }
    latent.set(most[0]);
    rotary.set(most[1]);
  }
  __m512i latent_codes(std::int64_t j, std::int64_t c) const {
    return codes_of(load(v[j] + c), load(v[j] + c + kLanes), set1(latent.inverse[j]));
  }
  __m512i rotary_codes(std::int64_t j, std::int64_t c) const {
    return codes_of(load(v[j] + kLatent + c), load(v[j] + kLatent + c + kLanes), set1(rotary.inverse[j]));
  }
};

struct RowScales {
  float latent[kPageTokens];
  float rotary[kPageTokens];
  float value[kPageTokens];  // latent, 0 for a row that is not finite: it shows in the scores
};

// Four vectors → in each 128 bits, the sums of these 128 bits of each.
inline V sum_quarters(V a, V b, V c, V d) {
  const __m512d ab = _mm512_castps_pd(add(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b)));
  const __m512d cd = _mm512_castps_pd(add(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d)));
  return add(_mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd)), _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd)));
}
template <int Which>
inline V quarters(V a, V b) {
  return _mm512_castsi512_ps(_mm512_shuffle_i32x4(_mm512_castps_si512(a), _mm512_castps_si512(b), Which));
}
// The four 128-bit parts of each of four vectors, added.
inline V sum_parts(V a, V b, V c, V d) {
  const V ab = add(quarters<0x44>(a, b), quarters<0xee>(a, b));
  const V cd = add(quarters<0x44>(c, d), quarters<0xee>(c, d));
  return add(quarters<0x88>(ab, cd), quarters<0xdd>(ab, cd));
}

// Columns [from, to) of M queries · 4 rows: [4][4] floats, of which the first M of four are meant.
template <int M>
[[gnu::always_inline]] inline V dot_codes(const Code* const (&x)[M], const Code* rows, std::int64_t from,
                                          std::int64_t to) {
  __m512i acc[M][4];
#pragma GCC unroll 16
  for (int i = 0; i < M; ++i) {
#pragma GCC unroll 16
    for (int n = 0; n < 4; ++n) acc[i][n] = _mm512_setzero_si512();
  }
#pragma GCC unroll 2
  for (std::int64_t k = from; k < to; k += 2 * kLanes) {
    __m512i xv[M];
#pragma GCC unroll 16
    for (int i = 0; i < M; ++i) xv[i] = load_codes(x[i] + k);
#pragma GCC unroll 16
    for (int n = 0; n < 4; ++n) {
      const __m512i r = load_codes(rows + n * kKvRow + k);
#pragma GCC unroll 16
      for (int i = 0; i < M; ++i) acc[i][n] = add_products(acc[i][n], xv[i], r);
    }
  }
  V sums[M];
#pragma GCC unroll 16
  for (int i = 0; i < M; ++i)
    sums[i] = sum_quarters(_mm512_cvtepi32_ps(acc[i][0]), _mm512_cvtepi32_ps(acc[i][1]), _mm512_cvtepi32_ps(acc[i][2]),
                           _mm512_cvtepi32_ps(acc[i][3]));
  return sum_parts(sums[0], sums[M > 1 ? 1 : 0], sums[M > 2 ? 2 : 0], sums[M > 3 ? 3 : 0]);
}

// A page's rows as codes; rows 16 at a time for the scores, then all for the weighted sum, which interleaves two rows
// as it loads them (a second, interleaved copy costs more to write than it saves).
struct CodedPage {
  const AttendArgs& a;
  float* scores;    // [n][64]
  Code* q;          // [n][576]
  Code* codes;      // [64][576]
  Code* weights;    // [n][64]
  float* q_latent;  // [n] scales
  float* q_rotary;
  RowScales* scales;
  Fetch soon;
  const char* rows = nullptr;
  const char* next_rows = nullptr;  // of the next page, or null
  const char* ahead = nullptr;      // what is fetched while the queries pass: the next group
  const char* ahead_end = nullptr;

  void start() {
    for (std::int64_t i = 0; i < a.n; ++i) {
      q_latent[i] = encode_query<kLatent>(a.q + i * kKvRow, q + i * kKvRow);
      q_rotary[i] = encode_query<kRope>(a.q + i * kKvRow + kLatent, q + i * kKvRow + kLatent);
    }
  }
  const char* page_at(std::int64_t position) const {
    return static_cast<const char*>(a.pages.base) + a.page_table[position / kPageTokens] * a.pages.page_stride_bytes;
  }
  void open(std::int64_t position, std::int64_t, std::int64_t hi) {
    rows = page_at(position);
    const bool more = hi == kPageTokens && position + kPageTokens < (a.last[a.n - 1] < a.end ? a.last[a.n - 1] : a.end);
    next_rows = more ? page_at(position + kPageTokens) : nullptr;
  }
  void look_ahead(std::int64_t first, std::int64_t hi) {
    const std::int64_t row_bytes = kv_row_bytes(a.pages.codec);
    ahead = first < hi ? rows + first * row_bytes : first == kPageTokens ? next_rows : nullptr;
    ahead_end = ahead != nullptr ? ahead + kGroupRows * row_bytes : nullptr;
  }
  void fetch() {
    for (int i = 0; i < kFetchLines && ahead < ahead_end; ++i, ahead += 64) __builtin_prefetch(ahead, 0, 2);
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
      if (a.n <= kFewQueries) fetch();  // too few tiles of scores for all lines
      Code* to = codes + (first + j) * kKvRow;
#pragma GCC unroll 4
      for (std::int64_t c = 0; c < kLatent; c += 2 * kLanes) store_codes(to + c, from.latent_codes(j, c));
#pragma GCC unroll 2
      for (std::int64_t c = 0; c < kRope; c += 2 * kLanes) store_codes(to + kLatent + c, from.rotary_codes(j, c));
    }
  }
  void encode(std::int64_t first, std::int64_t lo, std::int64_t hi) {
    switch (a.pages.codec) {
      case KvCodec::kF16:
        return encode_group<HalfRows>(first, lo, hi);
      case KvCodec::kInt8:
        return encode_group<ByteRows>(first, lo, hi);
      default:
        return encode_group<FloatRows>(first, lo, hi);
    }
  }
  template <int M>
  void score_tile(std::int64_t i, std::int64_t j) {
    const Code* x[M];
    float latent[4] = {}, rotary[4] = {};
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
      x[m] = q + (i + m) * kKvRow;
      latent[m] = q_latent[i + m];
      rotary[m] = q_rotary[i + m];
    }
    const __m512i spread = _mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0);
    const auto by = [&](const float* of_queries, const float* of_rows) {
      const V r = _mm512_permutexvar_ps(_mm512_set_epi32(3, 2, 1, 0, 3, 2, 1, 0, 3, 2, 1, 0, 3, 2, 1, 0),
                                        _mm512_castps128_ps512(_mm_loadu_ps(of_rows + j)));
      return mul(_mm512_permutexvar_ps(spread, _mm512_castps128_ps512(_mm_loadu_ps(of_queries))), r);
    };
    fetch();
    soon.lines(kSoonLines);
    const Code* k = codes + j * kKvRow;
    const V r = mul(dot_codes<M>(x, k, kLatent, kKvRow), by(rotary, scales->rotary));
    const V s = fma(dot_codes<M>(x, k, 0, kLatent), by(latent, scales->latent), r);
    float out[kLanes];
    store(out, s);
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) __builtin_memcpy(scores + (i + m) * kPageTokens + j, out + 4 * m, 4 * sizeof(float));
  }
  void score(std::int64_t lo, std::int64_t hi) {
    for (std::int64_t first = lo / kGroupRows * kGroupRows; first < hi; first += kGroupRows) {
      look_ahead(first + kGroupRows, hi);
      encode(first, lo, hi);
      for_few(a.n, [&]<int M>(std::int64_t i) {
        for (std::int64_t j = first; j < first + kGroupRows; j += 4) {
          if (j + 4 > lo && j < hi) score_tile<M>(i, j);
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
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(weights + i * kPageTokens + j),
                          _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(mul(load(s + j), set1(by)))));
    return 1.0F / by;
  }
  template <int M>
  void weigh_tile(std::int64_t i, std::int64_t lo, std::int64_t hi, std::int64_t stripe, const float* by) {
    const Code* v = codes + stripe * kStripe;
    const Code* x[M];
    __m512i acc[M][kTileN];
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
      x[m] = weights + (i + m) * kPageTokens;
#pragma GCC unroll 16
      for (int n = 0; n < kTileN; ++n) acc[m][n] = _mm512_setzero_si512();
    }
    for (std::int64_t j = lo; j < hi; j += 2) {
      __m512i xv[M];
#pragma GCC unroll 16
      for (int m = 0; m < M; ++m) {
        std::int32_t two;
        __builtin_memcpy(&two, x[m] + j, sizeof two);
        xv[m] = _mm512_set1_epi32(two);
      }
#pragma GCC unroll 16
      for (int n = 0; n < kTileN; ++n) {
        const Code* at = v + j * kKvRow + n / 2 * 2 * kLanes;
        const __m512i even = load_codes(at), odd = load_codes(at + kKvRow);
        const __m512i r = n % 2 == 0 ? _mm512_unpacklo_epi16(even, odd) : _mm512_unpackhi_epi16(even, odd);
#pragma GCC unroll 16
        for (int m = 0; m < M; ++m) acc[m][n] = add_products(acc[m][n], xv[m], r);
      }
    }
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
      float* latent = a.out.latent + (i + m) * kLatent + stripe * kStripe;
#pragma GCC unroll 16
      for (int n = 0; n < kTileN; ++n)
        store(latent + n * kLanes, fma(_mm512_cvtepi32_ps(acc[m][n]), set1(by[i + m]), load(latent + n * kLanes)));
    }
  }
  void weigh(std::int64_t lo, std::int64_t hi) {
    float by[kQueryBlock];
    for (std::int64_t i = 0; i < a.n; ++i) by[i] = encode_weights(i, lo, hi);
    for (std::int64_t stripe = 0; stripe < kLatent / kStripe; ++stripe) {
      for_tiles(a.n, [&]<int M>(std::int64_t i) { weigh_tile<M>(i, lo / 2 * 2, hi, stripe, by); });
    }
  }
};

void attend_codes(const AttendArgs& a) {
  if (a.pages.codec == KvCodec::kF32) return attend(a);  // the exact cache, which the others are measured against
  auto* codes = reinterpret_cast<Code*>(a.scratch);
  Code* q = codes + kPageTokens * kKvRow;
  Code* weights = q + kQueryBlock * kKvRow;
  static_assert((kPageTokens + kQueryBlock) * kKvRow + kQueryBlock * kPageTokens <= 2 * kPageTokens * kKvRow);
  float q_latent[kQueryBlock], q_rotary[kQueryBlock];
  RowScales scales;
  const Fetch soon{static_cast<const char*>(a.soon.data), a.soon.stride, a.soon.bytes, 0, a.soon.pieces};
  CodedPage page{a, a.scratch + kPageTokens * kKvRow, q, codes, weights, q_latent, q_rotary, &scales, soon};
  page.start();
  attend_pages(a, page);
}
