"""A figure over two names of a sweep, and where it reaches a level: tables and pictures."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from operator import itemgetter
from pathlib import Path

from sparqle_tvm.models.shapes import MODELS
from sparqle_tvm.report import formats
from sparqle_tvm.report.document import Column, Document, Notice, Part, Picture, Section, Table
from sparqle_tvm.report.passes import Row, figure
from sparqle_tvm.report.pictures import drawing
from sparqle_tvm.studies.sweep.crossing import BreakEven, Range, Scan
from sparqle_tvm.studies.sweep.figures import Quantity
from sparqle_tvm.studies.sweep.pivot import Pivot
from sparqle_tvm.studies.sweep.points import DEFAULTS, Value

_SHOWN: Mapping[str, Callable[[float], str]] = {
    "share": formats.percent,
    "seconds": formats.seconds,
    "joules": formats.joules,
    "bytes": formats.nbytes,
    "cycles": formats.grouped,
}


def shown_value(value: object) -> str:
    """A value of a field, short: ``1048576`` -> ``1,048,576``."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:,.6g}" if value != int(value) else f"{int(value):,}"
    return str(value)


def shown_figure(quantity: Quantity) -> Callable[[float], str]:
    """How a figure is written."""
    return _SHOWN[quantity.unit]


def shown_point(point: Mapping[str, Value]) -> str:
    """``seq = 2,048, batch = 8``."""
    return ", ".join(f"{name} = {shown_value(value)}" for name, value in point.items())


def of_model(shared: Mapping[str, Value], varying: Collection[str], title: str) -> str:
    """A title that begins with the model, if all points share it."""
    if "model" in varying:
        return title
    model = str({**DEFAULTS, **shared}["model"])
    path = Path(model).resolve()
    own = path.parent.name if path.name == "config.json" else path.stem
    return f"{MODELS[model].name if model in MODELS else own}: {title[0].lower()}{title[1:]}"


def phase_of(shared: Mapping[str, Value], varying: Collection[str] = ()) -> str:
    """``Decode``: the phase that points share, with which a sentence begins; or nothing."""
    return "" if "phase" in varying else str({**DEFAULTS, **shared}["phase"]).capitalize()


def quantity_title(quantity: Quantity) -> str:
    """``time saved, whole model``."""
    part = "dense layers" if "dense_layers" in quantity.column else "whole model"
    name = quantity.name.removeprefix("dense_layers_").replace("_", " ")
    return name if quantity.name == quantity.column else f"{name}, {part}"


def pivot_document(found: Pivot, notes: Sequence[Part] = ()) -> Document:
    """A table of every panel, and a heat map of all."""
    return Document(
        of_model(found.fixed, _varying(found), _pivot_title(found)),
        shown_fixed(found.fixed, _varying(found)),
        sections=(pivot_section(found, "Table and heat map", "pivot", notes),),
        verdict=tuple(_range_of(found)),
    )


def _range_of(found: Pivot) -> Iterator[str]:
    """From where to where the figure goes."""
    cells = [
        (value, {**panel.point, found.rows: row, found.cols: col})
        for panel in found.panels
        for row, values in zip(found.row_values, panel.values, strict=True)
        for col, value in zip(found.col_values, values, strict=True)
        if value is not None
    ]
    if cells:
        show = shown_figure(found.quantity)
        ends = (min(cells, key=itemgetter(0)), max(cells, key=itemgetter(0)))
        low, high = (f"{show(value)} with {shown_point(point)}" for value, point in ends)
        over = f"over {found.rows} and {found.cols}".replace("_", " ")
        about = ", ".join(filter(None, (phase_of(found.fixed, _varying(found)), over)))
        yield f"{about[0].upper()}{about[1:]}: {quantity_title(found.quantity)}, {low}, to {high}."


def pivot_section(found: Pivot, title: str, name: str, notes: Sequence[Part] = ()) -> Section:
    """A heat map of all panels and a table of each; `name` is that of the picture and the table."""
    values = [v for panel in found.panels for row in panel.values for v in row if v is not None]
    parted = found.quantity.unit == "share" and any(v > 0 for v in values) and min(values) <= 0
    line = " The line parts gain from loss." if parted else ""
    picture = Picture(
        name.replace("_", "-"),
        f"{_pivot_title(found)}, by formula. {shown_fixed(found.fixed, _varying(found))}{line}",
        lambda narrow: drawing("pivot").draw_pivot(found, narrow=narrow),
    )
    tables = [_panel_table(found, i, name) for i in range(len(found.panels))]
    return Section(title, (picture, *tables, *notes))


def _pivot_title(found: Pivot) -> str:
    title = f"{quantity_title(found.quantity)}, over {found.rows} and {found.cols}"
    return title[0].upper() + title[1:].replace("_", " ")


def _varying(found: Pivot) -> set[str]:
    return {found.rows, found.cols, *(name for panel in found.panels for name in panel.point)}


def shown_fixed(fixed: Mapping[str, Value], varying: Collection[str]) -> str:
    """What all points share, defaults too, as a sentence."""
    shared = {name: value for name, value in {**DEFAULTS, **fixed}.items() if name not in varying}
    return f"{shown_point(shared)}."


def _panel_table(found: Pivot, which: int, name: str) -> Table:
    panel, name = found.panels[which], name if len(found.panels) == 1 else f"{name}_{which + 1}"
    show = shown_figure(found.quantity)
    titles = [shown_value(value) for value in found.col_values]
    return Table(
        name=name,
        title=shown_point(panel.point),
        columns=(
            Column(found.rows, f"{found.rows} \\ {found.cols}".replace("_", " "), shown_value),
            *(
                figure(f"{found.cols}={value}", title, show, missing="-")
                for value, title in zip(found.col_values, titles, strict=True)
            ),
        ),
        rows=tuple(
            {
                found.rows: row_value,
                **{f"{found.cols}={c}": v for c, v in zip(found.col_values, values, strict=True)},
            }
            for row_value, values in zip(found.row_values, panel.values, strict=True)
        ),
        note="-: no estimate." if any(None in values for values in panel.values) else "",
        repeated=1,
    )


def crossing_document(scan: Scan, found: Sequence[BreakEven]) -> Document:
    """A row for every point, and pictures of the figure and of the crossover."""
    names = [name for name in _names(found) if len({one.point.get(name) for one in found}) > 1]
    shared = {n: v for n, v in found[0].point.items() if n not in names}
    fixed = shown_fixed(shared, {*names, scan.over})
    level = shown_figure(scan.quantity)(scan.level)
    better = "at least" if scan.quantity.more_is_better else "at most"
    what = quantity_title(scan.quantity).capitalize()
    parts: list[Part] = [
        Picture(
            "crossing",
            f"{what} over {_over(scan)}: {fixed} Small dots: estimates; between two of them the "
            f"figure may jump, as tiles and groups of rows do. Marks: the outermost values that "
            f"reach {level}; where it jumps, a mark is beyond the level.",
            lambda narrow: drawing("pivot").draw_scan(scan, found, names, narrow=narrow),
        ),
        _crossing_table(scan, found, names),
    ]
    if any(len(one.crossings) > 1 for one in found):
        parts.append(
            Notice(
                "More than one crossing: tiles change with the field, so the figure is no smooth "
                "function of it. Two crossings between neighbours of the scan are not seen."
            )
        )
    errors = dict.fromkeys(one.error for one in found if one.error)
    parts += [f"Without an estimate: {error}" for error in errors]
    return Document(
        of_model(shared, {*names, scan.over}, f"{what}: {better} {level}, over {_over(scan)}"),
        fixed,
        sections=(Section("Break-even", tuple(parts)),),
        verdict=tuple(_verdict(scan, found, names)),
    )


MOST_SENTENCES = 4
"""Points that a verdict names; the table has all."""


def _verdict(scan: Scan, found: Sequence[BreakEven], names: Sequence[str]) -> Iterator[str]:
    """Where the level is reached, point by point."""
    what = quantity_title(scan.quantity).replace(", ", " in the ")
    level = shown_figure(scan.quantity)(scan.level)
    least = f"{'at least' if scan.quantity.more_is_better else 'at most'} {level}"
    for one in found[:MOST_SENTENCES]:
        values = [value for value, _ in one.scanned]
        if values:
            named = {n: one.point[n] for n in names if n in one.point and n != "phase"}
            point = shown_point(named)
            begin = f"{', '.join(filter(None, (phase_of(one.point), point)))}: {what}"
            looked = f"from {shown_value(min(values))} to {shown_value(max(values))}"
            if one.ranges:
                where = f"with {_over(scan)} {_reached(scan, one)}, looked for {looked}"
                yield f"{begin} is {least} {where}."
            else:
                yield f"{begin} is nowhere {least} with {_over(scan)} {looked}."


def _over(scan: Scan) -> str:
    return scan.over.replace("_", " ")


def _names(found: Sequence[BreakEven]) -> list[str]:
    return list(dict.fromkeys(name for one in found for name in one.point))


def _crossing_table(scan: Scan, found: Sequence[BreakEven], names: Sequence[str]) -> Table:
    show = shown_figure(scan.quantity)
    return Table(
        name="crossings",
        title="",
        columns=(
            *(Column(name, name.replace("_", " "), shown_value) for name in names),
            Column("reached", f"reached with {_over(scan)}"),
            figure("crossings", "crossings", str),
            figure("lowest", "lowest", show),
            figure("highest", "highest", show),
        ),
        rows=tuple(_crossing_row(scan, one) for one in found),
        note=_scan_note(found),
    )


def _scan_note(found: Sequence[BreakEven]) -> str:
    fields = [value for one in found for value, _ in one.scanned]
    if not fields:
        return ""
    return (
        f"Looked for from {shown_value(min(fields))} to {shown_value(max(fields))}; lowest and "
        "highest are those of the figure there."
    )


def _crossing_row(scan: Scan, one: BreakEven) -> Row:
    values = [value for _, value in one.scanned]
    return {
        **one.point,
        "reached": _reached(scan, one),
        "crossings": len(one.crossings),
        "lowest": min(values, default=None),
        "highest": max(values, default=None),
    }


def _reached(scan: Scan, one: BreakEven) -> str:
    nowhere = "nowhere" if one.scanned else "no estimate"
    return ", ".join(map(partial(_shown_range, scan), one.ranges)) or nowhere


def _shown_range(scan: Scan, found: Range) -> str:
    first, last = (_end(scan, value) for value in (found.first, found.last))
    if not found.opens and not found.closes:
        return "everywhere"
    if not found.closes:
        return f"{first} and more"
    return f"{first} to {last}" if found.opens else f"up to {last}"


def _end(scan: Scan, value: float) -> str:
    return shown_value(value) if scan.whole else f"{value:,.4g}"
