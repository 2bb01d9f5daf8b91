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
template <typename T, int Width>
[[gnu::always_inline]] inline V factors_of(const Factors<Width>& factors, std::int64_t n, std::int64_t b,
                                           std::int64_t blocks) {
  if constexpr (__is_same(T, void)) {
    return any_factors(factors, n, b, blocks);
  } else {
    const std::int64_t i = n * factors.groups + b;
    const T* from = static_cast<const T*>(factors.table) + i;
    return i + kLanes <= factors.all ? load(from) : last_factors(from, blocks);
  }
}

// What the row of x brings to a step.
struct StepOfX {
  const std::int8_t* codes;
  const float* scales;
  const float* sums;
  alignas(64) std::int32_t over[kStepBlocks];  // what zero points add to the sums
};

template <typename F, int Width, typename T, bool Whole>
[[gnu::always_inline]] inline V step_of_row(const CodesMatrix<Width>& matrix, const StepOfX& x, const RowStep& s,
                                            std::int64_t n, std::int64_t b) {
  const std::int64_t blocks = Whole ? kStepBlocks : s.cols / Width;
  const I sums = sub_ints(block_sums<F, Width, true, Whole>(s), load_ints(x.over));
  const V factors = mul(factors_of<T>(matrix.scales, n, b, blocks), matrix.unit);
  V p = mul(to_floats(sums), mul(factors, load(x.scales)));
  if (matrix.has_mins) p = fma(factors_of<T>(matrix.mins, n, b, blocks), load(x.sums), p);
  return first_lanes(p, blocks);
}

template <typename F, int Width, typename T>
void codes_one_of(const DotArgs& a) {
  using C = Codes<F, Width>;
  alignas(64) float products[kWholeSteps][4][kLanes];
  StepOfX x[kWholeSteps];
  const CodesMatrix<Width> matrix(a);
  const std::int64_t row_bytes = C::bytes(a.w.cols);
  const Ahead ahead(a, row_bytes, C::kAheadBytes);
  const auto* codes = static_cast<const std::uint8_t*>(a.w.data);
  for (std::int64_t n = a.n0; n < a.n1; n += 4) {
    const std::int64_t count = a.n1 - n < 4 ? a.n1 - n : 4;
    for (std::int64_t k = 0; k < a.w.cols; k += kWholeSteps * C::kStep) {
      const std::int64_t left = a.w.cols - k;
      const std::int64_t whole = left / C::kStep < kWholeSteps ? left / C::kStep : kWholeSteps;
      const std::int64_t steps = whole < kWholeSteps && left % C::kStep != 0 ? whole + 1 : whole;
      for (std::int64_t i = 0; i < steps; ++i) {
        const std::int64_t b = k / Width + i * kStepBlocks;
        x[i].codes = x_codes(a, a.m0, b * Width);
        x[i].scales = x_factors(a, a.x->scales, a.m0, b);
        x[i].sums = x_factors(a, a.x->sums, a.m0, b);
        store_ints(x[i].over, multiply_ints(load_ints(x_counts(a, a.m0) + b), set1_ints(matrix.zero_point)));
      }
      for (std::int64_t j = 0; j < count; ++j) {
        const std::uint8_t* w = codes + (n + j) * row_bytes + C::bytes(k);
        RowStep s{w, nullptr, C::kStep, ahead.of(n + j)};
        matrix.scales.fetch(n + j + ahead.rows);
        for (std::int64_t i = 0; i < steps; ++i, s.w += C::bytes(C::kStep)) {
          const std::int64_t b = k / Width + i * kStepBlocks;
          s.x = x[i].codes;
          if (i < whole) {
            store(products[i][j], step_of_row<F, Width, T, true>(matrix, x[i], s, n + j, b));
          } else {
            s.cols = left % C::kStep;
            store(products[i][j], step_of_row<F, Width, T, false>(matrix, x[i], s, n + j, b));
          }
        }
      }
      float* out = a.out + (n - a.n0);
      for (std::int64_t i = 0; i < steps; ++i) {
        float sums[4];
        sum4(load(products[i][0]), load(products[i][1]), load(products[i][2]), load(products[i][3]), sums);
        for (std::int64_t j = 0; j < count; ++j) out[j] = k + i == 0 ? sums[j] : out[j] + sums[j];
      }
    }
  }
}

template <typename F, int Width>
void codes_one(const DotArgs& a) {
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
