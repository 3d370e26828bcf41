"""A figure of a sweep over two of its names: rows and columns instead of a list."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sparqle_tvm.errors import InvalidArgumentError
from sparqle_tvm.studies.sweep.figures import Quantity
from sparqle_tvm.studies.sweep.points import Point, Value
from sparqle_tvm.studies.sweep.table import SweepResult


@dataclass(frozen=True)
class Panel:
    """The cells that share everything but their row and column.

    Attributes
    ----------
    point : mapping
        What they share of the names that differ within the sweep.
    values : tuple of tuple of float or None
        Row by row; None where the sweep has no such point, or no estimate of it.
    """

    point: Point
    values: tuple[tuple[float | None, ...], ...]


@dataclass(frozen=True)
class Pivot:
    """A figure over two names of a sweep.

    Attributes
    ----------
    rows, cols : str
        The names.
    quantity : Quantity
        The figure.
    row_values, col_values : tuple
        Their values, in the order of the sweep.
    fixed : mapping
        What all points share.
    panels : tuple of Panel
        One for each combination of the other names.
    """

    rows: str
    cols: str
    quantity: Quantity
    row_values: tuple[Value, ...]
    col_values: tuple[Value, ...]
    fixed: Point
    panels: tuple[Panel, ...]


def require_axes(names: tuple[str, ...], rows: str, cols: str) -> None:
    """Refuse a pivot that a sweep of these names cannot have.

    Raises
    ------
    InvalidArgumentError
        If a name is none of the sweep's, or both are the same.
    """
    for name in (rows, cols):
        if name not in names:
            raise InvalidArgumentError(
                f"pivot: {name!r} is no name of this sweep; it has {', '.join(names)}"
            )
    if rows == cols:
        raise InvalidArgumentError(f"pivot: rows and columns are both {rows!r}")


def pivot(result: SweepResult, rows: str, cols: str, quantity: Quantity) -> Pivot:
    """Arrange a figure of a finished sweep.

    Parameters
    ----------
    result : SweepResult
        The sweep.
    rows, cols : str
        Names of it.
    quantity : Quantity
        What the cells are.

    Raises
    ------
    InvalidArgumentError
        As `require_axes`.
    """
    points, names = result.sweep.points, result.sweep.names
    require_axes(names, rows, cols)
    values = {name: tuple(dict.fromkeys(p[name] for p in points if name in p)) for name in names}
    alone = {
        name: found[0]
        for name, found in values.items()
        if name not in (rows, cols) and len(found) == 1 and all(name in p for p in points)
    }
    cells: dict[tuple[tuple[str, Value], ...], dict[tuple[Value, Value], float | None]] = {}
    for point, figures in zip(points, result.results, strict=True):
        if rows in point and cols in point:
            shared = {n: v for n, v in point.items() if n not in (rows, cols, *alone)}
            panel = cells.setdefault(tuple(shared.items()), {})
            panel[point[rows], point[cols]] = figures.get(quantity.column)
    return Pivot(
        rows=rows,
        cols=cols,
        quantity=quantity,
        row_values=values[rows],
        col_values=values[cols],
        fixed=alone,
        panels=tuple(
            Panel(dict(shared), _table(found, values[rows], values[cols]))
            for shared, found in cells.items()
        ),
    )


def _table(
    cells: Mapping[tuple[Value, Value], float | None],
    rows: tuple[Value, ...],
    cols: tuple[Value, ...],
) -> tuple[tuple[float | None, ...], ...]:
    return tuple(tuple(cells.get((row, col)) for col in cols) for row in rows)
