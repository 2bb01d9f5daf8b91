// glint bench serve: load on a server, with what its users would feel.

#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <exception>
#include <fstream>
#include <iterator>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "base/clock.hpp"
#include "base/error.hpp"
#include "base/json.hpp"
#include "bench_serve.hpp"
#include "command.hpp"
#include "engine_flags.hpp"
#include "load_client.hpp"
#include "load_report.hpp"
#include "progress.hpp"
#include "server/server.hpp"

namespace glint::apps {
namespace {

namespace asio = boost::asio;

struct Flags {
  EngineFlags engine;
  std::string url;  // empty: a server of our own
  std::string api_key, model = "glint";
  std::vector<int> clients{1, 8, 64};
  std::vector<double> rates;
  int conversations = 64, turns = 1;
  int prompt_words = 64, prefix_words = 0, prefixes = 1, gen_tokens = 64;
  double temperature = 0;
  std::uint64_t seed = 1;
  LoadGoal goal;
  bool json = false;
  std::string csv, plot;
};

// Common words, so that a word is about a token for any vocabulary.
constexpr std::array kWords{"the",  "a",     "little", "girl", "boy",   "dog",    "cat",  "house", "tree", "garden",
                            "and",  "but",   "then",   "went", "saw",   "found",  "big",  "red",   "blue", "happy",
                            "sad",  "day",   "night",  "sun",  "rain",  "friend", "play", "run",   "jump", "look",
                            "walk", "water", "stone",  "bird", "river", "small",  "old",  "new",   "with", "from"};

std::string words(int n, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  std::string out;
  for (int i = 0; i < n; ++i) out += fmt::format("{}{}", i == 0 ? "" : " ", kWords[random() % kWords.size()]);
  return out;
}

// One user's talk. Each level of load has words of its own, else the server would have the later ones in its cache.
class Conversation {
 public:
  Conversation(const Flags& flags, int level, int index)
      : flags_(flags), index_(index), seed_((flags.seed * 1000003 + static_cast<std::uint64_t>(level)) << 32) {
    const auto group = static_cast<std::uint64_t>(index % flags.prefixes);
    if (flags.prefix_words > 0)
      messages_.push_back(
          json::object{{"role", "system"}, {"content", words(flags.prefix_words, seed_ + 0xffff0000U + group)}});
  }

  asio::awaitable<void> run(LoadClient& client, std::vector<LoadAnswer>& out) {
    for (int turn = 0; turn < flags_.turns; ++turn) {
      const auto n = static_cast<std::uint64_t>(index_) * 1000 + static_cast<std::uint64_t>(turn);
      messages_.push_back(json::object{{"role", "user"}, {"content", words(flags_.prompt_words, seed_ + n)}});
      LoadAnswer answer = co_await client.ask(body());
      messages_.push_back(
          json::object{{"role", "assistant"}, {"content", answer.content}, {"reasoning_content", answer.reasoning}});
      const bool ok = answer.ok();
      out.push_back(std::move(answer));
      if (!ok) co_return;  // what follows would be another conversation
    }
  }

 private:
  std::string body() const {
    return json::serialize(
        json::object{{"model", flags_.model},
                     {"messages", messages_},
                     {"max_tokens", flags_.gen_tokens},
                     {"temperature", flags_.temperature},
                     {"seed", index_},
                     {"ignore_eos", true},
                     {"stream", true},
                     {"stream_options", json::object{{"include_usage", true}, {"continuous_usage_stats", true}}}});
  }

  const Flags& flags_;
  int index_;
  std::uint64_t seed_;
  json::array messages_;
};

class Progress {
 public:
  Progress(const Flags& flags, std::string label)
      : total_(flags.conversations * flags.turns),
        label_(std::move(label)),
        on_(!flags.json && !flags.engine.quiet && stderr_is_terminal()) {}
  void add(std::size_t n) {
    done_ += static_cast<int>(n);
    if (on_) fmt::print(stderr, "\r{}: {} of {} answers \x1b[K", label_, done_, total_);
  }
  ~Progress() {
    if (on_) fmt::print(stderr, "\r\x1b[K");
  }

 private:
  int done_ = 0;
  int total_;
  std::string label_;
  bool on_;
};

// A level of load: what its conversations share. All run on one thread.
struct Loading {
  const Flags& flags;
  const LoadTarget& target;
  int number;
  Progress& progress;
  LoadLevel& level;
  int next = 0;  // conversation
};

asio::awaitable<void> converse(Loading& loading, LoadClient& client, int index) {
  std::vector<LoadAnswer> answers;
  Conversation conversation(loading.flags, loading.number, index);
  co_await conversation.run(client, answers);
  loading.progress.add(answers.size());
  std::move(answers.begin(), answers.end(), std::back_inserter(loading.level.answers));
}

// One conversation after another, as long as there are some.
asio::awaitable<void> keep_asking(Loading& loading) {
  LoadClient client(co_await asio::this_coro::executor, loading.target);
  while (loading.next < loading.flags.conversations) {
    const int index = loading.next++;
    co_await converse(loading, client, index);
  }
}

asio::awaitable<void> ask_once(Loading& loading, int index) {
  LoadClient client(co_await asio::this_coro::executor, loading.target);
  co_await converse(loading, client, index);
}

void pass_on(const std::exception_ptr& error) {
  if (error) std::rethrow_exception(error);
}

// Conversations begin at random moments: gaps are exponential with mean 1 / rate.
asio::awaitable<void> begin_at_random(Loading& loading) {
  const auto executor = co_await asio::this_coro::executor;
  std::mt19937_64 random(loading.flags.seed);
  std::exponential_distribution<double> gap(loading.level.rate);
  asio::steady_timer timer(executor);
  auto due = std::chrono::steady_clock::now();
  for (int i = 0; i < loading.flags.conversations; ++i) {
    timer.expires_at(due);
    co_await timer.async_wait(asio::use_awaitable);
    asio::co_spawn(executor, ask_once(loading, i), pass_on);
    due += std::chrono::duration_cast<std::chrono::steady_clock::duration>(std::chrono::duration<double>(gap(random)));
  }
}

// So many conversations at a time, each client one after another.
LoadLevel closed_loop(const Flags& flags, const LoadTarget& target, int number, int clients) {
  LoadLevel level{.clients = static_cast<double>(clients)};
  Progress progress(flags, fmt::format("{} clients", clients));
  Loading loading{flags, target, number, progress, level};
  asio::io_context context(1);
  for (int c = 0; c < std::min(clients, flags.conversations); ++c)
    asio::co_spawn(context, keep_asking(loading), pass_on);
  const double start = now_s();
  context.run();
  level.seconds = now_s() - start;
  return level;
}

// Conversations begin whether or not the server keeps up.
LoadLevel open_loop(const Flags& flags, const LoadTarget& target, int number, double rate) {
  LoadLevel level{.rate = rate};
  Progress progress(flags, fmt::format("{:g} a second", rate));
  Loading loading{flags, target, number, progress, level};
  asio::io_context context(1);
  asio::co_spawn(context, begin_at_random(loading), pass_on);
  const double start = now_s();
  context.run();
  level.seconds = now_s() - start;
  return level;
}

// A server of our own in this process, for a run without --url.
class OwnServer {
 public:
  explicit OwnServer(EngineFlags& flags)
      : engine_(flags.open()), server_({.port = 0}, {.model_name = "glint", .max_in_flight = 1 << 16}) {
    server_.set_engine(*engine_);
    server_.start({});
  }
  ~OwnServer() {
    server_.stop();
    server_.wait();
  }
  OwnServer(const OwnServer&) = delete;
  OwnServer& operator=(const OwnServer&) = delete;
  std::string url() const { return server_.url(); }
  std::string backend() const { return engine_->info().backend; }

 private:
  std::unique_ptr<Engine> engine_;  // outlives the server
  server::Server server_;
};

void write_file(const std::string& path, const std::string& text) {
  std::ofstream out(path, std::ios::binary);
  if (!out.write(text.data(), static_cast<std::streamsize>(text.size())).flush())
    throw Error({.what = path, .found = "cannot be written"});
}

int run_bench_serve(Flags& f) {
  std::unique_ptr<OwnServer> own;
  if (f.url.empty()) own = std::make_unique<OwnServer>(f.engine);
  LoadTarget target = parse_target(own ? own->url() : f.url);
  target.api_key = f.api_key;

  std::vector<LoadLevel> levels;
  std::vector<LoadSummary> summaries;
  if (!f.json) {
    fmt::print("{} · {} conversations of {} turns, {} + {} words, {} tokens each\n{}\n", own ? own->backend() : f.url,
               f.conversations, f.turns, f.prefix_words, f.prompt_words, f.gen_tokens, load_table_head());
  }
  const auto add = [&](LoadLevel level) {
    summaries.push_back(summarise(level, f.goal));
    levels.push_back(std::move(level));
    if (f.json) return;
    fmt::print("{}\n", load_table_row(summaries.back()));
    if (summaries.back().errors > 0) fmt::print("{:>14} first error: {}\n", "", summaries.back().first_error);
    std::fflush(stdout);
  };
  if (!f.rates.empty()) f.clients.clear();
  int number = 0;
  for (const int clients : f.clients) add(closed_loop(f, target, number++, clients));
  for (const double rate : f.rates) add(open_loop(f, target, number++, rate));

  if (f.json) fmt::print("{}\n", load_json(summaries, f.goal));
  if (!f.csv.empty()) write_file(f.csv, load_csv(levels));
  if (!f.plot.empty()) write_file(f.plot, load_plot(levels));
  const bool all = std::all_of(summaries.begin(), summaries.end(), [](const LoadSummary& s) { return s.errors == 0; });
  return all ? 0 : 1;
}

}  // namespace

void add_bench_serve(CLI::App& bench, Run& run) {
  CLI::App* c = bench.add_subcommand("serve", "Load on a server: time to the first token, gaps, throughput, goodput");
  const auto f = std::make_shared<Flags>();
  c->add_option("--url", f->url, "Server that speaks OpenAI's chat API, http://HOST:PORT (default: one of our own)");
  c->add_option("--api-key", f->api_key, "Key to send");
  c->add_option("--name", f->model, "The model's name to send")->capture_default_str();
  c->add_option("--clients", f->clients, "Levels of load: conversations at a time")
      ->delimiter(',')
      ->capture_default_str()
      ->check(CLI::Range(1, 4096));
  c->add_option("--rate", f->rates, "Levels of load instead: conversations a second, begun at random (Poisson)")
      ->delimiter(',')
      ->check(CLI::PositiveNumber);
  c->add_option("--conversations", f->conversations, "Conversations a level")
      ->capture_default_str()
      ->check(CLI::Range(1, 1 << 20));
  c->add_option("--turns", f->turns, "Questions a conversation, each with all before it")
      ->capture_default_str()
      ->check(CLI::Range(1, 1000));
  c->add_option("--prompt-words", f->prompt_words, "Words a question")
      ->capture_default_str()
      ->check(CLI::Range(1, 1 << 20));
  c->add_option("--prefix-words", f->prefix_words, "Words of a system message that conversations share")
      ->capture_default_str()
      ->check(CLI::Range(0, 1 << 20));
  c->add_option("--prefixes", f->prefixes, "How many such messages there are")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  c->add_option("--gen-tokens", f->gen_tokens, "Tokens an answer")
      ->capture_default_str()
      ->check(CLI::Range(1, 1 << 20));
  c->add_option("--temp,--temperature", f->temperature, "0: greedy")
      ->capture_default_str()
      ->check(CLI::NonNegativeNumber);
  c->add_option("--seed", f->seed, "Of the words and the arrivals")->capture_default_str();
  c->add_option("--goal-first-token", f->goal.first_token_s, "Goodput: seconds to the first token")
      ->capture_default_str();
  c->add_option("--goal-token", f->goal.token_s, "Goodput: seconds a token after it")->capture_default_str();
  c->add_flag("--json", f->json, "One JSON object on stdout");
  c->add_option("--csv", f->csv, "Write a line an answer to this file");
  c->add_option("--plot", f->plot, "Write an SVG of the distributions to this file");
  f->engine.add_to_server(*c);  // of a server of our own
  c->footer(
      "Examples:\n"
      "  glint bench serve --clients 1,64\n"
      "  glint bench serve --rate 2,4,8 --prefix-words 2000 --turns 4 --plot load.svg\n"
      "Servers that do not know ignore_eos may answer with fewer tokens; theirs are counted as they say.");
  c->callback([f, &run] { run = [f] { return run_bench_serve(*f); }; });
}

}  // namespace glint::apps
