#pragma once
// The few loops that every reference op is made of. Matrices are row-major with an explicit row stride.

#include <cstdint>
#include <vector>

#include "ops/params.hpp"

namespace glint::reference {

struct Rows {
  const float* data = nullptr;
  std::int64_t rows = 0;
  std::int64_t stride = 0;  // floats from one row to the next

  const float* operator[](std::int64_t r) const { return data + r * stride; }
};

struct MutableRows {
  float* data = nullptr;
  std::int64_t stride = 0;

  float* operator[](std::int64_t r) const { return data + r * stride; }
};

inline Rows rows_of(const ConstView& v) { return {v.as<float>(), v.shape[0], v.shape[1]}; }
inline MutableRows rows_of(const View& v) { return {v.as<float>(), v.shape[1]}; }

// out[t][o] = Σ_i x[t][i] · w[o][i] for i < k. A dot product is eight interleaved fp32 sums added in a fixed order, so
// out[t][o] has the same bits whatever other rows the call holds.
void matmul_nt(Rows x, Rows w, std::int64_t k, MutableRows out);

// out[c] = Σ_r p[r] · m[r][c] for c < cols, rows in ascending order.
void weighted_sum(const float* p, Rows m, std::int64_t cols, float* out);

// out = x · Wᵀ for a weight in any storage format.
void matmul(Rows x, const Weight& w, MutableRows out);

// Row r of W as floats.
void weight_row(const Weight& w, std::int64_t r, float* out);

// The whole matrix as floats: [rows, cols].
std::vector<float> weight_floats(const Weight& w);

// out = x · rsqrt(mean(x²) + eps) · weight; out may be x. The mean is taken in double.
void rms(const float* x, const float* weight, std::int64_t n, float eps, float* out);

// In place: softmax of s[0..n), its sum taken in double.
void softmax(float* s, std::int64_t n);

float silu(float x);

// Address of cache row `slot` = page · kPageTokens + row.
std::byte* kv_row(const KvPages& pages, std::int64_t slot);

// Decodes the 576 values of a cache row.
void load_kv_row(const KvPages& pages, std::int64_t slot, float* out);

}  // namespace glint::reference
