#pragma once
// What the decode kernel is given: a whole step of up to eight rows, one row a sequence (decode_step.cu).

#include "backends/cuda/kernels.hpp"

#ifdef __CUDACC__
#define GLINT_HOST_DEVICE __host__ __device__
#else
#define GLINT_HOST_DEVICE
#endif

namespace glint::cuda {

inline constexpr int kDecodeRows = 8;          // rows of a step at most: the columns of one tensor-core tile
inline constexpr int kDecodeHeads = 20;        // query heads at most: what attention's shared memory holds
inline constexpr int kDecodeChoices = 32;      // rows · experts a row: grouped by one warp
inline constexpr int kDecodeSlices = 8;        // parts of a dense MLP's inner size at most
inline constexpr int kDecodeSplits = 64;       // pieces of a context
inline constexpr int kDecodeSliceCols = 2048;  // inner columns of a dense slice at most

// log2 of a unit's columns.
GLINT_HOST_DEVICE constexpr int unit_shift(WeightFormat f) {
  return f == WeightFormat::kBF16 ? 5 : f == WeightFormat::kI8 || f == WeightFormat::kF8E4M3 ? 6 : 7;
}

// How a row of x lies in shared memory, by the order in which a format's lanes meet the columns: as it is; in 64s whose
// eights are turned (lane t of a quad has columns 16 t … 16 t + 15); the same with values paired (0,4) (1,5) (2,6)
// (3,7).
enum class Staging : std::uint8_t { kPlain, kTurned, kPaired };
GLINT_HOST_DEVICE constexpr Staging staging_of(WeightFormat f) {
  return f == WeightFormat::kI4 ? Staging::kPaired : f == WeightFormat::kBF16 ? Staging::kPlain : Staging::kTurned;
}

// What a scale covers: nothing; a whole row; 64 << group_shift columns of 1 << row_shift rows.
enum class DecodeScale : std::uint8_t { kNone, kRow, kGroup };

// No default values, since it lies in shared memory: make it with {}.
struct DecodeMat {
  const unsigned char* data;
  const unsigned char* scales;
  std::int32_t row_bytes;
  std::int32_t scale_row_bytes;
  std::int32_t rows;
  std::int32_t cols;
  WeightFormat format;
  DecodeScale kind;
  std::uint8_t scale_bytes;  // of one scale
  bool scale_f16;            // F16, not BF16, where scale_bytes is 2
  std::uint8_t group_shift;
  std::uint8_t row_shift;
};

// Gate, up, down of one routed expert: shapes are the layer's.
struct DecodeExpert {
  const unsigned char* data[3];
  const unsigned char* scales[3];
};

struct DecodeLayerData {
  DecodeMat q_a, kv_a, q_b, kv_b, o;              // in the order of DecodeMatrix
  DecodeMat gate, up, down;                       // routed experts, without pointers
  DecodeMat shared_gate, shared_up, shared_down;  // the shared expert, or the dense MLP
  const float *input_norm, *q_a_norm, *kv_a_norm, *post_norm, *router, *router_bias;
  const DecodeExpert* experts;
  unsigned char* pages;
  std::int64_t page_stride;
  std::int32_t n_slices;    // the shared MLP's inner size is cut into so many parts …
  std::int32_t slice_cols;  // … of so many columns
  std::int32_t moe;         // 1: routed experts besides
  std::int32_t unused;
};
static_assert(sizeof(DecodeLayerData) % 16 == 0);

struct DecodeStep {
  const DecodeLayerData* layers = nullptr;
  int n_layers = 0, n_rows = 0, n_logits = 0;
  int heads = 0, hidden = 0, q_lora = 0, n_experts = 0, top_k = 0;
  bool normalize = true;
  float routed_scale = 1, eps = 0, latent_eps = 0;
  DecodeMat lm_head{};
  const float* final_norm = nullptr;
  std::int64_t valid_vocab = 0;
  // In: the embedded rows. Out: the residual stream, the final norm's rows, the logits.
  float* hidden_rows = nullptr;
  float* x_out = nullptr;
  float* logits = nullptr;
  const std::int32_t *positions = nullptr, *slots = nullptr, *context = nullptr, *page_table = nullptr,
                     *logit_rows = nullptr;
  int max_pages = 0, window = 0;
  RopeFrequencies frequencies{};
  // Between blocks.
  float* low = nullptr;               // [rows, q_lora]
  float* kv = nullptr;                // [rows, 576]
  std::uint16_t* q = nullptr;         // [rows, heads · 256]
  std::uint16_t* query = nullptr;     // [rows, heads · 512]: the latent query
  std::uint16_t* attended = nullptr;  // [rows, heads · 256]
  std::uint16_t* act = nullptr;       // [places, act_stride]
  int act_stride = 0;
  float* scores = nullptr;           // [rows, n_experts]
  std::uint16_t* partial = nullptr;  // [rows, kDecodeSplits, heads, 512]
  float2* partial_ml = nullptr;      // [rows, kDecodeSplits, heads]
  unsigned* arrivals = nullptr;      // counts for ever
  unsigned arrived = 0;              // its value when the step begins
  // Set by the launcher.
  int starts[3] = {};  // blocks that kQB, kOut, kRoutedUp begin at
  int depth = 0;       // units in flight a warp
  int area_bytes = 0;  // shared memory of activations and partial sums
  int x_bytes = 0;     // of it, activations
};

// Barriers that a step passes: how far `arrivals` moves, per block.
int decode_barriers(int n_layers, int n_moe_layers);
// Whether the device has the blocks and the shared memory; other sizes are checked by the caller (cuda_decode.cpp).
// widest_x: columns of the widest row of activations; nf4: some matrix has that format.
bool decode_device_fits(const Launch& l, const DecodeStep& s, int widest_x, bool nf4);
void decode_step(const Launch& l, DecodeStep& s, int widest_x, bool nf4);

}  // namespace glint::cuda
