"""What is said about an estimate."""

from __future__ import annotations

from sparqle_tvm.report import formats
from sparqle_tvm.report.document import Document, Section
from sparqle_tvm.report.passes import (
    components_table,
    cost_table,
    describe,
    energy_table,
    left_dense_tables,
    limits_table,
    others_table,
)
from sparqle_tvm.report.sensitivity import sensitivity_section
from sparqle_tvm.results.estimate import Estimate
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
