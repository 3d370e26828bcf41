"""What is saved against MSB sparsity, with the ranges that the paper published."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from sparqle_tvm.report.paper import QUANTITIES, RANGES
from sparqle_tvm.report.pictures import style
from sparqle_tvm.results.passes import PHASES
from sparqle_tvm.studies.savings import Curve, select

_LOOKS: tuple[dict[str, Any], ...] = (
    {"color": style.BLUE, "linestyle": "-", "marker": "o"},
    {"color": style.VERMILION, "linestyle": "--", "marker": "s"},
    {"color": style.GREEN, "linestyle": "-.", "marker": "^"},
    {"color": style.PURPLE, "linestyle": ":", "marker": "v"},
    {"color": style.ORANGE, "linestyle": "-", "marker": "D"},
)
_BAND: dict[str, Any] = {"facecolor": style.SKY, "alpha": 0.3, "linewidth": 0}


def draw_reduction(curves: Sequence[Curve], *, narrow: bool = False) -> Figure:
    """Draw latency and energy of prefill and decode, whole model: a line each, four panels.

    Stars are measured distributions of MSB digits; thin lines around energy are the ends of its
    band. A shaded range is what the paper published for its models on its own array. Curves are of
    both phases of every model.
    """
    models = list(dict.fromkeys(curve.model for curve in curves))
    looks = {model: _LOOKS[i % len(_LOOKS)] for i, model in enumerate(models)}
    with style.picture(narrow, 6.2) as figure:
        panels = figure.subplots(2, 2, sharex=True, sharey="row")
        for row, quantity in zip(panels, QUANTITIES, strict=True):
            for axes, phase in zip(row, PHASES, strict=True):
                shown = list(select(curves, phase, "whole_model"))
                _draw_panel(axes, shown, phase, quantity, looks)
            row[0].set_ylabel(f"{quantity} saved")
        for axes in panels[-1]:
            axes.set_xlabel("MSB sparsity")
        columns = 3 if max(map(len, models)) > 16 else 5
        columns = columns // 2 if narrow else columns
        style.legend(figure, _legend(models, looks), columns)
    return figure


def _draw_panel(
    axes: Axes, curves: Sequence[Curve], phase: str, quantity: str, looks: dict[str, dict[str, Any]]
) -> None:
    published = RANGES[phase, quantity]
    axes.axhspan(published.low, published.high, **_BAND)
    axes.axhline(0, color=style.MUTED, linewidth=0.8)
    for curve in curves:
        look = looks[curve.model]
        x = [point.msb_sparsity for point in curve.points]
        axes.plot(x, [p.saved(quantity) for p in curve.points], markersize=3.5, **look)
        if quantity == "energy":
            for end in ("energy_low", "energy_high"):
                ends = [getattr(point, end) for point in curve.points]
                axes.plot(x, ends, color=look["color"], linewidth=0.5)
        axes.plot(
            curve.measured.msb_sparsity,
            curve.measured.saved(quantity),
            "*",
            color=look["color"],
            markersize=12,
            markeredgecolor=style.GROUND,
            zorder=5,
        )
    axes.set_title(f"{phase}, {quantity}")
    axes.set_xlim(-0.02, 1.02)
    style.percents(axes.xaxis)
    style.percents(axes.yaxis)


def _legend(models: Sequence[str], looks: dict[str, dict[str, Any]]) -> list[Line2D | Patch]:
    lines = [Line2D([], [], label=model, markersize=3.5, **looks[model]) for model in models]
    star: dict[str, Any] = {"linestyle": "none", "marker": "*", "markersize": 10}
    measured = Line2D([], [], color=style.INK, label="measured digits", **star)
    return [*lines, measured, Patch(**_BAND, label="paper, on its own array")]
