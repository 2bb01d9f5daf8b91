// Dot products of codes with codes by AVX-512 VNNI. Included by quant.inl.hpp.
//
// A row's result, whatever the number of rows and the path taken:
//   p_b = float(Σ w q) · (s_w s_x) [+ min · (s_x Σ q)]    one for each block b of Width columns; Σ is exact
//   t_j = the p_b of 16 blocks, a step, added as sum() adds the lanes of a vector; blocks beyond the last are zeros
//   out = t_0 + t_1 + …
// Few rows of x: W's rows are read where they lie, or unpacked a row at a time; 16 block sums come to lie in the lanes
// of one vector (block_sums). Many: 16 rows of W lie across the lanes of a tile and x is broadcast, so that a block's
// sum needs no additions across lanes; blocks come in the order of kLeaves and meet in the same tree.
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
inline constexpr std::int64_t kFewCodes = 2;    // rows of x up to which W is read row by row
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
  // Row n's, which lie so thinly that the hardware's prefetch does not see them as a stream.
  [[gnu::always_inline]] void fetch(std::int64_t row) const {
    const std::int64_t bytes = groups * (type == DType::kF32 ? 4 : 2);
    const char* from = static_cast<const char*>(table) + (group_rows == 1 ? row * bytes : 0);
    for (std::int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(from + at);
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

// p_b of the 16 blocks from b on of row n of W, unpacked at w, and row m of x.
struct RowProduct {
  std::int64_t n, m, b;
};
template <typename F, int Width>
[[gnu::always_inline]] inline V block_products(const CodesMatrix<Width>& matrix, const RowProduct& r,
                                               const std::uint8_t* w) {
  using C = Codes<F, Width>;
  const DotArgs& a = *matrix.a;
  const std::int64_t k = r.b * Width;
  const std::int64_t left = a.w.cols - k;
  const RowStep s{w, x_codes(a, r.m, k), left < C::kStep ? left : C::kStep, 0};
  const std::int64_t blocks = s.cols / Width;
  I sums = left >= C::kStep ? block_sums<F, Width, false, true>(s) : block_sums<F, Width, false, false>(s);
  sums = sub_ints(sums, multiply_ints(load_ints(x_counts(a, r.m) + r.b), set1_ints(matrix.zero_point)));
  const V factors = mul(matrix.scales.at(r.n, r.b, blocks), matrix.unit);
  V p = mul(to_floats(sums), mul(factors, load(x_factors(a, a.x->scales, r.m, r.b))));
  if (matrix.has_mins) p = fma(matrix.mins.at(r.n, r.b, blocks), load(x_factors(a, a.x->sums, r.m, r.b)), p);
  return first_lanes(p, blocks);
}

// What is fetched while row n of W is used, in bytes from it: rows of the strip, or of the one that comes next.
struct Ahead {
  const DotArgs* a;
  std::int64_t row_bytes, rows, follows;  // follows: from the strip's end to the next one

  Ahead(const DotArgs& args, std::int64_t of_a_row, std::int64_t bytes)
      : a(&args), row_bytes(of_a_row), rows((bytes + of_a_row - 1) / of_a_row), follows(0) {
    const auto* end = static_cast<const char*>(args.w.data) + args.n1 * row_bytes;
    if (args.next != nullptr) follows = static_cast<const char*>(args.next) - end;
  }
  std::int64_t of(std::int64_t n) const { return rows * row_bytes + (n + rows < a->n1 ? 0 : follows); }
};

// Two rows of x, up to kFewCodes.
template <typename F, int Width>
void codes_few(const DotArgs& a) {
  using C = Codes<F, Width>;
  alignas(64) float products[kFewCodes][kWholeSteps][4][kLanes];
  alignas(64) std::uint8_t row[kWholeSteps * C::kStep];
  const std::int64_t rows = a.m1 - a.m0;
  const std::int64_t row_bytes = C::bytes(a.w.cols);
  const CodesMatrix<Width> matrix(a);
  const Ahead ahead(a, row_bytes, C::kAheadBytes);
  const auto* codes = static_cast<const std::uint8_t*>(a.w.data);
  for (std::int64_t n = a.n0; n < a.n1; n += 4) {
    const std::int64_t count = a.n1 - n < 4 ? a.n1 - n : 4;
    for (std::int64_t k = 0; k < a.w.cols; k += kWholeSteps * C::kStep) {
      const std::int64_t cols = a.w.cols - k < kWholeSteps * C::kStep ? a.w.cols - k : kWholeSteps * C::kStep;
      for (std::int64_t j = 0; j < count; ++j) {
        const std::uint8_t* w = codes + (n + j) * row_bytes + C::bytes(k);
        unpack_row<F>(w, ahead.of(n + j), cols, row);
        for (std::int64_t i = 0; i < rows; ++i) {
          for (std::int64_t at = 0; at < cols; at += C::kStep) {
            const RowProduct r{n + j, a.m0 + i, (k + at) / Width};
            store(products[i][at / C::kStep][j], block_products<F, Width>(matrix, r, row + at));
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

#include "backends/cpu/quant_vnni_many.inl.hpp"
#include "backends/cpu/quant_vnni_one.inl.hpp"

template <typename F, int Width>
void dot_codes(const DotArgs& a) {
  if (a.m1 - a.m0 == 1) return codes_one<F, Width>(a);
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
