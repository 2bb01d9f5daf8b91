#include "engine/disk_options.hpp"

#include <sys/stat.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <vector>

#include "base/error.hpp"
#include "base/hash.hpp"

namespace glint {
namespace {

namespace fs = std::filesystem;
constexpr std::int64_t kDefaultBytes = std::int64_t{16} << 30;

// Name, size, time and samples of a file's content: reading tens of gigabytes at every start is out of the question,
// and a checkpoint that was trained on differs everywhere.
void append_file(const fs::path& path, std::string& out) {
  struct stat s {};
  if (::stat(path.c_str(), &s) != 0) return;
  out += path.filename().string() + ' ' + std::to_string(s.st_size) + ' ' + std::to_string(s.st_mtim.tv_sec) + '.' +
         std::to_string(s.st_mtim.tv_nsec);
  constexpr std::int64_t kSamples = 64;
  constexpr std::int64_t kSampleBytes = 16 << 10;
  std::ifstream file(path, std::ios::binary);
  std::string sample(kSampleBytes, '\0');
  for (std::int64_t i = 0; i < kSamples; ++i) {
    file.clear();
    file.seekg(std::max<std::int64_t>(0, s.st_size - kSampleBytes) / (kSamples - 1) * i);
    file.read(sample.data(), kSampleBytes);
    out += ' ' + std::to_string(hash64(sample.data(), static_cast<std::size_t>(file.gcount())));
  }
}

std::uint64_t fingerprint(const EngineOptions& o, const LoadedModel& model) {
  std::string all = model.ops->name() + '|' + o.weights + '|' + std::to_string(o.latent_eps) + '|' +
                    std::to_string(hash64(&o.latent_eps, sizeof o.latent_eps)) + '|' + std::to_string(o.window_tokens) +
                    '|' + std::to_string(o.synthetic_layers) + '|';
  std::vector<fs::path> files;
  std::error_code ec;
  if (fs::is_regular_file(o.model_dir, ec)) files.emplace_back(o.model_dir);
  for (const auto& entry : fs::directory_iterator(o.model_dir, ec)) {
    const fs::path& p = entry.path();
    if (p.extension() == ".safetensors" || p.extension() == ".gguf" || p.filename() == "config.json")
      files.push_back(p);
  }
  std::sort(files.begin(), files.end());
  for (const fs::path& file : files) append_file(file, all);
  return hash64(all.data(), all.size());
}

}  // namespace

std::optional<KvDiskOptions> disk_options(const EngineOptions& o, const LoadedModel& model, const KvStore& store) {
  if (o.cache_dir.empty()) return std::nullopt;
  if (!model.ops->host_memory()) {
    throw Error(
        {.what = "cache_dir", .found = "device " + o.device, .expected = "a device whose cache is in host memory"});
  }
  return KvDiskOptions{.dir = o.cache_dir,
                       .max_bytes = o.cache_dir_bytes > 0 ? o.cache_dir_bytes : kDefaultBytes,
                       .shape = {.fingerprint = fingerprint(o, model),
                                 .codec = static_cast<std::uint32_t>(store.codec()),
                                 .page_tokens = kPageTokens,
                                 .n_layers = static_cast<std::uint32_t>(store.n_layers()),
                                 .page_bytes = static_cast<std::uint64_t>(store.page_bytes())},
                       .notice = o.on_notice};
}

}  // namespace glint
