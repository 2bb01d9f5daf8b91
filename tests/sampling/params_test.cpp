#include "sampling/params.hpp"

#include <gtest/gtest.h>

#include <limits>
#include <string>

#include "base/error.hpp"

namespace glint {
namespace {

void expect_refused(const SamplerParams& p, const std::string& field, const std::string& found) {
  try {
    validate(p, 100);
    ADD_FAILURE() << field << " was accepted";
  } catch (const Error& e) {
    EXPECT_NE(e.parts().what.find(field), std::string::npos) << e.what();
    EXPECT_NE(e.parts().found.find(found), std::string::npos) << e.what();
    EXPECT_FALSE(e.parts().expected.empty());
  }
}

TEST(SamplerParams, EdgesOfTheRangesAreAccepted) {
  validate({}, 100);
  validate({.temperature = 0, .top_p = 1e-6F, .top_k = 1 << 30, .min_p = 0, .repetition_penalty = 10}, 100);
  validate({.temperature = 100,
            .presence_penalty = -2,
            .frequency_penalty = 2,
            .logit_bias = {{0, -100.0F}, {99, 100.0F}},
            .logprobs = 20},
           100);
}

TEST(SamplerParams, WhatIsOutOfRangeIsNamed) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  expect_refused({.temperature = -0.5F}, "temperature", "-0.5");
  expect_refused({.temperature = nan}, "temperature", "nan");
  expect_refused({.top_p = 0}, "top_p", "0");
  expect_refused({.top_p = 1.5F}, "top_p", "1.5");
  expect_refused({.top_p = nan}, "top_p", "nan");
  expect_refused({.top_k = -1}, "top_k", "-1");
  expect_refused({.min_p = 1}, "min_p", "1");
  expect_refused({.repetition_penalty = 0}, "repetition_penalty", "0");
  expect_refused({.presence_penalty = 2.5F}, "presence_penalty", "2.5");
  expect_refused({.frequency_penalty = nan}, "frequency_penalty", "nan");
  expect_refused({.logit_bias = {{100, 1.0F}}}, "logit_bias", "100");
  expect_refused({.logit_bias = {{5, 101.0F}}}, "logit_bias of token 5", "101");
  expect_refused({.logprobs = 21}, "logprobs", "21");
}

}  // namespace
}  // namespace glint
