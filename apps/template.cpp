// glint template | parse: the chat format over JSON lines, for people and tests.

#include <cstdio>
#include <iostream>
#include <memory>
#include <string>

#include "base/error.hpp"
#include "base/json_value.hpp"
#include "command.hpp"
#include "text/chat_json.hpp"
#include "text/output_parser.hpp"

namespace glint::apps {

namespace {

void print_line(const JsonValue& value) {
  std::string line = dump_json(value, NumberStyle::kVerbatim);
  line += '\n';
  std::fwrite(line.data(), 1, line.size(), stdout);
  std::fflush(stdout);
}

// One answer a line; a line that cannot be answered gets {"error": …} and makes the exit code 1. Blank lines are
// skipped.
template <class Answer>
int for_each_line(Answer&& answer) {
  int exit_code = 0;
  std::string line;
  while (std::getline(std::cin, line)) {
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    try {
      print_line(answer(parse_json_value(line, "input line")));
    } catch (const Error& e) {
      exit_code = 1;
      print_line(JsonValue::make_object().set("error", std::string(e.what())));
    }
  }
  return exit_code;
}

JsonValue answer_template(const JsonValue& request, ChatJsonMode mode) {
  return JsonValue::make_object().set("text", render_chat(chat_request_from_value(request, mode)));
}

bool read_bool(const JsonValue& line, const char* key, bool fallback) {
  const JsonValue* v = line.find(key);
  if (!v || v->is(JsonValue::Kind::kNull)) return fallback;
  if (!v->is(JsonValue::Kind::kBool)) {
    throw Error({.what = key, .found = std::string(json_kind_name(v->kind)), .expected = "a boolean"});
  }
  return v->boolean;
}

OutputEnd read_finish_reason(const JsonValue& line) {
  const JsonValue* v = line.find("finish_reason");
  if (!v || v->is(JsonValue::Kind::kNull)) return OutputEnd::kStop;
  if (v->text == "stop" || v->text == "tool_calls") return OutputEnd::kStop;
  if (v->text == "length") return OutputEnd::kLength;
  throw Error({.what = "finish_reason", .found = v->text, .expected = "stop, tool_calls or length"});
}

JsonValue answer_parse(const JsonValue& line) {
  const JsonValue* text = line.find("text");
  if (!text || !text->is(JsonValue::Kind::kString)) {
    throw Error(
        {.what = "text", .found = text ? std::string(json_kind_name(text->kind)) : "nothing", .expected = "a string"});
  }
  const OutputParserOptions options{.tools = chat_tools_from_json(line),
                                    .thinking_enabled = read_bool(line, "enable_thinking", true)};
  const ParsedOutput parsed = parse_output(text->text, options, read_finish_reason(line));
  JsonValue calls = JsonValue::make_array();
  for (std::size_t i = 0; i < parsed.tool_calls.size(); ++i) {
    JsonValue function = JsonValue::make_object();
    function.set("name", parsed.tool_calls[i].name).set("arguments", parsed.tool_calls[i].arguments);
    JsonValue call = JsonValue::make_object();
    call.set("id", "call_" + std::to_string(i)).set("type", "function").set("function", std::move(function));
    calls.items.push_back(std::move(call));
  }
  return JsonValue::make_object()
      .set("reasoning_content", parsed.reasoning)
      .set("content", parsed.content)
      .set("tool_calls", std::move(calls));
}

}  // namespace

void register_template(CLI::App& app, Run& run) {
  CLI::App* render = app.add_subcommand("template", "Render chat requests to prompt text (JSON lines)");
  render->footer(
      "Reads one OpenAI-like request a line, {\"messages\", \"tools\", \"add_generation_prompt\", "
      "\"enable_thinking\",\n"
      "\"clear_thinking\", \"chat_template_kwargs\"}, and writes {\"text\"}; a bad line gets {\"error\"} and exit code "
      "1.\n"
      "Example: echo '{\"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}], \"add_generation_prompt\": true}' | "
      "glint template");
  auto lenient = std::make_shared<bool>(false);
  render->add_flag("--lenient", *lenient, "As the server: null content is empty, arguments may be JSON text");
  render->callback([&run, lenient] {
    run = [mode = *lenient ? ChatJsonMode::kServer : ChatJsonMode::kTemplate] {
      return for_each_line([mode](const JsonValue& request) { return answer_template(request, mode); });
    };
  });

  CLI::App* parse =
      app.add_subcommand("parse", "Split model output into reasoning, content and tool calls (JSON lines)");
  parse->footer(
      "Reads {\"text\", \"tools\", \"enable_thinking\", \"finish_reason\"} a line (only text is required; "
      "finish_reason\n"
      "\"length\" says that the output was cut off) and writes {\"reasoning_content\", \"content\", \"tool_calls\"};\n"
      "a bad line gets {\"error\"} and exit code 1.\n"
      "Example: echo '{\"text\": \"hm</think>Hi <tool_call>now</tool_call>\"}' | glint parse");
  parse->callback([&run] { run = [] { return for_each_line(answer_parse); }; });
}

}  // namespace glint::apps
