#include "server/chat_start.hpp"

#include "server/request_fields.hpp"

namespace glint::server {

std::shared_ptr<Exchange> start_chat(const std::shared_ptr<Call>& call, ChatStart start) {
  GenerationSpec spec;
  spec.slots = call->admit(static_cast<std::int64_t>(start.n));
  start.request.ids = call->service().replay().encode(call->engine(), render_chat(start.conversation.chat));
  start.conversation.parser.plain_content =
      start.conversation.chat.tools.empty() && start.conversation.constraint.is(JsonValue::Kind::kObject);
  start.request.constraint = constraint_text(start.conversation);
  check_fits(start.request.ids.size(), call->engine(), start.param);
  spec.chat_ids = start.request.ids;
  spec.choices_a_prompt = start.n;
  spec.parser = std::move(start.conversation.parser);
  spec.parallel_calls = start.conversation.parallel_calls;
  append_choices(start.request, start.n, spec.requests);
  spec.stream = std::move(start.stream);
  spec.whole = std::move(start.whole);
  return start_generation(call, std::move(spec));
}

}  // namespace glint::server
