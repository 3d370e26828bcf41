"""How many of the paper's figures are reached, over arrays and bandwidths."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from sparqle_tvm.report.paper import MODELS, RANGES
from sparqle_tvm.report.paper_map import ARRAYS, BYTES_PER_1024_MACS, PaperMap
from sparqle_tvm.report.pictures import style
from sparqle_tvm.results.passes import PARTS

_ON_DARK, _ON_LIGHT = "#fcfcfc", "#101010"


def draw_paper_map(found: PaperMap, *, narrow: bool = False) -> Figure:
    """A panel for each part of the model: figures that the closest machine of a cell reaches.

    Below the number stands the mean of what is missing, in points of a percent.
    """
    most = len(RANGES) * len(MODELS)
    with style.panels(narrow, len(PARTS), 3.0, 0.3) as (figure, panels):
        for axes, (part, name) in zip(panels, reversed(PARTS.items()), strict=True):
            counts = np.full((len(ARRAYS), len(BYTES_PER_1024_MACS)), np.nan)
            for place in found.best[part]:
                row = ARRAYS.index(place.machine.array)
                col = BYTES_PER_1024_MACS.index(int(place.machine.bytes_per_1024_macs))
                counts[row, col] = place.reached(part)
                ink = _ON_LIGHT if counts[row, col] > 0.55 * most else _ON_DARK
                text = f"{counts[row, col]:.0f}\n{100 * place.distance(part):.1f}"
                axes.text(col, row, text, ha="center", va="center", color=ink, fontsize=8)
            mesh = axes.pcolormesh(
                np.arange(len(BYTES_PER_1024_MACS) + 1) - 0.5,
                np.arange(len(ARRAYS) + 1) - 0.5,
                np.ma.masked_invalid(counts),
                cmap="cividis",
                vmin=0,
                vmax=most,
                edgecolors="none",
            )
            axes.invert_yaxis()
            axes.grid(False)
            axes.spines[:].set_visible(False)
            axes.set_yticks(range(len(ARRAYS)), [" x ".join(map(str, a)) for a in ARRAYS])
            axes.set_xticks(
                range(len(BYTES_PER_1024_MACS)), [f"{x:g}" for x in BYTES_PER_1024_MACS]
            )
            style.no_ticks(axes, "both")
            axes.set_xlabel("bytes per cycle for 1,024 products")
            axes.set_title(name)
        bar = figure.colorbar(mesh, ax=panels, location="bottom", aspect=40, shrink=0.6, pad=0.02)
        bar.outline.set_visible(False)
        bar.set_label(f"figures of the paper that are reached, of {most}; below: points missing")
    return figure
