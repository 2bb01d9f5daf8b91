#pragma once
// The web page's files. Their text is compiled in: cmake/embed_web.cmake makes the definition from src/server/web/.

#include <span>
#include <string_view>

namespace glint::server {

struct WebFile {
  std::string_view path;  // "/app.js"
  std::string_view content_type;
  std::string_view text;
};

std::span<const WebFile> web_files();

}  // namespace glint::server
