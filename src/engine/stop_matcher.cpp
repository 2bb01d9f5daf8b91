#include "engine/stop_matcher.hpp"

#include <algorithm>
#include <utility>

namespace glint {

StopMatcher::StopMatcher(std::vector<std::string> stops) : stops_(std::move(stops)) {}

const std::string* StopMatcher::feed(std::string_view text, std::string* out) {
  if (stops_.empty()) {
    out->append(text);
    return nullptr;
  }
  held_.append(text);
  const std::string* found = nullptr;
  std::size_t found_end = 0;
  for (const std::string& stop : stops_) {
    const std::size_t at = held_.find(stop);
    if (at == std::string::npos) continue;
    const std::size_t end = at + stop.size();
    if (found == nullptr || end < found_end || (end == found_end && stop.size() > found->size())) {
      found = &stop;
      found_end = end;
    }
  }
  if (found != nullptr) {
    out->append(held_, 0, found_end - found->size());
    held_.clear();
    return found;
  }
  const std::size_t keep = held_length();
  out->append(held_, 0, held_.size() - keep);
  held_.erase(0, held_.size() - keep);
  return nullptr;
}

void StopMatcher::flush(std::string* out) {
  out->append(held_);
  held_.clear();
}

// The longest suffix of held_ that a stop string begins with.
std::size_t StopMatcher::held_length() const {
  std::size_t longest = 0;
  const std::string_view held = held_;
  for (const std::string& stop : stops_) {
    for (std::size_t n = std::min(held.size(), stop.size() - 1); n > longest; --n) {
      if (std::string_view(stop).starts_with(held.substr(held.size() - n))) {
        longest = n;
        break;
      }
    }
  }
  return longest;
}

}  // namespace glint
