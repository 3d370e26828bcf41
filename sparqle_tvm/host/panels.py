"""Arrange weights and per-channel constants in panels for vector loads.

A panel is `cols` consecutive output channels, the innermost dimension. The arrangement is a
``call_tir`` of its own, so that ``relax.transform.FoldConstant`` does it once for constants.
"""

from __future__ import annotations

import math
from functools import cache

from tvm import tirx

from sparqle_tvm.tirscript import Array, build, cast, either, loop, parallel


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
