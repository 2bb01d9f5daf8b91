#include "cache/kv_disk.hpp"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <numeric>

namespace glint {
namespace {

namespace fs = std::filesystem;
using Tokens = std::vector<std::int32_t>;

constexpr KvFileShape kShape{.fingerprint = 7, .codec = 2, .page_tokens = 4, .n_layers = 3, .page_bytes = 40};

// A pool of pages whose bytes say which page and layer they are, and a directory.
struct KvDiskTest : ::testing::Test {
  std::string dir = (fs::temp_directory_path() / ("glint_kv_disk_" + std::to_string(::getpid()))).string();
  std::vector<std::string> notices;
  std::mutex mutex;
  std::vector<std::byte> pool = std::vector<std::byte>(3 * 64 * 40);
  std::uint64_t next_job = 1;

  KvDiskTest() {
    fs::remove_all(dir);
    for (std::size_t i = 0; i < pool.size(); ++i) pool[i] = static_cast<std::byte>(i * 131 + i / 251);
  }
  ~KvDiskTest() override { fs::remove_all(dir); }

  KvDiskOptions options(std::int64_t max_bytes = 1 << 20, KvFileShape shape = kShape) {
    return {.dir = dir, .max_bytes = max_bytes, .shape = shape, .notice = [this](const std::string& s) {
              const std::lock_guard lock(mutex);
              notices.push_back(s);
            }};
  }

  static Tokens tokens(std::int32_t n, std::int32_t first = 100) {
    Tokens t(static_cast<std::size_t>(n));
    std::iota(t.begin(), t.end(), first);
    return t;
  }

  KvDisk::Job job(const KvDisk::Block& block, const Tokens& all, std::vector<std::byte>& memory) {
    KvDisk::Job j{.id = next_job++,
                  .block = block,
                  .tokens = {all.begin(), all.begin() + 4 * (block.first_page + block.n_pages)},
                  .pages = {},
                  .layer_stride = 64 * 40,
                  .ok = false};
    for (std::uint32_t p = 0; p < block.n_pages; ++p)
      j.pages.push_back(memory.data() + std::size_t{block.first_page + p} * 40);
    return j;
  }

  static bool finish(KvDisk& disk, std::uint64_t id) {
    for (;;) {
      disk.wait(std::chrono::milliseconds(1000));
      for (const KvDisk::Job& j : disk.take_done()) {
        if (j.id == id) return j.ok;
      }
    }
  }

  // Writes all blocks of the tokens; how many were taken.
  int save(KvDisk& disk, const Tokens& all) {
    int n = 0;
    for (const KvDisk::Block& block : disk.blocks(all, static_cast<std::uint32_t>(all.size() / 4))) {
      KvDisk::Job j = job(block, all, pool);
      const std::uint64_t id = j.id;
      if (disk.write(std::move(j))) n += finish(disk, id) ? 1 : 0;
    }
    return n;
  }

  // Pages that can be read back, all with the right bytes.
  std::uint32_t load(KvDisk& disk, const Tokens& all) {
    std::uint32_t n = 0;
    for (const KvDisk::Block& block : disk.find(all, 0)) {
      std::vector<std::byte> memory(pool.size());
      KvDisk::Job j = job(block, all, memory);
      const std::uint64_t id = j.id;
      disk.read(std::move(j));
      if (!finish(disk, id)) return n;
      for (std::uint32_t l = 0; l < 3; ++l) {
        const auto at = static_cast<std::ptrdiff_t>(l * 64 * 40 + block.first_page * 40);
        EXPECT_TRUE(std::equal(memory.begin() + at, memory.begin() + at + block.n_pages * 40, pool.begin() + at));
      }
      n = block.first_page + block.n_pages;
    }
    return n;
  }

  std::vector<std::string> files(const std::string& suffix = ".kv") const {
    std::vector<std::string> out;
    for (const auto& f : fs::directory_iterator(dir)) {
      if (f.path().string().ends_with(suffix)) out.push_back(f.path().string());
    }
    return out;
  }
};

TEST_F(KvDiskTest, BlocksComeBackAfterARestartAsFarAsTheTokensAgree) {
  const Tokens all = tokens(40 * 4);  // 16 + 16 + 8 pages
  {
    KvDisk disk(options());
    EXPECT_EQ(load(disk, all), 0U);
    EXPECT_EQ(save(disk, all), 3);
    EXPECT_EQ(save(disk, all), 0);  // is there
    EXPECT_EQ(load(disk, all), 40U);
  }
  KvDisk disk(options());
  EXPECT_EQ(disk.n_files(), 3);
  EXPECT_EQ(load(disk, all), 40U);
  EXPECT_EQ(load(disk, tokens(20 * 4)), 20U);  // a part of a block
  Tokens other = all;
  other[70] = -1;  // in the second block
  EXPECT_EQ(load(disk, other), 17U);
  other[0] = -1;
  EXPECT_EQ(load(disk, other), 0U);
  EXPECT_EQ(disk.find(all, 32).size(), 1U);
  EXPECT_EQ(disk.find(all, 20).front().first_page, 16U);
  EXPECT_TRUE(disk.find(all, 40).empty());
  EXPECT_TRUE(notices.empty());
}

TEST_F(KvDiskTest, ALongerBlockTakesThePlaceOfTheShorterOne) {
  KvDisk disk(options());
  EXPECT_EQ(save(disk, tokens(5 * 4)), 1);
  EXPECT_EQ(save(disk, tokens(9 * 4)), 1);
  EXPECT_EQ(disk.n_files(), 1);
  EXPECT_EQ(files().size(), 1U);
  EXPECT_EQ(load(disk, tokens(9 * 4)), 9U);
  EXPECT_EQ(disk.bytes(), static_cast<std::int64_t>(fs::file_size(files()[0])));
}

TEST_F(KvDiskTest, DamagedCutAndForeignFilesAreSaidOnceAndDeleted) {
  const Tokens all = tokens(16 * 4);
  std::uintmax_t size = 0;
  {
    KvDisk disk(options());
    save(disk, all);
    size = fs::file_size(files().at(0));
  }
  const std::string path = files().at(0);
  std::ifstream in(path, std::ios::binary);
  const std::string good((std::istreambuf_iterator<char>(in)), {});
  const auto put = [&](const std::string& to, const std::string& content) {
    std::ofstream(to, std::ios::binary) << content;
  };
  // Every byte matters: header, tokens, pages, length.
  std::vector<std::string> bad;
  for (const std::size_t at : {0U, 9U, 20U, 60U, 79U, 81U, 200U, static_cast<unsigned>(size) - 1}) {
    bad.push_back(good);
    bad.back()[at] = static_cast<char>(bad.back()[at] ^ 16);
  }
  bad.push_back(good.substr(0, good.size() - 1));
  bad.push_back(good.substr(0, 30));
  bad.emplace_back();
  bad.push_back(good + "x");
  for (std::size_t i = 0; i < bad.size(); ++i) {
    notices.clear();
    put(path, bad[i]);
    {
      KvDisk disk(options());
      EXPECT_EQ(load(disk, all), 0U) << i;
      EXPECT_EQ(load(disk, all), 0U) << i;
    }
    EXPECT_EQ(notices.size(), 1U) << i;
    EXPECT_FALSE(fs::exists(path)) << i;
  }
  notices.clear();
  put(path, good);
  put(dir + "/notes.kv", "shopping list");
  put(dir + "/notes.txt", "not ours");
  put(dir + "/0000.kv-tmp", good.substr(0, 500));  // of a process that was killed
  KvDisk disk(options());
  EXPECT_EQ(load(disk, all), 16U);
  ASSERT_EQ(notices.size(), 1U);
  EXPECT_NE(notices[0].find("1 file damaged or foreign and deleted (notes.kv: too short)"), std::string::npos)
      << notices[0];
  EXPECT_TRUE(fs::exists(dir + "/notes.txt"));
  EXPECT_TRUE(files(".kv-tmp").empty());
}

TEST_F(KvDiskTest, AFileUnderAnotherNameIsNotTakenForWhatTheNameSays) {
  const Tokens all = tokens(16 * 4);
  KvDisk disk(options());
  save(disk, all);
  const std::string first = files().at(0);
  const Tokens others = tokens(16 * 4, 5000);
  save(disk, others);
  for (const std::string& f : files()) {
    if (f != first) fs::copy_file(f, first, fs::copy_options::overwrite_existing);
  }
  EXPECT_EQ(load(disk, all), 0U);
  EXPECT_EQ(load(disk, others), 16U);
  EXPECT_EQ(notices.size(), 1U);
}

TEST_F(KvDiskTest, OtherModelsAreLeftAloneAndNeverRead) {
  const Tokens all = tokens(16 * 4);
  { save(*std::make_unique<KvDisk>(options()), all); }
  for (int field = 0; field < 3; ++field) {
    KvFileShape shape = kShape;
    if (field == 0) shape.fingerprint = 8;
    if (field == 1) shape.codec = 1;
    if (field == 2) shape.n_layers = 2;
    KvDisk disk(options(1 << 20, shape));
    EXPECT_TRUE(disk.find(all, 0).empty());
    EXPECT_EQ(disk.n_files(), 1);
  }
  KvDisk disk(options());
  EXPECT_EQ(load(disk, all), 16U);
  EXPECT_TRUE(notices.empty());
}

TEST_F(KvDiskTest, TheOldestFileGoesWhenTheDirectoryIsFull) {
  const Tokens a = tokens(16 * 4, 0);
  const Tokens b = tokens(16 * 4, 1000);
  const Tokens c = tokens(16 * 4, 2000);
  const std::int64_t one = 80 + 64 * 4 + 16 * 3 * 40;
  {
    KvDisk disk(options(2 * one));
    save(disk, a);
    save(disk, b);
    EXPECT_EQ(load(disk, a), 16U);  // used: b is the oldest now
    save(disk, c);
    EXPECT_EQ(load(disk, b), 0U);
    EXPECT_EQ(load(disk, a), 16U);
    EXPECT_EQ(load(disk, c), 16U);
    EXPECT_LE(disk.bytes(), 2 * one);
  }
  KvDisk smaller(options(one));  // of a and c, c was used last
  EXPECT_EQ(smaller.n_files(), 1);
  EXPECT_EQ(load(smaller, c), 16U);
  KvDisk::Job j = job(smaller.blocks(a, 16)[0], a, pool);
  EXPECT_EQ(files().size(), 1U);
  EXPECT_TRUE(notices.empty());
}

TEST_F(KvDiskTest, ADirectoryThatCannotBeUsedCostsOneNotice) {
  std::ofstream(dir) << "a file";
  KvDisk disk(options());
  const Tokens all = tokens(16 * 4);
  EXPECT_EQ(save(disk, all), 0);
  EXPECT_TRUE(disk.find(all, 0).empty());
  EXPECT_EQ(notices.size(), 1U);
}

TEST_F(KvDiskTest, ASecondProcessGoesWithoutIt) {
  KvDisk first(options());
  const Tokens all = tokens(16 * 4);
  save(first, all);
  KvDisk second(options());
  EXPECT_TRUE(second.find(all, 0).empty());
  EXPECT_EQ(save(second, all), 0);
  ASSERT_EQ(notices.size(), 1U);
  EXPECT_NE(notices[0].find("in use by another process"), std::string::npos);
  EXPECT_EQ(load(first, all), 16U);
}

TEST_F(KvDiskTest, AFullDiskIsSaidOnceAndLeavesNothingHalf) {
  KvDisk disk(options());
  rlimit before{};
  ::getrlimit(RLIMIT_FSIZE, &before);
  const auto old = std::signal(SIGXFSZ, SIG_IGN);
  const rlimit small{.rlim_cur = 500, .rlim_max = before.rlim_max};
  ::setrlimit(RLIMIT_FSIZE, &small);
  const int written = save(disk, tokens(40 * 4)) + save(disk, tokens(40 * 4, 3000));
  ::setrlimit(RLIMIT_FSIZE, &before);
  std::signal(SIGXFSZ, old);
  EXPECT_EQ(written, 0);
  EXPECT_EQ(notices.size(), 1U);
  EXPECT_TRUE(files().empty());
  EXPECT_TRUE(files(".kv-tmp").empty());
}

}  // namespace
}  // namespace glint
