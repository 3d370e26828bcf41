"""Bounds on the values of integer tensors, read off the ops that made them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from tvm import relax

from sparqle_tvm.passes._match import const_scalar, const_value, dtype_of, op_name

Range = tuple[float, float]
_UNBOUNDED: Range = (-np.inf, np.inf)

# Ops that move values about and make no new ones.
LAYOUT_OPS = frozenset(
    f"relax.{name}"
    for name in (
        "reshape",
        "permute_dims",
        "expand_dims",
        "squeeze",
        "strided_slice",
        "broadcast_to",
        "flatten",
        "take",
        "concat",
        "stack",
        "repeat",
        "tile",
    )
)


def dtype_range(dtype: str) -> Range:
    """Smallest and largest value of a dtype; all reals for floats."""
    if dtype.startswith(("int", "uint")):
        info = np.iinfo(dtype)
        return float(info.min), float(info.max)
    return _UNBOUNDED


def _meet(a: Range, b: Range) -> Range:
    low, high = max(a[0], b[0]), min(a[1], b[1])
    return (low, high) if low <= high else b


def _shift(bounds: Range, amount: float | None, sign: int) -> Range:
    return _UNBOUNDED if amount is None else (bounds[0] + sign * amount, bounds[1] + sign * amount)


def _call_range(call: relax.Call, recurse: Callable[[Any], Range]) -> Range:
    name = op_name(call).removeprefix("relax.")
    if op_name(call) in LAYOUT_OPS:
        parts = call.args[0]
        fields = list(parts.fields) if isinstance(parts, relax.Tuple) else [parts]
        ranges = [recurse(part) for part in fields]
        return min(r[0] for r in ranges), max(r[1] for r in ranges)
    if name in ("astype", "round", "abs", "max", "min"):
        low, high = recurse(call.args[0])
        if name == "abs":
            return max(0.0, low, -high), max(abs(low), abs(high))
        if name == "round":
            return float(np.round(low)), float(np.round(high))
        return low, high
    if name == "nn.relu":
        low, high = recurse(call.args[0])
        return max(low, 0.0), max(high, 0.0)
    if name == "quantize":
        return _quantized_range(call, recurse(call.args[0]))
    if name == "clip":
        floor, ceiling = const_scalar(call.args[1]), const_scalar(call.args[2])
        if floor is None or ceiling is None:
            return _UNBOUNDED
        return _meet(recurse(call.args[0]), (floor, ceiling))
    if name not in ("bitwise_and", "right_shift", "add", "subtract", "maximum", "minimum"):
        return _UNBOUNDED
    bounds, amount = recurse(call.args[0]), const_scalar(call.args[1])
    if amount is None:
        return _UNBOUNDED
    if name == "bitwise_and":
        return (0.0, amount) if amount >= 0 else _UNBOUNDED
    if name == "right_shift":
        scale = 2.0 ** int(amount)
        return float(np.floor(bounds[0] / scale)), float(np.floor(bounds[1] / scale))
    if name == "maximum":
        return max(bounds[0], amount), max(bounds[1], amount)
    if name == "minimum":
        return min(bounds[0], amount), min(bounds[1], amount)
    return _shift(bounds, amount, 1 if name == "add" else -1)


def _quantized_range(call: relax.Call, bounds: Range) -> Range:
    """Of a quantization with one constant scale and zero point, which clips to its dtype."""
    scale, zero = const_scalar(call.args[1]), const_scalar(call.args[2])
    limits = dtype_range(dtype_of(call))
    if scale is None or zero is None or not scale > 0:
        return limits
    return _meet(limits, (np.rint(bounds[0] / scale) + zero, np.rint(bounds[1] / scale) + zero))


def value_range(
    expr: Any, resolve: Callable[[Any], Any], known: Mapping[Any, Range] = MappingProxyType({})
) -> Range:
    """Bounds that every element of ``expr`` keeps, at worst those of its dtype.

    Parameters
    ----------
    expr : relax.Expr
        A tensor expression, or a variable bound to one.
    resolve : callable
        Maps a variable to the expression it is bound to (``Rewriter.value``).
    known : mapping of relax.Var to Range
        Bounds of parameters.
    """
    value = resolve(expr)
    constant = const_value(value)
    if constant is not None and constant.size:
        return float(constant.min()), float(constant.max())
    limits = dtype_range(dtype_of(value))
    if isinstance(value, relax.Var):
        return known.get(value, limits)
    if not isinstance(value, relax.Call):
        return limits
    found = _call_range(value, lambda arg: value_range(arg, resolve, known))
    # A wrapping cast or sum can land anywhere in the dtype.
    inside = limits[0] <= found[0] and found[1] <= limits[1]
    return found if inside else limits


def weight_bits(bounds: Range) -> int:
    """Narrowest weight width (2, 4 or 8 bits) that holds ``bounds``, signed or unsigned."""
    for bits in (2, 4):
        signed = -(2 ** (bits - 1)) <= bounds[0] and bounds[1] < 2 ** (bits - 1)
        if signed or (bounds[0] >= 0 and bounds[1] < 2**bits):
            return bits
    return 8
