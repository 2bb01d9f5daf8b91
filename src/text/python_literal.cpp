// ast.literal_eval, the part that has a JSON counterpart (python_text.hpp).

#include <algorithm>
#include <charconv>

#include "text/python_text.hpp"

namespace glint {

namespace {

constexpr int kMaxDepth = 64;

class Literal {
 public:
  explicit Literal(std::string_view s) : s_(s) {}

  bool document(JsonValue& out) {
    skip_space();
    if (!value(out, 0)) return false;
    skip_space();
    return pos_ == s_.size();
  }

 private:
  bool at(char c) const { return pos_ < s_.size() && s_[pos_] == c; }
  bool take(char c) { return at(c) && (++pos_, true); }
  void skip_space() {
    while (pos_ < s_.size() && std::string_view(" \t\r\n\f").find(s_[pos_]) != std::string_view::npos) ++pos_;
  }

  bool value(JsonValue& out, int depth) {
    if (pos_ == s_.size() || depth > kMaxDepth) return false;
    switch (s_[pos_]) {
      case '[':
        return sequence(out, ']', depth);
      case '(':
        return sequence(out, ')', depth);
      case '{':
        return dict(out, depth);
      case '\'':
      case '"':
        return strings(out);
      default:
        return word(out) || number(out);
    }
  }

  bool word(JsonValue& out) {
    const auto is = [&](std::string_view w) {
      if (s_.substr(pos_, w.size()) != w) return false;
      const char next = pos_ + w.size() < s_.size() ? s_[pos_ + w.size()] : ' ';
      if ((next >= 'a' && next <= 'z') || (next >= 'A' && next <= 'Z') || (next >= '0' && next <= '9') || next == '_') {
        return false;
      }
      pos_ += w.size();
      return true;
    };
    if (is("None")) return out = JsonValue(), true;
    if (is("True")) return out = JsonValue::from_bool(true), true;
    if (is("False")) return out = JsonValue::from_bool(false), true;
    return false;
  }

  // Digits with Python's single underscores between them.
  bool digits(std::string& out) {
    const auto is_digit = [&](std::size_t i) { return i < s_.size() && s_[i] >= '0' && s_[i] <= '9'; };
    if (!is_digit(pos_)) return false;
    while (is_digit(pos_) || (at('_') && is_digit(pos_ + 1) && is_digit(pos_ - 1))) {
      if (!at('_')) out += s_[pos_];
      ++pos_;
    }
    return true;
  }

  bool radix_integer(std::string sign, JsonValue& out) {
    const char mark = static_cast<char>(s_[pos_ + 1] | 0x20);
    const int base = mark == 'x' ? 16 : mark == 'o' ? 8 : 2;
    std::uint64_t n = 0;
    const auto r = std::from_chars(s_.data() + pos_ + 2, s_.data() + s_.size(), n, base);
    if (r.ec != std::errc()) return false;  // no digits, or more than 64 bits
    pos_ = static_cast<std::size_t>(r.ptr - s_.data());
    out = JsonValue::from_number(n == 0 ? "0" : sign + std::to_string(n));
    return true;
  }

  bool number(JsonValue& out) {
    std::string token;
    if (take('-')) {
      token = "-";
    } else {
      take('+');
    }
    if (at('0') && pos_ + 1 < s_.size() && std::string_view("xXoObB").find(s_[pos_ + 1]) != std::string_view::npos) {
      return radix_integer(token, out);
    }
    const std::size_t whole = token.size();
    const bool has_whole = digits(token);
    if (!has_whole) token += '0';  // ".5" is a float in Python, not in JSON
    bool is_float = false, has_fraction = false;
    if (take('.')) {
      is_float = true;
      token += '.';
      has_fraction = digits(token);
      if (!has_fraction) token += '0';
    }
    if (!has_whole && !has_fraction) return false;
    if (at('e') || at('E')) {
      is_float = true;
      ++pos_;
      token += 'e';
      if (at('-') || at('+')) token += s_[pos_++];
      if (!digits(token)) return false;
    }
    // Leading zeros: Python refuses 007 but reads 00 and 007.5; JSON allows one zero only.
    const std::size_t first = std::min(token.find_first_not_of('0', whole), token.find_first_of(".e", whole));
    const bool all_zero = first == std::string::npos;
    if (!is_float && !all_zero && first > whole) return false;
    if (all_zero) {
      token = "0";
    } else if (first > whole) {
      const bool keep_zero = token[first] == '.' || token[first] == 'e';
      token.erase(whole, first - whole - (keep_zero ? 1 : 0));
    }
    if (pos_ < s_.size() && std::string_view("jJ_").find(s_[pos_]) != std::string_view::npos) return false;
    out = JsonValue::from_number(std::move(token));
    return true;
  }

  bool hex(int n, std::string& json) {
    unsigned v = 0;
    if (s_.size() - pos_ < static_cast<std::size_t>(n)) return false;
    const char* end = s_.data() + pos_ + n;
    const auto r = std::from_chars(s_.data() + pos_, end, v, 16);
    if (r.ec != std::errc() || r.ptr != end || v > 0x10ffff) return false;
    pos_ += static_cast<std::size_t>(n);
    return code_point(v, json);
  }

  static void append_unit(unsigned unit, std::string& json) {
    json += "\\u";
    for (int shift = 12; shift >= 0; shift -= 4) json += "0123456789abcdef"[(unit >> shift) & 15];
  }
  static bool code_point(unsigned c, std::string& json) {
    if (c < 0x10000) return append_unit(c, json), true;
    append_unit(0xd800 + ((c - 0x10000) >> 10), json);
    append_unit(0xdc00 + ((c - 0x10000) & 0x3ff), json);
    return true;
  }

  // Translates one escape into JSON's escapes; \N{name} is the only Python escape that is refused.
  bool escape(std::string& json) {
    if (pos_ == s_.size()) return false;
    const char c = s_[pos_++];
    switch (c) {
      case '\n':
        return true;
      case '\\':
        json += "\\\\";
        return true;
      case '\'':
        json += '\'';
        return true;
      case '"':
        json += "\\\"";
        return true;
      case 'a':
        return code_point(7, json);
      case 'b':
        json += "\\b";
        return true;
      case 'f':
        json += "\\f";
        return true;
      case 'n':
        json += "\\n";
        return true;
      case 'r':
        json += "\\r";
        return true;
      case 't':
        json += "\\t";
        return true;
      case 'v':
        return code_point(11, json);
      case 'x':
        return hex(2, json);
      case 'u':
        return hex(4, json);
      case 'U':
        return hex(8, json);
      case 'N':
        return false;
      default:
        break;
    }
    if (c >= '0' && c <= '7') {
      unsigned v = static_cast<unsigned>(c - '0');
      for (int i = 0; i < 2 && pos_ < s_.size() && s_[pos_] >= '0' && s_[pos_] <= '7'; ++i) {
        v = v * 8 + static_cast<unsigned>(s_[pos_++] - '0');
      }
      return code_point(v, json);
    }
    json += "\\\\";  // Python keeps an unknown escape as it stands
    --pos_;
    return true;
  }

  bool one_string(std::string& json) {
    const char quote = s_[pos_++];
    const std::string triple(3, quote);
    const bool is_triple = s_.substr(pos_ - 1, 3) == triple;
    if (is_triple) pos_ += 2;
    while (pos_ < s_.size()) {
      if (is_triple ? s_.substr(pos_, 3) == triple : at(quote)) {
        pos_ += is_triple ? 3 : 1;
        return true;
      }
      const char c = s_[pos_];
      if (c == '\n' && !is_triple) return false;
      ++pos_;
      if (c == '\\') {
        if (!escape(json)) return false;
      } else {
        append_json_escaped(std::string_view(&c, 1), json);
      }
    }
    return false;
  }

  // One or more adjacent string literals. They are translated into one JSON string, which JsonValue's parser then
  // decodes and checks (UTF-8, surrogates).
  bool strings(JsonValue& out) {
    std::string json = "\"";
    do {
      if (!one_string(json)) return false;
      skip_space();
    } while (at('\'') || at('"'));
    auto parsed = try_parse_json_value(json + '"');
    if (!parsed) return false;
    out = std::move(*parsed);
    return true;
  }

  bool sequence(JsonValue& out, char close, int depth) {
    const bool tuple = close == ')';
    out.kind = JsonValue::Kind::kArray;
    ++pos_;
    bool comma = false;
    while (skip_space(), !take(close)) {
      if (!out.items.empty() && !comma) return false;
      if (!value(out.items.emplace_back(), depth + 1)) return false;
      skip_space();
      comma = take(',');
    }
    if (tuple && out.items.size() == 1 && !comma) {  // (x) is x
      JsonValue inner = std::move(out.items[0]);
      out = std::move(inner);
    }
    return true;
  }

  bool dict(JsonValue& out, int depth) {
    out.kind = JsonValue::Kind::kObject;
    ++pos_;
    bool comma = false;
    while (skip_space(), !take('}')) {
      if (!out.items.empty() && !comma) return false;
      JsonValue key, member;
      if (!value(key, depth + 1) || key.is(JsonValue::Kind::kArray) || key.is(JsonValue::Kind::kObject)) return false;
      skip_space();
      if (!take(':')) return false;
      skip_space();
      if (!value(member, depth + 1)) return false;
      // json.dumps turns the other scalar keys into their JSON text
      std::string name = key.is(JsonValue::Kind::kString) ? key.text : dump_json(key, NumberStyle::kPython);
      out.set(std::move(name), std::move(member));
      skip_space();
      comma = take(',');
    }
    return true;
  }

  std::string_view s_;
  std::size_t pos_ = 0;
};

}  // namespace

std::optional<JsonValue> parse_python_literal(std::string_view text) {
  JsonValue v;
  if (!Literal(text).document(v)) return std::nullopt;
  return v;
}

}  // namespace glint
