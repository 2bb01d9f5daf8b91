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
__device__ __forceinline__ int warps_a_tile(int stage) {
  return stage == kDown ? 3 : 1 << (0x001142224 >> (4 * stage) & 15);
}

// An expert of this layer and its rows; places are rows of DecodeStep::act.
struct DecodeItem {
  const unsigned char* data[3];
  const unsigned char* scales[3];
  int first, count;
};

struct DecodeShared {
  DecodeLayerData layer[2];  // this and the next, by parity
  DecodeMat head;
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
  const DecodeMat* m;
  int tile, item;
  int begin, end;  // units
};

struct Walk {  // where this block stands in the grid, and this warp in the block
  int block, blocks, warp;
  int low, high;  // tiles of kLatentQ and kValueUp
};

// Tiles of a stage are dealt to blocks in turn, starting at a block that differs by stage: the uneven ends of the
// stages fall on different blocks.
__device__ __forceinline__ int first_tile(const Walk& w, int start) {
  const int s = w.block - start;
  return s < 0 ? s + w.blocks : s;
}

// Part number j of this warp in a stage. Code that runs once a stage is bound by fetching its instructions: the switch
// holds only what differs.
__device__ __forceinline__ bool find_part(const DecodeStep& s, const DecodeShared& sh, const DecodeLayerData& l,
                                          const Walk& w, int stage, int j, Part& p) {
  int start = 0, n_tiles = 0, an_item = 0;
  p.m = nullptr;
  switch (stage) {
    case kQkvA:
      p.m = &l.q_a;
      n_tiles = (l.q_a.rows + l.kv_a.rows) >> 4;
      break;
    case kQB:
      p.m = &l.q_b;
      start = s.starts[0];
      break;
    case kLatentQ:
    case kValueUp:
      p.m = &l.kv_b;
      break;
    case kOut:
      p.m = &l.o;
      start = s.starts[1];
      break;
    case kSharedUp:
      p.m = &l.shared_gate;
      an_item = l.slice_cols >> 3;
      n_tiles = l.n_slices * an_item;
      break;
    case kRoutedUp:
      p.m = &l.gate;
      an_item = l.gate.rows >> 3;
      n_tiles = sh.n_items * an_item;
      start = s.starts[2];
      break;
    case kDown:
      n_tiles = l.n_slices + (l.moe != 0 ? sh.n_items : 0);
      break;
    default:
      p.m = &sh.head;
      break;
  }
  int tile = first_tile(w, start), stride = w.blocks;
  if (stage == kLatentQ || stage == kValueUp) {  // neighbouring tiles: a block needs few heads
    tile = w.low, stride = 1, n_tiles = w.high;
  } else if (n_tiles == 0 && p.m != nullptr) {
    n_tiles = stage == kSharedUp || stage == kRoutedUp ? 0 : p.m->rows >> 4;
  }
  const bool down = stage == kDown;
  const int log_split = 0x001142224 >> (4 * stage) & 15;
  const int group = down ? w.warp * 11 >> 5 : w.warp >> log_split;  // a third, below 16
  const int part = w.warp - (down ? 3 * group : group << log_split), groups = down ? 5 : 16 >> log_split;
  p.item = 0;
  if (down) {  // a block has one tile of every item
    p.item = group + groups * j;
    p.tile = tile;
    if (group >= groups || tile >= s.hidden >> 4 || p.item >= n_tiles) return false;
    p.m = p.item < l.n_slices ? &l.shared_down : &l.down;
  } else {
    p.tile = tile + stride * (group + groups * j);
    if (p.tile >= n_tiles) return false;
    if (an_item != 0) p.item = static_cast<int>(static_cast<unsigned>(p.tile) / static_cast<unsigned>(an_item));
    if (stage == kRoutedUp) p.tile -= p.item * an_item;
    if (stage == kQkvA && p.tile >= l.q_a.rows >> 4) p.m = &l.kv_a;
  }
  const int cols = stage == kLatentQ ? 32 * kNopeWidth / 16 : down && p.item < l.n_slices ? l.slice_cols : p.m->cols;
  const int units = cols >> unit_shift(p.m->format);
  p.begin = down ? units * part * 21846 >> 16 : units * part >> log_split;  // a third, below 32768
  p.end = down ? units * (part + 1) * 21846 >> 16 : units * (part + 1) >> log_split;
  return true;
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

  // Points at the next part; false where there is none, or none yet.
  __device__ __forceinline__ bool next(const DecodeStep& s, const DecodeShared& sh, const Walk& w, int lane) {
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
        locate(sh, l, p, lane);
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

  __device__ __forceinline__ void locate(const DecodeShared& sh, const DecodeLayerData& l, const Part& p, int lane) {
    const DecodeMat& m = *p.m;
    const unsigned char *d0 = m.data, *d1 = d0, *s0 = m.scales, *s1 = s0;
    int row0 = 16 * p.tile, apart = 8, before = 0;  // rows from the first to the second eight; units of columns before
    step = 64;
    int offset = p.begin * 64;
    if (stage == kQkvA) {
      if (p.m == &l.kv_a) row0 -= l.q_a.rows;
    } else if (stage == kLatentQ) {  // 16 rows (the contraction) of 32 columns
      row0 = (p.tile >> 4) * (kNopeWidth + kQkWidth) + 16 * p.begin;
      offset = (p.tile & 15) * 64;
      step = 16 * m.row_bytes;
    } else if (stage == kValueUp) {
      row0 += ((p.tile >> 4) + 1) * kNopeWidth;
    } else if (stage == kSharedUp) {
      d1 = l.shared_up.data, s1 = l.shared_up.scales;
      row0 = 8 * p.tile, apart = 0;
    } else if (stage == kRoutedUp) {
      const DecodeItem& i = sh.items[p.item];
      d0 = i.data[0], d1 = i.data[1], s0 = i.scales[0], s1 = i.scales[1];
      row0 = 8 * p.tile, apart = 0;
    } else if (stage == kDown) {
      if (p.item < l.n_slices) {
        before = p.item * (l.slice_cols >> unit_shift(m.format));
        offset += before * 64;
      } else {
        const DecodeItem& i = sh.items[p.item - l.n_slices];
        d0 = d1 = i.data[2], s0 = s1 = i.scales[2];
      }
    }
    const int g = lane / 4, t = lane % 4;
    row[0] = d0 + static_cast<std::int64_t>(row0 + g) * m.row_bytes + offset + t * 16;
    row[1] = d1 + static_cast<std::int64_t>(row0 + apart + g) * m.row_bytes + offset + t * 16;
    kind = m.kind;
    if (kind != DecodeScale::kNone) {
      const unsigned char* base = (lane & 8) == 0 ? s0 : s1;
      const int r = row0 + ((lane & 8) == 0 ? 0 : apart) + (lane & 7);
      scale_row = base + static_cast<std::int64_t>(r >> m.row_shift) * m.scale_row_bytes;
      if (kind == DecodeScale::kRow) scale_row -= reinterpret_cast<std::uintptr_t>(scale_row) & 3U;
      scale_bytes = m.scale_bytes;
      group_shift = m.group_shift;
      column64 = (before + p.begin) << unit_shift(m.format) >> 6;
      columns64 = 1 << unit_shift(m.format) >> 6;
      first = true;
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
