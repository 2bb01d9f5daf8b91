#pragma once
// What the tests on a GPU share: skipping loudly where there is none, quantised matrices on the device, and errors.

#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <span>
#include <vector>

#include "backends/cuda/cuda.hpp"
#include "ops/case_runner.hpp"
#include "tensor/codec.hpp"

namespace glint {

// Skipping must not look like passing: CI has no GPU, and its log says so.
#define NEED_GPU()                                                                         \
  do {                                                                                     \
    std::string why;                                                                       \
    if (!cuda_available(&why)) {                                                           \
      std::printf("  *** NOT TESTED: no usable CUDA device here (%s) ***\n", why.c_str()); \
      GTEST_SKIP() << why;                                                                 \
    }                                                                                      \
  } while (false)

struct Quant {
  const char* name;
  QuantSpec spec;
};

inline const Quant kQuants[] = {
    {"int4-g128", {.format = WeightFormat::kI4, .group = 128}},
    {"int4-g128-asym", {.format = WeightFormat::kI4, .group = 128, .symmetric = false}},
    {"int4-g64", {.format = WeightFormat::kI4, .group = 64}},
    {"int4-g32", {.format = WeightFormat::kI4, .group = 32, .scale_dtype = DType::kF16}},
    {"int4-g32-asym", {.format = WeightFormat::kI4, .group = 32, .symmetric = false}},
    {"int8-channel", {.format = WeightFormat::kI8, .group = 0}},
    {"int8-g128-asym", {.format = WeightFormat::kI8, .group = 128, .symmetric = false}},
    {"fp8-channel", {.format = WeightFormat::kF8E4M3, .group = 0, .scale_dtype = DType::kF32}},
    {"fp8-128x128", {.format = WeightFormat::kF8E4M3, .group = 128, .group_rows = 128, .scale_dtype = DType::kF32}},
    {"nf4-g64", {.format = WeightFormat::kNF4, .group = 64, .scale_dtype = DType::kF32}},
};

// A quantised matrix on the device, and what it decodes to on the host.
struct DeviceMatrix {
  Buffer codes, scales, mins;
  Weight w;
  std::vector<float> values;
};

inline Buffer to_device(Ops& ops, const void* data, std::size_t bytes) {
  Buffer b = ops.allocate(bytes);
  ops.upload(b.data(), data, bytes);
  return b;
}

inline DeviceMatrix matrix(Ops& ops, Random& random, const QuantSpec& spec, std::int64_t rows, std::int64_t cols) {
  const auto source = random.normals(rows * cols, 1.0F / std::sqrt(static_cast<float>(cols)));
  if (spec.format == WeightFormat::kBF16) {
    DeviceMatrix m;
    std::vector<std::uint16_t> bits;
    for (const float v : source) {
      bits.push_back(to_bf16(v).bits);
      m.values.push_back(to_float(BF16{bits.back()}));
    }
    m.codes = to_device(ops, bits.data(), bits.size() * 2);
    m.w = {.format = WeightFormat::kBF16, .rows = rows, .cols = cols, .data = m.codes.data()};
    return m;
  }
  const QuantizedWeight q = quantize_rtn(spec, source.data(), rows, cols);
  DeviceMatrix m;
  m.values.resize(source.size());
  for (std::int64_t r = 0; r < rows; ++r) decode_row(q.w, r, m.values.data() + r * cols);
  m.w = q.w;
  m.codes = to_device(ops, q.codes.data(), q.codes.bytes());
  m.scales = to_device(ops, q.scales.data(), q.scales.bytes());
  m.w.data = m.codes.data();
  m.w.scales = m.scales.data();
  if (q.w.mins != nullptr) {
    m.mins = to_device(ops, q.mins.data(), q.mins.bytes());
    m.w.mins = m.mins.data();
  }
  return m;
}

inline double nmse(const std::vector<float>& got, const std::vector<float>& want) {
  double error = 0, square = 0;
  for (std::size_t i = 0; i < want.size(); ++i) {
    error += (double{got[i]} - want[i]) * (double{got[i]} - want[i]);
    square += double{want[i]} * want[i];
  }
  return error / square;  // NaN fails every comparison
}

inline constexpr double kProductLimit = 2e-5;  // bf16 activations and bf16 decoded weights: about 4e-6

// Experts of one shape on the device, and as decoded floats on the host.
struct ExpertTwins {
  std::vector<DeviceMatrix> matrices;
  std::vector<ExpertWeights> device, host;
  ExpertWeights device_shared, host_shared;

  ExpertTwins(Ops& ops, Random& random, const QuantSpec& spec, std::int64_t n, std::int64_t hidden, std::int64_t inner,
              bool with_shared)
      : device(static_cast<std::size_t>(n)), host(static_cast<std::size_t>(n)) {
    const auto one = [&](std::int64_t rows, std::int64_t cols, Weight* d, Weight* h) {
      matrices.push_back(matrix(ops, random, spec, rows, cols));
      const DeviceMatrix& m = matrices.back();
      *d = m.w;
      *h = {.format = WeightFormat::kF32, .rows = rows, .cols = cols, .data = m.values.data()};
    };
    const auto expert = [&](ExpertWeights* d, ExpertWeights* h) {
      one(inner, hidden, &d->gate, &h->gate);
      one(inner, hidden, &d->up, &h->up);
      one(hidden, inner, &d->down, &h->down);
    };
    for (std::size_t e = 0; e < device.size(); ++e) expert(&device[e], &host[e]);
    if (with_shared) expert(&device_shared, &host_shared);
  }
};

// The device's answer for rows of x [t, hidden] and their choices.
inline std::vector<float> moe_on_device(Ops& ops, std::span<const ExpertWeights> experts, const ExpertWeights& shared,
                                        int top_k, const std::vector<float>& x, const std::vector<std::int32_t>& ids,
                                        const std::vector<float>& weights) {
  const auto t = static_cast<std::int64_t>(ids.size()) / top_k, hidden = static_cast<std::int64_t>(x.size()) / t;
  std::vector<float> got(x.size());
  const Buffer dx = to_device(ops, x.data(), x.size() * 4), di = to_device(ops, ids.data(), ids.size() * 4);
  const Buffer dw = to_device(ops, weights.data(), weights.size() * 4), dy = ops.allocate(x.size() * 4);
  MoeParams p;
  p.top_k = top_k;
  p.x = {dx.data(), DType::kF32, {t, hidden}};
  p.ids = static_cast<const std::int32_t*>(di.data());
  p.weights = static_cast<const float*>(dw.data());
  p.experts = experts;
  p.shared = shared;
  p.out = {dy.data(), DType::kF32, {t, hidden}};
  ops.moe(p);
  ops.download(got.data(), dy.data(), got.size() * 4);
  return got;
}

// Its error against the reference's.
inline double moe_error(Ops& ops, Ops& reference, const ExpertTwins& experts, int top_k, const std::vector<float>& x,
                        const std::vector<std::int32_t>& ids, const std::vector<float>& weights) {
  const auto t = static_cast<std::int64_t>(ids.size()) / top_k, hidden = static_cast<std::int64_t>(x.size()) / t;
  std::vector<float> want(x.size());
  MoeParams p;
  p.top_k = top_k;
  p.x = {x.data(), DType::kF32, {t, hidden}};
  p.ids = ids.data();
  p.weights = weights.data();
  p.experts = experts.host;
  p.shared = experts.host_shared;
  p.out = {want.data(), DType::kF32, {t, hidden}};
  reference.moe(p);
  return nmse(moe_on_device(ops, experts.device, experts.device_shared, top_k, x, ids, weights), want);
}

}  // namespace glint
