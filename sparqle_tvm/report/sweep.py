"""The outcome of a sweep: pivots of what is saved, every point, and what went wrong."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sparqle_tvm.report import formats
from sparqle_tvm.report.document import (
    Card,
    Column,
    Document,
    Notice,
    Part,
    Picture,
    Section,
    Table,
)
from sparqle_tvm.report.passes import figure, saving
from sparqle_tvm.report.pictures import drawing
from sparqle_tvm.report.pivot import (
    of_model,
    phase_of,
    pivot_section,
    quantity_title,
    shown_fixed,
    shown_point,
    shown_value,
)
from sparqle_tvm.studies.sweep.figures import quantity
from sparqle_tvm.studies.sweep.pivot import pivot
from sparqle_tvm.studies.sweep.points import Point
from sparqle_tvm.studies.sweep.table import SweepResult

SHOWN_ROWS = 12
"""Points that are shown of very many; pages fold the others, the file has all."""
MOST_ROWS = 2 * SHOWN_ROWS
"""Points that are all shown."""
FIGURES = ("time_saved", "energy_saved")
"""What pivots and cards show."""


def sweep_document(result: SweepResult, out: str) -> Document:
    """Pivots over the two names with most values, all points, and in which file they are."""
    good = [row for row in result.rows if "error" not in row]
    names = result.sweep.names
    counts = {n: len({row.get(n) for row in result.rows}) for n in names}
    varying = [n for n in names if counts[n] > 1]
    shared = {n: v for n, v in result.sweep.points[0].items() if n not in varying}
    over = f", over {' and '.join(varying).replace('_', ' ')}" if len(varying) in (1, 2) else ""
    return Document(
        of_model(shared, varying, f"What split precision saves{over}"),
        shown_fixed(shared, varying),
        cards=tuple(_cards(good, varying)),
        sections=(
            *_savings(result, good, varying, counts),
            Section("Points", (*_points(good, varying), *outcome(result, out))),
        ),
        verdict=tuple(_verdict(good, varying, shared)),
    )


def outcome(result: SweepResult, out: str) -> list[Part]:
    """How many points there are, and what went wrong."""
    parts: list[Part] = []
    if result.failed:
        first = next(row["error"] for row in result.rows if "error" in row)
        have = "point has" if result.failed == 1 else "points have"
        parts.append(Notice(f"{result.failed} {have} no estimate; the first: {first}"))
    count = len(result.results)
    where = f" in {out}" if out else "; --out FILE writes all their figures as a table"
    return [*parts, f"{count} point{'s' * (count > 1)}{where}"]


def _verdict(
    rows: Sequence[dict[str, Any]], varying: Sequence[str], shared: Point
) -> Iterator[str]:
    """From where to where what is saved goes."""
    if len(rows) < 2:
        return
    parts = []
    for name in FIGURES:
        saved = [float(row[quantity(name).column]) for row in rows]
        ends = " to ".join(map(formats.percent, (min(saved), max(saved))))
        parts.append(f"{ends} of the {name.removesuffix('_saved')}")
    best = max(rows, key=lambda row: float(row[quantity(FIGURES[0]).column]))
    where = shown_point({n: best[n] for n in varying if n in best})
    names = " and ".join(filter(None, (", ".join(varying[:-1]), varying[-1]))).replace("_", " ")
    over = ", ".join(filter(None, (phase_of(shared, varying), f"over {names}")))
    saves = f"split precision saves {' and '.join(parts)}; most time with {where}."
    yield f"{over[0].upper()}{over[1:]}: {saves}"


def _cards(rows: Sequence[dict[str, Any]], varying: Sequence[str]) -> Iterator[Card]:
    """Where most is saved."""
    for name in FIGURES if len(rows) > 1 else ():
        column, what = quantity(name).column, name.replace("_", " ")
        row = max(rows, key=lambda row: float(row[column]))
        where = shown_point({n: row[n] for n in varying if n in row})
        yield Card(f"Most {what}", formats.percent(row[column]), f"{where}; by formula")


def _savings(
    result: SweepResult,
    good: Sequence[dict[str, Any]],
    varying: Sequence[str],
    counts: dict[str, int],
) -> Iterator[Section]:
    if not good:
        return
    if len(varying) > 1:
        chosen = sorted(varying, key=lambda n: -counts[n])[:2]
        rows, cols = (n for n in varying if n in chosen)
        for name in FIGURES:
            found = pivot(result, rows, cols, quantity(name))
            title = quantity_title(found.quantity)
            yield pivot_section(found, f"{title[0].upper()}{title[1:]}", f"pivot_{name}")
    elif varying:
        (axis,) = varying
        picture = Picture(
            "savings",
            f"What split precision saves of the dense baseline over {axis.replace('_', ' ')}, by "
            "formula.",
            lambda narrow: drawing("pivot").draw_axis(good, axis, narrow=narrow),
        )
        yield Section("Savings", (picture,))


def _points(rows: Sequence[dict[str, Any]], varying: Sequence[str]) -> Iterator[Table]:
    if not rows:
        return
    if len(rows) > MOST_ROWS and len(varying) < 2:
        some = _spread(rows)
        yield _table("some_points", some, varying, f"{len(some)} of {len(rows)} points")
    yield _table("points", rows, varying, "" if len(rows) <= MOST_ROWS else "All points")


def _table(name: str, rows: Sequence[dict[str, Any]], varying: Sequence[str], title: str) -> Table:
    return Table(
        name=name,
        title=title,
        columns=(
            *(Column(name, name.replace("_", " "), shown_value) for name in varying),
            saving("split_dense_layers_time_saved", "dense layers, cycles saved"),
            figure("split_whole_model_seconds", "whole model", formats.seconds),
            saving("split_whole_model_time_saved"),
            figure("split_whole_model_joules", "energy", formats.joules),
            saving("split_whole_model_energy_saved"),
        ),
        rows=tuple(rows),
        note=f"By formula. Energy: {', '.join(sorted({row['energy_table'] for row in rows}))}.",
        folded=len(rows) > MOST_ROWS,
    )


def _spread(rows: Sequence[dict[str, Any]]) -> Sequence[dict[str, Any]]:
    """Some evenly spaced rows with the first and the last."""
    last = SHOWN_ROWS - 1
    return [rows[i * (len(rows) - 1) // last] for i in range(SHOWN_ROWS)]
