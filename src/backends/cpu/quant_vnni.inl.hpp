// Dot products of codes with codes by AVX-512 VNNI. Included by quant.inl.hpp.
//
// A row's result, whatever the number of rows and the path taken:
//   p_b = float(Σ w q) · (s_w s_x) [+ min · (s_x Σ q)]    one for each block b of Width columns; Σ is exact
//   t_j = the p_b of 16 blocks, a step, added as sum() adds the lanes of a vector; blocks beyond the last are zeros
//   out = t_0 + t_1 + …
// Few rows of x: W's rows are read where they lie; 16 block sums come to lie in the lanes of one vector (block_sums).
// Many: 16 rows of W lie across the lanes of a tile and x is broadcast, so that a block's sum needs no additions across
// lanes; blocks come in the order of kLeaves and meet in the same tree.
//
// W's codes are unsigned: 128 is added to signed ones, and what that, or a zero point, adds to a sum is taken off in
// integers, by the sum of x's codes. The order of x's codes for 4-bit W (Packed::split): of every 128 columns the even
// ones, then the odd ones, as low and high halves of 64 bytes hold them; 64 columns at a row's end are filled up with
// 64 zeros.

struct Int4Codes {
  static constexpr bool kNibbles = true;
  static constexpr bool kSmall = true;  // a lane's 8 products, and twice that, fit 16 bits: 2 · 8 · 15 · 127 = 30,480
  static I even(I v) { return low_nibbles(v); }
  static I odd(I v) { return high_nibbles(v); }
};
struct F4Codes : Int4Codes {
  static constexpr bool kSmall = false;
  static I even(I v) { return look_up(low_nibbles(v), kF4Codes); }
  static I odd(I v) { return look_up(high_nibbles(v), kF4Codes); }
};
struct Nf4Codes : Int4Codes {
  static constexpr bool kSmall = false;
  static I even(I v) { return look_up(high_nibbles(v), kNf4Codes); }
  static I odd(I v) { return look_up(low_nibbles(v), kNf4Codes); }
};
struct Int8Codes {
  static constexpr bool kNibbles = false;
  static constexpr bool kSmall = false;
  static I even(I v) { return flip_signs(v); }
};

inline constexpr std::int64_t kStepBlocks = 16;
inline constexpr std::int64_t kFewCodes = 2;    // rows of x up to which W is read where it lies
inline constexpr std::int64_t kWholeSteps = 8;  // steps of a row whose sums are kept before they are added up

template <typename F, int Width>
struct Codes {
  static constexpr std::int64_t kStep = kStepBlocks * Width;  // columns
  // Columns that a vector of sums covers, and how many vectors hold the sums of a step.
  static constexpr std::int64_t kCols = F::kNibbles || Width == 128 ? 128 : 64;
  static constexpr int kVectors = static_cast<int>(kStep / kCols);
  static constexpr std::int64_t bytes(std::int64_t cols) { return F::kNibbles ? cols / 2 : cols; }
  // How far W is fetched ahead, in bytes. The hardware's prefetch follows bytes well and is only led across pages; rows
  // of nibbles leave it behind: one thread, from memory that gives 29 GB/s, 25.7 GB/s at 12 KB and 24.0 at 2, where
  // bytes have 20.4 and 26.8 (Zen 4, 2026-11-28).
  static constexpr std::int64_t kAheadBytes = F::kNibbles ? 12288 : 2048;
  static constexpr int kParts = F::kNibbles ? 2 : 1;  // even and odd columns lie apart
  static constexpr int kWords = Width / 4;            // of four codes, in a block
};

inline const std::int32_t* x_counts(const DotArgs& a, std::int64_t m) {
  return a.x->counts + (a.index != nullptr ? a.index[m] : m) * a.x->scale_stride;
}

// Scales or mins of a matrix, 16 blocks at a time. Divisions only where groups are not blocks: one a row would cost as
// much as half its products.
template <int Width>
struct Factors {
  const void* table;
  DType type;
  std::int64_t group, groups, group_rows, all;

  Factors(const Weight& w, const void* of)
      : table(of), type(w.scale_dtype), group(w.group), groups(w.groups_a_row()), group_rows(w.group_rows) {
    all = (group_rows == 1 ? w.rows : (w.rows + group_rows - 1) / group_rows) * groups;
  }
  // Of the n blocks of a row from block b on, zeros beyond them or what follows in the table.
  [[gnu::always_inline]] V at(std::int64_t row, std::int64_t b, std::int64_t n) const {
    const std::int64_t first = (group_rows == 1 ? row : row / group_rows) * groups;
    if (group == Width) {
      switch (type) {
        case DType::kF16:
          return some<F16>(first + b, n);
        case DType::kBF16:
          return some<BF16>(first + b, n);
        default:
          return some<float>(first + b, n);
      }
    }
    if (groups == 1) return set1(factor_at(table, type, first));
    float v[kLanes] = {};
    for (std::int64_t i = 0; i < n; ++i) v[i] = factor_at(table, type, first + (b + i) * Width / group);
    return load(v);
  }
  template <typename T>
  V some(std::int64_t i, std::int64_t n) const {
    const T* from = static_cast<const T*>(table) + i;
    return i + kLanes <= all ? load(from) : load_some(from, n);
  }
};

// A matrix of codes, and what does not change from row to row.
template <int Width>
struct CodesMatrix {
  const DotArgs* a;
  Factors<Width> scales, mins;
  V unit;
  bool has_mins;
  std::int32_t zero_point;

  explicit CodesMatrix(const DotArgs& args)
      : a(&args),
        scales(args.w, args.w.scales),
        mins(args.w, args.w.mins),
        unit(set1(code_unit(args.w))),
        has_mins(args.w.mins != nullptr),
        zero_point(code_zero(args.w)) {}
};

// One step of one row of W and one row of x.
struct RowStep {
  const std::uint8_t* w;  // as stored, or unpacked: even and odd columns as in x, a byte each
  const std::int8_t* x;
  std::int64_t cols;   // left, at most a step
  std::int64_t ahead;  // bytes from w to what is fetched meanwhile
};

// Lane l of what block_sums adds up belongs to the block whose place here is l.
alignas(64) inline constexpr std::int32_t kBlocksOf2[kLanes] = {0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15};
alignas(64) inline constexpr std::int32_t kBlocksOf4[kLanes] = {0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15};
alignas(64) inline constexpr std::int32_t kBlocksOf8[kLanes] = {0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15};

// Sums of the columns of vector i, spread over its lanes. Stored: W is fetched ahead.
template <typename F, int Width, bool Stored, bool Whole>
[[gnu::always_inline]] inline I code_sums(const RowStep& s, int i) {
  using C = Codes<F, Width>;
  const std::int64_t at = i * C::kCols;
  if constexpr (!Whole) {
    if (at >= s.cols) return zero_ints();
  }
  const std::int8_t* x = s.x + at;
  if constexpr (Stored) {
    const std::uint8_t* w = s.w + C::bytes(at);
    __builtin_prefetch(w + s.ahead, 0, 2);
    if constexpr (F::kNibbles) {
      const bool half = !Whole && s.cols - at < C::kCols;
      const I v = once(half ? load_half(w) : load_ints(w));
      return dot_bytes(dot_bytes(zero_ints(), F::even(v), load_ints(x)), F::odd(v), load_ints(x + 64));
    } else {
      const I sums = dot_bytes(zero_ints(), F::even(load_ints(w)), load_ints(x));
      if constexpr (C::kCols == 64) return sums;
      __builtin_prefetch(w + 64 + s.ahead, 0, 2);
      return dot_bytes(sums, F::even(load_ints(w + 64)), load_ints(x + 64));
    }
  } else {
    const I sums = dot_bytes(zero_ints(), load_ints(s.w + at), load_ints(x));
    if constexpr (C::kCols == 64) return sums;
    return dot_bytes(sums, load_ints(s.w + at + 64), load_ints(x + 64));
  }
}

// The sums of 16 blocks, block b in lane b.
template <typename F, int Width, bool Stored, bool Whole>
[[gnu::always_inline]] inline I block_sums(const RowStep& s) {
  const auto sums = [&](int i) __attribute__((always_inline)) { return code_sums<F, Width, Stored, Whole>(s, i); };
  // Each in a statement of its own: W is to be read in ascending order, which the hardware's prefetch follows.
  const auto pair = [&](int i) __attribute__((always_inline)) {
    const I a = sums(i);
    const I b = sums(i + 1);
    return pair_sums<F::kSmall>(a, b);
  };
  const auto four = [&](int i) __attribute__((always_inline)) {
    const I a = pair(i);
    const I b = pair(i + 2);
    return pair_sums<F::kSmall>(a, b);
  };
  const auto eight = [&](int i) __attribute__((always_inline)) {
    const I a = four(i);
    const I b = four(i + 4);
    return quad_pair_sums(a, b);
  };
  constexpr int kVectors = Codes<F, Width>::kVectors;
  if constexpr (kVectors == 2) return permute_lanes(pair(0), kBlocksOf2);
  if constexpr (kVectors == 4) return permute_lanes(four(0), kBlocksOf4);
  if constexpr (kVectors == 8) return permute_lanes(eight(0), kBlocksOf8);
  if constexpr (kVectors == 16) {
    const I a = eight(0);
    const I b = eight(8);
    return quad_pair_sums(a, b);
  }
}

// A row of W as bytes in the order of x.
template <typename F>
inline void unpack_row(const std::uint8_t* w, std::int64_t ahead, std::int64_t cols, std::uint8_t* to) {
  if constexpr (F::kNibbles) {
    for (std::int64_t k = 0; k < cols; k += 128) {
      __builtin_prefetch(w + k / 2 + ahead, 0, 2);
      const I v = cols - k < 128 ? load_half(w + k / 2) : load_ints(w + k / 2);
      store_ints(to + k, F::even(v));
      store_ints(to + k + 64, F::odd(v));
    }
  } else {
    for (std::int64_t k = 0; k < cols; k += 64) {
      __builtin_prefetch(w + k + ahead, 0, 2);
      store_ints(to + k, F::even(load_ints(w + k)));
    }
  }
}

// p_b of the 16 blocks from b on of row n of W and row m of x.
struct RowProduct {
  std::int64_t n, m, b;
  std::int64_t ahead;  // see RowStep
};
template <typename F, int Width, bool Stored>
[[gnu::always_inline]] inline V block_products(const CodesMatrix<Width>& matrix, const RowProduct& r,
                                               const std::uint8_t* w) {
  using C = Codes<F, Width>;
  const DotArgs& a = *matrix.a;
  const std::int64_t k = r.b * Width;
  const std::int64_t left = a.w.cols - k;
  const RowStep s{w, x_codes(a, r.m, k), left < C::kStep ? left : C::kStep, r.ahead};
  const std::int64_t blocks = s.cols / Width;
  I sums = left >= C::kStep ? block_sums<F, Width, Stored, true>(s) : block_sums<F, Width, Stored, false>(s);
  sums = sub_ints(sums, multiply_ints(load_ints(x_counts(a, r.m) + r.b), set1_ints(matrix.zero_point)));
  const V factors = mul(matrix.scales.at(r.n, r.b, blocks), matrix.unit);
  V p = mul(to_floats(sums), mul(factors, load(x_factors(a, a.x->scales, r.m, r.b))));
  if (matrix.has_mins) p = fma(matrix.mins.at(r.n, r.b, blocks), load(x_factors(a, a.x->sums, r.m, r.b)), p);
  return first_lanes(p, blocks);
}

// From row n of W, in bytes, to what is fetched while it is used: rows of the strip, or of the one that comes next.
inline std::int64_t ahead_of(const DotArgs& a, std::int64_t n, std::int64_t row_bytes, std::int64_t bytes) {
  const std::int64_t rows = (bytes + row_bytes - 1) / row_bytes;
  if (n + rows < a.n1 || a.next == nullptr) return rows * row_bytes;
  const auto* row = static_cast<const char*>(a.w.data) + n * row_bytes;
  return static_cast<const char*>(a.next) + (n + rows - a.n1) * row_bytes - row;
}

// Up to kFewCodes rows of x.
template <typename F, int Width>
void codes_few(const DotArgs& a) {
  using C = Codes<F, Width>;
  alignas(64) float products[kFewCodes][kWholeSteps][4][kLanes];
  alignas(64) std::uint8_t row[kWholeSteps * C::kStep];
  const std::int64_t rows = a.m1 - a.m0;
  const std::int64_t row_bytes = C::bytes(a.w.cols);
  const CodesMatrix<Width> matrix(a);
  const auto* codes = static_cast<const std::uint8_t*>(a.w.data);
  for (std::int64_t n = a.n0; n < a.n1; n += 4) {
    const std::int64_t count = a.n1 - n < 4 ? a.n1 - n : 4;
    for (std::int64_t k = 0; k < a.w.cols; k += kWholeSteps * C::kStep) {
      const std::int64_t cols = a.w.cols - k < kWholeSteps * C::kStep ? a.w.cols - k : kWholeSteps * C::kStep;
      for (std::int64_t j = 0; j < count; ++j) {
        const std::uint8_t* w = codes + (n + j) * row_bytes + C::bytes(k);
        const std::int64_t ahead = ahead_of(a, n + j, row_bytes, C::kAheadBytes);
        if (rows > 1) unpack_row<F>(w, ahead, cols, row);
        for (std::int64_t i = 0; i < rows; ++i) {
          for (std::int64_t at = 0; at < cols; at += C::kStep) {
            const RowProduct r{n + j, a.m0 + i, (k + at) / Width, ahead};
            const V p = rows == 1 ? block_products<F, Width, true>(matrix, r, w + C::bytes(at))
                                  : block_products<F, Width, false>(matrix, r, row + at);
            store(products[i][at / C::kStep][j], p);
          }
        }
      }
      for (std::int64_t i = 0; i < rows; ++i) {
        float* out = a.out + i * a.out_stride + (n - a.n0);
        for (std::int64_t at = 0; at < cols; at += C::kStep) {
          const auto& p = products[i][at / C::kStep];
          float sums[4];
          sum4(load(p[0]), load(p[1]), load(p[2]), load(p[3]), sums);
          for (std::int64_t j = 0; j < count; ++j) out[j] = k + at == 0 ? sums[j] : out[j] + sums[j];
        }
      }
    }
  }
}

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

template <typename F, int Width>
void dot_codes(const DotArgs& a) {
  if (a.m1 - a.m0 <= kFewCodes) return codes_few<F, Width>(a);
  codes_many<F, Width>(a);
}

// Codes of at most kWide columns, in the order of Packed::split.
inline void store_codes(const float* q, std::int64_t columns, bool split, std::int8_t* to) {
  if (!split) {
    for (std::int64_t i = 0; i < columns; i += kLanes) store_bytes(to + i, small_ints(load(q + i)));
    return;
  }
  static_assert(kWide == 128);
  for (std::int64_t i = 0; i < columns; i += 2 * kLanes) {
    const I a = small_ints(load(q + i)), b = small_ints(load(q + i + kLanes));
    store_bytes(to + i / 2, even_lanes(a, b));
    store_bytes(to + 64 + i / 2, odd_lanes(a, b));
  }
  for (std::int64_t i = columns / 2; i < 64; i += kLanes) {
    store_bytes(to + i, zero_ints());
    store_bytes(to + 64 + i, zero_ints());
  }
}
