"""Energy by component under every scheme."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from sparqle_tvm.report import formats
from sparqle_tvm.report.pictures.style import (
    BLUE,
    GREEN,
    GREY,
    GROUND,
    INK,
    ORANGE,
    PURPLE,
    SCHEME_COLORS,
    SKY,
    VERMILION,
    YELLOW,
    new_figure,
    no_ticks,
    style,
    width,
)
from sparqle_tvm.results.estimate import Estimate
from sparqle_tvm.target.cost.baselines import scheme_title

_LOOKS = {
    "dram": (BLUE, ""),
    "activation_buffer": (SKY, ""),
    "weight_buffer": (SKY, "////"),
    "accumulator_buffer": (SKY, "...."),
    "multiply": (ORANGE, ""),
    "accumulate": (YELLOW, ""),
    "scale": (YELLOW, "////"),
    "sparsity": (VERMILION, ""),
    "vector": (GREEN, ""),
    "static": (GREY, "xxxx"),
}
"""Component -> colour and hatch, in the order they are stacked."""

_OTHER = (PURPLE, "")


def draw_energy(
    estimates: Sequence[Estimate], part: str = "whole_model", *, narrow: bool = False
) -> Figure:
    """Bars of joules, stacked by component, one per scheme; a panel per estimate.

    The line at the end of a bar is the band of what has no published value.

    Parameters
    ----------
    estimates : sequence of Estimate
        Their schemes are drawn in their order.
    part : {"dense_layers", "whole_model"}
        What is counted.
    narrow : bool
        Lay it out for a phone.
    """
    with style():
        figure = new_figure(width(narrow), (0.42 * 4 + 0.7) * len(estimates) + 0.9)
        panels = figure.subplots(len(estimates), 1, squeeze=False)[:, 0]
        seen: dict[str, None] = {}
        for axes, result in zip(panels, estimates, strict=True):
            seen |= dict.fromkeys(_draw_bars(axes, result, part))
        names = [name for name in _LOOKS if name in seen] + [n for n in seen if n not in _LOOKS]
        handles = [Patch(**_look(name), label=name_of(name)) for name in names]
        figure.legend(handles=handles, loc="outside lower center", ncols=2 if narrow else 5)
    return figure


def name_of(component: str) -> str:
    """Name of a component for readers."""
    return "DRAM" if component == "dram" else component.replace("_", " ")


def _draw_bars(axes: Axes, result: Estimate, part: str) -> list[str]:
    """Draw a panel; return the components that are not zero."""
    shown: dict[str, None] = {}
    most = max(found.part(part).energy.joules.high for found in result.schemes.values())
    factor, prefix = formats.prefix_of(most)
    order = [scheme for scheme in SCHEME_COLORS if scheme in result.schemes]
    for y, scheme in enumerate(order):
        breakdown = result.schemes[scheme].part(part).energy
        components = {name: band.mid for name, band in breakdown.components.items()}
        left = 0.0
        for name in sorted(components, key=_rank):
            if components[name]:
                axes.barh(y, components[name], 0.66, left, linewidth=0, **_look(name))
                shown[name] = None
            left += components[name]
        total = breakdown.joules
        ends = [[total.mid - total.low], [total.high - total.mid]]
        axes.errorbar(total.mid, y, xerr=ends, color=INK, linewidth=1, capsize=3)
    axes.set_yticks(range(len(order)), [scheme_title(result.accelerator, s) for s in order])
    axes.invert_yaxis()
    axes.grid(False, axis="y")
    no_ticks(axes, "y")
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / factor:g}")
    axes.set_xlabel(f"{prefix}J")
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_title(result.name)
    return list(shown)


def _look(name: str) -> dict[str, Any]:
    color, hatch = _LOOKS.get(name, _OTHER)
    return {"facecolor": color, "hatch": hatch, "edgecolor": GROUND if color != YELLOW else INK}


def _rank(name: str) -> int:
    return list(_LOOKS).index(name) if name in _LOOKS else len(_LOOKS)
