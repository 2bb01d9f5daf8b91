// GGUF files: the reader on sound and on spoiled files, every block type against the public gguf package's values
// (tests/data/gguf_blocks.gguf, made by tests/python/test_gguf.py), repacking, the writer.

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>

#include "tensor/codec.hpp"
#include "weights/gguf_writer.hpp"
#include "weights/temp_dir.hpp"

namespace glint {
namespace {

// A file built by hand, so that any part can be wrong.
struct Bytes {
  std::string s;
  template <typename T>
  Bytes& put(T v) {
    s.append(reinterpret_cast<const char*>(&v), sizeof v);
    return *this;
  }
  Bytes& text(std::string_view v) {
    put<std::uint64_t>(v.size());
    s += v;
    return *this;
  }
};

struct RawTensor {
  std::string name = "t";
  std::vector<std::uint64_t> ne = {4, 2};
  std::uint32_t type = 0;
  std::uint64_t offset = 0;
};

std::string file_of(const std::vector<RawTensor>& tensors, std::size_t data_bytes, const std::string& metadata = "",
                    std::uint64_t n_metadata = 0, std::uint32_t version = 3) {
  Bytes b;
  b.s = "GGUF";
  b.put(version).put<std::uint64_t>(tensors.size()).put(n_metadata);
  b.s += metadata;
  for (const RawTensor& t : tensors) {
    b.text(t.name).put(static_cast<std::uint32_t>(t.ne.size()));
    for (const std::uint64_t n : t.ne) b.put(n);
    b.put(t.type).put(t.offset);
  }
  b.s.resize((b.s.size() + 31) / 32 * 32 + data_bytes);
  return b.s;
}

GgufHeader parse(const std::string& bytes) { return parse_gguf(std::as_bytes(std::span(bytes)), "x.gguf"); }

template <typename... Parts>
void refuses(const std::string& bytes, const Parts&... parts) {
  expect_error([&] { parse(bytes); }, "x.gguf", parts...);
}

TEST(GgufReader, ReadsTensorsOutermostFirst) {
  for (const std::uint32_t version : {2U, 3U}) {
    const GgufHeader h = parse(file_of({{"a", {4, 2, 3}, 0, 0}, {"b", {32}, 8, 96}}, 160, "", 0, version));
    ASSERT_EQ(h.tensors.size(), 2U);
    EXPECT_EQ(h.version, version);
    EXPECT_EQ(h.tensors[0].shape, (Shape{3, 2, 4}));
    EXPECT_EQ(h.tensors[0].end - h.tensors[0].begin, 96U);
    EXPECT_EQ(h.tensors[1].type, GgufType::kQ8_0);
    EXPECT_EQ(h.tensors[1].end - h.tensors[1].begin, 34U);
    EXPECT_EQ(h.tensors[0].begin, h.data_begin);
  }
}

TEST(GgufReader, RefusesBrokenStarts) {
  refuses("", "first four bytes", "not a GGUF file");
  refuses("GGML0000", "\"GGML\"", "\"GGUF\"");
  refuses("GGUF", "version", "truncated");
  refuses(file_of({}, 0, "", 0, 1), "version", "found 1", "2 or 3");
  refuses(file_of({}, 0, "", 0, 4), "found 4");
  refuses(file_of({}, 0, "", 0, 0x03000000), "big-endian");
  refuses(file_of({}, 0, "", std::uint64_t{1} << 60), "number of metadata values", "room for");
  Bytes tensors;
  tensors.s = "GGUF";
  tensors.put<std::uint32_t>(3).put(~std::uint64_t{0}).put<std::uint64_t>(0);
  refuses(tensors.s, "number of tensors", "room for");
}

TEST(GgufReader, RefusesBrokenTensors) {
  refuses(file_of({{"t", {4}, 0, 0}, {"t", {4}, 0, 32}}, 64), "tensor \"t\"", "same name twice");
  refuses(file_of({{"t", {4}, 0, 16}}, 64), "offset 16", "multiple of 32");
  refuses(file_of({{"t", {64}, 0, 0}}, 64), "tensor \"t\"", "the file's size", "truncated");
  refuses(file_of({{"t", {4}, 0, std::uint64_t{1} << 62}}, 64), "inside the file");
  refuses(file_of({{"a", {16}, 0, 0}, {"b", {4}, 0, 32}}, 64), "\"b\"", "overlaps \"a\"");
  refuses(file_of({{"t", {}, 0, 0}}, 64), "0 dimensions");
  refuses(file_of({{"t", {1, 1, 1, 1, 1}, 0, 0}}, 64), "5 dimensions");
  refuses(file_of({{"t", {0}, 0, 0}}, 64), "size 0");
  refuses(file_of({{"t", {1U << 31, 1U << 31}, 0, 0}}, 64), "2^48");
  refuses(file_of({{"t", {~std::uint64_t{0}}, 0, 0}}, 64), "2^48");
  refuses(file_of({{"t", {4}, 99, 0}}, 64), "tensor type 99");
  refuses(file_of({{"t", {4}, 4, 0}}, 64), "tensor type 4");  // Q4_2, removed from ggml
  refuses(file_of({{"t", {48}, 2, 0}}, 64), "48 values", "multiple of 32", "Q4_0");
  refuses(file_of({{std::string(65, 'n'), {4}, 0, 0}}, 64), "65 bytes", "1 to 64");
  refuses(file_of({{"", {4}, 0, 0}}, 64), "0 bytes");
}

TEST(GgufReader, EveryTruncationIsRefused) {
  GgufMetadataBuilder m;
  m.add_u32("number", 7);
  m.add_texts("texts", std::vector<std::string>{"a", "", "ccc"});
  const std::string whole = file_of({{"t", {4, 2}, 0, 0}}, 32, m.bytes(), m.count());
  EXPECT_EQ(parse(whole).tensors.size(), 1U);
  for (std::size_t n = 0; n < whole.size(); ++n) refuses(whole.substr(0, n));
}

TEST(GgufReader, MetadataIsTypedAndChecked) {
  GgufMetadataBuilder b;
  b.add_u32("u32", 7);
  b.add_i32("i32", -7);
  b.add_u16("u16", 65535);
  b.add_f32("f32", 0.5F);
  b.add_bool("bool", true);
  b.add_text("text", "hi");
  b.add_texts("texts", std::vector<std::string>{"a", "", "ccc"});
  b.add_i32s("i32s", std::vector<std::int32_t>{1, -2});
  const std::string file = file_of({}, 0, b.bytes(), b.count());
  const GgufHeader h = parse(file);
  const GgufMetadata& m = h.metadata;
  EXPECT_EQ(m.integer("u32", 0, 10), 7);
  EXPECT_EQ(m.integer("i32", -10, 10), -7);
  EXPECT_EQ(m.integer("u16", 0, 1 << 20), 65535);
  EXPECT_EQ(m.number("f32", 0, 1), 0.5);
  EXPECT_EQ(m.number("u32", 0, 10), 7);
  EXPECT_EQ(m.flag("bool"), true);
  EXPECT_EQ(m.text("text"), "hi");
  EXPECT_EQ(*m.texts("texts"), (std::vector<std::string_view>{"a", "", "ccc"}));
  EXPECT_EQ(m.integers("i32s"), (std::vector<std::int64_t>{1, -2}));
  EXPECT_EQ(m.integer("none", 0, 1), std::nullopt);
  EXPECT_EQ(m.texts("none"), nullptr);
  expect_error([&] { (void)m.integer("u32", 0, 6); }, "x.gguf", "u32", "found 7", "0 to 6");
  expect_error([&] { (void)m.integer("text", 0, 6); }, "text", "\"hi\"", "an integer");
  expect_error([&] { (void)m.integer("bool", 0, 6); }, "bool", "an integer");
  expect_error([&] { (void)m.text("u32"); }, "u32", "a string");
  expect_error([&] { (void)m.texts("i32s"); }, "i32s", "2 values of type i32", "array of strings");
  expect_error([&] { (void)m.flag("f32"); }, "f32", "true or false");
  expect_error([&] { (void)m.required_integer("none", 0, 6); }, "none", "found nothing");
}

std::string metadata_value(std::uint32_t kind, const std::string& value) {
  Bytes b;
  b.text("key").put(kind);
  return b.s + value;
}

TEST(GgufReader, RefusesBrokenMetadata) {
  refuses(file_of({}, 64, metadata_value(13, ""), 1), "metadata \"key\"", "value type 13");
  refuses(file_of({}, 64, metadata_value(7, "\2"), 1), "the bool 2");
  refuses(file_of({}, 64, metadata_value(9, Bytes().put(9U).put<std::uint64_t>(1).s), 1), "array of arrays");
  refuses(file_of({}, 64, metadata_value(9, Bytes().put(6U).put(std::uint64_t{1} << 62).s), 1), "array elements");
  refuses(file_of({}, 64, metadata_value(8, Bytes().put(std::uint64_t{1} << 62).s), 1), "\"key\"", "truncated");
  const std::string one = metadata_value(4, Bytes().put(1U).s);
  refuses(file_of({}, 64, one + one, 2), "same key twice");
  for (const std::uint32_t alignment : {0U, 4U, 48U, 1U << 20}) {
    GgufMetadataBuilder m;
    m.add_u32("general.alignment", alignment);
    refuses(file_of({}, 64, m.bytes(), m.count()), "general.alignment", std::to_string(alignment));
  }
}

// ---- blocks ----

const GgufModel& blocks() {
  static const GgufModel file("tests/data/gguf_blocks.gguf");
  return file;
}

constexpr const char* kBlockTypes[] = {"F32",  "F16",  "BF16", "Q8_0", "Q4_0", "Q4_1",
                                       "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K"};

struct BlockCase {
  const GgufModel::Tensor* stored;
  const float* want;
  std::int64_t rows, cols;
};
BlockCase block_case(const std::string& type) {
  const GgufModel::Tensor* t = blocks().find(type);
  const GgufModel::Tensor* want = blocks().find(type + ".expected");
  EXPECT_TRUE(t != nullptr && want != nullptr) << type;
  EXPECT_EQ(gguf_type_name(t->entry->type), type);
  return {t, reinterpret_cast<const float*>(want->data()), t->entry->shape[0], t->entry->shape[1]};
}

TEST(GgufBlocks, DecodeEqualsThePublicPackage) {
  for (const char* type : kBlockTypes) {
    const BlockCase c = block_case(type);
    std::vector<float> got(static_cast<std::size_t>(c.rows * c.cols));
    decode_gguf(c.stored->entry->type, c.stored->data(), c.rows * c.cols, got.data());
    for (std::size_t i = 0; i < got.size(); ++i) ASSERT_EQ(got[i], c.want[i]) << type << " value " << i;
  }
}

TEST(GgufBlocks, RepackedMatricesHoldTheSameValues) {
  for (const char* type : kBlockTypes) {
    const BlockCase c = block_case(type);
    const GgufTarget target = gguf_target(c.stored->entry->type);
    if (!has_scales(target.format)) continue;
    Weight w{
        .format = target.format, .rows = c.rows, .cols = c.cols, .scale_dtype = DType::kF16, .group = target.group};
    std::vector<std::byte> codes(static_cast<std::size_t>(c.rows * w.row_bytes()));
    std::vector<std::uint16_t> scales(static_cast<std::size_t>(c.rows * w.groups_a_row())), mins(scales.size());
    ASSERT_TRUE(repack_gguf(c.stored->entry->type, c.stored->data(), c.rows, c.cols,
                            {codes.data(), scales.data(), mins.data()}));
    w.data = codes.data();
    w.scales = scales.data();
    if (target.mins) w.mins = mins.data();
    const bool exact = std::string(type).find("_K") == std::string::npos;
    std::vector<float> row(static_cast<std::size_t>(c.cols));
    for (std::int64_t r = 0; r < c.rows; ++r) {
      decode_row(w, r, row.data());
      for (std::int64_t k = 0; k < c.cols; ++k) {
        const float want = c.want[r * c.cols + k], got = row[static_cast<std::size_t>(k)];
        if (exact) {
          ASSERT_EQ(got, want) << type << " " << r << ", " << k;
          continue;
        }
        // K types: scale and min each rounded to F16, by half a unit of 2^-10, or by 2^-25 where that is subnormal.
        const auto g = static_cast<std::size_t>(r * w.groups_a_row() + k / w.group);
        const float scale = std::abs(to_float(F16{scales[g]})), min = std::abs(to_float(F16{mins[g]}));
        const float code = scale > 0 ? 32.0F : 0.0F;
        const float bound = (code * scale + min) * 0x1p-11F + 33.0F * 0x1p-25F + std::abs(want) * 0x1p-22F;
        ASSERT_NEAR(got, want, bound) << type << " " << r << ", " << k;
      }
    }
  }
}

TEST(GgufBlocks, RepackingReportsScalesThatAreNotFinite) {
  for (const GgufType type : {GgufType::kQ8_0, GgufType::kQ4_1, GgufType::kQ4_K, GgufType::kQ6_K}) {
    std::vector<std::byte> block(static_cast<std::size_t>(gguf_block(type)->bytes), std::byte{1});
    const std::uint16_t infinity = 0x7c00;
    std::memcpy(block.data() + (type == GgufType::kQ6_K ? 208 : 0), &infinity, 2);
    std::vector<std::byte> codes(256);
    std::vector<std::uint16_t> scales(16), mins(16);
    EXPECT_FALSE(
        repack_gguf(type, block.data(), 1, gguf_block(type)->values, {codes.data(), scales.data(), mins.data()}))
        << gguf_type_name(type);
  }
}

// Relative root mean square error of encoding and decoding normal values.
double encoding_error(GgufType type) {
  std::mt19937 random(5);
  std::normal_distribution<float> normal(0, 0.03F);
  std::vector<float> values(4096), back(values.size());
  for (float& v : values) v = normal(random);
  std::vector<std::byte> bytes(values.size() * 4);
  encode_gguf(type, values.data(), 4096, bytes.data());
  decode_gguf(type, bytes.data(), 4096, back.data());
  double error = 0, norm = 0;
  for (std::size_t i = 0; i < values.size(); ++i) {
    error += (values[i] - back[i]) * (values[i] - back[i]);
    norm += values[i] * values[i];
  }
  return std::sqrt(error / norm);
}

// Limits: a uniform quantiser of a range R in n steps errs by R/n/√12; the range of 32 normal values is about 4.1 σ,
// one way from zero 2.3 σ, both with a spread.
TEST(GgufBlocks, EncodersLoseWhatTheirTypeLoses) {
  EXPECT_EQ(encoding_error(GgufType::kF32), 0);
  EXPECT_LT(encoding_error(GgufType::kF16), 3e-4);
  EXPECT_LT(encoding_error(GgufType::kBF16), 3e-3);
  EXPECT_LT(encoding_error(GgufType::kQ8_0), 0.007);
  EXPECT_LT(encoding_error(GgufType::kQ4_0), 0.11);
  EXPECT_LT(encoding_error(GgufType::kQ4_K), 0.095);
  std::vector<float> zeros(256), back(256, 1.0F);
  std::vector<std::byte> bytes(512);  // the largest: 272
  for (const GgufType type : {GgufType::kQ8_0, GgufType::kQ4_0, GgufType::kQ4_K}) {
    encode_gguf(type, zeros.data(), 256, bytes.data());
    decode_gguf(type, bytes.data(), 256, back.data());
    EXPECT_EQ(back, zeros) << gguf_type_name(type);
  }
}

// ---- files ----

std::string write_model(const TempDir& dir, const std::string& name, const std::string& tensor, int part = -1,
                        int parts = 2, int total = 2) {
  GgufMetadataBuilder m;
  if (part >= 0) {
    m.add_u16("split.no", static_cast<std::uint16_t>(part));
    m.add_u16("split.count", static_cast<std::uint16_t>(parts));
    m.add_i32("split.tensors.count", total);
  }
  GgufWriter writer(dir / name, m, {{tensor, GgufType::kF32, {2, 3}}});
  const float values[] = {1, 2, 3, 4, 5, 6};
  writer.append(tensor, values, 8);
  writer.append(tensor, values + 2, 16);
  writer.finish();
  return dir / name;
}

TEST(GgufFiles, WhatWasWrittenIsRead) {
  const TempDir dir;
  const GgufModel file(write_model(dir, "m.gguf", "t"));
  const GgufModel::Tensor* t = file.find("t");
  ASSERT_NE(t, nullptr);
  EXPECT_EQ(t->entry->shape, (Shape{2, 3}));
  EXPECT_EQ(reinterpret_cast<const float*>(t->data())[5], 6);
  EXPECT_EQ(file.data_bytes(), 24U);
  t->drop_pages();
  EXPECT_EQ(reinterpret_cast<const float*>(t->data())[5], 6);
  EXPECT_EQ(std::filesystem::file_size(dir / "m.gguf") % 32, 0U);
}

TEST(GgufFiles, AnUnfinishedWriterLeavesNothing) {
  const TempDir dir;
  { GgufWriter writer(dir / "m.gguf", {}, {{"t", GgufType::kF32, {2, 3}}}); }
  EXPECT_TRUE(std::filesystem::is_empty(dir.path()));
  expect_error([&] { GgufWriter writer(dir / "no/m.gguf", {}, {}); }, "no/m.gguf", "cannot create");
}

TEST(GgufFiles, SplitModels) {
  const TempDir dir;
  const std::string first = write_model(dir, "m-00001-of-00002.gguf", "a", 0);
  expect_error([&] { GgufModel m(first); }, "m-00002-of-00002.gguf");
  const std::string second = write_model(dir, "m-00002-of-00002.gguf", "b", 1);
  const GgufModel m(first);
  EXPECT_EQ(m.n_files(), 2U);
  ASSERT_NE(m.find("b"), nullptr);
  EXPECT_EQ(m.find("b")->file->path(), second);
  EXPECT_EQ(m.data_bytes(), 48U);
  expect_error([&] { GgufModel x(second); }, "part 2", "the first part, " + first);
  write_model(dir, "m-00002-of-00002.gguf", "a", 1);
  expect_error([&] { GgufModel x(first); }, "tensor a", "also in " + first);
  write_model(dir, "m-00002-of-00002.gguf", "b", 0);
  expect_error([&] { GgufModel x(first); }, "split.no", "found 0, expected 1");
  write_model(dir, "m-00002-of-00002.gguf", "b", 1, 3);
  expect_error([&] { GgufModel x(first); }, "split.count", "found 3, expected 2");
  const std::string wrong = write_model(dir, "n-00001-of-00002.gguf", "a", 0, 2, 5);
  write_model(dir, "n-00002-of-00002.gguf", "b", 1);
  expect_error([&] { GgufModel x(wrong); }, "split.tensors.count", "found 5, expected 2");
  expect_error([&] { GgufModel x(write_model(dir, "odd.gguf", "a", 0)); }, "without its part number");
}

TEST(GgufFiles, FindsTheModelThatAPathMeans) {
  const TempDir dir;
  EXPECT_EQ(find_gguf(dir.path()), std::nullopt);
  EXPECT_EQ(find_gguf(dir / "x"), std::nullopt);
  EXPECT_EQ(find_gguf(dir / "x.gguf"), dir / "x.gguf");
  const std::string first = write_model(dir, "m-00001-of-00002.gguf", "a", 0);
  write_model(dir, "m-00002-of-00002.gguf", "b", 1);
  EXPECT_EQ(find_gguf(dir.path()), first);
  write_model(dir, "other.gguf", "a");
  expect_error([&] { (void)find_gguf(dir.path()); }, "2 GGUF models", "name the file");
  dir.write("model.safetensors", "");
  EXPECT_EQ(find_gguf(dir.path()), std::nullopt);
}

}  // namespace
}  // namespace glint
