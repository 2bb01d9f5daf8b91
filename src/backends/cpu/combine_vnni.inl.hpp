// W_UKᵀ q in 16-bit integers: BF16 weights read along their rows. Included inside the kernel namespace, after
// words_vnni.inl.hpp, which says how products are made of codes. The contraction goes down W's rows, so their scales
// are factors of x before it becomes codes. 32 columns are two groups of lanes, the even ones and the odd ones: pairs
// of rows then need no shuffles.

inline bool combines_words(const CombineArgs& a) {
  return a.w.rows <= kNope && a.w.rows % kWordBlock == 0 && a.w.cols <= kLatent && a.w.cols % kStrip == 0;
}

inline void fill_columns(const CombineArgs& a, const float* inverses, std::int64_t column, Code* pairs) {
  for (std::int64_t k = 0; k < a.w.rows; k += 2) {
    const BF16* from = static_cast<const BF16*>(a.w.data) + k * a.w.cols + column;
    const V by0 = set1(inverses[k]), by1 = set1(inverses[k + 1]);
    Code* to = pairs + k * kStrip;
#pragma GCC unroll 16
    for (std::int64_t c = 0; c < kStrip; c += 2 * kLanes) {
      const I v0 = load_ints(from + c), v1 = load_ints(from + a.w.cols + c);
      store_ints(to + 2 * c, join_words(low_words(even_values(v0), by0), low_words(even_values(v1), by1)));
      store_ints(to + 2 * c + 2 * kLanes, join_words(low_words(odd_values(v0), by0), low_words(odd_values(v1), by1)));
    }
  }
}

inline void store_columns(const float* even, const float* odd, V scale, float* out) {
  const I low = _mm512_set_epi32(23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  const I high = _mm512_set_epi32(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8);
  const I e = as_ints(mul(load(even), scale)), o = as_ints(mul(load(odd), scale));
  store_ints(out, _mm512_permutex2var_epi32(e, low, o));
  store_ints(out + kLanes, _mm512_permutex2var_epi32(e, high, o));
}

// One row of `a`: W's rows as they lie, four at a time; the sums of a block stay in L1.
inline void combine_words_once(const CombineArgs& a, const Code* codes, const float* scales, const float* inverses) {
  alignas(64) std::int32_t acc[kLatent];
  alignas(64) float sums[kLatent] = {};
  const std::int64_t cols = a.w.cols;
  for (std::int64_t b = 0; b < a.w.rows; b += kWordBlock) {
    __builtin_memset(acc, 0, sizeof acc);
    for (std::int64_t k = b; k < b + kWordBlock; k += 4) {
      const BF16* row = static_cast<const BF16*>(a.w.data) + k * cols;
      const V by0 = set1(inverses[k]), by1 = set1(inverses[k + 1]);
      const V by2 = set1(inverses[k + 2]), by3 = set1(inverses[k + 3]);
      std::int32_t two[2];
      __builtin_memcpy(two, codes + k, sizeof two);
      const I x01 = set1_ints(two[0]), x23 = set1_ints(two[1]);
      for (std::int64_t c = 0; c < cols; c += 2 * kLanes) {
        const I v0 = load_ints(row + c), v1 = load_ints(row + cols + c);
        const I v2 = load_ints(row + 2 * cols + c), v3 = load_ints(row + 3 * cols + c);
        const I even01 = join_words(low_words(even_values(v0), by0), low_words(even_values(v1), by1));
        const I even23 = join_words(low_words(even_values(v2), by2), low_words(even_values(v3), by3));
        const I odd01 = join_words(low_words(odd_values(v0), by0), low_words(odd_values(v1), by1));
        const I odd23 = join_words(low_words(odd_values(v2), by2), low_words(odd_values(v3), by3));
        store_ints(acc + c, add_products(add_products(load_ints(acc + c), even01, x01), even23, x23));
        store_ints(acc + c + kLanes, add_products(add_products(load_ints(acc + c + kLanes), odd01, x01), odd23, x23));
      }
    }
    for (std::int64_t c = 0; c < cols; c += kLanes)
      store(sums + c, fma(to_floats(load_ints(acc + c)), set1(scales[b / kWordBlock]), load(sums + c)));
  }
  for (std::int64_t c = 0; c < cols; c += 2 * kLanes)
    store_columns(sums + c, sums + c + kLanes, set1(a.scale), a.out + c);
}

void combine_words(const CombineArgs& a) {
  alignas(64) Code pairs[kStrip * kNope];
  alignas(64) Code codes[kRowChunk][kNope];
  float scales[kRowChunk][kNope / kWordBlock];
  alignas(64) float w_scales[kNope], inverses[kNope];
  for (std::int64_t k = 0; k < a.w.rows; k += kLanes) {
    const BF16* rows[kLanes];
    for (std::int64_t j = 0; j < kLanes; ++j) rows[j] = static_cast<const BF16*>(a.w.data) + (k + j) * a.w.cols;
    scale_rows(rows, a.w.cols, w_scales + k, inverses + k);
  }
  for (std::int64_t m = 0; m < a.rows; ++m) {
    alignas(64) float x[kNope];
    for (std::int64_t k = 0; k < a.w.rows; ++k) x[k] = a.a[m * a.a_stride + k] * w_scales[k];
    for (std::int64_t k = 0; k < a.w.rows; k += kWordBlock)
      scales[m][k / kWordBlock] = encode_block(x + k, codes[m] + k);
  }
  if (a.rows == 1) return combine_words_once(a, codes[0], scales[0], inverses);
  const WordTile t{pairs, kMaxGroups, a.w.rows / kWordBlock};
  for (std::int64_t column = 0; column < a.w.cols; column += kStrip) {
    fill_columns(a, inverses, column, pairs);
    for_even_tiles(0, a.rows, [&]<int M>(std::int64_t m) {
      alignas(64) float sums[M][kMaxGroups][kLanes] = {};
      WordRows<M> x;
#pragma GCC unroll 16
      for (int i = 0; i < M; ++i) {
        x.codes[i] = codes[m + i];
        x.scales[i] = scales[m + i];
      }
      add_blocks(t, x, 0, sums);
#pragma GCC unroll 16
      for (int i = 0; i < M; ++i) {
        float* out = a.out + (m + i) * a.out_stride + column;
        store_columns(sums[i][0], sums[i][1], set1(a.scale), out);
        store_columns(sums[i][2], sums[i][3], set1(a.scale), out + 2 * kLanes);
      }
    });
  }
}
