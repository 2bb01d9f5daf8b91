#include "server/web.hpp"

#include "server/endpoints.hpp"

namespace glint::server {

std::shared_ptr<Exchange> get_page(const std::shared_ptr<Call>& call) {
  for (const WebFile& file : web_files()) {
    if (file.path != call->request().path) continue;
    // Nothing from elsewhere is loaded, and no page of others may frame this one.
    call->send({.content_type = std::string(file.content_type),
                .headers = {{"Cache-Control", "no-cache"},
                            {"Content-Security-Policy",
                             "default-src 'self'; img-src data:; base-uri 'none'; form-action 'self'; frame-ancestors "
                             "'none'"},
                            {"X-Content-Type-Options", "nosniff"}},
                .body = std::string(file.text)});
    return nullptr;
  }
  throw ApiError({.status = 404, .message = "no such page", .code = "unknown_path"});
}

}  // namespace glint::server
