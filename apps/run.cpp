// glint run: one prompt, one answer, streamed.

#include <fmt/core.h>

#include <csignal>
#include <iostream>
#include <iterator>
#include <memory>

#include "answer.hpp"
#include "base/error.hpp"
#include "base/file.hpp"
#include "base/json.hpp"
#include "base/json_value.hpp"
#include "command.hpp"
#include "engine_flags.hpp"
#include "interrupt.hpp"
#include "progress.hpp"

namespace glint::apps {
namespace {

struct RunFlags {
  EngineFlags engine;
  SamplingFlags sampling;
  std::string prompt;
  std::string system;
  bool raw = false;
  bool literal = false;
  bool no_prefix = false;
  bool no_think = false;
  bool json = false;
  std::string json_schema;  // a file
};

std::string read_prompt(const RunFlags& f) {
  if (f.prompt != "-") return f.prompt;
  return {std::istreambuf_iterator<char>(std::cin), std::istreambuf_iterator<char>()};
}

std::vector<std::int32_t> prompt_ids(const Engine& engine, const RunFlags& f, const std::string& prompt) {
  if (f.raw) {
    // Every text the model was trained on starts with this (model facts §5.2); the chat format has it built in.
    static constexpr std::string_view kPrefix = "[gMASK]<sop>";
    std::vector<std::int32_t> ids = engine.encode(prompt, f.literal);
    if (f.no_prefix || prompt.substr(0, kPrefix.size()) == kPrefix) return ids;
    const std::vector<std::int32_t> prefix = engine.encode(kPrefix);
    ids.insert(ids.begin(), prefix.begin(), prefix.end());
    return ids;
  }
  JsonValue messages = JsonValue::make_array();
  const auto add = [&messages](const char* role, const std::string& text) {
    messages.items.push_back(JsonValue::make_object().set("role", role).set("content", text));
  };
  if (!f.system.empty()) add("system", f.system);
  add("user", prompt);
  JsonValue request = JsonValue::make_object();
  request.set("messages", std::move(messages));
  request.set("add_generation_prompt", JsonValue::from_bool(true));
  request.set("enable_thinking", JsonValue::from_bool(!f.no_think));
  return engine.encode(engine.render_chat(dump_json(request, NumberStyle::kVerbatim)));
}

// The form of the answer that --json-schema asks for.
std::string constraint(const RunFlags& f) {
  if (f.json_schema.empty()) return "";
  JsonValue schema = parse_json_value(read_file(f.json_schema), f.json_schema);
  return dump_json(JsonValue::make_object()
                       .set("json_schema", std::move(schema))
                       .set("where", f.json_schema)
                       .set("thinking", JsonValue::from_bool(!f.raw && !f.no_think)),
                   NumberStyle::kVerbatim);
}

json::object logprob_json(const TokenLogprob& t, const Engine& engine) {
  const std::int32_t ids[] = {t.id};
  return {{"id", t.id}, {"token", engine.decode(ids)}, {"logprob", t.logprob}};
}

void print_json(const Answer& a, const Engine& engine, const RunFlags& f) {
  json::object out{{"content", a.parsed.content}};
  if (!f.raw) {
    out["reasoning_content"] = a.parsed.reasoning;
    json::array calls;
    for (const ParsedToolCall& c : a.parsed.tool_calls) {
      calls.push_back(json::object{{"name", c.name}, {"arguments", c.arguments}});
    }
    out["tool_calls"] = std::move(calls);
  }
  out["finish_reason"] = finish_name(a.finish);
  out["backend"] = engine.info().backend;
  out["usage"] = json::object{{"prompt_tokens", a.usage.prompt_tokens},
                              {"cached_tokens", a.usage.cached_tokens},
                              {"generated_tokens", a.usage.generated_tokens},
                              {"prefill_s", a.usage.prefill_s},
                              {"decode_s", a.usage.decode_s},
                              {"seed", a.usage.seed},
                              {"logits_hash", fmt::format("{:016x}", a.usage.logits_hash)}};
  const ModelInfo& info = engine.info();
  out["start"] = json::object{{"open_s", info.open_s}, {"device_s", info.device_s}, {"load_s", info.load_s}};
  if (!a.logprobs.empty()) {
    json::array list;
    for (const Answer::Token& t : a.logprobs) {
      json::object entry = logprob_json(t.chosen, engine);
      json::array top;
      for (const TokenLogprob& o : t.top) top.push_back(logprob_json(o, engine));
      entry["top_logprobs"] = std::move(top);
      list.push_back(std::move(entry));
    }
    out["logprobs"] = std::move(list);
  }
  fmt::print("{}\n", json::dump_python(out));
}

int run_run(RunFlags& f) {
  const std::string prompt = read_prompt(f);
  const auto engine = f.engine.open();
  Request request = f.sampling.request(prompt_ids(*engine, f, prompt));
  request.constraint = constraint(f);
  const AnswerStyle style{.print = !f.json,
                          .dim_think = stdout_is_terminal(),
                          .chat = !f.raw,
                          .thinking = !f.no_think,
                          .plain_content = !request.constraint.empty()};
  const Interrupt interrupt;
  const Answer answer = follow(*engine, request, style, f.engine.quiet, interrupt.flag());
  if (f.json) {
    print_json(answer, *engine, f);
  } else if (!f.engine.quiet) {
    fmt::print(stderr, "{}\n", speed_line(answer, engine->info()));
  }
  return answer.finish == Finish::kCancelled ? 130 : 0;
}

}  // namespace

void register_run(CLI::App& app, Run& run) {
  CLI::App* c = app.add_subcommand("run", "Answer one prompt, streaming");
  const auto f = std::make_shared<RunFlags>();
  c->add_option("-p,--prompt,prompt", f->prompt, "The prompt; - reads it from stdin")->required();
  c->add_option("-s,--system", f->system, "System message");
  c->add_flag("--raw", f->raw, "Continue the text as it stands, without the chat format");
  c->add_flag("--literal", f->literal, "With --raw: tags such as <|user|> in the text are plain text");
  c->add_flag("--no-prefix", f->no_prefix, "With --raw: do not start the text with [gMASK]<sop>");
  c->add_flag("--no-think", f->no_think, "Answer at once, without a think block");
  c->add_flag("--json", f->json, "One JSON object on stdout instead of streaming");
  c->add_option("--json-schema", f->json_schema, "A file with a JSON schema that the answer must keep to")
      ->check(CLI::ExistingFile);
  f->sampling.add_to(*c);
  f->engine.add_to(*c);
  c->footer(
      "Examples:\n"
      "  glint run \"Tell me a story about a lighthouse.\"\n"
      "  glint run --raw --temp 0 -n 64 \"Once upon a time\"\n"
      "  git diff | glint run -s \"Summarise this change.\" -\n"
      "The answer goes to stdout, everything else to stderr.");
  c->callback([f, &run] { run = [f] { return run_run(*f); }; });
}

}  // namespace glint::apps
