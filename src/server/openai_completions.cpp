// POST /v1/completions: a text is continued, without the chat format.

#include <fmt/format.h>

#include <ctime>

#include "server/endpoints.hpp"
#include "server/generation.hpp"
#include "server/prompt_fields.hpp"
#include "server/request_fields.hpp"
#include "server/sse.hpp"
#include "text/decoder.hpp"

namespace glint::server {
namespace {

using Kind = JsonValue::Kind;

constexpr std::size_t kMaxPrompts = 128;
constexpr std::int64_t kMaxChoices = 128;
constexpr std::int64_t kDefaultTokens = 16;  // OpenAI's

struct CompletionCall {
  std::vector<std::vector<std::int32_t>> prompts;
  std::vector<std::string> echoes;  // what each answer begins with; empty without "echo"
  Request request;                  // without ids
  std::size_t n = 1;
  bool stream = false;
  bool include_usage = false;
};

// A text, ids, or an array of either.
std::vector<std::vector<std::int32_t>> read_prompts(const Fields& body, const Engine& engine) {
  const JsonValue* prompt = body.get("prompt");
  if (prompt == nullptr) body.fail("prompt", "a text, token ids, or an array of either");
  const bool prefix = body.boolean("add_special_tokens").value_or(true);
  if (prompt->is(Kind::kString)) return {encode_prompt(engine, prompt->text, prefix)};
  if (!prompt->is(Kind::kArray) || prompt->items.empty())
    body.fail("prompt", "a text, token ids, or an array of either");
  if (prompt->items[0].is(Kind::kNumber)) return {read_ids(*prompt, "prompt")};
  if (prompt->items.size() > kMaxPrompts) body.fail("prompt", fmt::format("at most {} prompts", kMaxPrompts));
  std::vector<std::vector<std::int32_t>> prompts;
  for (std::size_t i = 0; i < prompt->items.size(); ++i) {
    const JsonValue& item = prompt->items[i];
    const std::string where = fmt::format("prompt[{}]", i);
    if (item.is(Kind::kString)) {
      prompts.push_back(encode_prompt(engine, item.text, prefix));
    } else if (item.is(Kind::kArray)) {
      prompts.push_back(read_ids(item, where));
    } else {
      throw bad_field(where, shown(item), "a text or token ids");
    }
  }
  return prompts;
}

void check_prompts(const CompletionCall& c, const Engine& engine) {
  for (std::size_t i = 0; i < c.prompts.size(); ++i) {
    const std::string where = c.prompts.size() == 1 ? "prompt" : fmt::format("prompt[{}]", i);
    if (c.prompts[i].empty()) throw bad_field(where, "no token", "at least one");
    check_fits(c.prompts[i].size(), engine, where);
  }
}

CompletionCall read_completion_call(const Fields& body, const ServiceOptions& options) {
  CompletionCall c;
  check_model(body);
  if (!body.text("suffix").value_or("").empty()) throw unsupported("suffix", "to fill in the middle");
  c.n = static_cast<std::size_t>(body.integer("n", 1, kMaxChoices).value_or(1));
  const auto best_of = body.integer("best_of", 1, kMaxChoices);
  if (best_of && *best_of != static_cast<std::int64_t>(c.n)) throw unsupported("best_of", "another number than n");
  c.request.sampling = read_sampling(body, options.sampling);
  const JsonValue* logprobs = body.get("logprobs");
  const bool off = logprobs == nullptr || (logprobs->is(Kind::kBool) && !logprobs->boolean);
  c.request.sampling.logprobs = off ? -1 : static_cast<int>(*body.integer("logprobs", 0, 20));
  c.request.max_tokens = body.integer("max_tokens", 1, 1 << 30).value_or(kDefaultTokens);
  read_schedule(body, c.request);
  c.request.stop = read_stop(body, "stop");
  c.request.stop_ids = body.ids("stop_token_ids").value_or(std::vector<std::int32_t>{});
  c.request.ignore_eos = body.boolean("ignore_eos").value_or(false);
  c.stream = body.boolean("stream").value_or(false);
  if (const JsonValue* stream_options = body.object("stream_options")) {
    if (!c.stream) throw bad_field("stream_options", "an object", "nothing where \"stream\" is not true");
    c.include_usage = Fields(*stream_options, "stream_options").boolean("include_usage").value_or(false);
  }
  return c;
}

void read_echo(const Fields& body, const Engine& engine, CompletionCall& c) {
  if (!body.boolean("echo").value_or(false)) return;
  if (c.request.sampling.logprobs >= 0) throw unsupported("echo", "with logprobs");
  for (const auto& ids : c.prompts) c.echoes.push_back(replace_invalid_utf8(engine.decode(ids, true)));
}

std::size_t characters(std::string_view utf8) {
  return static_cast<std::size_t>(std::count_if(utf8.begin(), utf8.end(), [](char c) { return (c & 0xc0) != 0x80; }));
}

// {"tokens", "token_logprobs", "top_logprobs", "text_offset"}; offset: characters before the first token, moved on.
std::string scores_json(const Engine& engine, const std::vector<TokenScore>& scores, std::size_t& offset) {
  std::string tokens;
  std::string logprobs;
  std::string top;
  std::string offsets;
  for (const TokenScore& s : scores) {
    const std::string text = token_text(engine, s.chosen.id);
    const char* comma = tokens.empty() ? "" : ",";
    tokens += comma + quoted(text);
    logprobs += comma + logprob_text(s.chosen.logprob);
    offsets += comma + std::to_string(offset);
    offset += characters(text);
    JsonValue object = JsonValue::make_object();  // two tokens may read alike: the likelier one stays
    for (const TokenLogprob& t : s.top) {
      const std::string key = token_text(engine, t.id);
      if (object.find(key) == nullptr) object.set(key, JsonValue::from_number(logprob_text(t.logprob)));
    }
    top += comma + dump_json(object, NumberStyle::kVerbatim);
  }
  return fmt::format(R"({{"tokens":[{}],"token_logprobs":[{}],"top_logprobs":[{}],"text_offset":[{}]}})", tokens,
                     logprobs, top, offsets);
}

std::string choice_json(std::size_t index, std::string_view text, std::string_view scores, std::string_view finish) {
  return fmt::format(R"({{"index":{},"text":{},"logprobs":{},"finish_reason":{}}})", index, quoted(text), scores,
                     finish);
}

// Both kinds of answer: the stream's chunks have the shape of the whole.
class CompletionAnswer final : public StreamWriter {
 public:
  CompletionAnswer(const Call& call, const CompletionCall& c)
      : engine_(call.engine()),
        head_(fmt::format(R"({{"id":"{}","object":"text_completion","created":{},"model":{})", random_id("cmpl-"),
                          std::time(nullptr), quoted(call.options().model_name))),
        n_(c.n),
        echoes_(c.echoes),
        with_scores_(c.request.sampling.logprobs >= 0),
        include_usage_(c.include_usage),
        offsets_(c.prompts.size() * c.n) {}

  std::string whole(std::vector<Choice>& choices) {
    std::string out = head_ + R"(,"choices":[)";
    for (Choice& c : choices) {
      const std::string text = (echoes_.empty() ? "" : echoes_[c.index / n_]) + c.parsed.content;
      out += (c.index > 0 ? "," : "") + choice_json(c.index, text, take_scores(c), finish_of(c));
    }
    return out + R"(],"usage":)" + openai_usage(total_of(choices, n_)) + '}';
  }

  void begin(std::string& out) override {
    for (std::size_t i = 0; i < offsets_.size() && !echoes_.empty(); ++i) {
      chunk(choice_json(i, echoes_[i / n_], "null", "null"), out);
    }
  }

  void events(Choice& choice, const std::vector<OutputEvent>& events, std::string& out) override {
    for (const OutputEvent& e : events) chunk(choice_json(choice.index, e.text, take_scores(choice), "null"), out);
  }

  void end(Choice& choice, std::string& out) override {
    chunk(choice_json(choice.index, "", take_scores(choice), finish_of(choice)), out);
  }

  void done(std::vector<Choice>& choices, std::string& out) override {
    if (include_usage_) {
      append_data(out, head_ + R"(,"choices":[],"usage":)" + openai_usage(total_of(choices, n_)) + '}');
    }
    append_data(out, "[DONE]");
  }

  void error(const ApiErrorParts& parts, std::string& out) override {
    append_data(out, error_body(parts, Dialect::kOpenAi, ""));
  }

 private:
  static std::string finish_of(const Choice& c) { return fmt::format("\"{}\"", c.finish_reason()); }

  std::string take_scores(Choice& choice) {
    if (!with_scores_) return "null";
    std::string json = scores_json(engine_, choice.scores, offsets_[choice.index]);
    choice.scores.clear();
    return json;
  }

  void chunk(std::string_view choice, std::string& out) const {
    append_data(out, fmt::format(R"({},"choices":[{}]{}}})", head_, choice, include_usage_ ? R"(,"usage":null)" : ""));
  }

  const Engine& engine_;
  const std::string head_;
  const std::size_t n_;
  const std::vector<std::string> echoes_;
  const bool with_scores_;
  const bool include_usage_;
  std::vector<std::size_t> offsets_;  // of each choice: characters that were told
};

}  // namespace

std::shared_ptr<Exchange> post_completions(const std::shared_ptr<Call>& call) {
  const JsonValue json = parse_body(call->request().body);
  const Fields body(json, "");
  CompletionCall c = read_completion_call(body, call->options());
  c.prompts = read_prompts(body, call->engine());
  check_prompts(c, call->engine());
  read_echo(body, call->engine(), c);
  GenerationSpec spec;
  spec.slots = call->admit(static_cast<std::int64_t>(c.prompts.size() * c.n));
  spec.choices_a_prompt = c.n;
  for (const auto& ids : c.prompts) {
    c.request.ids = ids;
    append_choices(c.request, c.n, spec.requests);
  }
  auto answer = std::make_unique<CompletionAnswer>(*call, c);
  if (c.stream) {
    spec.stream = std::move(answer);
  } else {
    spec.whole = [whole = std::shared_ptr<CompletionAnswer>(std::move(answer))](std::vector<Choice>& choices) {
      return whole->whole(choices);
    };
  }
  return start_generation(call, std::move(spec));
}

}  // namespace glint::server
