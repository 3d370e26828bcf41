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


def draw_array() -> Any:
    """The array, a PE row, a PE, and the encoder, as `sparqle_tvm.target.rtl` describes them."""
    with style.picture(narrow=False, height_inches=5.4) as figure:
        axes = _canvas(figure, 30, 18)
        small = {"ha": "center", "va": "center", "size": 7.5}

        def block(x: float, y: float, width: float, height: float, text: str, color: str) -> None:
            _box(axes, x, y, width, height, color)
            axes.text(x + width / 2, y + height / 2, text, **small)

        def title(x: float, y: float, text: str, more: str) -> None:
            axes.text(x, y, text, ha="left", va="center", weight="bold")
            axes.text(x, y - 0.7, more, ha="left", va="center", size=7.5, color=style.MUTED)

        title(0.2, 17.4, "Array", "a row takes a token, a column an output channel")
        block(3.2, 14.6, 6.0, 0.9, "weights of 16 columns a step", style.GREEN)
        for row in range(3):
            y = 12.6 - 2.2 * row
            block(0.2, y, 2.4, 1.5, ("planes of\nrow 0", "row 1", "row M - 1")[row], style.SKY)
            _arrow(axes, (2.6, y + 0.75), (3.2, y + 0.75))
            for column in range(3):
                block(3.2 + 2.1 * column, y, 1.8, 1.5, "PE", style.GRID)
        for column in range(3):
            _arrow(axes, (4.1 + 2.1 * column, 14.6), (4.1 + 2.1 * column, 14.1))
        axes.text(6.2, 7.5, "all rows step together;\nin the MSB pass the slowest decides", **small)

        title(11.4, 17.4, "PE row", "control once, for all its PEs")
        block(11.4, 14.2, 3.4, 1.6, "bitmap\nof the tile", style.YELLOW)
        block(15.8, 14.2, 6.0, 1.6, "locate: counts digits,\nsets switches and words", style.ORANGE)
        block(22.8, 14.2, 6.8, 1.6, "digits: LSB as stored,\nMSB decoded, 5 bits signed", style.SKY)
        _arrow(axes, (14.8, 15.0), (15.8, 15.0))
        axes.text(22.5, 12.9, "to all PEs of the row", **small, color=style.MUTED)
        _arrow(axes, (18.8, 14.2), (18.8, 11.4))
        _arrow(axes, (26.2, 14.2), (26.2, 11.4))

        _box(axes, 11.4, 4.9, 18.2, 7.2, "none")
        title(11.8, 11.5, "PE", "")
        block(11.8, 8.6, 2.8, 1.4, "weights\n16 x 4 bits", style.GREEN)
        block(15.4, 9.1, 3.6, 1.9, "4 stages of\nswitches", style.ORANGE)
        block(19.6, 9.1, 3.2, 1.9, "words of kept\nweights", style.ORANGE)
        block(19.4, 6.9, 3.6, 1.5, "LSB pass: these\nMSB pass: a word", style.ORANGE)
        block(23.8, 6.9, 2.6, 4.1, "16\nmultipliers\n5 x 4 bits", style.SKY)
        block(27.0, 8.9, 2.3, 2.1, "adder\ntree", style.GRID)
        block(27.0, 5.9, 2.3, 2.1, "int32\nsums", style.GRID)
        _arrow(axes, (14.6, 9.7), (15.4, 9.9))
        _arrow(axes, (14.6, 9.0), (19.4, 7.6))
        _arrow(axes, (19.0, 10.0), (19.6, 10.0))
        _arrow(axes, (21.2, 9.1), (21.2, 8.4))
        _arrow(axes, (23.0, 7.7), (23.8, 8.0))
        _arrow(axes, (26.4, 9.9), (27.0, 9.9))
        _arrow(axes, (28.1, 8.9), (28.1, 8.0))
        axes.text(17.4, 5.5, "orange: what only split precision needs", **small, color=style.MUTED)

        title(0.2, 4.4, "Encoder", "behind the drain: 16 values a cycle, no wait between rows")
        stages = (
            ("16 int8\nvalues", style.GRID),
            ("minus centre,\ntwo digits", style.SKY),
            ("bits and\ntheir counts", style.YELLOW),
            ("compaction of\nhigh digits", style.ORANGE),
            ("words, pointers,\ncounts of rows", style.ORANGE),
            ("planes\nin memory", style.SKY),
        )
        for place, (text, color) in enumerate(stages):
            x = 0.2 + 5.0 * place
            block(x, 0.9, 4.2, 1.8, text, color)
            if place:
                _arrow(axes, (x - 0.8, 1.8), (x, 1.8))
    return figure


def draw_tile() -> Any:
    """A waveform of a small tile, from the RTL itself."""
    from sparqle_tvm.report.pictures.waveform import draw_waveform
    from sparqle_tvm.target.rtl.shape import ArrayShape
    from sparqle_tvm.target.rtl.trace import trace_tile

    shape = ArrayShape(rows=4, cols=1, lanes=4, columns=16)
    return draw_waveform(trace_tile(shape, numerics.encode(small_tile())))


def small_tile() -> Any:
    """Four rows of 16 activations with 3, 9, 0 and 5 that have a high digit."""
    q = np.ones((4, 16), dtype=np.int8)
    for row, count in enumerate((3, 9, 0, 5)):
        q[row, np.random.default_rng(row).permutation(16)[:count]] = 100
    return q


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
    ("array", "The array, a PE row, a PE and the encoder as hardware", draw_array),
    ("tile", "Waveform of one tile in the array: LSB pass, MSB pass, waiting rows", draw_tile),
)

if __name__ == "__main__":
    for name, _, draw in DRAWINGS:
        style.save_png(draw(), Path(sys.argv[1]) / f"{name}.png")
