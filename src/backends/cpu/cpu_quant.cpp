// How x meets weights: block formats as int8 codes where the blocks fit, BF16 weights of up to 4 MB as two
// bfloat16 numbers a value where AMX is (twofold_amx.inl.hpp), else as 16-bit codes where VNNI is
// (words_vnni.inl.hpp), all else as floats, but for gate and up of BF16 experts.
//
// bfloat16 products are as fast as those of 16-bit codes and need none of W, which pays for experts of a few rows each,
// but they round x. Everywhere, that costs 4.2e-4 nats of KL (tiny model, 4,096 validation tokens, F32 cache,
// 2026-11-28; the bar is 1e-4), nearly all of it in the dense layer's MLP (3.4e-4); in gate, up and head alone 6.2e-5.
//
// int8, symmetric, a scale every 64 or 128 columns, rounded to nearest even: for normally distributed x an error of
// 3.2e-5 (64 columns) or 3.9e-5 (128) of its square, a hundredth of what rounding W to four bits costs (7e-3). Narrower
// groups of W have x's scales at their own borders, so that one product of factors serves each. NF4's
// codebook is rounded to integers as well, after multiplication by 112.03, the factor up to 127.49 with the least mean
// squared error: 1.8e-5 of the square of W.

#include "backends/cpu/cpu_ops.hpp"

namespace glint::cpu {
namespace {

// Columns that share a scale of x, 0 if W's groups do not fit the integer kernels. Depends on W alone, never on the
// number of rows: a row's result must not depend on the batch.
std::int64_t code_block(const Weight& w) {
  const bool integer = has_scales(w.format) && w.format != WeightFormat::kF8E4M3;
  if (!integer || w.cols % 64 != 0 || w.cols == 0) return 0;
  if (w.group == 16 || w.group == 32) return w.group;
  if (w.group % 64 != 0) return 0;
  const bool wide = w.format == WeightFormat::kI4 || w.format == WeightFormat::kI8;
  return wide && w.group % 128 == 0 && w.cols % 128 == 0 ? 128 : 64;
}

// BF16 weights of up to 4 MB.
bool is_small(const Weight& w) {
  constexpr std::int64_t kMost = std::int64_t{1} << 21;  // values
  return w.format == WeightFormat::kBF16 && w.cols > 0 && w.rows * w.cols <= kMost;
}

std::int64_t scale_stride(std::int64_t cols, std::int64_t block) { return (cols / block + 15) / 16 * 16; }

}  // namespace

PackKind CpuOps::rounded_kind(const Weight& w) const {
  if (table_.dots_bf16 && w.format == WeightFormat::kBF16) return {.bf16 = true};
  return plain_kind(w);
}

// Not larger ones: of a lone row, tiles of W that come from memory take 13 to 35 % longer than vectors do (real width,
// 2 layers, 2 cores of a Xeon, 2026-11-29), though 128 rows take half as long.
PackKind CpuOps::pack_kind(const Weight& w) const {
  if (table_.dots_twofold && is_small(w) && w.cols % kTwofoldStep == 0) return {.quant = kTwofoldStep, .twofold = true};
  return plain_kind(w);
}

PackKind CpuOps::plain_kind(const Weight& w) const {
  // A single row reads each value twice, once for its row's largest: nothing where W stays in the cache, a fifth of the
  // time where it comes from memory.
  if (table_.dots_words && is_small(w) && w.cols % kWordBlock == 0) return {.quant = kWordBlock, .words = true};
  if (!has_scales(w.format)) return {};
  const std::int64_t block = code_block(w);
  return {.quant = block, .split = block != 0 && weight_code_bits(w.format) == 4};
}

Packed CpuOps::make_codes(Arena& arena, std::int64_t rows, std::int64_t cols, PackKind kind) const {
  constexpr std::int64_t kApart = 64;  // rows a multiple of 4096 bytes apart would share their L1 sets
  Packed p{.rows = rows, .cols = cols, .quant = kind.quant, .split = kind.split, .words = kind.words};
  if (kind.twofold) {
    p.twofold = true;
    p.code_stride = 2 * cols + kApart / 2;
    p.data = arena.take<BF16>(rows * p.code_stride);
    if (has_tiles(rows, kind)) make_tiles(arena, p);
    return p;
  }
  p.scale_stride = scale_stride(cols, kind.quant);
  if (kind.words) {
    p.code_stride = cols + kApart / 2;
    p.data = arena.take<std::int16_t>(rows * p.code_stride);
    p.scales = arena.take<float>(rows * p.scale_stride);
    return p;
  }
  p.code_stride = cols + kApart;
  p.data = arena.take<std::int8_t>(rows * p.code_stride);
  p.scales = arena.take<float>(rows * p.scale_stride);
  p.sums = arena.take<float>(rows * p.scale_stride);
  p.counts = arena.take<std::int32_t>(rows * p.scale_stride);
  if (has_tiles(rows, kind)) make_tiles(arena, p);
  return p;
}

bool CpuOps::has_tiles(std::int64_t rows, PackKind kind) const {
  if (kind.twofold) return rows > 1;
  return table_.tile_codes != nullptr && kind.quant != 0 && !kind.words && rows >= table_.tile_from;
}

void CpuOps::make_tiles(Arena& arena, Packed& p) const {
  const std::int64_t tiles = row_tiles(p.rows);
  if (p.twofold) {
    p.tile_stride = kRowTile * p.cols * 2 * static_cast<std::int64_t>(sizeof(BF16));
    p.tiles = arena.take<std::int8_t>(tiles * p.tile_stride);
    return;
  }
  p.scale_stride = scale_stride(p.cols, p.quant);
  p.tile_stride = kRowTile * p.cols;
  p.tiles = arena.take<std::int8_t>(tiles * p.tile_stride);
  p.tile_scales = arena.take<float>(tiles * kRowTile * p.scale_stride);
  p.tile_sums = arena.take<float>(tiles * kRowTile * p.scale_stride);
}

std::int64_t code_floats(std::int64_t rows, std::int64_t cols) {
  constexpr std::int64_t kRounding = 4 * 16;  // of the arena's pieces to 64 bytes
  return rows * ((cols + 64 + 3) / 4 + 3 * scale_stride(cols, 16)) + kRounding;
}

std::int64_t tile_floats(std::int64_t rows, std::int64_t cols) {
  constexpr std::int64_t kRounding = 3 * 16;
  const std::int64_t whole = row_tiles(rows) * kRowTile;
  return whole * ((cols + 3) / 4 + 2 * scale_stride(cols, 16)) + kRounding;
}

std::int64_t twofold_floats(std::int64_t rows, std::int64_t cols) {
  constexpr std::int64_t kRounding = 2 * 16;
  return rows * (cols + 16) + row_tiles(rows) * kRowTile * cols + kRounding;
}

}  // namespace glint::cpu
