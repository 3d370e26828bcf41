"""Sweeps and crossings as JSON, both ways: what ``sparqle sweep --json`` writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sparqle_tvm.errors import ResultFileError
from sparqle_tvm.files import plain, typed
from sparqle_tvm.studies.sweep.crossing import BreakEven, Scan
from sparqle_tvm.studies.sweep.execute import require_results
from sparqle_tvm.studies.sweep.figures import quantity
from sparqle_tvm.studies.sweep.pivot import Pivot, pivot
from sparqle_tvm.studies.sweep.points import Point, Sweep
from sparqle_tvm.studies.sweep.table import SweepResult

KIND = "sweep"
KIND_OF_CROSSINGS = "crossings"


def sweep_json(result: SweepResult, out: str, shown: Pivot | None = None) -> dict[str, Any]:
    """All points with their figures, in which file they are, and a pivot if one was asked for."""
    more = {} if shown is None else {"pivot": plain(shown)}
    return {
        "kind": KIND,
        "out": out,
        "names": list(result.sweep.names),
        "points": len(result.results),
        "failed": result.failed,
        "rows": result.rows,
        **more,
    }


@dataclass(frozen=True)
class _Axes:
    """What is read of a pivot; the rest is made of the rows again."""

    rows: str
    cols: str
    quantity: Mapping[str, str]


@dataclass(frozen=True)
class _Content:
    """What is read of a sweep."""

    out: str
    names: tuple[str, ...]
    rows: tuple[dict[str, Any], ...]
    pivot: _Axes | None = None


def read_result(data: Any, where: object) -> tuple[SweepResult, str, Pivot | None]:
    """Read what `sweep_json` gave.

    Raises
    ------
    ResultFileError
        If it is not of that form; names the place.
    """
    content = typed(data, _Content, where, ResultFileError, partial=True)
    names = set(content.names)
    points = tuple({n: v for n, v in row.items() if n in names} for row in content.rows)
    sweep = Sweep(typed(points, tuple[Point, ...], f"{where}, $.rows", ResultFileError))
    results = tuple({n: v for n, v in row.items() if n not in names} for row in content.rows)
    for i, row in enumerate(results):
        require_results(row, f"{where}, $.rows[{i}]", ResultFileError)
    result = SweepResult(sweep, results)
    if content.pivot is None:
        return result, content.out, None
    shown = quantity(content.pivot.quantity.get("name", ""))
    return result, content.out, pivot(result, content.pivot.rows, content.pivot.cols, shown)


def crossings_json(scan: Scan, found: Sequence[BreakEven]) -> dict[str, Any]:
    """What was looked for, and what was found for every point."""
    points = [{**plain(one), "crossings": list(one.crossings)} for one in found]
    return {"kind": KIND_OF_CROSSINGS, **plain(scan), "points": points}


def read_crossings(data: Any, where: object) -> tuple[Scan, tuple[BreakEven, ...]]:
    """Read what `crossings_json` gave; ResultFileError if it is not of that form."""
    scan = typed(data, Scan, where, ResultFileError, partial=True)
    found = typed(
        data.get("points"),
        tuple[BreakEven, ...],
        f"{where}, $.points",
        ResultFileError,
        partial=True,
    )
    if not found:
        raise ResultFileError(f"{where}: there is no point in it")
    return scan, found
