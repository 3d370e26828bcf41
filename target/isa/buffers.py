"""What lies in the on-chip buffers while a split dense op runs, and how many bytes it takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from sparqle_tvm.target.isa import access
from sparqle_tvm.target.isa.access import Tile
from sparqle_tvm.target.isa.header import Header, Queue
from sparqle_tvm.target.isa.load import (
    LdChn,
    LdGrp,
    LdLsb,
    LdMsb,
    LdPbm,
    LdRow,
    LdSum,
    LdWgt,
    LdZro,
    TileLoad,
)
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
    axes : str
        Axes of the op that its rows and columns go along.
    load : type of instruction or None
        Loads it; None: accumulators.
    """

    tile: Tile
    free: Queue
    ready: Queue
    axes: str
    load: type[TileLoad | LdRow | LdChn | LdZro] | None = None

    @property
    def buffer(self) -> Buffer:
        """Where it lies."""
        return self.tile.buffer

    def tile_bytes(self, header: Header, extents: Mapping[str, Any]) -> Any:
        """Bytes of a tile of these extents (or arrays of them), with every MSB digit present."""
        return self.tile.nbytes(header, *(extents[axis] for axis in self.axes))


def _loaded(load: type[TileLoad | LdRow | LdChn | LdZro], free: Queue, ready: Queue) -> Storage:
    return Storage(load.ACCESSES[0].tile, free, ready, "".join(load.EXTENTS.values()), load)


_ACT = (Queue.ACT_FREE, Queue.ACT_READY)
_WGT = (Queue.WGT_FREE, Queue.WGT_READY)

STORAGES: Mapping[str, Storage] = MappingProxyType(
    {
        "lsb": _loaded(LdLsb, *_ACT),
        "zro": _loaded(LdZro, *_ACT),
        "pbm": _loaded(LdPbm, *_ACT),
        "msb": _loaded(LdMsb, *_ACT),
        "sum": _loaded(LdSum, *_ACT),
        "wgt": _loaded(LdWgt, *_WGT),
        "grp": _loaded(LdGrp, *_WGT),
        "row": _loaded(LdRow, Queue.ROW_FREE, Queue.ROW_READY),
        "chn": _loaded(LdChn, Queue.CHN_FREE, Queue.CHN_READY),
        "acc": Storage(access.ACC, Queue.ACC_FREE, Queue.ACC_READY, "mn"),
    }
)
"""Kinds of tiles by the name of their allocation.

The two planes of scheme ``dense`` are ``lsb`` and ``msb``, and take as much.
"""

LOADED: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "ld_lsb": ("lsb",),
        "ld_msb": ("zro", "pbm", "msb"),
        "ld_act": ("lsb", "msb"),
        "ld_sums": ("sum",),
        "ld_row": ("row",),
        "ld_zero": ("row",),
        "ld_wgt": ("wgt",),
        "ld_scale": ("grp",),
        "ld_min": ("grp",),
        "ld_channel": ("chn",),
        "ld_offset": ("chn",),
        "ld_wsum": ("chn",),
        "ld_bias": ("chn",),
    }
)
"""Kinds of tiles that the intrinsic of each load fills, as far as an op needs them."""


def aligned(nbytes: Any) -> Any:
    """`nbytes` rounded up to `ALIGNMENT`."""
    return access.ceil_div(nbytes, ALIGNMENT) * ALIGNMENT


def storages_of(op: DenseOp) -> tuple[str, ...]:
    """Kinds of tiles that an op needs."""
    needed = {
        "lsb": True,
        "zro": op.scheme == "sparqle" and op.row_centres,
        "pbm": op.scheme == "sparqle",
        "msb": True,
        "sum": op.has_min,
        "wgt": True,
        "grp": op.group_size > 0,
        "row": op.scaled or op.adds_shift,
        "chn": op.channel_parameter_bytes > 0,
        "acc": True,
    }
    return tuple(name for name in STORAGES if needed[name])


def filled(load: str, op: DenseOp) -> tuple[str, ...]:
    """Kinds of tiles that the intrinsic of a load fills for an op."""
    needed = storages_of(op)
    return tuple(name for name in LOADED[load] if name in needed)
