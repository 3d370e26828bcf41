"""A figure over two fields as a heat map, and where it reaches a level over a third."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from sparqle_tvm.report.pictures import style
from sparqle_tvm.report.pivot import quantity_title, shown_figure, shown_point, shown_value
from sparqle_tvm.studies.sweep.crossing import BreakEven, Scan
from sparqle_tvm.studies.sweep.figures import Quantity, quantity
from sparqle_tvm.studies.sweep.pivot import Panel, Pivot

MAX_PANELS = 12
"""Panels that are drawn; tables have all."""
_MAX_LINES = 8
_SAVED = {
    "time_saved": "time, whole model",
    "dense_layers_time_saved": "time, dense layers",
    "energy_saved": "energy, whole model",
    "dense_layers_energy_saved": "energy, dense layers",
}
_COLORS = (style.BLUE, style.ORANGE, style.GREEN, style.VERMILION, style.PURPLE, style.SKY)
_MARKS = "osD^vP*X"
# Of cells, whose ground is the same in a light and a dark page.
_ON_DARK, _ON_LIGHT = "#fcfcfc", "#101010"


def draw_pivot(found: Pivot, *, narrow: bool = False) -> Figure:
    """A heat map for every panel, the figure in each cell; a line parts gain from loss."""
    shown = found.panels[:MAX_PANELS]
    tables = [np.array(panel.values, dtype=float) for panel in shown]
    finite = np.concatenate([table[np.isfinite(table)] for table in tables])
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 1.0)
    scale = Normalize(low, high if high > low else low + 1e-9)
    across = 1 if narrow else min(len(shown), 2)
    down = math.ceil(len(shown) / across)
    height = down * (0.32 * len(found.row_values) + 1.0) + 0.5
    with style.picture(narrow, height) as figure:
        panels = figure.subplots(down, across, squeeze=False).ravel()
        for axes, panel, values in zip(panels, shown, tables, strict=False):
            mesh = _draw_heat(axes, found, panel, values, scale, narrow or across > 1)
        for axes in panels[len(shown) :]:
            axes.set_visible(False)
        bar = figure.colorbar(mesh, ax=panels, location="bottom", aspect=40, shrink=0.6, pad=0.02)
        bar.outline.set_visible(False)
        bar.ax.xaxis.set_major_formatter(lambda value, _: shown_figure(found.quantity)(value))
        bar.set_label(quantity_title(found.quantity))
    return figure


def _draw_heat(
    axes: Axes,
    found: Pivot,
    panel: Panel,
    values: NDArray[np.float64],
    scale: Normalize,
    small: bool,
) -> Any:
    rows, cols = values.shape
    colors = colormaps["cividis"]
    mesh = axes.pcolormesh(
        np.arange(cols + 1) - 0.5,
        np.arange(rows + 1) - 0.5,
        np.ma.masked_invalid(values),
        cmap=colors,
        norm=scale,
        edgecolors="none",
    )
    size = 8 if cols <= (6 if small else 12) else 6
    for (row, col), value in np.ndenumerate(values):
        if not math.isfinite(value):
            axes.text(col, row, "-", ha="center", va="center", color=style.MUTED)
        elif cols <= (10 if small else 20):
            ink = _ON_LIGHT if scale(value) > 0.55 else _ON_DARK
            text = _cell(found.quantity, value)
            axes.text(col, row, text, ha="center", va="center", color=ink, fontsize=size)
    if found.quantity.unit == "share":
        _draw_break_even(axes, values)
    axes.invert_yaxis()
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.set_yticks(range(rows), [shown_value(value) for value in found.row_values])
    axes.set_xticks(range(cols), [shown_value(value) for value in found.col_values])
    axes.tick_params(axis="x", rotation=45 if small and cols > 6 else 0)
    style.no_ticks(axes, "both")
    axes.set_xlabel(found.cols.replace("_", " "))
    axes.set_ylabel(found.rows.replace("_", " "))
    axes.set_title(shown_point(panel.point))
    return mesh


def _cell(quantity: Quantity, value: float) -> str:
    """A figure in a cell: percentages without their sign, which the bar has."""
    text = shown_figure(quantity)(value)
    return text.removesuffix(" %")


def _draw_break_even(axes: Axes, values: NDArray[np.float64]) -> None:
    """Lines between cells of which one gains and one loses."""
    gains = values > 0
    known = np.isfinite(values)
    look: dict[str, Any] = {"color": style.VERMILION, "linewidth": 2.4, "solid_capstyle": "round"}
    for row, col in zip(*np.nonzero(known), strict=True):
        right, below = (row, col + 1), (row + 1, col)
        for (r, c), line in (
            (right, ((col + 0.5, col + 0.5), (row - 0.5, row + 0.5))),
            (below, ((col - 0.5, col + 0.5), (row + 0.5, row + 0.5))),
        ):
            inside = r < values.shape[0] and c < values.shape[1] and known[r, c]
            if inside and gains[row, col] != gains[r, c]:
                axes.plot(*line, **look)


def draw_axis(rows: Sequence[Mapping[str, Any]], name: str, *, narrow: bool = False) -> Figure:
    """What is saved over one name of a sweep, its values at even distances."""
    places = range(len(rows))
    with style.picture(narrow, 3.0) as figure:
        axes = figure.subplots()
        handles = []
        for i, (saved, label) in enumerate(_SAVED.items()):
            column, look = quantity(saved).column, _look(i)
            values = [float(row[column]) for row in rows]
            axes.plot(places, values, linewidth=0.8, alpha=0.5, color=look["color"])
            axes.plot(places, values, linestyle="none", markersize=4.5, **look)
            handles.append(Line2D([], [], linewidth=1.4, markersize=4, label=label, **look))
        axes.axhline(0, color=style.INK, linewidth=0.8)
        step = max(1, len(rows) // (6 if narrow else 12))
        shown = list(places)[::step]
        axes.set_xticks(shown, [shown_value(rows[i].get(name)) for i in shown])
        axes.set_xlabel(name.replace("_", " "))
        axes.set_ylabel("saved")
        style.percents(axes.yaxis)
        style.legend(figure, handles, 1 if narrow else 4)
    return figure


def draw_scan(
    scan: Scan, found: Sequence[BreakEven], names: Sequence[str], *, narrow: bool = False
) -> Figure:
    """The figure over the field, a line for each point; and the crossover over the first name.

    The second panel is there if a name of the points is a number of several values: what reaches
    the level lies on the thick lines, which end in dots at crossings.
    """
    axis = next((name for name in names if _numbers(found, name)), None)
    count = 1 if axis is None else 2
    with style.panels(narrow, count, 3.2, 0.5) as (figure, panels):
        shown = list(found)[:: max(1, math.ceil(len(found) / _MAX_LINES))]
        handles = [_draw_line(panels[0], scan, one, i, names) for i, one in enumerate(shown)]
        panels[0].axhline(scan.level, color=style.INK, linewidth=1, linestyle="--")
        _label_field(panels[0].xaxis, panels[0], scan, found)
        panels[0].yaxis.set_major_formatter(lambda v, _: shown_figure(scan.quantity)(v))
        panels[0].set_title(quantity_title(scan.quantity))
        if axis is not None:
            _draw_crossover(panels[1], scan, found, axis, [n for n in names if n != axis])
        handles.append(Line2D([], [], color=style.INK, linestyle="--", linewidth=1, label="level"))
        style.legend(figure, handles, 2 if narrow else 4)
    return figure


def _numbers(found: Sequence[BreakEven], name: str) -> bool:
    values = {one.point.get(name) for one in found}
    return len(values) > 1 and all(
        isinstance(value, int | float) and not isinstance(value, bool) for value in values
    )


def _look(i: int) -> dict[str, Any]:
    return {"color": _COLORS[i % len(_COLORS)], "marker": _MARKS[i % len(_MARKS)]}


def _draw_line(axes: Axes, scan: Scan, one: BreakEven, i: int, names: Sequence[str]) -> Line2D:
    look = _look(i)
    label = shown_point({n: one.point[n] for n in names if n in one.point}) or "estimates"
    xs, ys = ([pair[j] for pair in one.scanned] for j in (0, 1))
    # What lies between two estimates is not known: tiles and groups of rows make jumps.
    axes.plot(xs, ys, color=look["color"], linewidth=0.8, alpha=0.5)
    axes.scatter(xs, ys, s=7, color=look["color"], linewidths=0)
    figures = dict(one.scanned)
    axes.plot(
        one.crossings,
        [figures[value] for value in one.crossings],
        linestyle="none",
        markersize=6,
        **look,
    )
    return Line2D([], [], linewidth=1.4, markersize=5, label=label, **look)


def _label_field(axis: Any, axes: Axes, scan: Scan, found: Sequence[BreakEven]) -> None:
    """Scale of the field: logarithmic if it spans much."""
    values = [value for one in found for value, _ in one.scanned]
    if values and min(values) > 0 and max(values) >= 8 * min(values):
        set_scale = axes.set_xscale if axis is axes.xaxis else axes.set_yscale
        set_scale("log")
        ticks = style.round_ticks(min(values), max(values))
        axis.set_ticks(ticks, [shown_value(tick) for tick in ticks])
        axis.set_ticks([], minor=True)
    name = scan.over.replace("_", " ")
    axis.set_label_text(name)


def _draw_crossover(
    axes: Axes, scan: Scan, found: Sequence[BreakEven], axis: str, others: Sequence[str]
) -> None:
    groups: dict[str, list[BreakEven]] = {}
    for one in found:
        groups.setdefault(shown_point({n: one.point[n] for n in others}), []).append(one)
    for i, (_, group) in enumerate(groups.items()):
        look = _look(i)
        first = []
        for one in group:
            x = float(one.point[axis])
            for part in one.ranges:
                ends = [part.first, part.last]
                axes.plot([x, x], ends, color=look["color"], linewidth=3, alpha=0.35)
            at = [x] * len(one.crossings)
            axes.plot(at, one.crossings, linestyle="none", markersize=6, **look)
            first += [(x, one.crossings[0])] if one.crossings else []
        if first:
            axes.plot(*zip(*sorted(first), strict=True), color=look["color"], linewidth=1.2)
    xs = sorted({float(one.point[axis]) for one in found})
    if xs[0] > 0 and xs[-1] >= 8 * xs[0]:
        axes.set_xscale("log")
    axes.set_xticks(xs, [shown_value(x) for x in xs])
    axes.set_xticks([], minor=True)
    axes.set_xlabel(axis.replace("_", " "))
    _label_field(axes.yaxis, axes, scan, found)
    axes.set_title("where the level is reached")
