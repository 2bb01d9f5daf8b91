// The reader against files that lie in every way the format allows, and the writer.

#include "weights/safetensors.hpp"

#include <sys/resource.h>

#include <array>
#include <csignal>
#include <cstring>

#include "base/file.hpp"
#include "weights/temp_dir.hpp"

namespace glint {
namespace {

// A file of a header and n bytes of data.
std::string file_of(std::string header, std::size_t data_bytes, bool pad = true) {
  while (pad && header.size() % 8 != 0) header += ' ';
  const std::uint64_t length = header.size();
  std::string out(reinterpret_cast<const char*>(&length), 8);
  return out + header + std::string(data_bytes, '\x01');
}

SafetensorsHeader parse(const std::string& file) {
  return parse_safetensors(std::as_bytes(std::span(file.data(), file.size())), "f.safetensors");
}

template <typename... Parts>
void expect_refused(const std::string& file, const Parts&... parts) {
  expect_error([&] { parse(file); }, "f.safetensors", parts...);
}

std::string entry(const std::string& name, const std::string& dtype, const std::string& shape, int begin, int end) {
  return "\"" + name + "\":{\"dtype\":\"" + dtype + "\",\"shape\":" + shape + ",\"data_offsets\":[" +
         std::to_string(begin) + "," + std::to_string(end) + "]}";
}

TEST(SafetensorsParse, ReadsEntriesInOrderOfTheirData) {
  const std::string json = "{\"__metadata__\":{\"format\":\"pt\"}," + entry("b", "BF16", "[2,2]", 8, 16) + "," +
                           entry("a", "F32", "[2]", 0, 8) + "," + entry("empty", "U8", "[0]", 16, 16) + "}";
  const SafetensorsHeader h = parse(file_of(json, 16));
  ASSERT_EQ(h.tensors.size(), 3U);
  EXPECT_EQ(h.tensors[0].name, "a");
  EXPECT_EQ(h.tensors[1].name, "b");
  EXPECT_EQ(h.tensors[1].shape, (Shape{2, 2}));
  EXPECT_EQ(h.tensors[1].dtype, DType::kBF16);
  EXPECT_EQ(h.tensors[1].end - h.tensors[1].begin, 8U);
  EXPECT_EQ(h.tensors[1].begin, h.tensors[0].end);
  ASSERT_EQ(h.metadata.size(), 1U);
  EXPECT_EQ(h.metadata[0], (std::pair<std::string, std::string>("format", "pt")));
}

TEST(SafetensorsParse, ScalarsAndAnEmptyFileAreFine) {
  EXPECT_EQ(parse(file_of("{" + entry("s", "F32", "[]", 0, 4) + "}", 4)).tensors[0].shape.rank(), 0);
  EXPECT_TRUE(parse(file_of("{}", 0)).tensors.empty());
}

TEST(SafetensorsParse, RefusesWrongLengths) {
  expect_refused("", "0 bytes", "safetensors");
  expect_refused(std::string(7, 'x'), "7 bytes");
  const std::string good = file_of("{" + entry("a", "F32", "[2]", 0, 8) + "}", 8);
  for (std::size_t n = 8; n < good.size() - 8; ++n) expect_refused(good.substr(0, n), "truncated");
  for (std::size_t n = good.size() - 8; n < good.size(); ++n)
    expect_refused(good.substr(0, n), "tensor a", "truncated");
  expect_refused(good + "x", "1 bytes after the last tensor");
  std::string lying = good;
  const std::uint64_t huge = ~std::uint64_t{0};
  std::memcpy(lying.data(), &huge, 8);
  expect_refused(lying, "a header of 18446744073709551615 bytes", "at most");
  const std::uint64_t over = kMaxSafetensorsHeader + 1;
  std::memcpy(lying.data(), &over, 8);
  expect_refused(lying, "at most 100000000");
}

TEST(SafetensorsParse, RefusesBadLayouts) {
  const auto two = [](int b0, int e0, int b1, int e1, int bytes) {
    return file_of("{" + entry("a", "U8", "[" + std::to_string(e0 - b0) + "]", b0, e0) + "," +
                       entry("b", "U8", "[" + std::to_string(e1 - b1) + "]", b1, e1) + "}",
                   static_cast<std::size_t>(bytes));
  };
  EXPECT_EQ(parse(two(0, 4, 4, 8, 8)).tensors.size(), 2U);
  expect_refused(two(0, 4, 3, 8, 8), "tensor b", "over a", "do not overlap");
  expect_refused(two(0, 4, 0, 4, 4), "tensor b", "over a");
  expect_refused(two(0, 4, 5, 8, 8), "tensor b", "1 unused bytes", "no gap");
  expect_refused(two(1, 4, 4, 8, 8), "tensor a", "1 unused bytes");
  expect_refused(two(0, 4, 4, 9, 8), "tensor b", "truncated");
  expect_refused(two(0, 4, 4, 8, 9), "1 bytes after the last tensor");
  expect_refused(file_of("{" + entry("a", "U8", "[4]", 8, 4) + "}", 8), "tensor a", "begin ≤ end");
}

TEST(SafetensorsParse, RefusesShapesThatDoNotFit) {
  const auto one = [](const std::string& dtype, const std::string& shape, int bytes) {
    return file_of("{" + entry("a", dtype, shape, 0, bytes) + "}", static_cast<std::size_t>(bytes));
  };
  expect_refused(one("F32", "[3]", 8), "tensor a", "8 bytes", "12 bytes for F32 [3]");
  expect_refused(one("BF16", "[2,3]", 8), "12 bytes for BF16 [2, 3]");
  expect_refused(one("F32", "[-1]", 4), "tensor a", "negative");
  expect_refused(one("F32", "[1.5]", 4), "tensor a", "no 64-bit integer");
  expect_refused(one("F32", "[4294967296,4294967296,4]", 4), "tensor a", "2^64");
  expect_refused(one("F32", "[9223372036854775808]", 4), "tensor a", "2^63");
  expect_refused(one("F32", "[99999999999999999999999]", 4), "tensor a", "no 64-bit integer");
  expect_refused(one("U8", "[1,1,1,1,4]", 4), "tensor a", "more than 4 dimensions");
  expect_refused(one("BF8", "[4]", 4), "tensor a", "dtype BF8");
  expect_refused(one("f32", "[1]", 4), "dtype f32", "F8_E4M3");
}

TEST(SafetensorsParse, RefusesMisalignedData) {
  expect_refused(file_of("{" + entry("a", "U8", "[1]", 0, 1) + "," + entry("b", "F32", "[1]", 1, 5) + "}", 5),
                 "tensor b", "a multiple of 4", "misaligned");
  std::string odd = "{" + entry("a", "BF16", "[1]", 0, 2) + "}";
  if (odd.size() % 2 == 0) odd += ' ';
  expect_refused(file_of(odd, 2, false), "tensor a", "misaligned");
}

TEST(SafetensorsParse, RefusesHeadersThatAreNotTheFormat) {
  const std::string a = entry("a", "U8", "[4]", 0, 4);
  expect_refused(file_of("{" + a + "," + a + "}", 4), "the name a twice");
  expect_refused(file_of("{\"__metadata__\":{},\"__metadata__\":{}," + a + "}", 4), "__metadata__ twice");
  expect_refused(file_of("[]", 0), "a list", "a JSON object");
  expect_refused(file_of("3", 0), "a number", "a JSON object");
  expect_refused(file_of("{\"a\":3}", 0), "a number for a");
  expect_refused(file_of("{\"a\":[]}", 0), "a list for a");
  expect_refused(file_of("{\"a\":null}", 0), "null for a");
  expect_refused(file_of("{\"a\":{}}", 0), "tensor a", "no dtype");
  expect_refused(file_of("{\"a\":{\"dtype\":\"U8\",\"shape\":[0]}}", 0), "no data_offsets");
  expect_refused(file_of("{\"a\":{\"dtype\":\"U8\",\"dtype\":\"U8\"}}", 0), "dtype twice");
  expect_refused(file_of("{\"a\":{\"dtype\":7}}", 0), "a number for dtype");
  expect_refused(file_of("{\"a\":{\"colour\":7}}", 0), "a field colour");
  expect_refused(file_of("{\"a\":{\"shape\":[[4]]}}", 0), "a list in shape");
  expect_refused(file_of("{\"a\":{\"shape\":[{}]}}", 0), "an object in shape");
  expect_refused(file_of("{\"a\":{\"shape\":[\"4\"]}}", 0), "a string in shape");
  expect_refused(file_of("{\"a\":{\"data_offsets\":[0]}}", 0), "1 data_offsets", "2");
  expect_refused(file_of("{\"a\":{\"data_offsets\":[0,1,2]}}", 0), "3 data_offsets");
  expect_refused(file_of("{\"__metadata__\":{\"n\":3}}", 0), "__metadata__", "a number for n", "a string");
  expect_refused(file_of("{" + a, 4), "of the header", "a JSON header");
  expect_refused(file_of("{" + a + "} x", 4), "extra data");
  expect_refused(file_of("{\"a\xff\":{}}", 0), "a JSON header");
  expect_refused(file_of(std::string(100, '['), 0), "a list");
}

TEST(SafetensorsFile, NamesTheFileInErrors) {
  const TempDir dir;
  expect_error([&] { SafetensorsFile f(dir / "none"); }, dir / "none", "No such file");
  const std::string path = dir.write("bad.safetensors", "short");
  expect_error([&] { SafetensorsFile f(path); }, path, "5 bytes");
  expect_error([&] { SafetensorsFile f(dir.path()); }, dir.path(), "not a regular file");
}

TEST(SafetensorsFile, ReadsTheBundledModel) {
  const SafetensorsFile f("models/tiny/model-00006-of-00006.safetensors");
  EXPECT_EQ(f.tensors().size(), 2U);
  const ConstView norm = f.get("model.norm.weight");
  EXPECT_EQ(norm.dtype, DType::kBF16);
  EXPECT_EQ(norm.shape, (Shape{256}));
  EXPECT_GT(load_as_float(norm.data, norm.dtype, 0), 0.0F);
  EXPECT_EQ(f.find("model.norm"), nullptr);
  expect_error([&] { f.get("model.norm"); }, "00006-of-00006", "no tensor model.norm");
}

TEST(SafetensorsWriter, RoundTripsAllTypesAligned) {
  const TempDir dir;
  const std::string path = dir / "x.safetensors";
  std::vector<HostTensor> tensors;
  std::vector<NamedTensor> named;
  int n = 1;
  for (const DType t : {DType::kU8, DType::kF32, DType::kBF16, DType::kI64, DType::kF8E4M3, DType::kF16, DType::kI32}) {
    HostTensor& x = tensors.emplace_back(t, Shape{n, 3});
    for (std::size_t i = 0; i < x.view.bytes(); ++i)
      x.view.as<std::uint8_t>()[i] = static_cast<std::uint8_t>(37 * i + 11U * n);
    named.push_back({"t\"" + std::string(dtype_name(t)), x.view});
    ++n;
  }
  write_safetensors(path, named, {{"format", "pt"}, {"note", "ü \"quoted\""}});
  const SafetensorsFile f(path);
  ASSERT_EQ(f.tensors().size(), named.size());
  EXPECT_EQ(f.tensors()[0].begin % 64, 0U);
  EXPECT_EQ(f.metadata()[1].second, "ü \"quoted\"");
  for (const NamedTensor& t : named) {
    const ConstView v = f.get(t.name);
    EXPECT_EQ(v.dtype, t.view.dtype);
    EXPECT_EQ(v.shape, t.view.shape);
    EXPECT_EQ(std::memcmp(v.data, t.view.data, t.view.bytes()), 0) << t.name;
  }
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(dir.path()), {}), 1) << "a temporary file is left";
}

TEST(SafetensorsWriter, AnUnfinishedFileLeavesTheOldOne) {
  const TempDir dir;
  const std::string path = dir.write("x.safetensors", "old");
  {
    SafetensorsWriter w(path, {{"a", DType::kU8, {4}}, {"b", DType::kU8, {4}}});
    w.write("b", "1234", 4);
    EXPECT_EQ(read_file(path), "old");
  }
  EXPECT_EQ(read_file(path), "old");
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(dir.path()), {}), 1);
}

TEST(SafetensorsWriter, SaysWhyItCannotWrite) {
  const TempDir dir;
  const std::string nowhere = dir / "no/such/x.safetensors";
  expect_error([&] { SafetensorsWriter w(nowhere, {}); }, nowhere, "cannot create", "No such file");

  // A full disk, by a limit on file size: the kernel then refuses as a disk does, with another errno.
  const std::string path = dir / "big.safetensors";
  rlimit old{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &old), 0);
  const auto old_handler = std::signal(SIGXFSZ, SIG_IGN);
  const rlimit small{.rlim_cur = 4096, .rlim_max = old.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  expect_error(
      [&] {
        const HostTensor x(DType::kU8, {10000});
        write_safetensors(path, {{"x", x.view}});
      },
      path, "File too large", "free some space");
  ::setrlimit(RLIMIT_FSIZE, &old);
  std::signal(SIGXFSZ, old_handler);
  EXPECT_TRUE(std::filesystem::is_empty(dir.path())) << "a temporary file is left";
}

}  // namespace
}  // namespace glint
