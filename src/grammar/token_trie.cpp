#include "grammar/token_trie.hpp"

#include <algorithm>

namespace glint::grammar {

TokenTrie::TokenTrie(std::vector<std::pair<std::string_view, std::int32_t>> tokens) {
  std::sort(tokens.begin(), tokens.end());
  std::int32_t highest = -1;
  for (const auto& [bytes, id] : tokens) highest = std::max(highest, id);
  next_same_.assign(static_cast<std::size_t>(highest + 1), -1);
  nodes_.emplace_back();
  std::vector<std::size_t> path{0};  // from the root to the last node
  const auto close = [&](std::size_t depth) {
    for (; path.size() > depth + 1; path.pop_back())
      nodes_[path.back()].subtree = static_cast<std::int32_t>(nodes_.size());
  };
  std::string_view last;
  for (const auto& [bytes, id] : tokens) {
    if (bytes.empty() || bytes.size() > 255) continue;
    longest_ = std::max(longest_, bytes.size());
    const auto common = static_cast<std::size_t>(
        std::mismatch(bytes.begin(), bytes.end(), last.begin(), last.end()).first - bytes.begin());
    close(common);
    for (std::size_t d = common; d < bytes.size(); ++d) {
      path.push_back(nodes_.size());
      nodes_.push_back({.byte = static_cast<std::uint8_t>(bytes[d]), .depth = static_cast<std::uint8_t>(d + 1)});
    }
    Node& node = nodes_[path.back()];
    next_same_[static_cast<std::size_t>(id)] = node.token;
    node.token = id;
    last = bytes;
  }
  close(0);
  nodes_[0].subtree = static_cast<std::int32_t>(nodes_.size());
}

}  // namespace glint::grammar
