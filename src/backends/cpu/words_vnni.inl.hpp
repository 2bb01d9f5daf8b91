// Products with BF16 weights in 16-bit integers (VNNI). Included inside the kernel namespace, after linear.inl.hpp.
//
// vpdpwssd adds two products of int16 to a lane, twice what an fp32 multiply-add does. So both sides become codes times
// a scale:
//   W   a scale a row, the largest |value| of the row is kRowMost: 14 bits, where bfloat16 has 8
//   x   a scale for every kWordBlock values along the contraction, as fine as the bound below allows
// A row's result, whatever the number of rows and the path taken:
//   out = scale of W · (s_0 p_0 + s_1 p_1 + …)    p_b: the exact sum of a block's products, added in ascending b
// W's codes are made where they are used, from rows as they lie in the file, and need no memory of their own.
//
// No sum overflows: the codes of a block of x have magnitudes of at most kLaneSum together before they are rounded,
// which adds 1/2 at most to each, and each meets a code of W of kRowMost at most. Rows and blocks that are not finite
// have any codes and a scale of NaN: their sums may overflow, and do not matter.
//
// What this loses is a hundredth of what bfloat16 activations lose (docs/experiments/2026-11-29-cpu-many-rows.md).

static_assert(kWordBlock <= kLaneCodes);

#include "backends/cpu/words_encode.inl.hpp"

inline V even_values(I pairs) { return _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)); }
inline V odd_values(I pairs) { return _mm512_castsi512_ps(_mm512_and_si512(pairs, set1_ints(-65536))); }
inline I join_words(I low, I high) {
  const I to_high = _mm512_set4_epi32(0x0d0c0d0c, 0x09080908, 0x05040504, 0x01000100);
  return _mm512_mask_shuffle_epi8(low, 0xccccccccccccccccULL, high, to_high);
}
// 32 values of W → 32 codes.
inline I words_of(I pairs, V by) {
  return join_words(low_words(even_values(pairs), by), low_words(odd_values(pairs), by));
}

// A block of x → codes; returns its scale.
inline float encode_block(const float* x, Code* to) {
  const auto [most, total] = magnitudes(x, kWordBlock);
  const bool finite = total < __builtin_inff();
  if (!finite || most < kTiniest) return store_no_codes(kWordBlock, finite, to);
  const float by_most = kCodeMost / most, by_sum = kLaneSum / total;
  const float by = by_most < by_sum ? by_most : by_sum;
  store_codes(x, kWordBlock, by, to);
  return 1.0F / by;
}

void encode_words(const Packed& to, const float* x, std::int64_t x_stride, std::int64_t m0, std::int64_t m1) {
  for (std::int64_t m = m0; m < m1; ++m) {
    auto* codes = static_cast<Code*>(to.data) + m * to.code_stride;
    if (to.quant != kWordBlock) {
      to.scales[m * to.scale_stride] = encode_whole(x + (m - m0) * x_stride, to.cols, codes);
      continue;
    }
    for (std::int64_t k = 0; k < to.cols; k += kWordBlock)
      to.scales[m * to.scale_stride + k / kWordBlock] = encode_block(x + (m - m0) * x_stride + k, codes + k);
  }
}

// fn of two vectors, over all lanes of each of 16: the result of vector i in lane i.
template <typename Fn>
[[gnu::always_inline]] inline I fold_lanes(I (&v)[kLanes], const Fn& fn) {
#pragma GCC unroll 16
  for (int i = 0; i < 8; ++i)
    v[i] = fn(_mm512_unpacklo_epi32(v[2 * i], v[2 * i + 1]), _mm512_unpackhi_epi32(v[2 * i], v[2 * i + 1]));
#pragma GCC unroll 16
  for (int i = 0; i < 4; ++i)
    v[i] = fn(_mm512_unpacklo_epi64(v[2 * i], v[2 * i + 1]), _mm512_unpackhi_epi64(v[2 * i], v[2 * i + 1]));
  const auto quads = [&](I a, I b) __attribute__((always_inline)) {
    return fn(_mm512_shuffle_i32x4(a, b, 0x88), _mm512_shuffle_i32x4(a, b, 0xdd));
  };
  return quads(quads(v[0], v[1]), quads(v[2], v[3]));
}

inline constexpr std::int64_t kWordsAhead = 2048;  // values that a row of W is fetched ahead

// Of 16 rows of W, a lane each: their scales, NaN where a value is not finite, and what values are multiplied by.
inline void scale_rows(const BF16* const (&rows)[kLanes], std::int64_t cols, float* scales, float* inverses) {
  const I bits = set1_ints(0x7fff7fff);
  I top[kLanes];
#pragma GCC unroll 16
  for (int j = 0; j < kLanes; ++j) {
    top[j] = zero_ints();
    for (std::int64_t k = 0; k < cols; k += 2 * kLanes) {
      __builtin_prefetch(rows[j] + k + kWordsAhead, 0, 2);  // the hardware's own prefetch stops at each page
      top[j] = _mm512_max_epu16(top[j], _mm512_and_si512(load_ints(rows[j] + k), bits));
    }
    top[j] = _mm512_max_epu16(top[j], _mm512_slli_epi32(top[j], 16));  // of both halves, in the high one
  }
  const I most_bits = fold_lanes(
      top, [](I a, I b) __attribute__((always_inline)) { return _mm512_max_epu16(a, b); });
  float most[kLanes];
  store(most, odd_values(most_bits));
  for (int j = 0; j < kLanes; ++j) {
    const bool finite = most[j] < __builtin_inff(), some = finite && most[j] >= kTiniest;
    const float up = kRowMost / most[j], down = most[j] / kRowMost;
    inverses[j] = some ? up : 0;
    scales[j] = some ? down : finite ? 0 : not_a_number();
  }
}

// W as pairs of codes along the contraction, which meet two codes of x, [pair][group][16 lanes].
struct WordTile {
  const Code* pairs = nullptr;
  std::int64_t groups = 0;
  std::int64_t blocks = 0;
};
inline constexpr std::int64_t kTileWords = 1024;  // columns of a tile of 64 rows of W: 16 KB, half of L1
inline constexpr std::int64_t kMaxGroups = kStrip / kLanes;
inline constexpr std::int64_t kPairs = kWordBlock / 2;

template <int M>
struct WordRows {
  const Code* codes[M];
  const float* scales[M];
};

// sums[i][n] += the blocks of M rows of x and the groups g … g + N - 1 of a tile.
template <int M, int N>
[[gnu::always_inline]] inline void add_blocks(const WordTile& t, const WordRows<M>& x, std::int64_t g,
                                              float (&sums)[M][N][kLanes]) {
  const std::int64_t stride = t.groups * 2 * kLanes;
  const Code* w = t.pairs + g * 2 * kLanes;
  for (std::int64_t b = 0; b < t.blocks; ++b) {
    I acc[M][N];
#pragma GCC unroll 16
    for (int i = 0; i < M; ++i) {
#pragma GCC unroll 16
      for (int n = 0; n < N; ++n) acc[i][n] = zero_ints();
    }
#pragma GCC unroll 4
    for (std::int64_t k = b * kWordBlock; k < (b + 1) * kWordBlock; k += 2, w += stride) {
      I wv[N];
#pragma GCC unroll 16
      for (int n = 0; n < N; ++n) wv[n] = load_ints(w + n * 2 * kLanes);
#pragma GCC unroll 16
      for (int i = 0; i < M; ++i) {
        std::int32_t two;
        __builtin_memcpy(&two, x.codes[i] + k, sizeof two);
        const I xv = set1_ints(two);
#pragma GCC unroll 16
        for (int n = 0; n < N; ++n) acc[i][n] = add_products(acc[i][n], wv[n], xv);
      }
    }
#pragma GCC unroll 16
    for (int i = 0; i < M; ++i) {
      const V scale = set1(x.scales[i][b]);
#pragma GCC unroll 16
      for (int n = 0; n < N; ++n) store(sums[i][n], fma(to_floats(acc[i][n]), scale, load(sums[i][n])));
    }
  }
}

// Rows [m0, m1) in tiles of at most six that differ by one at most: fn<M>(m).
template <typename Fn>
inline void for_even_tiles(std::int64_t m0, std::int64_t m1, const Fn& fn) {
  const std::int64_t tiles = (m1 - m0 + 5) / 6;
  for (std::int64_t i = 0; i < tiles; ++i) {
    const std::int64_t m = m0 + (m1 - m0) * i / tiles;
    switch (m0 + (m1 - m0) * (i + 1) / tiles - m) {
      case 6:
        fn.template operator()<6>(m);
        break;
      case 5:
        fn.template operator()<5>(m);
        break;
      case 4:
        fn.template operator()<4>(m);
        break;
      case 3:
        fn.template operator()<3>(m);
        break;
      case 2:
        fn.template operator()<2>(m);
        break;
      default:
        fn.template operator()<1>(m);
    }
  }
}

// fn<N>(g) for all groups of a tile: at once, in twos, or alone.
template <typename Fn>
inline void for_groups(std::int64_t groups, const Fn& fn) {
  if (groups == 4) return fn.template operator()<4>(0);
  std::int64_t g = 0;
  for (; g + 2 <= groups; g += 2) fn.template operator()<2>(g);
  if (g < groups) fn.template operator()<1>(g);
}

// Rows of W that lie across the lanes of a tile.
struct WordStrip {
  const DotArgs& a;
  std::int64_t n = 0, count = 0;  // rows of W
  alignas(64) float scales[kStrip] = {};
  alignas(64) float inverses[kStrip] = {};

  // The places of 16 rows in column k; the last one stands for those beyond it.
  void find_rows(std::int64_t g, std::int64_t k, const BF16* (&rows)[kLanes]) const {
    for (std::int64_t j = 0; j < kLanes; ++j) {
      const std::int64_t i = g * kLanes + j;
      rows[j] = static_cast<const BF16*>(a.w.data) + (n + (i < count ? i : count - 1)) * a.w.cols + k;
    }
  }
  std::int64_t open(std::int64_t first) {
    n = first;
    count = a.n1 - n < kStrip ? a.n1 - n : kStrip;
    const std::int64_t groups = (count + kLanes - 1) / kLanes;
    for (std::int64_t g = 0; g < groups; ++g) {
      const BF16* rows[kLanes];
      find_rows(g, 0, rows);
      scale_rows(rows, a.w.cols, scales + g * kLanes, inverses + g * kLanes);
    }
    return groups;
  }
  // Columns [k, k + depth) of 16 rows, as pairs.
  void fill(std::int64_t g, std::int64_t groups, std::int64_t k, std::int64_t depth, Code* pairs) const {
    const BF16* rows[kLanes];
    find_rows(g, k, rows);
    const V by = load(inverses + g * kLanes);
    for (std::int64_t c = 0; c < depth; c += 2 * kLanes) {
      I v[kLanes];
#pragma GCC unroll 16
      for (int j = 0; j < kLanes; ++j) v[j] = load_ints(rows[j] + c);
      transpose_lanes(v);
      Code* to = pairs + (c / 2 * groups + g) * 2 * kLanes;
#pragma GCC unroll 16
      for (int j = 0; j < kLanes; ++j) store_ints(to + j * groups * 2 * kLanes, words_of(v[j], by));
    }
  }
  // The tile of columns from k on against M rows of x.
  template <int M, int N>
  void multiply(const WordTile& t, std::int64_t m, std::int64_t g, std::int64_t k) const {
    alignas(64) float sums[M][N][kLanes];
    WordRows<M> x;
    float* out = a.out + (m - a.m0) * a.out_stride + (n - a.n0) + g * kLanes;
    const std::int64_t valid = count - g * kLanes;  // columns of out
    const bool last = k + t.blocks * kWordBlock == a.w.cols;
#pragma GCC unroll 16
    for (int i = 0; i < M; ++i) {
      const std::int64_t row = a.index != nullptr ? a.index[m + i] : m + i;
      x.codes[i] = static_cast<const Code*>(a.x->data) + row * a.x->code_stride + k;
      x.scales[i] = a.x->scales + row * a.x->scale_stride + k / kWordBlock;
#pragma GCC unroll 16
      for (int c = 0; c < N; ++c) store(sums[i][c], zero());
      if (k > 0) __builtin_memcpy(sums[i], out + i * a.out_stride, (valid < N * kLanes ? valid : N * kLanes) * 4);
    }
    add_blocks(t, x, g, sums);
    for (int i = 0; i < M; ++i, out += a.out_stride) {
      if (valid >= N * kLanes) {
#pragma GCC unroll 16
        for (int c = 0; c < N; ++c)
          store(out + c * kLanes, last ? mul(load(sums[i][c]), load(scales + (g + c) * kLanes)) : load(sums[i][c]));
      } else {
        for (std::int64_t c = 0; c < valid; ++c) out[c] = sums[i][0][c] * (last ? scales[g * kLanes + c] : 1);
      }
    }
  }
};

// One row of x: a block of 16 rows of W at a time, whose sums become one vector.
void dot_words_once(const DotArgs& a) {
  const std::int64_t m = a.index != nullptr ? a.index[a.m0] : a.m0;
  const Code* x = static_cast<const Code*>(a.x->data) + m * a.x->code_stride;
  const float* x_scales = a.x->scales + m * a.x->scale_stride;
  alignas(64) float scales[kLanes], inverses[kLanes];
  for (std::int64_t n = a.n0; n < a.n1; n += kLanes) {
    const std::int64_t count = a.n1 - n < kLanes ? a.n1 - n : kLanes;
    const BF16* rows[kLanes];
    for (std::int64_t j = 0; j < kLanes; ++j)
      rows[j] = static_cast<const BF16*>(a.w.data) + (n + (j < count ? j : count - 1)) * a.w.cols;
    const char* next = n + kLanes < a.n1 ? reinterpret_cast<const char*>(rows[0] + kLanes * a.w.cols)
                                         : static_cast<const char*>(a.next.data);
    scale_rows(rows, a.w.cols, scales, inverses);
    V total = zero();
    for (std::int64_t k = 0; k < a.w.cols; k += kWordBlock) {
      const I x0 = load_ints(x + k), x1 = load_ints(x + k + 2 * kLanes);
      I v[kLanes];
#pragma GCC unroll 16
      for (int j = 0; j < kLanes; ++j) {
        const V by = set1(inverses[j]);
        v[j] = add_products(zero_ints(), words_of(load_ints(rows[j] + k), by), x0);
        v[j] = add_products(v[j], words_of(load_ints(rows[j] + k + 2 * kLanes), by), x1);
        if (next != nullptr) {
          __builtin_prefetch(next, 0, 2);
          __builtin_prefetch(next + 64, 0, 2);
          next += 128;
        }
      }
      const I sums = fold_lanes(
          v, [](I c, I d) __attribute__((always_inline)) { return _mm512_add_epi32(c, d); });
      total = fma(to_floats(sums), set1(x_scales[k / kWordBlock]), total);
    }
    store_some(a.out + (n - a.n0), mul(total, load(scales)), count);
  }
}

void dot_words(const DotArgs& a) {
  if (a.m1 - a.m0 == 1) return dot_words_once(a);
  alignas(64) Code pairs[kStrip * kTileWords];
  WordStrip strip{.a = a};
  for (std::int64_t n = a.n0; n < a.n1; n += kStrip) {
    const std::int64_t groups = strip.open(n);
    for (std::int64_t k = 0; k < a.w.cols; k += kTileWords) {
      const std::int64_t depth = a.w.cols - k < kTileWords ? a.w.cols - k : kTileWords;
      for (std::int64_t g = 0; g < groups; ++g) strip.fill(g, groups, k, depth, pairs);
      const WordTile t{pairs, groups, depth / kWordBlock};
      for_even_tiles(a.m0, a.m1, [&]<int M>(std::int64_t m) {
        for_groups(groups, [&]<int N>(std::int64_t g) { strip.multiply<M, N>(t, m, g, k); });
      });
    }
  }
}
