"""Recognising attention in Relax ops: its operands with tokens first, its mask and its scale."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import relax, sym
from tvm.relax import op as R

from sparqle_tvm.passes._constants import make_const
from sparqle_tvm.passes._match import (
    axes_of,
    const_scalar,
    const_value,
    dims_of,
    dtype_of,
    op_name,
    same_dims,
)

_HIDES = -1e4
"""A score (or what is added to one) below hides the key: exp(-10000) is 0 in float32."""


class NotRecognisedError(Exception):
    """Attention of a form that is not known; the text says why."""


@dataclass
class AttentionForm:
    """What an attention computes.

    Attributes
    ----------
    q, k, v : relax.Expr
        (.., T, H, D), (.., N, kv_heads, D), (.., N, kv_heads, Dv).
    scale : float
        Of the scores.
    causal : bool
        Whether query i sees the keys up to N - T + i only.
    mask : relax.Expr or None
        (T, N) bool.
    grouped : list or None
        Shape (.., kv_heads, H / kv_heads * T, Dv) that the result has to get; None: (.., H, T, Dv).
    """

    q: relax.Expr
    k: relax.Expr
    v: relax.Expr
    scale: float = 1.0
    causal: bool = False
    mask: relax.Expr | None = None
    grouped: list[Any] | None = None


@dataclass
class _View:
    """An operand as seen by a matmul: its dimension i is ``axes[i]`` of `base`, times `factor`."""

    base: relax.Expr
    axes: list[int]
    factor: float = 1.0

    def arranged(self, order: list[int], emit: Any) -> relax.Expr:
        """The base with the matmul's dimensions in another order."""
        axes = [self.axes[i] for i in order]
        if axes == list(range(len(axes))):
            return self.base
        return emit(R.permute_dims(self.base, axes), "heads")


class Recogniser:
    """Reads attention upwards from the op that gives its result.

    Parameters
    ----------
    rewriter : Rewriter
        Follows variables, and emits what has to be arranged.
    """

    def __init__(self, rewriter: Any) -> None:
        self.rewriter = rewriter

    def fused(self, call: relax.Call) -> AttentionForm:
        """Read ``R.nn.attention``, all (B, tokens, heads, channels).

        Raises NotRecognisedError if it has a window, a bias that is no mask, or another type than
        float32.
        """
        attrs, (q, k, v, *bias) = call.attrs, call.args
        _require_float32(q, k, v)
        if attrs.window_size is not None:
            raise NotRecognisedError("it has a sliding window")
        channels = dims_of(q)[-1]
        scale = 1 / math.sqrt(int(channels)) if attrs.scale is None else float(attrs.scale.value)
        k, v = (
            self._view(x, 2, repeats=True, factors=False).arranged([0, 1, 2, 3], self._emit)
            for x in (k, v)
        )
        found = AttentionForm(q, k, v, scale)
        tokens, keys = dims_of(q)[1], dims_of(k)[1]
        kind = attrs.causal_mask
        if kind is not None:
            if str(kind) != "BottomRight" and not _equal(tokens, keys):
                raise NotRecognisedError(
                    f"its mask is {kind}, and there are more keys than queries"
                )
            found.causal = True
        for each in bias:
            self._add(found, self._mask_of_bias(each), tokens, keys)
        return found

    def composed(self, product: relax.Call) -> AttentionForm | None:
        """Read matmul, softmax, matmul, from the last on; None if it is nothing like attention.

        Raises NotRecognisedError if it is, but of a form that is not known.
        """
        probs = self._value(product.args[0])
        if op_name(probs) == "relax.reshape":
            probs = self._value(probs.args[0])
        if op_name(probs) != "relax.nn.softmax":
            return None
        shape = dims_of(probs)
        if len(shape) not in (3, 4):
            raise NotRecognisedError(f"its scores have {len(shape)} dimensions, 3 or 4 are known")
        if int(probs.attrs.axis) not in (-1, len(shape) - 1):
            raise NotRecognisedError("its softmax is not over the last dimension")
        found = AttentionForm(probs, probs, probs)
        masks: list[Any] = []
        scores = self._scores(probs.args[0], found, masks)
        if scores is None:
            return None
        _require_float32(*scores.args, *product.args)
        self._operands(found, scores, product, shape)
        for mask in masks:
            self._add(found, mask, shape[-2], shape[-1])
        return found

    def _scores(self, expr: Any, found: AttentionForm, masks: list[Any]) -> relax.Call | None:
        """The matmul behind scores; scale and masks on the way. None if there is none."""
        value = self._value(expr)
        name = op_name(value)
        if name == "relax.matmul":
            return value
        if name == "relax.where":
            hidden = self._scalar(value.args[2])
            if hidden is None or hidden > _HIDES:
                raise NotRecognisedError("what its mask hides is not made very small")
            masks.append(value.args[0])
            return self._scores(value.args[1], found, masks)
        if name == "relax.add":
            masks.append(self._mask_of_bias(value.args[1]))
            return self._scores(value.args[0], found, masks)
        if name in ("relax.multiply", "relax.divide"):
            number = self._scalar(value.args[1])
            if number is None:
                raise NotRecognisedError("its scores are scaled by a tensor")
            found.scale *= number if name == "relax.multiply" else 1 / number
            return self._scores(value.args[0], found, masks)
        if name == "relax.reshape":
            return self._scores(value.args[0], found, masks)
        return None

    def _operands(
        self, found: AttentionForm, scores: relax.Call, product: relax.Call, shape: list[Any]
    ) -> None:
        """Queries, keys and values with tokens first."""
        rank = len(shape)
        head_axis, heads_first = rank - 3, [0, 2, 1, 3] if rank == 4 else [1, 0, 2]
        query, factor = scores.args[0], 1.0
        if not same_dims(dims_of(query)[:-1], shape[:-1]):
            # The heads of a group as rows: (kv_heads, H / kv_heads * T, D) of (H, T, D).
            rows = self._view(query, head_axis)
            value, whole = self._value(rows.base), [*shape[:-1], dims_of(query)[-1]]
            grouped = op_name(value) == "relax.reshape" and rows.axes == list(range(rank))
            if not grouped or not same_dims(dims_of(value.args[0]), whole):
                raise NotRecognisedError("its queries are not (heads, tokens, channels)")
            query, factor, found.grouped = value.args[0], rows.factor, dims_of(product)
        repeats = found.grouped is None
        queries = self._view(query, head_axis)
        keys = self._view(scores.args[1], head_axis, repeats=repeats)
        values = self._view(product.args[1], head_axis, repeats=repeats, factors=False)
        found.scale *= factor * queries.factor * keys.factor
        found.q = queries.arranged(heads_first, self._emit)
        found.k = keys.arranged([0, 3, 1, 2] if rank == 4 else [2, 0, 1], self._emit)
        found.v = values.arranged(heads_first, self._emit)

    def _view(
        self, expr: relax.Expr, head_axis: int, *, repeats: bool = False, factors: bool = True
    ) -> _View:
        """Follow an operand through transpositions, and scalar factors and repeated heads."""
        view = _View(expr, list(range(len(dims_of(expr)))))
        while True:
            value = self._value(view.base)
            name = op_name(value)
            number = self._scalar(value.args[1]) if factors and name in _SCALES else None
            single = self._unrepeated(value, view.axes[head_axis]) if repeats else None
            if name == "relax.permute_dims":
                moved = axes_of(value.attrs.axes) or list(range(len(view.axes)))[::-1]
                view.axes = [moved[axis] for axis in view.axes]
                view.base = value.args[0]
            elif number is not None:
                view.factor *= number if name == "relax.multiply" else 1 / number
                view.base = value.args[0]
            elif single is not None:
                view.base = single
            else:
                return view

    def _unrepeated(self, value: Any, axis: int) -> relax.Expr | None:
        """What ``value`` repeats along an axis, element by element; None if it repeats nothing."""
        if op_name(value) == "relax.repeat":
            return value.args[0] if value.attrs.axis == axis else None
        if op_name(value) != "relax.reshape":
            return None
        wide = self._value(value.args[0])
        if op_name(wide) != "relax.broadcast_to":
            return None
        narrow = self._value(wide.args[0])
        if op_name(narrow) not in ("relax.expand_dims", "relax.reshape"):
            return None
        source, dims = narrow.args[0], dims_of(narrow.args[0])
        one = [*dims[: axis + 1], 1, *dims[axis + 1 :]]
        many = dims_of(wide)
        fits = len(many) == len(one) and same_dims(dims_of(narrow), one)
        others = [d for i, d in enumerate(many) if i != axis + 1]
        if not fits or not same_dims(others, dims):
            return None
        merged = [*dims[:axis], dims[axis] * many[axis + 1], *dims[axis + 1 :]]
        return source if same_dims(dims_of(value), merged) else None

    def _mask_of_bias(self, expr: relax.Expr) -> relax.Expr:
        """The mask that an added tensor stands for."""
        value = self._value(expr)
        if op_name(value) == "relax.where":
            yes, no = (self._scalar(arg) for arg in value.args[1:])
            if yes == 0 and no is not None and no <= _HIDES:
                return value.args[0]
            if no == 0 and yes is not None and yes <= _HIDES:
                return self._emit(R.logical_not(value.args[0]), "mask")
        number = const_value(value)
        if number is not None and np.logical_or(number == 0, number <= _HIDES).all():
            return make_const(number == 0)
        raise NotRecognisedError("it adds a tensor to its scores that is not known to be a mask")

    def _add(self, found: AttentionForm, mask: relax.Expr, tokens: Any, keys: Any) -> None:
        """Let a mask of a form's scores take part, (tokens, keys) or the same for all heads."""
        dims = dims_of(mask)
        if any(not _equal(d, 1) for d in dims[:-2]) or not dims or dtype_of(mask) != "bool":
            raise NotRecognisedError("its mask differs by head or sequence")
        if self._is_causal(mask, tokens, keys):
            found.causal = True
            return
        if len(dims) != 2:
            mask = self._emit(R.reshape(mask, ([1, *dims])[-2:]), "mask")
        if not same_dims(dims_of(mask), [tokens, keys]):
            mask = self._emit(R.broadcast_to(mask, [tokens, keys]), "mask")
        if found.mask is not None:
            mask = self._emit(R.logical_and(found.mask, mask), "mask")
        found.mask = mask

    def _is_causal(self, mask: relax.Expr, tokens: Any, keys: Any) -> bool:
        """Whether a mask is that of `AttentionForm.causal`: a constant, or compared positions."""
        value, outside = self._known(mask), self.rewriter.outside
        tokens, keys = (outside.number(each) for each in (tokens, keys))
        known = const_value(value)
        if known is not None:
            rows, columns = ([1, *known.shape])[-2:]
            triangle = np.tri(rows, columns, columns - rows, dtype=bool)
            fits = _equal(rows, tokens) and _equal(columns, keys)
            return fits and bool((known.reshape(rows, columns) == triangle).all())
        if op_name(value) == "relax.less_equal":
            key, query = value.args
        elif op_name(value) == "relax.greater_equal":
            query, key = value.args
        else:
            return False
        if not _equal(([1, *dims_of(key)])[-2], 1) or not _equal(dims_of(query)[-1], 1):
            return False
        first, first_key = self._first_position(query, tokens), self._first_position(key, keys)
        if first is None or first_key is None:
            return False
        return _equal(first - first_key, keys - tokens)

    def _first_position(self, expr: relax.Expr, count: Any) -> Any | None:
        """The first of `count` positions that rise by one; None if it is something else."""
        value = self._known(expr)
        while op_name(value) in ("relax.reshape", "relax.expand_dims"):
            value = self._known(value.args[0])
        skipped: Any = 0
        if op_name(value) == "relax.strided_slice":
            bounds = value.args[1:]
            if any(len(each.fields) != 1 for each in bounds):
                return None
            if len(bounds) > 3 and not _equal(bounds[3].fields[0], 1):
                return None
            if not _equal(bounds[2].fields[0] - bounds[1].fields[0], count):
                return None
            skipped, value = bounds[1].fields[0], self._known(value.args[0])
        elif len(dims_of(value)) != 1 or not _equal(dims_of(value)[0], count):
            return None
        if op_name(value) != "relax.arange" or not _equal(value.args[2], 1):
            return None
        return value.args[0] + skipped

    def _value(self, expr: Any) -> Any:
        return self.rewriter.value(expr)

    def _known(self, expr: Any) -> Any:
        """The same of what callers compute, too: to look at, not to be used."""
        return self.rewriter.outside.value(self._value(expr))

    def _scalar(self, expr: Any) -> float | None:
        return const_scalar(self._value(expr))

    def _emit(self, expr: relax.Expr, hint: str) -> relax.Var:
        emitted: relax.Var = self.rewriter.emit(expr, hint)
        return emitted


_SCALES = ("relax.multiply", "relax.divide")


def _equal(a: Any, b: Any) -> bool:
    return bool(sym.Analyzer().can_prove_equal(a, b))


def _require_float32(*operands: relax.Expr) -> None:
    for operand in operands:
        if dtype_of(operand) != "float32":
            raise NotRecognisedError(f"it computes in {dtype_of(operand)}, float32 is needed")
