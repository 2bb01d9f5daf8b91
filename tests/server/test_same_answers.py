"""Greedy answers are those of `glint run`: alone and under load, cached and not, streamed and not."""

import json
import random
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest
from serving import Server, greedy_run

CLIENTS = 32
TOKENS = 32
LONG = "Remember these codes: " + ", ".join(f"box {i} = {(i * 37) % 101}" for i in range(30)) + ". "
QUESTIONS = [
    "Tell me a story about a fox.",
    "What is 12 plus 30?",
    "Write a short poem about rain and the old stone bridge by the river.",
    LONG + "What is the code for box 7?",
    LONG + "What is the code for box 41?",  # begins as the one before it: shares its pages under load
    "Hi!",  # fewer tokens than a part of a page must have to be shared
]


@pytest.fixture(scope="module")
def expected():
    """(reasoning, content, tokens) of each question, by the command."""
    answers = [greedy_run("-n", str(TOKENS), question) for question in QUESTIONS]
    return [(a["reasoning_content"], a["content"], a["usage"]["generated_tokens"]) for a in answers]


def body(question, **fields):
    return {"messages": [{"role": "user", "content": question}], "temperature": 0, "max_tokens": TOKENS, **fields}


def ask(server, question, streamed):
    """(reasoning, content, tokens), and how many of the prompt's tokens were cached."""
    if not streamed:
        status, answer = server.request("/v1/chat/completions", body(question))
        assert status == 200, answer
        message, usage = answer["choices"][0]["message"], answer["usage"]
        reasoning, content = message.get("reasoning_content") or "", message["content"] or ""
    else:
        fields = body(question, stream=True, stream_options={"include_usage": True})
        request = urllib.request.Request(server.url + "/v1/chat/completions", data=json.dumps(fields).encode())
        reasoning, content, usage = "", "", None
        with urllib.request.urlopen(request, timeout=server.timeout_s) as lines:
            for line in lines:
                if not line.startswith(b"data: {"):
                    continue
                chunk = json.loads(line[len(b"data: "):])
                usage = chunk.get("usage") or usage
                for choice in chunk["choices"]:
                    reasoning += choice["delta"].get("reasoning_content") or ""
                    content += choice["delta"].get("content") or ""
    return (reasoning, content, usage["completion_tokens"]), usage["prompt_tokens_details"]["cached_tokens"]


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("flags", [[], ["--no-prefix-cache"]], ids=["cached", "uncached"])
def test_alone(expected, flags, streamed):
    with Server("--no-log", *flags) as server:
        for turn in range(2):
            for question, want in zip(QUESTIONS, expected):
                got, cached = ask(server, question, streamed)
                assert got == want, question
                if turn > 0:
                    assert (cached > 0) == (not flags and question != "Hi!"), question


# The last: a cache that holds only a few of the long prompts at a time, so that requests wait and pages are evicted.
@pytest.mark.parametrize("cache_tokens, flags", [(65536, []), (65536, ["--no-prefix-cache"]), (1600, ["--context", "640"])],
                         ids=["cached", "uncached", "tight"])
def test_under_load(expected, cache_tokens, flags):
    with Server("--no-log", "--max-requests", str(CLIENTS), *flags, cache_tokens=cache_tokens) as server:
        def one(i):
            if i % 4 == 3:  # company whose answers nobody knows
                server.request("/v1/chat/completions", body(QUESTIONS[i % len(QUESTIONS)], temperature=1, seed=i))
                return None
            n = i % len(QUESTIONS)
            return n, ask(server, QUESTIONS[n], streamed=i // len(QUESTIONS) % 2 == 1)

        jobs = list(range(2 * CLIENTS))
        random.Random(4).shuffle(jobs)
        with ThreadPoolExecutor(CLIENTS) as pool:
            answers = [a for a in pool.map(one, jobs) if a is not None]
        for n, (got, _) in answers:
            assert got == expected[n], QUESTIONS[n]
        hits = sum(cached > 0 for _, (_, cached) in answers)
        assert (hits == 0) == ("--no-prefix-cache" in flags)
        metrics = server.metrics()
        assert metrics["glint_steps_total"] < metrics["glint_generated_tokens_total"]  # they did share steps
