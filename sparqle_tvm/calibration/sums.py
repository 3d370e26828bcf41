"""What is added up of an encoding while a module runs."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from sparqle_tvm.calibration.statistics import FACTORS, DenseStatistics, EncodingStatistics
from sparqle_tvm.numerics import EncodingChoice, QuantizedWeights, encode, quantize_with_choice
from sparqle_tvm.numerics.row_nnz import RowNnz
from sparqle_tvm.passes import ActivationInfo, ObservedDense
from sparqle_tvm.target.cost.model import EncodedActivation
from sparqle_tvm.target.op import DenseOp

UNTIED_UNIT = 32
"""Columns of a unit where no weight group sets it."""

Outputs = dict[tuple[int, str], npt.NDArray[np.float64]]
"""Energy of each row, by place of the dense op and kind: "output" or "stream"."""

_SMALLEST_ENERGY = 1e-30


def nothing_seen(info: ActivationInfo) -> EncodingStatistics:
    """Statistics of an encoding before anything was run."""
    groups = [dense.group_size for dense in info.dense]
    grouped = [size for size in groups if size]
    unit = int(np.lcm.reduce(grouped)) if grouped else min(UNTIED_UNIT, info.columns)
    options, units = len(FACTORS), -(-info.columns // unit)
    return EncodingStatistics(
        label=info.label,
        digest=encoding_digest(info),
        columns=info.columns,
        qmax=info.qmax,
        window=info.window,
        unit=unit,
        tied=0 in groups,
        rows=0,
        largest=0.0,
        error=np.zeros((options, info.columns)),
        stored=np.zeros((2, options, units), np.int64),
        sample=np.zeros((0, options, units), np.uint8 if unit <= 255 else np.uint16),
        fisher=None,
        dense=tuple(
            DenseStatistics(
                label=dense.label,
                out_features=dense.out_features,
                weight_bits=dense.weight_bits,
                group_size=dense.group_size,
                column_energy=_column_energy(dense, info.columns),
                gain=0.0,
                share=0.0,
                stream=dense.stream,
            )
            for dense in info.dense
        ),
    )


def _column_energy(dense: ObservedDense, columns: int) -> npt.NDArray[np.float32]:
    """Energy of the weights of each column; 0 if they are no constants or have no scale."""
    if dense.weight is None or dense.scale is None:
        return np.zeros(columns, np.float32)
    minimum = None if dense.minimum is None else dense.minimum.value.numpy()
    values, scale = dense.weight.value.numpy(), dense.scale.value.numpy()
    real = QuantizedWeights(values, scale, minimum, dense.weight_bits).dequantize()
    return np.asarray(np.einsum("nk,nk->k", real, real), dtype=np.float32)


def encoded_activation(
    info: ActivationInfo,
    x: npt.NDArray[Any],
    choices: Mapping[str, EncodingChoice],
    windows: Mapping[str, str],
) -> EncodedActivation:
    """Quantize and encode x (M, K) as an encoding does, and count its digits."""
    choice = choices.get(info.label, EncodingChoice())
    window = windows.get(info.label, info.window)
    q = x
    if info.qmax:
        q = quantize_with_choice(x, choice, qmax=info.qmax, window=window)[0]
    planes = encode(q, k=info.digit_bits, window=window, zero_point=info.zero_point)
    nnz = RowNnz.from_pbm(planes.pbm, info.columns)
    shapes = tuple(
        DenseOp(
            len(x),
            dense.out_features,
            info.columns,
            dense.weight_bits,
            dense.group_size,
            dense.minimum is not None,
            dense.label,
            digit_bits=info.digit_bits,
            scale_bytes=dense.scale_bytes,
        )
        for dense in info.dense
    )
    return EncodedActivation(info.label, nnz, window, shapes)


def encoding_digest(info: ActivationInfo) -> str:
    """SHA-256 over an encoding's facts and the weights of all dense ops that read it."""
    digest = hashlib.sha256(repr((info.label, info.columns, info.qmax, info.digit_bits)).encode())
    digest.update(repr((info.dtype, info.zero_point)).encode())
    for dense in info.dense:
        facts = (dense.label, dense.out_features, dense.weight_bits, dense.group_size)
        digest.update(repr(facts).encode())
        for constant in (dense.weight, dense.scale, dense.minimum):
            if constant is not None:
                digest.update(np.ascontiguousarray(constant.value.numpy()).tobytes())
    return digest.hexdigest()


def row_energy(matrix: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Sum of squares of each row; never zero, because it is divided by."""
    energy = np.einsum("mn,mn->m", matrix, matrix, dtype=np.float64)
    return np.asarray(np.maximum(energy, _SMALLEST_ENERGY), dtype=np.float64)


def weigh(
    e: EncodingStatistics, outputs: Outputs, rows: int
) -> tuple[npt.NDArray[np.float32], tuple[DenseStatistics, ...]]:
    """How much the errors of each row count, (M,) float32, and what relates it to the outputs.

    An error counts relative to what it disturbs: the stream that the output is added to, or else
    the outputs themselves. Tokens with huge activations, of which a norm later takes the size
    away, would drown all others.
    """
    disturbed = {
        place: outputs.get((place, "stream"), energy)
        for (place, kind), energy in outputs.items()
        if kind == "output"
    }
    total = sum(disturbed.values())
    dense = []
    for place, d in enumerate(e.dense):
        gain = share = 0.0
        if place in disturbed:
            gain = float((total / disturbed[place]).sum())
        if (place, "stream") in outputs:
            share = float((outputs[place, "output"] / disturbed[place]).sum())
        dense.append(replace(d, gain=gain, share=share))
    weight = 1.0 / total if disturbed else np.ones(rows)
    return np.asarray(weight, dtype=np.float32), tuple(dense)


def row_counts(
    x: npt.NDArray[np.float32], scale: npt.NDArray[np.float32], limit: int, e: EncodingStatistics
) -> npt.NDArray[np.unsignedinteger]:
    """Stored digits in the signed window of a few rows, x less its centre: (rows, F, U)."""
    counts = np.zeros((len(x), *e.sample.shape[1:]), e.sample.dtype)
    for place, factor in enumerate(FACTORS):
        q = np.clip(np.rint(x / (scale * factor)[:, None]), -limit, limit)
        stored = (q < -8) | (q > 7)
        counts[:, place] = e.by_unit(stored, counts.dtype)
    return counts
