"""Where decoded tiles are kept, and which load steps fill them with the same contents.

A tile that an MMA reads has a key if one load wrote all of it and nothing else since, and the MMA
takes it whole: then its bytes are those of a place in DRAM, and the key is that place. Tiles with
the same key are decoded once. Any other tile has the key -1 and is decoded whenever it is read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparqle_tvm.target.isa import INSTRUCTIONS, access
from sparqle_tvm.target.isa.access import Access, Mode, ceil_div, each
from sparqle_tvm.target.isa.base import Kind
from sparqle_tvm.target.program.bound import BoundProgram, InstructionClass, Int64s, Operands
from sparqle_tvm.target.simulator.dot import Dot
from sparqle_tvm.target.simulator.native import aligned
from sparqle_tvm.target.simulator.ranges import find_ranges, position
from sparqle_tvm.target.simulator.spec import ValueSpec
from sparqle_tvm.target.simulator.timing import Timing, makers_of

_POOL_BYTES = 1 << 28
"""Most bytes of decoded tiles that a pool keeps."""

_TILE = ("row", "rows", "col", "cols")

_POOLS = {
    "act": (access.LSB, access.PBM, access.MSB_PLANE),
    "wgt": (access.WGT,),
    "grp": (access.GRP,),
}
"""Which tiles each pool keeps decoded."""


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
    columns : dict
        By instruction class: entry and key of every step in each pool, as the actions name them.
    """

    dot: Dot
    sizes: tuple[int, int, int, int]
    entries: tuple[int, ...]
    columns: dict[InstructionClass, dict[str, Int64s]]

    def memory(self) -> list[NDArray[Any]]:
        """Make the executor's arguments: the four pools, what entries hold (-1), entry sizes.

        Before the sizes: whether entries for activations hold joined planes.
        """
        act, wgt, grp = self.entries
        sizes = aligned(4, np.int64)
        sizes[...] = self.sizes
        return [
            aligned(act * self.sizes[0], self.dot.activation),
            aligned(act * self.sizes[1], np.int32),
            aligned(wgt * self.sizes[2], self.dot.weight),
            aligned(grp * self.sizes[3], np.float64),
            *(aligned(entries, np.int64, fill=255) for entries in self.entries),
            aligned(act, np.int64, fill=0),
            sizes,
        ]


def make_pools(bound: BoundProgram, timing: Timing, spec: ValueSpec) -> Pools:
    """Give every tile that an MMA reads decoded an entry: keys are spread over them in turn."""
    sizes = _entry_sizes(bound, spec)
    act, sums, wgt, grp = sizes
    entry_bytes = {
        "act": act * np.dtype(spec.dot.activation).itemsize + 4 * sums,
        "wgt": wgt * np.dtype(spec.dot.weight).itemsize,
        "grp": 8 * grp,
    }
    entries: list[int] = []
    columns: dict[InstructionClass, dict[str, Int64s]] = {}
    for pool, tiles in _POOLS.items():
        keys = {
            operands.cls: _keys(bound, timing, operands, touched)
            for operands in bound.of_kind(Kind.MMA)
            for touched in operands.cls.accesses(bound.header)
            if touched.tile in tiles
        }
        found = np.concatenate([np.empty(0, dtype=np.int64), *keys.values()])
        distinct = np.unique(found[found >= 0])
        count = max(min(len(distinct), _POOL_BYTES // entry_bytes[pool]), 1)
        entries.append(count)
        for cls, key in keys.items():
            entry = np.where(key < 0, 0, np.searchsorted(distinct, key) % count)
            columns.setdefault(cls, {}).update({f"{pool}_entry": entry, f"{pool}_key": key})
    return Pools(spec.dot, sizes, tuple(entries), columns)


def _keys(bound: BoundProgram, timing: Timing, operands: Operands, touched: Access) -> Int64s:
    """Keys of a tile that all steps of a class read."""
    header, ranges = bound.header, bound.once(find_ranges)
    at = position(operands.cls, header, touched.operand)
    source = timing.sources[operands.index, at]
    begin = ranges.reads[operands.index, at, 0]
    keys = np.full(len(operands), -1, dtype=np.int64)
    for load, made in makers_of(bound, touched.tile):
        if not load.cls.PARTS:
            continue
        write = position(load.cls, header, made.operand)
        whole = (source >= 0) & (bound.opcodes[source] == load.cls.OPCODE)
        whole &= begin == ranges.writes[source, write, 0]
        for extent, mine in ((made.rows, touched.rows), (made.cols, touched.cols)):
            whole &= bound.trace[source, load.cls.column(extent)] == operands[mine]
        keys = np.where(whole, 2 * bound.once(_number_places)[source] + write, keys)
    return keys


def _entry_sizes(bound: BoundProgram, spec: ValueSpec) -> tuple[int, int, int, int]:
    """Elements of the largest entry of each pool, in whole blocks of 64."""
    dot = spec.dot
    m, n, k = (
        np.concatenate([np.empty(0, dtype=np.int64), *(o[axis] for o in bound.of_kind(Kind.MMA))])
        for axis in "mnk"
    )
    spans = each(spec.spans, k)
    rows, panels = ceil_div(m, dot.rows) * dot.rows, each(spec.panels, n)
    groups = each(spec.groups, k) if spec.grouped else 0 * k
    act, sums, wgt, grp = (
        ceil_div(int(size.max(initial=1)), 64) * 64
        for size in (
            rows * spans * spec.pitch,
            rows * spans,
            spec.slices * panels * spans * spec.pitch * dot.channels,
            (2 if spec.has_min else 1) * panels * groups * dot.channels,
        )
    )
    return act, sums, wgt, grp


def _number_places(bound: BoundProgram) -> Int64s:
    """Number of the place in DRAM that each tile load reads, the same for equal tiles."""
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
