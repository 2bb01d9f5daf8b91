// Dot products of codes with codes for tables without VNNI. Included by quant.inl.hpp.
//
// Each block's sums are scaled in floats, lane by lane:
//   acc += float(Σ u q) · (s_w s_x)        64 or 128 columns of W and x at a time, in ascending order
//   acc += offset · (s_x Σ q)              after each step of columns, where codes have a zero point or a min
// so that a row's bits depend neither on the tile it is in nor on whether W was unpacked before. No lane's sum crosses
// 16 columns: where 64 of them hold two or four groups, x's blocks are as narrow as they are, and each lane is scaled
// by its own group's factor (spread).

inline constexpr std::int64_t kStepCols = 2048;  // most columns of a step: 8 rows of codes are 16 KB, half of L1
inline constexpr std::int64_t step_cols(int width) { return width == 16 ? kStepCols / 2 : kStepCols; }
inline constexpr std::int64_t step_blocks(int width) { return step_cols(width) / width; }
inline constexpr int kAhead = 4;                            // rows that W is fetched ahead
inline constexpr int kCodesM = 4;                           // rows of x in a tile
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
struct F4Codes : Int4Codes {  // 2 · value + 12
  static W64 load(const std::uint8_t* p) { return look_up(nibbles(p), kF4Codes); }
};
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

#include "backends/cpu/quant_lanes_one.inl.hpp"

template <typename F, int Width>
void dot_codes(const DotArgs& a) {
  if (codes_one<F, Width>(a)) return;
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

// Codes of at most kWide columns, in the order of Packed::split.
inline void store_codes(const float* q, std::int64_t columns, bool split, std::int8_t* to) {
  if (!split) {
    for (std::int64_t i = 0; i < columns; ++i) to[i] = static_cast<std::int8_t>(static_cast<std::int32_t>(q[i]));
    return;
  }
  for (std::int64_t j = 0; j < columns; j += 64) {
    for (std::int64_t i = 0; i < 32; ++i) {
      to[j + i] = static_cast<std::int8_t>(static_cast<std::int32_t>(q[j + 2 * i]));
      to[j + 32 + i] = static_cast<std::int8_t>(static_cast<std::int32_t>(q[j + 2 * i + 1]));
    }
  }
}
