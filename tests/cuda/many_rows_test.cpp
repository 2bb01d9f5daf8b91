// Products of so many rows that Hopper's tensor copies bring both operands: every format, and shapes that no tile fits.

#include <algorithm>
#include <cmath>

#include "cuda/device_matrix.hpp"
#include "ops/params.hpp"

namespace glint {
namespace {

constexpr std::int64_t kManyRows = 2125;

OpLimits many_row_limits() {
  OpLimits limits = case_limits();
  limits.max_rows = 2200;
  limits.dense_inner = 2048;
  return limits;
}

const Quant kPlain{"bf16", {.format = WeightFormat::kBF16}};

std::vector<Quant> every_format() {
  std::vector<Quant> all{kPlain};
  all.insert(all.end(), std::begin(kQuants), std::end(kQuants));
  return all;
}

std::vector<float> fetch(Ops& ops, const Buffer& b, std::int64_t n) {
  std::vector<float> out(static_cast<std::size_t>(n));
  ops.download(out.data(), b.data(), out.size() * 4);
  return out;
}

Weight host_twin(const DeviceMatrix& m) {
  return {.format = WeightFormat::kF32, .rows = m.w.rows, .cols = m.w.cols, .data = m.values.data()};
}

TEST(CudaManyRows, LinearAgreesWithTheDecoder) {
  NEED_GPU();
  const auto ops = make_cuda_ops({});
  ops->reserve(many_row_limits());
  Random random(21);
  struct Sizes {
    std::int64_t t, out, cols;
  };
  for (const Quant& q : every_format()) {
    double worst = 0;
    for (const Sizes& s : q.spec.format == WeightFormat::kBF16
                              ? std::vector<Sizes>{{1100, 2056, 320}, {1025, 3000, 200}, {4 * 513, 1024, 64}}
                              : std::vector<Sizes>{{kManyRows, 1000, 256}, {2049, 1288, 384}}) {
      const DeviceMatrix m = matrix(*ops, random, q.spec, s.out, s.cols);
      const auto x = random.normals(s.t * s.cols, 1.0F);
      const Buffer dx = to_device(*ops, x.data(), x.size() * 4);
      const Buffer dy = ops->allocate(static_cast<std::size_t>(s.t * s.out) * 4);
      ops->linear(
          {.x = {dx.data(), DType::kF32, {s.t, s.cols}}, .w = m.w, .out = {dy.data(), DType::kF32, {s.t, s.out}}});
      const auto y = fetch(*ops, dy, s.t * s.out);
      std::vector<float> got, want;
      for (std::int64_t r = 0; r < s.t; r += r % 128 >= 126 || r % 128 == 0 ? 1 : 21) {
        for (std::int64_t o = 0; o < s.out; ++o) {
          double sum = 0;
          for (std::int64_t c = 0; c < s.cols; ++c)
            sum += double{x[static_cast<std::size_t>(r * s.cols + c)]} *
                   m.values[static_cast<std::size_t>(o * s.cols + c)];
          want.push_back(static_cast<float>(sum));
          got.push_back(y[static_cast<std::size_t>(r * s.out + o)]);
        }
      }
      const double e = nmse(got, want);
      EXPECT_LT(e, kProductLimit) << q.name << ", T=" << s.t << ", " << s.cols << "→" << s.out;
      worst = std::max(worst, e);
    }
    std::printf("  %-16s worst nmse %.2e\n", q.name, worst);
  }
}

// Experts with no row, with one, with one less and one more than a tile has; choices that are not used.
TEST(CudaManyRows, ExpertsAgreeWithTheReference) {
  NEED_GPU();
  const auto ops = make_cuda_ops({});
  ops->reserve(many_row_limits());
  const auto reference = make_reference_ops();
  reference->reserve(many_row_limits());
  Random random(22);
  constexpr std::int64_t kExperts = 9, kHidden = 264;
  constexpr int kTopK = 2;
  for (const Quant& q : every_format()) {
    const bool plain = q.spec.format == WeightFormat::kBF16;
    const std::int64_t hidden = plain ? kHidden : 256, inner = plain ? 200 : 256;
    for (const bool with_shared : {true, false}) {
      if (!with_shared && !plain) continue;
      const ExpertTwins experts(*ops, random, q.spec, kExperts, hidden, inner, with_shared);
      const std::int64_t t = plain ? 700 : kManyRows;
      // First choices: experts 1, 2, 3 get 1, 127, 129 rows; 0 gets none; 4 and 5 the rest. Second ones: 6, 7, 8 or
      // none.
      std::vector<std::int32_t> ids;
      std::vector<float> weights;
      for (std::int64_t i = 0; i < t; ++i) {
        const auto first = i < 1 ? 1 : i < 128 ? 2 : i < 257 ? 3 : 4 + static_cast<std::int32_t>(random.below(2));
        const auto second = static_cast<std::int32_t>(random.below(4));
        ids.push_back(first);
        ids.push_back(second == 3 ? -1 : 6 + second);
        for (int k = 0; k < kTopK; ++k) weights.push_back(0.1F + random.uniform());
      }
      const auto x = random.normals(t * hidden, 1.0F);
      const double e = moe_error(*ops, *reference, experts, kTopK, x, ids, weights);
      std::printf("  %-16s nmse %.2e\n", q.name, e);
      EXPECT_LT(e, 2 * kProductLimit) << q.name << (with_shared ? ", shared" : "");
    }
  }
}

// A matrix on the device as BF16: its decoded values, rounded once.
DeviceMatrix bf16_twin(Ops& ops, const std::vector<float>& values, const Weight& like) {
  DeviceMatrix m;
  std::vector<std::uint16_t> bits;
  for (const float v : values) bits.push_back(to_bf16(v).bits);
  m.codes = to_device(ops, bits.data(), bits.size() * 2);
  m.w = {.format = WeightFormat::kBF16, .rows = like.rows, .cols = like.cols, .data = m.codes.data()};
  return m;
}

struct Twins {  // of experts, as BF16
  std::vector<DeviceMatrix> matrices;

  ExpertWeights of(Ops& ops, const ExpertWeights& device, const ExpertWeights& host) {
    const auto one = [&](const Weight& d, const Weight& h) {
      const auto* values = static_cast<const float*>(h.data);
      matrices.push_back(bf16_twin(ops, {values, values + h.rows * h.cols}, d));
      return matrices.back().w;
    };
    return {one(device.gate, host.gate), one(device.up, host.up), one(device.down, host.down)};
  }
};

// Choices of t rows, two each: first ones such that experts get as many rows as they are listed, the last of 12 the
// rest; second ones some of two, or none.
std::vector<std::int32_t> choices_for_each_width(Random& random, std::int64_t t) {
  constexpr std::int64_t kRows[] = {0, 1, 32, 33, 96, 127, 130, 192, 193, 256, 257};
  std::vector<std::int32_t> ids;
  std::size_t expert = 0;
  for (std::int64_t i = 0, left = kRows[0]; i < t; ++i) {
    while (left == 0 && expert + 1 < std::size(kRows)) left = kRows[++expert];
    ids.push_back(static_cast<std::int32_t>(left > 0 ? expert : std::size(kRows)));
    if (left > 0) --left;
    const auto second = static_cast<std::int32_t>(random.below(3));
    ids.push_back(second == 2 || second == ids.back() ? -1 : second);
  }
  return ids;
}

// Codes are rounded to BF16 once on their way into a product, whatever kernel that is: to the bit what the same numbers
// give as BF16 matrices. Experts with rows for each width of the products, with none, and with several items.
TEST(CudaManyRows, CodesGiveWhatTheirBf16TwinsGive) {
  NEED_GPU();
  const auto ops = make_cuda_ops({});
  ops->reserve(many_row_limits());
  Random random(25);
  std::vector<Quant> quants(std::begin(kQuants), std::end(kQuants));
  quants.push_back({"int4-g32-bf16", {.format = WeightFormat::kI4, .group = 32, .scale_dtype = DType::kBF16}});
  quants.push_back({"int4-channel", {.format = WeightFormat::kI4, .group = 0, .scale_dtype = DType::kBF16}});
  quants.push_back({"int4-g16", {.format = WeightFormat::kI4, .group = 16}});  // widened
  struct Job {
    std::int64_t t, hidden, inner;
    bool own_shared;  // the shared expert in a format of its own
  };
  for (const Quant& q : quants) {
    for (const Job& j : {Job{kManyRows, 256, 384, false}, Job{kManyRows, 256, 384, true}, Job{1600, 320, 160, false},
                         Job{1600, 256, 384, true}}) {
      const std::int64_t group = std::max<std::int64_t>(q.spec.group, 1);
      if (j.hidden % group != 0 || j.inner % group != 0 || (q.spec.group == 16 && j.t < 2048)) continue;
      const ExpertTwins experts(*ops, random, q.spec, 12, j.hidden, j.inner, true);
      const ExpertTwins other(*ops, random, kQuants[5].spec, 0, j.hidden, j.inner, true);
      const ExpertTwins& shared = j.own_shared ? other : experts;
      Twins twins;
      std::vector<ExpertWeights> in_bf16;
      for (std::size_t e = 0; e < experts.device.size(); ++e)
        in_bf16.push_back(twins.of(*ops, experts.device[e], experts.host[e]));
      const ExpertWeights shared_in_bf16 = twins.of(*ops, shared.device_shared, shared.host_shared);
      const auto ids = choices_for_each_width(random, j.t);
      std::vector<float> weights(ids.size());
      for (float& w : weights) w = 0.1F + random.uniform();
      const auto x = random.normals(j.t * j.hidden, 1.0F);
      const auto got = moe_on_device(*ops, experts.device, shared.device_shared, 2, x, ids, weights);
      const auto want = moe_on_device(*ops, in_bf16, shared_in_bf16, 2, x, ids, weights);
      std::int64_t differ = 0;
      double square = 0;
      for (std::size_t i = 0; i < got.size(); ++i) {
        differ += got[i] == want[i] ? 0 : 1;
        square += double{got[i]} * got[i];
      }
      EXPECT_EQ(differ, 0) << q.name << ", T=" << j.t << (j.own_shared ? ", shared apart" : "");
      EXPECT_GT(square, 0);
    }
  }
}

TEST(CudaManyRows, ProjectionAgreesWithTheReference) {
  NEED_GPU();
  const auto ops = make_cuda_ops({});
  ops->reserve(many_row_limits());
  const auto reference = make_reference_ops();
  reference->reserve(many_row_limits());
  Random random(23);
  constexpr std::int64_t kHidden = 256, kLora = 128, kHeads = 5, kRows = kManyRows;
  std::vector<std::int32_t> positions;
  for (std::int32_t i = 0; i < kRows; ++i) positions.push_back(i * 37);
  const Buffer dp = to_device(*ops, positions.data(), positions.size() * 4);
  for (const Quant& q : every_format()) {
    const DeviceMatrix q_a = matrix(*ops, random, q.spec, kLora, kHidden),
                       kv_a = matrix(*ops, random, q.spec, kKvRow, kHidden);
    const DeviceMatrix q_b = matrix(*ops, random, q.spec, kHeads * kQk, kLora);
    const auto x = random.normals(kRows * kHidden, 1.0F), a_norm = random.normals(kLora, 1.0F),
               kv_norm = random.normals(kLatent, 1.0F);
    const Buffer dx = to_device(*ops, x.data(), x.size() * 4), da = to_device(*ops, a_norm.data(), a_norm.size() * 4);
    const Buffer dk = to_device(*ops, kv_norm.data(), kv_norm.size() * 4);
    const Buffer out_q = ops->allocate(kRows * kHeads * kQk * 4), out_kv = ops->allocate(kRows * kKvRow * 4);
    std::vector<float> want_q(kRows * kHeads * kQk), want_kv(kRows * kKvRow);
    MlaProjectParams p;
    p.x = {x.data(), DType::kF32, {kRows, kHidden}};
    p.positions = positions.data();
    p.q_a = host_twin(q_a);
    p.q_b = host_twin(q_b);
    p.kv_a = host_twin(kv_a);
    p.q_a_norm = {a_norm.data(), DType::kF32, {kLora}};
    p.kv_a_norm = {kv_norm.data(), DType::kF32, {kLatent}};
    p.q = {want_q.data(), DType::kF32, {kRows, kHeads, kQk}};
    p.kv = {want_kv.data(), DType::kF32, {kRows, kKvRow}};
    reference->mla_project(p);
    p.x.data = dx.data();
    p.positions = static_cast<const std::int32_t*>(dp.data());
    p.q_a = q_a.w;
    p.q_b = q_b.w;
    p.kv_a = kv_a.w;
    p.q_a_norm.data = da.data();
    p.kv_a_norm.data = dk.data();
    p.q.data = out_q.data();
    p.kv.data = out_kv.data();
    for (const int n_seqs : {1, 2}) {  // handed on in BF16, and as it is
      p.n_seqs = n_seqs;
      ops->mla_project(p);
      const double e_q = nmse(fetch(*ops, out_q, kRows * kHeads * kQk), want_q);
      const double e_kv = nmse(fetch(*ops, out_kv, kRows * kKvRow), want_kv);
      std::printf("  %-16s nmse of q %.2e, of kv %.2e\n", q.name, e_q, e_kv);
      EXPECT_LT(e_q, 2 * kProductLimit) << q.name;
      EXPECT_LT(e_kv, kProductLimit) << q.name;
    }
  }
}

// BF16 matrices meet activations as two numbers each: next to nothing is lost.
TEST(CudaManyRows, MlpAgreesWithTheReference) {
  NEED_GPU();
  const auto ops = make_cuda_ops({});
  ops->reserve(many_row_limits());
  const auto reference = make_reference_ops();
  reference->reserve(many_row_limits());
  Random random(24);
  constexpr std::int64_t kHidden = 1024, kInner = 576, kRows = 2050;
  for (const Quant& q : {kPlain, kQuants[2], kQuants[5]}) {
    const DeviceMatrix gate = matrix(*ops, random, q.spec, kInner, kHidden),
                       up = matrix(*ops, random, q.spec, kInner, kHidden);
    const DeviceMatrix down = matrix(*ops, random, q.spec, kHidden, kInner);
    const auto x = random.normals(kRows * kHidden, 1.0F);
    const Buffer dx = to_device(*ops, x.data(), x.size() * 4), dy = ops->allocate(x.size() * 4);
    std::vector<float> want(x.size());
    MlpParams p;
    p.x = {x.data(), DType::kF32, {kRows, kHidden}};
    p.mlp = {host_twin(gate), host_twin(up), host_twin(down)};
    p.out = {want.data(), DType::kF32, {kRows, kHidden}};
    reference->mlp(p);
    p.x.data = dx.data();
    p.mlp = {gate.w, up.w, down.w};
    p.out.data = dy.data();
    ops->mlp(p);
    const double e = nmse(fetch(*ops, dy, kRows * kHidden), want);
    std::printf("  %-16s nmse %.2e\n", q.name, e);
    EXPECT_LT(e, q.spec.format == WeightFormat::kBF16 ? 1e-8 : 2 * kProductLimit) << q.name;
  }
}

}  // namespace
}  // namespace glint
