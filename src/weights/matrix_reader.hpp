#pragma once
// How one matrix is stored in a checkpoint, whatever program wrote it. The schemes are in src/weights/format_*.cpp,
// their order in matrix_reader.cpp. Precision is decided per matrix from the tensors that are there,
// never from the checkpoint's global quantisation config: mixed files are the norm (model facts §4.2).

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "tensor/weight.hpp"
#include "weights/checkpoint.hpp"

namespace glint {

// What config.json says of the quantisation, as far as a scheme needs it to read a matrix. All optional.
struct QuantConfig {
  std::string
      method;  // quant_method: "compressed-tensors", "awq", "gptq", "auto-round", "bitsandbytes", "modelopt", "fp8" …
  std::int64_t bits = 0;
  std::int64_t group = 0;  // group_size; 0: not given, -1 becomes 0
  bool symmetric = true;
  bool desc_act = false;  // GPTQ's act-order
  bool gptq_v2 = false;   // checkpoint_format gptq_v2: zero points without the offset of one
};

// A matrix with host pointers: into the mapped files, or into `owned` where the stored layout had to be converted.
struct StoredMatrix {
  Weight weight;
  std::vector<Buffer> owned;
  std::vector<const Checkpoint::Tensor*> used;  // every tensor that it was made of
  std::string_view scheme;                      // "plain", "compressed-tensors int4" …
};

struct MatrixScheme {
  std::string_view name;
  // The suffixes that may follow the matrix's base name ("…q_a_proj"), e.g. {".weight_packed", ".weight_scale"}: the
  // loader knows by them which matrix a tensor belongs to.
  std::span<const std::string_view> suffixes;
  // True when the tensors of `base` are there in this scheme's form.
  bool (*matches)(const Checkpoint& checkpoint, const std::string& base);
  // Reads it; checks every dtype and shape. Throws Error (found, expected, file, tensor) for halves of a pair that are
  // missing, wrong group counts, scales that are not finite, and variants that the scheme does not cover.
  StoredMatrix (*read)(const Checkpoint& checkpoint, const std::string& base, std::int64_t rows, std::int64_t cols,
                       const QuantConfig& config);
};

std::span<const MatrixScheme> matrix_schemes();

// The first scheme of the table that matches; null when none does.
const MatrixScheme* find_scheme(const Checkpoint& checkpoint, const std::string& base);

// Whether any tensor of a matrix is there, complete or not.
bool has_matrix(const Checkpoint& checkpoint, const std::string& base);

// Reads by the first scheme of the table that matches; throws Error naming what was found under `base` when none does.
StoredMatrix read_matrix(const Checkpoint& checkpoint, const std::string& base, std::int64_t rows, std::int64_t cols,
                         const QuantConfig& config);

// "model.layers.3.mlp.gate" for every suffix that some scheme knows; the name itself if there is none.
std::string matrix_base(std::string_view tensor_name);

}  // namespace glint
