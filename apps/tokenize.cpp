// glint tokenize | detokenize: the tokenizer over JSON lines, for people and tests.

#include <cstdio>
#include <functional>
#include <iostream>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.hpp"
#include "base/json.hpp"
#include "command.hpp"
#include "model_dir.hpp"
#include "text/decoder.hpp"
#include "text/tokenizer.hpp"

namespace glint::apps {
namespace {

struct Flags {
  std::string tokenizer, model;
  bool literal = false;
  bool skip_special = false;
  std::vector<std::string> words;  // tokenize: the text
  std::vector<std::int32_t> ids;   // detokenize

  Tokenizer open() const {
    return Tokenizer::from_file(tokenizer.empty() ? resolve_model_dir(model) + "/tokenizer.json" : tokenizer);
  }
};

void write_line(std::string line) {
  line += '\n';
  std::fwrite(line.data(), 1, line.size(), stdout);
}

// One answer a line of stdin, flushed at once, so that a program may wait for it before it writes the next line. A bad
// line is answered by {"error", "line"}, makes the exit code 1 and stops nothing. Blank lines are skipped.
int for_each_line(const std::function<json::object(const json::value&)>& answer) {
  std::ios::sync_with_stdio(false);
  int exit_code = 0;
  std::string line;
  for (std::int64_t number = 1; std::getline(std::cin, line); ++number) {
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    json::object out;
    try {
      out = answer(json::parse_text(line, "JSON"));
    } catch (const Error& e) {
      out = {{"error", e.what()}, {"line", number}};
      exit_code = 1;
    }
    write_line(json::dump_python(out));
    std::fflush(stdout);
  }
  return exit_code;
}

const json::value& member(const json::value& line, std::string_view key, json::kind kind, const char* expected) {
  const json::value* v = line.is_object() ? line.get_object().if_contains(key) : nullptr;
  if (v == nullptr || v->kind() != kind) {
    throw Error({.what = "\"" + std::string(key) + "\"",
                 .found = v == nullptr ? "nothing" : json::dump_python(*v).substr(0, 100),
                 .expected = expected});
  }
  return *v;
}

std::vector<std::int32_t> ids_of(const json::value& line) {
  std::vector<std::int32_t> ids;
  for (const json::value& v : member(line, "ids", json::kind::array, "an array of token ids").get_array()) {
    if (!v.is_int64() || v.get_int64() < 0 || v.get_int64() > INT32_MAX) {
      throw Error({.what = "\"ids\"", .found = json::dump_python(v).substr(0, 100), .expected = "token ids"});
    }
    ids.push_back(static_cast<std::int32_t>(v.get_int64()));
  }
  return ids;
}

// A token for people: as a JSON string; what is not whole characters by its bytes.
std::string shown(std::string_view bytes) {
  if (replace_invalid_utf8(bytes) == bytes) return json::dump_python(json::value(json::string(bytes)));
  std::string out;
  for (const char c : bytes) {
    char buffer[8];
    std::snprintf(buffer, sizeof buffer, "<%02X>", static_cast<unsigned>(static_cast<unsigned char>(c)));
    out += buffer;
  }
  return out;
}

int show_tokens(const Tokenizer& tokenizer, const Flags& flags) {
  std::string text;
  for (const std::string& word : flags.words) text += (text.empty() ? "" : " ") + word;
  const std::vector<std::int32_t> ids = tokenizer.encode(text, {.literal = flags.literal});
  for (const std::int32_t id : ids) write_line(std::to_string(id) + "\t" + shown(tokenizer.token_bytes(id)));
  std::fprintf(stderr, "%zu tokens, %zu bytes\n", ids.size(), text.size());
  return 0;
}

int tokenize(const Flags& flags) {
  const Tokenizer tokenizer = flags.open();
  if (!flags.words.empty()) return show_tokens(tokenizer, flags);
  return for_each_line([&](const json::value& line) {
    const json::string& text = member(line, "text", json::kind::string, "a string").get_string();
    const std::vector<std::int32_t> ids = tokenizer.encode({text.data(), text.size()}, {.literal = flags.literal});
    return json::object{{"ids", json::array(ids.begin(), ids.end())}};
  });
}

int detokenize(const Flags& flags) {
  const Tokenizer tokenizer = flags.open();
  const auto text_of = [&](const std::vector<std::int32_t>& ids) {
    return replace_invalid_utf8(tokenizer.decode(ids, {.skip_special = flags.skip_special}));
  };
  if (!flags.ids.empty()) {
    write_line(text_of(flags.ids));
    return 0;
  }
  return for_each_line([&](const json::value& line) { return json::object{{"text", text_of(ids_of(line))}}; });
}

// The flags that both commands take.
void add_common(CLI::App& command, Flags& flags) {
  command.add_option("--tokenizer", flags.tokenizer, "tokenizer.json to use (default: that of the model)");
  command.add_option("-m,--model", flags.model, "Model directory (default: $GLINT_MODEL, else models/tiny)");
}

}  // namespace

void register_tokenize(CLI::App& app, Run& run) {
  CLI::App* encode = app.add_subcommand("tokenize", "Text to token ids (JSON lines, or TEXT)");
  encode->footer(
      "Reads {\"text\"} a line and writes {\"ids\"}; a bad line gets {\"error\", \"line\"} and exit code 1.\n"
      "With TEXT it prints one token a line. Nothing is added: [gMASK]<sop> comes from the chat template.\n"
      "Example: echo '{\"text\": \"Hello, world!\"}' | glint tokenize");
  auto flags = std::make_shared<Flags>();
  add_common(*encode, *flags);
  encode->add_flag("--literal", flags->literal, "Added tokens such as <|user|> in the text are plain text");
  encode->add_option("TEXT", flags->words, "Text to show token by token, instead of stdin");
  encode->callback([&run, flags] { run = [flags] { return tokenize(*flags); }; });

  CLI::App* decode = app.add_subcommand("detokenize", "Token ids to text (JSON lines, or ID...)");
  decode->footer(
      "Reads {\"ids\"} a line and writes {\"text\"}; bytes that are not UTF-8 become U+FFFD; a bad line gets\n"
      "{\"error\", \"line\"} and exit code 1.\n"
      "Example: echo '{\"ids\": [39, 688]}' | glint detokenize");
  flags = std::make_shared<Flags>();
  add_common(*decode, *flags);
  decode->add_flag("--skip-special", flags->skip_special, "Leave special tokens out of the text");
  decode->add_option("ID", flags->ids, "Ids to show as text, instead of stdin");
  decode->callback([&run, flags] { run = [flags] { return detokenize(*flags); }; });
}

}  // namespace glint::apps
