"""A roofline (Williams, Waterman and Patterson, CACM 52(4), 2009) with every dense layer on it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from sparqle_tvm.report.pictures import style
from sparqle_tvm.results.passes import Layer, PassResult
from sparqle_tvm.target.accelerator import Accelerator

_DENSE: dict[str, Any] = {
    "label": "dense",
    "marker": "o",
    "color": style.SCHEME_COLORS["dense"],
    "fillstyle": "none",
    "markersize": 6,
}
_SPLIT: dict[str, Any] = {
    "label": "split",
    "marker": "o",
    "color": style.SCHEME_COLORS["sparqle"],
    "markersize": 4,
}

Lines = Sequence[NDArray[np.float64]]
"""Points along what is drawn, (points, 2) each, in MACs per byte and per second."""


@dataclass(frozen=True)
class Point:
    """A dense layer on the roofline: MACs at full precision, per byte of DRAM and per second."""

    macs_per_byte: float
    macs_per_second: float


def points_of(phase: PassResult, scheme: str, accelerator: Accelerator) -> list[Point]:
    """Where the dense layers of a pass lie, in program order."""
    return [
        Point(
            layer.macs / layer.costs[scheme].dram_bytes,
            layer.macs / accelerator.seconds(layer.costs[scheme].total_cycles),
        )
        for layer in phase.layers
    ]


def passes_per_mac(phase: PassResult, accelerator: Accelerator) -> int:
    """Digit products of one dense multiply-accumulate: two digits times the slices of a weight."""
    slices = {-(-layer.weight_bits // accelerator.digit_bits) for layer in phase.layers}
    return 2 * min(slices)


def draw_roofline(
    phases: Sequence[PassResult], accelerator: Accelerator, *, narrow: bool = False
) -> Figure:
    """Draw what the array and the memory allow, and what each layer reaches.

    The upper roof is that of one digit pass: what the split form would reach if every MSB digit
    were zero. The lower is that of two, the dense baseline. A thin line leads from a layer's
    dense form to its split form. Every pass has a panel, cut to where those of its layers lie that
    see all tokens.
    """
    with style.panels(narrow, len(phases), 3.4, 0.4) as (figure, panels):
        for axes, whole in zip(panels, phases, strict=True):
            # Cut to layers that see all tokens: the output layer of a prefill has one row only.
            phase = replace(whole, layers=_whole_rows(whole))
            dense, split = (points_of(phase, s, accelerator) for s in ("dense", "sparqle"))
            axes.set_title(phase.name)
            roofs = _draw_roofs(
                axes, accelerator, dense + split, passes_per_mac(phase, accelerator)
            )
            moves = [(astuple(a), astuple(b)) for a, b in zip(dense, split, strict=True)]
            axes.add_collection(LineCollection(moves, colors=style.GRID, zorder=1), autolim=False)
            for points, look in ((dense, _DENSE), (split, _SPLIT)):
                axes.plot(*zip(*map(astuple, points), strict=True), linestyle="none", **look)
            _name_kinds(axes, phase, split, [*roofs, *(_dotted(*move) for move in moves)])
            axes.set_xlabel("MACs per byte of DRAM traffic")
            axes.set_ylabel("MACs per second")
        handles = [Line2D([], [], linestyle="none", **look) for look in (_DENSE, _SPLIT)]
        style.legend(figure, handles, 2)
    return figure


def _whole_rows(whole: PassResult) -> tuple[Layer, ...]:
    """Layers that see all tokens; all of them if none does."""
    rows = whole.tokens * whole.batch
    return tuple(x for x in whole.layers if x.m == rows) or whole.layers


def _name_kinds(axes: Axes, phase: PassResult, points: Sequence[Point], drawn: Lines) -> None:
    """Write each kind of layer near its points, where least of what is drawn lies below the name.

    Kinds at one place share a name; `drawn` are the lines of the picture.
    """
    kinds: dict[str, list[Point]] = {}
    for layer, point in zip(phase.layers, points, strict=True):
        kinds.setdefault(layer.type, []).append(point)
    to_axes = axes.transData + axes.transAxes.inverted()

    def places(found: Sequence[Point]) -> NDArray[np.float64]:
        return np.asarray(to_axes.transform([astuple(point) for point in found]))

    taken = np.vstack([to_axes.transform(np.vstack(drawn)), np.repeat(places(points), 4, axis=0)])
    names: dict[tuple[float, float], list[str]] = {}
    for kind, found in kinds.items():
        x, y = places(found).mean(axis=0)
        near = (at for at in names if abs(at[0] - x) < 0.02 and abs(at[1] - y) < 0.02)
        names.setdefault(next(near, (float(x), float(y))), []).append(kind)
    for place, these in names.items():
        text = ", ".join(these).replace("_", " ")
        width, height = _LETTER[0] * len(text), _LETTER[1]
        left, bottom = min(
            ((place[0] + dx, place[1] + dy) for dx in _shifts(width) for dy in _SHIFTS_UP),
            key=lambda at: _covered(taken, at, width, height) + 4 * math.dist(at, place),
        )
        taken = np.vstack([taken, _filled(left, bottom, width, height)])
        axes.annotate(
            text,
            place,
            xytext=(left, bottom),
            xycoords="axes fraction",
            textcoords="axes fraction",
            fontsize=8,
            color=style.INK,
        )


_LETTER = (0.019, 0.045)
"""Width and height of a letter of a name, in shares of a panel."""
_SHIFTS_UP = (-0.02, *(sign * k * 0.05 - 0.02 for k in range(1, 6) for sign in (1, -1)))


def _shifts(width: float) -> tuple[float, ...]:
    """Where a name of that width may begin, seen from the middle of its points."""
    return 0.03, 0.06, -0.03 - width, -0.06 - width, -width / 2


def _covered(
    taken: NDArray[np.float64], at: tuple[float, float], width: float, height: float
) -> float:
    """How much lies below a name; very much if it leaves the panel."""
    margin = 0.008
    low, high = np.subtract(at, margin), np.add(at, (width + margin, height + margin))
    if low.min() < 0 or high.max() > 1:
        return math.inf
    return float(((taken >= low) & (taken <= high)).all(axis=1).sum())


def _filled(left: float, bottom: float, width: float, height: float) -> NDArray[np.float64]:
    """Points all over a name that is written."""
    x, y = np.meshgrid(np.linspace(left, left + width, 12), np.linspace(bottom, bottom + height, 4))
    return np.column_stack([x.ravel(), y.ravel()])


def _dotted(begin: tuple[float, float], end: tuple[float, float]) -> NDArray[np.float64]:
    """Points along a line, even on logarithmic axes."""
    return np.geomspace(begin, end, 40)


def _draw_roofs(
    axes: Axes, accelerator: Accelerator, points: Sequence[Point], passes: int
) -> Lines:
    """Draw what memory and array allow; return what is drawn as points of lines."""
    bandwidth = accelerator.dram_bytes_per_second
    one, two = (accelerator.peak_macs_per_second / n for n in (passes / 2, passes))
    low = min(p.macs_per_byte for p in points) / 1.5
    high = 1.5 * max(p.macs_per_byte for p in points)
    bottom = min(p.macs_per_second for p in points) / 1.6
    top = 1.6 * max(max(p.macs_per_second for p in points), min(one, high * bandwidth))
    axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(bottom, top))
    _label(axes, low, high, bottom, top)
    x = np.geomspace(low, high, 200)
    axes.plot(x, np.minimum(x * bandwidth, one), color=style.INK, linewidth=1.4)
    axes.plot(x, np.minimum(x * bandwidth, two), color=style.MUTED, linewidth=1.4, linestyle="--")
    drawn = [np.column_stack([x, np.minimum(x * bandwidth, roof)]) for roof in (one, two)]
    for roof, text in ((one, "one digit pass"), (two, "two passes")):
        if low * bandwidth < roof < top:
            _note(axes, (high, roof), f"{text}, {_si(roof)} ", 3, "right")
            # The words stand above the line, on a third of it.
            drawn.append(_dotted((low * (high / low) ** 0.6, roof * 1.04), (high, roof * 1.04)))
            axes.hlines(roof, low, roof / bandwidth, style.GRID, linewidth=1.2)
    middle = (low * min(high, two / bandwidth)) ** 0.5
    # Above the slope, unless there is no room between it and the axis.
    text, at = f"DRAM {bandwidth / 1e9:g} GB/s", (middle, middle * bandwidth)
    if np.log(middle / low) > 0.4 * np.log(high / low):
        _note(axes, at, f"{text}  ", 6, "right")
    else:
        _note(axes, at, f"  {text}", -12)
    return drawn


def _label(axes: Axes, low: float, high: float, bottom: float, top: float) -> None:
    """Numbers at round places; the logarithmic axes of a short range would have none."""
    xticks, yticks = style.round_ticks(low, high), style.round_ticks(bottom, top)
    axes.set_xticks(xticks, [f"{x:g}" for x in xticks])
    axes.set_yticks(yticks, [_si(y) for y in yticks])
    axes.minorticks_off()


def _note(
    axes: Axes, at: tuple[float, float], text: str, above_points: float, side: str = "left"
) -> None:
    place = (0, above_points)
    axes.annotate(
        text, at, xytext=place, textcoords="offset points", ha=side, fontsize=8, color=style.MUTED
    )


def _si(value: float) -> str:
    """``2.048e12`` -> ``2.05 T``."""
    for factor, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= factor * 0.9995:
            return f"{value / factor:.3g} {unit}"
    return f"{value:g}"
