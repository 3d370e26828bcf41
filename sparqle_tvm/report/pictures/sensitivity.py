"""How time and energy change with every field of the accelerator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from sparqle_tvm.report.pictures import style
from sparqle_tvm.report.sensitivity import EVERYTHING, FACTOR_NAMES, ranked_fields
from sparqle_tvm.results.sensitivity import FieldChange, Sensitivity

_BARS = (("sparqle", 0.22, 0.16), ("dense", 0.05, 0.07))
"""Scheme, distance of its bar from the middle of a field, height of the bar."""


def draw_sensitivity(found: Sequence[Sensitivity], *, narrow: bool = False) -> Figure:
    """Bars for every field, doubled above and halved below; a row of panels for each pass.

    Panels are of time and of energy. The best change of the first pass's time comes first.
    """
    fields = [group[0].field for group in ranked_fields(found[0])]
    order = [field for field in fields if field != EVERYTHING]
    grid = (2 * len(found), 1) if narrow else (len(found), 2)
    height = (0.34 * len(order) + 0.7) * grid[0] + 0.5
    with style.picture(narrow, height) as figure:
        panels = figure.subplots(*grid, squeeze=False).ravel()
        wanted = [(one, key) for one in found for key in ("seconds", "joules")]
        for axes, (one, key) in zip(panels, wanted, strict=True):
            _draw_panel(axes, one, key, order)
        for i, axes in enumerate(panels):
            if not narrow and i % 2:
                axes.set_yticklabels([])
        handles = [
            Patch(**_look(scheme, factor), label=f"{name}, {FACTOR_NAMES[factor]}")
            for scheme, name in (("sparqle", "split"), ("dense", "dense"))
            for factor in FACTOR_NAMES
        ]
        style.legend(figure, handles, 2 if narrow else 4)
    return figure


def _draw_panel(axes: Axes, found: Sensitivity, key: str, order: Sequence[str]) -> None:
    for change in (c for c in found.changes if c.parts and c.field in order):
        _draw_change(axes, order.index(change.field), change, key)
    axes.axvline(0, color=style.INK, linewidth=0.8)
    axes.set_yticks(range(len(order)), [name.replace("_", " ") for name in order])
    axes.set_ylim(len(order) - 0.5, -0.5)
    axes.grid(False, axis="y")
    style.no_ticks(axes, "y")
    axes.spines["left"].set_visible(False)
    style.percents(axes.xaxis)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_title(f"{found.base.phase}, {'time' if key == 'seconds' else 'energy'}")


def _draw_change(axes: Axes, place: int, change: FieldChange, key: str) -> None:
    side = -1 if change.factor > 1 else 1
    values = getattr(change.parts["whole_model"], key)
    for scheme, distance, height in _BARS:
        look = _look(scheme, change.factor)
        axes.barh(place + side * distance, values[scheme], height, linewidth=0, **look)


def _look(scheme: str, factor: float) -> dict[str, Any]:
    return style.look(style.SCHEME_COLORS[scheme], "" if factor > 1 else "//////")
