"""glint bench serve: its load, its arithmetic and its files, on a server of its own and on one that is not there."""

import csv
import json
import socket
import subprocess
import xml.etree.ElementTree

import pytest
from serving import ROOT, binary


def bench_serve(*flags: str) -> subprocess.CompletedProcess:
    return subprocess.run([str(binary()), "bench", "serve", "--quiet", *flags], cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_levels_add_up_and_files_hold_every_answer(tmp_path):
    table, plot = tmp_path / "load.csv", tmp_path / "load.svg"
    got = bench_serve("--clients", "1,3", "--conversations", "4", "--turns", "2", "--prompt-words", "12", "--gen-tokens", "6",
                      "--json", "--csv", str(table), "--plot", str(plot))
    assert got.returncode == 0, got.stderr
    levels = json.loads(got.stdout)["levels"]
    assert [level["clients"] for level in levels] == [1, 3]
    for level in levels:
        assert (level["answers"], level["errors"], level["completion_tokens"]) == (8, 0, 48)
        assert 0 < level["first_token_s"]["p50"] <= level["first_token_s"]["p99"] <= level["seconds"]
        assert level["tokens_per_s"] * level["seconds"] == pytest.approx(48)
    # Each level has words of its own: the second finds its own first turns in the cache, not those of the first.
    assert levels[0]["prompt_tokens"] != levels[1]["prompt_tokens"]
    assert all(level["cached_tokens"] < level["prompt_tokens"] / 2 for level in levels)
    rows = list(csv.DictReader(table.open()))
    assert len(rows) == 16 and all(row["ok"] == "1" and row["status"] == "200" for row in rows)
    assert sum(int(row["prompt_tokens"]) for row in rows) == sum(level["prompt_tokens"] for level in levels)
    curves = xml.etree.ElementTree.parse(plot).findall(".//{http://www.w3.org/2000/svg}polyline")
    assert len(curves) == 4  # two panels of two levels


def test_arrivals_at_random(tmp_path):
    got = bench_serve("--rate", "40", "--conversations", "6", "--gen-tokens", "3", "--prefix-words", "20", "--json")
    assert got.returncode == 0, got.stderr
    (level,) = json.loads(got.stdout)["levels"]
    assert (level["rate"], level["answers"], level["errors"]) == (40, 6, 0)


def test_a_server_that_is_not_there_is_an_error_of_every_answer():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        got = bench_serve("--url", f"http://127.0.0.1:{unused.getsockname()[1]}", "--clients", "2", "--conversations", "3")
    assert got.returncode == 1
    assert "refused" in got.stdout.lower()


def test_a_url_of_another_kind_is_refused():
    got = bench_serve("--url", "ftp://example.org")
    assert got.returncode == 1
    assert "http://HOST[:PORT][/BASE]" in got.stderr
