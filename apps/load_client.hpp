#pragma once
// A client of OpenAI's chat API that notes when each piece of a streamed answer comes: one connection, one request at a
// time. For `glint bench serve`; works with any server that speaks the API. All clients of a load run on one thread: a
// thread each would wake up for each token, and interrupt the server that is measured where both share a machine.

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace glint::apps {

struct LoadTarget {
  std::string host, port, base;  // base: what precedes "/v1/…", often empty
  std::string api_key;           // empty: none sent
  double timeout_s = 600;        // without a byte
};

// "http://HOST[:PORT][/BASE]", with or without a "/v1" at the end. Throws Error for anything else.
LoadTarget parse_target(const std::string& url);

// One answer. Times by now_s().
struct LoadAnswer {
  double start_s = 0, first_s = 0, end_s = 0;  // first_s: the first piece of content or reasoning; 0: none came
  std::vector<double> gaps_s;                  // one a token: between its piece and the one before, over its tokens
  std::int64_t prompt_tokens = 0, cached_tokens = 0, completion_tokens = 0;  // as the server counts them
  std::string reasoning, content;
  int status = 0;     // of HTTP; 0: none came
  std::string error;  // empty: a whole answer

  bool ok() const { return error.empty(); }
  double first_token_s() const { return first_s - start_s; }
  // Seconds a token after the first; 0 for an answer of one token.
  double seconds_a_token() const {
    return completion_tokens > 1 ? (end_s - first_s) / static_cast<double>(completion_tokens - 1) : 0;
  }
};

class LoadClient {
 public:
  LoadClient(const boost::asio::any_io_executor& executor, LoadTarget target);
  ~LoadClient();
  LoadClient(const LoadClient&) = delete;
  LoadClient& operator=(const LoadClient&) = delete;

  // Posts `body`, which asks for a stream with usage, to /v1/chat/completions. Never throws: what went wrong stands in
  // the answer. The connection is kept for the next call.
  boost::asio::awaitable<LoadAnswer> ask(std::string body);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace glint::apps
