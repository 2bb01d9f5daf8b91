"""`glint eval all`: its reports, and that a second run goes on where the first stopped."""

import json
import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOKENS = "tests/data/golden/valid_tokens.safetensors"
ROWS = ["bf16", "int8", "preset q4 rtn", "cache int8", "cache int4"]
TASK = {
    "task": "lookup",
    "user": "Remember these codes: seed = 66. What is the code for seed?",
    "assistant": "The code for seed is 66.",
}
TOOL = {"type": "function", "function": {"name": "get_time", "description": "Get the current time", "parameters": {}}}
CALL = {
    "task": "get_time",
    "tools": [TOOL],
    "messages": [
        {"role": "user", "content": "What time is it?"},
        {"role": "assistant", "content": "", "tool_calls": [{"name": "get_time", "arguments": {}}]},
    ],
}


@pytest.fixture
def evaluate(tmp_path):
    command = os.environ.get("GLINT_COMMAND", str(ROOT / "glint"))
    if not Path(command).exists():
        pytest.skip("no glint command: run make")
    (tmp_path / "tasks.jsonl").write_text(json.dumps(TASK) + "\n")
    (tmp_path / "calls.jsonl").write_text(json.dumps(CALL) + "\n")

    def run(*flags):
        fixed = ["--tasks", tmp_path / "tasks.jsonl", "--toolcalls", tmp_path / "calls.jsonl", "--windows", "64,96"]
        limits = ["--max-tokens", "192", "--loop-limit", "1", "-q", "-o", tmp_path / "quality"]
        return subprocess.run(
            [command, "eval", "all", TOKENS, *fixed, *limits, *flags],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def test_measures_reports_and_goes_on(evaluate, tmp_path):
    first = evaluate("--only", ",".join(ROWS[:2]))
    assert first.returncode == 0, first.stderr
    assert "2 rows (2 measured now)" in first.stdout

    second = evaluate("--only", ",".join(ROWS))
    assert second.returncode == 0, second.stderr
    assert "5 rows (3 measured now)" in second.stdout

    report = json.loads((tmp_path / "quality.json").read_text())
    rows = {r["name"]: r for r in report["rows"]}
    assert list(rows) == ROWS
    assert rows["bf16"]["windows"][0]["kl_mean"] == 0
    tasks = rows["bf16"]["tasks"]
    assert (tasks["total"], tasks["same_as_reference"], tasks["lost"], tasks["won"]) == (1, 1, 0, 0)
    q4, int8 = rows["preset q4 rtn"], rows["int8"]
    assert 4.25 < q4["bits"] < 5 and 8 < int8["bits"] < 8.1
    assert q4["file_bytes"] < int8["file_bytes"] < rows["bf16"]["file_bytes"]
    assert 0 < int8["windows"][0]["kl_mean"] < q4["windows"][0]["kl_mean"] < 0.5
    assert [w["window"] for w in rows["cache int4"]["windows"]] == [64, 96]
    assert rows["cache int4"]["windows"][0]["positions"] == 192
    assert rows["cache int8"]["real_bytes"] == 47 * 576 and rows["cache int4"]["real_bytes"] == 47 * 336
    assert rows["cache int8"]["windows"][0]["kl_mean"] < rows["cache int4"]["windows"][0]["kl_mean"]
    assert rows["preset q4 rtn"]["meets"] is None and rows["cache int8"]["meets"] in (True, False)

    table = (tmp_path / "quality.md").read_text()
    assert "| preset q4 rtn |" in table and "| int4 | 4.67 |" in table
    assert (tmp_path / "quality.svg").read_text().count("<circle") == 2
    assert sorted(p.name for p in (tmp_path / "quality.work").iterdir()) == ["results.json"]


def test_refuses_what_does_not_belong(evaluate, tmp_path):
    bad = evaluate("--only", "int5")
    assert bad.returncode == 1 and "'int5'" in bad.stderr and "preset q4 gptq" in bad.stderr
    (tmp_path / "quality.work").mkdir(exist_ok=True)
    (tmp_path / "quality.work" / "results.json").write_text('{"setup": "of another run", "rows": {}}')
    other = evaluate("--only", "bf16")
    assert other.returncode == 1 and "another model, text or budget" in other.stderr
