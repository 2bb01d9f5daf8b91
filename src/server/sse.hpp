#pragma once
// Server-sent events and the small pieces of JSON that streams are made of.

#include <string>
#include <string_view>

namespace glint::server {

// "data: JSON\n\n"; json has no line breaks.
void append_data(std::string& out, std::string_view json);
// "event: NAME\ndata: JSON\n\n"
void append_event(std::string& out, std::string_view name, std::string_view json);
// ": TEXT\n\n": a comment, which clients skip. Keeps proxies and impatient clients from giving up.
void append_comment(std::string& out, std::string_view text);

// The text as a JSON string, quotes included.
std::string quoted(std::string_view text);

// PREFIX and 24 random letters and digits: "chatcmpl-…". Not a secret.
std::string random_id(std::string_view prefix);

}  // namespace glint::server
