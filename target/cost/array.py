"""Cycles of the array: both passes over a whole op, all weight slices.

The rule of one instruction stands in `sparqle_tvm.target.isa.compute`; here it is summed up over
all tiles of an op. Tiles are multiples of the array's rows and columns, so only K chunks matter.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from sparqle_tvm.numerics.row_nnz import RowNnz
from sparqle_tvm.target.accelerator import Accelerator
from sparqle_tvm.target.isa.compute import dense_span_steps, reduction_cycles, step_spans
from sparqle_tvm.target.isa.header import Header
from sparqle_tvm.target.op import DenseOp


def best_row_split(op: DenseOp, accelerator: Accelerator, chunk: int) -> int:
    """PE rows per activation row with which a dense pass over a K chunk takes fewest cycles.

    ``slices * ceil(ceil(chunk / lanes) / r)`` steps and ``ceil(log2 r)`` to add r partial sums,
    per block of columns; r rows each for all activation rows have to exist, and may share a row
    (`Accelerator.rows_share_k`). `chunk` is K at most.
    """
    steps = math.ceil(chunk / accelerator.lanes)
    slices = op.weight_slices

    def cycles(split: int) -> int:
        return slices * math.ceil(steps / split) + (split - 1).bit_length()

    most = max(accelerator.rows // op.m, 1) if accelerator.rows_share_k else 1
    return min(range(1, most + 1), key=lambda r: (cycles(r), r))


@lru_cache(maxsize=1 << 16)
def lsb_pass_cycles(op: DenseOp, chunk: int, accelerator: Accelerator, split: int = 0) -> int:
    """Cycles of one dense pass over the whole op in K chunks of `chunk` columns.

    `split` PE rows share an activation row, here and below; 0: as many as are best.
    """
    header = _header(op, chunk, accelerator)
    split = split or best_row_split(op, accelerator, min(chunk, op.k))
    steps = _dense_steps(header, split)
    groups = math.ceil(op.m / accelerator.rows)
    return groups * steps * _passes(op, accelerator) + _reductions(header, split)


def msb_pass_cycles(
    op: DenseOp, nnz: RowNnz, chunk: int, accelerator: Accelerator, split: int = 0
) -> int:
    """Cycles of the sparse pass over the whole op; `nnz` are the digits of its activations."""
    return _msb_pass(op, nnz, chunk, accelerator, split)[0]


def msb_pass_waits(
    op: DenseOp, nnz: RowNnz, chunk: int, accelerator: Accelerator, split: int = 0
) -> int:
    """Of these cycles those that PEs stand idle because another row of their group is slower.

    As a share of all PEs: steps of the slowest row less those of each, over the rows of the array.
    """
    _, slots = _msb_pass(op, nnz, chunk, accelerator, split)
    waits = slots * op.n * op.weight_slices - msb_pass_updates(op, nnz, chunk, accelerator, split)
    return round(waits / (accelerator.rows * accelerator.cols))


def _msb_pass(
    op: DenseOp, nnz: RowNnz, chunk: int, accelerator: Accelerator, split: int
) -> tuple[int, int]:
    """Cycles of the sparse pass; steps of the slowest row, once for each row that takes part."""
    header = _header(op, chunk, accelerator)
    split = split or best_row_split(op, accelerator, min(chunk, op.k))
    starts = np.arange(0, op.m, accelerator.rows)
    slowest = np.maximum.reduceat(msb_steps(header, nnz, split), starts, axis=0).sum(axis=1)
    rows = np.diff(starts, append=op.m) * split
    cycles = int(slowest.sum()) * _passes(op, accelerator) + _reductions(header, split)
    return cycles, int(slowest @ rows)


def lsb_pass_updates(op: DenseOp, chunk: int, accelerator: Accelerator) -> int:
    """Sums of up to `lanes` products that PEs add to their accumulators in a dense pass.

    However many PE rows share an activation row, each of its steps is one update per output.
    """
    steps = _dense_steps(_header(op, chunk, accelerator), 1)
    return op.m * op.n * steps * op.weight_slices


def msb_pass_updates(
    op: DenseOp, nnz: RowNnz, chunk: int, accelerator: Accelerator, split: int = 0
) -> int:
    """Such sums in the sparse pass; segments of a split row have steps of their own."""
    header = _header(op, chunk, accelerator)
    split = split or best_row_split(op, accelerator, min(chunk, op.k))
    steps = int(_segment_steps(header, nnz, split, np.add).sum())
    return op.n * steps * op.weight_slices


def msb_steps(header: Header, nnz: RowNnz, split: int) -> NDArray[np.int64]:
    """Steps that every row needs for its stored digits, per K chunk.

    Returns
    -------
    ndarray of int64, op (m, ceil(k / chunk))
        Of the slowest of `split` segments. A PE row does not take digits of two segments (or of
        two weight groups, if not `msb_across_groups`) in one step.
    """
    return _segment_steps(header, nnz, split, np.maximum)


def _segment_steps(header: Header, nnz: RowNnz, split: int, reduce: np.ufunc) -> NDArray[np.int64]:
    """Steps of every row per K chunk, reduced over its `split` segments: int64 (m, chunks)."""
    lanes = header.accelerator.lanes
    if split == 1 and (header.accelerator.msb_across_groups or not header.op.group_size):
        return -(-nnz.per_chunk(header.k_chunk) // lanes)
    whole, rest = divmod(nnz.in_features, header.k_chunk)
    parts = []
    # All chunks but the last are cut alike.
    for first, count, width in ((0, whole, header.k_chunk), (whole, 1, rest)):
        if not count * width:
            continue
        segments, starts, _ = np.array(step_spans(header, width, split)).T
        begins = np.arange(first, first + count)[:, None] * header.k_chunk
        columns = begins + np.append(starts, width)
        before = _counts_before(nnz, columns.reshape(-1)).reshape(nnz.rows, count, -1)
        steps = -(-np.diff(before, axis=2) // lanes)
        at = np.flatnonzero(np.diff(segments, prepend=-1))
        parts.append(reduce.reduce(np.add.reduceat(steps, at, axis=2), axis=2))
    return np.concatenate(parts, axis=1)


def _counts_before(nnz: RowNnz, columns: NDArray[np.int64]) -> NDArray[np.int64]:
    """Stored digits of each row before each column: int64 (m, columns).

    Within a unit that `nnz` counts together, digits are taken to be spread evenly.
    """
    sums = np.zeros((nnz.rows, nnz.counts.shape[1] + 1), dtype=np.int64)
    np.cumsum(nnz.counts, axis=1, out=sums[:, 1:])
    at, inside = np.divmod(columns, nnz.unit)
    after = np.minimum(at + 1, sums.shape[1] - 1)
    at = np.minimum(at, sums.shape[1] - 1)
    return np.asarray(sums[:, at] + (sums[:, after] - sums[:, at]) * inside // nnz.unit)


@lru_cache(maxsize=4096)
def _header(op: DenseOp, chunk: int, accelerator: Accelerator) -> Header:
    """What the rules of the instructions need to know of the op."""
    return Header(accelerator=accelerator, op=op, k_chunk=chunk)


def _dense_steps(header: Header, split: int) -> int:
    """Steps of a dense pass through all K chunks."""
    whole, rest = divmod(header.op.k, header.k_chunk)
    steps = whole * dense_span_steps(header, header.k_chunk, split) if whole else 0
    return steps + (dense_span_steps(header, rest, split) if rest else 0)


def _passes(op: DenseOp, accelerator: Accelerator) -> int:
    """Column blocks times weight slices: how often a row group is walked."""
    return math.ceil(op.n / accelerator.cols) * op.weight_slices


def _reductions(header: Header, split: int) -> int:
    """Cycles to add partial sums in all K chunks; more than one needs a single row group."""
    return header.chunks * reduction_cycles(header, header.op.n, split)
