#pragma once
// Every subcommand of `glint` registers itself on the CLI11 app in its own file and is listed once in main.cpp.

#include <CLI/CLI.hpp>
#include <functional>

namespace glint::apps {

// A command adds a subcommand to `app`; its callback sets `run` to the work, which returns the exit code.
using Run = std::function<int()>;
using Register = void (*)(CLI::App& app, Run& run);

void register_run(CLI::App& app, Run& run);       // run
void register_chat(CLI::App& app, Run& run);      // chat
void register_serve(CLI::App& app, Run& run);     // serve
void register_eval(CLI::App& app, Run& run);      // eval ppl
void register_bench(CLI::App& app, Run& run);     // bench
void register_tokenize(CLI::App& app, Run& run);  // tokenize, detokenize
void register_template(CLI::App& app, Run& run);  // template, parse
void register_inspect(CLI::App& app, Run& run);   // inspect
void register_export(CLI::App& app, Run& run);    // export
void register_env(CLI::App& app, Run& run);       // env
void register_quantize(CLI::App& app, Run& run);  // quantize

}  // namespace glint::apps
