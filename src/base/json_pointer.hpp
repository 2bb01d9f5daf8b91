#pragma once
// References within a JSON document: JSON pointers (RFC 6901) in the fragment of a URI, as $ref of JSON Schema has
// them.

#include <string_view>

#include "base/json_value.hpp"

namespace glint {

// What `ref` ("#", "#/$defs/name", "#/items/0") names in `root`. nullptr when it is no such reference or names nothing.
const JsonValue* follow_reference(std::string_view ref, const JsonValue& root);

}  // namespace glint
