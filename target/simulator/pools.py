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

from sparqle_tvm.target.isa import INSTRUCTIONS
from sparqle_tvm.target.isa.access import Access, Mode, each
from sparqle_tvm.target.isa.base import Kind
from sparqle_tvm.target.program.bound import BoundProgram, InstructionClass, Int64s, Operands
from sparqle_tvm.target.simulator.dot import Dot
from sparqle_tvm.target.simulator.native import aligned
from sparqle_tvm.target.simulator.ranges import position, ranges_of
from sparqle_tvm.target.simulator.spec import ValueSpec
from sparqle_tvm.target.simulator.timing import Timing, makers_of

_POOL_BYTES = 1 << 28
"""Most bytes of decoded tiles that a pool keeps."""

_TILE = ("row", "rows", "col", "cols")


@dataclass(frozen=True, eq=False)
class Pool:
    """Entries for the tiles that some MMAs read as one of their operands.

    Attributes
    ----------
    bound, timing : BoundProgram, Timing
        The run.
    keys : dict
        Key of the tile of every step, by instruction class.
    """

    bound: BoundProgram
    timing: Timing
    keys: dict[InstructionClass, Int64s] = field(default_factory=dict)

    def add(self, operands: Operands, access: Access) -> None:
        """Find the keys of a tile that all steps of a class read."""
        bound, header, ranges = self.bound, self.bound.header, ranges_of(self.bound)
        at = position(operands.cls, header, access.operand)
        source = self.timing.sources[operands.index, at]
        begin = ranges.reads[operands.index, at, 0]
        keys = np.full(len(operands), -1, dtype=np.int64)
        for load, made in makers_of(bound, access.tile):
            if not load.cls.PARTS:
                continue
            write = position(load.cls, header, made.operand)
            whole = (source >= 0) & (bound.opcodes[source] == load.cls.OPCODE)
            whole &= begin == ranges.writes[source, write, 0]
            for extent, mine in ((made.rows, access.rows), (made.cols, access.cols)):
                whole &= bound.trace[source, load.cls.column(extent)] == operands[mine]
            keys = np.where(whole, 2 * _places(bound)[source] + write, keys)
        self.keys[operands.cls] = keys

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


def make_pools(
    bound: BoundProgram, spec: ValueSpec, activations: Pool, weights: Pool, grp: Pool
) -> Pools:
    """Give every tile an entry."""
    dot = spec.dot
    m, n, k = (
        np.concatenate([np.empty(0, dtype=np.int64), *(o[axis] for o in bound.of_kind(Kind.MMA))])
        for axis in "mnk"
    )
    spans = each(spec.spans, k)
    rows, panels = -(-m // dot.rows) * dot.rows, each(spec.panels, n)
    groups = each(spec.groups, k) if spec.grouped else 0 * k
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


def _entries(pool: Pool, nbytes: int) -> int:
    return max(min(len(pool.distinct()), _POOL_BYTES // nbytes), 1)


def _places(bound: BoundProgram) -> Int64s:
    """Number of the place in DRAM that each tile load reads, the same for equal tiles."""
    if "places" not in bound.memo:
        bound.memo["places"] = _number_places(bound)
    places: Int64s = bound.memo["places"]
    return places


def _number_places(bound: BoundProgram) -> Int64s:
    places = np.zeros(len(bound), dtype=np.int64)
    for operands in bound.classes:
        cls, number = operands.cls, np.zeros(len(operands), dtype=np.int64)
        if not cls.PARTS or cls.DRAM != Mode.READ or "cols" not in cls.TRACE:
            continue
        for operand in _TILE:
            _, which = np.unique(operands[operand], return_inverse=True)
            number = number * (which.max(initial=0) + 1) + which
            _, number = np.unique(number, return_inverse=True)
        # No two classes have a number in common.
        places[operands.index] = number * (max(INSTRUCTIONS) + 1) + cls.OPCODE
    return places
