// Absorbed attention over one chunk of the cache for a block of queries. Included inside the kernel namespace.
// A page is converted once to floats (147 KB, in L2) and serves every query of the block, first as keys, then as
// values. Codes become floats here, but stay under the Hadamard transform where the codec has one. For few queries
// (decode) pages of plain numbers are used where they lie, since writing and reading the tile would cost more than the
// products.

#include "backends/cpu/attend_pages.inl.hpp"

// Rows [lo, hi) of the page that holds `position`, as floats in their places of the tile [64][576].
inline void load_page(const AttendArgs& a, std::int64_t position, std::int64_t lo, std::int64_t hi, float* tile) {
  const char* base = page_at(a, position);
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

inline constexpr std::int64_t kFewRows = 16;  // of a page, weighed together: 18 KB of halves and the latents, in L1

// s[i][j] of M queries and the rows [lo, hi) of a page.
template <int M, typename T>
inline void score_stored(const float* q, const T* page, std::int64_t lo, std::int64_t hi, float* s) {
  constexpr int kN = M == 4 ? 2 : 4;
  const float* x[M];
#pragma GCC unroll 16
  for (int i = 0; i < M; ++i) x[i] = q + i * kKvRow;
  std::int64_t j = lo;
  for (; j + kN <= hi; j += kN) {
    V acc[M][kN];
    clear(acc);
    dot_stream(x, page + j * kKvRow, kKvRow, kKvRow, acc);
    store_sums(acc, s + j, kPageTokens);
  }
  for (; j < hi; ++j) {
    V acc[M][1];
    clear(acc);
    dot_tile(x, page + j * kKvRow, kKvRow, kKvRow, acc);
    store_sums(acc, s + j, kPageTokens);
  }
}

// N vectors from `column` on of latent[i] += s[i][j] · row j, over the rows [lo, hi) of a page or tile.
template <int M, int N, typename T>
inline void weigh_columns(const float* s, const T* rows, std::int64_t lo, std::int64_t hi, std::int64_t column,
                          float* latent) {
  const float* x[M];
#pragma GCC unroll 16
  for (int i = 0; i < M; ++i) x[i] = s + i * kPageTokens + lo;
  V acc[M][N];
#pragma GCC unroll 16
  for (int i = 0; i < M; ++i) {
#pragma GCC unroll 16
    for (int c = 0; c < N; ++c) acc[i][c] = load(latent + i * kLatent + column + c * kLanes);
  }
  outer_tile(x, rows + lo * kKvRow + column, kKvRow, hi - lo, acc);
#pragma GCC unroll 16
  for (int i = 0; i < M; ++i) {
#pragma GCC unroll 16
    for (int c = 0; c < N; ++c) store(latent + i * kLatent + column + c * kLanes, acc[i][c]);
  }
}

// A page's rows where they lie, as T.
template <typename T>
struct StoredPage {
  const AttendArgs& a;
  float* scores;  // [n][64]
  const T* rows = nullptr;

  void open(std::int64_t position, std::int64_t, std::int64_t) {
    rows = reinterpret_cast<const T*>(page_at(a, position));
  }
  void score(std::int64_t lo, std::int64_t hi) {
    for_few(a.n,
            [&]<int M>(std::int64_t i) { score_stored<M>(a.q + i * kKvRow, rows, lo, hi, scores + i * kPageTokens); });
  }
  void weigh(std::int64_t lo, std::int64_t hi) {
    for (std::int64_t from = lo; from < hi; from += kFewRows) {
      const std::int64_t to = from + kFewRows < hi ? from + kFewRows : hi;
      for_few(a.n, [&]<int M>(std::int64_t i) {
        constexpr int kN = M == 4 ? 2 : kTileN;
        for (std::int64_t column = 0; column < kLatent; column += kN * kLanes)
          weigh_columns<M, kN>(scores + i * kPageTokens, rows, from, to, column, a.out.latent + i * kLatent);
      });
    }
  }
};

// A page's rows as floats in a tile.
struct TiledPage {
  const AttendArgs& a;
  float* scores;  // [n][64]
  float* tile;    // [64][576]

  void open(std::int64_t position, std::int64_t lo, std::int64_t hi) { load_page(a, position, lo, hi, tile); }
  void score(std::int64_t lo, std::int64_t hi) {
    for (std::int64_t j = lo / 8 * 8; j < hi; j += 8) {  // eight rows of the tile stay in L1 while the queries pass
      for_tiles(a.n, [&]<int M>(std::int64_t i) {
        for (std::int64_t g = j; g < j + 8; g += 4) {
          if (g + 4 > lo && g < hi) score_rows<M>(a.q + i * kKvRow, tile, g, scores + i * kPageTokens);
        }
      });
    }
  }
  void weigh(std::int64_t lo, std::int64_t hi) {
    for (std::int64_t column = 0; column < kLatent; column += kTileN * kLanes) {
      for_tiles(a.n, [&]<int M>(std::int64_t i) {
        weigh_columns<M, kTileN>(scores + i * kPageTokens, tile, lo, hi, column, a.out.latent + i * kLatent);
      });
    }
  }
};

void attend(const AttendArgs& a) {
  float* scores = a.scratch + kPageTokens * kKvRow;
  if (a.n <= kFewQueries) {
    switch (a.pages.codec) {
      case KvCodec::kF32:
        return attend_pages(a, StoredPage<float>{a, scores});
      case KvCodec::kBF16:
        return attend_pages(a, StoredPage<BF16>{a, scores});
      case KvCodec::kF16:
        return attend_pages(a, StoredPage<F16>{a, scores});
      default:
        break;
    }
  }
  attend_pages(a, TiledPage{a, scores, a.scratch});
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
