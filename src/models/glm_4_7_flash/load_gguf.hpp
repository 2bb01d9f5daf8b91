#pragma once
// GGUF files of the model (model facts §4.3): llama.cpp's "deepseek2" architecture.

#include <memory>
#include <string>

#include "models/glm_4_7_flash/model_weights.hpp"
#include "models/glm_4_7_flash/tensor_table.hpp"
#include "weights/gguf.hpp"

namespace glint {

// "blk.3.attn_q_a.weight"; layer is ignored for tensors outside the layers. Experts are one tensor a layer.
std::string gguf_name(const TensorSpec& spec, std::int64_t layer);

// The split form of kv_b: k_b [N, 512, 192], the transposed key half, and v_b [N, 256, 512].
inline constexpr std::string_view kGgufKB = "attn_k_b.weight";
inline constexpr std::string_view kGgufVB = "attn_v_b.weight";

// Metadata → config. A missing expert_gating_func means sigmoid (files made before 2026-01-21 lack it) and a missing or
// zero expert_weights_scale the official 1.8; ends of a turn are eos, eot and eom, and <|user|> and <|observation|>
// where those keys are missing. Throws Error (file, key, found, expected) for another architecture, softmax gating,
// head sizes that the kernels do not have, group-limited routing, rope scaling, and sizes that are missing or absurd.
ModelConfig config_from_gguf(const GgufModel& file);

// Loads a GGUF model with all checks of load_weights. F32, F16 and BF16 matrices stay in the file's mapping on host
// backends; blocks are taken apart into Glint's formats (weights/gguf_types.hpp) by all threads, straight into the
// backend's memory, and the pages that were read are dropped behind: the process grows by the repacked size, which is
//   Q8_0, Q4_0, Q4_1, Q5_0 (9 for 5.5 bits), Q5_1 (10 for 6) as the file or as said;
//   Q4_K 5 bits for 4.5, Q5_K 9 for 5.5, Q6_K 9 for 6.6.
// A format that the backend does not read becomes F32: exact, four bytes a value. kv_b is absorbed into the attention
// and never stays quantised: BF16 and F32 as stored, everything else F16.
ModelWeights load_gguf(std::shared_ptr<const GgufModel> file, Ops& ops, const LoadProgress& progress = {});
ModelWeights load_gguf(const std::string& path, Ops& ops, const LoadProgress& progress = {});

}  // namespace glint
