"""How an op is scheduled: tiles, loop order, what stays on chip, slots. One description for all.

The default choice (`cost.tiling`), the time by formula (`cost.overlap`), the compiler
(`target.compile.schedule`) and the tuner's space take the same `Decisions`. Functions of a
schedule take `Candidates`, too: many schedules at once, an array in the place of every number.

The loop nest is (rows, channels, K chunks) with `rows_outer`, else (channels, rows, K chunks).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparqle_tvm.target.accelerator import Accelerator
from sparqle_tvm.target.isa.access import ceil_div
from sparqle_tvm.target.isa.buffers import STORAGES, aligned, storages_of
from sparqle_tvm.target.isa.header import Header, Queue
from sparqle_tvm.target.isa.operands import Buffer
from sparqle_tvm.target.op import DenseOp


@dataclass(frozen=True, kw_only=True)
class Decisions:
    """What distinguishes one schedule of an op from another.

    Attributes
    ----------
    m, n, k : int
        Extents of a tile: multiples of the array's rows and columns, and of lanes, 8 and the
        group size.
    rows_outer : bool
        Loop order (m, n, k), else (n, m, k).
    keep_outer : bool
        Load all K chunks of the outer loop's operand (activations with `rows_outer`, else
        weights) once per iteration of it, and keep them there.
    activation_slots, weight_slots, accumulator_slots : int
        Tiles at a time; 2 lets transfers run beside the computation.
    row_split : int
        PE rows per activation row.
    """

    m: int
    n: int
    k: int
    rows_outer: bool = True
    keep_outer: bool = False
    activation_slots: int = 2
    weight_slots: int = 2
    accumulator_slots: int = 2
    row_split: int = 1

    @property
    def tile(self) -> tuple[int, int, int]:
        """Extents (m, n, k) of a tile."""
        return self.m, self.n, self.k

    @property
    def dataflow(self) -> str:
        """What stays on chip over the inner of the two outer loops, besides the outputs."""
        if not self.keep_outer:
            return "output-stationary"
        return "activation-stationary" if self.rows_outer else "weight-stationary"


@dataclass(frozen=True, eq=False, kw_only=True)
class Candidates:
    """Many `Decisions` at once: every field is an array of shape (candidates,).

    Or a grid of them: arrays that numpy broadcasts, of which formulas take those they need.
    """

    m: NDArray[np.int64]
    n: NDArray[np.int64]
    k: NDArray[np.int64]
    rows_outer: NDArray[np.bool_]
    keep_outer: NDArray[np.bool_]
    activation_slots: NDArray[np.int64]
    weight_slots: NDArray[np.int64]
    accumulator_slots: NDArray[np.int64]
    row_split: NDArray[np.int64]

    @classmethod
    def of(cls, decisions: Sequence[Decisions]) -> Candidates:
        """Some decisions as arrays."""
        return cls(**{f.name: np.array([getattr(d, f.name) for d in decisions]) for f in _FIELDS})

    def __len__(self) -> int:
        """How many."""
        return len(self.m)

    def __getitem__(self, index: Any) -> Candidates:
        """Some of them, by numbers or by a mask."""
        return Candidates(**{f.name: getattr(self, f.name)[index] for f in _FIELDS})

    def __add__(self, others: Candidates) -> Candidates:
        """Those of both."""
        mine, theirs = vars(self), vars(others)
        return Candidates(**{name: np.concatenate([mine[name], theirs[name]]) for name in mine})

    def decisions(self, index: int) -> Decisions:
        """One of them."""
        return Decisions(**{f.name: getattr(self, f.name)[index].item() for f in _FIELDS})


_FIELDS = fields(Decisions)

Scheduled = Decisions | Candidates


@dataclass(frozen=True)
class Tiling:
    """How many tiles an op has under a schedule, and how often they are loaded; maybe arrays.

    Attributes
    ----------
    op : DenseOp
        The op.
    schedule : Decisions or Candidates
        Its schedule.
    """

    op: DenseOp
    schedule: Scheduled

    @property
    def m_tiles(self) -> Any:
        """Tiles along the rows."""
        return ceil_div(self.op.m, self.schedule.m)

    @property
    def n_tiles(self) -> Any:
        """Tiles along the output channels."""
        return ceil_div(self.op.n, self.schedule.n)

    @property
    def k_tiles(self) -> Any:
        """K chunks."""
        return ceil_div(self.op.k, self.schedule.k)

    @property
    def keeps_rows(self) -> Any:
        """Whether activations stay on chip while the loop over channels runs."""
        return np.logical_and(self.schedule.keep_outer, self.schedule.rows_outer)

    @property
    def keeps_channels(self) -> Any:
        """Whether weights stay on chip while the loop over rows runs."""
        return np.logical_and(self.schedule.keep_outer, np.logical_not(self.schedule.rows_outer))

    @property
    def activation_loads(self) -> Any:
        """How often all activations are loaded."""
        return _number(np.where(self.keeps_rows, 1, self.n_tiles))

    @property
    def weight_loads(self) -> Any:
        """How often all weights are loaded."""
        return _number(np.where(self.keeps_channels, 1, self.m_tiles))

    @property
    def row_loads(self) -> Any:
        """How often the parameters of all rows are loaded."""
        return _number(np.where(self.schedule.rows_outer, 1, self.n_tiles))

    @property
    def channel_loads(self) -> Any:
        """How often the parameters of all channels are loaded."""
        return _number(np.where(self.schedule.rows_outer, self.m_tiles, 1))


def _number(values: Any) -> Any:
    """A plain number, if it is the only one."""
    return values if values.ndim else values.item()


def buffer_needs(
    op: DenseOp, accelerator: Accelerator, schedule: Scheduled, *, digits: int = 2
) -> dict[Buffer, Any]:
    """Bytes of each on-chip buffer that a schedule takes, with every MSB digit present.

    `digits` are the digits of an activation that are stored (baseline ``a4``: 1).
    """
    header = Header(accelerator=accelerator, op=op, k_chunk=max(op.k, op.group_size))
    tiling = Tiling(op, schedule)
    chunks, outputs = tiling.k_tiles, tiling.m_tiles * tiling.n_tiles
    rows_outer = schedule.rows_outer
    outer = np.where(rows_outer, tiling.m_tiles, tiling.n_tiles)
    tile = {
        axis: np.minimum(getattr(op, axis), getattr(schedule, axis)) for axis in ("m", "n", "k")
    }
    slots = schedule.accumulator_slots
    rows, channels = tiling.keeps_rows, tiling.keeps_channels
    # Visits of the loops at which a tile is loaded, tiles per visit, and slots wanted.
    visits: dict[Queue, tuple[Callable[[], Any], Any, Any]] = {
        Queue.ACT_FREE: (
            lambda: np.where(rows, outer, outputs * chunks),
            np.where(rows, chunks, 1),
            schedule.activation_slots,
        ),
        Queue.WGT_FREE: (
            lambda: np.where(channels, outer, outputs * chunks),
            np.where(channels, chunks, 1),
            schedule.weight_slots,
        ),
        Queue.ROW_FREE: (lambda: np.where(rows_outer, outer, outputs), 1, slots),
        Queue.CHN_FREE: (lambda: np.where(rows_outer, outputs, outer), 1, slots),
        Queue.ACC_FREE: (lambda: outputs, 1, slots),
    }
    needs: dict[Buffer, Any] = dict.fromkeys(Buffer, 0)
    for name in storages_of(op):
        if name == "msb" and digits == 1:
            continue
        storage = STORAGES[name]
        count, per_visit, wanted = visits[storage.free]
        nbytes = aligned(storage.tile_bytes(header, tile)) * per_visit
        if np.any(np.greater(wanted, 1)):
            nbytes = nbytes * np.where(count() > 1, wanted, 1)
        needs[storage.buffer] = needs[storage.buffer] + nbytes
    return {buffer: _number(np.asarray(nbytes)) for buffer, nbytes in needs.items()}


def overflows(op: DenseOp, accelerator: Accelerator, schedule: Decisions) -> list[Buffer]:
    """Buffers that a schedule takes more of than there is."""
    needs = buffer_needs(op, accelerator, schedule)
    if accelerator.scratchpad and sum(needs.values()) > accelerator.onchip_bytes:
        return list(needs)
    return [b for b, nbytes in needs.items() if nbytes > accelerator.memory_bytes(b.word)]


def even_splits(extent: int, unit: int) -> NDArray[np.int64]:
    """Multiples of `unit` that split `extent` evenly into 1, 2, 3, ... tiles, largest first."""
    units = math.ceil(extent / unit)
    return np.array(sorted({math.ceil(units / j) * unit for j in range(1, units + 1)})[::-1])
