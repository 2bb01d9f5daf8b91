// W read along its rows: W_UKᵀ q of absorbed attention. Included inside the kernel namespace, after linear.inl.hpp.

// Row m of `a`, times the scales of W's rows where it has them, in `memory`.
template <typename W>
inline const float* combine_x(const CombineArgs& a, const float* scales, std::int64_t m, float* memory) {
  const float* x = a.a + m * a.a_stride;
  if constexpr (!__is_same(W, Code8)) return x;
  for (std::int64_t k = 0; k < a.w.rows; ++k) memory[k] = x[k] * scales[k];
  return memory;
}

// W read along its rows. For one row of `a` the output (2 KB) stays in L1 and W streams past, four rows at a time; for
// more, a slab of kTileN vectors of columns is converted and all rows of `a` pass. Both add in ascending k.
template <typename W>
inline void combine_few(const CombineArgs& a, const float* scales, std::int64_t m) {
  const std::int64_t cols = a.w.cols;
  const W* w = static_cast<const W*>(a.w.data);
  alignas(64) float scaled[kNope];
  const float* x = combine_x<W>(a, scales, m, scaled);
  float* out = a.out + m * a.out_stride;
  for (std::int64_t c = 0; c < cols; c += kLanes) store(out + c, zero());
  std::int64_t k = 0;
  for (; k + 4 <= a.w.rows; k += 4) {
    const V x0 = set1(x[k]), x1 = set1(x[k + 1]), x2 = set1(x[k + 2]), x3 = set1(x[k + 3]);
    const W* row = w + k * cols;
    for (std::int64_t c = 0; c < cols; c += kLanes) {
      __builtin_prefetch(row + 4 * cols + 4 * c, 0, 2);  // of the next four rows, which follow these in memory
      V v = load(out + c);
      v = fma(x0, load(row + c), v);
      v = fma(x1, load(row + cols + c), v);
      v = fma(x2, load(row + 2 * cols + c), v);
      store(out + c, fma(x3, load(row + 3 * cols + c), v));
    }
  }
  for (; k < a.w.rows; ++k) {
    for (std::int64_t c = 0; c < cols; c += kLanes)
      store(out + c, fma(set1(x[k]), load(w + k * cols + c), load(out + c)));
  }
  for (std::int64_t c = 0; c < cols; c += kLanes) store(out + c, mul(load(out + c), set1(a.scale)));
}

template <typename W>
struct CombineSlab {
  const CombineArgs* a;
  const float* scales;  // of W's rows
  const float* values;  // [w.rows, kTileN · kLanes]
  std::int64_t column;
};

// M rows of `a` against a slab. Scaling them again for each slab is one product for every kTileN multiply-adds.
template <int M, typename W>
inline void combine_rows(const CombineSlab<W>& s, std::int64_t m) {
  constexpr std::int64_t kWidth = kTileN * kLanes;
  const CombineArgs& a = *s.a;
  alignas(64) float scaled[M][kNope];
  const float* x[M];
#pragma GCC unroll 16
  for (int i = 0; i < M; ++i) x[i] = combine_x<W>(a, s.scales, m + i, scaled[i]);
  V acc[M][kTileN];
  clear(acc);
  outer_tile(x, s.values, kWidth, a.w.rows, acc);
#pragma GCC unroll 16
  for (int i = 0; i < M; ++i) {
#pragma GCC unroll 16
    for (int c = 0; c < kTileN; ++c)
      store(a.out + (m + i) * a.out_stride + s.column + c * kLanes, mul(acc[i][c], set1(a.scale)));
  }
}

template <typename W>
inline void combine_any(const CombineArgs& a) {
  constexpr std::int64_t kWidth = kTileN * kLanes;
  alignas(64) float scales[kNope] = {};
  if constexpr (__is_same(W, Code8)) {
    for (std::int64_t k = 0; k < a.w.rows; ++k) scales[k] = factor_at(a.w.scales, a.w.scale_dtype, k);
  }
  if (a.rows < kGemmRows / 3 || a.w.rows > kNope || a.w.cols % kWidth != 0) {
    for (std::int64_t m = 0; m < a.rows; ++m) combine_few<W>(a, scales, m);
    return;
  }
  alignas(64) float slab[kNope * kWidth];
  for (std::int64_t column = 0; column < a.w.cols; column += kWidth) {
    for (std::int64_t k = 0; k < a.w.rows; ++k) {
      const W* from = static_cast<const W*>(a.w.data) + k * a.w.cols + column;
#pragma GCC unroll 16
      for (int c = 0; c < kTileN; ++c) store(slab + k * kWidth + c * kLanes, load(from + c * kLanes));
    }
    const CombineSlab<W> s{&a, scales, slab, column};
    std::int64_t m = 0;
    for (; whole_tile(a.rows - m); m += kTileM) combine_rows<kTileM>(s, m);
    for (; m + 2 <= a.rows; m += 2) combine_rows<2>(s, m);
    if (m < a.rows) combine_rows<1>(s, m);
  }
}

void combine(const CombineArgs& a) {
  switch (a.w.format) {
    case WeightFormat::kF32:
      return combine_any<float>(a);
    case WeightFormat::kF16:
      return combine_any<F16>(a);
    case WeightFormat::kBF16:
#ifdef GLINT_VNNI
      if (combines_words(a)) return combine_words(a);
#endif
      return combine_any<BF16>(a);
    case WeightFormat::kI8:
#ifdef GLINT_VNNI
      if (combines_codes(a)) return combine_whole(a);
#endif
      return combine_any<Code8>(a);
    default:  // the ops refuse other formats
      return;
  }
}
