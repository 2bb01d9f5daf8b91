// POST /tokenize, /detokenize: text and token ids, in the words of vLLM ("prompt", "messages") and llama.cpp
// ("content").

#include <fmt/format.h>

#include "server/chat_fields.hpp"
#include "server/endpoints.hpp"
#include "server/generation.hpp"
#include "server/prompt_fields.hpp"
#include "server/sse.hpp"
#include "text/decoder.hpp"

namespace glint::server {

std::vector<std::int32_t> encode_prompt(const Engine& engine, std::string_view text, bool with_prefix) {
  static constexpr std::string_view kPrefix = "[gMASK]<sop>";
  if (with_prefix && !text.starts_with(kPrefix)) {
    std::vector<std::int32_t> ids = engine.encode(kPrefix);
    const std::vector<std::int32_t> rest = engine.encode(text);
    ids.insert(ids.end(), rest.begin(), rest.end());
    return ids;
  }
  return engine.encode(text);
}

namespace {

std::vector<std::int32_t> tokenize(const Fields& body, const Engine& engine) {
  const int forms = int{body.has("messages")} + int{body.has("prompt")} + int{body.has("content")};
  if (forms != 1) throw bad_field("prompt", fmt::format("{} of the three", forms), "one of prompt, content, messages");
  if (body.has("messages")) return engine.encode(render_chat(read_conversation(body).chat));
  // Each name comes from a server with a default of its own.
  if (body.has("prompt")) {
    return encode_prompt(engine, body.required_text("prompt"), body.boolean("add_special_tokens").value_or(true));
  }
  return encode_prompt(engine, body.required_text("content"), body.boolean("add_special").value_or(false));
}

}  // namespace

std::shared_ptr<Exchange> post_tokenize(const std::shared_ptr<Call>& call) {
  const JsonValue json = parse_body(call->request().body);
  const Fields body(json, "");
  const std::vector<std::int32_t> ids = tokenize(body, call->engine());
  std::string out =
      fmt::format(R"({{"count":{},"max_model_len":{},"tokens":[)", ids.size(), call->engine().info().max_context);
  for (std::size_t i = 0; i < ids.size(); ++i) out += (i > 0 ? "," : "") + std::to_string(ids[i]);
  out += ']';
  if (body.boolean("return_token_strs").value_or(false)) {
    out += R"(,"token_strs":[)";
    for (std::size_t i = 0; i < ids.size(); ++i) out += (i > 0 ? "," : "") + quoted(token_text(call->engine(), ids[i]));
    out += ']';
  }
  call->send_json(out + '}');
  return nullptr;
}

std::shared_ptr<Exchange> post_detokenize(const std::shared_ptr<Call>& call) {
  const JsonValue json = parse_body(call->request().body);
  const Fields body(json, "");
  const auto ids = body.ids("tokens");
  if (!ids) body.fail("tokens", "an array of token ids");
  const std::string text = quoted(replace_invalid_utf8(call->engine().decode(*ids)));
  call->send_json(fmt::format(R"({{"prompt":{},"content":{}}})", text, text));
  return nullptr;
}

}  // namespace glint::server
