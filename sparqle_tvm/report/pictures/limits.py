"""What limits the time, over batch and context."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from sparqle_tvm.report.pictures.style import (
    BLUE,
    GREEN,
    GROUND,
    ORANGE,
    SKY,
    new_figure,
    no_ticks,
    style,
    width,
)
from sparqle_tvm.results.passes import LIMITS
from sparqle_tvm.studies.savings import Series

_LOOKS = {
    "compute": (ORANGE, "", "computation"),
    "weights": (BLUE, "", "memory: weights"),
    "activations": (SKY, "////", "memory: activations"),
    "kv_cache": (GREEN, "....", "memory: KV cache"),
}


def draw_limits(
    series: Sequence[Series], part: str = "whole_model", *, narrow: bool = False
) -> Figure:
    """Draw a panel per series; bars in pairs, dense at the left (slim), split at the right.

    Parameters
    ----------
    series : sequence of Series
        What to draw.
    part : {"dense_layers", "whole_model"}
        Whose time is divided.
    narrow : bool
        Lay it out for a phone.
    """
    grid = (len(series), 1) if narrow else (1, len(series))
    with style():
        figure = new_figure(width(narrow), 2.4 * grid[0] + 0.8)
        panels = figure.subplots(*grid, squeeze=False).ravel()
        for axes, one in zip(panels, series, strict=True):
            _draw_series(axes, one, part)
        for axes in panels[:1] if not narrow else panels:
            axes.set_ylabel("share of the time")
        handles = [Patch(**_look(limit), label=_LOOKS[limit][2]) for limit in LIMITS]
        figure.legend(handles=handles, loc="outside lower center", ncols=2 if narrow else 4)
    return figure


def _draw_series(axes: Axes, series: Series, part: str) -> None:
    for i, result in enumerate(series.estimates):
        for scheme, x, bar in (("dense", i - 0.28, 0.24), ("sparqle", i + 0.14, 0.52)):
            limits = result.schemes[scheme].part(part).limits
            bottom = 0.0
            for limit in LIMITS:
                axes.bar(x, limits[limit], bar, bottom, linewidth=0, **_look(limit))
                bottom += limits[limit]
    axes.set_xticks(range(len(series.values)), [f"{value:,}" for value in series.values])
    axes.set_xlabel(series.knob)
    axes.set_title(series.title)
    axes.set_ylim(0, 1)
    axes.grid(False, axis="x")
    no_ticks(axes, "x")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")


def _look(limit: str) -> dict[str, Any]:
    color, hatch, _ = _LOOKS[limit]
    return {"facecolor": color, "hatch": hatch, "edgecolor": GROUND}
