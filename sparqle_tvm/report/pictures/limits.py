"""What limits the time, over batch and context."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from sparqle_tvm.report.passes import LIMIT_NAMES
from sparqle_tvm.report.pictures import style
from sparqle_tvm.studies.savings import Series
from sparqle_tvm.target.cost.limits import LIMITS

_LOOKS = {
    "array": (style.ORANGE, ""),
    "waiting_rows": (style.ORANGE, "////"),
    "weights": (style.BLUE, ""),
    "activations": (style.SKY, ""),
    "kv_cache": (style.GREEN, ""),
    "descriptors": (style.SKY, "xxxx"),
    "drain": (style.PURPLE, ""),
    "encode": (style.VERMILION, ""),
    "vector": (style.VERMILION, "...."),
    "fill": (style.GREY, ""),
}
"""Colour and hatch, in the order they are stacked."""


def draw_limits(series: Sequence[Series], *, narrow: bool = False) -> Figure:
    """Divide the time of the whole model; a panel per series.

    Bars are in pairs, dense at the left (slim), split at the right.
    """
    with style.panels(narrow, len(series), 2.4, 1.1 if narrow else 0.8) as (figure, panels):
        for axes, one in zip(panels, series, strict=True):
            _draw_series(axes, one)
        for axes in panels[:1] if not narrow else panels:
            axes.set_ylabel("share of the time")
        handles = [Patch(**_look(limit), label=LIMIT_NAMES[limit]) for limit in LIMITS]
        style.legend(figure, handles, 2 if narrow else 5)
    return figure


def _draw_series(axes: Axes, series: Series) -> None:
    for i, result in enumerate(series.estimates):
        for scheme, x, bar in (("dense", i - 0.28, 0.24), ("sparqle", i + 0.14, 0.52)):
            part = result.schemes[scheme].whole_model
            bottom = 0.0
            for limit in LIMITS:
                share = part.share(limit)
                axes.bar(x, share, bar, bottom, linewidth=0, **_look(limit))
                bottom += share
    axes.set_xticks(range(len(series.values)), [f"{value:,}" for value in series.values])
    axes.set_xlabel(series.knob)
    axes.set_title(series.title)
    axes.set_ylim(0, 1)
    axes.grid(False, axis="x")
    style.no_ticks(axes, "x")
    style.percents(axes.yaxis)


def _look(limit: str) -> dict[str, Any]:
    color, hatch = _LOOKS[limit]
    return style.look(color, hatch)
