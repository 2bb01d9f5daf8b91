#include "text/pretokenizer.hpp"

#include <array>
#include <cstdint>

#include "text/unicode_tables.hpp"
#include "text/utf8.hpp"

namespace glint {
namespace {

constexpr std::array<CharClass, 128> kAsciiClass = [] {
  std::array<CharClass, 128> table{};
  for (std::size_t c = 'a'; c <= 'z'; ++c) table[c] = table[c - 'a' + 'A'] = CharClass::kLetter;
  for (std::size_t c = '0'; c <= '9'; ++c) table[c] = CharClass::kNumber;
  for (const std::size_t c : {9, 10, 11, 12, 13, 32}) table[c] = CharClass::kSpace;
  return table;
}();

struct Char {
  CharClass kind = CharClass::kOther;
  std::size_t length = 1;
};

// A text being scanned; positions are byte offsets into it.
class Scanner {
 public:
  explicit Scanner(std::string_view text) : text_(text) {}

  std::size_t pretoken_end(std::size_t begin) const {
    const Char first = at(begin);
    const std::size_t second = begin + first.length;
    switch (first.kind) {
      case CharClass::kLetter:
        return skip(CharClass::kLetter, second);
      case CharClass::kNumber:
        return numbers_end(second);
      case CharClass::kSpace:
        return after_space(begin, second);
      case CharClass::kOther:
        break;
    }
    if (text_[begin] == '\'') {
      if (const std::size_t end = contraction_end(second); end != 0) return end;
    }
    if (is(CharClass::kLetter, second)) return skip(CharClass::kLetter, second);
    return skip_newlines(skip(CharClass::kOther, second));
  }

 private:
  Char at(std::size_t i) const {
    const auto byte = static_cast<std::uint8_t>(text_[i]);
    if (byte < 0x80) [[likely]]
      return {kAsciiClass[byte], 1};
    const Utf8Step step = decode_utf8(text_.substr(i));
    if (step.status != Utf8Status::kValid) return {};
    return {char_class(step.code_point), step.length};
  }

  bool is(CharClass kind, std::size_t i) const { return i < text_.size() && at(i).kind == kind; }
  bool is_newline(std::size_t i) const { return text_[i] == '\n' || text_[i] == '\r'; }

  std::size_t skip(CharClass kind, std::size_t i) const {
    while (i < text_.size()) {
      const Char c = at(i);
      if (c.kind != kind) break;
      i += c.length;
    }
    return i;
  }

  std::size_t skip_newlines(std::size_t i) const {
    while (i < text_.size() && is_newline(i)) ++i;
    return i;
  }

  // \p{N}{1,3}, the first already passed.
  std::size_t numbers_end(std::size_t i) const {
    for (int more = 2; more > 0 && i < text_.size(); --more) {
      const Char c = at(i);
      if (c.kind != CharClass::kNumber) break;
      i += c.length;
    }
    return i;
  }

  // (?i:'s|'t|'re|'ve|'m|'ll|'d), the apostrophe already passed; 0 when it does not match.
  std::size_t contraction_end(std::size_t i) const {
    const auto lower = [this](std::size_t k) { return k < text_.size() ? text_[k] | 0x20 : 0; };
    const int a = lower(i), b = lower(i + 1);
    if (a == 's' || a == 't' || a == 'm' || a == 'd') return i + 1;
    if (((a == 'r' || a == 'v') && b == 'e') || (a == 'l' && b == 'l')) return i + 2;
    if (text_.substr(i, 2) == "\u017F") return i + 2;
    return 0;
  }

  // What a pre-token that starts with white space at `begin` can be; `second` is the next character.
  std::size_t after_space(std::size_t begin, std::size_t second) const {
    if (second < text_.size() && !is_newline(begin)) {
      const Char next = at(second);
      if (next.kind == CharClass::kLetter) return skip(CharClass::kLetter, second + next.length);
      if (next.kind == CharClass::kOther && text_[begin] == ' ') {
        return skip_newlines(skip(CharClass::kOther, second + next.length));
      }
    }
    return whitespace_end(begin);
  }

  // \s*[\r\n]+|\s+(?!\S)|\s+ : up to the last newline of the run; else the whole run at the end of the text; else all
  // but its last character, which goes with what follows; else that one character.
  std::size_t whitespace_end(std::size_t begin) const {
    std::size_t i = begin, last = begin, after_newline = 0;
    while (i < text_.size()) {
      const Char c = at(i);
      if (c.kind != CharClass::kSpace) break;
      last = i;
      i += c.length;
      if (is_newline(last)) after_newline = i;
    }
    if (after_newline != 0) return after_newline;
    return i == text_.size() || last == begin ? i : last;
  }

  std::string_view text_;
};

}  // namespace

std::size_t pretoken_end(std::string_view text, std::size_t begin) { return Scanner(text).pretoken_end(begin); }

}  // namespace glint
