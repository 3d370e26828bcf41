"""On which machines split precision saves what the paper reports: a map over arrays and bandwidths.

A machine is an accelerator with a batch and a context. It reaches a figure of the paper for a
model if it saves at least the least that the paper reports for any of its models. There are four
figures and three models. Machines are estimated by ``benchmarks/bench_map.py``, which keeps the
best of each array and bandwidth in ``report/data/paper_map.json``.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from sparqle_tvm.errors import ResultFileError
from sparqle_tvm.files import typed
from sparqle_tvm.report import formats
from sparqle_tvm.report.document import Column, OwnMarkdown, Section, Table
from sparqle_tvm.report.paper import MODELS, QUANTITIES, RANGES
from sparqle_tvm.report.passes import Row, figure
from sparqle_tvm.results.passes import PARTS, PHASES
from sparqle_tvm.studies.sweep.figures import quantity
from sparqle_tvm.studies.sweep.points import ACCELERATOR_NAMES, Point, Value
from sparqle_tvm.target.accelerator import PRESETS

ARRAYS = ((8, 32, 16), (16, 16, 16), (32, 32, 16), (64, 64, 16), (64, 64, 32))
"""PE rows, PE columns, lanes."""
BYTES_PER_1024_MACS = (1, 4, 16, 64, 256)
"""Bandwidth: bytes per cycle for each 1,024 products per cycle; the presets have 4 to 8."""
BUFFER_SCALES = (0.25, 1, 4)
"""Buffers, as multiples of those that `sparqle/edge` has for each product per cycle."""
BATCHES, CONTEXTS, PREFILL_TOKENS = (1, 16, 64), (2048, 32768), 2048
SHARES = (True, False) if "rows_share_k" in ACCELERATOR_NAMES else (True,)
"""Whether idle PE rows share K, where an accelerator has that choice."""
CLOSEST = 6

_DIGITS = 4
_SAVED = {"latency": "time_saved", "energy": "energy_saved"}
_FIGURES = tuple(itertools.product(PHASES, QUANTITIES))
_NAMES = {(phase, what): f"{phase} {what}" for phase, what in _FIGURES}


@dataclass(frozen=True)
class Machine:
    """An accelerator with the sequences that it decodes together.

    Attributes
    ----------
    array : tuple of int
        PE rows, PE columns, lanes.
    bytes_per_1024_macs : float
        Bandwidth in bytes per cycle for each 1,024 products per cycle.
    buffer_scale : float
        Buffers, see `BUFFER_SCALES`.
    rows_share_k : bool
        Whether idle PE rows share K.
    batch, context : int
        Sequences that are decoded together, and tokens in the cache of each.
    """

    array: tuple[int, int, int]
    bytes_per_1024_macs: float
    buffer_scale: float
    rows_share_k: bool
    batch: int
    context: int

    @property
    def fields(self) -> dict[str, Value]:
        """The accelerator's fields, the rest scaled as `sparqle/edge` has it."""
        rows, cols, lanes = self.array
        edge, macs = PRESETS["sparqle/edge"], rows * cols * lanes
        bandwidth = self.bytes_per_1024_macs * macs / 1024
        buffers = macs / edge.macs_per_cycle * self.buffer_scale
        scaled = {
            name: round(getattr(edge, name) * buffers)
            for name in (f"{kind}_buffer_bytes" for kind in ("activation", "weight", "accumulator"))
        }
        share = {"rows_share_k": self.rows_share_k} if len(SHARES) > 1 else {}
        memories = ((32, "LPDDR4"), (128, "LPDDR5"), (float("inf"), "HBM2"))
        return {
            **{"rows": rows, "cols": cols, "lanes": lanes, "dram_bytes_per_cycle": bandwidth},
            "memory": next(name for most, name in memories if bandwidth <= most),
            "drain_elements_per_cycle": cols,
            "vector_lanes": max(macs // 64, 1),
            "vector_macs_per_cycle": max(macs // 16, 1),
            **scaled,
            **share,
        }

    def point(self, model: str, phase: str) -> Point:
        """The point of a sweep for a model; a prefill is of one sequence."""
        size = {"seq": PREFILL_TOKENS, "batch": 1}
        if phase == "decode":
            size = {"seq": self.context, "batch": self.batch}
        return {"model": model, "phase": phase, **size, **self.fields}


@dataclass(frozen=True)
class Place:
    """A machine with what it saves.

    Attributes
    ----------
    machine : Machine
        The machine.
    saved : mapping of str to mapping of str to tuple of float
        By part (`results.passes.PARTS`) and figure (``prefill latency``), for each of
        `paper.MODELS`.
    same_tiles : mapping of str to tuple of float
        By part, of the prefill's energy with the same tiles for both schemes; empty if that was
        not asked.
    """

    machine: Machine
    saved: Mapping[str, Mapping[str, tuple[float, ...]]]
    same_tiles: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    def missing(self, part: str) -> dict[str, tuple[float, ...]]:
        """By figure and model, how far it is from the least that the paper reports; 0: reached."""
        return {
            _NAMES[key]: tuple(max(RANGES[key].low - x, 0.0) for x in self.saved[part][_NAMES[key]])
            for key in _FIGURES
        }

    def reached(self, part: str) -> int:
        """How many figures it reaches, of all models together."""
        return sum(x == 0 for values in self.missing(part).values() for x in values)

    def distance(self, part: str) -> float:
        """Mean of what is missing, over all figures and models."""
        values = [x for values in self.missing(part).values() for x in values]
        return sum(values) / len(values)


@dataclass(frozen=True)
class PaperMap:
    """The best machines of a map.

    Attributes
    ----------
    machines : int
        How many were estimated.
    reaching : mapping of str to int
        By part, how many of them reach every figure.
    best : mapping of str to tuple of Place
        By part, the closest machine of every array and bandwidth, in the order of `ARRAYS` and
        `BYTES_PER_1024_MACS`.
    closest : mapping of str to tuple of Place
        By part, the closest of all.
    """

    machines: int
    reaching: Mapping[str, int]
    best: Mapping[str, tuple[Place, ...]]
    closest: Mapping[str, tuple[Place, ...]]


def machines() -> Iterator[Machine]:
    """All machines of the map."""
    axes = (ARRAYS, BYTES_PER_1024_MACS, BUFFER_SCALES, SHARES, BATCHES, CONTEXTS)
    return (Machine(*values) for values in itertools.product(*axes))


def points_of(found: Sequence[Machine]) -> list[Point]:
    """The points of a sweep that all machines need, each once."""
    points = (m.point(model, phase) for m in found for model in MODELS for phase in PHASES)
    return [dict(items) for items in dict.fromkeys(tuple(point.items()) for point in points)]


def paper_map(found: Sequence[Machine], rows: Sequence[Mapping[str, Any]]) -> PaperMap:
    """Draw up the map from the rows of a sweep over `points_of`.

    A machine without an estimate (no tile fits its buffers) is left out.
    """
    figures = {_key(row): row for row in rows if "error" not in row}
    places = [place for machine in found if (place := _place(machine, figures)) is not None]
    cells: dict[tuple[Any, float], list[Place]] = {}
    for place in places:
        key = (place.machine.array, place.machine.bytes_per_1024_macs)
        cells.setdefault(key, []).append(place)

    def ranked(some: Sequence[Place], part: str) -> list[Place]:
        return sorted(some, key=lambda place: (place.distance(part), -place.reached(part)))

    everything = len(MODELS) * len(_FIGURES)
    return PaperMap(
        machines=len(places),
        reaching={part: sum(p.reached(part) == everything for p in places) for part in PARTS},
        best={part: tuple(ranked(some, part)[0] for some in cells.values()) for part in PARTS},
        closest={part: tuple(_different(ranked(places, part))) for part in PARTS},
    )


def _key(point: Point) -> tuple[Any, ...]:
    names = ("model", "phase", "seq", "batch", *ACCELERATOR_NAMES)
    return tuple(point.get(name) for name in names)


def _place(machine: Machine, figures: Mapping[tuple[Any, ...], Mapping[str, Any]]) -> Place | None:
    saved: dict[str, dict[str, tuple[float, ...]]] = {}
    for part in PARTS:
        prefix = "dense_layers_" if part == "dense_layers" else ""
        saved[part] = {}
        for phase, what in _FIGURES:
            rows = [figures.get(_key(machine.point(model, phase))) for model in MODELS]
            column = quantity(prefix + _SAVED[what]).column
            values = [round(row[column], _DIGITS) for row in rows if row is not None]
            if len(values) < len(MODELS):
                return None
            saved[part][_NAMES[phase, what]] = tuple(values)
    return Place(machine, saved)


def _different(ranked: Sequence[Place]) -> Iterator[Place]:
    """The first of every array and bandwidth, until there are enough."""
    seen: set[tuple[Any, float]] = set()
    for place in ranked:
        key = (place.machine.array, place.machine.bytes_per_1024_macs)
        if key not in seen and len(seen) < CLOSEST:
            seen.add(key)
            yield place


def stored_map() -> PaperMap | None:
    """The map that ``benchmarks/bench_map.py`` has kept, if it has.

    Raises
    ------
    ResultFileError
        If the file is damaged.
    """
    file = files("sparqle_tvm.report").joinpath("data/paper_map.json")
    if not file.is_file():
        return None
    data = json.loads(file.read_text(encoding="utf-8"))
    return typed(data, PaperMap, "report/data/paper_map.json", ResultFileError)


def map_section(found: PaperMap, picture: str = "") -> Section:
    """What the map says: the answer, the closest machines, and what is missing on them."""
    shown = [OwnMarkdown(f"![How many of the paper's figures are reached]({picture})")]
    shown = shown if picture else []
    tables = [_closest_table(found, part) for part in PARTS]
    return Section(
        "Which machines save as much",
        (_question(found), *(_answer(found, part) for part in PARTS), *shown, *tables),
    )


def _question(found: PaperMap) -> str:
    sizes = ", ".join(" x ".join(map(str, array)) for array in ARRAYS)
    share = ", idle PE rows that share K or not" if len(SHARES) > 1 else ""
    return (
        f"{found.machines:,} machines of our kind: arrays of {sizes} (PE rows, columns, lanes), "
        f"{_listed(BYTES_PER_1024_MACS)} bytes of bandwidth per cycle for each 1,024 products, "
        f"buffers {_listed(BUFFER_SCALES)} times those of `sparqle/edge` for each product{share}; "
        f"prefill of {PREFILL_TOKENS:,} tokens, decode with {_listed(BATCHES)} sequences after "
        f"{_listed(CONTEXTS)} tokens. A machine reaches a figure for a model if it saves at least "
        "the least that the paper reports; there are 12, of four figures and three models. Points "
        "missing: the mean over these. Written by `python benchmarks/bench_map.py`."
    )


def _listed(values: Sequence[float]) -> str:
    texts = [f"{value:,g}" if value < 1e4 else f"{value:,.0f}" for value in values]
    return f"{', '.join(texts[:-1])} or {texts[-1]}"


def _answer(found: PaperMap, part: str) -> str:
    """How many machines reach all, or what the closest lacks."""
    name, first = PARTS[part].capitalize(), found.closest[part][0]
    tiles = ""
    if part in first.same_tiles:
        tiles = f" With the same tiles for both schemes it saves {_span(first.same_tiles[part])} "
        tiles += "of the prefill's energy: the rest is tiles."
    if found.reaching[part]:
        text = f"{name}: {found.reaching[part]:,} of them reach all 12."
        return f"{text}{tiles.replace(' it saves', ' the first of the table saves')}"
    lacks = "; ".join(
        f"{what} by up to {100 * max(values):.1f} points"
        for what, values in first.missing(part).items()
        if any(values)
    )
    return (
        f"{name}: none of them reaches all 12. The closest ({machine_name(first.machine)}) reaches "
        f"{first.reached(part)} and misses {lacks}.{tiles}"
    )


def _span(values: Sequence[float]) -> str:
    return f"{formats.percent(min(values)).removesuffix(' %')} to {formats.percent(max(values))}"


def machine_name(machine: Machine) -> str:
    """``64 x 64 x 16, 1,024 bytes/cycle, ...``."""
    fields = machine.fields
    buffers = sum(int(v) for name, v in fields.items() if name.endswith("buffer_bytes"))
    share = "" if machine.rows_share_k else ", rows do not share K"
    return (
        f"{' x '.join(map(str, machine.array))}, {fields['dram_bytes_per_cycle']:,g} bytes/cycle, "
        f"{buffers // 1024:,} KiB{share}; {machine.batch} x {machine.context:,} tokens"
    )


def _closest_table(found: PaperMap, part: str) -> Table:
    return Table(
        name=f"map_{part}",
        title=f"{PARTS[part].capitalize()}: the closest machines, one for each array and "
        "bandwidth; saved, least and most of the three models",
        columns=(
            Column("machine", "machine; decode"),
            figure("reached", "of 12", str),
            figure("distance", "points missing", lambda share: f"{100 * share:.1f}"),
            *(
                Column(name, f"{name}, paper {formats.percent(RANGES[key].low)}")
                for key, name in _NAMES.items()
            ),
        ),
        rows=tuple(_closest_row(place, part) for place in found.closest[part]),
    )


def _closest_row(place: Place, part: str) -> Row:
    spans = {name: _span(values) for name, values in place.saved[part].items()}
    return {
        "machine": machine_name(place.machine),
        "reached": place.reached(part),
        "distance": place.distance(part),
        **spans,
    }
