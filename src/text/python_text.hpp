#pragma once
// What the chat template and the models' tool calls borrow from Python: str.strip, str(), repr() and literals.

#include <optional>
#include <string>
#include <string_view>

#include "base/json_value.hpp"

namespace glint {

// s.strip() of a Python str given as UTF-8: all Unicode white space and the separators U+001C..U+001F.
std::string_view python_strip(std::string_view s);
// Bytes of the white-space character at the start of s; 0 if there is none.
std::size_t python_space_length(std::string_view s);

// str(json.loads(x)) and repr(json.loads(x)).
std::string python_str(const JsonValue& value);
std::string python_repr(const JsonValue& value);

// ast.literal_eval of what has a JSON counterpart: None, True, False, numbers, strings, lists, tuples and dicts.
// Empty for anything else: names, bytes, sets, complex numbers, a bare "1, 2" (Python would call it a tuple; in a tool
// argument it is text), and literals that JSON cannot hold.
std::optional<JsonValue> parse_python_literal(std::string_view text);

}  // namespace glint
