// Many rows of x against codes: tiles of W that lie across the lanes. Included by quant_vnni.inl.hpp, which says in
// which order sums are added.
//
// A tile is a step of up to 64 rows of W. Nibbles stay nibbles in it and are unpacked where they are multiplied, on
// pipes that products leave idle: less to write, and to read again with every six rows of x.

#include "backends/cpu/quant_tiles.inl.hpp"

inline constexpr std::int64_t kMostTileRows = 6;  // 6 × 4 sums, two of W, one or two constants: 29 of 32 registers

template <typename F, int Width>
struct TileShape {
  static constexpr int kWords = static_cast<int>(Width * 16 / kCodesChunk<F>);  // of 4 bytes a row, in a block
  static constexpr std::int64_t kGroupBytes = kStepBlocks * kWords * 64;
};

// Rows [16 g, 16 g + 16) of the tile. Stride: bytes from word to word.
template <typename F, int Width, std::int64_t Stride>
inline void fill_codes(const CodesTile& t, std::int64_t g, std::uint8_t* to) {
  const GroupOfRows<F, Width> group(t, g);
  for (std::int64_t k = 0; k < group.cols; k += kCodesChunk<F>, to += 16 * Stride) {
    I v[16];
    const int words = group.load(k, v);
#pragma GCC unroll 16
    for (int word = 0; word < 16; ++word) {
      if (word >= words) break;
      store_ints(to + word * Stride, F::kNibbles ? v[word] : F::even(v[word]));
    }
  }
}

template <typename F, int Width>
inline void fill_codes(const CodesTile& t) {
  for (std::int64_t g = 0; g < kTileGroups; ++g) fill_codes<F, Width, kTileGroups * 64>(t, g, t.codes + g * 64);
}

// What M rows of x bring to a tile: of each block the codes, even columns before odd ones, the sum's start, the scale
// and scale · Σ q. Copied, so that they lie at fixed distances from each other.
template <typename F, int Width, int M>
struct TileRows {
  alignas(64) std::int8_t codes[kStepBlocks][M][Width];
  alignas(64) std::int32_t starts[M][kStepBlocks];
  const float* scales[M];
  const float* sums[M];

  [[gnu::always_inline]] TileRows(const CodesTile& t, std::int64_t m) {
    const DotArgs& a = *t.a;
    const I zero_point = set1_ints(t.zero_point);
#pragma GCC unroll 1
    for (int i = 0; i < M; ++i) {
      scales[i] = x_factors(a, a.x->scales, m + i, t.b);
      sums[i] = x_factors(a, a.x->sums, m + i, t.b);
      const I over = multiply_ints(load_ints(x_counts(a, m + i) + t.b), zero_point);
      store_ints(starts[i], sub_ints(zero_ints(), over));
      const std::int8_t* x = x_codes(a, m + i, t.b * Width);
#pragma GCC unroll 16
      for (std::int64_t b = 0; b < kStepBlocks; ++b) {
        const std::int64_t k = (b < t.blocks ? b : 0) * Width;
        if constexpr (F::kNibbles) {
          const std::int8_t* even = x + k / 128 * 128 + k % 128 / 2;
          __builtin_memcpy(codes[b][i], even, Width / 2);
          __builtin_memcpy(codes[b][i] + Width / 2, even + 64, Width / 2);
        } else {
          __builtin_memcpy(codes[b][i], x + k, Width);
        }
      }
    }
  }
};

// Bytes of a vector of a tile; nibbles have even columns in part 0 and odd ones in part 1.
template <typename F>
inline I tile_codes(I v, int part) {
  if constexpr (F::kNibbles) {
    return part == 0 ? F::even(v) : F::odd(v);
  } else {
    return v;
  }
}

// p_b of M rows of x and the N groups of W.
template <typename F, int Width, int M, int N>
[[gnu::always_inline]] inline void tile_products(const CodesTile& t, const TileRows<F, Width, M>& rows, int b,
                                                 V (&p)[M][N]) {
  constexpr int kWords = TileShape<F, Width>::kWords;
  const std::int8_t* x = rows.codes[b][0];
  const std::uint8_t* w = t.codes + b * kWords * N * 64;
  I acc[M][N];
#pragma GCC unroll 16
  for (int i = 0; i < M; ++i) {
#pragma GCC unroll 16
    for (int n = 0; n < N; ++n) acc[i][n] = set1_ints(rows.starts[i][b]);
  }
  for (int word = 0; word < kWords; ++word, w += N * 64, x += 4) {
#pragma GCC unroll 16
    for (int n = 0; n < N; ++n) {
      const I v = once(load_ints(w + n * 64));
#pragma GCC unroll 2
      for (int part = 0; part < (F::kNibbles ? 2 : 1); ++part) {
        const I codes = tile_codes<F>(v, part);
#pragma GCC unroll 16
        for (int i = 0; i < M; ++i) acc[i][n] = dot_bytes_of_four(acc[i][n], codes, x + i * Width + part * Width / 2);
      }
    }
  }
  const float* factors = t.factors + b * N * kLanes;
#pragma GCC unroll 16
  for (int i = 0; i < M; ++i) {
    const V scale = set1(rows.scales[i][b]);
#pragma GCC unroll 16
    for (int n = 0; n < N; ++n) p[i][n] = mul(to_floats(acc[i][n]), mul(load(factors + n * kLanes), scale));
  }
  if (t.mins == nullptr) return;
  const float* mins = t.mins + b * N * kLanes;
#pragma GCC unroll 16
  for (int i = 0; i < M; ++i) {
    const V sum = set1(rows.sums[i][b]);
#pragma GCC unroll 16
    for (int n = 0; n < N; ++n) p[i][n] = fma(load(mins + n * kLanes), sum, p[i][n]);
  }
}

// The `rows` rows of sums of a step for fewer rows of W than a tile has.
[[gnu::noinline]] void add_some_sums(const CodesTile& t, const float* sums, int rows, float* out) {
  for (int i = 0; i < rows; ++i, out += t.a->out_stride, sums += kStrip) {
    for (std::int64_t c = 0; c < t.count; ++c) out[c] = t.b == 0 ? sums[c] : out[c] + sums[c];
  }
}

template <typename F, int Width, int M>
[[gnu::noinline]] void tile_step(const CodesTile& t, std::int64_t m) {
  constexpr int kN = kTileGroups;
  const DotArgs& a = *t.a;
  const TileRows<F, Width, M> rows(t, m);
  alignas(64) float tree[4][M][kN][kLanes];  // sums of 1, 2, 4 and 8 leaves that wait for their neighbours
  V p[M][kN];
  for (int leaf = 0; leaf < kStepBlocks; ++leaf) {
    const int b = kLeaves[leaf];
    fetch_next(t);
    if (b < t.blocks) {
      tile_products(t, rows, b, p);
    } else {
      clear(p);
    }
    int level = 0;
    for (; (leaf >> level & 1) != 0; ++level) {
#pragma GCC unroll 16
      for (int i = 0; i < M; ++i) {
#pragma GCC unroll 16
        for (int n = 0; n < kN; ++n) p[i][n] = add(load(tree[level][i][n]), p[i][n]);
      }
    }
    if (level == 4) break;
#pragma GCC unroll 16
    for (int i = 0; i < M; ++i) {
#pragma GCC unroll 16
      for (int n = 0; n < kN; ++n) store(tree[level][i][n], p[i][n]);
    }
  }
  float* out = a.out + (m - a.m0) * a.out_stride + (t.n - a.n0);
  if (t.count < kStrip) {
#pragma GCC unroll 16
    for (int i = 0; i < M; ++i) {
#pragma GCC unroll 16
      for (int n = 0; n < kN; ++n) store(tree[0][i][n], p[i][n]);
    }
    return add_some_sums(t, tree[0][0][0], M, out);
  }
#pragma GCC unroll 16
  for (int i = 0; i < M; ++i) {
#pragma GCC unroll 16
    for (int n = 0; n < kN; ++n) {
      float* to = out + i * a.out_stride + n * kLanes;
      store(to, t.b == 0 ? p[i][n] : add(load(to), p[i][n]));
    }
  }
}

// All rows of x, three or more, in tiles of at most six that differ by one at most: none has fewer than three.
template <typename F, int Width>
void tile_rows_of_codes(const CodesTile& t) {
  const std::int64_t rows = t.a->m1 - t.a->m0;
  const std::int64_t tiles = (rows + kMostTileRows - 1) / kMostTileRows;
  static_assert(kFewCodes == 2 && kMostTileRows == 6);
  for (std::int64_t i = 0; i < tiles; ++i) {
    const std::int64_t m = t.a->m0 + rows * i / tiles;
    switch (t.a->m0 + rows * (i + 1) / tiles - m) {
      case 6:
        tile_step<F, Width, 6>(t, m);
        break;
      case 5:
        tile_step<F, Width, 5>(t, m);
        break;
      case 4:
        tile_step<F, Width, 4>(t, m);
        break;
      default:
        tile_step<F, Width, 3>(t, m);
    }
  }
}

template <typename F, int Width>
void codes_many(const DotArgs& a) {
  alignas(64) std::uint8_t codes[kTileGroups * TileShape<F, Width>::kGroupBytes];
  alignas(64) float factors[kStepBlocks * kStrip];
  alignas(64) float mins[kStepBlocks * kStrip];
  const CodesMatrix<Width> matrix(a);
  for (std::int64_t n = a.n0; n < a.n1; n += kStrip) {
    CodesTile t{.a = &a, .n = n, .zero_point = matrix.zero_point, .codes = codes, .factors = factors};
    t.count = a.n1 - n < kStrip ? a.n1 - n : kStrip;
    t.groups = kTileGroups;  // of fewer rows as well, the last one repeated: a path of their own would be seldom taken
    const std::int64_t tiles = (a.m1 - a.m0 + kMostTileRows - 1) / kMostTileRows;
    const char* next;
    look_ahead<F, Width>(t, next, tiles * kStepBlocks);
    for (t.b = 0; t.b * Width < a.w.cols; t.b += kStepBlocks) {
      const std::int64_t left = a.w.cols / Width - t.b;
      t.blocks = left < kStepBlocks ? left : kStepBlocks;
      fill_factors(t, matrix, factors, mins);
      fill_codes<F, Width>(t);
      tile_rows_of_codes<F, Width>(t);
    }
  }
}
