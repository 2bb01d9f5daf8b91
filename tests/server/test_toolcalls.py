"""Tool prompts that the model gets right offline (`glint eval toolcalls`) get valid calls through the server."""

import json
import random
from concurrent.futures import ThreadPoolExecutor

import jsonschema
from serving import glint_json
from test_openai import SYSTEM, tool

CITIES = ["Paris", "London", "Oslo", "Rome", "Berlin", "Cairo", "Lisbon", "Vienna"]
NAMES = ["Alice", "Bob", "Carol", "Emma", "Frank", "Olivia"]
DAYS = ["Monday", "Tuesday", "Friday", "Sunday"]
THINGS = ["milk", "bread", "apples", "coffee beans", "a red umbrella", "light bulbs"]

# The function; what may be asked of it; the values of its arguments. Those that a question does not name are left out.
FUNCTIONS = [
    (tool("get_weather", "Get the current weather of a city", ["city"], city="string",
          unit={"type": "string", "enum": ["celsius", "fahrenheit"]}),
     ["What is the weather in {city}?", "Tell me the temperature in {city} in {unit}."],
     {"city": CITIES, "unit": ["celsius", "fahrenheit"]}),
    (tool("add_numbers", "Add two numbers", ["a", "b"], a="integer", b="integer"),
     ["What is {a} plus {b}?", "Add {a} and {b}."], {"a": range(1, 99), "b": range(1, 99)}),
    (tool("send_email", "Send an email", ["to", "subject"], to="string", subject="string", urgent="boolean"),
     ["Send an email to {to} about {subject}."], {"to": NAMES, "subject": ["Lunch", "Report", "Meeting"]}),
    (tool("set_timer", "Set a timer", ["minutes"], minutes="integer"),
     ["Set a timer for {minutes} minutes."], {"minutes": range(2, 60)}),
    (tool("add_to_list", "Add items to the shopping list", ["items"],
          items={"type": "array", "items": {"type": "string"}}),
     ["I need to buy {items}.", "Add {items} to the list."], {"items": None}),
    (tool("get_time", "Get the current time", []), ["What time is it?"], {}),
    (tool("create_event", "Create a calendar event", ["title", "day"], title="string", day="string", hour="integer"),
     ["Put {title} in my calendar on {day}.", "Schedule {title} for {day} at {hour}."],
     {"title": ["Dentist", "Yoga", "Dinner"], "day": DAYS, "hour": range(7, 22)}),
]


def make_talks(n, seed):
    """Lines as `glint eval toolcalls` reads them: one question each, the call that answers it last."""
    rnd = random.Random(seed)
    for _ in range(n):
        offered = rnd.sample(FUNCTIONS, rnd.randint(1, 4))
        function, questions, values = rnd.choice(offered)
        question = rnd.choice(questions)
        arguments = {key: rnd.sample(THINGS, rnd.randint(1, 2)) if of is None else rnd.choice(of)
                     for key, of in values.items() if "{" + key + "}" in question}
        shown = {key: ", ".join(v) if isinstance(v, list) else v for key, v in arguments.items()}
        name = function["function"]["name"]
        call = {"role": "assistant", "content": "", "tool_calls": [{"name": name, "arguments": arguments}]}
        system = [SYSTEM] if rnd.random() < 0.5 else []
        yield {"task": name, "tools": [f for f, _, _ in offered],
               "messages": [*system, {"role": "user", "content": question.format(**shown)}, call]}


def is_valid(calls, tools):
    offered = {t["function"]["name"]: t["function"]["parameters"] for t in tools}
    try:
        for call in calls:
            jsonschema.validate(json.loads(call["function"]["arguments"]), offered[call["function"]["name"]])
    except (KeyError, ValueError, jsonschema.ValidationError):
        return False
    return len(calls) > 0


def test_prompts_that_are_right_offline_get_valid_calls(idle, tmp_path):
    talks = list(make_talks(30, seed=9))
    path = tmp_path / "toolcalls.jsonl"
    path.write_text("".join(json.dumps(talk) + "\n" for talk in talks))
    offline = glint_json("eval", "toolcalls", str(path))["each"]
    assert [o["task"] for o in offline] == ["call " + talk["task"] for talk in talks]
    right = [talk for talk, outcome in zip(talks, offline) if outcome["right"]]
    assert len(right) >= 20, f"{len(right)} of {len(talks)}: too few for a share of them to mean much"
    assert len({talk["task"] for talk in right}) >= 5

    def ask(talk):
        """Whether the calls are valid, and whether they are those that were right."""
        *messages, want = talk["messages"]
        status, answer = idle.request("/v1/chat/completions", {
            "messages": messages, "tools": talk["tools"], "temperature": 0, "max_tokens": 256,
            "enable_thinking": False})
        assert status == 200, answer
        choice = answer["choices"][0]
        calls = choice["message"].get("tool_calls") or []
        valid = choice["finish_reason"] == "tool_calls" and is_valid(calls, talk["tools"])
        return valid, valid and want["tool_calls"] == [
            {"name": c["function"]["name"], "arguments": json.loads(c["function"]["arguments"])} for c in calls]

    with ThreadPoolExecutor(32) as pool:
        outcomes = list(pool.map(ask, right))
    assert sum(valid for valid, _ in outcomes) >= 0.95 * len(right)
    assert all(same for _, same in outcomes), [t["messages"] for t, (_, same) in zip(right, outcomes) if not same]
