// Many rows of x against codes: tiles of W that lie across the lanes. Included by quant_vnni.inl.hpp, which says in
// which order sums are added.

// Many rows of x: a tile of 16 · groups rows of W and one step of columns, as bytes [block][word][group][16 rows · 4].
inline constexpr std::int64_t kTileGroups = kStrip / kLanes;
struct CodesTile {
  const DotArgs* a = nullptr;
  std::int64_t n = 0, count = 0, groups = 0;
  std::int64_t b = 0, blocks = 0;  // first block, and how many: at most a step
  std::int32_t zero_point = 0;
  const std::uint8_t* codes = nullptr;
  const float* factors = nullptr;  // [block][group][16]
  const float* mins = nullptr;     // the same, or null
  Fetch* fetch = nullptr;          // what is read after this tile, and how many lines of it to ask for with each block
  std::int64_t fetch_lines = 0;
};

// The order in which sum() adds the lanes of a vector: leaf i of a balanced tree is lane kLeaves[i].
inline constexpr std::uint8_t kLeaves[kStepBlocks] = {0, 8, 4, 12, 1, 9, 5, 13, 2, 10, 6, 14, 3, 11, 7, 15};

// Rows [n, n + 16) of W, of which `count` are there, into group g of the tile.
template <typename F, int Width>
inline void fill_codes(const CodesTile& t, std::int64_t g, std::uint8_t* tile) {
  using C = Codes<F, Width>;
  constexpr std::int64_t kChunk = F::kNibbles ? 128 : 64;  // columns of 64 bytes
  constexpr int kPart = C::kWords / C::kParts;             // words of a part of a block
  const std::int64_t cols = t.blocks * Width;
  const std::int64_t row_bytes = C::bytes(t.a->w.cols);
  const auto* from = static_cast<const std::uint8_t*>(t.a->w.data) + C::bytes(t.b * Width);
  const std::uint8_t* rows[16];
  for (int i = 0; i < 16; ++i) {
    const std::int64_t n = g * 16 + i < t.count ? g * 16 + i : t.count - 1;
    rows[i] = from + (t.n + n) * row_bytes;
  }
  std::uint8_t* to = tile + g * 64;
  const std::int64_t word_bytes = t.groups * 64;
  for (std::int64_t k = 0; k < cols; k += kChunk) {
    const bool half = F::kNibbles && cols - k < kChunk;
    I v[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) {
      const std::uint8_t* p = rows[i] + C::bytes(k);
      v[i] = half ? load_half(p) : load_ints(p);
      __builtin_prefetch(p + 256, 0, 2);
    }
    transpose_lanes(v);
#pragma GCC unroll 16
    for (int word = 0; word < 16; ++word) {
      if (half && word >= 8) break;
      std::int64_t block, place;
      if constexpr (F::kNibbles) {
        block = k / Width + (kChunk > Width ? word / kPart : 0);
        place = word % kPart;
      } else {
        const std::int64_t all = k / 4 + word;
        block = all / kPart;
        place = all % kPart;
      }
      std::uint8_t* at = to + (block * C::kWords + place) * word_bytes;
      store_ints(at, F::even(v[word]));
      if constexpr (F::kNibbles) store_ints(at + kPart * word_bytes, F::odd(v[word]));
    }
  }
}

// Scales or mins of a step, [block][group][16].
template <int Width>
inline void fill_factors(const CodesTile& t, const Factors<Width>& table, V unit, float* to) {
  for (std::int64_t g = 0; g < t.groups; ++g) {
    I v[16];
#pragma GCC unroll 1
    for (int i = 0; i < 16; ++i) {
      const std::int64_t n = g * 16 + i < t.count ? g * 16 + i : t.count - 1;
      v[i] = as_ints(mul(table.at(t.n + n, t.b, t.blocks), unit));
    }
    transpose_lanes(v);
#pragma GCC unroll 16
    for (int b = 0; b < 16; ++b) store_ints(to + (b * t.groups + g) * kLanes, v[b]);
  }
}

// What M rows of x bring to a tile: their codes, and of each block the sum's start, the scale and scale · Σ q.
template <int M>
struct TileRows {
  const std::int8_t* codes[M];
  const float* scales[M];
  const float* sums[M];
  alignas(64) std::int32_t starts[M][kStepBlocks];

  [[gnu::always_inline]] TileRows(const CodesTile& t, std::int64_t m, std::int64_t width) {
    const DotArgs& a = *t.a;
    const I zero_point = set1_ints(t.zero_point);
#pragma GCC unroll 16
    for (int i = 0; i < M; ++i) {
      codes[i] = x_codes(a, m + i, t.b * width);
      scales[i] = x_factors(a, a.x->scales, m + i, t.b);
      sums[i] = x_factors(a, a.x->sums, m + i, t.b);
      const I over = multiply_ints(load_ints(x_counts(a, m + i) + t.b), zero_point);
      store_ints(starts[i], sub_ints(zero_ints(), over));
    }
  }
};

// p_b of M rows of x and N groups of W.
template <int Width, int Parts, int M, int N>
[[gnu::always_inline]] inline void tile_products(const CodesTile& t, const TileRows<M>& rows, std::int64_t g, int b,
                                                 V (&p)[M][N]) {
  constexpr int kWords = Width / 4, kPart = kWords / Parts;
  const std::int64_t k = b * Width;
  std::int64_t at = Parts == 2 ? k / 128 * 128 + k % 128 / 2 : k;
  I acc[M][N];
#pragma GCC unroll 16
  for (int i = 0; i < M; ++i) {
#pragma GCC unroll 16
    for (int n = 0; n < N; ++n) acc[i][n] = set1_ints(rows.starts[i][b]);
  }
  const std::int64_t stride = t.groups * 64;
  const std::uint8_t* w = t.codes + b * kWords * stride + g * 64;
#pragma GCC unroll 1
  for (int part = 0; part < Parts; ++part, at += 64 - 4 * kPart) {
#pragma GCC unroll 4
    for (int word = 0; word < kPart; ++word, w += stride, at += 4) {
      I wv[N];
#pragma GCC unroll 16
      for (int n = 0; n < N; ++n) wv[n] = load_ints(w + n * 64);
#pragma GCC unroll 16
      for (int i = 0; i < M; ++i) {
        std::int32_t four;
        __builtin_memcpy(&four, rows.codes[i] + at, 4);
        const I xv = set1_ints(four);
#pragma GCC unroll 16
        for (int n = 0; n < N; ++n) acc[i][n] = dot_bytes(acc[i][n], wv[n], xv);
      }
    }
  }
  const float* factors = t.factors + (b * t.groups + g) * kLanes;
#pragma GCC unroll 16
  for (int i = 0; i < M; ++i) {
    const V scale = set1(rows.scales[i][b]);
#pragma GCC unroll 16
    for (int n = 0; n < N; ++n) p[i][n] = mul(to_floats(acc[i][n]), mul(load(factors + n * kLanes), scale));
  }
  if (t.mins == nullptr) return;
  const float* mins = t.mins + (b * t.groups + g) * kLanes;
#pragma GCC unroll 16
  for (int i = 0; i < M; ++i) {
    const V sum = set1(rows.sums[i][b]);
#pragma GCC unroll 16
    for (int n = 0; n < N; ++n) p[i][n] = fma(load(mins + n * kLanes), sum, p[i][n]);
  }
}

template <int Width, int Parts, int M, int N>
void tile_step(const CodesTile& t, std::int64_t m, std::int64_t g) {
  const DotArgs& a = *t.a;
  const TileRows<M> rows(t, m, Width);
  alignas(64) float tree[4][M][N][kLanes];  // sums of 1, 2, 4 and 8 leaves that wait for their neighbours
  V p[M][N];
  for (int leaf = 0; leaf < kStepBlocks; ++leaf) {
    const int b = kLeaves[leaf];
    if (t.fetch != nullptr) t.fetch->lines(t.fetch_lines);
    if (b < t.blocks) {
      tile_products<Width, Parts, M, N>(t, rows, g, b, p);
    } else {
      clear(p);
    }
    int level = 0;
    for (; (leaf >> level & 1) != 0; ++level) {
#pragma GCC unroll 16
      for (int i = 0; i < M; ++i) {
#pragma GCC unroll 16
        for (int n = 0; n < N; ++n) p[i][n] = add(load(tree[level][i][n]), p[i][n]);
      }
    }
    if (level == 4) break;
#pragma GCC unroll 16
    for (int i = 0; i < M; ++i) {
#pragma GCC unroll 16
      for (int n = 0; n < N; ++n) store(tree[level][i][n], p[i][n]);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < M; ++i) {
#pragma GCC unroll 16
    for (int n = 0; n < N; ++n) {
      float* out = a.out + (m + i - a.m0) * a.out_stride + (t.n - a.n0) + (g + n) * kLanes;
      const std::int64_t count = t.count - (g + n) * kLanes;
      store_some(out, t.b == 0 ? p[i][n] : add(load_some(out, count), p[i][n]), count);
    }
  }
}

template <int Width, int Parts, int M>
inline void tile_groups(const CodesTile& t, std::int64_t m) {
  if (t.groups == kTileGroups) return tile_step<Width, Parts, M, kTileGroups>(t, m, 0);
  for (std::int64_t g = 0; g < t.groups; ++g) tile_step<Width, Parts, M, 1>(t, m, g);
}

inline constexpr std::int64_t kMostTileRows = 6;
// All rows of x, in tiles of at most six rows that differ by one at most.
template <int Width, int Parts>
void tile_rows_of_codes(const CodesTile& t) {
  const std::int64_t rows = t.a->m1 - t.a->m0;
  const std::int64_t tiles = (rows + kMostTileRows - 1) / kMostTileRows;
  for (std::int64_t i = 0; i < tiles; ++i) {
    const std::int64_t m = t.a->m0 + rows * i / tiles;
    switch (t.a->m0 + rows * (i + 1) / tiles - m) {
      case 6:
        tile_groups<Width, Parts, 6>(t, m);
        break;
      case 5:
        tile_groups<Width, Parts, 5>(t, m);
        break;
      case 4:
        tile_groups<Width, Parts, 4>(t, m);
        break;
      case 3:
        tile_groups<Width, Parts, 3>(t, m);
        break;
      case 2:
        tile_groups<Width, Parts, 2>(t, m);
        break;
      default:
        tile_groups<Width, Parts, 1>(t, m);
    }
  }
}

template <typename F, int Width>
void codes_many(const DotArgs& a) {
  using C = Codes<F, Width>;
  alignas(64) std::uint8_t codes[kStrip * C::kStep];
  alignas(64) float factors[kStepBlocks * kStrip];
  alignas(64) float mins[kStepBlocks * kStrip];
  const CodesMatrix<Width> matrix(a);
  const std::int64_t row_bytes = C::bytes(a.w.cols);
  const char* w = static_cast<const char*>(a.w.data);
  for (std::int64_t n = a.n0; n < a.n1; n += kStrip) {
    CodesTile t{.a = &a, .n = n, .zero_point = matrix.zero_point, .codes = codes, .factors = factors};
    t.count = a.n1 - n < kStrip ? a.n1 - n : kStrip;
    // The strip that comes next, which lies behind this one or where the caller says.
    Fetch fetch{.row = static_cast<const char*>(n + kStrip < a.n1 ? w + (n + kStrip) * row_bytes : a.next),
                .bytes = kStrip * row_bytes,
                .rows = 1};
    if (fetch.row == nullptr) fetch.rows = 0;
    t.groups = (t.count + kLanes - 1) / kLanes;
    for (t.b = 0; t.b * Width < a.w.cols; t.b += kStepBlocks) {
      const std::int64_t left = a.w.cols / Width - t.b;
      t.blocks = left < kStepBlocks ? left : kStepBlocks;
      for (std::int64_t g = 0; g < t.groups; ++g) fill_codes<F, Width>(t, g, codes);
      fill_factors(t, matrix.scales, matrix.unit, factors);
      if (a.w.mins != nullptr) {
        fill_factors(t, matrix.mins, set1(1), mins);
        t.mins = mins;
      }
      const std::int64_t passes =
          (a.m1 - a.m0 + kMostTileRows - 1) / kMostTileRows * (t.groups == kTileGroups ? 1 : t.groups);
      const std::int64_t steps = (a.w.cols / Width + kStepBlocks - 1) / kStepBlocks;
      t.fetch = fetch.rows > 0 ? &fetch : nullptr;
      t.fetch_lines = fetch.bytes / 64 / (passes * kStepBlocks * steps) + 1;
      tile_rows_of_codes<Width, C::kParts>(t);
    }
  }
}
