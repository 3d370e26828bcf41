"""What limits the time, over batch and context."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from sparqle_tvm.report.pictures import style
from sparqle_tvm.results.passes import LIMITS
from sparqle_tvm.studies.savings import Series

_LOOKS = {
    "compute": (style.ORANGE, "", "computation"),
    "weights": (style.BLUE, "", "memory: weights"),
    "activations": (style.SKY, "////", "memory: activations"),
    "kv_cache": (style.GREEN, "....", "memory: KV cache"),
}


def draw_limits(series: Sequence[Series], *, narrow: bool = False) -> Figure:
    """Divide the time of the whole model; a panel per series.

    Bars are in pairs, dense at the left (slim), split at the right.
    """
    with style.panels(narrow, len(series), 2.4, 0.8) as (figure, panels):
        for axes, one in zip(panels, series, strict=True):
            _draw_series(axes, one)
        for axes in panels[:1] if not narrow else panels:
            axes.set_ylabel("share of the time")
        handles = [Patch(**_look(limit), label=_LOOKS[limit][2]) for limit in LIMITS]
        style.legend(figure, handles, 2 if narrow else 4)
    return figure


def _draw_series(axes: Axes, series: Series) -> None:
    for i, result in enumerate(series.estimates):
        for scheme, x, bar in (("dense", i - 0.28, 0.24), ("sparqle", i + 0.14, 0.52)):
            limits = result.schemes[scheme].whole_model.limits
            bottom = 0.0
            for limit in LIMITS:
                axes.bar(x, limits[limit], bar, bottom, linewidth=0, **_look(limit))
                bottom += limits[limit]
    axes.set_xticks(range(len(series.values)), [f"{value:,}" for value in series.values])
    axes.set_xlabel(series.knob)
    axes.set_title(series.title)
    axes.set_ylim(0, 1)
    axes.grid(False, axis="x")
    style.no_ticks(axes, "x")
    style.percents(axes.yaxis)


def _look(limit: str) -> dict[str, Any]:
    color, hatch, _ = _LOOKS[limit]
    return style.look(color, hatch)
