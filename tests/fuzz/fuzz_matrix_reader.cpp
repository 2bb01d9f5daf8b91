// read_matrix on arbitrary sets of tensors. What passes must be safe to decode, row by row.
// Input, line by line: "rows cols method", then a tensor a line: "suffix dtype dims… : fill", where fill is a text
// whose bytes repeat over the data ("%hh" is a byte in hex), e.g. ".weight_scale F32 4 1 : %00%00%80%3f".

#include <stdlib.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <sstream>
#include <string>

#include "base/error.hpp"
#include "tensor/codec.hpp"
#include "weights/matrix_reader.hpp"

namespace {

using glint::DType;

constexpr std::int64_t kMaxElements = 4096;

void require(bool promise) {
  if (!promise) std::abort();
}

std::string unescape(const std::string& text) {
  std::string out;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '%' && i + 2 < text.size() && std::isxdigit(static_cast<unsigned char>(text[i + 1])) != 0 &&
        std::isxdigit(static_cast<unsigned char>(text[i + 2])) != 0) {
      out += static_cast<char>(std::stoi(text.substr(i + 1, 2), nullptr, 16));
      i += 2;
    } else {
      out += text[i];
    }
  }
  return out;
}

// False when the line is no tensor that a file could hold.
bool parse_tensor(const std::string& line, std::string& suffix, glint::HostTensor& tensor) {
  const std::size_t colon = line.find(" : ");
  if (colon == line.npos) return false;
  std::istringstream words(line.substr(0, colon));
  std::string dtype_text;
  if (!(words >> suffix >> dtype_text)) return false;
  if (suffix == "-") suffix.clear();  // fused experts have no suffix
  const auto dtype = glint::dtype_from_name(dtype_text);
  if (!dtype) return false;
  glint::Shape shape;
  std::int64_t elements = 1;
  for (std::int64_t dim = 0; shape.rank() < glint::Shape::kMaxRank && words >> dim;) {
    if (dim < 0 || dim > kMaxElements || (elements *= dim) > kMaxElements) return false;
    shape.push_back(dim);
  }
  const std::string fill = unescape(line.substr(colon + 3));
  tensor = glint::HostTensor(*dtype, shape);
  auto* data = tensor.view.as<char>();
  for (std::size_t i = 0; i < tensor.view.bytes() && !fill.empty(); ++i) data[i] = fill[i % fill.size()];
  return true;
}

// One folder for all runs of the process.
const std::string& directory() {
  static const std::string path = [] {
    std::string name = (std::filesystem::temp_directory_path() / "glint_fuzz_XXXXXX").string();
    require(::mkdtemp(name.data()) != nullptr);
    static std::string kept = name;
    std::atexit([] {
      std::error_code ec;
      std::filesystem::remove_all(kept, ec);
    });
    return name;
  }();
  return path;
}

void decode(const glint::StoredMatrix& m, std::int64_t rows, std::int64_t cols) {
  const glint::Weight& w = m.weight;
  require(w.rows == rows && w.cols == cols && w.data != nullptr && !m.used.empty() && !m.scheme.empty());
  if (glint::has_scales(w.format)) {
    require(w.scales != nullptr && w.group >= 1 && w.group <= cols && w.group_rows >= 1);
    const bool known = w.scale_dtype == DType::kF32 || w.scale_dtype == DType::kF16 || w.scale_dtype == DType::kBF16;
    require(known);
  }
  std::vector<float> row(static_cast<std::size_t>(cols));
  for (std::int64_t r = 0; r < rows; ++r) glint::decode_row(w, r, row.data());  // ASan: inside the tensors
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  std::istringstream lines(std::string(reinterpret_cast<const char*>(data), size));
  std::int64_t rows = 0, cols = 0;
  glint::QuantConfig config;
  std::string line;
  std::getline(lines, line);
  std::istringstream head(line);
  if (!(head >> rows >> cols) || rows < 1 || cols < 1 || rows > kMaxElements || cols > kMaxElements) return 0;
  if (rows * cols > 4 * kMaxElements) return 0;
  head >> config.method >> config.group;
  config.gptq_v2 = config.method == "gptq_v2";

  std::vector<glint::HostTensor> memory;
  std::vector<glint::NamedTensor> named;
  while (named.size() < 12 && std::getline(lines, line)) {
    std::string suffix;
    glint::HostTensor tensor;
    if (!parse_tensor(line, suffix, tensor)) return 0;
    for (const glint::NamedTensor& t : named) {
      if (t.name == "m" + suffix) return 0;
    }
    named.push_back({"m" + suffix, memory.emplace_back(std::move(tensor)).view});
  }
  try {
    glint::write_safetensors(directory() + "/model.safetensors", named);
    const glint::Checkpoint checkpoint(directory());
    decode(glint::read_matrix(checkpoint, "m", rows, cols, config), rows, cols);
  } catch (const glint::Error& e) { require(std::strlen(e.what()) > 0); }
  return 0;
}
