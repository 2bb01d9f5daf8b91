#pragma once
// Launchers of attention over the latent cache; see kernels.hpp for what all launchers have in common.

#include "backends/cuda/kernels.hpp"
#include "ops/params.hpp"

namespace glint::cuda {

// ---- append.cu ------------------------------------------------------------------------------------------------------

void append(const Launch& l, const float* kv, const std::int32_t* slots, void* base, std::int64_t page_stride,
            KvCodec codec, std::int64_t rows);
// H (ops/kv_codec.hpp) on the first 512 of each row's BF16 values, in place.
void hadamard_rows(const Launch& l, void* rows_bf16, std::int64_t n, std::int64_t stride);

// ---- latent_query.cu ------------------------------------------------------------------------------------------------

// query = [W_UKᵀ q_nope | q_pe] in BF16, for few rows.
void latent_query(const Launch& l, const Mat& kv_b, const float* q, std::int64_t rows, int heads, void* query);
// Only the second part, for many rows; and q_nope as BF16 [T, N, 192].
void split_query(const Launch& l, const float* q, std::int64_t rows, int heads, void* nope, void* query);

// ---- latent_products.cu: any number of rows, BF16 kv_b, Hopper ------------------------------------------------------

bool latent_products_take(const Launch& l, const Mat& kv_b);
// As latent_query; `rotated`: the first 512 of each row under H.
void latent_queries(const Launch& l, const Mat& kv_b, const float* q, std::int64_t rows, int heads, bool rotated,
                    void* query);
// out [rows, heads, 256] = W_UV latent [rows, heads, 512] in BF16.
void latent_values(const Launch& l, const Mat& kv_b, const void* latent, std::int64_t rows, int heads, float* out);

// ---- attention ------------------------------------------------------------------------------------------------------

struct CacheView {
  const void* pages = nullptr;
  std::int64_t page_stride = 0;
  KvCodec codec = KvCodec::kBF16;
  int n_seqs = 0;
  const std::int32_t* row_offsets = nullptr;
  const std::int32_t* context_tokens = nullptr;
  const std::int32_t* page_table = nullptr;
  int max_pages = 0;
  int window = 0;
  int many_rows = 0;  // attend() leaves sequences of so many rows alone; 0: none
};

inline CacheView cache_view(const KvPages& pages, const AttendBatch& batch, int window_tokens) {
  return {.pages = pages.base,
          .page_stride = pages.page_stride_bytes,
          .codec = pages.codec,
          .n_seqs = batch.n_seqs,
          .row_offsets = batch.row_offsets,
          .context_tokens = batch.context_tokens,
          .page_table = batch.page_table,
          .max_pages = batch.max_pages,
          .window = window_tokens};
}

struct Attend {
  const void* query = nullptr;  // BF16 [T, N, 576]: latent query, rotary query
  std::int64_t T = 0;
  int heads = 0;
  CacheView cache;
  float* partial = nullptr;      // [partial_rows, 512]: pieces of the context
  float2* partial_ml = nullptr;  // [partial_rows]: running maximum and sum
  std::int64_t partial_rows = 0;
  unsigned* present = nullptr;  // [kMaxPresent], zero between calls: of attend_decode
  void* latent = nullptr;       // BF16 [T, N, 512]: the result
};

// attend.cu: any batch on any device. For the codecs with H, query and latent are under H as well.
// The largest number of pieces a sequence is cut into.
inline constexpr int kMaxPieces = 128;
void attend(const Launch& l, const Attend& j);

// attend_decode.cu: few rows a sequence, on Hopper. The same in and out as attend(), but that the result is never
// under H.
inline constexpr int kFewPairs = 80;  // (row, head) pairs of a sequence, on average
inline constexpr int kFewSequences = 1024;
inline constexpr int kMaxPresent = 256;  // blocks that may wait for each other
inline constexpr int kFewTile = 40;      // pairs of a tile at most; a block has two tiles of pieces at most
bool attend_decode_takes(const Launch& l, const Attend& j);
void attend_decode(const Launch& l, const Attend& j);

// attend_prefill.cu: sequences of kManyRows rows or more in the expanded form, straight from q to the values' answer;
// the others it leaves alone. BF16 kv_b, and Launch::wgmma.
inline constexpr int kManyRows = 192;    // from here on it costs less than attend(), by arithmetic
inline constexpr int kBlockPages = 128;  // pages of a context that are expanded at once
struct PrefillSizes {                    // of the workspace
  std::int64_t block_pages = 0, latent_bytes = 0, tile_bytes = 0, state_bytes = 0;
};
PrefillSizes prefill_sizes(std::int64_t max_rows, std::int64_t max_context, std::int64_t heads);
struct AttendPrefill {
  const float* q = nullptr;      // [T, N, 256]
  const void* q_bf16 = nullptr;  // instead, if given
  std::int64_t rows = 0;         // T
  int heads = 0;
  Mat kv_b;
  CacheView cache;
  std::int64_t block_pages = 0;
  void *latent = nullptr, *tiles = nullptr, *state = nullptr;
  float* out = nullptr;      // [T, N, 256]
  void* out_bf16 = nullptr;  // where answers go instead, if given; may be q_bf16. Of one sequence only
};
bool attend_prefill_takes(const Launch& l, const Mat& kv_b, std::int64_t rows);
void attend_prefill(const Launch& l, const AttendPrefill& j);

}  // namespace glint::cuda
