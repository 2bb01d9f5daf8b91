#pragma once
// Weights on their way through one block of the decode kernel. Each warp has a ring of units in shared memory and walks
// the step's products twice: a Stream runs ahead and copies units in (cp.async), across the grid's barriers, so that
// memory never idles while blocks wait for each other; the consumer follows in the same order. Only routed experts stop
// the stream, until the router has chosen.
//
// A unit is 64 bytes of 16 rows: the A operand of m16n8k16 for 32, 64 or 128 columns by format. Lane 4g + t copies 16
// bytes of rows g and g + 8.

#include "backends/cuda/common.cuh"
#include "backends/cuda/decode.hpp"

namespace glint::cuda {

constexpr int kDecodeWarps = 16, kDecodeThreads = 32 * kDecodeWarps;
constexpr int kUnitBytes = 1024 + 128;  // codes, then 16 rows · 8 bytes of scales
constexpr int kMaxDepth = 8;

// The products of a layer in their order; kHead comes after the last layer.
enum DecodeStage : int { kQkvA, kQB, kLatentQ, kValueUp, kOut, kSharedUp, kRoutedUp, kDown, kHead };

// Warps that share a tile by cutting its contraction: by the stage alone, so that a sum has one order whatever the
// batch.
__host__ __device__ constexpr int warps_a_tile(int stage) {
  return stage == kQkvA || stage == kOut            ? 16
         : stage == kQB || stage <= kValueUp        ? 4
         : stage == kSharedUp || stage == kRoutedUp ? 2
         : stage == kDown                           ? 3
                                                    : 1;
}

// An expert of this layer and its rows; places are rows of DecodeStep::act.
struct DecodeItem {
  const unsigned char* data[3];
  const unsigned char* scales[3];
  int first, count;
};

struct DecodeShared {
  DecodeLayerData layer[2];  // this and the next, by parity
  DecodeItem items[kDecodeChoices];
  float sums[kDecodeRows][32];  // of squares, by segments of 256 columns
  float router_sums[kDecodeRows][32];
  float rope_cos[kDecodeRows][32], rope_sin[kDecodeRows][32];
  float out[kDecodeRows * kDecodeSlices][16];  // the down product by place
  std::int32_t ids[kDecodeChoices];
  float weights[kDecodeChoices];
  std::int8_t token[kDecodeChoices];         // the row of a routed place
  std::int8_t choice_place[kDecodeChoices];  // the routed place of a choice
  int n_items;
};

// One warp's part of one tile.
struct Part {
  int tile, item;
  int begin, end;  // units
};

struct Walk {  // where this block stands in the grid, and this warp in the block
  int block, blocks, warp;
};

// Tiles of a stage are dealt to blocks in turn, starting at a block that differs by stage: the uneven ends of the
// stages fall on different blocks.
__device__ __forceinline__ int first_tile(const Walk& w, int start) {
  const int s = w.block - start % w.blocks;
  return s < 0 ? s + w.blocks : s;
}

template <int kStage>
__device__ __forceinline__ bool cut(const Walk& w, int j, int base, int stride, int n_tiles, int cols_units, Part& p) {
  constexpr int kSplit = warps_a_tile(kStage);
  const int group = w.warp / kSplit, part = w.warp % kSplit;
  if (group >= kDecodeWarps / kSplit) return false;
  p.tile = base + stride * (group + kDecodeWarps / kSplit * j);
  if (p.tile >= n_tiles) return false;
  p.begin = cols_units * part / kSplit;
  p.end = cols_units * (part + 1) / kSplit;
  return true;
}

// Part number j of this warp in a stage.
__device__ __forceinline__ bool find_part(const DecodeStep& s, const DecodeShared& sh, const DecodeLayerData& l,
                                          const Walk& w, int stage, int j, Part& p) {
  p.item = 0;
  switch (stage) {
    case kQkvA: {
      const int n = (l.q_a.rows + l.kv_a.rows) >> 4;
      if (!cut<kQkvA>(w, j, first_tile(w, 0), w.blocks, n, 1, p)) return false;
      const DecodeMat& m = p.tile < l.q_a.rows >> 4 ? l.q_a : l.kv_a;
      const int units = m.cols >> unit_shift(m.format);
      p.begin = units * w.warp / kDecodeWarps;
      p.end = units * (w.warp + 1) / kDecodeWarps;
      return true;
    }
    case kQB:
      return cut<kQB>(w, j, first_tile(w, 84), w.blocks, l.q_b.rows >> 4, l.q_b.cols >> unit_shift(l.q_b.format), p);
    case kLatentQ:
    case kValueUp: {  // neighbouring tiles: a block needs few heads
      const int n = s.heads * 16, low = w.block * n / w.blocks, high = (w.block + 1) * n / w.blocks;
      const int units = stage == kLatentQ ? kNopeWidth / 16 : kLatentWidth / 32;
      return cut<kLatentQ>(w, j, low, 1, high, units, p);
    }
    case kOut:
      return cut<kOut>(w, j, first_tile(w, 116), w.blocks, l.o.rows >> 4, l.o.cols >> unit_shift(l.o.format), p);
    case kSharedUp: {
      const int a_slice = l.slice_cols >> 3;
      const DecodeMat& m = l.shared_gate;
      if (!cut<kSharedUp>(w, j, first_tile(w, 0), w.blocks, l.n_slices * a_slice, m.cols >> unit_shift(m.format), p))
        return false;
      p.item = p.tile / a_slice;
      return true;
    }
    case kRoutedUp: {
      const int a_item = l.gate.rows >> 3;
      if (!cut<kRoutedUp>(w, j, first_tile(w, 60), w.blocks, sh.n_items * a_item,
                          l.gate.cols >> unit_shift(l.gate.format), p))
        return false;
      p.item = p.tile / a_item;
      p.tile -= p.item * a_item;
      return true;
    }
    case kDown: {  // a block has one tile of every item
      const int tile = first_tile(w, 0);
      if (tile >= s.hidden >> 4) return false;
      if (!cut<kDown>(w, j, 0, 1, l.n_slices + (l.moe != 0 ? sh.n_items : 0), 1, p)) return false;
      p.item = p.tile;
      p.tile = tile;
      const bool shared = p.item < l.n_slices;
      const DecodeMat& m = shared ? l.shared_down : l.down;
      const int units = (shared ? l.slice_cols : m.cols) >> unit_shift(m.format), part = w.warp % 3;
      p.begin = units * part / 3;
      p.end = units * (part + 1) / 3;
      return true;
    }
    default:
      return cut<kHead>(w, j, w.block, w.blocks, s.lm_head.rows >> 4, s.lm_head.cols >> unit_shift(s.lm_head.format),
                        p);
  }
}

__device__ __forceinline__ void cp_async16_stream(std::uint32_t dst, const void* src) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(dst), "l"(src) : "memory");
}
__device__ __forceinline__ void cp_async4(std::uint32_t dst, const void* src) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(dst), "l"(src) : "memory");
}
__device__ __forceinline__ void cp_async8(std::uint32_t dst, const void* src) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(dst), "l"(src) : "memory");
}

// Waits until at most n of this thread's copies, the youngest, are under way.
__device__ __forceinline__ void cp_async_wait_dynamic(int n) {
  switch (n) {
    case 0:
      cp_async_wait<0>();
      break;
    case 1:
      cp_async_wait<1>();
      break;
    case 2:
      cp_async_wait<2>();
      break;
    case 3:
      cp_async_wait<3>();
      break;
    case 4:
      cp_async_wait<4>();
      break;
    case 5:
      cp_async_wait<5>();
      break;
    case 6:
      cp_async_wait<6>();
      break;
    default:
      cp_async_wait<7>();
      break;
  }
}

// All of it is the same in a warp's lanes but the addresses.
struct Stream {
  const unsigned char* row[2];     // this lane's next bytes of rows g and g + 8
  const unsigned char* scale_row;  // lanes below 16: the scales of the row that the lane fetches for
  int step;                        // bytes from unit to unit
  int left;                        // units left in the part
  int column64;                    // the next unit's first column / 64
  int columns64;                   // a unit's columns / 64 (BF16: not used)
  DecodeScale kind;
  int scale_bytes, group_shift;
  bool first;  // the part's first unit comes next

  int layer, stage, j;  // the next part
  int ready;            // the last layer whose experts are known
  int loaded;           // layers whose descriptors have been read
  int ahead;            // units copied or on their way, not yet used
  int in, out;          // their places in the ring

  __device__ void begin() {
    left = 0, layer = 0, stage = kQkvA, j = 0, ready = -1, loaded = 0, ahead = 0, in = 0, out = 0;
  }

  __device__ void point(const DecodeMat& m, const unsigned char* d0, const unsigned char* d1, const unsigned char* s0,
                        const unsigned char* s1, int row0, int row1, int column_byte, int column, int lane) {
    const int g = lane / 4, t = lane % 4;
    row[0] = d0 + static_cast<std::int64_t>(row0 + g) * m.row_bytes + column_byte + t * 16;
    row[1] = d1 + static_cast<std::int64_t>(row1 + g) * m.row_bytes + column_byte + t * 16;
    step = 64;
    kind = m.kind;
    if (kind != DecodeScale::kNone) {
      const unsigned char* s = (lane & 8) == 0 ? s0 : s1;
      const int r = ((lane & 8) == 0 ? row0 : row1) + (lane & 7);
      scale_row = s + static_cast<std::int64_t>(r >> m.row_shift) * m.scale_row_bytes;
      if (m.kind == DecodeScale::kRow) scale_row -= reinterpret_cast<std::uintptr_t>(scale_row) & 3U;
      scale_bytes = m.scale_bytes;
      group_shift = m.group_shift;
      column64 = column >> 6;
      columns64 = m.format == WeightFormat::kI4 || m.format == WeightFormat::kNF4 ? 2 : 1;
      first = true;
    }
  }

  // Points at the next part; false where there is none, or none yet.
  __device__ bool next(const DecodeStep& s, const DecodeShared& sh, const Walk& w, int lane) {
    for (;;) {
      if (layer > s.n_layers) return false;
      if (layer < s.n_layers && layer >= loaded) return false;
      const DecodeLayerData& l = sh.layer[layer & 1];
      if ((stage == kRoutedUp || stage == kDown) && l.moe != 0 && ready < layer) return false;
      Part p;
      if (find_part(s, sh, l, w, stage, j, p)) {
        ++j;
        left = p.end - p.begin;
        if (left == 0) continue;
        locate(s, sh, l, p, lane);
        return true;
      }
      j = 0;
      if (stage == kHead) {
        ++layer;
      } else if (stage == kDown) {
        ++layer;
        stage = layer == s.n_layers ? kHead : kQkvA;
      } else {
        ++stage;
        if (stage == kRoutedUp && l.moe == 0) ++stage;
      }
    }
  }

  __device__ void locate(const DecodeStep& s, const DecodeShared& sh, const DecodeLayerData& l, const Part& p,
                         int lane) {
    const auto plain = [&](const DecodeMat& m, int tile, int offset) {  // offset: bytes of the columns before
      point(m, m.data, m.data, m.scales, m.scales, 16 * tile, 16 * tile + 8, offset + p.begin * 64,
            (offset / 64 + p.begin) << unit_shift(m.format), lane);
    };
    switch (stage) {
      case kQkvA: {
        const int n = l.q_a.rows >> 4;
        plain(p.tile < n ? l.q_a : l.kv_a, p.tile < n ? p.tile : p.tile - n, 0);
        break;
      }
      case kQB:
        plain(l.q_b, p.tile, 0);
        break;
      case kLatentQ: {  // 16 rows (the contraction) of 32 columns
        const int first_row = p.tile / 16 * (kNopeWidth + kQkWidth) + 16 * p.begin;
        point(l.kv_b, l.kv_b.data, l.kv_b.data, nullptr, nullptr, first_row, first_row + 8, p.tile % 16 * 64, 0, lane);
        step = 16 * l.kv_b.row_bytes;
        break;
      }
      case kValueUp: {
        const int row0 = p.tile / 16 * (kNopeWidth + kQkWidth) + kNopeWidth + p.tile % 16 * 16;
        point(l.kv_b, l.kv_b.data, l.kv_b.data, nullptr, nullptr, row0, row0 + 8, p.begin * 64, 0, lane);
        break;
      }
      case kOut:
        plain(l.o, p.tile, 0);
        break;
      case kSharedUp: {
        const DecodeMat& m = l.shared_gate;
        point(m, m.data, l.shared_up.data, m.scales, l.shared_up.scales, 8 * p.tile, 8 * p.tile, p.begin * 64,
              p.begin << unit_shift(m.format), lane);
        break;
      }
      case kRoutedUp: {
        const DecodeItem& i = sh.items[p.item];
        point(l.gate, i.data[0], i.data[1], i.scales[0], i.scales[1], 8 * p.tile, 8 * p.tile, p.begin * 64,
              p.begin << unit_shift(l.gate.format), lane);
        break;
      }
      case kDown: {
        if (p.item < l.n_slices) {
          const int units = l.slice_cols >> unit_shift(l.shared_down.format);
          plain(l.shared_down, p.tile, p.item * units * 64);
        } else {
          const DecodeItem& i = sh.items[p.item - l.n_slices];
          point(l.down, i.data[2], i.data[2], i.scales[2], i.scales[2], 16 * p.tile, 16 * p.tile + 8, p.begin * 64,
                p.begin << unit_shift(l.down.format), lane);
        }
        break;
      }
      default:
        plain(s.lm_head, p.tile, 0);
        break;
    }
  }

  // Starts the copy of one more unit; false if there is none.
  __device__ __forceinline__ bool issue(const DecodeStep& s, const DecodeShared& sh, const Walk& w, int lane,
                                        std::uint32_t ring) {
    if (left == 0 && !next(s, sh, w, lane)) return false;
    const int g = lane / 4, t = lane % 4;
    const std::uint32_t slot = ring + in * kUnitBytes;
    // Turned so that 8-byte reads of half a row meet no bank twice.
    const std::uint32_t to = slot + g * 64 + ((t ^ (g & 2)) << 4);
    cp_async16_stream(to, row[0]);
    cp_async16_stream(to + 512, row[1]);
    row[0] += step;
    row[1] += step;
    if (kind != DecodeScale::kNone && (kind == DecodeScale::kGroup || first)) {
      first = false;
      if (lane < 16) {
        const int index = kind == DecodeScale::kRow ? 0 : column64 >> group_shift;
        const std::uint32_t at = slot + 1024 + lane * 8;
        if (scale_bytes == 2) {
          cp_async4(at, scale_row + (kind == DecodeScale::kRow ? 0 : index * 2 & ~3));
        } else if (kind == DecodeScale::kGroup && group_shift == 0 && columns64 == 2) {
          cp_async8(at, scale_row + index * 4);
        } else {
          cp_async4(at, scale_row + index * 4);
        }
      }
      column64 += columns64;
    }
    cp_async_commit();
    --left;
    ++ahead;
    if (++in == s.depth) in = 0;
    return true;
  }

  __device__ void fill(const DecodeStep& s, const DecodeShared& sh, const Walk& w, int lane, std::uint32_t ring) {
    while (ahead < s.depth && issue(s, sh, w, lane, ring)) {}
  }
};

}  // namespace glint::cuda
