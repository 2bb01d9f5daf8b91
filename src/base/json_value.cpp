#include "base/json_value.hpp"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <unordered_map>

#include "base/error.hpp"

namespace glint {

JsonValue JsonValue::from_bool(bool b) {
  JsonValue v;
  v.kind = Kind::kBool;
  v.boolean = b;
  return v;
}

JsonValue JsonValue::from_number(std::string token) {
  JsonValue v(std::move(token));
  v.kind = Kind::kNumber;
  return v;
}

JsonValue JsonValue::make_array(std::vector<JsonValue> elements) {
  JsonValue v;
  v.kind = Kind::kArray;
  v.items = std::move(elements);
  return v;
}

JsonValue JsonValue::make_object() {
  JsonValue v;
  v.kind = Kind::kObject;
  return v;
}

bool JsonValue::is_integer() const { return kind == Kind::kNumber && text.find_first_of(".eE") == std::string::npos; }

double JsonValue::as_double() const {
  double d = 0;
  const auto r = std::from_chars(text.data(), text.data() + text.size(), d);
  // Beyond the range from_chars leaves d alone; strtod gives Python's answer, ±inf or ±0.
  return r.ec == std::errc() ? d : std::strtod(text.c_str(), nullptr);
}

const JsonValue* JsonValue::find(std::string_view key) const {
  const auto it = std::find(keys.begin(), keys.end(), key);
  return it == keys.end() ? nullptr : &items[static_cast<std::size_t>(it - keys.begin())];
}

JsonValue& JsonValue::set(std::string key, JsonValue value) {
  const auto it = std::find(keys.begin(), keys.end(), key);
  if (it != keys.end()) {
    items[static_cast<std::size_t>(it - keys.begin())] = std::move(value);
  } else {
    keys.push_back(std::move(key));
    items.push_back(std::move(value));
  }
  return *this;
}

std::string_view json_kind_name(JsonValue::Kind kind) {
  switch (kind) {
    case JsonValue::Kind::kNull:
      return "null";
    case JsonValue::Kind::kBool:
      return "a boolean";
    case JsonValue::Kind::kNumber:
      return "a number";
    case JsonValue::Kind::kString:
      return "a string";
    case JsonValue::Kind::kArray:
      return "an array";
    case JsonValue::Kind::kObject:
      return "an object";
  }
  return "?";
}

namespace {

constexpr int kMaxDepth = 128;

// Bytes of the well-formed UTF-8 sequence at the start of s; 0 if it is none (overlong, surrogate, cut off).
std::size_t utf8_length(std::string_view s) {
  const auto at = [&](std::size_t i) { return static_cast<unsigned char>(s[i]); };
  const unsigned char a = at(0);
  if (a < 0x80) return 1;
  const std::size_t n = a >= 0xc2 && a <= 0xdf ? 2 : (a & 0xf0) == 0xe0 ? 3 : a >= 0xf0 && a <= 0xf4 ? 4 : 0;
  if (n == 0 || s.size() < n) return 0;
  for (std::size_t i = 1; i < n; ++i) {
    if ((at(i) & 0xc0) != 0x80) return 0;
  }
  const unsigned char b = at(1);
  if ((a == 0xe0 && b < 0xa0) || (a == 0xed && b > 0x9f) || (a == 0xf0 && b < 0x90) || (a == 0xf4 && b > 0x8f))
    return 0;
  return n;
}

void append_utf8(char32_t c, std::string& out) {
  const auto put = [&](char32_t byte) { out += static_cast<char>(byte); };
  if (c < 0x80) {
    put(c);
  } else if (c < 0x800) {
    put(0xc0 | (c >> 6));
    put(0x80 | (c & 63));
  } else if (c < 0x10000) {
    put(0xe0 | (c >> 12));
    put(0x80 | ((c >> 6) & 63));
    put(0x80 | (c & 63));
  } else {
    put(0xf0 | (c >> 18));
    put(0x80 | ((c >> 12) & 63));
    put(0x80 | ((c >> 6) & 63));
    put(0x80 | (c & 63));
  }
}

// Recursive descent; every method returns false after recording the first problem at pos_.
class Parser {
 public:
  explicit Parser(std::string_view text) : s_(text) {}

  bool document(JsonValue& out) {
    if (!value(out, 0)) return false;
    skip_space();
    return pos_ == s_.size() || fail("extra text after the value");
  }
  std::string_view problem() const { return problem_; }
  std::size_t position() const { return pos_; }

 private:
  bool fail(std::string_view problem) {
    if (problem_.empty()) problem_ = problem;
    return false;
  }
  bool at(char c) const { return pos_ < s_.size() && s_[pos_] == c; }
  bool take(char c) { return at(c) && (++pos_, true); }
  bool digit() const { return pos_ < s_.size() && s_[pos_] >= '0' && s_[pos_] <= '9'; }
  void skip_space() {
    while (pos_ < s_.size() && (s_[pos_] == ' ' || s_[pos_] == '\t' || s_[pos_] == '\n' || s_[pos_] == '\r')) ++pos_;
  }
  bool word(std::string_view w) {
    if (s_.substr(pos_, w.size()) != w) return fail("unknown word");
    pos_ += w.size();
    return true;
  }

  bool value(JsonValue& out, int depth) {
    skip_space();
    if (pos_ == s_.size()) return fail("the text ends where a value is expected");
    if (depth > kMaxDepth) return fail("nested more than 128 deep");
    switch (s_[pos_]) {
      case '{':
        return object(out, depth);
      case '[':
        return array(out, depth);
      case '"':
        out.kind = JsonValue::Kind::kString;
        return string(out.text);
      case 't':
        out = JsonValue::from_bool(true);
        return word("true");
      case 'f':
        out = JsonValue::from_bool(false);
        return word("false");
      case 'n':
        return word("null");
      default:
        return number(out);
    }
  }

  bool digits() {
    if (!digit()) return fail("malformed number or unknown word");
    while (digit()) ++pos_;
    return true;
  }

  bool number(JsonValue& out) {
    const std::size_t begin = pos_;
    take('-');
    if (take('0')) {
      if (digit()) return fail("a number with a leading zero");
    } else if (!digits()) {
      return false;
    }
    if (take('.') && !digits()) return false;
    if (take('e') || take('E')) {
      if (!take('+')) take('-');
      if (!digits()) return false;
    }
    out = JsonValue::from_number(std::string(s_.substr(begin, pos_ - begin)));
    return true;
  }

  bool hex4(char32_t& out) {
    if (s_.size() - pos_ < 4) return fail("malformed \\u escape");
    unsigned v = 0;
    const auto r = std::from_chars(s_.data() + pos_, s_.data() + pos_ + 4, v, 16);
    if (r.ec != std::errc() || r.ptr != s_.data() + pos_ + 4) return fail("malformed \\u escape");
    pos_ += 4;
    out = v;
    return true;
  }

  bool unicode_escape(std::string& out) {
    char32_t c = 0, low = 0;
    if (!hex4(c)) return false;
    if (c >= 0xdc00 && c <= 0xdfff) return fail("lone surrogate");
    if (c >= 0xd800 && c <= 0xdbff) {
      if (!take('\\') || !take('u')) return fail("lone surrogate");
      if (!hex4(low)) return false;
      if (low < 0xdc00 || low > 0xdfff) return fail("lone surrogate");
      c = 0x10000 + ((c - 0xd800) << 10) + (low - 0xdc00);
    }
    append_utf8(c, out);
    return true;
  }

  bool escape(std::string& out) {
    if (pos_ == s_.size()) return fail("unterminated string");
    switch (s_[pos_++]) {
      case '"':
        out += '"';
        return true;
      case '\\':
        out += '\\';
        return true;
      case '/':
        out += '/';
        return true;
      case 'b':
        out += '\b';
        return true;
      case 'f':
        out += '\f';
        return true;
      case 'n':
        out += '\n';
        return true;
      case 'r':
        out += '\r';
        return true;
      case 't':
        out += '\t';
        return true;
      case 'u':
        return unicode_escape(out);
      default:
        --pos_;
        return fail("unknown escape");
    }
  }

  bool string(std::string& out) {
    ++pos_;
    while (pos_ < s_.size()) {
      const char c = s_[pos_];
      if (c == '"') return ++pos_, true;
      if (c == '\\') {
        ++pos_;
        if (!escape(out)) return false;
        continue;
      }
      if (static_cast<unsigned char>(c) < 0x20) return fail("control character in a string");
      const std::size_t n = utf8_length(s_.substr(pos_));
      if (n == 0) return fail("invalid UTF-8");
      out.append(s_, pos_, n);
      pos_ += n;
    }
    return fail("unterminated string");
  }

  bool array(JsonValue& out, int depth) {
    out.kind = JsonValue::Kind::kArray;
    ++pos_;
    skip_space();
    if (take(']')) return true;
    do {
      if (!value(out.items.emplace_back(), depth + 1)) return false;
      skip_space();
    } while (take(','));
    return take(']') || fail("expected , or ]");
  }

  bool object(JsonValue& out, int depth) {
    out.kind = JsonValue::Kind::kObject;
    ++pos_;
    skip_space();
    if (take('}')) return true;
    std::unordered_map<std::string, std::size_t> index;  // so that a hostile object with a million keys stays linear
    do {
      skip_space();
      std::string key;
      if (!at('"')) return fail("expected a key in quotes");
      if (!string(key)) return false;
      skip_space();
      if (!take(':')) return fail("expected :");
      JsonValue member;
      if (!value(member, depth + 1)) return false;
      const auto [it, is_new] = index.emplace(key, out.items.size());
      if (is_new) {
        out.keys.push_back(std::move(key));
        out.items.push_back(std::move(member));
      } else {
        out.items[it->second] = std::move(member);
      }
      skip_space();
    } while (take(','));
    return take('}') || fail("expected , or }");
  }

  std::string_view s_;
  std::size_t pos_ = 0;
  std::string_view problem_;
};

void dump(const JsonValue& v, NumberStyle style, std::string& out) {
  switch (v.kind) {
    case JsonValue::Kind::kNull:
      out += "null";
      break;
    case JsonValue::Kind::kBool:
      out += v.boolean ? "true" : "false";
      break;
    case JsonValue::Kind::kNumber:
      if (style == NumberStyle::kVerbatim || v.is_integer()) {
        out += v.text == "-0" && style == NumberStyle::kPython ? "0" : v.text;
      } else {
        const double d = v.as_double();
        out += std::isinf(d) ? (d < 0 ? "-Infinity" : "Infinity") : python_float_repr(d);
      }
      break;
    case JsonValue::Kind::kString:
      out += '"';
      append_json_escaped(v.text, out);
      out += '"';
      break;
    case JsonValue::Kind::kArray:
    case JsonValue::Kind::kObject: {
      const bool object = v.kind == JsonValue::Kind::kObject;
      out += object ? '{' : '[';
      for (std::size_t i = 0; i < v.items.size(); ++i) {
        if (i > 0) out += ", ";
        if (object) {
          out += '"';
          append_json_escaped(v.keys[i], out);
          out += "\": ";
        }
        dump(v.items[i], style, out);
      }
      out += object ? '}' : ']';
      break;
    }
  }
}

}  // namespace

JsonValue parse_json_value(std::string_view text, std::string_view source) {
  JsonValue v;
  Parser p(text);
  if (p.document(v)) return v;
  const std::string_view before = text.substr(0, p.position());
  const auto line = 1 + std::count(before.begin(), before.end(), '\n');
  const std::size_t newline = before.rfind('\n');
  const std::size_t column = newline == std::string_view::npos ? before.size() + 1 : before.size() - newline;
  throw Error(
      {.what = std::string(source),
       .found = std::string(p.problem()) + " at line " + std::to_string(line) + ", column " + std::to_string(column),
       .expected = "valid JSON"});
}

std::optional<JsonValue> try_parse_json_value(std::string_view text) {
  JsonValue v;
  if (!Parser(text).document(v)) return std::nullopt;
  return v;
}

std::string dump_json(const JsonValue& value, NumberStyle style) {
  std::string out;
  dump(value, style, out);
  return out;
}

void append_json_escaped(std::string_view s, std::string& out) {
  static constexpr char kHex[] = "0123456789abcdef";
  for (const char c : s) {
    switch (c) {
      case '"':
        out += "\\\"";
        break;
      case '\\':
        out += "\\\\";
        break;
      case '\n':
        out += "\\n";
        break;
      case '\r':
        out += "\\r";
        break;
      case '\t':
        out += "\\t";
        break;
      case '\b':
        out += "\\b";
        break;
      case '\f':
        out += "\\f";
        break;
      default:
        if (static_cast<unsigned char>(c) < 0x20) {
          out += "\\u00";
          out += kHex[(c >> 4) & 15];
          out += kHex[c & 15];
        } else {
          out += c;
        }
    }
  }
}

std::string python_float_repr(double x) {
  if (std::isnan(x)) return "nan";
  if (std::isinf(x)) return x < 0 ? "-inf" : "inf";
  const double magnitude = std::fabs(x);
  const bool exponent = magnitude != 0 && (magnitude < 1e-4 || magnitude >= 1e16);
  char buffer[64];
  const auto format = exponent ? std::chars_format::scientific : std::chars_format::fixed;
  const auto r = std::to_chars(buffer, buffer + sizeof buffer, x, format);
  std::string out(buffer, r.ptr);
  if (!exponent && out.find('.') == std::string::npos) out += ".0";
  return out;
}

}  // namespace glint
