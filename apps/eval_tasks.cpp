// glint eval tasks | toolcalls | loops: what the model does, not only what it would say.

#include <fmt/core.h>

#include <algorithm>
#include <fstream>
#include <map>
#include <memory>

#include "base/error.hpp"
#include "base/hash.hpp"
#include "base/json.hpp"
#include "base/json_value.hpp"
#include "eval.hpp"
#include "text/output_parser.hpp"
#include "text/python_text.hpp"

namespace glint::apps {
namespace {

std::vector<JsonValue> read_jsonl(const std::string& path, std::int64_t limit) {
  std::ifstream in(path);
  if (!in) throw Error({.what = path, .found = "no such file", .expected = "a JSONL file"});
  std::vector<JsonValue> out;
  std::int64_t number = 0;
  for (std::string line; std::getline(in, line) && (limit == 0 || static_cast<std::int64_t>(out.size()) < limit);) {
    ++number;
    if (!line.empty()) out.push_back(parse_json_value(line, path + " line " + std::to_string(number)));
  }
  return out;
}

const JsonValue& field(const JsonValue& object, std::string_view name, JsonValue::Kind kind, const std::string& path) {
  const JsonValue* v = object.find(name);
  if (v == nullptr || !v->is(kind)) {
    throw Error({.what = path + ": field " + std::string(name),
                 .found = v == nullptr ? "nothing" : std::string(json_kind_name(v->kind)),
                 .expected = std::string(json_kind_name(kind))});
  }
  return *v;
}

std::vector<std::int32_t> chat_ids(const Engine& engine, JsonValue messages, const JsonValue* tools) {
  JsonValue request = JsonValue::make_object();
  request.set("messages", std::move(messages));
  if (tools != nullptr) request.set("tools", *tools);
  request.set("enable_thinking", JsonValue::from_bool(false));
  request.set("add_generation_prompt", JsonValue::from_bool(true));
  return engine.encode(engine.render_chat(dump_json(request, NumberStyle::kVerbatim)));
}

JsonValue user_message(const std::string& text) {
  return JsonValue::make_array({JsonValue::make_object().set("role", "user").set("content", text)});
}

struct GreedyAnswer {
  std::string text;
  std::vector<std::int32_t> ids;
};

// All prompts at once: the engine batches them. Answers in the order of the prompts.
std::vector<GreedyAnswer> greedy_answers(Engine& engine, const std::vector<std::vector<std::int32_t>>& prompts,
                                         std::int64_t max_tokens) {
  std::vector<RequestId> ids;
  for (const auto& prompt : prompts) {
    ids.push_back(engine.submit({.ids = prompt, .sampling = {.temperature = 0}, .max_tokens = max_tokens}));
  }
  std::vector<GreedyAnswer> answers;
  for (const RequestId id : ids) {
    GreedyAnswer a;
    for (;;) {
      const std::optional<Event> e = engine.next(id);
      if (!e) continue;
      a.text += e->text;
      if (e->token >= 0) a.ids.push_back(e->token);
      if (e->finish == Finish::kError) throw Error({.what = "a request failed", .found = e->error});
      if (e->finish != Finish::kNone) break;
    }
    answers.push_back(std::move(a));
  }
  return answers;
}

Outcome outcome(std::string task, bool right, const GreedyAnswer& answer) {
  return {.task = std::move(task),
          .right = right,
          .answer = hash64(answer.ids.data(), answer.ids.size() * sizeof(std::int32_t))};
}

// 5, 5.0 and 5e0 are the same argument; strings and the rest compare as they are.
bool same_json(const JsonValue& a, const JsonValue& b) {
  if (a.is(JsonValue::Kind::kNumber) && b.is(JsonValue::Kind::kNumber))
    return a.text == b.text || a.as_double() == b.as_double();
  if (a.kind != b.kind || a.items.size() != b.items.size()) return false;
  if (a.is(JsonValue::Kind::kObject)) {
    return std::all_of(a.keys.begin(), a.keys.end(), [&](const std::string& k) {
      const JsonValue* other = b.find(k);
      return other != nullptr && same_json(*a.find(k), *other);
    });
  }
  if (a.is(JsonValue::Kind::kArray)) return std::equal(a.items.begin(), a.items.end(), b.items.begin(), same_json);
  return a == b;
}

bool same_calls(const JsonValue& expected, const std::vector<ParsedToolCall>& got) {
  if (expected.items.size() != got.size()) return false;
  for (std::size_t i = 0; i < got.size(); ++i) {
    const JsonValue& call = expected.items[i];
    const JsonValue* function = call.find("function");
    const JsonValue& body = function != nullptr ? *function : call;
    const JsonValue* name = body.find("name");
    const JsonValue* arguments = body.find("arguments");
    const std::optional<JsonValue> parsed = try_parse_json_value(got[i].arguments);
    if (name == nullptr || arguments == nullptr || !parsed || !got[i].complete) return false;
    if (name->text != got[i].name || !same_json(*arguments, *parsed)) return false;
  }
  return true;
}

}  // namespace

std::vector<Outcome> score_tasks(Engine& engine, const std::string& path, std::int64_t limit) {
  const std::vector<JsonValue> lines = read_jsonl(path, limit);
  std::vector<std::vector<std::int32_t>> prompts;
  for (const JsonValue& line : lines) {
    prompts.push_back(
        chat_ids(engine, user_message(field(line, "user", JsonValue::Kind::kString, path).text), nullptr));
  }
  const std::vector<GreedyAnswer> answers = greedy_answers(engine, prompts, 160);
  std::vector<Outcome> out;
  for (std::size_t i = 0; i < lines.size(); ++i) {
    const std::string& want = field(lines[i], "assistant", JsonValue::Kind::kString, path).text;
    const ParsedOutput got = parse_output(answers[i].text, {.thinking_enabled = false});
    out.push_back(outcome(field(lines[i], "task", JsonValue::Kind::kString, path).text,
                          python_strip(got.content) == python_strip(want), answers[i]));
  }
  return out;
}

std::vector<Outcome> score_toolcalls(Engine& engine, const std::string& path, std::int64_t limit) {
  struct Question {
    std::string task;
    JsonValue tools;
    JsonValue expected;
  };
  std::vector<Question> questions;
  std::vector<std::vector<std::int32_t>> prompts;
  for (const JsonValue& line : read_jsonl(path, limit)) {
    const JsonValue& tools = field(line, "tools", JsonValue::Kind::kArray, path);
    JsonValue context = JsonValue::make_array();
    for (const JsonValue& message : field(line, "messages", JsonValue::Kind::kArray, path).items) {
      if (field(message, "role", JsonValue::Kind::kString, path).text == "assistant") {
        prompts.push_back(chat_ids(engine, context, &tools));
        questions.push_back({field(line, "task", JsonValue::Kind::kString, path).text, tools, message});
      }
      context.items.push_back(message);
    }
  }
  const std::vector<GreedyAnswer> answers = greedy_answers(engine, prompts, 256);
  std::vector<Outcome> out;
  for (std::size_t i = 0; i < questions.size(); ++i) {
    const ParsedOutput got =
        parse_output(answers[i].text, {.tools = questions[i].tools.items, .thinking_enabled = false});
    const JsonValue* calls = questions[i].expected.find("tool_calls");
    const bool is_call = calls != nullptr && !calls->items.empty();
    const JsonValue* content = questions[i].expected.find("content");
    const bool right = is_call ? same_calls(*calls, got.tool_calls)
                               : got.tool_calls.empty() && content != nullptr &&
                                     python_strip(got.content) == python_strip(content->text);
    out.push_back(outcome((is_call ? "call " : "reply ") + questions[i].task, right, answers[i]));
  }
  return out;
}

std::vector<TaskScore> by_task(const std::vector<Outcome>& outcomes) {
  std::map<std::string, TaskScore> scores;
  for (const Outcome& o : outcomes) {
    TaskScore& s = scores[o.task];
    s.task = o.task;
    ++s.total;
    s.right += o.right ? 1 : 0;
  }
  std::vector<TaskScore> out;
  for (auto& [task, s] : scores) out.push_back(std::move(s));
  return out;
}

bool repeats(std::span<const std::int32_t> ids, std::size_t n, int times) {
  if (ids.size() < n) return false;
  std::map<std::vector<std::int32_t>, int> seen;
  for (std::size_t i = 0; i + n <= ids.size(); ++i) {
    if (++seen[std::vector<std::int32_t>(ids.begin() + static_cast<std::ptrdiff_t>(i),
                                         ids.begin() + static_cast<std::ptrdiff_t>(i + n))] >= times) {
      return true;
    }
  }
  return false;
}

LoopResult count_loops(Engine& engine, const std::string& path, std::int64_t limit, std::int64_t max_tokens) {
  std::vector<std::vector<std::int32_t>> prompts;
  for (const JsonValue& line : read_jsonl(path, limit)) {
    prompts.push_back(
        chat_ids(engine, user_message(field(line, "user", JsonValue::Kind::kString, path).text), nullptr));
  }
  LoopResult r;
  for (const GreedyAnswer& a : greedy_answers(engine, prompts, max_tokens)) {
    ++r.answers;
    r.looping += repeats(a.ids, 16, 3) ? 1 : 0;
  }
  return r;
}

namespace {

struct TaskFlags {
  EngineFlags engine;
  std::string file;
  std::int64_t limit = 0;
  std::int64_t max_tokens = 256;
  bool json = false;
};

using ScoreFunction = std::vector<Outcome> (*)(Engine&, const std::string&, std::int64_t);

double percent(const TaskScore& s) {
  return s.total > 0 ? 100.0 * static_cast<double>(s.right) / static_cast<double>(s.total) : 0;
}

int run_scores(TaskFlags& f, ScoreFunction score) {
  const auto engine = f.engine.open();
  const std::vector<Outcome> outcomes = score(*engine, f.file, f.limit);
  const std::vector<TaskScore> scores = by_task(outcomes);
  TaskScore all{.task = "all"};
  for (const TaskScore& s : scores) {
    all.right += s.right;
    all.total += s.total;
  }
  if (f.json) {
    json::object tasks;
    for (const TaskScore& s : scores) tasks[s.task] = json::object{{"right", s.right}, {"total", s.total}};
    json::array each;  // in the order of the file
    for (const Outcome& o : outcomes) each.push_back(json::object{{"task", o.task}, {"right", o.right}});
    const json::value out = {{"file", f.file},
                             {"right", all.right},
                             {"total", all.total},
                             {"tasks", std::move(tasks)},
                             {"each", std::move(each)}};
    fmt::print("{}\n", json::dump_python(out));
  } else {
    for (const TaskScore& s : scores)
      fmt::print("{:<28} {:>4} of {:>4}  {:5.1f} %\n", s.task, s.right, s.total, percent(s));
    fmt::print("{:<28} {:>4} of {:>4}  {:5.1f} %\n", all.task, all.right, all.total, percent(all));
  }
  return 0;
}

int run_loops(TaskFlags& f) {
  const auto engine = f.engine.open();
  const LoopResult r = count_loops(*engine, f.file, f.limit, f.max_tokens);
  if (f.json) {
    const json::value out = {{"file", f.file}, {"answers", r.answers}, {"looping", r.looping}};
    fmt::print("{}\n", json::dump_python(out));
  } else {
    fmt::print("{} of {} answers repeat a 16-gram three times\n", r.looping, r.answers);
  }
  return 0;
}

std::shared_ptr<TaskFlags> add_command(CLI::App& eval, const char* name, const char* help, std::int64_t limit,
                                       CLI::App** out) {
  CLI::App* c = eval.add_subcommand(name, help);
  auto f = std::make_shared<TaskFlags>();
  f->limit = limit;
  f->engine.add_to(*c);
  c->add_option("file", f->file, "JSONL file")->required();
  c->add_option("--limit", f->limit, "Use the first N lines (0: all)")
      ->capture_default_str()
      ->check(CLI::NonNegativeNumber);
  c->add_flag("--json", f->json, "One JSON object on stdout");
  *out = c;
  return f;
}

}  // namespace

void add_tasks(CLI::App& eval, std::function<int()>& run) {
  CLI::App* c = nullptr;
  const auto tasks =
      add_command(eval, "tasks", "Exact match of greedy answers: lines of {\"task\",\"user\",\"assistant\"}", 0, &c);
  c->callback([tasks, &run] { run = [tasks] { return run_scores(*tasks, score_tasks); }; });
  const auto calls =
      add_command(eval, "toolcalls", "Tool calls and replies: lines of {\"task\",\"tools\",\"messages\"}", 0, &c);
  c->callback([calls, &run] { run = [calls] { return run_scores(*calls, score_toolcalls); }; });
  const auto loops =
      add_command(eval, "loops", "Share of greedy answers that repeat themselves: lines with \"user\"", 100, &c);
  c->add_option("-n,--max-tokens", loops->max_tokens, "Longest answer")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  c->callback([loops, &run] { run = [loops] { return run_loops(*loops); }; });
}

}  // namespace glint::apps
