"""Where decoded tiles are kept, and which load steps fill them with the same contents.

A tile that an MMA reads has a key if one load wrote all of it and nothing else since, and the MMA
takes it whole: then its bytes are those of a place in DRAM, and the key is that place. Tiles with
the same key are decoded once. Any other tile has the key -1 and is decoded whenever it is read.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparqle_tvm.target.isa import INSTRUCTIONS, TRACE_OPCODE, LdAct, MmaMin
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
    """Memory of decoded tiles, and where each step finds its own.

    Attributes
    ----------
    memory : list of ndarray
        The executor's arguments: decoded activations, sums, weights, parameters; what the entries
        of activations, weights and parameters hold; entry sizes.
    activations, weights, parameters : dict
        Entry and key of every step, by instruction class.
    """

    memory: list[NDArray[Any]]
    activations: dict[InstructionClass, tuple[Int64s, Int64s]]
    weights: dict[InstructionClass, tuple[Int64s, Int64s]]
    parameters: dict[InstructionClass, tuple[Int64s, Int64s]]


def make_pools(steps: Steps, spec: ValueSpec, activations: Pool, weights: Pool, grp: Pool) -> Pools:
    """Allocate the memory for the tiles of the pools."""
    dot = spec.dot
    m, n, k = (np.concatenate([steps.get(c, o) for c in (*MULTIPLIES, MmaMin)]) for o in "mnk")
    spans = _each(spec.spans, k)
    rows, panels = -(-m // dot.rows) * dot.rows, _each(spec.panels, n)
    groups = _each(spec.groups, k) if spec.grouped else 0 * k
    sizes = (
        rows * spans * spec.pitch,
        rows * spans,
        spec.slices * panels * spans * spec.pitch * dot.channels,
        (2 if spec.has_min else 1) * panels * groups * dot.channels,
    )
    largest = [-(-int(size.max(initial=1)) // 64) * 64 for size in sizes]
    counts = [
        _entries(pool, nbytes)
        for pool, nbytes in (
            (activations, largest[0] * np.dtype(dot.activation).itemsize + largest[1] * 4),
            (weights, largest[2] * np.dtype(dot.weight).itemsize),
            (grp, largest[3] * 8),
        )
    ]
    # Channels behind the last of a tile are computed and dropped: they must not trap, so zeros.
    memory = [
        aligned(counts[0] * largest[0], dot.activation),
        aligned(counts[0] * largest[1], np.int32),
        aligned(counts[1] * largest[2], dot.weight),
        aligned(counts[2] * largest[3], np.float64, fill=0),
        *(aligned(entries, np.int64, fill=255) for entries in counts),
        aligned(4, np.int64),
    ]
    memory[-1][...] = largest
    return Pools(
        memory, activations.place(counts[0]), weights.place(counts[1]), grp.place(counts[2])
    )


def _each(function: Any, sizes: Int64s) -> Int64s:
    """Apply a function of one whole number to an array with few distinct ones."""
    distinct, which = np.unique(sizes, return_inverse=True)
    values = np.array([function(int(size)) for size in distinct], dtype=np.int64)
    return values[which] if len(sizes) else values


def _entries(pool: Pool, nbytes: int) -> int:
    return max(min(len(pool.distinct()), _POOL_BYTES // nbytes), 1)


@lru_cache(maxsize=64)
def _places(steps: Steps) -> Int64s:
    """Number of the place in DRAM that each tile load reads, the same for equal tiles."""
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
