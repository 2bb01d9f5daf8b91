#pragma once
// JSON for every room: Boost.JSON (fast, keeps key order) behind three helpers whose errors name the source.
// Include this header in .cpp files only: Boost.JSON costs about a second a translation unit.

#include <boost/json.hpp>
#include <string>
#include <string_view>

namespace glint::json {
using namespace boost::json;  // value, object, array, string, parse options …

// Parses `text` (UTF-8). Throws Error naming `source` (a file or "request") with line and column. Depth limit 128.
value parse_text(std::string_view text, std::string_view source);

// Reads and parses a whole file. Throws Error when it cannot be read or parsed.
value parse_file(const std::string& path);

// As Python's json.dumps(value, ensure_ascii=False): ", " and ": " separators, floats as repr, key order kept.
std::string dump_python(const value& v);

}  // namespace glint::json
