#pragma once
// The public structs as JSON, for the C ABI and the commands: the field names are the structs' own.

#include <string>
#include <string_view>

#include "glint/engine.hpp"

namespace glint {

// Absent or null fields keep their defaults. Throws Error for text that is not JSON, unknown fields (by name), and
// values of the wrong type or out of the type's range.
EngineOptions engine_options_from_json(std::string_view json);
Request request_from_json(std::string_view json);

std::string to_json(const EngineStats& stats);
std::string to_json(const ModelInfo& info);
std::string to_json(const Usage& usage);

// "eos", "stop", "length", "cancelled", "error", "timeout"; empty for kNone.
std::string_view finish_name(Finish finish);

}  // namespace glint
