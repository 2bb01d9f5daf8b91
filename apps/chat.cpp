// glint chat: a conversation in the terminal.

#include <fmt/core.h>

#ifdef GLINT_HAVE_LIBEDIT
#include <editline/readline.h>
#endif

#include <cstdlib>
#include <fstream>
#include <iostream>
#include <memory>
#include <optional>

#include "answer.hpp"
#include "base/error.hpp"
#include "base/json_value.hpp"
#include "command.hpp"
#include "engine_flags.hpp"
#include "interrupt.hpp"
#include "progress.hpp"

namespace glint::apps {
namespace {

struct ChatFlags {
  EngineFlags engine;
  SamplingFlags sampling;
  std::string system;
  bool no_think = false;
  bool keep_thinking = false;
};

constexpr const char* kHelp =
    "/new            forget the conversation\n"
    "/system TEXT    set the system message and start anew\n"
    "/think on|off   think before answering, or not\n"
    "/undo           take the last question and answer back\n"
    "/save FILE      write the conversation as JSON\n"
    "/quit           leave (also Ctrl-D)\n"
    "Ctrl-C stops an answer; a line that ends with \\ goes on in the next.\n";

// One line of input without its newline; nullopt at the end of input.
std::optional<std::string> read_line(const char* prompt, bool terminal) {
#ifdef GLINT_HAVE_LIBEDIT
  if (terminal) {
    char* line = ::readline(prompt);
    if (line == nullptr) return std::nullopt;
    std::string text(line);
    std::free(line);  // NOLINT(cppcoreguidelines-no-malloc): readline's contract
    if (!text.empty()) ::add_history(text.c_str());
    return text;
  }
#endif
  if (terminal) {
    fmt::print("{}", prompt);
    std::fflush(stdout);
  }
  std::string text;
  if (!std::getline(std::cin, text)) return std::nullopt;
  return text;
}

std::optional<std::string> read_message(bool terminal) {
  std::optional<std::string> text = read_line("> ", terminal);
  while (text && !text->empty() && text->back() == '\\') {
    text->back() = '\n';
    const std::optional<std::string> more = read_line("… ", terminal);
    if (!more) break;
    *text += *more;
  }
  return text;
}

class Conversation {
 public:
  Conversation(Engine& engine, ChatFlags& flags) : engine_(engine), flags_(flags) { restart(); }

  void restart() {
    messages_ = JsonValue::make_array();
    if (!flags_.system.empty()) add("system", flags_.system);
  }

  // Asks, prints the answer, keeps both. A failed or empty answer leaves the conversation as it was.
  void ask(const std::string& text) {
    const std::size_t before = messages_.items.size();
    add("user", text);
    try {
      const AnswerStyle style{.dim_think = stdout_is_terminal(), .chat = true, .thinking = !flags_.no_think};
      Interrupt interrupt;
      const Request request = flags_.sampling.request(engine_.encode(engine_.render_chat(request_json())));
      const Answer a = follow(engine_, request, style, flags_.engine.quiet, interrupt.flag());
      if (!flags_.engine.quiet) fmt::print(stderr, "{}\n", speed_line(a, engine_.info()));
      JsonValue message = JsonValue::make_object();
      message.set("role", "assistant").set("content", a.parsed.content);
      if (!a.parsed.reasoning.empty()) message.set("reasoning_content", a.parsed.reasoning);
      messages_.items.push_back(std::move(message));
    } catch (const Error& e) {
      messages_.items.resize(before);
      fmt::print(stderr, "glint: {}\n", e.what());
    }
  }

  void undo() {
    while (!messages_.items.empty() && messages_.items.back().find("role")->text == "assistant")
      messages_.items.pop_back();
    if (!messages_.items.empty() && messages_.items.back().find("role")->text == "user") messages_.items.pop_back();
  }

  void save(const std::string& path) const {
    std::ofstream out(path);
    out << dump_json(JsonValue::make_object().set("messages", messages_), NumberStyle::kVerbatim) << "\n";
    if (out.flush()) {
      fmt::print(stderr, "saved to {}\n", path);
    } else {
      fmt::print(stderr, "glint: {} cannot be written\n", path);
    }
  }

 private:
  void add(const char* role, const std::string& text) {
    messages_.items.push_back(JsonValue::make_object().set("role", role).set("content", text));
  }

  std::string request_json() const {
    JsonValue request = JsonValue::make_object();
    request.set("messages", messages_);
    request.set("add_generation_prompt", JsonValue::from_bool(true));
    request.set("enable_thinking", JsonValue::from_bool(!flags_.no_think));
    if (flags_.keep_thinking) request.set("clear_thinking", JsonValue::from_bool(false));
    return dump_json(request, NumberStyle::kVerbatim);
  }

  Engine& engine_;
  ChatFlags& flags_;
  JsonValue messages_;
};

// Handles a line that starts with '/'. False: leave.
bool command(const std::string& line, Conversation& conversation, ChatFlags& f) {
  const std::size_t space = line.find(' ');
  const std::string name = line.substr(0, space);
  const std::string rest = space == std::string::npos ? "" : line.substr(space + 1);
  if (name == "/quit" || name == "/exit") return false;
  if (name == "/new") {
    conversation.restart();
  } else if (name == "/system") {
    f.system = rest;
    conversation.restart();
  } else if (name == "/undo") {
    conversation.undo();
  } else if (name == "/think" && (rest == "on" || rest == "off")) {
    f.no_think = rest == "off";
  } else if (name == "/save" && !rest.empty()) {
    conversation.save(rest);
  } else {
    fmt::print(stderr, "{}", kHelp);
  }
  return true;
}

int run_chat(ChatFlags& f) {
  const auto engine = f.engine.open();
  const bool terminal = stdin_is_terminal() && stdout_is_terminal();
  if (terminal) {
    fmt::print("{} · {} · context {} tokens · /help lists the commands\n", engine->info().model_dir,
               engine->info().backend, engine->info().max_context);
  }
  Conversation conversation(*engine, f);
  while (const std::optional<std::string> text = read_message(terminal)) {
    if (text->empty()) continue;
    if (text->front() == '/') {
      if (!command(*text, conversation, f)) break;
    } else {
      conversation.ask(*text);
    }
  }
  if (terminal) fmt::print("\n");
  return 0;
}

}  // namespace

void register_chat(CLI::App& app, Run& run) {
  CLI::App* c = app.add_subcommand("chat", "Talk with the model in the terminal");
  const auto f = std::make_shared<ChatFlags>();
  c->add_option("-s,--system", f->system, "System message");
  c->add_flag("--no-think", f->no_think, "Answer at once, without think blocks");
  c->add_flag("--keep-thinking", f->keep_thinking, "Keep earlier think blocks in the prompt (clear_thinking = false)");
  f->sampling.add_to(*c);
  f->engine.add_to(*c);
  c->footer(std::string("In the chat:\n") + kHelp);
  c->callback([f, &run] { run = [f] { return run_chat(*f); }; });
}

}  // namespace glint::apps
