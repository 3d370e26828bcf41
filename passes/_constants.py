"""Constants behind layout and unpacking ops, evaluated with NumPy and shared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tvm
from tvm import relax

Constant = tvm.ir.GenericConst


def make_const(value: np.ndarray) -> relax.Expr:
    """A Relax constant of the array's own dtype (``relax.const`` alone narrows float64)."""
    return relax.const(np.ascontiguousarray(value).reshape(value.shape), str(value.dtype))


def _permute(call: relax.Call, x: np.ndarray) -> np.ndarray:
    axes = call.attrs.axes
    return x.transpose([int(a) for a in axes] if axes is not None else None)


def _astype(call: relax.Call, x: np.ndarray) -> np.ndarray:
    return x.astype(str(call.ty.dtype))


def _reshape(call: relax.Call, x: np.ndarray) -> np.ndarray | None:
    dims = call.ty.shape.values
    static = all(hasattr(d, "value") for d in dims)
    return x.reshape([int(d) for d in dims]) if static else None


def _numbers(expr: Any) -> list[int]:
    return [int(field) for field in expr.fields]


def _slice(call: relax.Call, x: np.ndarray) -> np.ndarray | None:
    bounds = call.args[1:]
    if not all(isinstance(b, relax.Tuple) and all(map(_is_number, b.fields)) for b in bounds):
        return None
    axes, begins, ends, *strides = map(_numbers, bounds)
    slices = [slice(None)] * x.ndim
    for i, axis in enumerate(axes):
        slices[axis] = slice(begins[i], ends[i], strides[0][i] if strides else 1)
    found = x[tuple(slices)]
    # Relax clamps bounds in its own way: a value counts only if the shape agrees.
    return found if list(found.shape) == [int(d) for d in call.ty.shape.values] else None


def _is_number(expr: Any) -> bool:
    return isinstance(getattr(expr, "value", None), int)


def _dequantize(call: relax.Call, *values: np.ndarray) -> np.ndarray:
    """``(q - zero) * scale``, in the dtype of the result and in that order, as TVM's op does."""
    q, scale, zero = values
    axis, dtype = int(call.attrs.axis) % max(q.ndim, 1), str(call.ty.dtype)
    along = [1] * q.ndim
    if max(scale.size, zero.size) > 1:
        along[axis] = -1
    wide = q.astype(np.int64) - zero.astype(np.int64).reshape(along if zero.size > 1 else ())
    return wide.astype(dtype) * scale.astype(dtype).reshape(along if scale.size > 1 else ())


# Ops of one tensor that move or reinterpret it.
_MOVES: dict[str, Callable[[relax.Call, np.ndarray], np.ndarray | None]] = {
    "relax.permute_dims": _permute,
    "relax.astype": _astype,
    "relax.reshape": _reshape,
    "relax.expand_dims": _reshape,
    "relax.squeeze": _reshape,
    "relax.flatten": _reshape,
    "relax.strided_slice": _slice,
}

# Elementwise ops of two tensors, in the dtype of the result.
_BINARY: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "relax.bitwise_and": np.bitwise_and,
    "relax.bitwise_or": np.bitwise_or,
    "relax.right_shift": np.right_shift,
    "relax.left_shift": np.left_shift,
    "relax.subtract": np.subtract,
    "relax.add": np.add,
    "relax.multiply": np.multiply,
}


class ConstantEvaluator:
    """Values of constant expressions, each computed once.

    Parameters
    ----------
    resolve : callable
        Maps a variable to the expression it is bound to.
    """

    def __init__(self, resolve: Callable[[Any], Any]) -> None:
        self._resolve = resolve
        self._made: dict[Any, relax.Expr] = {}

    def value(self, expr: Any) -> np.ndarray | None:
        """The value of ``expr`` if constants, moves, arithmetic and dequantization lead to it."""
        found = self._resolve(expr)
        if isinstance(found, Constant):
            return found.value.numpy()
        if not isinstance(found, relax.Call) or not isinstance(found.op, tvm.ir.Op):
            return None
        name = str(found.op.name)
        if name in ("relax.concat", "relax.stack"):
            return self._join(found, np.concatenate if name == "relax.concat" else np.stack)
        if name in _BINARY:
            left, right = self.value(found.args[0]), self.value(found.args[1])
            if left is None or right is None:
                return None
            with np.errstate(over="ignore"):
                return _BINARY[name](left, right).astype(str(found.ty.dtype))
        if name == "relax.dequantize":
            values = [v for v in map(self.value, found.args) if v is not None]
            return _dequantize(found, *values) if len(values) == len(found.args) else None
        if name not in _MOVES:
            return None
        inner = self.value(found.args[0])
        return None if inner is None else _MOVES[name](found, inner)

    def _join(self, call: relax.Call, join: Callable[..., np.ndarray]) -> np.ndarray | None:
        parts = self._resolve(call.args[0])
        if not isinstance(parts, relax.Tuple):
            return None
        values = [self.value(field) for field in parts.fields]
        if any(value is None for value in values):
            return None
        return join(values, axis=int(call.attrs.axis or 0))

    def source(self, expr: Any) -> Any:
        """What identifies ``expr``: the constant itself, or the expression it is bound to."""
        return self._resolve(expr)

    def once(self, key: tuple[Any, ...], make: Callable[[], np.ndarray]) -> relax.Expr:
        """The constant for ``key``, made at the first call: functions share what they read."""
        made = self._made.get(key)
        if made is None:
            made = self._made[key] = make_const(make())
        return made
