#pragma once
// Added tokens (model.md §5.3): matched in the raw text before anything else, leftmost first, then longest.

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace glint {

struct AddedToken {
  std::int32_t id = 0;
  std::string content;
  bool special = false;     // left out of text when special tokens are skipped
  bool lstrip = false;      // takes the white space before it along
  bool rstrip = false;      // takes the white space after it along
  bool normalized = false;  // matched after the others (there is no normalizer; only this order is left of it)
};

// Finds one set of added tokens in text. Read-only once built.
class AddedTokenMatcher {
 public:
  AddedTokenMatcher() = default;
  explicit AddedTokenMatcher(std::vector<AddedToken> tokens);

  struct Match {
    std::size_t begin = 0;  // with the white space that lstrip and rstrip take along
    std::size_t end = 0;
    std::int32_t id = -1;
  };

  bool empty() const { return tokens_.empty(); }
  // The first match that starts at or after `from`; id -1 when there is none.
  Match find(std::string_view text, std::size_t from) const;

 private:
  // A trie with sibling lists: few nodes, and a walk is as long as the longest token.
  struct Node {
    std::uint8_t byte = 0;
    std::int32_t token = -1;  // index into tokens_ when a token ends here
    std::int32_t child = -1;
    std::int32_t sibling = -1;
  };
  std::int32_t child_of(std::int32_t node, std::uint8_t byte) const;

  std::vector<AddedToken> tokens_;
  std::vector<Node> nodes_{1};
  std::array<bool, 256> first_byte_{};
};

}  // namespace glint
