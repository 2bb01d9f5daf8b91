#include "text/python_text.hpp"

#include <algorithm>
#include <cstdint>
#include <iterator>

namespace glint {

namespace {

struct CodeRange {
  char32_t first, last;
};
constexpr CodeRange kNonPrintable[] = {
#include "text/nonprintable.inc"
};

bool is_space(char32_t c) {
  return (c >= 0x09 && c <= 0x0d) || (c >= 0x1c && c <= 0x20) || c == 0x85 || c == 0xa0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f || c == 0x3000;
}

bool is_printable(char32_t c) {
  if (c < 0x80) return c >= 0x20 && c < 0x7f;
  const auto* it = std::upper_bound(std::begin(kNonPrintable), std::end(kNonPrintable), c,
                                    [](char32_t code, const CodeRange& r) { return code < r.first; });
  return it == std::begin(kNonPrintable) || c > std::prev(it)->last;
}

struct Decoded {
  char32_t code;
  std::size_t bytes;
};

// The first character of a non-empty s; a byte that is no UTF-8 counts as one character of its own value.
Decoded decode_first(std::string_view s) {
  const auto a = static_cast<unsigned char>(s[0]);
  const std::size_t n = a < 0xc0 ? 1 : a < 0xe0 ? 2 : a < 0xf0 ? 3 : 4;
  if (n == 1 || s.size() < n) return {a, 1};
  char32_t code = a & (0xffu >> (n + 1));
  for (std::size_t i = 1; i < n; ++i) code = (code << 6) | (static_cast<unsigned char>(s[i]) & 0x3fu);
  return {code, n};
}

void append_escape(char kind, char32_t code, int digits, std::string& out) {
  out += '\\';
  out += kind;
  for (int shift = 4 * (digits - 1); shift >= 0; shift -= 4) out += "0123456789abcdef"[(code >> shift) & 15];
}

void append_string_repr(std::string_view s, std::string& out) {
  const bool has_single = s.find('\'') != std::string_view::npos;
  const char quote = has_single && s.find('"') == std::string_view::npos ? '"' : '\'';
  out += quote;
  while (!s.empty()) {
    const auto [code, bytes] = decode_first(s);
    if (code == static_cast<unsigned char>(quote) || code == '\\') {
      out += '\\';
      out += s[0];
    } else if (code == '\n') {
      out += "\\n";
    } else if (code == '\r') {
      out += "\\r";
    } else if (code == '\t') {
      out += "\\t";
    } else if (is_printable(code)) {
      out += s.substr(0, bytes);
    } else if (code < 0x100) {
      append_escape('x', code, 2, out);
    } else if (code < 0x10000) {
      append_escape('u', code, 4, out);
    } else {
      append_escape('U', code, 8, out);
    }
    s.remove_prefix(bytes);
  }
  out += quote;
}

void append_repr(const JsonValue& v, std::string& out) {
  switch (v.kind) {
    case JsonValue::Kind::kNull:
      out += "None";
      break;
    case JsonValue::Kind::kBool:
      out += v.boolean ? "True" : "False";
      break;
    case JsonValue::Kind::kNumber:
      out += !v.is_integer() ? python_float_repr(v.as_double()) : v.text == "-0" ? "0" : v.text;
      break;
    case JsonValue::Kind::kString:
      append_string_repr(v.text, out);
      break;
    case JsonValue::Kind::kArray:
    case JsonValue::Kind::kObject: {
      const bool object = v.kind == JsonValue::Kind::kObject;
      out += object ? '{' : '[';
      for (std::size_t i = 0; i < v.items.size(); ++i) {
        if (i > 0) out += ", ";
        if (object) {
          append_string_repr(v.keys[i], out);
          out += ": ";
        }
        append_repr(v.items[i], out);
      }
      out += object ? '}' : ']';
      break;
    }
  }
}

}  // namespace

std::size_t python_space_length(std::string_view s) {
  if (s.empty()) return 0;
  const auto [code, bytes] = decode_first(s);
  // A byte that is no UTF-8 must not pass for U+0085 or U+00A0.
  const bool ascii_or_whole = static_cast<unsigned char>(s[0]) < 0x80 || bytes > 1;
  return ascii_or_whole && is_space(code) ? bytes : 0;
}

std::string_view python_strip(std::string_view s) {
  while (const std::size_t n = python_space_length(s)) s.remove_prefix(n);
  while (!s.empty()) {
    std::size_t start = s.size() - 1;
    while (start > 0 && s.size() - start < 4 && (static_cast<unsigned char>(s[start]) & 0xc0) == 0x80) --start;
    const std::string_view last = s.substr(start);
    if (python_space_length(last) != last.size()) break;
    s.remove_suffix(last.size());
  }
  return s;
}

std::string python_repr(const JsonValue& value) {
  std::string out;
  append_repr(value, out);
  return out;
}

std::string python_str(const JsonValue& value) {
  return value.is(JsonValue::Kind::kString) ? value.text : python_repr(value);
}

}  // namespace glint
