"""Which field of the accelerator to change next: a table and a picture."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from sparqle_tvm.report import formats
from sparqle_tvm.report.document import Column, Part, Picture, Section, Table
from sparqle_tvm.report.passes import Row, figure, saving
from sparqle_tvm.report.pictures import drawing
from sparqle_tvm.results.passes import BASELINE
from sparqle_tvm.results.sensitivity import FieldChange, Sensitivity
from sparqle_tvm.target.cost.tiling import TOLERANCE

FACTOR_NAMES = {2.0: "doubled", 0.5: "halved"}
_SIGNS = {2.0: "\N{MULTIPLICATION SIGN}2", 0.5: "\N{DIVISION SIGN}2"}
EVERYTHING = "clock_ghz"
"""All cycles pass faster with it, those of the memory too: not a knob among others."""
_PART = "whole_model"
_TINY = 0.0005
"""A change that is shown as 0.0 %."""
_LEAST = {"seconds": _TINY, "joules": 0.05}
"""What a change that is named lowers at least: other tiles alone move energy by some percent."""


def sensitivity_section(found: Sequence[Sensitivity]) -> Section:
    """Passes on the same accelerator, each with a sentence and a table; a picture of all."""
    parts: list[Part] = [
        Picture(
            "sensitivity",
            "How the time and the energy of the whole model change if one field of the accelerator "
            "is doubled (full bars) or halved (hatched): wide bars the split form, slim ones "
            "dense. Bars to the left are better. The clock, with which everything grows, is left "
            f"out. Energy: table {found[0].base.table.name}.",
            lambda narrow: drawing("sensitivity").draw_sensitivity(found, narrow=narrow),
        )
    ]
    for one in found:
        parts += [_advice(one), sensitivity_table(one)]
    parts += _impossible(found[0])
    return Section("Which knob next", tuple(parts))


def sensitivity_table(found: Sensitivity) -> Table:
    """A row for each change that there is an estimate of; fields that change most come first."""
    base, saved = found.base, found.base.saved("sparqle")
    time, energy = formats.percent(saved.cycles), formats.percent(saved.energy.mid)
    one_memory = " Buffers are one memory: of those of a size one is changed."
    return Table(
        name=f"{base.phase}_sensitivity",
        title=f"{base.name}: change of time and energy of the whole model if one field is doubled "
        "or halved, and what split precision saves then",
        columns=(
            Column("field", "field"),
            Column("factor", "", _SIGNS.__getitem__),
            figure("dense_seconds_change", "time, dense", formats.signed_percent),
            figure("split_seconds_change", "split", formats.signed_percent),
            saving("time_saved"),
            figure("dense_joules_change", "energy, dense", formats.signed_percent),
            figure("split_joules_change", "split", formats.signed_percent),
            saving("energy_saved"),
            figure("split_time_area_change", "time x area, split", formats.signed_percent),
        ),
        rows=tuple(_row(found, change) for field in ranked_fields(found) for change in field),
        note=f"Energy: {base.table.name}. As it is, split precision saves {time} of the time and "
        f"{energy} of the energy. Tiles are chosen anew for every change, of those within "
        f"{formats.percent(TOLERANCE)} of the least time the ones of least energy: that alone "
        "moves energy by some percent either way. Bandwidth is in bytes per cycle: it grows with "
        "the clock. Area: array and buffers; DRAM, its channel and the vector unit cost nothing "
        "there."
        f"{one_memory if base.accelerator.scratchpad else ''}",
        group="field",
        repeated=2,
    )


def sensitivity_verdicts(found: Sequence[Sensitivity]) -> Iterator[str]:
    """The knobs that shorten each pass most, and those that do at least area, in a sentence."""
    texts = []
    for what, cost in (("time", _time), ("time x area", _time_area_of)):
        knobs = []
        for one in found:
            change, best = _best(one, cost)
            if change <= -_LEAST["seconds"]:
                shown = formats.signed_percent(change)
                knobs.append(f"{_named(best)} in {one.base.phase} ({shown})")
        if knobs:
            texts.append(f"for the {what} of the split form, {' and '.join(knobs)}")
    if texts:
        yield f"The next knob, the clock aside: {'; '.join(texts)}."


def ranked_fields(found: Sensitivity) -> list[list[FieldChange]]:
    """The changes that have estimates by field, the field that changes time most first."""
    fields: dict[str, list[FieldChange]] = {}
    for change in found.changes:
        if change.parts:
            fields.setdefault(change.field, []).append(change)
    return sorted(fields.values(), key=lambda group: min(_time(found, c) for c in group))


def _time(_: Sensitivity, change: FieldChange) -> float:
    return change.parts[_PART].seconds["sparqle"]


def _time_area_of(found: Sensitivity, change: FieldChange) -> float:
    return found.time_area(change, "sparqle")


def _row(found: Sensitivity, change: FieldChange) -> Row:
    part = change.parts[_PART]
    figures = {
        f"{shown}_{name}_change": getattr(part, name)[scheme]
        for scheme, shown in ((BASELINE, BASELINE), ("sparqle", "split"))
        for name in ("seconds", "joules")
    }
    return {
        "field": f"{change.field} = {change.before:,.12g}",
        "factor": change.factor,
        "time_saved": part.time_saved,
        "energy_saved": part.energy_saved,
        "split_time_area_change": _time_area_of(found, change),
        **figures,
    }


def _advice(found: Sensitivity) -> str:
    """The changes that lower the split form's time and its energy most, the clock aside."""
    parts = []
    for what, least, cost in (
        ("time", _LEAST["seconds"], _time),
        ("energy", _LEAST["joules"], _energy),
        ("time x area", _LEAST["seconds"], _time_area_of),
    ):
        change, best = _best(found, cost)
        if change > -least:
            by = "" if least == _TINY else f" by {least:.0%}".replace("%", " %")
            parts.append(f"no change lowers the {what}{by}")
        else:
            shown = formats.signed_percent(change)
            parts.append(f"the {what} of the split form falls most ({shown}) with {_named(best)}")
    return f"{found.base.name.capitalize()}, the clock aside: {'; '.join(parts)}."


def _energy(_: Sensitivity, change: FieldChange) -> float:
    return change.parts[_PART].joules["sparqle"]


def _best(
    found: Sensitivity, cost: Callable[[Sensitivity, FieldChange], float]
) -> tuple[float, FieldChange]:
    """What the best change of a field does to a cost, and the change; the clock aside."""
    knobs = [c for c in found.changes if c.parts and c.field != EVERYTHING]
    return min(((cost(found, c), c) for c in knobs), key=lambda pair: pair[0])


def _named(change: FieldChange) -> str:
    return f"{change.field} {FACTOR_NAMES[change.factor]} to {change.after:,.12g}"


def _impossible(found: Sensitivity) -> Iterator[str]:
    """The changes that cannot be, each with its reason."""
    reasons: dict[str, list[str]] = {}
    for change in found.changes:
        if change.impossible:
            what = f"{change.field} {FACTOR_NAMES[change.factor]}: {change.impossible}"
            reasons.setdefault(change.field, []).append(what)
    if reasons:
        yield "Not estimated: " + "; ".join(r for group in reasons.values() for r in group) + "."
