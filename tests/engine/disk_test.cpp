// The prefix cache's second tier: an engine that is opened again starts behind what the last one wrote, and a directory
// in whatever state never changes an answer.

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <mutex>

#include "engine/engine_fixture.hpp"

namespace glint::testing {
namespace {

namespace fs = std::filesystem;

struct DiskTest : ::testing::Test {
  std::string dir = (fs::temp_directory_path() / ("glint_disk_" + std::to_string(::getpid()))).string();
  std::mutex mutex;
  std::vector<std::string> notices;
  DiskTest() { fs::remove_all(dir); }
  ~DiskTest() override { fs::remove_all(dir); }

  EngineOptions options() {
    EngineOptions o = tiny_options();
    o.chunk_tokens = 256;
    o.max_context = 4096;
    o.cache_dir = dir;
    o.on_notice = [this](const std::string& line) {
      const std::lock_guard lock(mutex);
      notices.push_back(line);
    };
    return o;
  }

  // A prompt of n tokens that is not like another.
  static Request prompt(std::int64_t n, std::uint32_t seed) {
    Request r;
    for (std::int64_t i = 0; i < n; ++i) {
      seed = seed * 1664525 + 1013904223;
      r.ids.push_back(static_cast<std::int32_t>(300 + (seed >> 8) % 5000));
    }
    r.sampling.temperature = 0;
    r.max_tokens = 8;
    r.ignore_eos = true;
    return r;
  }
};

void expect_same(const Answer& got, const Answer& want) {
  EXPECT_EQ(got.ids, want.ids);
  EXPECT_EQ(got.last.finish, want.last.finish);
  EXPECT_EQ(got.last.usage.logits_hash, want.last.usage.logits_hash);
}

TEST_F(DiskTest, TheFirstTurnAfterARestartHits) {
  const Request talk = prompt(700, 1);
  const Request branch = [&] {
    Request r = talk;
    r.ids.resize(500);
    r.ids.push_back(700);
    return r;
  }();
  Answer want;
  Answer want_branch;
  {
    const auto engine = Engine::open(options());
    want = answer(*engine, talk);
    EXPECT_EQ(want.last.usage.cached_tokens, 0);
    want_branch = answer(*engine, branch);
    EXPECT_EQ(want_branch.last.usage.cached_tokens, 500);
  }
  const auto engine = Engine::open(options());
  const Answer again = answer(*engine, talk);
  expect_same(again, want);
  EXPECT_EQ(again.last.usage.cached_tokens, 700 / 64 * 64);
  EXPECT_EQ(engine->stats().disk_loaded_tokens, 700 / 64 * 64);
  expect_same(answer(*engine, branch), want_branch);
  EXPECT_EQ(engine->stats().cache_tokens_used, 0);
  EXPECT_TRUE(notices.empty());
}

// Requests that begin alike, on the engine's own thread, one of which goes away while its prompt is read.
TEST_F(DiskTest, RequestsThatWaitForTheSameBlocksReadThemOnce) {
  const Request talk = prompt(700, 2);
  Answer want;
  { want = answer(*Engine::open(options()), talk); }
  EngineOptions o = options();
  o.use_thread = true;
  const auto engine = Engine::open(o);
  std::vector<RequestId> ids;
  for (int i = 0; i < 4; ++i) ids.push_back(engine->submit(talk));
  engine->abandon(ids[1]);
  for (const std::size_t i : {0U, 2U, 3U}) expect_same(collect(*engine, ids[i]), want);
  EXPECT_LE(engine->stats().disk_loaded_tokens, 640);
  EXPECT_GE(engine->stats().cached_tokens, 3 * 640);
}

TEST_F(DiskTest, DamagedBlocksAreComputedAgain) {
  const Request talk = prompt(1300, 3);
  Answer want;
  { want = answer(*Engine::open(options()), talk); }
  // A bit in the pages of one block, which only reading can find, and another one cut off.
  std::vector<fs::path> files;
  for (const auto& f : fs::directory_iterator(dir)) {
    if (f.path().extension() == ".kv") files.push_back(f.path());
  }
  std::sort(files.begin(), files.end());
  ASSERT_EQ(files.size(), 2U);
  {
    std::fstream f(files[0], std::ios::in | std::ios::out | std::ios::binary);
    f.seekp(-1000, std::ios::end);
    f.put('\x55');
    f.put('\x56');
  }
  fs::resize_file(files[1], fs::file_size(files[1]) / 2);
  // The third time all is whole again: damage to a block behind one that was lost shows when that one is back.
  for (int i = 0; i < 3; ++i) {
    notices.clear();
    const auto engine = Engine::open(options());
    expect_same(answer(*engine, talk), want);
    if (i == 0) EXPECT_LT(engine->stats().disk_loaded_tokens, 1280);
    if (i == 2) EXPECT_EQ(engine->stats().disk_loaded_tokens, 1280);
    if (i == 2) EXPECT_TRUE(notices.empty());
  }
}

// A cache that holds two conversations, a directory that holds four: all of them take turns.
TEST_F(DiskTest, ASmallCacheReadsBackWhatItGaveUp) {
  EngineOptions o = options();
  o.max_context = 448;
  o.cache_tokens = 1024;
  o.cache_dir_bytes = std::int64_t{16} << 20;
  o.prefix_cache = true;
  const auto engine = Engine::open(o);
  o.cache_dir.clear();
  o.prefix_cache = false;
  const auto cold = Engine::open(o);
  for (int round = 0; round < 2; ++round) {
    for (std::uint32_t t = 0; t < 4; ++t) {
      const Request r = prompt(330, 10 + t);
      const Answer got = answer(*engine, r);
      expect_same(got, answer(*cold, r));
      if (round > 0) EXPECT_GE(got.last.usage.cached_tokens, 256) << round << ' ' << t;
    }
  }
  EXPECT_GT(engine->stats().evicted_tokens, 0);
  EXPECT_LE(engine->stats().disk_bytes, std::int64_t{16} << 20);
  EXPECT_TRUE(notices.empty());
}

TEST_F(DiskTest, OtherOptionsThatChangeValuesDoNotHit) {
  const Request talk = prompt(200, 5);
  { answer(*Engine::open(options()), talk); }
  for (int change = 0; change < 3; ++change) {
    EngineOptions o = options();
    if (change == 0) o.latent_eps = 1e-6F;
    if (change == 1) o.kv = "int8";
    if (change == 2) o.isa = "generic";
    const auto engine = Engine::open(o);
    answer(*engine, talk);
    EXPECT_EQ(engine->stats().disk_loaded_tokens, 0) << change;
  }
  EXPECT_TRUE(notices.empty());
}

TEST_F(DiskTest, WithoutAPrefixCacheThereIsNoDirectory) {
  EngineOptions o = options();
  o.prefix_cache = false;
  EXPECT_THROW(Engine::open(o), Error);
}

}  // namespace
}  // namespace glint::testing
