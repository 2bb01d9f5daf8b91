// Norms, activations, conversions. Included inside the kernel namespace, after linear.inl.hpp.

#include "backends/cpu/exp.inl.hpp"

// 1 / sqrt(mean(x²) + eps), with two accumulators: vectors 0, 2, 4 … and 1, 3, 5 …
inline float inverse_rms(const float* x, std::int64_t n, float eps) {
  V even = zero(), odd = zero();
  std::int64_t i = 0;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
    const V a = load(x + i), b = load(x + i + kLanes);
    even = fma(a, a, even);
    odd = fma(b, b, odd);
  }
  for (; i < n; i += kLanes) {
    const V a = load_some(x + i, n - i);
    even = fma(a, a, even);
  }
  return 1.0F / __builtin_sqrtf(sum(add(even, odd)) / static_cast<float>(n) + eps);
}

void norm(const NormArgs& a) {
  const float* x = a.x;
  if (a.delta != nullptr) {
    for (std::int64_t i = 0; i < a.n; i += kLanes)
      store_some(a.sum + i, add(load_some(x + i, a.n - i), load_some(a.delta + i, a.n - i)), a.n - i);
    x = a.sum;
  }
  if (a.out == nullptr) return;
  const V scale = set1(inverse_rms(x, a.n, a.eps));
  for (std::int64_t i = 0; i < a.n; i += kLanes) {
    const V v = mul(mul(load_some(x + i, a.n - i), scale), load_some(a.weight + i, a.n - i));
    store_some(a.out + i, v, a.n - i);
  }
}

void silu_mul(const float* gate, const float* up, std::int64_t n, const Packed& to, std::int64_t m, std::int64_t k0) {
  const bool last = k0 + n == to.cols;  // the strip that ends the row also clears its padding
  const std::int64_t end = last ? (to.cols + kPad - 1) / kPad * kPad - k0 : n;
  for (std::int64_t i = 0; i < end; i += kLanes) {
    V v = zero();
    if (i < n) {
      const V g = load_some(gate + i, n - i);
      const V s = div(g, add(set1(1), exp(sub(zero(), g))));
      v = mul(s, load_some(up + i, n - i));
    }
    void* at = to.at(m, k0 + i);
    const std::int64_t room = end - i;
    if (to.bf16) {
      store_some(static_cast<BF16*>(at), v, room);
    } else {
      store_some(static_cast<float*>(at), v, room);
    }
  }
}

void add_scaled(float* out, const float* x, float scale, std::int64_t n) {
  for (std::int64_t i = 0; i < n; i += kLanes)
    store_some(out + i, fma(set1(scale), load_some(x + i, n - i), load_some(out + i, n - i)), n - i);
}

void to_float(const void* from, WeightFormat format, float* to, std::int64_t n) {
  switch (format) {
    case WeightFormat::kF32:
      return widen<float>(from, to, n);
    case WeightFormat::kF16:
      return widen<F16>(from, to, n);
    case WeightFormat::kBF16:
      return widen<BF16>(from, to, n);
    default:  // the ops refuse other formats
      return;
  }
}
void to_bf16(const float* from, BF16* to, std::int64_t n) {
  for (std::int64_t i = 0; i < n; i += kLanes) store_some(to + i, load_some(from + i, n - i), n - i);
}

// Peaks. Twelve independent accumulators cover the latency of two multiply-adds a cycle.
float read(const void* data, std::int64_t bytes) {
  const float* p = static_cast<const float*>(data);
  const std::int64_t n = bytes / 4;
  V s[4] = {zero(), zero(), zero(), zero()};
  for (std::int64_t i = 0; i + 4 * kLanes <= n; i += 4 * kLanes) {
#pragma GCC unroll 16
    for (int j = 0; j < 4; ++j) s[j] = add(s[j], load(p + i + j * kLanes));
  }
  return sum(add(add(s[0], s[1]), add(s[2], s[3])));
}

float multiply_f32(std::int64_t steps) {
  V acc[1][12];
  // Different starts, and the accumulator as a factor: nothing to share between the chains or to move out of the loop.
#pragma GCC unroll 16
  for (int j = 0; j < 12; ++j) acc[0][j] = set1(static_cast<float>(j));
  const V x = set1(0.999F), y = set1(1.0F);
  for (std::int64_t i = 0; i < steps; ++i) {
#pragma GCC unroll 16
    for (int j = 0; j < 12; ++j) acc[0][j] = fma(acc[0][j], x, y);
    __asm__ volatile("" ::: "memory");  // keeps the loop a loop
  }
  V total = zero();
#pragma GCC unroll 16
  for (int j = 0; j < 12; ++j) total = add(total, acc[0][j]);
  return sum(total);
}
