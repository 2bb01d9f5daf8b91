#pragma once
// A whole model → quantised: into a new checkpoint (`glint quantize`) or in memory (--weights).

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "models/glm_4_7_flash/model_weights.hpp"
#include "models/glm_4_7_flash/quant_recipe.hpp"

namespace glint {

enum class QuantMethod : std::uint8_t {
  kRtn,     // plain round-to-nearest: the baseline
  kSearch,  // the same with searched scales
  kGptq     // error-compensated rounding; needs calibration tokens
};

struct QuantizeJob {
  std::string input_dir;
  std::string output_dir;  // must not exist
  QuantRecipe recipe;
  QuantMethod method = QuantMethod::kSearch;
  std::vector<std::int32_t> calibration;  // token ids; documents as the model reads them, one after another
  std::int64_t window_tokens = 512;       // calibration runs on windows of it
  float background = 0.05F;               // calibrate.hpp
  double damping = 0.05;                  // quantizer_gptq.hpp
  std::uint64_t shard_bytes = 5'000'000'000;
  bool resume = false;  // go on where an earlier run of the same job ended
  int threads = 0;      // 0: one a core
};

struct QuantizedRole {
  std::int64_t params = 0;
  std::int64_t bytes = 0;            // codes, scales; kept matrices too
  double squared_error = 0;          // Σ (w - ŵ)²
  double squared_sum = 0;            // Σ w²
  std::vector<std::string> formats;  // "int4-g64" …, each once
};

struct QuantizeReport {
  std::array<QuantizedRole, kRoles> roles;  // of what this run wrote: a resumed run leaves out finished shards
  std::uint64_t input_bytes = 0;
  std::uint64_t output_bytes = 0;
  std::int64_t shards = 0;
  std::int64_t shards_kept = 0;      // finished by an earlier run
  std::int64_t starved_experts = 0;  // calibrated experts that saw fewer tokens than an eighth of their inputs' size
};

// Reads a checkpoint tensor by tensor and writes another, which load_weights and other programs read. The files are
// made in "<output_dir>.partial", which is renamed when all is there. Shards that an earlier run finished are kept if
// the job is the same and their bytes hash to what that run noted. `ops` runs the calibration. Throws Error.
QuantizeReport quantize_checkpoint(const QuantizeJob& job, Ops& ops, const LoadProgress& progress = {});

// Quantises the matrices of a loaded model where they are in a plain format; they move to new memory of the backend.
// Throws Error when the backend does not read one of the recipe's formats.
void quantize_in_memory(ModelWeights& model, const QuantRecipe& recipe, Ops& ops, const LoadProgress& progress = {});

}  // namespace glint
