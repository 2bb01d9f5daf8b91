#pragma once
// The endpoints, by the file that holds them. Each parses and checks the request's body, then answers at once or gives
// back the exchange that will. They throw ApiError (or Error) for what is wrong with a request.

#include <memory>
#include <span>

#include "server/service.hpp"

namespace glint::server {

std::span<const Route> routes();

// openai_chat.cpp
std::shared_ptr<Exchange> post_chat_completions(const std::shared_ptr<Call>& call);
// openai_completions.cpp
std::shared_ptr<Exchange> post_completions(const std::shared_ptr<Call>& call);
// responses.cpp
std::shared_ptr<Exchange> post_responses(const std::shared_ptr<Call>& call);
// anthropic.cpp
std::shared_ptr<Exchange> post_messages(const std::shared_ptr<Call>& call);
std::shared_ptr<Exchange> post_count_tokens(const std::shared_ptr<Call>& call);
// about.cpp
std::shared_ptr<Exchange> get_models(const std::shared_ptr<Call>& call);
std::shared_ptr<Exchange> get_model(const std::shared_ptr<Call>& call);
std::shared_ptr<Exchange> get_health(const std::shared_ptr<Call>& call);
std::shared_ptr<Exchange> get_metrics(const std::shared_ptr<Call>& call);
// tokens.cpp
std::shared_ptr<Exchange> post_tokenize(const std::shared_ptr<Call>& call);
std::shared_ptr<Exchange> post_detokenize(const std::shared_ptr<Call>& call);
// web.cpp
std::shared_ptr<Exchange> get_page(const std::shared_ptr<Call>& call);

}  // namespace glint::server
