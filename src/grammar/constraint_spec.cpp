#include "grammar/constraint_spec.hpp"

#include <algorithm>
#include <deque>
#include <optional>
#include <vector>

#include "base/error.hpp"
#include "base/json_value.hpp"
#include "grammar/regex.hpp"
#include "grammar/schema_compiler.hpp"

namespace glint::grammar {
namespace {

using Kind = JsonValue::Kind;

constexpr std::string_view kCallOpen = "<tool_call>", kCallClose = "</tool_call>", kKeyOpen = "<arg_key>",
                           kKeyClose = "</arg_key>", kValueOpen = "<arg_value>", kValueClose = "</arg_value>",
                           kThinkOpen = "<think>", kThinkClose = "</think>";

enum class Calls : std::uint8_t {
  kNone,
  kAllowed,  // or an answer
  kNeeded
};

struct Tool {
  std::string name;
  JsonValue parameters;
  std::string where;
};

struct Spec {
  std::optional<JsonValue> schema;  // of the answer
  std::string where = "json_schema";
  Calls calls = Calls::kNone;
  std::vector<Tool> tools;
  bool parallel = true;
  bool thinking = false;
};

[[noreturn]] void wrong(const std::string& what, const JsonValue& found, const std::string& expected) {
  refuse(what, std::string(json_kind_name(found.kind)), expected);
}

bool flag(const JsonValue& spec, const char* name, bool otherwise) {
  const JsonValue* v = spec.find(name);
  if (v == nullptr) return otherwise;
  if (!v->is(Kind::kBool)) wrong(name, *v, "true or false");
  return v->boolean;
}

std::string text(const JsonValue& spec, const char* name, const char* otherwise) {
  const JsonValue* v = spec.find(name);
  if (v == nullptr) return otherwise;
  if (!v->is(Kind::kString)) wrong(name, *v, "a text");
  return v->text;
}

// The schemas of tools that nobody asked to keep to are open: any arguments.
void read_tools(const JsonValue& list, bool strict_only, Spec& spec) {
  if (!list.is(Kind::kArray)) wrong("tools", list, "an array");
  for (std::size_t i = 0; i < list.items.size(); ++i) {
    std::string where = "tools[" + std::to_string(i) + "]";
    const JsonValue* tool = &list.items[i];
    if (const JsonValue* inner = tool->find("function")) {
      tool = inner;
      where += ".function";
    }
    const JsonValue* name = tool->find("name");
    if (name == nullptr || !name->is(Kind::kString) || name->text.empty())
      wrong(where, *tool, "a function with a name");
    const JsonValue* parameters = tool->find("parameters");
    where += parameters != nullptr ? ".parameters" : ".input_schema";
    if (parameters == nullptr) parameters = tool->find("input_schema");
    const JsonValue* strict = tool->find("strict");
    const bool keep = !strict_only || (strict != nullptr && strict->is(Kind::kBool) && strict->boolean);
    JsonValue form = JsonValue::from_bool(true);
    if (keep && parameters == nullptr) {
      form = JsonValue::make_object();
      form.set("properties", JsonValue::make_object());
    } else if (keep) {
      form = *parameters;
    }
    spec.tools.push_back({.name = name->text, .parameters = std::move(form), .where = where});
  }
}

Spec read_spec(const JsonValue& json) {
  if (!json.is(Kind::kObject)) wrong("constraint", json, "an object");
  static constexpr std::string_view kFields[] = {
      "json_schema", "json_object", "where", "tools", "tool_choice", "function", "parallel_tool_calls", "thinking"};
  for (const std::string& key : json.keys) {
    if (std::find(std::begin(kFields), std::end(kFields), key) == std::end(kFields)) {
      refuse("constraint", "unknown field \"" + key + '"', "json_schema, json_object, tools and what belongs to them");
    }
  }
  Spec spec;
  spec.where = text(json, "where", "json_schema");
  spec.parallel = flag(json, "parallel_tool_calls", true);
  spec.thinking = flag(json, "thinking", false);
  if (const JsonValue* schema = json.find("json_schema")) spec.schema = *schema;
  if (flag(json, "json_object", false)) {
    if (spec.schema) refuse("constraint", "json_object and json_schema", "one of them");
    spec.schema = JsonValue::make_object().set("type", "object");
  }
  const std::string choice = text(json, "tool_choice", "auto");
  if (choice != "auto" && choice != "required") refuse("tool_choice", '"' + choice + '"', "auto or required");
  if (const JsonValue* tools = json.find("tools")) read_tools(*tools, choice == "auto", spec);
  if (!spec.tools.empty()) spec.calls = choice == "auto" ? Calls::kAllowed : Calls::kNeeded;
  if (choice == "required" && spec.tools.empty())
    refuse("tool_choice", "\"required\" without tools", "tools beside it");
  if (const std::string name = text(json, "function", ""); !name.empty()) {
    std::erase_if(spec.tools, [&](const Tool& t) { return t.name != name; });
    if (spec.tools.empty()) refuse("tool_choice", '"' + name + '"', "the name of one of the tools");
  }
  if (!spec.schema && spec.tools.empty()) refuse("constraint", "nothing that constrains", "json_schema or tools");
  return spec;
}

class ConstraintCompiler {
 public:
  ConstraintCompiler(const Spec& spec, const Vocabulary& vocabulary) : spec_(spec), vocabulary_(vocabulary) {}

  Grammar compile() && {
    const RuleId root = builder_.add_rule();
    StateId at = builder_.entry(root);
    if (spec_.thinking) at = add_thinking(at);
    const StateId end = builder_.add_state(root);
    builder_.set_end(end);
    if (spec_.calls != Calls::kNeeded) add_answer(at, end);
    if (spec_.calls != Calls::kNone) add_calls(at, end);
    try {
      return std::move(builder_).finish(root);
    } catch (const Error& e) {
      throw Error({.what = spec_.calls == Calls::kNeeded ? "tools" : spec_.where,
                   .found = e.parts().found,
                   .expected = e.parts().expected});
    }
  }

 private:
  // A tag is one token; to a tokenizer that has none it is text.
  StateId add_tag(StateId from, std::string_view tag) {
    const StateId to = builder_.add_state(rule_of(from));
    add_tag_to(from, tag, to);
    return to;
  }
  void add_tag_to(StateId from, std::string_view tag, StateId to) {
    const std::int32_t id = vocabulary_.tag(tag);
    if (id >= 0) {
      builder_.add_symbol(from, id, to);
    } else {
      builder_.add_text_to(from, tag, to);
    }
  }
  RuleId rule_of(StateId s) const { return builder_.rule_of(s); }

  // Free until it is closed: what is asked for begins behind it.
  StateId add_thinking(StateId from) {
    static constexpr std::string_view kWords[] = {kThinkClose, kCallOpen};
    const StateId thought = builder_.add_state(rule_of(from));
    builder_.add_dfa(from, text_without(kWords), thought, Escapes::kNone);
    return add_tag(thought, kThinkClose);
  }

  void add_answer(StateId from, StateId end) {
    if (!spec_.schema) {  // beside calls: any text, which calls may follow
      static constexpr std::string_view kWords[] = {kThinkOpen, kThinkClose, kCallOpen};
      const StateId said = builder_.add_state(rule_of(from));
      builder_.add_dfa(from, text_without(kWords), said, Escapes::kNone);
      builder_.add_empty(said, end);
      return add_calls(said, end);
    }
    compilers_.emplace_back(builder_, *spec_.schema, spec_.where);
    const StateId before = builder_.add_state(rule_of(from));
    builder_.add_call(from, compilers_.back().space(), before);
    builder_.add_call(before, compilers_.back().root_value(), end);
  }

  void add_calls(StateId from, StateId end) {
    if (calls_ < 0) {
      calls_ = builder_.add_rule();
      const StateId open = builder_.entry(calls_);
      const StateId name = add_tag(open, kCallOpen);
      const StateId closed = builder_.add_state(calls_);
      builder_.set_end(closed);
      if (spec_.parallel) builder_.add_empty(closed, open);
      for (const Tool& tool : spec_.tools) add_tool(name, tool, closed);
    }
    builder_.add_call(from, calls_, end);
  }

  void add_tool(StateId from, const Tool& tool, StateId to) {
    compilers_.emplace_back(builder_, tool.parameters, tool.where);
    SchemaCompiler& compiler = compilers_.back();
    const StateId named = builder_.add_text(from, tool.name);
    bool any_object = false;
    for (const Alternative& a : compiler.reader().alternatives({&tool.parameters})) {
      if ((a.types & kObject) == 0) continue;
      if (a.values) refuse(a.path, "enum or const for the arguments of a function", "properties");
      any_object = true;
      add_arguments(named, compiler, a, to);
    }
    if (!any_object) refuse(tool.where, "a schema that no object satisfies", "one of an object");
  }

  void add_arguments(StateId from, SchemaCompiler& compiler, const Alternative& a, StateId to) {
    const Members m = compiler.reader().members(a);
    if (!m.possible) return;
    if (a.min_properties > 0 || a.max_properties >= 0) {
      refuse(a.path, "minProperties or maxProperties", "neither, for the arguments of a function");
    }
    StateId at = from;  // a key of this property or of a later one may follow, unless a required one was skipped
    const RuleId rule = rule_of(from);
    for (const Members::Property& p : m.properties) {
      const StateId next = builder_.add_state(rule);
      const StateId key = builder_.add_text(add_tag(at, kKeyOpen), checked_key(p.name, a.path));
      add_value(key, compiler, p.schema, next);
      if (!p.required) builder_.add_empty(at, next);
      at = next;
    }
    if (m.additional) {
      std::vector<std::string> names;
      for (const Members::Property& p : m.properties) names.push_back(p.name);
      const CharDfa keys = intersection(compile_regex("^[A-Za-z0-9_.$-]{1,64}$"), text_except(names));
      const StateId loop = builder_.add_state(rule);
      builder_.add_empty(at, loop);
      const StateId key = builder_.add_state(rule);
      builder_.add_dfa(add_tag(loop, kKeyOpen), keys, key, Escapes::kNone);
      add_value(key, compiler, *m.additional, loop);
      at = loop;
    }
    add_tag_to(at, kCallClose, to);
  }

  void add_value(StateId key, SchemaCompiler& compiler, const Conjunction& schema, StateId to) {
    const StateId open = add_tag(add_tag(key, kKeyClose), kValueOpen);
    const StateId close = builder_.add_state(rule_of(key));
    builder_.add_call(open, compiler.argument(schema), close);
    add_tag_to(close, kValueClose, to);
  }

  // The format writes names bare: one with a tag in it, or white space at its ends, would be read as another.
  static const std::string& checked_key(const std::string& name, const std::string& path) {
    const auto is_space = [](char c) { return c == ' ' || (c >= '\t' && c <= '\r'); };
    const bool bare =
        !name.empty() && !is_space(name.front()) && !is_space(name.back()) && name.find('<') == std::string::npos;
    if (!bare)
      refuse(path, "a property's name that a call cannot hold: \"" + name + '"', "a name without < and outer blanks");
    return name;
  }

  const Spec& spec_;
  const Vocabulary& vocabulary_;
  GrammarBuilder builder_;
  std::deque<SchemaCompiler> compilers_;
  RuleId calls_ = -1;
};

}  // namespace

Grammar compile_constraint(std::string_view spec_json, const Vocabulary& vocabulary) {
  const Spec spec = read_spec(parse_json_value(spec_json, "constraint"));
  return ConstraintCompiler(spec, vocabulary).compile();
}

}  // namespace glint::grammar
