"""From a run to its report."""

from __future__ import annotations

from sparqle_tvm.report.by_formula import constants_table, estimable, estimate_sections
from sparqle_tvm.report.document import Document, Part, Section
from sparqle_tvm.report.run import (
    cost_section,
    detail_tables,
    document_of,
    layer_sections,
    perplexity_section,
)
from sparqle_tvm.results.run import RunResult


def build_report(run: RunResult) -> Document:
    """Put together all that a report of a run has: its own figures, and those by formula."""
    model = estimable(run)
    details: list[Part] = [*detail_tables(run)]
    if isinstance(model, str):
        estimated = [Section("Energy", (model,))]
    else:
        estimated = list(estimate_sections(model))
        details.append(constants_table(run.table))
    return document_of(
        run,
        (
            cost_section(run),
            perplexity_section(run),
            *estimated,
            *layer_sections(run),
            Section("In detail", tuple(details)),
        ),
    )
