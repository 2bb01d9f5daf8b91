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

#include "backends/cpu/quant_matrix.inl.hpp"

// One step of one row of W and one row of x.
struct RowStep {
  const std::uint8_t* w;  // as stored, or unpacked: even and odd columns as in x, a byte each
  const std::int8_t* x;
  std::int64_t cols;   // left, at most a step
  std::int64_t ahead;  // bytes from w to what is fetched meanwhile, a line of some
  std::int64_t near;   // the same, every line and into L1; 0: none, since w's own line is read next
};

// Lane l of what block_sums adds up belongs to the block whose place here is l.
alignas(64) inline constexpr std::int32_t kBlocksOf2[kLanes] = {0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15};
alignas(64) inline constexpr std::int32_t kBlocksOf4[kLanes] = {0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15};
alignas(64) inline constexpr std::int32_t kBlocksOf8[kLanes] = {0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15};

inline constexpr int kAnyVectors = 0;
// Sums of the columns of vector i, spread over its lanes. Stored: W is fetched ahead. Vectors: of a step, or
// kAnyVectors, as many as s.cols fill.
template <typename F, int Width, bool Stored, int Vectors>
[[gnu::always_inline]] inline I code_sums(const RowStep& s, int i) {
  using C = Codes<F, Width>;
  const std::int64_t at = i * C::kCols;
  if (Vectors == kAnyVectors ? at >= s.cols : i >= Vectors) return zero_ints();
  const std::int8_t* x = s.x + at;
  if constexpr (Stored) {
    const std::uint8_t* w = s.w + C::bytes(at);
    if (i % C::kFetchedVectors == 0) __builtin_prefetch(w + s.ahead, 0, 2);
    __builtin_prefetch(w + s.near, 0, 3);
    if constexpr (F::kNibbles) {
      const bool half = Vectors == kAnyVectors && s.cols - at < C::kCols;
      const I v = once(half ? load_half(w) : load_ints(w));
      return dot_bytes(dot_bytes(zero_ints(), F::even(v), x), F::odd(v), x + 64);
    } else {
      const I sums = dot_bytes(zero_ints(), F::even(load_ints(w)), x);
      if constexpr (C::kCols == 64) return sums;
      if (C::kFetchedVectors == 1) __builtin_prefetch(w + 64 + s.ahead, 0, 2);
      __builtin_prefetch(w + 64 + s.near, 0, 3);
      return dot_bytes(sums, F::even(load_ints(w + 64)), x + 64);
    }
  } else {
    const I sums = dot_bytes(zero_ints(), load_ints(s.w + at), x);
    if constexpr (C::kCols == 64) return sums;
    return dot_bytes(sums, load_ints(s.w + at + 64), x + 64);
  }
}

// The sums of 16 blocks, block b in lane b.
template <typename F, int Width, bool Stored, int Vectors>
[[gnu::always_inline]] inline I block_sums(const RowStep& s) {
  const auto sums = [&](int i) __attribute__((always_inline)) { return code_sums<F, Width, Stored, Vectors>(s, i); };
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
  const RowStep s{w, x_codes(a, r.m, k), left < C::kStep ? left : C::kStep, 0, 0};
  const std::int64_t blocks = s.cols / Width;
  I sums = left >= C::kStep ? block_sums<F, Width, false, C::kVectors>(s) : block_sums<F, Width, false, kAnyVectors>(s);
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
    if (args.next.data != nullptr) follows = static_cast<const char*>(args.next.data) - end;
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
