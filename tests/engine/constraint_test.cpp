// Constraints in the engine: batches, end tokens, refusals.

#include "base/json_value.hpp"
#include "engine/engine_fixture.hpp"

namespace glint::testing {
namespace {

constexpr const char* kSchema =
    R"({"json_schema": {"type": "object", "properties": {"n": {"type": "integer", "minimum": 1, "maximum": 20},
        "s": {"type": "string", "maxLength": 8}}, "required": ["n", "s"]}})";

Request constrained(Engine& engine, std::uint64_t seed) {
  Request r = greedy(engine, kChat, 80);
  r.sampling.temperature = 1;
  r.sampling.seed = seed;
  r.constraint = kSchema;
  return r;
}

TEST(Constraint, AloneAndInABatchTheSame) {
  Engine& engine = shared_engine();
  std::vector<RequestId> ids;
  for (std::uint64_t seed = 0; seed < 6; ++seed) ids.push_back(engine.submit(constrained(engine, seed)));
  const RequestId free = engine.submit(greedy(engine, kStory));
  std::vector<std::string> together;
  for (const RequestId id : ids) {
    const Answer a = collect(engine, id);
    EXPECT_EQ(a.last.finish, Finish::kEos) << a.text;
    const auto json = try_parse_json_value(a.text);
    ASSERT_TRUE(json) << a.text;
    ASSERT_NE(json->find("n"), nullptr);
    EXPECT_TRUE(json->find("n")->as_double() >= 1 && json->find("n")->as_double() <= 20) << a.text;
    together.push_back(a.text);
  }
  EXPECT_EQ(collect(engine, free).text, answer(engine, greedy(engine, kStory)).text);
  for (std::uint64_t seed = 0; seed < 6; ++seed)
    EXPECT_EQ(answer(engine, constrained(engine, seed)).text, together[seed]);
}

TEST(Constraint, LimitsAndRefusals) {
  Engine& engine = shared_engine();
  Request cut = constrained(engine, 1);
  cut.max_tokens = 2;
  EXPECT_EQ(answer(engine, cut).last.finish, Finish::kLength);
  Request endless = constrained(engine, 1);
  endless.ignore_eos = true;
  EXPECT_THROW(engine.submit(endless), Error);
  Request wrong = constrained(engine, 1);
  wrong.constraint = R"({"json_schema": {"properties": {"a": {"uniqueItems": true}}}})";
  try {
    engine.submit(wrong);
    ADD_FAILURE() << "not refused";
  } catch (const Error& e) { EXPECT_EQ(e.parts().what, "json_schema.properties.a.uniqueItems"); }
}

}  // namespace
}  // namespace glint::testing
