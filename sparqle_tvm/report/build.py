"""From a run or an analysis to its report."""

from __future__ import annotations

from sparqle_tvm.report.analysis import analysis_report
from sparqle_tvm.report.attention import attention_sections
from sparqle_tvm.report.by_formula import constants_table, estimable, estimate_sections
from sparqle_tvm.report.document import Document, Part, Section
from sparqle_tvm.report.run import (
    cost_section,
    detail_tables,
    document_of,
    layer_sections,
    perplexity_section,
)
from sparqle_tvm.results.analysis import Analysis
from sparqle_tvm.results.run import RunResult


def build_report(run: RunResult | Analysis) -> Document:
    """Put together all that a report has: of a language model also what formulas say."""
    if isinstance(run, Analysis):
        return analysis_report(run)
    model = estimable(run)
    details: list[Part] = [*detail_tables(run.passes, run.accelerator)]
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
            *attention_sections(run),
            *estimated,
            *layer_sections(run),
            Section("In detail", tuple(details)),
        ),
    )
