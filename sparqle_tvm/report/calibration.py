"""What is said about calibrations, and about what budgets lose and save."""

from __future__ import annotations

from dataclasses import asdict

from sparqle_tvm.numerics.window import PLAIN
from sparqle_tvm.report import formats
from sparqle_tvm.report.document import Column, Document, Section, Table
from sparqle_tvm.report.passes import figure, saving
from sparqle_tvm.report.run import loss_columns
from sparqle_tvm.results.calibration import CalibrationSummary
from sparqle_tvm.results.losses import ParetoResult


def calibration_document(found: CalibrationSummary, path: str) -> Document:
    """What was collected, and what choices of factors lost on calibration text."""
    unsigned = sum(encoding.window == PLAIN for encoding in found.encodings)
    table = Table(
        name="choices",
        title="Choices of scale factors, measured on calibration text",
        columns=(
            figure("msb_sparsity", "MSB sparsity", formats.percent),
            figure("expected_loss", "expected loss", "{:.4f}".format),
            *loss_columns(),
        ),
        rows=tuple(asdict(choice) for choice in found.measured),
    )
    kv = Table(
        name="kv",
        title="Storages of keys and values, measured on calibration text against int8",
        columns=(Column("storage", "--kv"), *loss_columns()),
        rows=tuple(asdict(storage) for storage in found.measured_kv),
    )
    tables = (table, kv) if found.measured_kv else (table,)
    return Document(
        title=f"{found.model}, calibrated",
        subtitle=f"{len(found.encodings)} encodings over {found.tokens} tokens of {found.text}; "
        f"MSB sparsity {formats.percent(found.msb_sparsity)}, unsigned window better for "
        f"{unsigned}.",
        sections=(Section("", (*tables, f"Written to {path}")),),
    )


def pareto_document(result: ParetoResult) -> Document:
    """A row for every budget."""
    table = Table(
        name="budgets",
        title="Loss against cycles and energy (saved: share of the dense baseline's)",
        columns=(
            Column("budget", "budget"),
            figure("msb_sparsity", "zero MSBs", formats.percent),
            *loss_columns("heldout_", "unseen"),
            *loss_columns("calibration_", "seen")[:1],
            saving("mma_reduction", "array saved"),
            saving("cycles_reduction", "dense saved"),
            saving("energy_reduction", "energy saved"),
        ),
        rows=tuple(
            {
                **asdict(point),
                **{f"heldout_{key}": value for key, value in asdict(point.heldout).items()},
                **{f"calibration_{key}": value for key, value in asdict(point.calibration).items()},
            }
            for point in result.points
        ),
    )
    return Document(
        title=f"{result.model_name} on {result.accelerator}",
        subtitle=f"{result.prefill_tokens} tokens of prefill; loss against int8 on "
        f"{result.heldout_tokens} tokens that calibration did not see and "
        f"{result.calibration_tokens} that it saw.",
        sections=(Section("", (table,)),),
    )
