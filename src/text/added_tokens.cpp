#include "text/added_tokens.hpp"

#include <algorithm>
#include <utility>

#include "text/unicode_tables.hpp"
#include "text/utf8.hpp"

namespace glint {
namespace {

bool is_space(const Utf8Step& step) {
  return step.status == Utf8Status::kValid && char_class(step.code_point) == CharClass::kSpace;
}

// Where the white space that ends at `end` begins, not before `from`.
std::size_t space_before(std::string_view text, std::size_t from, std::size_t end) {
  while (end > from) {
    std::size_t begin = end - 1;  // back to the lead byte: at most three continuation bytes
    while (begin > from && end - begin < 4 && (static_cast<std::uint8_t>(text[begin]) & 0xC0) == 0x80) --begin;
    const Utf8Step step = decode_utf8(text.substr(begin, end - begin));
    if (!is_space(step) || begin + step.length != end) break;
    end = begin;
  }
  return end;
}

std::size_t space_after(std::string_view text, std::size_t begin) {
  while (begin < text.size()) {
    const Utf8Step step = decode_utf8(text.substr(begin));
    if (!is_space(step)) break;
    begin += step.length;
  }
  return begin;
}

}  // namespace

AddedTokenMatcher::AddedTokenMatcher(std::vector<AddedToken> tokens) : tokens_(std::move(tokens)) {
  for (std::size_t t = 0; t < tokens_.size(); ++t) {
    std::int32_t node = 0;
    for (const char c : tokens_[t].content) {
      const auto byte = static_cast<std::uint8_t>(c);
      std::int32_t next = child_of(node, byte);
      if (next < 0) {
        next = static_cast<std::int32_t>(nodes_.size());
        nodes_.push_back({.byte = byte, .sibling = nodes_[static_cast<std::size_t>(node)].child});
        nodes_[static_cast<std::size_t>(node)].child = next;
      }
      node = next;
    }
    nodes_[static_cast<std::size_t>(node)].token = static_cast<std::int32_t>(t);
    if (!tokens_[t].content.empty()) first_byte_[static_cast<std::uint8_t>(tokens_[t].content[0])] = true;
  }
}

std::int32_t AddedTokenMatcher::child_of(std::int32_t node, std::uint8_t byte) const {
  std::int32_t child = nodes_[static_cast<std::size_t>(node)].child;
  while (child >= 0 && nodes_[static_cast<std::size_t>(child)].byte != byte) {
    child = nodes_[static_cast<std::size_t>(child)].sibling;
  }
  return child;
}

AddedTokenMatcher::Match AddedTokenMatcher::find(std::string_view text, std::size_t from) const {
  for (std::size_t begin = from; begin < text.size(); ++begin) {
    if (!first_byte_[static_cast<std::uint8_t>(text[begin])]) continue;
    const AddedToken* longest = nullptr;
    std::int32_t node = 0;
    for (std::size_t i = begin; i < text.size(); ++i) {
      node = child_of(node, static_cast<std::uint8_t>(text[i]));
      if (node < 0) break;
      const std::int32_t token = nodes_[static_cast<std::size_t>(node)].token;
      if (token >= 0) longest = &tokens_[static_cast<std::size_t>(token)];
    }
    if (longest == nullptr) continue;
    Match match{begin, begin + longest->content.size(), longest->id};
    if (longest->lstrip) match.begin = space_before(text, from, begin);
    if (longest->rstrip) match.end = space_after(text, match.end);
    return match;
  }
  return {};
}

}  // namespace glint
