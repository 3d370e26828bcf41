"""Where a figure reaches a level over a field: break-even, by a scan and bisection.

The figure is estimated at some values of the field first, and between two neighbours of which one
reaches the level and one does not, bisection finds the last value that does, up to `PRECISION` and
whole numbers. Figures are no smooth functions: tiles change from one value to the next. So there
may be several crossings, and two between the same neighbours of the scan are not seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields
from functools import partial

from sparqle_tvm.errors import InvalidArgumentError, TargetError
from sparqle_tvm.numerics.integers import DIGIT_BITS
from sparqle_tvm.processes import on_processes, require_workers
from sparqle_tvm.progress import progress_bar
from sparqle_tvm.studies.sweep.execute import (
    choose_schedules_of,
    evaluate_point,
    nothing_estimated,
)
from sparqle_tvm.studies.sweep.figures import Quantity
from sparqle_tvm.studies.sweep.points import (
    DEFAULTS,
    ESTIMATE_KINDS,
    Point,
    Sweep,
    choose_name,
    parse_axis,
)
from sparqle_tvm.target.accelerator import Accelerator
from sparqle_tvm.target.cost.vector import KV_BITS

SCANNED = 25
"""Values of the scan, unless they are given."""
AROUND = 16
"""A field of the accelerator is scanned from a share to a multiple of what it is."""
PRECISION = 1e-3
"""Of a crossing, as a share of its value."""
_RANGES: dict[str, dict[str, tuple[float, float]]] = {
    "msb_sparsity": {"prefill": (0.0, 1.0), "decode": (0.0, 1.0)},
    "batch": {"prefill": (1, 16), "decode": (1, 256)},
    "seq": {"prefill": (64, 16384), "decode": (64, 65536)},
}
_CHOICES: dict[str, tuple[float, ...]] = {
    "kv_bits": KV_BITS,
    "digit_bits": DIGIT_BITS,
    "float_bytes": (2, 4),
}
_KINDS = {
    **{field.name: str(field.type) for field in fields(Accelerator)},
    **{name: "int" for name, kinds in ESTIMATE_KINDS.items() if kinds == (int,)},
    "msb_sparsity": "float",
}


@dataclass(frozen=True)
class Scan:
    """What is looked for.

    Attributes
    ----------
    quantity : Quantity
        The figure.
    level : float
        What it has to reach.
    over : str
        The field.
    values : tuple of float
        Values of it to begin with, rising; empty: those of `scan_values`.
    """

    quantity: Quantity
    level: float
    over: str
    values: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what cannot be scanned."""
        if _KINDS.get(self.over) not in ("int", "float"):
            known = [name for name, kind in _KINDS.items() if kind in ("int", "float")]
            raise InvalidArgumentError(
                f"over: {self.over!r} is no number of an estimate; {choose_name(self.over, known)}"
            )
        if not math.isfinite(self.level):
            raise InvalidArgumentError(f"find: {self.quantity.name} = {self.level} is no level")
        if self.values and (len(self.values) < 2 or list(self.values) != sorted(set(self.values))):
            raise InvalidArgumentError(
                f"over: {self.over} needs at least two rising values, not "
                f"{', '.join(f'{value:g}' for value in self.values)}"
            )

    @property
    def whole(self) -> bool:
        """Whether the field is a whole number."""
        return _KINDS[self.over] == "int"


@dataclass(frozen=True)
class Range:
    """Values of the field, both ends included, with which the level is reached.

    `opens` and `closes` are false where it is the end of the scan and no crossing.
    """

    first: float
    last: float
    opens: bool
    closes: bool


@dataclass(frozen=True)
class BreakEven:
    """What was found for one point.

    Attributes
    ----------
    point : mapping
        The point, without the field.
    scanned : tuple of (float, float)
        Values of the field and the figure, rising, of all estimates that were made.
    ranges : tuple of Range
        Where the level is reached, rising; none: nowhere in the scan.
    error : str
        Why (some) values of the field have no estimate: the first message; empty if all have.
    """

    point: Point
    scanned: tuple[tuple[float, float], ...]
    ranges: tuple[Range, ...]
    error: str = ""

    @property
    def crossings(self) -> tuple[float, ...]:
        """Every value of the field at which the level is just reached, rising."""
        ends = ((r.first, r.opens) for r in self.ranges), ((r.last, r.closes) for r in self.ranges)
        return tuple(sorted(value for side in ends for value, crosses in side if crosses))


def find_crossings(
    scan: Scan, sweep: Sweep, *, workers: int | None = None, progress: bool = True
) -> tuple[BreakEven, ...]:
    """Look for a level at every point of a sweep.

    Parameters
    ----------
    scan : Scan
        What is looked for.
    sweep : Sweep
        Points without the field.
    workers : int, optional
        Processes, if there are several points; by default one for each core.
    progress : bool
        Show progress on standard error.

    Raises
    ------
    InvalidArgumentError
        If a point has the field itself, or no point has an estimate.
    """
    if scan.over in sweep.names:
        raise InvalidArgumentError(f"over: {scan.over} is fixed, or an axis of the sweep")
    require_workers(workers)
    found = _looked_for(partial(break_even, scan), sweep, workers, progress)
    if not any(one.scanned for one in found):
        raise nothing_estimated(found[0].error)
    return found


def _looked_for(
    look: Callable[[Point], BreakEven], sweep: Sweep, workers: int | None, progress: bool
) -> tuple[BreakEven, ...]:
    count = len(sweep.points)
    with ExitStack() as stack:
        bar = stack.enter_context(
            progress_bar(progress=progress, total=count, unit="point", desc="look")
        )
        if count == 1 or workers == 1:
            found = []
            for point in sweep.points:
                found.append(look(point))
                bar.update()
            return tuple(found)
        submit, completed = on_processes(stack, workers)
        futures = [submit(look, point) for point in sweep.points]
        for _ in completed(futures):
            bar.update()
        return tuple(future.result() for future in futures)


def break_even(scan: Scan, point: Point) -> BreakEven:
    """Look for the level at one point."""
    seen: dict[float, float] = {}
    errors: list[str] = []

    def there(value: float) -> Point:
        given = int(value) if scan.whole and value == int(value) else value
        return {**point, scan.over: given}

    def at(value: float) -> bool | None:
        """Whether the level is reached; None without an estimate."""
        figures = evaluate_point(there(value))
        if "error" in figures:
            errors.append(figures["error"])
            return None
        seen[value] = figures[scan.quantity.column]
        return scan.quantity.reached(seen[value], scan.level)

    try:
        values = scan.values or scan_values(scan, point)
    except TargetError as error:
        return BreakEven(point, (), (), str(error))
    choose_schedules_of(map(there, values))
    reached = [(value, state) for value in values if (state := at(value)) is not None]
    ranges = tuple(_ranges(reached, partial(_bisect, at, whole=scan.whole)))
    return BreakEven(point, tuple(sorted(seen.items())), ranges, errors[0] if errors else "")


def scan_values(scan: Scan, point: Point) -> tuple[float, ...]:
    """Values of the field to begin with.

    Raises
    ------
    TargetError
        If the point's accelerator is unknown.
    """
    name = scan.over
    if name in _CHOICES:
        return _CHOICES[name]
    given = {**DEFAULTS, **point}
    if name in _RANGES:
        low, high = _RANGES[name].get(str(given["phase"]), (1, 2))
    else:
        mine = getattr(Accelerator.from_target(str(given["target"])), name)
        low, high = (mine / AROUND, mine * AROUND) if mine else (0.0, 1024.0)
    if name == "lanes":  # Tiles are multiples of them, and of groups of weights.
        return tuple(float(value) for value in (2**i for i in range(16)) if low <= value <= high)
    if low > 0:
        spaced = [low * (high / low) ** (i / (SCANNED - 1)) for i in range(SCANNED)]
    else:
        spaced = [low + (high - low) * i / (SCANNED - 1) for i in range(SCANNED)]
    if scan.whole:
        return tuple(dict.fromkeys(float(max(round(value), 1 if low else 0)) for value in spaced))
    return tuple(spaced)


def _ranges(
    reached: Sequence[tuple[float, bool]], bisect: Callable[[float, float], float]
) -> Iterator[Range]:
    """Join values that reach the level; between neighbours that differ, bisect."""
    first: float | None = None
    opens = False
    before: float | None = None
    for value, state in reached:
        if state and first is None:
            opens = before is not None
            first = value if before is None else bisect(value, before)
        elif not state and first is not None:
            assert before is not None
            yield Range(first, bisect(before, value), opens, closes=True)
            first = None
        before = value
    if first is not None:
        assert before is not None
        yield Range(first, before, opens, closes=False)


def _bisect(
    at: Callable[[float], bool | None], inside: float, outside: float, *, whole: bool
) -> float:
    """The value nearest to `outside` that reaches the level, as `inside` does."""
    while True:
        middle = _middle(inside, outside, whole)
        near = abs(outside - inside) <= max(whole, PRECISION * max(inside, outside))
        if near or middle in (inside, outside) or (state := at(middle)) is None:
            return inside
        inside, outside = (middle, outside) if state else (inside, middle)


def _middle(one: float, other: float, whole: bool) -> float:
    """Between two values: of the logarithms if they are far from each other."""
    low, high = sorted((one, other))
    middle = math.sqrt(low * high) if low > 0 and high > 2 * low else (low + high) / 2
    return float(round(middle)) if whole else middle


def parse_find(text: str) -> tuple[str, float]:
    """Read ``NAME=LEVEL``; a level may be a percentage.

    Raises
    ------
    InvalidArgumentError
        If it is something else, or all is to be saved.

    Examples
    --------
    >>> parse_find("time_saved=16%")
    ('time_saved', 0.16)
    """
    name, equals, level = text.partition("=")
    try:
        if not (name and equals):
            raise ValueError
        percent = level.endswith("%")
        value = float(level.rstrip("%"))
    except ValueError:
        raise InvalidArgumentError(
            f"find: {text!r} is not of the form VALUE=LEVEL, as time_saved=16%"
        ) from None
    if not percent and value >= 1 and name.endswith(("_saved", "_reduction")):
        raise InvalidArgumentError(
            f"find: {name} = {value:g} is {value:.0%}, which nothing saves; "
            f"did you mean {value:g}%?"
        )
    return name, value / 100 if percent else value


def parse_over(text: str) -> tuple[str, tuple[float, ...]]:
    """Read ``FIELD``, or ``FIELD=VALUES`` as `points.parse_axis` does, or ``FIELD=first:last``.

    Raises
    ------
    InvalidArgumentError
        If it is something else.

    Examples
    --------
    >>> parse_over("batch=1,8,64")
    ('batch', (1.0, 8.0, 64.0))
    """
    if "=" not in text:
        return text, ()
    if text.count(":") == 1:
        text += f":{SCANNED}"
    name, values = parse_axis(text)
    try:
        if any(isinstance(value, bool) for value in values):
            raise ValueError
        found = tuple(dict.fromkeys(float(value) for value in values))
    except ValueError:
        raise InvalidArgumentError(f"over: {text!r} has values that are no numbers") from None
    return name, tuple(map(round, found)) if _KINDS.get(name) == "int" else found
