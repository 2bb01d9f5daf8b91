#include "weights/checkpoint.hpp"

#include <cmath>
#include <limits>

#include "weights/temp_dir.hpp"

namespace glint {
namespace {

void write_file(const TempDir& dir, const std::string& name, const std::vector<std::string>& tensors) {
  std::vector<HostTensor> data;
  std::vector<NamedTensor> named;
  for (const std::string& t : tensors) named.push_back({t, data.emplace_back(DType::kF32, Shape{2}).view});
  write_safetensors(dir / name, named);
}

void write_index(const TempDir& dir, const std::string& map) {
  dir.write("model.safetensors.index.json", R"({"metadata":{"total_size":1},"weight_map":)" + map + "}");
}

TEST(Checkpoint, ReadsTheBundledShards) {
  const Checkpoint c("models/tiny");
  EXPECT_EQ(c.files().size(), 6U);
  EXPECT_EQ(c.tensors().size(), 1461U);
  ASSERT_NE(c.find("lm_head.weight"), nullptr);
  EXPECT_EQ(c.find("lm_head.weight")->view().shape, (Shape{8192, 256}));
  EXPECT_EQ(c.find("lm_head.bias"), nullptr);
  EXPECT_EQ(c.data_bytes(), 78665472U);
}

TEST(Checkpoint, ASingleFileNeedsNoIndex) {
  const TempDir dir;
  write_file(dir, "model.safetensors", {"a", "b"});
  const Checkpoint c(dir.path());
  EXPECT_EQ(c.tensors().size(), 2U);
  EXPECT_EQ(c.data_bytes(), 16U);
}

TEST(Checkpoint, RefusesWhatIsNotThere) {
  const TempDir dir;
  expect_error([&] { Checkpoint c(dir / "none"); }, dir / "none", "no such directory");
  expect_error([&] { Checkpoint c(dir.path()); }, dir.path(), "no weights", "model.safetensors.index.json");
  write_file(dir, "one.safetensors", {"a"});
  write_index(dir, R"({"a":"one.safetensors","b":"two.safetensors","c":"two.safetensors"})");
  expect_error([&] { Checkpoint c(dir.path()); }, dir / "two.safetensors", "no such file", "the shard of 2 tensors");
}

TEST(Checkpoint, RefusesAnIndexThatDisagrees) {
  const TempDir dir;
  write_file(dir, "one.safetensors", {"a"});
  write_file(dir, "two.safetensors", {"b"});
  write_index(dir, R"({"a":"one.safetensors","b":"two.safetensors"})");
  EXPECT_EQ(Checkpoint(dir.path()).tensors().size(), 2U);

  write_index(dir, R"({"a":"two.safetensors","b":"one.safetensors"})");
  expect_error([&] { Checkpoint c(dir.path()); }, "one.safetensors: tensor a", "it in two.safetensors");
  write_index(dir, R"({"a":"one.safetensors","b":"two.safetensors","c":"two.safetensors"})");
  expect_error([&] { Checkpoint c(dir.path()); }, "tensor c", "no such tensor", "it in two.safetensors");
  write_file(dir, "two.safetensors", {"b", "d"});
  write_index(dir, R"({"a":"one.safetensors","b":"two.safetensors"})");
  expect_error([&] { Checkpoint c(dir.path()); }, "two.safetensors: tensor d", "not in model.safetensors.index.json");
  write_file(dir, "two.safetensors", {"b", "a"});
  expect_error([&] { Checkpoint c(dir.path()); }, "tensor a", "one.safetensors and in", "two.safetensors");
}

TEST(Checkpoint, RefusesAnIndexThatIsNone) {
  const TempDir dir;
  const auto refuse = [&](const std::string& map, const std::string& part) {
    write_index(dir, map);
    expect_error([&] { Checkpoint c(dir.path()); }, "model.safetensors.index.json", part);
  };
  refuse("[]", "no weight_map");
  refuse("{}", "an empty weight_map");
  refuse(R"({"a":3})", "the name of a file");
  refuse(R"({"a":"../x.safetensors"})", "in the same directory");
  refuse(R"({"a":"/etc/passwd"})", "in the same directory");
  refuse(R"({"a":".."})", "in the same directory");
  refuse(R"({"a":"x)", "valid JSON");
}

TEST(CountNonFinite, FindsEveryKind) {
  const float nan = std::nanf(""), inf = std::numeric_limits<float>::infinity();
  for (const DType t : {DType::kF32, DType::kF16, DType::kBF16}) {
    HostTensor x(t, {5});
    const float values[] = {1.0F, nan, -inf, inf, -65504.0F};
    for (std::size_t i = 0; i < 5; ++i) store_from_float(x.view.data, t, i, values[i]);
    EXPECT_EQ(count_non_finite(x.view), 3U) << dtype_name(t);
  }
  HostTensor f8(DType::kF8E4M3, {4});
  const std::uint8_t codes[] = {0x7f, 0xff, 0x7e, 0x00};
  std::copy(codes, codes + 4, f8.view.as<std::uint8_t>());
  EXPECT_EQ(count_non_finite(f8.view), 2U);
  EXPECT_EQ(count_non_finite(HostTensor(DType::kI32, {4}).view), 0U);
}

}  // namespace
}  // namespace glint
