#include "tensor/codec.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

#include "base/error.hpp"

namespace glint {
namespace {

const char* format_name(WeightFormat f) {
  switch (f) {
    case WeightFormat::kF32:
      return "f32";
    case WeightFormat::kF16:
      return "f16";
    case WeightFormat::kBF16:
      return "bf16";
    case WeightFormat::kF8E4M3:
      return "fp8";
    case WeightFormat::kI8:
      return "int8";
    case WeightFormat::kI4:
      return "int4";
    case WeightFormat::kNF4:
      return "nf4";
    case WeightFormat::kF4E2M1:
      return "fp4";
  }
  return "?";
}

bool is_integer(WeightFormat f) { return f == WeightFormat::kI8 || f == WeightFormat::kI4; }

const std::array<float, 16>& codebook(WeightFormat f) {
  return f == WeightFormat::kF4E2M1 ? kF4Codebook : kNf4Codebook;
}

float round_to(DType dtype, float v) {
  if (dtype == DType::kBF16) return to_float(to_bf16(v));
  if (dtype == DType::kF16) return to_float(to_f16(v));
  return v;
}

std::int64_t group_of(const QuantSpec& spec, std::int64_t cols) {
  return spec.group == 0 ? cols : std::min(spec.group, cols);
}

// Nearest codebook entry; a tie goes to the lower code.
int nearest(const std::array<float, 16>& book, float v) {
  int best = 0;
  for (int c = 1; c < 16; ++c) {
    if (std::fabs(v - book[static_cast<std::size_t>(c)]) < std::fabs(v - book[static_cast<std::size_t>(best)])) {
      best = c;
    }
  }
  return best;
}

int clamp_round(float v, int low, int high) {
  const float clamped = std::clamp(v, static_cast<float>(low), static_cast<float>(high));
  return static_cast<int>(std::nearbyint(clamped));
}

// The min that stands for a whole zero point: files hold that, and zero stays zero.
float whole_min(const QuantSpec& spec, float scale, float min) {
  const float lowest = spec.format == WeightFormat::kI4 ? 0.0F : -128.0F;
  const float zero =
      std::clamp(std::nearbyint(-min / scale), lowest, spec.format == WeightFormat::kI4 ? 15.0F : 127.0F);
  return round_to(spec.scale_dtype, -scale * zero);
}

}  // namespace

std::string QuantSpec::name() const {
  std::string s = format_name(format);
  if (!has_scales(format)) return s;
  if (group_rows > 1) {
    s += "-" + std::to_string(group_rows) + "x" + std::to_string(group);
  } else {
    s += group == 0 ? "-channel" : "-g" + std::to_string(group);
  }
  if (is_integer(format) && !symmetric) s += "-asym";
  return s;
}

QuantSpec quant_spec(const Weight& w) {
  if (!has_scales(w.format)) return {.format = w.format};
  return {.format = w.format,
          .group = w.group < w.cols ? w.group : 0,
          .group_rows = w.group_rows,
          .symmetric = w.mins == nullptr,
          .scale_dtype = w.scale_dtype};
}

double QuantSpec::bits(std::int64_t cols) const {
  double b = weight_code_bits(format);
  if (!has_scales(format)) return b;
  const double scale_bits =
      8.0 * static_cast<double>(dtype_bytes(scale_dtype)) * (is_integer(format) && !symmetric ? 2 : 1);
  return b + scale_bits / static_cast<double>(group_of(*this, cols) * group_rows);
}

void decode_row(const Weight& w, std::int64_t row, float* out) {
  CHECK(row >= 0 && row < w.rows);
  const auto* codes = static_cast<const std::uint8_t*>(w.data) + row * w.row_bytes();
  if (!has_scales(w.format)) {
    const DType t = w.format == WeightFormat::kF32   ? DType::kF32
                    : w.format == WeightFormat::kF16 ? DType::kF16
                                                     : DType::kBF16;
    for (std::int64_t k = 0; k < w.cols; ++k) out[k] = load_as_float(codes, t, static_cast<std::size_t>(k));
    return;
  }
  const std::int64_t first = row / w.group_rows * w.groups_a_row();
  for (std::int64_t k = 0; k < w.cols; ++k) {
    const auto g = static_cast<std::size_t>(first + k / w.group);
    const float scale = load_as_float(w.scales, w.scale_dtype, g);
    const float min = w.mins != nullptr ? load_as_float(w.mins, w.scale_dtype, g) : 0.0F;
    switch (w.format) {
      case WeightFormat::kF8E4M3:
        out[k] = scale * f8e4m3_to_float(codes[k]);
        break;
      case WeightFormat::kI8:
        out[k] = scale * static_cast<float>(static_cast<std::int8_t>(codes[k])) + min;
        break;
      case WeightFormat::kI4: {
        const int u = (k % 2 == 0) ? codes[k / 2] & 15 : codes[k / 2] >> 4;
        out[k] = w.mins != nullptr ? scale * static_cast<float>(u) + min : scale * static_cast<float>(u - 8);
        break;
      }
      default: {
        const bool low = (k % 2 == 0) == (w.format == WeightFormat::kF4E2M1);
        const int u = low ? codes[k / 2] & 15 : codes[k / 2] >> 4;
        out[k] = scale * codebook(w.format)[static_cast<std::size_t>(u)];
      }
    }
  }
}

QuantizedWeight allocate_quantized(const QuantSpec& spec, std::int64_t rows, std::int64_t cols) {
  CHECK(has_scales(spec.format));
  const std::string found = "[" + std::to_string(rows) + ", " + std::to_string(cols) + "]";
  if (weight_code_bits(spec.format) == 4 && cols % 2 != 0) {
    throw Error({.what = "cannot quantise to " + spec.name(), .found = found, .expected = "an even number of columns"});
  }
  QuantizedWeight q;
  q.w = {.format = spec.format,
         .rows = rows,
         .cols = cols,
         .scale_dtype = spec.scale_dtype,
         .group = group_of(spec, cols),
         .group_rows = spec.group_rows};
  const std::int64_t scales = (rows + spec.group_rows - 1) / spec.group_rows * q.w.groups_a_row();
  const std::size_t scale_bytes = static_cast<std::size_t>(scales) * dtype_bytes(spec.scale_dtype);
  q.codes = host_buffer(static_cast<std::size_t>(rows * q.w.row_bytes()));
  q.scales = host_buffer(scale_bytes);
  q.w.data = q.codes.data();
  q.w.scales = q.scales.data();
  if (is_integer(spec.format) && !spec.symmetric) {
    q.mins = host_buffer(scale_bytes);
    q.w.mins = q.mins.data();
  }
  return q;
}

GroupScale plain_scale(const QuantSpec& spec, const float* values, std::int64_t n) {
  float low = 0;
  float high = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    CHECK(std::isfinite(values[i]));
    low = std::min(low, values[i]);
    high = std::max(high, values[i]);
  }
  const float top = std::max(high, -low);
  GroupScale s;
  if (is_integer(spec.format) && !spec.symmetric) {
    const float steps = spec.format == WeightFormat::kI4 ? 15.0F : 255.0F;
    s.scale = (high - low) / steps;
    s.min = low;
    if (spec.format == WeightFormat::kI8) s.min = low + 128.0F * s.scale;  // signed codes start at -128
  } else {
    switch (spec.format) {
      case WeightFormat::kI4:
        s.scale = top / 7.5F;
        break;
      case WeightFormat::kI8:
        s.scale = top / 127.5F;
        break;
      case WeightFormat::kF8E4M3:
        s.scale = top / 448.0F;
        break;
      case WeightFormat::kF4E2M1:
        s.scale = top / 6.0F;
        break;
      default:
        s.scale = top;
    }
  }
  s.scale = round_to(spec.scale_dtype, s.scale);
  if (s.scale == 0) s.scale = 1;  // all zero, or too small for the scale's type
  if (!spec.symmetric) s.min = whole_min(spec, s.scale, s.min);
  return s;
}

GroupScale shrunk_scale(const QuantSpec& spec, const GroupScale& plain, float shrink) {
  GroupScale s{.scale = round_to(spec.scale_dtype, plain.scale * shrink)};
  if (s.scale == 0) return plain;
  if (!spec.symmetric) s.min = whole_min(spec, s.scale, plain.min * shrink);
  return s;
}

int encode_value(const QuantSpec& spec, const GroupScale& s, float v) {
  const float x = (v - (is_integer(spec.format) && !spec.symmetric ? s.min : 0.0F)) / s.scale;
  switch (spec.format) {
    case WeightFormat::kI8:
      return clamp_round(x, -128, 127);
    case WeightFormat::kI4:
      return spec.symmetric ? clamp_round(x, -8, 7) + 8 : clamp_round(x, 0, 15);
    case WeightFormat::kF8E4M3:
      return float_to_f8e4m3(x);
    default:
      return nearest(codebook(spec.format), x);
  }
}

float decode_value(const QuantSpec& spec, const GroupScale& s, int code) {
  switch (spec.format) {
    case WeightFormat::kI8:
      return s.scale * static_cast<float>(code) + (spec.symmetric ? 0.0F : s.min);
    case WeightFormat::kI4:
      return spec.symmetric ? s.scale * static_cast<float>(code - 8) : s.scale * static_cast<float>(code) + s.min;
    case WeightFormat::kF8E4M3:
      return s.scale * f8e4m3_to_float(static_cast<std::uint8_t>(code));
    default:
      return s.scale * codebook(spec.format)[static_cast<std::size_t>(code)];
  }
}

void set_code(const QuantizedWeight& q, std::int64_t row, std::int64_t col, int code) {
  auto* codes = static_cast<std::uint8_t*>(q.codes.data()) + row * q.w.row_bytes();
  if (weight_code_bits(q.w.format) == 8) {
    codes[col] = static_cast<std::uint8_t>(code);
    return;
  }
  const bool low = (col % 2 == 0) == (q.w.format != WeightFormat::kNF4);
  std::uint8_t& byte = codes[col / 2];
  byte = static_cast<std::uint8_t>(low ? (byte & 0xf0) | code : (byte & 0x0f) | (code << 4));
}

void set_scale(const QuantizedWeight& q, std::int64_t row, std::int64_t group_index, const GroupScale& s) {
  const auto i = static_cast<std::size_t>(row / q.w.group_rows * q.w.groups_a_row() + group_index);
  store_from_float(q.scales.data(), q.w.scale_dtype, i, s.scale);
  if (q.w.mins != nullptr) store_from_float(q.mins.data(), q.w.scale_dtype, i, s.min);
}

QuantizedWeight quantize_rtn(const QuantSpec& spec, const float* values, std::int64_t rows, std::int64_t cols) {
  QuantizedWeight q = allocate_quantized(spec, rows, cols);
  const std::int64_t group = q.w.group;
  std::vector<float> block;
  for (std::int64_t r0 = 0; r0 < rows; r0 += spec.group_rows) {
    const std::int64_t r1 = std::min(rows, r0 + spec.group_rows);
    for (std::int64_t k0 = 0; k0 < cols; k0 += group) {
      const std::int64_t k1 = std::min(cols, k0 + group);
      block.clear();
      for (std::int64_t r = r0; r < r1; ++r) block.insert(block.end(), values + r * cols + k0, values + r * cols + k1);
      const GroupScale s = plain_scale(spec, block.data(), static_cast<std::int64_t>(block.size()));
      set_scale(q, r0, k0 / group, s);
      for (std::int64_t r = r0; r < r1; ++r) {
        for (std::int64_t k = k0; k < k1; ++k) set_code(q, r, k, encode_value(spec, s, values[r * cols + k]));
      }
    }
  }
  return q;
}

}  // namespace glint
