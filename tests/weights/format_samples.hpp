#pragma once
// What the tests of the matrix schemes share: a matrix's tensors under construction, written to a file and read back.

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <set>

#include "tensor/codec.hpp"
#include "weights/matrix_reader.hpp"
#include "weights/quantizer_files.hpp"
#include "weights/temp_dir.hpp"

namespace glint {
namespace {

const std::string kBase = "model.layers.1.mlp.up_proj";

// The tensors of one matrix, and what its values are.
struct Stored {
  std::map<std::string, HostTensor> tensors;  // by suffix
  std::vector<float> values;                  // [rows, cols]
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  QuantConfig config;

  View add(const std::string& suffix, DType dtype, const Shape& shape) {
    return (tensors[suffix] = HostTensor(dtype, shape)).view;
  }
  View operator[](const std::string& suffix) const { return tensors.at(suffix).view; }
};

// A matrix read from a file of its own.
struct Read {
  TempDir dir;
  std::unique_ptr<Checkpoint> checkpoint;
  StoredMatrix matrix;
};

std::unique_ptr<Read> read(const Stored& s) {
  auto r = std::make_unique<Read>();
  std::vector<NamedTensor> named;
  for (const auto& [suffix, t] : s.tensors) named.push_back({kBase + suffix, t.view});
  write_safetensors(r->dir / "model.safetensors", named);
  r->checkpoint = std::make_unique<Checkpoint>(r->dir.path());
  r->matrix = read_matrix(*r->checkpoint, kBase, s.rows, s.cols, s.config);
  return r;
}

enum class Place : std::uint8_t { kCodes, kAll, kNothing };  // what is used in the mapping itself

// relative: how far a value may be from the straightforward one, where that rounds at other places.
void expect_values(const Stored& s, std::string_view scheme, Place in_place, float relative = 0) {
  SCOPED_TRACE(scheme);
  const auto r = read(s);
  const Weight& w = r->matrix.weight;
  EXPECT_EQ(r->matrix.scheme, scheme);
  EXPECT_EQ(r->matrix.used.size(), s.tensors.size()) << "every tensor counts as used";
  ASSERT_EQ(w.rows, s.rows);
  ASSERT_EQ(w.cols, s.cols);
  std::vector<float> row(static_cast<std::size_t>(s.cols));
  for (std::int64_t i = 0; i < s.rows; ++i) {
    decode_row(w, i, row.data());
    for (std::int64_t k = 0; k < s.cols; ++k) {
      const float expected = s.values[static_cast<std::size_t>(i * s.cols + k)];
      ASSERT_NEAR(row[static_cast<std::size_t>(k)], expected, relative * (std::fabs(expected) + 1)) << i << ", " << k;
    }
  }
  const auto mapped = [&](const void* p) {
    for (const Checkpoint::Tensor* t : r->matrix.used) {
      if (t->view().data == p) return true;
    }
    return false;
  };
  EXPECT_EQ(mapped(w.data), in_place != Place::kNothing);
  EXPECT_EQ(w.scales != nullptr && mapped(w.scales), in_place == Place::kAll && has_scales(w.format));
  EXPECT_EQ(r->matrix.owned.empty(), in_place == Place::kAll);
}

template <typename... Parts>
void expect_refused(const Stored& s, const Parts&... parts) {
  expect_error([&] { read(s); }, parts...);
}

// A pseudo-random sequence.
class Dice {
 public:
  explicit Dice(std::uint64_t seed) : state_(seed * 2654435761U + 1) {}
  int below(int n) {
    state_ = state_ * 6364136223846793005ULL + 1442695040888963407ULL;
    return static_cast<int>((state_ >> 33) % static_cast<std::uint64_t>(n));
  }
  float scale() { return std::ldexp(static_cast<float>(128 + below(128)), -15); }  // BF16 and F16 hold it

 private:
  std::uint64_t state_;
};

std::size_t at(std::int64_t i) { return static_cast<std::size_t>(i); }

void fill_scales(View v, Dice& dice) {
  for (std::int64_t i = 0; i < v.shape.elements(); ++i) store_from_float(v.data, v.dtype, at(i), dice.scale());
}
float float_at(const View& v, std::int64_t i) { return load_as_float(v.data, v.dtype, at(i)); }

}  // namespace
}  // namespace glint
