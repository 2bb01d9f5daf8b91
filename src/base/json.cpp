#include "base/json.hpp"

#include <charconv>
#include <cmath>

#include "base/error.hpp"
#include "base/file.hpp"

namespace glint::json {

value parse_text(std::string_view text, std::string_view source) {
  boost::system::error_code ec;
  parse_options options;
  options.max_depth = 128;
  stream_parser p({}, options);
  const std::size_t n = p.write_some(text.data(), text.size(), ec);
  if (!ec && n < text.size()) {
    if (text.find_first_not_of(" \t\r\n", n) != std::string_view::npos) ec = make_error_code(error::extra_data);
  }
  if (!ec) p.finish(ec);
  if (ec) {
    std::size_t line = 1, column = 1;
    for (std::size_t i = 0; i < n && i < text.size(); ++i) {
      if (text[i] == '\n') {
        ++line;
        column = 1;
      } else {
        ++column;
      }
    }
    throw Error({.what = std::string(source),
                 .found = ec.message() + " at line " + std::to_string(line) + ", column " + std::to_string(column),
                 .expected = "valid JSON"});
  }
  return p.release();
}

value parse_file(const std::string& path) { return parse_text(read_file(path), path); }

namespace {

// Python's repr of a double: shortest round-trip digits; exponent form below 1e-4 and from 1e16 on.
void dump_double(double d, std::string& out) {
  if (std::isnan(d)) {
    out += "NaN";
    return;
  }
  if (std::isinf(d)) {
    out += d < 0 ? "-Infinity" : "Infinity";
    return;
  }
  const double a = std::fabs(d);
  char buffer[64];
  if (a != 0 && (a < 1e-4 || a >= 1e16)) {
    const auto r = std::to_chars(buffer, buffer + sizeof buffer, d, std::chars_format::scientific);
    out.append(buffer, r.ptr);
    return;
  }
  const auto r = std::to_chars(buffer, buffer + sizeof buffer, d, std::chars_format::fixed);
  const std::string_view s(buffer, static_cast<std::size_t>(r.ptr - buffer));
  out += s;
  if (s.find('.') == std::string_view::npos) out += ".0";
}

void dump_string(std::string_view s, std::string& out) {
  static constexpr char kHex[] = "0123456789abcdef";
  out += '"';
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
  out += '"';
}

void dump_value(const value& v, std::string& out) {
  switch (v.kind()) {
    case kind::null:
      out += "null";
      break;
    case kind::bool_:
      out += v.get_bool() ? "true" : "false";
      break;
    case kind::int64:
      out += std::to_string(v.get_int64());
      break;
    case kind::uint64:
      out += std::to_string(v.get_uint64());
      break;
    case kind::double_:
      dump_double(v.get_double(), out);
      break;
    case kind::string:
      dump_string(v.get_string(), out);
      break;
    case kind::array: {
      out += '[';
      bool first = true;
      for (const value& e : v.get_array()) {
        if (!first) out += ", ";
        first = false;
        dump_value(e, out);
      }
      out += ']';
      break;
    }
    case kind::object: {
      out += '{';
      bool first = true;
      for (const auto& [k, e] : v.get_object()) {
        if (!first) out += ", ";
        first = false;
        dump_string(k, out);
        out += ": ";
        dump_value(e, out);
      }
      out += '}';
      break;
    }
  }
}

}  // namespace

std::string dump_python(const value& v) {
  std::string out;
  dump_value(v, out);
  return out;
}

}  // namespace glint::json
