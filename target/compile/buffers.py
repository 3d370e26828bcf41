"""What lies in the on-chip buffers while a split dense op runs, and how many bytes it takes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from sparqle_tvm.target.isa import access
from sparqle_tvm.target.isa.access import Tile
from sparqle_tvm.target.isa.header import Header, Queue
from sparqle_tvm.target.isa.operands import Buffer
from sparqle_tvm.target.op import DenseOp

ALIGNMENT = 8
"""Bytes that tiles and slots begin at a multiple of: the largest element, a float64."""


@dataclass(frozen=True)
class Storage:
    """One kind of tile on chip.

    Attributes
    ----------
    tile : Tile
        What lies there.
    free, ready : Queue
        Tokens that order its use; kinds with the same tokens are loaded and released together.
    """

    tile: Tile
    free: Queue
    ready: Queue

    @property
    def buffer(self) -> Buffer:
        """Where it lies."""
        return self.tile.buffer

    def tile_bytes(self, header: Header, m: int, n: int, k: int) -> int:
        """Bytes of a tile of m rows, n channels and k columns, with every MSB digit present."""
        rows = m if self.tile.axis == "m" else n
        return int(self.tile.nbytes(header, rows, n if self.tile is access.ACC else k))


_ACT = (Queue.ACT_FREE, Queue.ACT_READY)
_WGT = (Queue.WGT_FREE, Queue.WGT_READY)

STORAGES: Mapping[str, Storage] = MappingProxyType(
    {
        "lsb": Storage(access.LSB, *_ACT),
        "pbm": Storage(access.PBM, *_ACT),
        "msb": Storage(access.MSB, *_ACT),
        "sum": Storage(access.SUM, *_ACT),
        "wgt": Storage(access.WGT, *_WGT),
        "grp": Storage(access.GRP, *_WGT),
        "row": Storage(access.ROW, Queue.ROW_FREE, Queue.ROW_READY),
        "chn": Storage(access.CHN, Queue.CHN_FREE, Queue.CHN_READY),
        "acc": Storage(access.ACC, Queue.ACC_FREE, Queue.ACC_READY),
    }
)
"""Kinds of tiles by the name of their allocation.

The two planes of scheme ``dense`` are ``lsb`` and ``msb``, and take as much.
"""


def aligned(nbytes: int) -> int:
    """`nbytes` rounded up to `ALIGNMENT`."""
    return math.ceil(nbytes / ALIGNMENT) * ALIGNMENT


def storages_of(op: DenseOp) -> tuple[str, ...]:
    """Kinds of tiles that an op needs."""
    needed = {
        "lsb": True,
        "pbm": op.scheme == "sparqle",
        "msb": True,
        "sum": op.has_min,
        "wgt": True,
        "grp": op.group_size > 0,
        "row": op.scaled,
        "chn": op.has_offset or (op.scaled and not op.group_size),
        "acc": True,
    }
    return tuple(name for name in STORAGES if needed[name])
