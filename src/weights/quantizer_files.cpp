#include "weights/quantizer_files.hpp"

#include <algorithm>
#include <array>
#include <cmath>

#include "base/error.hpp"
#include "base/json.hpp"

namespace glint {
namespace {

constexpr std::int64_t kNf4Block = 64;

std::string name_of(std::string_view base, std::string_view suffix) { return std::string(base) + std::string(suffix); }

// bitsandbytes keeps what does not fit a tensor as JSON in a byte tensor.
std::string nf4_state(std::int64_t rows, std::int64_t cols) {
  const json::object state{
      {"quant_type", "nf4"}, {"blocksize", kNf4Block}, {"dtype", "bfloat16"}, {"shape", json::array{rows, cols}}};
  return json::serialize(state);
}

constexpr std::string_view kNf4State = ".weight.quant_state.bitsandbytes__nf4";

Shape scale_shape(const QuantSpec& spec, std::int64_t rows, std::int64_t cols) {
  const std::int64_t group = spec.group == 0 ? cols : spec.group;
  return {(rows + spec.group_rows - 1) / spec.group_rows, (cols + group - 1) / group};
}

json::object group_json(const QuantGroup& g, std::string_view format) {
  const QuantSpec& s = g.spec;
  json::object weights{{"num_bits", weight_code_bits(s.format)},
                       {"type", s.format == WeightFormat::kF8E4M3 ? "float" : "int"},
                       {"symmetric", s.symmetric},
                       {"strategy", s.group_rows > 1 ? "block"
                                    : s.group == 0   ? "channel"
                                                     : "group"},
                       {"dynamic", false}};
  if (s.group_rows > 1) weights["block_structure"] = json::array{s.group_rows, s.group};
  else if (s.group > 0) weights["group_size"] = s.group;
  json::array targets;
  for (const std::string& t : g.targets) targets.push_back(json::value(t));
  return {{"targets", std::move(targets)},
          {"weights", std::move(weights)},
          {"input_activations", nullptr},
          {"output_activations", nullptr},
          {"format", format}};
}

std::string_view convention(WeightFormat f) {
  switch (f) {
    case WeightFormat::kI4:
      return "pack-quantized";
    case WeightFormat::kI8:
      return "int-quantized";
    default:
      return "float-quantized";
  }
}

}  // namespace

void check_storable(const QuantSpec& spec, std::string_view base, std::int64_t rows, std::int64_t cols) {
  const auto fail = [&](const std::string& expected) {
    throw Error({.what = "cannot store " + std::string(base) + " " + Shape{rows, cols}.to_string(),
                 .found = spec.name(),
                 .expected = expected});
  };
  switch (spec.format) {
    case WeightFormat::kI4:
      if (cols % 8 != 0) fail("columns in multiples of 8");
      break;
    case WeightFormat::kNF4:
      if (spec.group != kNf4Block || cols % kNf4Block != 0) fail("blocks of 64 that end with the row");
      break;
    case WeightFormat::kI8:
    case WeightFormat::kF8E4M3:
      break;
    default:
      fail("int4, int8, nf4 or fp8");
  }
}

namespace {

constexpr std::string_view kZeroPoint = ".weight_zero_point";
constexpr std::int64_t kZerosAWord = 8;

// Zero points as the conventions have them: int4 packed eight rows a word, int8 as signed codes.
TensorInfo zero_point_tensor(const QuantSpec& spec, std::string_view base, const Shape& scales) {
  if (spec.format == WeightFormat::kI8) return {name_of(base, kZeroPoint), DType::kI8, scales};
  return {name_of(base, kZeroPoint), DType::kI32, {(scales[0] + kZerosAWord - 1) / kZerosAWord, scales[1]}};
}

std::vector<std::uint8_t> zero_point_bytes(const Weight& w) {
  const std::int64_t groups = w.groups_a_row();
  const bool four = w.format == WeightFormat::kI4;
  const std::int64_t words = (w.rows + kZerosAWord - 1) / kZerosAWord * groups;
  std::vector<std::uint8_t> bytes(static_cast<std::size_t>(four ? words * 4 : w.rows * groups), 0);
  for (std::int64_t r = 0; r < w.rows; ++r) {
    for (std::int64_t g = 0; g < groups; ++g) {
      const auto i = static_cast<std::size_t>(r * groups + g);
      const float zero = -load_as_float(w.mins, w.scale_dtype, i) / load_as_float(w.scales, w.scale_dtype, i);
      const int code = static_cast<int>(std::nearbyint(zero));
      if (!four) {
        bytes[i] = static_cast<std::uint8_t>(code);
        continue;
      }
      // Little-endian words, the first row in the lowest bits.
      const auto at = static_cast<std::size_t>((r / kZerosAWord * groups + g) * 4 + r % kZerosAWord / 2);
      bytes[at] = static_cast<std::uint8_t>(bytes[at] | (code & 15) << (r % 2 * 4));
    }
  }
  return bytes;
}

int stored_zero(const QuantSpec& spec, const std::uint8_t* bytes, std::int64_t r, std::int64_t g, std::int64_t groups) {
  if (spec.format == WeightFormat::kI8) return static_cast<std::int8_t>(bytes[r * groups + g]);
  return bytes[(r / kZerosAWord * groups + g) * 4 + r % kZerosAWord / 2] >> (r % 2 * 4) & 15;
}

}  // namespace

std::vector<TensorInfo> stored_tensors(const QuantSpec& spec, std::string_view base, std::int64_t rows,
                                       std::int64_t cols) {
  const Shape scales = scale_shape(spec, rows, cols);
  std::vector<TensorInfo> zeros;
  if (!spec.symmetric) zeros.push_back(zero_point_tensor(spec, base, scales));
  const auto with_zeros = [&](std::vector<TensorInfo> list) {
    list.insert(list.end(), zeros.begin(), zeros.end());
    return list;
  };
  switch (spec.format) {
    case WeightFormat::kI4:
      return with_zeros({{name_of(base, ".weight_packed"), DType::kI32, {rows, cols / 8}},
                         {name_of(base, ".weight_scale"), spec.scale_dtype, scales},
                         {name_of(base, ".weight_shape"), DType::kI64, {2}}});
    case WeightFormat::kNF4: {
      const auto state_bytes = static_cast<std::int64_t>(nf4_state(rows, cols).size());
      return {{name_of(base, ".weight"), DType::kU8, {rows * cols / 2, 1}},
              {name_of(base, ".weight.absmax"), DType::kF32, {rows * cols / kNf4Block}},
              {name_of(base, ".weight.quant_map"), DType::kF32, {16}},
              {name_of(base, kNf4State), DType::kU8, {state_bytes}}};
    }
    default:
      return with_zeros(
          {{name_of(base, ".weight"), spec.format == WeightFormat::kI8 ? DType::kI8 : DType::kF8E4M3, {rows, cols}},
           {name_of(base, ".weight_scale"), spec.scale_dtype, scales}});
  }
}

void write_quantized(SafetensorsWriter& writer, const QuantSpec& spec, std::string_view base,
                     const QuantizedWeight& q) {
  const std::size_t code_bytes = static_cast<std::size_t>(q.w.rows * q.w.row_bytes());
  const std::size_t scale_bytes = static_cast<std::size_t>(q.w.scale_bytes()) / (spec.symmetric ? 1 : 2);
  switch (spec.format) {
    case WeightFormat::kI4: {
      const std::array<std::int64_t, 2> shape{q.w.rows, q.w.cols};
      writer.write(name_of(base, ".weight_packed"), q.codes.data(), code_bytes);
      writer.write(name_of(base, ".weight_scale"), q.scales.data(), scale_bytes);
      writer.write(name_of(base, ".weight_shape"), shape.data(), sizeof shape);
      break;
    }
    case WeightFormat::kNF4: {
      const std::string state = nf4_state(q.w.rows, q.w.cols);
      writer.write(name_of(base, ".weight"), q.codes.data(), code_bytes);
      writer.write(name_of(base, ".weight.absmax"), q.scales.data(), scale_bytes);
      writer.write(name_of(base, ".weight.quant_map"), kNf4Codebook.data(), sizeof kNf4Codebook);
      writer.write(name_of(base, kNf4State), state.data(), state.size());
      return;
    }
    default:
      writer.write(name_of(base, ".weight"), q.codes.data(), code_bytes);
      writer.write(name_of(base, ".weight_scale"), q.scales.data(), scale_bytes);
  }
  if (spec.symmetric) return;
  const std::vector<std::uint8_t> zeros = zero_point_bytes(q.w);
  writer.write(name_of(base, kZeroPoint), zeros.data(), zeros.size());
}

QuantizedWeight stored_weight(const SafetensorsFile& file, const QuantSpec& spec, std::string_view base,
                              std::int64_t rows, std::int64_t cols) {
  const bool packed = spec.format == WeightFormat::kI4;
  const ConstView codes = file.get(name_of(base, packed ? ".weight_packed" : ".weight"));
  const ConstView scales =
      file.get(name_of(base, spec.format == WeightFormat::kNF4 ? ".weight.absmax" : ".weight_scale"));
  QuantizedWeight q;
  q.w = {.format = spec.format,
         .rows = rows,
         .cols = cols,
         .data = codes.data,
         .scales = scales.data,
         .scale_dtype = scales.dtype,
         .group = spec.group == 0 ? cols : spec.group,
         .group_rows = spec.group_rows};
  if (spec.symmetric) return q;
  const auto* zeros = file.get(name_of(base, kZeroPoint)).as<std::uint8_t>();
  const std::int64_t groups = q.w.groups_a_row();
  q.mins = host_buffer(static_cast<std::size_t>(rows * groups) * dtype_bytes(scales.dtype));
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t g = 0; g < groups; ++g) {
      const auto i = static_cast<std::size_t>(r * groups + g);
      const auto zero = static_cast<float>(stored_zero(spec, zeros, r, g, groups));
      store_from_float(q.mins.data(), scales.dtype, i, -load_as_float(scales.data, scales.dtype, i) * zero);
    }
  }
  q.w.mins = q.mins.data();
  return q;
}

std::string quantization_config(const std::vector<QuantGroup>& groups, const std::vector<std::string>& ignored) {
  json::array ignore;
  for (const std::string& i : ignored) ignore.push_back(json::value(i));
  const auto is_nf4 = [](const QuantGroup& g) { return g.spec.format == WeightFormat::kNF4; };
  if (std::any_of(groups.begin(), groups.end(), is_nf4)) {
    if (!std::all_of(groups.begin(), groups.end(), is_nf4)) {
      throw Error({.what = "recipe",
                   .found = "nf4 beside other quantised formats",
                   .expected = "nf4 and bf16 only: bitsandbytes' files hold nothing else"});
    }
    return json::serialize(json::object{{"quant_method", "bitsandbytes"},
                                        {"load_in_4bit", true},
                                        {"load_in_8bit", false},
                                        {"bnb_4bit_quant_type", "nf4"},
                                        {"bnb_4bit_use_double_quant", false},
                                        {"bnb_4bit_compute_dtype", "bfloat16"},
                                        {"bnb_4bit_quant_storage", "uint8"},
                                        {"llm_int8_skip_modules", std::move(ignore)}});
  }
  json::object list;
  std::string_view format;
  for (std::size_t i = 0; i < groups.size(); ++i) {
    const std::string_view own = convention(groups[i].spec.format);
    format = i == 0 || format == own ? own : std::string_view("mixed-precision");
    list["group_" + std::to_string(i)] = group_json(groups[i], own);
  }
  return json::serialize(json::object{{"quant_method", "compressed-tensors"},
                                      {"format", format},
                                      {"quantization_status", "compressed"},
                                      {"config_groups", std::move(list)},
                                      {"ignore", std::move(ignore)},
                                      {"kv_cache_scheme", nullptr},
                                      {"global_compression_ratio", nullptr}});
}

}  // namespace glint
