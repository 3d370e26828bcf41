"""Arrange weights and per-channel constants in panels for vector loads.

A panel is `cols` consecutive output channels, the innermost dimension. The arrangement is a
``call_tir`` of its own, so that ``relax.transform.FoldConstant`` does it once for constants.
"""

from __future__ import annotations

import math
from functools import cache

from tvm import tirx
from tvm.tirx.script import builder as T

from sparqle_tvm.tirscript import Array, Scalar, build, cast, either, loop, parallel, when


@cache
def panel_kernel(shape: tuple[int, ...], dtype: str, panel_dtype: str, cols: int) -> tirx.PrimFunc:
    """Build (N, ..) -> (ceil(N / cols), .., cols), padded with zeros.

    Parameters
    ----------
    shape : tuple of int
        N, and K or the number of groups if there is a value for each.
    dtype, panel_dtype : str
        Element types before and after; the conversion has to be exact.
    cols : int
        Channels of a panel.
    """
    channels, inner = shape[0], math.prod(shape[1:])
    panels = -(-channels // cols)

    def body(source: Array, panel: Array) -> None:
        source, panel = source.reshape(channels, inner), panel.reshape(panels, inner, cols)
        with parallel(panels) as p, loop(inner) as i, loop(cols) as c:
            at, channel = (p, i, c), p * cols + c
            either(
                channel < channels,
                lambda: panel.__setitem__(at, cast(panel_dtype, source[channel, i])),
                lambda: panel.__setitem__(at, tirx.const(0, panel_dtype)),
            )

    parameters = {
        "source": (dtype, *shape),
        "panel": (panel_dtype, panels, *shape[1:], cols),
    }
    return build("panels", parameters, body)


@cache
def nibble_panel_kernel(channels: int, columns: int, cols: int) -> tirx.PrimFunc:
    """Build int8 (N, K) -> uint8 (ceil(N / cols), K + 1, cols / 2), two weights in a byte.

    Weights are -8..7 or 0..15. Byte j of a row holds channel j of the panel in its low bits and
    channel j + cols / 2 in its high ones, each plus the panel's shift; the last row holds that, 8
    if any of the panel's weights is negative, else 0.

    Parameters
    ----------
    channels, columns : int
        N and K.
    cols : int
        Channels of a panel.
    """
    panels, half = -(-channels // cols), cols // 2

    def body(source: Array, panel: Array) -> None:
        with parallel(panels) as p:
            least = Scalar("int32", 0)
            with loop(cols) as c, when(p * cols + c < channels), loop(columns) as i:
                least.set(T.min(least.value, cast("int32", source[p * cols + c, i])))
            shift = Scalar("int32", T.Select(least.value < 0, T.int32(8), T.int32(0)))

            def stored(channel: tirx.PrimExpr, i: tirx.PrimExpr) -> tirx.PrimExpr:
                weight = cast("int32", source[T.min(channel, channels - 1), i])
                return T.Select(channel < channels, weight, T.int32(0)) + shift.value

            with loop(half) as c:
                panel[p, columns, c] = cast("uint8", shift.value)
            with loop(columns) as i, loop(half) as c:
                low, high = (stored(p * cols + (c + part), i) for part in (0, half))
                panel[p, i, c] = cast("uint8", T.bitwise_or(low, T.shift_left(high, T.int32(4))))

    parameters = {
        "source": ("int8", channels, columns),
        "panel": ("uint8", panels, columns + 1, half),
    }
    return build("nibble_panels", parameters, body)
