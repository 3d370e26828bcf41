"""What is said about tuned schedules."""

from __future__ import annotations

from sparqle_tvm.report import formats
from sparqle_tvm.report.document import Column, Document, Notice, Section, Table
from sparqle_tvm.report.passes import figure
from sparqle_tvm.results.tuning import TuningSummary


def tuning_document(result: TuningSummary) -> Document:
    """A row for every op, and what all of them gain."""
    rows = []
    for found in result.tasks:
        before, after = found.default, found.best
        rows.append(
            {
                "op": found.name,
                "layers": found.weight,
                "cycles": after.cycles,
                "cycles_change": after.cycles / before.cycles - 1,
                "energy_change": after.energy_pj / before.energy_pj - 1,
                "tile": " x ".join(map(str, found.best.tile)),
            }
        )
    table = Table(
        name="schedules",
        title="",
        columns=(
            Column("op", "M x N x K"),
            figure("layers", "layers", str),
            figure("cycles", "cycles", formats.grouped),
            figure("cycles_change", "change", formats.signed_percent),
            figure("energy_change", "energy", formats.signed_percent),
            Column("tile", "tile"),
        ),
        rows=tuple(rows),
        note="Cycles are those of one layer; change and energy, against the default schedule. "
        "Attention is no op of these: its plan is chosen by formula, out of all that fit.",
    )
    all_before, all_after = result.total.default, result.total.best
    settings = result.settings
    return Document(
        title=f"Schedules tuned for {settings.objective} on {settings.accelerator.name}",
        subtitle="",
        sections=(
            Section(
                "",
                (
                    table,
                    *(Notice(f"{t.name}: {t.message}") for t in result.tasks if t.message),
                    f"All layers: {all_before.cycles:,.0f} -> {all_after.cycles:,.0f} cycles "
                    f"({formats.signed_percent(all_after.cycles / all_before.cycles - 1)}), "
                    f"{formats.joules(all_before.energy_pj * 1e-12)} -> "
                    f"{formats.joules(all_after.energy_pj * 1e-12)} "
                    f"({formats.signed_percent(all_after.energy_pj / all_before.energy_pj - 1)}). "
                    f"Use them: sparqle run --database {result.work_dir}",
                ),
            ),
        ),
    )
