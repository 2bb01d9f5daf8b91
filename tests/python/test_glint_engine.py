"""The package glint over the bundled model."""

import json
import math
import subprocess
import sys
import threading
import time

import pytest

import glint

STORY = "[gMASK]<sop>Once upon a time"


# ---- results ----


@pytest.mark.parametrize("name", ["story", "wiki", "code", "chat", "think", "tool", "unicode", "one"])
def test_greedy_is_hugging_faces(engine, golden, name):
    case = golden[name]
    result = engine.generate(case["text"], temperature=0, max_tokens=64, skip_special=False)
    # The golden ids are fp32's; bf16 weights with fp32 activations reach at least the first 16 of them, mostly all.
    same = [a == b for a, b in zip(result.ids, case["greedy_ids"])]
    assert all(same[:16]) and len(result.ids) >= min(16, len(case["greedy_ids"]))


def test_story_to_the_last_character(engine, golden):
    story = golden["story"]
    result = engine.generate(story["text"], temperature=0, max_tokens=64)
    assert result.text == story["greedy_text"]
    assert result.ids == story["greedy_ids"]
    assert result.finish_reason == "length"
    assert result.usage.prompt_tokens == len(engine.encode(story["text"]))
    assert result.usage.generated_tokens == 64
    assert result.usage.logits_hash != 0
    assert str(result) == result.text


def test_a_seed_decides_everything(engine):
    runs = [engine.generate(STORY, seed=7, max_tokens=24) for _ in range(2)]
    assert runs[0].ids == runs[1].ids
    assert runs[0].usage.logits_hash == runs[1].usage.logits_hash
    assert runs[0].usage.seed == 7
    others = {tuple(engine.generate(STORY, seed=s, max_tokens=24).ids) for s in range(8, 12)}
    assert len(others | {tuple(runs[0].ids)}) == 5


def test_a_random_seed_is_reported_and_repeats(engine):
    first = engine.generate(STORY, max_tokens=16)
    assert engine.generate(STORY, max_tokens=16, seed=first.usage.seed).ids == first.ids


def test_batch_equals_single(idle):
    prompts = [STORY, "[gMASK]<sop>The", idle.encode("[gMASK]<sop>def f(x):\n"), STORY + " there was a fox"]
    each = [{"seed": i, "max_tokens": 10 + i} for i in range(4)]
    alone = [idle.generate(p, **kw) for p, kw in zip(prompts, each)]
    steps = idle.stats()["steps"]
    together = idle.generate_batch(prompts, per_prompt=each)
    shared = idle.stats()["steps"] - steps
    assert [r.ids for r in together] == [r.ids for r in alone]
    assert [r.usage.logits_hash for r in together] == [r.usage.logits_hash for r in alone]
    assert shared < sum(len(r.ids) for r in alone)  # they ran in the same steps


def test_batch_refuses_as_a_whole(idle):
    with pytest.raises(glint.Error, match=r"ids\[0\]: found 99999"):
        idle.generate_batch([STORY, [99999]], max_tokens=0, ignore_eos=True)
    with pytest.raises(ValueError, match="per_prompt: found 1"):
        idle.generate_batch([STORY, STORY], per_prompt=[{}])
    assert idle.generate_batch([]) == []


def test_chat(engine, golden):
    answer = engine.chat("What is the capital of France?", temperature=0)
    think, content = golden["think"]["greedy_text"].replace("<|user|>", "").split("</think>")
    assert (answer.reasoning_content, answer.content) == (think, content)
    assert answer.finish_reason == "eos"
    assert answer.message == {"role": "assistant", "content": content, "reasoning_content": think}
    quick = engine.chat(
        [{"role": "user", "content": "Explain quantum computing."}], enable_thinking=False, temperature=0
    )
    assert quick.content == golden["chat"]["greedy_text"].replace("<|user|>", "")
    assert quick.reasoning_content == ""


def tools_of(text):
    """The tool schemas in a rendered prompt."""
    return [json.loads(line) for line in text.split("<tools>\n")[1].split("\n</tools>")[0].split("\n")]


def test_chat_with_tools(engine, golden):
    text = golden["tool"]["text"]
    tools = tools_of(text)
    messages = [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "Add a birthday cake, a garden hose to the list."},
    ]
    assert engine.render_chat(messages, tools=tools, enable_thinking=False) == text
    answer = engine.chat(messages, tools=tools, enable_thinking=False, temperature=0)
    assert answer.finish_reason == "tool_calls"
    (call,) = answer.tool_calls
    assert call["function"]["name"] == "add_to_list"
    assert json.loads(call["function"]["arguments"]) == {"items": ["a birthday cake", "a garden hose"]}
    # The answer goes back into the conversation, with the tool's result.
    turns = [*messages, answer.message, {"role": "tool", "content": "done"}]
    rendered = engine.render_chat(turns, tools=tools, enable_thinking=False)
    assert answer.generation.text in rendered and "<tool_response>done</tool_response>" in rendered


def test_score_is_teacher_forcing(engine):
    result = engine.generate(STORY, temperature=0, max_tokens=8, logprobs=2)
    ids = engine.encode(STORY) + result.ids
    scores = engine.score(ids)
    assert len(scores) == len(ids) - 1 and all(s <= 0 for s in scores)
    assert result.logprobs == pytest.approx(scores[-8:], abs=1e-4)
    assert all(len(top) == 2 and top[0][0] == i for top, i in zip(result.top_logprobs, result.ids))
    assert all(top[0][1] == pytest.approx(lp) for top, lp in zip(result.top_logprobs, result.logprobs))
    assert engine.score(ids[:1]) == []
    assert engine.generate(STORY, temperature=0, max_tokens=2).logprobs is None


# ---- parameters ----


def test_stop_text(engine, golden):
    story = golden["story"]
    result = engine.generate(story["text"], temperature=0, max_tokens=64, stop="boat")
    assert result.text == story["greedy_text"].split("boat")[0]
    assert (result.finish_reason, result.stop_string) == ("stop", "boat")


def test_stop_ids_and_bias(engine, golden):
    story = golden["story"]
    third = story["greedy_ids"][2]
    cut = engine.generate(story["text"], temperature=0, max_tokens=64, stop_ids=[third])
    assert cut.finish_reason == "stop" and cut.ids[:2] == story["greedy_ids"][:2] and len(cut.ids) <= 3
    first = story["greedy_ids"][0]
    banned = engine.generate(story["text"], temperature=0, max_tokens=4, logit_bias={first: -100.0})
    assert first not in banned.ids


def test_none_means_default(engine):
    assert (
        engine.generate(STORY, seed=1, max_tokens=8, top_k=None, stop=None).ids
        == engine.generate(STORY, seed=1, max_tokens=8).ids
    )


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ({"foo": 1}, TypeError, "unknown sampling parameter foo; known: constraint, frequency_penalty"),
        ({"temperature": -1}, glint.Error, "temperature: found -1"),
        ({"top_p": 0}, glint.Error, "top_p"),
        ({"top_k": "many"}, glint.Error, 'field "top_k": found "many"'),
        ({"stop": ""}, glint.Error, "stop: found an empty string"),
        ({"max_tokens": -1}, glint.Error, "max_tokens: found -1"),
        ({"timeout_s": -1}, glint.Error, "timeout_s: found -1"),
        ({"priority": 1.5}, glint.Error, 'field "priority": found 1.5'),
        ({"temperature": math.nan}, ValueError, "JSON"),
    ],
)
def test_wrong_parameters(idle, given, error, says):
    with pytest.raises(error, match=says):
        idle.generate(STORY, **given)


def test_wrong_prompts(idle):
    with pytest.raises(glint.Error, match="at least one"):
        idle.generate("")
    with pytest.raises(ValueError, match="whole number"):
        idle.generate([1.5])
    with pytest.raises(glint.Error):
        idle.generate([1] * 9000)  # longer than the context
    with pytest.raises(glint.Error, match="role"):
        idle.chat([{"role": 3}])


def test_wrong_options(tmp_path, root):
    with pytest.raises(glint.Error, match="no such directory"):
        glint.Engine(tmp_path / "none")
    with pytest.raises(glint.Error, match="config.json"):
        glint.Engine(tmp_path)
    with pytest.raises(TypeError, match="unknown engine option thread"):
        glint.Engine(root / "models/tiny", thread=1)
    with pytest.raises(glint.Error, match="device"):
        glint.Engine(root / "models/tiny", device="abacus")
    assert issubclass(glint.Error, RuntimeError)


def test_model_dir_from_the_environment(monkeypatch, tmp_path, root):
    assert glint.default_model_dir() == str(root / "models/tiny")
    monkeypatch.setenv("GLINT_MODEL", str(tmp_path))
    assert glint.default_model_dir() == str(tmp_path)
    monkeypatch.setenv("GLINT_MODEL", str(tmp_path / "none"))
    with pytest.raises(glint.Error, match="from GLINT_MODEL"):
        glint.Engine()


# ---- text ----


@pytest.mark.parametrize("text", ["", "Hello, world", "Zürich — 東京 🙂\r\n\tx", "a\x00b", "<|user|>hi<think>"])
def test_encode_decode(engine, text):
    assert engine.decode(engine.encode(text)) == text
    assert engine.decode(engine.encode(text, literal=True)) == text


def test_literal_tags(engine):
    assert len(engine.encode("<|user|>")) == 1
    assert len(engine.encode("<|user|>", literal=True)) > 1
    assert engine.decode(engine.encode("<|user|>hi"), skip_special=True) == "hi"


def test_half_a_character(engine):
    ids = engine.encode("🙂")
    assert len(ids) > 1
    assert "\ufffd" in engine.decode(ids[:-1])
    with pytest.raises(UnicodeDecodeError):
        engine.decode(ids[:-1], errors="strict")


def test_lone_surrogates_are_refused(engine):
    with pytest.raises(ValueError):
        engine.encode("\ud800")
    with pytest.raises((ValueError, glint.Error)):
        engine.chat("\ud800")


# ---- streams ----


def test_stream_is_generate(idle):
    events = list(idle.stream(STORY, seed=3, max_tokens=40))
    whole = idle.generate(STORY, seed=3, max_tokens=40)
    assert "".join(e.text for e in events) == whole.text
    assert [e.token for e in events if e.token >= 0] == whole.ids
    assert [e.finish_reason for e in events[:-1]] == [None] * (len(events) - 1)
    assert events[-1].finish_reason == whole.finish_reason
    assert len(events) > 10


def test_result_after_some_events(idle):
    stream = idle.stream(STORY, seed=3, max_tokens=20)
    next(stream)
    assert stream.result().ids == idle.generate(STORY, seed=3, max_tokens=20).ids
    assert stream.finished and list(stream) == []


@pytest.mark.parametrize("how", ["cancel", "close", "with", "drop", "break"])
def test_ending_early_frees_the_request(idle, how):
    endless = {"max_tokens": 0, "ignore_eos": True}
    if how == "cancel":
        stream = idle.stream(STORY, **endless)
        next(stream)
        stream.cancel()
        assert stream.result().finish_reason == "cancelled"
    elif how == "close":
        stream = idle.stream(STORY, **endless)
        next(stream)
        stream.close()
        assert stream.finished and list(stream) == []
        with pytest.raises(glint.Error, match="closed before its end"):
            stream.result()
    elif how == "with":
        with idle.stream(STORY, **endless) as stream:
            next(stream)
    elif how == "drop":
        stream = idle.stream(STORY, **endless)
        next(stream)
        del stream
    else:
        for _ in idle.stream(STORY, **endless):
            break


def test_prefill_progress(root):
    with glint.Engine(root / "models/tiny", chunk_tokens=16) as engine:
        stream = engine.stream([100] * 100, max_tokens=1, ignore_eos=True)
        seen = []
        while not stream.finished:
            stream.next_event(timeout_s=30)
            seen.append(stream.prefill_done)
        assert seen == sorted(seen) and seen[-1] == stream.prompt_tokens == 100
        assert len(set(seen)) >= 3


# ---- threads and life ----


def test_threads_share_an_engine(idle):
    expected = {seed: idle.generate(STORY, seed=seed, max_tokens=12).ids for seed in range(6)}
    got, failures = {}, []

    def work(seed):
        try:
            got[seed] = idle.generate(STORY, seed=seed, max_tokens=12).ids
            assert idle.encode("Hello") == idle.encode("Hello")
        except Exception as error:  # noqa: BLE001 (reported below)
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert failures == [] and got == expected


def test_waiting_lets_other_threads_run(idle):
    """The GIL is free while a request is awaited."""
    stream = idle.stream(STORY, max_tokens=0, ignore_eos=True)
    reader = threading.Thread(target=stream.result)
    reader.start()
    counted = sum(1 for _ in range(200_000))
    assert counted == 200_000 and reader.is_alive()
    stream.cancel()
    reader.join(timeout=60)
    assert not reader.is_alive()


def test_close_ends_waiting_threads(root):
    engine = glint.Engine(root / "models/tiny")
    stream = engine.stream(STORY, max_tokens=0, ignore_eos=True)
    ended = []
    reader = threading.Thread(target=lambda: ended.append(stream.result().finish_reason))
    reader.start()
    time.sleep(0.1)
    engine.close()
    reader.join(timeout=60)
    assert ended == ["cancelled"]
    engine.close()
    assert engine.closed and "closed" in repr(engine)
    with pytest.raises(glint.Error, match="the engine is closed"):
        engine.generate(STORY)


def test_ctrl_c_interrupts_a_wait(root):
    """In a process of its own: a timer sends SIGINT while the main thread waits in native code."""
    program = (
        "import glint, os, signal, threading\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a background job begins with it ignored
        "engine = glint.Engine()\n"
        "threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT)).start()\n"
        "try:\n"
        "    engine.generate('[gMASK]<sop>Once', max_tokens=0, ignore_eos=True)\n"
        "except KeyboardInterrupt:\n"
        "    print('interrupted', engine.stats()['running_requests'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, cwd=root, check=False
    )
    assert (done.returncode, done.stdout) == (0, "interrupted 0\n"), done.stderr


def test_load_progress(root):
    calls = []
    with glint.Engine(root / "models/tiny", on_load=lambda done, total: calls.append((done, total))) as engine:
        assert engine.info["weight_bytes"] > 70e6
    assert calls and calls[-1][0] == calls[-1][1] > 0

    def fails(done, total):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        glint.Engine(root / "models/tiny", on_load=fails)


def test_info_and_stats_match_their_types(engine):
    assert set(engine.info) == set(glint.ModelInfo.__annotations__)
    assert set(engine.stats()) == set(glint.EngineStats.__annotations__)
    assert engine.info["n_parameters"] == 39_332_288 and engine.info["eos_ids"] == [8128, 8135, 8137]


def fields_of(header, name):
    """The members of a struct of engine.hpp."""
    body = header.split(f"struct {name} {{")[1].split("\n};")[0]
    code = [line.split("//")[0] for line in body.splitlines()]
    return {line.split(";")[0].split("=")[0].split()[-1] for line in code if ";" in line}


def test_options_are_those_of_the_header(root):
    """Field for field; use_thread and the callbacks are Python's own business."""
    header = (root / "include/glint/engine.hpp").read_text(encoding="utf-8")
    options = fields_of(header, "EngineOptions") - {"model_dir", "use_thread", "on_load", "on_notice"}
    assert options == set(glint.EngineOptions.__annotations__)
    request = fields_of(header, "Request") - {"ids", "sampling", "on_ready"}
    assert request | fields_of(header, "SamplingParams") == set(glint.Sampling.__annotations__)


def test_a_timeout_ends_a_request_and_keeps_its_text(idle):
    got = idle.generate(STORY, max_tokens=0, ignore_eos=True, timeout_s=0.3, seed=1, priority=1)
    assert got.finish_reason == "timeout"
    assert 0 < got.usage.generated_tokens == len(got.ids)
    assert got.text and got.ids == idle.generate(STORY, max_tokens=len(got.ids), ignore_eos=True, seed=1).ids


def test_notices(root, tmp_path):
    (tmp_path / "0123456789abcdef.kv").write_bytes(b"no block")
    with glint.Engine(root / "models/tiny", max_context=256, cache_dir=str(tmp_path)) as engine:
        (notice,) = engine.notices()
        assert "0123456789abcdef.kv" in notice
        assert engine.notices() == []


def test_constraint_gives_json_of_the_schema(engine):
    schema = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 1, "maximum": 9}}, "required": ["n"]}
    answer = engine.chat("Tell me a story.", max_tokens=60, enable_thinking=False, seed=3,
                         constraint={"json_schema": schema})
    assert answer.generation.finish_reason == "eos"
    assert 1 <= json.loads(answer.content)["n"] <= 9
    with pytest.raises(glint.Error, match=r"json_schema\.properties\.n\.not"):
        engine.generate("x", max_tokens=4, constraint={"json_schema": {"properties": {"n": {"not": {}}}}})
    with pytest.raises(glint.Error, match="ignore_eos"):
        engine.generate("x", max_tokens=4, ignore_eos=True, constraint={"json_object": True})
