#pragma once
// Environment switches: one table, which `glint env` prints, and the only place that reads the environment. At most 20,
// and none changes a result: anything that does is a field of EngineOptions.

#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace glint {

struct EnvSwitch {
  std::string_view name;
  std::string_view type;           // "path", "flag", "text"
  std::string_view default_value;  // in words
  std::string_view sentence;
};

std::span<const EnvSwitch> env_switches();

// The value of a switch of the table (a CHECK otherwise); nothing when it is unset or empty.
std::optional<std::string> env_value(std::string_view name);

}  // namespace glint
