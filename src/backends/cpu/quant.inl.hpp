// Dot products with block-format weights. Included inside the kernel namespace, after linear.inl.hpp.
//
// Integer path: x is int8 with a scale a block of Width columns (Packed::quant: 16, 32, 64 or 128); codes of W and x
// meet in integer instructions, whose sums are exact, and each block's sum is scaled in floats, in an order that
// depends on the block alone: quant_vnni.inl.hpp for AVX-512 VNNI, quant_lanes.inl.hpp for the others. Float path, for
// FP8 and for shapes that blocks do not fit: W is decoded a tile at a time, scale included, and meets float x in the
// tiles of linear.inl.hpp.

#include "backends/cpu/quant_codes.inl.hpp"

inline constexpr std::int64_t kWide = 128;  // columns of x that are rounded together

#ifdef GLINT_VNNI
#include "backends/cpu/quant_vnni.inl.hpp"
#else
#include "backends/cpu/quant_lanes.inl.hpp"
#endif

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
      if constexpr (__is_same(F, Int8Codes) || __is_same(F, Int4Codes)) return dot_codes<F, 128>(a);
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
    std::int32_t* counts = to.counts + m * to.scale_stride;
    for (std::int64_t b = to.cols / width; b < to.scale_stride; ++b) counts[b] = 0;
    alignas(64) float q[kWide];
    for (std::int64_t k = 0; k < to.cols; k += kWide) {
      const std::int64_t columns = to.cols - k < kWide ? to.cols - k : kWide;
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
        const float count = sum(total);
        scales[block] = empty ? (top < kSmallest ? 0.0F : top) : top / 127.0F;
        sums[block] = scales[block] * count;
        counts[block] = static_cast<std::int32_t>(count);
      }
      store_codes(q, columns, to.split, codes + k);
    }
  }
}
