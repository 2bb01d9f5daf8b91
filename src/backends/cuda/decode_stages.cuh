#pragma once
// What the multiplying warps of the decode step do between two barriers of the grid: stage x, multiply, store.

#include "backends/cuda/decode_plan.cuh"
#include "backends/cuda/kv_encode.cuh"

#if __CUDA_ARCH__ >= 900
namespace glint::cuda {

// Fixed part of a block's shared memory; x, the cache tiles and the ring lie behind it.
struct StepShared {
  alignas(16) StepLayer layer;       // of the multiplying warps
  alignas(16) StepLayer copy_layer;  // of the copying warp
  MatPtr experts[3 * kStepExperts];
  StepItem items[kStepSlots];
  float weights[kStepSlots];
  std::int32_t n_items;
  std::int32_t ids[kStepSlots];
  std::uint32_t nf4[256];
  float reduce[2][kStepWarps][kStepRows];
  alignas(16) float sums[2][kStepWarps][kTileRows][8];
  alignas(16) float kv_row[kRowWidth];
  std::uint64_t routed;  // barrier: items and weights are there
  std::uint64_t full[32], empty[32];
};

__device__ __forceinline__ void sync_workers() { asm volatile("bar.sync 1, %0;" ::"n"(kStepWorkers) : "memory"); }

struct StepWorker {
  const DecodeStep& p;
  StepShared& s;
  Ring ring;
  std::uint32_t x;      // shared address of the area for x
  int x_bytes;          // of it
  std::uint32_t cache;  // shared address of two tiles of the cache
  int tid, lane, warp;
  int turn = 0;        // of the two buffers of sums
  int turn_reduce = 0;
  unsigned epoch = 0;  // barriers passed

  // The barrier of the grid in two halves: what all blocks wrote before arriving is there after waiting.
  __device__ void grid_arrive() {
    epoch += gridDim.x;
    sync_workers();
    if (tid == 0) {
      asm volatile("fence.acq_rel.gpu;" ::: "memory");
      asm volatile("red.relaxed.gpu.global.add.u32 [%0], 1;" ::"l"(p.counters) : "memory");
    }
  }
  __device__ void grid_wait() {
    if (tid == 0) {
      unsigned seen;
      do {
        asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(p.counters) : "memory");
      } while (static_cast<int>(seen - epoch) < 0);
    }
    sync_workers();
  }
  __device__ void grid_sync() {
    grid_arrive();
    grid_wait();
  }

  // Sums over the block of T numbers a thread, in every thread.
  __device__ void block_sums(float (&v)[kStepRows]) {
    float(&to)[kStepWarps][kStepRows] = s.reduce[turn_reduce ^= 1];
#pragma unroll
    for (int t = 0; t < kStepRows; ++t) {
      if (t >= p.T) break;
      const float sum = warp_sum(v[t]);
      if (lane == 0) to[warp][t] = sum;
    }
    sync_workers();
#pragma unroll
    for (int t = 0; t < kStepRows; ++t) {
      if (t >= p.T) break;
      float sum = 0;
#pragma unroll
      for (int w = 0; w < kStepWarps; ++w) sum += to[w][t];
      v[t] = sum;
    }
  }

  // This lane's row of x: rows of token t lie at `first` + 2 t (rounded) and the next (what that left).
  __device__ std::uint32_t own_row(std::uint32_t first, int stride) const {
    const int n = min(lane / 4, 2 * p.T - 1);
    return first + static_cast<std::uint32_t>((n < p.T ? 2 * n : 2 * (n - p.T) + 1) * stride) + lane % 4 * 16;
  }

  // One tile's sum of output row tid % 16 and token tid / 16, for tid < 16 · T; the next call uses another buffer.
  __device__ float tile_value(const StepTile& t, std::uint32_t x_row) {
    const float4 part = tile_sum_any(ring, t, x_row, s.nf4);
    return gathered(part);
  }
  __device__ float gathered(const float4& part) {
    auto& sums = s.sums[turn ^= 1];
    const int g = lane / 4, t = lane % 4;
    *reinterpret_cast<float2*>(&sums[warp][g][2 * t]) = {part.x, part.y};
    *reinterpret_cast<float2*>(&sums[warp][g + 8][2 * t]) = {part.z, part.w};
    sync_workers();
    float v = 0;
    if (tid < kTileRows * p.T) {
      const int row = tid % 16, token = tid / 16;
#pragma unroll
      for (int w = 0; w < kStepWarps; ++w) v += sums[w][row][token] + sums[w][row][p.T + token];
    }
    return v;
  }
  // Only warps that hold values take part: pairs of lanes may be compared in them.
  __device__ bool holds_values() const { return warp * 32 < kTileRows * p.T; }

  // ---- staging x ----------------------------------------------------------------------------------------------------

  // Rows of F32 in memory that other blocks wrote, in one order.
  __device__ void stage_plain(const float* from, std::int64_t stride, int cols, StepOrder order, std::uint32_t to) {
    const int units = cols / 8, row_stride = x_stride(cols);
    for (int i = tid; i < units * p.T; i += kStepWorkers) {
      const int t = i / units, u = i % units;
      float v[8];
      load8(from + t * stride + u * 8, v);
      put_split(order, to + 2 * t * row_stride, to + (2 * t + 1) * row_stride, u, v);
    }
    sync_workers();
  }
  __device__ static void load8(const float* from, float (&v)[8]) {
    const float4 a = __ldcg(reinterpret_cast<const float4*>(from)), b = __ldcg(reinterpret_cast<const float4*>(from) + 1);
    v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w, v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
  }

  // RMS-normed rows, in one or two orders; keep(t, unit, values) sees them on the way.
  template <typename Keep>
  __device__ void stage_normed(const float* from, int cols, const float* weight, float eps, StepOrder first,
                               StepOrder second, Keep&& keep) {
    constexpr int kMost = 2;  // units a thread
    const int units = cols / 8, row_stride = x_stride(cols);
    float v[kMost][kStepRows][8], w[kMost][8], sum[kStepRows] = {};
#pragma unroll
    for (int k = 0; k < kMost; ++k) {
      const int u = tid + k * kStepWorkers;
      if (u >= units) break;
      load8(weight + u * 8, w[k]);
#pragma unroll
      for (int t = 0; t < kStepRows; ++t) {
        if (t < p.T) load8(from + static_cast<std::int64_t>(t) * cols + u * 8, v[k][t]);
      }
    }
#pragma unroll
    for (int k = 0; k < kMost; ++k) {
      if (tid + k * kStepWorkers >= units) break;
#pragma unroll
      for (int t = 0; t < kStepRows; ++t) {
        if (t >= p.T) break;
#pragma unroll
        for (int i = 0; i < 8; ++i) sum[t] += v[k][t][i] * v[k][t][i];
      }
    }
    block_sums(sum);
#pragma unroll
    for (int k = 0; k < kMost; ++k) {
      const int u = tid + k * kStepWorkers;
      if (u >= units) break;
#pragma unroll
      for (int t = 0; t < kStepRows; ++t) {
        if (t >= p.T) break;
        const float factor = 1.0F / sqrtf(sum[t] / static_cast<float>(cols) + eps);
#pragma unroll
        for (int i = 0; i < 8; ++i) v[k][t][i] = v[k][t][i] * factor * w[k][i];
        const std::uint32_t to = x + 2 * t * row_stride;
        put_split(first, to, to + row_stride, u, v[k][t]);
        if (second != first) {
          const std::uint32_t other = to + 2 * p.T * row_stride;
          put_split(second, other, other + row_stride, u, v[k][t]);
        }
        keep(t, u, v[k][t]);
      }
    }
    sync_workers();
  }
  // Where the rows of an order lie after stage_normed.
  __device__ std::uint32_t normed_rows(int cols, StepOrder first, StepOrder wanted) const {
    return x + (wanted == first ? 0 : 2 * p.T * x_stride(cols));
  }

  // ---- stages -------------------------------------------------------------------------------------------------------

  // low = W_qa · RMS(stream), kv = W_kva · RMS(stream).
  __device__ void project_low() {
    const StepLayer& w = s.layer;
    const StepOrder first = order_of(w.q_a.shape.format), second = order_of(w.kv_a.shape.format);
    stage_normed(p.stream, p.hidden, w.input_norm, p.eps, first, second, [](int, int, const float(&)[8]) {});
    each_low_tile(w, [&](const StepTile& t, int which) {
      const std::uint32_t rows = normed_rows(p.hidden, first, which == 0 ? first : second);
      const float v = tile_value(t, own_row(rows, x_stride(p.hidden)));
      const int row = t.row + tid % 16, token = tid / 16;
      if (token < p.T && tid % 16 < t.n)
        (which == 0 ? p.low + token * p.q_lora : p.kv + token * kRowWidth)[row] = v;
    });
  }

  // q = rope(W_qb · RMS(low)). The last blocks put the rows' latents into the cache.
  __device__ void project_query(int layer) {
    const StepLayer& w = s.layer;
    const StepOrder order = order_of(w.q_b.shape.format);
    stage_normed(p.low, p.q_lora, w.q_a_norm, p.latent_eps, order, order, [](int, int, const float(&)[8]) {});
    each_row_tile(w.q_b, [&](const StepTile& t) {
      float v = tile_value(t, own_row(x, x_stride(p.q_lora)));
      if (!holds_values()) return;
      const int row = t.row + tid % 16, token = tid / 16, in_head = row % kQkWidth;
      const float other = __shfl_xor_sync(0xffffffffU, v, 1);
      if (token >= p.T || tid % 16 >= t.n) return;
      if (in_head >= kNopeWidth) {
        float c, sn;
        rope_angle(p.rope.frequencies.revolutions[(in_head - kNopeWidth) / 2], p.rope.positions[token], &c, &sn);
        v = in_head % 2 == 0 ? v * c - other * sn : other * sn + v * c;
      }
      p.q[static_cast<std::int64_t>(token) * p.heads * kQkWidth + row] = v;
    });
    const int token = static_cast<int>(gridDim.x - 1 - blockIdx.x);
    if (token < p.T) append_row(token, layer);
  }

  // By all warps (the sum) and one of them (the row).
  __device__ void append_row(int token, int layer) {
    const float* from = p.kv + token * kRowWidth;
    const float2 v = __ldcg(reinterpret_cast<const float2*>(from) + tid);
    float squares[kStepRows] = {};
    squares[0] = v.x * v.x + v.y * v.y;
    block_sums(squares);
    const float factor = 1.0F / sqrtf(squares[0] / kLatentWidth + p.latent_eps);
    s.kv_row[2 * tid] = v.x * factor * s.layer.kv_a_norm[2 * tid];
    s.kv_row[2 * tid + 1] = v.y * factor * s.layer.kv_a_norm[2 * tid + 1];
    if (tid < 32) {
      float c, sn;
      rope_angle(p.rope.frequencies.revolutions[tid], p.rope.positions[token], &c, &sn);
      const float2 u = __ldcg(reinterpret_cast<const float2*>(from + kLatentWidth) + tid);
      s.kv_row[kLatentWidth + 2 * tid] = u.x * c - u.y * sn;
      s.kv_row[kLatentWidth + 2 * tid + 1] = u.x * sn + u.y * c;
    }
    sync_workers();
    const std::int32_t slot = p.slots[token];
    if (warp != 0 || slot < 0) return;
    switch (p.cache.codec) {
      case KvCodec::kFp8:
        return encode_row<KvCodec::kFp8>(s.kv_row, cache_row<KvCodec::kFp8>(layer, slot), lane);
      case KvCodec::kInt8:
        return encode_row<KvCodec::kInt8>(s.kv_row, cache_row<KvCodec::kInt8>(layer, slot), lane);
      case KvCodec::kInt4:
        return encode_row<KvCodec::kInt4>(s.kv_row, cache_row<KvCodec::kInt4>(layer, slot), lane);
      default:
        auto* to = reinterpret_cast<__nv_bfloat16*>(cache_row<KvCodec::kBF16>(layer, slot));
        for (int i = lane; i < kRowWidth; i += 32) to[i] = __float2bfloat16_rn(s.kv_row[i]);
    }
  }
  template <KvCodec kCodec>
  __device__ unsigned char* cache_row(int layer, int slot) const {
    auto* pages = static_cast<unsigned char*>(const_cast<void*>(p.cache.pages)) + layer * p.layer_stride;
    return pages + slot / kPageRows * p.cache.page_stride + slot % kPageRows * kCacheRowBytes<kCodec>;
  }

  // query = W_UKᵀ q_nope, by columns: a warp has 16 of a tile's 64, and half of the contraction.
  __device__ void latent_query() {
    constexpr int kStride = x_stride(kNopeWidth), kSlotStride = kColumns * 2 + 16;
    int staged = -1;
    each_column_tile(p.heads, [&](int head, int column) {
      if (head != staged) {
        if (staged >= 0) sync_workers();  // the last tile's products are over
        stage_plain(p.q + head * kQkWidth, static_cast<std::int64_t>(p.heads) * kQkWidth, kNopeWidth, StepOrder::kWords, x);
        staged = head;
      }
      const std::uint32_t own = own_row(x, kStride);
      float acc[4] = {};
      const int m = warp % 4 * 16;
#pragma unroll
      for (int part = 0; part < kNopeWidth / 64; ++part) {
        barrier_wait(ring.full + 8 * ring.at, ring.phase);
#pragma unroll
        for (int k = 0; k < 2; ++k) {
          const int depth = warp / 4 * 32 + k * 16;
          std::uint32_t a[4];
          // Stored by the contraction: tiles of (8 k, 8 columns), turned on the way.
          ldmatrix4_trans(a, ring.slot() + (depth + lane / 16 * 8 + lane % 8) * kSlotStride + (m + lane / 8 % 2 * 8) * 2);
          const std::uint32_t at = own + part * 128 + warp / 4 * 64 + k * 8;
          mma(acc, a[0], a[1], a[2], a[3], lds32(at), lds32(at + 4));
        }
        __syncwarp();
        if (lane == 0) barrier_arrive(ring.empty + 8 * ring.at);
        ring.advance();
      }
      auto& sums = s.sums[turn ^= 1];
      const int g = lane / 4, t = lane % 4;
      *reinterpret_cast<float2*>(&sums[warp][g][2 * t]) = {acc[0], acc[1]};
      *reinterpret_cast<float2*>(&sums[warp][g + 8][2 * t]) = {acc[2], acc[3]};
      sync_workers();
      if (tid < kColumns * p.T) {
        const int c = tid % kColumns, token = tid / kColumns, w = c / 16, row = c % 16;
        const float v = (sums[w][row][token] + sums[w][row][p.T + token]) +
                        (sums[w + 4][row][token] + sums[w + 4][row][p.T + token]);
        p.query[(static_cast<std::int64_t>(token) * p.heads + head) * kLatentWidth + column + c] = v;
      }
    });
  }

  // stream += W_o · attended.
  __device__ void project_out() {
    const StepLayer& w = s.layer;
    const int cols = p.heads * kQkWidth;
    stage_plain(p.attended, cols, cols, order_of(w.o.shape.format), x);
    each_row_tile(w.o, [&](const StepTile& t) {
      const float v = tile_value(t, own_row(x, x_stride(cols)));
      if (tid / 16 < p.T && tid % 16 < t.n) add_to_stream(tid / 16, t.row + tid % 16, v);
    });
  }
  __device__ void add_to_stream(int token, int row, float v) {
    float* at = p.stream + static_cast<std::int64_t>(token) * p.hidden + row;
    *at = __ldcg(at) + v;
  }

  // Scores of the experts that are this block's; x stays staged for gate and up.
  __device__ void score_experts() {
    const StepLayer& w = s.layer;
    const StepOrder first = order_of(w.shared_gate.shape.format);
    const StepOrder second = w.n_experts > 0 ? order_of(w.gate.format) : first;
    const int expert = blockIdx.x;  // and the ones a grid further
    float dot[kStepRows] = {};
    stage_normed(p.stream, p.hidden, w.post_norm, p.eps, first, second, [&](int t, int u, const float(&v)[8]) {
      if (expert >= w.n_experts) return;
      const float* row = w.router + static_cast<std::int64_t>(expert) * p.hidden + u * 8;
      const float4 a = __ldg(reinterpret_cast<const float4*>(row)), b = __ldg(reinterpret_cast<const float4*>(row) + 1);
      const float part = v[0] * a.x + v[1] * a.y + v[2] * a.z + v[3] * a.w + v[4] * b.x + v[5] * b.y + v[6] * b.z + v[7] * b.w;
#pragma unroll
      for (int i = 0; i < kStepRows; ++i) {
        if (i == t) dot[i] += part;
      }
    });
    if (expert >= w.n_experts) return;
    block_sums(dot);
    if (tid < p.T) {
      float mine = dot[0];
#pragma unroll
      for (int i = 1; i < kStepRows; ++i) {
        if (tid == i) mine = dot[i];
      }
      p.scores[tid * p.score_stride + expert] = 1.0F / (1.0F + expf(-mine));
    }
  }

  // Every block for itself: each row's experts and weights, and the list of experts by rising number.
  __device__ void choose_experts() {
    const StepLayer& w = s.layer;
    if (warp < p.T) {
      constexpr int kPerLane = kStepExperts / 32;
      float score[kPerLane], choice[kPerLane];
#pragma unroll
      for (int i = 0; i < kPerLane; ++i) {
        const int e = lane + 32 * i;
        const bool real = e < w.n_experts;
        score[i] = real ? __ldcg(p.scores + warp * p.score_stride + e) : 0.0F;
        choice[i] = real ? score[i] + __ldg(w.router_bias + e) : -INFINITY;
        if (real && !(choice[i] > -3e38F)) choice[i] = -3e38F;  // NaN too: every row gets experts that exist
      }
      float total = 0, mine = 0;
      int my_id = 0;
      for (int k = 0; k < p.top_k; ++k) {
        float best = -INFINITY, best_score = 0;
        int id = 1 << 30;
#pragma unroll
        for (int i = 0; i < kPerLane; ++i) {
          if (choice[i] > best) best = choice[i], best_score = score[i], id = lane + 32 * i;
        }
#pragma unroll
        for (int d = 16; d > 0; d >>= 1) {
          const float other = __shfl_xor_sync(0xffffffffU, best, d), other_score = __shfl_xor_sync(0xffffffffU, best_score, d);
          const int other_id = __shfl_xor_sync(0xffffffffU, id, d);
          if (other > best || (other == best && other_id < id)) best = other, best_score = other_score, id = other_id;
        }
#pragma unroll
        for (int i = 0; i < kPerLane; ++i) {
          if (lane + 32 * i == id) choice[i] = -INFINITY;
        }
        total += best_score;
        if (lane == k) mine = best_score, my_id = id;
      }
      if (lane < p.top_k) {
        s.ids[warp * p.top_k + lane] = my_id;
        s.weights[warp * p.top_k + lane] = (p.normalize ? mine / (total + 1e-20F) : mine) * p.routed_scale;
      }
    }
    sync_workers();
    if (warp == 0) {
      const int slots = p.T * p.top_k;
      const int id = lane < slots ? s.ids[lane] : -1 - lane;  // no two of the others alike
      const unsigned same = __match_any_sync(0xffffffffU, id);
      const bool leads = lane < slots && __ffs(same) - 1 == lane;
      const unsigned leaders = __ballot_sync(0xffffffffU, leads);
      int place = 0;
      for (int i = 0; i < slots; ++i) {
        const int other = __shfl_sync(0xffffffffU, id, i);
        if ((leaders >> i & 1U) != 0 && other < id) ++place;
      }
      if (leads) {
        StepItem item{id, {-1, -1, -1, -1}};
        for (unsigned rest = same; rest != 0; rest &= rest - 1) {
          const int slot = __ffs(rest) - 1;
          item.slot[slot / p.top_k] = static_cast<signed char>(slot);
        }
        s.items[place] = item;
      }
      if (lane == 0) s.n_items = __popc(leaders);
      __syncwarp();
      if (lane == 0) barrier_arrive(shared_address(&s.routed));
    }
    sync_workers();
  }

  // h = silu(gate x) ⊙ up x of the shared expert (or the dense MLP), before anyone has chosen.
  __device__ void shared_gate_up() {
    const StepLayer& w = s.layer;
    const std::uint32_t own = own_row(x, x_stride(p.hidden));
    const int first_slot = w.n_experts > 0 ? p.T * p.top_k : 0;
    each_shared_tile(w, [&](const StepTile& t) {
      const float v = gated_value(t, own);
      const int token = tid / 16;
      if (token < p.T && tid % 16 < t.n)
        p.h[static_cast<std::int64_t>(first_slot + token) * p.inner_stride + t.row + tid % 16] = v;
    });
  }
  // The same of the chosen experts.
  __device__ void expert_gate_up() {
    const StepLayer& w = s.layer;
    const StepOrder first = order_of(w.shared_gate.shape.format);
    const std::uint32_t own = own_row(normed_rows(p.hidden, first, order_of(w.gate.format)), x_stride(p.hidden));
    each_expert_tile(w, s.experts, s.items, s.n_items, [&](const StepTile& t, int item) {
      const float v = gated_value(t, own);
      const int token = tid / 16;
      if (token >= p.T || tid % 16 >= t.n) return;
      const int slot = s.items[item].slot[token];
      if (slot >= 0) p.h[static_cast<std::int64_t>(slot) * p.inner_stride + t.row + tid % 16] = v;
    });
  }
  __device__ float gated_value(const StepTile& t, std::uint32_t own) {
    const float v = tile_value(t, own);
    if (!holds_values()) return 0;
    const float up = __shfl_down_sync(0xffffffffU, v, 8);
    return silu(v) * up;
  }

  // stream += Σ weight · down h over the experts by rising number, then the shared one.
  __device__ void down() {
    const StepLayer& w = s.layer;
    const int n_items = w.n_experts > 0 ? s.n_items : 0;
    const int shared_slot = w.n_experts > 0 ? p.T * p.top_k : 0;
    const int n_all = n_items + (w.shared_down.shape.cols + kStepSegment - 1) / kStepSegment;
    // x holds the rows of some items at a time: [first, last) of them, from slot to slot.
    int staged_first = 0, staged_last = 0;
    float sum = 0;
    each_down_tile(w, s.experts, s.items, n_items, [&](const StepTile& t, int item) {
      if (item < staged_first || item >= staged_last) {
        if (staged_last > 0) sync_workers();
        staged_first = item;
        staged_last = stage_hidden(item, n_items, n_all, shared_slot);
      }
      // Rows of this item's tokens; a token that is not in it reads another's, and nobody takes the result.
      const int stride = x_stride(t.end - t.begin);
      const int n = min(lane / 4, 2 * p.T - 1), mine = n < p.T ? n : n - p.T;
      std::uint32_t own = x;
      for (int i = staged_first; i < item; ++i) own += item_rows(i, n_items) * 2 * x_stride(item_cols(i, n_items));
      int place = 0;  // of the token's row among the item's
      for (int i = 0; i < mine; ++i) place += in_item(item, n_items, i) ? 1 : 0;
      if (!in_item(item, n_items, mine)) place = 0;
      own += static_cast<std::uint32_t>((2 * place + (n < p.T ? 0 : 1)) * stride) + lane % 4 * 16;
      const float v = tile_value(t, own);
      const int token = tid / 16;
      if (token >= p.T) return;
      if (item == 0) sum = 0;
      if (item < n_items) {
        const int slot = s.items[item].slot[token];
        if (slot >= 0) sum += s.weights[slot] * v;
      } else {
        sum += v;
      }
      if (item == n_all - 1 && tid % 16 < t.n) add_to_stream(token, t.row + tid % 16, sum);
    });
  }
  __device__ bool in_item(int item, int n_items, int token) const {
    return item >= n_items || s.items[item].slot[token] >= 0;
  }
  __device__ int item_rows(int item, int n_items) const {
    int n = 0;
    for (int t = 0; t < p.T; ++t) n += in_item(item, n_items, t) ? 1 : 0;
    return n;
  }
  __device__ int item_cols(int item, int n_items) const {
    if (item < n_items) return s.layer.down.cols;
    return min(kStepSegment, s.layer.shared_down.shape.cols - (item - n_items) * kStepSegment);
  }
  // Stages rows of h from `item` on, as many items as fit; returns the first that is not staged.
  __device__ int stage_hidden(int item, int n_items, int n_all, int shared_slot) {
    std::uint32_t to = x;
    int i = item;
    for (; i < n_all; ++i) {
      const int cols = item_cols(i, n_items), stride = x_stride(cols), units = cols / 8;
      const int bytes = item_rows(i, n_items) * 2 * stride;
      if (i > item && static_cast<int>(to - x) + bytes > x_bytes) break;
      const StepOrder order = order_of(i < n_items ? s.layer.down.format : s.layer.shared_down.shape.format);
      const int skip = i < n_items ? 0 : (i - n_items) * kStepSegment;
      for (int t = 0; t < p.T; ++t) {
        if (!in_item(i, n_items, t)) continue;
        const int slot = i < n_items ? s.items[i].slot[t] : shared_slot + t;
        for (int u = tid; u < units; u += kStepWorkers) {
          float v[8];
          load8(p.h + static_cast<std::int64_t>(slot) * p.inner_stride + skip + u * 8, v);
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
    if (static_cast<int>(blockIdx.x) >= p.T) return;
    const std::int64_t base = static_cast<std::int64_t>(blockIdx.x) * p.hidden;
    float squares[kStepRows] = {};
    for (int i = tid; i < p.hidden; i += kStepWorkers) {
      const float v = __ldcg(p.stream + base + i);
      squares[0] += v * v;
    }
    block_sums(squares);
    const float factor = 1.0F / sqrtf(squares[0] / static_cast<float>(p.hidden) + p.eps);
    for (int i = tid; i < p.hidden; i += kStepWorkers) p.out[base + i] = __ldcg(p.stream + base + i) * factor * p.final_norm[i];
  }
};

}  // namespace glint::cuda
#endif
