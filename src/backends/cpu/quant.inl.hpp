// Dot products with block-format weights. Included inside the kernel namespace, after linear.inl.hpp.
//
// Integer path: x is int8 with a scale a block of Width columns (Packed::quant: 16, 32, 64 or 128), codes of W and x
// meet in integer instructions, and each block's sums are scaled in floats, lane by lane:
//   acc += float(Σ u q) · (s_w s_x)        64 or 128 columns of W and x at a time, in ascending order
//   acc += offset · (s_x Σ q)              after each step of columns, where codes have a zero point or a min
// so that a row's bits depend neither on the tile it is in nor on whether W was unpacked before. Integer sums are
// exact. No lane's sum crosses 16 columns: where 64 of them hold two or four groups, x's blocks are as narrow as they
// are, and each lane is scaled by its own group's factor (spread). Float path, for FP8 and for shapes that blocks do
// not fit: W is decoded a tile at a time, scale included, and meets float x in the tiles of linear.inl.hpp.

inline constexpr std::int64_t kStepCols = 2048;  // most columns of a step: 8 rows of codes are 16 KB, half of L1
inline constexpr std::int64_t step_cols(int width) { return width == 16 ? kStepCols / 2 : kStepCols; }
inline constexpr std::int64_t step_blocks(int width) { return step_cols(width) / width; }
inline constexpr int kAhead = 4;                            // rows that W is fetched ahead
inline constexpr int kCodesM = 4;                           // rows of x in a tile
inline constexpr float kNf4Scale = 112.03F;                 // see cpu_quant.cpp
inline constexpr std::int64_t kTilePitch = kStepCols + 64;  // rows of a tile do not share their L1 sets

struct CodesStep {
  const DotArgs* a;
  std::int64_t n, count;  // first row of W, 1 to 8 rows
  std::int64_t k0, depth;
  bool first, last;
  const std::uint8_t* w;  // row n, column k0: as stored, or in a tile
  std::int64_t w_stride;
  bool has_offsets;
  float* lanes;          // [rows][8][kLanes] accumulators between steps
  const float* scales;   // [8][step_blocks(Width)]
  const float* offsets;  // the same shape
};

inline const float* x_factors(const DotArgs& a, const float* table, std::int64_t m, std::int64_t block) {
  return table + (a.index != nullptr ? a.index[m] : m) * a.x->scale_stride + block;
}
inline const std::int8_t* x_codes(const DotArgs& a, std::int64_t m, std::int64_t k) {
  return static_cast<const std::int8_t*>(a.x->data) + (a.index != nullptr ? a.index[m] : m) * a.x->code_stride + k;
}

// How codes become bytes for the integer instructions. kBytes: of 64 columns. kZero: the code of the value 0.
struct Int4Codes {
  static constexpr int kBytes = 32;
  static constexpr bool kStream = true;
  static W64 load(const std::uint8_t* p) { return nibbles(p); }
  template <int Sub>
  static I dot(const W64 (&w)[Sub], const std::int8_t* x) {
    return dot_unsigned<Sub>(w, x);
  }
  // Sums of 64 columns whose lanes stay within 16 of them, and the factors of 2 or 4 groups in those lanes.
  static I lanes(const W64 (&w)[1], const std::int8_t* x) { return dot_unsigned<1>(w, x); }
  template <int Groups>
  static V spread(const float* factors) {
    return spread_factors<Groups>(factors, kLaneGroupSplit);
  }
};
alignas(16) inline constexpr std::uint8_t kF4Codes[16] = {12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0};
struct F4Codes : Int4Codes {  // 2 · value + 12
  static W64 load(const std::uint8_t* p) { return look_up(nibbles(p), kF4Codes); }
};
constexpr std::uint8_t biased(int v) { return static_cast<std::uint8_t>(v + kSignedBias); }
alignas(16) inline constexpr std::uint8_t kNf4Codes[16] = {
    biased(-112), biased(-78), biased(-59), biased(-44), biased(-32), biased(-21), biased(-10), biased(0),
    biased(9),    biased(18),  biased(28),  biased(38),  biased(49),  biased(63),  biased(81),  biased(112)};
struct Nf4Codes : Int4Codes {
  static W64 load(const std::uint8_t* p) { return look_up(nibbles_high_first(p), kNf4Codes); }
  template <int Sub>
  static I dot(const W64 (&w)[Sub], const std::int8_t* x) {
    return dot_signed<Sub>(w, x);
  }
  static I lanes(const W64 (&w)[1], const std::int8_t* x) { return dot_signed<1>(w, x); }
};
struct Int8Codes {
  static constexpr int kBytes = 64;
  static constexpr bool kStream = true;
  static W64 load(const std::uint8_t* p) { return signed_codes(load64(p)); }
  template <int Sub>
  static I dot(const W64 (&w)[Sub], const std::int8_t* x) {
    return dot_signed<Sub>(w, x);
  }
  static I lanes(const W64 (&w)[1], const std::int8_t* x) { return dot_lanes(w[0], x); }
  template <int Groups>
  static V spread(const float* factors) {
    return spread_factors<Groups>(factors, kLaneGroupBytes);
  }
};
// The same after F::load has been through a tile.
template <typename F>
struct Tiled : F {
  static constexpr int kBytes = 64;
  static constexpr bool kStream = false;
  static W64 load(const std::uint8_t* p) { return load64(p); }
};

// acc[m][n] += block by block over one step. `products` [M][8][step_blocks(Width)] = s_w s_x.
template <typename F, int Width, int M, int N>
[[gnu::always_inline]] inline void codes_blocks(const CodesStep& s, std::int64_t m, int j, const float* products,
                                                V (&acc)[M][N]) {
  constexpr int kSub = Width == 128 ? 2 : 1;  // times 64 columns meet at once
  constexpr int kGroups = 64 * kSub / Width;  // 1, or the 2 or 4 that share a vector of sums
  constexpr std::int64_t kBlocks = step_blocks(Width);
  const DotArgs& a = *s.a;
  const std::int8_t* x[M];
#pragma GCC unroll 16
  for (int i = 0; i < M; ++i) x[i] = x_codes(a, m + i, s.k0);
  const std::uint8_t* w[N];
#pragma GCC unroll 16
  for (int n = 0; n < N; ++n) w[n] = s.w + (j + n < s.count ? j + n : s.count - 1) * s.w_stride;
  const std::int64_t runs = s.depth / (64 * kSub);
  for (std::int64_t b = 0; b < runs; ++b) {
#pragma GCC unroll 16
    for (int n = 0; n < N; ++n) {
      const std::uint8_t* from = w[n] + b * kSub * F::kBytes;
      W64 codes[kSub];
#pragma GCC unroll 16
      for (int sub = 0; sub < kSub; ++sub) {
        codes[sub] = F::load(from + sub * F::kBytes);
        // The rows that come next, into L2: the hardware's own prefetch stops at each page.
        if (F::kStream && sub * F::kBytes % 64 == 0)
          __builtin_prefetch(from + kAhead * s.w_stride + sub * F::kBytes, 0, 2);
      }
#pragma GCC unroll 16
      for (int i = 0; i < M; ++i) {
        const std::int8_t* xb = x[i] + b * 64 * kSub;
        const float* factors = products + (i * kTileRows + j + n) * kBlocks + b * kGroups;
        if constexpr (kGroups > 1) {
          acc[i][n] = fma(to_floats(F::lanes(codes, xb)), F::template spread<kGroups>(factors), acc[i][n]);
        } else {
          acc[i][n] = fma(to_floats(F::template dot<kSub>(codes, xb)), set1(*factors), acc[i][n]);
        }
      }
    }
  }
  if (!s.has_offsets) return;
  const float* x_sums[M];
#pragma GCC unroll 16
  for (int i = 0; i < M; ++i) x_sums[i] = x_factors(a, a.x->sums, m + i, s.k0 / Width);
  for (std::int64_t b = 0; b < s.depth / Width; b += kLanes) {
#pragma GCC unroll 16
    for (int n = 0; n < N; ++n) {
#pragma GCC unroll 16
      for (int i = 0; i < M; ++i)
        acc[i][n] = fma(load(s.offsets + (j + n) * kBlocks + b), load(x_sums[i] + b), acc[i][n]);
    }
  }
}

template <typename F, int Width, int M, int N>
inline void codes_tile(const CodesStep& s, std::int64_t m, int j, const float* products) {
  const DotArgs& a = *s.a;
  float* lanes = s.lanes + ((m - a.m0) * kTileRows + j) * kLanes;
  V acc[M][N];
  if (s.first) {
    clear(acc);
  } else {
#pragma GCC unroll 16
    for (int i = 0; i < M; ++i) {
#pragma GCC unroll 16
      for (int n = 0; n < N; ++n) acc[i][n] = load(lanes + (i * kTileRows + n) * kLanes);
    }
  }
  codes_blocks<F, Width, M, N>(s, m, j, products, acc);
#pragma GCC unroll 16
  for (int i = 0; i < M; ++i) {
    float* out = a.out + (m + i - a.m0) * a.out_stride + (s.n + j - a.n0);
#pragma GCC unroll 16
    for (int n = 0; n < N; ++n) {
      if (!s.last) {
        store(lanes + (i * kTileRows + n) * kLanes, acc[i][n]);
      } else if (j + n < s.count) {
        out[n] = sum(acc[i][n]);
      }
    }
  }
}

// M rows of x against the 8 rows of W.
template <typename F, int Width, int M>
inline void codes_rows(const CodesStep& s, std::int64_t m) {
  constexpr std::int64_t kBlocks = step_blocks(Width);
  const DotArgs& a = *s.a;
  alignas(64) float products[M * kTileRows * kBlocks];
  const std::int64_t blocks = s.depth / Width;
  for (int i = 0; i < M; ++i) {
    const float* x = x_factors(a, a.x->scales, m + i, s.k0 / Width);
    for (int j = 0; j < kTileRows; ++j) {
      float* to = products + (i * kTileRows + j) * kBlocks;
      for (std::int64_t b = 0; b < blocks; b += kLanes)
        store(to + b, mul(load(s.scales + j * kBlocks + b), load(x + b)));
    }
  }
  // One row of x: a row of W at a time, one stream that the hardware's prefetch follows. Rows of 4 bits are short.
  constexpr int kN = M == 1 ? 1 : M == 2 ? 4 : kCodesN;
  for (int j = 0; j < s.count; j += kN) codes_tile<F, Width, M, kN>(s, m, j, products);
}

template <typename F, int Width>
inline void codes_all_rows(const CodesStep& s) {
  std::int64_t m = s.a->m0;
  for (; m + kCodesM <= s.a->m1; m += kCodesM) codes_rows<F, Width, kCodesM>(s, m);
  for (; m + 2 <= s.a->m1; m += 2) codes_rows<F, Width, 2>(s, m);
  if (m < s.a->m1) codes_rows<F, Width, 1>(s, m);
}

inline float factor_at(const void* table, DType type, std::int64_t i) {
  if (type == DType::kF32) return static_cast<const float*>(table)[i];
  if (type == DType::kBF16) {
    const std::uint32_t bits = static_cast<std::uint32_t>(static_cast<const BF16*>(table)[i].bits) << 16;
    float v;
    __builtin_memcpy(&v, &bits, sizeof v);
    return v;
  }
  float v[kLanes];
  store(v, load_some(static_cast<const F16*>(table) + i, 1));
  return v[0];
}

// What a format's integers are multiplied by, and the integer that stands for 0.
inline float code_unit(const Weight& w) {
  return w.format == WeightFormat::kNF4 ? 1.0F / kNf4Scale : w.format == WeightFormat::kF4E2M1 ? 0.5F : 1.0F;
}
inline int code_zero(const Weight& w) {
  if (w.format == WeightFormat::kI4) return w.mins != nullptr ? 0 : 8;
  return w.format == WeightFormat::kF4E2M1 ? 12 : kSignedBias;
}

// n factors of a table, or as many copies of each as its groups have blocks, and zeros up to whole vectors.
template <typename T>
inline void copy_factors(const T* from, std::int64_t n, float* to) {
  for (std::int64_t b = 0; b < n; b += kLanes) store(to + b, load_some(from + b, n - b));
}
inline void step_factors(const CodesStep& s, const void* table, std::int64_t row, std::int64_t width, float* to) {
  const Weight& w = s.a->w;
  const std::int64_t blocks = s.depth / width;
  if (w.group == width) {
    const std::int64_t g = row + s.k0 / width;
    switch (w.scale_dtype) {
      case DType::kF16:
        return copy_factors(static_cast<const F16*>(table) + g, blocks, to);
      case DType::kBF16:
        return copy_factors(static_cast<const BF16*>(table) + g, blocks, to);
      default:
        return copy_factors(static_cast<const float*>(table) + g, blocks, to);
    }
  }
  // Groups of several blocks, often a whole row: a division a block would cost more than the products.
  std::int64_t g = s.k0 / w.group;
  std::int64_t end = (g + 1) * w.group - s.k0;
  float value = factor_at(table, w.scale_dtype, row + g);
  for (std::int64_t b = 0; b < blocks; ++b) {
    if (b * width >= end) {
      value = factor_at(table, w.scale_dtype, row + ++g);
      end += w.group;
    }
    to[b] = value;
  }
  for (std::int64_t b = blocks; b % kLanes != 0; ++b) to[b] = 0;
}

// Scales and offsets of a strip for the columns of one step.
template <int Width>
inline void fill_factors(const CodesStep& s, float* scales, float* offsets) {
  const Weight& w = s.a->w;
  const V unit = set1(code_unit(w)), zero_point = set1(-static_cast<float>(code_zero(w)));
  for (std::int64_t j = 0; j < kTileRows; ++j) {
    const std::int64_t row = (s.n + (j < s.count ? j : s.count - 1)) / w.group_rows * w.groups_a_row();
    float* scale = scales + j * step_blocks(Width);
    float* offset = offsets + j * step_blocks(Width);
    step_factors(s, w.scales, row, Width, scale);
    if (w.mins != nullptr) step_factors(s, w.mins, row, Width, offset);
    // offset = min - zero point · scale
    for (std::int64_t b = 0; b < s.depth / Width; b += kLanes) {
      const V v = mul(load(scale + b), unit);
      store(scale + b, v);
      if (s.has_offsets) store(offset + b, fma(zero_point, v, w.mins != nullptr ? load(offset + b) : zero()));
    }
  }
}

template <typename F, int Width>
void dot_codes(const DotArgs& a) {
  alignas(64) float lanes[kRowChunk * kTileRows * kLanes];
  alignas(64) float scales[kTileRows * step_blocks(Width)];
  alignas(64) float offsets[kTileRows * step_blocks(Width)];
  alignas(64) std::uint8_t tile[kTileRows * kTilePitch];
  const bool unpack = a.m1 - a.m0 > kCodesM;  // else W is used once or twice
  const std::int64_t row_bytes = a.w.cols / 64 * F::kBytes;
  const auto* codes = static_cast<const std::uint8_t*>(a.w.data);
  for (std::int64_t n = a.n0; n < a.n1; n += kTileRows) {
    for (std::int64_t k = 0; k < a.w.cols; k += step_cols(Width)) {
      CodesStep s{};
      s.a = &a;
      s.n = n;
      s.count = a.n1 - n < kTileRows ? a.n1 - n : kTileRows;
      s.k0 = k;
      s.depth = a.w.cols - k < step_cols(Width) ? a.w.cols - k : step_cols(Width);
      s.first = k == 0;
      s.last = k + s.depth == a.w.cols;
      s.w = codes + n * row_bytes + k / 64 * F::kBytes;
      s.w_stride = row_bytes;
      s.has_offsets = a.w.mins != nullptr || code_zero(a.w) != 0;
      s.lanes = lanes;
      s.scales = scales;
      s.offsets = offsets;
      fill_factors<Width>(s, scales, offsets);
      if (!unpack) {
        codes_all_rows<F, Width>(s);
        continue;
      }
      for (std::int64_t j = 0; j < s.count; ++j) {
        for (std::int64_t b = 0; b < s.depth / 64; ++b)
          store64(tile + j * kTilePitch + b * 64, F::load(s.w + j * row_bytes + b * F::kBytes));
      }
      s.w = tile;
      s.w_stride = kTilePitch;
      codes_all_rows<Tiled<F>, Width>(s);
    }
  }
}

// Columns [k, k + n) of a row as floats, as decode_row of tensor/codec.hpp gives them: a product and a sum, each
// rounded once. E4M3's two NaN codes, which no checkpoint should hold, come out as ±480.
struct CodeSpan {
  const Weight* w;
  std::int64_t row, k, n;
};
inline void decode_f8(const std::uint8_t* codes, std::int64_t n, float scale, float* out) {
  const V v = set1(scale * 256.0F);  // load_f8 gives values times 2^-8
  std::int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(out + i, mul(load_f8(codes + i), v));
  if (i == n) return;
  const Tail<std::uint8_t, kLanes> tail(codes + i, n - i);
  store_some(out + i, mul(load_f8(tail.values), v), n - i);
}
inline constexpr float kNf4Values[16] = {-1.0F,
                                         -0.6961928009986877F,
                                         -0.5250730514526367F,
                                         -0.39491748809814453F,
                                         -0.28444138169288635F,
                                         -0.18477343022823334F,
                                         -0.09105003625154495F,
                                         0.0F,
                                         0.07958029955625534F,
                                         0.16093020141124725F,
                                         0.24611230194568634F,
                                         0.33791524171829224F,
                                         0.44070982933044434F,
                                         0.5626170039176941F,
                                         0.7229568362236023F,
                                         1.0F};
inline void decode_span(const CodeSpan& s, float* out) {
  const Weight& w = *s.w;
  const auto* codes = static_cast<const std::uint8_t*>(w.data) + s.row * w.row_bytes();
  const std::int64_t groups = s.row / w.group_rows * w.groups_a_row();
  for (std::int64_t k = s.k; k < s.k + s.n;) {
    const std::int64_t group_end = (k / w.group + 1) * w.group;
    const std::int64_t end = group_end < s.k + s.n ? group_end : s.k + s.n;
    const float scale = factor_at(w.scales, w.scale_dtype, groups + k / w.group);
    const float min = w.mins != nullptr ? factor_at(w.mins, w.scale_dtype, groups + k / w.group) : 0.0F;
    float* to = out + (k - s.k);
    if (w.format == WeightFormat::kF8E4M3) {
      decode_f8(codes + k, end - k, scale, to);
    } else if (w.format == WeightFormat::kI8) {
      for (std::int64_t i = k; i < end; ++i)
        to[i - k] = scale * static_cast<float>(static_cast<std::int8_t>(codes[i])) + min;
    } else {
      float values[16];
      for (int u = 0; u < 16; ++u) {
        values[u] = w.format == WeightFormat::kNF4      ? scale * kNf4Values[u]
                    : w.format == WeightFormat::kF4E2M1 ? scale * (0.5F * static_cast<float>(kF4Codes[u] - 12))
                    : w.mins != nullptr                 ? scale * static_cast<float>(u) + min
                                                        : scale * static_cast<float>(u - 8);
      }
      const int odd_shift = w.format == WeightFormat::kNF4 ? 0 : 4;
      for (std::int64_t i = k; i < end; ++i)
        to[i - k] = values[(codes[i / 2] >> (i % 2 != 0 ? odd_shift : 4 - odd_shift)) & 15];
    }
    k = end;
  }
}

// FP8 for one or two rows of x: N rows of codes become floats in registers. The same values in the same order as
// through tiles, and so the same bits.
template <int M, int N>
inline void f8_rows(const DotArgs& a, std::int64_t m, std::int64_t n) {
  const std::int64_t cols = a.w.cols;
  const auto* w = static_cast<const std::uint8_t*>(a.w.data) + n * cols;
  V acc[M][N];
  clear(acc);
  for (std::int64_t k = 0; k < cols;) {
    const std::int64_t group = k / a.w.group;
    std::int64_t end = (group + 1) * a.w.group;
    const std::int64_t block_end = (k / a.x->block + 1) * a.x->block;
    end = end < block_end ? end : block_end;
    end = end < cols ? end : cols;
    V scale[N];
#pragma GCC unroll 16
    for (int j = 0; j < N; ++j) {
      const std::int64_t row = (n + j) / a.w.group_rows * a.w.groups_a_row();
      scale[j] = set1(factor_at(a.w.scales, a.w.scale_dtype, row + group) * 256.0F);
    }
    const float* x[M];
#pragma GCC unroll 16
    for (int i = 0; i < M; ++i) x[i] = x_row<float>(a, m + i, k);
    for (std::int64_t i = k; i < end; i += kLanes) {
      if (i % 64 == 0) {
#pragma GCC unroll 16
        for (int j = 0; j < N; ++j) __builtin_prefetch(w + (N + j) * cols + i, 0, 2);
      }
#pragma GCC unroll 16
      for (int j = 0; j < N; ++j) {
        const V v = mul(load_f8(w + j * cols + i), scale[j]);
#pragma GCC unroll 16
        for (int r = 0; r < M; ++r) acc[r][j] = fma(load(x[r] + (i - k)), v, acc[r][j]);
      }
    }
    k = end;
  }
#pragma GCC unroll 16
  for (int i = 0; i < M; ++i) {
#pragma GCC unroll 16
    for (int j = 0; j < N; ++j) a.out[(m + i - a.m0) * a.out_stride + (n + j - a.n0)] = sum(acc[i][j]);
  }
}
template <int M>
inline void f8_few(const DotArgs& a) {
  std::int64_t n = a.n0;
  for (; n + 4 <= a.n1; n += 4) f8_rows<M, 4>(a, a.m0, n);
  for (; n < a.n1; ++n) f8_rows<M, 1>(a, a.m0, n);
}

void dot_decoded(const DotArgs& a) {
  const bool whole_vectors = a.w.cols % kLanes == 0 && (a.w.group % kLanes == 0 || a.w.group >= a.w.cols);
  if (a.w.format == WeightFormat::kF8E4M3 && whole_vectors) {
    if (a.m1 - a.m0 == 1) return f8_few<1>(a);
    if (a.m1 - a.m0 == 2) return f8_few<2>(a);
  }
  alignas(64) float lanes[kRowChunk * kTileRows * kLanes];
  alignas(64) float tile[kTileRows * kBlock];
  const std::int64_t block = a.x->block < kBlock ? a.x->block : kBlock;
  const std::int64_t whole = (a.w.cols + kLanes - 1) / kLanes * kLanes;
  for (std::int64_t n = a.n0; n < a.n1; n += kTileRows) {
    const std::int64_t count = a.n1 - n < kTileRows ? a.n1 - n : kTileRows;
    for (std::int64_t k = 0; k < whole; k += block) {
      const std::int64_t depth = whole - k < block ? whole - k : block;
      const std::int64_t valid = a.w.cols - k < depth ? a.w.cols - k : depth;
      for (std::int64_t j = 0; j < kTileRows; ++j) {
        float* row = tile + j * kBlock;
        if (j < count) decode_span({&a.w, n + j, k, valid}, row);
        for (std::int64_t i = j < count ? valid : 0; i < depth; ++i) row[i] = 0;
      }
      const TileStep s{&a, n, k, depth, k == 0, k + depth == whole, lanes};
      tile_all_rows<float, float>(s, tile, kBlock);
    }
  }
}

template <typename F>
inline void dot_codes_any(const DotArgs& a) {
  switch (a.x->quant) {
    case 16:
      return dot_codes<F, 16>(a);
    case 32:
      return dot_codes<F, 32>(a);
    case 64:
      return dot_codes<F, 64>(a);
    default:  // only W of these formats asks for it
      if constexpr (F::kBytes == 64 || __is_same(F, Int4Codes)) return dot_codes<F, 128>(a);
  }
}

void dot_quantized(const DotArgs& a) {
  if (a.x->quant == 0) return dot_decoded(a);
  switch (a.w.format) {
    case WeightFormat::kI4:
      return dot_codes_any<Int4Codes>(a);
    case WeightFormat::kI8:
      return dot_codes_any<Int8Codes>(a);
    case WeightFormat::kNF4:
      return dot_codes_any<Nf4Codes>(a);
    case WeightFormat::kF4E2M1:
      return dot_codes_any<F4Codes>(a);
    default:
      return;
  }
}

// x → int8. A block that holds a NaN or an infinity gets the scale NaN, so that what it touches becomes NaN too.
void quantize(const Packed& to, const float* x, std::int64_t x_stride, std::int64_t m0, std::int64_t m1) {
  const std::int64_t width = to.quant;
  for (std::int64_t m = m0; m < m1; ++m) {
    auto* codes = static_cast<std::int8_t*>(to.data) + m * to.code_stride;
    float* scales = to.scales + m * to.scale_stride;
    float* sums = to.sums + m * to.scale_stride;
    for (std::int64_t b = to.cols / width; b < to.scale_stride; ++b) scales[b] = sums[b] = 0;
    alignas(64) float q[128];  // one block, or the 64 columns of several
    const std::int64_t columns = width < 64 ? 64 : width;
    for (std::int64_t k = 0; k < to.cols; k += columns) {
      for (std::int64_t j = 0; j < columns; j += width) {
        const float* from = x + (m - m0) * x_stride + k + j;
        V high = zero(), not_finite = zero();
        for (std::int64_t i = 0; i < width; i += kLanes) {
          const V v = load(from + i);
          high = larger(high, larger(v, sub(zero(), v)));
          not_finite = fma(v, zero(), not_finite);
        }
        float tops[kLanes];
        store(tops, high);
        float top = 0;
        for (const float t : tops) top = t > top ? t : top;
        top += sum(not_finite);
        constexpr float kSmallest = 1e-35F;  // below it 127 / top could overflow
        const bool empty = !(top >= kSmallest);
        const V inverse = set1(empty ? 0.0F : 127.0F / top);
        V total = zero();  // integers below 2^24: exact
        for (std::int64_t i = 0; i < width; i += kLanes) {
          const V v = empty ? zero() : round_even(mul(load(from + i), inverse));
          store(q + j + i, v);
          total = add(total, v);
        }
        const std::int64_t block = (k + j) / width;
        scales[block] = empty ? (top < kSmallest ? 0.0F : top) : top / 127.0F;
        sums[block] = scales[block] * sum(total);
      }
      for (std::int64_t j = 0; j < columns; j += 64) {
        std::int8_t* c = codes + k + j;
        const float* from = q + j;
        if (to.split) {
          for (int i = 0; i < 32; ++i) {
            c[i] = static_cast<std::int8_t>(static_cast<std::int32_t>(from[2 * i]));
            c[32 + i] = static_cast<std::int8_t>(static_cast<std::int32_t>(from[2 * i + 1]));
          }
        } else {
          for (int i = 0; i < 64; ++i) c[i] = static_cast<std::int8_t>(static_cast<std::int32_t>(from[i]));
        }
      }
    }
  }
}
