"""What the accelerator has to know of a split dense op: its specs, and how its weight is stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from tvm import relax

from sparqle_tvm import dialect
from sparqle_tvm.passes._match import row_counts
from sparqle_tvm.passes._rewrite import Rewriter
from sparqle_tvm.passes._value_range import value_range
from sparqle_tvm.passes._weights import remaining_offset
from sparqle_tvm.target.accelerator import Accelerator
from sparqle_tvm.target.op import DenseOp, Output

# What the drain of each op makes.
OUTPUTS: Mapping[type[dialect.Dense], Output] = MappingProxyType(
    {
        dialect.SplitDense: "int32",
        dialect.SplitDenseScaled: "float32",
        dialect.SplitDenseEncoded: "encoded",
    }
)
OUT_FORMAT = ("out_window", "out_zero", "out_low", "out_high")
# Programs of an op: a spec for each row count.
Specs = tuple[DenseOp, ...]


@dataclass(frozen=True)
class OffloadedOp:
    """A split dense op as the accelerator runs it.

    Attributes
    ----------
    offset : relax.Expr or None
        What is added besides the bias of the window's digits, which the accelerator undoes.
    specs : tuple of DenseOp
        For every row count that a program is made for.
    """

    offset: relax.Expr | None
    specs: Specs

    @property
    def weight_bits(self) -> int:
        """Bits of a weight as it is stored."""
        return self.specs[0].weight_bits


def describe(rewriter: Rewriter, op: dialect.Dense, accelerator: Accelerator) -> OffloadedOp:
    """The specs of an op.

    Raises
    ------
    CompileError
        If the accelerator cannot run it.
    """
    bits, signed = _weight_format(rewriter, op)
    offset = remaining_offset(rewriter, op)
    output = OUTPUTS[type(op)]
    encoded = output == "encoded"
    windows = {name: getattr(op, name) for name in ("window", *(OUT_FORMAT if encoded else ()))}
    lead = list(op.encoding.ty.fields[0].shape.values)[:-1]
    specs = tuple(
        DenseOp(
            m=rows,
            n=op.out_features,
            k=op.in_features,
            label=op.label,
            digit_bits=op.k,
            weight_bits=bits,
            weight_signed=signed,
            group_size=op.group_size,
            has_min=op.has_min,
            has_offset=offset is not None,
            output=output,
            block_rows=_block_rows(rewriter, op, rows),
            # The chunk of encoded outputs is chosen with the tiles.
            out_chunk=op.out_features if encoded else 0,
            **windows,
        )
        for rows in row_counts(lead, accelerator)
    )
    return OffloadedOp(offset, specs)


def _weight_format(rewriter: Rewriter, op: dialect.Dense) -> tuple[int, bool]:
    """Bits of a stored weight, and whether they are signed.

    An op of 4 bits means -8..7 or 0..15; where nothing tells which, the int8 are kept whole.
    """
    low, high = value_range(op.weight, rewriter.value)
    bits, half = op.weight_bits, 1 << (op.weight_bits - 1)
    if -half <= low and high < half:
        return bits, True
    return (bits, False) if low >= 0 and high < 2 * half else (8, True)


def _block_rows(rewriter: Rewriter, op: dialect.Dense, rows: int) -> int:
    """Rows that the encoding of an op of (at most) so many rows sorted together."""
    sorting = dialect.BalanceRows.of(rewriter.value(op.row_order))
    return sorting.block_rows if sorting is not None and rows >= sorting.min_rows else 0
