"""The server as a program: malformed requests, clients that leave, keys, limits, starting and stopping."""

import json
import random
import signal
import socket
import subprocess
import threading
import time

import pytest
from serving import ROOT, Server, binary

CHAT = "/v1/chat/completions"
USER = [{"role": "user", "content": "Hello"}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def chat(**fields):
    return CHAT, {"messages": USER, "max_tokens": 2, **fields}


def text(**fields):
    return "/v1/completions", {"prompt": "Hello", "max_tokens": 2, **fields}


def messages(*items):
    return CHAT, {"messages": list(items), "max_tokens": 2}


MALFORMED = [
    (CHAT, b""), (CHAT, b"{"), (CHAT, b"[]"), (CHAT, b"null"), (CHAT, b"\"x\""), (CHAT, b"{\"messages\":[],}"),
    (CHAT, b"\xff\xfe"), (CHAT, b"{\"messages\": \"\\ud800\"}"), (CHAT, b"[" * 100_000), (CHAT, {}),
    (CHAT, {"messages": None}), (CHAT, {"messages": {}}), (CHAT, {"messages": "hi"}), messages(), messages("hi"),
    messages(None), messages({}), messages({"role": "user"}), messages({"content": "x"}),
    messages({"role": "wizard", "content": "x"}), messages({"role": 3, "content": "x"}),
    messages({"role": "user", "content": 5}), messages({"role": "user", "content": None}),
    messages({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}),
    messages({"role": "user", "content": [{"text": "x"}]}), messages({"role": "user", "content": ["x"]}),
    messages({"role": "user", "content": [{"type": "text"}]}), messages({"role": "assistant"}),
    messages({"role": "function", "name": "f", "content": "x"}),
    messages(*USER, {"role": "assistant", "tool_calls": {}}), messages(*USER, {"role": "assistant", "tool_calls": [1]}),
    messages(*USER, {"role": "assistant", "tool_calls": [{"function": {"arguments": "{}"}}]}),
    messages(*USER, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}),
    messages(*USER, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]}),
    messages(*USER, {"role": "assistant", "tool_calls": [{"type": "custom", "custom": {}}]}),
    chat(temperature="hot"), chat(temperature=-1), chat(temperature=2.5), chat(temperature=[1]), chat(top_p=0),
    chat(top_p=1.5), chat(top_k=-2), chat(top_k=1.5), chat(min_p=1), chat(presence_penalty=3),
    chat(frequency_penalty="x"), chat(repetition_penalty=0), chat(seed="x"), chat(seed=1.5), chat(seed=2**70),
    chat(max_tokens=0), chat(max_tokens=-5), chat(max_tokens="many"), chat(max_completion_tokens=0), chat(n=0),
    chat(n=129), chat(n="2"), chat(stop=5), chat(stop=[""]), chat(stop=["a", 1]), chat(stop=["x"] * 65),
    chat(logit_bias=[1]), chat(logit_bias={"x": 1}), chat(logit_bias={"-1": 1}), chat(logit_bias={"5": 101}),
    chat(logit_bias={"5": None}), chat(logit_bias={"99999999": 1}), chat(logprobs=2), chat(top_logprobs=2),
    chat(logprobs=True, top_logprobs=21), chat(stream="yes"), chat(stream_options={"include_usage": True}),
    chat(stream=True, stream_options=3), chat(stream=True, stream_options={"include_usage": 1}), chat(tools={}),
    chat(tools=[{}]), chat(tools=[{"type": "function"}]), chat(tools=[{"type": "retrieval"}]),
    chat(tools=[{"type": "function", "function": {"name": ""}}]),
    chat(tools=[{"type": "function", "function": {"name": "a b"}}]),
    chat(tools=[{"type": "function", "function": {"name": "f", "parameters": 5}}]), chat(tools=[TOOL, TOOL]),
    chat(tool_choice="required"), chat(tools=[TOOL], tool_choice="perhaps"), chat(tool_choice=5),
    chat(tools=[TOOL], tool_choice={"type": "function", "function": {"name": "other"}}), chat(parallel_tool_calls="no"),
    chat(functions=[{"name": "f"}]), chat(response_format={"type": "xml"}), chat(response_format="json"),
    chat(response_format={"type": "json_schema", "json_schema": {"schema": {"not": {}}}}),
    chat(response_format={"type": "json_object"}, ignore_eos=True),
    chat(response_format={"type": "json_schema", "json_schema": {}}), chat(reasoning_effort="enormous"),
    chat(chat_template_kwargs={"enable_thinking": "no"}), chat(chat_template_kwargs=[]), chat(thinking={"type": "so"}),
    chat(modalities=["audio"]), chat(continue_final_message=True), chat(model=5), chat(stop_token_ids=["x"]),
    chat(stop_token_ids=[10**6]), chat(ignore_eos=1), chat(priority="high"), chat(timeout=0), text(timeout="30s"),
    text(prompt=None), text(prompt=5), text(prompt=[]), text(prompt=[[]]), text(prompt=[1, "x"]), text(prompt=["x", 1]),
    text(prompt=[-1]), text(prompt=[10**7]), text(prompt=["x"] * 129), text(prompt=""), text(suffix="x"),
    text(logprobs=21), text(logprobs="x"), text(echo=True, logprobs=1), text(best_of=3), text(max_tokens=0),
    ("/tokenize", {}), ("/tokenize", {"prompt": 5}), ("/tokenize", {"content": "a", "messages": USER}),
    ("/detokenize", {}), ("/detokenize", {"tokens": "x"}), ("/detokenize", {"tokens": [10**6]}),
]


def test_malformed_requests_are_refused(idle):
    answered = [(path, body, *idle.request(path, body)) for path, body in MALFORMED]
    # An empty text is a prompt all the same: the model's prefix stands before it.
    wrong = [(p, b, s, a) for p, b, s, a in answered if s != 400 and not (b == text(prompt="")[1] and s == 200)]
    assert not wrong, wrong
    for _, body, status, answer in answered:
        if status == 400:
            assert answer["error"]["message"] and answer["error"]["type"] == "invalid_request_error", (body, answer)
            assert answer["error"]["param"], (body, answer)
    assert len(MALFORMED) >= 60


def test_odd_requests_that_are_fine(idle):
    for path, body in (chat(unknown={"x": 1}, user="me", store=False, metadata={}), chat(stop=None, n=None, tools=None),
                       chat(tools=[], tool_choice="none"), chat(tool_choice="auto"), chat(model="gpt-of-another-house"),
                       messages({"role": "developer", "content": [{"type": "text", "text": "Be brief."}]}, *USER),
                       messages(*USER, {"role": "assistant", "content": None, "tool_calls": [
                           {"id": "1", "type": "function", "function": {"name": "f", "arguments": ""}}]},
                           {"role": "tool", "tool_call_id": "1", "content": "x"}), chat(temperature=1e-40)):
        status, answer = idle.request(path, body)
        assert status == 200, (body, answer)


def test_paths_methods_and_health(server):
    assert server.request("/nothing")[0] == 404
    assert server.request(CHAT)[0] == 405
    assert server.request("/v1/models", method="DELETE")[0] == 405
    assert server.request("/health") == (200, {"status": "ok"})


def open_stream(server, body):
    """A raw connection with a request on it whose answer nobody has read."""
    data = json.dumps(body).encode()
    connection = socket.create_connection(server.address, timeout=30)
    connection.sendall(b"POST %s HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % (CHAT.encode(), len(data)) + data)
    return connection


def test_clients_that_leave_leave_nothing(idle):
    dice = random.Random(4)
    body = {"messages": [{"role": "user", "content": "Tell me a long story. " * 20}], "max_tokens": 4000,
            "ignore_eos": True}
    for _ in range(5):
        connections = [open_stream(idle, {**body, "stream": dice.random() < 0.7, "n": dice.choice([1, 1, 3])})
                       for _ in range(12)]
        dice.shuffle(connections)
        for connection in connections:
            if dice.random() < 0.5:
                time.sleep(dice.random() * 0.03)
            if dice.random() < 0.3:  # reset rather than end
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            connection.close()
    idle.wait_idle()
    assert sum(1 for entry in idle.log() if entry["status"] == 499) >= 60


def test_many_streams_at_once(idle):
    """More than run at the same time: all are answered, the tokens of each come one by one."""
    answers = []

    def ask(i):
        with open_stream(idle, {"messages": USER, "max_tokens": 16, "ignore_eos": True, "stream": True, "seed": i}) as s:
            data = b""
            while b"[DONE]" not in data:
                piece = s.recv(65536)
                assert piece, data
                data += piece
        answers.append(data.count(b"data: "))

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(64)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(answers) == 64 and min(answers) >= 4


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    keys = tmp_path_factory.mktemp("keys") / "keys.txt"
    keys.write_text("# of the house\nsecret-2\n", encoding="utf-8")
    with Server("--api-key", "secret-1", "--api-key-file", str(keys), "--max-queue", "2", "--max-body-mb", "1",
                "--name", "house-model", "--context", "512") as running:
        yield running


def test_keys(guarded):
    assert guarded.request("/v1/models")[0] == 401
    assert guarded.request("/v1/models", headers={"Authorization": "Bearer wrong"})[0] == 401
    for key in ("secret-1", "secret-2"):
        status, answer = guarded.request("/v1/models", headers={"Authorization": f"Bearer {key}"})
        assert status == 200 and answer["data"][0]["id"] == "house-model"
    assert guarded.request("/health")[0] == 200


def test_full_queue_and_large_bodies(guarded):
    key = {"Authorization": "Bearer secret-1"}
    assert guarded.request(CHAT, {"messages": USER, "n": 3}, key)[0] == 429
    status, answer = guarded.request(CHAT, b"{" + b" " * (2 << 20), key)
    assert status == 413 and answer["error"]["message"]


def test_answers_are_clipped_to_the_context(guarded):
    body = {"prompt": "one two three " * 120, "max_tokens": 100_000, "ignore_eos": True}
    status, answer = guarded.request("/v1/completions", body, {"Authorization": "Bearer secret-1"})
    assert status == 200 and answer["choices"][0]["finish_reason"] == "length"
    assert 300 < answer["usage"]["prompt_tokens"] < answer["usage"]["total_tokens"] <= 512


def test_sigterm_lets_answers_end_and_takes_no_more():
    with Server("--drain", "20") as running:
        connection = open_stream(running, {"messages": USER, "max_tokens": 600, "ignore_eos": True, "stream": True})
        data = connection.recv(65536)
        assert b"200 OK" in data
        running.process.send_signal(signal.SIGTERM)
        while piece := connection.recv(65536):
            data += piece
        connection.close()
        assert data.rstrip().endswith(b"data: [DONE]\n\n\r\n0"), data[-200:]
        with pytest.raises(OSError):
            socket.create_connection(running.address, timeout=5).close()
        assert running.stop() == 0
    assert running.log()[-1]["status"] == 200 and running.log()[-1]["generated_tokens"] == 600


def test_a_second_signal_cuts_off():
    with Server() as running:
        connection = open_stream(running, {"messages": USER, "max_tokens": 8000, "ignore_eos": True, "stream": True})
        assert b"200 OK" in connection.recv(65536)
        began = time.monotonic()
        running.process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(10) == 0
        assert time.monotonic() - began < 8
        connection.close()


def test_an_address_in_use_is_said(server):
    host, port = server.address
    out = subprocess.run([str(binary()), "serve", "--host", host, "--port", str(port)], cwd=ROOT, check=False,
                         capture_output=True, text=True, encoding="utf-8")
    assert out.returncode == 1 and "cannot listen" in out.stderr
