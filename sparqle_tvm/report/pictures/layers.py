"""Where the cycles of a run go, block by block or layer by layer, and where MSB digits are zero."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from sparqle_tvm.report.pictures import style
from sparqle_tvm.results.passes import Layer, PassResult

_GROUPS = {
    "attn_q": "q, k, v",
    "attn_k": "q, k, v",
    "attn_v": "q, k, v",
    "attn_output": "o",
    "ffn_gate": "gate, up",
    "ffn_up": "gate, up",
    "ffn_down": "down",
}
_COLORS = (style.SKY, style.ORANGE, style.BLUE, style.GREEN, style.PURPLE, style.VERMILION)
_HATCHES = ("", "////", "", "\\\\\\\\", "xxx", "+++")


def group_of(layer: Layer) -> str:
    """Name of the group of layers that a layer is shown with."""
    return _GROUPS.get(layer.type, layer.type)


def cycles_by_group(
    layers: Sequence[Layer], scheme: str
) -> tuple[list[str], dict[str, NDArray[np.int64]]]:
    """Add up the cycles of a pass's dense layers under a scheme, by block and group.

    Returns
    -------
    columns : list of str
        Block numbers, and the names of the layers outside blocks.
    cycles : dict of str to ndarray of int64, shape (columns,)
        By group, in the order of the first layer of each.
    """
    places = [_column(layer) for layer in layers]
    columns = list(dict.fromkeys(places))
    cycles: dict[str, NDArray[np.int64]] = {}
    for place, layer in zip(places, layers, strict=True):
        mine = cycles.setdefault(group_of(layer), np.zeros(len(columns), np.int64))
        mine[columns.index(place)] += layer.costs[scheme].total_cycles
    return columns, cycles


def draw_cycles(phases: Sequence[PassResult], *, narrow: bool = False) -> Figure:
    """Bars of cycles per block, stacked by type of layer; lines show the dense baseline.

    A panel for each pass, in millions of cycles of its dense layers; what lies in no block (the
    output layer) has a scale of its own at the right.
    """
    layers = [layer for phase in phases for layer in phase.layers]
    names = list(dict.fromkeys(group_of(layer) for layer in layers))
    parts = [True, False] if any(layer.block is None for layer in layers) else [True]
    with style.picture(narrow, 2.5 * len(phases) + 0.5) as figure:
        panels = figure.subplots(
            len(phases),
            len(parts),
            squeeze=False,
            width_ratios=[6 if narrow else 12, 1][: len(parts)],
        )
        for row, phase in zip(panels, phases, strict=True):
            for axes, in_block in zip(row, parts, strict=True):
                shown = [layer for layer in phase.layers if (layer.block is not None) == in_block]
                _draw_bars(axes, shown, names, narrow)
            row[0].set_title(phase.name)
            row[0].set_ylabel("million cycles")
            row[0].set_xlabel("block")
        handles: list[Patch | Line2D] = [Patch(**_look(i), label=n) for i, n in enumerate(names)]
        handles.append(Line2D([], [], color=style.INK, linewidth=1.2, label="dense baseline"))
        style.legend(figure, handles, 3 if narrow else 6)
    return figure


def draw_sparsity(phase: PassResult, *, narrow: bool = False) -> Figure:
    """A map of the MSB sparsity of a pass: blocks across, groups of layers down."""
    layers = [layer for layer in phase.layers if layer.block is not None]
    groups = list(dict.fromkeys(group_of(layer) for layer in layers))
    columns = list(dict.fromkeys(_column(layer) for layer in layers))
    values = np.full((len(groups), len(columns)), np.nan)
    for layer in layers:
        values[groups.index(group_of(layer)), columns.index(_column(layer))] = layer.msb_sparsity
    with style.picture(narrow, 0.34 * len(groups) + 1.3) as figure:
        axes = figure.subplots()
        # Vector cells, so that the picture stays sharp; cividis is even to all colour visions.
        mesh = axes.pcolormesh(
            np.arange(len(columns) + 1) - 0.5,
            np.arange(len(groups) + 1) - 0.5,
            values,
            cmap="cividis",
            vmin=0,
            vmax=1,
            edgecolors="none",
        )
        axes.invert_yaxis()
        axes.grid(False)
        axes.spines[:].set_visible(False)
        axes.set_yticks(range(len(groups)), groups)
        _label_columns(axes, columns, narrow)
        axes.set_xlabel("block")
        style.no_ticks(axes, "both")
        bar = figure.colorbar(mesh, ax=axes, location="bottom", aspect=40, shrink=0.6, pad=0.02)
        bar.outline.set_visible(False)
        style.percents(bar.ax.xaxis)
        bar.set_label("share of zero MSB digits")
    return figure


def draw_live_keys(passes: Sequence[PassResult], *, narrow: bool = False) -> Figure:
    """Lines of the share of live keys by attention, one for each pass."""
    with style.picture(narrow, 2.6) as figure:
        axes = figure.subplots()
        handles = []
        for one, (color, marker) in zip(passes, _LINES, strict=False):
            live = [other.cache.live_keys for other in one.others if other.cache is not None]
            look: Any = {"color": color, "marker": marker, "markersize": 3.5, "linewidth": 1.2}
            axes.plot(range(len(live)), live, **look)
            handles.append(Line2D([], [], label=one.name, **look))
        axes.set_ylim(0, 1.05)
        style.percents(axes.yaxis)
        axes.set_xlabel("layer")
        axes.set_ylabel("live keys")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        style.legend(figure, handles, len(handles))
    return figure


_LINES = ((style.BLUE, "o"), (style.VERMILION, "s"))

MOST_LAYERS = 40
"""A picture layer by layer shows no more: those with most cycles."""


def draw_layers(one: PassResult, *, narrow: bool = False) -> Figure:
    """Bars of every dense layer: its MSB sparsity, and its cycles dense (outline) and split."""
    shown = sorted(one.layers, key=lambda each: -each.costs["dense"].total_cycles)[:MOST_LAYERS]
    layers = [each for each in one.layers if each in shown]
    labels = [each.label for each in layers]
    places, width = np.arange(len(layers)), 24 if narrow else 40
    names = [label if len(label) <= width else f"..{label[-width:]}" for label in labels]
    with style.picture(narrow, 0.2 * len(layers) + 1.4) as figure:
        sparsity, cycles = figure.subplots(1, 2, sharey=True)
        sparsity.barh(places, [each.msb_sparsity for each in layers], 0.7, color=style.SKY)
        sparsity.set_xlim(0, 1)
        style.percents(sparsity.xaxis)
        sparsity.set_title("MSB sparsity")
        sparsity.set_yticks(places, names)
        sparsity.invert_yaxis()
        counted = {
            scheme: np.array([each.costs[scheme].total_cycles for each in layers]) / 1e3
            for scheme in ("dense", "sparqle")
        }
        cycles.barh(places, counted["sparqle"], 0.7, color=style.ORANGE)
        cycles.barh(places, counted["dense"], 0.7, fill=False, edgecolor=style.INK, linewidth=0.9)
        cycles.set_title("thousand cycles")
        for axes in (sparsity, cycles):
            axes.grid(False, axis="y")
            style.no_ticks(axes, "y")
        handles = [
            Patch(facecolor=style.ORANGE, label="split"),
            Patch(fill=False, edgecolor=style.INK, label="dense baseline"),
        ]
        style.legend(figure, handles, 2)
    return figure


def _column(layer: Layer) -> str:
    return layer.type if layer.block is None else str(layer.block)


def _look(i: int) -> dict[str, Any]:
    """Colour and hatch of the group `i`."""
    return style.look(_COLORS[i % len(_COLORS)], _HATCHES[i % len(_HATCHES)])


def _draw_bars(axes: Axes, layers: Sequence[Layer], names: Sequence[str], narrow: bool) -> None:
    columns, groups = cycles_by_group(layers, "sparqle")
    dense = np.sum(list(cycles_by_group(layers, "dense")[1].values()), axis=0) / 1e6
    bottom = np.zeros(len(columns))
    for name, cycles in groups.items():
        look = _look(names.index(name))
        axes.bar(range(len(columns)), cycles / 1e6, 0.84, bottom, linewidth=0, **look)
        bottom += cycles / 1e6
    # One step per block, so that blocks of unequal cost do not look joined.
    middle = np.arange(len(columns))
    axes.hlines(dense, middle - 0.5, middle + 0.5, style.INK, linewidth=1.2)
    axes.grid(False, axis="x")
    axes.set_xlim(-0.7, len(columns) - 0.3)
    axes.set_ylim(0, 1.08 * max(dense.max(), bottom.max()))
    style.no_ticks(axes, "x")
    _label_columns(axes, columns, narrow)


def _label_columns(axes: Axes, columns: Sequence[str], narrow: bool) -> None:
    """Name every few of the columns."""
    step = -(-len(columns) // (8 if narrow else 16))
    shown = range(0, len(columns), step)
    axes.set_xticks(shown, [columns[i] for i in shown])
