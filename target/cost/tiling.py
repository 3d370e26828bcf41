"""Tiles that fit the buffers, and how often a loop order loads each operand.

K is the innermost tile loop, so partial sums stay on chip. With ``rows_outer`` the loop nest is
(row tiles, column tiles, K chunks), otherwise (column tiles, row tiles, K chunks). An operand that
does not change between two iterations stays in its buffer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sparqle_tvm.errors import TargetError
from sparqle_tvm.target.accelerator import Accelerator
from sparqle_tvm.target.cost import storage
from sparqle_tvm.target.cost.array import lsb_pass_cycles
from sparqle_tvm.target.cost.baselines import Scheme, array_of, baseline
from sparqle_tvm.target.cost.overlap import OpLoads, Overlap, activations_outer
from sparqle_tvm.target.isa.access import ceil_div
from sparqle_tvm.target.op import DenseOp

FIRST_CANDIDATES = 16
"""Tilings of a K chunk whose cost is found first, those with the smallest lower bound."""

BOUND_MARGIN = 0.98
"""A tiling is ruled out if so much of its bound is above the best: the bound counts array cycles of
whole tiles, the cost those of mean ones."""


@dataclass(frozen=True)
class Tiling:
    """Tile sizes and loop order of a dense op.

    Attributes
    ----------
    m, n, k : int
        Rows, output channels and K columns of a tile; the last tile of each may be smaller.
    m_tiles, n_tiles, k_tiles : int
        How many tiles cover the op.
    rows_outer : bool
        Loop order, see the module.
    """

    m: int
    n: int
    k: int
    m_tiles: int
    n_tiles: int
    k_tiles: int
    rows_outer: bool

    @property
    def activations_outer(self) -> bool:
        """Loop order of programs, see the function of that name."""
        return bool(activations_outer(self.m_tiles, self.n_tiles, self.rows_outer))

    @property
    def activation_loads(self) -> int:
        """How often all activations are loaded."""
        return int(_activation_loads(self.m_tiles, self.n_tiles, self.k_tiles, self.rows_outer))

    @property
    def weight_loads(self) -> int:
        """How often all weights are loaded."""
        return int(_weight_loads(self.m_tiles, self.n_tiles, self.k_tiles, self.rows_outer))

    @property
    def activation_tile_loads(self) -> int:
        """Loads of activation tiles in all."""
        return self.activation_loads * self.m_tiles * self.k_tiles

    @property
    def row_loads(self) -> int:
        """How often the activation scales are loaded."""
        return 1 if self.activations_outer else self.n_tiles

    @property
    def channel_loads(self) -> int:
        """How often the parameters of all channels are loaded."""
        return self.m_tiles if self.activations_outer else 1


def choose_tilings(
    ops: Sequence[DenseOp], accelerator: Accelerator, scheme: Scheme
) -> tuple[Tiling, ...]:
    """Choose tiles for the dense ops that read one encoding.

    They share the K chunk, because the MSB digits lie in DRAM in tile order. The choice is
    static, as a compiler makes it: with every MSB present. It minimises DMA cycles plus array
    cycles plus what does not overlap, where every K chunk of ``sparqle`` costs one more step per
    row group (rows wait for the slowest at the end of a chunk).

    Parameters
    ----------
    ops : sequence of DenseOp
        The ops; `m` and `k` are the same in all.
    accelerator : Accelerator
        The array and its buffers.
    scheme : {"sparqle", "dense", "native", "a4"}
        What lies in memory.

    Raises
    ------
    TargetError
        If the smallest tile does not fit a buffer, or digits have not the width of the array.
    """
    return _choose_tilings(tuple(ops), accelerator, scheme)


@lru_cache(maxsize=4096)
def _choose_tilings(
    ops: tuple[DenseOp, ...], accelerator: Accelerator, scheme: Scheme
) -> tuple[Tiling, ...]:
    lanes = array_of(accelerator, scheme).lanes
    unit = math.lcm(8, lanes, *(max(s.group_size, 1) for s in ops))
    chunks = _tile_sizes(ops[0].k, unit)
    found = {op: _search(op, chunks, accelerator, scheme) for op in dict.fromkeys(ops)}
    searches = [found[op] for op in ops]
    costs = np.sum([cost for cost, _ in searches], axis=0)
    kind = f"with K chunks of at least {unit} columns (K = {ops[0].k})"
    best = _best(costs, ops[0], accelerator, kind)
    return tuple(tilings[best] for _, tilings in searches)


def tiling_of_chunk(op: DenseOp, k_chunk: int, accelerator: Accelerator, scheme: Scheme) -> Tiling:
    """The best tiles of a dense op for a given K chunk.

    Raises
    ------
    TargetError
        If no tile with that chunk fits the buffers, or digits have not the width of the array.
    """
    costs, tilings = _search(op, np.array([k_chunk]), accelerator, scheme)
    return tilings[_best(costs, op, accelerator, f"with K chunks of {k_chunk} columns")]


@lru_cache(maxsize=4096)
def choose_drained(
    op: DenseOp, k_chunk: int, readers: tuple[DenseOp, ...], accelerator: Accelerator
) -> Tiling:
    """Choose tiles for a dense op that encodes its outputs.

    The output channels of its tile are the K chunk of the ops that read them, for the MSB digits
    are stored tile by tile; channels are the outer loop. The choice minimises the static cost of
    the op and its readers together, see `choose_tilings`.

    Parameters
    ----------
    op : DenseOp
        The op.
    k_chunk : int
        Its own K chunk.
    readers : tuple of DenseOp
        The ops that read its outputs: their `k` is its `n`.
    accelerator : Accelerator
        The array and its buffers.

    Raises
    ------
    TargetError
        If no tile fits the buffers.
    """
    groups = (max(reader.group_size, 1) for reader in readers)
    unit = math.lcm(8, accelerator.lanes, accelerator.cols, *groups)
    chunks = _tile_sizes(op.n, unit)
    costs, tilings = [], []
    for chunk in chunks:
        cost, found = _search(op, np.array([k_chunk]), accelerator, "sparqle", int(chunk))
        costs.append(cost[0])
        tilings.append(found[0])
    for reader in readers:
        costs = costs + _search(reader, chunks, accelerator, "sparqle")[0]
    kind = f"that encodes its outputs, in chunks of at least {unit} channels,"
    return tilings[_best(costs, op, accelerator, kind)]


def _best(costs: ArrayLike, op: DenseOp, accelerator: Accelerator, kind: str) -> int:
    """Index of the least cost; without a finite one, tiles of that kind do not fit."""
    best = int(np.argmin(costs))
    if not np.isfinite(costs)[best]:
        raise TargetError(
            f"accelerator {accelerator.name!r}: no tile of {op.label!r} {kind} fits the buffers"
        )
    return best


def _search(
    op: DenseOp,
    chunks: NDArray[np.int64],
    accelerator: Accelerator,
    scheme: Scheme,
    out_chunk: int = 0,
) -> tuple[NDArray[np.float64], list[Tiling]]:
    """Best cost and tiling of one op for each K chunk (cost is infinite if nothing fits).

    With `out_chunk`, outputs are encoded: tiles of so many channels, which are the outer loop.
    """
    if op.digit_bits != accelerator.digit_bits:
        raise TargetError(
            f"{op.label!r} has digits of {op.digit_bits} bits, accelerator "
            f"{accelerator.name!r} of {accelerator.digit_bits}"
        )
    # Axes: (chunk, row tile, column tile, loop order).
    row_sizes, col_sizes = (
        _tile_sizes(op.m, accelerator.rows),
        np.array([out_chunk]) if out_chunk else _tile_sizes(op.n, accelerator.cols),
    )
    kt = chunks[:, None, None, None]
    mt, nt = row_sizes[None, :, None, None], col_sizes[None, None, :, None]
    orders = np.array([False] if out_chunk else [True, False])
    rows_outer = orders[None, None, None, :]
    row = _per_chunk(chunks, lambda k: storage.worst_row_bytes(op, k, accelerator, scheme))
    channel = _per_chunk(chunks, lambda k: storage.channel_bytes(op, k))
    rows, cols = np.minimum(mt, op.m), np.minimum(nt, op.n)
    fits = (
        (2 * rows * row <= accelerator.activation_buffer_bytes)
        & (2 * cols * channel <= accelerator.weight_buffer_bytes)
        & (2 * rows * cols * op.accumulator_bytes <= accelerator.accumulator_buffer_bytes)
    )
    array, count = array_of(accelerator, scheme), baseline(scheme).passes + (scheme == "sparqle")
    passes = _per_chunk(chunks, lambda k: count * lsb_pass_cycles(op, k, array))
    candidates = np.broadcast_arrays(mt, nt, kt, rows_outer, passes)
    loads = _worst_loads(op, accelerator, scheme, out_chunk)
    least = np.where(fits, _least_cycles(loads, (mt, nt, kt), rows_outer, passes), np.inf)
    costs = _cheapest(loads, [c.reshape(len(chunks), -1) for c in candidates], least)
    best = np.argmin(costs, axis=1)
    tilings = []
    for c, flat in enumerate(best):
        i, j, order = np.unravel_index(flat, (len(row_sizes), len(col_sizes), len(orders)))
        m, n, k = int(row_sizes[i]), int(col_sizes[j]), int(chunks[c])
        counts = (math.ceil(op.m / m), math.ceil(op.n / n), math.ceil(op.k / k))
        tilings.append(Tiling(m, n, k, *counts, rows_outer=bool(orders[order])))
    return costs.min(axis=1), tilings


def _cheapest(
    loads: OpLoads, candidates: Sequence[Any], least: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Cost of the candidates that may be the best of their row; infinite for all others.

    The cost of a few with the smallest bound is found first; with it most others are ruled out.
    """
    least = least.reshape(candidates[0].shape)
    costs = np.full(least.shape, np.inf)

    def evaluate(which: Any) -> None:
        mt, nt, kt, rows_outer, passes = [values[which] for values in candidates]
        costs[which] = _static_cycles(loads, (mt, nt, kt), rows_outer, passes)

    few = min(FIRST_CANDIDATES, least.shape[1])
    first = np.zeros(least.shape, dtype=bool)
    np.put_along_axis(first, np.argpartition(least, few - 1, axis=1)[:, :few], True, axis=1)
    first &= np.isfinite(least)
    evaluate(np.nonzero(first))
    best = costs.min(axis=1, keepdims=True)
    evaluate(np.nonzero(np.isfinite(least) & ~first & (BOUND_MARGIN * least <= best)))
    return costs


def _worst_loads(op: DenseOp, accelerator: Accelerator, scheme: Scheme, out_chunk: int) -> OpLoads:
    encoded = 0
    if out_chunk:
        encoded = storage.encoded_output_bytes(op.m, op.n, out_chunk, accelerator)
    return OpLoads(
        op=op,
        accelerator=accelerator,
        scheme=scheme,
        activation_bytes=op.m * storage.worst_plane_bytes(op.k, accelerator, scheme),
        encoded_bytes=encoded,
    )


def _least_cycles(loads: OpLoads, tile: tuple[Any, Any, Any], rows_outer: Any, passes: Any) -> Any:
    """A lower bound of `_static_cycles`: bytes without descriptors, and the array's work."""
    op, accelerator = loads.op, loads.accelerator
    m_tiles, n_tiles, k_tiles = map(ceil_div, (op.m, op.n, op.k), tile)
    weights = op.n * storage.weight_bytes(op, op.k)
    moved = _activation_loads(m_tiles, n_tiles, k_tiles, rows_outer) * loads.activation_bytes
    moved = moved + _weight_loads(m_tiles, n_tiles, k_tiles, rows_outer) * weights
    moved = moved + (loads.encoded_bytes or op.m * op.n * accelerator.float_bytes)
    return moved / accelerator.dram_bytes_per_cycle + passes


def _static_cycles(loads: OpLoads, tile: tuple[Any, Any, Any], rows_outer: Any, passes: Any) -> Any:
    """Cost that the choice minimises, of many candidate tilings at once.

    `passes` are the cycles of all passes with the candidate's K chunk, if they are dense.
    """
    op, accelerator = loads.op, loads.accelerator
    blocks = ceil_div(op.m, accelerator.rows) * ceil_div(op.n, accelerator.cols)
    waits = blocks * op.weight_slices if loads.scheme == "sparqle" else 0
    mma_cycles = passes + waits * ceil_div(op.k, tile[2])
    overlap = Overlap.of_op(loads, tile, rows_outer, mma_cycles=mma_cycles)
    return overlap.total_cycles + np.minimum(overlap.dma_cycles, mma_cycles)


def _tile_sizes(extent: int, unit: int) -> NDArray[np.int64]:
    """Multiples of `unit` that split `extent` evenly into 1, 2, 3, ... tiles, largest first."""
    units = math.ceil(extent / unit)
    return np.array(sorted({math.ceil(units / j) * unit for j in range(1, units + 1)})[::-1])


def _per_chunk(chunks: NDArray[np.int64], function: Any) -> Any:
    return np.array([function(int(k)) for k in chunks])[:, None, None, None]


def _activation_loads(m_tiles: Any, n_tiles: Any, k_tiles: Any, rows_outer: Any) -> Any:
    stay = (k_tiles == 1) & (rows_outer | (m_tiles == 1))
    return np.where(stay, 1, n_tiles)


def _weight_loads(m_tiles: Any, n_tiles: Any, k_tiles: Any, rows_outer: Any) -> Any:
    stay = (k_tiles == 1) & (np.logical_not(rows_outer) | (n_tiles == 1))
    return np.where(stay, 1, m_tiles)
