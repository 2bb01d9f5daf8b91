#pragma once
// What the sm_90a product kernel is told; the launchers that fill it in.

#include "backends/cuda/kernels.hpp"

namespace glint::cuda {

struct HopperJob {
  MatShape shape[2];          // rows: outputs. [1] is the shared expert's
  ExpertTable first, second;  // the second matrix of gated products
  const void* x = nullptr;    // BF16, in the column order of the format
  std::int64_t x_batch = 0;
  std::uint32_t x_units = 0;  // 16-byte units from row to row
  int rows = 0;               // of x; for experts: tokens
  int item_rows = 0;
  int row_tiles[2] = {0, 0};  // of each shape
  int tile_outputs = 128;     // outputs of a tile: 64 of gated products

  // Dense: token_tiles × batch items.
  int token_tiles = 0, batch = 1;
  std::int32_t w_first_row = 0, w_batch_rows = 0;

  // Experts.
  const int4* items = nullptr;
  const std::int32_t* n_items = nullptr;
  const std::int32_t* order = nullptr;  // given: row r of x is that of slot order[r]
  int shared_items = 0, slots = 0, top_k = 1;

  void* out = nullptr;
  std::int64_t out_stride = 0, out_batch = 0, valid = 0;
  TiledOut kind = TiledOut::kF32;
  ColumnOrder out_order = ColumnOrder::kNatural;

  // A scale covers 2^scale_shift columns (30: a whole row).
  int scale_shift = 30, scales_a_stage = 1;
  int split = 1;  // blocks of a cluster, each with a part of the contraction

#ifdef __CUDACC__
  __host__ __device__ bool gated() const { return kind == TiledOut::kSiluMul; }
#endif
};

// One source file has the kernels of a format. `large`: tiles of up to 256 rows of x, else of up to 64.
void hopper_bf16(const Launch& l, const HopperJob& job, bool large, unsigned blocks);
void hopper_f8(const Launch& l, const HopperJob& job, bool large, unsigned blocks);
void hopper_i8(const Launch& l, const HopperJob& job, bool large, unsigned blocks);
void hopper_i4(const Launch& l, const HopperJob& job, bool large, unsigned blocks);
void hopper_nf4(const Launch& l, const HopperJob& job, bool large, unsigned blocks);

}  // namespace glint::cuda
