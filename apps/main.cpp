// `glint`: dispatches to the commands, one file each; turns an Error into one line on stderr and exit code 1.

#include <cstdio>

#include "base/error.hpp"
#include "command.hpp"

int main(int argc, char** argv) {
  using namespace glint::apps;
  CLI::App app{"Glint: an inference engine for GLM-4.7-Flash", "glint"};
  app.require_subcommand(1);
  Run run;
  for (const Register add :
       {register_run, register_chat, register_serve, register_eval, register_bench, register_inspect, register_tokenize,
        register_template, register_quantize, register_export, register_env}) {
    add(app, run);
  }
  CLI11_PARSE(app, argc, argv);
  try {
    return run();
  } catch (const glint::Error& e) {
    std::fprintf(stderr, "glint: %s\n", e.what());
    return 1;
  }
}
