#include "grammar/regex.hpp"

#include <memory>
#include <optional>
#include <string>

#include "base/error.hpp"

namespace glint::grammar {
namespace {

constexpr int kMaxRepeat = 1000;
constexpr int kMaxDepth = 100;

struct Node {
  enum class Kind : std::uint8_t { kSet, kSequence, kChoice, kRepeat };
  Kind kind = Kind::kSequence;
  CharSet set;
  std::vector<Node> parts;
  int min = 0;
  int max = -1;  // < 0: no limit
};

const CharSet kDigit = {{'0', '9'}};
const CharSet kWord = {{'0', '9'}, {'A', 'Z'}, {'_', '_'}, {'a', 'z'}};
const CharSet kSpace = {{'\t', '\r'}, {' ', ' '}};
// What any dialect counts as white space: \S must be none of it.
const CharSet kWideSpace = {{'\t', '\r'},     {0x1C, ' '},      {0x85, 0x85},     {0xA0, 0xA0},
                            {0x1680, 0x1680}, {0x2000, 0x200A}, {0x2028, 0x2029}, {0x202F, 0x202F},
                            {0x205F, 0x205F}, {0x3000, 0x3000}, {0xFEFF, 0xFEFF}};
const CharSet kLineEnd = {{'\n', '\n'}, {'\r', '\r'}, {0x2028, 0x2029}};

class Parser {
 public:
  explicit Parser(std::string_view pattern) : text_(characters(pattern)) {}

  // Alternatives at the top may be anchored each for itself.
  Node parse() {
    Node top{.kind = Node::Kind::kChoice};
    do {
      Node one{.kind = Node::Kind::kSequence};
      const bool from_start = take('^');
      Node body = sequence(0);
      const bool to_end = take('$');
      if (!from_start) one.parts.push_back(anything());
      one.parts.push_back(std::move(body));
      if (!to_end) one.parts.push_back(anything());
      top.parts.push_back(std::move(one));
    } while (take('|'));
    if (at_ < text_.size()) fail(text_[at_] == ')' ? "a ) without (" : "$ before the end");
    return top;
  }

 private:
  static Node anything() {
    return {.kind = Node::Kind::kRepeat, .parts = {{.kind = Node::Kind::kSet, .set = all_chars()}}};
  }

  [[noreturn]] static void fail(const std::string& what) { throw Error(what); }

  bool more() const { return at_ < text_.size(); }
  bool take(char32_t c) {
    if (!more() || text_[at_] != c) return false;
    ++at_;
    return true;
  }

  Node sequence(int depth) {
    Node out{.kind = Node::Kind::kSequence};
    while (more() && text_[at_] != '|' && text_[at_] != ')' && text_[at_] != '$') out.parts.push_back(repeated(depth));
    return out;
  }

  Node repeated(int depth) {
    Node node = atom(depth);
    for (;;) {
      int min = 0, max = -1;
      if (take('*')) {
      } else if (take('+')) {
        min = 1;
      } else if (take('?')) {
        max = 1;
      } else if (more() && text_[at_] == '{') {
        ++at_;
        bounds(min, max);
      } else {
        return node;
      }
      take('?');  // lazy: the same language
      if (more() && text_[at_] == '+') fail("possessive quantifiers are not supported");
      Node outer{.kind = Node::Kind::kRepeat, .min = min, .max = max};
      outer.parts.push_back(std::move(node));
      node = std::move(outer);
    }
  }

  void bounds(int& min, int& max) {
    const std::optional<int> first = number();
    if (!first) fail("a { that is no quantifier: write \\{");
    min = max = *first;
    if (take(',')) {
      const std::optional<int> second = number();
      max = second.value_or(-1);
    }
    if (!take('}')) fail("a { that is no quantifier: write \\{");
    if (max >= 0 && max < min) fail("a quantifier whose limits are in the wrong order");
  }

  std::optional<int> number() {
    std::optional<int> n;
    while (more() && text_[at_] >= '0' && text_[at_] <= '9') {
      n = n.value_or(0) * 10 + static_cast<int>(text_[at_++] - '0');
      if (*n > kMaxRepeat) fail("a repetition of more than " + std::to_string(kMaxRepeat));
    }
    return n;
  }

  Node atom(int depth) {
    if (depth > kMaxDepth) fail("groups nested too deeply");
    const char32_t c = text_[at_++];
    switch (c) {
      case '(':
        return group(depth);
      case '[':
        return of(char_class());
      case '.':
        return of(complement(kLineEnd));
      case '\\':
        return of(escape());
      case '^':
        fail("^ is supported at the start of an alternative only");
      case '*':
      case '+':
      case '?':
        fail("a quantifier without anything before it");
      default:
        return of({{c, c}});
    }
  }

  static Node of(CharSet set) { return {.kind = Node::Kind::kSet, .set = std::move(set)}; }

  Node group(int depth) {
    if (take('?')) {
      if (take('<')) {
        if (more() && (text_[at_] == '=' || text_[at_] == '!')) fail("look-around is not supported");
        while (more() && text_[at_] != '>') ++at_;
        if (!take('>')) fail("a group's name without >");
      } else if (!take(':')) {
        fail(more() && (text_[at_] == '=' || text_[at_] == '!') ? "look-around is not supported"
                                                                : "this kind of group is not supported");
      }
    }
    Node out{.kind = Node::Kind::kChoice};
    do {
      out.parts.push_back(sequence(depth + 1));
      if (more() && text_[at_] == '$') fail("$ is supported at the end of an alternative only");
    } while (take('|'));
    if (!take(')')) fail("a ( without )");
    return out;
  }

  char32_t hex(int digits) {
    char32_t value = 0;
    for (int i = 0; i < digits; ++i) {
      const char32_t c = more() ? text_[at_++] : 0;
      const char32_t lower = c | 0x20;
      if (c >= '0' && c <= '9') {
        value = value * 16 + (c - '0');
      } else if (lower >= 'a' && lower <= 'f') {
        value = value * 16 + (lower - 'a' + 10);
      } else {
        fail("an escape with too few hexadecimal digits");
      }
    }
    return value;
  }

  char32_t code_point() {
    if (!take('{')) return hex(4);
    char32_t value = 0;
    while (more() && text_[at_] != '}') {
      value = value * 16 + hex(1);
      if (value > kLastChar) fail("an escape above U+10FFFF");
    }
    if (!take('}')) fail("\\u{ without }");
    return value;
  }

  CharSet escape() {
    if (!more()) fail("a \\ at the end");
    const char32_t c = text_[at_++];
    const auto one = [](char32_t x) {
      CharSet set = normalised({{x, x}});
      if (set.empty()) fail("a surrogate");
      return set;
    };
    switch (c) {
      case 'd':
        return kDigit;
      case 'D':
        return complement(kDigit);
      case 'w':
        return kWord;
      case 'W':
        return complement(kWord);
      case 's':
        return kSpace;
      case 'S':
        return complement(kWideSpace);
      case 'n':
        return one('\n');
      case 't':
        return one('\t');
      case 'r':
        return one('\r');
      case 'f':
        return one('\f');
      case 'v':
        return one('\v');
      case '0':
        if (more() && text_[at_] >= '0' && text_[at_] <= '9') fail("octal escapes are not supported");
        return one(0);
      case 'x':
        return one(hex(2));
      case 'u':
        return one(code_point());
      default:
        break;
    }
    if (c >= '1' && c <= '9') fail("back references are not supported");
    if ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z')) {
      fail(std::string("\\") + static_cast<char>(c) + " is not supported");
    }
    return one(c);
  }

  CharSet char_class() {
    const bool negated = take('^');
    CharSet set;
    while (more() && text_[at_] != ']') {
      CharSet part = class_atom();
      const bool is_range = at_ + 1 < text_.size() && text_[at_] == '-' && text_[at_ + 1] != ']';
      if (is_range) {
        ++at_;
        const CharSet end = class_atom();
        const auto single = [](const CharSet& s) { return s.size() == 1 && s[0].first == s[0].last; };
        if (!single(part) || !single(end)) fail("a range between classes");
        if (end[0].first < part[0].first) fail("a range in the wrong order");
        part = {{part[0].first, end[0].first}};
      }
      set.insert(set.end(), part.begin(), part.end());
    }
    if (!take(']')) fail("a [ without ]");
    set = normalised(std::move(set));
    return negated ? complement(set) : set;
  }

  CharSet class_atom() {
    const char32_t c = text_[at_++];
    if (c != '\\') return {{c, c}};
    if (take('b')) return {{'\b', '\b'}};
    if (take('-')) return {{'-', '-'}};
    return escape();
  }

  std::vector<char32_t> text_;
  std::size_t at_ = 0;
};

class Builder {
 public:
  CharDfa build(const Node& node) {
    const int start = nfa_.add_state();
    const int end = add(node, start);
    return nfa_.determinise(start, end);
  }

 private:
  // Adds the node's texts from `from` on; the state where they end.
  int add(const Node& node, int from) {
    switch (node.kind) {
      case Node::Kind::kSet: {
        const int to = nfa_.add_state();
        nfa_.add_edge(from, node.set, to);
        return to;
      }
      case Node::Kind::kSequence:
        for (const Node& part : node.parts) from = add(part, from);
        return from;
      case Node::Kind::kChoice: {
        const int to = nfa_.add_state();
        for (const Node& part : node.parts) nfa_.add_epsilon(add(part, from), to);
        return to;
      }
      case Node::Kind::kRepeat:
        return add_repeat(node, from);
    }
    return from;
  }

  int add_repeat(const Node& node, int from) {
    const Node& part = node.parts[0];
    const auto fresh = [this](int after) {
      const int s = nfa_.add_state();
      nfa_.add_epsilon(after, s);
      return s;
    };
    for (int i = 0; i < node.min; ++i) from = add(part, fresh(from));
    if (node.max < 0) {
      const int loop = fresh(from);
      nfa_.add_epsilon(add(part, loop), loop);
      return fresh(loop);
    }
    const int end = nfa_.add_state();
    for (int i = node.min; i < node.max; ++i) {
      nfa_.add_epsilon(from, end);
      from = add(part, fresh(from));
    }
    nfa_.add_epsilon(from, end);
    return end;
  }

  CharNfa nfa_;
};

}  // namespace

CharDfa compile_regex(std::string_view pattern) { return Builder().build(Parser(pattern).parse()); }

}  // namespace glint::grammar
