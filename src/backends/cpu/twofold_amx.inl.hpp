// Products with BF16 weights by AMX. Included by kernels_amx.inl.hpp.
//
// A value of x becomes two bfloat16 numbers, its upper 16 bits and what these leave, rounded: together within 2^-16 of
// it, as near as the 16-bit codes of words_vnni.inl.hpp. W is used as it lies, without codes and without loss, so that
// a lone row reads it once, and the sums stay in tiles for the whole contraction:
//   for each kTwofoldStep columns: out += upper · w, then out += lower · w
// in the order that the instruction fixes (Tiles::multiply_pairs). An output depends on its rows of x and W alone,
// whatever lies in the same tiles and whichever of both is the left operand, and so whatever the number of rows.
//
//   dot       rows of W are left operands where they lie, x is turned (Packed::tiles); a lone row needs no turning
//   combine   the contraction goes down W's rows: pairs of these are interleaved, rows of x are left operands

inline constexpr std::int64_t kTwofoldBytes = 2 * kTwofoldStep;  // of a row in a tile
static_assert(kTwofoldBytes == 64 && kRowTile == 16);

// 32 values → their upper and lower numbers.
inline void twofold(const float* x, void* upper, void* lower) {
  for (int i = 0; i < 2; ++i) {
    const V v = load(x + i * kLanes);
    const I high = _mm512_and_si512(as_ints(v), set1_ints(-65536));
    const I rest = add_ints(as_ints(sub(v, _mm512_castsi512_ps(high))), set1_ints(0x8000));
    _mm256_storeu_si256(static_cast<__m256i*>(upper) + i, _mm512_cvtepi32_epi16(_mm512_srli_epi32(high, 16)));
    _mm256_storeu_si256(static_cast<__m256i*>(lower) + i, _mm512_cvtepi32_epi16(_mm512_srli_epi32(rest, 16)));
  }
}

void encode_twofold(const Packed& to, const float* x, std::int64_t x_stride, std::int64_t m0, std::int64_t m1) {
  for (std::int64_t m = m0; m < m1; ++m) {
    auto* row = static_cast<BF16*>(to.data) + m * to.code_stride;
    const float* from = x + (m - m0) * x_stride;
    for (std::int64_t k = 0; k < to.cols; k += kTwofoldStep) twofold(from + k, row + k, row + to.cols + k);
  }
}

// The rows that the last tile lacks are its first one again: nobody reads what comes of them.
void turn_twofold(const Packed& from, const std::int32_t* index, const Packed& to, std::int64_t m0, std::int64_t m1) {
  for (std::int64_t m = m0; m < m1; m += kRowTile) {
    const std::uint8_t* rows[kRowTile];
    for (std::int64_t r = 0; r < kRowTile; ++r) {
      const std::int64_t at = m + r < m1 ? m + r : m;
      rows[r] = reinterpret_cast<const std::uint8_t*>(static_cast<const BF16*>(from.data) +
                                                      (index != nullptr ? index[at] : at) * from.code_stride);
    }
    std::int8_t* tile = to.tiles + m / kRowTile * to.tile_stride;
    for (std::int64_t k = 0; k < 2 * to.cols; k += kTwofoldBytes) {
      for (const std::int64_t half : {std::int64_t{0}, 2 * to.cols}) {
        I v[kLanes];
        load_transposed(rows, half + k, v);
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i, tile += 64) store_ints(tile, v[i]);
      }
    }
  }
}

// Rows of W that are multiplied together, and the lines that are asked for meanwhile.
struct TwofoldRows {
  const char* w;
  std::int64_t row_bytes;
  std::int64_t steps;
  Fetch& fetch;
  std::int64_t lines;  // a step

  const char* group(int g, std::int64_t step) const { return w + g * kRowTile * row_bytes + step * kTwofoldBytes; }
};

// Where the numbers of tiles of x are: those of a step `step` bytes after those of the one before, the lower ones
// `lower` after the upper ones, pairs `stride` apart; the second tile `tile` after the first.
struct TwofoldTiles {
  const std::int8_t* x;
  std::int64_t step, lower, stride, tile;
};

// 16 Groups rows of W · Count tiles of rows of x. Sums of group g and tile t: tile 2 g + t.
template <int Groups, int Count>
inline void multiply_twofold(Tiles& tiles, const TwofoldRows& w, TwofoldTiles x) {
  clear_sums(tiles);
  for (std::int64_t s = 0; s < w.steps; ++s, x.x += x.step) {
    tiles.load<4>(w.group(0, s), w.row_bytes);
    if constexpr (Groups == 2) tiles.load<5>(w.group(1, s), w.row_bytes);
    for (const std::int8_t* half : {x.x, x.x + x.lower}) {
      tiles.load<6>(half, x.stride);
      tiles.multiply_pairs<0, 4, 6>();
      if constexpr (Groups == 2) tiles.multiply_pairs<2, 5, 6>();
      if constexpr (Count == 2) {
        tiles.load<7>(half + x.tile, x.stride);
        tiles.multiply_pairs<1, 4, 7>();
        if constexpr (Groups == 2) tiles.multiply_pairs<3, 5, 7>();
      }
    }
    w.fetch.lines(w.lines);
  }
}

struct TwofoldDot {
  const DotArgs& a;
  Tiles tiles;
  std::int64_t group;  // rows of W in a tile: 16 unless W has fewer
  std::int64_t row_bytes, steps;
  Fetch fetch;
  alignas(64) float sums[4][kRowTile][kLanes];
  static constexpr std::int64_t kLaterLines = 4;

  explicit TwofoldDot(const DotArgs& args)
      : a(args),
        group(args.w.rows < kRowTile ? args.w.rows : kRowTile),
        row_bytes(args.w.cols * 2),
        steps(args.w.cols / kTwofoldStep) {}

  // Tiles 0 to 3: sums; 4 and 5: W; 6 and 7: x, of so many rows.
  void shape(std::int64_t x_rows) {
    TileShapes shapes = whole_tiles();
    for (int t = 0; t < 6; ++t) shapes.rows[t] = static_cast<std::uint8_t>(group);
    for (const int t : {0, 1, 2, 3, 6, 7}) shapes.bytes[t] = static_cast<std::uint16_t>(4 * x_rows);
    tiles.shape(shapes);
  }
  // The first row of the group that holds row n: the last group of W takes rows before n as well.
  std::int64_t first_row(std::int64_t n) const { return n + group > a.w.rows ? a.w.rows - group : n; }
  TwofoldRows rows(std::int64_t n, std::int64_t lines) {
    return {static_cast<const char*>(a.w.data) + n * row_bytes, row_bytes, steps, fetch, lines};
  }
  // Lanes of a group that begins at `first` → the outputs from row n of W on.
  void put(const float* lanes, std::int64_t first, std::int64_t n, float* out) const {
    const std::int64_t skip = n - first, left = a.n1 - n, count = group - skip < left ? group - skip : left;
    if (count == kLanes) return store(out + (n - a.n0), load(lanes));
    for (std::int64_t i = 0; i < count; ++i) out[n - a.n0 + i] = lanes[skip + i];
  }
  // What is asked for next: rows of W from n on, at most `most`, or those that follow these.
  void look_ahead(std::int64_t n, std::int64_t most) {
    const bool more = n < a.n1;
    const std::int64_t left = more ? a.n1 - n : a.next.data != nullptr ? most : 0;
    fetch = {.row = more ? static_cast<const char*>(a.w.data) + n * row_bytes : static_cast<const char*>(a.next.data),
             .stride = row_bytes,
             .bytes = row_bytes,
             .rows = left < most ? left : most};
  }
  // fn<Groups>(first rows of the groups, n) for all of [n0, n1).
  template <typename Fn>
  void for_groups(const Fn& fn) {
    std::int64_t n = a.n0;
    for (; n + 2 * kRowTile <= a.n1; n += 2 * kRowTile) fn.template operator()<2>(n, n);
    for (; n < a.n1; n += group) fn.template operator()<1>(first_row(n), n);
  }

  // One row of x where it lies: its pairs are the rows of a tile of one column, whose sums are a row of the output.
  void once() {
    shape(1);
    const std::int64_t m = a.index != nullptr ? a.index[a.m0] : a.m0;
    const auto* x = reinterpret_cast<const std::int8_t*>(static_cast<const BF16*>(a.x->data) + m * a.x->code_stride);
    for_groups([&]<int Groups>(std::int64_t first, std::int64_t n) {
      look_ahead(n + Groups * kRowTile, 2 * kRowTile);
      multiply_twofold<Groups, 1>(tiles, rows(first, Groups * kRowTile), {x, kTwofoldBytes, row_bytes, 4, 0});
      tiles.store<0>(sums[0], 4);
      if constexpr (Groups == 2) tiles.store<2>(sums[2], 4);
      for (int g = 0; g < Groups; ++g) put(sums[2 * g][0], first + g * kRowTile, n + g * kRowTile, a.out);
    });
    tiles.release();
  }

  // The sums of a tile of rows of x from m on, a row of W each → rows of the output.
  void put_tile(float (&s)[kRowTile][kLanes], std::int64_t m, std::int64_t first, std::int64_t n) {
    const std::int64_t count = a.m1 - m < kRowTile ? a.m1 - m : kRowTile;
    float* out = a.out + (m - a.m0) * a.out_stride;
    I v[kLanes];
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) v[i] = load_ints(s[i]);
    transpose_lanes(v);
    if (count == kRowTile && first == n && n + kLanes <= a.n1 && group == kRowTile) {
      out += n - a.n0;
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i, out += a.out_stride) store_ints(out, v[i]);
      return;
    }
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) store_ints(s[i], v[i]);
    for (std::int64_t r = 0; r < count; ++r) put(s[r], first, n, out + r * a.out_stride);
  }

  template <int Count>
  void many(std::int64_t m) {
    for_groups([&]<int Groups>(std::int64_t first, std::int64_t n) {
      // The first rows of x pass while W comes, the others while what follows does.
      if (m == a.m0) look_ahead(n + Groups * kRowTile, a.n1 - a.n0);
      const std::int64_t tile = a.x->tile_stride;
      multiply_twofold<Groups, Count>(tiles, rows(first, m == a.m0 ? Groups * kRowTile : kLaterLines),
                                      {a.x->tiles + m / kRowTile * tile, 2 * kRowTile * kTwofoldBytes,
                                       kRowTile * kTwofoldBytes, kTwofoldBytes, tile});
      tiles.store<0>(sums[0], 64);
      if constexpr (Count == 2) tiles.store<1>(sums[1], 64);
      if constexpr (Groups == 2) tiles.store<2>(sums[2], 64);
      if constexpr (Groups == 2 && Count == 2) tiles.store<3>(sums[3], 64);
      for (int g = 0; g < Groups; ++g) {
        for (int t = 0; t < Count; ++t)
          put_tile(sums[2 * g + t], m + t * kRowTile, first + g * kRowTile, n + g * kRowTile);
      }
    });
  }
  void many() {
    shape(kRowTile);
    std::int64_t m = a.m0;
    for (; m + kRowTile < a.m1; m += 2 * kRowTile) many<2>(m);
    if (m < a.m1) many<1>(m);
    tiles.release();
  }
};

void dot_twofold(const DotArgs& a) {
  TwofoldDot dot(a);
  return a.m1 - a.m0 == 1 && (a.x->tiles == nullptr || a.index != nullptr) ? dot.once() : dot.many();
}

// --- W_UKᵀ q ---

inline bool combines_twofold(const CombineArgs& a) {
  return a.w.format == WeightFormat::kBF16 && a.w.rows <= kNope && a.w.rows % kTwofoldStep == 0 &&
         a.w.cols % (2 * kLanes) == 0;
}

// 32 columns of W as pairs of rows: quads 0, 2, 4, 6 of columns in tile 0, those between in tile 1.
using TwofoldColumns = std::int8_t[kNope / kTwofoldStep][2][16][64];

inline void fill_twofold(const CombineArgs& a, std::int64_t column, TwofoldColumns& to) {
  const BF16* from = static_cast<const BF16*>(a.w.data) + column;
  for (std::int64_t k = 0; k < a.w.rows; k += 2, from += 2 * a.w.cols) {
    const I even = load_ints(from), odd = load_ints(from + a.w.cols);
    __builtin_prefetch(from + 4 * kLanes, 0, 2);
    __builtin_prefetch(from + 4 * kLanes + a.w.cols, 0, 2);
    store_ints(to[k / kTwofoldStep][0][k % kTwofoldStep / 2], interleave_low(even, odd));
    store_ints(to[k / kTwofoldStep][1][k % kTwofoldStep / 2], interleave_high(even, odd));
  }
}

void combine_twofold(const CombineArgs& a) {
  constexpr std::int64_t kMost = (kRowChunk + kRowTile - 1) / kRowTile * kRowTile;
  alignas(64) BF16 x[2][kMost][kNope];  // upper, lower
  alignas(64) TwofoldColumns w;
  alignas(64) float sums[2][kRowTile][kLanes];
  Tiles tiles;
  TileShapes shapes = whole_tiles();
  if (a.rows < kRowTile) {
    for (int t = 0; t < 6; ++t) shapes.rows[t] = static_cast<std::uint8_t>(a.rows);
  }
  tiles.shape(shapes);
  for (std::int64_t m = 0; m < a.rows; ++m) {
    for (std::int64_t k = 0; k < a.w.rows; k += kTwofoldStep)
      twofold(a.a + m * a.a_stride + k, x[0][m] + k, x[1][m] + k);
  }
  const std::int64_t whole = (a.rows + kRowTile - 1) / kRowTile * kRowTile;
  for (std::int64_t m = a.rows; a.rows > kRowTile && m < whole; ++m) {
    __builtin_memset(x[0][m], 0, sizeof x[0][m]);
    __builtin_memset(x[1][m], 0, sizeof x[1][m]);
  }
  const V scale = set1(a.scale);
  const I low = _mm512_set_epi32(23, 22, 21, 20, 7, 6, 5, 4, 19, 18, 17, 16, 3, 2, 1, 0);
  const I high = _mm512_set_epi32(31, 30, 29, 28, 15, 14, 13, 12, 27, 26, 25, 24, 11, 10, 9, 8);
  constexpr auto kStride = static_cast<std::int64_t>(sizeof x[0][0]);
  for (std::int64_t column = 0; column < a.w.cols; column += 2 * kLanes) {
    fill_twofold(a, column, w);
    for (std::int64_t m = 0; m < a.rows; m += kRowTile) {
      tiles.clear<0>();
      tiles.clear<1>();
      for (std::int64_t s = 0; s < a.w.rows / kTwofoldStep; ++s) {
        tiles.load<4>(x[0][m] + s * kTwofoldStep, kStride);
        tiles.load<6>(w[s][0], 64);
        tiles.multiply_pairs<0, 4, 6>();
        tiles.load<7>(w[s][1], 64);
        tiles.multiply_pairs<1, 4, 7>();
        tiles.load<5>(x[1][m] + s * kTwofoldStep, kStride);
        tiles.multiply_pairs<0, 5, 6>();
        tiles.multiply_pairs<1, 5, 7>();
      }
      tiles.store<0>(sums[0], 64);
      tiles.store<1>(sums[1], 64);
      for (std::int64_t r = 0; r < kRowTile && m + r < a.rows; ++r) {
        const I even = as_ints(mul(load(sums[0][r]), scale)), odd = as_ints(mul(load(sums[1][r]), scale));
        float* out = a.out + (m + r) * a.out_stride + column;
        store_ints(out, _mm512_permutex2var_epi32(even, low, odd));
        store_ints(out + kLanes, _mm512_permutex2var_epi32(even, high, odd));
      }
    }
  }
  tiles.release();
}
