"""ST.ENC: quantized outputs leave their cells as LSB digits, bitmap, MSB digits and pointers."""

from __future__ import annotations

from typing import Any

from tvm.tirx.script import builder as T

from sparqle_tvm.target.simulator.memory import Action
from sparqle_tvm.target.simulator.spec import ValueSpec
from sparqle_tvm.tirscript import Array, Scalar, cast, ceil_div, copy_bytes, loop, scratch, when


def store_encoded(spec: ValueSpec, a: Action) -> None:
    """Emit the encoding of (rows, cols) quantized outputs.

    `pointers` is the address of the pointer to the tile's begin in the stream; those behind it are
    written, one per `group` rows. `bias` is added before the split: 2^(k-1) for the signed window,
    else 0.
    """
    cells, stride, staging = a.memory.cells, a.memory.cell_stride, a.memory.staging
    cell, rows, cols, pointers, group = (
        a[name] for name in ("cell", "rows", "cols", "pointers", "group")
    )
    bias = cast("int32", a["bias"])
    lsb_bytes, pbm_bytes = ceil_div(cols * spec.k, 8), ceil_div(cols, 8)
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
        msb_bytes = ceil_div(digits.value * spec.k, 8)
        for target, begin, nbytes in (
            (a["dram"] + row * a["lsb_pitch"], T.int64(0), lsb_bytes),
            (a["pbm"] + row * a["pbm_pitch"], lsb_bytes, pbm_bytes),
            (a["msb"] + end.value, lsb_bytes + pbm_bytes, msb_bytes),
        ):
            copy_bytes(T.reinterpret("handle", target), staging.at(begin), nbytes)
        end.add(msb_bytes)
        done = row + 1
        with when(T.Or(T.truncmod(done, group) == 0, done == rows)):
            pointer[0] = cast("int32", end.value)
            target = pointers + 4 * ceil_div(done, group)
            copy_bytes(T.reinterpret("handle", target), pointer.at(0), 4)


def _put_bits(staging: Array, begin: Any, bit: Any, value: Any) -> None:
    """Add `value` at a bit of the staged bytes from `begin` on; it does not cross a byte."""
    at = begin + T.shift_right(bit, T.int64(3))
    shifted = T.shift_left(value, cast("int32", T.bitwise_and(bit, T.int64(7))))
    staging[at] = cast("uint8", T.bitwise_or(cast("int32", staging[at]), shifted))
