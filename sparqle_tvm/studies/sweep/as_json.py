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
class PivotAxes:
    """What is read of a pivot; the rest is made of the rows again.

    Attributes
    ----------
    rows, cols : str
        Names of the sweep.
    quantity : mapping of str to str
        ``name`` and ``column`` of the figure.
    """

    rows: str
    cols: str
    quantity: Mapping[str, str]


@dataclass(frozen=True)
class SweepContent:
    """All points of a sweep with their figures.

    Attributes
    ----------
    out : str
        The file of the table.
    names : tuple of str
        What the points say: parameters of `studies.estimate.estimate`, fields of the accelerator.
    rows : tuple of dict
        For every point its names and figures, as `studies.sweep.evaluate_point` gives them, or
        ``error``.
    pivot : PivotAxes, optional
        The pivot that was asked for.
    """

    out: str
    names: tuple[str, ...]
    rows: tuple[dict[str, Any], ...]
    pivot: PivotAxes | None = None


@dataclass(frozen=True, kw_only=True)
class CrossingsContent(Scan):
    """What was looked for, and what was found.

    Attributes
    ----------
    points : tuple of BreakEven
        For every point of the sweep.
    """

    points: tuple[BreakEven, ...]


def read_result(data: Any, where: object) -> tuple[SweepResult, str, Pivot | None]:
    """Read what `sweep_json` gave.

    Raises
    ------
    ResultFileError
        If it is not of that form; names the place.
    """
    content = typed(data, SweepContent, where, ResultFileError, partial=True)
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
    content = typed(data, CrossingsContent, where, ResultFileError, partial=True)
    if not content.points:
        raise ResultFileError(f"{where}: there is no point in it")
    return Scan(content.quantity, content.level, content.over, content.values), content.points
