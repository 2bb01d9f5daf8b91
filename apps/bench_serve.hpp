#pragma once
// `glint bench serve`, below `bench`.

#include "command.hpp"

namespace glint::apps {
void add_bench_serve(CLI::App& bench, Run& run);
}  // namespace glint::apps
