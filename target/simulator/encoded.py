"""ST.ENC: quantized outputs leave their cells as LSB digits, bitmap, MSB digits and pointers."""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm.tirx.script import builder as T

from sparqle_tvm.numerics.row_nnz import RowNnz
from sparqle_tvm.target.isa import StEnc, ceil_div
from sparqle_tvm.target.simulator import script
from sparqle_tvm.target.simulator.script import Array, Scalar, cast, copy_bytes, loop, scratch, when
from sparqle_tvm.target.simulator.spec import ValueSpec
from sparqle_tvm.target.simulator.steps import Int64s, Steps


def stored_digit_bytes(steps: Steps, nnz: RowNnz | None) -> Int64s:
    """Bytes of the MSB digits that every ST.ENC stores.

    Parameters
    ----------
    steps : Steps
        The bound program.
    nnz : RowNnz (M, N) or None
        Digits that the outputs have; None: all of them.

    Returns
    -------
    int64 (steps of ST.ENC,)
    """
    header = steps.header
    row, rows, col, cols = (steps.get(StEnc, o) for o in ("row", "rows", "col", "cols"))
    if nnz is None:
        return np.asarray(StEnc.lsb_bytes(header, rows, cols))
    nbytes = ceil_div(nnz.per_chunk(header.op.out_chunk).T * header.op.digit_bits, 8)
    running = np.zeros((nbytes.shape[0], nbytes.shape[1] + 1), dtype=np.int64)
    np.cumsum(nbytes, axis=1, out=running[:, 1:])
    chunk = col // header.op.out_chunk
    return np.asarray(running[chunk, row + rows] - running[chunk, row])


def store_cycles(steps: Steps, nbytes: Int64s) -> Int64s:
    """Cycles of all ST.ENC that move `nbytes` bytes."""
    accelerator = steps.header.accelerator
    moved = np.ceil(nbytes / accelerator.dram_bytes_per_cycle).astype(np.int64)
    return np.asarray(StEnc.TRANSFERS * accelerator.dma_descriptor_cycles + moved)


def store_encoded(
    spec: ValueSpec,
    *,
    acc: Array,
    cell: Any,
    rows: Any,
    cols: Any,
    targets: tuple[Any, Any, Any],
    pitches: tuple[Any, Any],
    pointers: Any,
    group: Any,
    bias: Any,
    staging: Array,
) -> None:
    """Emit the encoding of (rows, cols) quantized outputs.

    Parameters
    ----------
    spec : ValueSpec
        Formats: with groups, a cell has 8 bytes and its output the first 4.
    acc : Array
        Cells.
    cell, rows, cols : expression
        Which.
    targets : expressions
        Addresses in memory of the tile's LSB digits, its bits, and the begin of the MSB stream.
    pitches : expressions
        Bytes from row to row of the first two.
    pointers : expression
        Address of the pointer to the tile's begin in the stream; those behind it are written.
    group : expression
        Rows per pointer.
    bias : expression
        Added before the split: 2^(k-1) for the signed window, else 0.
    staging : Array
        uint8, room for a row of both planes and the bitmap.
    """
    lsb, pbm, msb = targets
    stride = 2 if spec.grouped else 1
    cells = acc.view("int32", acc.buffer.shape[0] * stride)
    lsb_bytes, pbm_bytes = script.ceil_div(cols * spec.k, 8), script.ceil_div(cols, 8)
    pointer = scratch("int32", 1)
    copy_bytes(pointer.at(0), T.reinterpret("handle", pointers), 4)
    end = Scalar("int64", cast("int64", pointer[0]))
    with loop(rows) as row:
        with loop(lsb_bytes + pbm_bytes + lsb_bytes) as byte:
            staging[byte] = 0
        digits = Scalar("int64", T.int64(0))
        with loop(cols) as column:
            value = Scalar("int32", cells[(cell + row * cols + column) * stride] + bias)
            low = T.bitwise_and(value.value, 2**spec.k - 1)
            _put_bits(staging, T.int64(0), column * spec.k, low)
            high = Scalar("int32", T.shift_right(value.value, spec.k))
            stored = Scalar("int32", cast("int32", high.value != 0))
            _put_bits(staging, lsb_bytes, column, stored.value)
            # Written always, kept only if it is not zero: a branch would be mispredicted.
            kept = T.bitwise_and(high.value, 2**spec.k - 1)
            _put_bits(staging, lsb_bytes + pbm_bytes, digits.value * spec.k, kept)
            digits.add(cast("int64", stored.value))
        msb_bytes = script.ceil_div(digits.value * spec.k, 8)
        for target, begin, nbytes in (
            (lsb + row * pitches[0], T.int64(0), lsb_bytes),
            (pbm + row * pitches[1], lsb_bytes, pbm_bytes),
            (msb + end.value, lsb_bytes + pbm_bytes, msb_bytes),
        ):
            copy_bytes(T.reinterpret("handle", target), staging.at(begin), nbytes)
        end.add(msb_bytes)
        done = row + 1
        with when(T.Or(T.truncmod(done, group) == 0, done == rows)):
            pointer[0] = cast("int32", end.value)
            target = pointers + 4 * script.ceil_div(done, group)
            copy_bytes(T.reinterpret("handle", target), pointer.at(0), 4)


def _put_bits(staging: Array, begin: Any, bit: Any, value: Any) -> None:
    """Add `value` at a bit of the staged bytes from `begin` on; it does not cross a byte."""
    at = begin + T.shift_right(bit, T.int64(3))
    shifted = T.shift_left(value, cast("int32", T.bitwise_and(bit, T.int64(7))))
    staging[at] = cast("uint8", T.bitwise_or(cast("int32", staging[at]), shifted))
