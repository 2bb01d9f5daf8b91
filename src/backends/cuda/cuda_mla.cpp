// Multi-head latent attention: projections, the cache write, and attention in the absorbed form.

#include <cmath>
#include <numbers>

#include "backends/cuda/cuda_ops.hpp"
#include "backends/cuda/mla.hpp"

namespace glint::cuda {
namespace {

// More rows go through the tiled kernels, whose products are wgmma's (at 256 rows 13 against 29 µs, H200).
constexpr std::int64_t kLatentValueRows = 64;
constexpr int kHeadRows = kNope + kValue;  // rows of a head in kv_b: 192 W_UK, then 256 W_UV

}  // namespace

const RopeJob CudaOps::rope(const std::int32_t* positions, float theta) {
  if (theta != rope_theta_) {
    for (int i = 0; i < kRope / 2; ++i)
      frequencies_.revolutions[i] = std::pow(static_cast<double>(theta), -2.0 * i / kRope) / (2 * std::numbers::pi);
    rope_theta_ = theta;
  }
  return {.positions = positions, .frequencies = frequencies_};
}

void CudaOps::mla_project(const MlaProjectParams& p) {
  const Launch& l = begin();
  Scratch scratch = device_.scratch();
  const std::int64_t rows = p.x.shape[0], q_lora = p.q_a.rows, heads = p.q.shape[1];
  if (rows == 0) return;
  const Mat q_a = mat_of(p.q_a), kv_a = mat_of(p.kv_a), q_b = mat_of(p.q_b);
  RopeJob rotary = rope(p.positions, p.rope_theta);
  Act x{.data = p.x.data, .stride = p.x.shape[1]};

  auto* low = scratch.take<float>(rows * q_lora * 4);
  auto* low_normed = scratch.take<>(rows * q_lora * 2);
  const bool same = q_a.shape.format == kv_a.shape.format && (q_a.at.mins == nullptr) == (kv_a.at.mins == nullptr);
  const bool skinny = same && skinny_takes(q_a, x, rows) && skinny_fits(kv_a);
  const Product to_kv{.w = kv_a, .x = x, .out = p.kv.as<float>(), .out_stride = kKvRow, .rows = rows};
  if (gemm_products({.w = q_a, .x = x, .out = low, .out_stride = q_lora, .rows = rows}, &to_kv, scratch)) {
    // done, both in one
  } else if (skinny || (same && wide_takes(q_a, rows) && wide_fits(kv_a))) {
    SkinnyDense d(q_a, kv_a);
    d.out[0] = low;
    d.out[1] = p.kv.as<float>();
    d.out_stride[0] = q_lora;
    d.out_stride[1] = kKvRow;
    d.x = skinny ? x : reordered(x, rows, q_a.shape, scratch);
    d.rows = rows;
    skinny ? skinny_dense(l, d) : wide_dense(l, d);
  } else {
    if (rows > kSkinnyRows && tiled_fits(q_a) && tiled_fits(kv_a)) x = packed(x, rows, q_a.shape.cols, scratch);
    product({.w = q_a, .x = x, .out = low, .out_stride = q_lora, .rows = rows}, scratch);
    product({.w = kv_a, .x = x, .out = p.kv.as<float>(), .out_stride = kKvRow, .rows = rows}, scratch);
  }
  const Act normed{.data = low_normed, .stride = q_lora, .bf16 = true};
  const bool few = skinny_takes(q_b, normed, rows), wide = !few && wide_takes(q_b, rows);
  if (!few) rotary.angles = scratch.take<float2>(rows * (kRope / 2) * 8);
  // Codes that the wide kernels take for any number of rows want another order of x than BF16 weights do.
  const bool widened = wide && gemm_reads(q_b, rows, scratch);
  norm_pair(l,
            {.x = low,
             .x_stride = q_lora,
             .weight = p.q_a_norm.as<float>(),
             .n = q_lora,
             .out = low_normed,
             .out_stride = q_lora,
             .out_bf16 = true,
             .order = wide && !widened ? wide_order(l, q_b.shape.format) : WideOrder{}},
            {.x = p.kv.as<float>(),
             .x_stride = kKvRow,
             .weight = p.kv_a_norm.as<float>(),
             .n = kLatent,
             .out = p.kv.data,
             .out_stride = kKvRow,
             .rope_tail = true},
            p.latent_eps, rotary, rows);

  const Product to_q{.w = q_b, .x = normed, .out = p.q.as<float>(), .out_stride = heads * kQk, .rows = rows};
  Product turned = to_q;
  turned.angles = rotary.angles;
  turned.out = static_cast<float*>(halves_.data());
  const std::int64_t n = rows * heads * kQk;
  // With others beside it, some rows' queries are read in more than BF16.
  const bool alone = p.n_seqs == 1 && halves_.bytes() >= static_cast<std::size_t>(n) * 2 && aligned(p.q.data);
  if (!few && alone && gemm_products(turned, nullptr, scratch)) {
    handed_ = {.out = p.q.as<float>(), .n = n};
    return;
  }
  if (few || (wide && !widened)) {
    SkinnyDense d(q_b);
    d.out[0] = p.q.as<float>();
    d.out_stride[0] = heads * kQk;
    d.x = normed;
    d.rows = rows;
    d.epilogue = Epilogue::kRope;
    d.rope = rotary;
    few ? skinny_dense(l, d) : wide_dense(l, d);
  } else {
    product(to_q, scratch);
    rope_heads(l, p.q.as<float>(), rows, heads, rotary);
  }
}

void CudaOps::mla_append(const MlaAppendParams& p) {
  append(begin_beside(), p.kv.as<float>(), p.slots, p.pages.base, p.pages.page_stride_bytes, p.pages.codec,
         p.kv.shape[0]);
}

void CudaOps::mla_attend(const MlaAttendParams& p) {
  const Launch& l = begin_beside();
  const std::int64_t rows = p.q.shape[0];
  const auto heads = static_cast<int>(p.q.shape[1]);
  if (rows == 0) return;
  const Mat kv_b = mat_of(p.kv_b);
  CHECK(tiled_fits(kv_b), "kv_b: scales must cover eights of columns");
  const CacheView cache = cache_view(p.pages, p.batch, p.window_tokens);
  const bool many = attend_prefill_takes(l, kv_b, rows) && rows * heads > std::int64_t{kFewPairs} * cache.n_seqs;
  const std::int64_t n = rows * heads * kQk;
  // From as many rows on as o_proj takes in BF16 by gemm(): what is read as F32 nevertheless has been rounded.
  const bool alone = many && cache.n_seqs == 1 && rows > kWideWgmmaBf16Rows && aligned(p.out.data) &&
                     halves_.bytes() >= static_cast<std::size_t>(n) * 2;
  const void* query = alone && handed_.is(p.q.data, n) ? halves_.data() : nullptr;
  if (query != nullptr) handed_ = {};  // the answer takes its place
  settle();
  if (!many || cache.n_seqs > 1) attend_absorbed(p, kv_b, cache, many);
  if (!many) return;
  Scratch scratch = device_.scratch();
  const PrefillSizes sizes = prefill_sizes(limits_.max_rows, limits_.max_context, heads);
  AttendPrefill j;
  j.q = p.q.as<float>();
  j.q_bf16 = query;
  j.rows = rows;
  j.heads = heads;
  j.kv_b = kv_b;
  j.cache = cache;
  j.block_pages = sizes.block_pages;
  j.latent = scratch.take<>(sizes.latent_bytes);
  j.tiles = scratch.take<>(sizes.tile_bytes);
  j.state = scratch.take<>(sizes.state_bytes);
  j.out = p.out.as<float>();
  if (alone) j.out_bf16 = halves_.data();
  attend_prefill(l, j);
  if (alone) handed_ = {.out = j.out, .n = n};
}

// With `many`, sequences of many rows get nothing that means anything: attend_prefill overwrites it.
void CudaOps::attend_absorbed(const MlaAttendParams& p, const Mat& kv_b, const CacheView& cache, bool many) {
  const Launch& l = device_.launch();
  Scratch scratch = device_.scratch();
  const std::int64_t rows = p.q.shape[0];
  const auto heads = static_cast<int>(p.q.shape[1]);
  const std::int64_t pairs = rows * heads;
  auto* query = scratch.take<std::uint16_t>(pairs * kKvRow * 2);
  auto* latent = scratch.take<std::uint16_t>(pairs * kLatent * 2);

  const bool rotated = p.pages.codec == KvCodec::kInt8 || p.pages.codec == KvCodec::kInt4;
  const bool products_at_once = latent_products_take(l, kv_b);
  if (products_at_once) {
    latent_queries(l, kv_b, p.q.as<float>(), rows, heads, rotated, query);
  } else if (rows <= kSkinnyRows) {
    latent_query(l, kv_b, p.q.as<float>(), rows, heads, query);
  } else {
    auto* nope = scratch.take<>(pairs * kNope * 2);
    split_query(l, p.q.as<float>(), rows, heads, nope, query);
    Tiled t;
    t.w = kv_b;
    t.w.shape.rows = kNope;
    t.w_is_kn = true;
    t.x = nope;
    t.x_stride = heads * kNope;
    t.rows = rows;
    t.out = query;
    t.out_stride = heads * kKvRow;
    t.out_kind = TiledOut::kBF16;
    t.batch = heads;
    t.x_batch = kNope;
    t.w_batch_rows = kHeadRows;
    t.out_batch = kKvRow;
    tiled(l, t);
  }

  if (rotated && !products_at_once) hadamard_rows(l, query, pairs, kKvRow);
  Attend j;
  j.query = query;
  j.T = rows;
  j.heads = heads;
  j.cache = cache;
  j.cache.many_rows = many ? kManyRows : 0;
  j.partial_rows = partial_rows(limits_);
  j.partial = scratch.take<float>(j.partial_rows * kLatent * 4);
  j.partial_ml = scratch.take<float2>(j.partial_rows * 8);
  j.present = static_cast<unsigned*>(attend_present_.data());
  j.latent = latent;
  if (attend_decode_takes(l, j)) {
    attend_decode(l, j);
  } else {
    attend(l, j);
    if (rotated) hadamard_rows(l, latent, pairs, kLatent);
  }

  if (products_at_once && rows <= kLatentValueRows)
    return latent_values(l, kv_b, latent, rows, heads, p.out.as<float>());
  const bool few = rows <= kSkinnyRows && skinny_fits(kv_b);
  if (few || (!products_at_once && wide_takes(kv_b, rows))) {
    SkinnyHeads h;
    h.w = kv_b;
    h.heads = heads;
    h.head_rows = kHeadRows;
    h.first_row = kNope;
    h.out_rows = kValue;
    h.x_bf16 = latent;
    h.out = p.out.as<float>();
    h.rows = rows;
    if (!few) {
      const Act x{.data = latent, .stride = heads * kLatent, .bf16 = true};
      MatShape all = kv_b.shape;
      all.cols = heads * kLatent;
      h.x_bf16 = reordered(x, rows, all, scratch).data;
    }
    few ? skinny_heads(l, h) : wide_heads(l, h);
    return;
  }
  Tiled t;
  t.w = kv_b;
  t.w.shape.rows = kValue;
  t.x = latent;
  t.x_stride = heads * kLatent;
  t.rows = rows;
  t.out = p.out.data;
  t.out_stride = heads * kValue;
  t.batch = heads;
  t.x_batch = kLatent;
  t.w_first_row = kNope;
  t.w_batch_rows = kHeadRows;
  t.out_batch = kValue;
  tiled(l, t);
}

}  // namespace glint::cuda
