#include "text/tool_schema.hpp"

#include <algorithm>
#include <optional>

#include "base/error.hpp"
#include "base/json_pointer.hpp"
#include "text/python_text.hpp"

namespace glint {

namespace {

using Kind = JsonValue::Kind;

// Together they bound the work on a hostile schema: $ref may run in circles, anyOf may fan out.
constexpr int kMaxSchemaDepth = 32;
constexpr int kMaxSchemaVisits = 10000;

JsonTypes type_named(std::string_view name) {
  if (name == "string") return kTypeString;
  if (name == "number") return kTypeNumber | kTypeInteger;
  if (name == "integer") return kTypeInteger;
  if (name == "boolean") return kTypeBoolean;
  if (name == "null") return kTypeNull;
  if (name == "array") return kTypeArray;
  if (name == "object") return kTypeObject;
  return kAnyType;
}

JsonTypes type_of(const JsonValue& v) {
  switch (v.kind) {
    case Kind::kNull:
      return kTypeNull;
    case Kind::kBool:
      return kTypeBoolean;
    case Kind::kNumber:
      return v.is_integer() ? kTypeInteger : kTypeNumber;
    case Kind::kString:
      return kTypeString;
    case Kind::kArray:
      return kTypeArray;
    case Kind::kObject:
      return kTypeObject;
  }
  return kAnyType;
}

class Resolver {
 public:
  explicit Resolver(const JsonValue& root) : root_(root) {}

  JsonTypes types(const JsonValue& schema, int depth) {
    if (!schema.is(Kind::kObject) || depth > kMaxSchemaDepth || ++visits_ > kMaxSchemaVisits) return kAnyType;
    JsonTypes out = kAnyType;  // every keyword narrows it
    const auto narrow = [&](JsonTypes t) { out &= t; };
    if (const JsonValue* ref = schema.find("$ref"); ref && ref->is(Kind::kString)) {
      if (const JsonValue* target = follow_reference(ref->text, root_)) narrow(types(*target, depth + 1));
    }
    if (const JsonValue* type = schema.find("type")) narrow(declared(*type));
    if (const JsonValue* value = schema.find("const")) narrow(type_of(*value));
    if (const JsonValue* values = list(schema, "enum")) {
      JsonTypes any = 0;
      for (const JsonValue& v : values->items) any |= type_of(v);
      narrow(any);
    }
    for (const char* keyword : {"anyOf", "oneOf"}) {
      if (const JsonValue* branches = list(schema, keyword)) {
        JsonTypes any = 0;
        for (const JsonValue& branch : branches->items) any |= types(branch, depth + 1);
        narrow(any);
      }
    }
    if (const JsonValue* parts = list(schema, "allOf")) {
      for (const JsonValue& part : parts->items) narrow(types(part, depth + 1));
    }
    if (out == kAnyType && schema.find("properties")) out = kTypeObject;
    if (out == kAnyType && schema.find("items")) out = kTypeArray;
    if (const JsonValue* nullable = schema.find("nullable"); nullable && nullable->boolean) out |= kTypeNull;
    return out == 0 ? kAnyType : out;  // a schema that contradicts itself says nothing
  }

  // The schema of one property, also where `schema` reaches its properties through $ref, allOf, anyOf or oneOf.
  const JsonValue* property(const JsonValue& schema, std::string_view name, int depth) {
    if (!schema.is(Kind::kObject) || depth > kMaxSchemaDepth || ++visits_ > kMaxSchemaVisits) return nullptr;
    if (const JsonValue* properties = schema.find("properties")) {
      if (const JsonValue* found = properties->find(name)) return found;
    }
    if (const JsonValue* ref = schema.find("$ref"); ref && ref->is(Kind::kString)) {
      const JsonValue* target = follow_reference(ref->text, root_);
      if (const JsonValue* found = target ? property(*target, name, depth + 1) : nullptr) return found;
    }
    for (const char* keyword : {"allOf", "anyOf", "oneOf"}) {
      if (const JsonValue* branches = list(schema, keyword)) {
        for (const JsonValue& branch : branches->items) {
          if (const JsonValue* found = property(branch, name, depth + 1)) return found;
        }
      }
    }
    return nullptr;
  }

 private:
  static const JsonValue* list(const JsonValue& schema, const char* keyword) {
    const JsonValue* v = schema.find(keyword);
    return v && v->is(Kind::kArray) && !v->items.empty() ? v : nullptr;
  }

  static JsonTypes declared(const JsonValue& type) {
    if (type.is(Kind::kString)) return type_named(type.text);
    JsonTypes any = 0;
    for (const JsonValue& t : type.items) any |= t.is(Kind::kString) ? type_named(t.text) : kAnyType;
    return any == 0 ? kAnyType : any;
  }

  const JsonValue& root_;
  int visits_ = 0;
};

}  // namespace

JsonTypes schema_types(const JsonValue& schema, const JsonValue& root) { return Resolver(root).types(schema, 0); }

JsonValue typed_argument(std::string_view text, JsonTypes types) {
  if (types == kTypeString) return std::string(text);
  std::optional<JsonValue> json = try_parse_json_value(text);
  if (types == kAnyType || !(types & kTypeString)) {
    if (!json) json = parse_python_literal(text);
    return json ? std::move(*json) : std::string(text);
  }
  if (!json) {
    json = parse_python_literal(text);
    if (json && !json->is(Kind::kArray) && !json->is(Kind::kObject)) json.reset();
  }
  const bool fits = json && (type_of(*json) & types & ~kTypeString);
  return fits ? std::move(*json) : std::string(text);
}

ToolSchemas::ToolSchemas(const std::vector<JsonValue>& tools) {
  for (std::size_t i = 0; i < tools.size(); ++i) {
    const JsonValue* tool = &tools[i];
    if (const JsonValue* function = tool->find("function"); function && function->is(Kind::kObject)) tool = function;
    const JsonValue* name = tool->find("name");
    if (!name || !name->is(Kind::kString) || name->text.empty()) {
      throw Error({.what = "tools[" + std::to_string(i) + "]",
                   .found = std::string(json_kind_name(tools[i].kind)) + " without a name",
                   .expected = R"({"type": "function", "function": {"name": …, "parameters": …}})"});
    }
    const JsonValue* parameters = tool->find("parameters");
    if (!parameters) parameters = tool->find("input_schema");
    names_.push_back(name->text);
    parameters_.push_back(parameters ? *parameters : JsonValue::make_object());
  }
}

bool ToolSchemas::has(std::string_view name) const {
  return std::find(names_.begin(), names_.end(), name) != names_.end();
}

std::string_view ToolSchemas::longest_prefix(std::string_view text) const {
  std::string_view best;
  for (const std::string& name : names_) {
    if (name.size() > best.size() && text.starts_with(name)) best = name;
  }
  return best;
}

JsonTypes ToolSchemas::parameter_types(std::string_view function, std::string_view parameter) const {
  const auto it = std::find(names_.begin(), names_.end(), function);
  if (it == names_.end()) return kAnyType;
  const JsonValue& root = parameters_[static_cast<std::size_t>(it - names_.begin())];
  Resolver resolver(root);
  if (const JsonValue* schema = resolver.property(root, parameter, 0)) return schema_types(*schema, root);
  const JsonValue* additional = root.find("additionalProperties");
  return additional ? schema_types(*additional, root) : kAnyType;
}

}  // namespace glint
