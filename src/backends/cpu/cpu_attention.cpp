// Multi-head latent attention: projections, the cache write, and absorbed attention. Model facts §2.3.

#include <algorithm>
#include <cmath>
#include <cstring>

#include "backends/cpu/cpu_ops.hpp"

namespace glint::cpu {
namespace {

constexpr std::int64_t kHeadRows = kNope + kValue;  // rows of a head in kv_b: 192 W_UK, then 256 W_UV

std::int64_t round_up(std::int64_t n, std::int64_t to) { return (n + to - 1) / to * to; }

}  // namespace

// Angles in double: at position 200,000 a float angle would be off by 0.01.
void CpuOps::update_rope(const std::int32_t* positions, std::int64_t rows, float theta) {
  auto* known = static_cast<std::int32_t*>(rope_positions_.data());
  const std::size_t bytes = static_cast<std::size_t>(rows) * sizeof(std::int32_t);
  CHECK(bytes <= rope_positions_.bytes(), "more rows than reserve() was told");
  if (rope_rows_ >= rows && rope_theta_ == theta && std::memcmp(known, positions, bytes) == 0) return;
  std::memcpy(known, positions, bytes);
  rope_rows_ = rows;
  rope_theta_ = theta;
  double frequency[kRope / 2];
  for (int i = 0; i < kRope / 2; ++i) frequency[i] = std::pow(static_cast<double>(theta), -2.0 * i / kRope);
  auto* table = static_cast<float*>(rope_.data());
  for (std::int64_t t = 0; t < rows; ++t) {
    for (int i = 0; i < kRope / 2; ++i) {
      const double angle = positions[t] * frequency[i];
      table[t * kRope + 2 * i] = static_cast<float>(std::cos(angle));
      table[t * kRope + 2 * i + 1] = static_cast<float>(std::sin(angle));
    }
  }
}

// Rotates the pairs (x0,x1), (x2,x3) … of the 64 values at x by the angles of row `row`.
void CpuOps::rope_rows(float* x, std::int64_t row) const {
  const float* table = static_cast<const float*>(rope_.data()) + row * kRope;
  for (int i = 0; i < kRope; i += 2) {
    const float a = x[i];
    const float b = x[i + 1];
    x[i] = a * table[i] - b * table[i + 1];
    x[i + 1] = a * table[i + 1] + b * table[i];
  }
}

void CpuOps::mla_project(const MlaProjectParams& p) {
  const std::int64_t rows = p.x.shape[0];
  const std::int64_t q_lora = p.q_a.rows;
  const std::int64_t heads = p.q.shape[1];
  fit({.max_rows = rows, .hidden = p.x.shape[1], .n_heads = heads, .q_lora = q_lora});
  Arena arena(workspace_);
  update_rope(p.positions, rows, p.rope_theta);
  auto* low = arena.take<float>(rows * q_lora);
  auto* kv = p.kv.as<float>();
  const Packed x = packed(arena, p.x.as<float>(), rows, p.x.shape[1], pack_kind(p.q_a));
  const DotJob down[2] = {{x, p.q_a, low, q_lora}, {x, p.kv_a, kv, kKvRow}};
  if (pack_kind(p.kv_a).index() == pack_kind(p.q_a).index()) {
    dot(down);
  } else {
    Arena again(arena);  // its own packed x, released at once
    dot({down, 1});
    const DotJob other{packed(again, p.x.as<float>(), rows, p.x.shape[1], pack_kind(p.kv_a)), p.kv_a, kv, kKvRow};
    dot({&other, 1});
  }
  norm_rows({.x = low, .weight = p.q_a_norm.as<float>(), .out = low, .n = q_lora, .eps = p.latent_eps}, rows, q_lora);
  for_items(rows, static_cast<double>(rows * kKvRow) * 4, [&](std::int64_t t, int) {
    float* row = kv + t * kKvRow;
    table_.norm({.x = row, .weight = p.kv_a_norm.as<float>(), .out = row, .n = kLatent, .eps = p.latent_eps});
    rope_rows(row + kLatent, t);
  });
  const DotJob up{packed(arena, low, rows, q_lora, pack_kind(p.q_b)), p.q_b, p.q.as<float>(), heads * kQk};
  dot({&up, 1});
  for_items(rows, static_cast<double>(rows * heads * kRope), [&](std::int64_t t, int) {
    for (std::int64_t h = 0; h < heads; ++h) rope_rows(p.q.as<float>() + (t * heads + h) * kQk + kNope, t);
  });
}

void CpuOps::mla_append(const MlaAppendParams& p) {
  const std::int64_t rows = p.kv.shape[0];
  for_items(rows, static_cast<double>(rows * kKvRow), [&](std::int64_t t, int) {
    if (p.slots[t] < 0) return;
    const std::int64_t page = p.slots[t] / kPageTokens;
    const std::int64_t row = p.slots[t] % kPageTokens;
    char* to = static_cast<char*>(p.pages.base) + page * p.pages.page_stride_bytes + row * kv_row_bytes(p.pages.codec);
    const float* from = p.kv.as<float>() + t * kKvRow;
    switch (p.pages.codec) {
      case KvCodec::kF32:
        std::memcpy(to, from, kKvRow * sizeof(float));
        break;
      case KvCodec::kBF16:
        table_.to_bf16(from, reinterpret_cast<BF16*>(to), kKvRow);
        break;
      default:
        table_.kv_encode(p.pages.codec, from, to);
    }
  });
}

// Rows [row0, row0 + rows) of the batch. A pair is a (row, head), numbered from row0's first head on; a block is up to
// Table::query_block pairs of one sequence, which share each pass over its cache.
struct CpuOps::AttendRows {
  struct Block {
    int seq = 0;
    std::int64_t pair = 0;
    std::int64_t n = 0;
  };

  const MlaAttendParams* p = nullptr;
  std::int64_t heads = 0;
  std::int64_t row0 = 0;
  std::int64_t rows = 0;
  float* q = nullptr;        // [rows, heads, 576]: latent query, rotary query, both scaled
  Packed* latent = nullptr;  // [heads] of [rows, 512]: what the cache answered
  Block* blocks = nullptr;
  std::int64_t n_blocks = 0;
  float* scratch = nullptr;      // a thread: thread_floats()
  AttendState* parts = nullptr;  // [threads · kPartsPerThread] of `block` queries
  AttendState run;               // [block] queries
  std::int64_t block = 0;        // most queries of an attend

  std::int64_t state_floats() const { return block * (kLatent + 2); }
  std::int64_t thread_floats() const { return kAttendScratch + 2 * state_floats(); }
  static constexpr std::int64_t kPartsPerThread = 8;  // 4,096 tokens a wave with two threads

  static AttendState state(float* memory, std::int64_t n) {
    return {.top = memory + n * kLatent, .sum = memory + n * (kLatent + 1), .latent = memory};
  }
  static AttendState query(const AttendState& s, std::int64_t i) {
    return {.top = s.top + i, .sum = s.sum + i, .latent = s.latent + i * kLatent};
  }
  std::int64_t window() const { return p->window_tokens; }
  // Positions that the row of pair `pair` of sequence s sees.
  std::int64_t last(int s, std::int64_t pair) const {
    const AttendBatch& b = p->batch;
    const std::int64_t row = row0 + pair / heads;
    return b.context_tokens[s] - b.row_offsets[s + 1] + row + 1;
  }
  std::int64_t first(int s, std::int64_t pair) const {
    return window() > 0 ? std::max<std::int64_t>(0, last(s, pair) - window()) : 0;
  }
  // The kernel's arguments for a block; first and last have room for its queries.
  AttendArgs args(const Block& b, std::int64_t* first_seen, std::int64_t* last_seen) const {
    for (std::int64_t i = 0; i < b.n; ++i) {
      first_seen[i] = first(b.seq, b.pair + i);
      last_seen[i] = last(b.seq, b.pair + i);
    }
    return {.q = q + b.pair * kKvRow,
            .n = b.n,
            .first = first_seen,
            .last = last_seen,
            .pages = p->pages,
            .page_table = p->batch.page_table + static_cast<std::int64_t>(b.seq) * p->batch.max_pages,
            .heads = heads};
  }
  // The first page that a block reads: all that its sequence has of it.
  Soon first_page(const Block& b) const {
    const std::int64_t from = first(b.seq, b.pair), row_bytes = kv_row_bytes(p->pages.codec);
    const std::int64_t page = p->batch.page_table[b.seq * p->batch.max_pages + from / kPageTokens];
    const std::int64_t end =
        std::min<std::int64_t>(last(b.seq, b.pair + b.n - 1) - from / kPageTokens * kPageTokens, kPageTokens);
    const std::int64_t bytes = (end - from % kPageTokens) * row_bytes;
    return {.data = static_cast<const char*>(p->pages.base) + page * p->pages.page_stride_bytes +
                    from % kPageTokens * row_bytes,
            .stride = bytes,
            .bytes = bytes,
            .pieces = 1};
  }
  // Asks for the rows that a block reads first: within a sequence the kernel asks for the next ones itself.
  void fetch(const Block& b) const {
    constexpr std::int64_t kRows = 16;
    const std::int64_t from = first(b.seq, b.pair), row_bytes = kv_row_bytes(p->pages.codec);
    const std::int64_t page = p->batch.page_table[b.seq * p->batch.max_pages + from / kPageTokens];
    const char* at = static_cast<const char*>(p->pages.base) + page * p->pages.page_stride_bytes +
                     from % kPageTokens / kRows * kRows * row_bytes;
    for (const char* end = at + kRows * row_bytes; at < end; at += 64) __builtin_prefetch(at, 0, 2);
  }
  // W_UV of the heads that are the part-th of `all` parts: a row or two wait for it once their attention is done.
  Soon values(std::int64_t part, std::int64_t all) const {
    if (rows > kFewRowsOfX) return {};
    const std::int64_t row_bytes = p->kv_b.row_bytes(), from = heads * part / all;
    return {.data = static_cast<const char*>(p->kv_b.data) + (from * kHeadRows + kNope) * row_bytes,
            .stride = kHeadRows * row_bytes,
            .bytes = kValue * row_bytes,
            .pieces = heads * (part + 1) / all - from};
  }
  std::int64_t begin_chunk(const Block& b) const { return first(b.seq, b.pair) / kChunk; }
  std::int64_t end_chunk(const Block& b) const { return (last(b.seq, b.pair + b.n - 1) + kChunk - 1) / kChunk; }
  // Cuts the pairs of every sequence into blocks of at most `size`.
  void cut(std::int64_t size) {
    n_blocks = 0;
    const AttendBatch& b = p->batch;
    for (int s = 0; s < b.n_seqs; ++s) {
      const std::int64_t from = std::max<std::int64_t>(b.row_offsets[s], row0);
      const std::int64_t to = std::min<std::int64_t>(b.row_offsets[s + 1], row0 + rows);
      const std::int64_t end = (to - row0) * heads;
      for (std::int64_t pair = (from - row0) * heads; pair < end; pair += size)
        blocks[n_blocks++] = {s, pair, std::min(size, end - pair)};
    }
  }
};

std::int64_t attend_floats(std::int64_t rows, std::int64_t heads, int threads, std::int64_t block) {
  const std::int64_t n = std::min(rows, kAttendRows);
  const std::int64_t block_floats = 8 * (n * heads / kTileAlign + n + 1);
  const std::int64_t state = block * (kLatent + 2) + 64;
  const std::int64_t latent = std::max(packed_floats(n, kLatent), twofold_floats(n, kLatent));
  return n * heads * kKvRow + heads * (latent + 64) + block_floats + 32 * heads +
         threads * (kAttendScratch + 2 * state + (8 + 1) * state + 8 * 16 + 64) + 1024;
}

void CpuOps::mla_attend(const MlaAttendParams& p) {
  CHECK(supports_absorbed(quant_spec(p.kv_b)), "kv_b is read along both its axes: the loader widens what cannot be");
  const std::int64_t heads = p.q.shape[1];
  const std::int64_t width = heads * kValue;
  const std::int64_t rows = p.batch.row_offsets[p.batch.n_seqs];
  const std::int64_t threads = pool_.size();
  fit({.max_rows = rows, .n_heads = heads});
  for (std::int64_t row0 = 0; row0 < rows; row0 += kAttendRows) {
    Arena arena(workspace_);
    AttendRows a{.p = &p, .heads = heads, .row0 = row0, .rows = std::min(kAttendRows, rows - row0)};
    a.block = heads >= kManyHeads ? table_.query_block : kQueryBlock;
    a.q = arena.take<float>(a.rows * heads * kKvRow);
    a.latent = arena.take<Packed>(heads);
    // Never codes of 8 bits: rounding the latents to int8 costs more than rounding kv_b does (KL 4e-4 to 9e-4 nats and
    // 4e-4, tiny model, 4,096 tokens, 2026-11-28), and a product of 512 columns is not faster for it.
    PackKind kind = has_scales(p.kv_b.format) ? PackKind{} : pack_kind(p.kv_b);
    if (has_scales(p.kv_b.format) && table_.dots_words) kind = {.quant = kLatent, .words = true};
    for (std::int64_t h = 0; h < heads; ++h) a.latent[h] = make_packed(arena, a.rows, kLatent, kind);
    a.blocks = arena.take<AttendRows::Block>(a.rows * heads / kTileAlign + a.rows + 1);
    a.scratch = arena.take<float>(threads * a.thread_floats());
    latent_queries(a);

    const std::int64_t pairs = a.rows * heads;
    std::int64_t longest = 0;
    for (int s = 0; s < p.batch.n_seqs; ++s) longest = std::max<std::int64_t>(longest, p.batch.context_tokens[s]);
    const bool few = pairs <= threads * a.block;
    if (few && longest >= threads * kChunk) {
      a.parts = arena.take<AttendState>(threads * AttendRows::kPartsPerThread);
      for (std::int64_t i = 0; i < threads * AttendRows::kPartsPerThread; ++i)
        a.parts[i] = AttendRows::state(arena.take<float>(a.state_floats()), a.block);
      a.run = AttendRows::state(arena.take<float>(a.state_floats()), a.block);
      a.cut(a.block);
      attend_chunks(a);
    } else {
      const std::int64_t blocks = few ? threads : 2 * threads;  // each turns the cache into codes again
      a.cut(std::clamp(round_up(pairs / blocks, kTileAlign), kTileAlign, a.block));
      attend_blocks(a);
    }
    latent_values(a);
  }
  float* padding = p.out.as<float>() + rows * width;  // rows of no sequence
  std::fill(padding, p.out.as<float>() + p.out.shape[0] * width, 0.0F);
}

// q_lat = W_UKᵀ q_nope / 16 a head; the rotary part is copied. The scale is a power of two: exact wherever it is
// applied.
void CpuOps::latent_queries(const AttendRows& a) {
  const Weight& kv_b = a.p->kv_b;
  const float* q = a.p->q.as<float>() + a.row0 * a.heads * kQk;
  const std::int64_t chunks = row_chunks(a.rows);
  const double work = static_cast<double>(a.heads * kNope * kLatent) * std::max(2.0, static_cast<double>(a.rows) / 4);
  for_items(a.heads * chunks, work, [&](std::int64_t item, int) {
    const std::int64_t h = item / chunks;
    const std::int64_t m0 = chunk_begin(a.rows, item % chunks);
    const std::int64_t m1 = chunk_begin(a.rows, item % chunks + 1);
    table_.combine({.a = q + (m0 * a.heads + h) * kQk,
                    .a_stride = a.heads * kQk,
                    .rows = m1 - m0,
                    .w = kv_b.slice_rows(h * kHeadRows, kNope),
                    .scale = kSoftmaxScale,
                    .out = a.q + (m0 * a.heads + h) * kKvRow,
                    .out_stride = a.heads * kKvRow});
    for (std::int64_t m = m0; m < m1; ++m) {
      const float* from = q + (m * a.heads + h) * kQk + kNope;
      float* to = a.q + (m * a.heads + h) * kKvRow + kLatent;
      for (int i = 0; i < kRope; ++i) to[i] = from[i] * kSoftmaxScale;
      if (kv_is_rotated(a.p->pages.codec)) table_.hadamard(to - kLatent);
    }
  });
}

// Many pairs: an item is a block of them and runs through its sequence's chunks in order.
void CpuOps::attend_blocks(const AttendRows& a) {
  constexpr double kAlways = 1e9;
  for_items(a.n_blocks, kAlways, [&](std::int64_t item, int thread) {
    const AttendRows::Block& b = a.blocks[item];
    float* memory = a.scratch + thread * a.thread_floats();
    const AttendState run = AttendRows::state(memory + kAttendScratch, a.block);
    const AttendState part = AttendRows::state(memory + kAttendScratch + a.state_floats(), a.block);
    std::int64_t first[kMostQueries];
    std::int64_t last[kMostQueries];
    AttendArgs args = a.args(b, first, last);
    args.scratch = memory;
    const std::int64_t after = item + 1;  // what this thread is likely to do next
    const bool other = after < a.n_blocks && a.blocks[after].seq != b.seq;
    const bool streamed =
        table_.streams_pages && b.n <= kStreamedQueries && a.p->pages.codec != KvCodec::kF32;  // floats: attend()
    if (other && !streamed) a.fetch(a.blocks[after]);
    for (std::int64_t chunk = a.begin_chunk(b); chunk < a.end_chunk(b); ++chunk) {
      args.begin = chunk * kChunk;
      args.end = args.begin + kChunk;
      args.out = chunk == a.begin_chunk(b) ? run : part;
      args.again = chunk > a.begin_chunk(b);
      const std::int64_t chunks = a.end_chunk(b) - a.begin_chunk(b);
      args.soon = a.values(item * chunks + chunk - a.begin_chunk(b), a.n_blocks * chunks);
      if (other && streamed && chunk + 1 == a.end_chunk(b)) args.soon = a.first_page(a.blocks[after]);
      table_.attend(args);
      if (chunk > a.begin_chunk(b)) table_.attend_merge(run, part, b.n);
    }
    finish_queries(a, run, b.pair, b.n);
  });
}

// Few pairs over long contexts (decode): an item is one chunk for a block. Chunks are computed a wave at a time and
// merged in order, a query an item, which gives the same bits as attend_blocks.
void CpuOps::attend_chunks(const AttendRows& a) {
  const std::int64_t wave = pool_.size() * AttendRows::kPartsPerThread;
  for (std::int64_t i = 0; i < a.n_blocks; ++i) {
    const AttendRows::Block& b = a.blocks[i];
    std::int64_t first[kMostQueries];
    std::int64_t last[kMostQueries];
    const AttendArgs base = a.args(b, first, last);
    std::fill(a.run.sum, a.run.sum + b.n, 0.0F);
    const std::int64_t end = a.end_chunk(b);
    for (std::int64_t from = a.begin_chunk(b); from < end; from += wave) {
      const std::int64_t n = std::min(wave, end - from);
      pool_.parallel_for(n, [&](std::int64_t item, int thread) {
        AttendArgs args = base;
        args.begin = (from + item) * kChunk;
        args.end = args.begin + kChunk;
        args.out = a.parts[item];
        args.scratch = a.scratch + thread * a.thread_floats();
        args.soon = a.values(from + item - a.begin_chunk(b), end - a.begin_chunk(b));
        table_.attend(args);
      });
      const bool ends = from + n == end;
      pool_.parallel_for(b.n, [&](std::int64_t q, int) {  // a query's parts in their order
        const AttendState run = AttendRows::query(a.run, q);
        for (std::int64_t c = 0; c < n; ++c) table_.attend_merge(run, AttendRows::query(a.parts[c], q), 1);
        if (ends) finish_queries(a, run, b.pair + q, 1);
      });
    }
  }
}

void CpuOps::finish_queries(const AttendRows& a, const AttendState& run, std::int64_t pair, std::int64_t n) {
  alignas(64) float latent[kLatent];
  for (std::int64_t i = 0; i < n; ++i) {
    const std::int64_t row = (pair + i) / a.heads;
    table_.attend_finish(run, i, latent);
    if (kv_is_rotated(a.p->pages.codec)) table_.hadamard(latent);
    Packed to = a.latent[(pair + i) % a.heads];
    to.tiles = nullptr;  // latent_values() makes them: rows are finished in any order
    pack_rows(to, latent, row, row + 1);
  }
}

// out = W_UV · latent, a head.
void CpuOps::latent_values(const AttendRows& a) {
  const Packed& any = a.latent[0];
  const bool tiled = any.tiles != nullptr;
  if (tiled) {
    const std::int64_t tiles = row_tiles(a.rows);
    for_items(a.heads * tiles, static_cast<double>(a.heads * a.rows * kLatent), [&](std::int64_t item, int) {
      const Packed& x = a.latent[item / tiles];
      const std::int64_t m = item % tiles * kRowTile;
      table_.tile_codes(x, nullptr, x, m, std::min(a.rows, m + kRowTile));
    });
  }
  const std::int64_t chunks = row_chunks(a.rows, tiled);
  const std::int64_t width = a.heads * kValue;
  const std::int64_t strip =
      std::min<std::int64_t>(strip_rows(width, chunks, a.rows, any.words || any.twofold), kValue);
  const std::int64_t strips = kValue / strip;
  const double work = static_cast<double>(width * kLatent) * std::max(2.0, static_cast<double>(a.rows) / 4);
  for_items(a.heads * strips * chunks, work, [&](std::int64_t item, int) {
    const std::int64_t h = item / (strips * chunks);
    const std::int64_t n0 = item / chunks % strips * strip;
    const std::int64_t m0 = chunk_begin(a.rows, item % chunks, tiled);
    const std::int64_t then = chunks == 1 ? item + 1 : 0;  // what this thread is likely to do next
    const std::int64_t next = then / strips * kHeadRows + kNope + then % strips * strip;
    table_.dot({.x = &a.latent[h],
                .m0 = m0,
                .m1 = chunk_begin(a.rows, item % chunks + 1, tiled),
                .w = a.p->kv_b.slice_rows(h * kHeadRows + kNope, kValue),
                .n0 = n0,
                .n1 = n0 + strip,
                .out = a.p->out.as<float>() + (a.row0 + m0) * width + h * kValue + n0,
                .out_stride = width,
                .next = then > 0 ? rows_of(a.p->kv_b, next) : SoonRows{}});
  });
}

}  // namespace glint::cpu
