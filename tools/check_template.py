#!/usr/bin/env python3
"""Differential test of the chat template: random conversations through Jinja and through `glint template`.

Jinja runs under Hugging Face's settings (apply_chat_template of transformers: ImmutableSandboxedEnvironment,
trim_blocks, lstrip_blocks, tojson = json.dumps). Both must give the same bytes, or both must refuse.

  pip install jinja2
  tools/check_template.py [--glint ./glint] [--cases 3000] [--seed 1]
"""
import argparse
import json
import random
import subprocess
import sys

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

MISSING = object()


def make_renderer(path):
    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    env = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols])
    env.filters["tojson"] = tojson
    with open(path, encoding="utf-8") as f:
        return env.from_string(f.read()).render


class Maker:
    """Random requests; about one in ten has something that the template refuses."""

    TEXTS = ["", " ", "\n", "Hello", "  b  ", "\n\nx\n", "Köln 你好 😀", "<think>a</think>b", "\nr\n</think>\n\nc", "</think>",
             "<think>", "x<think>\n y \n</think>z</think>w", "<tool_call>f</tool_call>", "<|user|>", "it's \"q\"", "\\n",
             "\u00a0nb\u3000", "\x1cfs\x1f", "\x85", "\u200b", "\ufeff", "\u2028", "\x00", "\x7f", "a\tb\r", "{{ x }}",
             "{% if %}", "&<>'", "\U000e0001", "\ue000", "\u0378", "e\u0301", "None", "true", "5"]
    NUMBERS = ["0", "-0", "-0.0", "0.0", "1", "-7", "2.50", "1e-7", "1E5", "1e15", "1e16", "123456789.125", "1e22", "1e400",
               "-1e400", "1e-400", "5e-324", "0.1", "0.30000000000000004", "1.7976931348623157e308", "0.0001", "0.00001",
               "12345678901234567", "9223372036854775807", "9223372036854775808", "18446744073709551616",
               "12345678901234567890123", "-98765432109876543210", "1e+2", "100000.0e-10", "3.14159265358979323846"]

    def __init__(self, seed):
        self.r = random.Random(seed)

    def one(self, *options):
        return self.r.choice(options)

    def chance(self, p):
        return self.r.random() < p

    def text(self):
        return "".join(self.r.choice(self.TEXTS) for _ in range(self.r.randint(0, 3)))

    def string(self):
        s = self.text()
        if self.chance(0.2):
            s += chr(self.one(self.r.randint(0, 0xd7ff), self.r.randint(0xe000, 0x10ffff)))
        return json.dumps(s, ensure_ascii=self.chance(0.5))

    # Values are JSON text, so that numbers keep forms which json.dumps would never write.
    def value(self, depth=0):
        kind = self.r.randint(0, 9 if depth < 3 else 6)
        if kind <= 2:
            return self.string()
        if kind == 3:
            return self.r.choice(self.NUMBERS)
        if kind == 4:
            return repr(self.r.choice([self.r.uniform(-1, 1), self.r.random() * 10 ** self.r.randint(-30, 30),
                                       self.r.randint(-10**30, 10**30)]))
        if kind <= 6:
            return self.one("null", "true", "false")
        if kind == 7:
            return "[" + ", ".join(self.value(depth + 1) for _ in range(self.r.randint(0, 3))) + "]"
        return self.object({}, depth)

    def object(self, fields, depth=0):
        pairs = [(json.dumps(k, ensure_ascii=False), v) for k, v in fields.items() if v is not MISSING]
        if not fields or self.chance(0.1):
            for _ in range(self.r.randint(0, 3)):
                key = self.one('"a"', '"ü"', '"b c"', '"output"', '"type"', '"text"', '"items"', '"get"', '"__class__"',
                               self.string())
                pairs.insert(self.r.randint(0, len(pairs)) if not fields else len(pairs), (key, self.value(depth + 1)))
        return "{" + self.one(",", ", ").join(f"{k}:{self.one('', ' ')}{v}" for k, v in pairs) + "}"

    def content(self, role):
        kind = self.r.random()
        if kind < 0.7:
            return self.string()
        if kind < 0.75:
            return self.one(MISSING, "null", self.value())
        return "[" + ",".join(self.part(role) for _ in range(self.r.randint(0, 3))) + "]"

    def part(self, role):
        if role == "tool" and self.chance(0.5):
            return self.object({"output": self.value()})
        kind = self.r.randint(0, 5)
        if kind <= 2:
            return self.object({"type": '"text"', "text": self.one(self.string(), self.string(), MISSING, self.value())})
        if kind == 3:
            return self.object({"type": self.one('"image_url"', '"TEXT"', "null"), "image_url": self.string()})
        return self.string() if kind == 4 else self.value()

    def call(self):
        arguments = self.object({}) if self.chance(0.9) else self.object({self.one("a", "city", "x y", ""): self.value()})
        name = json.dumps(self.one("get_weather", "noargs", "ü", "a.b-c", ""))
        if self.chance(0.02):
            arguments = self.one(MISSING, "null", json.dumps(arguments), "[]", "3")
        if self.chance(0.02):
            name = self.one(MISSING, "null", "5")
        inner = self.object({"name": name, "arguments": arguments})
        if self.chance(0.3):
            return inner if self.chance(0.7) else self.object(
                {"function": self.one("{}", "null", "0", '""'), "name": name, "arguments": arguments})
        return self.object({"id": '"c1"', "type": '"function"', "function": inner})

    def message(self):
        role = self.one("user", "assistant", "assistant", "tool", "tool", "system", self.one("developer", "User", ""))
        fields = {"role": json.dumps(role), "content": self.content(role)}
        if self.chance(0.5 if role == "assistant" else 0.05):
            fields["reasoning_content"] = self.string() if self.chance(0.9) else self.value()
        if self.chance(0.4 if role == "assistant" else 0.05):
            calls = "[" + ",".join(self.call() for _ in range(self.r.randint(0, 3))) + "]"
            fields["tool_calls"] = calls if self.chance(0.95) else self.one("null", "false", "0", '""', "{}", "[]")
        if self.chance(0.1):
            fields["reasoning"] = self.string()
        return self.object(fields)

    def request(self):
        fields = {"messages": "[" + ",".join(self.message() for _ in range(self.r.randint(0, 7))) + "]"}
        if self.chance(0.4):
            tools = [self.object({"type": '"function"', "function": self.object({"name": '"f"', "parameters": self.value()})})
                     if self.chance(0.7) else self.value() for _ in range(self.r.randint(0, 3))]
            fields["tools"] = "[" + ",".join(tools) + "]"
        for flag in ("add_generation_prompt", "enable_thinking", "clear_thinking"):
            if self.chance(0.5):
                fields[flag] = self.one("true", "false")
        return "{" + ", ".join(f'"{k}": {v}' for k, v in fields.items()) + "}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--glint", default="./glint")
    parser.add_argument("--template", default="tests/data/GLM-4.7-Flash.jinja")
    parser.add_argument("--cases", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()

    render = make_renderer(args.template)
    maker = Maker(args.seed)
    requests = [maker.request() for _ in range(args.cases)]
    lines = "".join(r + "\n" for r in requests)
    done = subprocess.run([args.glint, "template"], input=lines.encode(), stdout=subprocess.PIPE, check=False)
    answers = done.stdout.decode().split("\n")[:-1]
    if len(answers) != len(requests):
        sys.exit(f"{len(answers)} answers to {len(requests)} requests")

    wrong = refused = 0
    for request, answer in zip(requests, answers):
        ours = json.loads(answer)
        try:
            expected = render(**json.loads(request))
        except Exception as e:  # whatever the template raises, glint has to refuse too
            expected = None
            problem = f"{type(e).__name__}: {e}"
        refused += expected is None
        if ours.get("text") == expected:
            continue
        wrong += 1
        if wrong <= 5:
            print(f"request: {request}\n  jinja: {problem if expected is None else repr(expected)}\n  glint: {ours!r}")
    print(f"{len(requests)} requests, {refused} refused by both sides or one, {wrong} differences")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
