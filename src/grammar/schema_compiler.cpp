#include "grammar/schema_compiler.hpp"

#include <algorithm>

#include "base/error.hpp"

namespace glint::grammar {
namespace {

using Kind = JsonValue::Kind;

// Columns of indentation after a line break.
constexpr std::int64_t kMaxIndent = 32;

std::string quoted(const std::string& s) {
  std::string out = "\"";
  append_json_escaped(s, out);
  return out + '"';
}

}  // namespace

SchemaCompiler::SchemaCompiler(GrammarBuilder& builder, const JsonValue& root, std::string where)
    : builder_(builder), root_(root), reader_(root, std::move(where)) {}

RuleId SchemaCompiler::value(const Conjunction& schemas) {
  Conjunction key = schemas;
  std::sort(key.begin(), key.end());
  key.erase(std::unique(key.begin(), key.end()), key.end());
  if (const auto known = values_.find(key); known != values_.end()) return known->second;
  const RuleId rule = builder_.add_rule();
  values_.emplace(std::move(key), rule);
  const StateId end = builder_.add_state(rule);
  builder_.set_end(end);
  for (const Alternative& a : reader_.alternatives(schemas)) add_alternative(builder_.entry(rule), a, end);
  return rule;
}

void SchemaCompiler::add_alternative(StateId from, const Alternative& a, StateId to) {
  if (a.values) return add_values(from, a, to);
  if ((a.types & kNull) != 0) builder_.add_text_to(from, "null", to);
  if ((a.types & kBoolean) != 0) {
    builder_.add_text_to(from, "true", to);
    builder_.add_text_to(from, "false", to);
  }
  if ((a.types & (kInteger | kNumber)) != 0) builder_.add_call(from, number_of(a, (a.types & kNumber) == 0), to);
  if ((a.types & kString) != 0) builder_.add_call(from, string_of(a), to);
  if ((a.types & kArray) != 0) builder_.add_call(from, array_of(a), to);
  if ((a.types & kObject) != 0) builder_.add_call(from, object_of(a), to);
}

void SchemaCompiler::add_values(StateId from, const Alternative& a, StateId to) {
  std::vector<std::string> texts;
  for (const JsonValue& v : *a.values) texts.push_back(dump_json(v, NumberStyle::kVerbatim));
  builder_.add_texts(from, texts, to);
}

RuleId SchemaCompiler::space() {
  if (space_ >= 0) return space_;
  space_ = builder_.add_rule();
  builder_.set_limits(space_, 0, kMaxIndent);
  const StateId s = builder_.entry(space_);
  builder_.set_end(s);
  const StateId end = builder_.add_state(space_);
  builder_.set_end(end);
  const StateId line = builder_.add_state(space_);
  builder_.set_end(line);
  builder_.add_text_to(s, " ", end);
  builder_.add_text_to(s, "\n", line);
  builder_.add_text_to(line, " ", line, Count::kAdd);
  builder_.add_text_to(line, "\t", line, Count::kAdd);
  return space_;
}

// ---- scalars ---------------------------------------------------------------------------------------------------

RuleId SchemaCompiler::number_of(const Alternative& a, bool integer) {
  const bool bounded = a.least || a.most;
  RuleId& shared = any_number_[integer ? 1 : 0];
  if (!bounded && shared >= 0) return shared;
  const RuleId rule = builder_.add_rule();
  const StateId end = builder_.add_state(rule);
  builder_.set_end(end);
  try {
    builder_.add_dfa(builder_.entry(rule), number_texts(a.least, a.most, integer), end, Escapes::kNone);
  } catch (const Error& e) { refuse(a.path, e.what()); }
  if (!bounded) shared = rule;
  return rule;
}

RuleId SchemaCompiler::plain_string() {
  if (plain_string_ >= 0) return plain_string_;
  plain_string_ = builder_.add_rule();
  const StateId end = builder_.add_state(plain_string_);
  builder_.set_end(end);
  const StateId body = builder_.add_text(builder_.entry(plain_string_), "\"");
  builder_.add_chars(body, all_chars(), body, Escapes::kAll);
  builder_.add_text_to(body, "\"", end);
  return plain_string_;
}

// Characters are counted, not unrolled: a limit of a thousand costs as little as one of ten.
RuleId SchemaCompiler::counted_string(std::int64_t min, std::int64_t max) {
  const RuleId rule = builder_.add_rule();
  builder_.set_limits(rule, min, max);
  const StateId end = builder_.add_state(rule);
  builder_.set_end(end);
  const StateId body = builder_.add_text(builder_.entry(rule), "\"");
  const StateId next = builder_.add_state(rule);
  builder_.add_empty(body, next, Count::kAdd);
  builder_.add_chars(next, all_chars(), body, Escapes::kAll);
  builder_.add_text_to(body, "\"", end, Count::kEnough);
  return rule;
}

RuleId SchemaCompiler::string_of(const Alternative& a) {
  const bool limited = a.min_length > 0 || a.max_length >= 0;
  if (a.texts.empty()) return limited ? counted_string(a.min_length, a.max_length) : plain_string();
  const RuleId rule = builder_.add_rule();
  const StateId end = builder_.add_state(rule);
  builder_.set_end(end);
  const StateId close = builder_.add_state(rule);
  builder_.add_dfa(builder_.add_text(builder_.entry(rule), "\""), reader_.text(a), close, Escapes::kAll);
  builder_.add_text_to(close, "\"", end);
  return rule;
}

// ---- arrays ----------------------------------------------------------------------------------------------------

// The prefix and the first item are states of their own; further items are counted.
RuleId SchemaCompiler::array_of(const Alternative& a) {
  const bool is_any = a.array_parts.empty() && a.min_items == 0 && a.max_items < 0;
  if (is_any && any_array_ >= 0) return any_array_;
  const RuleId rule = builder_.add_rule();
  if (is_any) any_array_ = rule;
  const StateId end = builder_.add_state(rule);
  builder_.set_end(end);
  const std::size_t prefix = reader_.n_prefix_items(a);
  const std::size_t unrolled = std::max<std::size_t>(prefix, 1);
  const auto n = [](std::size_t i) { return static_cast<std::int64_t>(i); };

  const auto add_close = [&](StateId from, Count count) {
    const StateId before = builder_.add_state(rule);
    builder_.add_call(from, space(), before, count);
    builder_.add_text_to(before, "]", end);
  };
  StateId at = builder_.add_text(builder_.entry(rule), "[");
  if (a.min_items == 0) add_close(at, Count::kFree);
  for (std::size_t i = 0; i < unrolled; ++i) {
    const std::optional<Conjunction> item = reader_.item(a, i);
    if (!item || (a.max_items >= 0 && n(i) >= a.max_items)) return rule;
    if (i > 0) at = builder_.add_text(at, ",");
    const StateId before = builder_.add_state(rule);
    builder_.add_call(at, space(), before);
    const StateId after = builder_.add_state(rule);
    builder_.add_call(before, value(*item), after);
    at = after;
    if (n(i) + 1 >= a.min_items && i + 1 < unrolled) add_close(at, Count::kFree);
  }
  builder_.set_limits(rule, std::max<std::int64_t>(0, a.min_items - n(unrolled)),
                      a.max_items < 0 ? -1 : a.max_items - n(unrolled));
  add_close(at, Count::kEnough);
  // After a prefix, items of which nothing is said come only where so many are wanted.
  const bool said = std::any_of(a.array_parts.begin(), a.array_parts.end(),
                                [](const JsonValue* p) { return p->find("items") != nullptr; });
  const std::optional<Conjunction> item = reader_.item(a, unrolled);
  if (!item || (prefix > 0 && !said && a.min_items <= n(prefix))) return rule;
  const StateId comma = builder_.add_state(rule);
  builder_.add_text_to(at, ",", comma, Count::kAdd);
  const StateId before = builder_.add_state(rule);
  builder_.add_call(comma, space(), before);
  builder_.add_call(before, value(*item), at);
  return rule;
}

// ---- objects ---------------------------------------------------------------------------------------------------

// minProperties and maxProperties hold where the properties themselves see to it.
void SchemaCompiler::check_count(const Alternative& a, const Members& m) const {
  const auto required = static_cast<std::int64_t>(
      std::count_if(m.properties.begin(), m.properties.end(), [](const auto& p) { return p.required; }));
  if (a.min_properties > required) {
    refuse(a.path + ".minProperties", std::to_string(a.min_properties), "no more than are required");
  }
  if (a.max_properties >= 0 && (m.additional || a.max_properties < static_cast<std::int64_t>(m.properties.size()))) {
    refuse(a.path + ".maxProperties", std::to_string(a.max_properties),
           "as many as there are properties, and \"additionalProperties\": false");
  }
}

RuleId SchemaCompiler::key_except(const Members& m) {
  if (m.properties.empty()) return plain_string();
  std::vector<std::string> names;
  for (const Members::Property& p : m.properties) names.push_back(p.name);
  const RuleId rule = builder_.add_rule();
  const StateId end = builder_.add_state(rule);
  builder_.set_end(end);
  const StateId close = builder_.add_state(rule);
  // Without \uXXXX, which could spell a declared name.
  builder_.add_dfa(builder_.add_text(builder_.entry(rule), "\""), text_except(names), close, Escapes::kNeeded);
  builder_.add_text_to(close, "\"", end);
  return rule;
}

// key[i]: a key of property i or later follows (or one that is not declared). after[i]: the value of a property before
// i is there. Optional ones are skipped by an empty edge.
RuleId SchemaCompiler::object_of(const Alternative& a) {
  const bool is_any = a.object_parts.empty() && a.required.empty() && a.min_properties == 0 && a.max_properties < 0;
  if (is_any && any_object_ >= 0) return any_object_;
  const RuleId rule = builder_.add_rule();
  if (is_any) any_object_ = rule;
  const Members m = reader_.members(a);
  check_count(a, m);
  if (!m.possible) return rule;
  const StateId end = builder_.add_state(rule);
  builder_.set_end(end);
  const StateId close = builder_.add_state(rule);
  builder_.add_text_to(close, "}", end);

  const std::size_t n = m.properties.size();
  std::vector<StateId> key(n + 1);
  std::vector<StateId> after(n + 1);
  for (std::size_t i = 0; i <= n; ++i) {
    key[i] = builder_.add_state(rule);
    after[i] = builder_.add_state(rule);
  }
  const auto add_member = [&](StateId colon, const Conjunction& schema, StateId to) {
    const StateId space_or_value = builder_.add_text(colon, ":");
    const StateId before = builder_.add_text(space_or_value, " ");
    builder_.add_empty(space_or_value, before);
    builder_.add_call(before, value(schema), to);
  };
  bool may_close = true;  // from i on nothing is required
  for (std::size_t i = n + 1; i-- > 0;) {
    if (i < n) {
      const Members::Property& p = m.properties[i];
      add_member(builder_.add_text(key[i], quoted(p.name)), p.schema, after[i + 1]);
      if (!p.required) builder_.add_empty(key[i], key[i + 1]);
      may_close = may_close && !p.required;
    } else if (m.additional) {
      const StateId colon = builder_.add_state(rule);
      builder_.add_call(key[n], key_except(m), colon);
      add_member(colon, *m.additional, after[n]);
    }
    const StateId comma = builder_.add_text(after[i], ",");
    builder_.add_call(comma, space(), key[i]);
    if (may_close) builder_.add_call(after[i], space(), close);
  }
  const StateId open = builder_.add_text(builder_.entry(rule), "{");
  builder_.add_call(open, space(), key[0]);
  if (may_close) builder_.add_call(open, space(), close);
  return rule;
}

// ---- arguments of calls ----------------------------------------------------------------------------------------

RuleId SchemaCompiler::argument(const Conjunction& schemas) {
  Conjunction key = schemas;
  std::sort(key.begin(), key.end());
  if (const auto known = arguments_.find(key); known != arguments_.end()) return known->second;
  const RuleId rule = builder_.add_rule();
  arguments_.emplace(std::move(key), rule);
  const StateId from = builder_.entry(rule);
  const StateId to = builder_.add_state(rule);
  builder_.set_end(to);
  const std::vector<Alternative> all = reader_.alternatives(schemas);
  unsigned types = 0;
  for (const Alternative& a : all) types |= a.types;
  const bool is_any = std::any_of(all.begin(), all.end(), [](const Alternative& a) { return a.is_any(); });
  if (is_any) {
    builder_.add_dfa(from, text_without(kValueEnders), to, Escapes::kNone);
    return rule;
  }
  // Where every type may be, the reader takes what it can as JSON: a string in its quotes too.
  const bool all_json = types == kAllTypes;
  for (Alternative a : all) {
    if ((a.types & kString) == 0 || all_json) {
      add_alternative(from, a, to);
      continue;
    }
    add_raw(from, a, types, to);
    a.types &= ~static_cast<unsigned>(kString);
    if (a.values) std::erase_if(*a.values, [](const JsonValue& v) { return v.is(Kind::kString); });
    if (a.types != 0) add_alternative(from, a, to);
  }
  return rule;
}

// A bare text. Among other types it must not read as one of them, or it would be taken for it.
void SchemaCompiler::add_raw(StateId from, const Alternative& a, unsigned all_types, StateId to) {
  const CharDfa plain = text_without(kValueEnders);
  if (a.values) {
    std::vector<std::string> texts;
    for (const JsonValue& v : *a.values) {
      if (!v.is(Kind::kString) || !plain.matches(v.text)) continue;
      const std::optional<JsonValue> other = all_types == kString ? std::nullopt : try_parse_json_value(v.text);
      if (other && (type_of(*other) & all_types) != 0) continue;
      if (v.text.empty()) {
        builder_.add_empty(from, to);
      } else {
        texts.push_back(v.text);
      }
    }
    return builder_.add_texts(from, texts, to);
  }
  try {
    CharDfa dfa = intersection(plain, reader_.text(a));
    if ((all_types & (kInteger | kNumber | kArray | kObject)) != 0) {
      const CharSet others =
          normalised({{0, ' '}, {'(', '('}, {'-', '-'}, {'0', '9'}, {'[', '['}, {'{', '{'}, {0x7F, 0xA0}});
      dfa = intersection(dfa, text_starting(complement(others)));
    }
    builder_.add_dfa(from, dfa, to, Escapes::kNone);
  } catch (const Error& e) { refuse(a.path, e.what()); }
}

}  // namespace glint::grammar
