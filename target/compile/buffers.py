"""What lies in the on-chip buffers while a split dense op runs, and how many bytes it takes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from sparqle_tvm.target.isa import LdChn, LdGrp, LdLsb, LdMsb, LdPbm, LdRow, LdSum, LdWgt
from sparqle_tvm.target.isa.header import Header, Queue
from sparqle_tvm.target.isa.operands import Buffer
from sparqle_tvm.target.op import DenseOp

ALIGNMENT = 8
"""Bytes that tiles and slots begin at a multiple of: the largest element, a float64."""

TileBytes = Callable[[Header, int, int, int], int]


@dataclass(frozen=True)
class Storage:
    """One kind of tile on chip.

    Attributes
    ----------
    buffer : Buffer
        Where it lies.
    free, ready : Queue
        Tokens that order its use; kinds with the same tokens are loaded and released together.
    tile_bytes : function of (header, m, n, k)
        Bytes of a tile of m rows, n channels and k columns, with every MSB digit present.
    """

    buffer: Buffer
    free: Queue
    ready: Queue
    tile_bytes: TileBytes


_ACT = (Buffer.ACT, Queue.ACT_FREE, Queue.ACT_READY)
_WGT = (Buffer.WGT, Queue.WGT_FREE, Queue.WGT_READY)

STORAGES: Mapping[str, Storage] = MappingProxyType(
    {
        "lsb": Storage(*_ACT, lambda header, m, n, k: int(LdLsb.onchip_bytes(header, m, k))),
        "pbm": Storage(*_ACT, lambda header, m, n, k: int(LdPbm.onchip_bytes(header, m, k))),
        "msb": Storage(*_ACT, lambda header, m, n, k: int(LdMsb.onchip_bytes(header, m, k))),
        "sum": Storage(*_ACT, lambda header, m, n, k: int(LdSum.onchip_bytes(header, m, k))),
        "wgt": Storage(*_WGT, lambda header, m, n, k: int(LdWgt.onchip_bytes(header, n, k))),
        "grp": Storage(*_WGT, lambda header, m, n, k: int(LdGrp.onchip_bytes(header, n, k))),
        "row": Storage(
            Buffer.ACT,
            Queue.ROW_FREE,
            Queue.ROW_READY,
            lambda header, m, n, k: int(LdRow.onchip_bytes(header, m)),
        ),
        "chn": Storage(
            Buffer.WGT,
            Queue.CHN_FREE,
            Queue.CHN_READY,
            lambda header, m, n, k: int(LdChn.onchip_bytes(header, n)),
        ),
        "acc": Storage(
            Buffer.ACC,
            Queue.ACC_FREE,
            Queue.ACC_READY,
            lambda header, m, n, k: m * n * header.accumulator_bytes,
        ),
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
