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
from numpy.typing import NDArray

from sparqle_tvm.errors import TargetError
from sparqle_tvm.target.accelerator import Accelerator
from sparqle_tvm.target.cost import storage
from sparqle_tvm.target.cost.array import lsb_pass_cycles
from sparqle_tvm.target.cost.baselines import array_of, dense_passes
from sparqle_tvm.target.cost.pipeline import OpLoads, Pipeline, activations_outer
from sparqle_tvm.target.cost.shapes import DenseShape, Scheme


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
    def weight_tile_loads(self) -> int:
        """Loads of weight tiles in all."""
        return self.weight_loads * self.n_tiles * self.k_tiles

    @property
    def row_loads(self) -> int:
        """How often the activation scales are loaded."""
        return 1 if self.activations_outer else self.n_tiles

    @property
    def channel_loads(self) -> int:
        """How often the parameters of all channels are loaded."""
        return self.m_tiles if self.activations_outer else 1

    @property
    def output_tiles(self) -> int:
        """Output tiles, each stored once."""
        return self.m_tiles * self.n_tiles


def choose_tilings(
    shapes: Sequence[DenseShape], accelerator: Accelerator, scheme: Scheme, offset: bool
) -> tuple[Tiling, ...]:
    """Choose tiles for the dense ops that read one encoding.

    They share the K chunk, because the MSB digits lie in DRAM in tile order. The choice is
    static, as a compiler makes it: with every MSB present. It minimises DMA cycles plus array
    cycles plus what does not overlap, where every K chunk of ``sparqle`` costs one more step per
    row group (rows wait for the slowest at the end of a chunk).

    Parameters
    ----------
    shapes : sequence of DenseShape
        The ops; `m` and `k` are the same in all.
    accelerator : Accelerator
        The array and its buffers.
    scheme : {"sparqle", "dense", "native", "a4"}
        What lies in memory.
    offset : bool
        Whether weights come with the constant of the signed window.

    Raises
    ------
    TargetError
        If the smallest tile does not fit a buffer.
    """
    return _choose_tilings(tuple(shapes), accelerator, scheme, offset)


@lru_cache(maxsize=4096)
def _choose_tilings(
    shapes: tuple[DenseShape, ...], accelerator: Accelerator, scheme: Scheme, offset: bool
) -> tuple[Tiling, ...]:
    lanes = array_of(accelerator, scheme).lanes
    unit = math.lcm(8, lanes, *(max(s.group_size, 1) for s in shapes))
    chunks = _tile_sizes(shapes[0].k, unit)
    searches = [_search(shape, chunks, accelerator, scheme, offset) for shape in shapes]
    costs = np.sum([cost for cost, _ in searches], axis=0)
    best = int(np.argmin(costs))
    if not np.isfinite(costs[best]):
        raise TargetError(
            f"accelerator {accelerator.name!r}: no tile of {shapes[0].label!r} (K = {shapes[0].k}) "
            f"fits the buffers; a K chunk has at least {unit} columns"
        )
    return tuple(tilings[best] for _, tilings in searches)


def _search(
    shape: DenseShape,
    chunks: NDArray[np.int64],
    accelerator: Accelerator,
    scheme: Scheme,
    offset: bool,
) -> tuple[NDArray[np.float64], list[Tiling]]:
    """Best cost and tiling of one op for each K chunk (cost is infinite if nothing fits)."""
    # Axes: (chunk, row tile, column tile, loop order).
    row_sizes, col_sizes = (
        _tile_sizes(shape.m, accelerator.rows),
        _tile_sizes(shape.n, accelerator.cols),
    )
    kt = chunks[:, None, None, None]
    mt, nt = row_sizes[None, :, None, None], col_sizes[None, None, :, None]
    rows_outer = np.array([True, False])[None, None, None, :]
    row = _per_chunk(chunks, lambda k: storage.worst_row_bytes(shape, k, accelerator, scheme))
    channel = _per_chunk(chunks, lambda k: storage.channel_bytes(shape, k, offset))
    rows, cols = np.minimum(mt, shape.m), np.minimum(nt, shape.n)
    fits = (
        (2 * rows * row <= accelerator.activation_buffer_bytes)
        & (2 * cols * channel <= accelerator.weight_buffer_bytes)
        & (
            2 * rows * cols * storage.accumulator_bytes(shape)
            <= accelerator.accumulator_buffer_bytes
        )
    )
    cost = _static_cycles(shape, (mt, nt, kt), rows_outer, accelerator, scheme, offset)
    cost = np.where(fits, cost, np.inf).reshape(len(chunks), -1)
    best = np.argmin(cost, axis=1)
    tilings = []
    for c, flat in enumerate(best):
        i, j, order = np.unravel_index(flat, (len(row_sizes), len(col_sizes), 2))
        m, n, k = int(row_sizes[i]), int(col_sizes[j]), int(chunks[c])
        counts = (math.ceil(shape.m / m), math.ceil(shape.n / n), math.ceil(shape.k / k))
        tilings.append(Tiling(m, n, k, *counts, rows_outer=bool(order == 0)))
    return cost.min(axis=1), tilings


def _static_cycles(
    shape: DenseShape,
    tile: tuple[Any, Any, Any],
    rows_outer: Any,
    accelerator: Accelerator,
    scheme: Scheme,
    offset: bool,
) -> Any:
    """Cost that the choice minimises, over all candidate tilings at once."""
    chunks, k_tiles = tile[2].reshape(-1), _ceil_div(shape.k, tile[2])
    loads = OpLoads(
        shape=shape,
        accelerator=accelerator,
        scheme=scheme,
        offset=offset,
        activation_bytes=shape.m * storage.worst_plane_bytes(shape.k, accelerator, scheme),
    )
    array = array_of(accelerator, scheme)
    count = 2 if scheme == "sparqle" else dense_passes(scheme)
    passes = _per_chunk(chunks, lambda k: count * lsb_pass_cycles(shape, k, array))
    blocks = _ceil_div(shape.m, accelerator.rows) * _ceil_div(shape.n, accelerator.cols)
    waits = blocks * shape.weight_slices(accelerator.digit_bits) if scheme == "sparqle" else 0
    mma_cycles = passes + waits * k_tiles
    pipeline = Pipeline.of_op(loads, tile, rows_outer, mma_cycles=mma_cycles)
    return pipeline.total_cycles + np.minimum(pipeline.dma_cycles, mma_cycles)


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


def _ceil_div(a: Any, b: Any) -> Any:
    return -(-a // b)
