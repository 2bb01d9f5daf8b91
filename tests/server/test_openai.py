"""The OpenAI client, unchanged, against the bundled model."""

import json
import subprocess
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
from serving import ROOT, binary

HELLO = [{"role": "user", "content": "Tell me a story about a fox."}]


def tool(name, description, required, **properties):
    """A function with parameters name=(type, description)."""
    described = {key: {"type": kind, "description": text} for key, (kind, text) in properties.items()}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": {
        "type": "object", "properties": described, "required": required}}}


TOOLS = [
    tool("set_reminder", "Set a reminder", ["text", "day"], text=("string", "What to remember"),
         day=("string", "Day of the week"), hour=("integer", "Hour of the day, 0-23")),
    tool("get_time", "Get the current local time in a city", ["city"], city=("string", "Name of the city")),
    tool("search_web", "Search the web", ["query"], query=("string", "The search query")),
    tool("get_weather", "Get the current weather for a city", ["city"], city=("string", "Name of the city"),
         unit=("string", "celsius or fahrenheit")),
]
REMIND = [{"role": "user", "content": "Remind me to read a book on Saturday at 16:00."}]


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as made:
        yield made


def run(*flags):
    """What `glint run` answers."""
    out = subprocess.run([str(binary()), "run", "--json", "-q", "-t", "1", "--temp", "0", *flags], cwd=ROOT, check=True,
                         capture_output=True, text=True, encoding="utf-8")
    return json.loads(out.stdout)


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
    expected = run("-n", "48", *([] if thinking else ["--no-think"]), HELLO[0]["content"])
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
    assert usage == whole.usage


def test_company_changes_nothing(client, idle):
    def ask(i):
        answer = client.chat.completions.create(model="tiny", messages=HELLO, seed=i % 4, max_tokens=24)
        return i % 4, answer.choices[0].message.content, getattr(answer.choices[0].message, "reasoning_content", "")

    with ThreadPoolExecutor(16) as pool:
        answers = set(pool.map(ask, range(24)))
    assert len(answers) == 4, answers


def test_tools_whole_and_streamed(client, idle):
    kwargs = {"model": "tiny", "messages": REMIND, "tools": TOOLS, "temperature": 0, "max_tokens": 200,
              "extra_body": {"chat_template_kwargs": {"enable_thinking": False}}}
    choice = client.chat.completions.create(**kwargs).choices[0]
    assert choice.finish_reason == "tool_calls"
    call = choice.message.tool_calls[0]
    assert call.function.name == "set_reminder"
    arguments = json.loads(call.function.arguments)
    assert arguments["day"] == "Saturday" and isinstance(arguments["hour"], int)
    _, _, calls, finish, _ = collected(client.chat.completions.create(**kwargs, stream=True))
    assert finish == "tool_calls"
    assert [(c["name"], json.loads(c["arguments"])) for c in calls] == [("set_reminder", arguments)]

    # The next turn: the result goes back, as the client's own message objects.
    messages = [*REMIND, choice.message, {"role": "tool", "tool_call_id": call.id, "content": '{"ok": true}'}]
    answer = client.chat.completions.create(**{**kwargs, "messages": messages}).choices[0]
    assert answer.finish_reason == "stop" and answer.message.content


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
    expected = run("--raw", "-n", "12", "Once upon a time")
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
        client.chat.completions.create(model="tiny", messages=HELLO, tools=TOOLS, tool_choice="required")
    assert refused.value.param == "tool_choice"
