// Chooses tiles for products on sm_90a.

#include <algorithm>

#include "backends/cuda/hopper_job.hpp"
#include "base/check.hpp"

namespace glint::cuda {
namespace {

constexpr std::int64_t kRows = 128;  // of W a tile

std::int64_t tiles(std::int64_t n, std::int64_t size) { return (n + size - 1) / size; }

// Columns a stage, as in HopperTile.
int depth(WeightFormat f, bool large) { return large ? 64 : 64 * 16 / weight_code_bits(f); }

bool scales_fit(const MatShape& m, const MatPtr& at) {
  if (!has_scales(m.format) || m.group >= m.cols) return true;
  const int group = m.group;
  if (group < 32 || (group & (group - 1)) != 0) return false;
  const bool pairs = m.scale_dtype != DType::kF32;  // 16-bit scales come two at a time
  const auto aligned = [](const void* p) { return reinterpret_cast<std::uintptr_t>(p) % 4 == 0; };
  return aligned(at.scales) && aligned(at.mins) && (!pairs || m.groups_a_row % 2 == 0);
}

void set_scales(HopperJob& job, bool large) {
  const MatShape& m = job.shape[0];
  if (!has_scales(m.format) || m.group >= m.cols) return;
  job.scale_shift = 0;
  while (1 << job.scale_shift < m.group) ++job.scale_shift;
  job.scales_a_stage = std::max(1, depth(m.format, large) / m.group);
}

void run(const Launch& l, const HopperJob& job, bool large, std::int64_t blocks) {
  const auto n = static_cast<unsigned>(blocks);
  switch (job.shape[0].format) {
    case WeightFormat::kF8E4M3:
      return hopper_f8(l, job, large, n);
    case WeightFormat::kI8:
      return hopper_i8(l, job, large, n);
    case WeightFormat::kI4:
      return hopper_i4(l, job, large, n);
    case WeightFormat::kNF4:
      return hopper_nf4(l, job, large, n);
    default:
      return hopper_bf16(l, job, large, n);
  }
}

// How a dense product is cut. Costs are in cycles a multiprocessor, for each 64 columns.
struct Plan {
  bool large = false;
  std::int64_t token_tiles = 1;
  int split = 1;
  double cost = 1e30;
};

Plan plan(const Launch& l, const HopperJob& job, std::int64_t rows, bool may_split) {
  const std::int64_t row_tiles = static_cast<std::int64_t>(job.row_tiles[0]) * job.batch;
  const double steps = static_cast<double>(tiles(job.shape[0].cols, 64));
  Plan best;
  const auto consider = [&](bool large, std::int64_t token_tiles, int split, double cost) {
    if (cost < best.cost) best = {large, token_tiles, split, cost};
  };
  for (std::int64_t n = tiles(rows, hopper_tokens(job.shape[0].format)); n <= tiles(rows, 64); ++n) {
    const double tokens = static_cast<double>(tiles(tiles(rows, n), 32) * 32);
    const double waves = static_cast<double>(tiles(row_tiles * n, l.n_sms));
    consider(true, n, 1, waves * (steps * std::max(400.0, 100 + 4 * tokens) + 1500 + 16 * tokens));
  }
  const std::int64_t n = tiles(rows, 64);
  for (int split = 1; split <= (may_split ? 8 : 1); split *= 2) {
    const std::int64_t stages = tiles(job.shape[0].cols, depth(job.shape[0].format, false));
    if (stages < 2 * split && split > 1) break;
    const std::int64_t most = split == 1 ? l.n_sms : l.n_sms / 16 * 16 / split;  // clusters at once
    const double waves = static_cast<double>(tiles(row_tiles * n, std::max<std::int64_t>(1, most)));
    if (split > 1 && row_tiles * n > most) break;
    consider(false, n, split, waves * (steps / split * 500 + 2000 + (split > 1 ? 2500 : 0)));
  }
  return best;
}

}  // namespace

bool hopper_takes(const Launch& l, const Mat& w) {
  if (!l.hopper) return false;
  const int bits = weight_code_bits(w.shape.format);
  if (w.shape.format != WeightFormat::kBF16 && column_order(w.shape.format) == ColumnOrder::kNatural) return false;
  // Whole 16-byte units a row, of W and of x, and whole orders of columns.
  if (w.shape.cols % (bits == 4 ? 32 : bits == 8 ? 16 : 8) != 0) return false;
  if (reinterpret_cast<std::uintptr_t>(w.at.data) % 16 != 0) return false;
  return scales_fit(w.shape, w.at);
}

void hopper_dense(const Launch& l, const Tiled& t) {
  HopperJob job;
  job.shape[0] = job.shape[1] = t.w.shape;
  job.first.at[0] = t.w.at;
  job.second.at[0] = t.up;
  job.x = t.x;
  job.x_batch = t.x_batch;
  job.x_units = static_cast<std::uint32_t>(t.x_stride / 8);
  job.rows = static_cast<int>(t.rows);
  job.kind = t.out_kind;
  job.out_order = t.out_order;
  const bool is_gated = t.out_kind == TiledOut::kSiluMul;
  job.tile_outputs = is_gated ? 64 : 128;
  job.row_tiles[0] = static_cast<int>(tiles(t.w.shape.rows, job.tile_outputs));
  job.batch = t.batch;
  job.w_first_row = static_cast<std::int32_t>(t.w_first_row);
  job.w_batch_rows = static_cast<std::int32_t>(t.w_batch_rows);
  job.out = t.out;
  job.out_stride = t.out_stride;
  job.out_batch = t.out_batch;
  job.valid = t.valid > 0 ? t.valid : t.w.shape.rows;
  const Plan p = plan(l, job, t.rows, true);
  job.split = p.split;
  // Whole thirty-twos a tile: the sizes that the kernel has.
  job.item_rows = p.large ? static_cast<int>(tiles(tiles(t.rows, p.token_tiles), 32) * 32) : 64;
  job.token_tiles = static_cast<int>(tiles(t.rows, job.item_rows));
  set_scales(job, p.large);
  const std::int64_t units = static_cast<std::int64_t>(job.row_tiles[0]) * job.token_tiles * job.batch;
  run(l, job, p.large, p.split > 1 ? units * p.split : std::min<std::int64_t>(units, l.n_sms));
}

void hopper_moe(const Launch& l, const TiledMoe& m) {
  HopperJob job;
  job.shape[0] = m.shape;
  job.shape[1] = m.shared_shape;
  job.first = m.first;
  job.second = m.second;
  job.x = m.x;
  job.x_units = static_cast<std::uint32_t>(m.x_stride / 8);
  job.rows = m.T;
  job.item_rows = m.item_rows;
  job.kind = m.down ? TiledOut::kF32 : TiledOut::kSiluMul;
  job.tile_outputs = m.down ? 128 : 64;
  job.row_tiles[0] = static_cast<int>(tiles(m.shape.rows, job.tile_outputs));
  job.row_tiles[1] = static_cast<int>(tiles(m.shared_shape.rows, job.tile_outputs));
  job.items = m.groups.items;
  job.n_items = m.groups.n_items;
  job.order = m.down ? nullptr : m.groups.order;
  job.shared_items = m.has_shared ? static_cast<int>(tiles(m.T, m.item_rows)) : 0;
  job.slots = m.T * m.K;
  job.top_k = m.K;
  job.out = m.down ? static_cast<void*>(m.y) : m.h;
  job.out_stride = m.down ? m.y_stride : m.h_stride;
  job.out_order = m.h_order;
  job.valid = std::max(m.shape.rows, m.shared_shape.rows);
  const bool large = m.item_rows > 64;
  set_scales(job, large);
  const std::int64_t most =
      static_cast<std::int64_t>(job.shared_items) * job.row_tiles[1] + m.groups.max_items * job.row_tiles[0];
  run(l, job, large, std::min<std::int64_t>(most, l.n_sms));
}

}  // namespace glint::cuda
