"""Weights with a scale per group of K, as others write them: brought into the form of groups."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import relax

from sparqle_tvm import dialect
from sparqle_tvm.passes._activation import centre_range, centred
from sparqle_tvm.passes._constants import make_const
from sparqle_tvm.passes._dequantized import Dequantized
from sparqle_tvm.passes._match import dims_of, dtype_of, op_name, static_shape
from sparqle_tvm.passes._rewrite import Rewriter

# Group scales are multiples of this, so that float64 adds their products exactly.
GRID_BITS = 24


@dataclass(frozen=True)
class GroupedWeight:
    """A constant matrix with scales per group of K.

    Attributes
    ----------
    values : np.ndarray
        (G, g, N) int8, less their zero points.
    scales : np.ndarray
        (G, 1, N) float32 multiples of 2^-24: those of the weight times ``2 ** exponent``.
    exponent : int
    """

    values: NDArray[np.int8]
    scales: NDArray[np.float32]
    exponent: int

    @staticmethod
    def is_one(weight: Dequantized) -> bool:
        """Whether a dequantized operand has three axes, and a scale for each group of one."""
        shape = static_shape(weight.scale)
        return weight.values.ty.ndim == 3 and shape is not None and len(shape) == 3

    @classmethod
    def of(cls, rewriter: Rewriter, weight: Dequantized) -> GroupedWeight | str:
        """The weight in groups, or what is wrong with it."""
        values, scale = map(rewriter.constants.value, (weight.values, weight.scale))
        if values is None or scale is None or isinstance(weight.zero, relax.Expr):
            return "a weight in groups, its scales and zero points are not all constant"
        wide = values.astype(np.int64)
        if weight.zero is not None:
            wide = wide - weight.zero
        scales = scale.astype(np.float64) * np.prod(weight.factors)
        if wide.shape != values.shape or (scales != scales.astype(np.float32)).any():
            return "the factors of a weight in groups are no float32"
        groups = cls._by_group(weight, wide, scales)
        if groups is None:
            return "the groups of the weight do not lie along K"
        if wide.size and (wide.min() < -128 or wide.max() > 127):
            return "the weight less its zero points needs more than 8 bits"
        wide, scales = groups
        exponent = _grid_exponent(scales)
        grown = np.ldexp(scales, exponent).astype(np.float32)
        if not np.isfinite(grown).all():
            return "the scales of the groups differ too much for exact sums"
        return cls(wide.astype(np.int8), grown, exponent)

    @staticmethod
    def _by_group(
        weight: Dequantized, values: NDArray[Any], scales: NDArray[Any]
    ) -> tuple[NDArray[Any], NDArray[Any]] | None:
        """Values as (G, g, N) and scales as (G, 1, N), if a matrix (K, N) is made of them."""
        names = [op_name(move) for move in weight.moves]
        outer, middle, inner = values.shape
        if names[:1] != ["relax.reshape"]:
            return None
        made = static_shape(weight.moves[0])
        if scales.shape[1:] == (middle, 1) and made == [outer, middle * inner]:
            # (N, G, g), transposed behind the reshape.
            if weight.after(1).transposed:
                return values.transpose(1, 2, 0), scales.transpose(1, 2, 0)
        elif scales.shape == (outer, 1, inner) and made == [outer * middle, inner]:
            return (values, scales) if len(names) == 1 else None
        return None

    def product(
        self,
        rewriter: Rewriter,
        call: relax.Call,
        q: relax.Expr,
        scale: relax.Expr,
        zero: relax.Expr | None,
        label: str,
    ) -> relax.Expr:
        """The matmul ``call`` in groups: int32 sums of each, added in float64, times the scale.

        Zero points of rows are moved to a centre of the window first; what that leaves is added
        afterwards, in float32.
        """
        op, emit = relax.op, rewriter.emit
        groups, size, _ = self.values.shape
        rest = None
        if zero is not None:
            wide = emit(op.astype(q, "int32"), "wide")
            if not dialect.is_single(zero.ty):
                moved = centred(rewriter, zero, centre_range(q))
                rest = emit(op.subtract(moved, zero), "zero_shift")
                zero = moved
            q = emit(op.subtract(wide, zero), "centred")
        cut = emit(op.reshape(q, [-1, groups, size]))
        by_group = emit(op.permute_dims(cut, [1, 0, 2]))
        acc = emit(op.matmul(by_group, make_const(self.values), out_dtype="int32"), label)
        scales64 = make_const(self.scales.astype(np.float64))
        total = emit(op.sum(op.multiply(emit(op.astype(acc, "float64")), scales64), axis=[0]))
        found = emit(op.astype(total, "float32"))
        dims = dims_of(call)
        if len(dims) != 2:
            found = emit(op.reshape(found, dims))
        if rest is not None:
            sums = (self.values.sum(axis=1, dtype=np.int64) * self.scales[:, 0]).sum(axis=0)
            wide_rest = emit(op.astype(rest, "float32"))
            term = emit(op.multiply(wide_rest, make_const(sums.astype(np.float32))))
            found = emit(op.add(found, term))
        if self.exponent:
            unit = relax.const(np.float32(2.0**-self.exponent))
            scale = emit(op.multiply(scale, unit), "scale")
        result = op.multiply(found, scale)
        return result if dtype_of(call) == "float32" else op.astype(emit(result), dtype_of(call))


def _grid_exponent(scales: NDArray[np.float64]) -> int:
    """The least power of two that makes all scales multiples of 2^-24, 0 if they are."""
    exponent = 0
    while exponent < 120:
        grown = np.ldexp(scales, exponent + GRID_BITS)
        if (grown == np.rint(grown)).all():
            break
        exponent += 1
    return exponent
