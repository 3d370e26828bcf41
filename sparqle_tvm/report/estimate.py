"""What is said about an estimate."""

from __future__ import annotations

from collections.abc import Iterator

from sparqle_tvm.report import formats
from sparqle_tvm.report.document import Column, Document, Section, Table
from sparqle_tvm.report.passes import (
    components_table,
    cost_table,
    describe,
    energy_table,
    figure,
    left_dense_tables,
    limits_table,
    others_table,
    saving,
    scheme_column,
)
from sparqle_tvm.report.sensitivity import sensitivity_section
from sparqle_tvm.results.estimate import Estimate
from sparqle_tvm.results.passes import BASELINE
from sparqle_tvm.results.sensitivity import Sensitivity


def estimate_document(found: Estimate, sensitivity: Sensitivity | None = None) -> Document:
    """What `sparqle estimate` prints, with what a change of the accelerator would do if given."""
    sequences = "1 sequence" if found.batch == 1 else f"{found.batch} sequences"
    by_type = ", ".join(f"{kind} {s:.0%}" for kind, s in found.digits.layer_types.items())
    source = found.digits.source + (" (transferred)" if found.digits.transferred else "")
    passes, accelerator, table = (found,), found.accelerator, found.table.name
    return Document(
        title=f"{found.model.name}: {found.name}, {sequences}",
        subtitle=f"{describe(accelerator)}. Energy: table {table}. MSB sparsity "
        f"{formats.percent(found.msb_sparsity)} by MACs ({by_type}): {source}.",
        sections=(
            Section(
                "What it costs",
                (
                    cost_table(passes, accelerator),
                    *_area_tables(found),
                    limits_table(passes, accelerator),
                    others_table(passes, accelerator),
                    *left_dense_tables(passes),
                    components_table(passes, accelerator, table),
                    energy_table(passes, accelerator, table),
                    *found.notes,
                ),
            ),
            *([] if sensitivity is None else [sensitivity_section((sensitivity,))]),
        ),
    )


_AREA_PARTS = {"array": "array, while it works", "whole_model": "array and buffers, whole model"}


def _area_tables(found: Estimate) -> Iterator[Table]:
    """Area and time x area of every scheme; none without the baseline."""
    if not found.time_areas:
        return
    rows = tuple(
        {
            "part": _AREA_PARTS[one.part],
            "scheme": one.scheme,
            "area": one.area.mid,
            "time_area": one.time_area.mid,
            "time_area_saved": None if one.scheme == BASELINE else 1 - one.time_area.mid,
            "time_area_saved_low": None if one.scheme == BASELINE else 1 - one.time_area.high,
            "time_area_saved_high": None if one.scheme == BASELINE else 1 - one.time_area.low,
        }
        for part in _AREA_PARTS
        for one in found.time_areas
        if one.part == part
    )

    def times(value: float) -> str:
        return f"{value:.2f}"

    yield Table(
        name="time_area",
        title=f"Area, and time x area, relative to the {BASELINE} baseline",
        columns=(
            Column("part", ""),
            scheme_column(found.accelerator),
            figure("area", "area", times),
            figure("time_area", "time x area", times),
            saving("time_area_saved"),
            figure("time_area_saved_low", "low", formats.percent),
            figure("time_area_saved_high", "high", formats.percent),
        ),
        rows=rows,
        note="Areas of PEs are ratios of a synthesis (docs/area.md); that of on-chip memory is an "
        "assumption, from which the band comes. DRAM and the vector unit are not counted.",
        group="part",
    )
