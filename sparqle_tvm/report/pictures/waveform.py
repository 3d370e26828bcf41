"""A waveform of one tile in the array: LSB pass, MSB pass, and rows that wait."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.patches import Patch
from numpy.typing import NDArray

from sparqle_tvm.report.pictures import style

if TYPE_CHECKING:
    from sparqle_tvm.target.rtl.trace import TileTrace

_LSB, _MSB, _WAIT = (style.SKY, ""), (style.ORANGE, ""), (style.GRID, "////")


def draw_waveform(trace: TileTrace, *, narrow: bool = False) -> Any:
    """Signals of the control above, what every PE row does in each cycle below."""
    cycles, rows = len(trace.start), len(trace.waiting)
    signals = {
        "start": trace.start,
        "ready": trace.ready,
        "LSB step": trace.dense,
        "MSB step": trace.sparse,
    }
    height = len(signals) + rows
    with style.picture(narrow=narrow, height_inches=0.7 + 0.3 * height) as figure:
        axes = figure.add_subplot()
        for place, (_, signal) in enumerate(signals.items()):
            _wave(axes, height - 1 - place, signal)
        for row in range(rows):
            y = rows - 1 - row
            for cycle in range(cycles):
                if trace.dense[cycle]:
                    color, hatch = _LSB
                elif trace.sparse[cycle]:
                    color, hatch = _WAIT if trace.waiting[row, cycle] else _MSB
                else:
                    continue
                axes.bar(cycle + 0.5, 0.7, 1.0, bottom=y + 0.15, lw=0.7, **style.look(color, hatch))
                if not (trace.sparse[cycle] and trace.waiting[row, cycle]):
                    axes.text(cycle + 0.5, y + 0.5, f"{trace.step[cycle]}", ha="center",
                              va="center", size=7.5, color=style.INK)  # fmt: skip
        names = [*signals, *(f"row {r}: {n} digits" for r, n in enumerate(trace.digits))]
        axes.set_yticks([height - 0.5 - i for i in range(height)], names)
        axes.set(xlim=(0, cycles), ylim=(0, height), xlabel="cycle")
        axes.set_xticks(range(cycles + 1))
        axes.grid(visible=False, axis="y")
        style.no_ticks(axes, "y")
        looks = (("LSB pass", _LSB), ("MSB pass", _MSB), ("waits for the slowest row", _WAIT))
        handles = [Patch(label=name, **style.look(*look)) for name, look in looks]
        style.legend(figure, handles, 2 if narrow else 3)
    return figure


def _wave(axes: Any, y: int, signal: NDArray[np.bool_]) -> None:
    level = np.repeat(signal.astype(float), 2) * 0.6 + y + 0.2
    at = np.repeat(np.arange(len(signal) + 1), 2)[1:-1]
    axes.plot(at, level, color=style.INK, lw=1.2)
