#pragma once
// What a request's tools say about a call that the model writes: is there such a function, and which JSON type has this
// parameter? The model writes argument values as bare text, so the schema decides whether 5 is a number or a string.

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/json_value.hpp"

namespace glint {

// A set of JSON types.
using JsonTypes = std::uint8_t;
inline constexpr JsonTypes kTypeString = 1, kTypeNumber = 2, kTypeInteger = 4, kTypeBoolean = 8, kTypeNull = 16,
                           kTypeArray = 32, kTypeObject = 64;
inline constexpr JsonTypes kAnyType = 127;

// The types that a JSON schema admits, found through $ref (inside `root`), allOf, anyOf, oneOf, type (also a list of
// types), const, enum and nullable; kAnyType where it says nothing. "number" includes "integer".
JsonTypes schema_types(const JsonValue& schema, const JsonValue& root);

// The value of an argument from the text that the model wrote for it:
//   string only           the text, unchanged
//   string among others   JSON if it is of one of the other types, or a Python list, tuple or dict likewise; else the
//   text no string             JSON, else a Python literal (None, True, 'x', (1, 2)), else the text anything (kAnyType)
//   the same
JsonValue typed_argument(std::string_view text, JsonTypes types);

class ToolSchemas {
 public:
  // Each tool is {"type": "function", "function": {"name", "parameters"}}, or the inner object, or Anthropic's
  // {"name", "input_schema"}. Throws Error if a tool is no object or has no name.
  explicit ToolSchemas(const std::vector<JsonValue>& tools);

  bool empty() const { return names_.empty(); }
  bool has(std::string_view name) const;
  // The longest name that `text` starts with; empty if there is none.
  std::string_view longest_prefix(std::string_view text) const;
  // kAnyType for an unknown function or parameter.
  JsonTypes parameter_types(std::string_view function, std::string_view parameter) const;

 private:
  std::vector<std::string> names_;
  std::vector<JsonValue> parameters_;  // the schema of names_[i]'s arguments
};

}  // namespace glint
