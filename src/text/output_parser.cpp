#include "text/output_parser.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <optional>
#include <utility>

#include "base/check.hpp"
#include "text/python_text.hpp"

namespace glint {

namespace {

using Kind = OutputEvent::Kind;

enum Tag : unsigned {
  kThinkOpen = 1,
  kThinkClose = 2,
  kCallOpen = 4,
  kCallClose = 8,
  kKeyOpen = 16,
  kKeyClose = 32,
  kValueOpen = 64,
  kValueClose = 128
};
// kTagText[i] is the text of the tag 1 << i. No tag contains a second '<': scan relies on it.
constexpr std::array<std::string_view, 8> kTagText = {"<think>",   "</think>",   "<tool_call>", "</tool_call>",
                                                      "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"};
constexpr std::array<std::string_view, 3> kEndMarkers = {"<|user|>", "<|observation|>", "<|endoftext|>"};

// OpenAI allows 64 characters; tools reached through MCP use longer ones. Beyond this it is no name.
constexpr std::size_t kMaxNameBytes = 256;
// … unless it has a brace: then it may be a call written as JSON, which is held until it ends.
constexpr std::size_t kMaxJsonCallBytes = 64 << 10;

std::size_t name_limit(std::string_view captured, std::string_view more) {
  const std::size_t seen = std::min(captured.size(), kMaxNameBytes);
  const bool brace = captured.substr(0, seen).find('{') != std::string_view::npos ||
                     more.substr(0, kMaxNameBytes - seen).find('{') != std::string_view::npos;
  return brace ? kMaxJsonCallBytes : kMaxNameBytes;
}

struct JsonCall {
  std::string name;
  JsonValue arguments;
};

// {"name": NAME, "arguments": {…} or its JSON text} or NAME {…}.
std::optional<JsonCall> json_call(std::string_view text) {
  const std::size_t brace = text.find('{');
  if (brace == std::string_view::npos) return std::nullopt;
  std::optional<JsonValue> json = try_parse_json_value(text.substr(brace));
  if (!json) return std::nullopt;
  const std::string_view before = python_strip(text.substr(0, brace));
  if (!before.empty()) return JsonCall{std::string(before), std::move(*json)};
  const JsonValue* name = json->find("name");
  const JsonValue* arguments = json->find("arguments");
  if (!name || !name->is(JsonValue::Kind::kString) || name->text.empty()) return std::nullopt;
  if (!arguments) return JsonCall{name->text, JsonValue::make_object()};
  std::optional<JsonValue> parsed = *arguments;
  if (arguments->is(JsonValue::Kind::kString)) parsed = try_parse_json_value(arguments->text);
  if (!parsed || !parsed->is(JsonValue::Kind::kObject)) return std::nullopt;
  return JsonCall{name->text, std::move(*parsed)};
}

std::string_view tag_text(unsigned tag) { return kTagText[static_cast<std::size_t>(std::countr_zero(tag))]; }

bool is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }
std::size_t leading_space(std::string_view s) {
  return static_cast<std::size_t>(std::find_if_not(s.begin(), s.end(), is_space) - s.begin());
}

bool is_end_marker(std::string_view s) {
  return std::find(kEndMarkers.begin(), kEndMarkers.end(), s) != kEndMarkers.end();
}
// Whether s may still grow into an end marker, or is one that nothing follows yet.
bool may_be_end_marker(std::string_view s) {
  return std::any_of(kEndMarkers.begin(), kEndMarkers.end(), [&](std::string_view m) { return m.starts_with(s); });
}

}  // namespace

// text_bytes of plain text, then `tag` (0: none yet). Bytes after text_bytes without a tag are the start of one.
struct OutputParser::Scan {
  std::size_t text_bytes;
  unsigned tag;
};

OutputParser::OutputParser(const OutputParserOptions& options)
    : tools_(options.tools),
      thinking_(options.thinking_enabled),
      content_tags_(thinking_ && !options.plain_content ? kThinkClose | kThinkOpen : 0u),
      call_tag_(options.parse_tool_calls ? kCallOpen : 0u),
      state_(thinking_ ? State::kReasoning : State::kContent) {}

std::vector<OutputEvent> OutputParser::feed(std::string_view piece) {
  CHECK(!final_, "feed after finish");
  buffer_.append(piece);
  run();
  return std::exchange(events_, {});
}

std::vector<OutputEvent> OutputParser::finish(OutputEnd end) {
  CHECK(!final_, "finish twice");
  final_ = true;
  run();
  if (state_ == State::kName && !known(python_strip(captured_)) && !take_json_call()) reject_call();
  if (state_ == State::kReasoning) {
    const bool blank = python_strip(first_reasoning_).empty();
    if (end == OutputEnd::kStop && !thinking_proven_ && !blank) emit(Kind::kSkippedThinking, first_reasoning_);
  } else if (state_ == State::kContent) {
    if (calls_ == 0) emit(Kind::kContent, held_space_);
  } else {
    finish_call(end);
  }
  return std::exchange(events_, {});
}

// The output ended inside a call. What is certain stays: a name that is known, arguments whose value has begun.
void OutputParser::finish_call(OutputEnd end) {
  const bool arguments_whole = state_ == State::kName || state_ == State::kBetween;
  if (state_ == State::kName) start_call(python_strip(captured_));
  if (state_ == State::kValue) end_value();
  end_call(arguments_whole && end == OutputEnd::kStop);
}

void OutputParser::run() {
  while (step()) {}
  buffer_.erase(0, head_);
  head_ = 0;
}

// Consumes what can be understood; false if more text is needed.
bool OutputParser::step() {
  switch (state_) {
    case State::kReasoning:
      return step_reasoning();
    case State::kContent:
      return step_content();
    case State::kName:
      return step_name();
    case State::kBetween:
      return step_between();
    case State::kKey:
      return step_key();
    case State::kAfterKey:
      return step_after_key();
    case State::kValue:
      return step_value();
    case State::kValueEnd:
      return step_value_end();
  }
  return false;
}

// The first of `tags` in the pending text. Once the output is over the start of a tag is text, but an end marker at the
// very end is neither.
OutputParser::Scan OutputParser::scan(unsigned tags) const {
  const std::string_view text = pending();
  for (std::size_t at = text.find('<'); at != std::string_view::npos; at = text.find('<', at + 1)) {
    const std::string_view rest = text.substr(at);
    bool held = final_ ? is_end_marker(rest) : may_be_end_marker(rest);
    for (unsigned left = tags; left != 0; left &= left - 1) {
      const unsigned tag = left & (~left + 1);
      if (rest.starts_with(tag_text(tag))) return {at, tag};
      held = held || (!final_ && tag_text(tag).starts_with(rest));
    }
    if (held) return {at, 0};
  }
  return {text.size(), 0};
}

// The one of `tags` that the pending text starts with, or 0. wait: more text may still make it one, or make it an end
// marker; once the output is over, the remains of a tag and an end marker count as the end (nothing pending).
unsigned OutputParser::tag_here(unsigned tags, bool& wait) const {
  const std::string_view text = pending();
  wait = text.empty() || (final_ ? is_end_marker(text) : may_be_end_marker(text));
  for (unsigned left = tags; left != 0; left &= left - 1) {
    const unsigned tag = left & (~left + 1);
    if (text.starts_with(tag_text(tag))) return tag;
    wait = wait || tag_text(tag).starts_with(text);
  }
  return 0;
}

bool OutputParser::step_reasoning() {
  const Scan found = scan(kThinkClose | kThinkOpen | call_tag_);
  emit_reasoning(pending().substr(0, found.text_bytes));
  head_ += found.text_bytes;
  if (found.tag == 0) return false;
  head_ += tag_text(found.tag).size();
  if (found.tag == kThinkClose) {
    thinking_proven_ = true;
    state_ = State::kContent;
    content_started_ = false;
  } else if (found.tag == kCallOpen) {
    open_call();
  } else if (reasoning_blank_) {
    thinking_proven_ = true;
  } else {
    emit_reasoning(tag_text(kThinkOpen));
  }
  return true;
}

bool OutputParser::step_content() {
  const Scan found = scan(content_tags_ | call_tag_);
  emit_content(pending().substr(0, found.text_bytes));
  head_ += found.text_bytes;
  if (found.tag == 0) return false;
  head_ += tag_text(found.tag).size();
  if (found.tag == kCallOpen) {
    open_call();
  } else if (found.tag == kThinkOpen) {
    if (content_started_) {
      emit_content(tag_text(kThinkOpen));
    } else {
      held_space_.clear();
      reasoning_blank_ = true;
      state_ = State::kReasoning;
    }
  }
  return true;
}

bool OutputParser::step_name() {
  const unsigned stray = kKeyClose | kValueClose | (thinking_ ? kThinkClose : 0u);
  const Scan found = scan(kKeyOpen | kCallClose | kCallOpen | stray);
  const std::string_view text = pending().substr(0, found.text_bytes);
  if (captured_.size() + text.size() > name_limit(captured_, text)) return reject_call(), true;
  captured_.append(text);
  head_ += found.text_bytes;
  if (found.tag == 0) return false;

  const std::string_view name = python_strip(captured_);
  if (found.tag == kCallOpen && name.empty()) {  // opened twice
    head_ += tag_text(kCallOpen).size();
    captured_.clear();
    return true;
  }
  if (found.tag == kKeyClose && !known(name)) {
    const std::string function(tools_.longest_prefix(name));
    const std::string key(python_strip(name.substr(function.size())));
    if (function.empty() || key.empty()) return reject_call(), true;
    start_call(function);
    key_ = key;
    state_ = State::kAfterKey;
    head_ += tag_text(kKeyClose).size();
    return true;
  }
  if (found.tag == kCallClose && take_json_call()) return head_ += tag_text(kCallClose).size(), true;
  if (found.tag == kThinkClose || found.tag == kKeyClose || !known(name)) return reject_call(), true;
  start_call(std::string(name));
  state_ = State::kBetween;
  if (found.tag == kValueClose) head_ += tag_text(kValueClose).size();
  return true;  // the other tags mean here what they mean between arguments
}

bool OutputParser::step_between() {
  const Scan found = scan(kKeyOpen | kCallClose | kCallOpen);
  head_ += found.text_bytes;
  if (found.tag == 0) return false;
  head_ += tag_text(found.tag).size();
  captured_.clear();
  if (found.tag == kKeyOpen) {
    state_ = State::kKey;
  } else {
    end_call(true);
    if (found.tag == kCallOpen) open_call();
  }
  return true;
}

bool OutputParser::step_key() {
  const Scan found = scan(kKeyClose | kValueOpen | kKeyOpen | kCallClose);
  captured_.append(pending().substr(0, found.text_bytes));
  head_ += found.text_bytes;
  if (found.tag == 0) return false;
  if (found.tag == kCallClose) return state_ = State::kBetween, true;  // a key without a value
  key_ = python_strip(captured_);
  captured_.clear();
  if (found.tag == kKeyClose || found.tag == kKeyOpen) head_ += tag_text(found.tag).size();
  if (found.tag != kKeyOpen) state_ = State::kAfterKey;
  return true;
}

bool OutputParser::step_after_key() {
  head_ += leading_space(pending());
  bool wait = false;
  const unsigned tag = tag_here(kValueOpen | kKeyOpen | kCallClose, wait);
  if (wait && tag == 0) return false;
  if (tag == kKeyOpen || tag == kCallClose) return state_ = State::kBetween, true;  // a key without a value
  if (tag == kValueOpen) head_ += tag_text(kValueOpen).size();
  begin_value();
  state_ = State::kValue;
  return true;
}

bool OutputParser::step_value() {
  const Scan found = scan(kValueClose | kCallClose);
  add_value(pending().substr(0, found.text_bytes));
  head_ += found.text_bytes;
  if (found.tag == 0) return false;
  head_ += tag_text(found.tag).size();
  closer_ = tag_text(found.tag);
  closes_call_ = found.tag == kCallClose;
  state_ = State::kValueEnd;
  return true;
}

// After a closing tag in a value: only what follows tells whether it closed the value or belongs to it (code that talks
// about this very format).
bool OutputParser::step_value_end() {
  const std::size_t space = leading_space(pending());
  closer_.append(pending().substr(0, space));
  head_ += space;
  bool wait = false;
  const unsigned tag = tag_here(closes_call_ ? kCallOpen : kKeyOpen | kCallClose | kCallOpen, wait);
  if (tag == 0 && wait && !final_) return false;
  if (tag == 0 && !wait) {
    add_value(closer_);
    state_ = State::kValue;
    return true;
  }
  if (tag == 0) head_ = buffer_.size();  // the end, perhaps with the remains of a tag
  end_value();
  state_ = State::kBetween;
  if (closes_call_) end_call(true);
  return true;
}

// Adjacent pieces of the same kind are one event.
void OutputParser::emit(Kind kind, std::string_view text) {
  if (text.empty() && kind != Kind::kToolCallEnd) return;
  const std::size_t index = calls_ == 0 ? 0 : calls_ - 1;
  const bool is_call = kind >= Kind::kToolCallStart;
  const bool joins = kind == Kind::kReasoning || kind == Kind::kContent || kind == Kind::kToolCallArguments;
  if (joins && !events_.empty() && events_.back().kind == kind) {
    events_.back().text.append(text);
  } else {
    events_.push_back({.kind = kind, .text = std::string(text), .tool_index = is_call ? index : 0});
  }
}

void OutputParser::emit_reasoning(std::string_view text) {
  reasoning_blank_ = reasoning_blank_ && leading_space(text) == text.size();
  if (!thinking_proven_) first_reasoning_.append(text);
  emit(Kind::kReasoning, text);
}

void OutputParser::emit_content(std::string_view text) {
  if (!content_started_) {
    const std::size_t space = leading_space(text);
    held_space_.append(text.substr(0, space));
    text.remove_prefix(space);
    if (text.empty()) return;
    content_started_ = true;
    emit(Kind::kContent, std::exchange(held_space_, {}));
  }
  emit(Kind::kContent, text);
}

void OutputParser::open_call() {
  call_from_ = state_ == State::kReasoning ? State::kReasoning : State::kContent;
  captured_.clear();
  state_ = State::kName;
}

// It was no call. Its text goes back to where it stood; the tag that revealed it is still pending.
void OutputParser::reject_call() {
  state_ = call_from_;
  const std::string text = std::string(tag_text(kCallOpen)) + std::exchange(captured_, {});
  state_ == State::kReasoning ? emit_reasoning(text) : emit_content(text);
}

bool OutputParser::known(std::string_view name) const {
  return tools_.empty() ? !name.empty() && name.find('{') == std::string_view::npos : tools_.has(name);
}

// If the text after <tool_call> is a whole call in JSON, reports it.
bool OutputParser::take_json_call() {
  const std::optional<JsonCall> call = json_call(python_strip(captured_));
  if (!call || !known(call->name)) return false;
  start_call(call->name);
  has_arguments_ = !call->arguments.items.empty();
  if (has_arguments_) {
    std::string text = dump_json(call->arguments, NumberStyle::kVerbatim);
    text.pop_back();  // end_call writes the brace
    emit(Kind::kToolCallArguments, text);
  }
  end_call(true);
  return true;
}

void OutputParser::start_call(std::string_view name) {
  thinking_proven_ = true;
  first_reasoning_.clear();
  held_space_.clear();
  function_ = name;
  has_arguments_ = false;
  ++calls_;
  emit(Kind::kToolCallStart, name);
}

void OutputParser::end_call(bool complete) {
  emit(Kind::kToolCallArguments, has_arguments_ ? "}" : "{}");
  emit(Kind::kToolCallEnd, "");
  events_.back().complete = complete;
  state_ = State::kContent;
  content_started_ = false;
}

void OutputParser::begin_value() {
  std::string text = has_arguments_ ? ", \"" : "{\"";
  has_arguments_ = true;
  append_json_escaped(key_, text);
  text += "\": ";
  types_ = tools_.parameter_types(function_, key_);
  if (types_ == kTypeString) text += '"';
  emit(Kind::kToolCallArguments, text);
  captured_.clear();
}

void OutputParser::add_value(std::string_view text) {
  if (types_ != kTypeString) {
    captured_.append(text);
    return;
  }
  std::string escaped;
  append_json_escaped(text, escaped);
  emit(Kind::kToolCallArguments, escaped);
}

void OutputParser::end_value() {
  const bool streamed = types_ == kTypeString;
  emit(Kind::kToolCallArguments,
       streamed ? "\"" : dump_json(typed_argument(captured_, types_), NumberStyle::kVerbatim));
  captured_.clear();
}

void ParsedOutput::add(const std::vector<OutputEvent>& events) {
  for (const OutputEvent& e : events) {
    switch (e.kind) {
      case Kind::kReasoning:
        reasoning += e.text;
        break;
      case Kind::kContent:
        content += e.text;
        break;
      case Kind::kSkippedThinking:
        content = std::exchange(reasoning, {});
        break;
      case Kind::kToolCallStart:
        tool_calls.push_back({.name = e.text});
        break;
      case Kind::kToolCallArguments:
        tool_calls.back().arguments += e.text;
        break;
      case Kind::kToolCallEnd:
        tool_calls.back().complete = e.complete;
        break;
    }
  }
}

ParsedOutput parse_output(std::string_view text, const OutputParserOptions& options, OutputEnd end) {
  OutputParser parser(options);
  ParsedOutput out;
  out.add(parser.feed(text));
  out.add(parser.finish(end));
  return out;
}

}  // namespace glint
