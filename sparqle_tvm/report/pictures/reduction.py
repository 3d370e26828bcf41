"""What is saved against MSB sparsity, with the ranges that the paper published."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from sparqle_tvm.report.paper import PHASES, QUANTITIES, RANGES
from sparqle_tvm.report.pictures.style import (
    BLUE,
    GREEN,
    GROUND,
    INK,
    MUTED,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    new_figure,
    style,
    width,
)
from sparqle_tvm.studies.savings import Curve, select

_LOOKS: tuple[dict[str, Any], ...] = (
    {"color": BLUE, "linestyle": "-", "marker": "o"},
    {"color": VERMILION, "linestyle": "--", "marker": "s"},
    {"color": GREEN, "linestyle": "-.", "marker": "^"},
    {"color": PURPLE, "linestyle": ":", "marker": "v"},
    {"color": ORANGE, "linestyle": "-", "marker": "D"},
)
_BAND: dict[str, Any] = {"facecolor": SKY, "alpha": 0.3, "linewidth": 0}


def draw_reduction(
    curves: Sequence[Curve], part: str = "whole_model", *, narrow: bool = False
) -> Figure:
    """Draw four panels: latency and energy of prefill and decode, one line per model.

    Stars are measured distributions of MSB digits; thin lines around energy are the ends of its
    band. A shaded range is what the paper published for its models on its own array.

    Parameters
    ----------
    curves : sequence of Curve
        Of every model both phases.
    part : {"dense_layers", "whole_model"}
        Which of them are drawn.
    narrow : bool
        Lay it out for a phone.
    """
    models = list(dict.fromkeys(curve.model for curve in curves))
    looks = {model: _LOOKS[i % len(_LOOKS)] for i, model in enumerate(models)}
    with style():
        figure = new_figure(width(narrow), 6.2)
        panels = figure.subplots(2, 2, sharex=True, sharey="row")
        for row, quantity in zip(panels, QUANTITIES, strict=True):
            for axes, phase in zip(row, PHASES, strict=True):
                shown = list(select(curves, phase, part))
                _draw_panel(axes, shown, phase, quantity, looks)
            row[0].set_ylabel(f"{quantity} saved")
        for axes in panels[-1]:
            axes.set_xlabel("MSB sparsity")
        columns = 3 if max(map(len, models)) > 16 else 5
        columns = columns // 2 if narrow else columns
        figure.legend(handles=_legend(models, looks), loc="outside lower center", ncols=columns)
    return figure


def _draw_panel(
    axes: Axes, curves: Sequence[Curve], phase: str, quantity: str, looks: dict[str, dict[str, Any]]
) -> None:
    published = RANGES[phase, quantity]
    axes.axhspan(published.low, published.high, **_BAND)
    axes.axhline(0, color=MUTED, linewidth=0.8)
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
            markeredgecolor=GROUND,
            zorder=5,
        )
    axes.set_title(f"{phase}, {quantity}")
    axes.set_xlim(-0.02, 1.02)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")


def _legend(models: Sequence[str], looks: dict[str, dict[str, Any]]) -> list[Line2D | Patch]:
    lines = [Line2D([], [], label=model, markersize=3.5, **looks[model]) for model in models]
    star = Line2D(
        [], [], linestyle="none", marker="*", markersize=10, color=INK, label="measured digits"
    )
    return [*lines, star, Patch(**_BAND, label="paper, on its own array")]
