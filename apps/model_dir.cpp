#include "model_dir.hpp"

#include <filesystem>
#include <optional>

#include "base/env.hpp"
#include "base/error.hpp"

namespace glint::apps {
namespace {

namespace fs = std::filesystem;

bool is_dir(const fs::path& path) {
  std::error_code ec;
  return fs::is_directory(path, ec);
}

std::string checked(const std::string& dir, const char* origin) {
  std::error_code ec;
  if (!is_dir(dir) && !(dir.ends_with(".gguf") && fs::is_regular_file(dir, ec))) {
    throw Error({.what = std::string("model ") + dir + " (from " + origin + ")",
                 .found = "no such directory or .gguf file",
                 .expected = "a directory with config.json and safetensors, or a .gguf file"});
  }
  return dir;
}

}  // namespace

std::string resolve_model_dir(const std::string& flag) {
  if (!flag.empty()) return checked(flag, "-m");
  if (const auto from_env = env_value("GLINT_MODEL")) return checked(*from_env, "GLINT_MODEL");
  const fs::path bundled = fs::path("models") / "tiny";
  if (is_dir(bundled)) return bundled.string();
  std::error_code ec;
  for (fs::path p = fs::read_symlink("/proc/self/exe", ec); p.has_parent_path() && p != p.root_path();) {
    p = p.parent_path();
    if (is_dir(p / bundled)) return (p / bundled).string();
  }
  throw Error({.what = "no model",
               .found = "no " + bundled.string() + " in the working directory or above the executable",
               .expected = "-m DIR or GLINT_MODEL"});
}

}  // namespace glint::apps
