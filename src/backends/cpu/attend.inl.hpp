// Absorbed attention over one chunk of the cache for a block of queries. Included inside the kernel namespace.
// A page is converted once to floats (147 KB, in L2) and serves every query of the block, first as keys, then as
// values. Codes become floats here, but stay under the Hadamard transform where the codec has one.

// Rows [lo, hi) of the page that holds `position`, as floats in their places of the tile [64][576].
inline void load_page(const AttendArgs& a, std::int64_t position, std::int64_t lo, std::int64_t hi, float* tile) {
  const std::int64_t page = a.page_table[position / kPageTokens];
  const char* base = static_cast<const char*>(a.pages.base) + page * a.pages.page_stride_bytes;
  const std::int64_t row_bytes = kv_row_bytes(a.pages.codec);
  for (std::int64_t j = lo; j < hi; ++j) { kv_decode(a.pages.codec, base + j * row_bytes, tile + j * kKvRow); }
  // Scores are computed for groups of four rows; those of the fringe are thrown away.
  for (std::int64_t j = lo / 4 * 4; j < lo; ++j) __builtin_memset(tile + j * kKvRow, 0, kKvRow * sizeof(float));
  for (std::int64_t j = hi; j % 4 != 0; ++j) __builtin_memset(tile + j * kKvRow, 0, kKvRow * sizeof(float));
}

template <int M>
inline void score_rows(const float* q, const float* tile, std::int64_t j, float* s) {
  const float* x[M];
#pragma GCC unroll 16
  for (int i = 0; i < M; ++i) x[i] = q + i * kKvRow;
  V acc[M][4];
  clear(acc);
  dot_tile(x, tile + j * kKvRow, kKvRow, kKvRow, acc);
#pragma GCC unroll 16
  for (int i = 0; i < M; ++i) sum4(acc[i][0], acc[i][1], acc[i][2], acc[i][3], s + i * kPageTokens + j);
}

template <int M>
inline void weigh_rows(const float* s, const float* tile, std::int64_t lo, std::int64_t hi, std::int64_t column,
                       float* latent) {
  const float* x[M];
#pragma GCC unroll 16
  for (int i = 0; i < M; ++i) x[i] = s + i * kPageTokens + lo;
  V acc[M][kTileN];
#pragma GCC unroll 16
  for (int i = 0; i < M; ++i) {
#pragma GCC unroll 16
    for (int c = 0; c < kTileN; ++c) acc[i][c] = load(latent + i * kLatent + column + c * kLanes);
  }
  outer_tile(x, tile + lo * kKvRow + column, kKvRow, hi - lo, acc);
#pragma GCC unroll 16
  for (int i = 0; i < M; ++i) {
#pragma GCC unroll 16
    for (int c = 0; c < kTileN; ++c) store(latent + i * kLatent + column + c * kLanes, acc[i][c]);
  }
}

inline float exp_one(float x) {
  float v[kLanes];
  store(v, exp(set1(x)));
  return v[0];
}

inline void scale_latent(float* latent, float by) {
  if (by == 1.0F) return;  // the same bits, and the usual case: the maximum seldom moves
  for (std::int64_t c = 0; c < kLatent; c += kLanes) store(latent + c, mul(load(latent + c), set1(by)));
}

// Scores of one query over a page → exp(s - top), zeros outside [lo, hi); updates the running maximum, sum and latent.
inline void soften(float* s, std::int64_t lo, std::int64_t hi, float* top, float* total, float* latent) {
  for (std::int64_t j = 0; j < lo; ++j) s[j] = kLowest;
  for (std::int64_t j = hi; j < kPageTokens; ++j) s[j] = kLowest;
  float new_top = *top;
  for (std::int64_t j = lo; j < hi; ++j) new_top = s[j] > new_top ? s[j] : new_top;
  V partial = zero();
  for (std::int64_t j = 0; j < kPageTokens; j += kLanes) {
    const V e = exp(sub(load(s + j), set1(new_top)));
    store(s + j, e);
  }
  for (std::int64_t j = 0; j < lo; ++j) s[j] = 0;
  for (std::int64_t j = hi; j < kPageTokens; ++j) s[j] = 0;
  for (std::int64_t j = 0; j < kPageTokens; j += kLanes) partial = add(partial, load(s + j));
  const float keep = *total == 0.0F ? 1.0F : exp_one(*top - new_top);  // nothing to keep yet: latent is zero
  *total = *total * keep + sum(partial);
  *top = new_top;
  scale_latent(latent, keep);
}

void attend(const AttendArgs& a) {
  float* tile = a.scratch;                      // [64][576]
  float* scores = tile + kPageTokens * kKvRow;  // [n][64]
  for (std::int64_t i = 0; i < a.n; ++i) {
    a.out.top[i] = kLowest;
    a.out.sum[i] = 0;
  }
  __builtin_memset(a.out.latent, 0, static_cast<std::size_t>(a.n * kLatent) * sizeof(float));
  std::int64_t from = a.first[0], to = a.last[0];  // the union: queries of one sequence have contiguous positions
  for (std::int64_t i = 1; i < a.n; ++i) {
    from = a.first[i] < from ? a.first[i] : from;
    to = a.last[i] > to ? a.last[i] : to;
  }
  from = from > a.begin ? from : a.begin;
  to = to < a.end ? to : a.end;
  for (std::int64_t page = from / kPageTokens * kPageTokens; page < to; page += kPageTokens) {
    const std::int64_t lo = from > page ? from - page : 0;
    const std::int64_t hi = to - page < kPageTokens ? to - page : kPageTokens;
    load_page(a, page, lo, hi, tile);
    for (std::int64_t j = lo / 8 * 8; j < hi; j += 8) {  // eight rows of the tile stay in L1 while the queries pass
      std::int64_t i = 0;
      for (; i < a.n;) {
        const float* q = a.q + i * kKvRow;
        float* s = scores + i * kPageTokens;
        const std::int64_t rows = i + kTileM <= a.n ? kTileM : i + 2 <= a.n ? 2 : 1;
        for (std::int64_t g = j; g < j + 8; g += 4) {
          if (g + 4 <= lo || g >= hi) continue;
          if (rows == kTileM) {
            score_rows<kTileM>(q, tile, g, s);
          } else if (rows == 2) {
            score_rows<2>(q, tile, g, s);
          } else {
            score_rows<1>(q, tile, g, s);
          }
        }
        i += rows;
      }
    }
    for (std::int64_t i = 0; i < a.n; ++i) {
      float* s = scores + i * kPageTokens;
      const std::int64_t first = a.first[i] > page + lo ? a.first[i] - page : lo;
      const std::int64_t last = a.last[i] < page + hi ? a.last[i] - page : hi;
      if (first < last) {
        soften(s, first, last, a.out.top + i, a.out.sum + i, a.out.latent + i * kLatent);
      } else {
        __builtin_memset(s, 0, kPageTokens * sizeof(float));
      }
    }
    for (std::int64_t column = 0; column < kLatent; column += kTileN * kLanes) {
      std::int64_t i = 0;
      for (; i + kTileM <= a.n; i += kTileM)
        weigh_rows<kTileM>(scores + i * kPageTokens, tile, lo, hi, column, a.out.latent + i * kLatent);
      for (; i < a.n; ++i) weigh_rows<1>(scores + i * kPageTokens, tile, lo, hi, column, a.out.latent + i * kLatent);
    }
  }
}

void attend_merge(const AttendState& run, const AttendState& part, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) {
    if (part.sum[i] == 0.0F) continue;
    float* to = run.latent + i * kLatent;
    const float* from = part.latent + i * kLatent;
    if (run.sum[i] == 0.0F) {
      __builtin_memcpy(to, from, kLatent * sizeof(float));
      run.top[i] = part.top[i];
      run.sum[i] = part.sum[i];
      continue;
    }
    const float top = run.top[i] > part.top[i] ? run.top[i] : part.top[i];
    const float keep = exp_one(run.top[i] - top);
    const float take = exp_one(part.top[i] - top);
    run.sum[i] = run.sum[i] * keep + part.sum[i] * take;
    run.top[i] = top;
    const V k = set1(keep), t = set1(take);
    for (std::int64_t c = 0; c < kLatent; c += kLanes) store(to + c, fma(load(from + c), t, mul(load(to + c), k)));
  }
}

void attend_finish(const AttendState& run, std::int64_t i, float* out) {
  const V by = set1(1.0F / run.sum[i]);
  for (std::int64_t c = 0; c < kLatent; c += kLanes) store(out + c, mul(load(run.latent + i * kLatent + c), by));
}
