#include "base/file.hpp"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <utility>

#include "base/error.hpp"

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
