#pragma once
// What the tests on a GPU share: skipping loudly where there is none, quantised matrices on the device, and errors.

#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
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

}  // namespace glint
