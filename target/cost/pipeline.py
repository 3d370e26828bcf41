"""Time of the loop nest of tiles: what overlaps, and what no overlap hides.

The loop nest is (outer, inner, K chunks). LOAD, array and STORE work in order beside each other,
two tiles of every operand exist at a time, and LOAD and STORE share the DRAM channel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sparqle_tvm.target.accelerator import Accelerator
from sparqle_tvm.target.cost import storage
from sparqle_tvm.target.cost.shapes import DenseShape, Scheme

# DMA descriptors of the planes of a tile: LSB, bitmap, MSB, or one of 2k bits.
PLANE_DESCRIPTORS: dict[Scheme, int] = {"sparqle": 3, "dense": 1}


def activations_outer(m_tiles: Any, n_tiles: Any, rows_outer: Any) -> Any:
    """Whether programs have row tiles in the outer loop: a loop of one tile is free there."""
    return np.equal(m_tiles, 1) | (rows_outer & np.greater(n_tiles, 1))


class _Axis:
    """Tiles of `size` along an axis of `extent`: how many, and extents of some of them."""

    def __init__(self, extent: int, size: Any) -> None:
        self.tiles = -(-extent // size)
        self.mean = extent / self.tiles
        self.first = np.minimum(size, extent)
        self.last = extent - (self.tiles - 1) * size


def _blocks(m: Any, n: Any, accelerator: Accelerator) -> Any:
    """How often the array's rows and columns are filled for a tile."""
    return -(-m // accelerator.rows) * -(-n // accelerator.cols)


@dataclass(frozen=True, kw_only=True)
class OpLoads:
    """Cycles of the transfers of a dense op, by the extents of a tile.

    Attributes
    ----------
    shape : DenseShape
        The op.
    accelerator : Accelerator
        Bandwidth, and cycles of a descriptor.
    scheme : {"sparqle", "dense"}
        What lies in memory.
    offset : bool
        Whether weights come with the constant of the signed window.
    activation_bytes : int
        Planes and bitmap of all activations.
    """

    shape: DenseShape
    accelerator: Accelerator
    scheme: Scheme
    offset: bool
    activation_bytes: int

    def _cycles(self, nbytes: Any, descriptors: int = 1) -> Any:
        fixed = descriptors * self.accelerator.dma_descriptor_cycles
        return nbytes / self.accelerator.dram_bytes_per_cycle + fixed

    def _sums(self, m: Any, k: Any) -> Any:
        per_row = storage.group_sum_bytes(1, self.shape.k, self.shape.group_size)
        return self._cycles(m * k / self.shape.k * per_row) if self.shape.has_min else 0

    def activation(self, m: Any, k: Any) -> Any:
        """Planes, bitmap and group sums of a tile."""
        pointers = storage.TILE_POINTER_BYTES if self.scheme == "sparqle" else 0
        share = m * k / (self.shape.m * self.shape.k)
        planes = self.activation_bytes * share + pointers
        return self._cycles(planes, PLANE_DESCRIPTORS[self.scheme]) + self._sums(m, k)

    def activation_tail(self, m: Any, k: Any) -> Any:
        """The last transfer of a tile: group sums, the MSB plane, or all of ``dense``."""
        if self.shape.has_min:
            return self._sums(m, k)
        if self.scheme == "dense":
            return self.activation(m, k)
        others = self.shape.m * self.shape.k * (self.accelerator.digit_bits + 1) / 8
        share = m * k / (self.shape.m * self.shape.k)
        return self._cycles((self.activation_bytes - others) * share)

    def weight(self, n: Any, k: Any) -> Any:
        """Weights, scales and minima of a tile."""
        per_channel = storage.weight_bytes(self.shape, self.shape.k)
        return self._cycles(n * k / self.shape.k * per_channel, 1 + (self.shape.group_size > 0))

    def weight_tail(self, n: Any, k: Any) -> Any:
        """The last transfer of a tile: scales and minima, if there are groups."""
        if not self.shape.group_size:
            return self.weight(n, k)
        return self.weight(n, k) - self._cycles(n * k * self.shape.weight_bits / 8)

    def row(self, m: Any) -> Any:
        """Scales of `m` rows."""
        return self._cycles(m * storage.ACTIVATION_SCALE_BYTES)

    def channel(self, n: Any) -> Any:
        """Parameters of `n` channels, if there are any."""
        per_channel = storage.parameter_bytes(self.shape, self.offset)
        return self._cycles(n * per_channel) if per_channel else 0 * n

    def store(self, elements: Any) -> Any:
        """Outputs of a tile."""
        return self._cycles(elements * self.accelerator.float_bytes)


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """Work of the engines in cycles; every field may be an array (of candidates).

    Tiles at the edges are smaller: fields are averages, and the first and the last tile, which
    nothing overlaps with, stand for themselves.

    Attributes
    ----------
    outer, inner, k_tiles : int
        Iterations of the loops.
    load_outer : cycles
        Transfers at the begin of each outer iteration: an operand that stays, parameters.
    load_step : cycles
        Transfers for each tile that the array works through.
    load_tail : cycles
        The last of these transfers.
    load_end : cycles
        Transfers that follow the last K chunk of an output tile: parameters of the drain.
    mma : cycles
        The array's work for each tile.
    head_load, head_mma, edge_load, edge_mma : cycles
        Work on the first and on the last tile of the innermost loop, over K chunks if there are
        several, else over output tiles.
    drain, store : cycles
        Drain and store of an output tile; both are done by STORE, one after the other.
    first_load : cycles
        Transfers before the array can start.
    last_load, last_mma, last_drain, last_store : cycles
        Work on the last tile.
    before_mma, before_drain, before_store : cycles
        Work on the tile before it; drain and store of the output tile before.
    """

    outer: Any
    inner: Any
    k_tiles: Any
    load_outer: Any
    load_step: Any
    load_tail: Any
    load_end: Any
    mma: Any
    head_load: Any
    head_mma: Any
    edge_load: Any
    edge_mma: Any
    drain: Any
    store: Any
    first_load: Any
    last_load: Any
    last_mma: Any
    last_drain: Any
    last_store: Any
    before_mma: Any
    before_drain: Any
    before_store: Any

    @classmethod
    def of_op(
        cls,
        loads: OpLoads,
        tile: tuple[Any, Any, Any],
        rows_outer: Any,
        *,
        mma_cycles: Any,
    ) -> Pipeline:
        """Put the work of a dense op where its schedule has it.

        Without K chunks the operand of the outer loop stays, else both are loaded for every tile.
        Row scales and channel parameters are loaded where the loop over their tiles stands.

        Parameters
        ----------
        loads : OpLoads
            What has to be moved.
        tile : (m, n, k)
            Extents of a tile.
        rows_outer : bool
            Whether row tiles are the outer loop, if there are several of both, see
            `activations_outer`.
        mma_cycles : int
            All work of the array.
        """
        shape, accelerator = loads.shape, loads.accelerator
        m, n, k = (
            _Axis(e, size) for e, size in zip((shape.m, shape.n, shape.k), tile, strict=True)
        )
        blocks = _blocks(shape.m, shape.n, accelerator)

        def mma_of(rows: Any, cols: Any, columns: Any) -> Any:
            share = _blocks(rows, cols, accelerator) / blocks
            return mma_cycles * share * columns / shape.k

        mma = mma_cycles / (m.tiles * n.tiles * k.tiles)
        by_rows, stays = activations_outer(m.tiles, n.tiles, rows_outer), np.equal(k.tiles, 1)

        def pick(rows: Any, cols: Any) -> Any:
            return np.where(by_rows, rows, cols)

        def step_load(rows: Any, cols: Any, columns: Any) -> Any:
            both = loads.activation(m.mean, columns) + loads.weight(n.mean, columns)
            one = pick(loads.weight(cols, k.mean), loads.activation(rows, k.mean))
            return np.where(stays, one, both)

        def step_mma(rows: Any, cols: Any, columns: Any) -> Any:
            one = pick(mma_of(m.mean, cols, k.mean), mma_of(rows, n.mean, k.mean))
            return np.where(stays, one, mma * columns / k.mean)

        activation, weight = loads.activation(m.mean, k.mean), loads.weight(n.mean, k.mean)
        first = loads.activation(m.first, k.first) + loads.weight(n.first, k.first)
        row, channel = loads.row(m.mean), loads.channel(n.mean)
        tails = loads.weight_tail(n.mean, k.mean), loads.activation_tail(m.mean, k.mean)
        elements = m.mean * n.mean
        last = m.last * n.last
        before = (
            np.where(stays, pick(m.last, m.first), m.last),
            np.where(stays, pick(n.first, n.last), n.last),
        )
        last_loads = loads.activation(m.last, k.last), loads.weight(n.last, k.last)
        drain_rate, several = accelerator.drain_elements_per_cycle, m.tiles * n.tiles > 1
        return cls(
            outer=pick(m.tiles, n.tiles),
            inner=pick(n.tiles, m.tiles),
            k_tiles=k.tiles,
            load_outer=pick(row, channel) + np.where(stays, pick(activation, weight), 0),
            load_step=np.where(stays, pick(weight, activation), activation + weight),
            load_tail=np.where(by_rows | ~stays, *tails),
            load_end=pick(channel, row),
            mma=mma,
            head_load=step_load(m.first, n.first, k.first),
            head_mma=step_mma(m.first, n.first, k.first),
            edge_load=step_load(m.last, n.last, k.last),
            edge_mma=step_mma(m.last, n.last, k.last),
            drain=elements / drain_rate,
            store=loads.store(elements),
            first_load=first + pick(loads.row(m.first), loads.channel(n.first)),
            last_load=np.where(stays, pick(*last_loads[::-1]), sum(last_loads)),
            last_mma=mma_of(m.last, n.last, k.last),
            last_drain=last / drain_rate,
            last_store=loads.store(last),
            before_mma=mma_of(*before, k.first) * (several | ~stays),
            before_drain=before[0] * before[1] * several / drain_rate,
            before_store=loads.store(before[0] * before[1]) * several,
        )

    @property
    def dma_cycles(self) -> Any:
        """All transfers."""
        return self.outer * (self.load_outer + self.inner * self._traffic)

    @property
    def array_cycles(self) -> Any:
        """All work of the array."""
        return self.outer * self.inner * self.k_tiles * self.mma

    @property
    def _traffic(self) -> Any:
        """Transfers of an output tile, without what is loaded in the outer loop."""
        return self.k_tiles * self.load_step + self.load_end + self.store

    @property
    def total_cycles(self) -> Any:
        """Cycles from the first load to the last store.

        The slowest of the engines determines the time of an outer iteration. On top of the
        array's work come

        - *bursts*: beside the last tile of an output, the store of the one before and the
          parameters use the channel; the next tile's loads have the time of one MMA for it,
          or of two, if the store has to wait until these loads are over,
        - *changes of the outer loop*: LOAD is two tiles ahead at most. While the array works
          through these two, LOAD brings the operand that stays, and two more tiles;

        and for the whole op what comes before the array starts and after it ends.
        """
        mma, output = self.mma, self.drain + self.store
        # A drain makes room for the parameters of the next output but one: loaded before its store.
        later_loads = np.maximum(0, self.outer * self.inner - 2)
        burst, change = self._burst, self._change
        array_pass = self.inner * (self.k_tiles * mma + burst)
        period = np.maximum(
            np.maximum(array_pass + change, self.load_outer + self.inner * self._traffic),
            self.inner * (output + self.load_end),
        )
        tail = self.last_drain + self.last_store
        late = self.before_drain + self.before_store - self.k_tiles * self.last_mma
        array_bound = self.first_load + (self.outer - 1) * period + array_pass - burst
        first_mma = np.where(np.equal(self.k_tiles, 1), self.head_mma, self.k_tiles * mma)
        store_bound = self.first_load + first_mma + self.outer * self.inner * output
        store_bound = store_bound + later_loads * self.load_end
        memory_bound = self.dma_cycles + self._exposed_compute + self.last_drain
        array_bound = array_bound + np.maximum(late, 0) + tail
        return np.maximum(np.maximum(array_bound, memory_bound), store_bound)

    @property
    def _burst(self) -> Any:
        """Cycles that the array waits after an output in several chunks, see `total_cycles`."""
        load, extra = self.head_load, self.load_end + self.store
        # The last chunk may be too short for the next load; counted from the end of that load:
        short = np.maximum(0, load - self.edge_mma)
        ready = self.drain - short
        # The store comes before its last transfer, or before that of the load to follow, or after.
        early = np.maximum(0, load + extra - self.edge_mma)
        late = np.where(ready > load - self.load_tail, load - self.head_mma, 0)
        later = short + np.maximum(0, load + extra - self.head_mma + np.minimum(late, 0))
        burst = np.where(ready < -self.load_tail, early, later)
        return np.where(np.equal(self.k_tiles, 1), 0, burst)

    @property
    def _change(self) -> Any:
        """Cycles that the array waits for the next outer iteration, see `total_cycles`."""
        brought = self.load_outer + self.edge_load + self.head_load
        brought = brought + 2 * (self.load_end + self.store)
        stays = np.maximum(0, brought - self.head_mma - self.edge_mma)
        chunks = np.where(self._burst > 0, self.load_outer, 0)
        return np.where(np.equal(self.k_tiles, 1), stays, chunks)

    @property
    def _exposed_compute(self) -> Any:
        """Cycles that the channel is idle before the last drain, if transfers are slowest."""
        # Counted from the end of the last tile's loads: when the array leaves the tile before.
        before = self.before_mma - self.load_end - self.last_load
        stays = np.equal(self.k_tiles, 1)
        waits = stays & (before + self.before_drain + self.load_tail > 0)
        transfers = self.load_end + np.where(waits, self.before_store, 0)
        stored = np.where(stays, before + self.before_drain + self.before_store, 0)
        computed = np.maximum(before, 0) + self.last_mma
        return np.maximum(np.maximum(computed, stored) - transfers, 0)
