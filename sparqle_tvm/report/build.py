"""From results to a report."""

from __future__ import annotations

from sparqle_tvm.report.document import Document, Part, Section
from sparqle_tvm.report.estimate_sections import (
    constants_table,
    estimable,
    estimate_sections,
    table_of,
)
from sparqle_tvm.report.run_sections import (
    cards_of,
    cost_section,
    detail_tables,
    layer_sections,
    subtitle_of,
    title_of,
)
from sparqle_tvm.results.run_file import RunFile
from sparqle_tvm.target.cost.energy_table import EnergyTable


def build_report(run: RunFile, table: EnergyTable | None = None) -> Document:
    """Put together all that a report of a run has.

    Parameters
    ----------
    run : RunFile
        A finished `sparqle run`.
    table : EnergyTable, optional
        What other schemes and sparsities are counted with; by default the run's own.
    """
    table = table_of(run) if table is None else table
    model = estimable(run, table)
    details: list[Part] = [*detail_tables(run)]
    if isinstance(model, str):
        estimated = [Section("Energy", (model,))]
    else:
        estimated = list(estimate_sections(model))
        details.append(constants_table(table))
    return Document(
        title=title_of(run),
        subtitle=subtitle_of(run),
        cards=cards_of(run),
        sections=(
            cost_section(run),
            *estimated,
            *layer_sections(run),
            Section("In detail", tuple(details)),
        ),
    )
