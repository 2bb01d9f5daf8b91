"""The Anthropic client, unchanged, and OpenAI's Responses API, against the bundled model."""

import json

import anthropic
import openai
import pytest
from serving import greedy_run
from test_openai import HELLO, SYSTEM, TOOLS

ANTHROPIC_TOOLS = [{"name": t["function"]["name"], "description": t["function"]["description"],
                    "input_schema": t["function"]["parameters"]} for t in TOOLS]
ASK = {"role": "user", "content": "Create an event called Team on Friday at 15."}
WANTED = {"title": "Team", "day": "Friday", "hour": 15}


@pytest.fixture(scope="module")
def client(server):
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as made:
        yield made


@pytest.fixture(scope="module")
def openai_client(server):
    with openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as made:
        yield made


def test_greedy_equals_glint_run(client, idle):
    expected = greedy_run("-n", "48", "--no-think", HELLO[0]["content"])
    kwargs = {"model": "tiny", "max_tokens": 48, "messages": HELLO, "extra_body": {"temperature": 0}}
    whole = client.messages.create(**kwargs)
    assert [b.type for b in whole.content] == ["text"]
    assert whole.content[0].text == expected["content"]
    assert whole.usage.output_tokens == expected["usage"]["generated_tokens"]
    with client.messages.stream(**kwargs) as stream:
        assert "".join(stream.text_stream) == expected["content"]
        final = stream.get_final_message()
    assert final.content[0].text == whole.content[0].text
    assert final.stop_reason == whole.stop_reason == "max_tokens"
    assert final.usage.output_tokens == whole.usage.output_tokens


def test_thinking_and_tools(client, idle):
    kwargs = {"model": "tiny", "max_tokens": 200, "system": SYSTEM["content"], "messages": [ASK],
              "extra_body": {"temperature": 0},
              "tools": ANTHROPIC_TOOLS, "thinking": {"type": "enabled", "budget_tokens": 1024}}
    whole = client.messages.create(**kwargs)
    assert whole.stop_reason == "tool_use"
    call = whole.content[-1]
    assert (call.type, call.name, call.input) == ("tool_use", "create_event", WANTED)
    with client.messages.stream(**kwargs) as stream:
        final = stream.get_final_message()
    assert [b.type for b in final.content] == [b.type for b in whole.content]
    assert final.content[-1].input == WANTED and final.stop_reason == "tool_use"
    result = {"type": "tool_result", "tool_use_id": call.id, "content": '{"ok": true}'}
    messages = [ASK, {"role": "assistant", "content": whole.content}, {"role": "user", "content": [result]}]
    answer = client.messages.create(**{**kwargs, "messages": messages})
    assert answer.stop_reason in ("end_turn", "tool_use")


def test_count_tokens_and_errors(client, idle):
    count = client.messages.count_tokens(model="tiny", messages=HELLO, tools=ANTHROPIC_TOOLS)
    answer = client.messages.create(model="tiny", max_tokens=1, messages=HELLO, tools=ANTHROPIC_TOOLS)
    assert count.input_tokens == answer.usage.input_tokens + answer.usage.cache_read_input_tokens
    assert client.models.list().data[0].id == "tiny"
    with pytest.raises(anthropic.BadRequestError) as refused:
        client.messages.create(model="tiny", max_tokens=5, messages=HELLO, tool_choice={"type": "any"})
    assert refused.value.body["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("prompt", ["Hello", "Tell me a story about a fox."])
def test_responses(openai_client, idle, prompt):
    expected = greedy_run("-n", "48", prompt)
    kwargs = {"model": "tiny", "input": prompt, "max_output_tokens": 48, "temperature": 0}
    whole = openai_client.responses.create(**kwargs)
    assert whole.output_text == expected["content"]
    assert whole.usage.output_tokens == expected["usage"]["generated_tokens"]
    last = list(openai_client.responses.create(**kwargs, stream=True))[-1]
    assert last.type == "response." + whole.status
    assert whole.status == ("incomplete" if expected["finish_reason"] == "length" else "completed")
    # Where thinking turns out to have been the answer, a stream has sent it as thinking too.
    assert last.response.output_text == whole.output_text


def test_responses_tools(openai_client, idle):
    tools = [{"type": "function", **t["function"]} for t in TOOLS]
    kwargs = {"model": "tiny", "instructions": SYSTEM["content"], "input": [ASK], "tools": tools, "temperature": 0,
              "max_output_tokens": 200}
    call = openai_client.responses.create(**kwargs).output[-1]
    assert (call.type, call.name, json.loads(call.arguments)) == ("function_call", "create_event", WANTED)
    with openai_client.responses.stream(**kwargs) as stream:
        for _ in stream:
            pass
        streamed = stream.get_final_response().output[-1]
    assert json.loads(streamed.arguments) == WANTED
    items = [ASK, call, {"type": "function_call_output", "call_id": call.call_id, "output": '{"ok": true}'}]
    assert openai_client.responses.create(**{**kwargs, "input": items}).status == "completed"
