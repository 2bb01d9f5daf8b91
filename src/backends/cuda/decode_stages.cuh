#pragma once
// What the multiplying warps of the decode step do between two barriers of the grid: stage x, multiply, store.

#include "backends/cuda/choose_experts.cuh"
#include "backends/cuda/decode_plan.cuh"
#include "backends/cuda/kv_encode.cuh"

#if __CUDA_ARCH__ >= 900
namespace glint::cuda {

// Where the rows' contexts lie in the list of all, in blocks of kStepTokens tokens; see decode_attend.cuh.
struct StepContexts {
  std::int32_t first[kStepRows + 1];               // of row t in the list
  std::int32_t begin[kStepRows], end[kStepRows];   // tokens that it sees
  std::int32_t seq[kStepRows], pieces[kStepRows];  // its sequence; the pieces that it is cut into
  std::int32_t origin[kStepRows];  // the number of its first piece, in blocks of the grid or of the list
  bool by_grid;                    // a block of the grid makes one piece; otherwise a block of the list is one
  bool merge;                      // pieces are merged in a stage of their own
};

// Fixed part of a block's shared memory; x, the cache tiles and the ring lie behind it.
struct StepShared {
  alignas(16) StepLayer layers[2];  // in turn: the next one is there before the copying warps get to it
  alignas(16) DecodeStep p;
  StepContexts contexts;
  float2 rope[kStepRows][32];  // cosine and sine of each row's position
  MatPtr experts[2][3 * kStepExperts];
  StepItem items[kStepSlots];
  float weights[kStepSlots];
  std::int32_t n_items;
  std::int32_t ids[kStepSlots];
  std::uint32_t nf4[256];
  float reduce[2][kStepWarps][kStepRows];
  alignas(16) float kv_row[kRowWidth];
  std::uint32_t x, cache, sums;  // shared addresses: the area for x, two tiles of the cache, sums of tiles
  std::int32_t x_bytes;
  std::uint64_t routed;  // barrier: items and weights are there
  std::uint64_t full[32], empty[32];
};
// At namespace scope so that its accesses are known to be of shared memory in every function. A union, since nothing
// initialises it.
union StepMemory {
  StepShared s;
  __device__ StepMemory() {}
};
static __shared__ StepMemory step;

__device__ __forceinline__ void sync_workers() { asm volatile("bar.sync 1, %0;" ::"n"(kStepWorkers) : "memory"); }

// One of the multiplying threads, in a step of kT rows.
template <int kT>
struct StepWorker {
  Ring ring;
  int tid, lane, warp;
  int turn = 0;  // of the two buffers of sums
  int turn_reduce = 0;
  unsigned epoch = 0;  // barriers passed
  int parity = 0;      // of the layer

  __device__ const StepLayer& weights() const { return step.s.layers[parity]; }
  __device__ const MatPtr* experts() const { return step.s.experts[parity]; }

  // Into the buffer of a layer that is over. By all threads; a barrier follows before anyone reads it.
  __device__ void fetch_layer(int l) {
    const StepLayer* from = step.s.p.layers + l;
    StepLayer& to = step.s.layers[l & 1];
    const MatPtr* experts = from->experts;
    const int n = 3 * from->n_experts;
#pragma unroll 1
    for (int i = tid; i < static_cast<int>(sizeof(StepLayer) / 16); i += kStepWorkers)
      reinterpret_cast<uint4*>(&to)[i] = __ldg(reinterpret_cast<const uint4*>(from) + i);
#pragma unroll 1
    for (int i = tid; i < n; i += kStepWorkers) step.s.experts[l & 1][i] = experts[i];
    // Norms and this block's row of the router are read in the shadow of barriers: have them nearer.
    const int line = blockIdx.x * kStepWorkers + tid;
    prefetch_floats(from->input_norm, step.s.p.hidden, line);
    prefetch_floats(from->post_norm, step.s.p.hidden, line - 64);
    prefetch_floats(from->q_a_norm, step.s.p.q_lora, line - 128);
    prefetch_floats(from->kv_a_norm, kLatentWidth, line - 192);
    if (static_cast<int>(blockIdx.x) < from->n_experts)
      prefetch_floats(from->router + blockIdx.x * step.s.p.hidden, step.s.p.hidden, tid);
  }
  // Line `line` of n floats into the second-level cache.
  __device__ static void prefetch_floats(const float* at, int n, int line) {
    if (line >= 0 && line * 32 < n) asm volatile("prefetch.global.L2 [%0];" ::"l"(at + line * 32));
  }

  // The barrier of the grid in two halves: what all blocks wrote before arriving is there after waiting.
  __device__ void grid_arrive() {
    epoch += gridDim.x;
    sync_workers();
    if (tid == 0) {
      asm volatile("fence.acq_rel.gpu;" ::: "memory");
      asm volatile("red.relaxed.gpu.global.add.u32 [%0], 1;" ::"l"(step.s.p.counters) : "memory");
    }
  }
  __device__ void grid_wait() {
    if (tid == 0) {
      const unsigned* counter = step.s.p.counters;
      unsigned seen;
      do {
        asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(counter) : "memory");
      } while (static_cast<int>(seen - epoch) < 0);
    }
    sync_workers();
  }
  __device__ __noinline__ static unsigned grid_sync_of(unsigned epoch) {
    StepWorker c{};
    c.tid = threadIdx.x;
    c.epoch = epoch;
    c.grid_arrive();
    c.grid_wait();
    return c.epoch;
  }
  __device__ void grid_sync() { epoch = grid_sync_of(epoch); }

  // Sums over the block of kT numbers a thread, in every thread.
  __device__ void block_sums(float (&v)[kT]) {
    float(&to)[kStepWarps][kStepRows] = step.s.reduce[turn_reduce ^= 1];
#pragma unroll
    for (int t = 0; t < kT; ++t) {
      const float sum = warp_sum(v[t]);
      if (lane == 0) to[warp][t] = sum;
    }
    sync_workers();
#pragma unroll
    for (int t = 0; t < kT; ++t) {
      float sum = 0;
#pragma unroll
      for (int w = 0; w < kStepWarps; ++w) sum += to[w][t];
      v[t] = sum;
    }
  }

  // This lane's row of x: rows of token t lie at `first` + 2 t (rounded) and the next (what that left).
  __device__ std::uint32_t own_row(std::uint32_t first, int stride) const {
    const int n = min(lane / 4, 2 * kT - 1);
    return first + static_cast<std::uint32_t>((n < kT ? 2 * n : 2 * (n - kT) + 1) * stride) + lane % 4 * 16;
  }

  // ---- tiles --------------------------------------------------------------------------------------------------------

  static constexpr int kRowFloats = 2 * kT, kBufferBytes = sum_buffer_bytes(kT);
  static constexpr bool kTwoBuffers = sum_buffers(kT) == 2;

  __device__ std::uint32_t buffer() const { return step.s.sums + (kTwoBuffers ? turn * kBufferBytes : 0); }
  // Before a tile writes its sums: who reads the last ones must have read them.
  __device__ void next_buffer() {
    turn ^= 1;
    if (!kTwoBuffers) sync_workers();
  }

  // This warp's part of a tile, added to what is in the buffer or not. No barrier.
  __device__ void add_tile(const StepTile& t, std::uint32_t x_row, bool add, float weight0, float weight1) {
    const StepMat& m = weights().mats[t.role];
    TileJob job{x_row,      shared_address(step.s.nf4),
                0,          buffer() + warp * (kSumRows * kRowFloats * 4),
                kRowFloats, t.row,
                t.n,        t.end - t.begin,
                0,          t.pair,
                add,        {weight0, weight1}};
    if (is_scaled(m)) {
      job.bases = low_bits(t.at[0].scales) | low_bits(t.at[1].scales) << 4 | low_bits(t.at[0].mins) << 8 |
                  low_bits(t.at[1].mins) << 12;
      job.first_group = t.begin >> m.group_shift;
    }
    ring.advance(lone_tile_any(ring, m, job));
  }
  // Sum of a tile's row for a token, after a barrier.
  __device__ float sum_at(int place, int token) const {
    const std::uint32_t at = buffer() + static_cast<std::uint32_t>(place * kRowFloats + token) * 4;
    float v = 0;
#pragma unroll
    for (int w = 0; w < kStepWarps; ++w) {
      const std::uint32_t from = at + w * (kSumRows * kRowFloats * 4);
      v += __uint_as_float(lds32(from)) + __uint_as_float(lds32(from + kT * 4));
    }
    return v;
  }
  // A whole tile; then done(row in the tile, token) by a thread each.
  template <typename Done>
  __device__ void whole_tile(const StepTile& t, std::uint32_t x_row, Done&& done) {
    next_buffer();
    add_tile(t, x_row, false, 1, 1);
    finish_tile(t, done);
  }
  template <typename Done>
  __device__ void finish_tile(const StepTile& t, Done&& done) {
    sync_workers();
    const int shift = 4 + shape_of(t.n), row = tid & ((1 << shift) - 1), token = tid >> shift;
    if (token < kT && row < t.n) done(row, token);
  }

  // ---- staging x ----------------------------------------------------------------------------------------------------

  // Rows of F32 in memory that other blocks wrote, in one order.
  __device__ void stage_plain(const float* from, int stride, int cols, StepOrder order, std::uint32_t to) {
    const int units = cols / 8, row_stride = x_stride(cols);
#pragma unroll 1
    for (int t = 0; t < kT; ++t) {
#pragma unroll 1
      for (int u = tid; u < units; u += 3 * kStepWorkers) {  // three at a time: the loads overlap
        float v[3][8];
#pragma unroll
        for (int k = 0; k < 3; ++k) {
          if (u + k * kStepWorkers < units) load8(from + t * stride + (u + k * kStepWorkers) * 8, v[k]);
        }
#pragma unroll
        for (int k = 0; k < 3; ++k) {
          if (u + k * kStepWorkers < units)
            put_split(order, to + 2 * t * row_stride, to + (2 * t + 1) * row_stride, u + k * kStepWorkers, v[k]);
        }
      }
    }
    sync_workers();
  }
  __device__ static void load8(const float* from, float (&v)[8]) {
    const float4 a = __ldcg(reinterpret_cast<const float4*>(from)),
                 b = __ldcg(reinterpret_cast<const float4*>(from) + 1);
    v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w, v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
  }

  // RMS-normed rows of at most 2,048 columns, in one or two orders; keep(t, unit, values) sees them on the way.
  template <typename Keep>
  __device__ void stage_normed(const float* from, int cols, const float* weight, float eps, StepOrder first,
                               StepOrder second, Keep&& keep) {
    const int row_stride = x_stride(cols), u = tid;
    const bool mine = u < cols / 8;
    float v[kT][8], w[8], sum[kT];
    if (mine) {
      load8(weight + u * 8, w);
#pragma unroll
      for (int t = 0; t < kT; ++t) load8(from + t * cols + u * 8, v[t]);
    }
#pragma unroll
    for (int t = 0; t < kT; ++t) {
      sum[t] = 0;
      if (mine) {
#pragma unroll
        for (int i = 0; i < 8; ++i) sum[t] += v[t][i] * v[t][i];
      }
    }
    block_sums(sum);
    if (mine) {
#pragma unroll
      for (int t = 0; t < kT; ++t) {
        const float factor = rsqrtf(sum[t] / static_cast<float>(cols) + eps);
#pragma unroll
        for (int i = 0; i < 8; ++i) v[t][i] = v[t][i] * factor * w[i];
        const std::uint32_t to = step.s.x + 2 * t * row_stride;
        put_split(first, to, to + row_stride, u, v[t]);
        if (second != first) put_split(second, to + 2 * kT * row_stride, to + (2 * kT + 1) * row_stride, u, v[t]);
        keep(t, u, v[t]);
      }
    }
    sync_workers();
  }
  // Where the rows of an order lie after stage_normed.
  __device__ std::uint32_t normed_rows(int cols, StepOrder first, StepOrder wanted) const {
    return step.s.x + (wanted == first ? 0 : 2 * kT * x_stride(cols));
  }
  __device__ StepOrder order_of_role(StepRole role) { return order_of(weights().mats[role].format); }

  // ---- stages -------------------------------------------------------------------------------------------------------

  // low = W_qa · RMS(stream), kv = W_kva · RMS(stream).
  __device__ void project_low() {
    const StepOrder first = order_of_role(kQa), second = order_of_role(kKva);
    const int hidden = step.s.p.hidden;
    stage_normed(step.s.p.stream, hidden, weights().input_norm, step.s.p.eps, first, second,
                 [](int, int, const float(&)[8]) {});
    each_low_tile(weights(), [&](const StepTile& t) {
      const std::uint32_t rows = normed_rows(hidden, first, t.role == kQa ? first : second);
      whole_tile(t, own_row(rows, x_stride(hidden)), [&](int row, int token) {
        (t.role == kQa ? step.s.p.low + token * step.s.p.q_lora : step.s.p.kv + token * kRowWidth)[t.row + row] =
            sum_at(row, token);
      });
    });
  }

  // q = rope(W_qb · RMS(low)). The last blocks put the rows' latents into the cache.
  __device__ void project_query(int layer) {
    const StepOrder order = order_of_role(kQb);
    const int q_lora = step.s.p.q_lora;
    stage_normed(step.s.p.low, q_lora, weights().q_a_norm, step.s.p.latent_eps, order, order,
                 [](int, int, const float(&)[8]) {});
    each_row_tile(weights(), kQb, [&](const StepTile& t) {
      whole_tile(t, own_row(step.s.x, x_stride(q_lora)), [&](int row, int token) {
        float v = sum_at(row, token);
        const int in_head = (t.row + row) % kQkWidth;
        if (in_head >= kNopeWidth) {
          const float other = sum_at(row ^ 1, token);
          const float2 by = step.s.rope[token][(in_head - kNopeWidth) / 2];
          v = in_head % 2 == 0 ? v * by.x - other * by.y : other * by.y + v * by.x;
        }
        step.s.p.q[token * step.s.p.heads * kQkWidth + t.row + row] = v;
      });
    });
    const int token = static_cast<int>(gridDim.x - 1 - blockIdx.x);
    if (token < kT) append_row(token, layer);
  }

  // By all warps (the sum) and one of them (the row).
  __device__ void append_row(int token, int layer) {
    const float* from = step.s.p.kv + token * kRowWidth;
    const float2 v = __ldcg(reinterpret_cast<const float2*>(from) + tid);
    float squares[kT] = {};
    squares[0] = v.x * v.x + v.y * v.y;
    block_sums(squares);
    const float factor = rsqrtf(squares[0] / kLatentWidth + step.s.p.latent_eps);
    step.s.kv_row[2 * tid] = v.x * factor * weights().kv_a_norm[2 * tid];
    step.s.kv_row[2 * tid + 1] = v.y * factor * weights().kv_a_norm[2 * tid + 1];
    if (tid < 32) {
      const float2 r = step.s.rope[token][tid];
      const float2 u = __ldcg(reinterpret_cast<const float2*>(from + kLatentWidth) + tid);
      step.s.kv_row[kLatentWidth + 2 * tid] = u.x * r.x - u.y * r.y;
      step.s.kv_row[kLatentWidth + 2 * tid + 1] = u.x * r.y + u.y * r.x;
    }
    sync_workers();
    const std::int32_t slot = step.s.p.slots[token];
    if (warp == 0 && slot >= 0) put_row(layer, slot);
  }
  __device__ __noinline__ static void put_row(int layer, std::int32_t slot) {
    const int lane = threadIdx.x % 32;
    switch (step.s.p.cache.codec) {
      case KvCodec::kFp8:
        return encode_row<KvCodec::kFp8>(step.s.kv_row, cache_row<KvCodec::kFp8>(layer, slot), lane);
      case KvCodec::kInt8:
        return encode_row<KvCodec::kInt8>(step.s.kv_row, cache_row<KvCodec::kInt8>(layer, slot), lane);
      case KvCodec::kInt4:
        return encode_row<KvCodec::kInt4>(step.s.kv_row, cache_row<KvCodec::kInt4>(layer, slot), lane);
      default:
        auto* to = reinterpret_cast<__nv_bfloat16*>(cache_row<KvCodec::kBF16>(layer, slot));
        for (int i = lane; i < kRowWidth; i += 32) to[i] = __float2bfloat16_rn(step.s.kv_row[i]);
    }
  }
  template <KvCodec kCodec>
  __device__ static unsigned char* cache_row(int layer, int slot) {
    auto* pages = static_cast<unsigned char*>(const_cast<void*>(step.s.p.cache.pages)) + layer * step.s.p.layer_stride;
    return pages + slot / kPageRows * step.s.p.cache.page_stride + slot % kPageRows * kCacheRowBytes<kCodec>;
  }

  // query = W_UKᵀ q_nope, by columns: a warp has 16 of a tile's 64, and half of the contraction.
  __device__ void latent_query() {
    constexpr int kStride = x_stride(kNopeWidth), kSlotStride = kColumns * 2 + 16;
    const int heads = step.s.p.heads;
    int staged = -1;
    each_column_tile(heads, [&](int head, int column) {
      if (head != staged) {
        if (staged >= 0) sync_workers();  // the last tile's products are over
        stage_plain(step.s.p.q + head * kQkWidth, heads * kQkWidth, kNopeWidth, StepOrder::kWords, step.s.x);
        staged = head;
      }
      const std::uint32_t own = own_row(step.s.x, kStride) + warp / 4 * 64;
      float acc[4] = {};
      const int m = warp % 4 * 16;
      // Stored by the contraction: tiles of (8 k, 8 columns), turned on the way.
      const std::uint32_t from = (warp / 4 * 32 + lane / 16 * 8 + lane % 8) * kSlotStride + (m + lane / 8 % 2 * 8) * 2;
#pragma unroll 1
      for (int part = 0; part < kNopeWidth / 64; ++part) {
        barrier_wait(ring.full + 8 * ring.at, ring.phase);
        const uint4 v = lds128(own + part * 128);
        std::uint32_t a[4];
        ldmatrix4_trans(a, ring.slot() + from);
        mma(acc, a[0], a[1], a[2], a[3], v.x, v.y);
        ldmatrix4_trans(a, ring.slot() + from + 16 * kSlotStride);
        mma(acc, a[0], a[1], a[2], a[3], v.z, v.w);
        __syncwarp();
        if (lane == 0) barrier_arrive(ring.empty + 8 * ring.at);
        ring.advance();
      }
      next_buffer();
      const int g = lane / 4, q = lane % 4;
      if (q < kT) {
        const std::uint32_t to = buffer() + static_cast<std::uint32_t>((warp * 16 + g) * kRowFloats + 2 * q) * 4;
        sts64(to, __float_as_uint(acc[0]), __float_as_uint(acc[1]));
        sts64(to + 8 * kRowFloats * 4, __float_as_uint(acc[2]), __float_as_uint(acc[3]));
      }
      sync_workers();
      if (tid < kColumns * kT) {
        const int c = tid % kColumns, token = tid / kColumns;
        float v = 0;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const std::uint32_t from =
              buffer() + static_cast<std::uint32_t>((half * kColumns + c) * kRowFloats + token) * 4;
          v += __uint_as_float(lds32(from)) + __uint_as_float(lds32(from + kT * 4));
        }
        step.s.p.query[(token * heads + head) * kLatentWidth + column + c] = v;
      }
    });
  }

  // stream += W_o · attended.
  __device__ void project_out() {
    const int cols = step.s.p.heads * kQkWidth;
    stage_plain(step.s.p.attended, cols, cols, order_of_role(kO), step.s.x);
    each_row_tile(weights(), kO, [&](const StepTile& t) {
      whole_tile(t, own_row(step.s.x, x_stride(cols)),
                 [&](int row, int token) { add_to_stream(token, t.row + row, sum_at(row, token)); });
    });
  }
  __device__ void add_to_stream(int token, int row, float v) {
    float* at = step.s.p.stream + token * step.s.p.hidden + row;
    *at = __ldcg(at) + v;
  }

  // The score of the expert that is this block's; x stays staged for gate and up.
  __device__ void score_experts() {
    const int hidden = step.s.p.hidden, n_experts = weights().n_experts, expert = blockIdx.x;
    const StepOrder first = order_of_role(kSharedGate), second = n_experts > 0 ? order_of_role(kGate) : first;
    float dot[kT] = {};
    float4 a{}, b{};
    if (expert < n_experts && tid < hidden / 8) {
      const auto* row = reinterpret_cast<const float4*>(weights().router + expert * hidden) + 2 * tid;
      a = __ldg(row), b = __ldg(row + 1);
    }
    stage_normed(
        step.s.p.stream, hidden, weights().post_norm, step.s.p.eps, first, second, [&](int t, int, const float(&v)[8]) {
          dot[t] =
              v[0] * a.x + v[1] * a.y + v[2] * a.z + v[3] * a.w + v[4] * b.x + v[5] * b.y + v[6] * b.z + v[7] * b.w;
        });
    if (expert >= n_experts) return;
    block_sums(dot);
    if (tid == 0) {
#pragma unroll
      for (int t = 0; t < kT; ++t) step.s.p.scores[t * step.s.p.score_stride + expert] = 1.0F / (1.0F + expf(-dot[t]));
    }
  }

  // Every block for itself: each row's experts and weights, and the list of experts by rising number.
  __device__ void choose_experts() {
    const int n_experts = weights().n_experts, top_k = step.s.p.top_k;
    if (warp < kT) {
      constexpr int kPerLane = kStepExperts / 32;
      float score[kPerLane];
#pragma unroll
      for (int i = 0; i < kPerLane; ++i) {
        const int e = lane + 32 * i;
        score[i] = e < n_experts ? __ldcg(step.s.p.scores + warp * step.s.p.score_stride + e) : 0.0F;
      }
      glint::cuda::choose_experts({weights().router_bias, n_experts, top_k, step.s.p.normalize, step.s.p.routed_scale,
                                   step.s.ids, step.s.weights},
                                  warp, score);
    }
    if (kT > 1) sync_workers();
    if (warp == 0) {
      __syncwarp();
      const int slots = kT * top_k;
      const int id = lane < slots ? step.s.ids[lane] : -1 - lane;  // no two of the others alike
      const unsigned same = __match_any_sync(0xffffffffU, id);
      const bool leads = lane < slots && __ffs(same) - 1 == lane;
      const unsigned leaders = __ballot_sync(0xffffffffU, leads);
      int place = 0;
#pragma unroll 1
      for (int i = 0; i < slots; ++i) {
        const int other = __shfl_sync(0xffffffffU, id, i);
        if ((leaders >> i & 1U) != 0 && other < id) ++place;
      }
      if (leads) {
        StepItem item{id, {-1, -1, -1, -1}};
        for (unsigned rest = same; rest != 0; rest &= rest - 1) {
          const int slot = __ffs(rest) - 1;
          item.slot[slot / top_k] = static_cast<signed char>(slot);
        }
        step.s.items[place] = item;
      }
      if (lane == 0) step.s.n_items = __popc(leaders);
      __syncwarp();
      if (lane == 0) barrier_arrive(shared_address(&step.s.routed));
    }
    sync_workers();
  }

  // h = silu(gate x) ⊙ up x of the shared expert (or the dense MLP), before anyone has chosen.
  __device__ void shared_gate_up() {
    const std::uint32_t own = own_row(step.s.x, x_stride(step.s.p.hidden));
    const int first_slot = weights().n_experts > 0 ? kT * step.s.p.top_k : 0;
    each_shared_tile(weights(), [&](const StepTile& t) { gated_tile(t, own, first_slot, -1); });
  }
  // The same of the chosen experts.
  __device__ void expert_gate_up() {
    const std::uint32_t rows = normed_rows(step.s.p.hidden, order_of_role(kSharedGate), order_of_role(kGate));
    const std::uint32_t own = own_row(rows, x_stride(step.s.p.hidden));
    each_expert_tile(weights(), experts(), step.s.items, step.s.n_items,
                     [&](const StepTile& t, int item) { gated_tile(t, own, 0, item); });
  }
  __device__ void gated_tile(const StepTile& t, std::uint32_t own, int first_slot, int item) {
    next_buffer();
    add_tile(t, own, false, 1, 1);
    finish_tile(t, [&](int row, int token) {
      const int slot = item < 0 ? first_slot + token : step.s.items[item].slot[token];
      if (slot < 0) return;
      const int place = row / 8 * 16 + row % 8;
      const float gate = sum_at(place, token), up = sum_at(place + 8, token);
      step.s.p.h[slot * step.s.p.inner_stride + t.row + row] = gate / (1.0F + __expf(-gate)) * up;
    });
  }

  // stream += Σ weight · down h over the experts by rising number, then the shared one.
  __device__ void down() {
    const int n_items = weights().n_experts > 0 ? step.s.n_items : 0;
    const int n_all = n_items + (weights().mats[kSharedDown].cols + kStepSegment - 1) / kStepSegment;
    // x holds the rows of some items at a time: [first, last) of them.
    int staged_first = 0, staged_last = 0;
    // This lane's row of x is that of a token, and its two columns of the sums are those of two.
    const int n = min(lane / 4, 2 * kT - 1), mine = n < kT ? n : n - kT;
    const int column = min(2 * (lane % 4), 2 * kT - 2);
    const int token0 = column < kT ? column : column - kT, token1 = column + 1 < kT ? column + 1 : column + 1 - kT;
    each_down_tile(weights(), experts(), step.s.items, n_items, [&](const StepTile& t, int item) {
      if (item < staged_first || item >= staged_last) {
        if (staged_last > 0) sync_workers();
        staged_first = item;
        staged_last = stage_hidden(item, n_items, n_all);
      }
      // Rows of this item's tokens; a token that is not in it reads another's, and gets nothing of the sum.
      std::uint32_t own = step.s.x;
#pragma unroll 1
      for (int i = staged_first; i < item; ++i) own += item_rows(i, n_items) * 2 * x_stride(item_cols(i, n_items));
      int place = 0;  // of the token's row among the item's
      if (kT > 1 && in_item(item, n_items, mine)) {
        for (int i = 0; i < mine; ++i) place += in_item(item, n_items, i) ? 1 : 0;
      }
      own += static_cast<std::uint32_t>((2 * place + (n < kT ? 0 : 1)) * x_stride(t.end - t.begin)) + lane % 4 * 16;
      if (item == 0) next_buffer();
      add_tile(t, own, item > 0, item_weight(item, n_items, token0), item_weight(item, n_items, token1));
      if (item < n_all - 1) return;
      finish_tile(t, [&](int row, int token) { add_to_stream(token, t.row + row, sum_at(row, token)); });
    });
  }
  __device__ static float item_weight(int item, int n_items, int token) {
    if (item >= n_items) return 1;
    const int slot = step.s.items[item].slot[token];
    return slot < 0 ? -1.0F : step.s.weights[slot];
  }
  __device__ static bool in_item(int item, int n_items, int token) {
    return kT == 1 || item >= n_items || step.s.items[item].slot[token] >= 0;
  }
  __device__ static int item_rows(int item, int n_items) {
    int n = 0;
#pragma unroll
    for (int t = 0; t < kT; ++t) n += in_item(item, n_items, t) ? 1 : 0;
    return n;
  }
  __device__ int item_cols(int item, int n_items) {
    if (item < n_items) return weights().mats[kDown].cols;
    return min(kStepSegment, weights().mats[kSharedDown].cols - (item - n_items) * kStepSegment);
  }
  // Stages rows of h from `item` on, as many items as fit; returns the first that is not staged.
  __device__ int stage_hidden(int item, int n_items, int n_all) {
    const int shared_slot = weights().n_experts > 0 ? kT * step.s.p.top_k : 0;
    std::uint32_t to = step.s.x;
    int i = item;
#pragma unroll 1
    for (; i < n_all; ++i) {
      const int cols = item_cols(i, n_items), stride = x_stride(cols), units = cols / 8;
      if (i > item && static_cast<int>(to - step.s.x) + item_rows(i, n_items) * 2 * stride > step.s.x_bytes) break;
      const StepOrder order = order_of_role(i < n_items ? kDown : kSharedDown);
      const int skip = i < n_items ? 0 : (i - n_items) * kStepSegment;
#pragma unroll 1
      for (int t = 0; t < kT; ++t) {
        if (!in_item(i, n_items, t)) continue;
        const int slot = i < n_items ? step.s.items[i].slot[t] : shared_slot + t;
#pragma unroll 1
        for (int u = tid; u < units; u += kStepWorkers) {
          float v[8];
          load8(step.s.p.h + slot * step.s.p.inner_stride + skip + u * 8, v);
          put_split(order, to, to + stride, u, v);
        }
        to += 2 * stride;
      }
    }
    sync_workers();
    return i;
  }

  // out = RMS(stream), a block a row.
  __device__ void normed_out() {
    if (static_cast<int>(blockIdx.x) >= kT) return;
    const int hidden = step.s.p.hidden, base = blockIdx.x * hidden;
    float squares[kT] = {};
#pragma unroll 1
    for (int i = tid; i < hidden; i += kStepWorkers) {
      const float v = __ldcg(step.s.p.stream + base + i);
      squares[0] += v * v;
    }
    block_sums(squares);
    const float factor = rsqrtf(squares[0] / static_cast<float>(hidden) + step.s.p.eps);
#pragma unroll 1
    for (int i = tid; i < hidden; i += kStepWorkers)
      step.s.p.out[base + i] = __ldcg(step.s.p.stream + base + i) * factor * step.s.p.final_norm[i];
  }
};

}  // namespace glint::cuda
#endif
