"""The kernel behind calibration: what every option of a scale factor would do to an activation.

For each input channel and each factor it adds up the squared quantization error and counts the MSB
digits that would be stored, in both windows. Exact for its options: it quantizes as
`sparqle_tvm.numerics.quantize_with_choice` does, instead of estimating from a histogram.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import tvm
from tvm import tirx
from tvm.tirx.script import builder as T

from sparqle_tvm.tirscript import Array, build, cast, int64, loop, parallel, scratch, vector

LANES = 32
"""Channels that a thread works on together; activations are padded to a multiple of it."""

NAME = "sparqle_option_sums"


def option_sums(
    x: npt.NDArray[np.float32],
    scale: npt.NDArray[np.float32],
    weight: npt.NDArray[np.float32],
    factors: npt.NDArray[np.float32],
    qmax: int,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Quantize an activation with each of F factors, and sum up what comes of it over its rows.

    Parameters
    ----------
    x : float32 (M, K)
        Finite activations.
    scale : float32 (M,)
        Scale of each row without factors.
    weight : float32 (M,)
        How much the errors of each row count.
    factors : float32 (F,)
        Options; the step is ``scale * factor``.
    qmax : int
        Largest quantized magnitude.

    Returns
    -------
    error : float64 (F, K)
        Sum of ``weight * (x - q * step)^2``.
    stored : int64 (2, F, K)
        MSB digits that are not zero, in the signed and in the unsigned window (k = 4).
    """
    rows, columns = x.shape
    blocks = -(-columns // LANES)
    if columns % LANES:
        x = np.pad(x, ((0, 0), (0, blocks * LANES - columns)))
    shape = (len(factors), blocks * LANES)
    error = np.empty(shape, np.float32)
    counts = np.empty((2, *shape), np.int32)
    outputs = [tvm.runtime.tensor(array) for array in (error, counts)]
    inputs = (x.reshape(rows, blocks, LANES), scale, weight, factors)
    tensors = [tvm.runtime.tensor(np.ascontiguousarray(array)) for array in inputs]
    _compiled(qmax)(*tensors, *outputs)
    sums, found = (tensor.numpy()[..., :columns] for tensor in outputs)
    return sums.astype(np.float64), found.astype(np.int64)


@cache
def _compiled(qmax: int) -> Any:
    from sparqle_tvm.host.processor import host_target
    from sparqle_tvm.threads import use_threads

    use_threads()
    kernel = _kernel(qmax).with_attr("global_symbol", NAME)
    return tvm.compile(tvm.IRModule({NAME: kernel}), target=host_target())[NAME]


def _kernel(qmax: int) -> tirx.PrimFunc:
    rows, blocks, options = (tirx.Var(name, "int64") for name in ("rows", "blocks", "options"))

    def splat(value: float) -> Any:
        return T.Broadcast(tirx.const(value, "float32"), LANES)

    def body(
        x: Array, scale: Array, weight: Array, factors: Array, error: Array, counts: Array
    ) -> None:
        width = blocks * LANES
        with parallel(blocks) as block:
            # Partial sums of a block of channels, one option after another.
            sums = scratch("float32", options * LANES)
            found = scratch("int32", 2 * options * LANES)
            with loop(options) as option:
                sums[vector(option * LANES, LANES)] = splat(0.0)
            with loop(2 * options) as option:
                found[vector(option * LANES, LANES)] = T.Broadcast(tirx.const(0, "int32"), LANES)
            with loop(rows) as row, loop(options) as option:
                step = T.Broadcast(scale[row] * factors[option], LANES)
                at = vector(option * LANES, LANES)
                value = scratch("float32", LANES)
                q = scratch("float32", LANES)
                lanes = vector(0, LANES)
                value[lanes] = x[row, block, lanes]
                ratio = T.min(T.max(value[lanes] / step, splat(-qmax)), splat(qmax))
                q[lanes] = T.nearbyint(ratio)
                value[lanes] = value[lanes] - q[lanes] * step
                by = T.Broadcast(weight[row], LANES)
                sums[at] = sums[at] + value[lanes] * value[lanes] * by
                for window, (low, high) in enumerate(((-8.0, 7.0), (0.0, 15.0))):
                    place = vector((window * options + option) * LANES, LANES)
                    inside = T.max(T.min(q[lanes], splat(high)), splat(low))
                    outside = cast("int32", inside != q[lanes], LANES)
                    found[place] = found[place] + outside
            with loop(options) as option:
                out = vector(option * width + block * LANES, LANES)
                error.reshape(options * width)[out] = sums[vector(option * LANES, LANES)]
            with loop(2 * options) as option:
                out = vector(option * width + block * LANES, LANES)
                counts.reshape(2 * options * width)[out] = found[vector(option * LANES, LANES)]

    parameters = {
        "x": ("float32", rows, blocks, int64(LANES)),
        "scale": ("float32", rows),
        "weight": ("float32", rows),
        "factors": ("float32", options),
        "error": ("float32", options, blocks * LANES),
        "counts": ("int32", int64(2), options, blocks * LANES),
    }
    return build(NAME, parameters, body)
