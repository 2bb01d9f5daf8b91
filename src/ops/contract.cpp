#include "ops/contract.hpp"

#include <algorithm>
#include <functional>
#include <limits>

#include "base/error.hpp"
#include "ops/kv_codec.hpp"

namespace glint {
namespace {

std::string_view format_name(WeightFormat f) {
  switch (f) {
    case WeightFormat::kF32:
      return "F32";
    case WeightFormat::kF16:
      return "F16";
    case WeightFormat::kBF16:
      return "BF16";
    case WeightFormat::kF8E4M3:
      return "F8_E4M3";
    case WeightFormat::kI8:
      return "I8";
    case WeightFormat::kI4:
      return "I4";
    case WeightFormat::kNF4:
      return "NF4";
    case WeightFormat::kF4E2M1:
      return "F4_E2M1";
  }
  return "?";
}

std::string shape_text(std::initializer_list<Dim> dims) {
  std::string s = "[";
  for (const Dim& d : dims) s += (s.size() > 1 ? ", " : "") + (d.symbolic() ? d.name() : std::to_string(d.value()));
  return s + "]";
}

}  // namespace

Contract::Contract(std::string_view op, const OpTag& tag, const CheckPolicy& policy) : where_(op), policy_(policy) {
  if (tag.name != nullptr && *tag.name != '\0') where_ += std::string(" ") + tag.name;
  if (tag.layer >= 0) where_ += " (layer " + std::to_string(tag.layer) + ")";
}

void Contract::fail(const std::string& subject, const std::string& found, const std::string& expected) const {
  throw Error({.what = where_ + ": " + subject, .found = found, .expected = expected});
}

void Contract::unify(std::string_view name, const char* part, std::int64_t found, const Dim& dim) {
  const std::string subject = std::string(name) + " " + part;
  if (!dim.symbolic()) {
    require(found == dim.value(), subject, std::to_string(found), std::to_string(dim.value()));
    return;
  }
  const auto [it, fresh] = bound_.try_emplace(dim.name(), Bound{found, std::string(name)});
  if (fresh || it->second.value == found) return;
  fail(subject + " (" + dim.name() + ")", std::to_string(found),
       std::to_string(it->second.value) + " as in " + it->second.where);
}

void Contract::tensor(std::string_view name, const ConstView& v, DType dtype, std::initializer_list<Dim> dims) {
  const std::string subject(name);
  require(v.shape.rank() == static_cast<int>(dims.size()), subject, "shape " + v.shape.to_string(),
          "shape " + shape_text(dims));
  require(v.dtype == dtype, subject, std::string(dtype_name(v.dtype)), std::string(dtype_name(dtype)));
  int axis = 0;
  for (const Dim& dim : dims) {
    const std::string part = "dim " + std::to_string(axis);
    require(v.shape[axis] >= 0, subject + " " + part, std::to_string(v.shape[axis]), "0 or more");
    unify(name, part.c_str(), v.shape[axis], dim);
    ++axis;
  }
  require(v.data != nullptr || v.shape.elements() == 0, subject, "no data (null pointer)", v.shape.to_string());
}

void Contract::activation(std::string_view name, const ConstView& v, std::initializer_list<Dim> dims) {
  tensor(name, v, policy_.activation, dims);
}

void Contract::f32(std::string_view name, const ConstView& v, std::initializer_list<Dim> dims) {
  tensor(name, v, DType::kF32, dims);
}

void Contract::weight(std::string_view name, const Weight& w, Dim rows, Dim cols) {
  unify(name, "rows", w.rows, rows);
  unify(name, "cols", w.cols, cols);
  const std::string subject(name);
  require(w.data != nullptr, subject, "no data (null pointer)",
          "a matrix of " + std::to_string(w.rows) + " by " + std::to_string(w.cols));
  if (weight_code_bits(w.format) == 4) require(w.cols % 2 == 0, subject + " cols", std::to_string(w.cols), "even");
  if (has_scales(w.format)) {
    require(w.scales != nullptr, subject + " scales", "null pointer", "a scale a group");
    range(subject + " group", w.group, 1, w.cols);
    range(subject + " group_rows", w.group_rows, 1, std::numeric_limits<std::int32_t>::max());
    const bool known = w.scale_dtype == DType::kF32 || w.scale_dtype == DType::kF16 || w.scale_dtype == DType::kBF16;
    require(known, subject + " scale_dtype", std::string(dtype_name(w.scale_dtype)), "F32, F16 or BF16");
  }
  if (policy_.backend == nullptr) return;
  require(policy_.backend->supports(w.format), subject, std::string(format_name(w.format)),
          "a weight format that " + policy_.backend->name() + " reads");
}

void Contract::absorbed(std::string_view name, const Weight& w, Dim rows, Dim cols) {
  weight(name, w, rows, cols);
  if (policy_.backend == nullptr) return;
  const QuantSpec spec = quant_spec(w);
  require(policy_.backend->supports_absorbed(spec), std::string(name), spec.name(),
          "a format that " + policy_.backend->name() + " reads along both axes");
}

void Contract::experts(std::string_view name, const ExpertWeights& w, Dim inner, Dim hidden) {
  const std::string prefix = std::string(name) + ".";
  weight(prefix + "gate", w.gate, inner, hidden);
  weight(prefix + "up", w.up, inner, hidden);
  weight(prefix + "down", w.down, hidden, inner);
}

void Contract::pages(std::string_view name, const KvPages& p) {
  const std::string subject(name);
  require(p.base != nullptr, subject, "no data (null pointer)", "the base of a page pool");
  require(std::find(kKvCodecs.begin(), kKvCodecs.end(), p.codec) != kKvCodecs.end(), subject + " codec",
          std::to_string(static_cast<int>(p.codec)), "one of ops/kv_codec.hpp");
  const std::int64_t page_bytes = kPageTokens * kv_row_bytes(p.codec);
  require(p.page_stride_bytes >= page_bytes, subject + " page_stride_bytes", std::to_string(p.page_stride_bytes),
          std::to_string(page_bytes) + " or more");
  require(policy_.backend == nullptr || policy_.backend->supports(p.codec), subject + " codec",
          std::string(kv_codec_name(p.codec)), "a page codec that the backend reads");
}

void Contract::array(std::string_view name, const void* data, std::int64_t n) {
  require(data != nullptr || n == 0, std::string(name), "null pointer", std::to_string(n) + " elements");
}

void Contract::disjoint(std::string_view name, const ConstView& v, std::string_view other_name,
                        const ConstView& other) {
  if (v.data == nullptr || other.data == nullptr) return;
  const std::less_equal<const std::byte*> before;  // a total order, also between unrelated pointers
  const auto* a = v.as<std::byte>();
  const auto* b = other.as<std::byte>();
  const bool apart = before(a + v.bytes(), b) || before(b + other.bytes(), a);
  require(apart, std::string(name), "memory shared with " + std::string(other_name), "memory of its own");
}

std::int64_t Contract::operator[](const char* name) const {
  const auto it = bound_.find(name);
  return it == bound_.end() ? 0 : it->second.value;
}

void Contract::range(const std::string& subject, std::int64_t value, std::int64_t low, std::int64_t high) {
  require(value >= low && value <= high, subject, std::to_string(value),
          std::to_string(low) + " to " + std::to_string(high));
}

}  // namespace glint
