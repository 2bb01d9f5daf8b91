#include "server/replay.hpp"

#include <gtest/gtest.h>

#include <random>

#include "base/glibc_heap.hpp"
#include "base/process_memory.hpp"
#include "server/fake_engine.hpp"

namespace glint::testing {
namespace {

using server::ReplayMemory;
using Ids = std::vector<std::int32_t>;

// Bytes are tokens, tags too, and "ab" is one, which the model need not write as one.
class TagEngine final : public FakeEngine {
 public:
  static constexpr std::int32_t kAb = 300;
  static constexpr std::int32_t kUser = 259;
  static constexpr std::int32_t kThinkEnd = 263;
  std::vector<std::int32_t> encode(std::string_view text, bool literal) const override {
    Ids ids;
    while (!text.empty()) {
      std::size_t used = 0;
      for (std::size_t i = 0; i < std::size(kPieces) && !literal && used == 0; ++i) {
        if (!text.starts_with(kPieces[i])) continue;
        ids.push_back(256 + static_cast<std::int32_t>(i));
        used = kPieces[i].size();
      }
      if (used == 0 && text.starts_with("ab")) {
        ids.push_back(kAb);
        used = 2;
      } else if (used == 0) {
        ids.push_back(static_cast<unsigned char>(text[0]));
        used = 1;
      }
      text.remove_prefix(used);
    }
    return ids;
  }
  std::string decode(std::span<const std::int32_t> ids, bool) const override {
    std::string text;
    for (const std::int32_t id : ids) {
      if (id == kAb) {
        text += "ab";
      } else if (id >= 256) {
        text += kPieces[static_cast<std::size_t>(id - 256)];
      } else {
        text += static_cast<char>(id);
      }
    }
    return text;
  }

 private:
  static constexpr std::string_view kPieces[] = {
      "[gMASK]",   "<sop>",      "<|system|>",  "<|user|>",     "<|assistant|>",   "<|observation|>",
      "<think>",   "</think>",   "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>",
      "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"};
};

// A prompt as the tokenizer gives it, and an answer of single characters.
Ids sampled(const TagEngine& engine, std::string_view prompt, std::string_view answer) {
  Ids ids = engine.encode(prompt, false);
  for (std::size_t i = 0; i < answer.size();) {
    const std::string_view rest = answer.substr(i);
    const Ids next = engine.encode(rest, false);
    if (rest[0] == '<' || next[0] != TagEngine::kAb) {
      ids.push_back(next[0]);
      i += engine.decode({next.data(), 1}, false).size();
    } else {
      ids.insert(ids.end(), {'a', 'b'});
      i += 2;
    }
  }
  return ids;
}

const std::string kPrompt = "[gMASK]<sop><|user|>ab<|assistant|><think>";

TEST(Replay, AnAnswerThatComesBackHasTheIdsThatWereSampled) {
  const TagEngine engine;
  ReplayMemory memory;
  const Ids said = sampled(engine, kPrompt, "ab</think>cab<|user|>");
  memory.remember(engine, said);
  Ids want(said.begin(), said.end());
  const Ids more = engine.encode("abc<|assistant|><think>", false);
  want.insert(want.end(), more.begin(), more.end());
  EXPECT_EQ(memory.encode(engine, kPrompt + "ab</think>cab<|user|>abc<|assistant|><think>"), want);
  EXPECT_NE(want, engine.encode(engine.decode(want, false), false));  // the tokenizer would have said "ab"
}

TEST(Replay, WhereTheTextDiffersTheTokenizerGoesOnFromTheTagBefore) {
  const TagEngine engine;
  ReplayMemory memory;
  memory.remember(engine, sampled(engine, kPrompt, "ab</think>cab<|user|>"));
  // The content goes on: its beginning may not be taken from the answer, since the tokenizer never split it there.
  Ids want = sampled(engine, kPrompt, "ab</think>");
  const Ids more = engine.encode("cabc<|user|>", false);
  want.insert(want.end(), more.begin(), more.end());
  EXPECT_EQ(memory.encode(engine, kPrompt + "ab</think>cabc<|user|>"), want);
  // Reasoning that is gone: nothing but the prompt is left.
  const std::string without = "[gMASK]<sop><|user|>ab<|assistant|></think>cab<|user|>ab";
  EXPECT_EQ(memory.encode(engine, without), engine.encode(without, false));
}

TEST(Replay, AnAnswerThatWasCutEndsAtATag) {
  const TagEngine engine;
  ReplayMemory memory;
  memory.remember(engine, sampled(engine, kPrompt, "ab</think>abab"));
  const Ids got = memory.encode(engine, kPrompt + "ab</think>ab<|user|>");
  Ids want = sampled(engine, kPrompt, "ab</think>ab");
  want.push_back(TagEngine::kUser);
  EXPECT_EQ(got, want);
}

TEST(Replay, WithoutTagsInTheTokenizerNothingIsReplayed) {
  const FakeEngine engine;
  ReplayMemory memory;
  memory.remember(engine, Ids{'a', 'b'});
  EXPECT_EQ(memory.bytes(), 0U);
  EXPECT_EQ(memory.encode(engine, "ab<|user|>"), static_cast<const Engine&>(engine).encode("ab<|user|>"));
}

TEST(Replay, MemoryIsBoundedAndALaterTurnTakesThePlaceOfTheEarlierOne) {
  const TagEngine engine;
  ReplayMemory memory(2000);
  const Ids first = sampled(engine, kPrompt, "ab</think>x");
  memory.remember(engine, first);
  const std::size_t one = memory.bytes();
  Ids second = first;
  second.push_back(TagEngine::kUser);
  memory.remember(engine, second);
  EXPECT_GT(memory.bytes(), one);
  EXPECT_LT(memory.bytes(), 2 * one);
  for (int i = 0; i < 100; ++i) {
    memory.remember(engine, sampled(engine, kPrompt, "ab</think>" + std::to_string(i)));
    EXPECT_LE(memory.bytes(), 2000U);
  }
  memory.remember(engine, sampled(engine, kPrompt, std::string(1000, 'x')));  // more than all
  EXPECT_LE(memory.bytes(), 2000U);
  EXPECT_EQ(memory.encode(engine, kPrompt + "ab</think>99<|user|>").size(),
            sampled(engine, kPrompt, "ab</think>99").size() + 1);
}

#if GLINT_GLIBC_HEAP
// The limit is one of real memory, also for short conversations.
TEST(Replay, BytesAreWhatTheHeapHolds) {
  const TagEngine engine;
  constexpr std::size_t kBytes = 128 << 10;
  for (const std::size_t n : {20U, 400U}) {
    const auto in_use = [] {
      const ProcessMemory m = process_memory();
      return static_cast<double>(m.heap - m.heap_free);
    };
    ReplayMemory memory;
    memory.remember(engine, sampled(engine, kPrompt, "first"));  // the tags are looked up once
    const double before = in_use() - static_cast<double>(memory.bytes());
    for (std::size_t i = 0; memory.bytes() < kBytes; ++i) {
      const std::string text = std::to_string(i) + std::string(n, 'x');
      memory.remember(engine, sampled(engine, kPrompt, text));
    }
    EXPECT_NEAR(static_cast<double>(memory.bytes()), in_use() - before, 0.1 * kBytes) << n;
  }
}
#endif

TEST(Replay, TheIdsAlwaysSpellTheText) {
  const TagEngine engine;
  ReplayMemory memory(20000);
  std::mt19937 rng(3);
  const char* parts[] = {"a", "b", "ab", "x", "</think>", "<|user|>", "<tool_call>", "<", "think>"};
  std::vector<std::string> texts = {kPrompt};
  for (int i = 0; i < 3000; ++i) {
    std::string text = texts[rng() % texts.size()];
    if (rng() % 3 == 0) text.resize(rng() % (text.size() + 1));
    for (std::uint32_t n = rng() % 4; n > 0; --n) text += parts[rng() % std::size(parts)];
    const Ids ids = memory.encode(engine, text);
    ASSERT_EQ(engine.decode(ids, false), text);
    if (text.size() < 200) {
      const std::string answer = parts[rng() % std::size(parts)];
      memory.remember(engine, sampled(engine, text, answer));
      texts.push_back(text + answer);
    }
  }
}

}  // namespace
}  // namespace glint::testing
