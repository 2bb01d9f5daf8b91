// kv_b in INT8, a scale a row, against 16-bit codes of what it meets (VNNI). Included inside the kernel namespace,
// after words_vnni.inl.hpp and combine_vnni.inl.hpp.
//
//   values   out[n]  = float(Σ_k w[n][k] x[k]) · (scale of x · scale of row n)      W_UV · latent
//   queries  out[c]  = float(Σ_k w[k][c] x[k]) · (scale of x · scale)               W_UKᵀ q, x[k] = q[k] · scale of row
//   k
//
// W's codes are used as they are; all of x, of kLatent or kNope values, has one scale (encode_whole). The whole
// contraction is then exact in 32 bits, so that any order and any tile give the same bits. What rounding x costs is
// 1e-9 of its square for normal values and 3e-7 where one is 60 times the others, beside 6e-5 that W's own rounding
// costs.

static_assert(kLatent * static_cast<std::int64_t>(kCodeMost) * 128 < (std::int64_t{1} << 31));

#include "backends/cpu/absorbed.inl.hpp"

inline constexpr std::int64_t kFewWhole = 3;  // rows of x up to which W is read for each, as it lies

// c + the products of pairs with the two codes at x, which the instruction itself broadcasts.
inline I add_products_of_two(I c, I pairs, const Code* x) {
#ifdef __AVX512VNNI__
  using Two = const Code[2];
  __asm__("vpdpwssd %2%{1to16%}, %1, %0" : "+v"(c) : "v"(pairs), "m"(*reinterpret_cast<Two*>(x)));
  return c;
#else
  std::int32_t two;
  __builtin_memcpy(&two, x, sizeof two);
  return _mm512_dpwssd_epi32(c, pairs, set1_ints(two));
#endif
}

inline I widen_codes(const std::int8_t* w) {  // 32 of them
  return _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(w)));
}

// sums[i][n]: M rows of x from `x` on against N vectors of pairs, [Depth / 2][N][16 lanes].
template <int M, int N, std::int64_t Depth>
[[gnu::always_inline]] inline void whole_products(const Code* x, const Code* pairs, I (&sums)[M][N]) {
#pragma GCC unroll 16
  for (int i = 0; i < M; ++i) {
#pragma GCC unroll 16
    for (int n = 0; n < N; ++n) sums[i][n] = zero_ints();
  }
  for (std::int64_t k = 0; k < Depth; k += 2, x += 2, pairs += N * 2 * kLanes) {
#pragma GCC unroll 16
    for (int n = 0; n < N; ++n) {
      const I w = once(load_ints(pairs + n * 2 * kLanes));
#pragma GCC unroll 16
      for (int i = 0; i < M; ++i) sums[i][n] = add_products_of_two(sums[i][n], w, x + i * kCodeStride<Depth>);
    }
  }
}

// --- values: rows of W across the lanes ---

inline constexpr std::int64_t kValueGroups = kStrip / kLanes;

// 16 rows of W from row n on → their group of pairs[kLatent / 2][kValueGroups][16]. 64 bytes of a row are 16 words of
// four codes, which become two pairs once the words are turned.
inline void fill_value_pairs(const Weight& w, std::int64_t n, Code* pairs) {
  const std::uint8_t* rows[16];
  for (std::int64_t i = 0; i < 16; ++i) rows[i] = reinterpret_cast<const std::uint8_t*>(codes_of_row(w, n + i));
  const I first = _mm512_set4_epi32(0x0d800c80, 0x09800880, 0x05800480, 0x01800080);  // bytes 0 and 1, each above a 0
  const I second = _mm512_set4_epi32(0x0f800e80, 0x0b800a80, 0x07800680, 0x03800280);
  constexpr std::int64_t kStride = kValueGroups * 2 * kLanes;  // codes from pair to pair
  for (std::int64_t k = 0; k < kLatent; k += 64, pairs += 32 * kStride) {
    I v[16];
    load_transposed(rows, k, v);
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) {
      store_ints(pairs + 2 * i * kStride, _mm512_srai_epi16(_mm512_shuffle_epi8(v[i], first), 8));
      store_ints(pairs + (2 * i + 1) * kStride, _mm512_srai_epi16(_mm512_shuffle_epi8(v[i], second), 8));
    }
  }
}

// One row of x against 16 rows of W, where they lie.
inline V value_sums(const Weight& w, std::int64_t n, const Code* x) {
  constexpr std::int64_t kAhead = 8;  // rows
  I v[kLanes];
  I codes[kLatent / (2 * kLanes)];
#pragma GCC unroll 16
  for (std::int64_t i = 0; i < kLatent / (2 * kLanes); ++i) codes[i] = load_ints(x + i * 2 * kLanes);
#pragma GCC unroll 1
  for (std::int64_t j = 0; j < kLanes; ++j) {
    const std::int8_t* row = codes_of_row(w, n + j);
    I even = zero_ints(), odd = zero_ints();
#pragma GCC unroll 16
    for (std::int64_t i = 0; i < kLatent / (2 * kLanes); i += 2) {
      __builtin_prefetch(row + kAhead * kLatent + i * 2 * kLanes, 0, 2);
      even = add_products(even, widen_codes(row + i * 2 * kLanes), codes[i]);
      odd = add_products(odd, widen_codes(row + (i + 1) * 2 * kLanes), codes[i + 1]);
    }
    v[j] = _mm512_add_epi32(even, odd);
  }
  return to_floats(fold_lanes(
      v, [](I a, I b) __attribute__((always_inline)) { return _mm512_add_epi32(a, b); }));
}

struct ValueTile {
  const Code* pairs;
  const float* scales;
  float* out;
  std::int64_t out_stride, count;  // count: rows of W
};

// The rows m … m + M - 1 of x. On its own and without branches after the loop: else GCC 12 keeps no more than half of
// the sums in registers.
template <int M>
[[gnu::noinline]] void value_tile(const ValueTile& t, const Packed& x, std::int64_t m, std::int64_t to) {
  I sums[M][kValueGroups];
  whole_products<M, kValueGroups, kLatent>(static_cast<const Code*>(x.data) + m * kCodeStride<kLatent>, t.pairs, sums);
#pragma GCC unroll 16
  for (int i = 0; i < M; ++i) {
    const V scale = set1(x.scales[(m + i) * x.scale_stride]);
    float* out = t.out + to + i * t.out_stride;
#pragma GCC unroll 16
    for (int g = 0; g < kValueGroups; ++g) {
      const auto all = static_cast<__mmask16>(g * kLanes < t.count ? 0xffff : 0);
      _mm512_mask_storeu_ps(out + g * kLanes, all, mul(to_floats(sums[i][g]), mul(scale, load(t.scales + g * kLanes))));
    }
  }
}

// Rows [n0, n1) of W, a multiple of 16.
void dot_whole(const DotArgs& a) {
  const auto* x = static_cast<const Code*>(a.x->data);
  const auto x_scale = [&](std::int64_t m) { return set1(a.x->scales[m * a.x->scale_stride]); };
  alignas(64) float scales[kStrip] = {};
  alignas(64) Code pairs[kLatent * kStrip];
  for (std::int64_t n = a.n0; n < a.n1; n += kStrip) {
    const std::int64_t count = a.n1 - n < kStrip ? a.n1 - n : kStrip;
    for (std::int64_t j = 0; j < count; ++j) scales[j] = factor_at(a.w.scales, a.w.scale_dtype, n + j);
    float* out = a.out + (n - a.n0);
    if (a.m1 - a.m0 <= kFewWhole) {
      for (std::int64_t j = 0; j < count; j += kLanes) {
        for (std::int64_t m = a.m0; m < a.m1; ++m)
          store(out + (m - a.m0) * a.out_stride + j,
                mul(value_sums(a.w, n + j, x + m * kCodeStride<kLatent>), mul(x_scale(m), load(scales + j))));
      }
      continue;
    }
    for (std::int64_t j = 0; j < count; j += kLanes) fill_value_pairs(a.w, n + j, pairs + j / kLanes * 2 * kLanes);
    const ValueTile t{pairs, scales, out, a.out_stride, count};
    for_even_tiles(a.m0, a.m1, [&]<int M>(std::int64_t m) { value_tile<M>(t, *a.x, m, (m - a.m0) * a.out_stride); });
  }
}

// --- queries: columns of W across the lanes ---

inline bool combines_codes(const CombineArgs& a) { return a.w.rows == kNope && a.w.cols == kLatent; }

// 32 columns of two rows → pairs; `even` has columns 0-3, 8-11, 16-19 and 24-27, `odd` those between.
inline void pair_rows(const std::int8_t* upper, const std::int8_t* lower, I& even, I& odd) {
  const I a = widen_codes(upper), b = widen_codes(lower);
  even = _mm512_unpacklo_epi16(a, b);
  odd = _mm512_unpackhi_epi16(a, b);
}

// 32 columns in their order.
inline void store_paired(I even, I odd, V by, float* out) {
  const I e = as_ints(mul(to_floats(even), by)), o = as_ints(mul(to_floats(odd), by));
  const I a = _mm512_shuffle_i32x4(e, o, 0x44), b = _mm512_shuffle_i32x4(e, o, 0xee);  // e0 e1 o0 o1, e2 e3 o2 o3
  store_ints(out, _mm512_shuffle_i32x4(a, a, 0xd8));
  store_ints(out + kLanes, _mm512_shuffle_i32x4(b, b, 0xd8));
}

// Row m: W as it lies, eight rows at a time; the sums stay in L1.
inline void combine_whole_once(const CombineArgs& a, std::int64_t m, const Code* x, V by) {
  constexpr std::int64_t kRows = 8;
  alignas(64) std::int32_t sums[kLatent] = {};
  for (std::int64_t k = 0; k < kNope; k += kRows) {
    const std::int8_t* rows = codes_of_row(a.w, k);
    I two[kRows / 2];
#pragma GCC unroll 16
    for (int i = 0; i < kRows / 2; ++i) {
      std::int32_t codes;
      __builtin_memcpy(&codes, x + k + 2 * i, sizeof codes);
      two[i] = set1_ints(codes);
    }
    for (std::int64_t c = 0; c < kLatent; c += 2 * kLanes) {
      I even = load_ints(sums + c), odd = load_ints(sums + c + kLanes);
#pragma GCC unroll 16
      for (int i = 0; i < kRows / 2; ++i) {
        const std::int8_t* row = rows + 2 * i * kLatent + c;
        __builtin_prefetch(rows + kRows * kLatent + c * kRows + i * 64, 0, 2);  // of the rows that follow
        I e, o;
        pair_rows(row, row + kLatent, e, o);
        even = add_products(even, e, two[i]);
        odd = add_products(odd, o, two[i]);
      }
      store_ints(sums + c, even);
      store_ints(sums + c + kLanes, odd);
    }
  }
  for (std::int64_t c = 0; c < kLatent; c += 2 * kLanes)
    store_paired(load_ints(sums + c), load_ints(sums + c + kLanes), by, a.out + m * a.out_stride + c);
}

struct QueryTile {
  const CombineArgs& a;
  const Code* codes;  // of x
  const float* by;
  const Code* pairs;
  std::int64_t column;
};

template <int M>
[[gnu::noinline]] void query_tile(const QueryTile& t, std::int64_t m) {
  I sums[M][4];
  whole_products<M, 4, kNope>(t.codes + m * kCodeStride<kNope>, t.pairs, sums);
#pragma GCC unroll 16
  for (int i = 0; i < M; ++i) {
    float* out = t.a.out + (m + i) * t.a.out_stride + t.column;
    store_paired(sums[i][0], sums[i][1], set1(t.by[m + i]), out);
    store_paired(sums[i][2], sums[i][3], set1(t.by[m + i]), out + 2 * kLanes);
  }
}

void combine_whole(const CombineArgs& a) {
  alignas(64) Code codes[kRowChunk * kCodeStride<kNope>];
  alignas(64) float by[kRowChunk], w_scales[kNope];
  for (std::int64_t k = 0; k < kNope; ++k) w_scales[k] = factor_at(a.w.scales, a.w.scale_dtype, k);
  for (std::int64_t m = 0; m < a.rows; ++m) {
    alignas(64) float x[kNope];
    for (std::int64_t k = 0; k < kNope; k += kLanes)
      store(x + k, mul(load(a.a + m * a.a_stride + k), load(w_scales + k)));
    by[m] = encode_whole(x, kNope, codes + m * kCodeStride<kNope>) * a.scale;
  }
  if (a.rows <= kFewWhole) {
    for (std::int64_t m = 0; m < a.rows; ++m) combine_whole_once(a, m, codes + m * kCodeStride<kNope>, set1(by[m]));
    return;
  }
  alignas(64) Code pairs[kNope / 2][4][2 * kLanes];
  for (std::int64_t column = 0; column < kLatent; column += 4 * kLanes) {
    for (std::int64_t k = 0; k < kNope; k += 2) {
      const std::int8_t* row = codes_of_row(a.w, k) + column;
      for (int n = 0; n < 4; n += 2) {
        I even, odd;
        pair_rows(row + n * kLanes, row + kLatent + n * kLanes, even, odd);
        store_ints(pairs[k / 2][n], even);
        store_ints(pairs[k / 2][n + 1], odd);
      }
    }
    const QueryTile t{a, codes, by, pairs[0][0], column};
    for_even_tiles(0, a.rows, [&]<int M>(std::int64_t m) { query_tile<M>(t, m); });
  }
}
