// Many rows of x against codes by AMX: the sums of quant_vnni.inl.hpp, which says in which order they are added, with
// a block's integers multiplied as tiles of 16 rows of x, 16 rows of W and up to 64 columns. Included by
// kernels_amx.inl.hpp.
//
// A tile product is 16,384 multiply-adds in 16 cycles; its 256 sums must each be stored, converted, scaled and added,
// which takes 16 and 37. The two hardly overlap, but a product's latency is hidden: while blocks of one pair are
// multiplied, the sums of the pair before, which lie in memory, are scaled.

inline constexpr int kAmxRows = static_cast<int>(kRowTile);
inline constexpr int kAmxBlocks = 2;  // blocks whose sums wait at a time: neighbouring leaves of the tree

template <int Width>
struct AmxShape {
  static constexpr int kParts = (Width + 63) / 64;         // tiles that make a block
  static constexpr int kTileBytes = Width / kParts;        // columns of a tile
  static constexpr std::int64_t kBlockBytes = 16 * Width;  // of 16 rows of x or W
  static constexpr std::int64_t kGroupBytes = kStepBlocks * kBlockBytes;
};

// W as signed bytes, [group][block][word][16 rows · 4]: even columns of a block of nibbles before odd ones.
template <typename F, int Width>
inline void fill_bytes(const CodesTile& t) {
  using S = AmxShape<Width>;
  const I zero_point = set1_bytes(t.zero_point);
  for (std::int64_t g = 0; g < t.groups; ++g) {
    const GroupOfRows<F, Width> group(t, g);
    std::uint8_t* to = t.codes + g * S::kGroupBytes;
    for (std::int64_t k = 0; k < group.cols; k += kCodesChunk<F>, to += kCodesChunk<F> * 16) {
      I v[16];
      const int words = group.load(k, v);
      if constexpr (F::kNibbles) {
        constexpr int kHalf = Width / 8;  // words of a block's even columns
#pragma GCC unroll 16
        for (int word = 0; word < 16; ++word) {
          if (word >= words) break;
          std::uint8_t* at = to + word / kHalf * S::kBlockBytes + word % kHalf * 64;
          store_ints(at, sub_bytes(F::even(v[word]), zero_point));
          store_ints(at + kHalf * 64, sub_bytes(F::odd(v[word]), zero_point));
        }
      } else {
#pragma GCC unroll 16
        for (int word = 0; word < 16; ++word) store_ints(to + word * 64, sub_bytes(F::even(v[word]), zero_point));
      }
    }
  }
}

// Two tiles of x against two groups of W: 2 × 2 tiles of sums.
struct AmxSquare {
  const CodesTile* t = nullptr;
  std::int64_t m = 0;            // first row of x
  int rows[2] = {};              // of each tile of x; the second may have none
  const std::int8_t* x[2] = {};  // of the step, [block][row][Width]
  const float* scales[2] = {};   // [block][row]
  const float* x_sums[2] = {};   // the same of scale · Σ q
  std::int64_t g = 0;            // first group of W
  bool two = false;              // groups
};

struct AmxScratch {
  alignas(64) TileSums sums[2][kAmxBlocks];        // of two pairs of blocks by turns
  alignas(64) float tree[4][4][kAmxRows][kLanes];  // sums of 2, 4 and 8 blocks that wait, and of all
};

// Blocks of a pair, of one tile.
struct AmxPair {
  int rows;
  const std::int32_t* sums[2];  // [rows][16]
  V factors[2], mins[2];
  const float* x[2];       // scales, a row each
  const float* x_sums[2];  // scale · Σ q
  float* tree;             // of the tile, [level][4][rows][16]
};

// The pair's sums, scaled and added to Levels sums that wait in the tree.
template <bool Mins, int Levels>
[[gnu::always_inline]] inline void amx_scale(const AmxPair& pair) {
  constexpr std::int64_t kLevel = 4 * kAmxRows * kLanes;
#pragma GCC unroll 4
  for (int r = 0; r < pair.rows; ++r) {
    V p[2];
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      p[i] = mul(to_floats(load_ints(pair.sums[i] + r * kLanes)), mul(pair.factors[i], set1(pair.x[i][r])));
      if constexpr (Mins) p[i] = fma(pair.mins[i], set1(pair.x_sums[i][r]), p[i]);
    }
    V sum = add(p[0], p[1]);
    float* at = pair.tree + r * kLanes;
#pragma GCC unroll 4
    for (int level = 0; level < Levels; ++level) sum = add(load(at + level * kLevel), sum);
    store(at + Levels * kLevel, sum);
  }
}

alignas(64) inline constexpr std::int32_t kNoSums[kAmxRows * kLanes] = {};

// Leaves 2 q and 2 q + 1 of a tile.
template <bool Mins>
[[gnu::always_inline]] inline void amx_pair(const AmxSquare& s, AmxScratch& scratch, int q, int tile) {
  const CodesTile& t = *s.t;
  AmxPair pair;
  pair.rows = s.rows[tile / 2];
  pair.tree = scratch.tree[0][tile][0];
  for (int i = 0; i < kAmxBlocks; ++i) {
    const std::int64_t b = kLeaves[kAmxBlocks * q + i];
    const std::int64_t at = (b * t.groups + s.g + tile % 2) * kLanes;
    const bool any = b < t.blocks;  // a block that is not there adds +0
    pair.sums[i] = any ? scratch.sums[q % 2][i][tile][0] : kNoSums;
    pair.factors[i] = any ? load(t.factors + at) : zero();
    pair.x[i] = s.scales[tile / 2] + b * kAmxRows;
    if constexpr (Mins) {
      pair.mins[i] = any ? load(t.mins + at) : zero();
      pair.x_sums[i] = s.x_sums[tile / 2] + b * kAmxRows;
    }
  }
  if ((q & 1) == 0) return amx_scale<Mins, 0>(pair);
  if ((q & 2) == 0) return amx_scale<Mins, 1>(pair);
  if ((q & 4) == 0) return amx_scale<Mins, 2>(pair);
  amx_scale<Mins, 3>(pair);
}

// Where the operands of a block lie.
struct AmxBlock {
  const std::int8_t* x[2];
  const std::uint8_t* w[2];
};

template <int Width, int Part>
[[gnu::always_inline]] inline void amx_load(Tiles& tiles, const AmxSquare& s, const AmxBlock& b) {
  constexpr std::int64_t kPart = Part * AmxShape<Width>::kTileBytes;
  tiles.load_passing<4>(b.x[0] + kPart, Width);
  tiles.load_passing<6>(b.w[0] + kPart * 16, 64);
  if (s.two) tiles.load_passing<7>(b.w[1] + kPart * 16, 64);
  if (s.rows[1] > 0) tiles.load_passing<5>(b.x[1] + kPart, Width);
}

[[gnu::always_inline]] inline void amx_multiply(Tiles& tiles, const AmxSquare& s) {
  tiles.multiply<0, 4, 6>();
  if (s.two) tiles.multiply<1, 4, 7>();
  if (s.rows[1] == 0) return;
  tiles.multiply<2, 5, 6>();
  if (s.two) tiles.multiply<3, 5, 7>();
}

// Half a round multiplies one block, scales half the tiles of the pair before, and stores the block's sums.
template <int Width, bool Mins>
[[gnu::noinline]] void amx_square(Tiles& tiles, const AmxSquare& s, AmxScratch& scratch) {
  using S = AmxShape<Width>;
  const CodesTile& t = *s.t;
  const std::uint8_t* w = t.codes + s.g * S::kGroupBytes;
  const auto block = [&](int leaf) __attribute__((always_inline)) {
    const std::int64_t at = kLeaves[leaf] * S::kBlockBytes;
    return AmxBlock{{s.x[0] + at, s.x[1] + at}, {w + at, w + at + S::kGroupBytes}};
  };
  amx_load<Width, 0>(tiles, s, block(0));
#pragma GCC unroll 1
  for (int leaf = 0; leaf < kStepBlocks + kAmxBlocks; ++leaf) {
    const int half = leaf % kAmxBlocks, q = leaf / kAmxBlocks;
    const bool multiplies = leaf < kStepBlocks && kLeaves[leaf] < t.blocks;
    fetch_next(t);
    if (multiplies) {
      clear_sums(tiles);
      amx_multiply(tiles, s);
      if constexpr (S::kParts == 2) {
        amx_load<Width, 1>(tiles, s, block(leaf));
        amx_multiply(tiles, s);
      }
    }
    if (q > 0 && s.rows[half] > 0) {
      amx_pair<Mins>(s, scratch, q - 1, 2 * half);
      if (s.two) amx_pair<Mins>(s, scratch, q - 1, 2 * half + 1);
    }
    if (multiplies) { store_sums(tiles, scratch.sums[q % 2][half]); }
    if (leaf + 1 < kStepBlocks && kLeaves[leaf + 1] < t.blocks) amx_load<Width, 0>(tiles, s, block(leaf + 1));
  }
  const DotArgs& a = *t.a;
  for (int tile = 0; tile < 4; ++tile) {
    const std::int64_t column = (s.g + tile % 2) * kLanes;
    const std::int64_t count = t.count - column;
    if (count <= 0) continue;
    float* out = a.out + (s.m + tile / 2 * s.rows[0] - a.m0) * a.out_stride + (t.n - a.n0) + column;
    for (int r = 0; r < s.rows[tile / 2]; ++r, out += a.out_stride) {
      const V sum = load(scratch.tree[3][tile][r]);
      store_some(out, t.b == 0 ? sum : add(load_some(out, count), sum), count);
    }
  }
}

template <int Width>
inline void amx_shape(Tiles& tiles, const int (&rows)[2]) {
  TileShapes shapes;
  for (int i = 0; i < 2; ++i) {
    const auto n = static_cast<std::uint8_t>(rows[i] > 0 ? rows[i] : 1);
    for (int j = 0; j < 2; ++j) {
      shapes.rows[2 * i + j] = n;
      shapes.bytes[2 * i + j] = 64;
    }
    shapes.rows[4 + i] = n;
    shapes.bytes[4 + i] = AmxShape<Width>::kTileBytes;
    shapes.rows[6 + i] = AmxShape<Width>::kTileBytes / 4;
    shapes.bytes[6 + i] = 64;
  }
  tiles.shape(shapes);
}

// All rows of x, two tiles at a time.
template <int Width>
void amx_rows(const CodesTile& t, Tiles& tiles, AmxScratch& scratch) {
  const DotArgs& a = *t.a;
  const Packed& x = *a.x;
  int shaped[2] = {0, 0};
  for (std::int64_t m = a.m0; m < a.m1; m += 2 * kAmxRows) {
    AmxSquare s{.t = &t, .m = m};
    for (std::int64_t i = 0; i < 2; ++i) {
      const std::int64_t left = a.m1 - m - i * kAmxRows;
      s.rows[i] = static_cast<int>(left < 0 ? 0 : left < kAmxRows ? left : kAmxRows);
      const std::int64_t tile = m / kAmxRows + (left > 0 ? i : 0);
      const std::int64_t factors = (tile * x.scale_stride + t.b) * kAmxRows;
      s.x[i] = x.tiles + tile * x.tile_stride + t.b * AmxShape<Width>::kBlockBytes;
      s.scales[i] = x.tile_scales + factors;
      s.x_sums[i] = x.tile_sums + factors;
    }
    if (s.rows[0] != shaped[0] || s.rows[1] != shaped[1]) {
      amx_shape<Width>(tiles, s.rows);
      shaped[0] = s.rows[0];
      shaped[1] = s.rows[1];
    }
    for (s.g = 0; s.g < t.groups; s.g += 2) {
      s.two = s.g + 1 < t.groups;
      if (t.mins != nullptr) {
        amx_square<Width, true>(tiles, s, scratch);
      } else {
        amx_square<Width, false>(tiles, s, scratch);
      }
    }
  }
}

template <typename F, int Width>
void codes_amx(const DotArgs& a) {
  alignas(64) std::uint8_t codes[kTileGroups * AmxShape<Width>::kGroupBytes];
  alignas(64) float factors[kStepBlocks * kStrip];
  alignas(64) float mins[kStepBlocks * kStrip];
  AmxScratch scratch;
  Tiles tiles;
  const CodesMatrix<Width> matrix(a);
  for (std::int64_t n = a.n0; n < a.n1; n += kStrip) {
    CodesTile t{.a = &a, .n = n, .zero_point = matrix.zero_point, .codes = codes, .factors = factors};
    t.count = a.n1 - n < kStrip ? a.n1 - n : kStrip;
    t.groups = (t.count + kLanes - 1) / kLanes;
    const std::int64_t squares = (a.m1 - a.m0 + 2 * kAmxRows - 1) / (2 * kAmxRows) * ((t.groups + 1) / 2);
    const char* next;
    look_ahead<F, Width>(t, next, squares * (kStepBlocks + kAmxBlocks));
    for (t.b = 0; t.b * Width < a.w.cols; t.b += kStepBlocks) {
      const std::int64_t left = a.w.cols / Width - t.b;
      t.blocks = left < kStepBlocks ? left : kStepBlocks;
      if (t.b == 0) {
        for (std::int64_t i = 0; i < t.count; ++i) matrix.scales.fetch(n + i);
      }
      fill_bytes<F, Width>(t);
      fill_factors(t, matrix, factors, mins);
      amx_rows<Width>(t, tiles, scratch);
    }
  }
  tiles.release();
}

template <typename F>
inline void codes_amx_any(const DotArgs& a) {
  switch (a.x->quant) {
    case 16:
      return codes_amx<F, 16>(a);
    case 32:
      return codes_amx<F, 32>(a);
    case 64:
      return codes_amx<F, 64>(a);
    default:  // only W of these formats asks for it
      if constexpr (__is_same(F, Int8Codes) || __is_same(F, Int4Codes)) return codes_amx<F, 128>(a);
  }
}

// --- x as tiles (Packed::tiles) ---

template <int Width, bool Split>
inline void tile_row(const std::int8_t* x, std::int64_t cols, std::int8_t* to) {
  for (std::int64_t k = 0; k < cols; k += Width, to += kRowTile * Width) {
    if constexpr (Split) {
      const std::int8_t* even = x + k / 128 * 128 + k % 128 / 2;
      __builtin_memcpy(to, even, Width / 2);
      __builtin_memcpy(to + Width / 2, even + 64, Width / 2);
    } else {
      __builtin_memcpy(to, x + k, Width);
    }
  }
}

template <int Width>
inline void tile_row(const std::int8_t* x, const Packed& to, std::int8_t* tile) {
  if (to.split) return tile_row<Width, true>(x, to.cols, tile);
  tile_row<Width, false>(x, to.cols, tile);
}

// A factor of 16 rows, a block's side by side; zeros for rows that are not there.
inline void tile_factors(const float* const (&rows)[kRowTile], std::int64_t n, float* to) {
  for (std::int64_t b = 0; b < n; b += kLanes) {
    I v[kRowTile];
    for (int r = 0; r < kRowTile; ++r) v[r] = as_ints(rows[r] != nullptr ? load(rows[r] + b) : zero());
    transpose_lanes(v);
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) store_ints(to + (b + i) * kRowTile, v[i]);
  }
}

void tile_codes(const Packed& from, const std::int32_t* index, const Packed& to, std::int64_t m0, std::int64_t m1) {
  for (std::int64_t m = m0; m < m1; m += kRowTile) {
    const float* scales[kRowTile] = {};
    const float* sums[kRowTile] = {};
    for (std::int64_t r = 0; r < kRowTile && m + r < m1; ++r) {
      const std::int64_t row = index != nullptr ? index[m + r] : m + r;
      const std::int8_t* x = static_cast<const std::int8_t*>(from.data) + row * from.code_stride;
      std::int8_t* tile = to.tiles + m / kRowTile * to.tile_stride + r * to.quant;
      switch (to.quant) {
        case 16:
          tile_row<16>(x, to, tile);
          break;
        case 32:
          tile_row<32>(x, to, tile);
          break;
        case 64:
          tile_row<64>(x, to, tile);
          break;
        default:
          tile_row<128>(x, to, tile);
      }
      scales[r] = from.scales + row * from.scale_stride;
      sums[r] = from.sums + row * from.scale_stride;
    }
    const std::int64_t at = m / kRowTile * kRowTile * to.scale_stride;
    tile_factors(scales, to.scale_stride, to.tile_scales + at);
    tile_factors(sums, to.scale_stride, to.tile_sums + at);
  }
}
