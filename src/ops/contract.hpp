#pragma once
// The small language in which checked.cpp states an op's contract: tensors with symbolic dimensions. A name stands for
// the same number wherever it occurs; the first tensor that has it fixes the number.

#include <cstdint>
#include <initializer_list>
#include <map>
#include <string>
#include <string_view>

#include "ops/checked.hpp"

namespace glint {

class Dim {
 public:
  Dim(const char* name) : name_(name) {}      // NOLINT(google-explicit-constructor): reads as a shape
  Dim(std::int64_t value) : value_(value) {}  // NOLINT(google-explicit-constructor)
  Dim(int value) : value_(value) {}           // NOLINT(google-explicit-constructor)
  bool symbolic() const { return name_ != nullptr; }
  const char* name() const { return name_; }
  std::int64_t value() const { return value_; }

 private:
  const char* name_ = nullptr;
  std::int64_t value_ = 0;
};

class Contract {
 public:
  Contract(std::string_view op, const OpTag& tag, const CheckPolicy& policy);

  bool arrays_on_host() const { return policy_.arrays_on_host; }

  // Tensors. Each checks pointer, type, rank and dimensions; all throw Error.
  void activation(std::string_view name, const ConstView& v, std::initializer_list<Dim> dims);
  void f32(std::string_view name, const ConstView& v, std::initializer_list<Dim> dims);
  void weight(std::string_view name, const Weight& w, Dim rows, Dim cols);
  // kv_b: a weight whose way of storing attention reads.
  void absorbed(std::string_view name, const Weight& w, Dim rows, Dim cols);
  void experts(std::string_view name, const ExpertWeights& w, Dim inner, Dim hidden);
  void pages(std::string_view name, const KvPages& p);
  // A plain array of n elements.
  void array(std::string_view name, const void* data, std::int64_t n);
  // Two tensors that must not share memory.
  void disjoint(std::string_view name, const ConstView& v, std::string_view other_name, const ConstView& other);

  // The number that a name stands for, 0 while nothing has fixed it.
  std::int64_t operator[](const char* name) const;

  // A value that must lie in [low, high].
  void range(const std::string& subject, std::int64_t value, std::int64_t low, std::int64_t high);
  void require(bool ok, const std::string& subject, const std::string& found, const std::string& expected) {
    if (!ok) fail(subject, found, expected);
  }
  [[noreturn]] void fail(const std::string& subject, const std::string& found, const std::string& expected) const;

 private:
  struct Bound {
    std::int64_t value;
    std::string where;  // the tensor that fixed it
  };
  void tensor(std::string_view name, const ConstView& v, DType dtype, std::initializer_list<Dim> dims);
  void unify(std::string_view name, const char* part, std::int64_t found, const Dim& dim);

  std::string where_;  // "linear attn.o (layer 3)"
  CheckPolicy policy_;
  std::map<std::string, Bound, std::less<>> bound_;
};

}  // namespace glint
