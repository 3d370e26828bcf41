"""Split dense ops for tests: random operands, their exact value, small accelerators."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sparqle_tvm.numerics import SlicedTensor, encode, encode_digits
from sparqle_tvm.numerics.quantization import QuantizedWeights
from sparqle_tvm.target.accelerator import PRESETS, Accelerator
from sparqle_tvm.target.op import DenseOp

EDGE = PRESETS["sparqle/edge"]

TINY = replace(
    EDGE,
    name="tiny",
    rows=4,
    cols=4,
    lanes=8,
    activation_buffer_bytes=4096,
    scratchpad=False,
    weight_buffer_bytes=4096,
    accumulator_buffer_bytes=4096,
)

# Rows with zero points of their own, and an op that multiplies what is counted from those.
SHIFTED: Any = {"row_zeros": True, "adds_shift": True}

SPECS = {
    "int32": DenseOp(m=5, n=9, k=40, output="int32"),
    "unsigned": DenseOp(m=6, n=7, k=24, window="unsigned", output="int32"),
    "signed offset": DenseOp(m=3, n=8, k=32, has_offset=True, group_size=16),
    "offset": DenseOp(m=3, n=8, k=32, window="unsigned", has_offset=True),
    "channel": DenseOp(m=9, n=5, k=48, weight_bits=8),
    "ternary": DenseOp(m=4, n=4, k=16, weight_bits=2),
    "unsigned weights": DenseOp(m=3, n=6, k=32, weight_signed=False, group_size=16),
    "grouped": DenseOp(m=7, n=10, k=64, group_size=32),
    "float32 scales": DenseOp(m=7, n=10, k=64, group_size=16, scale_bytes=4, weight_bits=8),
    "float32 minima": DenseOp(m=6, n=9, k=96, group_size=32, scale_bytes=4, has_min=True),
    "minima": DenseOp(m=6, n=9, k=96, group_size=32, has_min=True),
    "digits of 2": DenseOp(m=5, n=6, k=32, digit_bits=2, group_size=16, has_min=True),
    "digits of 8": DenseOp(m=5, n=6, k=16, digit_bits=8, weight_bits=8),
    "sorted": DenseOp(m=19, n=10, k=64, group_size=32, has_min=True, block_rows=8),
    "sorted channel": DenseOp(m=9, n=5, k=48, weight_bits=8, block_rows=4),
    "dense": DenseOp(m=6, n=5, k=40, scheme="dense", window="unsigned"),
    "dense grouped": DenseOp(
        m=6, n=5, k=64, scheme="dense", window="unsigned", group_size=32, has_min=True
    ),
    "one row": DenseOp(m=1, n=11, k=128, group_size=32, has_min=True),
    "uint8": DenseOp(m=9, n=10, k=64, act_signed=False, centre=117),
    "uint8 in groups": DenseOp(
        m=7, n=10, k=64, act_signed=False, centre=131, group_size=32, has_min=True
    ),
    "uint8, plain": DenseOp(m=6, n=7, k=24, act_signed=False, window="unsigned", output="int32"),
    "int8 around a zero point": DenseOp(m=5, n=9, k=40, centre=-77, has_offset=True),
    "uint16": DenseOp(m=5, n=6, k=16, digit_bits=8, weight_bits=8, act_signed=False, centre=40000),
    "uint4": DenseOp(m=5, n=6, k=32, digit_bits=2, act_signed=False, centre=7, group_size=16),
    "rows around their own": DenseOp(m=13, n=9, k=40, act_signed=False, **SHIFTED),
    "int8 rows in groups": DenseOp(
        m=11,
        n=9,
        k=64,
        row_zeros=True,
        adds_shift=True,
        group_size=32,
        has_min=True,
        has_offset=True,
    ),
    "int32 of rows": DenseOp(
        m=6,
        n=7,
        k=24,
        act_signed=False,
        row_zeros=True,
        adds_shift=True,
        window="unsigned",
        output="int32",
    ),
    "sorted rows around their own": DenseOp(
        m=19, n=10, k=64, act_signed=False, **SHIFTED, block_rows=8
    ),
    "uint16 rows": DenseOp(
        m=7,
        n=6,
        k=16,
        digit_bits=8,
        weight_bits=8,
        act_signed=False,
        row_zeros=True,
        adds_shift=True,
    ),
    "rows, unshifted": DenseOp(m=9, n=9, k=40, act_signed=False, row_zeros=True),
    "dense rows": DenseOp(
        m=6,
        n=5,
        k=64,
        scheme="dense",
        window="unsigned",
        row_zeros=True,
        adds_shift=True,
        group_size=32,
    ),
    "dense uint8": DenseOp(
        m=6, n=5, k=40, scheme="dense", window="unsigned", act_signed=False, has_offset=True
    ),
}


def accelerator_for(spec: DenseOp, accelerator: Accelerator = TINY) -> Accelerator:
    """The accelerator with the digits of a spec."""
    return replace(accelerator, digit_bits=spec.digit_bits)


@dataclass(frozen=True)
class Operands:
    """Random operands of an op.

    q (M, K) integers, weights, act_scale (M,) float32, offset (N,) or None, constant (N,), which
    is the offset or zeros, zero, what q stands for 0: a number, or one for each row (M,), bias (N,)
    float32, in the order of the sums.
    """

    q: Any
    weights: QuantizedWeights
    act_scale: Any
    offset: Any
    constant: Any
    zero: Any = 0
    bias: Any = None


def random_operands(spec: DenseOp, seed: int) -> Operands:
    """Operands with about half of the MSB digits zero, and some of all values of the type."""
    rng = np.random.default_rng(seed)
    low, high = activation_range(spec)
    near = np.rint(rng.standard_normal((spec.m, spec.k)) * (1 << spec.digit_bits) * 0.6)
    anywhere = rng.integers(low, high + 1, near.shape)
    zero = spec.centre
    if spec.row_zeros:
        ends = rng.choice([low, low + 3, high - 3, high], spec.m)
        zero = np.where(rng.random(spec.m) < 0.3, ends, rng.integers(low, high + 1, spec.m))
    q = np.where(rng.random(near.shape) < 0.2, anywhere, near + column(zero))
    q = np.clip(q, low, high).astype(spec.act_dtype)
    low = -(1 << (spec.weight_bits - 1)) if spec.weight_signed else 0
    w = rng.integers(low, low + (1 << spec.weight_bits), (spec.n, spec.k)).astype(np.int8)
    minimum = None
    if spec.group_size:
        scale = (rng.random((spec.n, spec.groups)) * 0.1 + 0.01).astype(np.float16)
        if spec.has_min:
            minimum = (-rng.random((spec.n, spec.groups))).astype(np.float16)
        if spec.scale_bytes == 4:  # products with integers, as those of K-quants
            scale = scale.astype(np.float32) * rng.integers(-63, 64, scale.shape, dtype=np.int8)
            if minimum is not None:
                minimum = minimum.astype(np.float32) * np.float32(41)
    else:
        scale = (rng.random(spec.n) * 0.1 + 0.01).astype(np.float32)
    weights = QuantizedWeights(w, scale, minimum, spec.weight_bits)
    constant = rng.integers(-50, 50, spec.n) * spec.has_offset
    offset = constant.astype(spec.accumulator_dtype) if spec.has_offset else None
    act_scale = (rng.random(spec.m) * 0.2 + 0.01).astype(np.float32)
    bias = rng.normal(0, 20, spec.n).astype(np.float32) if spec.has_bias else None
    return Operands(q, weights, act_scale, offset, constant, zero, bias)


def activation_range(spec: DenseOp) -> tuple[int, int]:
    """Smallest and largest activation."""
    values = 1 << (2 * spec.digit_bits)
    low = -values // 2 if spec.act_signed else 0
    return low, low + values - 1


def column(zero: Any) -> Any:
    """Zero points of rows as (M, 1), one number as it is."""
    return np.asarray(zero)[..., None] if np.ndim(zero) else zero


def encoded(spec: DenseOp, operands: Operands, rows: int) -> SlicedTensor:
    """Activations of the first `rows` rows as the op takes them."""
    zero = operands.zero[:rows] if spec.row_zeros else operands.zero
    return encode(operands.q[:rows], k=spec.digit_bits, window=spec.window, zero_point=zero)


def expected(spec: DenseOp, operands: Operands) -> Any:
    """The exact value of the op, computed without digits: (M, N) int32 or float32."""
    zero = column(operands.zero)
    if spec.row_zeros and not spec.adds_shift:
        # What digits count from: at least half a digit from both ends.
        low, high = activation_range(spec)
        half = 1 << (spec.digit_bits - 1)
        zero = np.clip(zero, low + half, high + 1 - half)
    q, weights = operands.q.astype(np.int64) - zero, operands.weights
    w = weights.values.astype(np.int64)
    if not spec.group_size:
        acc = (q @ w.T + operands.constant).astype(np.int32)
        if spec.output == "int32":
            return acc
        return (acc.astype(np.float32) * operands.act_scale[:, None]) * weights.scale
    total = np.zeros((spec.m, spec.n)) + operands.constant
    for group in range(spec.groups):
        columns = slice(group * spec.group_size, (group + 1) * spec.group_size)
        part = q[:, columns] @ w[:, columns].T
        total += part * weights.scale[:, group].astype(np.float64)
        if weights.minimum is not None:
            sums = q[:, columns].sum(axis=1)[:, None]
            total += sums * weights.minimum[:, group].astype(np.float64)
    return total.astype(np.float32) * operands.act_scale[:, None]


def primfunc_inputs(
    spec: DenseOp,
    operands: Operands,
    multiple: tuple[int, int, int] = (1, 1, 1),
    out_scale: Any = None,
    mid_scale: Any = None,
) -> tuple[list[Any], tuple[int, int]]:
    """Arguments of `split_dense_primfunc` without the output, padded; the output's shape."""
    m, n, k = (
        math.ceil(e / t) * t for e, t in zip((spec.m, spec.n, spec.k), multiple, strict=True)
    )
    weights, q = operands.weights, operands.q
    groups = k // spec.group_size if spec.group_size else 0
    arrays = []
    if spec.scheme == "dense":
        arrays.append((q, (m, k)))
    else:
        lsb, msb = encode_digits(q, spec.digit_bits, spec.window, zero_point=column(operands.zero))
        arrays += [(lsb, (m, k)), (msb, (m, k))]
    if spec.has_min:
        distances = q.astype(np.int32) - column(operands.zero)
        sums = distances.reshape(spec.m, spec.groups, -1).sum(axis=2, dtype=np.int32)
        arrays.append((sums, (m, groups)))
    if spec.scaled:
        arrays.append((operands.act_scale, (m,)))
    arrays.append((weights.values, (n, k)))
    if spec.scaled:
        arrays.append((weights.scale, (n, groups) if spec.group_size else (n,)))
    if spec.has_min:
        arrays.append((weights.minimum, (n, groups)))
    if spec.has_offset:
        arrays.append((operands.offset, (n,)))
    if spec.adds_shift:
        arrays.append((operands.zero.astype(spec.act_dtype), (m,)))
        arrays.append((weight_sums(spec, weights), (n,)))
    if spec.has_mid:
        arrays.append((mid_scale, (1,)))
    if spec.has_bias:
        arrays.append((operands.bias, (n,)))
    if spec.output == "encoded":
        arrays.append((out_scale, (1,)))
    return [_padded(array, shape) for array, shape in arrays], (m, n)


def weight_sums(spec: DenseOp, weights: QuantizedWeights) -> Any:
    """Sum of every channel's weights, in groups with their scales."""
    if not spec.group_size:
        return weights.values.sum(axis=1, dtype=np.int32)
    scales = np.repeat(weights.scale.astype(np.float64), spec.group_size, axis=1)
    return (weights.values * scales).sum(axis=1)


def _padded(array: Any, shape: tuple[int, ...]) -> Any:
    room = [(0, size - have) for size, have in zip(shape, array.shape, strict=True)]
    return np.ascontiguousarray(np.pad(array, room))


def run_primfunc(
    function: Any,
    spec: DenseOp,
    operands: Operands,
    multiple: tuple[int, int, int] = (1, 1, 1),
    *scales: Any,
) -> Any:
    """Compile a PrimFunc (or module) of the op for the host, run it, cut the padding off."""
    import tvm

    inputs, shape = primfunc_inputs(spec, operands, multiple, *scales)
    out = tvm.runtime.tensor(np.zeros(shape, dtype=spec.out_dtype))
    compiled = tvm.compile(function, target="llvm")
    compiled(*[tvm.runtime.tensor(array) for array in inputs], out)
    return out.numpy()[: spec.m, : spec.n]


def simulated(program: Any, operands: Operands, rows: int) -> Any:
    """Output of a program on the simulator for the first `rows` rows of the operands."""
    from sparqle_tvm.target.simulator import activation_tensors, simulate, weight_tensors

    header = program.header
    sliced = encoded(header.op, operands, rows)
    tensors = activation_tensors(header, sliced, operands.act_scale[:rows])
    tensors |= weight_tensors(header, operands.weights, operands.offset)
    return simulate(program, tensors).output
