#include "grammar/schema.hpp"

#include <algorithm>
#include <string_view>

#include "base/error.hpp"
#include "grammar/regex.hpp"

namespace glint::grammar {
namespace {

using Kind = JsonValue::Kind;

// Bounds on the work for a hostile schema.
constexpr std::size_t kMaxAlternatives = 256;
constexpr int kMaxDepth = 64;
constexpr int kMaxVisits = 200000;
constexpr std::int64_t kMaxCount = 1 << 20;

constexpr std::string_view kAnnotations[] = {
    "title",       "description", "default",  "examples",      "example",          "$schema",
    "$id",         "id",          "$comment", "$defs",         "definitions",      "deprecated",
    "readOnly",    "writeOnly",   "$anchor",  "discriminator", "contentMediaType", "contentEncoding",
    "externalDocs"};

unsigned type_named(const std::string& name, const std::string& path) {
  if (name == "null") return kNull;
  if (name == "boolean") return kBoolean;
  if (name == "integer") return kInteger;
  if (name == "number") return kNumber | kInteger;
  if (name == "string") return kString;
  if (name == "array") return kArray;
  if (name == "object") return kObject;
  refuse(path, '"' + name + '"', "string, number, integer, boolean, null, array or object");
}

unsigned types_of(const JsonValue& type, const std::string& path) {
  if (type.is(Kind::kString)) return type_named(type.text, path);
  if (!type.is(Kind::kArray) || type.items.empty()) refuse(path, shown_json(type), "a type or an array of types");
  unsigned all = 0;
  for (const JsonValue& t : type.items) {
    if (!t.is(Kind::kString)) refuse(path, shown_json(t), "the name of a type");
    all |= type_named(t.text, path);
  }
  return all;
}

std::int64_t count_of(const JsonValue& v, const std::string& path) {
  const std::optional<Decimal> d = v.is(Kind::kNumber) ? to_decimal(v.text) : std::nullopt;
  if (!d || d->negative || !d->fraction.empty() || d->whole.size() > 9) refuse(path, shown_json(v), "a count");
  const std::int64_t n = std::stoll(d->whole);
  if (n > kMaxCount) refuse(path, shown_json(v), "at most " + std::to_string(kMaxCount));
  return n;
}

bool equal(const JsonValue& a, const JsonValue& b) {
  if (a.kind != b.kind) return false;
  switch (a.kind) {
    case Kind::kNumber:
      return a.text == b.text || to_decimal(a.text) == to_decimal(b.text);
    case Kind::kArray:
      return std::equal(a.items.begin(), a.items.end(), b.items.begin(), b.items.end(), equal);
    case Kind::kObject:
      return a.items.size() == b.items.size() && std::all_of(a.keys.begin(), a.keys.end(), [&](const std::string& key) {
               const JsonValue* other = b.find(key);
               return other != nullptr && equal(*a.find(key), *other);
             });
    default:
      return a == b;
  }
}

void at_most(std::int64_t& limit, std::int64_t n) { limit = limit < 0 ? n : std::min(limit, n); }

// The tighter of two bounds; sign +1 for lower ones.
void tighten(std::optional<Bound>& bound, const Bound& other, int sign) {
  const int c = bound ? compare(other.value, bound->value) * sign : 1;
  if (c > 0) bound = other;
  if (c == 0) bound->exclusive = bound->exclusive || other.exclusive;
}

bool in_bounds(const Decimal& d, const Alternative& a) {
  const int low = a.least ? compare(d, a.least->value) : 1;
  const int high = a.most ? compare(d, a.most->value) : -1;
  return (low > 0 || (low == 0 && !a.least->exclusive)) && (high < 0 || (high == 0 && !a.most->exclusive));
}

// The text forms that need no more than a pattern.
struct Format {
  std::string_view name;
  std::string_view pattern;
};
#define GLINT_DATE                                                                                        \
  "[1-9][0-9]{3}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]" \
  "|1[0-9]|2[0-8]))"
#define GLINT_TIME R"(([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,6})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9]))"
constexpr Format kFormats[] = {
    {"date", "^" GLINT_DATE "$"},
    {"time", "^" GLINT_TIME "$"},
    {"date-time", "^" GLINT_DATE "T" GLINT_TIME "$"},
    {"uuid", "^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$"},
    {"email",
     R"(^[A-Za-z0-9_+-]{1,24}(\.[A-Za-z0-9_+-]{1,16}){0,2}@([A-Za-z0-9]([A-Za-z0-9-]{0,20}[A-Za-z0-9])?\.){1,3}[A-Za-z]{2,8}$)"},
    {"ipv4", R"(^((25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])\.){3}(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])$)"},
    {"uri",
     R"(^[A-Za-z][A-Za-z0-9+.-]*:(//[A-Za-z0-9._~-]+(:[0-9]{1,4})?)?(/[A-Za-z0-9._~!$&'()*+,;=:@-]*)*(\?[A-Za-z0-9._~!$&'()*+,;=:@/?-]*)?(#[A-Za-z0-9._~-]*)?$)"},
};
#undef GLINT_DATE
#undef GLINT_TIME

}  // namespace

std::string shown_json(const JsonValue& v) {
  std::string text = dump_json(v, NumberStyle::kVerbatim);
  return text.size() <= 60 ? text : std::string(json_kind_name(v.kind));
}

void refuse(const std::string& path, const std::string& found, const std::string& expected) {
  throw Error({.what = path, .found = found, .expected = expected});
}

unsigned type_of(const JsonValue& value) {
  switch (value.kind) {
    case Kind::kNull:
      return kNull;
    case Kind::kBool:
      return kBoolean;
    case Kind::kNumber: {
      const std::optional<Decimal> d = to_decimal(value.text);
      return d && d->fraction.empty() ? kInteger : kNumber;
    }
    case Kind::kString:
      return kString;
    case Kind::kArray:
      return kArray;
    case Kind::kObject:
      return kObject;
  }
  return 0;
}

bool Alternative::is_any() const {
  return types == kAllTypes && !values && min_length == 0 && max_length < 0 && texts.empty() && !least && !most &&
         object_parts.empty() && required.empty() && min_properties == 0 && max_properties < 0 && array_parts.empty() &&
         min_items == 0 && max_items < 0;
}

SchemaReader::SchemaReader(const JsonValue& root, std::string where) : root_(root) {
  paths_.emplace(&root, std::move(where));
}

std::string SchemaReader::path(const Conjunction& schemas) const {
  const auto found = schemas.empty() ? paths_.end() : paths_.find(schemas[0]);
  return found == paths_.end() ? paths_.at(&root_) : found->second;
}

const JsonValue* SchemaReader::child(const JsonValue& schema, const JsonValue& value, const std::string& name) {
  paths_.emplace(&value, paths_[&schema] + "." + name);
  return &value;
}

std::vector<Alternative> SchemaReader::alternatives(const Conjunction& schemas) {
  Alternatives all(1);
  all[0].path = path(schemas);
  for (const JsonValue* schema : schemas) apply(*schema, paths_[schema], all, 0);
  settle(all);
  return all;
}

void SchemaReader::apply(const JsonValue& schema, const std::string& path, Alternatives& all, int depth) {
  if (++visits_ > kMaxVisits) refuse(path, "a schema with too many branches", "a smaller one");
  if (depth > kMaxDepth) refuse(path, "$ref, allOf, anyOf or oneOf in a circle", "something in between that ends");
  if (schema.is(Kind::kBool)) {
    if (!schema.boolean) all.clear();
    return;
  }
  if (!schema.is(Kind::kObject)) refuse(path, shown_json(schema), "a schema: an object, true or false");
  paths_.emplace(&schema, path);
  for (std::size_t i = 0; i < schema.keys.size(); ++i) {
    apply_keyword(schema.keys[i], schema.items[i], schema, path, all, depth);
  }
}

void SchemaReader::apply_keyword(const std::string& name, const JsonValue& value, const JsonValue& schema,
                                 const std::string& path, Alternatives& all, int depth) {
  const std::string at = path + "." + name;
  if (name.starts_with("x-") ||
      std::find(std::begin(kAnnotations), std::end(kAnnotations), name) != std::end(kAnnotations)) {
    return;
  }
  if (name == "type") {
    unsigned types = types_of(value, at);
    if (const JsonValue* n = schema.find("nullable"); n != nullptr && n->boolean) types |= kNull;
    for (Alternative& a : all) a.types &= types;
  } else if (name == "nullable") {
    if (!value.is(Kind::kBool)) refuse(at, shown_json(value), "true or false");
    if (value.boolean && schema.find("type") == nullptr) refuse(at, "true without a type", "\"type\" beside it");
  } else if (name == "enum" || name == "const") {
    if (name == "enum" && (!value.is(Kind::kArray) || value.items.empty()))
      refuse(at, shown_json(value), "an array of values");
    const std::vector<JsonValue> values = name == "enum" ? value.items : std::vector<JsonValue>{value};
    for (Alternative& a : all) {
      std::vector<JsonValue> both;
      for (const JsonValue& v : values) {
        const auto same = [&](const JsonValue& other) { return equal(v, other); };
        if (!a.values || std::any_of(a.values->begin(), a.values->end(), same)) both.push_back(v);
      }
      a.values = std::move(both);
    }
  } else if (name == "$ref") {
    const JsonValue& target = follow(value, at);
    const auto known = paths_.find(&target);
    apply(target, known != paths_.end() ? known->second : at + "(" + value.text + ")", all, depth + 1);
  } else if (name == "allOf") {
    if (!value.is(Kind::kArray) || value.items.empty()) refuse(at, shown_json(value), "an array of schemas");
    for (std::size_t i = 0; i < value.items.size(); ++i) {
      apply(value.items[i], at + "[" + std::to_string(i) + "]", all, depth + 1);
    }
  } else if (name == "anyOf" || name == "oneOf") {
    apply_branches(value, at, name == "oneOf", all, depth);
  } else if (!apply_text(name, value, at, all) && !apply_number(name, value, schema, at, all) &&
             !apply_container(name, value, schema, at, all)) {
    refuse(at, "a keyword that constrained decoding does not support");
  }
}

bool SchemaReader::apply_text(const std::string& name, const JsonValue& value, const std::string& path,
                              Alternatives& all) {
  if (name == "minLength" || name == "maxLength") {
    const std::int64_t n = count_of(value, path);
    for (Alternative& a : all) {
      if (name == "minLength") {
        a.min_length = std::max(a.min_length, n);
      } else {
        at_most(a.max_length, n);
      }
    }
    return true;
  }
  if (name != "pattern" && name != "format") return false;
  if (!value.is(Kind::kString)) refuse(path, shown_json(value), "a text");
  if (name == "format") return apply_format(value.text, path, all), true;
  try {
    const CharDfa dfa = compile_regex(value.text);
    for (Alternative& a : all) a.texts.push_back(dfa);
  } catch (const Error& e) { refuse(path, e.what(), "a regular expression without it"); }
  return true;
}

void SchemaReader::apply_format(const std::string& format, const std::string& path, Alternatives& all) {
  for (const Format& f : kFormats) {
    if (f.name != format) continue;
    const CharDfa dfa = compile_regex(f.pattern);
    for (Alternative& a : all) a.texts.push_back(dfa);
    return;
  }
  const auto within = [&](const char* least, const char* most) {
    for (Alternative& a : all) {
      tighten(a.least, {.value = *to_decimal(least)}, 1);
      tighten(a.most, {.value = *to_decimal(most)}, -1);
    }
  };
  if (format == "int32") return within("-2147483648", "2147483647");
  if (format == "int64") return within("-9223372036854775808", "9223372036854775807");
  if (format == "float" || format == "double") return;  // what every number is
  std::string known;
  for (const Format& f : kFormats) known += std::string(f.name) + ", ";
  refuse(path, '"' + format + '"', known + "int32, int64, float or double");
}

bool SchemaReader::apply_number(const std::string& name, const JsonValue& value, const JsonValue& schema,
                                const std::string& path, Alternatives& all) {
  const bool lower = name == "minimum" || name == "exclusiveMinimum";
  const bool upper = name == "maximum" || name == "exclusiveMaximum";
  if (name == "multipleOf") {
    // 1 says integer, and any integer is a multiple of it.
    if (!value.is(Kind::kNumber) || to_decimal(value.text) != to_decimal("1")) {
      refuse(path, shown_json(value), "nothing: constrained decoding does not support it");
    }
    for (Alternative& a : all) a.types &= ~static_cast<unsigned>(kNumber);
    return true;
  }
  if (!lower && !upper) return false;
  bool exclusive = name.starts_with("exclusive");
  if (exclusive && value.is(Kind::kBool)) {  // draft 4: it speaks of minimum or maximum beside it
    if (schema.find(lower ? "minimum" : "maximum") == nullptr) refuse(path, shown_json(value), "a number");
    return true;
  }
  if (!exclusive) {
    const JsonValue* flag = schema.find(lower ? "exclusiveMinimum" : "exclusiveMaximum");
    exclusive = flag != nullptr && flag->is(Kind::kBool) && flag->boolean;
  }
  const std::optional<Decimal> d = value.is(Kind::kNumber) ? to_decimal(value.text) : std::nullopt;
  if (!d || d->whole.size() > 30 || d->fraction.size() > 30)
    refuse(path, shown_json(value), "a number of at most 30 digits");
  for (Alternative& a : all) tighten(lower ? a.least : a.most, {.value = *d, .exclusive = exclusive}, lower ? 1 : -1);
  return true;
}

bool SchemaReader::apply_container(const std::string& name, const JsonValue& value, const JsonValue& schema,
                                   const std::string& path, Alternatives& all) {
  const auto add_part = [&](Conjunction Alternative::*parts) {
    for (Alternative& a : all) {
      if (std::find((a.*parts).begin(), (a.*parts).end(), &schema) == (a.*parts).end()) (a.*parts).push_back(&schema);
    }
  };
  const auto limit = [&](std::int64_t Alternative::*least, std::int64_t Alternative::*most) {
    const std::int64_t n = count_of(value, path);
    for (Alternative& a : all) {
      if (least != nullptr) a.*least = std::max(a.*least, n);
      if (most != nullptr) at_most(a.*most, n);
    }
  };
  if (name == "properties" || name == "additionalProperties") {
    const bool fine = value.is(Kind::kObject) || (name == "additionalProperties" && value.is(Kind::kBool));
    if (!fine) refuse(path, shown_json(value), name == "properties" ? "an object of schemas" : "a schema");
    add_part(&Alternative::object_parts);
  } else if (name == "required") {
    if (!value.is(Kind::kArray)) refuse(path, shown_json(value), "an array of names");
    for (const JsonValue& v : value.items) {
      if (!v.is(Kind::kString)) refuse(path, shown_json(v), "a name");
      for (Alternative& a : all) {
        if (std::find(a.required.begin(), a.required.end(), v.text) == a.required.end()) a.required.push_back(v.text);
      }
    }
  } else if (name == "items" || name == "prefixItems") {
    if (name == "items" && value.is(Kind::kArray))
      refuse(path, "an array", "a schema (the older form is prefixItems now)");
    if (name == "prefixItems" && !value.is(Kind::kArray)) refuse(path, shown_json(value), "an array of schemas");
    add_part(&Alternative::array_parts);
  } else if (name == "minItems") {
    limit(&Alternative::min_items, nullptr);
  } else if (name == "maxItems") {
    limit(nullptr, &Alternative::max_items);
  } else if (name == "minProperties") {
    limit(&Alternative::min_properties, nullptr);
  } else if (name == "maxProperties") {
    limit(nullptr, &Alternative::max_properties);
  } else if (name == "uniqueItems" || name == "unevaluatedProperties" || name == "unevaluatedItems") {
    // Without effect where it says what holds anyway.
    return value.is(Kind::kBool) && value.boolean == (name != "uniqueItems");
  } else if (name == "patternProperties" || name == "dependentRequired" || name == "dependentSchemas") {
    return value.is(Kind::kObject) && value.items.empty();
  } else {
    return false;
  }
  return true;
}

// ---- branches --------------------------------------------------------------------------------------------------

void SchemaReader::apply_branches(const JsonValue& list, const std::string& path, bool exclusive, Alternatives& all,
                                  int depth) {
  if (!list.is(Kind::kArray) || list.items.empty()) refuse(path, shown_json(list), "an array of schemas");
  Alternatives out;
  std::vector<Alternatives> branches;
  for (std::size_t i = 0; i < list.items.size(); ++i) {
    const std::string at = path + "[" + std::to_string(i) + "]";
    Alternatives branch = all;
    apply(list.items[i], at, branch, depth + 1);
    if (exclusive) {
      Alternatives settled = branch;
      settle(settled);
      branches.push_back(std::move(settled));
    }
    out.insert(out.end(), std::make_move_iterator(branch.begin()), std::make_move_iterator(branch.end()));
    if (out.size() > kMaxAlternatives) {
      refuse(path, "more than " + std::to_string(kMaxAlternatives) + " alternatives", "fewer");
    }
  }
  if (exclusive) require_disjoint(branches, path);
  all = std::move(out);
}

// oneOf demands that no other branch fits, which a grammar keeps only where no two can.
void SchemaReader::require_disjoint(const std::vector<Alternatives>& branches, const std::string& path) {
  for (std::size_t i = 0; i < branches.size(); ++i) {
    for (std::size_t k = i + 1; k < branches.size(); ++k) {
      for (const Alternative& a : branches[i]) {
        for (const Alternative& b : branches[k]) {
          if (disjoint(a, b, 0)) continue;
          refuse(path, "branches " + std::to_string(i) + " and " + std::to_string(k) + ", which may both hold",
                 "anyOf, or branches that exclude each other");
        }
      }
    }
  }
}

bool SchemaReader::disjoint(const Alternative& a, const Alternative& b, int depth) {
  const unsigned both = a.types & b.types;
  if (both == 0) return true;
  if (depth > 4) return false;
  for (const auto& pair : {std::pair(&a, &b), std::pair(&b, &a)}) {
    const Alternative* listed = pair.first;
    const Alternative* other = pair.second;
    if (!listed->values) continue;
    const bool simple = std::all_of(listed->values->begin(), listed->values->end(),
                                    [](const JsonValue& v) { return !v.is(Kind::kArray) && !v.is(Kind::kObject); });
    if (!simple) continue;
    const bool none = std::none_of(listed->values->begin(), listed->values->end(), [&](const JsonValue& v) {
      if (!fits(v, *other)) return false;
      return !other->values ||
             std::any_of(other->values->begin(), other->values->end(), [&](const JsonValue& w) { return equal(v, w); });
    });
    if (none) return true;
  }
  if ((both & (kNull | kBoolean | kArray)) != 0) return false;
  if ((both & kString) != 0 && !intersection(text(a), text(b)).empty()) return false;
  if ((both & (kInteger | kNumber)) != 0) {
    std::optional<Bound> least = a.least;
    std::optional<Bound> most = a.most;
    if (b.least) tighten(least, *b.least, 1);
    if (b.most) tighten(most, *b.most, -1);
    if (!number_texts(least, most, (both & kNumber) == 0).empty()) return false;
  }
  return (both & kObject) == 0 || disjoint_objects(a, b, depth);
}

bool SchemaReader::disjoint_objects(const Alternative& a, const Alternative& b, int depth) {
  const Members of_a = members(a);
  const Members of_b = members(b);
  const auto closed = [](const Alternative& x) {
    return std::any_of(x.object_parts.begin(), x.object_parts.end(), [](const JsonValue* part) {
      const JsonValue* more = part->find("additionalProperties");
      return more != nullptr && more->is(Kind::kBool) && !more->boolean;
    });
  };
  for (const auto& [needs, other, other_closed] :
       {std::tuple(&of_a, &of_b, closed(b)), std::tuple(&of_b, &of_a, closed(a))}) {
    for (const Members::Property& p : needs->properties) {
      if (!p.required) continue;
      const auto same = std::find_if(other->properties.begin(), other->properties.end(),
                                     [&](const Members::Property& q) { return q.name == p.name; });
      if (same == other->properties.end()) {
        if (other_closed) return true;
        continue;
      }
      // Where the name is there it has a value of each, and none is of both.
      const Alternatives x = alternatives(p.schema);
      const Alternatives y = alternatives(same->schema);
      const bool apart = std::all_of(x.begin(), x.end(), [&](const Alternative& l) {
        return std::all_of(y.begin(), y.end(), [&](const Alternative& r) { return disjoint(l, r, depth + 1); });
      });
      if (apart) return true;
    }
  }
  return false;
}

// ---- what is left ----------------------------------------------------------------------------------------------

// Drops what nothing fits. Keywords of one type alone say, where no type is given, that it is that type: a narrower
// promise than the schema's, never a wider one.
void SchemaReader::settle(Alternatives& all) {
  std::erase_if(all, [this](Alternative& a) {
    if (a.types == kAllTypes && !a.values) {
      unsigned types = 0;
      if (!a.object_parts.empty() || !a.required.empty() || a.min_properties > 0 || a.max_properties >= 0)
        types |= kObject;
      if (!a.array_parts.empty() || a.min_items > 0 || a.max_items >= 0) types |= kArray;
      if (!a.texts.empty() || a.min_length > 0 || a.max_length >= 0) types |= kString;
      if (a.least || a.most) types |= kNumber | kInteger;
      if (types != 0) a.types = types;
    }
    if (a.max_length >= 0 && a.max_length < a.min_length) a.types &= ~static_cast<unsigned>(kString);
    if (a.max_items >= 0 && a.max_items < a.min_items) a.types &= ~static_cast<unsigned>(kArray);
    if (a.values) {
      std::erase_if(*a.values, [&](const JsonValue& v) { return !fits(v, a); });
      if (a.values->empty()) return true;
      unsigned types = 0;
      for (const JsonValue& v : *a.values) types |= type_of(v);
      a.types = types;
    }
    return a.types == 0;
  });
}

// Whether a listed value keeps the other keywords.
bool SchemaReader::fits(const JsonValue& value, const Alternative& a) const {
  const unsigned type = type_of(value);
  if ((type & a.types) == 0) return false;
  if (type == kString) return (a.texts.empty() && a.min_length == 0 && a.max_length < 0) || text(a).matches(value.text);
  if (type == kInteger || type == kNumber) {
    const std::optional<Decimal> d = to_decimal(value.text);
    if (!d && (a.least || a.most)) refuse(a.path, shown_json(value), "a number with fewer digits");
    return !d || in_bounds(*d, a);
  }
  if (type == kArray && !a.array_parts.empty())
    refuse(a.path, "arrays in enum or const beside items", "one of the two");
  if (type == kArray) {
    const auto n = static_cast<std::int64_t>(value.items.size());
    return n >= a.min_items && (a.max_items < 0 || n <= a.max_items);
  }
  if (type == kObject && (!a.object_parts.empty() || !a.required.empty())) {
    refuse(a.path, "objects in enum or const beside properties", "one of the two");
  }
  if (type == kObject) {
    const auto n = static_cast<std::int64_t>(value.items.size());
    return n >= a.min_properties && (a.max_properties < 0 || n <= a.max_properties);
  }
  return true;
}

CharDfa SchemaReader::text(const Alternative& a) const {
  try {
    CharDfa dfa = a.texts.empty() ? any_text() : a.texts[0];
    for (std::size_t i = 1; i < a.texts.size(); ++i) dfa = intersection(dfa, a.texts[i]);
    const bool limited = a.min_length > 0 || a.max_length >= 0;
    return limited ? with_length(dfa, a.min_length, a.max_length) : dfa;
  } catch (const Error& e) { refuse(a.path, e.what()); }
}

}  // namespace glint::grammar
