"""What is added up of an encoding while a module runs, and what comes of it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
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


@dataclass(eq=False)
class Sums:
    """What is added up of one encoding."""

    info: ActivationInfo
    digest: str
    column_energy: list[npt.NDArray[np.float32]]
    gain: list[float]
    share: list[float]
    unit: int
    tied: bool
    rows: int = 0
    largest: float = 0.0
    exceeding: int = 0
    error: Any = 0.0
    stored: Any = 0
    sample: Any = None

    @classmethod
    def of(cls, info: ActivationInfo) -> Sums:
        """Nothing seen yet of an encoding."""
        groups = [dense.group_size for dense in info.dense]
        grouped = [size for size in groups if size]
        unit = int(np.lcm.reduce(grouped)) if grouped else min(UNTIED_UNIT, info.columns)
        weights = [_weights(dense) for dense in info.dense]
        return cls(
            info=info,
            digest=encoding_digest(info),
            column_energy=[_column_energy(w) for w in weights],
            gain=[0.0] * len(weights),
            share=[0.0] * len(weights),
            unit=unit,
            tied=0 in groups,
        )

    @property
    def unit_starts(self) -> npt.NDArray[np.int64]:
        """First column of each unit."""
        return np.arange(0, self.info.columns, self.unit)


def _weights(dense: ObservedDense) -> QuantizedWeights | None:
    """The weights of a dense op, None if they are no constants or have no scale."""
    if dense.weight is None or dense.scale is None:
        return None
    minimum = None if dense.minimum is None else dense.minimum.value.numpy()
    values, scale = dense.weight.value.numpy(), dense.scale.value.numpy()
    return QuantizedWeights(values, scale, minimum, dense.weight_bits)


def _column_energy(weights: QuantizedWeights | None) -> npt.NDArray[np.float32]:
    if weights is None:
        return np.zeros(0, np.float32)
    real = weights.dequantize()
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
    nnz = RowNnz.from_pbm(encode(q, k=info.digit_bits, window=window).pbm, info.columns)
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
        )
        for dense in info.dense
    )
    return EncodedActivation(info.label, nnz, window, shapes)


def encoding_digest(info: ActivationInfo) -> str:
    """SHA-256 over an encoding's facts and the weights of all dense ops that read it."""
    digest = hashlib.sha256(repr((info.label, info.columns, info.qmax, info.digit_bits)).encode())
    for dense in info.dense:
        facts = (dense.label, dense.out_features, dense.weight_bits, dense.group_size)
        digest.update(repr(facts).encode())
        for constant in (dense.weight, dense.scale, dense.minimum):
            if constant is not None:
                digest.update(np.ascontiguousarray(constant.value.numpy()).tobytes())
    return digest.hexdigest()


def fresh_sums(sums: Sums) -> Sums:
    """The same encoding, nothing seen yet."""
    zeros = [0.0] * len(sums.gain)
    return Sums(
        sums.info, sums.digest, sums.column_energy, zeros, zeros.copy(), sums.unit, sums.tied
    )


def row_energy(matrix: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Sum of squares of each row; never zero, because it is divided by."""
    energy = np.einsum("mn,mn->m", matrix, matrix, dtype=np.float64)
    return np.asarray(np.maximum(energy, _SMALLEST_ENERGY), dtype=np.float64)


def weigh(sums: Sums, outputs: Outputs, rows: int) -> npt.NDArray[np.float32]:
    """How much the errors of each row count, (M,) float32; adds what relates it to the outputs.

    An error counts relative to what it disturbs: the stream that the output is added to, or else
    the outputs themselves. Tokens with huge activations, of which a norm later takes the size
    away, would drown all others.
    """
    disturbed = {
        place: outputs.get((place, "stream"), energy)
        for (place, kind), energy in outputs.items()
        if kind == "output"
    }
    if not disturbed:
        return np.ones(rows, np.float32)
    total = sum(disturbed.values())
    for place, energy in disturbed.items():
        sums.gain[place] += float((total / energy).sum())
        if (place, "stream") in outputs:
            sums.share[place] += float((outputs[place, "output"] / energy).sum())
    return np.asarray(1.0 / total, dtype=np.float32)


def row_counts(
    x: npt.NDArray[np.float32], scale: npt.NDArray[np.float32], limit: int, sums: Sums
) -> npt.NDArray[np.unsignedinteger]:
    """Stored digits in the signed window of a few rows: (rows, F, U)."""
    dtype = np.uint8 if sums.unit <= 255 else np.uint16
    counts = np.zeros((len(x), len(FACTORS), len(sums.unit_starts)), dtype)
    for place, factor in enumerate(FACTORS):
        q = np.clip(np.rint(x / (scale * factor)[:, None]), -limit, limit)
        stored = (q < -8) | (q > 7)
        counts[:, place] = np.add.reduceat(stored, sums.unit_starts, axis=1, dtype=dtype)
    return counts


def statistics_of(
    sums: Sums, order: npt.NDArray[np.int64], fisher: npt.NDArray[np.float64] | None
) -> EncodingStatistics:
    """What was added up, its sample in the order given."""
    info = sums.info
    dense = tuple(
        DenseStatistics(
            dense.label,
            dense.out_features,
            dense.weight_bits,
            dense.group_size,
            column_energy if len(column_energy) else np.zeros(info.columns, np.float32),
            gain,
            share,
            dense.stream,
        )
        for dense, column_energy, gain, share in zip(
            info.dense, sums.column_energy, sums.gain, sums.share, strict=True
        )
    )
    return EncodingStatistics(
        label=info.label,
        digest=sums.digest,
        columns=info.columns,
        qmax=info.qmax,
        window=info.window,
        unit=sums.unit,
        tied=sums.tied,
        rows=sums.rows,
        largest=sums.largest,
        exceeding=sums.exceeding,
        error=sums.error,
        stored=sums.stored,
        sample=sums.sample[order],
        fisher=fisher,
        dense=dense,
    )
