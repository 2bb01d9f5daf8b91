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
constexpr int kMaxDepth = 16;           // units of a warp's ring
constexpr int kBatch = 2;               // units that are copied and waited for at once

// The matrices of DecodeLayerData, in its order, and the head.
enum DecodeMatrix : int {
  kMatQA,
  kMatKvA,
  kMatQB,
  kMatKvB,
  kMatO,
  kMatGate,
  kMatUp,
  kMatDown,
  kMatSharedGate,
  kMatSharedUp,
  kMatSharedDown,
  kMatHead
};

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

// One warp's part of one tile, as its lists have it: the same for every layer of a kind but for the matrices' places.
struct DecodeEntry {
  std::uint32_t offset;        // bytes from the matrix' (or expert's) begin to the first row's first unit
  std::uint32_t scale_offset;  // … of the first row's scales
  std::uint16_t tile, column64, begin, units;
  std::uint8_t item, matrix, stage, unused;
};

// Lists of parts: layers without and with routed experts (up to the shared expert's gate and up), what follows the
// router's choice, and the head.
enum DecodeList : int { kListDense, kListMoe, kListRouted, kListHead, kLists };
constexpr int kListBegin[kLists + 1] = {0, 10, 18, 32, 38};  // where each begins in a warp's entries

struct DecodeShared {
  DecodeEntry entries[kDecodeWarps][kListBegin[kLists]];
  std::uint8_t counts[kLists][kDecodeWarps];
  struct Seen {
    int begin, end, tokens, count;
  } seen[kDecodeRows];                   // see Pieces
  alignas(16) DecodeLayerData layer[2];  // this and the next, by parity
  DecodeMat head;
  DecodeItem items[kDecodeChoices];
  alignas(16) float sums[2][kDecodeRows][32];  // of squares, by 256 columns: the hidden row's, the low-rank query's
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

__device__ __forceinline__ int list_begin(int list) { return 0x2012'0a00 >> (8 * list) & 63; }
__device__ __forceinline__ const DecodeEntry* list_of(const DecodeShared& sh, int list, int warp) {
  return sh.entries[warp] + list_begin(list);
}

__device__ __forceinline__ const DecodeMat& matrix_of(const DecodeShared& sh, const DecodeLayerData& l, int matrix) {
  return matrix == kMatHead ? sh.head : (&l.q_a)[matrix];
}

// Writes the parts of some stages to this warp's list: a lane a part.
__device__ __noinline__ void list_parts(const DecodeStep& s, DecodeShared& sh, const DecodeLayerData& l, const Walk& w,
                                        int list, int first_stage, int last_stage) {
  const int lane = threadIdx.x % 32;
  int n = 0;
  for (int stage = first_stage; stage <= last_stage; ++stage) {
    Part p;
    const bool is = find_part(s, sh, l, w, stage, lane, p);
    const unsigned mask = __ballot_sync(0xffffffffU, is);
    const int at = n + __popc(mask & ((1U << lane) - 1U));
    n += __popc(mask);
    if (!is) continue;
    const DecodeMat& m = *p.m;
    const int shift = unit_shift(m.format);
    int row0 = 16 * p.tile, before = 0, column = p.begin * 64;
    DecodeEntry e{};
    if (p.m == &l.kv_a) {
      row0 -= l.q_a.rows;
    } else if (stage == kLatentQ) {  // 16 rows (the contraction) of 32 columns
      row0 = (p.tile >> 4) * (kNopeWidth + kQkWidth) + 16 * p.begin;
      column = (p.tile & 15) * 64;
    } else if (stage == kValueUp) {
      row0 += ((p.tile >> 4) + 1) * kNopeWidth;
    } else if (stage == kSharedUp || stage == kRoutedUp) {
      row0 = 8 * p.tile;
    } else if (stage == kDown && p.item < l.n_slices) {
      before = p.item * (l.slice_cols >> shift);
    }
    e.offset = static_cast<std::uint32_t>(row0) * static_cast<std::uint32_t>(m.row_bytes) +
               static_cast<std::uint32_t>(column + before * 64);
    e.scale_offset = static_cast<std::uint32_t>(row0 >> m.row_shift) * static_cast<std::uint32_t>(m.scale_row_bytes);
    e.tile = static_cast<std::uint16_t>(p.tile);
    e.column64 = static_cast<std::uint16_t>((before + p.begin) << shift >> 6);
    e.begin = static_cast<std::uint16_t>(p.begin);
    e.units = static_cast<std::uint16_t>(p.end - p.begin);
    e.item = static_cast<std::uint8_t>(p.item);
    e.matrix = static_cast<std::uint8_t>(stage == kHead ? static_cast<int>(kMatHead) : static_cast<int>(p.m - &l.q_a));
    e.stage = static_cast<std::uint8_t>(stage);
    sh.entries[w.warp][list_begin(list) + at] = e;
  }
  if (lane == 0) sh.counts[list][w.warp] = static_cast<std::uint8_t>(n);
  __syncwarp();
}

// All of it is the same in a warp's lanes but the addresses.
struct Stream {
  const unsigned char* row[2];     // this lane's next bytes of rows g and g + 8
  const unsigned char* scale_row;  // lanes below 16: the scales of the row that the lane fetches for
  int step;                        // bytes from unit to unit
  int left;                        // units left in the part
  int column64;                    // the next unit's first column / 64
  int scales;  // bits: 0 any, 1 a row's, 2 of 4 bytes, 3 eight bytes at once, 4 units of 128 columns; 8 …: group shift
  bool first;  // the part's first unit comes next

  int layer, list, k;  // the next part
  int ready;           // the last layer whose experts are known
  int loaded;          // layers whose descriptors have been read
  int room;            // free units of the ring
  int groups;          // batches on their way or not yet used
  unsigned sizes;      // their units, four bits each, the oldest lowest
  int in, out;         // places in the ring

  __device__ void begin(const DecodeStep& s, const DecodeLayerData& l) {
    left = 0, layer = 0, list = l.moe != 0 ? kListMoe : kListDense, k = 0, ready = -1, loaded = 2;
    room = s.depth, groups = 0, sizes = 0, in = 0, out = 0;
  }

  // Points at the next part; false where there is none, or none yet.
  __device__ __forceinline__ bool next(const DecodeStep& s, const DecodeShared& sh, const Walk& w, int lane) {
    for (;;) {
      if (layer < s.n_layers ? layer >= loaded || (list == kListRouted && ready < layer) : layer > s.n_layers)
        return false;
      if (k >= sh.counts[list][w.warp]) {
        k = 0;
        if (list == kListMoe) {
          list = kListRouted;
        } else {
          ++layer;
          if (layer >= s.n_layers) list = kListHead;
          else if (layer >= loaded) list = kListMoe, k = -1;
          else list = sh.layer[layer & 1].moe != 0 ? kListMoe : kListDense;
        }
        continue;
      }
      if (k < 0) {  // the layer's kind was not known
        list = sh.layer[layer & 1].moe != 0 ? kListMoe : kListDense;
        k = 0;
        continue;
      }
      const DecodeEntry e = list_of(sh, list, w.warp)[k++];
      left = e.units;
      if (left == 0) continue;
      const DecodeLayerData& l = sh.layer[layer & 1];
      const DecodeMat& m = matrix_of(sh, l, e.matrix);
      const unsigned char *d0 = m.data, *d1 = d0 + 8 * m.row_bytes, *base = m.scales;
      const int g = lane / 4, t = lane % 4, scale_lane = m.row_shift == 0 ? (lane & 7) * m.scale_row_bytes : 0;
      const bool second = (lane & 8) != 0;
      const bool pair = e.stage == kSharedUp || e.stage == kRoutedUp;
      if (e.matrix == kMatGate || e.matrix == kMatDown) {
        const DecodeItem& i = sh.items[e.item - (e.matrix == kMatDown ? l.n_slices : 0)];
        const int which = e.matrix == kMatGate ? 0 : 2;
        d0 = i.data[which], d1 = pair ? i.data[1] : d0 + 8 * m.row_bytes;
        base = i.scales[pair && second ? 1 : which];
      } else if (pair) {
        d1 = l.shared_up.data;
        if (second) base = l.shared_up.scales;
      }
      const int lane_bytes = g * m.row_bytes + t * 16;
      row[0] = d0 + e.offset + lane_bytes;
      row[1] = d1 + e.offset + lane_bytes;
      step = e.stage == kLatentQ ? 16 * m.row_bytes : 64;
      scales = 0;
      if (m.kind != DecodeScale::kNone) {
        scale_row =
            base + e.scale_offset + scale_lane + (second && !pair && m.row_shift == 0 ? 8 * m.scale_row_bytes : 0);
        const bool wide = unit_shift(m.format) == 7, four = m.scale_bytes == 4, whole = m.kind == DecodeScale::kRow;
        if (whole) scale_row -= reinterpret_cast<std::uintptr_t>(scale_row) & 3U;
        scales = 1 | (whole ? 2 : 0) | (four ? 4 : 0) | (four && wide && !whole && m.group_shift == 0 ? 8 : 0) |
                 (wide ? 16 : 0) | (whole ? 0 : m.group_shift << 8);
        column64 = e.column64;
        first = true;
      }
      return true;
    }
  }

  // Starts the copy of one more batch; false if there is none, or no room.
  __device__ __forceinline__ bool issue(const DecodeStep& s, const DecodeShared& sh, const Walk& w, int lane,
                                        std::uint32_t ring) {
    if (left == 0 && !next(s, sh, w, lane)) return false;
    const int n = min(kBatch, left);
    if (room < n || groups == 8) return false;
    const int g = lane / 4, t = lane % 4;
    // Turned so that 8-byte reads of half a row meet no bank twice.
    const std::uint32_t place = g * 64 + ((t ^ (g & 2)) << 4);
#pragma unroll 1
    for (int i = 0; i < n; ++i) {
      const std::uint32_t slot = ring + in * kUnitBytes;
      cp_async16_stream(slot + place, row[0]);
      cp_async16_stream(slot + place + 512, row[1]);
      row[0] += step;
      row[1] += step;
      if (scales != 0) {
        if (lane < 16 && ((scales & 2) == 0 || first)) {
          const int index = (scales & 2) != 0 ? 0 : column64 >> (scales >> 8);
          const std::uint32_t at = slot + 1024 + lane * 8;
          if ((scales & 4) == 0) cp_async4(at, scale_row + (index * 2 & ~3));
          else if ((scales & 8) != 0) cp_async8(at, scale_row + index * 4);
          else cp_async4(at, scale_row + index * 4);
        }
        first = false;
        column64 += (scales & 16) != 0 ? 2 : 1;
      }
      if (++in == s.depth) in = 0;
    }
    cp_async_commit();
    left -= n;
    room -= n;
    sizes |= static_cast<unsigned>(n) << (4 * groups);
    ++groups;
    return true;
  }

  __device__ __forceinline__ void fill(const DecodeStep& s, const DecodeShared& sh, const Walk& w, int lane,
                                       std::uint32_t ring) {
#pragma unroll 1
    while (issue(s, sh, w, lane, ring)) {}
  }
};

}  // namespace glint::cuda
