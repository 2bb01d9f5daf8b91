#include "sampling/kernels.hpp"

#include <cstring>

#include "ops/sample.hpp"

namespace glint::sampling {
namespace {

using Vec = float __attribute__((vector_size(32)));
using IntVec = std::int32_t __attribute__((vector_size(32)));
constexpr std::size_t kLanes = 8;

[[gnu::always_inline]] inline bool scan_body(const float* x, std::size_t n, float* block_max) {
  IntVec nan = {};
  std::size_t i = 0;
  for (; i + kBlock <= n; i += kBlock) {
    Vec m;
    std::memcpy(&m, x + i, sizeof m);
    nan |= m != m;
    for (std::size_t j = kLanes; j < kBlock; j += kLanes) {
      Vec v;
      std::memcpy(&v, x + i + j, sizeof v);
      nan |= v != v;
      m = m > v ? m : v;
    }
    float best = m[0];
    for (std::size_t l = 1; l < kLanes; ++l) best = m[l] > best ? m[l] : best;
    block_max[i / kBlock] = best;
  }
  bool ok = true;
  for (std::size_t l = 0; l < kLanes; ++l) ok &= nan[l] == 0;
  if (i < n) {
    float best = x[i];
    for (std::size_t j = i; j < n; ++j) {
      ok &= x[j] == x[j];
      best = x[j] > best ? x[j] : best;
    }
    block_max[i / kBlock] = best;
  }
  return ok;
}

struct ExpArgs {
  const float* x;
  std::size_t n;
  float shift;
  float scale;
  float* weights;
  double* block_sum;
};

[[gnu::always_inline]] inline void exp_body(const ExpArgs& a) {
  std::size_t i = 0;
  for (; i + kBlock <= a.n; i += kBlock) {
    // Exact in floats: multiples of 2^-16, whose sum is at most 64, apart from the rest, multiples of 2^-34 below
    // 2^-16.
    constexpr float kCoarse = 0x1.8p7F;  // adding it rounds to a multiple of 2^-16
    Vec coarse = {};
    Vec fine = {};
    for (std::size_t j = 0; j < kBlock; j += kLanes) {
      Vec v;
      std::memcpy(&v, a.x + i + j, sizeof v);
      v = (v - a.shift) * a.scale;
      exp_nonpositive<Vec, IntVec>(v);
      std::memcpy(a.weights + i + j, &v, sizeof v);
      const Vec rounded = (v + kCoarse) - kCoarse;
      coarse += rounded;
      fine += v - rounded;
    }
    double total = 0;
    for (std::size_t l = 0; l < kLanes; ++l) total += static_cast<double>(coarse[l]) + static_cast<double>(fine[l]);
    a.block_sum[i / kBlock] = total;
  }
  if (i < a.n) {
    double total = 0;
    for (std::size_t j = i; j < a.n; ++j) {
      a.weights[j] = exp_weight(a.x[j], a.shift, a.scale);
      total += static_cast<double>(a.weights[j]);
    }
    a.block_sum[i / kBlock] = total;
  }
}

// Plain functions and a run-time choice instead of target_clones: its ifunc resolvers run before the sanitizers start.
bool scan_base(const float* x, std::size_t n, float* block_max) { return scan_body(x, n, block_max); }
void exp_base(const ExpArgs& a) { exp_body(a); }

#if defined(__x86_64__)
[[gnu::target("avx2")]] bool scan_avx2(const float* x, std::size_t n, float* block_max) {
  return scan_body(x, n, block_max);
}
[[gnu::target("avx2")]] void exp_avx2(const ExpArgs& a) { exp_body(a); }
bool has_avx2() {
  static const bool has = __builtin_cpu_supports("avx2") != 0;
  return has;
}
#endif

}  // namespace

bool scan(std::span<const float> x, std::span<float> block_max) {
#if defined(__x86_64__)
  if (has_avx2()) return scan_avx2(x.data(), x.size(), block_max.data());
#endif
  return scan_base(x.data(), x.size(), block_max.data());
}

void exp_row(std::span<const float> x, float shift, float scale, std::span<float> weights,
             std::span<double> block_sum) {
  const ExpArgs args{x.data(), x.size(), shift, scale, weights.data(), block_sum.data()};
#if defined(__x86_64__)
  if (has_avx2()) return exp_avx2(args);
#endif
  exp_base(args);
}

}  // namespace glint::sampling
