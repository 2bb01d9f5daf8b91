// All layers of a step in one kernel, against the same model op by op and against the reference in fp32: every weight
// format and cache codec, contexts in one piece, in several and over all blocks of the grid.

#include <cstring>
#include <deque>

#include "cuda/device_matrix.hpp"
#include "models/glm_4_7_flash/model.hpp"
#include "ops/counted.hpp"

namespace glint {
namespace {

struct Sizes {
  std::int64_t hidden, heads, q_lora, dense, inner, experts;
  int top_k;
};
// The tiny model's proportions, and the real widths with few and narrow experts (a down projection in two segments).
constexpr Sizes kSmall{256, 4, 128, 768, 64, 24, 4};
constexpr Sizes kWide{2048, 20, 768, 6144, 192, 10, 4};
// The real model with few experts: the kernels that know its sizes.
constexpr Sizes kReal{2048, 20, 768, 10240, 1536, 6, 4};

constexpr std::int64_t kLayers = 3;
constexpr std::int64_t kVocab = 64;

QuantSpec spec_of(const char* name) {
  for (const Quant& q : kQuants) {
    if (std::string_view(q.name) == name) return q.spec;
  }
  ADD_FAILURE() << name;
  return {};
}

// One set of random layers, on the device in their formats and on the host as what these decode to.
class Layers {
 public:
  Layers(Ops& ops, std::uint64_t seed, const Sizes& sizes, const std::string& attention, const std::string& shared,
         const std::string& experts)
      : ops_(ops), random_(seed) {
    host.config = device.config = config_of(sizes);
    device.embed = plain(kVocab, sizes.hidden, 1.0F, &host.embed);
    device.lm_head = plain(kVocab, sizes.hidden, 0.05F, &host.lm_head);
    norm(sizes.hidden, &device.final_norm, &host.final_norm);
    device.layers.resize(kLayers);
    host.layers.resize(kLayers);
    for (std::size_t l = 0; l < kLayers; ++l) {
      LayerWeights &d = device.layers[l], &h = host.layers[l];
      norm(sizes.hidden, &d.input_norm, &h.input_norm);
      norm(sizes.q_lora, &d.q_a_norm, &h.q_a_norm);
      norm(kLatent, &d.kv_a_norm, &h.kv_a_norm);
      norm(sizes.hidden, &d.post_norm, &h.post_norm);
      d.q_a = of_format(attention, sizes.q_lora, sizes.hidden, &h.q_a);
      d.kv_a = of_format(attention, kKvRow, sizes.hidden, &h.kv_a);
      d.q_b = of_format(attention, sizes.heads * kQk, sizes.q_lora, &h.q_b);
      d.kv_b = plain(sizes.heads * (kNope + kValue), kLatent, 1.0F / std::sqrt(512.0F), &h.kv_b);
      d.o = of_format(attention, sizes.hidden, sizes.heads * kValue, &h.o);
      if (l == 0) {
        mlp(attention, sizes.dense, sizes.hidden, &d.dense, &h.dense);
        continue;
      }
      floats(sizes.experts * sizes.hidden, 1.0F / std::sqrt(static_cast<float>(sizes.hidden)),
             {sizes.experts, sizes.hidden}, &d.router, &h.router);
      floats(sizes.experts, 0.1F, {sizes.experts}, &d.router_bias, &h.router_bias);
      d.experts.resize(static_cast<std::size_t>(sizes.experts));
      h.experts.resize(d.experts.size());
      for (std::size_t e = 0; e < d.experts.size(); ++e)
        mlp(experts, sizes.inner, sizes.hidden, &d.experts[e], &h.experts[e]);
      mlp(shared, sizes.inner, sizes.hidden, &d.shared, &h.shared);
    }
  }

  ModelWeights device, host;

 private:
  static ModelConfig config_of(const Sizes& s) {
    ModelConfig c;
    c.hidden = s.hidden, c.n_layers = kLayers, c.n_heads = s.heads, c.q_lora = s.q_lora, c.dense_inner = s.dense;
    c.expert_inner = s.inner, c.n_experts = s.experts, c.n_shared_experts = 1, c.top_k = s.top_k;
    c.first_dense_layers = 1, c.routed_scale = 1.8F, c.vocab = kVocab, c.max_positions = 32768;
    return c;
  }
  void floats(std::int64_t n, float scale, Shape shape, ConstView* d, ConstView* h) {
    hosts_.push_back(random_.normals(n, scale));
    buffers_.push_back(to_device(ops_, hosts_.back().data(), static_cast<std::size_t>(n) * 4));
    *h = {hosts_.back().data(), DType::kF32, shape};
    *d = {buffers_.back().data(), DType::kF32, shape};
  }
  void norm(std::int64_t n, ConstView* d, ConstView* h) {
    floats(n, 0.1F, {n}, d, h);
    std::vector<float>& v = hosts_.back();
    for (float& x : v) x += 1.0F;
    ops_.upload(buffers_.back().data(), v.data(), v.size() * 4);
  }
  // BF16.
  Weight plain(std::int64_t rows, std::int64_t cols, float scale, Weight* h) {
    std::vector<float> values = random_.normals(rows * cols, scale);
    std::vector<BF16> bits;
    for (float& v : values) {
      bits.push_back(to_bf16(v));
      v = to_float(bits.back());
    }
    buffers_.push_back(to_device(ops_, bits.data(), bits.size() * 2));
    hosts_.push_back(std::move(values));
    *h = {.format = WeightFormat::kF32, .rows = rows, .cols = cols, .data = hosts_.back().data()};
    return {.format = WeightFormat::kBF16, .rows = rows, .cols = cols, .data = buffers_.back().data()};
  }
  Weight of_format(const std::string& name, std::int64_t rows, std::int64_t cols, Weight* h) {
    if (name == "bf16") return plain(rows, cols, 1.0F / std::sqrt(static_cast<float>(cols)), h);
    matrices_.push_back(matrix(ops_, random_, spec_of(name.c_str()), rows, cols));
    *h = {.format = WeightFormat::kF32, .rows = rows, .cols = cols, .data = matrices_.back().values.data()};
    return matrices_.back().w;
  }
  void mlp(const std::string& format, std::int64_t inner, std::int64_t hidden, ExpertWeights* d, ExpertWeights* h) {
    d->gate = of_format(format, inner, hidden, &h->gate);
    d->up = of_format(format, inner, hidden, &h->up);
    d->down = of_format(format, hidden, inner, &h->down);
  }

  Ops& ops_;
  Random random_;
  std::deque<std::vector<float>> hosts_;
  std::deque<DeviceMatrix> matrices_;
  std::deque<Buffer> buffers_;
};

struct Sequence {
  std::int32_t context;  // tokens in the cache with this step's
  std::int32_t rows;
};

// A step of these sequences over a cache of random rows; returns the final hidden state and the logits.
std::vector<float> run_step(Ops& ops, const ModelWeights& weights, KvCodec codec,
                            const std::vector<Sequence>& sequences, int window) {
  std::vector<std::int32_t> ids, positions, slots, offsets{0}, contexts, table, logit_rows;
  std::int32_t max_pages = 1, n_pages = 0;
  for (const Sequence& s : sequences) max_pages = std::max(max_pages, (s.context + kPageTokens - 1) / kPageTokens);
  for (const Sequence& s : sequences) {
    for (std::int32_t i = 0; i < max_pages; ++i) table.push_back(i * kPageTokens < s.context ? n_pages++ : -1);
    const std::int32_t* pages = table.data() + table.size() - static_cast<std::size_t>(max_pages);
    for (std::int32_t i = s.context - s.rows; i < s.context; ++i) {
      ids.push_back(static_cast<std::int32_t>(ids.size()) * 7 + 1);
      positions.push_back(i);
      slots.push_back(pages[i / kPageTokens] * kPageTokens + i % kPageTokens);
      logit_rows.push_back(static_cast<std::int32_t>(logit_rows.size()));
    }
    offsets.push_back(offsets.back() + s.rows);
    contexts.push_back(s.context);
  }
  const auto rows = static_cast<std::int64_t>(ids.size());
  Model model(weights, ops, {.max_rows = 8, .max_logits = 8, .max_context = 32768, .window_tokens = window});
  KvStore store(ops, {.n_layers = kLayers, .n_pages = n_pages, .codec = codec});
  Random random(99);
  const auto filling = random.normals(kPageTokens * kKvRow, 1.0F);
  const Buffer values = to_device(ops, filling.data(), filling.size() * 4);
  for (std::int32_t page = 0; page < n_pages; ++page) {
    std::vector<std::int32_t> to;
    for (std::int32_t i = 0; i < kPageTokens; ++i) to.push_back(page * kPageTokens + (i + page) % kPageTokens);
    const Buffer b = to_device(ops, to.data(), to.size() * 4);
    for (std::int64_t l = 0; l < kLayers; ++l)
      ops.mla_append({.kv = {values.data(), DType::kF32, {kPageTokens, kKvRow}},
                      .slots = static_cast<const std::int32_t*>(b.data()),
                      .pages = store.layer(l)});
    ops.synchronize();
  }
  // Rows that nobody owns: not a number, where the codec has that.
  for (std::size_t s = 0; s < sequences.size(); ++s) {
    const std::int32_t used = sequences[s].context, last = (used - 1) / kPageTokens;
    const std::int64_t row_bytes = kv_row_bytes(codec), owned = used - last * kPageTokens;
    const std::vector<std::uint8_t> poison(static_cast<std::size_t>((kPageTokens - owned) * row_bytes), 0xff);
    for (std::int64_t l = 0; l < kLayers; ++l) {
      const KvPages pages = store.layer(l);
      const std::int32_t page = table[s * static_cast<std::size_t>(max_pages) + static_cast<std::size_t>(last)];
      auto* to = static_cast<std::uint8_t*>(pages.base) + page * pages.page_stride_bytes + owned * row_bytes;
      if (!poison.empty()) ops.upload(to, poison.data(), poison.size());
    }
  }
  const auto on_device = [&](const std::vector<std::int32_t>& v) { return to_device(ops, v.data(), v.size() * 4); };
  const Buffer b_ids = on_device(ids), b_positions = on_device(positions), b_slots = on_device(slots),
               b_offsets = on_device(offsets), b_contexts = on_device(contexts), b_table = on_device(table),
               b_rows = on_device(logit_rows);
  const auto at = [](const Buffer& b) { return static_cast<const std::int32_t*>(b.data()); };
  Batch batch;
  batch.n_rows = batch.n_logits = rows;
  batch.ids = at(b_ids), batch.positions = at(b_positions), batch.slots = at(b_slots), batch.logit_rows = at(b_rows);
  batch.attend = {.n_seqs = static_cast<int>(sequences.size()),
                  .row_offsets = at(b_offsets),
                  .context_tokens = at(b_contexts),
                  .page_table = at(b_table),
                  .max_pages = max_pages};
  const Buffer logits = ops.allocate(static_cast<std::size_t>(8 * kVocab) * 4);
  model.forward(batch, store, {logits.data(), DType::kF32, {8, kVocab}});
  std::vector<float> out(static_cast<std::size_t>(rows * weights.config.hidden));
  ops.download(out.data(), model.final_hidden().data, out.size() * 4);
  return out;
}

const std::vector<std::vector<Sequence>> kBatches{
    {{1, 1}},     // nothing cached before
    {{70, 1}},    // three blocks of tokens
    {{700, 1}},   // more pieces than warps
    {{2500, 1}},  // more than are merged directly
    {{5000, 1}}   // more blocks of tokens than blocks of the grid
};

void compare(const Sizes& sizes, const char* attention, const char* shared, const char* experts, KvCodec codec,
             int window, const std::vector<std::vector<Sequence>>& batches) {
  const auto fused = make_cuda_ops({}), plain = make_cuda_ops({.one_kernel = false});
  const auto reference = make_reference_ops();
  const Layers layers(*fused, 5, sizes, attention, shared, experts);
  fused->synchronize();
  double worst = 0, worst_plain = 0;
  for (const auto& batch : batches) {
    const auto want = run_step(*reference, layers.host, codec, batch, window);
    const auto got = run_step(*fused, layers.device, codec, batch, window);
    const auto by_op = run_step(*plain, layers.device, codec, batch, window);
    EXPECT_NE(0, std::memcmp(got.data(), by_op.data(), got.size() * 4)) << "the kernel was not taken";
    EXPECT_LT(nmse(got, want), 3e-4) << batch[0].context << " tokens, " << batch.size() << " sequences";
    EXPECT_EQ(0, std::memcmp(got.data(), run_step(*fused, layers.device, codec, batch, window).data(), got.size() * 4))
        << "a repeat differs";
    worst = std::max(worst, nmse(got, want));
    worst_plain = std::max(worst_plain, nmse(by_op, want));
  }
  std::printf("  hidden %4lld  %-14s shared %-14s experts %-14s codec %d window %4d: nmse %.1e (op by op %.1e)\n",
              static_cast<long long>(sizes.hidden), attention, shared, experts, static_cast<int>(codec), window, worst,
              worst_plain);
}

TEST(DecodeStep, EveryBatchInBf16) {
  NEED_GPU();
  compare(kSmall, "bf16", "bf16", "bf16", KvCodec::kBF16, 0, kBatches);
  compare(kWide, "bf16", "bf16", "bf16", KvCodec::kBF16, 0, kBatches);
}

TEST(DecodeStep, EveryWeightFormat) {
  NEED_GPU();
  const std::vector<std::vector<Sequence>> few{{{70, 1}}};
  for (const Quant& q : kQuants) {
    if (q.spec.symmetric && q.spec.group_rows == 1) compare(kWide, q.name, q.name, q.name, KvCodec::kBF16, 0, few);
  }
  compare(kSmall, "int4-g64", "int4-g64", "int4-g64", KvCodec::kBF16, 0, few);
  compare(kWide, "int8-channel", "int8-channel", "int4-g64", KvCodec::kBF16, 0, few);
  compare(kWide, "bf16", "nf4-g64", "nf4-g64", KvCodec::kBF16, 0, few);
  compare(kSmall, "int8-channel", "bf16", "int4-g32", KvCodec::kBF16, 0, few);
}

// The kernels that know the real model's sizes when they are compiled.
TEST(DecodeStep, TheRealSizes) {
  NEED_GPU();
  compare(kReal, "bf16", "bf16", "bf16", KvCodec::kBF16, 0, kBatches);
  for (const KvCodec codec : {KvCodec::kBF16, KvCodec::kFp8, KvCodec::kInt8, KvCodec::kInt4}) {
    compare(kReal, "bf16", "bf16", "bf16", codec, 0, {{{333, 1}}});
    compare(kReal, "int8-channel", "int8-channel", "int8-channel", codec, 0, {{{700, 1}}});
    compare(kReal, "int4-g64", "int4-g64", "int4-g64", codec, 0, {{{1, 1}}, {{700, 1}}});
    compare(kReal, "int8-channel", "int8-channel", "int4-g64", codec, 0, {{{2500, 1}}});
  }
}

// Formats with minima or with scales of several rows go op by op, and so do steps of several rows.
TEST(DecodeStep, WhatTheKernelDoesNotReadGoesOpByOp) {
  NEED_GPU();
  const auto fused = make_cuda_ops({}), plain = make_cuda_ops({.one_kernel = false});
  const auto same = [&](const char* experts, const std::vector<Sequence>& batch) {
    const Layers layers(*fused, 5, kSmall, "bf16", "bf16", experts);
    const auto got = run_step(*fused, layers.device, KvCodec::kBF16, batch, 0);
    const auto want = run_step(*plain, layers.device, KvCodec::kBF16, batch, 0);
    EXPECT_EQ(0, std::memcmp(got.data(), want.data(), got.size() * 4)) << experts << ", " << batch.size();
  };
  same("int4-g32-asym", {{70, 1}});
  same("fp8-128x128", {{70, 1}});
  same("bf16", {{90, 3}});
  same("bf16", {{40, 1}, {333, 1}});
}

TEST(DecodeStep, EveryCacheCodecAndAWindow) {
  NEED_GPU();
  for (const KvCodec codec : {KvCodec::kBF16, KvCodec::kFp8, KvCodec::kInt8, KvCodec::kInt4}) {
    compare(kSmall, "bf16", "bf16", "bf16", codec, 0, kBatches);
    compare(kSmall, "bf16", "bf16", "bf16", codec, 50, kBatches);
  }
}

// Pieces of all heads, and long ones of eight: blocks of the grid that end within a page, or begin there, that have one
// page or two. (Which contexts are long: decode_step.cu.)
TEST(DecodeStep, LongContexts) {
  NEED_GPU();
  compare(kWide, "bf16", "bf16", "bf16", KvCodec::kBF16, 0, {{{12103, 1}}});
  compare(kWide, "bf16", "bf16", "bf16", KvCodec::kFp8, 25700, {{{27077, 1}}});
  compare(kReal, "int4-g64", "int4-g64", "int4-g64", KvCodec::kInt8, 0, {{{11003, 1}}, {{22603, 1}}});
  compare(kReal, "int8-channel", "int8-channel", "int4-g64", KvCodec::kInt4, 0, {{{10301, 1}}, {{17003, 1}}});
}
TEST(DecodeStep, LongContextsOfTheRealSizes) {
  NEED_GPU();
  compare(kReal, "bf16", "bf16", "bf16", KvCodec::kBF16, 0, {{{12103, 1}}});
  compare(kReal, "int4-g64", "int4-g64", "int4-g64", KvCodec::kBF16, 0, {{{12103, 1}}});
  compare(kReal, "int8-channel", "int8-channel", "int8-channel", KvCodec::kFp8, 0, {{{25667, 1}}});
}

}  // namespace
}  // namespace glint
