// One step of up to eight sequences in one kernel: a block a multiprocessor, all layers, the final norm and the head.
// Blocks meet at barriers in global memory (about a microsecond each) while their weights keep coming: see
// decode_stream.cuh. Norms are computed by every block for itself; their factors are applied to sums.
//
// Per layer: [norm, q_a, kv_a] [norm, q_b, rope, cache row] [W_UK] [attention] [merge, W_UV] [o, residual]
// [norm, router, shared gate·up] [choice, routed gate·up] [down, weighted sum, residual], a barrier after each.

#include "backends/cuda/decode_block.cuh"

namespace glint::cuda {
namespace {

// ---- products -------------------------------------------------------------------------------------------------------

// What the rows of x in shared memory are to a part.
struct Rows {
  std::uint32_t stride;
  int first;  // of kDown: the place of the first row
};

__device__ __forceinline__ void store(const Block& b, const DecodeLayerData& l, int stage, const DecodeEntry& p,
                                      int pair, int n, float v0, float v1, float2 residual) {
  const DecodeStep& s = b.s;
  int row = n;  // of the batch
  if (stage == kRoutedUp) row = b.sh.token[b.sh.items[p.item].first + n];
  if (stage == kHead) row = s.logit_rows[n];
  if (stage == kQkvA || stage == kQB || stage >= kSharedUp) {
    const float f = stage == kDown ? 1.0F : norm_factor(b, row, stage == kQB);
    v0 *= f, v1 *= f;
  }
  const int at = 16 * p.tile + 2 * pair;
  switch (stage) {
    case kQkvA: {
      float* to = p.matrix == kMatQA ? s.low + n * s.q_lora : s.kv + n * kRowWidth - l.q_a.rows;
      *reinterpret_cast<float2*>(to + at) = {v0, v1};
      return;
    }
    case kQB: {
      const int local = at % kQkWidth;
      if (local >= kNopeWidth) {
        const float c = b.sh.rope_cos[n][(local - kNopeWidth) / 2], d = b.sh.rope_sin[n][(local - kNopeWidth) / 2];
        const float u = v0;
        v0 = u * c - v1 * d;
        v1 = u * d + v1 * c;
      }
      *reinterpret_cast<std::uint32_t*>(s.q + n * s.heads * kQkWidth + at) = pack_bf16(v0, v1);
      return;
    }
    case kLatentQ:
      *reinterpret_cast<std::uint32_t*>(s.query + n * s.heads * kLatentWidth + at + 16 * p.tile) = pack_bf16(v0, v1);
      return;
    case kValueUp:
      *reinterpret_cast<std::uint32_t*>(s.attended + n * s.heads * kQkWidth + at) = pack_bf16(v0, v1);
      return;
    case kOut:
      *reinterpret_cast<float2*>(s.hidden_rows + n * s.hidden + at) = {residual.x + v0, residual.y + v1};
      return;
    case kSharedUp:
    case kRoutedUp: {
      const bool shared = stage == kSharedUp;
      const int place = shared ? p.item * s.n_rows + n : l.n_slices * s.n_rows + b.sh.items[p.item].first + n;
      const int column = 8 * (shared ? p.tile - p.item * (l.slice_cols >> 3) : p.tile) + pair;
      const __nv_bfloat16 h = __float2bfloat16_rn(__fdividef(v0, 1.0F + __expf(-v0)) * v1);
      s.act[static_cast<std::int64_t>(place) * s.act_stride + column] = *reinterpret_cast<const std::uint16_t*>(&h);
      return;
    }
    case kDown: {
      const int place = p.item < l.n_slices ? p.item * s.n_rows + n
                                            : l.n_slices * s.n_rows + b.sh.items[p.item - l.n_slices].first + n;
      b.sh.out[place][2 * pair] = v0;
      b.sh.out[place][2 * pair + 1] = v1;
      return;
    }
    default:
      *reinterpret_cast<float2*>(s.logits + static_cast<std::int64_t>(n) * b.sh.head.rows + at) = {
          at < s.valid_vocab ? v0 : -INFINITY, at + 1 < s.valid_vocab ? v1 : -INFINITY};
      return;
  }
}

// One part of this warp, and with the warps that share its tile the tile's outputs.
__device__ __forceinline__ void run_part(const Block& b, const DecodeLayerData& l, int stage, const DecodeEntry& e,
                                         const Walk& w, const Rows& rows, Stream& stream, std::uint32_t ring,
                                         int& parity, bool last) {
  const DecodeStep& s = b.s;
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int log_split = 0x001142224 >> (4 * stage) & 15, split = stage == kDown ? 3 : 1 << log_split;
  const int group = stage == kDown ? w.warp * 11 >> 5 : w.warp >> log_split;
  const int thread = (w.warp - group * split) * 32 + lane;
  const DecodeMat m = matrix_of(b.sh, l, e.matrix);
  const int tile = e.tile, item = e.item;
  int count = s.n_rows, row = min(g, s.n_rows - 1), column = 0;  // column: bytes into the row of x
  if (stage == kRoutedUp) {
    count = b.sh.items[item].count;
    row = b.sh.token[b.sh.items[item].first + min(g, count - 1)];
  } else if (stage == kDown) {
    int first = item * s.n_rows;
    if (item >= l.n_slices) {
      count = b.sh.items[item - l.n_slices].count;
      first = l.n_slices * s.n_rows + b.sh.items[item - l.n_slices].first;
    }
    row = first - rows.first + min(g, count - 1);
  } else if (stage == kLatentQ || stage == kValueUp) {
    column = ((tile >> 4) - (w.low >> 4)) * (stage == kLatentQ ? kNopeWidth * 2 : kLatentWidth * 2);
  } else if (stage == kHead) {
    count = s.n_logits;
    row = s.logit_rows[min(g, count - 1)];
  }
  const bool transposed = stage == kLatentQ;
  const int shift = transposed ? 4 : unit_shift(m.format), columns64 = 1 << shift >> 6;
  std::uint32_t x = shared_address(b.area) + row * rows.stride + column + (e.begin << (shift + 1));
  int column64 = e.column64;

  float2 residual{};
  if (stage == kOut && thread < 8 * count)
    residual = __ldcg(reinterpret_cast<const float2*>(s.hidden_rows + thread / 8 * s.hidden + 16 * tile) + thread % 8);

  float acc[4] = {}, more[4] = {};
  float s0 = 1, s1 = 1;
  bool first = true;
#pragma unroll 1
  for (int left = e.units; left > 0;) {
    cp_async_wait_dynamic(stream.groups - 1);
    __syncwarp();
    const int n = static_cast<int>(stream.sizes & 15U);
#pragma unroll 1
    for (int i = 0; i < n; ++i) {
      const std::uint32_t slot = ring + stream.out * kUnitBytes;
      if (transposed) {
        multiply_unit_transposed(acc, more, slot, x, lane);
      } else {
        if (first && m.kind == DecodeScale::kRow) {
          s0 = row_scale(slot, m, g);
          s1 = row_scale(slot, m, g + 8);
        }
        first = false;
        multiply_unit(acc, m, slot, x, column64, b.table, g, t);
      }
      x += 2 << shift;
      column64 += columns64;
      if (++stream.out == s.depth) stream.out = 0;
    }
    __syncwarp();
    left -= n;
    stream.room += n;
    --stream.groups;
    stream.sizes >>= 4;
    if (left > 0 || !last) stream.issue(s, b.sh, w, lane, ring);  // else while the barrier is waited for
  }
  acc[0] *= s0, acc[1] *= s0, acc[2] *= s1, acc[3] *= s1;

  const int width = s.n_rows <= 4 ? 4 : 8;  // columns kept
  auto* sums = reinterpret_cast<float*>(b.area + s.x_bytes) + parity * (kDecodeWarps * 32 * width);
  parity ^= 1;
  float* mine = sums + w.warp * 32 * width;
  if (2 * t < width) {
    *reinterpret_cast<float2*>(mine + g * width + 2 * t) = {acc[0], acc[1]};
    *reinterpret_cast<float2*>(mine + (g + 8) * width + 2 * t) = {acc[2], acc[3]};
    if (transposed) {
      *reinterpret_cast<float2*>(mine + (g + 16) * width + 2 * t) = {more[0], more[1]};
      *reinterpret_cast<float2*>(mine + (g + 24) * width + 2 * t) = {more[2], more[3]};
    }
  }
  group_sync(1 + group, 32 * split);
  const float* from = sums + group * split * 32 * width;
  const int log_pairs = transposed ? 4 : 3;
#pragma unroll 1
  for (int i = thread; i < count << log_pairs; i += 32 * split) {
    const int n = i >> log_pairs, pair = i - (n << log_pairs);
    const bool apart = stage == kSharedUp || stage == kRoutedUp;  // gate and up
    const int r0 = apart ? pair : 2 * pair, r1 = apart ? pair + 8 : 2 * pair + 1;
    float v0 = 0, v1 = 0;
#pragma unroll 4
    for (int k = 0; k < split; ++k) {
      v0 += from[(k * 32 + r0) * width + n];
      v1 += from[(k * 32 + r1) * width + n];
    }
    store(b, l, stage, e, pair, n, v0, v1, residual);
  }
}

// ---- the step -------------------------------------------------------------------------------------------------------

__device__ __forceinline__ void prefetch_line(const void* p) { asm volatile("prefetch.global.L2 [%0];" ::"l"(p)); }

// The next layer's small arrays, whose first reader would wait for them.
__device__ __forceinline__ void prefetch_small(const DecodeStep& s, const DecodeLayerData& next) {
  const int i = threadIdx.x * 32;  // floats: a line a thread
  if (next.moe != 0 && blockIdx.x < s.n_experts && i < s.hidden)
    prefetch_line(next.router + static_cast<std::int64_t>(blockIdx.x) * s.hidden + i);
  if (blockIdx.x == gridDim.x - 1) {
    if (i < s.hidden) prefetch_line(next.input_norm + i);
    if (i < s.hidden) prefetch_line(next.post_norm + i);
    if (i < s.q_lora) prefetch_line(next.q_a_norm + i);
    if (i < kLatentWidth) prefetch_line(next.kv_a_norm + i);
    if (next.moe != 0 && i < s.n_experts) prefetch_line(next.router_bias + i);
  }
}

__device__ __forceinline__ void start(Block& b) {
  const DecodeStep& s = b.s;
#pragma unroll 1
  for (int i = threadIdx.x; i < 2 * static_cast<int>(sizeof(DecodeLayerData) / 16); i += kDecodeThreads) {
    if (i < s.n_layers * static_cast<int>(sizeof(DecodeLayerData) / 16))
      reinterpret_cast<uint4*>(b.sh.layer)[i] = reinterpret_cast<const uint4*>(s.layers)[i];
  }
  if (threadIdx.x == 0) b.sh.head = s.lm_head;
  (&b.sh.sums[0][0][0])[threadIdx.x] = 0;
  static_assert(sizeof(b.sh.sums) == kDecodeThreads * sizeof(float));
  if (threadIdx.x < s.n_rows) see(s, b.sh, static_cast<int>(threadIdx.x));
#pragma unroll 1
  for (int i = threadIdx.x; i < s.n_rows * 32; i += kDecodeThreads) {
    float c, n;
    rope_angle(s.frequencies.revolutions[i % 32], s.positions[i / 32], &c, &n);
    b.sh.rope_cos[i / 32][i % 32] = c;
    b.sh.rope_sin[i / 32][i % 32] = n;
  }
  __syncthreads();
}

__global__ void __launch_bounds__(kDecodeThreads, 1)
    decode_kernel(const __grid_constant__ DecodeStep s, int table_bytes) {
  extern __shared__ __align__(128) unsigned char smem[];
  __shared__ __align__(16) DecodeShared sh;
  unsigned char* area = smem + kDecodeWarps * s.depth * kUnitBytes;
  unsigned char* table = area + s.area_bytes;
  Block b{s,
          sh,
          reinterpret_cast<DecodeExpert*>(table + table_bytes),
          area,
          shared_address(table) + threadIdx.x % 32 * 4,
          s.arrived};
  const int lane = threadIdx.x % 32;
  const int head_tiles = s.heads * 16;
  const Walk w{static_cast<int>(blockIdx.x), static_cast<int>(gridDim.x), static_cast<int>(threadIdx.x / 32),
               static_cast<int>(blockIdx.x) * head_tiles / static_cast<int>(gridDim.x),
               static_cast<int>(blockIdx.x + 1) * head_tiles / static_cast<int>(gridDim.x)};
  const std::uint32_t ring = shared_address(smem) + w.warp * s.depth * kUnitBytes;
#pragma unroll 1
  for (int i = threadIdx.x; i < table_bytes / 4;
       i += kDecodeThreads) {  // entry of a byte · 32 lanes; even column: high nibble
    const int byte = i / 32;
    reinterpret_cast<std::uint32_t*>(table)[i] = pack_bf16(kNf4[byte >> 4], kNf4[byte & 15]);
  }
  start(b);
  Stream stream;
  stream.begin(s, sh.layer[0]);
  bool listed[2] = {false, false};  // by DecodeLayerData::moe
  for (int i = 0; i < min(2, s.n_layers); ++i) {
    const int moe = sh.layer[i].moe;
    if (!listed[moe])
      list_parts(s, sh, sh.layer[i], w, moe != 0 ? kListMoe : kListDense, kQkvA, kSharedUp + (moe != 0 ? 0 : 2));
    listed[moe] = true;
  }
  list_parts(s, sh, sh.layer[0], w, kListHead, kHead, kHead);
  int mine = 0;           // the next part of this layer's list
  int routed_items = -1;  // of the list of routed parts

#pragma unroll 1
  for (int layer = 0; layer <= s.n_layers; ++layer) {
    const DecodeLayerData& l = sh.layer[layer & 1];
#pragma unroll 1
    for (int stage = layer == s.n_layers ? kHead : kQkvA; stage <= (layer == s.n_layers ? kHead : kDown); ++stage) {
      if (stage == kRoutedUp && l.moe == 0) continue;
      Rows rows{};
      int parity = 0;  // of the buffers of partial sums

      // Fetched while the barrier is waited for: this layer's experts, the next layer's descriptor.
      const int n_experts = l.moe != 0 ? s.n_experts * static_cast<int>(sizeof(DecodeExpert) / 16) : 0;
      const int word = static_cast<int>(threadIdx.x) - (kDecodeThreads - 64);
      const bool fetch = stage == kQkvA && static_cast<int>(threadIdx.x) < n_experts;
      const bool fetch_next = stage == kQkvA && layer > 0 && layer + 1 < s.n_layers && word >= 0 &&
                              word < static_cast<int>(sizeof(DecodeLayerData) / 16);
      uint4 expert{}, descriptor{};
      if (fetch) expert = __ldg(reinterpret_cast<const uint4*>(l.experts) + threadIdx.x);
      if (fetch_next) descriptor = __ldg(reinterpret_cast<const uint4*>(s.layers + layer + 1) + word);
      // Brings the stream past what earlier layers' descriptors and choices say: they may be overwritten from here on.
      stream.fill(s, sh, w, lane, ring);
      if (layer > 0 || stage > kQkvA) wait(b);
      if (fetch) reinterpret_cast<uint4*>(b.experts)[threadIdx.x] = expert;
      if (fetch_next) reinterpret_cast<uint4*>(&sh.layer[(layer + 1) & 1])[word] = descriptor;

      if (stage == kQkvA || stage == kQB || stage == kSharedUp || stage == kHead) {
        const bool scores = stage == kSharedUp && l.moe != 0 && w.block < s.n_experts;
        const int cols = stage == kQB ? s.q_lora : s.hidden;
        const float* weight = stage == kQkvA       ? l.input_norm
                              : stage == kQB       ? l.q_a_norm
                              : stage == kSharedUp ? l.post_norm
                                                   : s.final_norm;
        const WeightFormat format = stage == kQkvA       ? l.q_a.format
                                    : stage == kQB       ? l.q_b.format
                                    : stage == kSharedUp ? l.shared_gate.format
                                                         : sh.head.format;
        stage_norm(b, stage == kQB ? s.low : s.hidden_rows, weight, cols, staging_of(format),
                   scores ? l.router + static_cast<std::int64_t>(w.block) * s.hidden : nullptr);
        rows.stride = staged_row_bytes(cols);
        if (stage == kQkvA) {
          if (layer > 0 && layer + 1 < s.n_layers) {
            const DecodeLayerData& coming = sh.layer[(layer + 1) & 1];
            if (!listed[coming.moe]) {
              list_parts(s, sh, coming, w, coming.moe != 0 ? kListMoe : kListDense, kQkvA,
                         kSharedUp + (coming.moe != 0 ? 0 : 2));
              listed[coming.moe] = true;
            }
          }
          stream.loaded = max(2, layer + 2);
        } else if (stage == kQB) {
          if (w.warp == kDecodeWarps - 1) {
            const int row = w.block < 10 ? w.block - 10 + w.blocks : w.block - 10;
            if (row < s.n_rows) append_row(b, l, row);
          }
          if (layer + 1 < s.n_layers) prefetch_small(s, sh.layer[(layer + 1) & 1]);
        } else if (stage == kSharedUp && l.moe != 0) {
          if (w.warp == 0) {
            if (scores && lane < s.n_rows) {
              float dot = 0;
              for (int i = 0; i < s.hidden / 256; ++i) dot += sh.router_sums[lane][i];
              dot *= norm_factor(b, lane, false);
              s.scores[lane * s.n_experts + w.block] = 1.0F / (1.0F + expf(-dot));
            }
            __syncwarp();
            if (lane == 0) announce(b);
          }
          b.target += gridDim.x;
        } else if (stage == kHead && w.block < s.n_rows) {
          const float f = norm_factor(b, w.block, false);
#pragma unroll 1
          for (int i = threadIdx.x; i < s.hidden; i += kDecodeThreads) {
            const std::int64_t at = static_cast<std::int64_t>(w.block) * s.hidden + i;
            s.x_out[at] = __ldcg(s.hidden_rows + at) * f * __ldg(s.final_norm + i);
          }
        }
      } else if (stage == kLatentQ || stage == kValueUp) {
        const bool up = stage == kValueUp;
        if (up) {
          attend_pieces(s, sh, l, area);
          arrive(b);
          wait(b);
        }
        const int head = w.low / 16, n_heads = w.low < w.high ? (w.high - 1) / 16 - head + 1 : 0;
        const int units = up ? kLatentWidth / 8 : kNopeWidth / 8;
        rows.stride = staged_row_bytes(2 * 8 * units);
#pragma unroll 1
        for (int i = threadIdx.x; i < s.n_rows * n_heads * units; i += kDecodeThreads) {
          const int row = i / (n_heads * units), h = i / units % n_heads, unit = i % units;
          const uint4 v = up ? merged(s, sh, row, head + h, unit)
                             : __ldcg(reinterpret_cast<const uint4*>(
                                          s.q + (static_cast<std::int64_t>(row) * s.heads + head + h) * kQkWidth) +
                                      unit);
          sts128(shared_address(area) + row * rows.stride + (h * units + unit) * 16, v);
        }
        __syncthreads();
      } else if (stage == kRoutedUp) {
        if (w.warp < s.n_rows) choose(b, l, w.warp);
        __syncthreads();
        if (w.warp == 0) group_choices(b);
        __syncthreads();
        if (sh.n_items != routed_items) list_parts(s, sh, l, w, kListRouted, kRoutedUp, kDown);
        routed_items = sh.n_items;
        stream.ready = layer;
        rows.stride = staged_row_bytes(s.hidden);
      }
      if (stage == kRoutedUp) stream.fill(s, sh, w, lane, ring);

      // kOut and kDown take rows of bf16 as they are; kDown in rounds of items whose rows fit shared memory (places
      // follow the items' order). The other stages have their x by now, and one round.
      const bool down = stage == kDown;
      const int tile = first_tile(w, 0), row = threadIdx.x / 16, c = threadIdx.x % 16;
      const bool sums = down && tile < s.hidden >> 4 && row < s.n_rows;
      float residual = 0;
      if (sums) residual = __ldcg(s.hidden_rows + row * s.hidden + 16 * tile + c);
      const int items = down ? l.n_slices + (l.moe != 0 ? sh.n_items : 0) : 1;
      const int widest = down ? (l.moe != 0 ? max(l.slice_cols, l.down.cols) : l.slice_cols) : l.o.cols;
      const auto place = [&](int i) {  // the first one of item i
        return i <= l.n_slices
                   ? i * s.n_rows
                   : l.n_slices * s.n_rows + sh.items[i - l.n_slices - 1].first + sh.items[i - l.n_slices - 1].count;
      };
      const int list = stage == kHead      ? kListHead
                       : l.moe == 0        ? kListDense
                       : stage > kSharedUp ? kListRouted
                                           : kListMoe;
      if (stage == kQkvA || stage == kRoutedUp || stage == kHead) mine = 0;
      const DecodeEntry* entries = list_of(sh, list, w.warp);
      const int n_entries = sh.counts[list][w.warp];
#pragma unroll 1
      for (int i = 0, end; i < items; i = end) {
        end = i + 1;
        if (down || stage == kOut) {
          rows.stride = staged_row_bytes(widest);
          int n = s.n_rows;
          if (down) {
            while (end < items && place(end + 1) - place(i) <= s.x_bytes / static_cast<int>(rows.stride)) ++end;
            rows.first = place(i);
            n = place(end) - rows.first;
            if (i > 0) __syncthreads();
          }
          stage_rows(b, down ? s.act + static_cast<std::int64_t>(rows.first) * s.act_stride : s.attended, widest,
                     down ? s.act_stride : widest, n, rows.stride,
                     staging_of(down ? l.shared_down.format : l.o.format));
          __syncthreads();
        }
#pragma unroll 1
        while (mine < n_entries && entries[mine].stage == stage && (!down || entries[mine].item < end)) {
          const bool last = mine + 1 >= n_entries || entries[mine + 1].stage != stage;
          run_part(b, l, stage, entries[mine], w, rows, stream, ring, parity, last);
          ++mine;
        }
      }
      if (down) {
        __syncthreads();
        if (sums) s.hidden_rows[row * s.hidden + 16 * tile + c] = residual + sum_places(b, l, row, c);
      }
      if (stage < kSharedUp || stage == kRoutedUp || down || (stage == kSharedUp && l.moe == 0)) arrive(b);
    }
  }
}

// Shared memory: the rings, activations with the partial sums behind them (or attention's area), the NF4 table, the
// experts of a layer.
struct Memory {
  int area = 0, x = 0, table = 0, depth = 0;
  std::size_t bytes = 0;
};

Memory memory_of(const Launch& l, const DecodeStep& s, int widest_x, bool nf4) {
  cudaFuncAttributes a{};
  check(cudaFuncGetAttributes(&a, decode_kernel), "the decode kernel");
  Memory m;
  const int sums = 2 * kDecodeWarps * 32 * (s.n_rows <= 4 ? 4 : 8) * static_cast<int>(sizeof(float));
  m.area = std::max(AttendArea::kBytes, s.n_rows * static_cast<int>(staged_row_bytes(widest_x)) + sums);
  m.area = (m.area + 127) / 128 * 128;
  m.x = m.area - sums;
  m.table = nf4 ? 256 * 32 * 4 : 0;
  const int rest = m.area + m.table + s.n_experts * static_cast<int>(sizeof(DecodeExpert));
  const int ring = kDecodeWarps * kUnitBytes;
  m.depth =
      std::min(kMaxDepth, (l.smem_limit - static_cast<int>(a.sharedSizeBytes) - rest) / ring);  // of units of all warps
  m.bytes = static_cast<std::size_t>(rest + m.depth * ring);
  return m;
}

}  // namespace

int decode_barriers(int n_layers, int n_moe_layers) { return 8 * n_layers + n_moe_layers; }

bool decode_device_fits(const Launch& l, const DecodeStep& s, int widest_x, bool nf4) {
  if (l.n_sms < std::max({s.hidden / 16, s.n_experts, 32}) || memory_of(l, s, widest_x, nf4).depth < kBatch)
    return false;
  int blocks = 0;
  const Memory m = memory_of(l, s, widest_x, nf4);
  allow_shared_memory(reinterpret_cast<const void*>(decode_kernel), m.bytes);
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, decode_kernel, kDecodeThreads, m.bytes), "occupancy");
  return blocks >= 1;
}

void decode_step(const Launch& l, DecodeStep& s, int widest_x, bool nf4) {
  const Memory m = memory_of(l, s, widest_x, nf4);
  s.depth = m.depth;
  s.area_bytes = m.area;
  s.x_bytes = m.x;
  const int starts[3] = {84, 116, 60};
  for (int i = 0; i < 3; ++i) s.starts[i] = starts[i] % l.n_sms;
  allow_shared_memory(reinterpret_cast<const void*>(decode_kernel), m.bytes);
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeCooperative;
  attribute.val.cooperative = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(l.n_sms));
  config.blockDim = dim3(kDecodeThreads);
  config.dynamicSmemBytes = m.bytes;
  config.stream = l.stream;
  config.attrs = &attribute;
  config.numAttrs = 1;
  check(cudaLaunchKernelEx(&config, decode_kernel, static_cast<const DecodeStep&>(s), m.table), "the decode kernel");
}

}  // namespace glint::cuda
