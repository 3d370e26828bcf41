"""The split dense op as S-TIR: two exact digit passes, an optional minimum pass, and a drain.

The function works on *logical* arrays: one array element per digit, per weight and per parameter.
How they lie in memory (packed planes, the bitmap and the compressed stream of MSB digits, slices
of weights) is the physical format, which `target.compile.codegen` knows; the values are the
same. Every pass is a block of its own that writes its own accumulators, so that a schedule can
place it freely; the drain adds them. As all sums are exact (int32, or float64 over multiples of
2^-24), the hardware may add all passes up in one accumulator.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tvm import te, tirx

from sparqle_tvm.errors import CompileError
from sparqle_tvm.numerics.integers import DIGIT
from sparqle_tvm.target.op import DenseOp

EXTENT_ATTR = "sparqle.extent"
"""Attribute of the PrimFunc: the real (M bucket, N, K), before padding."""

PASSES = ("mma_lsb", "mma_msb", "mma_min")
"""Blocks that accumulate; ``mma_min`` exists only for weights with minima."""


def split_dense_primfunc(op: DenseOp, multiple: tuple[int, int, int] = (1, 1, 1)) -> tirx.PrimFunc:
    """Build the PrimFunc of a split dense op.

    Its parameters, in order, with extents padded up to `multiple` (columns of groups too):

    ================  =================  ======================================================
    ``lsb``           (M, K) uint8       low digits, as they are stored
    ``msb``           (M, K) int8        high digits with their signs, zeros included; int16, k = 8
    ``act``           (M, K) act_dtype   scheme ``dense`` only, instead of the two
    ``group_sums``    (M, G) int32       if ``has_min``
    ``act_scale``     (M,) float32       unless the output is int32
    ``w``             (N, K) int8        weights
    ``w_scale``       (N, G) group_dtype with groups; (N,) float32 per channel; not for int32
    ``w_min``         (N, G) group_dtype if ``has_min``
    ``offset``        (N,) int32         if ``has_offset``; float64 with groups
    ``zero``          (M,) act_dtype     if ``adds_shift``: zero points
    ``w_sum``         (N,) int32         if ``adds_shift``: sums of weights; float64 with groups
    ``mid_scale``     (1,) float32       if ``has_mid``
    ``bias``          (N,) float32       if ``has_bias``
    ``out_scale``     (1,) float32       if the output is encoded
    ``out``           (M, N)             the result; quantized integers if encoded
    ================  =================  ======================================================

    Whoever calls it has to fill padding with zeros and to ignore padded outputs; the accelerator's
    loads and stores do that by clamping to the real extents, attribute ``sparqle.extent``.

    Parameters
    ----------
    op : DenseOp
        The op.
    multiple : tuple of int
        Tile extents (m, n, k).

    Returns
    -------
    tvm.tirx.PrimFunc
        With blocks ``mma_lsb``, ``mma_msb``, ``mma_min`` (if there are minima), and ``drain``.

    Raises
    ------
    CompileError
        If K ends within a group, or weights do not fit int8.
    """
    if op.group_size and op.k % op.group_size:
        raise CompileError(
            f"dense op {op.label!r}: K = {op.k} is not a multiple of group_size = "
            f"{op.group_size}; pad the weights"
        )
    if op.weight_bits == 8 and not op.weight_signed:
        raise CompileError(
            f"dense op {op.label!r}: unsigned weights of 8 bits do not fit int8; subtract 128 "
            "and fold it into minima"
        )
    rows, cols, depth = (
        math.ceil(extent / tile) * tile
        for extent, tile in zip((op.m, op.n, op.k), multiple, strict=True)
    )
    groups = math.ceil(depth / max(op.group_size, 1))
    extents = {"m": rows, "n": cols, "k": depth, "g": groups, "1": 1}
    arrays = {
        name: te.placeholder([_int64(extents[axis]) for axis in axes], dtype, name)
        for name, (axes, dtype) in arrays_of(op).items()
    }
    passes = [_digit_pass(op, arrays, name) for name in PASSES[:2]]
    if op.has_min:
        passes.append(_minimum_pass(arrays))
    out = te.compute(passes[0].shape, lambda i, j: _drained(op, arrays, passes, i, j), name="drain")
    function = te.create_prim_func([*arrays.values(), out])
    attrs = {"global_symbol": "split_dense", EXTENT_ATTR: [op.m, op.n, op.k]}
    return function.with_attrs(attrs)


def arrays_of(op: DenseOp) -> dict[str, tuple[str, str]]:
    """Parameters of the function in their order: axes and dtype of each.

    An axis is a letter: rows "m", output channels "n", columns "k", weight groups in them "g"; the
    one element of "1".
    """
    dense, grouped, scaled = op.scheme == "dense", op.group_size > 0, op.scaled
    arrays = (
        ("lsb", not dense, "mk", "uint8"),
        ("msb", not dense, "mk", DIGIT[op.digit_bits]),
        ("act", dense, "mk", op.act_dtype),
        ("group_sums", op.has_min, "mg", "int32"),
        ("act_scale", scaled, "m", "float32"),
        ("w", True, "nk", "int8"),
        ("w_scale", grouped, "ng", op.group_dtype),
        ("w_scale", scaled and not grouped, "n", "float32"),
        ("w_min", op.has_min, "ng", op.group_dtype),
        ("offset", op.has_offset, "n", op.accumulator_dtype),
        ("zero", op.adds_shift, "m", op.act_dtype),
        ("w_sum", op.adds_shift, "n", op.accumulator_dtype),
        ("mid_scale", op.has_mid, "1", "float32"),
        ("bias", op.has_bias, "n", "float32"),
        ("out_scale", op.output == "encoded", "1", "float32"),
    )
    return {name: (axes, dtype) for name, exists, axes, dtype in arrays if exists}


def digit(op: DenseOp, name: str, stored: Any) -> Any:
    """Int32 factor of a pass: what the stored digit stands for, the high one times 2^k.

    A low digit of the window ``signed`` is stored with its top bit flipped: less 2^(k-1), it is
    the two's complement digit of `numerics.slicing`. With scheme ``dense`` `stored` is an element
    of the two-digit activations.
    """
    value, base = stored.astype("int32"), 1 << op.digit_bits
    if op.scheme == "dense":
        low = tirx.bitwise_and(value, tirx.const(base - 1, "int32"))
        return low if name == "mma_lsb" else value - low
    if name == "mma_msb":
        return value * tirx.const(base, "int32")
    bias = op.digits.bias
    return value - tirx.const(bias, "int32") if bias else value


def product(op: DenseOp, name: str, stored: Any, weight: Any, scale: Any) -> Any:
    """What a pass adds to an accumulator for one column of K; `scale` is None without groups."""
    exact = digit(op, name, stored) * weight.astype("int32")
    return exact if scale is None else exact.astype("float64") * scale.astype("float64")


DRAIN_INDEX = {
    "offset": "n",
    "zero": "m",
    "w_sum": "n",
    "act_scale": "m",
    "w_scale": "n",
    "mid_scale": "1",
    "bias": "n",
    "out_scale": "1",
}
"""Parameters of the drain in the order in which it reads them, and the axis of each."""


def drained(op: DenseOp, total: Any, **given: Any) -> Any:
    """What the drain makes of a sum and the `DRAIN_INDEX` parameters that the op has."""
    offset, zero, w_sum, act_scale, w_scale, mid_scale, bias, out_scale = map(
        given.get, DRAIN_INDEX
    )
    if offset is not None:
        total = total + offset
    if zero is not None:
        low, high = (tirx.const(limit, "int32") for limit in op.digits.centre_range)
        zero = zero.astype("int32")
        shift = tirx.max(tirx.min(zero, high), low) - zero
        total = total + shift.astype(op.accumulator_dtype) * w_sum
    if op.output == "int32":
        return total
    value = total.astype("float32") * act_scale
    value = value if w_scale is None else value * w_scale
    if out_scale is None:
        return value
    if mid_scale is not None:
        on_grid = _quantized(value, mid_scale, op.mid_zero, op.mid_low, op.mid_high)
        value = (on_grid - tirx.const(op.mid_zero, "float32")) * mid_scale
    value = value if bias is None else value + bias
    on_grid = _quantized(value, out_scale, op.out_zero, op.out_low, op.out_high)
    return on_grid.astype(op.out_dtype)


def _quantized(value: Any, scale: Any, *numbers: int) -> Any:
    """``min(max(round(value / scale) + zero, low), high)`` in float32."""
    zero, low, high = (tirx.const(number, "float32") for number in numbers)
    return tirx.max(tirx.min(tirx.nearbyint(value / scale) + zero, high), low)


def _digit_pass(op: DenseOp, arrays: Mapping[str, Any], name: str) -> Any:
    plane = arrays["act" if op.scheme == "dense" else name.removeprefix("mma_")]
    weights = arrays["w"]
    column = te.reduce_axis((0, weights.shape[1]), "k")

    def element(i: Any, j: Any) -> Any:
        scale = arrays["w_scale"][j, column // op.group_size] if op.group_size else None
        return te.sum(product(op, name, plane[i, column], weights[j, column], scale), column)

    return te.compute((plane.shape[0], weights.shape[0]), element, name=name)


def _minimum_pass(arrays: Mapping[str, Any]) -> Any:
    sums, minima = arrays["group_sums"], arrays["w_min"]
    group = te.reduce_axis((0, sums.shape[1]), "g")

    def element(i: Any, j: Any) -> Any:
        return te.sum(sums[i, group].astype("float64") * minima[j, group].astype("float64"), group)

    return te.compute((sums.shape[0], minima.shape[0]), element, name="mma_min")


def _drained(op: DenseOp, arrays: Mapping[str, Any], passes: Sequence[Any], i: Any, j: Any) -> Any:
    total = passes[0][i, j]
    for other in passes[1:]:
        total = total + other[i, j]
    at = {"m": i, "n": j, "1": 0}
    needed = {name: at[axis] for name, axis in DRAIN_INDEX.items() if name in arrays}
    if op.group_size:
        needed.pop("w_scale")
    return drained(op, total, **{name: arrays[name][index] for name, index in needed.items()})


def _int64(value: int) -> Any:
    return tirx.IntImm("int64", value)
