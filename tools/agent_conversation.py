#!/usr/bin/env python3
"""An agent's conversation through `glint serve`: how many tokens does each turn read again?

    tools/agent_conversation.py [--turns 10] [--tokens 20000] [--mode tools|preserved|off|default] [--check]

Starts the built server over the bundled model with a longer context (a copy of its directory with another
max_position_embeddings), plays the turns as an agent's client does (what the server answered goes back unchanged,
reasoning and tool calls included), and prints a row a turn. --check plays the same against a server without a prefix
cache, and every answer must be the same. Fails when a turn reads 5 % or more of the earlier tokens again.
"""

import argparse
import json
import random
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any, Dict, List

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "server"))
from serving import Server  # noqa: E402

WORDS = ("the file was opened and its lines were read one by one until the end of the list while a small river ran "
         "through the old town where people had built houses of stone in the year 1850 and a girl named Lily found "
         "value return index error count total time water north island church school").split()
TOOLS = [{"type": "function", "function": {
    "name": "read_file", "description": "Read a file of the project.",
    "parameters": {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]}}}]


def text(rng: random.Random, n_words: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(n_words))


def long_context_model(folder: Path, positions: int) -> Path:
    """The bundled model with room for more tokens; its weights are linked."""
    source = ROOT / "models" / "tiny"
    model = folder / "tiny"
    model.mkdir()
    for file in source.iterdir():
        if file.name != "config.json":
            (model / file.name).symlink_to(file.resolve())
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config["max_position_embeddings"] = positions
    (model / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return model


def options(mode: str) -> Dict[str, Any]:
    if mode == "preserved":
        return {"chat_template_kwargs": {"clear_thinking": False}}
    if mode == "off":
        return {"chat_template_kwargs": {"enable_thinking": False}}
    return {"tools": TOOLS} if mode == "tools" else {}


def play(server: Server, mode: str, turns: int, tokens: int, answer_tokens: int = 100) -> List[Dict[str, Any]]:
    """A row a turn: prompt, cached, generated, again (tokens known before this turn that were read again)."""
    rng = random.Random(5)
    words = max(20, int(tokens * 0.95) // (turns + 2))
    messages: List[Dict[str, Any]] = [{"role": "system", "content": "You are a careful agent. " + text(rng, 2 * words)},
                                      {"role": "user", "content": "Begin. " + text(rng, words)}]
    rows: List[Dict[str, Any]] = []
    known = 0
    for turn in range(turns):
        body = {"messages": messages, "max_tokens": answer_tokens, "temperature": 0.8, "seed": turn, **options(mode)}
        status, answer = server.request("/v1/chat/completions", body)
        assert status == 200, answer
        message = answer["choices"][0]["message"]
        usage = answer["usage"]
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        rows.append({"turn": turn + 1, "prompt": usage["prompt_tokens"], "cached": cached,
                     "generated": usage["completion_tokens"], "known": known, "again": max(0, known - cached),
                     "message": {k: v for k, v in message.items() if k != "tool_calls"},
                     "calls": [call["function"] for call in message.get("tool_calls") or []]})
        known = usage["prompt_tokens"] + usage["completion_tokens"]
        messages.append({k: v for k, v in message.items() if k != "refusal"})
        calls = message.get("tool_calls") or []
        if mode == "tools":  # an agent's loop: whatever the model did, a tool's result comes next
            messages += [{"role": "tool", "tool_call_id": call["id"], "content": text(rng, words // len(calls))}
                         for call in calls] or [{"role": "tool", "content": text(rng, words)}]
        else:
            messages.append({"role": "user", "content": text(rng, words)})
    return rows


def share(row: Dict[str, Any]) -> float:
    """Of the tokens known before the turn, those read again."""
    return row["again"] / row["known"] if row["known"] else 0.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--tokens", type=int, default=20000)
    parser.add_argument("--mode", choices=("tools", "preserved", "off", "default"), default="tools")
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    try:
        positions = 2 * args.tokens + 8192
        model = long_context_model(folder, positions)
        flags = ("-m", str(model), "--no-log")
        Server.timeout_s = 900
        with Server(*flags) as server:
            rows = play(server, args.mode, args.turns, args.tokens)
        print("turn  prompt  cached  read  again  share")
        for row in rows:
            print(f"{row['turn']:4}  {row['prompt']:6}  {row['cached']:6}  {row['prompt'] - row['cached']:4}  "
                  f"{row['again']:5}  {100 * share(row):4.1f} %")
        if args.check:
            with Server(*flags, "--no-prefix-cache") as server:
                plain = play(server, args.mode, args.turns, args.tokens)
            for a, b in zip(rows, plain):
                assert (a["message"], a["calls"]) == (b["message"], b["calls"]), (a, b)
            print("without a prefix cache: the same answers")
        return int(any(share(row) >= 0.05 for row in rows))
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    sys.exit(main())
