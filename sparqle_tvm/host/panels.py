"""Arrange weights and per-channel constants in panels for vector loads.

A panel is `cols` consecutive output channels, the innermost dimension. The arrangement is a
``call_tir`` of its own, so that ``relax.transform.FoldConstant`` does it once for constants.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from tvm import tirx

from sparqle_tvm.tirscript import Array, build, cast, either, loop, parallel


@cache
def panel_matrix(
    channels: int, inner: int, dtype: str, panel_dtype: str, cols: int
) -> tirx.PrimFunc:
    """Build (N, inner) -> (ceil(N / cols), inner, cols), padded with zeros.

    Parameters
    ----------
    channels, inner : int
        N, and K or the number of groups.
    dtype, panel_dtype : str
        Element types before and after; the conversion has to be exact.
    cols : int
        Channels of a panel.
    """
    panels = -(-channels // cols)

    def body(source: Array, panel: Array) -> None:
        with parallel(panels) as p, loop(inner) as i, loop(cols) as c:
            _copy_or_pad(
                p * cols + c < channels,
                lambda: source[p * cols + c, i],
                lambda value: panel.__setitem__((p, i, c), value),
                panel_dtype,
            )

    parameters = {
        "source": (dtype, channels, inner),
        "panel": (panel_dtype, panels, inner, cols),
    }
    return build("panel_matrix", parameters, body)


@cache
def panel_vector(channels: int, dtype: str, cols: int) -> tirx.PrimFunc:
    """Build (N,) -> (ceil(N / cols), cols), padded with zeros.

    Parameters
    ----------
    channels : int
        N.
    dtype : str
        Element type.
    cols : int
        Channels of a panel.
    """
    panels = -(-channels // cols)

    def body(source: Array, panel: Array) -> None:
        with loop(panels) as p, loop(cols) as c:
            _copy_or_pad(
                p * cols + c < channels,
                lambda: source[p * cols + c],
                lambda value: panel.__setitem__((p, c), value),
                dtype,
            )

    parameters = {"source": (dtype, channels), "panel": (dtype, panels, cols)}
    return build("panel_vector", parameters, body)


def _copy_or_pad(exists: Any, read: Any, write: Any, dtype: str) -> None:
    either(exists, lambda: write(cast(dtype, read())), lambda: write(tirx.const(0, dtype)))
