#pragma once
// The common end of every API that talks in turns: conversation → prompt → generation.

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "server/chat_fields.hpp"
#include "server/generation.hpp"

namespace glint::server {

struct ChatStart {
  Conversation conversation;
  Request request;  // without ids
  std::size_t n = 1;
  std::string param = "messages";  // the field at fault when the prompt is too long
  // One of the two.
  std::unique_ptr<StreamWriter> stream;
  std::function<std::string(std::vector<Choice>& choices)> whole;
};

std::shared_ptr<Exchange> start_chat(const std::shared_ptr<Call>& call, ChatStart start);

}  // namespace glint::server
