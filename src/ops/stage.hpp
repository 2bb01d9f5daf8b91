#pragma once
// Memory and random data for a case: everything is made on the host from one seed and uploaded to the backend.

#include <cstdint>
#include <string>
#include <vector>

#include "ops/ops.hpp"
#include "tensor/codec.hpp"

namespace glint {

// Where pages lie. A backend's answer must not depend on it.
enum class Layout : std::uint8_t {
  kPlain,      // pages in order, one after the other
  kScattered,  // pages in shuffled order, as one layer of several: between a layer's pages lie NaN
};

// What an output's limit follows from.
enum class OutputKind : std::uint8_t {
  kExact,    // copied, or rounded once: equal bit for bit
  kFloat,    // fp32 on every backend
  kProduct,  // through a matrix product, whose precision is the backend's
};

struct Output {
  std::string name;
  OutputKind kind = OutputKind::kProduct;
  Shape shape;
  std::vector<float> values;
  std::string damage;  // not empty: something beyond the output was written
};

// Small, fast and the same everywhere.
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}
  std::uint64_t bits();
  std::int64_t below(std::int64_t n) { return static_cast<std::int64_t>(bits() % static_cast<std::uint64_t>(n)); }
  float uniform() { return static_cast<float>(bits() >> 40) * 0x1p-24F; }  // [0, 1)
  float normal();                                                          // mean 0, variance 1, within ±3.5
  std::vector<float> normals(std::int64_t n, float scale);
  std::vector<std::int32_t> permutation(std::int32_t n);

 private:
  std::uint64_t state_;
};

// A pool of pages. Cases number pages logically; page() gives where the layout puts them.
struct PagePool {
  KvPages pages;
  std::vector<std::int32_t> place;  // logical → physical
  std::int32_t page(std::int64_t logical) const { return place[static_cast<std::size_t>(logical)]; }
  std::int32_t slot(std::int64_t logical_slot) const {
    return page(logical_slot / kPageTokens) * kPageTokens + static_cast<std::int32_t>(logical_slot % kPageTokens);
  }
};

// One row of the cache for PagePool: where it lies (logically) and its 576 values.
struct CachedRow {
  std::int64_t slot = 0;
  std::vector<float> values;
};

class Stage {
 public:
  Stage(Ops& ops, std::uint64_t seed, Layout layout) : random(seed), ops_(&ops), layout_(layout) {}

  Ops& ops() { return *ops_; }

  // Inputs: F32 with the given values or normally distributed ones.
  View input(const Shape& shape, const std::vector<float>& values);
  View input(const Shape& shape, float scale = 1.0F) { return input(shape, random.normals(shape.elements(), scale)); }
  // Normal with variance 1 / cols, so that products keep the variance of x.
  Weight weight(std::int64_t rows, std::int64_t cols, WeightFormat format);
  // Block formats are rounded to nearest from the same values.
  Weight weight(std::int64_t rows, std::int64_t cols, const QuantSpec& spec);
  ExpertWeights expert(std::int64_t inner, std::int64_t hidden, const QuantSpec& spec);
  template <typename T>
  T* array(const std::vector<T>& values) {
    return static_cast<T*>(place(values.data(), values.size() * sizeof(T)));
  }
  // A pool of n logical pages and two spare ones, all NaN but for the given rows.
  PagePool pool(KvCodec codec, std::int64_t n, const std::vector<CachedRow>& rows);

  // Outputs, downloaded and compared after the run. Filled with NaN (ids: a negative number) or the given values.
  View output(const std::string& name, const Shape& shape, OutputKind kind);
  View in_out(const std::string& name, const Shape& shape, OutputKind kind, const std::vector<float>& values);
  std::int32_t* output_ids(const std::string& name, const Shape& shape);
  // The whole pool as an exact output: NaN where nothing may be written.
  void output_pool(const std::string& name, const PagePool& pool);

  std::vector<Output> collect();

  Random random;

 private:
  struct Expected {
    std::string name;
    OutputKind kind;
    ConstView view;
  };
  struct ExpectedPool {
    std::string name;
    PagePool pool;
    std::size_t bytes;
  };
  // Uploads bytes, followed by a guard of NaN.
  void* place(const void* host, std::size_t bytes);
  Output read(const Expected& e);
  Output read(const ExpectedPool& e);

  Ops* ops_;
  Layout layout_;
  std::vector<Buffer> buffers_;
  std::vector<Expected> outputs_;
  std::vector<ExpectedPool> pools_;
};

}  // namespace glint
