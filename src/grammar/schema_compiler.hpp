#pragma once
// JSON schema → rules of a grammar.

#include <map>
#include <string>
#include <string_view>

#include "grammar/grammar.hpp"
#include "grammar/schema.hpp"

namespace glint::grammar {

class SchemaCompiler {
 public:
  // Adds to `builder`; both must outlive this.
  SchemaCompiler(GrammarBuilder& builder, const JsonValue& root, std::string where);

  // A JSON value of the schema. Objects have their properties in the order of declaration. Between tokens there may be
  // a space or a line break with its indentation, no more.
  RuleId value(const Conjunction& schemas);
  RuleId root_value() { return value({&root_}); }

  // The same as the argument of a call in the model's format, up to its closing tag: texts bare, the rest JSON.
  RuleId argument(const Conjunction& schemas);

  // Optional white space; at most one.
  RuleId space();

  SchemaReader& reader() { return reader_; }
  const JsonValue& root() const { return root_; }

 private:
  void add_alternative(StateId from, const Alternative& a, StateId to);
  void add_values(StateId from, const Alternative& a, StateId to);
  void add_raw(StateId from, const Alternative& a, unsigned all_types, StateId to);
  RuleId string_of(const Alternative& a);
  RuleId object_of(const Alternative& a);
  RuleId array_of(const Alternative& a);
  RuleId number_of(const Alternative& a, bool integer);
  RuleId plain_string();
  RuleId counted_string(std::int64_t min, std::int64_t max);
  void check_count(const Alternative& a, const Members& m) const;
  RuleId key_except(const Members& m);

  GrammarBuilder& builder_;
  const JsonValue& root_;
  SchemaReader reader_;
  std::map<Conjunction, RuleId> values_;
  std::map<Conjunction, RuleId> arguments_;
  RuleId space_ = -1, plain_string_ = -1, any_array_ = -1, any_object_ = -1;
  RuleId any_number_[2] = {-1, -1};
};

// The tags that would end an argument.
inline constexpr std::string_view kValueEnders[] = {"</arg_value>", "</tool_call>"};

}  // namespace glint::grammar
