"""Stored MSB digits as the array sees them: steps, waits and bytes of every tile.

`RowNnz` says how many digits each row stores; from that follow, for every K chunk and every group
of `accelerator.rows` rows, the steps of the slowest row, the steps of all rows, digits and bytes.
They are kept as running sums over the row groups, so that a tile of any height is a difference.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sparqle_tvm.errors import InvalidArgumentError
from sparqle_tvm.numerics.row_nnz import RowNnz
from sparqle_tvm.target.isa.access import ceil_div
from sparqle_tvm.target.isa.compute import step_spans
from sparqle_tvm.target.isa.header import Header
from sparqle_tvm.target.program import Program
from sparqle_tvm.target.program.bound import Int64s, Operands


@dataclass(frozen=True, eq=False)
class DigitTables:
    """Running sums over the row groups of each K chunk, all int64 (chunks, groups + 1).

    Attributes
    ----------
    digits, nbytes : ndarray
        Stored digits, and bytes of the tile-ordered stream (rows padded to a byte).
    slowest : tuple of ndarray
        Steps of the slowest row (and segment) of each group, for each `row_split` asked for.
    waited : tuple of ndarray
        Steps that the other rows (and segments) of the group stand idle meanwhile.
    steps : tuple of ndarray
        Steps of all rows and segments.
    """

    digits: NDArray[np.int64]
    nbytes: NDArray[np.int64]
    slowest: tuple[NDArray[np.int64], ...]
    waited: tuple[NDArray[np.int64], ...]
    steps: tuple[NDArray[np.int64], ...]


def row_splits(program: Program) -> tuple[int, ...]:
    """Values of `row_split` of what multiplies bitmaps, sorted; (1,) without any."""
    splits = {int(getattr(i, "row_split", 1)) for i in program.instructions if i.BITMAP}
    return tuple(sorted(splits)) or (1,)


def tile_sums(tiles: Operands, running: Int64s, chunk: int, unit: int) -> Int64s:
    """Sum a table over the tile (row, rows, col) of every step of a class.

    `running`, int64 (chunks, units + 1), has running sums over the units of `unit` rows of each
    chunk of `chunk` columns.
    """
    number, row = tiles["col"] // chunk, tiles["row"]
    ends = running[number, ceil_div(row + tiles["rows"], unit)]
    return np.asarray(ends - running[number, row // unit])


def output_bytes(nnz: RowNnz, header: Header) -> Int64s:
    """Bytes of the digits of encoded outputs: running sums (chunks, M + 1)."""
    nbytes = ceil_div(nnz.per_chunk(header.op.out_chunk).T * header.op.digit_bits, 8)
    return _running_groups(nbytes)


def nnz_from_bitmap(pbm: NDArray[np.uint8], program: Program) -> RowNnz:
    """Count a bitmap as finely as the steps of a program need it.

    Parameters
    ----------
    pbm : uint8 (M, ceil(K / 8))
        Precision bitmap, transport form.
    program : Program
        What multiplies it.
    """
    header = program.header
    last = header.op.k - (header.chunks - 1) * header.k_chunk
    starts = {
        start
        for split in row_splits(program)
        for k in (min(header.k_chunk, header.op.k), last)
        for _, start, _ in step_spans(header, k, split)
    }
    unit = 8 if all(start % 8 == 0 for start in starts) else 1
    return RowNnz.from_pbm(pbm, header.op.k, unit)


def digit_tables(nnz: RowNnz, header: Header, splits: tuple[int, ...]) -> DigitTables:
    """Make the tables for (M, K) activations and the values of `row_split` in a program.

    Raises
    ------
    InvalidArgumentError
        If `nnz` is of another K, or counts more columns together than a PE row works on.
    """
    if nnz.in_features != header.op.k:
        raise InvalidArgumentError(
            f"{header.label!r} has K = {header.op.k}, the digits are of {nnz.in_features}"
        )
    counts = nnz.per_chunk(header.k_chunk).T
    steps = [_row_steps(nnz, header, split) for split in splits]
    return DigitTables(
        digits=_running(counts, header, "sum"),
        nbytes=_running(ceil_div(counts * header.op.digit_bits, 8), header, "sum"),
        slowest=tuple(_running(s.max(axis=2), header, "max") for s in steps),
        waited=tuple(_waited(s, header) for s in steps),
        steps=tuple(_running(s.sum(axis=2), header, "sum") for s in steps),
    )


def draw_nnz(
    rng: np.random.Generator, density: ArrayLike, rows: int, in_features: int, unit: int
) -> RowNnz:
    """Draw how many digits each row stores, without drawing a bitmap.

    Parameters
    ----------
    rng : numpy.random.Generator
        Source of randomness.
    density : array-like of float
        Measured shares of stored digits of rows, 0 to 1 each; every row draws one of them, then
        every span of columns its count (binomial).
    rows, in_features : int
        M and K.
    unit : int
        Columns counted together: a divisor of the K chunk (or K).
    """
    share = rng.choice(np.atleast_1d(np.asarray(density, dtype=np.float64)), size=rows)
    return RowNnz.drawn(rng, share, in_features, unit)


def _row_steps(nnz: RowNnz, header: Header, split: int) -> NDArray[np.int64]:
    """Steps of every row and segment: int64 (chunks, M, split)."""
    lanes, unit = header.accelerator.lanes, nnz.unit
    result = np.zeros((header.chunks, nnz.rows, split), dtype=np.int64)
    if split == 1 and (header.accelerator.msb_across_groups or not header.op.group_size):
        result[:, :, 0] = ceil_div(nnz.per_chunk(header.k_chunk), lanes).T
        return result
    for chunk in range(header.chunks):
        begin = chunk * header.k_chunk
        k = min(header.k_chunk, header.op.k - begin)
        segments, starts, _ = np.array(step_spans(header, k, split)).T
        if (begin % unit) or (starts % unit).any():
            raise InvalidArgumentError(
                f"{header.label!r}: PE rows begin steps at columns {starts[:4].tolist()}..., but "
                f"the digits are counted {unit} columns at a time"
            )
        counts = nnz.counts[:, begin // unit : math.ceil((begin + k) / unit)]
        steps = ceil_div(np.add.reduceat(counts, starts // unit, axis=1, dtype=np.int64), lanes)
        firsts = np.flatnonzero(np.diff(segments, prepend=-1))
        result[chunk, :, : len(firsts)] = np.add.reduceat(steps, firsts, axis=1)
    return result


def _running(per_row: NDArray[np.int64], header: Header, kind: str) -> NDArray[np.int64]:
    """Reduce (chunks, M) over row groups, then sum up: (chunks, groups + 1)."""
    starts = np.arange(0, per_row.shape[1], header.accelerator.rows)
    reduce = np.maximum if kind == "max" else np.add
    return _running_groups(reduce.reduceat(per_row, starts, axis=1))


def _waited(steps: NDArray[np.int64], header: Header) -> NDArray[np.int64]:
    starts = np.arange(0, steps.shape[1], header.accelerator.rows)
    heights = np.diff(starts, append=steps.shape[1])
    slowest = np.maximum.reduceat(steps.max(axis=2), starts, axis=1)
    slots = _running_groups(slowest * heights * steps.shape[2])
    return slots - _running(steps.sum(axis=2), header, "sum")


def _running_groups(groups: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([np.zeros_like(groups[:, :1]), np.cumsum(groups, axis=1)], axis=1)
