#pragma once
// What the schemes of matrix_reader share: finding and checking the tensors of one matrix, and building its Weight.
// Internal to weights/format_*.cpp.
//
// Experts in one tensor are read as one matrix: [E, rows, cols] counts as [E · rows, cols] everywhere here.

#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.hpp"
#include "weights/matrix_reader.hpp"

namespace glint {

// The entries of the scheme table, each in the file of its name.
std::span<const MatrixScheme> fp8_schemes();           // format_fp8.cpp
std::span<const MatrixScheme> fp4_schemes();           // format_fp4.cpp
std::span<const MatrixScheme> integer_schemes();       // format_integer.cpp: compressed-tensors int8, int4
std::span<const MatrixScheme> awq_schemes();           // format_awq.cpp
std::span<const MatrixScheme> gptq_schemes();          // format_gptq.cpp
std::span<const MatrixScheme> bitsandbytes_schemes();  // format_bitsandbytes.cpp
std::span<const MatrixScheme> plain_schemes();         // format_plain.cpp; matches last

// Scales of activations: Glint's activations stay in floats, so that they are counted as read and not used.
inline constexpr std::string_view kActivationSuffixes[] = {".input_scale", ".input_global_scale", ".input_zero_point",
                                                           ".output_scale"};

[[noreturn]] void refuse(const Checkpoint::Tensor& t, const std::string& found, const std::string& expected,
                         const std::string& hint = "");

// The tensor's shape as a matrix: leading dimensions multiplied together, [n] as [n, 1], a scalar as [1, 1].
struct FlatShape {
  std::int64_t rows = 1;
  std::int64_t cols = 1;
  friend bool operator==(const FlatShape&, const FlatShape&) = default;
  std::string to_string() const { return "[" + std::to_string(rows) + ", " + std::to_string(cols) + "]"; }
};
FlatShape flat_shape(const Checkpoint::Tensor& t);
// E of [E, rows, cols], 1 of a plain matrix.
std::int64_t experts_in(const Checkpoint::Tensor& t);

// Throws Error unless dtype and shape are as said.
void expect_dtype(const Checkpoint::Tensor& t, std::initializer_list<DType> dtypes);
void expect_shape(const Checkpoint::Tensor& t, FlatShape shape);

inline std::int64_t divide_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// Whether a tensor BASE + suffix is there, and of that type.
const Checkpoint::Tensor* find_part(const Checkpoint& checkpoint, const std::string& base, std::string_view suffix);
bool has_part(const Checkpoint& checkpoint, const std::string& base, std::string_view suffix, DType dtype);

enum class Sign : std::uint8_t { kNotNegative, kAny };
// Throws Error when a scale is NaN or infinite or, with kNotNegative, has its sign bit set (-0 too).
void check_scales(const Checkpoint::Tensor& t, Sign sign);

// How many columns a scale covers when a row has n_groups of them. The configured size decides only where it fits what
// the file holds. Throws Error unless groups of equal size, a multiple of 8, cover the columns.
std::int64_t group_size(const Checkpoint::Tensor& scales, std::int64_t n_groups, std::int64_t cols,
                        std::int64_t configured);

// A matrix being put together.
class MatrixParts {
 public:
  MatrixParts(const Checkpoint& checkpoint, const std::string& base, std::int64_t rows, std::int64_t cols);

  std::int64_t rows() const { return rows_; }
  std::int64_t cols() const { return cols_; }
  FlatShape shape() const { return {rows_, cols_}; }

  // The tensor BASE + suffix, from now on counted as used; null when absent.
  const Checkpoint::Tensor* find(std::string_view suffix);
  // The same; throws Error when absent, saying what it would be.
  const Checkpoint::Tensor& need(std::string_view suffix, const std::string& role);

  // Codes or scales in place, as the file has them.
  void codes_in_place(const Checkpoint::Tensor& t) { matrix_.weight.data = t.view().data; }
  void scales_in_place(const Checkpoint::Tensor& t, std::int64_t group, std::int64_t group_rows = 1);
  // Memory for codes that must be converted: rows × row_bytes of the format.
  std::uint8_t* new_codes(WeightFormat format);
  // Scales (and mins, unless empty) of their own memory, in the smallest of BF16, F16 and F32 that holds all of them
  // exactly.
  void set_scales(const std::vector<float>& scales, const std::vector<float>& mins, std::int64_t group,
                  std::int64_t group_rows = 1);
  // The values themselves [rows, cols], for what no block format expresses: BF16, F16 or F32, again exactly.
  void set_values(const std::vector<float>& values);

  // Scales of a matrix with one code a byte: one for all (or an expert), one a row, one a group of columns of a row,
  // or one a block of 128×128. `weight` tells [E, rows, cols] from [rows, cols].
  void read_scales(const Checkpoint::Tensor& weight, const Checkpoint::Tensor& scales, std::int64_t configured_group);
  // One positive, finite F32 a matrix, or one an expert: returned for each expert.
  std::vector<float> read_globals(const Checkpoint::Tensor& weight, const Checkpoint::Tensor& t);

  Weight& weight() { return matrix_.weight; }
  StoredMatrix finish(WeightFormat format, std::string_view scheme);

 private:
  void* own(std::size_t bytes);
  void expand_scales(const Checkpoint::Tensor& scales, std::int64_t experts, std::int64_t rows_a_scale,
                     std::int64_t group);

  const Checkpoint& checkpoint_;
  std::string base_;
  std::int64_t rows_;
  std::int64_t cols_;
  StoredMatrix matrix_;
};

}  // namespace glint
