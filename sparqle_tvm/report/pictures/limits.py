"""What takes the time under each scheme, beside that of the dense baseline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from sparqle_tvm.report import formats
from sparqle_tvm.report.passes import LIMIT_NAMES
from sparqle_tvm.report.pictures import style
from sparqle_tvm.results.estimate import Estimate
from sparqle_tvm.results.passes import BASELINE
from sparqle_tvm.studies.savings import Series
from sparqle_tvm.target.cost.baselines import scheme_name
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
_AREA: dict[str, Any] = {"color": style.INK, "marker": "D", "markersize": 5, "linestyle": "none"}


def draw_limits(series: Sequence[Series], *, narrow: bool = False) -> Figure:
    """Divide the time of the whole model, as a share of the baseline's; a panel per series.

    Bars are in pairs, dense at the left, split at the right. A series of one estimate has a bar for
    each of its schemes, and its time x area.
    """
    alone = all(len(one.estimates) == 1 for one in series)
    with style.panels(narrow, len(series), 2.6, 1.1 if narrow else 0.8) as (figure, panels):
        for axes, one in zip(panels, series, strict=True):
            if alone:
                _draw_schemes(axes, one.estimates[0])
            else:
                _draw_pairs(axes, one)
            axes.set_title(one.title)
            axes.grid(False, axis="x")
            style.no_ticks(axes, "x")
            style.percents(axes.yaxis)
            # Room for what stands above a bar.
            axes.set_ylim(0, 1.12 * axes.get_ylim()[1])
        for axes in panels[:1] if not narrow else panels:
            axes.set_ylabel("time, dense = 100%")
        handles: list[Any] = [Patch(**_look(limit), label=LIMIT_NAMES[limit]) for limit in LIMITS]
        if alone:
            handles.append(Line2D([], [], label="time x area", **_AREA))
        style.legend(figure, handles, 2 if narrow else 6)
    return figure


def _draw_schemes(axes: Axes, result: Estimate) -> None:
    """A bar for every scheme, and a mark where its area is taken in."""
    for i, scheme in enumerate(result.schemes):
        _draw_bar(axes, result, scheme, i, 0.62)
    for of in result.time_areas:
        if of.part == "whole_model":
            band, x = of.time_area, list(result.schemes).index(of.scheme)
            ends = [[band.mid - band.low], [band.high - band.mid]]
            axes.errorbar(x + 0.4, band.mid, yerr=ends, linewidth=1, **_AREA)
    names = [scheme_name(result.accelerator, scheme) for scheme in result.schemes]
    axes.set_xticks(range(len(names)), names)


def _draw_pairs(axes: Axes, series: Series) -> None:
    for i, result in enumerate(series.estimates):
        for scheme, x in ((BASELINE, i - 0.2), ("sparqle", i + 0.2)):
            _draw_bar(axes, result, scheme, x, 0.36)
    axes.set_xticks(range(len(series.values)), [f"{value:,}" for value in series.values])
    axes.set_xlabel(series.knob)


def _draw_bar(axes: Axes, result: Estimate, scheme: str, x: float, width: float) -> None:
    """What takes the time of a scheme, with what changes above it."""
    part, dense = (result.schemes[s].whole_model for s in (scheme, BASELINE))
    bottom = 0.0
    for limit in LIMITS:
        share = part.limits[limit] / dense.cycles
        axes.bar(x, share, width, bottom, linewidth=0, **_look(limit))
        bottom += share
    if scheme != BASELINE:
        text = formats.change(result.saved(scheme).cycles)
        look: dict[str, Any] = {"ha": "center", "textcoords": "offset points"}
        axes.annotate(text, (x, bottom), xytext=(0, 3), fontsize=6 + 2.5 * width, **look)


def _look(limit: str) -> dict[str, Any]:
    color, hatch = _LOOKS[limit]
    return style.look(color, hatch)
