// The header of a GGUF file: counts, metadata, tensor list. Every length is checked against the bytes that are left
// before it is believed.

#include <algorithm>
#include <cstring>
#include <limits>

#include "base/error.hpp"
#include "weights/gguf.hpp"

namespace glint {
namespace {

constexpr std::string_view kKindNames[] = {"u8",   "i8",     "u16",   "i16", "u32", "i32", "f32",
                                           "bool", "string", "array", "u64", "i64", "f64"};
constexpr std::size_t kMaxKey = 65535;  // the specification's limits
constexpr std::size_t kMaxTensorName = 64;
constexpr std::uint64_t kMaxAlignment = 1 << 16;
constexpr std::int64_t kMaxElements = std::int64_t{1} << 48;  // of one tensor

std::size_t kind_bytes(GgufKind kind) {
  switch (kind) {
    case GgufKind::kU8:
    case GgufKind::kI8:
    case GgufKind::kBool:
      return 1;
    case GgufKind::kU16:
    case GgufKind::kI16:
      return 2;
    case GgufKind::kU32:
    case GgufKind::kI32:
    case GgufKind::kF32:
      return 4;
    case GgufKind::kU64:
    case GgufKind::kI64:
    case GgufKind::kF64:
      return 8;
    case GgufKind::kString:
    case GgufKind::kArray:
      break;
  }
  return 0;
}

template <typename T>
T load(const std::byte* p) {
  T v{};
  std::memcpy(&v, p, sizeof v);
  return v;
}

bool is_integer(GgufKind kind) {
  return kind_bytes(kind) > 0 && kind != GgufKind::kF32 && kind != GgufKind::kF64 && kind != GgufKind::kBool;
}

std::int64_t load_integer(GgufKind kind, const std::byte* p) {
  switch (kind) {
    case GgufKind::kU8:
    case GgufKind::kBool:
      return load<std::uint8_t>(p);
    case GgufKind::kI8:
      return load<std::int8_t>(p);
    case GgufKind::kU16:
      return load<std::uint16_t>(p);
    case GgufKind::kI16:
      return load<std::int16_t>(p);
    case GgufKind::kU32:
      return load<std::uint32_t>(p);
    case GgufKind::kI32:
      return load<std::int32_t>(p);
    case GgufKind::kU64: {
      constexpr auto kTop = static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max());
      return static_cast<std::int64_t>(std::min(load<std::uint64_t>(p), kTop));
    }
    default:
      return load<std::int64_t>(p);
  }
}

// Text for a message: short, and without bytes that a terminal would act on.
std::string shown(std::string_view text) {
  constexpr std::size_t kMax = 80;
  std::string s = "\"";
  for (const char c : text.substr(0, kMax)) s += static_cast<unsigned char>(c) < 32 || c == 127 ? '?' : c;
  return s + (text.size() > kMax ? "…\"" : "\"");
}

std::string shown(const GgufValue& v) {
  switch (v.kind) {
    case GgufKind::kString:
      return shown(v.text);
    case GgufKind::kArray:
      return std::to_string(v.count) + " values of type " + std::string(gguf_kind_name(v.element));
    case GgufKind::kF32:
    case GgufKind::kF64:
      return std::to_string(v.number);
    case GgufKind::kBool:
      return v.integer != 0 ? "true" : "false";
    default:
      return std::to_string(v.integer);
  }
}

}  // namespace

std::string_view gguf_kind_name(GgufKind kind) { return kKindNames[static_cast<std::size_t>(kind)]; }

// Reads front to back; `where_` names what is being read, for messages.
class GgufParser {
 public:
  GgufParser(std::span<const std::byte> file, std::string_view source) : file_(file), source_(source) {}

  GgufHeader parse() {
    GgufHeader header;
    read_start(header);
    const std::uint64_t n_tensors = count("number of tensors", 24);  // the shortest tensor entry: rank 0
    const std::uint64_t n_values = count("number of metadata values", 13);
    read_metadata(n_values, header.metadata);
    read_alignment(header);
    read_tensors(n_tensors, header);
    header.data_begin = (at_ + header.alignment - 1) / header.alignment * header.alignment;
    place_tensors(header);
    return header;
  }

 private:
  [[noreturn]] void refuse(std::string found, std::string expected, std::string hint = {}) const {
    throw Error({.what = source_ + (where_.empty() ? "" : ": " + where_),
                 .found = std::move(found),
                 .expected = std::move(expected),
                 .hint = std::move(hint)});
  }

  std::uint64_t left() const { return file_.size() - at_; }
  const std::byte* take(std::uint64_t bytes) {
    if (bytes > left()) {
      refuse(std::to_string(left()) + " bytes left in the file", std::to_string(bytes) + " more",
             "the file is truncated or damaged");
    }
    const std::byte* p = file_.data() + at_;
    at_ += bytes;
    return p;
  }
  template <typename T>
  T number() {
    return load<T>(take(sizeof(T)));
  }
  // A count of things that take at least `least` bytes each.
  std::uint64_t count(const std::string& what, std::uint64_t least) {
    where_ = what;
    const auto n = number<std::uint64_t>();
    if (n > left() / least)
      refuse(std::to_string(n), "at most " + std::to_string(left() / least) + ", which the file has room for");
    return n;
  }
  std::string_view string() {
    const auto length = number<std::uint64_t>();
    return {reinterpret_cast<const char*>(take(length)), static_cast<std::size_t>(length)};
  }

  void read_start(GgufHeader& header) {
    where_ = "first four bytes";
    if (file_.size() < 4 || std::memcmp(file_.data(), "GGUF", 4) != 0) {
      refuse(shown({reinterpret_cast<const char*>(file_.data()), std::min<std::size_t>(4, file_.size())}), "\"GGUF\"",
             "this is not a GGUF file");
    }
    at_ = 4;
    where_ = "version";
    header.version = number<std::uint32_t>();
    if (header.version == 2 || header.version == 3) return;
    refuse(std::to_string(header.version), "2 or 3",
           (header.version & 0xffffU) == 0 ? "a big-endian file; convert it with gguf_convert_endian"
           : header.version == 1           ? "a file of 2023; convert the model again"
                                           : "");
  }

  GgufKind kind() {
    const auto k = number<std::uint32_t>();
    if (k > static_cast<std::uint32_t>(GgufKind::kF64)) refuse("value type " + std::to_string(k), "0 to 12");
    return static_cast<GgufKind>(k);
  }

  GgufValue value() {
    GgufValue v;
    v.kind = kind();
    switch (v.kind) {
      case GgufKind::kString:
        v.text = string();
        break;
      case GgufKind::kArray:
        array(v);
        break;
      case GgufKind::kF32:
        v.number = static_cast<double>(number<float>());
        break;
      case GgufKind::kF64:
        v.number = number<double>();
        break;
      default:
        v.integer = load_integer(v.kind, take(kind_bytes(v.kind)));
        if (v.kind == GgufKind::kBool && v.integer > 1) refuse("the bool " + std::to_string(v.integer), "0 or 1");
    }
    return v;
  }

  void array(GgufValue& v) {
    v.element = kind();
    if (v.element == GgufKind::kArray) refuse("an array of arrays", "an array of numbers or strings");
    const std::uint64_t least = v.element == GgufKind::kString ? 8 : kind_bytes(v.element);
    v.count = number<std::uint64_t>();
    if (v.count > left() / least) {
      refuse(std::to_string(v.count) + " array elements",
             "at most " + std::to_string(left() / least) + ", which the file has room for");
    }
    if (v.element != GgufKind::kString) {
      v.bytes = {take(v.count * least), static_cast<std::size_t>(v.count * least)};
      return;
    }
    v.texts.reserve(static_cast<std::size_t>(v.count));
    for (std::uint64_t i = 0; i < v.count; ++i) v.texts.push_back(string());
  }

  void read_metadata(std::uint64_t n, GgufMetadata& metadata) {
    metadata.source_ = source_;
    metadata.entries_.reserve(static_cast<std::size_t>(n));
    for (std::uint64_t i = 0; i < n; ++i) {
      where_ = "metadata key " + std::to_string(i);
      const std::string_view key = string();
      if (key.empty() || key.size() > kMaxKey)
        refuse(std::to_string(key.size()) + " bytes", "1 to " + std::to_string(kMaxKey));
      where_ = "metadata " + shown(key);
      metadata.entries_.push_back({std::string(key), value()});
      if (!metadata.by_key_.emplace(metadata.entries_.back().key, metadata.entries_.size() - 1).second)
        refuse("the same key twice", "unique keys");
    }
  }

  void read_alignment(GgufHeader& header) {
    const auto a = header.metadata.integer("general.alignment", 8, kMaxAlignment);
    if (!a) return;
    header.alignment = static_cast<std::uint64_t>(*a);
    if ((header.alignment & (header.alignment - 1)) != 0)
      header.metadata.refuse("general.alignment", std::to_string(*a), "a power of two");
  }

  // begin is relative to the data until place_tensors.
  void read_tensors(std::uint64_t n, GgufHeader& header) {
    header.tensors.reserve(static_cast<std::size_t>(n));
    std::unordered_map<std::string_view, bool> seen;
    for (std::uint64_t i = 0; i < n; ++i) {
      where_ = "name of tensor " + std::to_string(i);
      GgufTensor t;
      const std::string_view name = string();
      if (name.empty() || name.size() > kMaxTensorName)
        refuse(std::to_string(name.size()) + " bytes", "1 to " + std::to_string(kMaxTensorName));
      where_ = "tensor " + shown(name);
      t.name = name;
      if (!seen.emplace(name, true).second) refuse("the same name twice", "unique names");
      const std::uint64_t bytes = read_shape_and_type(t);
      t.begin = number<std::uint64_t>();
      if (t.begin % header.alignment != 0)
        refuse("offset " + std::to_string(t.begin), "a multiple of " + std::to_string(header.alignment));
      if (t.begin > file_.size())
        refuse("offset " + std::to_string(t.begin), "an offset inside the file of " + std::to_string(file_.size()));
      t.end = t.begin + bytes;
      header.tensors.push_back(std::move(t));
    }
  }

  // Returns the tensor's bytes, at most 8 · 2^48.
  std::uint64_t read_shape_and_type(GgufTensor& t) {
    const auto rank = number<std::uint32_t>();
    if (rank < 1 || rank > static_cast<std::uint32_t>(Shape::kMaxRank))
      refuse(std::to_string(rank) + " dimensions", "1 to " + std::to_string(Shape::kMaxRank));
    std::int64_t ne[Shape::kMaxRank] = {};
    std::int64_t elements = 1;
    for (std::uint32_t d = 0; d < rank; ++d) {
      const auto size = number<std::uint64_t>();
      if (size < 1 || size > static_cast<std::uint64_t>(kMaxElements / elements)) {
        refuse("dimension " + std::to_string(d) + " of size " + std::to_string(size),
               "sizes from 1 whose product is at most 2^48");
      }
      ne[d] = static_cast<std::int64_t>(size);
      elements *= ne[d];
    }
    for (std::uint32_t d = rank; d > 0; --d) t.shape.push_back(ne[d - 1]);
    const auto type = number<std::uint32_t>();
    t.type = static_cast<GgufType>(type);
    const std::optional<GgufBlock> block = gguf_block(t.type);
    if (!block) {
      refuse("tensor type " + std::to_string(type), "a type of ggml's list", "made by another program or a newer one");
    }
    if (ne[0] % block->values != 0) {
      refuse("rows of " + std::to_string(ne[0]) + " values",
             "a multiple of " + std::to_string(block->values) + ", the block of " + std::string(block->name));
    }
    return static_cast<std::uint64_t>(elements / block->values * block->bytes);
  }

  void place_tensors(GgufHeader& header) {
    std::vector<GgufTensor*> order;
    order.reserve(header.tensors.size());
    for (GgufTensor& t : header.tensors) {
      where_ = "tensor " + shown(t.name);
      t.begin += header.data_begin;
      t.end += header.data_begin;
      if (t.end > file_.size()) {
        refuse("data up to byte " + std::to_string(t.end),
               "at most " + std::to_string(file_.size()) + ", the file's size",
               "the file is truncated: download it again");
      }
      order.push_back(&t);
    }
    std::sort(order.begin(), order.end(), [](const GgufTensor* a, const GgufTensor* b) { return a->begin < b->begin; });
    for (std::size_t i = 1; i < order.size(); ++i) {
      if (order[i]->begin >= order[i - 1]->end) continue;
      where_ = "tensor " + shown(order[i]->name);
      refuse("data that overlaps " + shown(order[i - 1]->name), "a place of its own");
    }
  }

  std::span<const std::byte> file_;
  std::string source_;
  std::string where_;
  std::uint64_t at_ = 0;
};

GgufHeader parse_gguf(std::span<const std::byte> file, std::string_view source) {
  return GgufParser(file, source).parse();
}

// ---- metadata ----

const GgufValue* GgufMetadata::find(std::string_view key) const {
  const auto it = by_key_.find(key);
  return it == by_key_.end() ? nullptr : &entries_[it->second].value;
}

void GgufMetadata::refuse(std::string_view key, std::string found, std::string expected, std::string hint) const {
  throw Error({.what = source_ + ": metadata " + std::string(key),
               .found = std::move(found),
               .expected = std::move(expected),
               .hint = std::move(hint)});
}

std::optional<std::int64_t> GgufMetadata::integer(std::string_view key, std::int64_t min, std::int64_t max) const {
  const GgufValue* v = find(key);
  if (v == nullptr) return std::nullopt;
  if (!is_integer(v->kind) || v->integer < min || v->integer > max)
    refuse(key, shown(*v), "an integer from " + std::to_string(min) + " to " + std::to_string(max));
  return v->integer;
}

std::int64_t GgufMetadata::required_integer(std::string_view key, std::int64_t min, std::int64_t max) const {
  const std::optional<std::int64_t> v = integer(key, min, max);
  if (!v) refuse(key, "nothing", "an integer from " + std::to_string(min) + " to " + std::to_string(max));
  return *v;
}

std::optional<double> GgufMetadata::number(std::string_view key, double min, double max) const {
  const GgufValue* v = find(key);
  if (v == nullptr) return std::nullopt;
  const bool is_float = v->kind == GgufKind::kF32 || v->kind == GgufKind::kF64;
  const double d = is_float ? v->number : static_cast<double>(v->integer);
  if ((!is_float && !is_integer(v->kind)) || !(d >= min && d <= max))
    refuse(key, shown(*v), "a number from " + std::to_string(min) + " to " + std::to_string(max));
  return d;
}

std::optional<bool> GgufMetadata::flag(std::string_view key) const {
  const GgufValue* v = find(key);
  if (v == nullptr) return std::nullopt;
  if (v->kind != GgufKind::kBool) refuse(key, shown(*v), "true or false");
  return v->integer != 0;
}

std::optional<std::string_view> GgufMetadata::text(std::string_view key) const {
  const GgufValue* v = find(key);
  if (v == nullptr) return std::nullopt;
  if (v->kind != GgufKind::kString) refuse(key, shown(*v), "a string");
  return v->text;
}

const std::vector<std::string_view>* GgufMetadata::texts(std::string_view key) const {
  const GgufValue* v = find(key);
  if (v == nullptr) return nullptr;
  if (v->kind != GgufKind::kArray || v->element != GgufKind::kString) refuse(key, shown(*v), "an array of strings");
  return &v->texts;
}

std::optional<std::vector<std::int64_t>> GgufMetadata::integers(std::string_view key) const {
  const GgufValue* v = find(key);
  if (v == nullptr) return std::nullopt;
  if (v->kind != GgufKind::kArray || !is_integer(v->element)) refuse(key, shown(*v), "an array of integers");
  std::vector<std::int64_t> out(static_cast<std::size_t>(v->count));
  for (std::size_t i = 0; i < out.size(); ++i)
    out[i] = load_integer(v->element, v->bytes.data() + i * kind_bytes(v->element));
  return out;
}

}  // namespace glint
