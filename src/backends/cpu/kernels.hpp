#pragma once
// The kernels of one instruction set as a table of functions, and what they are called with. Nothing here depends on
// the instruction set: the ops (ops_*.cpp, built for the baseline) divide the work and call through the table.
//
// The rule behind batch invariance: element k of a dot product goes to lane k mod lanes, in ascending k, and the lanes
// are added in a fixed tree at the end. Tiles, blocks and threads only decide when that happens, never in which order.

#include <cstdint>
#include <string>
#include <vector>

#include "ops/kv_codec.hpp"

namespace glint::cpu {

inline constexpr std::int64_t kBlock = 512;      // k values of a packed block: a W tile of 8 rows is 16 KB, half of L1
inline constexpr std::int64_t kPad = 32;         // packed rows are padded with zeros to this many values
inline constexpr std::int64_t kStrip = 64;       // most rows of W in a work item
inline constexpr std::int64_t kLongStrip = 256;  // the same for at most kFewRowsOfX rows of x
// Whether one row of x has every line of W's codes fetched, or only some, which lead the hardware's prefetch: by CPU.
extern const bool fetches_every_line;
inline constexpr std::int64_t kFewRowsOfX = 2;
inline constexpr std::int64_t kRowChunk = 132;   // most rows of x in one kernel call; whole tiles of 2, 3 and 6
inline constexpr std::int64_t kRowTile = 16;     // rows of a tile of x (Packed::tiles)
inline constexpr std::int64_t kTileChunk = 256;  // most rows of x in one kernel call where x has tiles
inline constexpr std::int64_t kGemmRows = 28;    // from here on, W is converted to a tile before it is used
inline constexpr std::int64_t kChunk = 256;      // cache positions of an attention chunk, at multiples of it
inline constexpr std::int64_t kQueryBlock =
    48;  // (row, head) pairs that share one pass over the cache, for most tables
inline constexpr std::int64_t kMostQueries = 96;     // the same for any
inline constexpr std::int64_t kStreamedQueries = 8;  // of a block: see Table::streams_pages
inline constexpr std::int64_t kManyHeads = 12;       // from here on a table may have blocks of more than kQueryBlock
inline constexpr std::int64_t kTwofoldStep = 32;     // columns of a tile of values that are two bfloat16 numbers
inline constexpr std::int64_t kWordBlock = 64;  // values of x that share a scale when they meet BF16 weights as codes
inline constexpr std::int64_t kTileAlign = 6;   // a whole number of every table's tiles
inline constexpr float kLowest = -3.0e38F;      // below every score that can occur

// Rows of x as the dot kernels read them: value (m, k) lies at (k / block) · rows · block + m · block + k % block.
// One block is plain row-major. bf16: values are rounded to bfloat16, for the kernels that multiply those.
struct Packed {
  void* data = nullptr;
  std::int64_t rows = 0;
  std::int64_t cols = 0;   // without the padding
  std::int64_t block = 0;  // a multiple of kPad, or cols itself when x is used where it lies
  bool bf16 = false;
  // For block-format weights: int8 codes q = round(x / scale), a scale and scale · Σ q for every `quant` columns (16,
  // 32, 64 or 128; cols is a multiple of it and of 64). Code (m, k) lies at m · code_stride + k; if split, every 64
  // columns (128 with VNNI) are stored even ones first, as nibbles are. Row m of scales, sums and counts (Σ q) begins
  // at m · scale_stride and is filled up with zeros.
  std::int64_t quant = 0;  // 0: values, as above
  bool split = false;
  // int16 codes, a scale every `quant` columns: kWordBlock for BF16 weights, all of a latent for a kv_b in INT8. No
  // sums and no counts.
  bool words = false;
  // Each value as two bfloat16 numbers that are added: row m has its upper ones at m · code_stride, its lower ones
  // `cols` after them. `tiles`: of each 16 rows the steps of kTwofoldStep columns, of each step the upper ones and the
  // lower ones, of these the 16 pairs of columns, of a pair the rows. No scales.
  bool twofold = false;
  std::int64_t code_stride = 0;
  std::int64_t scale_stride = 0;  // a multiple of 16
  float* scales = nullptr;
  float* sums = nullptr;
  std::int32_t* counts = nullptr;
  // int8 codes once more, or instead, for tables that want them (Table::tile_codes): of each 16 rows the blocks of
  // `quant` columns, of each block the rows; if split, a row's even columns first. Rows [16 i, 16 i + 16) begin at
  // i · tile_stride; their scales and sums are [scale_stride][16] at i · 16 · scale_stride.
  std::int8_t* tiles = nullptr;
  std::int64_t tile_stride = 0;
  float* tile_scales = nullptr;
  float* tile_sums = nullptr;

  void* at(std::int64_t m, std::int64_t k) const {
    const std::int64_t i = (k / block) * rows * block + m * block + k % block;
    return static_cast<char*>(data) + i * (bf16 ? 2 : 4);
  }
};

// Rows of W that are read soon, and their scales.
struct SoonRows {
  const void* data = nullptr;
  const void* scales = nullptr;  // null as well if they lie in blocks of rows
};

// out[m - m0][n - n0] = x[index[m]] · w[n] for m in [m0, m1), n in [n0, n1).
struct DotArgs {
  const Packed* x = nullptr;
  const std::int32_t* index = nullptr;  // null: row m itself
  std::int64_t m0 = 0, m1 = 0;          // at most kRowChunk rows; with tiles kTileChunk, from a whole tile on
  Weight w;
  std::int64_t n0 = 0, n1 = 0;
  float* out = nullptr;
  std::int64_t out_stride = 0;
  SoonRows next;  // as wide as w's, likely read after these: fetched ahead
};

// out[m][n] = scale · Σ_k a[m][k] w[k][n] for n < w.cols, k < w.rows: W read along its rows (W_UKᵀ q). kI8 with one
// scale a row, no mins and at most kNope rows: codes meet a[m][k] · scale[k], rounded once whatever the number of rows.
struct CombineArgs {
  const float* a = nullptr;
  std::int64_t a_stride = 0;
  std::int64_t rows = 0;
  Weight w;
  float scale = 1;
  float* out = nullptr;
  std::int64_t out_stride = 0;
};

// Softmax state of `n` queries: the sum of exp(s - top), and the latent weighted by the same.
struct AttendState {
  float* top = nullptr;     // [n], kLowest: nothing seen yet
  float* sum = nullptr;     // [n]
  float* latent = nullptr;  // [n, 512]
};

// Memory that is read soon: `pieces` of `bytes` each, `stride` bytes apart.
struct Soon {
  const void* data = nullptr;
  std::int64_t stride = 0, bytes = 0, pieces = 0;
};

// `n` queries of one sequence over the positions [begin, end) of one chunk; the state starts from zero.
// Query i sees [first[i], last[i]); nothing outside the union of these is read.
struct AttendArgs {
  const float* q = nullptr;  // [n, 576], scaled
  std::int64_t n = 0;
  const std::int64_t* first = nullptr;
  const std::int64_t* last = nullptr;
  std::int64_t begin = 0, end = 0;
  KvPages pages;
  const std::int32_t* page_table = nullptr;  // of this sequence
  AttendState out;
  float* scratch = nullptr;         // kAttendScratch floats, 64 bytes aligned
  bool again = false;               // the call before with this scratch had the same queries
  std::int64_t heads = kManyHeads;  // of a row: what a kernel may choose its arithmetic by, since it never changes
  Soon soon;                        // may be fetched meanwhile: attention computes while memory has nothing to do
};
inline constexpr std::int64_t kAttendScratch = kPageTokens * kKvRow + kQueryBlock * kPageTokens;

struct NormArgs {
  const float* x = nullptr;
  const float* delta = nullptr;   // may be null
  float* sum = nullptr;           // x + delta, when delta is given
  const float* weight = nullptr;  // [n]
  float* out = nullptr;           // may be null or x
  std::int64_t n = 0;
  float eps = 0;
};

struct Table {
  const char* name = "";
  int lanes = 0;
  bool dots_bf16 = false;     // BF16 weights meet activations rounded to bf16
  bool dots_words = false;    // BF16 weights and what they meet become 16-bit codes
  bool dots_twofold = false;  // what BF16 weights meet becomes two bfloat16 numbers a value

  void (*pack)(const Packed& to, const float* x, std::int64_t x_stride, std::int64_t m0, std::int64_t m1) = nullptr;
  // The same for a matrix of codes, or of values that are twofold.
  void (*quantize)(const Packed& to, const float* x, std::int64_t x_stride, std::int64_t m0, std::int64_t m1) = nullptr;
  // Rows index[m] (null: m) of codes → rows m of the tiles of `to`, for m in [m0, m1); m0 is a whole number of tiles.
  // Null if this table has no use for them.
  void (*tile_codes)(const Packed& from, const std::int32_t* index, const Packed& to, std::int64_t m0,
                     std::int64_t m1) = nullptr;
  std::int64_t tile_from = 0;  // rows from which tiles are faster
  void (*encode_words)(const Packed& to, const float* x, std::int64_t x_stride, std::int64_t m0,
                       std::int64_t m1) = nullptr;
  void (*dot)(const DotArgs& a) = nullptr;
  void (*combine)(const CombineArgs& a) = nullptr;
  // values [576] → a cache row of F16 or one of the short codecs (ops/kv_codec.hpp), and kv_hadamard().
  void (*kv_encode)(KvCodec codec, const float* values, void* row) = nullptr;
  void (*hadamard)(float* latent) = nullptr;
  // attend() asks for AttendArgs::soon evenly while it computes, if it is one piece of a page's rows at most and there
  // are no more queries than kStreamedQueries.
  bool streams_pages = false;
  std::int64_t query_block = kQueryBlock;  // most queries of one attend, with kManyHeads heads or more
  // Rows of INT8 and INT4 pages are used as they lie: q and the answer are then under the Hadamard transform.
  void (*attend)(const AttendArgs& a) = nullptr;
  // run = run ⊕ part, both of n queries; a part that saw nothing leaves run as it is.
  void (*attend_merge)(const AttendState& run, const AttendState& part, std::int64_t n) = nullptr;
  // out[i] = latent[i] / sum[i].
  void (*attend_finish)(const AttendState& run, std::int64_t i, float* out) = nullptr;
  void (*norm)(const NormArgs& a) = nullptr;
  // to[m][k0 + j] = silu(gate[j]) · up[j] for j < n: `to` is a packed matrix.
  void (*silu_mul)(const float* gate, const float* up, std::int64_t n, const Packed& to, std::int64_t m,
                   std::int64_t k0) = nullptr;
  void (*add_scaled)(float* out, const float* x, float scale, std::int64_t n) = nullptr;
  void (*to_float)(const void* from, WeightFormat format, float* to, std::int64_t n) = nullptr;
  void (*to_bf16)(const float* from, BF16* to, std::int64_t n) = nullptr;
  // For measure_peaks: each returns a value that depends on all the work, so that none is optimised away.
  float (*read)(const void* data, std::int64_t bytes) = nullptr;
  float (*multiply_f32)(std::int64_t steps) = nullptr;   // kPeakFlopsF32 · steps · lanes
  float (*multiply_bf16)(std::int64_t steps) = nullptr;  // the same count, or null
};
// Flops a step and lane of the peak loops: 12 accumulators, multiply and add; bf16 dots do two of these a lane.
inline constexpr double kPeakFlops = 24;

const Table& generic_table();
const Table& avx2_table();
const Table& avx512_table();
const Table& avx512vnni_table();
const Table& avx512bf16_table();
const Table& amx_table();

// Adds a table for tests: make_cpu_ops() finds it by name, cpu_isas() does not list it. Before main() only; returns
// true.
bool register_table(const Table& table);
std::vector<std::string> registered_tables();
// The table of that name, or the best for "". Throws Error when there is none here.
const Table& find_table(const std::string& name);

}  // namespace glint::cpu
