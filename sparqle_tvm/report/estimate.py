"""What is said about an estimate."""

from __future__ import annotations

from collections.abc import Iterator

from sparqle_tvm.report import formats
from sparqle_tvm.report.document import Document, Notice, Part, Section
from sparqle_tvm.report.passes import (
    components_table,
    cost_table,
    describe,
    energy_table,
    limits_table,
)
from sparqle_tvm.results.estimate import Estimate


def estimate_document(found: Estimate) -> Document:
    """What `sparqle estimate` prints."""
    sequences = "1 sequence" if found.batch == 1 else f"{found.batch} sequences"
    by_type = ", ".join(f"{kind} {s:.0%}" for kind, s in found.digits.layer_types.items())
    source = found.digits.source + (" (transferred)" if found.digits.transferred else "")
    passes, table = (found,), found.table.name
    return Document(
        title=f"{found.model.name}: {found.name}, {sequences}",
        subtitle=f"{describe(found.accelerator)}. Energy: table {table}. MSB sparsity "
        f"{formats.percent(found.msb_sparsity)} by MACs ({by_type}): {source}.",
        sections=(
            Section(
                "",
                (
                    cost_table(passes, found.accelerator),
                    limits_table(passes),
                    components_table(passes, table),
                    energy_table(passes, table, ""),
                    *_notes(found),
                ),
            ),
        ),
    )


def _notes(found: Estimate) -> Iterator[Part]:
    weights = [s for s, cost in found.schemes.items() if cost.whole_model.weight_bound]
    if weights:
        yield Notice(
            f"Most of the time goes to waiting for weights under {', '.join(weights)}: split "
            "activations cannot help there."
        )
    yield (
        "Counted by formula. Bands: parameters without a published value, see the energy table. "
        "Only split (sparqle), dense and native give the results of 8-bit activations."
    )
