"""Energy by component under every scheme."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from sparqle_tvm.report import formats
from sparqle_tvm.report.passes import component_name
from sparqle_tvm.report.pictures import style
from sparqle_tvm.results.estimate import Estimate
from sparqle_tvm.target.cost.baselines import scheme_name

_LOOKS = {
    "dram": (style.BLUE, ""),
    "activation_buffer": (style.SKY, ""),
    "weight_buffer": (style.SKY, "////"),
    "accumulator_buffer": (style.SKY, "...."),
    "multiply": (style.ORANGE, ""),
    "accumulate": (style.YELLOW, ""),
    "scale": (style.YELLOW, "////"),
    "sparsity": (style.VERMILION, ""),
    "vector": (style.GREEN, ""),
    "static": (style.GREY, "xxxx"),
}
"""Component -> colour and hatch, in the order they are stacked."""

_OTHER = (style.PURPLE, "")


def draw_energy(estimates: Sequence[Estimate], *, narrow: bool = False) -> Figure:
    """Bars of joules of the whole model by component, one per scheme; a panel per estimate.

    The line at the end of a bar is the band of what has no published value.
    """
    with style.picture(narrow, (0.42 * 4 + 0.7) * len(estimates) + 0.9) as figure:
        panels = figure.subplots(len(estimates), 1, squeeze=False)[:, 0]
        seen: dict[str, None] = {}
        for axes, result in zip(panels, estimates, strict=True):
            seen |= dict.fromkeys(_draw_bars(axes, result))
        names = [name for name in _LOOKS if name in seen] + [n for n in seen if n not in _LOOKS]
        handles = [Patch(**_look(name), label=component_name(name)) for name in names]
        style.legend(figure, handles, 2 if narrow else 5)
    return figure


def _draw_bars(axes: Axes, result: Estimate) -> list[str]:
    """Draw a panel; return the components that are not zero."""
    shown: dict[str, None] = {}
    most = max(found.whole_model.energy.joules.high for found in result.schemes.values())
    factor, prefix = formats.prefix_of(most)
    order = [scheme for scheme in style.SCHEME_COLORS if scheme in result.schemes]
    for y, scheme in enumerate(order):
        breakdown = result.schemes[scheme].whole_model.energy
        components = {name: band.mid for name, band in breakdown.components.items()}
        left = 0.0
        for name in sorted(components, key=_rank):
            if components[name]:
                axes.barh(y, components[name], 0.66, left, linewidth=0, **_look(name))
                shown[name] = None
            left += components[name]
        total = breakdown.joules
        ends = [[total.mid - total.low], [total.high - total.mid]]
        axes.errorbar(total.mid, y, xerr=ends, color=style.INK, linewidth=1, capsize=3)
    axes.set_yticks(range(len(order)), [scheme_name(result.accelerator, s) for s in order])
    axes.invert_yaxis()
    axes.grid(False, axis="y")
    style.no_ticks(axes, "y")
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / factor:g}")
    axes.set_xlabel(f"{prefix}J")
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_title(result.name)
    return list(shown)


def _look(name: str) -> dict[str, Any]:
    color, hatch = _LOOKS.get(name, _OTHER)
    return style.look(color, hatch, style.GROUND if color != style.YELLOW else style.INK)


def _rank(name: str) -> int:
    return list(_LOOKS).index(name) if name in _LOOKS else len(_LOOKS)
