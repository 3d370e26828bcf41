"""Colours, fonts and the way from a figure to a PNG file or to SVG inside a page.

The colours are Okabe and Ito's (2008), which people with any colour vision tell apart; marks,
hatches and outlines repeat what they say, so that pictures can be read in grey. Inside a page every
colour becomes a CSS variable (see `CSS_NAMES`), so one picture serves a light and a dark page.
"""

from __future__ import annotations

import io
import math
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from sparqle_tvm.escaping import for_html
from sparqle_tvm.files import replacing

INK = "#1b1f24"
MUTED = "#5b6470"
GRID = "#d9dde3"
BLUE = "#0072b2"
SKY = "#56b4e9"
ORANGE = "#e69f00"
VERMILION = "#d55e00"
GREEN = "#009e73"
PURPLE = "#cc79a7"
YELLOW = "#f0e442"
GREY = "#8a929c"
GROUND = "#fefefe"

CSS_NAMES = {
    INK: "ink",
    MUTED: "muted",
    GRID: "grid",
    BLUE: "blue",
    SKY: "sky",
    ORANGE: "orange",
    VERMILION: "vermilion",
    GREEN: "green",
    PURPLE: "purple",
    YELLOW: "yellow",
    GREY: "grey",
    GROUND: "ground",
}
"""Colour -> name of its CSS variable, without the leading dashes."""

SCHEME_COLORS = {"dense": GREY, "sparqle": BLUE, "native": ORANGE, "a4": GREEN}

NARROW_INCHES = 4.2
WIDE_INCHES = 9.0
_FONTS = ["DejaVu Sans", "Verdana", "sans-serif"]
_STYLE: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": _FONTS,
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "hatch.linewidth": 0.8,
    "legend.handlelength": 1.6,
    "svg.fonttype": "none",
    # A name with dollar signs is no formula.
    "text.parse_math": False,
}


@contextmanager
def picture(narrow: bool, height_inches: float) -> Iterator[Figure]:
    """A figure for a phone or for a screen, drawn in the ``with`` block as this module says.

    Its parts keep out of each other's way. It is white, for notebooks; inside a page (`to_svg`) it
    has the ground of the page.
    """
    size = (NARROW_INCHES if narrow else WIDE_INCHES, height_inches)
    with matplotlib.rc_context(_STYLE):
        yield Figure(figsize=size, layout="constrained", facecolor="white")


@contextmanager
def panels(
    narrow: bool, count: int, panel_inches: float, legend_inches: float
) -> Iterator[tuple[Figure, list[Axes]]]:
    """A `picture` with panels of a height side by side, on a phone below each other."""
    grid = (count, 1) if narrow else (1, count)
    with picture(narrow, panel_inches * grid[0] + legend_inches) as figure:
        yield figure, list(figure.subplots(*grid, squeeze=False).ravel())


def legend(figure: Figure, handles: Sequence[Artist], columns: int) -> None:
    """Set a legend below everything."""
    figure.legend(handles=handles, loc="outside lower center", ncols=columns)


def look(color: str, hatch: str, edge: str = GROUND) -> dict[str, Any]:
    """Colour and hatch of a bar, and of what the legend shows for it."""
    return {"facecolor": color, "hatch": hatch, "edgecolor": edge}


def percents(axis: Axis) -> None:
    """Write the numbers of an axis as percentages, with as many digits as tell them apart."""
    axis.set_major_formatter(PercentFormatter(1.0))


def no_ticks(axes: Axes, which: str) -> None:
    """Take the little lines of an axis away, its numbers stay."""
    axes.tick_params(axis=which, length=0)  # type: ignore[arg-type]


def round_ticks(low: float, high: float) -> list[float]:
    """Round numbers between two positive limits, about even on a logarithmic axis."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1,), (1, 2, 5), (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8)):
        ticks = [digit * 10.0**e for e in exponents for digit in digits]
        shown = [tick for tick in ticks if low <= tick <= high]
        if len(shown) >= 3:
            break
    return shown


def save_png(figure: Figure, path: str | os.PathLike[str], *, dpi: int = 144) -> None:
    """Write a figure on white as PNG, whole or not at all, the same bytes every time.

    Raises
    ------
    InvalidArgumentError
        If the file cannot be written.
    """
    with replacing(path) as temporary, matplotlib.rc_context(_STYLE):
        _settle(figure)
        figure.savefig(temporary, format="png", dpi=dpi, metadata={"Software": None})


def to_svg(figure: Figure, name: str, description: str) -> str:
    """Turn a figure into an ``<svg>`` element to stand inside a page.

    Colours become CSS variables, ids begin with `name` (letters, digits and dashes, different for
    every picture of a page), and the element scales with the page. The text stays text; the
    description is for those who cannot see the picture.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):
        _settle(figure)
        figure.savefig(
            buffer, format="svg", facecolor="none", metadata={"Date": None, "Creator": None}
        )
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.S)
    # This rule would hold for the whole page.
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>\s*", "", text, count=1, flags=re.S)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'((?:href="|url\())#', rf"\g<1>#{name}-", text)
    for color, css in CSS_NAMES.items():
        text = re.sub(color, f"var(--{css})", text, flags=re.I)
    text = re.sub(r'<svg ([^>]*?)width="[^"]*" height="[^"]*"', r"<svg \1", text, count=1)
    text = re.sub(r'height="[\d.]+pt" |width="[\d.]+pt" ', "", text, count=2)
    label = for_html(description)
    return text.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1).strip()


def _settle(figure: Figure) -> None:
    """Lay a figure out once; saving it would do so twice, and draw it twice for that."""
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)
        figure.set_layout_engine("none")
