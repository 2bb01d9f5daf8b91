#include "calibration_text.hpp"

#include <algorithm>
#include <filesystem>

#include "base/error.hpp"
#include "base/file.hpp"
#include "model_dir.hpp"
#include "text/tokenizer.hpp"

namespace glint::apps {
namespace {

// The text that comes with Glint, beside the bundled model.
std::string bundled_text() {
  const std::string dir = resolve_model_dir("");
  const std::string path = (std::filesystem::path(dir).parent_path() / "calibration.txt").string();
  if (!std::filesystem::exists(path))
    throw Error({.what = path, .found = "no such file", .hint = "give a text with --calibrate"});
  return path;
}

}  // namespace

std::vector<std::int32_t> calibration_ids(const std::string& model_dir, const std::string& path, std::int64_t limit) {
  const Tokenizer tokenizer = Tokenizer::from_file(model_dir + "/tokenizer.json");
  const std::string file = path.empty() ? bundled_text() : path;
  const std::string text = read_file(file);
  static constexpr std::string_view kEnd = "<|endoftext|>";
  std::vector<std::int32_t> ids;
  for (std::size_t at = 0; at < text.size() && static_cast<std::int64_t>(ids.size()) < limit;) {
    const std::size_t end = std::min(text.find(kEnd, at), text.size());
    std::string document = text.substr(at, end - at);
    at = end + kEnd.size();
    document.erase(0, document.find_first_not_of('\n'));
    if (document.empty()) continue;
    if (!document.starts_with("[gMASK]")) document = "[gMASK]<sop>" + document;
    const std::vector<std::int32_t> more = tokenizer.encode(document + std::string(kEnd));
    ids.insert(ids.end(), more.begin(), more.end());
  }
  if (static_cast<std::int64_t>(ids.size()) > limit) ids.resize(static_cast<std::size_t>(limit));
  if (ids.empty()) throw Error({.what = file, .found = "no text", .expected = "text to calibrate on"});
  return ids;
}

}  // namespace glint::apps
