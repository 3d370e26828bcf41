"""Drawings of the documentation, made by code: the format of a byte, the way through the passes.

Each function returns a figure; `all_drawings` has them as SVG whose colours follow the page, and
``python docs/drawings.py FOLDER`` writes them as PNG.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

from sparqle_tvm import numerics
from sparqle_tvm.report.pictures import style

# A row of activations as a model has them: most are small.
ROW = (3, -5, 0, 37, -2, 6, -8, 1, -100, 4, 7, -1, 2, 5, -3, 90)


def all_drawings() -> Iterator[tuple[str, str]]:
    """Name and SVG of each drawing."""
    for name, description, draw in DRAWINGS:
        yield name, style.to_svg(draw(), name, description)


def draw_planes() -> Any:
    """A row of 16 activations, its two planes and its bitmap, from the encoder itself."""
    values = np.array([ROW], dtype=np.int8)
    sliced = numerics.encode(values, k=4, window="signed")
    bytes_ = (values[0].astype(int) + 8) & 255
    lsb, nibble = bytes_ & 15, bytes_ >> 4
    present = sliced.mask()[0]
    with style.picture(narrow=False, height_inches=3.6) as figure:
        axes = _canvas(figure, 20.4, 8.2)
        for column, value in enumerate(ROW):
            x = column + 3.2
            _cell(axes, x, 6.6, str(value), style.GRID)
            _cell(axes, x, 4.7, f"{lsb[column]:X}", style.SKY)
            _cell(
                axes,
                x,
                3.3,
                "1" if present[column] else "0",
                style.YELLOW if present[column] else "none",
            )
        stored = np.flatnonzero(present)
        for place, column in enumerate(stored):
            _cell(axes, place + 3.2, 1.6, f"{nibble[column]:X}", style.ORANGE)
            _arrow(axes, (column + 3.65, 3.25), (place + 3.65, 2.55))
        for y, title in ((6.6, "int8"), (4.7, "LSB plane"), (3.3, "bitmap"), (1.6, "MSB digits")):
            axes.text(2.9, y + 0.45, title, ha="right", va="center", weight="bold")
        used, plain = sliced.lsb.nbytes + sliced.pbm.nbytes + sliced.msb.nbytes, values.nbytes
        saved = (
            f"{sliced.msb_sparsity:.0%} of the high digits are 0: {used} bytes instead of {plain}"
        )
        axes.text(3.2, 0.5, saved, ha="left", va="center", color=style.INK)
        axes.text(
            19.2,
            5.15,
            "every low digit,\n4 bits",
            ha="left",
            va="center",
            size=7.5,
            color=style.MUTED,
        )
        axes.text(
            19.2,
            3.75,
            "1: a high digit\nis stored",
            ha="left",
            va="center",
            size=7.5,
            color=style.MUTED,
        )
        axes.text(
            6.6, 2.05, "only those that are not 0, packed", ha="left", va="center", size=7.5,
            color=style.MUTED,
        )  # fmt: skip
    return figure


STAGES: Sequence[tuple[str, str, str]] = (
    ("import", "q x scale, QDQ, groups\nbecome integer ops", "LowerQDQ"),
    ("split", "encode + split_dense", "SplitPrecision\nFuseQuantize\nShareEncodings"),
    ("choose", "windows, factors,\nsorted rows", "ChooseWindow\nRaiseMsbSparsity\nBalanceRows"),
    ("drain", "outputs leave\nencoded", "DrainEncoded"),
    ("offload", "joint ops, schedules,\nprograms", "JoinDense\nOffloadDense\nOffloadAttention"),
    ("lower", "what is left,\nfor a CPU", "LegalizeHost"),
)


def draw_pipeline() -> Any:
    """The way of a layer through the phases of the pipeline."""
    with style.picture(narrow=False, height_inches=2.2) as figure:
        axes = _canvas(figure, 24.6, 6.1)
        for index, (phase, what, passes) in enumerate(STAGES):
            x = index * 4.1 + 0.2
            _box(axes, x, 3.1, 3.5, 2.7, style.SKY if phase != "lower" else style.GRID)
            axes.text(x + 1.75, 5.2, phase, ha="center", va="center", weight="bold")
            axes.text(x + 1.75, 4.1, what, ha="center", va="center", size=7.5)
            axes.text(x + 1.75, 2.6, passes, ha="center", va="top", size=7, color=style.MUTED)
            if index:
                _arrow(axes, (x - 0.6, 4.45), (x, 4.45))
    return figure


def _canvas(figure: Any, width: float, height: float) -> Any:
    axes = figure.add_subplot()
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.set_axis_off()
    return axes


def _cell(axes: Any, x: float, y: float, text: str, color: str) -> None:
    alpha = 0.45 if color != "none" else 1
    axes.add_patch(Rectangle((x, y), 0.9, 0.9, facecolor=color, alpha=alpha, edgecolor="none"))
    axes.add_patch(Rectangle((x, y), 0.9, 0.9, facecolor="none", edgecolor=style.MUTED, lw=0.7))
    axes.text(x + 0.45, y + 0.43, text, ha="center", va="center", size=8)


def _box(axes: Any, x: float, y: float, width: float, height: float, color: str) -> None:
    shape = {"boxstyle": "round,pad=0,rounding_size=0.25", "mutation_aspect": 1}
    axes.add_patch(
        FancyBboxPatch((x, y), width, height, facecolor=color, alpha=0.3, edgecolor="none", **shape)
    )
    axes.add_patch(
        FancyBboxPatch(
            (x, y), width, height, facecolor="none", edgecolor=style.MUTED, lw=0.8, **shape
        )
    )


def _arrow(axes: Any, start: tuple[float, float], end: tuple[float, float]) -> None:
    axes.add_patch(
        FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=8, color=style.MUTED, lw=0.9)
    )


DRAWINGS = (
    ("planes", "A row of int8 values as low digits, bitmap and stored high digits", draw_planes),
    ("pipeline", "The phases of the pipeline with their passes", draw_pipeline),
)

if __name__ == "__main__":
    for name, _, draw in DRAWINGS:
        style.save_png(draw(), Path(sys.argv[1]) / f"{name}.png")
