"""Answers that must have a form: JSON schemas and calls, with the public clients against the bundled model."""

import json
from concurrent.futures import ThreadPoolExecutor

import anthropic
import jsonschema
import openai
import pytest
from schemas import HAND_MADE, generated
from serving import greedy_run
from test_openai import HELLO, SYSTEM, TOOLS, collected, tool

NO_THINKING = {"enable_thinking": False}
CLOCK = {"type": "function", "function": {"name": "clock", "description": "The time",
                                          "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as made:
        yield made


@pytest.fixture(scope="module")
def claude(server):
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as made:
        yield made


def check(text, schema):
    jsonschema.Draft202012Validator(schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER).validate(
        json.loads(text))


def json_format(schema):
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}


def test_two_hundred_schemas_at_temperature_one(client, idle):
    schemas = HAND_MADE + generated(200 - len(HAND_MADE))

    def ask(i):
        return client.chat.completions.create(
            model="tiny", messages=HELLO, temperature=1, top_p=1, seed=i, max_tokens=600,
            response_format=json_format(schemas[i]), extra_body=NO_THINKING).choices[0]

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(ask, range(len(schemas))))
    for schema, answer in zip(schemas, answers):
        assert answer.finish_reason == "stop", (schema, answer)
        check(answer.message.content, schema)


SHORT = {"type": "object", "required": ["fox", "n"], "additionalProperties": False,
         "properties": {"fox": {"type": "string", "maxLength": 12}, "n": {"type": "integer", "maximum": 99}}}


def test_schema_with_thinking_streamed_and_by_logprobs(client, idle):
    kwargs = {"model": "tiny", "messages": HELLO, "max_tokens": 400, "seed": 4, "response_format": json_format(SHORT)}
    whole = client.chat.completions.create(**kwargs).choices[0]
    reasoning, content, _, finish, _ = collected(client.chat.completions.create(**kwargs, stream=True))
    assert (content, finish) == (whole.message.content, whole.finish_reason)
    assert reasoning == whole.message.reasoning_content
    if finish == "stop":
        check(content, SHORT)
    scored = client.chat.completions.create(**kwargs, logprobs=True, top_logprobs=1, extra_body=NO_THINKING).choices[0]
    assert "".join(e.token for e in scored.logprobs.content) == scored.message.content
    check(scored.message.content, SHORT)


def test_limits_cut_as_usual(client, idle):
    kwargs = {"model": "tiny", "messages": HELLO, "response_format": json_format(SHORT), "extra_body": NO_THINKING}
    cut = client.chat.completions.create(**kwargs, max_tokens=2).choices[0]
    assert cut.finish_reason == "length"
    stopped = client.chat.completions.create(**kwargs, max_tokens=60, stop=[":"]).choices[0]
    assert stopped.finish_reason == "stop" and ":" not in stopped.message.content


def test_json_object(client, idle):
    answer = client.chat.completions.create(model="tiny", messages=HELLO, temperature=0, max_tokens=400, stop=None,
                                            response_format={"type": "json_object"}, extra_body=NO_THINKING).choices[0]
    if answer.finish_reason == "stop":
        assert isinstance(json.loads(answer.message.content), dict)
    assert answer.message.content.lstrip().startswith("{")


def test_refusals_name_the_place(client, claude):
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="tiny", messages=HELLO, response_format=json_format(
            {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}))
    assert refused.value.param == "response_format.json_schema.schema.properties.a.uniqueItems"
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.create(model="tiny", input="x", text={"format": {"type": "json_schema", "name": "x",
                                                                          "schema": {"not": {}}}})
    assert refused.value.param == "text.format.schema.not"
    bad = {"name": "f", "input_schema": {"type": "object", "properties": {"a": {"format": "hostname"}}}}
    with pytest.raises(anthropic.BadRequestError) as denied:
        claude.messages.create(model="tiny", max_tokens=5, messages=HELLO, tools=[bad], tool_choice={"type": "any"})
    assert "properties.a.format" in str(denied.value)


def check_calls(calls, offered):
    """(name, arguments as JSON text) of every call, against the schemas of the tools."""
    schemas = {t["function"]["name"]: t["function"]["parameters"] for t in offered}
    assert calls
    for name, arguments in calls:
        check(arguments, {**schemas[name], "additionalProperties": False})


@pytest.mark.parametrize("thinking", [True, False])
@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "create_event"}}])
def test_openai_calls(client, idle, thinking, choice):
    offered = [*TOOLS, CLOCK]
    kwargs = {"model": "tiny", "messages": [SYSTEM, *HELLO], "tools": offered, "tool_choice": choice, "seed": 2,
              "max_tokens": 500, "parallel_tool_calls": False, "extra_body": {"enable_thinking": thinking}}
    whole = client.chat.completions.create(**kwargs).choices[0]
    _, content, calls, finish, _ = collected(client.chat.completions.create(**kwargs, stream=True))
    assert not content and not whole.message.content
    assert finish == whole.finish_reason
    assert [(c["name"], c["arguments"]) for c in calls] == [
        (c.function.name, c.function.arguments) for c in whole.message.tool_calls or []]
    if finish != "length":
        assert finish == "tool_calls" and len(calls) == 1
        check_calls([(c["name"], c["arguments"]) for c in calls], offered)
        if choice != "required":
            assert calls[0]["name"] == "create_event"


def test_parallel_and_zero_argument_calls(client, idle):
    kwargs = {"model": "tiny", "messages": [SYSTEM, *HELLO], "tools": [CLOCK], "tool_choice": "required",
              "extra_body": NO_THINKING}
    one = client.chat.completions.create(**kwargs, parallel_tool_calls=False, max_tokens=60).choices[0]
    assert one.finish_reason == "tool_calls"
    assert [(c.function.name, c.function.arguments) for c in one.message.tool_calls] == [("clock", "{}")]
    # The end tokens are dear: the model goes on to further calls.
    bias = {str(i): -100 for i in (8128, 8135, 8137)}
    many = client.chat.completions.create(**kwargs, max_tokens=24, logit_bias=bias).choices[0]
    assert len(many.message.tool_calls) > 1
    assert {c.function.name for c in many.message.tool_calls} == {"clock"}


def test_strict_tool_under_auto(client, idle):
    ask = [SYSTEM, {"role": "user", "content": "Create an event called Team on Friday at 15."}]
    event = tool("create_event", "Create a calendar event", ["title", "day"], title="string", day="string",
                 hour={"type": "integer", "maximum": 9})
    event["function"]["strict"] = True
    answer = client.chat.completions.create(model="tiny", messages=ask, tools=[event], temperature=0,
                                            max_tokens=200).choices[0]
    assert answer.finish_reason == "tool_calls"
    check_calls([(c.function.name, c.function.arguments) for c in answer.message.tool_calls], [event])


@pytest.mark.parametrize("choice", [{"type": "any", "disable_parallel_tool_use": True},
                                    {"type": "tool", "name": "add_numbers", "disable_parallel_tool_use": True}])
def test_anthropic_calls(claude, idle, choice):
    offered = [{"name": t["function"]["name"], "input_schema": t["function"]["parameters"]} for t in [*TOOLS, CLOCK]]
    kwargs = {"model": "tiny", "max_tokens": 400, "messages": HELLO, "tools": offered, "tool_choice": choice,
              "extra_body": {"seed": 1}}
    answer = claude.messages.create(**kwargs)
    with claude.messages.stream(**kwargs) as stream:
        final = stream.get_final_message()
    assert [(b.name, b.input) for b in final.content] == [(b.name, b.input) for b in answer.content]
    assert answer.stop_reason == final.stop_reason
    if answer.stop_reason != "max_tokens":
        assert answer.stop_reason == "tool_use"
        check_calls([(b.name, json.dumps(b.input)) for b in answer.content], [*TOOLS, CLOCK])


def test_responses(client, idle):
    kwargs = {"model": "tiny", "input": HELLO, "max_output_tokens": 300, "reasoning": {"effort": "none"}}
    answer = client.responses.create(**kwargs, text={"format": {"type": "json_schema", "name": "x", "schema": SHORT}})
    check(answer.output_text, SHORT)
    tools = [{"type": "function", **t["function"]} for t in [*TOOLS, CLOCK]]
    for choice in ("required", {"type": "function", "name": "clock"}):
        answer = client.responses.create(**kwargs, tools=tools, tool_choice=choice, parallel_tool_calls=False)
        call = answer.output[-1]
        assert call.type == "function_call"
        if answer.status == "completed":
            check_calls([(call.name, call.arguments)], [*TOOLS, CLOCK])


def test_command_line(tmp_path):
    file = tmp_path / "schema.json"
    file.write_text(json.dumps(SHORT), encoding="utf-8")
    answer = greedy_run("-n", "80", "--no-think", "--json-schema", str(file), "Hello")
    assert answer["finish_reason"] == "stop"
    check(answer["content"], SHORT)
