"""The outcome of a sweep on the terminal: what it saves at most, at least, and where."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from sparqle_tvm.studies.sweep.table import SweepResult

SHOWN_ROWS = 12
"""Points that the terminal shows; the file has all."""

_COLUMNS = {
    "sparqle_dense_layers_cycles_reduction": "dense layers\ncycles saved",
    "sparqle_whole_model_seconds": "model\ns",
    "sparqle_whole_model_cycles_reduction": "\nsaved",
    "sparqle_whole_model_joules": "\nJ",
    "sparqle_whole_model_energy_reduction": "\nsaved",
}


def print_sweep(result: SweepResult, out: str, console: Console | None = None) -> None:
    """Print a table of the points (some of them, if there are many) and where all of them are.

    Parameters
    ----------
    result : SweepResult
        The sweep.
    out : str
        The file that holds it.
    console : rich.console.Console, optional
        Where to print; standard output by default.
    """
    console = console or Console()
    good = [row for row in result.rows if "error" not in row]
    varying = [n for n in result.space.names if len({row.get(n) for row in result.rows}) > 1]
    if good:
        console.print(_table(good, varying))
    if result.failed:
        first = next(row["error"] for row in result.rows if "error" in row)
        console.print(f"{result.failed} points have no estimate; the first: {first}")
    console.print(f"{len(result.results)} points in {out}")


def _table(rows: list[dict[str, Any]], varying: list[str]) -> Table:
    tables = sorted({row["energy_table"] for row in rows})
    shown = _spread(rows)
    title = "split precision" if len(shown) == len(rows) else f"{len(shown)} of {len(rows)} points"
    table = Table(title=title, caption=f"energy: {', '.join(tables)}", caption_justify="left")
    for name in varying:
        table.add_column(name.replace("_", " "), overflow="fold")
    for heading in _COLUMNS.values():
        table.add_column(heading, justify="right", no_wrap=True)
    for row in shown:
        table.add_row(
            *(str(row.get(name, "")) for name in varying),
            *(_text(name, row[name]) for name in _COLUMNS),
        )
    return table


def _spread(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All rows, or some evenly spaced ones with the first and the last."""
    if len(rows) <= SHOWN_ROWS:
        return rows
    last = SHOWN_ROWS - 1
    return [rows[i * (len(rows) - 1) // last] for i in range(SHOWN_ROWS)]


def _text(name: str, value: float) -> str:
    if name.endswith("_reduction"):
        return f"{round(value, 3) + 0.0:.1%}"  # no minus before a zero
    return f"{value:.4g}"
