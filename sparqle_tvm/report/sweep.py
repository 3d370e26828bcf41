"""The outcome of a sweep: what is saved at some of its points, and what went wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sparqle_tvm.report import formats
from sparqle_tvm.report.document import Column, Document, Notice, Part, Section, Table
from sparqle_tvm.report.passes import figure, saving
from sparqle_tvm.studies.sweep.table import SweepResult

SHOWN_ROWS = 12
"""Points that are shown; the file has all."""


def sweep_document(result: SweepResult, out: str) -> Document:
    """A table of the points (some of them, if there are many), and in which file all are."""
    good = [row for row in result.rows if "error" not in row]
    varying = [n for n in result.sweep.names if len({row.get(n) for row in result.rows}) > 1]
    parts: list[Part] = [_table(good, varying)] if good else []
    parts += outcome(result, out)
    return Document("What split precision saves", "", sections=(Section("Points", parts),))


def outcome(result: SweepResult, out: str) -> list[Part]:
    """How many points there are, and what went wrong."""
    parts: list[Part] = []
    if result.failed:
        first = next(row["error"] for row in result.rows if "error" in row)
        parts.append(Notice(f"{result.failed} points have no estimate; the first: {first}"))
    return [*parts, f"{len(result.results)} points in {out}"]


def _table(rows: list[dict[str, Any]], varying: list[str]) -> Table:
    shown = _spread(rows)
    return Table(
        name="points",
        title="" if len(shown) == len(rows) else f"{len(shown)} of {len(rows)} points",
        columns=(
            *(Column(name, name.replace("_", " ")) for name in varying),
            saving("sparqle_dense_layers_cycles_reduction", "dense layers, cycles saved"),
            figure("sparqle_whole_model_seconds", "whole model", formats.seconds),
            saving("sparqle_whole_model_cycles_reduction"),
            figure("sparqle_whole_model_joules", "energy", formats.joules),
            saving("sparqle_whole_model_energy_reduction"),
        ),
        rows=tuple(shown),
        note=f"Energy: {', '.join(sorted({row['energy_table'] for row in rows}))}.",
    )


def _spread(rows: Sequence[dict[str, Any]]) -> Sequence[dict[str, Any]]:
    """All rows, or some evenly spaced ones with the first and the last."""
    if len(rows) <= SHOWN_ROWS:
        return rows
    last = SHOWN_ROWS - 1
    return [rows[i * (len(rows) - 1) // last] for i in range(SHOWN_ROWS)]
