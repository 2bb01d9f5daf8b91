#pragma once
// The CPU backend's class: divides ops into items for the thread pool and calls the kernels of one table.

#include <algorithm>
#include <memory>
#include <span>
#include <string>

#include "backends/cpu/cpu.hpp"
#include "backends/cpu/kernels.hpp"
#include "base/thread_pool.hpp"

namespace glint::cpu {

// Hands out pieces of one block; everything is free again when it goes out of scope.
class Arena {
 public:
  explicit Arena(const Buffer& buffer) : base_(static_cast<char*>(buffer.data())), bytes_(buffer.bytes()) {}
  template <typename T>
  T* take(std::int64_t n) {
    const std::size_t want = (static_cast<std::size_t>(n) * sizeof(T) + 63) / 64 * 64;
    CHECK(used_ + want <= bytes_,
          "workspace of " + std::to_string(bytes_) + " bytes is full: reserve() had smaller limits");
    char* p = base_ + used_;
    used_ += want;
    return reinterpret_cast<T*>(p);
  }

 private:
  char* base_;
  std::size_t bytes_;
  std::size_t used_ = 0;
};

// out [x.rows, w.rows] = x · wᵀ.
struct DotJob {
  Packed x;
  Weight w;
  float* out = nullptr;
  std::int64_t out_stride = 0;
};

// The forms of a packed x.
struct PackKind {
  bool bf16 = false;
  std::int64_t quant = 0;  // columns of a block of codes: 16, 32, 64, 128, or 0 for values
  bool split = false;      // codes in the order of nibbles
  bool words = false;      // 16-bit codes
  bool twofold = false;    // two bfloat16 numbers a value, `quant` columns a tile
  int index() const {
    if (twofold) return 11;
    if (words) return 10;
    if (quant == 0) return bf16 ? 1 : 0;
    return 2 + 2 * (quant == 16 ? 0 : quant == 32 ? 1 : quant == 64 ? 2 : 3) + (split ? 1 : 0);
  }
};
inline constexpr int kPackKinds = 12;

class CpuOps final : public Ops {
 public:
  CpuOps(const Table& table, int threads);

  std::string name() const override { return std::string("cpu (") + table_.name + ")"; }
  Buffer allocate(std::size_t bytes) override { return host_buffer(bytes); }
  void upload(void* dst, const void* host_src, std::size_t bytes) override;
  void download(void* host_dst, const void* src, std::size_t bytes) override;
  void copy(void* dst, const void* src, std::size_t bytes) override;
  void reserve(const OpLimits& limits) override;
  bool supports(WeightFormat format) const override;
  bool supports(KvCodec codec) const override;
  bool supports_absorbed(const QuantSpec& kv_b) const override;

  void embed(const EmbedParams& p) override;
  void rms_norm(const RmsNormParams& p) override;
  void linear(const LinearParams& p) override;
  void mla_project(const MlaProjectParams& p) override;
  void mla_append(const MlaAppendParams& p) override;
  void mla_attend(const MlaAttendParams& p) override;
  void route(const RouteParams& p) override;
  void moe(const MoeParams& p) override;
  void mlp(const MlpParams& p) override;
  void lm_head(const LmHeadParams& p) override;
  void mtp_input(const MtpInputParams& p) override;

 private:
  // Without reserve() (tests, tools) the workspace grows with the calls; after it, a call beyond the limits is a bug.
  void fit(const OpLimits& call);
  void size_workspace();

  // Runs fn(item, thread) over [0, count); on this thread alone when the whole is too little work to share.
  template <typename Fn>
  void for_items(std::int64_t count, double work, const Fn& fn) {
    if (work < kSharedWork) {
      for (std::int64_t i = 0; i < count; ++i) fn(i, 0);
    } else {
      pool_.parallel_for(count, fn);
    }
  }
  // Bytes of weights, or flops / 8, below which waking another core costs more than it saves (about 10 µs).
  static constexpr double kSharedWork = 96 << 10;

  // How the kernels that read `w` want x: as floats, twofold, or as codes (cpu_quant.cpp).
  PackKind pack_kind(const Weight& w) const;
  // The same, but not twofold.
  PackKind plain_kind(const Weight& w) const;
  // The same where x may be rounded to bfloat16.
  PackKind rounded_kind(const Weight& w) const;
  // Rows of x in that form: where they lie if possible, else a packed copy.
  Packed packed(Arena& arena, const float* x, std::int64_t rows, std::int64_t cols, PackKind kind);
  // An empty packed matrix.
  Packed make_packed(Arena& arena, std::int64_t rows, std::int64_t cols, PackKind kind) const;
  Packed make_codes(Arena& arena, std::int64_t rows, std::int64_t cols, PackKind kind) const;
  // Whether so many rows of that kind get tiles, and room for them.
  bool has_tiles(std::int64_t rows, PackKind kind) const;
  void make_tiles(Arena& arena, Packed& p) const;
  // Fills rows [m0, m1) of a packed matrix.
  void pack_rows(const Packed& to, const float* x, std::int64_t m0, std::int64_t m1) const;

  void dot(std::span<const DotJob> jobs);
  // Rows of W an item takes, so that there are enough items for the threads. One or two rows of x take longer strips:
  // what is read lies in longer pieces. 16-bit codes and twofold values take no shorter ones than kGroupStrip: their
  // tiles are two groups of 16 rows or more.
  std::int64_t strip_rows(std::int64_t w_rows, std::int64_t row_chunks, std::int64_t x_rows, bool groups) const;
  static constexpr std::int64_t kGroupStrip = 32;
  void norm_rows(const NormArgs& first, std::int64_t rows, std::int64_t out_stride);

  struct ExpertGroup;
  PackKind kind_of(const ExpertGroup& group, const Weight& w) const;
  PackKind inner_kind(const ExpertGroup& group) const;
  void quantize_inner(std::span<const ExpertGroup> groups, const Packed* values, const Packed* inner);
  void tile_groups(Arena& arena, std::span<const ExpertGroup> groups, std::span<const Packed> x_by_kind, Packed* tiled);
  void run_experts(Arena& arena, std::span<const ExpertGroup> groups, const ConstView& x, const View& out);

  struct AttendRows;  // up to kAttendRows rows of one mla_attend
  void latent_queries(const AttendRows& a);
  void attend_blocks(const AttendRows& a);
  void attend_chunks(const AttendRows& a);
  void finish_queries(const AttendRows& a, const AttendState& run, std::int64_t pair, std::int64_t n);
  void latent_values(const AttendRows& a);

  void update_rope(const std::int32_t* positions, std::int64_t rows, float theta);
  void rope_rows(float* x, std::int64_t row) const;

  const Table& table_;
  ThreadPool pool_;
  OpLimits limits_;
  bool reserved_ = false;
  Buffer workspace_;
  // cos and sin of the last positions asked for, [max_rows][32] pairs: the same for every layer of a step.
  Buffer rope_;
  Buffer rope_positions_;
  std::int64_t rope_rows_ = 0;
  float rope_theta_ = 0;
};

// Where row n of a matrix lies, null if it has no such row.
SoonRows rows_of(const Weight& w, std::int64_t n);

// Floats of a packed matrix of that size: of values, of codes, of their tiles.
std::int64_t packed_floats(std::int64_t rows, std::int64_t cols);
std::int64_t code_floats(std::int64_t rows, std::int64_t cols);
std::int64_t tile_floats(std::int64_t rows, std::int64_t cols);
std::int64_t twofold_floats(std::int64_t rows, std::int64_t cols);  // with its tiles

// Rows that one pass of mla_attend handles: bounds its workspace (q and latents: 22 MB at 20 heads).
inline constexpr std::int64_t kAttendRows = 256;
// Floats of the workspace of mla_attend.
std::int64_t attend_floats(std::int64_t rows, std::int64_t heads, int threads, std::int64_t block);

constexpr std::int64_t row_tiles(std::int64_t rows) { return (rows + kRowTile - 1) / kRowTile; }

// The equal chunks of at most kRowChunk that `rows` rows are cut into; where x has tiles, of at most kTileChunk and
// whole tiles.
constexpr std::int64_t row_chunks(std::int64_t rows, bool tiled = false) {
  const std::int64_t most = tiled ? kTileChunk : kRowChunk;
  return (rows + most - 1) / most;
}
constexpr std::int64_t chunk_begin(std::int64_t rows, std::int64_t chunk, bool tiled = false) {
  if (!tiled) return rows * chunk / row_chunks(rows);
  return std::min(rows, row_tiles(rows) * chunk / row_chunks(rows, true) * kRowTile);
}

}  // namespace glint::cpu
