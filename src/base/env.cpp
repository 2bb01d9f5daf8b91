#include "base/env.hpp"

#include <algorithm>
#include <cstdlib>

#include "base/check.hpp"

namespace glint {
namespace {

constexpr EnvSwitch kSwitches[] = {
    {"GLINT_MODEL", "path", "the bundled models/tiny", "Checkpoint directory of every command without -m."},
    {"NO_COLOR", "flag", "unset", "Any value: no colours and no progress bars (no-color.org)."},
    {"TERM", "text", "set by the terminal", "The value dumb: no colours and no progress bars."},
};

}  // namespace

std::span<const EnvSwitch> env_switches() { return kSwitches; }

std::optional<std::string> env_value(std::string_view name) {
  const bool known =
      std::any_of(std::begin(kSwitches), std::end(kSwitches), [&](const EnvSwitch& s) { return s.name == name; });
  CHECK(known, "environment switch " + std::string(name) + " is not in the table");
  const char* value = std::getenv(std::string(name).c_str());
  if (value == nullptr || *value == '\0') return std::nullopt;
  return value;
}

}  // namespace glint
