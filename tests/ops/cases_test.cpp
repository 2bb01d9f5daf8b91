// The harness itself: it must accept the reference in any layout and form, and must refuse each kind of wrong op.

#include "ops/cases.hpp"

#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <set>
#include <type_traits>

#include "backends/reference/reference.hpp"
#include "case_runner.hpp"
#include "ops/checked.hpp"

namespace glint {
namespace {

const Case& find(const std::string& name) {
  for (const Case& c : all_cases()) {
    if (c.name == name) return c;
  }
  ADD_FAILURE() << "no case " << name;
  return all_cases().front();
}

TEST(Cases, NamesAreUnique) {
  std::set<std::string> names;
  for (const Case& c : all_cases()) EXPECT_TRUE(names.insert(c.name).second) << c.name;
}

TEST(Cases, AreTheSameEachTime) {
  const auto ops = make_reference_ops();
  const Case& c = find("mla_attend/bf16/bf16/N=4/window=0/7of7");
  const auto a = run_outputs(c, *ops, Layout::kPlain);
  const auto b = run_outputs(c, *ops, Layout::kPlain);
  EXPECT_EQ(a.at(0).values, b.at(0).values);
}

// Every case keeps to the contract that Checked enforces, and no answer depends on where pages lie.
TEST(Cases, CheckedReferenceAgreesWithItselfInAnotherLayout) {
  Checked checked(make_reference_ops());
  expect_all_cases(checked, Precision::kF32);
}

// An Ops that runs `wrong` in place of one op.
template <typename Wrong>
class Replaced final : public DecoratedOps<Replaced<Wrong>> {
 public:
  Replaced(std::unique_ptr<Ops> inner, Wrong wrong) : DecoratedOps<Replaced>(std::move(inner)), wrong_(wrong) {}
  template <typename Params, typename Run>
  void around(std::string_view, const Params& p, Run run) {
    if constexpr (std::is_invocable_v<Wrong, Ops&, const Params&>) {
      wrong_(this->inner(), p);
    } else {
      run();
    }
  }

 private:
  Wrong wrong_;
};

template <typename Wrong>
CaseResult run_replaced(const std::string& name, Wrong wrong, Precision precision = Precision::kF32) {
  Replaced<Wrong> tested(make_reference_ops(), wrong);
  const auto reference = make_reference_ops();
  return run_case(find(name), tested, *reference, precision);
}

constexpr const char* kDecode = "mla_attend/bf16/bf16/N=4/window=0/1of65";
constexpr const char* kPrefill = "mla_attend/bf16/bf16/N=4/window=100/64of264";

TEST(Cases, AbsorbedAttentionAgreesWithExpanded) {
  const auto absorbed = [](Ops&, const MlaAttendParams& p) { reference::mla_attend_absorbed(p); };
  Replaced tested(make_reference_ops(), absorbed);
  std::set<KvCodec> seen;
  for (const Case& c : all_cases()) {
    if (c.op != "mla_attend") continue;
    // Both forms decode rows by one function: every shape over BF16, the first of every other codec.
    if (!seen.insert(*c.codec).second && c.codec != KvCodec::kBF16) continue;
    const CaseResult r = compare(c, run_outputs(c, tested, Layout::kScattered), reference_outputs(c), Precision::kF32);
    EXPECT_TRUE(r.ok) << c.name << ": " << r.reason;
  }
}

TEST(Cases, RefuseAnUnwrittenOutput) {
  const auto r = run_replaced("linear/bf16/T=7/in=256/out=128", [](Ops&, const LinearParams&) {});
  EXPECT_FALSE(r.ok);
  EXPECT_NE(r.reason.find("found nan"), std::string::npos) << r.reason;
}

TEST(Cases, RefuseAnUnwrittenRow) {
  const auto r = run_replaced("linear/bf16/T=7/in=256/out=128", [](Ops& ops, LinearParams p) {
    p.x.shape = {6, 256};
    p.out = p.out.first(6);
    ops.linear(p);
  });
  EXPECT_FALSE(r.ok);
  EXPECT_EQ(r.reason.find("out [6, 0]"), 0U) << r.reason;
}

TEST(Cases, RefuseASmallError) {
  const auto wrong = [](Ops& ops, const LinearParams& p) {
    ops.linear(p);
    p.out.as<float>()[5] += 0.01F;
  };
  const auto r = run_replaced("linear/bf16/T=1/in=256/out=128", wrong);
  EXPECT_FALSE(r.ok);
  EXPECT_NE(r.reason.find("worst at [0, 5]"), std::string::npos) << r.reason;
  // A backend that rounds activations may be off by so much.
  EXPECT_TRUE(run_replaced("linear/bf16/T=1/in=256/out=128", wrong, Precision::kBF16).ok);
}

TEST(Cases, RefuseAnErrorOfOnePercentEvenInBF16) {
  const auto r = run_replaced(
      "linear/bf16/T=1/in=256/out=128",
      [](Ops& ops, const LinearParams& p) {
        ops.linear(p);
        for (std::int64_t i = 0; i < p.out.shape.elements(); ++i) p.out.as<float>()[i] *= 1.01F;
      },
      Precision::kBF16);
  EXPECT_FALSE(r.ok);
}

TEST(Cases, RefuseAWriteBehindTheOutput) {
  const auto r = run_replaced("mlp/bf16/T=7/H=256/I=768", [](Ops& ops, const MlpParams& p) {
    ops.mlp(p);
    p.out.as<float>()[p.out.shape.elements()] = 0;
  });
  EXPECT_FALSE(r.ok);
  EXPECT_NE(r.reason.find("behind"), std::string::npos) << r.reason;
}

TEST(Cases, RefuseReadingADeadSlot) {
  const auto r = run_replaced(kDecode, [](Ops& ops, MlaAttendParams p) {
    const std::int32_t one_more = p.batch.context_tokens[0] + 1;
    p.batch.context_tokens = &one_more;
    ops.mla_attend(p);
  });
  EXPECT_FALSE(r.ok);
}

TEST(Cases, RefuseIgnoringThePageTable) {
  const auto r = run_replaced(kPrefill, [](Ops& ops, MlaAttendParams p) {
    const std::vector<std::int32_t> identity{0, 1, 2, 3, 4, 5};
    p.batch.page_table = identity.data();
    ops.mla_attend(p);
  });
  EXPECT_FALSE(r.ok);
}

TEST(Cases, RefuseIgnoringTheWindow) {
  const auto r = run_replaced(kPrefill, [](Ops& ops, MlaAttendParams p) {
    p.window_tokens = 0;
    ops.mla_attend(p);
  });
  EXPECT_FALSE(r.ok);
}

TEST(Cases, RefuseAMaskOffByOne) {
  const auto r = run_replaced(
      kPrefill,
      [](Ops& ops, MlaAttendParams p) {
        p.window_tokens = 99;
        ops.mla_attend(p);
      },
      Precision::kBF16);
  EXPECT_FALSE(r.ok);
}

TEST(Cases, RefuseAWrongSlotAndAWriteOutsideTheLayer) {
  constexpr const char* kAppend = "mla_append/bf16/T=7";
  const auto shifted = run_replaced(kAppend, [](Ops& ops, MlaAppendParams p) {
    std::vector<std::int32_t> slots(p.slots, p.slots + p.kv.shape[0]);
    slots[2] ^= 1;
    p.slots = slots.data();
    ops.mla_append(p);
  });
  EXPECT_FALSE(shifted.ok);
  const auto astray = run_replaced(kAppend, [](Ops& ops, const MlaAppendParams& p) {
    ops.mla_append(p);
    std::memset(static_cast<std::byte*>(p.pages.base) - 2, 0, 2);  // the layer before
  });
  EXPECT_FALSE(astray.ok);
  EXPECT_NE(astray.reason.find("outside"), std::string::npos) << astray.reason;
}

TEST(Cases, RefuseTruncationInsteadOfRounding) {
  const auto r = run_replaced("mla_append/bf16/T=1", [](Ops& ops, const MlaAppendParams& p) {
    std::vector<float> cut(static_cast<std::size_t>(p.kv.shape.elements()));
    std::memcpy(cut.data(), p.kv.data, p.kv.bytes());
    for (float& v : cut) v = std::bit_cast<float>(std::bit_cast<std::uint32_t>(v) & 0xffff0000U);
    MlaAppendParams q = p;
    q.kv.data = cut.data();
    ops.mla_append(q);
  });
  EXPECT_FALSE(r.ok);
}

TEST(Cases, RefuseABiasThatLeaksIntoTheWeights) {
  const auto r = run_replaced("route/T=7/H=256/E=64/K=4/normalized", [](Ops& ops, const RouteParams& p) {
    ops.route(p);
    for (std::int64_t i = 0; i < p.x.shape[0] * p.top_k; ++i) p.weights[i] += 0.1F * p.bias.as<float>()[p.ids[i]];
  });
  EXPECT_FALSE(r.ok);
}

TEST(Cases, RefuseTiesThatGoToTheHigherExpert) {
  const auto r = run_replaced("route/ties/pairs", [](Ops& ops, const RouteParams& p) {
    ops.route(p);
    std::swap(p.ids[0], p.ids[1]);
  });
  EXPECT_FALSE(r.ok);
}

TEST(Cases, RefuseAScaledSharedExpert) {
  const auto r = run_replaced(
      "moe/bf16/T=7/H=256/I=64/E=64/K=4/shared=64/random",
      [](Ops& ops, MoeParams p) {
        p.shared = {};
        ops.moe(p);
      },
      Precision::kBF16);
  EXPECT_FALSE(r.ok);
}

TEST(Cases, RefuseVisiblePadding) {
  const auto r = run_replaced("lm_head/bf16/T=7/R=3/H=256/vocab=8192/valid=8140/picked", [](Ops& ops, LmHeadParams p) {
    p.valid_vocab = 0;
    ops.lm_head(p);
  });
  EXPECT_FALSE(r.ok);
}

}  // namespace
}  // namespace glint
