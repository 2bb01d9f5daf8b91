#pragma once
// Reads the model's text as it comes and sorts it into reasoning, content and tool calls.
//
//   reasoning</think>content<tool_call>NAME<arg_key>K</arg_key><arg_value>V</arg_value>…</tool_call>…
//
// The opening <think> is in the prompt (text/chat.hpp), so output starts inside the reasoning when thinking is on. How
// the text is cut into pieces never changes the result. Held back are only what may become a tag, white space that a
// call may make vanish, a function name, a call in JSON, and an argument that is not a plain string.
//
// What the model gets wrong, and what happens:
// - <tool_call> while thinking: ends the reasoning.
// - <think> before any reasoning: dropped. Before any content: opens reasoning again. Elsewhere: text.
// - </think> in content: dropped. (With thinking off every think tag is plain content.)
// - No </think> at all, then EOS: thinking was skipped; see kSkippedThinking.
// - A name that is not in the tools: no call. The block stays, verbatim, in the text it stood in, so that the reader
//   sees what the model tried. Without tools any name is good.
// - No <arg_value> or no </arg_key>: the value starts without it.
// - No <arg_key> before the first key: the longest tool name that fits is the name, the rest is the key.
// - {"name": …, "arguments": {…}} or NAME {…} inside <tool_call>, the habit of other models: a call.
// - A key without a value: left out. A key given twice: written twice; JSON readers keep the last.
// - </arg_value> or </tool_call> in a value: part of it, unless what follows can only follow a value's end: <arg_key>,
//   </tool_call>, the next <tool_call>, the end of the output.
// - </arg_value> after the name, text between arguments: dropped.
// - Output ends inside a call: the call is closed; `complete` says whether its arguments are whole.
// - White space before a call: dropped if there is no other content since the last tag.
// - <|user|>, <|observation|> or <|endoftext|> as the very end: dropped.

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/json_value.hpp"
#include "text/tool_schema.hpp"

namespace glint {

struct OutputEvent {
  enum class Kind : std::uint8_t {
    kReasoning,        // text: more reasoning
    kContent,          // text: more content
    kSkippedThinking,  // only from finish: the model stopped without ever closing its thinking, so all of the reasoning
                       // sent so far, repeated in text, was the answer; a stream sends it once more as content
    kToolCallStart,    // text: the function's name
    kToolCallArguments,  // text: more of the arguments' JSON text; a call's pieces together are one object
    kToolCallEnd
  };
  Kind kind;
  std::string text;
  std::size_t tool_index = 0;  // counts the calls of this output
  bool complete = true;        // kToolCallEnd: false if the output ended before the arguments did
  bool operator==(const OutputEvent&) const = default;
};

struct OutputParserOptions {
  std::vector<JsonValue> tools;  // as in the request (tool_schema.hpp); empty: any name is good, types are guessed
  bool thinking_enabled = true;  // the prompt ended with <think>
  bool plain_content = false;    // what follows the reasoning is all content, tags too: JSON of a schema
  bool parse_tool_calls = true;  // false: calls are plain text (tool_choice "none")
};

// Why the model stopped: an end token or a stop string, or the token limit.
enum class OutputEnd : std::uint8_t { kStop, kLength };

class OutputParser {
 public:
  explicit OutputParser(const OutputParserOptions& options);

  // The next piece of output, of any length; UTF-8 may be split anywhere, and is then split in the events too.
  std::vector<OutputEvent> feed(std::string_view piece);
  // The output is over. Nothing may be fed after it.
  std::vector<OutputEvent> finish(OutputEnd end);

 private:
  enum class State : std::uint8_t { kReasoning, kContent, kName, kBetween, kKey, kAfterKey, kValue, kValueEnd };
  struct Scan;

  std::string_view pending() const { return std::string_view(buffer_).substr(head_); }
  Scan scan(unsigned tags) const;
  unsigned tag_here(unsigned tags, bool& wait) const;
  void run();
  bool step();
  bool step_reasoning();
  bool step_content();
  bool step_name();
  bool step_between();
  bool step_key();
  bool step_after_key();
  bool step_value();
  bool step_value_end();
  void finish_call(OutputEnd end);

  void emit(OutputEvent::Kind kind, std::string_view text);
  void emit_reasoning(std::string_view text);
  void emit_content(std::string_view text);
  void open_call();
  void reject_call();
  bool known(std::string_view name) const;
  bool take_json_call();
  void start_call(std::string_view name);
  void end_call(bool complete);
  void begin_value();
  void add_value(std::string_view text);
  void end_value();

  ToolSchemas tools_;
  bool thinking_;
  unsigned content_tags_;  // that mean something in content
  unsigned call_tag_;      // the tag that opens a call, 0 if calls are not parsed

  State state_;
  std::string buffer_;  // fed and not yet consumed: from head_ on
  std::size_t head_ = 0;
  bool final_ = false;
  std::vector<OutputEvent> events_;

  std::string first_reasoning_;  // a copy, until </think> or a call proves that it was reasoning
  bool thinking_proven_ = false;
  bool reasoning_blank_ = true;   // only white space since the reasoning began
  bool content_started_ = false;  // something but white space since the last tag
  std::string held_space_;        // white space that a call would make vanish
  State call_from_ = State::kContent;
  std::size_t calls_ = 0;  // calls started

  // The call in progress.
  std::string captured_;  // name, key, or the value of an argument that is not streamed
  std::string function_;
  std::string key_;
  JsonTypes types_ = kAnyType;
  bool has_arguments_ = false;
  std::string closer_;  // a closing tag in a value and the white space after it, while its meaning is open
  bool closes_call_ = false;
};

struct ParsedToolCall {
  std::string name;
  std::string arguments;  // JSON text of an object
  bool complete = true;
  bool operator==(const ParsedToolCall&) const = default;
};

struct ParsedOutput {
  std::string reasoning;
  std::string content;
  std::vector<ParsedToolCall> tool_calls;

  void add(const std::vector<OutputEvent>& events);
  bool operator==(const ParsedOutput&) const = default;
};

ParsedOutput parse_output(std::string_view text, const OutputParserOptions& options, OutputEnd end = OutputEnd::kStop);

}  // namespace glint
