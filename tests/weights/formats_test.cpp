// Every scheme of matrix_reader: bytes written by the documented arithmetic come back as the values that the same
// arithmetic gives, straightforwardly; what is damaged is refused by name.

#include "weights/format_samples.hpp"

namespace glint {
namespace {

// ---- plain -----------------------------------------------------------------------------------------------------

Stored plain(DType dtype) {
  Stored s{.rows = 3, .cols = 86};
  const View w = s.add(".weight", dtype, {3, 86});
  for (std::int64_t i = 0; i < 3 * 86; ++i) {
    if (dtype == DType::kF8E4M3) w.as<std::uint8_t>()[i] = static_cast<std::uint8_t>(i % 127);
    else store_from_float(w.data, dtype, at(i), static_cast<float>(i - 100) / 16.0F);
    s.values.push_back(float_at(w, i));
  }
  return s;
}

TEST(Formats, PlainMatricesAreUsedInPlace) {
  for (const DType t : {DType::kF32, DType::kF16, DType::kBF16}) expect_values(plain(t), "plain", Place::kAll);
  expect_values(plain(DType::kF8E4M3), "plain", Place::kNothing);
}

// ---- FP8 and int8: one code a byte -------------------------------------------------------------------------------

struct ByteShape {
  std::int64_t rows;
  std::int64_t cols;
  Shape scales;
  std::int64_t group_rows;
  std::int64_t group;
};

Stored bytes(DType codes, const std::string& scale_suffix, DType scale_dtype, const ByteShape& b) {
  Dice dice(static_cast<std::uint64_t>(b.rows));
  Stored s{.rows = b.rows, .cols = b.cols};
  const View w = s.add(".weight", codes, {b.rows, b.cols});
  const View scales = s.add(scale_suffix, scale_dtype, b.scales);
  fill_scales(scales, dice);
  const std::int64_t groups = (b.cols + b.group - 1) / b.group;
  for (std::int64_t r = 0; r < b.rows; ++r) {
    for (std::int64_t k = 0; k < b.cols; ++k) {
      auto& code = w.as<std::uint8_t>()[r * b.cols + k];
      code = static_cast<std::uint8_t>(dice.below(256));
      if (codes == DType::kF8E4M3 && (code & 0x7f) == 0x7f) code = 0;
      const float v = codes == DType::kI8 ? static_cast<float>(static_cast<std::int8_t>(code)) : f8e4m3_to_float(code);
      s.values.push_back(float_at(scales, r / b.group_rows * groups + k / b.group) * v);
    }
  }
  return s;
}

const ByteShape kChannel{5, 48, {5, 1}, 1, 48};
const ByteShape kTensor{5, 48, {1}, 5, 48};
const ByteShape kScalar{5, 48, {}, 5, 48};
const ByteShape kBlocks{576, 200, {5, 2}, 128, 128};  // kv_a's 4.5 blocks of rows, and 1.6 of columns
const ByteShape kGroups{5, 64, {5, 4}, 1, 16};

TEST(Formats, Fp8WithScales) {
  for (const DType t : {DType::kF32, DType::kBF16, DType::kF16}) {
    expect_values(bytes(DType::kF8E4M3, ".weight_scale", t, kChannel), "compressed-tensors fp8", Place::kAll);
    expect_values(bytes(DType::kF8E4M3, ".weight_scale", t, kTensor), "compressed-tensors fp8", Place::kCodes);
    expect_values(bytes(DType::kF8E4M3, ".weight_scale_inv", t, kBlocks), "block fp8", Place::kAll);
  }
  expect_values(bytes(DType::kF8E4M3, ".weight_scale", DType::kF32, kBlocks), "compressed-tensors fp8", Place::kAll);
  Stored modelopt = bytes(DType::kF8E4M3, ".weight_scale", DType::kF32, kScalar);
  modelopt.config.method = "modelopt";
  store_from_float(modelopt.add(".input_scale", DType::kF32, {}).data, DType::kF32, 0, 0.5F);
  expect_values(modelopt, "modelopt fp8", Place::kCodes);
}

TEST(Formats, Int8OfCompressedTensors) {
  expect_values(bytes(DType::kI8, ".weight_scale", DType::kBF16, kChannel), "compressed-tensors int8", Place::kAll);
  expect_values(bytes(DType::kI8, ".weight_scale", DType::kF32, kGroups), "compressed-tensors int8", Place::kAll);
  expect_values(bytes(DType::kI8, ".weight_scale", DType::kF32, kTensor), "compressed-tensors int8", Place::kCodes);

  Stored s = bytes(DType::kI8, ".weight_scale", DType::kBF16, kGroups);
  const View zeros = s.add(".weight_zero_point", DType::kI8, {5, 4});
  for (std::int64_t i = 0; i < 20; ++i) zeros.as<std::int8_t>()[i] = static_cast<std::int8_t>(i - 10);
  for (std::int64_t i = 0; i < 5 * 64; ++i) {
    const std::int64_t g = i / 64 * 4 + i % 64 / 16;
    s.values[at(i)] = float_at(s[".weight_scale"], g) *
                      static_cast<float>(s[".weight"].as<std::int8_t>()[i] - zeros.as<std::int8_t>()[g]);
  }
  expect_values(s, "compressed-tensors int8", Place::kCodes);  // exactly: F32 mins
}

TEST(Formats, Int8OfBitsandbytes) {
  Stored s{.rows = 4, .cols = 10};
  const View w = s.add(".weight", DType::kI8, {4, 10}), scb = s.add(".SCB", DType::kF32, {4});
  s.add(".weight_format", DType::kU8, {});
  for (std::int64_t r = 0; r < 4; ++r) {
    scb.as<float>()[r] = 0.3F * static_cast<float>(r + 1);
    for (std::int64_t k = 0; k < 10; ++k) {
      w.as<std::int8_t>()[r * 10 + k] = static_cast<std::int8_t>(r * 31 - k * 12);
      s.values.push_back(static_cast<float>(r * 31 - k * 12) * scb.as<float>()[r] / 127.0F);
    }
  }
  expect_values(s, "bitsandbytes int8", Place::kCodes, 1e-7F);
  s[".weight_format"].as<std::uint8_t>()[0] = 2;
  expect_refused(s, ".weight_format", "tiled");
  s[".weight_format"].as<std::uint8_t>()[0] = 0;
  scb.as<float>()[2] = -0.0F;
  expect_refused(s, "tensor " + kBase + ".SCB", "1 of 4 scales negative");
}

// ---- compressed-tensors int4 and int8 packed into words ------------------------------------------------------------

struct PackShape {
  std::int64_t rows = 6;
  std::int64_t cols = 64;
  std::int64_t group = 32;
  int bits = 4;
  bool zeros = false;
};

void pack(View words, std::int64_t row_words, std::int64_t r, std::int64_t k, int bits, unsigned code) {
  const std::int64_t a_word = 32 / bits;
  words.as<std::uint32_t>()[r * row_words + k / a_word] |= code << (k % a_word * bits);
}

Stored packed(const PackShape& p) {
  Dice dice(static_cast<std::uint64_t>(p.cols + p.bits));
  Stored s{.rows = p.rows, .cols = p.cols};
  const std::int64_t a_word = 32 / p.bits, words = (p.cols + a_word - 1) / a_word, groups = p.cols / p.group;
  const int offset = 1 << (p.bits - 1);
  const View w = s.add(".weight_packed", DType::kI32, {p.rows, words});
  const View scales = s.add(".weight_scale", DType::kBF16, {p.rows, groups});
  fill_scales(scales, dice);
  const View shape = s.add(".weight_shape", DType::kI64, {2});
  shape.as<std::int64_t>()[0] = p.rows;
  shape.as<std::int64_t>()[1] = p.cols;
  std::vector<int> zero(at(p.rows * groups));
  if (p.zeros) {
    const View z = s.add(".weight_zero_point", DType::kI32, {(p.rows + a_word - 1) / a_word, groups});
    for (std::int64_t r = 0; r < p.rows; ++r) {
      for (std::int64_t g = 0; g < groups; ++g) {
        zero[at(r * groups + g)] = dice.below(2 * offset) - offset;
        z.as<std::uint32_t>()[r / a_word * groups + g] |= static_cast<unsigned>(zero[at(r * groups + g)] + offset)
                                                          << (r % a_word * p.bits);
      }
    }
  }
  for (std::int64_t r = 0; r < p.rows; ++r) {
    for (std::int64_t k = 0; k < p.cols; ++k) {
      const int q = dice.below(2 * offset) - offset;
      pack(w, words, r, k, p.bits, static_cast<unsigned>(q + offset));
      const std::int64_t g = r * groups + k / p.group;
      s.values.push_back(float_at(scales, g) * static_cast<float>(q - zero[at(g)]));
    }
  }
  return s;
}

TEST(Formats, PackedIntegers) {
  expect_values(packed({}), "compressed-tensors int4", Place::kAll);
  expect_values(packed({.group = 64}), "compressed-tensors int4", Place::kAll);
  expect_values(packed({.zeros = true}), "compressed-tensors int4", Place::kCodes);
  expect_values(packed({.rows = 11, .cols = 128, .zeros = true}), "compressed-tensors int4", Place::kCodes);
  // Rows that do not fill their words: one group, since its size must be a multiple of 8.
  const auto r = read(packed({.cols = 20, .group = 20}));
  EXPECT_EQ(r->matrix.owned.size(), 1U);
  for (const bool zeros : {false, true}) {
    const auto eight = read(packed({.bits = 8, .zeros = zeros}));
    EXPECT_EQ(eight->matrix.weight.format, WeightFormat::kI8);
    EXPECT_EQ(eight->matrix.scheme, "compressed-tensors int8 packed");
    const Stored s = packed({.bits = 8, .zeros = zeros});
    std::vector<float> row(64);
    for (std::int64_t i = 0; i < s.rows; ++i) {
      decode_row(eight->matrix.weight, i, row.data());
      for (std::int64_t k = 0; k < 64; ++k) ASSERT_EQ(row[at(k)], s.values[at(i * 64 + k)]);
    }
  }
}

TEST(Formats, PackedZeroPointsMayBeBytes) {
  Stored s = packed({.zeros = true});
  std::vector<std::int8_t> zero;
  for (std::int64_t r = 0; r < s.rows; ++r) {
    for (std::int64_t g = 0; g < 2; ++g) {
      const std::uint32_t word = s[".weight_zero_point"].as<std::uint32_t>()[r / 8 * 2 + g];
      zero.push_back(static_cast<std::int8_t>(static_cast<int>((word >> (4 * (r % 8))) & 15U) - 8));
    }
  }
  std::memcpy(s.add(".weight_zero_point", DType::kI8, {s.rows, 2}).data, zero.data(), zero.size());
  expect_values(s, "compressed-tensors int4", Place::kCodes);
}

TEST(Formats, PackedGroupIndexMustBeInOrder) {
  Stored s = packed({});
  const View idx = s.add(".weight_g_idx", DType::kI32, {64});
  for (std::int64_t k = 0; k < 64; ++k) idx.as<std::int32_t>()[k] = -1;
  expect_values(s, "compressed-tensors int4", Place::kAll);
  for (std::int32_t k = 0; k < 64; ++k) idx.as<std::int32_t>()[k] = k / 32;
  expect_values(s, "compressed-tensors int4", Place::kAll);
  idx.as<std::int32_t>()[3] = 1;
  expect_refused(s, "weight_g_idx", "column 3 in group 1", "group 0");
}

// ---- FP4 ---------------------------------------------------------------------------------------------------------

Stored fp4(bool modelopt, bool mx = false) {
  Dice dice(7);
  const std::int64_t rows = 3, cols = 96, group = mx ? 32 : 16;
  Stored s{.rows = rows, .cols = cols};
  const View w = s.add(modelopt ? ".weight" : ".weight_packed", DType::kU8, {rows, cols / 2});
  const View scales = s.add(".weight_scale", mx ? DType::kU8 : DType::kF8E4M3, {rows, cols / group});
  for (std::int64_t i = 0; i < scales.shape.elements(); ++i)
    scales.as<std::uint8_t>()[i] = static_cast<std::uint8_t>(mx ? 110 + dice.below(30) : 0x20 + dice.below(64));
  float global = 1;
  if (!mx) {
    global = modelopt ? 0.0037F : 271.3F;
    s.add(modelopt ? ".weight_scale_2" : ".weight_global_scale", DType::kF32, modelopt ? Shape{} : Shape{1})
        .as<float>()[0] = global;
  }
  for (std::int64_t i = 0; i < rows * cols / 2; ++i)
    w.as<std::uint8_t>()[i] = static_cast<std::uint8_t>(dice.below(256));
  constexpr float kMagnitudes[8] = {0, 0.5F, 1, 1.5F, 2, 3, 4, 6};
  for (std::int64_t i = 0; i < rows * cols; ++i) {
    const int u = (w.as<std::uint8_t>()[i / 2] >> (i % 2 * 4)) & 15;
    const std::uint8_t code = scales.as<std::uint8_t>()[i / group];
    const float scale = mx         ? std::ldexp(1.0F, code - 127)
                        : modelopt ? f8e4m3_to_float(code) * global
                                   : f8e4m3_to_float(code) / global;
    s.values.push_back((u >= 8 ? -scale : scale) * kMagnitudes[u & 7]);
  }
  return s;
}

TEST(Formats, Fp4) {
  expect_values(fp4(false), "compressed-tensors nvfp4", Place::kCodes);
  expect_values(fp4(true), "modelopt nvfp4", Place::kCodes);
  expect_values(fp4(false, true), "compressed-tensors mxfp4", Place::kCodes);
  EXPECT_EQ(read(fp4(false, true))->matrix.weight.scale_dtype, DType::kBF16) << "powers of two";
  EXPECT_EQ(read(fp4(false))->matrix.weight.scale_dtype, DType::kF32);
}

// ---- AWQ and GPTQ --------------------------------------------------------------------------------------------------

Stored awq(int fixed_zero = -1) {
  Dice dice(3);
  const std::int64_t rows = 48, cols = 64, group = 32, groups = 2;
  Stored s{.rows = rows, .cols = cols};
  const View w = s.add(".qweight", DType::kI32, {cols, rows / 8});
  const View z = s.add(".qzeros", DType::kI32, {groups, rows / 8});
  const View scales = s.add(".scales", DType::kF16, {groups, rows});
  fill_scales(scales, dice);
  // Bits of a row within a word: rows 0, 2, 4, 6, 1, 3, 5, 7 lie at bits 0, 4, 8 …
  constexpr int kBit[8] = {0, 16, 4, 20, 8, 24, 12, 28};
  std::vector<int> zero;
  for (std::int64_t g = 0; g < groups; ++g) {
    for (std::int64_t n = 0; n < rows; ++n) {
      zero.push_back(fixed_zero >= 0 ? fixed_zero : dice.below(16));
      z.as<std::uint32_t>()[(g * rows + n) / 8] |= static_cast<unsigned>(zero.back()) << kBit[n % 8];
    }
  }
  for (std::int64_t n = 0; n < rows; ++n) {
    for (std::int64_t k = 0; k < cols; ++k) {
      const int u = dice.below(16);
      w.as<std::uint32_t>()[(k * rows + n) / 8] |= static_cast<unsigned>(u) << kBit[n % 8];
      const std::int64_t g = k / group * rows + n;
      s.values.push_back(float_at(scales, g) * static_cast<float>(u - zero[at(g)]));
    }
  }
  return s;
}

TEST(Formats, Awq) {
  expect_values(awq(), "awq", Place::kNothing);
  expect_values(awq(8), "awq", Place::kNothing);
  EXPECT_NE(read(awq())->matrix.weight.mins, nullptr);
  EXPECT_EQ(read(awq(8))->matrix.weight.mins, nullptr) << "zero points of 8 are the symmetric format";
  EXPECT_EQ(read(awq(8))->matrix.weight.scale_dtype, DType::kBF16) << "these scales fit";
}

struct GptqShape {
  int bits = 4;
  bool v2 = false;
  bool shuffled = false;
  int fixed_zero = -1;
};

Stored gptq(const GptqShape& p) {
  Dice dice(5);
  const std::int64_t rows = 48, cols = 64, groups = 4, group = 16, a_word = 32 / p.bits;
  const int n_codes = 1 << p.bits;
  Stored s{.rows = rows, .cols = cols};
  s.config.gptq_v2 = p.v2;
  const View w = s.add(".qweight", DType::kI32, {cols / a_word, rows});
  const View z = s.add(".qzeros", DType::kI32, {groups, rows / a_word});
  const View scales = s.add(".scales", DType::kF16, {groups, rows});
  const View idx = s.add(".g_idx", DType::kI32, {cols});
  fill_scales(scales, dice);
  for (std::int32_t k = 0; k < cols; ++k)
    idx.as<std::int32_t>()[k] =
        p.shuffled ? k * 5 % static_cast<std::int32_t>(groups) : k / static_cast<std::int32_t>(group);
  std::vector<int> zero;
  for (std::int64_t g = 0; g < groups; ++g) {
    for (std::int64_t n = 0; n < rows; ++n) {
      zero.push_back(p.fixed_zero >= 0 ? p.fixed_zero : 1 + dice.below(n_codes - 1));
      pack(z, rows / a_word, g, n, p.bits, static_cast<unsigned>(zero.back() - (p.v2 ? 0 : 1)));
    }
  }
  for (std::int64_t n = 0; n < rows; ++n) {
    for (std::int64_t k = 0; k < cols; ++k) {
      const int u = dice.below(n_codes);
      w.as<std::uint32_t>()[k / a_word * rows + n] |= static_cast<unsigned>(u) << (k % a_word * p.bits);
      const std::int64_t g = idx.as<std::int32_t>()[k] * rows + n;
      s.values.push_back(float_at(scales, g) * static_cast<float>(u - zero[at(g)]));
    }
  }
  return s;
}

TEST(Formats, Gptq) {
  for (const bool v2 : {false, true}) {
    expect_values(gptq({.v2 = v2}), "gptq", Place::kNothing);
    expect_values(gptq({.bits = 8, .v2 = v2}), "gptq int8", Place::kNothing);
    // Symmetric files are read right even if the config tells the wrong version.
    Stored wrong = gptq({.v2 = v2, .fixed_zero = 8});
    wrong.config.gptq_v2 = !v2;
    expect_values(wrong, "gptq", Place::kNothing);
    EXPECT_EQ(read(wrong)->matrix.weight.mins, nullptr);
  }
  expect_values(gptq({.bits = 8, .fixed_zero = 128}), "gptq int8", Place::kNothing);
  Stored bare = gptq({.fixed_zero = 8});
  bare.tensors.erase(".g_idx");
  bare.tensors.erase(".qzeros");
  expect_values(bare, "gptq", Place::kNothing);
}

TEST(Formats, GptqActOrderIsDequantisedExactly) {
  const Stored s = gptq({.shuffled = true});
  expect_values(s, "gptq act-order, dequantised", Place::kNothing);
  EXPECT_FALSE(has_scales(read(s)->matrix.weight.format));
  for (const std::int32_t bad : {-1, 4, std::numeric_limits<std::int32_t>::max()}) {
    Stored out = gptq({});
    out[".g_idx"].as<std::int32_t>()[9] = bad;
    expect_refused(out, ".g_idx", "group " + std::to_string(bad) + " of column 9", "from 0 to 3");
  }
}

TEST(Formats, AutoRoundsNegativeScalesAreRight) {
  Stored s = gptq({.fixed_zero = 8});
  const View scales = s[".scales"];
  for (std::int64_t i = 0; i < scales.shape.elements(); i += 3)
    store_from_float(scales.data, DType::kF16, at(i), -float_at(scales, i));
  for (std::int64_t n = 0; n < s.rows; ++n) {
    for (std::int64_t k = 0; k < s.cols; ++k) {
      if ((k / 16 * s.rows + n) % 3 == 0) s.values[at(n * s.cols + k)] *= -1;
    }
  }
  expect_values(s, "gptq", Place::kNothing);
}

// ---- bitsandbytes NF4 ----------------------------------------------------------------------------------------------

void add_text(Stored& s, const std::string& suffix, const std::string& text) {
  std::memcpy(s.add(suffix, DType::kU8, {static_cast<std::int64_t>(text.size())}).data, text.data(), text.size());
}

const std::string kState = ".weight.quant_state.bitsandbytes__nf4";

Stored nf4(std::int64_t rows, std::int64_t cols, bool nested) {
  Dice dice(11);
  Stored s{.rows = rows, .cols = cols};
  const std::int64_t n = rows * cols, blocks = (n + 63) / 64;
  const View w = s.add(".weight", DType::kU8, {n / 2, 1});
  const View map = s.add(".weight.quant_map", DType::kF32, {16});
  std::memcpy(map.data, kNf4Codebook.data(), sizeof kNf4Codebook);
  const View absmax = s.add(".weight.absmax", nested ? DType::kU8 : DType::kF32, {blocks});
  std::vector<float> scale;
  if (nested) {
    const View outer = s.add(".weight.nested_absmax", DType::kF32, {(blocks + 255) / 256});
    const View outer_map = s.add(".weight.nested_quant_map", DType::kF32, {256});
    for (std::int64_t i = 0; i < 256; ++i) outer_map.as<float>()[i] = static_cast<float>(i - 128) / 131.0F;
    for (std::int64_t i = 0; i < outer.shape[0]; ++i) outer.as<float>()[i] = 0.0021F * static_cast<float>(i + 1);
    for (std::int64_t i = 0; i < blocks; ++i) {
      const int code = dice.below(256);
      absmax.as<std::uint8_t>()[i] = static_cast<std::uint8_t>(code);
      scale.push_back(outer_map.as<float>()[code] * outer.as<float>()[i / 256] + 0.013F);
    }
  } else {
    for (std::int64_t i = 0; i < blocks; ++i)
      scale.push_back(absmax.as<float>()[i] = 0.0007F * static_cast<float>(i + 1));
  }
  add_text(s, kState,
           "{\"quant_type\": \"nf4\", \"blocksize\": 64, \"dtype\": \"bfloat16\", \"shape\": [" + std::to_string(rows) +
               ", " + std::to_string(cols) + "]" +
               (nested ? ", \"nested_blocksize\": 256, \"nested_dtype\": \"float32\", \"nested_offset\": 0.013" : "") +
               "}");
  for (std::int64_t i = 0; i < n; ++i) {
    const int u = dice.below(16);
    w.as<std::uint8_t>()[i / 2] |= static_cast<std::uint8_t>(i % 2 == 0 ? u << 4 : u);
    s.values.push_back(scale[at(i / 64)] * kNf4Codebook[at(u)]);
  }
  return s;
}

TEST(Formats, Nf4) {
  expect_values(nf4(5, 128, false), "bitsandbytes nf4", Place::kAll);
  expect_values(nf4(300, 128, true), "bitsandbytes nf4, nested", Place::kCodes);
  expect_values(nf4(6, 96, false), "bitsandbytes nf4, dequantised", Place::kNothing);
  expect_values(nf4(6, 96, true), "bitsandbytes nf4, dequantised", Place::kNothing);
}

TEST(Formats, Nf4RefusesADamagedState) {
  const auto refuse = [](const std::string& state, const auto&... parts) {
    Stored s = nf4(4, 64, true);
    add_text(s, kState, state);
    expect_refused(s, kState, parts...);
  };
  const std::string rest = "\"blocksize\": 64, \"nested_blocksize\": 256, \"nested_offset\": 0.5}";
  refuse("{\"quant_type\": \"fp4\", \"shape\": [4, 64], " + rest, "\"fp4\"", "\"nf4\"");
  refuse("{\"quant_type\": \"nf4\", \"shape\": [64, 4], " + rest, "[64, 4]", "[4, 64]");
  refuse("{\"quant_type\": \"nf4\", \"shape\": [4, 64], \"blocksize\": 0}", "blocksize 0", "from 1");
  refuse("{\"quant_type\": \"nf4\", \"shape\": [4, 64], \"blocksize\": 64, \"nested_blocksize\": 256}",
         "nested_offset absent");
  refuse("[1]", "no JSON object");
  refuse("{\"quant_type", "JSON");
  Stored s = nf4(4, 64, false);
  s[".weight.quant_map"].as<float>()[5] = 0.25F;
  expect_refused(s, ".weight.quant_map", "NF4's codebook");
  Stored few = nf4(4, 64, false);
  few.add(".weight.absmax", DType::kF32, {3});
  expect_refused(few, ".weight.absmax", "[3]", "[4, 1]");
}

// ---- what is wrong -------------------------------------------------------------------------------------------------

TEST(Formats, EveryHalfOfAPairIsMissed) {
  const std::vector<std::function<Stored()>> all{
      [] { return bytes(DType::kF8E4M3, ".weight_scale_inv", DType::kF32, kBlocks); },
      [] { return bytes(DType::kI8, ".weight_scale", DType::kF32, kChannel); },
      [] { return packed({}); },
      [] { return fp4(false); },
      [] { return fp4(true); },
      [] { return awq(); },
      [] { return gptq({}); },
      [] { return nf4(4, 64, false); },
      [] { return nf4(4, 64, true); }};
  // Without these a matrix is another valid one.
  const std::set<std::string> optional{".weight_shape", ".weight_zero_point", ".qzeros", ".g_idx", ".input_scale"};
  for (const auto& make : all) {
    const Stored whole = make();
    for (const auto& [suffix, tensor] : whole.tensors) {
      if (optional.contains(suffix)) continue;
      Stored half = make();
      half.tensors.erase(suffix);
      // F8 without its scales is a plain matrix of F8: nothing in the file tells.
      if (suffix == ".weight_scale_inv") continue;
      SCOPED_TRACE("without " + suffix);
      expect_refused(half, kBase, "expected");
    }
  }
  const auto without = [](Stored s, const std::string& suffix) {
    s.tensors.erase(suffix);
    return s;
  };
  expect_refused(without(packed({}), ".weight_packed"), "only .weight_scale, .weight_shape", "weight_packed");
  expect_refused(without(packed({}), ".weight_scale"), ".weight_scale", "no such tensor", "scales of");
  expect_refused(without(bytes(DType::kI8, ".x", DType::kF32, kChannel), ".x"), "I8", "scales are missing");
  Stored other{.rows = 3, .cols = 8};
  other.add(".other", DType::kF32, {1});
  expect_refused(other, "tensor " + kBase + ".weight", "no such tensor", "[3, 8]");
}

TEST(Formats, WrongShapesAndTypesAreRefused) {
  const auto refuse = [](Stored s, const std::string& suffix, DType dtype, const Shape& shape, const auto&... parts) {
    SCOPED_TRACE(suffix + " " + shape.to_string());
    s.add(suffix, dtype, shape);
    expect_refused(s, "model.safetensors: tensor " + kBase + suffix, parts...);
  };
  const auto f8 = [](const ByteShape& b) { return bytes(DType::kF8E4M3, ".weight_scale", DType::kF32, b); };
  refuse(f8(kChannel), ".weight_scale", DType::kF32, {4, 1}, "[4, 1]", "[5, 1]");
  refuse(f8(kGroups), ".weight_scale", DType::kF32, {5, 3}, "3 groups a row", "64 columns");
  refuse(f8(kGroups), ".weight_scale", DType::kF32, {5, 32}, "32 groups a row", "multiple of 8");
  refuse(f8(kBlocks), ".weight_scale", DType::kF32, {4, 2}, "[4, 2]", "[5, 2]");
  refuse(f8(kBlocks), ".weight_scale", DType::kI32, {5, 2}, "I32", "scales of a float type");
  refuse(f8(kChannel), ".weight", DType::kF8E4M3, {48, 5}, "[48, 5]", "[5, 48]");
  refuse(packed({}), ".weight_packed", DType::kI32, {6, 12}, "[6, 12]", "[6, 8] (int4)", "[6, 16] (int8)");
  refuse(packed({}), ".weight_scale", DType::kBF16, {6, 3}, "3 groups a row");
  refuse(packed({.zeros = true}), ".weight_zero_point", DType::kI32, {2, 2}, "[2, 2]", "[1, 2]");
  refuse(packed({}), ".weight_shape", DType::kI64, {2}, "[0, 0]", "[6, 64]");
  refuse(fp4(false), ".weight_packed", DType::kU8, {3, 96}, "[3, 96]", "[3, 48]");
  refuse(fp4(false), ".weight_scale", DType::kF8E4M3, {3, 3}, "[3, 3]", "[3, 6]");
  refuse(fp4(false), ".weight_global_scale", DType::kF32, {2}, "[2]", "one value");
  refuse(awq(), ".scales", DType::kF16, {3, 48}, "3 groups a row");
  refuse(awq(), ".qzeros", DType::kI32, {2, 5}, "[2, 5]", "[2, 6]");
  refuse(gptq({}), ".qweight", DType::kI32, {9, 48}, "[9, 48]", "[8, 48] (4 bits)");
  refuse(gptq({}), ".g_idx", DType::kI32, {63}, "[63]", "[64, 1]");
  refuse(nf4(4, 64, false), ".weight", DType::kU8, {127, 1}, "[127, 1]", "[128, 1]");
}

TEST(Formats, ImpossibleScalesAreRefused) {
  const float nan = std::nanf(""), inf = std::numeric_limits<float>::infinity();
  const auto refuse = [](Stored s, const std::string& suffix, float value, const auto&... parts) {
    SCOPED_TRACE(suffix + " " + std::to_string(value));
    const View v = s[suffix];
    if (v.dtype == DType::kF8E4M3) v.as<std::uint8_t>()[1] = std::isnan(value) ? 0x7f : 0x80;
    else store_from_float(v.data, v.dtype, v.shape.elements() > 1 ? 1 : 0, value);
    expect_refused(s, "tensor " + kBase + suffix, parts...);
  };
  for (const DType t : {DType::kF32, DType::kBF16, DType::kF16}) {
    for (const float v : {nan, inf, -inf})
      refuse(bytes(DType::kF8E4M3, ".weight_scale", t, kChannel), ".weight_scale", v, "1 of 5 scales NaN or infinite");
    for (const float v : {-0.0F, -1.0F})
      refuse(bytes(DType::kF8E4M3, ".weight_scale", t, kChannel), ".weight_scale", v, "1 of 5 scales negative");
  }
  refuse(packed({}), ".weight_scale", nan, "NaN or infinite");
  refuse(fp4(false), ".weight_scale", nan, "1 of 18 scales NaN");
  refuse(fp4(true), ".weight_scale", -0.0F, "1 of 18 scales negative");
  for (const float v : {nan, inf, 0.0F, -1.0F}) {
    refuse(fp4(false), ".weight_global_scale", v, "a positive number");
    refuse(fp4(true), ".weight_scale_2", v, "a positive number");
  }
  refuse(fp4(false), ".weight_global_scale", 1e-40F, "stay finite");
  refuse(awq(), ".scales", inf, "NaN or infinite");
  refuse(gptq({}), ".scales", nan, "NaN or infinite");
  refuse(nf4(4, 64, false), ".weight.absmax", -1.0F, "1 of 4 scales negative");
  refuse(nf4(4, 64, true), ".weight.nested_absmax", nan, "NaN or infinite");
  refuse(nf4(4, 64, true), ".weight.nested_quant_map", nan, "NaN or infinite");
  Stored mx = fp4(false, true);
  mx[".weight_scale"].as<std::uint8_t>()[2] = 255;
  expect_refused(mx, ".weight_scale", "NaN (255)");
}

TEST(Formats, NamesOfMatrices) {
  const std::string base = "model.layers.3.mlp.experts.7.gate_proj";
  for (const char* suffix : {".weight", ".weight_scale", ".weight_scale_inv", ".weight_scale_2", ".weight_packed",
                             ".weight_global_scale", ".input_global_scale", ".qweight", ".g_idx", ".SCB",
                             ".weight.quant_state.bitsandbytes__nf4", ".weight.absmax", ".weight_zero_point"})
    EXPECT_EQ(matrix_base(base + suffix), base) << suffix;
  EXPECT_EQ(matrix_base("model.layers.1.mlp.experts.gate_up_proj_scale_inv"),
            "model.layers.1.mlp.experts.gate_up_proj");
  EXPECT_EQ(matrix_base("model.layers.1.mlp.gate.e_score_correction_bias"),
            "model.layers.1.mlp.gate.e_score_correction_bias");
  for (const MatrixScheme& s : matrix_schemes()) EXPECT_FALSE(s.suffixes.empty()) << s.name;
}

}  // namespace
}  // namespace glint
