#pragma once
// Reads JSON schemas: takes $ref, allOf, anyOf and oneOf apart until what is left are alternatives without them. What
// could not be promised is refused, by an Error that names the keyword's place.

#include <cstdint>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/json_value.hpp"
#include "grammar/char_dfa.hpp"
#include "grammar/number_range.hpp"

namespace glint::grammar {

enum Types : unsigned {
  kNull = 1,
  kBoolean = 2,
  kInteger = 4,
  kNumber = 8,  // also what is no integer; "number" is kNumber | kInteger
  kString = 16,
  kArray = 32,
  kObject = 64,
  kAllTypes = 127
};

// Schemas that hold at the same time; none: anything goes.
using Conjunction = std::vector<const JsonValue*>;

// One alternative: every keyword in it holds, as far as it concerns the type.
struct Alternative {
  unsigned types = kAllTypes;
  std::optional<std::vector<JsonValue>> values;  // enum and const
  std::int64_t min_length = 0, max_length = -1;  // < 0: no limit
  std::vector<CharDfa> texts;                    // pattern and format
  std::optional<Bound> least, most;
  Conjunction object_parts;  // schemas with properties or additionalProperties
  std::vector<std::string> required;
  std::int64_t min_properties = 0, max_properties = -1;
  Conjunction array_parts;  // schemas with items or prefixItems
  std::int64_t min_items = 0, max_items = -1;
  std::string path;  // of the schema that began it, for messages

  bool is_any() const;
};

// The properties of an alternative that is an object.
struct Members {
  struct Property {
    std::string name;
    Conjunction schema;
    bool required = false;
  };
  std::vector<Property> properties;       // in order of declaration
  std::optional<Conjunction> additional;  // of other names; none: there may be no others
  bool possible = true;                   // false: a required name is forbidden
};

class SchemaReader {
 public:
  // `where` is the schema's place in the request, for messages. The root must outlive this.
  SchemaReader(const JsonValue& root, std::string where);

  std::vector<Alternative> alternatives(const Conjunction& schemas);
  Members members(const Alternative& a);
  // The schemas of item i; nullopt: there may be none.
  std::optional<Conjunction> item(const Alternative& a, std::size_t i);
  std::size_t n_prefix_items(const Alternative& a) const;
  // What a string may be, before it is written as JSON.
  CharDfa text(const Alternative& a) const;

  std::string path(const Conjunction& schemas) const;

 private:
  using Alternatives = std::vector<Alternative>;
  void apply(const JsonValue& schema, const std::string& path, Alternatives& all, int depth);
  void apply_keyword(const std::string& name, const JsonValue& value, const JsonValue& schema, const std::string& path,
                     Alternatives& all, int depth);
  bool apply_text(const std::string& name, const JsonValue& value, const std::string& path, Alternatives& all);
  bool apply_number(const std::string& name, const JsonValue& value, const JsonValue& schema, const std::string& path,
                    Alternatives& all);
  bool apply_container(const std::string& name, const JsonValue& value, const JsonValue& schema,
                       const std::string& path, Alternatives& all);
  void apply_branches(const JsonValue& list, const std::string& path, bool exclusive, Alternatives& all, int depth);
  void apply_format(const std::string& format, const std::string& path, Alternatives& all);
  void require_disjoint(const std::vector<Alternatives>& branches, const std::string& path);
  bool disjoint(const Alternative& a, const Alternative& b, int depth);
  bool disjoint_objects(const Alternative& a, const Alternative& b, int depth);
  void settle(Alternatives& all);
  bool fits(const JsonValue& value, const Alternative& a) const;
  const JsonValue& follow(const JsonValue& ref, const std::string& path) const;
  const JsonValue* child(const JsonValue& schema, const JsonValue& value, const std::string& name);

  const JsonValue& root_;
  std::unordered_map<const JsonValue*, std::string> paths_;
  int visits_ = 0;
};

// Refuses a schema: "PATH: found WHAT, expected …".
[[noreturn]] void refuse(const std::string& path, const std::string& found, const std::string& expected = "");

unsigned type_of(const JsonValue& value);
// A value as a message shows it.
std::string shown_json(const JsonValue& value);

}  // namespace glint::grammar
