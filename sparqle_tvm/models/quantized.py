"""Dense layers in plain Relax ops: int8 activations per token, or float32.

These functions emit into the current ``relax.BlockBuilder``, so they serve ``relax.frontend.nn``
modules and hand-built functions alike. The form of the int8 layers is a contract: the passes that
split the precision recognise exactly this chain of ops. Every layer quantizes its own input; a
later pass shares what is the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import relax, runtime
from tvm.relax import op as R
from tvm.relax.frontend import nn

from sparqle_tvm.dialect.weights import Bounds
from sparqle_tvm.errors import InvalidArgumentError
from sparqle_tvm.numerics.quantization import SMALLEST_AMAX
from sparqle_tvm.numerics.window import WINDOWS, largest_integer

STORED = "stored"
"""Attribute of a parameter without data: its `StoredWeight`, and which part of it."""


def quantizer_levels(k: int) -> int:
    """Largest magnitude that models of a GGUF file are quantized to, for digits of k bits.

    It is half a window less than the integers of 2k bits would allow, 119 instead of 127: a choice
    of scale, not of the format, which holds every integer. The step is 7 % coarser, so that more
    values fall into the window. On SmolLM2-135M and 512 tokens benchmarks/quantizer_levels.py finds
    69.5 % of the high digits zero at a perplexity of 17.60, with 127 67.4 % at 18.05 (the
    difference has a standard error of 1.6 %).
    """
    return largest_integer(k) - WINDOWS["signed"].bias(k)


QMAX = quantizer_levels(4)
"""Largest magnitude of the quantizer of int8 layers."""


@dataclass(frozen=True)
class _ChannelsLast:
    """Weights whose last axis are the output channels."""

    values: NDArray[Any]

    @property
    def in_features(self) -> int:
        """Number K of input channels."""
        return math.prod(self.values.shape[:-1])

    @property
    def out_features(self) -> int:
        """Number N of output channels."""
        return int(self.values.shape[-1])


@dataclass(frozen=True)
class GroupedWeight(_ChannelsLast):
    """Integer weights with one scale, and perhaps one minimum, per group of g input channels.

    The value of a weight is ``scale * values + minimum``. K inputs, N outputs, G = K / g groups.

    Attributes
    ----------
    values : int8 array of shape (G, g, N)
    scale : float16 array of shape (G, 1, N), or float32 of products of a float16 and an integer
    minimum : array of shape (G, N) of the type of `scale`, or None if the weights have none
    """

    values: NDArray[np.int8]
    scale: NDArray[np.floating[Any]]
    minimum: NDArray[np.floating[Any]] | None = None

    def outputs(self, part: slice) -> GroupedWeight:
        """Return the weights of some output channels."""
        minimum = None if self.minimum is None else self.minimum[..., part]
        return GroupedWeight(self.values[..., part], self.scale[..., part], minimum)

    def to_float(self) -> FloatWeight:
        """Return the same weights as float32; every product and sum is rounded once."""
        values = self.values.astype(np.float32)
        values *= self.scale.astype(np.float32)
        if self.minimum is not None:
            values += self.minimum.astype(np.float32)[:, None, :]
        return FloatWeight(values.reshape(self.in_features, self.out_features))


@dataclass(frozen=True)
class ChannelWeight:
    """Integer weights with one scale per output channel.

    Attributes
    ----------
    values : int8 array of shape (N, K)
    scale : float32 array of shape (N,)
    """

    values: NDArray[np.int8]
    scale: NDArray[np.float32]

    @property
    def in_features(self) -> int:
        """Number K of input channels."""
        return int(self.values.shape[1])

    @property
    def out_features(self) -> int:
        """Number N of output channels."""
        return int(self.values.shape[0])

    def outputs(self, part: slice) -> ChannelWeight:
        """Return the weights of some output channels."""
        return ChannelWeight(self.values[part], self.scale[part])

    def to_float(self) -> FloatWeight:
        """Return the same weights as float32."""
        values = self.values.astype(np.float32) * self.scale[:, None]
        return FloatWeight(np.ascontiguousarray(values.T))


@dataclass(frozen=True)
class FloatWeight(_ChannelsLast):
    """Weights in float32, laid out for ``matmul(x, values)``.

    Attributes
    ----------
    values : float32 array of shape (K, N)
    """

    values: NDArray[np.float32]

    def outputs(self, part: slice) -> FloatWeight:
        """Return the weights of some output channels."""
        return FloatWeight(self.values[..., part])

    def to_float(self) -> FloatWeight:
        """Return itself."""
        return self


Weight = GroupedWeight | ChannelWeight | FloatWeight


@dataclass(frozen=True)
class StoredWeight:
    """Weights that stay in their file until somebody asks for them.

    Attributes
    ----------
    in_features, out_features : int
        K and N.
    load : callable
        Reads them: a `GroupedWeight`, without groups a `ChannelWeight` or a `FloatWeight`.
    bounds : (float, float)
        Of the integers; infinite of floats.
    group_size : int
        g; 0 of floats, and of integers with one scale per output.
    scale_dtype : str
        Of scales and minima in groups; scales of outputs are float32.
    scale_bound, minimum_bound : float
        What no scale and no minimum of a group is larger than; without minima, the second is 0.
    has_minimum : bool
    """

    in_features: int
    out_features: int
    load: Callable[[], Weight]
    bounds: Bounds = (-math.inf, math.inf)
    group_size: int = 0
    scale_dtype: str = "float16"
    scale_bound: float = 0.0
    minimum_bound: float = 0.0
    has_minimum: bool = False

    def outputs(self, part: slice) -> StoredWeight:
        """Return the weights of some output channels."""
        count, load = len(range(self.out_features)[part]), self.load
        return replace(self, out_features=count, load=lambda: load().outputs(part))

    def to_float(self) -> StoredWeight:
        """Return the same weights as float32."""
        load = self.load
        return StoredWeight(self.in_features, self.out_features, lambda: load().to_float())

    def parts(self) -> dict[str, tuple[tuple[int, ...], str, Bounds]]:
        """Shape, dtype and bounds of the tensors that make them, as `part` returns them."""
        rows, columns = self.out_features, self.in_features
        if math.isinf(self.bounds[1]):
            return {"values": ((columns, rows), "float32", self.bounds)}
        if not self.group_size:
            anything = (-math.inf, math.inf)
            values = ((rows, columns), "int8", self.bounds)
            return {"values": values, "scale": ((rows,), "float32", anything)}
        shape, dtype = (rows, columns // self.group_size), self.scale_dtype
        largest = {"scale": self.scale_bound}
        if self.has_minimum:
            largest["minimum"] = self.minimum_bound
        factors = {name: (shape, dtype, (-bound, bound)) for name, bound in largest.items()}
        return {"values": ((rows, columns), "int8", self.bounds), **factors}

    def part(self, loaded: Weight, name: str) -> NDArray[Any]:
        """A tensor of loaded weights, outputs first: (N, K) integers, (N, G) scales or minima.

        Scales of outputs are (N,), floats are (K, N).
        """
        array: NDArray[Any] = getattr(loaded, name)
        if not isinstance(loaded, GroupedWeight):
            return array
        if name == "minimum":
            return array.T
        return array.transpose(2, 0, 1).reshape(self.out_features, -1)


class StoredWeights:
    """Tensors of weights by the names of the parameters that take them, read when asked for.

    Parameters
    ----------
    content : str
        Tells these weights from any others: a hash of the file, and how it is read.
    """

    CACHED_BYTES = 1 << 27
    """What was read last stays: several tensors are made of the same weights."""

    def __init__(self, content: str) -> None:
        """Know no weights yet."""
        self.content = content
        self._known: dict[str, tuple[StoredWeight, str]] = {}
        self._loaded: dict[int, Weight] = {}

    def add(self, name: str, weight: StoredWeight, part: str) -> None:
        """Note what a parameter takes."""
        self._known[name] = weight, part

    def __contains__(self, name: object) -> bool:
        """Whether a parameter takes weights from here."""
        return name in self._known

    def __getitem__(self, name: str) -> NDArray[Any]:
        """Read the tensor of a parameter."""
        weight, part = self._known[name]
        loaded = self._loaded.pop(id(weight), None)
        loaded = weight.load() if loaded is None else loaded
        left = self.CACHED_BYTES - loaded.values.nbytes
        for key, other in reversed(list(self._loaded.items())):
            left -= other.values.nbytes
            if left < 0:
                del self._loaded[key]
        self._loaded[id(weight)] = loaded
        return weight.part(loaded, part)

    def forget(self) -> None:
        """Give back the memory of what was read."""
        self._loaded.clear()

    def bounds(self, name: str) -> Bounds:
        """Of the tensor of a parameter."""
        weight, part = self._known[name]
        return weight.parts()[part][2]


def _emit(expr: relax.Expr, name: str) -> relax.Var:
    return relax.BlockBuilder.current().emit(expr, name)


def emit_quantize(x: relax.Expr, label: str = "x") -> tuple[relax.Var, relax.Var]:
    """Emit the dynamic symmetric quantization of each token.

    Parameters
    ----------
    x : float32 expression of shape (1, T, K)
    label : name of the layer, for the names of the variables

    Returns
    -------
    q : int8 of shape (1, T, K), in [-119, 119]
    scale : float32 of shape (1, T, 1), so that x is about q * scale
    """
    amax = _emit(R.max(R.abs(x), axis=[-1], keepdims=True), f"{label}_amax")
    floor = relax.const(SMALLEST_AMAX, "float32")
    scale = _emit(
        R.divide(R.maximum(amax, floor), relax.const(float(QMAX), "float32")), f"{label}_scale"
    )
    clipped = R.clip(R.round(R.divide(x, scale)), -QMAX, QMAX)
    return _emit(R.astype(clipped, "int8"), f"{label}_q"), scale


def emit_grouped_dense(
    x: relax.Expr,
    values: relax.Expr,
    scale: relax.Expr,
    minimum: relax.Expr | None,
    label: str,
) -> relax.Var:
    """Emit a dense layer with grouped integer weights on int8 activations.

    The sum over groups is taken in float64, where it is exact: scales are multiples of 2^-24, and
    so are their products with int32 partial sums. So its order does not matter.

    Parameters
    ----------
    x : float32 expression of shape (1, T, K)
    values, scale, minimum : expressions shaped as in `GroupedWeight`
    label : name of the layer; the variable of the integer product bears it

    Returns
    -------
    y : float32 of shape (1, T, N)
    """
    groups, group_size, out_features = (int(n) for n in values.ty.shape)
    tokens = x.ty.shape[1]
    q, act_scale = emit_quantize(x, label)
    q_groups = R.permute_dims(R.reshape(q, (tokens, groups, group_size)), [1, 0, 2])
    q_groups = _emit(q_groups, f"{label}_q_groups")
    acc = _emit(R.matmul(q_groups, values, out_dtype="int32"), label)
    part = R.multiply(R.astype(acc, "float64"), R.astype(scale, "float64"))
    y64 = _emit(R.sum(part, axis=[0]), f"{label}_y64")
    if minimum is not None:
        sums = _emit(R.sum(R.astype(q_groups, "int32"), axis=[2]), f"{label}_sums")
        offset = R.matmul(R.permute_dims(R.astype(sums, "float64")), R.astype(minimum, "float64"))
        y64 = _emit(R.add(y64, offset), f"{label}_y64")
    y32 = R.reshape(R.astype(y64, "float32"), (1, tokens, out_features))
    return _emit(R.multiply(y32, act_scale), f"{label}_y")


def emit_channel_dense(
    x: relax.Expr, values: relax.Expr, scale: relax.Expr, label: str
) -> relax.Var:
    """Emit a dense layer with per-channel integer weights on int8 activations.

    Parameters
    ----------
    x : float32 expression of shape (1, T, K)
    values, scale : expressions shaped as in `ChannelWeight`
    label : name of the layer; the variable of the integer product bears it

    Returns
    -------
    y : float32 of shape (1, T, N)
    """
    q, act_scale = emit_quantize(x, label)
    acc = _emit(R.matmul(q, R.permute_dims(values), out_dtype="int32"), label)
    y = R.multiply(R.multiply(R.astype(acc, "float32"), act_scale), scale)
    return _emit(y, f"{label}_y")


def emit_float_dense(x: relax.Expr, values: relax.Expr, label: str) -> relax.Var:
    """Emit a dense layer in float32: x (1, T, K) times values (K, N) gives (1, T, N)."""
    return _emit(R.matmul(x, values), label)


def bound_parameter(values: NDArray[np.generic]) -> nn.Parameter:
    """Return a parameter that holds a copy of `values`, so that it can become a constant."""
    parameter = nn.Parameter(values.shape, dtype=str(values.dtype))
    parameter.data = runtime.tensor(np.ascontiguousarray(values))
    return parameter


class Dense(nn.Module):
    """A dense layer whose form follows from the type of its weights.

    Parameters
    ----------
    weight : GroupedWeight or ChannelWeight (int8 activations), or FloatWeight (float32)
    label : name of the layer in the module and in reports, as "blk_3_ffn_down"
    bias : float32 (N,), or None
    """

    def __init__(
        self,
        weight: Weight | StoredWeight,
        label: str,
        bias: NDArray[np.float32] | None = None,
    ) -> None:
        """Hold the weights as parameters, which will be constants if they are no stored ones."""
        self.label = label
        self.bias = None if bias is None else bound_parameter(bias)
        self.scale: nn.Parameter | None = None
        self.minimum: nn.Parameter | None = None
        self.group_size = 0
        if isinstance(weight, StoredWeight):
            self.group_size = weight.group_size
            for name, (shape, dtype, _) in weight.parts().items():
                parameter = nn.Parameter(shape, dtype=dtype)
                parameter.attrs[STORED] = weight, name
                setattr(self, name, parameter)
            return
        self.values = bound_parameter(weight.values)
        if not isinstance(weight, FloatWeight):
            self.scale = bound_parameter(weight.scale)
        if isinstance(weight, GroupedWeight) and weight.minimum is not None:
            self.minimum = bound_parameter(weight.minimum)

    def forward(self, x: relax.Expr) -> relax.Var:
        """Apply the layer: x (1, T, K) float32 gives (1, T, N) float32."""
        y = self._product(x)
        return y if self.bias is None else _emit(R.add(y, self.bias._expr), f"{self.label}_y")

    def _product(self, x: relax.Expr) -> relax.Var:
        values = self.values._expr
        if self.scale is None:
            return emit_float_dense(x, values, self.label)
        scale = self.scale._expr
        if self.group_size:
            return self._grouped_product(x, scale)
        if values.ty.ndim == 3:
            minimum = None if self.minimum is None else self.minimum._expr
            return emit_grouped_dense(x, values, scale, minimum, self.label)
        return emit_channel_dense(x, values, scale, self.label)

    def _grouped_product(self, x: relax.Expr, scale: relax.Expr) -> relax.Var:
        """The product with stored weights, which lie with their outputs first."""
        values = self.values._expr
        rows, columns = (int(n) for n in values.ty.shape)
        groups = columns // self.group_size
        by_group = R.reshape(values, (rows, groups, self.group_size))
        values = _emit(R.permute_dims(by_group, [1, 2, 0]), f"{self.label}_values")
        scale = R.permute_dims(R.reshape(scale, (rows, groups, 1)), [1, 2, 0])
        scale = _emit(scale, f"{self.label}_factors")
        minimum = None
        if self.minimum is not None:
            minimum = _emit(R.permute_dims(self.minimum._expr), f"{self.label}_minima")
        return emit_grouped_dense(x, values, scale, minimum, self.label)

    def _grouped_rows(self, index: relax.Expr) -> relax.Var:
        """Rows of stored weights as floats: index (T,) gives (1, T, K)."""
        count = index.ty.shape[0]

        def taken(parameter: nn.Parameter, last: int) -> relax.Expr:
            rows = R.take(parameter._expr, index, axis=0, mode="clip")
            columns = int(parameter.shape[1])
            return R.astype(R.reshape(rows, (count, columns // last, last)), "float32")

        rows = R.multiply(taken(self.values, self.group_size), taken(self.scale, 1))
        if self.minimum is not None:
            rows = R.add(rows, taken(self.minimum, 1))
        return _emit(R.reshape(rows, (1, count, int(self.values.shape[1]))), "embedding")

    def embed(self, tokens: relax.Expr) -> relax.Var:
        """Look up the weights of output channels, so that a tied head serves as the embedding.

        Parameters
        ----------
        tokens : int32 expression of shape (1, T)

        Returns
        -------
        rows : float32 of shape (1, T, K)

        Raises
        ------
        InvalidArgumentError
            If the weights have one scale per channel, which no embedding of GGUF has.
        """
        count = tokens.ty.shape[1]
        index = _emit(R.reshape(tokens, (count,)), "token_index")
        values = self.values._expr
        if self.group_size:
            return self._grouped_rows(index)
        if self.scale is None:
            rows = R.permute_dims(R.take(values, index, axis=1, mode="clip"))
            return _emit(R.expand_dims(rows, 0), "embedding")
        if values.ty.ndim != 3:
            raise InvalidArgumentError(f"{self.label}: per-channel weights cannot be an embedding")
        groups, group_size = int(values.ty.shape[0]), int(values.ty.shape[1])
        rows = R.astype(R.take(values, index, axis=2, mode="clip"), "float32")
        scale = R.take(self.scale._expr, index, axis=2, mode="clip")
        rows = R.multiply(rows, R.astype(scale, "float32"))
        if self.minimum is not None:
            minimum = R.take(self.minimum._expr, index, axis=1, mode="clip")
            rows = R.add(rows, R.expand_dims(R.astype(minimum, "float32"), 1))
        rows = R.permute_dims(rows, [2, 0, 1])
        return _emit(R.reshape(rows, (1, count, groups * group_size)), "embedding")
