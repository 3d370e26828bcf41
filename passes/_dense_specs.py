"""What the accelerator has to know of a split dense op: its specs, and how its weight is stored."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from tvm import relax

from sparqle_tvm import dialect
from sparqle_tvm.passes._rewrite import Rewriter
from sparqle_tvm.passes._value_range import value_range
from sparqle_tvm.passes._weights import remaining_offset
from sparqle_tvm.target.accelerator import Accelerator
from sparqle_tvm.target.compile.buckets import buckets
from sparqle_tvm.target.op import DenseOp, Output

# What the drain of each op makes.
OUTPUTS: Mapping[type[dialect.Dense], Output] = MappingProxyType(
    {
        dialect.SplitDense: "int32",
        dialect.SplitDenseScaled: "float32",
        dialect.SplitDenseEncoded: "encoded",
    }
)
# Programs of an op: a spec for each row count.
Specs = tuple[DenseOp, ...]


def row_counts(lead: list[Any], accelerator: Accelerator) -> list[int]:
    """Rows that leading dimensions are if they are static, else every bucket: the smallest fits."""
    if all(hasattr(d, "value") for d in lead):
        return [max(1, math.prod(int(d) for d in lead))]
    return buckets(accelerator.rows)


def dense_op(op: dialect.Dense, rows: int, **others: Any) -> DenseOp:
    """What an op of the dialect says of itself, for so many rows, and other fields."""
    names = ("label", "weight_bits", "group_size", "has_min", "scale_bytes")
    own = {name: getattr(op, name) for name in names}
    sizes = {"m": rows, "n": op.out_features, "k": op.in_features, "digit_bits": op.k}
    return DenseOp(**{**sizes, **own, **others})


def describe(
    rewriter: Rewriter, op: dialect.Dense, accelerator: Accelerator
) -> tuple[Specs, relax.Expr | None]:
    """What the accelerator runs for an op, and the offset that is handed over, if any is.

    The offset is what is added besides the bias of the window's digits, which the accelerator
    undoes: its digits carry q - centre.

    Raises
    ------
    CompileError
        If the accelerator cannot run it.
    """
    bits, signed = weight_format(rewriter, op)
    offset = remaining_offset(rewriter, op, -op.digits.bias)
    output = OUTPUTS[type(op)]
    encoded = output == "encoded"
    lead = list(op.encoding.ty.fields[0].shape.values)[:-1]
    specs = tuple(
        dense_op(
            op,
            rows,
            weight_bits=bits,
            weight_signed=signed,
            has_offset=offset is not None,
            output=output,
            block_rows=_block_rows(rewriter, op, rows),
            # The chunk of encoded outputs is chosen with the tiles.
            out_chunk=op.out_features if encoded else 0,
            **_digits_in(op),
            **(_digits_out(op) if isinstance(op, dialect.SplitDenseEncoded) else {}),
        )
        for rows in row_counts(lead, accelerator)
    )
    return specs, offset


def _digits_in(op: dialect.Dense) -> dict[str, Any]:
    """How the activations are split: those of rows with zero points may have their own centres."""
    row_zeros = op.zero_points_type is not None and op.digits.window.centred
    return {
        "act_signed": bool(op.act_signed),
        "window": op.window,
        "centre": 0 if row_zeros else op.digits.centre,
        "row_zeros": row_zeros,
    }


def _digits_out(op: dialect.SplitDenseEncoded) -> dict[str, Any]:
    """How encoded outputs are quantized and split."""
    return {
        "out_signed": bool(op.out_signed),
        "out_window": op.out_window,
        "out_centre": op.out_digits.centre,
        "out_zero": op.out_zero,
        "out_low": op.out_low,
        "out_high": op.out_high,
        "has_bias": op.bias is not None,
        "mid_zero": op.mid_zero,
        "mid_low": op.mid_low,
        "mid_high": op.mid_high,
    }


def weight_format(rewriter: Rewriter, op: dialect.Dense) -> tuple[int, bool]:
    """Bits of a stored weight, and whether they are signed.

    An op of 4 bits means -8..7 or 0..15; where nothing tells which, the int8 are kept whole.
    """
    low, high = value_range(op.weight, rewriter.value, rewriter.weight_bounds)
    bits, half = op.weight_bits, 1 << (op.weight_bits - 1)
    if -half <= low and high < half:
        return bits, True
    return (bits, False) if low >= 0 and high < 2 * half else (8, True)


def _block_rows(rewriter: Rewriter, op: dialect.Dense, rows: int) -> int:
    """Rows that the encoding of an op of (at most) so many rows sorted together."""
    sorting = dialect.BalanceRows.of(rewriter.value(op.row_order))
    return sorting.block_rows if sorting is not None and rows >= sorting.min_rows else 0
