#pragma once
// Which model a command uses.

#include <string>

namespace glint::apps {

// `flag` (the value of -m) if given; else $GLINT_MODEL; else the bundled models/tiny: below the working directory, or
// below the executable's folder or one of its parents. Throws Error when none is a directory.
std::string resolve_model_dir(const std::string& flag);

}  // namespace glint::apps
