#pragma once
// The vocabulary as a tree of bytes, laid out in preorder: what a prefix rules out, one jump skips.

#include <cstdint>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

namespace glint::grammar {

class TokenTrie {
 public:
  struct Node {
    std::uint8_t byte = 0;
    std::uint8_t depth = 0;    // bytes from the root
    std::int32_t token = -1;   // one whose bytes end here; others with the same bytes: next_same
    std::int32_t subtree = 0;  // index of the first node that is not below this one
  };

  // bytes(id) of the tokens that are text; an empty one, or one of more than 255 bytes, is never allowed.
  explicit TokenTrie(std::vector<std::pair<std::string_view, std::int32_t>> tokens);

  const std::vector<Node>& nodes() const { return nodes_; }  // the first is the root
  std::int32_t next_same(std::int32_t token) const { return next_same_[static_cast<std::size_t>(token)]; }
  std::size_t longest() const { return longest_; }

 private:
  std::vector<Node> nodes_;
  std::vector<std::int32_t> next_same_;  // by token
  std::size_t longest_ = 0;
};

}  // namespace glint::grammar
