#include "weights/quantizer.hpp"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "base/error.hpp"
#include "weights/quantizer_grid.hpp"

namespace glint {
namespace {

constexpr std::int64_t kLanes = 8;

bool is_integer(WeightFormat f) { return f == WeightFormat::kI4 || f == WeightFormat::kI8; }

// The values that share a scale, padded with zeros of no weight to whole lanes.
struct Group {
  std::vector<float> values;
  std::vector<float> weights;

  void clear() {
    values.clear();
    weights.clear();
  }
  void append(const float* v, const float* w, std::int64_t n) {
    values.insert(values.end(), v, v + n);
    if (w != nullptr) weights.insert(weights.end(), w, w + n);
    else weights.insert(weights.end(), static_cast<std::size_t>(n), 1.0F);
  }
  void pad() {
    const std::size_t whole = (values.size() + kLanes - 1) / kLanes * kLanes;
    values.resize(whole, 0.0F);
    weights.resize(whole, 0.0F);
  }
};

template <typename Grid>
float group_error(const Group& group, const GroupScale& s, const Grid& grid) {
  const float inverse = 1.0F / s.scale;
  std::array<float, kLanes> sums{};
  for (std::size_t i = 0; i < group.values.size(); i += kLanes) {
    const float* v = group.values.data() + i;
    const float* w = group.weights.data() + i;
    for (std::size_t j = 0; j < kLanes; ++j) {
      const float d = v[j] - (s.scale * grid.level((v[j] - s.min) * inverse) + s.min);
      sums[j] += w[j] * d * d;
    }
  }
  float sum = 0;
  for (const float s_j : sums) sum += s_j;
  return sum;
}

template <typename Grid>
GroupScale best_scale(const QuantSpec& spec, const Group& group, std::size_t n, const std::vector<float>& factors,
                      const Grid& grid) {
  const GroupScale plain = plain_scale(spec, group.values.data(), static_cast<std::int64_t>(n));
  if (factors.size() == 1) return plain;
  GroupScale best = plain;
  float least = group_error(group, plain, grid);
  for (std::size_t f = 1; f < factors.size(); ++f) {
    const GroupScale s = shrunk_scale(spec, plain, factors[f]);
    const float error = group_error(group, s, grid);
    if (error < least) {
      least = error;
      best = s;
    }
  }
  return best;
}

struct Task {
  const QuantSpec& spec;
  const float* values;
  std::int64_t cols;
  const float* column_weights;
  std::vector<float> factors;
  QuantizedWeight& q;
};

// Rows [r0, r1) share scales.
template <typename Grid>
void quantize_rows(const Task& t, std::int64_t r0, std::int64_t r1, Group& group, const Grid& grid) {
  const std::int64_t width = t.q.w.group;
  for (std::int64_t k0 = 0; k0 < t.cols; k0 += width) {
    const std::int64_t k1 = std::min(t.cols, k0 + width);
    group.clear();
    for (std::int64_t r = r0; r < r1; ++r) {
      group.append(t.values + r * t.cols + k0, t.column_weights != nullptr ? t.column_weights + k0 : nullptr, k1 - k0);
    }
    const std::size_t n = group.values.size();
    group.pad();
    const GroupScale s = best_scale(t.spec, group, n, t.factors, grid);
    set_scale(t.q, r0, k0 / width, s);
    const float inverse = 1.0F / s.scale;
    for (std::int64_t r = r0; r < r1; ++r) {
      for (std::int64_t k = k0; k < k1; ++k) {
        set_code(t.q, r, k, grid.code((t.values[r * t.cols + k] - s.min) * inverse));
      }
    }
  }
}

std::int64_t take_number(std::string_view& s) {
  std::int64_t n = 0;
  const auto r = std::from_chars(s.data(), s.data() + s.size(), n);
  if (r.ec != std::errc{} || n <= 0 || n > (std::int64_t{1} << 20)) return 0;
  s.remove_prefix(static_cast<std::size_t>(r.ptr - s.data()));
  return n;
}

bool take(std::string_view& s, std::string_view prefix) {
  if (!s.starts_with(prefix)) return false;
  s.remove_prefix(prefix.size());
  return true;
}

}  // namespace

std::vector<float> shrink_factors(const QuantSpec& spec, const ScaleSearch& search) {
  std::vector<float> factors{1.0F};
  if (spec.format == WeightFormat::kF8E4M3) return factors;
  for (int i = 0; search.steps > 1 && i < search.steps; ++i) {
    const float f =
        search.lowest + (search.highest - search.lowest) * static_cast<float>(i) / static_cast<float>(search.steps - 1);
    factors.push_back(f);
    if (search.negative && is_integer(spec.format) && spec.symmetric) factors.push_back(-f);
  }
  return factors;
}

QuantizedWeight quantize_searched(const QuantSpec& spec, const float* values, std::int64_t rows, std::int64_t cols,
                                  const QuantizeOptions& options, ThreadPool& pool) {
  QuantizedWeight q = allocate_quantized(spec, rows, cols);
  const Task task{spec, values, cols, options.column_weights, shrink_factors(spec, options.search), q};
  const std::int64_t blocks = (rows + spec.group_rows - 1) / spec.group_rows;
  // Few items a thread: an item of several rows amortises its buffers.
  const std::int64_t per_item = std::max<std::int64_t>(1, 32 / spec.group_rows);
  quantizer::with_grid(spec, [&](const auto& grid) {
    pool.parallel_for((blocks + per_item - 1) / per_item, [&](std::int64_t item, int) {
      Group group;
      for (std::int64_t b = item * per_item; b < std::min(blocks, (item + 1) * per_item); ++b)
        quantize_rows(task, b * spec.group_rows, std::min(rows, (b + 1) * spec.group_rows), group, grid);
    });
  });
  return q;
}

QuantSpec parse_quant_spec(std::string_view text, std::string_view source) {
  std::string_view s = text;
  QuantSpec spec;
  const auto fail = [&] {
    throw Error({.what = std::string(source),
                 .found = "'" + std::string(text) + "'",
                 .expected = "int4-g64, int4-g32-asym, int8, int8-g128, nf4, fp8, fp8-128x128 or bf16"});
  };
  if (take(s, "int4")) {
    spec.format = WeightFormat::kI4;
    spec.group = 64;
  } else if (take(s, "int8")) {
    spec.format = WeightFormat::kI8;
    spec.group = 0;
  } else if (take(s, "nf4")) {
    spec.format = WeightFormat::kNF4;
    spec.group = 64;
    spec.scale_dtype = DType::kF32;  // bitsandbytes' absmax
  } else if (take(s, "fp8")) {
    spec.format = WeightFormat::kF8E4M3;
    spec.group = 0;
  } else if (s == "bf16") {
    spec.format = WeightFormat::kBF16;
    return spec;
  } else {
    fail();
  }
  if (take(s, "-channel")) {
    spec.group = 0;
  } else if (spec.format == WeightFormat::kF8E4M3 && take(s, "-128x128")) {
    spec.group = spec.group_rows = 128;
  } else if (take(s, "-g")) {
    spec.group = take_number(s);
    if (spec.group == 0) fail();
  }
  if (is_integer(spec.format) && take(s, "-asym")) spec.symmetric = false;
  if (!s.empty()) fail();
  return spec;
}

QuantSpec fit_spec(QuantSpec spec, std::int64_t cols) {
  if (!has_scales(spec.format) || spec.group == 0 || spec.group_rows > 1) return spec;
  while (spec.group > 16 && cols % spec.group != 0) spec.group /= 2;
  if (cols % spec.group != 0) spec.group = 0;
  return spec;
}

}  // namespace glint
