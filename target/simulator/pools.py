"""Where decoded tiles are kept, and which load steps fill them with the same contents.

A tile that an MMA reads has a key if one load wrote all of it and nothing else since, and the MMA
takes it whole: then its bytes are those of a place in DRAM, and the key is that place. Tiles with
the same key are decoded once. Any other tile has the key -1 and is decoded whenever it is read.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparqle_tvm.target.isa import INSTRUCTIONS, TRACE_OPCODE, LdAct, MmaMin
from sparqle_tvm.target.simulator.dot import Dot
from sparqle_tvm.target.simulator.native import aligned
from sparqle_tvm.target.simulator.spec import ValueSpec
from sparqle_tvm.target.simulator.steps import (
    MULTIPLIES,
    TILE_LOADS,
    InstructionClass,
    Int64s,
    Steps,
)
from sparqle_tvm.target.simulator.timing import Schedule

_POOL_BYTES = 1 << 28
"""Most bytes of decoded tiles that a pool keeps."""

_TILE = ("row", "rows", "col", "cols")


@dataclass(frozen=True, eq=False)
class Pool:
    """Entries for the tiles that some MMAs read as one of their operands.

    Attributes
    ----------
    steps, schedule : Steps, Schedule
        The run.
    keys : dict
        Key of the tile of every step, by instruction class.
    """

    steps: Steps
    schedule: Schedule
    keys: dict[InstructionClass, Int64s] = field(default_factory=dict)

    def add(
        self, cls: InstructionClass, operand: int, load: InstructionClass, rows: str, write: int = 0
    ) -> None:
        """Find the keys of an operand (its number in `Steps.reads`) of all steps of a class.

        Parameters
        ----------
        cls : class of Instruction
            The MMA.
        operand : int
            Which range it reads.
        load : class of Instruction
            What must have written it.
        rows : str
            The MMA's operand that is the number of rows.
        write : int
            Which of the load's ranges it must be.
        """
        steps, at = self.steps, self.steps.of(cls)
        source = self.schedule.sources[at, operand]
        loaded = (source >= 0) & (steps.trace[source, TRACE_OPCODE] == load.OPCODE)
        begins = steps.reads[at, operand, 0] == steps.writes[source, write, 0]
        sizes = (steps.trace[source, load.column("rows")] == steps.get(cls, rows)) & (
            steps.trace[source, load.column("cols")] == steps.get(cls, "k")
        )
        whole = loaded & begins & sizes
        self.keys[cls] = np.where(whole, 2 * _places(steps)[source] + write, -1)

    def distinct(self) -> Int64s:
        """All keys but -1, sorted."""
        found = np.concatenate([np.empty(0, dtype=np.int64), *self.keys.values()])
        return np.unique(found[found >= 0])

    def place(self, entries: int) -> dict[InstructionClass, tuple[Int64s, Int64s]]:
        """Entry and key of every step: keys are spread over the entries in turn."""
        distinct = self.distinct()
        result = {}
        for cls, keys in self.keys.items():
            entry = np.searchsorted(distinct, keys) % entries
            result[cls] = (np.where(keys < 0, 0, entry), keys)
        return result


@dataclass(frozen=True, eq=False)
class Pools:
    """Where each step finds its decoded tiles.

    Attributes
    ----------
    dot : Dot
        What the tiles are decoded for.
    sizes : tuple of int
        Elements of an entry: decoded activations, sums, weights, parameters.
    entries : tuple of int
        Entries for activations (and sums), weights, parameters.
    activations, weights, parameters : dict
        Entry and key of every step, by instruction class.
    """

    dot: Dot
    sizes: tuple[int, int, int, int]
    entries: tuple[int, int, int]
    activations: dict[InstructionClass, tuple[Int64s, Int64s]]
    weights: dict[InstructionClass, tuple[Int64s, Int64s]]
    parameters: dict[InstructionClass, tuple[Int64s, Int64s]]

    def memory(self) -> list[NDArray[Any]]:
        """Make the executor's arguments: the four pools, what entries hold (-1), entry sizes."""
        act, wgt, grp = self.entries
        sizes = aligned(4, np.int64)
        sizes[...] = self.sizes
        return [
            aligned(act * self.sizes[0], self.dot.activation),
            aligned(act * self.sizes[1], np.int32),
            aligned(wgt * self.sizes[2], self.dot.weight),
            aligned(grp * self.sizes[3], np.float64),
            *(aligned(entries, np.int64, fill=255) for entries in self.entries),
            sizes,
        ]


def make_pools(steps: Steps, spec: ValueSpec, activations: Pool, weights: Pool, grp: Pool) -> Pools:
    """Give every tile an entry."""
    dot = spec.dot
    m, n, k = (np.concatenate([steps.get(c, o) for c in (*MULTIPLIES, MmaMin)]) for o in "mnk")
    spans = _each(spec.spans, k)
    rows, panels = -(-m // dot.rows) * dot.rows, _each(spec.panels, n)
    groups = _each(spec.groups, k) if spec.grouped else 0 * k
    act, sums, wgt, parameters = (
        -(-int(size.max(initial=1)) // 64) * 64
        for size in (
            rows * spans * spec.pitch,
            rows * spans,
            spec.slices * panels * spans * spec.pitch * dot.channels,
            (2 if spec.has_min else 1) * panels * groups * dot.channels,
        )
    )
    entries = (
        _entries(activations, act * np.dtype(dot.activation).itemsize + 4 * sums),
        _entries(weights, wgt * np.dtype(dot.weight).itemsize),
        _entries(grp, 8 * parameters),
    )
    places = (p.place(e) for p, e in zip((activations, weights, grp), entries, strict=True))
    return Pools(dot, (act, sums, wgt, parameters), entries, *places)


def _each(function: Any, sizes: Int64s) -> Int64s:
    """Apply a function of one whole number to an array with few distinct ones."""
    distinct, which = np.unique(sizes, return_inverse=True)
    values = np.array([function(int(size)) for size in distinct], dtype=np.int64)
    return values[which] if len(sizes) else values


def _entries(pool: Pool, nbytes: int) -> int:
    return max(min(len(pool.distinct()), _POOL_BYTES // nbytes), 1)


def _places(steps: Steps) -> Int64s:
    """Number of the place in DRAM that each tile load reads, the same for equal tiles."""
    if "places" not in steps.memo:
        steps.memo["places"] = _number_places(steps)
    places: Int64s = steps.memo["places"]
    return places


def _number_places(steps: Steps) -> Int64s:
    places = np.zeros(len(steps), dtype=np.int64)
    loads: tuple[InstructionClass, ...] = (*TILE_LOADS, LdAct)
    for cls in loads:
        at = steps.of(cls)
        for operand in _TILE:
            _, which = np.unique(steps.get(cls, operand), return_inverse=True)
            places[at] = places[at] * (which.max(initial=0) + 1) + which
            _, places[at] = np.unique(places[at], return_inverse=True)
        # No two classes have a number in common.
        places[at] = places[at] * (max(INSTRUCTIONS) + 1) + cls.OPCODE
    return places
