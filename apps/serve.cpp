// glint serve: the model over HTTP.

#include <fmt/core.h>

#include <filesystem>
#include <fstream>
#include <memory>
#include <mutex>

#include "base/error.hpp"
#include "command.hpp"
#include "engine_flags.hpp"
#include "server/server.hpp"

namespace glint::apps {
namespace {

struct ServeFlags {
  EngineFlags engine;
  server::HttpOptions http{.port = 8080};
  server::ServiceOptions service;
  std::string name;
  std::string key_file;
  bool no_log = false;
  int drain_s = 30;
  std::uint64_t max_body_mb = 64;
};

// One key a line; empty lines and those that begin with # do not count.
void read_keys(const std::string& path, std::vector<std::string>& keys) {
  std::ifstream file(path);
  if (!file) throw Error({.what = "--api-key-file " + path, .found = "no file that can be read"});
  const std::size_t before = keys.size();
  for (std::string line; std::getline(file, line);) {
    while (!line.empty() && (line.back() == '\r' || line.back() == ' ')) line.pop_back();
    if (!line.empty() && line[0] != '#') keys.push_back(line);
  }
  if (keys.size() == before)
    throw Error({.what = "--api-key-file " + path, .found = "no key", .expected = "one a line"});
}

std::string default_name(const std::string& model_dir) {
  namespace fs = std::filesystem;
  std::error_code ec;
  const fs::path path = fs::weakly_canonical(model_dir, ec);
  const std::string name = path.has_filename() ? path.stem().string() : path.parent_path().filename().string();
  return name.empty() ? "glint" : (fs::is_directory(path, ec) ? path.filename().string() : name);
}

bool is_loopback(const std::string& host) { return host.starts_with("127.") || host == "::1" || host == "localhost"; }

void print_line(const std::string& line) {
  static std::mutex mutex;
  const std::lock_guard lock(mutex);
  fmt::print(stderr, "{}\n", line);
  std::fflush(stderr);
}

void prepare(ServeFlags& f) {
  f.engine.options.on_notice = [](const std::string& line) { print_line("glint serve: " + line); };
  f.engine.resolve();
  f.service.model_name = f.name.empty() ? default_name(f.engine.options.model_dir) : f.name;
  for (const std::string& key : f.service.api_keys) {
    if (key.empty()) throw Error({.what = "--api-key", .found = "an empty key", .expected = "text"});
  }
  if (!f.key_file.empty()) read_keys(f.key_file, f.service.api_keys);
  if (!f.no_log) f.service.access_log = print_line;
  f.http.drain_timeout = std::chrono::seconds(f.drain_s);
  f.http.max_body_bytes = f.max_body_mb << 20;
}

int run_serve(ServeFlags& f) {
  prepare(f);
  std::unique_ptr<Engine> engine;  // outlives the server
  server::Server server(f.http, f.service);
  server.start([](int number) {
    print_line(number == 1 ? "glint serve: finishing what runs; once more to cut it off" : "glint serve: cutting off");
  });
  print_line("glint serve: listening on " + server.url());
  if (!is_loopback(f.http.host) && f.service.api_keys.empty()) {
    print_line("glint serve: anyone who can reach this address may use the model; --api-key closes it");
  }
  // Asked to stop while loading: leave at the next report of progress.
  f.engine.options.on_load = [&server](std::uint64_t, std::uint64_t) {
    if (server.stopping()) throw Error("stopped while the model was being loaded");
  };
  try {
    engine = Engine::open(f.engine.options);
  } catch (...) {
    const bool asked = server.stopping();
    server.stop();
    server.wait();
    if (asked) return 0;
    throw;
  }
  server.set_engine(*engine);
  print_line(fmt::format("glint serve: {} is ready: {}, {} tokens of context", f.service.model_name,
                         engine->info().backend, engine->info().max_context));
  server.wait();
  return 0;
}

}  // namespace

void register_serve(CLI::App& app, Run& run) {
  CLI::App* c = app.add_subcommand("serve", "Serve the model over HTTP: OpenAI's and Anthropic's APIs, and a web page");
  const auto f = std::make_shared<ServeFlags>();
  c->add_option("--host", f->http.host, "Address to listen on; 0.0.0.0 for all")->capture_default_str();
  c->add_option("--port", f->http.port, "Port; 0 takes a free one")->capture_default_str();
  c->add_option("--api-key", f->service.api_keys, "Key that clients must send; may be repeated");
  c->add_option("--api-key-file", f->key_file, "File with keys, one a line: other users of the machine see flags");
  c->add_option("--name", f->name, "The model's name for clients (default: its directory's)");
  c->add_option("--max-queue", f->service.max_in_flight, "Generations that run or wait; more get status 429")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  c->add_option("--http-threads", f->http.threads, "Threads for connections (default: one a core, 2 to 8)")
      ->check(CLI::Range(0, 256));
  c->add_option("--max-body-mb", f->max_body_mb, "Largest body of a request")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  c->add_option("--keep-alive", f->service.keep_alive_s, "Seconds of silence after which a stream says that it lives")
      ->check(CLI::Range(1.0, 3600.0))
      ->capture_default_str();
  c->add_option("--drain", f->drain_s, "Seconds that SIGTERM leaves running answers to end")
      ->check(CLI::Range(0, 86400))
      ->capture_default_str();
  c->add_option("--temp,--temperature", f->service.sampling.temperature, "For requests that do not say")
      ->capture_default_str();
  c->add_option("--top-p", f->service.sampling.top_p, "For requests that do not say")->capture_default_str();
  c->add_option("--min-p", f->service.sampling.min_p, "For requests that do not say")->capture_default_str();
  c->add_flag("--no-log", f->no_log, "No access log (a line of JSON an answer on stderr, never its text)");
  f->engine.add_to_server(*c);
  c->footer(
      "Examples:\n"
      "  glint serve\n"
      "  glint serve -m /models/GLM-4.7-Flash --host 0.0.0.0 --api-key-file keys.txt\n"
      "  curl http://127.0.0.1:8080/v1/chat/completions -d '{\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"}]}'\n"
      "docs/server.md has the endpoints.");
  c->callback([f, &run] { run = [f] { return run_serve(*f); }; });
}

}  // namespace glint::apps
