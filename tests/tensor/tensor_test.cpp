#include "tensor/tensor.hpp"

#include <gtest/gtest.h>

#include <cstdint>
#include <utility>

#include "base/error.hpp"
#include "tensor/weight.hpp"

namespace glint {
namespace {

TEST(Shape, CountsAndPrints) {
  const Shape s{2, 3, 4};
  EXPECT_EQ(s.elements(), 24);
  EXPECT_EQ(s.to_string(), "[2, 3, 4]");
  EXPECT_EQ(Shape{}.elements(), 1);
  EXPECT_EQ((Shape{5, 0}).elements(), 0);
  EXPECT_EQ(s, (Shape{2, 3, 4}));
  EXPECT_FALSE(s == (Shape{2, 3}));
  EXPECT_FALSE(s == (Shape{2, 3, 5}));
}

TEST(ShapeDeathTest, HasAtMostFourDimensions) {
  Shape s{1, 2, 3, 4};
  EXPECT_DEATH(s.push_back(5), "CHECK");
}

TEST(View, FirstKeepsTheInnerDimensions) {
  HostTensor t(DType::kBF16, {6, 4});
  const View v = t.view.first(2);
  EXPECT_EQ(v.shape, (Shape{2, 4}));
  EXPECT_EQ(v.data, t.view.data);
  EXPECT_EQ(v.bytes(), 16U);
}

TEST(ViewDeathTest, FirstStaysWithin) {
  HostTensor t(DType::kF32, {6, 4});
  EXPECT_DEATH(t.view.first(7), "7 rows of \\[6, 4\\]");
}

TEST(Buffer, HostMemoryIsZeroedAndAligned) {
  for (const std::size_t bytes : {std::size_t{1}, std::size_t{4096}, std::size_t{5} << 20}) {
    const Buffer b = host_buffer(bytes);
    ASSERT_EQ(b.bytes(), bytes);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(b.data()) % 64, 0U);
    const auto* p = static_cast<const unsigned char*>(b.data());
    for (std::size_t i = 0; i < bytes; i += 509) ASSERT_EQ(p[i], 0);
    EXPECT_EQ(p[bytes - 1], 0);
  }
  EXPECT_EQ(host_buffer(0).data(), nullptr);
}

TEST(Buffer, TellsThatMemoryIsShort) { EXPECT_THROW(host_buffer(std::size_t{1} << 60), Error); }

TEST(Buffer, MoveHandsTheMemoryOnOnce) {
  static int deleted = 0;
  deleted = 0;
  int memory = 0;
  {
    Buffer a(&memory, sizeof(memory), [](void*, std::size_t) { ++deleted; });
    Buffer b(std::move(a));
    Buffer c;
    c = std::move(b);
    EXPECT_EQ(c.data(), &memory);
    EXPECT_EQ(a.data(), nullptr);  // NOLINT(bugprone-use-after-move): what is left of it
  }
  EXPECT_EQ(deleted, 1);
}

TEST(Weight, SlicesRows) {
  const std::uint16_t data[12] = {};
  const Weight w{.format = WeightFormat::kBF16, .rows = 4, .cols = 3, .data = data};
  EXPECT_EQ(w.bytes(), 24);
  const Weight s = w.slice_rows(1, 2);
  EXPECT_EQ(s.rows, 2);
  EXPECT_EQ(s.data, &data[3]);
  EXPECT_EQ(s.bytes(), 12);
}

TEST(Weight, SlicesScalesWithTheirRows) {
  // FP8 in 2 × 2 blocks: 4 rows of 6 columns have 2 rows of 3 scales.
  const std::uint8_t codes[24] = {};
  const float scales[6] = {};
  const Weight w{.format = WeightFormat::kF8E4M3,
                 .rows = 4,
                 .cols = 6,
                 .data = codes,
                 .scales = scales,
                 .group = 2,
                 .group_rows = 2};
  EXPECT_EQ(w.bytes(), 24 + 6 * 4);
  const Weight s = w.slice_rows(2, 2);
  EXPECT_EQ(s.data, &codes[12]);
  EXPECT_EQ(s.scales, &scales[3]);
}

TEST(WeightDeathTest, SlicesStayWithinTheMatrix) {
  const std::uint16_t data[12] = {};
  const Weight w{.format = WeightFormat::kBF16, .rows = 4, .cols = 3, .data = data};
  EXPECT_DEATH(w.slice_rows(3, 2), "CHECK");
}

}  // namespace
}  // namespace glint
