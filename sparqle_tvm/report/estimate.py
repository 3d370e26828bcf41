"""What is said about estimates: passes of a model on an accelerator, by formula."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sparqle_tvm.report import formats
from sparqle_tvm.report.by_formula import constants_table
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
from sparqle_tvm.report.passes import (
    FORMULA,
    components_table,
    cost_table,
    describe,
    energy_table,
    figure,
    left_dense_tables,
    limits_table,
    others_table,
    saving,
)
from sparqle_tvm.report.pictures import drawing
from sparqle_tvm.report.run import detail_tables, roofline_picture, saving_cards
from sparqle_tvm.report.sensitivity import sensitivity_section, sensitivity_verdicts
from sparqle_tvm.report.verdict import estimate_verdicts
from sparqle_tvm.results.estimate import Estimate, TimeArea
from sparqle_tvm.results.passes import BASELINE
from sparqle_tvm.results.sensitivity import Sensitivity
from sparqle_tvm.studies.savings import Series
from sparqle_tvm.target.cost.baselines import scheme_name, scheme_notes


def estimate_document(
    found: Sequence[Estimate], sensitivities: Sequence[Sensitivity] = ()
) -> Document:
    """What `sparqle estimate` shows.

    `found` are passes of one model on one accelerator, asked for alike; `sensitivities` what a
    change of the accelerator would do to them, if asked for.
    """
    first = found[0]
    sequences = "1 sequence" if first.batch == 1 else f"{first.batch} sequences"
    by_type = ", ".join(f"{kind} {100 * s:.0f} %" for kind, s in first.digits.layer_types.items())
    source = first.digits.source + (" (transferred)" if first.digits.transferred else "")
    return Document(
        title=f"{first.model.name}: {'; '.join(one.name for one in found)}, {sequences}",
        subtitle=f"{describe(first.accelerator)}. Energy: table {first.table.name}. MSB sparsity "
        f"{formats.percent(first.msb_sparsity)} by MACs ({by_type}): {source}. Sizes: "
        f"{first.model.source}. Weights: {first.model.weights}; output layer: "
        f"{first.model.output_weights}.",
        cards=tuple(_cards(found)),
        sections=(
            _cost_section(found),
            _limits_section(found),
            *([sensitivity_section(sensitivities)] if sensitivities else []),
            *_picture_sections(found),
            Section(
                "In detail",
                (*detail_tables(found, first.accelerator), constants_table(first.table)),
            ),
        ),
        verdict=(
            *(estimate_verdicts(found) if _compared(found) else ()),
            *sensitivity_verdicts(sensitivities),
        ),
    )


def _compared(found: Sequence[Estimate]) -> bool:
    """Whether there is a split form to hold against a dense one."""
    return all({"dense", "sparqle"} <= set(one.schemes) for one in found)


def _cards(found: Sequence[Estimate]) -> Iterator[Card]:
    if _compared(found):
        yield from saving_cards(found, found[0].table, FORMULA)
        for one in found:
            saved = {
                of.scheme: 1 - of.time_area.mid for of in one.time_areas if of.part == "whole_model"
            }
            beside = f"; native {formats.change(saved['native'])}" if "native" in saved else ""
            yield Card(
                f"{one.phase.capitalize()} time x area",
                formats.change(saved["sparqle"]),
                f"whole model, array and buffers, whose area grows{beside}; {FORMULA}",
            )


def _cost_section(found: Sequence[Estimate]) -> Section:
    beyond = dict.fromkeys(one.positions_note for one in found if one.positions_note)
    parts: list[Part] = [
        *map(Notice, beyond),
        cost_table(found, found[0].accelerator),
        *_area_tables(found),
        *left_dense_tables(found),
    ]
    for note in dict.fromkeys(note for one in found for note in one.notes if note not in beyond):
        phases = [one.phase for one in found if note in one.notes]
        alone = len(phases) < len(found)
        parts.append(f"{phases[0].capitalize()}: {note[0].lower()}{note[1:]}" if alone else note)
    return Section("What it costs", tuple(parts))


def _limits_section(found: Sequence[Estimate]) -> Section:
    accelerator = found[0].accelerator
    tables = limits_table(found, accelerator), others_table(found, accelerator)
    if not _compared(found):
        return Section("Compute or memory", tables)
    series = [Series(one.name, "tokens", (one.seq,), (one,)) for one in found]
    picture = Picture(
        "limits",
        "What takes the time of the whole model, as a share of that of dense: the busiest engine "
        f"of each op, and what it waits for. {scheme_notes(accelerator)} Diamonds: time x area "
        "of array and buffers, with the band of the density of buffers.",
        lambda narrow: drawing("limits").draw_limits(series, narrow=narrow),
    )
    return Section("Compute or memory", (picture, *tables))


def _picture_sections(found: Sequence[Estimate]) -> Iterator[Section]:
    accelerator, table = found[0].accelerator, found[0].table.name
    yield Section(
        "Energy",
        (
            Picture(
                "energy",
                f"Energy of the whole model by component, table {table}, by formula. Lines: band "
                "of what has no published value.",
                lambda narrow: drawing("energy").draw_energy(found, narrow=narrow),
            ),
            components_table(found, accelerator, table),
            energy_table(found, accelerator, table),
        ),
    )
    if _compared(found):
        yield Section("Roofline", (roofline_picture(found, accelerator, "estimate"),))


_AREA_PARTS = {"array": "array, while it works", "whole_model": "array and buffers, whole model"}


def _area_tables(found: Sequence[Estimate]) -> Iterator[Table]:
    """Area and time x area of every scheme; none without the baseline."""
    rows = [
        {
            "part": f"{one.name}: {title}",
            "scheme": scheme_name(one.accelerator, of.scheme),
            "area": of.area.mid,
            "time_area": of.time_area.mid,
            **(dict.fromkeys(_SAVED) if of.scheme == BASELINE else _saved(of)),
        }
        for one in found
        for part, title in _AREA_PARTS.items()
        for of in one.time_areas
        if of.part == part
    ]
    if rows:
        yield Table(
            name="time_area",
            title=f"Area, and time x area, relative to the {BASELINE} baseline",
            columns=(
                Column("part", ""),
                Column("scheme", "scheme"),
                figure("area", "area", "{:.2f}".format),
                figure("time_area", "time x area", "{:.2f}".format),
                saving("time_area_saved"),
                figure("time_area_saved_low", "low", formats.percent),
                figure("time_area_saved_high", "high", formats.percent),
            ),
            rows=tuple(rows),
            note="Areas of PEs are ratios of a synthesis (docs/area.md); that of on-chip memory is "
            "an assumption, from which the band comes. DRAM and the vector unit are not counted.",
            group="part",
        )


_SAVED = ("time_area_saved", "time_area_saved_low", "time_area_saved_high")


def _saved(of: TimeArea) -> dict[str, float]:
    ends = of.time_area.mid, of.time_area.high, of.time_area.low
    return {name: 1 - end for name, end in zip(_SAVED, ends, strict=True)}
