#include "backends/reference/math.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "ops/kv_codec.hpp"
#include "tensor/codec.hpp"

namespace glint::reference {
namespace {

// Eight floats; the compiler maps them to whatever registers the target has. Only used inside always-inline code, so
// no vector crosses a function boundary.
using F8 = float __attribute__((vector_size(32)));
constexpr std::int64_t kLanes = 8;

#define GLINT_INLINE inline __attribute__((always_inline))

// Not memcpy: the address sanitizer makes a call of that, which took half the time of its tests.
struct __attribute__((packed, may_alias)) Unaligned {
  F8 value;
};
GLINT_INLINE void load(F8& v, const float* p) { v = reinterpret_cast<const Unaligned*>(p)->value; }

GLINT_INLINE float add_lanes(const F8& v) { return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7])); }

// X rows of x against W rows of w. The tail of k is padded with zeros, which leaves every sum as it is.
template <int X, int W>
GLINT_INLINE void dot_tile(const Rows& x, std::int64_t t, const Rows& w, std::int64_t o, std::int64_t k,
                           const MutableRows& out) {
  F8 sum[X][W] = {};
  F8 xv[X];
  F8 wv[W];
  const auto step = [&] {
#pragma GCC unroll 4
    for (int a = 0; a < X; ++a) {
#pragma GCC unroll 4
      for (int b = 0; b < W; ++b) sum[a][b] += xv[a] * wv[b];
    }
  };
  std::int64_t i = 0;
  for (; i + kLanes <= k; i += kLanes) {
#pragma GCC unroll 4
    for (int a = 0; a < X; ++a) load(xv[a], x[t + a] + i);
#pragma GCC unroll 4
    for (int b = 0; b < W; ++b) load(wv[b], w[o + b] + i);
    step();
  }
  if (i < k) {
    const auto n = static_cast<std::size_t>(k - i) * sizeof(float);
#pragma GCC unroll 4
    for (int a = 0; a < X; ++a) xv[a] = F8{}, std::memcpy(&xv[a], x[t + a] + i, n);
#pragma GCC unroll 4
    for (int b = 0; b < W; ++b) wv[b] = F8{}, std::memcpy(&wv[b], w[o + b] + i, n);
    step();
  }
#pragma GCC unroll 4
  for (int a = 0; a < X; ++a) {
#pragma GCC unroll 4
    for (int b = 0; b < W; ++b) out[t + a][o + b] = add_lanes(sum[a][b]);
  }
}

template <int X>
GLINT_INLINE void dot_rows(const Rows& x, std::int64_t t, const Rows& w, std::int64_t k, const MutableRows& out) {
  constexpr int kTile = X == 1 ? 4 : 2;
  std::int64_t o = 0;
  for (; o + kTile <= w.rows; o += kTile) dot_tile<X, kTile>(x, t, w, o, k, out);
  for (; o < w.rows; ++o) dot_tile<X, 1>(x, t, w, o, k, out);
}

GLINT_INLINE void matmul_nt_body(const Rows& x, const Rows& w, std::int64_t k, const MutableRows& out) {
  // Blocks of w small enough to stay in the cache while all rows of x pass over them.
  const std::int64_t block = std::max<std::int64_t>(4, 65536 / std::max<std::int64_t>(k, 1) / 4 * 4);
  for (std::int64_t begin = 0; begin < w.rows; begin += block) {
    const Rows part{w[begin], std::min(block, w.rows - begin), w.stride};
    const MutableRows part_out{out.data + begin, out.stride};
    std::int64_t t = 0;
    for (; t + 4 <= x.rows; t += 4) dot_rows<4>(x, t, part, k, part_out);
    for (; t < x.rows; ++t) dot_rows<1>(x, t, part, k, part_out);
  }
}

GLINT_INLINE void weighted_sum_body(const float* p, const Rows& m, std::int64_t cols, float* out) {
  constexpr int kWide = 4;
  std::int64_t c = 0;
  for (; c + kWide * kLanes <= cols; c += kWide * kLanes) {
    F8 sum[kWide] = {};
    for (std::int64_t r = 0; r < m.rows; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < kWide; ++v) {
        F8 x;
        load(x, m[r] + c + v * kLanes);
        sum[v] += p[r] * x;
      }
    }
    std::memcpy(out + c, sum, sizeof(sum));
  }
  for (; c < cols; ++c) {
    float sum = 0;
    for (std::int64_t r = 0; r < m.rows; ++r) sum += p[r] * m[r][c];
    out[c] = sum;
  }
}

// The same code for the base instruction set and, where the machine has it, for AVX2 with FMA (four times as fast).
#if defined(__x86_64__)
bool has_avx2() {
  static const bool yes = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  return yes;
}
__attribute__((target("avx2,fma"))) void matmul_nt_avx2(const Rows& x, const Rows& w, std::int64_t k,
                                                        const MutableRows& out) {
  matmul_nt_body(x, w, k, out);
}
__attribute__((target("avx2,fma"))) void weighted_sum_avx2(const float* p, const Rows& m, std::int64_t cols,
                                                           float* out) {
  weighted_sum_body(p, m, cols, out);
}
#else
bool has_avx2() { return false; }
void matmul_nt_avx2(const Rows&, const Rows&, std::int64_t, const MutableRows&) {}
void weighted_sum_avx2(const float*, const Rows&, std::int64_t, float*) {}
#endif

// Rows [first, first + n_rows) of a weight as floats.
void decode(const Weight& w, std::int64_t first, std::int64_t n_rows, float* out) {
  const auto* bytes = static_cast<const std::byte*>(w.data);
  const std::int64_t begin = first * w.cols;
  const std::int64_t n = n_rows * w.cols;
  switch (w.format) {
    case WeightFormat::kF32:
      std::memcpy(out, bytes + begin * 4, static_cast<std::size_t>(n) * 4);
      return;
    case WeightFormat::kF16: {
      const auto* v = reinterpret_cast<const F16*>(bytes) + begin;
      for (std::int64_t i = 0; i < n; ++i) out[i] = to_float(v[i]);
      return;
    }
    case WeightFormat::kBF16: {
      const auto* v = reinterpret_cast<const BF16*>(bytes) + begin;
      for (std::int64_t i = 0; i < n; ++i) out[i] = to_float(v[i]);
      return;
    }
    default:
      for (std::int64_t r = 0; r < n_rows; ++r) decode_row(w, first + r, out + r * w.cols);
  }
}

}  // namespace

void matmul_nt(Rows x, Rows w, std::int64_t k, MutableRows out) {
  has_avx2() ? matmul_nt_avx2(x, w, k, out) : matmul_nt_body(x, w, k, out);
}

void weighted_sum(const float* p, Rows m, std::int64_t cols, float* out) {
  has_avx2() ? weighted_sum_avx2(p, m, cols, out) : weighted_sum_body(p, m, cols, out);
}

void weight_row(const Weight& w, std::int64_t r, float* out) { decode(w, r, 1, out); }

std::vector<float> weight_floats(const Weight& w) {
  std::vector<float> out(static_cast<std::size_t>(w.rows * w.cols));
  decode(w, 0, w.rows, out.data());
  return out;
}

void matmul(Rows x, const Weight& w, MutableRows out) {
  if (w.format == WeightFormat::kF32) {
    matmul_nt(x, {static_cast<const float*>(w.data), w.rows, w.cols}, w.cols, out);
    return;
  }
  constexpr std::int64_t kBlock = 64;  // rows decoded at a time
  std::vector<float> block(static_cast<std::size_t>(std::min(kBlock, w.rows) * w.cols));
  for (std::int64_t begin = 0; begin < w.rows; begin += kBlock) {
    const std::int64_t n = std::min(kBlock, w.rows - begin);
    decode(w, begin, n, block.data());
    matmul_nt(x, {block.data(), n, w.cols}, w.cols, {out.data + begin, out.stride});
  }
}

void rms(const float* x, const float* weight, std::int64_t n, float eps, float* out) {
  double square = 0;
  for (std::int64_t i = 0; i < n; ++i) square += static_cast<double>(x[i]) * x[i];
  const auto scale = static_cast<float>(1.0 / std::sqrt(square / static_cast<double>(n) + eps));
  for (std::int64_t i = 0; i < n; ++i) out[i] = x[i] * scale * weight[i];
}

void softmax(float* s, std::int64_t n) {
  const float top = *std::max_element(s, s + n);
  double sum = 0;
  for (std::int64_t i = 0; i < n; ++i) sum += s[i] = std::exp(s[i] - top);
  const auto scale = static_cast<float>(1.0 / sum);
  for (std::int64_t i = 0; i < n; ++i) s[i] *= scale;
}

float silu(float x) { return x / (1.0F + std::exp(-x)); }

std::byte* kv_row(const KvPages& pages, std::int64_t slot) {
  return static_cast<std::byte*>(pages.base) + slot / kPageTokens * pages.page_stride_bytes +
         slot % kPageTokens * kv_row_bytes(pages.codec);
}

void load_kv_row(const KvPages& pages, std::int64_t slot, float* out) {
  decode_kv_row(pages.codec, kv_row(pages, slot), out);
}

}  // namespace glint::reference
