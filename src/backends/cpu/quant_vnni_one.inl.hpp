// One row of x against codes. Included by quant_vnni.inl.hpp, whose order of sums this follows. What decides here is
// how few instructions stand between two loads of W: what does not change from row to row is worked out before, and T,
// the type of scales whose groups are blocks, is settled outside (void: any other scales).

// Scales or mins of 16 blocks from block b of row n on; there may be fewer at the table's end. What is rare is kept out
// of the loops: inlined there, it is most of their code.
template <int Width>
[[gnu::noinline]] V any_factors(const Factors<Width>& factors, std::int64_t n, std::int64_t b, std::int64_t blocks) {
  return factors.at(n, b, blocks);
}
template <typename T>
[[gnu::noinline, gnu::cold]] V last_factors(const T* from, std::int64_t blocks) {
  return load_some(from, blocks);
}
// Factors of a row of W, row by row. T is their type where groups are blocks, so that 16 of them lie side by side;
// OneScale where a row has one; else void.
struct OneScale {};
template <typename T, int Width>
struct RowFactors {
  const Factors<Width>* factors;
  const T* row = nullptr;
  const T* last = nullptr;  // from here on fewer than 16 are left
  std::int64_t first;       // block

  [[gnu::always_inline]] RowFactors(const Factors<Width>& of, std::int64_t first_block)
      : factors(&of), first(first_block) {
    if constexpr (!__is_same(T, void)) {
      if (of.table != nullptr) last = static_cast<const T*>(of.table) + (of.all - kLanes);
    }
  }
  [[gnu::always_inline]] void start(std::int64_t n) {
    if constexpr (!__is_same(T, void)) row = static_cast<const T*>(factors->table) + n * factors->groups + first;
  }
  [[gnu::always_inline]] V at(std::int64_t n, std::int64_t b, std::int64_t blocks) const {
    if constexpr (__is_same(T, void)) {
      return any_factors(*factors, n, first + b, blocks);
    } else {
      return row + b <= last ? load(row + b) : last_factors(row + b, blocks);
    }
  }
};
template <int Width>
struct RowFactors<OneScale, Width> {
  const Factors<Width>* factors;
  V row;

  [[gnu::always_inline]] RowFactors(const Factors<Width>& of, std::int64_t) : factors(&of), row(zero()) {}
  [[gnu::always_inline]] void start(std::int64_t n) { row = set1(factor_at(factors->table, factors->type, n)); }
  [[gnu::always_inline]] V at(std::int64_t, std::int64_t, std::int64_t) const { return row; }
};

// What the strip that comes next begins with: all its lines, since no row before has led the hardware's prefetch there.
template <int Width>
[[gnu::noinline]] void fetch_next_row(const CodesMatrix<Width>& matrix, std::int64_t row_bytes, std::int64_t row) {
  const SoonRows& next = matrix.a->next;
  if (next.data == nullptr) return;
  const char* codes = static_cast<const char*>(next.data) + row * row_bytes;
  for (std::int64_t at = 0; at < row_bytes; at += 64) __builtin_prefetch(codes + at, 0, 2);
  if (next.scales != nullptr) matrix.scales.fetch(next.scales, row);
}

// While row n of W is used: the scales of a row to come, or a row of the next strip.
template <int Width>
[[gnu::always_inline]] inline void fetch_row(const CodesMatrix<Width>& matrix, const Ahead& ahead, std::int64_t n) {
  const std::int64_t row = n + ahead.rows, end = matrix.a->n1;
  if (row < end) {
    matrix.scales.fetch(row);
  } else {
    fetch_next_row(matrix, ahead.row_bytes, row - end);
  }
}

// Up to kWholeSteps steps of rows [n0, n1) of W from column k on: whole steps, then one of Last vectors (kAnyVectors:
// as many as are left). What a row needs is settled outside, and few enough names live inside that addresses stay in
// registers: loads of codes, of x and of factors are then all that stands between products.
template <typename F, int Width, typename T, int Last>
[[gnu::noinline]] void rows_of_codes(const CodesMatrix<Width>& matrix, std::int64_t k, std::int64_t n0,
                                     std::int64_t n1) {
  using C = Codes<F, Width>;
  const DotArgs& a = *matrix.a;
  alignas(64) float products[kWholeSteps][4][kLanes];
  alignas(64) std::int32_t over[kWholeSteps][kStepBlocks];  // what zero points add to the sums
  const std::int64_t left = a.w.cols - k;
  const std::int64_t whole = left / C::kStep < kWholeSteps ? left / C::kStep : kWholeSteps;
  const std::int64_t rest = whole < kWholeSteps ? left - whole * C::kStep : 0;
  const std::int64_t steps = whole + (rest != 0 ? 1 : 0);
#pragma GCC unroll 1
  for (std::int64_t i = 0; i < steps; ++i) {
    const I counts = load_ints(x_counts(a, a.m0) + k / Width + i * kStepBlocks);
    store_ints(over[i], multiply_ints(counts, set1_ints(matrix.zero_point)));
  }
  const std::int8_t* const x = x_codes(a, a.m0, k);
  const float* const x_scales = x_factors(a, a.x->scales, a.m0, k / Width);
  const float* const x_sums = x_factors(a, a.x->sums, a.m0, k / Width);
  const std::int64_t row_bytes = C::bytes(a.w.cols);
  const Ahead ahead(a, row_bytes, C::kAheadBytes), nearer(a, row_bytes, C::kNearBytes);
  const auto* row = static_cast<const std::uint8_t*>(a.w.data) + n0 * row_bytes + C::bytes(k);
  RowFactors<T, Width> scales(matrix.scales, k / Width), mins(matrix.mins, k / Width);
  const bool has_mins = matrix.has_mins;
  for (std::int64_t n = n0; n < n1; n += 4) {
    const std::int64_t count = n1 - n < 4 ? n1 - n : 4;
    const std::int64_t near = fetches_every_line ? nearer.of(n) : 0;
    const std::int64_t far = fetches_every_line ? near : ahead.of(n);
    for (std::int64_t j = 0; j < count; ++j, row += row_bytes) {
      if (k == 0) fetch_row(matrix, ahead, n + j);
      scales.start(n + j);
      if (has_mins) mins.start(n + j);
      std::int64_t i = 0;
      const auto step = [&]<int Vectors>() __attribute__((always_inline)) {
        const std::int64_t cols = Vectors == C::kVectors ? C::kStep : rest;
        const std::int64_t blocks = cols / Width;
        const RowStep s{row + i * C::bytes(C::kStep), x + i * C::kStep, cols, far, near};
        const I sums = sub_ints(block_sums<F, Width, true, Vectors>(s), load_ints(over[i]));
        V factors = scales.at(n + j, i * kStepBlocks, blocks);
        if constexpr (F::kScaled) factors = mul(factors, matrix.unit);
        V p = mul(to_floats(sums), mul(factors, load(x_scales + i * kStepBlocks)));
        if (has_mins) p = fma(mins.at(n + j, i * kStepBlocks, blocks), load(x_sums + i * kStepBlocks), p);
        store(products[i][j], Vectors == C::kVectors ? p : first_lanes(p, blocks));
      };
      for (; i < whole; ++i) step.template operator()<C::kVectors>();
      if (rest != 0) step.template operator()<Last>();
    }
    float* out = a.out + (n - a.n0);
    for (std::int64_t i = 0; i < steps; ++i) {
      float sums[4];
      sum4(load(products[i][0]), load(products[i][1]), load(products[i][2]), load(products[i][3]), sums);
      for (std::int64_t j = 0; j < count; ++j) out[j] = k + i == 0 ? sums[j] : out[j] + sums[j];
    }
  }
}

// The model's rows of 1,536 and 768 codes end in half a step and in three quarters. Rows of more than kWholeSteps steps
// are read four at a time, so that W is read in its order.
template <typename F, int Width, typename T>
void codes_one_of(const DotArgs& a) {
  using C = Codes<F, Width>;
  constexpr std::int64_t kMost = kWholeSteps * C::kStep;
  const CodesMatrix<Width> matrix(a);
  auto* rows = rows_of_codes<F, Width, T, kAnyVectors>;
  if constexpr (F::kNibbles && C::kVectors >= 4 && !__is_same(T, void) && !__is_same(T, OneScale)) {
    const std::int64_t rest = a.w.cols % C::kStep;
    if (rest == C::kStep / 2) rows = rows_of_codes<F, Width, T, C::kVectors / 2>;
    if (rest == C::kStep / 4 * 3) rows = rows_of_codes<F, Width, T, C::kVectors / 4 * 3>;
  }
  const std::int64_t together = a.w.cols > kMost ? 4 : a.n1 - a.n0;
  for (std::int64_t n = a.n0; n < a.n1; n += together) {
    const std::int64_t end = a.n1 - n < together ? a.n1 : n + together;
    for (std::int64_t k = 0; k < a.w.cols; k += kMost) rows(matrix, k, n, end);
  }
}

template <typename F, int Width>
void codes_one(const DotArgs& a) {
  if (a.w.group_rows == 1 && a.w.groups_a_row() == 1) return codes_one_of<F, Width, OneScale>(a);
  if (a.w.group != Width || a.w.group_rows != 1) return codes_one_of<F, Width, void>(a);
  switch (a.w.scale_dtype) {
    case DType::kF16:
      return codes_one_of<F, Width, F16>(a);
    case DType::kBF16:
      return codes_one_of<F, Width, BF16>(a);
    default:
      return codes_one_of<F, Width, float>(a);
  }
}
