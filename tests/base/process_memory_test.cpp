#include "base/process_memory.hpp"

#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <vector>

#include "base/file.hpp"
#include "base/glibc_heap.hpp"

namespace glint {
namespace {

constexpr std::size_t kMany = 400;
constexpr std::size_t kPiece = 64 << 10;  // below malloc's threshold: from the heap, not a map of its own
constexpr std::int64_t kAll = kMany * kPiece;
constexpr std::int64_t kSlack = 2 << 20;

TEST(ProcessMemory, TellsWhatIsTakenAndWhatIsKept) {
  const ProcessMemory before = process_memory();
  EXPECT_GT(before.anonymous, 0);
  EXPECT_GT(before.mapped_files, 0);
  std::vector<std::unique_ptr<char[]>> pieces;
  for (std::size_t i = 0; i < kMany; ++i) {
    pieces.push_back(std::make_unique_for_overwrite<char[]>(kPiece));
    std::memset(pieces.back().get(), 1, kPiece);
  }
  const ProcessMemory taken = process_memory();
  EXPECT_GE(taken.anonymous, before.anonymous - before.heap_free + kAll - kSlack);  // what was free serves first
#if GLINT_GLIBC_HEAP
  EXPECT_GE(taken.heap - taken.heap_free, before.heap - before.heap_free + kAll);
  for (std::size_t i = 0; i + 1 < kMany; ++i) pieces[i].reset();  // the last one keeps malloc from giving them back
  const ProcessMemory kept = process_memory();
  EXPECT_GE(kept.heap, taken.heap - kSlack);
  EXPECT_GE(kept.heap_free, taken.heap_free + kAll - kSlack);
#endif
}

TEST(ProcessMemory, PagesOfFilesAreNotItsOwn) {
  const MappedFile map("models/tiny/model-00001-of-00006.safetensors");
  const ProcessMemory before = process_memory();
  char sum = 0;
  for (std::size_t i = 0; i < map.bytes().size(); i += 4096)
    sum = static_cast<char>(sum + static_cast<char>(map.bytes()[i]));
  const ProcessMemory read = process_memory();
  EXPECT_NEAR(static_cast<double>(read.mapped_files - before.mapped_files), static_cast<double>(map.bytes().size()),
              1e6)
      << static_cast<int>(sum);
#if GLINT_GLIBC_HEAP  // a sanitizer keeps notes of what is read in memory of the process's own
  EXPECT_LT(read.anonymous, before.anonymous + kSlack);
#endif
}

}  // namespace
}  // namespace glint
