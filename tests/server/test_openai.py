"""The OpenAI client, unchanged, against the bundled model."""

import json
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
from serving import greedy_run

HELLO = [{"role": "user", "content": "Tell me a story about a fox."}]


def tool(name, description, required, **types):
    """A function with parameters of those types, in the words that the bundled model was trained on."""
    properties = {key: kind if isinstance(kind, dict) else {"type": kind} for key, kind in types.items()}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": {
        "type": "object", "properties": properties, "required": required}}}


TOOLS = [
    tool("add_numbers", "Add two numbers", ["a", "b"], a="integer", b="integer"),
    tool("add_to_list", "Add items to the shopping list", ["items"],
         items={"type": "array", "items": {"type": "string"}}),
    tool("create_event", "Create a calendar event", ["title", "day"], title="string", day="string", hour="integer"),
]
SYSTEM = {"role": "system", "content": "You are a helpful assistant."}


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as made:
        yield made


def collected(stream):
    """(reasoning, content, calls, finish_reason, usage) of a stream."""
    reasoning, content, calls, finish, usage = "", "", {}, None, None
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            reasoning += getattr(choice.delta, "reasoning_content", None) or ""
            content += choice.delta.content or ""
            finish = choice.finish_reason or finish
            for call in choice.delta.tool_calls or []:
                made = calls.setdefault(call.index, {"id": call.id, "name": call.function.name, "arguments": ""})
                made["arguments"] += call.function.arguments or ""
    return reasoning, content, [calls[i] for i in sorted(calls)], finish, usage


@pytest.mark.parametrize("thinking", [True, False])
def test_greedy_equals_glint_run(client, idle, thinking):
    expected = greedy_run("-n", "48", *([] if thinking else ["--no-think"]), HELLO[0]["content"])
    kwargs = {"model": "tiny", "messages": HELLO, "temperature": 0, "max_tokens": 48,
              "extra_body": {"chat_template_kwargs": {"enable_thinking": thinking}}}
    whole = client.chat.completions.create(**kwargs)
    message = whole.choices[0].message
    assert message.content == expected["content"]
    assert (getattr(message, "reasoning_content", None) or "") == expected["reasoning_content"]
    assert whole.usage.completion_tokens == expected["usage"]["generated_tokens"]
    assert whole.usage.prompt_tokens == expected["usage"]["prompt_tokens"]
    stream = client.chat.completions.create(**kwargs, stream=True, stream_options={"include_usage": True})
    reasoning, content, _, finish, usage = collected(stream)
    assert (reasoning, content, finish) == (expected["reasoning_content"], expected["content"],
                                            whole.choices[0].finish_reason)
    usage.prompt_tokens_details = whole.usage.prompt_tokens_details  # the second one finds the first's prompt
    assert usage == whole.usage


def test_company_changes_nothing(client, idle):
    def ask(i):
        answer = client.chat.completions.create(model="tiny", messages=HELLO, seed=i % 4, max_tokens=24)
        return i % 4, answer.choices[0].message.content, getattr(answer.choices[0].message, "reasoning_content", "")

    with ThreadPoolExecutor(16) as pool:
        answers = set(pool.map(ask, range(24)))
    assert len(answers) == 4, answers


@pytest.mark.parametrize("request_text, name, arguments", [
    ("Create an event called Team on Friday at 15.", "create_event", {"title": "Team", "day": "Friday", "hour": 15}),
    ("Add a birthday cake, a garden hose to the list.", "add_to_list", {"items": ["a birthday cake", "a garden hose"]}),
    ("What is 12 plus 30?", "add_numbers", {"a": 12, "b": 30})])
def test_tools_whole_and_streamed(client, idle, request_text, name, arguments):
    messages = [SYSTEM, {"role": "user", "content": request_text}]
    kwargs = {"model": "tiny", "messages": messages, "tools": TOOLS, "temperature": 0, "max_tokens": 200}
    choice = client.chat.completions.create(**kwargs).choices[0]
    assert choice.finish_reason == "tool_calls"
    call = choice.message.tool_calls[0]
    assert (call.function.name, json.loads(call.function.arguments)) == (name, arguments)
    _, _, calls, finish, _ = collected(client.chat.completions.create(**kwargs, stream=True))
    assert finish == "tool_calls"
    assert [(c["name"], json.loads(c["arguments"])) for c in calls] == [(name, arguments)]

    # The next turn: the result goes back, with the client's own message object.
    messages += [choice.message, {"role": "tool", "tool_call_id": call.id, "content": '{"ok": true}'}]
    answer = client.chat.completions.create(**kwargs).choices[0]
    assert answer.finish_reason in ("stop", "tool_calls")


def test_logprobs_seed_stop_and_bias(client, idle):
    kwargs = {"model": "tiny", "messages": HELLO, "max_tokens": 16,
              "extra_body": {"chat_template_kwargs": {"enable_thinking": False}}}
    answer = client.chat.completions.create(**kwargs, temperature=0, logprobs=True, top_logprobs=3).choices[0]
    entries = answer.logprobs.content
    assert len(entries) == 16
    for entry in entries:
        assert len(entry.top_logprobs) == 3 and entry.logprob <= 0
        assert entry.token == entry.top_logprobs[0].token and entry.logprob == entry.top_logprobs[0].logprob
        assert bytes(entry.bytes).decode(errors="replace") == entry.token
    assert "".join(e.token for e in entries) == answer.message.content

    first, again = (client.chat.completions.create(**kwargs, seed=5, temperature=1).choices[0].message.content
                    for _ in range(2))
    assert first == again
    word = answer.message.content.split()[2]
    cut = client.chat.completions.create(**kwargs, temperature=0, stop=[word]).choices[0]
    assert cut.finish_reason == "stop" and cut.message.content == answer.message.content.split(word)[0]

    token = client.post("/../tokenize", body={"content": entries[0].token}, cast_to=object)["tokens"][0]
    biased = client.chat.completions.create(**kwargs, temperature=0, logit_bias={str(token): -100}).choices[0]
    assert not biased.message.content.startswith(entries[0].token)


def test_choices(client, idle):
    answer = client.chat.completions.create(model="tiny", messages=HELLO, n=3, max_tokens=8, seed=1)
    assert [c.index for c in answer.choices] == [0, 1, 2]
    assert answer.usage.completion_tokens == 24
    assert len({str(c.message) for c in answer.choices}) > 1


def test_completions(client, idle):
    expected = greedy_run("--raw", "-n", "12", "Once upon a time")
    kwargs = {"model": "tiny", "prompt": "Once upon a time", "temperature": 0, "max_tokens": 12}
    answer = client.completions.create(**kwargs, logprobs=2)
    assert answer.choices[0].text == expected["content"]
    assert "".join(answer.choices[0].logprobs.tokens) == expected["content"]
    assert "".join(c.choices[0].text for c in client.completions.create(**kwargs, stream=True)) == expected["content"]
    two = client.completions.create(**{**kwargs, "prompt": ["Once upon a time", "The fox"]}, echo=True)
    assert two.choices[0].text == "Once upon a time" + expected["content"]
    assert two.choices[1].text.startswith("The fox")


def test_models_and_errors(client, server):
    assert client.models.list().data[0].id == "tiny"
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="tiny", messages=HELLO, temperature=3)
    assert refused.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "word " * 9000}])
    assert refused.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="tiny", messages=HELLO, tool_choice="required")
    assert refused.value.param == "tool_choice"


def test_timeout_and_priority(idle, client):
    """Fields beside OpenAI's; the client does not ask again after a timeout."""
    endless = {"model": "any", "messages": [{"role": "user", "content": "Tell me a long story."}], "max_tokens": 7000,
               "temperature": 0.8, "extra_body": {"ignore_eos": True, "timeout": 1, "priority": 2}}
    with pytest.raises(openai.APIStatusError) as late:
        client.with_options(max_retries=3).chat.completions.create(**endless)
    assert late.value.status_code == 504 and late.value.body["type"] == "timeout_error"
    idle.wait_idle()
    assert idle.metrics()['glint_http_requests_total{route="/v1/chat/completions",status="504"}'] == 1
    with pytest.raises(openai.APIError, match="timeout"):
        list(client.chat.completions.create(**endless, stream=True))
