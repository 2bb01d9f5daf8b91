// One row of x against codes, for tables without VNNI. Included by quant_lanes.inl.hpp, whose sums and order these are:
// a row of W as one stream from its first column to its last, and its factors made beside it, where a tile of eight
// rows keeps them in tables. T: the type of scales, whose groups are blocks.

inline constexpr std::int64_t kOneAhead = 6144;  // bytes that W is fetched ahead, every line of it

template <typename F, int Width, typename T>
struct OneRow {
  static constexpr int kSub = Width == 128 ? 2 : 1;  // times 64 columns that meet at once
  static constexpr int kGroups = 64 * kSub / Width;  // 1, or the 2 or 4 that share a vector of sums
  static constexpr std::int64_t kBlocks = step_blocks(Width);

  const std::int8_t* x;
  const float* x_scales;
  const float* x_sums;
  V unit, zero_point;
  bool has_mins, has_offsets;
  alignas(64) float factors[kBlocks];   // of W
  alignas(64) float products[kBlocks];  // times those of x

  explicit OneRow(const DotArgs& a)
      : x(x_codes(a, a.m0, 0)),
        x_scales(x_factors(a, a.x->scales, a.m0, 0)),
        x_sums(x_factors(a, a.x->sums, a.m0, 0)),
        unit(set1(code_unit(a.w))),
        zero_point(set1(-static_cast<float>(code_zero(a.w)))),
        has_mins(a.w.mins != nullptr),
        has_offsets(has_mins || code_zero(a.w) != 0) {}

  static V some(const T* from, std::int64_t n) {
    if (n >= kLanes) return load(from);
    if (n != 4) return load_some(from, n);
    T four[kLanes < 4 ? 4 : kLanes] = {};  // rows of 768 columns, of which the model has many
    __builtin_memcpy(four, from, 4 * sizeof(T));
    return load(four);
  }

  // 64 · kSub columns, the run-th of a step.
  [[gnu::always_inline]] V add_run(const std::uint8_t* w, const std::int8_t* xs, std::int64_t run, V acc) const {
    W64 codes[kSub];
#pragma GCC unroll 2
    for (int sub = 0; sub < kSub; ++sub) codes[sub] = F::load(w + (run * kSub + sub) * F::kBytes);
    const std::int8_t* xb = xs + run * 64 * kSub;
    if constexpr (kGroups > 1) {
      return fma(to_floats(F::lanes(codes, xb)), F::template spread<kGroups>(products + run * kGroups), acc);
    } else {
      return fma(to_floats(F::template dot<kSub>(codes, xb)), set1(products[run]), acc);
    }
  }
  // acc += the step of `depth` columns whose first block is `block`. `soon`: what is fetched meanwhile.
  [[gnu::always_inline]] V add_step(const std::uint8_t* w, const T* scales, const T* mins, const char* soon,
                                    std::int64_t block, std::int64_t depth, V acc) {
    const std::int64_t blocks = depth / Width, runs = depth / (64 * kSub);
    for (std::int64_t b = 0; b < blocks; b += kLanes) {
      const V v = mul(some(scales + b, blocks - b), unit);
      store(factors + b, v);
      store(products + b, mul(v, load(x_scales + block + b)));
    }
    constexpr std::int64_t kLine = 64 / (kSub * F::kBytes) > 0 ? 64 / (kSub * F::kBytes) : 1;  // runs of a line
    const std::int8_t* xs = x + block * Width;
    std::int64_t run = 0;
    for (; run + 4 <= runs; run += 4) {
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        if (i % kLine == 0) {
          for (int line = 0; line < kSub * F::kBytes; line += 64)
            __builtin_prefetch(soon + (run + i) * kSub * F::kBytes + line, 0, 2);
        }
        acc = add_run(w, xs, run + i, acc);
      }
    }
    for (; run < runs; ++run) acc = add_run(w, xs, run, acc);
    if (!has_offsets) return acc;
    for (std::int64_t b = 0; b < blocks; b += kLanes) {
      const V offset = fma(zero_point, load(factors + b), has_mins ? some(mins + b, blocks - b) : zero());
      acc = fma(offset, load(x_sums + block + b), acc);
    }
    return acc;
  }
};

template <typename F, int Width, typename T>
[[gnu::noinline]] void codes_one_of(const DotArgs& a) {
  const std::int64_t cols = a.w.cols, row_bytes = cols / 64 * F::kBytes, groups = a.w.groups_a_row();
  const auto* data = static_cast<const std::uint8_t*>(a.w.data);
  const auto* scales = static_cast<const T*>(a.w.scales);
  const auto* mins = static_cast<const T*>(a.w.mins);
  OneRow<F, Width, T> one(a);
  for (std::int64_t n = a.n0; n < a.n1; ++n) {
    const std::uint8_t* row = data + n * row_bytes;
    // Behind this strip comes the next one.
    const std::int64_t past = (n - a.n1) * row_bytes + kOneAhead;
    const char* soon = past < 0 || a.next.data == nullptr ? reinterpret_cast<const char*>(row) + kOneAhead
                                                          : static_cast<const char*>(a.next.data) + past;
    V acc = zero();
    for (std::int64_t k = 0; k < cols; k += step_cols(Width)) {
      const std::int64_t depth = cols - k < step_cols(Width) ? cols - k : step_cols(Width);
      const std::int64_t at = k / 64 * F::kBytes, block = k / Width, group = n * groups + block;
      acc = one.add_step(row + at, scales + group, mins != nullptr ? mins + group : nullptr, soon + at, block, depth,
                         acc);
    }
    a.out[n - a.n0] = sum(acc);
  }
}

// False where tiles do it: scales whose groups are not blocks.
template <typename F, int Width>
bool codes_one(const DotArgs& a) {
  if (a.m1 - a.m0 != 1 || a.w.group != Width || a.w.group_rows != 1) return false;
  switch (a.w.scale_dtype) {
    case DType::kF16:
      codes_one_of<F, Width, F16>(a);
      return true;
    case DType::kBF16:
      codes_one_of<F, Width, BF16>(a);
      return true;
    default:
      codes_one_of<F, Width, float>(a);
      return true;
  }
}
