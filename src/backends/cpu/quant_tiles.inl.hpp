// A tile of a matrix of codes: a step of up to 64 rows of W, in groups of 16. Included by quant_vnni_many.inl.hpp and
// quant_amx.inl.hpp, which have their own layouts of the codes.

inline constexpr std::int64_t kTileGroups = kStrip / kLanes;

// The order in which sum() adds the lanes of a vector: leaf i of a balanced tree is lane kLeaves[i].
inline constexpr std::uint8_t kLeaves[kStepBlocks] = {0, 8, 4, 12, 1, 9, 5, 13, 2, 10, 6, 14, 3, 11, 7, 15};

struct CodesTile {
  const DotArgs* a = nullptr;
  std::int64_t n = 0, count = 0, groups = 0;
  std::int64_t b = 0, blocks = 0;  // first block of the step, and how many: at most a step
  std::int32_t zero_point = 0;
  std::uint8_t* codes = nullptr;   // of W, as the kernel wants them
  const float* factors = nullptr;  // [block][group][16]
  const float* mins = nullptr;     // the same, or null
  const char** next = nullptr;     // what is read after this tile, where it ends, and what to ask for with each block
  const char* next_end = nullptr;
  std::int64_t next_bytes = 0;
};

template <typename F>
inline constexpr std::int64_t kCodesChunk = F::kNibbles ? 128 : 64;  // columns of 64 bytes

// Rows [16 g, 16 g + 16) of a tile; beyond the last the last again.
template <typename F, int Width>
struct GroupOfRows {
  const std::uint8_t* rows[16];
  std::int64_t row_bytes, cols;
  bool last;

  [[gnu::always_inline]] GroupOfRows(const CodesTile& t, std::int64_t g)
      : row_bytes(Codes<F, Width>::bytes(t.a->w.cols)), cols(t.blocks * Width), last(g == t.groups - 1) {
    const auto* from = static_cast<const std::uint8_t*>(t.a->w.data) + Codes<F, Width>::bytes(t.b * Width);
    for (int i = 0; i < 16; ++i) {
      const std::int64_t n = g * 16 + i < t.count ? g * 16 + i : t.count - 1;
      rows[i] = from + (t.n + n) * row_bytes;
    }
  }
  // The chunk from column k of the step on, as stored: word w of row i in lane i of v[w]. Returns the number of words.
  [[gnu::always_inline]] int load(std::int64_t k, I (&v)[16]) const {
    const std::int64_t at = Codes<F, Width>::bytes(k);
    if (F::kNibbles && cols - k < kCodesChunk<F>) {
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) v[i] = load_half(rows[i] + at);
      transpose_lanes(v);
      return 8;
    }
    if (!last) {
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) __builtin_prefetch(rows[i] + at + 16 * row_bytes);  // of the next group
    }
    load_transposed(rows, at, v);
    return 16;
  }
};

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

// A step's scales, and mins if W has them.
template <int Width>
inline void fill_factors(CodesTile& t, const CodesMatrix<Width>& matrix, float* factors, float* mins) {
  fill_factors(t, matrix.scales, matrix.unit, factors);
  if (!matrix.has_mins) return;
  fill_factors(t, matrix.mins, set1(1), mins);
  t.mins = mins;
}

// What fetch_next, called `asks` times a step, is to bring while a strip is used: the one that comes next, which lies
// behind it or where the caller says. `next` goes through it.
template <typename F, int Width>
inline void look_ahead(CodesTile& t, const char*& next, std::int64_t asks) {
  const DotArgs& a = *t.a;
  const std::int64_t row_bytes = Codes<F, Width>::bytes(a.w.cols);
  const std::int64_t after = t.n + kStrip;
  const void* follows = after < a.n1 ? static_cast<const char*>(a.w.data) + after * row_bytes : a.next.data;
  next = static_cast<const char*>(follows);
  t.next = &next;
  t.next_end = next == nullptr ? next : next + kStrip * row_bytes;
  const std::int64_t steps = (a.w.cols / Width + kStepBlocks - 1) / kStepBlocks;
  t.next_bytes = (kStrip * row_bytes / (asks * steps) / 64 + 1) * 64;
}
inline void fetch_next(const CodesTile& t) {
  const char* next = *t.next;
  const char* end = next + t.next_bytes < t.next_end ? next + t.next_bytes : t.next_end;
  for (; next < end; next += 64) __builtin_prefetch(next, 0, 2);
  *t.next = next;
}
