#pragma once
// How a quantised matrix lies in safetensors files, by conventions that other programs read: compressed-tensors for
// INT4 (pack-quantized), INT8 (int-quantized) and FP8 (float-quantized), bitsandbytes for NF4. Model facts §4.2.

#include <string>
#include <string_view>
#include <vector>

#include "tensor/codec.hpp"
#include "weights/safetensors.hpp"

namespace glint {

// Throws Error when no convention holds the spec for a matrix of that shape: NF4 in other blocks than 64, rows that do
// not fill 32-bit words. `base` names the matrix ("model.layers.0.mlp.up_proj").
void check_storable(const QuantSpec& spec, std::string_view base, std::int64_t rows, std::int64_t cols);

// The tensors of such a matrix.
std::vector<TensorInfo> stored_tensors(const QuantSpec& spec, std::string_view base, std::int64_t rows,
                                       std::int64_t cols);

void write_quantized(SafetensorsWriter& writer, const QuantSpec& spec, std::string_view base, const QuantizedWeight& q);

// The matrix in a file that write_quantized filled: in place but for mins, which files hold as zero points.
QuantizedWeight stored_weight(const SafetensorsFile& file, const QuantSpec& spec, std::string_view base,
                              std::int64_t rows, std::int64_t cols);

// One kind of matrix in quantization_config: its spec and the regular expressions of the modules' names.
struct QuantGroup {
  QuantSpec spec;
  std::vector<std::string> targets;
};

// The JSON text of config.json's quantization_config. `ignored`: modules that stay as they were. Throws Error when NF4
// stands beside other formats, which no convention describes.
std::string quantization_config(const std::vector<QuantGroup>& groups, const std::vector<std::string>& ignored);

}  // namespace glint
