"""Random JSON schemas within what constrained decoding supports, and short enough that their values are too."""

import random

WORDS = ["name", "age", "tags", "size", "unit", "city", "kind", "x",
         "with space", "naïve", "a\"b", "deep/er", "id", "ok"]


def scalar(rng):
    """A schema of a value without parts."""
    pick = rng.randrange(9)
    if pick == 0:
        low = rng.randint(-2000, 2000)
        return {"type": "integer", "minimum": low, "maximum": low + rng.choice([0, 3, 40, 12345])}
    if pick == 1:
        return {"type": "number", rng.choice(["minimum", "exclusiveMinimum"]): rng.choice([-2.5, 0, 10]),
                rng.choice(["maximum", "exclusiveMaximum"]): rng.choice([10.25, 11, 1e3])}
    if pick == 2:
        least = rng.randrange(4)
        return {"type": "string", "minLength": least, "maxLength": least + rng.randrange(12)}
    if pick == 3:
        return {"type": "string", "pattern": rng.choice(
            [r"^[A-Z]{2,3}-\d{1,4}$", r"^(red|green|blue)?$", r"^[^\s,]{1,8}$", r"^\w+@x\.org$", r"^(ab|cd)*e?$",
             r"^.{3}$", r"^[αβγ]{1,3}[\"\\]$"]), "maxLength": 16}
    if pick == 4:
        return {"type": "string", "format": rng.choice(["date", "date-time", "uuid", "ipv4"])}
    if pick == 5:
        return {"enum": rng.sample(["a", "ab", "", "é", 1, -2.5, None, True, [1, "x"], {"k": None}, "\n"], 3)}
    if pick == 6:
        return {"const": rng.choice(["x", 0, None, "quote\"", {"a": [1]}])}
    if pick == 7:
        return {"type": rng.choice(["boolean", "null", ["integer", "null"], ["boolean", "null"]])}
    return {"type": "integer", "exclusiveMinimum": -1, "maximum": 10**rng.randrange(1, 9)}


def schema(rng, depth=0):
    """A schema of any kind, nested at most two deep."""
    pick = rng.randrange(10) if depth < 2 else 9
    if pick < 4:
        names = rng.sample(WORDS, rng.randint(0, 3))
        out = {"type": "object", "properties": {n: schema(rng, depth + 1) for n in names},
               "required": [n for n in names if rng.random() < 0.6]}
        if rng.random() < 0.7:
            out["additionalProperties"] = False
        return out
    if pick < 6:
        least = rng.randrange(3)
        out = {"type": "array", "items": schema(rng, depth + 1), "minItems": least,
               "maxItems": least + rng.randrange(3)}
        if rng.random() < 0.3:
            out["prefixItems"] = [scalar(rng) for _ in range(rng.randint(1, 2))]
        return out
    if pick == 6:
        return {"anyOf": [schema(rng, depth + 1) for _ in range(rng.randint(2, 3))], "description": "either"}
    if pick == 7:
        return {"allOf": [{"type": "object", "properties": {"a": schema(rng, depth + 1)}, "required": ["a"]},
                          {"properties": {"a": True, "b": scalar(rng)}}]}
    return scalar(rng)


def generated(n, seed=7):
    """The same n schemas at each call."""
    rng = random.Random(seed)
    return [schema(rng) for _ in range(n)]


HAND_MADE = [
    {"type": "object", "required": ["city", "days"], "additionalProperties": False,
     "properties": {"city": {"type": "string", "maxLength": 20},
                    "days": {"type": "integer", "minimum": 1, "maximum": 14}}},
    {"oneOf": [
        {"type": "object", "required": ["type", "r"], "properties": {
            "type": {"const": "circle"}, "r": {"type": "number", "exclusiveMinimum": 0, "maximum": 9}}},
        {"type": "object", "required": ["type", "w"], "properties": {
            "type": {"const": "box"}, "w": {"type": "integer", "minimum": 1, "maximum": 9}}}]},
    {"type": "object", "additionalProperties": {"type": "boolean"}, "properties": {"on": {"type": "boolean"}},
     "required": ["on"]},
    {"type": "array", "minItems": 2, "maxItems": 2,
     "items": {"type": "array", "items": {"enum": [0, 1]}, "minItems": 2, "maxItems": 2}},
    {"type": "array", "items": {"$ref": "#/definitions/item"}, "maxItems": 2,
     "definitions": {"item": {"type": "object", "required": ["n"], "properties": {
         "n": {"type": ["number", "null"], "minimum": -1, "maximum": 1}}}}},
    {"type": "string", "maxLength": 0}, {"type": "string", "minLength": 5, "maxLength": 5}, {"enum": ["only"]},
    {"type": "number", "minimum": 0.1, "maximum": 0.11}, {"type": "integer", "minimum": -3, "maximum": -3},
]
