// bitsandbytes:
//   NF4    weight U8 [N·K/2, 1], two codes a byte of the matrix read row by row, the first in the high nibble;
//          weight.absmax a block of 64 values, F32, or U8 codes of its own (double quantisation): then
//          absmax = nested_quant_map[code] · nested_absmax[block of 256] + nested_offset; weight.quant_map, the
//          codebook; weight.quant_state.bitsandbytes__nf4, a JSON text
//   int8   weight I8 [N, K], SCB F32 [N]: value = code · SCB / 127

#include <cmath>

#include "base/json.hpp"
#include "tensor/codec.hpp"
#include "weights/format_parts.hpp"

namespace glint {
namespace {

constexpr std::string_view kState = ".weight.quant_state.bitsandbytes__nf4";
constexpr std::string_view kFp4State = ".weight.quant_state.bitsandbytes__fp4";
constexpr std::string_view kNf4Suffixes[] = {
    ".weight", ".weight.absmax", ".weight.quant_map", ".weight.nested_absmax", ".weight.nested_quant_map",
    kState,    kFp4State};
constexpr std::string_view kInt8Suffixes[] = {".weight", ".SCB", ".weight_format"};

bool matches_nf4(const Checkpoint& checkpoint, const std::string& base) {
  return find_part(checkpoint, base, ".weight.absmax") != nullptr || find_part(checkpoint, base, kState) != nullptr ||
         find_part(checkpoint, base, kFp4State) != nullptr;
}

bool matches_int8(const Checkpoint& checkpoint, const std::string& base) {
  return find_part(checkpoint, base, ".SCB") != nullptr;
}

struct State {
  std::int64_t block = 0;
  std::int64_t nested_block = 0;
  float nested_offset = 0;
};

// The JSON text; every field that the reader relies on is checked.
class StateText {
 public:
  explicit StateText(const Checkpoint::Tensor& t) : t_(t) {
    expect_dtype(t, {DType::kU8});
    const ConstView v = t.view();
    document_ = json::parse_text({v.as<char>(), static_cast<std::size_t>(v.shape.elements())}, t.what());
    if (!document_.is_object()) refuse(t, "no JSON object", "an object of fields");
  }
  const json::value* find(const char* name) const { return document_.get_object().if_contains(name); }
  std::int64_t integer(const char* name, std::int64_t max) const {
    const json::value* v = find(name);
    if (v == nullptr || !v->is_int64() || v->get_int64() < 1 || v->get_int64() > max)
      refuse(t_, show(name, v), "an integer from 1 to " + std::to_string(max));
    return v->get_int64();
  }
  static std::string show(const char* name, const json::value* v) {
    return std::string(name) + " " + (v == nullptr ? "absent" : json::dump_python(*v).substr(0, 80));
  }
  void expect_matrix(std::int64_t rows, std::int64_t cols) const {
    const json::value* type = find("quant_type");
    if (type == nullptr || !type->is_string() || type->get_string() != "nf4")
      refuse(t_, show("quant_type", type), "\"nf4\"");
    const json::value* shape = find("shape");
    const json::array wanted{rows, cols};
    if (shape == nullptr || !shape->is_array() || shape->get_array() != wanted)
      refuse(t_, show("shape", shape), json::dump_python(wanted) + " by config.json");
  }
  float offset() const {
    const json::value* v = find("nested_offset");
    const double d = v != nullptr && v->is_number() ? v->to_number<double>() : std::nan("");
    if (!(std::fabs(d) < 1e30)) refuse(t_, show("nested_offset", v), "a finite number");
    return static_cast<float>(d);
  }

 private:
  const Checkpoint::Tensor& t_;
  json::value document_;
};

State read_state(const Checkpoint::Tensor& t, std::int64_t rows, std::int64_t cols, bool nested) {
  const StateText text(t);
  text.expect_matrix(rows, cols);
  constexpr std::int64_t kMax = 1 << 20;
  State s{.block = text.integer("blocksize", kMax)};
  if (nested) {
    s.nested_block = text.integer("nested_blocksize", kMax);
    s.nested_offset = text.offset();
  }
  return s;
}

void expect_codebook(const Checkpoint::Tensor& t) {
  expect_dtype(t, {DType::kF32});
  expect_shape(t, {16, 1});
  for (std::size_t i = 0; i < kNf4Codebook.size(); ++i) {
    const float v = t.view().as<float>()[i];
    if (!(std::fabs(v - kNf4Codebook[i]) <= 1e-6F))
      refuse(t, std::to_string(v) + " at " + std::to_string(i), std::to_string(kNf4Codebook[i]) + ", NF4's codebook");
  }
}

// absmax of every block, its own quantisation undone in the arithmetic of bitsandbytes: F32, one rounding a step.
std::vector<float> nested_absmax(MatrixParts& parts, const Checkpoint::Tensor& codes, const State& s) {
  const Checkpoint::Tensor& outer = parts.need(".weight.nested_absmax", "the scales of " + codes.entry->name);
  const Checkpoint::Tensor& map = parts.need(".weight.nested_quant_map", "the codebook of " + codes.entry->name);
  const std::int64_t n = codes.entry->shape.elements();
  expect_dtype(outer, {DType::kF32});
  expect_shape(outer, {divide_up(n, s.nested_block), 1});
  check_scales(outer, Sign::kNotNegative);
  expect_dtype(map, {DType::kF32});
  expect_shape(map, {256, 1});
  check_scales(map, Sign::kAny);
  const auto* in = codes.view().as<std::uint8_t>();
  std::vector<float> out(static_cast<std::size_t>(n));
  for (std::int64_t i = 0; i < n; ++i) {
    const float product = map.view().as<float>()[in[i]] * outer.view().as<float>()[i / s.nested_block];
    out[static_cast<std::size_t>(i)] = product + s.nested_offset;
  }
  for (const float v : out) {
    if (!std::isfinite(v)) refuse(outer, "scales that become infinite", "finite scales");
  }
  return out;
}

// Blocks that straddle rows: no block format has them.
void dequantise(MatrixParts& parts, const Checkpoint::Tensor& weight, const std::vector<float>& absmax,
                std::int64_t block) {
  const std::int64_t n = parts.rows() * parts.cols();
  const auto* codes = weight.view().as<std::uint8_t>();
  std::vector<float> values(static_cast<std::size_t>(n));
  for (std::int64_t i = 0; i < n; ++i) {
    const int u = i % 2 == 0 ? codes[i / 2] >> 4 : codes[i / 2] & 15;
    values[static_cast<std::size_t>(i)] =
        absmax[static_cast<std::size_t>(i / block)] * kNf4Codebook[static_cast<std::size_t>(u)];
  }
  parts.set_values(values);
}

std::vector<float> floats_of(const Checkpoint::Tensor& t) {
  const auto* p = t.view().as<float>();
  return {p, p + t.entry->shape.elements()};
}

StoredMatrix read_nf4(const Checkpoint& checkpoint, const std::string& base, std::int64_t rows, std::int64_t cols,
                      const QuantConfig&) {
  MatrixParts parts(checkpoint, base, rows, cols);
  if (const Checkpoint::Tensor* fp4 = find_part(checkpoint, base, kFp4State))
    refuse(*fp4, "bitsandbytes FP4", "NF4 or int8");
  const Checkpoint::Tensor& weight = parts.need(".weight", "NF4 codes beside the scales");
  expect_dtype(weight, {DType::kU8});
  if (weight.entry->shape.elements() * 2 != rows * cols)
    refuse(weight, "shape " + weight.entry->shape.to_string(),
           "[" + std::to_string(divide_up(rows * cols, 2)) + ", 1] for a matrix of " + parts.shape().to_string());
  const Checkpoint::Tensor& absmax = parts.need(".weight.absmax", "the scales of " + weight.entry->name);
  expect_dtype(absmax, {DType::kF32, DType::kU8});
  const bool nested = absmax.entry->dtype == DType::kU8;
  const std::string name(kState);
  const State state = read_state(parts.need(name, "the block sizes of " + weight.entry->name), rows, cols, nested);
  expect_shape(absmax, {divide_up(rows * cols, state.block), 1});
  expect_codebook(parts.need(".weight.quant_map", "the codebook of " + weight.entry->name));
  if (!nested) check_scales(absmax, Sign::kNotNegative);

  const bool whole_groups = cols % state.block == 0 && cols % 2 == 0;
  if (whole_groups) {
    parts.codes_in_place(weight);
    if (nested) {
      parts.set_scales(nested_absmax(parts, absmax, state), {}, state.block);
    } else {
      parts.scales_in_place(absmax, state.block);
    }
    return parts.finish(WeightFormat::kNF4, nested ? "bitsandbytes nf4, nested" : "bitsandbytes nf4");
  }
  dequantise(parts, weight, nested ? nested_absmax(parts, absmax, state) : floats_of(absmax), state.block);
  return parts.finish(parts.weight().format, "bitsandbytes nf4, dequantised");
}

StoredMatrix read_int8(const Checkpoint& checkpoint, const std::string& base, std::int64_t rows, std::int64_t cols,
                       const QuantConfig&) {
  MatrixParts parts(checkpoint, base, rows, cols);
  const Checkpoint::Tensor& weight = parts.need(".weight", "I8 codes beside the scales");
  const Checkpoint::Tensor& scb = parts.need(".SCB", "the scales of the rows");
  expect_dtype(weight, {DType::kI8});
  expect_shape(weight, parts.shape());
  expect_dtype(scb, {DType::kF32});
  expect_shape(scb, {rows, 1});
  check_scales(scb, Sign::kNotNegative);
  // 0: rows. The others are tilings for particular GPUs, which bitsandbytes no longer writes.
  if (const Checkpoint::Tensor* format = parts.find(".weight_format")) {
    expect_dtype(*format, {DType::kU8});
    if (format->entry->shape.elements() != 1 || *format->view().as<std::uint8_t>() != 0)
      refuse(*format, "a tiled layout", "0, the layout by rows");
  }
  std::vector<float> scales = floats_of(scb);
  for (float& s : scales) s /= 127.0F;
  parts.codes_in_place(weight);
  parts.set_scales(scales, {}, cols);
  return parts.finish(WeightFormat::kI8, "bitsandbytes int8");
}

constexpr MatrixScheme kSchemes[] = {{"bitsandbytes nf4", kNf4Suffixes, matches_nf4, read_nf4},
                                     {"bitsandbytes int8", kInt8Suffixes, matches_int8, read_int8}};

}  // namespace

std::span<const MatrixScheme> bitsandbytes_schemes() { return kSchemes; }

}  // namespace glint
