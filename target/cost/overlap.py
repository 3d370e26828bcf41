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
from sparqle_tvm.target.cost.baselines import Scheme
from sparqle_tvm.target.op import DenseOp

# Of an encoded tile of outputs: LSB, bitmap, MSB, pointers.
ENCODED_DESCRIPTORS = 4


def plane_descriptors(scheme: Scheme) -> int:
    """DMA descriptors of the planes of a tile: LSB, bitmap, MSB, or one of whole values."""
    return 3 if scheme == "sparqle" else 1


def activations_outer(m_tiles: Any, n_tiles: Any, rows_outer: Any) -> Any:
    """Whether programs have row tiles in the outer loop: a loop of one tile is free there."""
    return np.equal(m_tiles, 1) | (rows_outer & np.greater(n_tiles, 1))


class _Axis:
    """Tiles of `size` along an axis of `extent`: how many, and extents of some of them."""

    def __init__(self, extent: int, size: Any) -> None:
        self.extent, self.tiles = extent, -(-extent // size)
        self.mean = extent / self.tiles
        self.first = np.minimum(size, extent)
        self.last = extent - (self.tiles - 1) * size


@dataclass(frozen=True, kw_only=True)
class OpLoads:
    """Cycles of the transfers of a dense op, by the extents of a tile.

    Attributes
    ----------
    op : DenseOp
        The op.
    accelerator : Accelerator
        Bandwidth, and cycles of a descriptor.
    scheme : {"sparqle", "dense", "native", "a4"}
        What lies in memory.
    activation_bytes : int
        Planes and bitmap of all activations.
    block_rows : int
        Rows that are sorted together: their numbers are loaded with their scales, and every row
        of outputs is a burst of its own. 0: rows are in their own order.
    encoded_bytes : int
        All bytes of encoded outputs; 0: outputs are floats.
    """

    op: DenseOp
    accelerator: Accelerator
    scheme: Scheme
    activation_bytes: int
    block_rows: int = 0
    encoded_bytes: int = 0

    def _cycles(self, nbytes: Any, descriptors: int = 1) -> Any:
        fixed = descriptors * self.accelerator.dma_descriptor_cycles
        return nbytes / self.accelerator.dram_bytes_per_cycle + fixed

    def _sums(self, m: Any, k: Any) -> Any:
        per_row = storage.sum_bytes(1, self.op.k, self.op.group_size, self.op.digit_bits)
        return self._cycles(m * k / self.op.k * per_row) if self.op.has_min else 0

    def activation(self, m: Any, k: Any) -> Any:
        """Planes, bitmap, centres and group sums of a tile."""
        pointers = storage.TILE_POINTER_BYTES if self.scheme == "sparqle" else 0
        share = m * k / (self.op.m * self.op.k)
        planes = self.activation_bytes * share + pointers
        centres = storage.centre_bytes(self.op, self.scheme)
        moved = self._cycles(planes, plane_descriptors(self.scheme)) + self._sums(m, k)
        return moved + self._cycles(m * centres) if centres else moved

    def activation_tail(self, m: Any, k: Any) -> Any:
        """The last transfer of a tile: group sums, the MSB plane, or all of ``dense``."""
        if self.op.has_min:
            return self._sums(m, k)
        if self.scheme != "sparqle":
            return self.activation(m, k)
        others = self.op.m * self.op.k * (self.accelerator.digit_bits + 1) / 8
        share = m * k / (self.op.m * self.op.k)
        return self._cycles((self.activation_bytes - others) * share)

    def weight(self, n: Any, k: Any) -> Any:
        """Weights, scales and minima of a tile."""
        per_channel = storage.weight_bytes(self.op, self.op.k)
        return self._cycles(n * k / self.op.k * per_channel, 1 + (self.op.group_size > 0))

    def weight_tail(self, n: Any, k: Any) -> Any:
        """The last transfer of a tile: scales and minima, if there are groups."""
        if not self.op.group_size:
            return self.weight(n, k)
        return self.weight(n, k) - self._cycles(n * k * self.op.weight_bits / 8)

    def row(self, m: Any) -> Any:
        """Scales and other parameters of `m` rows."""
        return self._cycles(m * storage.row_parameter_bytes(self.op, self.block_rows))

    def channel(self, n: Any) -> Any:
        """Parameters of `n` channels, if there are any."""
        per_channel = self.op.channel_parameter_bytes
        return self._cycles(n * per_channel) if per_channel else 0 * n

    def store(self, m: Any, n: Any) -> Any:
        """Outputs of a tile of (m, n)."""
        if self.encoded_bytes:
            share = m * n / (self.op.m * self.op.n)
            return self._cycles(share * self.encoded_bytes, ENCODED_DESCRIPTORS)
        return self._cycles(m * storage.output_row_bytes(n, self.accelerator, self.block_rows))


@dataclass(frozen=True, kw_only=True)
class Iteration:
    """Work of one iteration of the outer loop, in cycles; fields may be arrays (of candidates).

    Attributes
    ----------
    inner, k_tiles : int
        Iterations of the loops inside.
    load_outer : cycles
        Transfers at its begin: an operand that stays, parameters.
    load_step : cycles
        Transfers for each tile that the array works through (mean; tiles at edges are smaller).
    load_tail : cycles
        The last of these transfers.
    load_end : cycles
        Transfers that follow the last K chunk of an output tile: parameters of the drain.
    mma : cycles
        The array's work for each tile (mean).
    head_load, head_mma, edge_load, edge_mma : cycles
        Work on the first and on the last tile of the innermost loop, over K chunks if there are
        several, else over output tiles.
    drain, store : cycles
        Drain and store of an output tile; both are done by STORE, one after the other.
    head_drain : cycles
        Drain of the first output tile.
    """

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
    head_drain: Any

    @property
    def transfers(self) -> Any:
        """All of LOAD and STORE."""
        output = self.k_tiles * self.load_step + self.load_end + self.store
        return self.load_outer + self.inner * output

    @property
    def array_cycles(self) -> Any:
        """All work of the array, and what it waits for after outputs (`burst`)."""
        return self.inner * (self.k_tiles * self.mma + self.burst)

    @property
    def store_cycles(self) -> Any:
        """All drains and stores, and what stores wait for the channel (`collision`)."""
        return self.inner * (self.drain + self.store + self.collision)

    @property
    def collision(self) -> Any:
        """Cycles that a store waits for the channel if STORE is the slowest engine.

        The end of a store makes room for accumulators; the array works through a tile, and frees
        the tile for LOAD. A load that begins before the next drain ends delays the store after it.
        Loads of parameters come first and keep LOAD from that.
        """
        second = self.head_mma + self.head_load
        first = second - self.load_tail
        wait = np.where(first > self.head_drain, first, second) - self.head_drain
        alone = np.equal(self.k_tiles, 1) & np.equal(self.load_end, 0)
        slowest = self.head_drain >= np.maximum(self.head_mma, self.head_load)
        return np.where(alone & slowest, np.maximum(wait, 0), 0)

    @property
    def period(self) -> Any:
        """From the first MMA to that of the next iteration: the slowest engine determines it."""
        array = self.array_cycles + self.change
        store = self.store_cycles + self.inner * self.load_end
        return np.maximum(np.maximum(array, self.transfers), store)

    @property
    def last_cycles(self) -> Any:
        """From the first to the last MMA, if no iteration follows."""
        # LOAD was two tiles ahead; of the stores, those of the last two tiles are still to come.
        ahead = self.load_outer + self.load_end + 2 * (self.load_step + self.store)
        return np.maximum(self.array_cycles - self.burst, self.transfers - ahead + self.mma)

    @property
    def burst(self) -> Any:
        """Cycles that the array waits after an output that is made in several chunks.

        The store and the parameters use the channel while the next chunks are to be loaded.
        """
        load, extra = self.head_load, self.load_end + self.store
        # The last chunk may be too short for the next load; counted from the end of that load:
        short = np.maximum(0, load - self.edge_mma)
        ready = self.drain - short
        # The store comes before its last transfer, or before that of the load to follow, or after:
        # then there is the time of two MMAs for two loads.
        early = np.maximum(0, load + extra - self.edge_mma)
        late = np.where(ready > load - self.load_tail, load - self.head_mma, 0)
        later = short + np.maximum(0, load + extra - self.head_mma + np.minimum(late, 0))
        burst = np.where(ready < -self.load_tail, early, later)
        return np.where(np.equal(self.k_tiles, 1), 0, burst)

    @property
    def change(self) -> Any:
        """Cycles that the array waits for the next iteration.

        LOAD is two tiles ahead at most. While the array works through these two, LOAD brings the
        operand that stays and two more tiles, and two outputs are stored. The first tile of the
        next iteration finds room when the last but one is done, and has to come beside the last,
        which may be small; the store of the last but one may get in between.
        """
        brought = self.load_outer + self.edge_load + self.head_load
        brought = brought + 2 * (self.load_end + self.store)
        stays = np.maximum(0, brought - self.head_mma - self.edge_mma)
        between = np.where(self.head_drain < self.head_load - self.load_tail, self.store, 0)
        stays = np.maximum(stays, self.head_load + between - self.edge_mma)
        chunks = np.where(self.burst > 0, self.load_outer, 0)
        return np.where(np.equal(self.k_tiles, 1), stays, chunks)


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """Work of an op in cycles; every field may be an array (of candidates).

    Attributes
    ----------
    outer : int
        Iterations of the outer loop.
    full, last : Iteration
        All but the last of them, and the last, which may have a smaller tile.
    first_load : cycles
        Transfers before the array can start.
    last_load, last_mma, last_drain, last_store : cycles
        Work on the last tile.
    before_mma, before_drain, before_store : cycles
        Work on the tile before it; drain and store of the output tile before.
    """

    outer: Any
    full: Iteration
    last: Iteration
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
    ) -> Overlap:
        """Put the work of a dense op where its schedule has it.

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
        nest = _Nest(loads, tile, rows_outer, mma_cycles)
        m, n, k, stays, pick = nest.m, nest.n, nest.k, nest.stays, nest.pick
        first = loads.activation(m.first, k.first) + loads.weight(n.first, k.first)
        last_loads = loads.activation(m.last, k.last), loads.weight(n.last, k.last)
        before = (
            np.where(stays, pick(m.last, m.first), m.last),
            np.where(stays, pick(n.first, n.last), n.last),
        )
        drain_rate, several = loads.accelerator.drain_elements_per_cycle, m.tiles * n.tiles > 1
        return cls(
            outer=pick(m.tiles, n.tiles),
            full=nest.iteration(pick(m.first, m.mean), pick(n.mean, n.first)),
            last=nest.iteration(pick(m.last, m.mean), pick(n.mean, n.last)),
            first_load=first + pick(loads.row(m.first), loads.channel(n.first)),
            last_load=np.where(stays, pick(*last_loads[::-1]), sum(last_loads)),
            last_mma=nest.mma(m.last, n.last, k.last),
            last_drain=m.last * n.last / drain_rate,
            last_store=loads.store(m.last, n.last),
            before_mma=nest.mma(*before, k.first) * (several | ~stays),
            before_drain=before[0] * before[1] * several / drain_rate,
            before_store=loads.store(*before) * several,
        )

    @property
    def dma_cycles(self) -> Any:
        """All transfers."""
        return (self.outer - 1) * self.full.transfers + self.last.transfers

    @property
    def total_cycles(self) -> Any:
        """Cycles from the first load to the last store.

        The slowest of the engines determines the time of an outer iteration (`Iteration`); for
        the whole op, what comes before the array starts and after it ends is added.
        """
        last, before = self.last, self.outer - 1
        tail = self.last_drain + self.last_store
        late = self.before_drain + self.before_store - last.k_tiles * self.last_mma
        array_bound = self.first_load + before * self.full.period + last.last_cycles
        array_bound = array_bound + np.maximum(late, 0) + tail
        memory_bound = self.dma_cycles + self._exposed_compute + self.last_drain
        return np.maximum(np.maximum(array_bound, memory_bound), self._store_bound)

    @property
    def _store_bound(self) -> Any:
        full, last = self.full, self.last
        first_mma = np.where(np.equal(full.k_tiles, 1), full.head_mma, full.k_tiles * full.mma)
        stores = (self.outer - 1) * full.store_cycles + last.store_cycles
        # A drain makes room for the parameters of the next output but one: loaded before its store.
        parameters = np.maximum(0, self.outer * full.inner - 2) * full.load_end
        return self.first_load + first_mma + stores + parameters

    @property
    def _exposed_compute(self) -> Any:
        """Cycles that the channel is idle before the last drain, if transfers are slowest."""
        # Counted from the end of the last tile's loads: when the array leaves the tile before.
        last = self.last
        before = self.before_mma - last.load_end - self.last_load
        stays = np.equal(last.k_tiles, 1)
        waits = stays & (before + self.before_drain + last.load_tail > 0)
        transfers = last.load_end + np.where(waits, self.before_store, 0)
        stored = np.where(stays, before + self.before_drain + self.before_store, 0)
        computed = np.maximum(before, 0) + self.last_mma
        return np.maximum(np.maximum(computed, stored) - transfers, 0)


class _Nest:
    """Where the schedule of an op has its work.

    Without K chunks the operand of the outer loop stays, else both are loaded for every tile. Row
    scales and channel parameters are loaded where the loop over their tiles stands.
    """

    def __init__(
        self, loads: OpLoads, tile: tuple[Any, Any, Any], rows_outer: Any, mma_cycles: Any
    ) -> None:
        op, self.loads, self.mma_cycles = loads.op, loads, mma_cycles
        self.m, self.n = _Axis(op.m, tile[0]), _Axis(op.n, tile[1])
        self.k = _Axis(op.k, tile[2])
        self.by_rows = activations_outer(self.m.tiles, self.n.tiles, rows_outer)
        self.stays = np.equal(self.k.tiles, 1)

    def pick(self, rows: Any, cols: Any) -> Any:
        """The first if row tiles are outside, else the second."""
        return np.where(self.by_rows, rows, cols)

    def mma(self, rows: Any, cols: Any, columns: Any) -> Any:
        """The array's work on a tile of these extents."""
        op, array = self.loads.op, self.loads.accelerator
        row_share = -(-rows // array.rows) / -(-op.m // array.rows)
        col_share = -(-cols // array.cols) / -(-op.n // array.cols)
        return self.mma_cycles * row_share * col_share * columns / op.k

    def iteration(self, rows: Any, cols: Any) -> Iteration:
        """One iteration of the outer loop with tiles of `rows` or `cols`; the other is a mean."""
        m, n, k, loads, pick = self.m, self.n, self.k, self.loads, self.pick
        inner = pick(n.tiles, m.tiles)
        whole = pick(self.mma(rows, n.extent, k.extent), self.mma(m.extent, cols, k.extent))
        mma = whole / (inner * k.tiles)
        activation, weight = loads.activation(rows, k.mean), loads.weight(cols, k.mean)
        tails = loads.weight_tail(cols, k.mean), loads.activation_tail(rows, k.mean)

        def step_load(some_m: Any, some_n: Any, some_k: Any) -> Any:
            both = loads.activation(rows, some_k) + loads.weight(cols, some_k)
            one = pick(loads.weight(some_n, k.mean), loads.activation(some_m, k.mean))
            return np.where(self.stays, one, both)

        def step_mma(some_m: Any, some_n: Any, some_k: Any) -> Any:
            one = pick(self.mma(rows, some_n, k.mean), self.mma(some_m, cols, k.mean))
            return np.where(self.stays, one, mma * some_k / k.mean)

        return Iteration(
            inner=inner,
            k_tiles=k.tiles,
            load_outer=pick(loads.row(rows), loads.channel(cols))
            + np.where(self.stays, pick(activation, weight), 0),
            load_step=np.where(self.stays, pick(weight, activation), activation + weight),
            load_tail=np.where(self.by_rows | ~self.stays, *tails),
            load_end=pick(loads.channel(cols), loads.row(rows)),
            mma=mma,
            head_load=step_load(m.first, n.first, k.first),
            head_mma=step_mma(m.first, n.first, k.first),
            edge_load=step_load(m.last, n.last, k.last),
            edge_mma=step_mma(m.last, n.last, k.last),
            drain=rows * cols / loads.accelerator.drain_elements_per_cycle,
            store=loads.store(rows, cols),
            head_drain=pick(rows * n.first, m.first * cols)
            / loads.accelerator.drain_elements_per_cycle,
        )
