// What all endpoints share: paths, keys, states, limits, errors, the log.

#include <gtest/gtest.h>

#include "server/fake_engine.hpp"

namespace glint::testing {
namespace {

const std::string kBody = R"({"messages":[{"role":"user","content":"Hello"}]})";

TEST(Service, UnknownPathsAndMethods) {
  ServiceFixture f;
  EXPECT_EQ(f.call("GET", "/v1/nothing", "").status, 404);
  EXPECT_EQ(f.call("GET", "/v1/modelsx", "").status, 404);
  const Reply r = f.call("GET", "/v1/chat/completions", "");
  EXPECT_EQ(r.status, 405);
  EXPECT_EQ(r.header("Allow"), "POST");
  EXPECT_EQ(text_at(r.json, "error/type"), "invalid_request_error");
  EXPECT_EQ(f.call("DELETE", "/v1/models", "").header("Allow"), "GET, HEAD");
  EXPECT_EQ(f.call("HEAD", "/v1/models", "").status, 200);
}

TEST(Service, ModelsInBothDialects) {
  ServiceFixture f;
  const Reply r = f.call("GET", "/v1/models", "");
  EXPECT_EQ(text_at(r.json, "data/0/id"), "test-model");
  EXPECT_EQ(text_at(r.json, "data/0/object"), "model");
  EXPECT_EQ(text_at(r.json, "data/0/type"), "model");
  EXPECT_EQ(f.call("GET", "/v1/models/test-model", "").status, 200);
  const Reply other = f.call("GET", "/v1/models/other", "");
  EXPECT_EQ(other.status, 404);
  EXPECT_EQ(text_at(other.json, "error/code"), "model_not_found");
}

TEST(Service, KeysAreAskedForEverywhereButForHealth) {
  ServiceFixture f({.api_keys = {"first", "second"}});
  EXPECT_EQ(f.call("GET", "/health", "").status, 200);
  EXPECT_EQ(f.call("GET", "/v1/models", "").status, 401);
  EXPECT_EQ(f.call("GET", "/no/such/path", "").status, 401);
  EXPECT_EQ(f.call("GET", "/metrics", "").status, 401);
  const auto with = [&](const char* name, const char* value) {
    return f.call("GET", "/v1/models", "", {{name, value}}).status;
  };
  EXPECT_EQ(with("authorization", "Bearer first"), 200);
  EXPECT_EQ(with("authorization", "Bearer second"), 200);
  EXPECT_EQ(with("x-api-key", "second"), 200);
  EXPECT_EQ(with("authorization", "Bearer firs"), 401);
  EXPECT_EQ(with("authorization", "Bearer firstfirst"), 401);
  EXPECT_EQ(with("authorization", "Bearer "), 401);
  EXPECT_EQ(with("authorization", "first"), 401);
  EXPECT_EQ(with("x-api-key", ""), 401);
}

TEST(Service, BeforeAndAfterTheModel) {
  server::Service service({.model_name = "m"});
  const auto status = [&](const char* method, const char* path, const std::string& body) {
    const auto connection = std::make_shared<FakeConnection>();
    service.handle({.method = method, .path = path, .body = body}, connection);
    return connection->response;
  };
  EXPECT_EQ(status("GET", "/health", "").status, 503);
  EXPECT_EQ(status("GET", "/health", "").body, R"({"status":"loading"})");
  EXPECT_EQ(status("GET", "/metrics", "").status, 200);
  const server::HttpResponse loading = status("POST", "/v1/chat/completions", kBody);
  EXPECT_EQ(loading.status, 503);
  EXPECT_NE(std::find(loading.headers.begin(), loading.headers.end(),
                      std::pair<std::string, std::string>("Retry-After", "5")),
            loading.headers.end());
  FakeEngine engine;
  engine.scripts = {{.pieces = {"</think>x"}}};
  service.set_engine(engine);
  EXPECT_EQ(status("GET", "/health", "").body, R"({"status":"ok"})");
  service.drain();
  EXPECT_EQ(status("GET", "/health", "").body, R"({"status":"draining"})");
  EXPECT_EQ(status("POST", "/v1/chat/completions", kBody).status, 503);
  EXPECT_TRUE(engine.requests.empty());
}

TEST(Service, AFullQueueSaysWhenToComeBack) {
  ServiceFixture f({.max_in_flight = 3});
  f.engine.scripts = {{.pieces = {"a"}, .endless = true}};
  const auto connection = std::make_shared<FakeConnection>();
  const auto exchange = f.service.handle({.method = "POST",
                                          .path = "/v1/chat/completions",
                                          .body = R"({"n":2,"messages":[{"role":"user","content":"Hello"}]})"},
                                         connection);
  ASSERT_NE(exchange, nullptr);
  EXPECT_EQ(f.service.in_flight(), 2);
  const Reply refused = f.post("/v1/completions", R"({"prompt":["a","b"]})");
  EXPECT_EQ(refused.status, 429);
  EXPECT_EQ(refused.header("Retry-After"), "1");
  EXPECT_EQ(text_at(refused.json, "error/type"), "rate_limit_error");
  EXPECT_EQ(f.service.in_flight(), 2);
  exchange->abort();
  EXPECT_EQ(f.service.in_flight(), 0);
  EXPECT_TRUE(f.engine.running.empty());
  EXPECT_NE(f.log.back().find(R"("status":499)"), std::string::npos);
}

TEST(Service, AClientThatLeavesEndsItsGenerations) {
  for (const char* stream : {"false", "true"}) {
    ServiceFixture f;
    f.engine.scripts = {{.pieces = {"a", "b"}, .endless = true}};
    const auto connection = std::make_shared<FakeConnection>();
    const std::string body =
        std::string(R"({"n":3,"messages":[{"role":"user","content":"x"}],"stream":)") + stream + "}";
    auto exchange = f.service.handle({.method = "POST", .path = "/v1/chat/completions", .body = body}, connection);
    connection->pump();
    EXPECT_EQ(f.engine.running.size(), 3U);
    exchange->abort();
    EXPECT_TRUE(f.engine.running.empty());
    const std::string before = connection->streamed;
    connection->pump();
    exchange->tick();
    EXPECT_EQ(connection->streamed, before);
    EXPECT_FALSE(connection->finished);
    // Forgotten without abort(): the same.
    auto other = f.service.handle({.method = "POST", .path = "/v1/chat/completions", .body = body}, connection);
    EXPECT_EQ(f.engine.running.size(), 3U);
    other.reset();
    EXPECT_TRUE(f.engine.running.empty());
    EXPECT_EQ(f.service.in_flight(), 0);
  }
}

TEST(Service, ASilentStreamSaysThatItLives) {
  ServiceFixture f({.keep_alive_s = 0});
  f.engine.scripts = {{.pieces = {}, .endless = true}};
  const auto connection = std::make_shared<FakeConnection>();
  const auto exchange = f.service.handle({.method = "POST",
                                          .path = "/v1/chat/completions",
                                          .body = R"({"messages":[{"role":"user","content":"x"}],"stream":true})"},
                                         connection);
  exchange->tick();
  EXPECT_TRUE(connection->streamed.starts_with(": ")) << connection->streamed;
  EXPECT_TRUE(connection->streamed.ends_with("\n\n")) << connection->streamed;
  exchange->abort();
}

TEST(Service, ARequestThatTheEngineRefusesTakesTheOthersBack) {
  ServiceFixture f;
  f.engine.scripts = {{.pieces = {"a"}, .endless = true}};
  EXPECT_EQ(f.post("/v1/completions", R"({"prompt":["a","b"],"top_k":2000000})").status, 400);
  const Reply r = f.post("/v1/completions", R"({"prompt":[[1,2],[]]})");
  EXPECT_EQ(r.status, 400);
  EXPECT_EQ(text_at(r.json, "error/param"), "prompt[1]");
  EXPECT_TRUE(f.engine.running.empty());
  EXPECT_EQ(f.service.in_flight(), 0);
}

TEST(Service, PromptsThatAreTooLongNameTheField) {
  ServiceFixture f;
  const std::string text(5000, 'x');
  for (const auto& [path, body, param] :
       {std::tuple{"/v1/completions", R"({"prompt":")" + text + "\"}", "prompt"},
        std::tuple{"/v1/chat/completions", R"({"messages":[{"role":"user","content":")" + text + "\"}]}",
                   "messages"}}) {
    const Reply r = f.post(path, body);
    EXPECT_EQ(r.status, 400);
    EXPECT_EQ(text_at(r.json, "error/code"), "context_length_exceeded");
    EXPECT_EQ(text_at(r.json, "error/param"), param);
  }
}

struct Api {
  const char* path;
  std::string body;  // without its last brace
};
const Api kApis[] = {{"/v1/chat/completions", R"({"messages":[{"role":"user","content":"x"}])"},
                     {"/v1/completions", R"({"prompt":"x")"},
                     {"/v1/responses", R"({"input":"x")"},
                     {"/v1/messages", R"({"max_tokens":9,"messages":[{"role":"user","content":"x"}])"}};

TEST(Service, PriorityAndTimeoutReachTheEngineFromEveryApi) {
  for (const Api& api : kApis) {
    ServiceFixture f;
    f.engine.scripts = {{.pieces = {"a"}}};
    f.post(api.path, api.body + "}");
    f.post(api.path, api.body + R"(,"priority":-3,"timeout":2.5})");
    ASSERT_EQ(f.engine.requests.size(), 2U) << api.path;
    EXPECT_EQ(f.engine.requests[0].priority, 0);
    EXPECT_EQ(f.engine.requests[0].timeout_s, 0);
    EXPECT_EQ(f.engine.requests[1].priority, -3);
    EXPECT_EQ(f.engine.requests[1].timeout_s, 2.5);
    for (const auto& [field, wrong] :
         {std::pair("priority", "1.5"), std::pair("priority", "\"high\""), std::pair("priority", "2147483648"),
          std::pair("timeout", "0"), std::pair("timeout", "-1"), std::pair("timeout", "1e9"),
          std::pair("timeout", "\"30s\"")}) {
      const Reply r = f.post(api.path, api.body + ",\"" + field + "\":" + wrong + "}");
      EXPECT_EQ(r.status, 400) << api.path << field << wrong;
      EXPECT_NE(text_at(r.json, "error/message").find(std::string(field) + ": found " + wrong), std::string::npos)
          << r.body;
    }
    EXPECT_EQ(f.engine.requests.size(), 2U);
  }
}

TEST(Service, ATimeoutIsA504AndFreesTheOtherChoices) {
  for (const Api& api : kApis) {
    ServiceFixture f;
    f.engine.scripts = {{.pieces = {"a"}, .finish = Finish::kTimeout}};
    const Reply r = f.post(api.path, api.body + R"(,"timeout":1})");
    EXPECT_EQ(r.status, 504) << api.path;
    EXPECT_EQ(r.header("X-Should-Retry"), "false");
    EXPECT_EQ(text_at(r.json, "error/type"), "timeout_error") << r.body;
    EXPECT_EQ(f.service.in_flight(), 0);
    const Reply stream = f.post(api.path, api.body + R"(,"timeout":1,"stream":true})");
    EXPECT_EQ(stream.status, 200);
    EXPECT_TRUE(stream.finished);
    EXPECT_NE(stream.body.find("timeout: the answer was not complete"), std::string::npos) << stream.body;
  }
  ServiceFixture f;
  f.engine.scripts = {{.pieces = {"a"}, .finish = Finish::kTimeout}, {.pieces = {"b"}, .endless = true}};
  EXPECT_EQ(f.post(kApis[0].path, kApis[0].body + R"(,"n":2})").status, 504);
  EXPECT_TRUE(f.engine.running.empty());
  EXPECT_EQ(f.service.in_flight(), 0);
}

TEST(Service, TheLogHasCountsAndNoText) {
  ServiceFixture f;
  f.engine.scripts = {{.pieces = {"</think>answer"}}};
  f.post("/v1/chat/completions", kBody);
  ASSERT_EQ(f.log.size(), 1U);
  const JsonValue line = parse_json_value(f.log[0], "log");
  EXPECT_EQ(text_at(line, "path"), "/v1/chat/completions");
  EXPECT_EQ(text_at(line, "status"), "200");
  EXPECT_EQ(text_at(line, "generated_tokens"), "2");
  EXPECT_EQ(text_at(line, "finish"), "stop");
  EXPECT_EQ(f.log[0].find("Hello"), std::string::npos);
  EXPECT_EQ(f.log[0].find("answer"), std::string::npos);
}

TEST(Service, MetricsCount) {
  ServiceFixture f;
  f.engine.scripts = {{.pieces = {"</think>answer"}}};
  f.post("/v1/chat/completions", kBody);
  f.post("/v1/chat/completions", "{}");
  const Reply r = f.call("GET", "/metrics", "");
  for (const char* line : {"\nglint_http_requests_total{route=\"/v1/chat/completions\",status=\"200\"} 1\n",
                           "\nglint_http_requests_total{route=\"/v1/chat/completions\",status=\"400\"} 1\n",
                           "\nglint_generated_tokens_total 2\n", "\nglint_generations_in_flight 0\n",
                           "\nglint_time_to_first_token_seconds_count 1\n"}) {
    EXPECT_NE(r.body.find(line), std::string::npos) << line << r.body;
  }
  for (const char* name : {"\nglint_resident_bytes{kind=\"anonymous\"} ", "\nglint_resident_bytes{kind=\"file\"} ",
                           "\nglint_heap_bytes ", "\nglint_heap_free_bytes ", "\nglint_cache_bytes "}) {
    EXPECT_NE(r.body.find(name), std::string::npos) << name << r.body;
  }
}

}  // namespace
}  // namespace glint::testing
