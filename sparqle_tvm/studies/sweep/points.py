"""The points of a sweep: every combination of a grid, or a list, from TOML or the command line.

A point is a mapping from names to numbers or strings. Names are the parameters of
`studies.estimate.estimate` and the numeric fields of the accelerator, which replace those of
the ``target``::

    [fixed]                      # what all points share
    model = "llama2-7b"
    phase = "prefill"

    [grid]                       # every combination; the last name varies fastest
    seq = [128, 512, 2048]
    dram_bytes_per_cycle = [8, 16, 32]

or, instead of ``[grid]``, single points as ``[[points]]``.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields

from sparqle_tvm._versions import VERSION
from sparqle_tvm.errors import InvalidArgumentError, choose_from
from sparqle_tvm.files import MAX_AMOUNT, read_toml, typed
from sparqle_tvm.results.passes import PHASES
from sparqle_tvm.target.accelerator import OTHER_NAMES, Accelerator

Value = str | int | float | bool
Point = Mapping[str, Value]

ESTIMATE_KINDS: Mapping[str, tuple[type, ...]] = {
    "model": (str,),
    "phase": (str,),
    "seq": (int,),
    "batch": (int,),
    "msb_sparsity": (str, float, int),
    "kv_bits": (int,),
    "kv": (str,),
    "target": (str,),
    "node": (str,),
    "memory": (str,),
}
_KINDS = {str: "word", int: "whole number", float: "number", bool: "true or false"}
ACCELERATOR_NAMES = tuple(f.name for f in fields(Accelerator) if f.name != "name")
DEFAULTS: Point = {
    "model": "llama2-7b",
    "phase": "prefill",
    "seq": 2048,
    "batch": 1,
    "msb_sparsity": "measured",
    "target": "sparqle/edge",
}
"""What a point has unless it says otherwise."""
MAX_POINTS = 1_000_000


def choose_name(word: str, known: Collection[str]) -> str:
    """What to say where a word is no name of a point."""
    return choose_from(OTHER_NAMES.get(word, word), known)


@dataclass(frozen=True)
class Sweep:
    """The points of a sweep in order.

    Attributes
    ----------
    points : tuple of mapping
        Each has the same names or fewer; what a point does not name has its default.

    Raises
    ------
    InvalidArgumentError
        If there is no point, or a name is unknown.
    """

    points: tuple[Point, ...]

    def __post_init__(self) -> None:
        """Refuse unknown names and an empty sweep."""
        if not self.points:
            raise InvalidArgumentError("the sweep has no point; give a grid or points")
        known = {*ESTIMATE_KINDS, *ACCELERATOR_NAMES}
        for name in self.names:
            if name not in known:
                raise InvalidArgumentError(
                    f"sweep: {name!r} is unknown; {choose_name(name, sorted(known))}"
                )
        for name, value in (pair for point in self.points for pair in point.items()):
            kinds = ESTIMATE_KINDS.get(name, (int, float, bool))
            other = not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds)
            if other or (isinstance(value, float) and not math.isfinite(value)):
                names = " or ".join(_KINDS[kind] for kind in kinds)
                raise InvalidArgumentError(f"sweep: {name} = {value!r} is no {names}")
            if name in ("seq", "batch") and int(value) < 1:
                raise InvalidArgumentError(f"sweep: {name} = {value!r} must be at least 1")

    @property
    def names(self) -> tuple[str, ...]:
        """All names that occur, in the order of their first point."""
        return tuple(dict.fromkeys(name for point in self.points for name in point))

    @property
    def digest(self) -> str:
        """SHA-256 of the points and the version of this package: equal digests, equal results."""
        content = json.dumps([VERSION, [dict(p) for p in self.points]])
        return hashlib.sha256(content.encode()).hexdigest()

    @classmethod
    def grid(cls, axes: Mapping[str, Sequence[Value]], fixed: Point | None = None) -> Sweep:
        """Every combination of the axes' values; the last axis varies fastest.

        The fixed phase ``both`` is an axis of its two values.

        Raises
        ------
        InvalidArgumentError
            If an axis is empty, is fixed as well, or the combinations are too many.
        """
        fixed = fixed or {}
        if fixed.get("phase") == "both":
            axes = {"phase": PHASES, **axes}
            fixed = {name: value for name, value in fixed.items() if name != "phase"}
        for name, values in axes.items():
            if not values:
                raise InvalidArgumentError(f"sweep: {name} has no values")
            if name in fixed:
                raise InvalidArgumentError(f"sweep: {name} is both fixed and an axis of the grid")
        count = math.prod(len(values) for values in axes.values())
        if count > MAX_POINTS:
            raise InvalidArgumentError(
                f"sweep: the grid has {count} points, more than {MAX_POINTS}; take fewer values"
            )
        combinations = itertools.product(*axes.values())
        return cls(tuple({**fixed, **dict(zip(axes, c, strict=True))} for c in combinations))


def read_sweep(path: str | os.PathLike[str]) -> Sweep:
    """Read a sweep from a TOML file.

    Raises
    ------
    InvalidArgumentError
        If the file is missing, no TOML, or not of the form above; names the place.
    """
    content = typed(read_toml(path, InvalidArgumentError), _Content, path, InvalidArgumentError)
    if (content.grid is None) == (content.points is None):
        raise InvalidArgumentError(f"{path}: a sweep has either [grid] or [[points]]")
    try:
        if content.grid is not None:
            return Sweep.grid(content.grid, content.fixed)
        return Sweep(tuple({**content.fixed, **point} for point in content.points or ()))
    except InvalidArgumentError as error:
        raise InvalidArgumentError(f"{path}: {error}") from error


@dataclass(frozen=True)
class _Content:
    """What the file of a sweep may hold."""

    fixed: dict[str, Value] = field(default_factory=dict)
    grid: dict[str, list[Value]] | None = None
    points: list[dict[str, Value]] | None = None


def parse_axis(text: str) -> tuple[str, list[Value]]:
    """Read an axis of the command line.

    Parameters
    ----------
    text : str
        ``name=a,b,c``, or ``name=first:last:count`` for evenly spaced numbers, both ends included.

    Raises
    ------
    InvalidArgumentError
        If it is neither.

    Examples
    --------
    >>> parse_axis("msb_sparsity=0:1:3")
    ('msb_sparsity', [0.0, 0.5, 1.0])
    >>> parse_axis("model=smollm2,llama2-7b")
    ('model', ['smollm2', 'llama2-7b'])
    """
    name, equals, values = text.partition("=")
    if not (name and equals and values):
        raise InvalidArgumentError(
            f"axis {text!r} is not of the form name=a,b or name=first:last:n"
        )
    if ":" not in values:
        return name, [_scalar(value) for value in values.split(",")]
    try:
        first, last, count = values.split(":")
        steps = int(count) - 1
        if steps < 1:
            raise ValueError
        if steps >= MAX_POINTS:
            raise InvalidArgumentError(
                f"axis {text!r} has more than {MAX_POINTS} values; take fewer"
            )
        begin, end = float(first), float(last)
        if not max(abs(begin), abs(end)) <= MAX_AMOUNT or math.isnan(begin + end):
            raise ValueError
    except InvalidArgumentError:
        raise
    except ValueError:
        raise InvalidArgumentError(
            f"axis {text!r}: a range is first:last:count with at least 2 values"
        ) from None
    spaced = [round(begin + (end - begin) * i / steps, 12) for i in range(steps + 1)]
    whole = all(value == int(value) for value in spaced) and "." not in values
    return name, [int(value) if whole else value for value in spaced]


def _scalar(text: str) -> Value:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
