#include "base/file.hpp"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <utility>

#include "base/error.hpp"
#include "base/resident.hpp"

namespace glint {
namespace {

// A directory of its own, gone after the test.
class FileTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = testing::TempDir() + "glint_file_XXXXXX";
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    directory_ = pattern;
  }
  void TearDown() override { std::filesystem::remove_all(directory_); }
  std::string write(const std::string& name, const std::string& content) {
    const std::string path = directory_ + "/" + name;
    std::ofstream(path, std::ios::binary) << content;
    return path;
  }
  std::string directory_;
};

template <typename Run>
std::string message_of(Run run) {
  try {
    run();
  } catch (const Error& e) { return e.what(); }
  return "no error";
}

TEST_F(FileTest, ReadsAndMapsEveryByte) {
  std::string content("line\r\n\0\xff tail", 13);
  content += std::string(100000, 'x');
  const std::string path = write("some.bin", content);
  EXPECT_EQ(read_file(path), content);
  const MappedFile map(path);
  ASSERT_EQ(map.bytes().size(), content.size());
  EXPECT_EQ(std::memcmp(map.bytes().data(), content.data(), content.size()), 0);
  EXPECT_EQ(map.path(), path);
}

TEST_F(FileTest, EmptyFileIsAnEmptySpan) {
  const std::string path = write("empty", "");
  EXPECT_EQ(read_file(path), "");
  const MappedFile map(path);
  EXPECT_TRUE(map.bytes().empty());
  map.prefetch(0, 100);
}

TEST_F(FileTest, PrefetchTakesAnyRange) {
  const std::string path = write("pages", std::string(20000, 'p'));
  const MappedFile map(path);
  map.prefetch(0, 20000);
  map.prefetch(5000, 1);
  map.prefetch(19999, 1U << 30);
  map.prefetch(20000, 1);
  EXPECT_EQ(static_cast<char>(map.bytes()[19999]), 'p');
}

// A dropped page costs no memory and is there again when it is read. The kernel may map 2 MiB in one piece, and then
// drops it in one.
TEST_F(FileTest, DroppedPagesAreNotResident) {
  constexpr std::size_t kSize = 8 << 20;
  std::string content(kSize, '\0');
  for (std::size_t i = 0; i < kSize; ++i) content[i] = static_cast<char>(i >> 12);
  const std::string path = write("large", content);
  const MappedFile map(path);
  const auto read_all = [&] { return std::memcmp(map.bytes().data(), content.data(), kSize) == 0; };
  const auto resident = [&] { return resident_bytes(path); };
  EXPECT_TRUE(read_all());
  EXPECT_EQ(resident(), kSize);
  map.drop_pages(map.bytes().data() + (1 << 20), 2 << 20);
  EXPECT_LE(resident(), kSize - (2 << 20));
  EXPECT_GE(resident(), kSize - (4 << 20));
  map.drop_pages(map.bytes().data() + (4 << 20) + 1, 1);  // the page that holds it
  const std::size_t left = resident();
  EXPECT_LE(left, kSize - (2 << 20) - 4096);
  map.drop_pages(content.data(), kSize);  // not of the map
  map.drop_pages(map.bytes().data() + kSize, 4096);
  EXPECT_EQ(resident(), left);
  map.drop_pages(map.bytes().data() + kSize - 1, kSize);  // no further than the end
  EXPECT_LT(resident(), left);
  EXPECT_EQ(content[5000], '\1');
  EXPECT_TRUE(read_all());
  map.drop_pages();
  EXPECT_EQ(resident(), 0U);
  EXPECT_TRUE(read_all());
}

TEST_F(FileTest, MoveHandsTheMapOn) {
  MappedFile a(write("a", "first"));
  MappedFile b(write("b", "second!"));
  const auto* data = a.bytes().data();
  MappedFile moved(std::move(a));
  EXPECT_EQ(moved.bytes().data(), data);
  EXPECT_TRUE(a.bytes().empty());  // NOLINT(bugprone-use-after-move): what is left of it
  b = std::move(moved);
  EXPECT_EQ(b.bytes().data(), data);
  EXPECT_EQ(b.bytes().size(), 5U);
}

TEST_F(FileTest, ErrorsNameTheFileAndTheCause) {
  const std::string missing = directory_ + "/missing";
  EXPECT_EQ(message_of([&] { read_file(missing); }),
            missing + ": found No such file or directory, expected a readable file");
  EXPECT_EQ(message_of([&] { MappedFile map(missing); }),
            missing + ": found No such file or directory, expected a readable file");
  EXPECT_EQ(message_of([&] { read_file(directory_); }),
            directory_ + ": found not a regular file, expected a regular file");
  EXPECT_EQ(message_of([&] { MappedFile map(directory_); }),
            directory_ + ": found not a regular file, expected a regular file");
}

}  // namespace
}  // namespace glint
