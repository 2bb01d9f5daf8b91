#include "text/output_parser.hpp"

#include <gtest/gtest.h>

#include <random>

#include "base/error.hpp"
#include "text/chat.hpp"

namespace glint {
namespace {

const char* const kTools = R"([
  {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {
    "city": {"type": "string"}, "days": {"type": "integer"}, "metric": {"type": "boolean"},
    "tags": {"type": "array", "items": {"type": "string"}}, "opts": {"type": "object"},
    "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
    "list_or_text": {"type": ["string", "array"]}, "count_or_text": {"oneOf": [{"type": "integer"}, {"type": "string"}]},
    "unit": {"enum": ["c", "f"]}, "mode": {"const": "5"}, "any": {},
    "ref": {"$ref": "#/$defs/Name"}, "all": {"allOf": [{"$ref": "#/$defs/Name"}, {"minLength": 1}]},
    "loop": {"$ref": "#/properties/loop"}, "maybe": {"type": "string", "nullable": true}},
    "$defs": {"Name": {"type": "string"}}}}},
  {"type": "function", "function": {"name": "now"}},
  {"name": "now_utc", "input_schema": {"properties": {"zone": {"type": "string"}}}}])";

OutputParserOptions with_tools(bool thinking = true) {
  return {.tools = parse_json_value(kTools, "tools").items, .thinking_enabled = thinking};
}

ParsedOutput fed_in_pieces(std::string_view text, const OutputParserOptions& options, OutputEnd end, auto&& next_size) {
  OutputParser parser(options);
  ParsedOutput out;
  while (!text.empty()) {
    const std::size_t n = std::min(text.size(), static_cast<std::size_t>(next_size()));
    out.add(parser.feed(text.substr(0, n)));
    text.remove_prefix(n);
  }
  out.add(parser.finish(end));
  return out;
}

// Parses whole and byte by byte, and demands the same of both; arguments must be valid JSON objects.
ParsedOutput parse(std::string_view text, const OutputParserOptions& options = with_tools(),
                   OutputEnd end = OutputEnd::kStop) {
  const ParsedOutput whole = parse_output(text, options, end);
  EXPECT_EQ(whole, fed_in_pieces(text, options, end, [] { return 1; })) << text;
  for (const ParsedToolCall& call : whole.tool_calls) {
    const auto arguments = try_parse_json_value(call.arguments);
    EXPECT_TRUE(arguments && arguments->is(JsonValue::Kind::kObject)) << call.arguments;
  }
  return whole;
}

void expect_output(const ParsedOutput& out, std::string_view reasoning, std::string_view content) {
  EXPECT_EQ(out.reasoning, reasoning);
  EXPECT_EQ(out.content, content);
  EXPECT_TRUE(out.tool_calls.empty());
}

void expect_call(const ParsedOutput& out, std::string_view name, std::string_view arguments, bool complete = true) {
  ASSERT_EQ(out.tool_calls.size(), 1u);
  EXPECT_EQ(out.tool_calls[0].name, name);
  EXPECT_EQ(out.tool_calls[0].arguments, arguments);
  EXPECT_EQ(out.tool_calls[0].complete, complete);
}

std::string weather(std::string_view key, std::string_view value) {
  return "</think><tool_call>get_weather<arg_key>" + std::string(key) + "</arg_key><arg_value>" + std::string(value) +
         "</arg_value></tool_call>";
}

// The JSON that a value becomes for a parameter of get_weather.
std::string typed(std::string_view key, std::string_view value) {
  const ParsedOutput out = parse(weather(key, value));
  if (out.tool_calls.size() != 1) return "no call";
  const auto arguments = try_parse_json_value(out.tool_calls[0].arguments);
  return arguments && arguments->find(key) ? dump_json(*arguments->find(key), NumberStyle::kVerbatim) : "missing";
}

TEST(OutputParser, ReasoningThenContent) {
  expect_output(parse("hm\n</think>\n\nHi <b>you</b>"), "hm\n", "\n\nHi <b>you</b>");
  expect_output(parse("</think>Hi"), "", "Hi");
  expect_output(parse(""), "", "");
}

TEST(OutputParser, LiteralThinkOpener) {
  expect_output(parse("<think>hm</think>Hi"), "hm", "Hi");
  expect_output(parse("\n<think>hm</think>Hi"), "\nhm", "Hi");
  expect_output(parse("about <think> tags</think>Hi"), "about <think> tags", "Hi");
  expect_output(parse("a</think>\n<think>b</think>Hi <think>"), "ab", "Hi <think>");
}

TEST(OutputParser, StrayThinkCloserInContentIsDropped) {
  expect_output(parse("a</think>b</think>c</think>"), "a", "bc");
}

TEST(OutputParser, ThinkingOffMeansEverythingIsContent) {
  expect_output(parse("Hi <think>x</think> there", with_tools(false)), "", "Hi <think>x</think> there");
  expect_output(parse(" \n", with_tools(false)), "", " \n");
  const ParsedOutput out = parse("Hi<tool_call>now</tool_call>", with_tools(false));
  EXPECT_EQ(out.content, "Hi");
  expect_call(out, "now", "{}");
}

TEST(OutputParser, SkippedThinkingIsContent) {
  expect_output(parse("The answer is 4."), "", "The answer is 4.");
  expect_output(parse("The answer is 4.<|user|>"), "", "The answer is 4.");
  expect_output(parse("Let me thi", with_tools(), OutputEnd::kLength), "Let me thi", "");
  expect_output(parse("<think>no end"), "no end", "");  // it did think
  expect_output(parse("a</think>"), "a", "");
  OutputParser parser(with_tools());
  parser.feed("four");
  const auto events = parser.finish(OutputEnd::kStop);
  ASSERT_EQ(events.size(), 1u);
  EXPECT_EQ(events[0].kind, OutputEvent::Kind::kSkippedThinking);
  EXPECT_EQ(events[0].text, "four");
}

TEST(OutputParser, ToolCallInsideReasoningEndsIt) {
  const ParsedOutput out = parse("hm<tool_call>now</tool_call>");
  EXPECT_EQ(out.reasoning, "hm");
  EXPECT_EQ(out.content, "");
  expect_call(out, "now", "{}");
}

TEST(OutputParser, ZeroArguments) {
  expect_call(parse("</think><tool_call>now</tool_call>"), "now", "{}");
  expect_call(parse("</think><tool_call>\n now \n</tool_call>"), "now", "{}");
}

TEST(OutputParser, NameIsStrippedAndChecked) {
  expect_call(parse("</think><tool_call> get_weather\n<arg_key> city </arg_key><arg_value>x</arg_value></tool_call>"),
              "get_weather", R"({"city": "x"})");
  const std::string block = "<tool_call>nope<arg_key>a</arg_key><arg_value>1</arg_value></tool_call>";
  expect_output(parse("r</think>c " + block), "r", "c " + block);
  expect_output(parse("r " + block + "</think>c"), "r " + block, "c");  // mentioned while thinking
  expect_output(parse("r</think><tool_call></tool_call>"), "r", "<tool_call></tool_call>");
  OutputParserOptions no_tools;
  expect_call(parse("</think>" + block, no_tools), "nope", R"({"a": 1})");
}

TEST(OutputParser, ToolCallMentionedInReasoning) {
  expect_output(parse("use <tool_call> here</think>ok"), "use <tool_call> here", "ok");
  const std::string essay(1000, 'x');
  expect_output(parse("use <tool_call>" + essay + "</think>ok"), "use <tool_call>" + essay, "ok");
}

TEST(OutputParser, UnknownCallAmongKnownOnes) {
  const ParsedOutput out = parse("</think><tool_call>nope</tool_call><tool_call>now</tool_call>");
  EXPECT_EQ(out.content, "<tool_call>nope</tool_call>");
  expect_call(out, "now", "{}");
}

TEST(OutputParser, WhiteSpaceBetweenTags) {
  const ParsedOutput out = parse(
      "r</think>\n<tool_call>get_weather\n<arg_key>city</arg_key>\n <arg_value> a </arg_value>\n"
      "<arg_key>days</arg_key>\n<arg_value> 2\n</arg_value>\n</tool_call>\n");
  EXPECT_EQ(out.content, "");
  expect_call(out, "get_weather", R"({"city": " a ", "days": 2})");
}

TEST(OutputParser, MissingValueOpener) {
  expect_call(parse("</think><tool_call>get_weather<arg_key>city</arg_key>how many</arg_value></tool_call>"),
              "get_weather", R"({"city": "how many"})");
  expect_call(parse("</think><tool_call>get_weather<arg_key>city</arg_key>\n<b>x</arg_value>"
                    "<arg_key>days</arg_key><arg_value>2</arg_value></tool_call>"),
              "get_weather", R"({"city": "<b>x", "days": 2})");
  expect_call(parse("</think><tool_call>get_weather<arg_key>city</arg_key></arg_value></tool_call>"), "get_weather",
              R"({"city": ""})");
}

TEST(OutputParser, MissingKeyTags) {
  expect_call(parse("</think><tool_call>get_weather<arg_key>city<arg_value>x</arg_value></tool_call>"), "get_weather",
              R"({"city": "x"})");
  expect_call(parse("</think><tool_call>now_utczone</arg_key><arg_value>x</arg_value></tool_call>"), "now_utc",
              R"({"zone": "x"})");
  expect_call(parse("</think><tool_call>now_utc zone</arg_key>x</arg_value></tool_call>"), "now_utc",
              R"({"zone": "x"})");
}

TEST(OutputParser, KeyWithoutValueIsLeftOut) {
  expect_call(parse("</think><tool_call>now<arg_key>a</arg_key></tool_call>"), "now", "{}");
  expect_call(parse("</think><tool_call>now<arg_key>a</tool_call>"), "now", "{}");
  expect_call(
      parse("</think><tool_call>now<arg_key>a</arg_key><arg_key>b</arg_key><arg_value>1</arg_value></tool_call>"),
      "now", R"({"b": 1})");
}

TEST(OutputParser, CallsWrittenAsJson) {
  expect_call(parse(R"(</think><tool_call>{"name": "get_weather", "arguments": {"days": 1.50}}</tool_call>)"),
              "get_weather", R"({"days": 1.50})");
  expect_call(parse(R"(</think><tool_call>
{"name": "now", "arguments": "{}"}</tool_call>)"),
              "now", "{}");
  expect_call(parse(R"(</think><tool_call>now {"a": [1]}</tool_call>)"), "now", R"({"a": [1]})");
  expect_call(parse(R"(</think><tool_call>{"name": "now"})"), "now", "{}");
  expect_call(parse(R"(</think><tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>)", {}), "f", R"({"a": 1})");
  const std::string long_text(5000, 'x');
  expect_call(
      parse("</think><tool_call>{\"name\": \"now\", \"arguments\": {\"a\": \"" + long_text + "\"}}</tool_call>"), "now",
      "{\"a\": \"" + long_text + "\"}");
  for (const char* bad : {R"(<tool_call>{"name": "nope", "arguments": {}}</tool_call>)",
                          R"(<tool_call>{"name": "now", "arguments": [1]}</tool_call>)",
                          R"(<tool_call>{"arguments": {}}</tool_call>)", R"(<tool_call>{"name": "now"</tool_call>)"}) {
    expect_output(parse(std::string("</think>") + bad), "", bad);
  }
  const std::string endless = "<tool_call>{" + std::string(70000, 'x');
  expect_output(parse("</think>" + endless + "<b>"), "", endless + "<b>");
}

TEST(OutputParser, StrayValueCloserAfterTheName) {
  expect_call(parse("</think><tool_call>now</arg_value></tool_call>"), "now", "{}");
  expect_call(parse("</think><tool_call>now</arg_value>"), "now", "{}");
}

TEST(OutputParser, MissingClosingTagsAtTheEnd) {
  const std::string open = "</think><tool_call>get_weather<arg_key>city</arg_key><arg_value>Rome";
  expect_call(parse(open + "</arg_value>"), "get_weather", R"({"city": "Rome"})");
  expect_call(parse(open + "</arg_value><|observation|>"), "get_weather", R"({"city": "Rome"})");
  expect_call(parse(open + "</tool_call>"), "get_weather", R"({"city": "Rome"})");
  expect_call(parse(open + "</arg_value></tool_c"), "get_weather", R"({"city": "Rome"})");
  expect_call(parse(open + "</arg_value>", with_tools(), OutputEnd::kLength), "get_weather", R"({"city": "Rome"})",
              false);
  expect_call(parse(open), "get_weather", R"({"city": "Rome"})", false);
  expect_call(parse(open + "</arg_value><arg_key>da"), "get_weather", R"({"city": "Rome"})", false);
  expect_call(parse(open + "</arg_value><arg_key>days</arg_key>"), "get_weather", R"({"city": "Rome"})", false);
  expect_call(parse("</think><tool_call>now"), "now", "{}");
  expect_output(parse("r</think><tool_call>no"), "r", "<tool_call>no");
  const ParsedOutput two = parse(open + "</arg_value><tool_call>now</tool_call>");
  ASSERT_EQ(two.tool_calls.size(), 2u);
  EXPECT_EQ(two.tool_calls[1].name, "now");
}

TEST(OutputParser, TagsInsideValuesAreData) {
  EXPECT_EQ(typed("city", "a</arg_value>b"), R"("a</arg_value>b")");
  EXPECT_EQ(typed("city", "x</tool_call> y"), R"("x</tool_call> y")");
  EXPECT_EQ(typed("city", "<tool_call>now</tool_call> <arg_key>k</arg_key>"),
            R"("<tool_call>now</tool_call> <arg_key>k</arg_key>")");
  EXPECT_EQ(typed("city", "<think></think><|user|>"), R"("<think></think><|user|>")");
}

TEST(OutputParser, SeveralCallsAndText) {
  const ParsedOutput out = parse(
      "r</think>a\n<tool_call>now</tool_call>\n<tool_call>get_weather<arg_key>days</arg_key>"
      "<arg_value>1</arg_value></tool_call> b<|observation|>");
  EXPECT_EQ(out.content, "a\n b");
  ASSERT_EQ(out.tool_calls.size(), 2u);
  EXPECT_EQ(out.tool_calls[0], (ParsedToolCall{.name = "now", .arguments = "{}"}));
  EXPECT_EQ(out.tool_calls[1], (ParsedToolCall{.name = "get_weather", .arguments = R"({"days": 1})"}));
}

TEST(OutputParser, SeveralTagsInOneDelta) {
  OutputParser parser(with_tools());
  using K = OutputEvent::Kind;
  const auto events = parser.feed(
      "a</think><tool_call>now</tool_call><tool_call>get_weather<arg_key>city</arg_key>"
      "<arg_value>x");
  const std::vector<OutputEvent> expected = {
      {K::kReasoning, "a"},     {K::kToolCallStart, "now", 0},         {K::kToolCallArguments, "{}", 0},
      {K::kToolCallEnd, "", 0}, {K::kToolCallStart, "get_weather", 1}, {K::kToolCallArguments, R"({"city": "x)", 1}};
  EXPECT_EQ(events, expected);
}

TEST(OutputParser, StringsAreNeverTouched) {
  EXPECT_EQ(typed("city", "  spaced \n"), R"("  spaced \n")");
  EXPECT_EQ(typed("city", "5"), R"("5")");
  EXPECT_EQ(typed("city", "null"), R"("null")");
  EXPECT_EQ(typed("city", "\"quoted\""), R"("\"quoted\"")");
  EXPECT_EQ(typed("city", R"(["a", "b"])"), R"("[\"a\", \"b\"]")");
  EXPECT_EQ(typed("city", "Köln\\n\t\x01"), R"("Köln\\n\t\u0001")");
  EXPECT_EQ(typed("city", ""), R"("")");
}

TEST(OutputParser, OptionalStringsAndUnions) {
  EXPECT_EQ(typed("note", "5"), R"("5")");
  EXPECT_EQ(typed("note", " true "), R"(" true ")");
  EXPECT_EQ(typed("note", R"(["a"])"), R"("[\"a\"]")");
  EXPECT_EQ(typed("note", "null"), "null");
  EXPECT_EQ(typed("note", "None"), R"("None")");
  EXPECT_EQ(typed("maybe", "{\"a\": 1}"), R"("{\"a\": 1}")");
  EXPECT_EQ(typed("maybe", "null"), "null");
  EXPECT_EQ(typed("list_or_text", R"(["a", 1])"), R"(["a", 1])");
  EXPECT_EQ(typed("list_or_text", "['a']"), R"(["a"])");
  EXPECT_EQ(typed("list_or_text", "[a"), R"("[a")");
  EXPECT_EQ(typed("count_or_text", "7"), "7");
  EXPECT_EQ(typed("count_or_text", "7.5"), R"("7.5")");
  EXPECT_EQ(typed("count_or_text", "7 days"), R"("7 days")");
}

TEST(OutputParser, SchemaKeywords) {
  for (const char* key : {"unit", "mode", "ref", "all"}) EXPECT_EQ(typed(key, "5"), R"("5")") << key;
  EXPECT_EQ(typed("any", "5"), "5");
  EXPECT_EQ(typed("loop", "5"), "5");     // refers to itself: says nothing
  EXPECT_EQ(typed("unheard", "5"), "5");  // not in the schema
}

TEST(OutputParser, JsonThenPythonThenText) {
  EXPECT_EQ(typed("days", "12345678901234567890123"), "12345678901234567890123");
  EXPECT_EQ(typed("days", "1.50"), "1.50");
  EXPECT_EQ(typed("days", "two"), R"("two")");
  EXPECT_EQ(typed("days", ""), R"("")");
  EXPECT_EQ(typed("metric", "true"), "true");
  EXPECT_EQ(typed("metric", "True"), "true");
  EXPECT_EQ(typed("metric", "None"), "null");
  EXPECT_EQ(typed("tags", R"( ["a", "b"] )"), R"(["a", "b"])");
  EXPECT_EQ(typed("tags", "('a', 'b')"), R"(["a", "b"])");
  EXPECT_EQ(typed("tags", "a, b"), R"("a, b")");
  EXPECT_EQ(typed("opts", R"({"b": 1, "a": {"ü": null}})"), R"({"b": 1, "a": {"ü": null}})");
  EXPECT_EQ(typed("opts", "{'a': True}"), R"({"a": true})");
  EXPECT_EQ(typed("opts", "{\"a\": 1"), R"("{\"a\": 1")");
  EXPECT_EQ(typed("any", "'x'"), R"("x")");
  EXPECT_EQ(typed("any", "NaN"), R"("NaN")");
  EXPECT_EQ(typed("any", "1, 2"), R"("1, 2")");
}

TEST(OutputParser, ToolCallsCanBeLeftAlone) {
  OutputParserOptions options = with_tools();
  options.parse_tool_calls = false;
  expect_output(parse("r</think><tool_call>now</tool_call>", options), "r", "<tool_call>now</tool_call>");
}

TEST(OutputParser, StreamsPromptlyAndNeverLeaksTags) {
  OutputParser parser(with_tools());
  using K = OutputEvent::Kind;
  const auto is = [](const std::vector<OutputEvent>& events, K kind, std::string_view text) {
    return events.size() == 1 && events[0].kind == kind && events[0].text == text;
  };
  EXPECT_TRUE(is(parser.feed("a<"), K::kReasoning, "a"));
  EXPECT_TRUE(parser.feed("/thi").empty());
  EXPECT_TRUE(is(parser.feed("s"), K::kReasoning, "</this"));
  EXPECT_TRUE(parser.feed("</think>").empty());
  EXPECT_TRUE(is(parser.feed("1 < 2"), K::kContent, "1 < 2"));
  EXPECT_TRUE(is(parser.feed("<b"), K::kContent, "<b"));
  EXPECT_TRUE(is(parser.feed("><tool_"), K::kContent, ">"));
  EXPECT_TRUE(parser.feed("call>get_weather").empty());
  EXPECT_TRUE(is(parser.feed("<arg_key>"), K::kToolCallStart, "get_weather"));
  EXPECT_TRUE(parser.feed("city</arg_key>").empty());
  EXPECT_TRUE(is(parser.feed("<arg_value>"), K::kToolCallArguments, "{\"city\": \""));
  EXPECT_TRUE(is(parser.feed("a\"<"), K::kToolCallArguments, "a\\\""));
  EXPECT_TRUE(is(parser.feed("b</arg_value>"), K::kToolCallArguments, "<b"));
  EXPECT_TRUE(is(parser.feed("<arg_key>days</arg_key><arg_value>1"), K::kToolCallArguments, "\", \"days\": "));
  EXPECT_TRUE(parser.feed("2</arg_value>").empty());
  const auto end = parser.feed("</tool_call>");
  ASSERT_EQ(end.size(), 2u);
  EXPECT_EQ(end[0].text, "12}");
  EXPECT_EQ(end[1].kind, K::kToolCallEnd);
  EXPECT_TRUE(end[1].complete);
  EXPECT_TRUE(parser.finish(OutputEnd::kStop).empty());
}

TEST(OutputParser, SplittingNeverMatters) {
  const std::vector<std::string> parts = {"<think>",
                                          "</think>",
                                          "<tool_call>",
                                          "</tool_call>",
                                          "<arg_key>",
                                          "</arg_key>",
                                          "<arg_value>",
                                          "</arg_value>",
                                          "<|user|>",
                                          "<|observation|>",
                                          "<|endoftext|>",
                                          "now",
                                          "get_weather",
                                          "city",
                                          "days",
                                          "note",
                                          "tags",
                                          "any",
                                          " ",
                                          "\n",
                                          "x",
                                          "<",
                                          "</",
                                          "<tool",
                                          "</arg_",
                                          "<|",
                                          "12",
                                          "[1, 'a']",
                                          "{\"a\": 1}",
                                          "null",
                                          "\"",
                                          "\\",
                                          "ü",
                                          "nope"};
  std::mt19937 rng(7);
  const auto below = [&](std::size_t n) { return std::uniform_int_distribution<std::size_t>(0, n - 1)(rng); };
  for (int round = 0; round < 20000; ++round) {
    std::string text;
    for (std::size_t i = below(24); i > 0; --i) text += parts[below(parts.size())];
    OutputParserOptions options = with_tools(below(4) != 0);
    if (below(4) == 0) options.tools.clear();
    const OutputEnd end = below(2) ? OutputEnd::kStop : OutputEnd::kLength;
    const ParsedOutput whole = parse_output(text, options, end);
    ASSERT_EQ(whole, fed_in_pieces(text, options, end, [] { return 1; })) << text;
    ASSERT_EQ(whole, fed_in_pieces(text, options, end, [&] { return 1 + below(9); })) << text;
    for (const ParsedToolCall& call : whole.tool_calls) {
      ASSERT_TRUE(try_parse_json_value(call.arguments)) << text << "\n" << call.arguments;
    }
  }
}

// What the template prints for an assistant's turn is what the model is trained to write, so it must read back.
TEST(OutputParser, ReadsBackWhatTheTemplatePrints) {
  using Parameter = std::pair<const char*, std::vector<const char*>>;  // name, values as JSON
  const std::vector<Parameter> parameters = {
      {"city",
       {R"("")", R"("  Köln\n")", R"("5")", R"("[1, \"a\"]")", R"("null")", R"("<b>x</b> < y </arg_value> z")"}},
      {"days", {"0", "-7", "12345678901234567890123"}},
      {"metric", {"true", "false", "null"}},
      {"tags", {"[]", R"(["a", "it's"])"}},
      {"opts", {"{}", R"({"b": 1.5, "a": [null, {"ü": true}]})"}},
      {"note", {"null", R"("12")", R"("text")"}},
      {"list_or_text", {R"(["a"])", R"("a")"}}};
  std::mt19937 rng(3);
  const auto below = [&](std::size_t n) { return std::uniform_int_distribution<std::size_t>(0, n - 1)(rng); };
  const std::vector<std::string> words = {"so ", "a < b", "<tool", "</thin", "\n\n", "ü", "ok"};
  for (int round = 0; round < 2000; ++round) {
    ChatMessage turn{.role = "assistant", .content = "say", .reasoning_content = "think"};
    for (std::size_t i = below(5); i > 0; --i) *turn.reasoning_content += words[below(words.size())];
    for (std::size_t i = below(5); i > 0; --i) turn.content->text += words[below(words.size())];
    *turn.reasoning_content += '.';  // the template strips the ends
    turn.content->text += '.';
    for (std::size_t calls = below(4); calls > 0; --calls) {
      ChatToolCall call{.name = below(3) ? "get_weather" : "now"};
      for (const auto& [name, values] : parameters) {
        if (call.name == "now" || below(2)) continue;
        call.arguments.set(name, parse_json_value(values[below(values.size())], "value"));
      }
      turn.tool_calls.push_back(call);
    }
    const std::string prompt = "[gMASK]<sop><|assistant|><think>";
    const ParsedOutput out = parse(render_chat({.messages = {turn}}).substr(prompt.size()));
    ASSERT_EQ(out.reasoning, *turn.reasoning_content);
    ASSERT_EQ(out.content, turn.content->text);
    ASSERT_EQ(out.tool_calls.size(), turn.tool_calls.size());
    for (std::size_t i = 0; i < turn.tool_calls.size(); ++i) {
      EXPECT_EQ(out.tool_calls[i].name, turn.tool_calls[i].name);
      EXPECT_EQ(out.tool_calls[i].arguments, dump_json(turn.tool_calls[i].arguments, NumberStyle::kVerbatim));
    }
  }
}

TEST(OutputParser, BadToolsAreRefused) {
  EXPECT_THROW(OutputParser({.tools = {JsonValue("x")}}), Error);
  EXPECT_THROW(OutputParser({.tools = {parse_json_value(R"({"function": {}})", "t")}}), Error);
}

}  // namespace
}  // namespace glint
