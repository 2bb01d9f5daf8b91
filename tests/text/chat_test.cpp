#include "text/chat.hpp"

#include <gtest/gtest.h>

#include <string>

#include "base/error.hpp"
#include "base/file.hpp"
#include "text/chat_json.hpp"
#include "text/python_text.hpp"

namespace glint {
namespace {

std::string render(std::string_view json) { return render_chat(chat_request_from_json(json)); }

// The rendering of one request after the fixed prefix.
std::string after_prefix(std::string_view json) {
  const std::string text = render(json);
  const std::string prefix = "[gMASK]<sop>";
  EXPECT_EQ(text.substr(0, prefix.size()), prefix);
  return text.substr(prefix.size());
}

std::string message_of_error(std::string_view json, ChatJsonMode mode = ChatJsonMode::kTemplate) {
  try {
    render_chat(chat_request_from_json(json, mode));
  } catch (const Error& e) { return e.what(); }
  ADD_FAILURE() << "no error for " << json;
  return "";
}

TEST(ChatTemplate, GoldenCases) {
  const JsonValue cases = parse_json_value(read_file("tests/data/chat_cases.json"), "chat_cases.json");
  ASSERT_EQ(cases.items.size(), 120u);
  for (std::size_t i = 0; i < cases.items.size(); ++i) {
    EXPECT_EQ(render_chat(chat_request_from_value(cases.items[i])), cases.items[i].find("text")->text) << "case " << i;
  }
}

TEST(ChatTemplate, PromptAndThinking) {
  const std::string hello = R"({"messages": [{"role": "user", "content": "Hello"}], "add_generation_prompt": true)";
  EXPECT_EQ(after_prefix(hello + "}"), "<|user|>Hello<|assistant|><think>");
  EXPECT_EQ(after_prefix(hello + R"(, "enable_thinking": true})"), "<|user|>Hello<|assistant|><think>");
  EXPECT_EQ(after_prefix(hello + R"(, "enable_thinking": false})"), "<|user|>Hello<|assistant|></think>");
  EXPECT_EQ(after_prefix(hello + R"(, "enable_thinking": null})"), "<|user|>Hello<|assistant|><think>");
  EXPECT_EQ(after_prefix(hello + R"(, "chat_template_kwargs": {"enable_thinking": false}})"),
            "<|user|>Hello<|assistant|></think>");
  EXPECT_EQ(after_prefix(R"({"messages": [{"role": "user", "content": "Hello"}]})"), "<|user|>Hello");
  EXPECT_EQ(
      after_prefix(R"({"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
                             "add_generation_prompt": true})"),
      "<|system|>Be brief.<|user|>Hi<|assistant|><think>");
  EXPECT_EQ(render(R"({"messages": []})"), "[gMASK]<sop>");
}

TEST(ChatTemplate, ReasoningOfEarlierTurns) {
  const std::string turns = R"({"messages": [{"role": "user", "content": "a"},
      {"role": "assistant", "content": "  b  ", "reasoning_content": " r1 "}, {"role": "user", "content": "c"}],
      "add_generation_prompt": true)";
  EXPECT_EQ(after_prefix(turns + "}"), "<|user|>a<|assistant|></think>b<|user|>c<|assistant|><think>");
  EXPECT_EQ(after_prefix(turns + R"(, "clear_thinking": true})"),
            "<|user|>a<|assistant|></think>b<|user|>c<|assistant|><think>");
  EXPECT_EQ(after_prefix(turns + R"(, "clear_thinking": false})"),
            "<|user|>a<|assistant|><think>r1</think>b<|user|>c<|assistant|><think>");
  EXPECT_EQ(after_prefix(turns + R"(, "chat_template_kwargs": {"clear_thinking": false}})"),
            "<|user|>a<|assistant|><think>r1</think>b<|user|>c<|assistant|><think>");
}

TEST(ChatTemplate, ToolTurn) {
  const std::string turn = R"({"messages": [{"role": "user", "content": "w?"},
      {"role": "assistant", "content": "", "reasoning_content": "need", "tool_calls": [
        {"id": "1", "type": "function", "function": {"name": "get_weather",
         "arguments": {"city": "Köln", "days": 2, "x": [1, "a"], "b": true, "n": null}}},
        {"name": "noargs", "arguments": {}}]},
      {"role": "tool", "content": "sun"}, {"role": "tool", "content": "{\"a\":1}"})";
  EXPECT_EQ(after_prefix(turn + R"(], "add_generation_prompt": true})"),
            "<|user|>w?<|assistant|><think>need</think><tool_call>get_weather<arg_key>city</arg_key>"
            "<arg_value>Köln</arg_value><arg_key>days</arg_key><arg_value>2</arg_value><arg_key>x</arg_key>"
            "<arg_value>[1, \"a\"]</arg_value><arg_key>b</arg_key><arg_value>true</arg_value><arg_key>n</arg_key>"
            "<arg_value>null</arg_value></tool_call><tool_call>noargs</tool_call><|observation|>"
            "<tool_response>sun</tool_response><tool_response>{\"a\":1}</tool_response><|assistant|><think>");
  EXPECT_EQ(after_prefix(R"({"messages": [{"role": "user", "content": "w?"},
      {"role": "assistant", "content": "x", "reasoning_content": "need", "tool_calls": [{"name": "noargs", "arguments": {}}]},
      {"role": "tool", "content": "sun"}, {"role": "user", "content": "y"}]})"),
            "<|user|>w?<|assistant|></think>x<tool_call>noargs</tool_call><|observation|>"
            "<tool_response>sun</tool_response><|user|>y");
}

TEST(ChatTemplate, ToolsBlockComesBeforeTheSystemMessage) {
  const std::string text = after_prefix(R"({"messages": [{"role": "system", "content": "S"}],
      "tools": [{"type": "function", "function": {"name": "ü<&>'", "x": 1.0}}, {"name": "bare"}]})");
  EXPECT_EQ(text.find("<|system|>\n# Tools\n\nYou may"), 0u);
  EXPECT_NE(text.find("<tools>\n{\"type\": \"function\", \"function\": {\"name\": \"ü<&>'\", \"x\": 1.0}}\n"
                      "{\"name\": \"bare\"}\n</tools>\n\nFor each"),
            std::string::npos);
  EXPECT_EQ(text.substr(text.size() - 23), "</tool_call><|system|>S");
  EXPECT_EQ(after_prefix(R"({"messages": [], "tools": []})"), "");
  EXPECT_EQ(after_prefix(R"({"messages": [], "tools": null})"), "");
}

std::string rendered_argument(const std::string& json) {
  const std::string text = after_prefix(R"({"messages": [{"role": "assistant", "content": "", "tool_calls": [
      {"name": "f", "arguments": {"k": )" +
                                        json + "}}]}]}");
  const std::string open = "<arg_value>", close = "</arg_value></tool_call>";
  const std::size_t begin = text.find(open) + open.size();
  return text.substr(begin, text.size() - close.size() - begin);
}

TEST(ChatTemplate, ArgumentValues) {
  EXPECT_EQ(rendered_argument(R"("a\"b\n<x>")"), "a\"b\n<x>");
  EXPECT_EQ(rendered_argument("-0.0"), "-0.0");
  EXPECT_EQ(rendered_argument("-0"), "0");
  EXPECT_EQ(rendered_argument("1e-7"), "1e-07");
  EXPECT_EQ(rendered_argument("0.0001"), "0.0001");
  EXPECT_EQ(rendered_argument("1e15"), "1000000000000000.0");
  EXPECT_EQ(rendered_argument("1e16"), "1e+16");
  EXPECT_EQ(rendered_argument("1.50"), "1.5");
  EXPECT_EQ(rendered_argument("1e400"), "Infinity");
  EXPECT_EQ(rendered_argument("12345678901234567890123"), "12345678901234567890123");
  EXPECT_EQ(rendered_argument("-9223372036854775809"), "-9223372036854775809");
  EXPECT_EQ(rendered_argument(R"({"k":"ü","l":[],"m":{}})"), R"({"k": "ü", "l": [], "m": {}})");
  EXPECT_EQ(rendered_argument(R"({"b":1,"a":2,"b":3})"), R"({"b": 3, "a": 2})");
  EXPECT_EQ(rendered_argument(R"(["\u0001\u007f\t/\ud83d\ude00"])"), "[\"\\u0001\x7f\\t/😀\"]");
}

TEST(ChatTemplate, ContentForms) {
  EXPECT_EQ(after_prefix(R"({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"},
      {"type": "image_url", "image_url": "u"}, "b", {"type": "text", "text": null}, {"type": "text"}, 5]}]})"),
            "<|user|>abNone");
  EXPECT_EQ(after_prefix(R"({"messages": [{"role": "assistant", "content": null}]})"), "<|assistant|></think>None");
  EXPECT_EQ(after_prefix(R"({"messages": [{"role": "assistant"}]})"), "<|assistant|></think>");
  EXPECT_EQ(after_prefix(R"({"messages": [{"role": "user", "content": {"a": [1.0, true, "it's"]}}]})"),
            "<|user|>{'a': [1.0, True, \"it's\"]}");
  EXPECT_EQ(after_prefix(R"({"messages": [{"role": "developer", "content": "d"}, {"role": "user", "content": "u"}]})"),
            "<|user|>u");
}

TEST(ChatTemplate, ToolMessageWithAList) {
  EXPECT_EQ(
      after_prefix(R"({"messages": [{"role": "tool", "content": "s"}, {"role": "tool", "content":
      [{"output": "o"}, {"output": null}, {"x": "a'b\u200b"}, "str", [1, null]]}, {"role": "tool", "content": "t"}]})"),
      "<|observation|><tool_response>s</tool_response><|observation|><tool_response>o</tool_response>"
      "<tool_response>None</tool_response><tool_response>{'x': \"a'b\\u200b\"}</tool_response>"
      "<tool_response>str</tool_response><tool_response>[1, None]</tool_response><tool_response>t</tool_response>");
}

std::string rendered_assistant(const std::string& content) {
  JsonValue text(content);
  ChatRequest request{.messages = {{.role = "assistant", .content = text}}};
  return render_chat(request).substr(std::string("[gMASK]<sop><|assistant|>").size());
}

TEST(ChatTemplate, ReasoningInsideContent) {
  EXPECT_EQ(rendered_assistant("<think>\nr\n</think>\n\nc"), "<think>r</think>c");
  EXPECT_EQ(rendered_assistant("r</think>c"), "<think>r</think>c");
  EXPECT_EQ(rendered_assistant("x<think>r</think>mid</think>c"), "<think>r</think>c");
  EXPECT_EQ(rendered_assistant("</think>c"), "</think>c");
  EXPECT_EQ(rendered_assistant("<think> \t</think>c"), "<think></think>c");  // white space only: shown, empty
  EXPECT_EQ(rendered_assistant("\xc2\xa0 c\xe3\x80\x80"), "</think>c");      // Python strips Unicode spaces
  ChatRequest request{.messages = {{.role = "assistant", .content = "a</think>b", .reasoning_content = ""}}};
  EXPECT_EQ(render_chat(request), "[gMASK]<sop><|assistant|></think>a</think>b");
}

TEST(ChatTemplate, Errors) {
  const auto call = [](const std::string& call_json) {
    return R"({"messages": [{"role": "assistant", "content": "", "tool_calls": [)" + call_json + "]}]}";
  };
  const std::string as_text = call(R"({"function": {"name": "f", "arguments": "{\"a\": 1}"}})");
  EXPECT_EQ(message_of_error(as_text),
            "messages[0].tool_calls[0].function.arguments: found a string, expected an object "
            "(arguments as JSON text must be parsed first)");
  EXPECT_NE(message_of_error(call(R"({"function": {"name": "f", "arguments": null}})")).find("found null"),
            std::string::npos);
  EXPECT_NE(message_of_error(call(R"({"function": {"name": "f"}})")).find("found nothing"), std::string::npos);
  EXPECT_NE(message_of_error(call(R"({"function": {"arguments": {}}})")).find(".name"), std::string::npos);
  EXPECT_NE(message_of_error(call("5")).find("found a number"), std::string::npos);
  EXPECT_EQ(message_of_error(R"({"messages": [{"role": "tool", "content": null}]})"),
            "messages[0].content: found null, expected a string or a list");
  EXPECT_NE(message_of_error("{}").find("messages"), std::string::npos);
  EXPECT_NE(message_of_error("[]").find("expected an object"), std::string::npos);
  EXPECT_NE(message_of_error(R"({"messages": [{"content": "x"}]})").find("role"), std::string::npos);
  EXPECT_NE(message_of_error(R"({"messages": [], "tools": 5})").find("tools"), std::string::npos);
  EXPECT_NE(message_of_error(R"({"messages": [], "clear_thinking": "no"})").find("clear_thinking"), std::string::npos);
  EXPECT_NE(message_of_error("{\"messages\": [\n \"\\ud800\"]}").find("lone surrogate at line 2"), std::string::npos);
  ChatRequest direct{.messages = {{.role = "tool", .content = JsonValue()}}};
  EXPECT_THROW(render_chat(direct), Error);
  direct = {.messages = {{.role = "assistant", .tool_calls = {{.name = "f", .arguments = "{}"}}}}};
  EXPECT_THROW(render_chat(direct), Error);
}

TEST(ChatJson, ServerModeRepairsWhatClientsSend) {
  const auto server = [](std::string_view json) {
    return render_chat(chat_request_from_json(json, ChatJsonMode::kServer)).substr(12);
  };
  EXPECT_EQ(
      server(R"({"messages": [{"role": "assistant", "content": null, "tool_calls": [
      {"function": {"name": "f", "arguments": "{\"n\": 12345678901234567890123}"}},
      {"function": {"name": "g", "arguments": ""}}, {"function": {"name": "h", "arguments": null}}]},
      {"role": "tool", "content": null}]})"),
      "<|assistant|></think><tool_call>f<arg_key>n</arg_key><arg_value>12345678901234567890123</arg_value>"
      "</tool_call><tool_call>g</tool_call><tool_call>h</tool_call><|observation|><tool_response></tool_response>");
  EXPECT_NE(
      message_of_error(R"({"messages": [{"role": "assistant", "tool_calls": [{"name": "f", "arguments": "[1]"}]}]})",
                       ChatJsonMode::kServer)
          .find("found an array"),
      std::string::npos);
  EXPECT_NE(
      message_of_error(R"({"messages": [{"role": "assistant", "tool_calls": [{"name": "f", "arguments": "{"}]}]})",
                       ChatJsonMode::kServer)
          .find("expected valid JSON"),
      std::string::npos);
}

TEST(PythonText, Repr) {
  EXPECT_EQ(python_repr(JsonValue("a'b")), "\"a'b\"");
  EXPECT_EQ(python_repr(JsonValue("a'b\"")), "'a\\'b\"'");
  EXPECT_EQ(python_repr(JsonValue("é\xc2\xa0\\\n\x01\xf3\xa0\x80\x81")), "'é\\xa0\\\\\\n\\x01\\U000e0001'");
  EXPECT_EQ(python_repr(parse_json_value(R"([-0, -0.0, 1e22, 1e-5, {"a": null}])", "t")),
            "[0, -0.0, 1e+22, 1e-05, {'a': None}]");
}

TEST(PythonText, Literals) {
  const auto literal = [](std::string_view text) {
    const auto v = parse_python_literal(text);
    return v ? dump_json(*v, NumberStyle::kVerbatim) : "refused";
  };
  EXPECT_EQ(literal("None"), "null");
  EXPECT_EQ(literal(" True "), "true");
  EXPECT_EQ(literal("'x'"), "\"x\"");
  EXPECT_EQ(literal(R"('it\'s \x41\n\q' "b")"), R"("it's A\n\\qb")");
  EXPECT_EQ(literal("(1, 'a', (2,), (3))"), R"([1, "a", [2], 3])");
  EXPECT_EQ(literal("[1, 2,]"), "[1, 2]");
  EXPECT_EQ(literal("{'a': [True, None], 1: -.5, None: 1_000}"), R"({"a": [true, null], "1": -0.5, "null": 1000})");
  EXPECT_EQ(literal("0x1F"), "31");
  EXPECT_EQ(literal("007.5"), "7.5");
  EXPECT_EQ(literal("00"), "0");
  EXPECT_EQ(literal("1.e5"), "1.0e5");
  for (const char* bad : {"", "1, 2", "Nonesuch", "true", "007", "(,)", "[1 2]", "{1}", "b'x'", "1j", "'a", "'\\ud800'",
                          "1 + 2", "[", "{'a'}", "__import__('os')", "0x", "1__0", "'\xff'"}) {
    EXPECT_EQ(literal(bad), "refused") << bad;
  }
}

}  // namespace
}  // namespace glint
