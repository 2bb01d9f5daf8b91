// Dot-product kernels: x [M, K] against rows of W [N, K], both contiguous in K. Included inside the kernel namespace.
// A weight row is streamed once from memory: for few rows of x it is converted in registers, for many it is converted
// once into a tile that stays in L1 while all rows of x pass.

#include "backends/cpu/partial.inl.hpp"

// How X values meet W values: a step multiplies kStep of each into one accumulator.
template <typename X, typename W>
struct Dot {
  static constexpr int kStep = kLanes;
  static V load_x(const float* p) { return load(p); }
  static V load_w(const W* p) { return load(p); }
  static V step(V c, V x, V w) { return fma(x, w, c); }
};
#ifdef GLINT_DOT_BF16
template <>
struct Dot<BF16, BF16> {
  static constexpr int kStep = 2 * kLanes;
  static VB load_x(const BF16* p) { return load_pairs(p); }
  static VB load_w(const BF16* p) { return load_pairs(p); }
  static V step(V c, VB x, VB w) { return dot_pairs(c, x, w); }
};
#endif

// One step of dot_tile at column i.
template <int M, int N, typename X, typename W>
[[gnu::always_inline]] inline void dot_step(const X* const (&x)[M], const W* w, std::int64_t w_stride, std::int64_t i,
                                            V (&acc)[M][N]) {
  using D = Dot<X, W>;
  decltype(D::load_x(x[0])) xv[M];
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m) xv[m] = D::load_x(x[m] + i);
#pragma GCC unroll 16
  for (int n = 0; n < N; ++n) {
    const auto wv = D::load_w(w + n * w_stride + i);
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) acc[m][n] = D::step(acc[m][n], xv[m], wv);
  }
}

// acc[m][n] += x[m] · w[n] over k values, a multiple of the step. The arrays live in registers once unrolled.
template <int M, int N, typename X, typename W>
[[gnu::always_inline]] inline void dot_tile(const X* const (&x)[M], const W* w, std::int64_t w_stride, std::int64_t k,
                                            V (&acc)[M][N]) {
  for (std::int64_t i = 0; i < k; i += Dot<X, W>::kStep) dot_step(x, w, w_stride, i, acc);
}

// The same for a tile of W in L1, while the next M rows of x are fetched: they come from L2 or L3, and a multiply-add
// that waits for them stalls all twelve chains.
template <int M, int N, typename X, typename W>
[[gnu::always_inline]] inline void dot_tile_ahead(const X* const (&x)[M], const X* const (&next)[M], const W* w,
                                                  std::int64_t w_stride, std::int64_t k, V (&acc)[M][N]) {
  constexpr int kStep = Dot<X, W>::kStep;
  constexpr int kLine = 64 / sizeof(X);
  constexpr int kGroup = kLine > kStep ? kLine : kStep;
  std::int64_t i = 0;
  for (; i + kGroup <= k; i += kGroup) {
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) __builtin_prefetch(next[m] + i, 0, 3);
#pragma GCC unroll 16
    for (int j = 0; j < kGroup; j += kStep) dot_step(x, w, w_stride, i + j, acc);
  }
  for (; i < k; i += kStep) dot_step(x, w, w_stride, i, acc);
}

// The same for rows of W that come from memory: while these N rows are used, the next N are fetched into L2. The
// hardware's own prefetch stops at each page.
template <int M, int N, typename X, typename W>
[[gnu::always_inline]] inline void dot_stream(const X* const (&x)[M], const W* w, std::int64_t w_stride, std::int64_t k,
                                              V (&acc)[M][N]) {
  constexpr int kStep = Dot<X, W>::kStep;
  constexpr int kLine = 64 / sizeof(W);  // values of a cache line
  constexpr int kGroup = kLine > kStep ? kLine : kStep;
  std::int64_t i = 0;
  for (; i + kGroup <= k; i += kGroup) {
#pragma GCC unroll 16
    for (int n = 0; n < N; ++n) __builtin_prefetch(w + (N + n) * w_stride + i, 0, 2);
#pragma GCC unroll 16
    for (int j = 0; j < kGroup; j += kStep) dot_step(x, w, w_stride, i + j, acc);
  }
  for (; i < k; i += kStep) dot_step(x, w, w_stride, i, acc);
}

template <int M, int N>
[[gnu::always_inline]] inline void clear(V (&acc)[M][N]) {
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m) {
#pragma GCC unroll 16
    for (int n = 0; n < N; ++n) acc[m][n] = zero();
  }
}

// out[m][n] = the sum of acc[m][n]'s lanes.
template <int M, int N>
[[gnu::always_inline]] inline void store_sums(const V (&acc)[M][N], float* out, std::int64_t out_stride) {
  if constexpr (N % 4 == 0) {
#pragma GCC unroll 16
    for (int i = 0; i < M; ++i) {
#pragma GCC unroll 16
      for (int j = 0; j < N; j += 4)
        sum4(acc[i][j], acc[i][j + 1], acc[i][j + 2], acc[i][j + 3], out + i * out_stride + j);
    }
  } else if constexpr (M == 4 && N == 2) {  // four at a time, two of a row
#pragma GCC unroll 16
    for (int i = 0; i < M; i += 2) {
      float sums[4];
      sum4(acc[i][0], acc[i][1], acc[i + 1][0], acc[i + 1][1], sums);
      __builtin_memcpy(out + i * out_stride, sums, 2 * sizeof(float));
      __builtin_memcpy(out + (i + 1) * out_stride, sums + 2, 2 * sizeof(float));
    }
  } else if constexpr (M == 4) {  // four at a time down a column
#pragma GCC unroll 16
    for (int j = 0; j < N; ++j) {
      float sums[4];
      sum4(acc[0][j], acc[1][j], acc[2][j], acc[3][j], sums);
#pragma GCC unroll 16
      for (int i = 0; i < 4; ++i) out[i * out_stride + j] = sums[i];
    }
  } else {
#pragma GCC unroll 16
    for (int i = 0; i < M; ++i) {
#pragma GCC unroll 16
      for (int j = 0; j < N; ++j) out[i * out_stride + j] = sum(acc[i][j]);
    }
  }
}

template <typename X>
inline const X* x_row(const DotArgs& a, std::int64_t m, std::int64_t k) {
  return static_cast<const X*>(a.x->at(a.index != nullptr ? a.index[m] : m, k));
}

// M rows of x against N rows of W that are converted on the way.
template <int M, int N, typename X, typename W>
inline void dot_direct(const DotArgs& a, std::int64_t m, std::int64_t n) {
  constexpr int kStep = Dot<X, W>::kStep;
  const std::int64_t cols = a.w.cols;
  const W* w = static_cast<const W*>(a.w.data) + n * cols;
  const std::int64_t whole = cols - cols % kStep;
  V acc[M][N];
  clear(acc);
  for (std::int64_t k = 0; k < whole; k += a.x->block) {
    const X* x[M];
#pragma GCC unroll 16
    for (int i = 0; i < M; ++i) x[i] = x_row<X>(a, m + i, k);
    dot_stream(x, w + k, cols, whole - k < a.x->block ? whole - k : a.x->block, acc);
  }
  if (whole < cols) {
    const X* x[M];
#pragma GCC unroll 16
    for (int i = 0; i < M; ++i) x[i] = x_row<X>(a, m + i, whole);
#pragma GCC unroll 16
    for (int j = 0; j < N; ++j) {
      const Tail<W, kStep> tail(w + j * cols + whole, cols - whole);
#pragma GCC unroll 16
      for (int i = 0; i < M; ++i)
        acc[i][j] = Dot<X, W>::step(acc[i][j], Dot<X, W>::load_x(x[i]), Dot<X, W>::load_w(tail.values));
    }
  }
  store_sums(acc, a.out + (m - a.m0) * a.out_stride + (n - a.n0), a.out_stride);
}

// N rows of W against all rows of x: they come from memory once and from L1 after that. Four rows of x take W two rows
// at a time, so that each is converted once and not twice; that gains 3 % at most (routed experts of 64 rows, Zen 3,
// 2026-11-24).
template <int N, typename X, typename W>
inline void dot_direct_rows(const DotArgs& a, std::int64_t n) {
  std::int64_t m = a.m0;
  while (m < a.m1) {
    const std::int64_t left = a.m1 - m;
    if (left == 4 || left == 7 || left == 8) {
      if constexpr (N == 4) {
        dot_direct<4, 2, X, W>(a, m, n);
        dot_direct<4, 2, X, W>(a, m, n + 2);
      } else {
        dot_direct<4, N, X, W>(a, m, n);
      }
      m += 4;
    } else if (left >= 3) {
      dot_direct<3, N, X, W>(a, m, n);
      m += 3;
    } else if (left == 2) {
      dot_direct<2, N, X, W>(a, m, n);
      m += 2;
    } else {
      dot_direct<1, N, X, W>(a, m, n);
      m += 1;
    }
  }
}

// M rows of x against the rows [n, end) of W, where a row of x is short, lies in one block and has no rest: 64 columns
// are eight steps, no longer than it takes to find the addresses for each tile and to add up its lanes.
template <int M, int N, typename X, typename W>
inline void dot_direct_strip(const DotArgs& a, std::int64_t m, std::int64_t n, std::int64_t end) {
  const std::int64_t cols = a.w.cols;
  const W* w = static_cast<const W*>(a.w.data);
  float* out = a.out + (m - a.m0) * a.out_stride - a.n0;
  const X* x[M];
#pragma GCC unroll 16
  for (int i = 0; i < M; ++i) x[i] = x_row<X>(a, m + i, 0);
  for (; n + N <= end; n += N) {
    V acc[M][N];
    clear(acc);
    dot_stream(x, w + n * cols, cols, cols, acc);
    store_sums(acc, out + n, a.out_stride);
  }
  for (; n < end; ++n) {
    V acc[M][1];
    clear(acc);
    dot_stream(x, w + n * cols, cols, cols, acc);
    store_sums(acc, out + n, a.out_stride);
  }
}

template <typename X, typename W>
inline void dot_few_strips(const DotArgs& a) {
  constexpr std::int64_t kStripBytes = 16 << 10;  // of W, half of L1
  std::int64_t rows = kStripBytes / static_cast<std::int64_t>(sizeof(W)) / a.w.cols / 8 * 8;
  if (rows < 8) rows = 8;
  for (std::int64_t n = a.n0; n < a.n1; n += rows) {
    const std::int64_t end = a.n1 - n < rows ? a.n1 : n + rows;
    for (std::int64_t m = a.m0; m < a.m1;) {
      const std::int64_t left = a.m1 - m;
      if (left == 4 || left == 7 || left == 8) {
        dot_direct_strip<4, 2, X, W>(a, m, n, end);
        m += 4;
      } else if (left >= 3) {
        dot_direct_strip<3, 4, X, W>(a, m, n, end);
        m += 3;
      } else if (left == 2) {
        dot_direct_strip<2, 4, X, W>(a, m, n, end);
        m += 2;
      } else {  // eight independent sums hide the latency of the multiply-add
        dot_direct_strip<1, 8, X, W>(a, m, n, end);
        m += 1;
      }
    }
  }
}

template <typename X, typename W>
void dot_few(const DotArgs& a) {
  const bool is_short = a.w.cols <= kBlock && a.x->block >= a.w.cols && a.w.cols % Dot<X, W>::kStep == 0;
  if (is_short) return dot_few_strips<X, W>(a);
  std::int64_t n = a.n0;
  if (a.m1 - a.m0 == 1) {  // one row: eight independent sums hide the latency of the multiply-add
    for (; n + 8 <= a.n1; n += 8) dot_direct<1, 8, X, W>(a, a.m0, n);
  }
  for (; n + 4 <= a.n1; n += 4) dot_direct_rows<4, X, W>(a, n);
  for (; n < a.n1; ++n) dot_direct_rows<1, X, W>(a, n);
}

inline constexpr std::int64_t kTileRows = 8;  // rows of W in a tile

#include "backends/cpu/fetch.inl.hpp"

// One block of up to 8 rows of W against all rows of x; `lanes` carries the accumulators [M][8] between blocks.
struct TileStep {
  const DotArgs* a;
  std::int64_t n;  // first row of W
  std::int64_t k;  // first column
  std::int64_t depth;
  bool first, last;
  float* lanes;
  Fetch* fetch = nullptr;
};

template <int M, typename X, typename W>
inline void tile_rows(const TileStep& s, const W* w, std::int64_t w_stride, std::int64_t m) {
  const DotArgs& a = *s.a;
  const X* x[M];
  const X* next[M];
#pragma GCC unroll 16
  for (int i = 0; i < M; ++i) {
    x[i] = x_row<X>(a, m + i, s.k);
    next[i] = x_row<X>(a, m + M + i < a.m1 ? m + M + i : a.m1 - 1, s.k);
  }
#pragma GCC unroll 1
  for (int j = 0; j < kTileRows; j += kTileN) {
    V acc[M][kTileN];
    float* lanes = s.lanes + ((m - a.m0) * kTileRows + j) * kLanes;
    if (s.first) {
      clear(acc);
    } else {
#pragma GCC unroll 16
      for (int i = 0; i < M; ++i) {
#pragma GCC unroll 16
        for (int c = 0; c < kTileN; ++c) acc[i][c] = load(lanes + (i * kTileRows + c) * kLanes);
      }
    }
    if (j == 0) {
      dot_tile_ahead(x, next, w, w_stride, s.depth, acc);
    } else {
      dot_tile(x, w + j * w_stride, w_stride, s.depth, acc);
    }
    if (s.last) {
      const std::int64_t n_left = a.n1 - s.n - j;
#pragma GCC unroll 16
      for (int i = 0; i < M; ++i) {
        float* out = a.out + (m + i - a.m0) * a.out_stride + (s.n + j - a.n0);
        float sums[kTileN];
        static_assert(kTileN == 4);
        sum4(acc[i][0], acc[i][1], acc[i][2], acc[i][3], n_left >= 4 ? out : sums);
        for (std::int64_t c = 0; c < n_left && n_left < 4; ++c) out[c] = sums[c];
      }
    } else {
#pragma GCC unroll 16
      for (int i = 0; i < M; ++i) {
#pragma GCC unroll 16
        for (int c = 0; c < kTileN; ++c) store(lanes + (i * kTileRows + c) * kLanes, acc[i][c]);
      }
    }
  }
}

template <typename X, typename W>
inline void tile_all_rows(const TileStep& s, const W* w, std::int64_t w_stride) {
  std::int64_t m = s.a->m0;
  const std::int64_t passes = (s.a->m1 - m) / kTileM + 1;
  const std::int64_t lines = s.fetch != nullptr ? s.fetch->rows * (s.fetch->bytes / 64 + 1) / passes + 1 : 0;
  for (; whole_tile(s.a->m1 - m); m += kTileM) {
    if (s.fetch != nullptr) s.fetch->lines(lines);
    tile_rows<kTileM, X, W>(s, w, w_stride, m);
  }
  for (; m + 2 <= s.a->m1; m += 2) tile_rows<2, X, W>(s, w, w_stride, m);
  if (m < s.a->m1) tile_rows<1, X, W>(s, w, w_stride, m);
}

// Rows [n, n + count) and columns [k, k + depth) of W as floats, zeros up to 8 rows and whole steps.
template <typename W>
inline void fill_tile(const DotArgs& a, std::int64_t n, std::int64_t count, std::int64_t k, std::int64_t depth,
                      float* tile) {
  const W* w = static_cast<const W*>(a.w.data) + n * a.w.cols + k;
  const std::int64_t valid = a.w.cols - k < depth ? a.w.cols - k : depth;
  for (std::int64_t j = 0; j < kTileRows; ++j) {
    float* to = tile + j * kBlock;
    if (j >= count) {
      for (std::int64_t i = 0; i < depth; i += kLanes) store(to + i, zero());
      continue;
    }
    const W* from = w + j * a.w.cols;
    for (std::int64_t i = 0; i < depth; i += kLanes) store(to + i, load_some(from + i, valid - i));
  }
}

// Columns [k, k + depth) of the 8 rows from n + ahead on.
template <typename W>
inline Fetch next_tile(const DotArgs& a, std::int64_t n, std::int64_t k, std::int64_t ahead, std::int64_t depth) {
  const std::int64_t row_bytes = a.w.cols * static_cast<std::int64_t>(sizeof(W));
  const std::int64_t from = n + ahead;
  const std::int64_t left = a.w.rows - from;  // the next item often takes up where this one ends
  return {.row = static_cast<const char*>(a.w.data) + from * row_bytes + k * static_cast<std::int64_t>(sizeof(W)),
          .stride = row_bytes,
          .bytes = depth * static_cast<std::int64_t>(sizeof(W)),
          .rows = left < kTileRows ? (left > 0 ? left : 0) : kTileRows};
}

template <typename X, typename W>
void dot_many(const DotArgs& a) {
  alignas(64) float lanes[kRowChunk * kTileRows * kLanes];
  constexpr int kStep = Dot<X, X>::kStep;
  const std::int64_t block = a.x->block < kBlock ? a.x->block : kBlock;
  const std::int64_t whole = (a.w.cols + kStep - 1) / kStep * kStep;
  for (std::int64_t n = a.n0; n < a.n1; n += kTileRows) {
    const std::int64_t count = a.n1 - n < kTileRows ? a.n1 - n : kTileRows;
    for (std::int64_t k = 0; k < whole; k += block) {
      const std::int64_t depth = whole - k < block ? whole - k : block;
      Fetch fetch = next_tile<W>(a, n, k + block < whole ? k + block : 0, k + block < whole ? 0 : kTileRows, block);
      const TileStep s{&a, n, k, depth, k == 0, k + depth == whole, lanes, &fetch};
      if constexpr (sizeof(X) == 4) {
        alignas(64) float tile[kTileRows * kBlock];
        fill_tile<W>(a, n, count, k, depth, tile);
        tile_all_rows<float, float>(s, tile, kBlock);
      } else if (count == kTileRows && k + depth <= a.w.cols) {
        tile_all_rows<X, W>(s, static_cast<const W*>(a.w.data) + n * a.w.cols + k, a.w.cols);
      } else {
        alignas(64) W tile[kTileRows * kBlock] = {};
        for (std::int64_t j = 0; j < count; ++j) {
          const W* from = static_cast<const W*>(a.w.data) + (n + j) * a.w.cols + k;
          for (std::int64_t i = 0; i < depth && k + i < a.w.cols; ++i) tile[j * kBlock + i] = from[i];
        }
        tile_all_rows<X, W>(s, tile, kBlock);
      }
    }
  }
}

template <typename X, typename W>
inline void dot_any(const DotArgs& a) {
  return a.m1 - a.m0 >= kGemmRows ? dot_many<X, W>(a) : dot_few<X, W>(a);
}

// INT8 with one scale a row and no mins against x in floats (kv_b): the codes are W's values here.
struct Code8 {
  std::uint8_t bits;
};
inline V load(const Code8* p) { return load_int8(&p->bits); }
inline float factor_at(const void* table, DType type, std::int64_t i);

// The scales meet the sums.
void dot_code8(const DotArgs& a) {
  dot_any<float, Code8>(a);
  constexpr std::int64_t kN = kStrip;
  alignas(64) float scales[kN];
  for (std::int64_t n = a.n0; n < a.n1; n += kN) {
    const std::int64_t count = a.n1 - n < kN ? a.n1 - n : kN;
    for (std::int64_t j = 0; j < count; ++j) scales[j] = factor_at(a.w.scales, a.w.scale_dtype, n + j);
    for (std::int64_t m = a.m0; m < a.m1; ++m) {
      float* out = a.out + (m - a.m0) * a.out_stride + (n - a.n0);
      for (std::int64_t j = 0; j < count; ++j) out[j] *= scales[j];
    }
  }
}

void dot(const DotArgs& a) {
  const bool one_scale_a_row = a.w.mins == nullptr && a.w.group_rows == 1 && a.w.group >= a.w.cols;
  switch (a.w.format) {
    case WeightFormat::kF32:
      return dot_any<float, float>(a);
    case WeightFormat::kF16:
      return dot_any<float, F16>(a);
    case WeightFormat::kBF16:
#ifdef GLINT_VNNI
      if (a.x->words) return dot_words(a);
#endif
#ifdef GLINT_DOT_BF16
      if (a.x->bf16) return dot_any<BF16, BF16>(a);
#endif
      return dot_any<float, BF16>(a);
    case WeightFormat::kI8:
#ifdef GLINT_VNNI
      if (a.x->words) return dot_whole(a);
#endif
      return a.x->quant == 0 && one_scale_a_row ? dot_code8(a) : dot_quantized(a);
    default:
      return dot_quantized(a);
  }
}

template <typename T>
inline void pack_rows(const Packed& to, const float* x, std::int64_t x_stride, std::int64_t m0, std::int64_t m1) {
  const std::int64_t padded = (to.cols + kPad - 1) / kPad * kPad;
  for (std::int64_t k = 0; k < padded; k += to.block) {
    const std::int64_t depth = padded - k < to.block ? padded - k : to.block;
    for (std::int64_t m = m0; m < m1; ++m) {
      T* row = static_cast<T*>(to.at(m, k));
      const float* from = x + (m - m0) * x_stride + k;
      for (std::int64_t i = 0; i < depth; i += kLanes) {
        const std::int64_t left = to.cols - k - i;
        store(row + i, left > 0 ? load_some(from + i, left) : zero());
      }
    }
  }
}

void pack(const Packed& to, const float* x, std::int64_t x_stride, std::int64_t m0, std::int64_t m1) {
  if (to.bf16) return pack_rows<BF16>(to, x, x_stride, m0, m1);
  pack_rows<float>(to, x, x_stride, m0, m1);
}

// acc[m][n] += Σ_k x[m][k] · b[k][n-th vector]: the tile of combine and of softmax(s) · V.
template <int M, int N, typename T>
[[gnu::always_inline]] inline void outer_tile(const float* const (&x)[M], const T* b, std::int64_t b_stride,
                                              std::int64_t depth, V (&acc)[M][N]) {
  for (std::int64_t k = 0; k < depth; ++k) {
    V bv[N];
#pragma GCC unroll 16
    for (int n = 0; n < N; ++n) bv[n] = load(b + k * b_stride + n * kLanes);
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
      const V xv = set1(x[m][k]);
#pragma GCC unroll 16
      for (int n = 0; n < N; ++n) acc[m][n] = fma(xv, bv[n], acc[m][n]);
    }
  }
}
