"""Ways to damage what a boundary takes: bytes, JSON values, TOML."""

from __future__ import annotations

import copy
import json
import random
from typing import Any


class Wrong(Exception):
    """A result that is not the right one."""


STRANGE_TEXTS = (
    "",
    " ",
    "[/INST] x",
    "[red]x[/red]",
    "<script>alert(1)</script>",
    "=1+1",
    "`a` | *b* [c](d) $e_f$ &lt;",
    "a\x1b[2Jb\x07",
    "\u202eabc\u2066",
    "\ud800",
    "x" * 5000,
    "-",
    "../../etc/passwd",
)
STRANGE_NUMBERS = (
    *(0, 1, -1, 2, 3, 7, 255, 2**31, -(2**31), 2**53, 2**63 - 1, 2**63, -(2**63), 10**30, 10**400),
    *(0.0, -0.0, 0.5, 1.5, -0.5, 1e-320, 1e-30, 1e30, 1e308, -1e308),
    *(float("inf"), float("-inf"), float("nan")),
)
DEEP = "@deep@"
"""Stands for lists within lists: the encoder of JSON would not make them."""


def damaged_bytes(rng: random.Random, data: bytes, within: int | None = None) -> bytes:
    """Bytes with one to four damages, within the first so many."""
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        end = max(1, min(len(found), within or len(found)))
        at, length = rng.randrange(end), rng.choice((1, 1, 2, 4, 8, 100))
        kind = rng.randrange(8)
        if kind == 0:
            found[at : at + 1] = bytes([found[at] ^ (1 << rng.randrange(8))]) if found else b""
        elif kind == 1:
            found[at : at + length] = rng.randbytes(length)
        elif kind == 2:
            found[at : at + length] = bytes([rng.choice((0, 255))]) * length
        elif kind == 3:
            del found[at : at + length]
        elif kind == 4:
            found[at:at] = rng.randbytes(length)
        elif kind == 5:
            del found[at:]
        elif kind == 6:
            size = rng.choice((4, 8))
            value = rng.choice((0, 1, 2**31 - 1, 2**31, 2**size * 8 - 1, 2 ** (size * 8) - 1))
            found[at : at + size] = (value % 2 ** (size * 8)).to_bytes(size, "little")
        else:
            other = rng.randrange(end)
            found[at : at + length] = found[other : other + length]
    return bytes(found)


def strange(rng: random.Random, value: Any = None) -> Any:
    """Something else than a value."""
    if isinstance(value, int | float) and not isinstance(value, bool) and rng.random() < 0.3:
        return rng.choice((-value, value + 1, value * 1000, value / 3, value * 1e20))
    kind = rng.randrange(8)
    if kind < 3:
        return rng.choice(STRANGE_NUMBERS)
    if kind < 5:
        return rng.choice(STRANGE_TEXTS)
    return rng.choice((None, True, False, [], {}, [[]], {"": 0}, [1, "a", None], DEEP))


def damaged_value(rng: random.Random, value: Any) -> Any:
    """A copy of JSON data with one to three of its parts changed."""
    found = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        places = list(_places(found))
        if not places:
            return strange(rng)
        holder, key = rng.choice(places)
        kind = rng.randrange(6)
        if kind == 0:
            del holder[key]
        elif kind == 1 and isinstance(holder, list):
            holder.insert(key, copy.deepcopy(holder[key]))
        elif kind == 1:
            holder[rng.choice(("unknown", "", "version"))] = strange(rng)
        elif kind == 2 and isinstance(holder[key], list | dict):
            holder[key] = type(holder[key])()
        else:
            holder[key] = strange(rng, holder[key])
    return found


def _places(value: Any) -> Any:
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in list(items):
        yield value, key
        if isinstance(inner, dict | list):
            yield from _places(inner)


def to_json(value: Any) -> str:
    """Text of JSON data; numbers that JSON does not have are written as Python does."""
    depth = 5000
    return json.dumps(value).replace(f'"{DEEP}"', "[" * depth + "]" * depth)


def to_toml(value: dict[str, Any]) -> str:
    """Text of tables of scalars and lists, and of lists of tables."""
    lines = [f"{_key(k)} = {_toml(v)}" for k, v in value.items() if not _is_table(v)]
    for name, inner in value.items():
        if isinstance(inner, dict):
            lines += [f"[{_key(name)}]", *(f"{_key(k)} = {_toml(v)}" for k, v in inner.items())]
        elif _is_table(inner):
            for row in inner:
                lines += [f"[[{_key(name)}]]", *(f"{_key(k)} = {_toml(v)}" for k, v in row.items())]
    return "\n".join(lines) + "\n"


def _is_table(value: Any) -> bool:
    rows = isinstance(value, list) and value and all(isinstance(x, dict) for x in value)
    return isinstance(value, dict) or bool(rows)


def _key(name: str) -> str:
    return json.dumps(name)


def _toml(value: Any) -> str:
    if value == DEEP and isinstance(value, str):
        return "[" * 5000 + "]" * 5000
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_key(k)} = {_toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if value is None:
        return '"null"'
    return str(value) if isinstance(value, float) else json.dumps(value)
