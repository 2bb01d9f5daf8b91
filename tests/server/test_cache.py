"""The prefix cache through the server: turns of a conversation, restarts, crashes. Short versions of two tools."""

import sys
from pathlib import Path

import pytest
from serving import ROOT, Server

sys.path.insert(0, str(Path(ROOT) / "tools"))
import agent_conversation  # noqa: E402
import cache_crash  # noqa: E402

STORY = [{"role": "user", "content": "Tell me about the river and the town. " * 24}]


@pytest.mark.parametrize("mode", ["tools", "preserved"])
def test_an_agents_turns_read_only_what_is_new(mode):
    game = {"turns": 4, "tokens": 900, "answer_tokens": 16}
    with Server("--no-log") as server:
        rows = agent_conversation.play(server, mode, **game)
        metrics = server.metrics()
    assert all(agent_conversation.share(row) < 0.05 for row in rows), rows
    assert rows[-1]["cached"] > 400
    if mode == "tools":
        with Server("--no-log", "--no-prefix-cache") as server:
            plain = agent_conversation.play(server, mode, **game)
        for row, other in zip(rows, plain):
            assert (row["message"], row["calls"]) == (other["message"], other["calls"])
            assert other["cached"] == 0
    assert metrics["glint_cache_hit_tokens_total"] == sum(row["cached"] for row in rows)
    assert metrics["glint_cached_prompt_tokens_total"] == sum(row["cached"] for row in rows)


def test_choices_of_one_prompt_share_it(server):
    body = {"messages": STORY, "max_tokens": 4, "n": 4, "seed": 3}
    before = server.metrics()["glint_prefill_rows_total"]
    status, answer = server.request("/v1/chat/completions", body)
    assert status == 200
    assert len(answer["choices"]) == 4
    read = server.metrics()["glint_prefill_rows_total"] - before
    assert read < 2 * answer["usage"]["prompt_tokens"]


def test_the_first_turn_after_a_restart_hits(tmp_path):
    body = {"messages": STORY, "max_tokens": 8, "temperature": 0}
    flags = ("--cache-dir", str(tmp_path / "cache"), "--cache-dir-size", "100M")
    with Server(*flags) as server:
        first = server.request("/v1/chat/completions", body)[1]
    with Server(*flags) as server:
        again = server.request("/v1/chat/completions", body)[1]
        assert server.metrics()["glint_cache_disk_loaded_tokens_total"] > 0
    assert again["choices"][0]["message"] == first["choices"][0]["message"]
    tokens = first["usage"]["prompt_tokens"]
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] >= tokens - 64
    assert first["usage"]["prompt_tokens_details"]["cached_tokens"] == 0


def test_a_directory_that_cannot_be_used_is_said_once(tmp_path):
    (tmp_path / "file").write_text("not a directory")
    with Server("--cache-dir", str(tmp_path / "file")) as server:
        status, _ = server.request("/v1/chat/completions", {"messages": STORY, "max_tokens": 2})
        assert status == 200
        said = [line for line in server.lines if "cache directory" in line]
        assert len(said) == 1, said


def test_killed_servers_leave_a_directory_that_can_be_used():
    seen = cache_crash.run(rounds=5, seed=2, beginnings=2)
    assert seen["killed"] == 4
    assert seen["answers"] >= 12  # of the last round, which is not killed
    assert seen["hits"] > 0
    assert seen["loaded_tokens"] > 0
